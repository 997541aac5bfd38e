//! Accesses that stop being allowed: announced at once, withdrawn after the grace, back when allowed again.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use llmwarden_proto::access::Trigger;
use llmwarden_proto::delivery::State;
use llmwarden_proto::names::{API_KEY, PLACEHOLDER};
use llmwarden_proto::provider::whole_seconds;
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::installation::ENABLED_LABEL;
use llmwarden_tests::{Installation, Signal, eventually};
use serde_json::json;

use crate::rotation::{await_version, document, patch_status};
use crate::support::{SOON, Tenant, patch, value};

const KEY: &str = "sk-test-denial";

async fn label(tenant: &Tenant, enabled: bool) {
    let value = enabled.then_some("true");
    let labels = json!({ "metadata": { "labels": { ENABLED_LABEL: value } } });
    patch(&tenant.namespaces(), &tenant.namespace, labels).await;
}

async fn allow_models(tenant: &Tenant, models: &[&str]) {
    let spec = json!({ "spec": { "allowedModels": models } });
    patch(&tenant.providers(), &tenant.provider, spec).await;
}

/// Shows that the key of `agent` is gone, and why.
async fn assert_withdrawn(
    tenant: &Tenant,
    before: Option<i64>,
    reason: Reason,
    words: &[&str],
) -> Option<i64> {
    let status = await_version(tenant, "agent", before, Trigger::Withdrawn).await;
    let message = tenant.await_refusal("agent", reason).await;
    tenant
        .await_condition("agent", ConditionType::CredentialProvisioned, "False", reason)
        .await;
    assert_eq!(
        (&status.secret_ref, status.history[0].key_id.as_deref()),
        (&None, None)
    );
    tenant.touch("agent").await;
    assert_eq!(tenant.secret_names().await, ["agent.llmwarden"]);
    let companion = tenant.secret("agent.llmwarden").await;
    let keys: Vec<_> = companion.data.unwrap().into_keys().collect();
    assert_eq!(keys, ["live.json"]);
    let document = document(tenant, "agent").await;
    assert_eq!(document.state, State::Withdrawn);
    assert_eq!(i64::try_from(document.version).ok(), status.credential_version);
    let told = document.reason.unwrap();
    for word in words {
        assert!(
            message.contains(word) && told.contains(word),
            "no {word:?} in {message:?} or {told:?}"
        );
    }
    assert!(message.contains("was withdrawn at"), "{message}");
    status.credential_version
}

async fn assert_back(tenant: &Tenant, before: Option<i64>) -> Option<i64> {
    tenant.await_ready("agent").await;
    let status = await_version(tenant, "agent", before, Trigger::Provisioned).await;
    assert_eq!(status.withdraw_at, None);
    for name in ["agent-key", "agent.llmwarden"] {
        assert_eq!(value(&tenant.secret(name).await, API_KEY), KEY);
    }
    status.credential_version
}

