//! Secrets whose owners hand them over with an annotation.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Resource, ResourceExt};
use llmwarden_proto::names::{ADOPT_ANNOTATION, MANAGED_BY, MANAGED_BY_LABEL};
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::Installation;
use serde_json::json;

use crate::conflicts::{assert_conflict, create_foreign, delete_secret, foreign, owner};
use crate::support::{Tenant, create, merge, object, patch, value};

const KEY: &str = "sk-test-adoption";

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_taken_over_when_its_owner_asks() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let before = create_foreign(&tenant, "agent-key").await;
    let keep = json!({ "metadata": { "finalizers": ["example.com/keep"] } });
    patch(&tenant.secrets(), "agent-key", keep).await;
    tenant.create_access("agent", json!({})).await;
    assert_conflict(&tenant, "agent", &["agent-key"]).await;

    let other = json!({ "metadata": { "annotations": { ADOPT_ANNOTATION: "another" } } });
    let annotated = patch(&tenant.secrets(), "agent-key", other).await;
    tenant.touch("agent").await;
    assert_conflict(&tenant, "agent", &["agent-key"]).await;
    assert_eq!(tenant.secret("agent-key").await, annotated);

    let ours = json!({ "metadata": { "annotations": { ADOPT_ANNOTATION: "agent" } } });
    patch(&tenant.secrets(), "agent-key", ours).await;
    tenant.await_ready("agent").await;
    let after = tenant.secret("agent-key").await;
    assert_eq!(after.uid(), before.uid());
    assert_eq!(owner(&after), Some("agent"));
    assert_eq!(value(&after, "apiKey"), KEY);
    assert_eq!(after.data.as_ref().map(BTreeMap::len), Some(1));
    assert_eq!(after.labels().get("team").map(String::as_str), Some("other"));
    assert_eq!(
        after.labels().get(MANAGED_BY_LABEL).map(String::as_str),
        Some(MANAGED_BY)
    );
    assert_eq!(after.annotations().get("note").map(String::as_str), Some("keep"));
    assert!(!after.annotations().contains_key(ADOPT_ANNOTATION));
    assert_eq!(after.finalizers(), ["example.com/keep"]);
    tenant.touch("agent").await;
    assert_eq!(tenant.occurrences("agent", Reason::Adopted).await, 1);
    assert_eq!(tenant.secret("agent-key").await, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_over_stays_and_the_reason_is_told() {
    let installation = Installation::shared().await.unwrap();
    let cases = [
        (
            json!({ "type": "example.com/key" }),
            "its type is example.com/key",
        ),
        (json!({ "immutable": true }), "it is immutable"),
    ];
    for (form, why) in cases {
        let tenant = Tenant::new(&installation, KEY).await;
        let mut secret = json!({
            "metadata": { "name": "agent-key", "annotations": { ADOPT_ANNOTATION: "agent" } },
            "stringData": { "apiKey": "theirs" },
        });
        merge(&mut secret, form);
        let before = create(&tenant.secrets(), &object::<Secret>(secret)).await;
        tenant.create_access("agent", json!({})).await;
        assert_conflict(
            &tenant,
            "agent",
            &["agent-key", why, "delete it, or choose another"],
        )
        .await;
        tenant.touch("agent").await;
        assert_eq!(tenant.occurrences("agent", Reason::SecretConflict).await, 1);
        assert_eq!(tenant.secret("agent-key").await, before);
        assert_eq!(tenant.secret_names().await, ["agent-key"]);

        delete_secret(&tenant, "agent-key").await;
        tenant.await_ready("agent").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_controller_owns_is_not_taken_over() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let map: ConfigMap = object(json!({ "metadata": { "name": "owner" } }));
    let maps = Api::namespaced(installation.client(), &tenant.namespace);
    let map = create(&maps, &map).await;
    let mut secret = foreign("agent-key");
    secret
        .annotations_mut()
        .insert(ADOPT_ANNOTATION.to_owned(), "agent".to_owned());
    secret
        .owner_references_mut()
        .push(map.controller_owner_ref(&()).unwrap());
    let before = create(&tenant.secrets(), &secret).await;
    tenant.create_access("agent", json!({})).await;
    assert_conflict(
        &tenant,
        "agent",
        &["agent-key", "ConfigMap owner controls it", "choose another"],
    )
    .await;
    tenant.touch("agent").await;
    assert_eq!(tenant.secret("agent-key").await, before);
    tenant
        .await_condition(
            "agent",
            ConditionType::CredentialProvisioned,
            "False",
            Reason::SecretConflict,
        )
        .await;
}
