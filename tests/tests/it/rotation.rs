//! New keys and settings: who gets them, when, and what is said about it.

use jiff::{Timestamp, ToSpan};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use llmwarden_proto::access::{HISTORY_LIMIT, LLMAccess, LLMAccessStatus, Trigger};
use llmwarden_proto::delivery::Delivery;
use llmwarden_proto::names::{API_KEY, BASE_URL, LIVE_JSON, ROTATE_ANNOTATION};
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::{Installation, eventually};
use serde_json::{Value, json};

use crate::support::{SOON, Tenant, patch, value};

/// The delivery document of an access's companion.
pub async fn document(tenant: &Tenant, access: &str) -> Delivery {
    let companion = tenant.secret(&format!("{access}.llmwarden")).await;
    serde_json::from_str(&value(&companion, LIVE_JSON)).unwrap()
}

/// Waits until the status speaks of a version that was made for this reason after `before`, and returns the status.
pub async fn await_version(
    tenant: &Tenant,
    access: &str,
    before: Option<i64>,
    why: Trigger,
) -> LLMAccessStatus {
    eventually(&format!("a new version ({why:?})"), SOON, async || {
        let status = tenant.access(access).await.status.unwrap_or_default();
        let newest = status.history.first();
        let found = newest.is_some_and(|newest| newest.trigger == why && Some(newest.version) > before);
        if found {
            Ok(status)
        } else {
            Err(format!("{:?}", status.history))
        }
    })
    .await
}

/// Version and key of both Secrets of an access, once they agree with the status.
async fn assert_delivered(tenant: &Tenant, access: &LLMAccess, key: &str) {
    let name = access.metadata.name.as_deref().unwrap();
    let application = tenant.secret(&access.spec.secret_name).await;
    assert_eq!(value(&application, API_KEY), key);
    let companion = tenant.secret(&format!("{name}.llmwarden")).await;
    assert_eq!(value(&companion, API_KEY), key);
    let version = access.status.as_ref().unwrap().credential_version.unwrap();
    assert_eq!(i64::try_from(document(tenant, name).await.version), Ok(version));
}

/// Changes the recorded status, as time would.
pub async fn patch_status(tenant: &Tenant, access: &str, status: Value) {
    let change = json!({ "status": status });
    tenant
        .accesses()
        .patch_status(access, &PatchParams::default(), &Patch::Merge(change))
        .await
        .unwrap();
}

async fn request_rotation(tenant: &Tenant, access: &str) {
    let request = json!({ "metadata": { "annotations": { ROTATE_ANNOTATION: "now" } } });
    tenant.patch_access(access, request).await;
    eventually("the end of the request", SOON, async || {
        let access = tenant.access(access).await;
        !access
            .metadata
            .annotations
            .unwrap_or_default()
            .contains_key(ROTATE_ANNOTATION)
    })
    .await;
}