async fn both(tenant: &Tenant) -> [Secret; 2] {
    [
        tenant.secret("agent-key").await,
        tenant.secret("agent.llmwarden").await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn within_the_grace_the_key_stays_and_the_time_is_told() {
    // The default: five minutes.
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    tenant.create_access("agent", json!({})).await;
    let ready = tenant.await_ready("agent").await.status.unwrap();
    let before = both(&tenant).await;

    let asked = Timestamp::now();
    label(&tenant, false).await;
    let message = tenant.await_refusal("agent", Reason::NamespaceNotAllowed).await;
    let at = tenant
        .access("agent")
        .await
        .status
        .unwrap()
        .withdraw_at
        .unwrap()
        .0;
    let minutes = at.duration_since(asked).as_secs_f64() / 60.0;
    assert!((4.9..7.0).contains(&minutes), "{minutes}");
    assert!(
        message.contains(&format!("The key is withdrawn at {at}")),
        "{message}"
    );
    tenant
        .await_condition(
            "agent",
            ConditionType::CredentialProvisioned,
            "True",
            Reason::Provisioned,
        )
        .await;
    tenant.touch("agent").await;
    let [event] = tenant
        .events("agent", Reason::NamespaceNotAllowed)
        .await
        .try_into()
        .unwrap();
    assert_eq!(
        (event.type_.as_deref(), event.note),
        (Some("Warning"), Some(message))
    );
    assert_eq!(tenant.occurrences("agent", Reason::NamespaceNotAllowed).await, 1);
    assert_eq!(both(&tenant).await, before);

    label(&tenant, true).await;
    let back = tenant.await_ready("agent").await.status.unwrap();
    assert_eq!((back.withdraw_at, back.history), (None, ready.history));
    assert_eq!(both(&tenant).await, before);

    // Denied once more, another time is told, in an event of its own.
    label(&tenant, false).await;
    tenant.await_refusal("agent", Reason::NamespaceNotAllowed).await;
    tenant.touch("agent").await;
    let status = tenant.access("agent").await.status.unwrap();
    let told = format!("The key is withdrawn at {}", status.withdraw_at.unwrap().0);
    let events = tenant.events("agent", Reason::NamespaceNotAllowed).await;
    let notes: Vec<_> = events.into_iter().filter_map(|event| event.note).collect();
    assert!(
        notes.iter().any(|note| note.contains(&told)),
        "no {told:?} in {notes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grace_the_key_goes_at_once_and_comes_back_when_allowed() {
    let installation = Installation::start(&["--denial-grace=0"]).await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    tenant.create_access("agent", json!({})).await;
    let mut version = tenant
        .await_ready("agent")
        .await
        .status
        .unwrap()
        .credential_version;
    for _ in 0..2 {
        label(&tenant, false).await;
        let words = [tenant.namespace.as_str(), "ask the platform team"];
        version = assert_withdrawn(&tenant, version, Reason::NamespaceNotAllowed, &words).await;
        label(&tenant, true).await;
        version = assert_back(&tenant, version).await;
    }
    assert_eq!(tenant.occurrences("agent", Reason::Withdrawn).await, 2);

    allow_models(&tenant, &["claude-opus-4-6"]).await;
    let words = ["claude-sonnet-4-6", "claude-opus-4-6"];
    version = assert_withdrawn(&tenant, version, Reason::ModelNotAllowed, &words).await;
    // A new master key is none of its business.
    tenant.set_master("sk-test-denial-2").await;
    tenant.touch("agent").await;
    assert_eq!(tenant.secret_names().await, ["agent.llmwarden"]);
    tenant.set_master(KEY).await;
    allow_models(&tenant, &["claude-sonnet-4-6"]).await;
    assert_back(&tenant, version).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grace_a_placeholder_stays() {
    let installation = Installation::start(&["--denial-grace=0"]).await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    tenant
        .create_access("agent", json!({ "injection": { "proxy": {} } }))
        .await;
    let ready = tenant.await_ready("agent").await.status.unwrap();
    let [application, companion] = both(&tenant).await;
    assert_eq!(value(&companion, PLACEHOLDER), value(&application, API_KEY));
    label(&tenant, false).await;
    await_version(&tenant, "agent", ready.credential_version, Trigger::Withdrawn).await;
    tenant.touch("agent").await;
    let [after, companion] = both(&tenant).await;
    assert_eq!(after, application);
    assert_eq!(
        companion.data.unwrap().into_keys().collect::<Vec<_>>(),
        ["live.json"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_announced_time_counts_also_after_a_crash() {
    let installation = Installation::start(&["--denial-grace=1h"]).await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    tenant.create_access("agent", json!({})).await;
    let ready = tenant.await_ready("agent").await.status.unwrap();

    label(&tenant, false).await;
    eventually("the announcement", SOON, async || {
        let status = tenant.access("agent").await.status.unwrap_or_default();
        status.withdraw_at
    })
    .await;
    installation.stop_controller(Signal::SIGKILL).await.unwrap();
    // Who starts again after the hour finds what the one before has announced.
    let at = whole_seconds(jiff::Timestamp::now());
    patch_status(&tenant, "agent", json!({ "withdrawAt": at })).await;
    installation.start_controller().await.unwrap();
    let status = await_version(&tenant, "agent", ready.credential_version, Trigger::Withdrawn).await;
    assert_eq!(status.withdraw_at, Some(at.clone()));
    assert!(document(&tenant, "agent").await.issued_at >= at.0);
    let words = [tenant.namespace.as_str()];
    assert_withdrawn(
        &tenant,
        ready.credential_version,
        Reason::NamespaceNotAllowed,
        &words,
    )
    .await;
    assert_eq!(tenant.occurrences("agent", Reason::Withdrawn).await, 1);
}
