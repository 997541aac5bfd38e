//! Names that somebody else has: nothing of others is touched, and what is free is taken.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};
use llmwarden_proto::names::{ADOPT_ANNOTATION, MANAGED_BY, MANAGED_BY_LABEL};
use llmwarden_proto::reason::Reason;
use llmwarden_tests::{Installation, eventually};
use serde_json::json;

use crate::support::{SOON, Tenant, create, object, value};

const KEY: &str = "sk-test-conflicts";

/// A Secret that is not llmwarden's.
pub fn foreign(name: &str) -> Secret {
    object(json!({
        "metadata": { "name": name, "labels": { "team": "other" }, "annotations": { "note": "keep" } },
        "stringData": { "apiKey": "theirs", "other": "value" },
    }))
}

pub async fn create_foreign(tenant: &Tenant, name: &str) -> Secret {
    create(&tenant.secrets(), &foreign(name)).await
}

pub async fn delete_secret(tenant: &Tenant, name: &str) {
    tenant
        .secrets()
        .delete(name, &DeleteParams::default())
        .await
        .unwrap();
}

async fn delete_access(tenant: &Tenant, name: &str) {
    tenant
        .accesses()
        .delete(name, &DeleteParams::default())
        .await
        .unwrap();
}

/// The name of what owns a Secret.
pub fn owner(secret: &Secret) -> Option<&str> {
    let owners = secret.owner_references();
    owners
        .iter()
        .find(|owner| owner.controller == Some(true))
        .map(|owner| owner.name.as_str())
}

