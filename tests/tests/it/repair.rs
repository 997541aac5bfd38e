//! Secrets that somebody edits, deletes or freezes, and accesses that come back: they end as they should be.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::DeleteParams;
use llmwarden_proto::access::{LLMAccessStatus, Trigger};
use llmwarden_proto::names::{API_KEY, LIVE_JSON, MANAGED_BY_LABEL};
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::wait::same;
use llmwarden_tests::{Installation, eventually};
use serde_json::{Value, json};

use crate::conflicts::{delete_secret, owner};
use crate::rotation::{await_version, document};
use crate::support::{SOON, Tenant, patch, value};

const KEY: &str = "sk-test-repair";

/// A tenant with the access `agent`, and its status.
async fn provisioned(installation: &Installation) -> (Tenant, LLMAccessStatus) {
    let tenant = Tenant::new(installation, KEY).await;
    tenant.create_access("agent", json!({})).await;
    let status = tenant.await_ready("agent").await.status.unwrap();
    (tenant, status)
}

/// Waits until a Secret holds what `good` holds, with its labels and owner.
async fn await_restored(tenant: &Tenant, good: &Secret) -> Secret {
    let name = good.name_any();
    eventually(&format!("Secret {name} as it was"), SOON, async || {
        let secret = tenant
            .secrets()
            .get(&name)
            .await
            .map_err(|error| error.to_string())?;
        let shown = |secret: &Secret| {
            (
                secret.data.clone(),
                secret.metadata.labels.clone(),
                secret.type_.clone(),
            )
        };
        same(&shown(&secret), &shown(good))?;
        assert_eq!(owner(&secret), Some("agent"));
        Ok::<_, String>(secret)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_application_secret_is_restored() {
    let installation = Installation::shared().await.unwrap();
    let (tenant, status) = provisioned(&installation).await;
    let good = tenant.secret("agent-key").await;
    let edits = [
        json!({ "stringData": { "apiKey": "theirs" } }),
        json!({ "data": { "apiKey": null } }),
        json!({ "data": null }),
        json!({ "stringData": { "more": "theirs" } }),
        json!({ "metadata": { "labels": { MANAGED_BY_LABEL: null } } }),
        json!({ "metadata": { "labels": { MANAGED_BY_LABEL: "somebody-else" } } }),
    ];
    for edit in edits {
        patch(&tenant.secrets(), "agent-key", edit).await;
        let restored = await_restored(&tenant, &good).await;
        assert_eq!(restored.uid(), good.uid());
    }
    assert!(tenant.occurrences("agent", Reason::Restored).await > 0);
    // The companion had no part in it.
    let after = tenant.await_ready("agent").await.status.unwrap();
    assert_eq!(after.history, status.history);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_put_on_a_secret_without_changing_it_stays() {
    let installation = Installation::shared().await.unwrap();
    let (tenant, _) = provisioned(&installation).await;
    let marks = json!({ "labels": { "team": "other" }, "annotations": { "note": "keep" } });
    patch(&tenant.secrets(), "agent-key", json!({ "metadata": marks })).await;
    tenant.touch("agent").await;
    tenant.set_master("sk-test-repair-2").await;
    eventually("the new key", SOON, async || {
        value(&tenant.secret("agent-key").await, API_KEY) == "sk-test-repair-2"
    })
    .await;
    let secret = tenant.secret("agent-key").await;
    assert_eq!(secret.labels().get("team").map(String::as_str), Some("other"));
    assert_eq!(secret.annotations().get("note").map(String::as_str), Some("keep"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_companion_is_restored_as_a_new_version() {
    let installation = Installation::shared().await.unwrap();
    let (tenant, mut status) = provisioned(&installation).await;
    let edits = [
        json!({ "stringData": { "apiKey": "theirs" } }),
        json!({ "data": { "live.json": null } }),
        json!({ "stringData": { "live.json": "{" } }),
        json!({ "data": null }),
    ];
    for edit in edits {
        patch(&tenant.secrets(), "agent.llmwarden", edit).await;
        status = await_version(&tenant, "agent", status.credential_version, Trigger::Restored).await;
        assert_eq!(value(&tenant.secret("agent.llmwarden").await, API_KEY), KEY);
        let version = i64::try_from(document(&tenant, "agent").await.version).ok();
        assert_eq!(version, status.credential_version);
    }
    assert_eq!(value(&tenant.secret("agent-key").await, API_KEY), KEY);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_companion_that_is_put_back_becomes_a_newer_version() {
    let installation = Installation::shared().await.unwrap();
    let (tenant, status) = provisioned(&installation).await;
    let backup = tenant.secret("agent.llmwarden").await.data;
    tenant.set_master("sk-test-repair-2").await;
    let status = await_version(
        &tenant,
        "agent",
        status.credential_version,
        Trigger::MasterChanged,
    )
    .await;

    patch(&tenant.secrets(), "agent.llmwarden", json!({ "data": backup })).await;
    await_version(&tenant, "agent", status.credential_version, Trigger::Restored).await;
    assert_eq!(
        value(&tenant.secret("agent.llmwarden").await, API_KEY),
        "sk-test-repair-2"
    );

    // Also when what was put in claims to be from the future.
    let mut future = document(&tenant, "agent").await;
    future.version += 3_600_000;
    let edit =
        json!({ "stringData": { LIVE_JSON: serde_json::to_string(&future).unwrap(), "apiKey": "theirs" } });
    patch(&tenant.secrets(), "agent.llmwarden", edit).await;
    let claimed = i64::try_from(future.version).ok();
    await_version(&tenant, "agent", claimed, Trigger::Restored).await;
    assert_eq!(
        value(&tenant.secret("agent.llmwarden").await, API_KEY),
        "sk-test-repair-2"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_secrets_come_back_and_the_version_grows() {
    let installation = Installation::shared().await.unwrap();
    let (tenant, status) = provisioned(&installation).await;
    let good = tenant.secret("agent-key").await;
    delete_secret(&tenant, "agent-key").await;
    await_restored(&tenant, &good).await;
    assert_eq!(
        tenant.access("agent").await.status.unwrap().credential_version,
        status.credential_version
    );

    delete_secret(&tenant, "agent.llmwarden").await;
    let status = await_version(&tenant, "agent", status.credential_version, Trigger::Restored).await;

    for name in ["agent.llmwarden", "agent-key"] {
        delete_secret(&tenant, name).await;
    }
    let status = await_version(&tenant, "agent", status.credential_version, Trigger::Restored).await;
    await_restored(&tenant, &good).await;
    assert_eq!(
        i64::try_from(document(&tenant, "agent").await.version).ok(),
        status.credential_version
    );
    // It was the same key all the time.
    let ids: Vec<_> = status.history.iter().map(|entry| &entry.key_id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_that_is_made_again_gets_a_newer_version() {
    let installation = Installation::shared().await.unwrap();
    let (tenant, status) = provisioned(&installation).await;
    tenant
        .accesses()
        .delete("agent", &DeleteParams::default())
        .await
        .unwrap();
    tenant.create_access("agent", json!({})).await;
    let again = tenant.await_ready("agent").await;
    assert!(again.status.unwrap().credential_version > status.credential_version);
    for name in ["agent-key", "agent.llmwarden"] {
        let secret = tenant.secret(name).await;
        let [reference] = secret.owner_references() else {
            panic!("{name}")
        };
        assert_eq!(Some(&reference.uid), again.metadata.uid.as_ref());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_was_made_immutable_is_made_anew_and_pods_have_to_restart() {
    let installation = Installation::shared().await.unwrap();
    for name in ["agent-key", "agent.llmwarden"] {
        let (tenant, _) = provisioned(&installation).await;
        let frozen = patch(&tenant.secrets(), name, json!({ "immutable": true })).await;
        let reason = Reason::ImmutableSecretRecreated;
        let condition = tenant
            .await_condition("agent", ConditionType::LiveRotation, "False", reason)
            .await;
        for word in [name, "immutable", "must be restarted"] {
            assert!(condition.message.contains(word), "{}", condition.message);
        }
        eventually("its successor", SOON, async || {
            let secret = tenant.secrets().get_opt(name).await.unwrap();
            secret.is_some_and(|secret| secret.immutable.is_none() && secret.uid() != frozen.uid())
        })
        .await;
        assert_eq!(value(&tenant.secret(name).await, API_KEY), KEY);
        tenant.touch("agent").await;
        assert_eq!(tenant.occurrences("agent", reason).await, 1);
        tenant.set_master("sk-test-repair-2").await;
        eventually("the new key", SOON, async || {
            value(&tenant.secret(name).await, API_KEY) == "sk-test-repair-2"
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_secret_name_makes_another_secret_and_removes_the_old_one() {
    let installation = Installation::shared().await.unwrap();
    let (tenant, status) = provisioned(&installation).await;
    let renamed: Value = json!({ "spec": { "secretName": "renamed" } });
    let access = tenant.patch_access("agent", renamed).await;
    tenant.await_observed(&access).await;
    let after = tenant.await_ready("agent").await.status.unwrap();
    assert_eq!(tenant.secret_names().await, ["agent.llmwarden", "renamed"]);
    assert_eq!(value(&tenant.secret("renamed").await, API_KEY), KEY);
    assert_eq!(after.secret_ref.unwrap().name, "renamed");
    assert_eq!(after.credential_version, status.credential_version);
    let [event] = tenant
        .events("agent", Reason::SecretRemoved)
        .await
        .try_into()
        .unwrap();
    assert!(event.note.unwrap().contains("agent-key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_key_stays_when_the_provider_or_its_key_goes() {
    let installation = Installation::shared().await.unwrap();
    let (tenant, status) = provisioned(&installation).await;
    let before = [
        tenant.secret("agent-key").await,
        tenant.secret("agent.llmwarden").await,
    ];
    let provider = tenant.providers().get(&tenant.provider).await.unwrap();
    let assert_kept = async |reason| {
        let message = tenant.await_refusal("agent", reason).await;
        tenant.touch("agent").await;
        let kept = [
            tenant.secret("agent-key").await,
            tenant.secret("agent.llmwarden").await,
        ];
        assert_eq!(kept, before, "{message}");
        let provisioned = ConditionType::CredentialProvisioned;
        tenant
            .await_condition("agent", provisioned, "True", Reason::Provisioned)
            .await;
    };

    tenant.set_master("").await;
    assert_kept(Reason::MasterKeyEmpty).await;
    tenant
        .masters()
        .delete(&tenant.master, &DeleteParams::default())
        .await
        .unwrap();
    assert_kept(Reason::MasterSecretMissing).await;
    tenant
        .providers()
        .delete(&tenant.provider, &DeleteParams::default())
        .await
        .unwrap();
    assert_kept(Reason::ProviderMissing).await;

    tenant.create_master(json!({ "api-key": KEY })).await;
    tenant
        .create_provider(json!({ "namespaceSelector": provider.spec.namespace_selector }))
        .await;
    let after = tenant.await_ready("agent").await.status.unwrap();
    assert_eq!(after.history, status.history);
    let kept = [
        tenant.secret("agent-key").await,
        tenant.secret("agent.llmwarden").await,
    ];
    assert_eq!(kept, before);
}