async fn both(tenant: &Tenant) -> [Secret; 2] {
    [
        tenant.secret("agent-key").await,
        tenant.secret("agent.llmwarden").await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_master_key_reaches_every_access() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-rotation-1").await;
    let names = ["agent-1", "agent-2", "agent-3"];
    for name in names {
        tenant.create_access(name, json!({})).await;
    }
    let mut before = Vec::new();
    for name in names {
        let access = tenant.await_ready(name).await;
        assert_delivered(&tenant, &access, "sk-test-rotation-1").await;
        before.push(access.status.unwrap());
    }

    tenant.set_master("sk-test-rotation-2").await;
    for (name, before) in names.into_iter().zip(before) {
        let after = await_version(&tenant, name, before.credential_version, Trigger::MasterChanged).await;
        assert_delivered(&tenant, &tenant.access(name).await, "sk-test-rotation-2").await;
        let [newest, first] = after.history.as_slice() else {
            panic!("{:?}", after.history)
        };
        assert_eq!(
            [newest.trigger.clone(), first.trigger.clone()],
            [Trigger::MasterChanged, Trigger::Provisioned]
        );
        assert_eq!(Some(newest.version), after.credential_version);
        assert!(newest.key_id.is_some() && newest.key_id != first.key_id);
        assert_eq!(after.last_rotation.as_ref(), Some(&newest.time));
        tenant.touch(name).await;
        assert_eq!(tenant.occurrences(name, Reason::Rotated).await, 1);
        assert_eq!(tenant.occurrences(name, Reason::Provisioned).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_master_key_again_is_no_rotation() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-same").await;
    tenant.create_access("agent", json!({})).await;
    let ready = tenant.await_ready("agent").await;
    let before = both(&tenant).await;
    // Another resource version, another content even, but the same key. Who asks for a rotation makes the controller
    // read it: so it is known to have seen this.
    tenant.set_master("sk-test-same\n").await;
    request_rotation(&tenant, "agent").await;
    assert_eq!(tenant.occurrences("agent", Reason::NothingToRotate).await, 1);
    assert_eq!(both(&tenant).await, before);
    let after = tenant.access("agent").await;
    assert_eq!(after.status, ready.status);

    tenant.set_master("sk-test-other").await;
    let version = ready.status.unwrap().credential_version;
    let status = await_version(&tenant, "agent", version, Trigger::MasterChanged).await;
    assert_eq!(status.history.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_is_asked_for_is_handled_once() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-asked-1").await;
    tenant.create_access("agent", json!({})).await;
    let ready = tenant.await_ready("agent").await.status.unwrap();

    // Only `now` is a request: another word stays where it is.
    let later = json!({ "metadata": { "annotations": { ROTATE_ANNOTATION: "later" } } });
    tenant.patch_access("agent", later).await;
    tenant.touch("agent").await;
    let annotations = tenant.access("agent").await.metadata.annotations.unwrap();
    assert_eq!(
        annotations.get(ROTATE_ANNOTATION).map(String::as_str),
        Some("later")
    );

    // Whoever changes the key and then asks means the new key, whichever watch is faster.
    tenant.set_master("sk-test-asked-2").await;
    request_rotation(&tenant, "agent").await;
    let access = tenant.access("agent").await;
    assert!(access.status.as_ref().unwrap().credential_version > ready.credential_version);
    assert_delivered(&tenant, &access, "sk-test-asked-2").await;
    assert_eq!(tenant.occurrences("agent", Reason::NothingToRotate).await, 0);

    let before = both(&tenant).await;
    request_rotation(&tenant, "agent").await;
    let [event] = tenant
        .events("agent", Reason::NothingToRotate)
        .await
        .try_into()
        .unwrap();
    let note = event.note.unwrap();
    for word in [tenant.master.as_str(), "put a new key there"] {
        assert!(note.contains(word), "{note}");
    }
    tenant.touch("agent").await;
    assert_eq!(tenant.occurrences("agent", Reason::NothingToRotate).await, 1);
    assert_eq!(tenant.occurrences("agent", Reason::Rotated).await, 1);
    assert_eq!(both(&tenant).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_that_passed_is_said_and_nothing_pretends_to_have_rotated() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-overdue-1").await;
    tenant
        .create_access("agent", json!({ "rotation": { "interval": "12h" } }))
        .await;
    tenant
        .create_access("lenient", json!({ "rotation": { "interval": "90d" } }))
        .await;
    let overdue =
        |status, reason| tenant.await_condition("agent", ConditionType::RotationOverdue, status, reason);

    // The access tightens the provider's 30 days, and cannot loosen them.
    let ready = tenant.await_ready("agent").await.status.unwrap();
    overdue("False", Reason::RotationScheduled).await;
    let hours = |status: &LLMAccessStatus| {
        let (last, next) = (
            status.last_rotation.as_ref().unwrap().0,
            status.next_rotation.as_ref().unwrap().0,
        );
        next.duration_since(last).as_hours()
    };
    assert_eq!(hours(&ready), 12);
    assert_eq!(
        hours(&tenant.await_ready("lenient").await.status.unwrap()),
        30 * 24
    );

    let before = both(&tenant).await;
    let long_ago = Timestamp::now() - 13.hours();
    patch_status(
        &tenant,
        "agent",
        json!({ "lastRotation": long_ago.round(jiff::Unit::Second).unwrap() }),
    )
    .await;
    let message = overdue("True", Reason::RotationOverdue).await.message;
    for word in ["older than 12h", "cannot mint", &tenant.master, "put a new key"] {
        assert!(message.contains(word), "no {word:?} in {message:?}");
    }
    tenant.touch("agent").await;
    let [event] = tenant
        .events("agent", Reason::RotationOverdue)
        .await
        .try_into()
        .unwrap();
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert_eq!(tenant.occurrences("agent", Reason::RotationOverdue).await, 1);
    assert_eq!(tenant.occurrences("agent", Reason::Rotated).await, 0);
    assert_eq!(both(&tenant).await, before);
    tenant.await_ready("agent").await;

    tenant.set_master("sk-test-overdue-2").await;
    overdue("False", Reason::RotationScheduled).await;
    let status = tenant.access("agent").await.status.unwrap();
    assert!(status.next_rotation.unwrap().0 > Timestamp::now());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_url_follows_the_provider() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-base-url").await;
    tenant.create_access("agent", json!({})).await;
    let mut status = tenant.await_ready("agent").await.status.unwrap();
    let rotated = status.last_rotation.clone();
    let base_url = async || {
        let data = tenant.secret("agent-key").await.data.unwrap_or_default();
        data.get(BASE_URL)
            .map(|url| String::from_utf8(url.0.clone()).unwrap())
    };
    assert_eq!(base_url().await, None);
    let own = document(&tenant, "agent").await.upstream.unwrap().base_url;

    for endpoint in [
        Some("https://gateway.example/v1"),
        Some("https://other.example"),
        None,
    ] {
        let spec = json!({ "spec": { "endpoint": endpoint.map(|url| json!({ "baseURL": url })) } });
        patch(&tenant.providers(), &tenant.provider, spec).await;
        status = await_version(
            &tenant,
            "agent",
            status.credential_version,
            Trigger::SettingsChanged,
        )
        .await;
        assert_eq!(base_url().await.as_deref(), endpoint);
        let document = document(&tenant, "agent").await;
        assert_eq!(document.values.get(BASE_URL).map(String::as_str), endpoint);
        let called = document.upstream.unwrap().base_url;
        assert_eq!(called, endpoint.map(str::to_owned).or_else(|| own.clone()));
        // The key is the same: nothing was rotated.
        assert_eq!(
            value(&tenant.secret("agent-key").await, API_KEY),
            "sk-test-base-url"
        );
        assert_eq!(status.last_rotation, rotated);
    }
    assert_eq!(tenant.occurrences("agent", Reason::Rotated).await, 0);
    assert!(tenant.occurrences("agent", Reason::SettingsChanged).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_stands_under_every_name_that_is_asked_for() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-names").await;
    let env = |keys: &[&str]| {
        let entry =
            |(number, key): (usize, &&str)| json!({ "name": format!("KEY_{number}"), "secretKey": key });
        json!({ "injection": { "env": keys.iter().enumerate().map(entry).collect::<Vec<_>>() } })
    };
    tenant
        .create_access("agent", env(&["apiKey", "OTHER_KEY", "other.key"]))
        .await;
    tenant.await_ready("agent").await;
    let keys = async || {
        tenant
            .secret("agent-key")
            .await
            .data
            .unwrap()
            .into_keys()
            .collect::<Vec<_>>()
    };
    assert_eq!(keys().await, ["OTHER_KEY", "apiKey", "other.key"]);
    for key in keys().await {
        assert_eq!(value(&tenant.secret("agent-key").await, &key), "sk-test-names");
    }
    assert_eq!(
        document(&tenant, "agent").await.keys,
        ["OTHER_KEY", "apiKey", "other.key"]
    );

    let changed = tenant
        .patch_access("agent", json!({ "spec": env(&["OTHER_KEY"]) }))
        .await;
    tenant.await_observed(&changed).await;
    assert_eq!(keys().await, ["OTHER_KEY", "apiKey"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_behind_the_proxy_leaves_the_applications_secret_alone() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-proxied-1").await;
    tenant
        .create_access("agent", json!({ "injection": { "proxy": {} } }))
        .await;
    let ready = tenant.await_ready("agent").await.status.unwrap();
    let before = tenant.secret("agent-key").await;
    assert!(value(&before, API_KEY).starts_with("sk-llmwarden-"));

    tenant.set_master("sk-test-proxied-2").await;
    await_version(&tenant, "agent", ready.credential_version, Trigger::MasterChanged).await;
    assert_eq!(tenant.secret("agent-key").await, before);
    assert_eq!(
        value(&tenant.secret("agent.llmwarden").await, API_KEY),
        "sk-test-proxied-2"
    );

    // The placeholder survives even the loss of both Secrets.
    for name in ["agent-key", "agent.llmwarden"] {
        crate::conflicts::delete_secret(&tenant, name).await;
    }
    eventually("both Secrets", SOON, async || {
        tenant.secret_names().await.len() == 2
    })
    .await;
    assert_eq!(tenant.secret("agent-key").await.data, before.data);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_keeps_the_last_ten() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-history-0").await;
    tenant.create_access("agent", json!({})).await;
    let mut versions = vec![
        tenant
            .await_ready("agent")
            .await
            .status
            .unwrap()
            .credential_version,
    ];
    for number in 1..=HISTORY_LIMIT + 2 {
        tenant.set_master(&format!("sk-test-history-{number}")).await;
        let before = versions[number - 1];
        let status = await_version(&tenant, "agent", before, Trigger::MasterChanged).await;
        versions.push(status.credential_version);
    }
    let history = tenant.access("agent").await.status.unwrap().history;
    versions.reverse();
    versions.truncate(HISTORY_LIMIT);
    assert_eq!(
        history
            .iter()
            .map(|entry| Some(entry.version))
            .collect::<Vec<_>>(),
        versions
    );
}