pub async fn assert_conflict(tenant: &Tenant, access: &str, words: &[&str]) {
    let message = tenant.await_refusal(access, Reason::SecretConflict).await;
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_a_secret_keeps_it_until_it_is_deleted() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let shared = json!({ "secretName": "shared" });
    tenant.create_access("first", shared.clone()).await;
    tenant.await_ready("first").await;
    let before = tenant.secret("shared").await;

    tenant.create_access("second", shared).await;
    assert_conflict(
        &tenant,
        "second",
        &["shared", "LLMAccess first", "choose another spec.secretName"],
    )
    .await;
    tenant.touch("second").await;
    tenant.touch("first").await;
    assert_eq!(tenant.occurrences("second", Reason::SecretConflict).await, 1);
    assert_eq!(tenant.secret_names().await, ["first.llmwarden", "shared"]);
    assert_eq!(tenant.secret("shared").await, before);
    tenant.await_ready("first").await;

    delete_access(&tenant, "first").await;
    tenant.await_ready("second").await;
    let after = tenant.secret("shared").await;
    assert_eq!(owner(&after), Some("second"));
    assert_ne!(after.uid(), before.uid());
    eventually("the end of the first one's companion", SOON, async || {
        tenant.secret_names().await == ["second.llmwarden", "shared"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_its_owner_gives_up_goes_to_who_waits_for_it() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let shared = json!({ "secretName": "shared" });
    tenant.create_access("first", shared.clone()).await;
    tenant.await_ready("first").await;
    tenant.create_access("second", shared).await;
    assert_conflict(&tenant, "second", &["LLMAccess first"]).await;

    let renamed = json!({ "spec": { "secretName": "own" } });
    tenant.patch_access("first", renamed).await;
    tenant.await_ready("second").await;
    assert_eq!(owner(&tenant.secret("shared").await), Some("second"));
    eventually("the first one's new Secret", SOON, async || {
        tenant.secrets().get("own").await
    })
    .await;
    tenant.await_ready("first").await;
    assert_eq!(owner(&tenant.secret("own").await), Some("first"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nobody_has_goes_to_the_older_claim() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let refused = json!({ "secretName": "shared", "models": ["claude-unlisted"] });
    tenant.create_access("agent-1", refused).await;
    tenant.await_refusal("agent-1", Reason::ModelNotAllowed).await;
    tenant
        .create_access("agent-2", json!({ "secretName": "shared" }))
        .await;
    let words = [
        "spec.secretName shared",
        "older LLMAccess agent-1",
        "choose another",
    ];
    assert_conflict(&tenant, "agent-2", &words).await;
    tenant.touch("agent-2").await;
    assert_eq!(tenant.secret_names().await, [""; 0]);

    delete_access(&tenant, "agent-1").await;
    tenant.await_ready("agent-2").await;
    assert_eq!(owner(&tenant.secret("shared").await), Some("agent-2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_renames_onto_a_foreign_secret_keeps_the_old_one() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let theirs = create_foreign(&tenant, "taken").await;
    tenant.create_access("agent", json!({})).await;
    tenant.await_ready("agent").await;
    let ours = tenant.secret("agent-key").await;

    let renamed = json!({ "spec": { "secretName": "taken" } });
    tenant.patch_access("agent", renamed).await;
    assert_conflict(&tenant, "agent", &["taken", "not llmwarden's"]).await;
    tenant.touch("agent").await;
    assert_eq!(tenant.secret("taken").await, theirs);
    assert_eq!(tenant.secret("agent-key").await, ours);

    delete_secret(&tenant, "taken").await;
    tenant.await_ready("agent").await;
    assert_eq!(owner(&tenant.secret("taken").await), Some("agent"));
    assert_eq!(tenant.secret_names().await, ["agent.llmwarden", "taken"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_ask_at_once_one_gets_the_name() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let names: Vec<String> = (0..8).map(|n| format!("agent-{n}")).collect();
    let shared = json!({ "secretName": "shared" });
    let asked = names
        .iter()
        .map(|name| tenant.create_access(name, shared.clone()));
    futures::future::join_all(asked).await;

    let winner = eventually("an owner", SOON, async || {
        tenant
            .secrets()
            .get_opt("shared")
            .await
            .unwrap()
            .and_then(|secret| owner(&secret).map(str::to_owned))
    })
    .await;
    for name in names.iter().filter(|name| **name != winner) {
        assert_conflict(&tenant, name, &["shared", "choose another"]).await;
        tenant.touch(name).await;
    }
    tenant.await_ready(&winner).await;
    assert_eq!(owner(&tenant.secret("shared").await), Some(winner.as_str()));
    let companion = format!("{winner}.llmwarden");
    assert_eq!(tenant.secret_names().await, [companion.as_str(), "shared"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_secret_is_never_touched() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let before = create_foreign(&tenant, "agent-key").await;
    tenant.create_access("agent", json!({})).await;
    let adopt = format!("{ADOPT_ANNOTATION}=agent");
    assert_conflict(
        &tenant,
        "agent",
        &["agent-key", "not llmwarden's", "choose another", &adopt],
    )
    .await;

    // A new key and a new generation are reasons to write: neither makes it ours.
    tenant.set_master("sk-test-conflicts-2").await;
    tenant.touch("agent").await;
    assert_eq!(tenant.occurrences("agent", Reason::SecretConflict).await, 1);
    assert_eq!(tenant.secret("agent-key").await, before);
    assert_eq!(tenant.secret_names().await, ["agent-key"]);

    delete_secret(&tenant, "agent-key").await;
    tenant.await_ready("agent").await;
    let made = tenant.secret("agent-key").await;
    assert_eq!(owner(&made), Some("agent"));
    assert_eq!(value(&made, "apiKey"), "sk-test-conflicts-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_secret_with_our_label_is_still_foreign() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let mut labelled = foreign("agent-key");
    labelled
        .labels_mut()
        .insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    let before = create(&tenant.secrets(), &labelled).await;
    tenant.create_access("agent", json!({})).await;
    assert_conflict(&tenant, "agent", &["agent-key", "not llmwarden's"]).await;
    tenant.touch("agent").await;
    assert_eq!(tenant.secret("agent-key").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_secret_with_the_companions_name_is_never_touched() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let before = create_foreign(&tenant, "agent.llmwarden").await;
    tenant.create_access("agent", json!({})).await;
    assert_conflict(&tenant, "agent", &["agent.llmwarden", "delete that Secret"]).await;
    tenant.touch("agent").await;
    assert_eq!(tenant.occurrences("agent", Reason::SecretConflict).await, 1);
    assert_eq!(tenant.secret("agent.llmwarden").await, before);
    assert_eq!(tenant.secret_names().await, ["agent.llmwarden"]);

    delete_secret(&tenant, "agent.llmwarden").await;
    tenant.await_ready("agent").await;
    assert_eq!(owner(&tenant.secret("agent.llmwarden").await), Some("agent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_secret_that_appears_while_we_write_is_never_touched() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let (mut ours, mut theirs) = (0, 0);
    // By how many requests the other one waits, for each of the two names: longer when it came first, shorter when it
    // came last, so that the two meet.
    let mut waits = [0, 0];
    for round in 0..32 {
        let access = format!("agent-{round:02}");
        let name = [format!("{access}-key"), format!("{access}.llmwarden")][round % 2].clone();
        let wait = &mut waits[round % 2];
        let competitor = async {
            for _ in 0..*wait {
                tenant.secrets().get_opt("nothing").await.unwrap();
            }
            let secret = foreign(&name);
            tenant.secrets().create(&PostParams::default(), &secret).await
        };
        match tokio::join!(tenant.create_access(&access, json!({})), competitor).1 {
            Ok(before) => {
                theirs += 1;
                *wait = *wait * 2 + 1;
                assert_conflict(&tenant, &access, &[&name]).await;
                tenant.touch(&access).await;
                assert_eq!(tenant.secret(&name).await, before, "round {round}");
                let mut left = tenant.secret_names().await;
                left.retain(|left| left.starts_with(&access));
                assert_eq!(left, [name.as_str()], "round {round}");
            }
            Err(error) => {
                ours += 1;
                *wait = *wait * 3 / 4;
                assert!(
                    matches!(&error, kube::Error::Api(status) if status.is_already_exists()),
                    "{error}"
                );
                tenant.await_ready(&access).await;
                assert_eq!(
                    owner(&tenant.secret(&name).await),
                    Some(access.as_str()),
                    "round {round}"
                );
            }
        }
    }
    assert!(ours > 0 && theirs > 0, "no race: {ours} to {theirs}");
}
