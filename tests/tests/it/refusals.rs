//! Accesses that get no key: each says why and what to do, once, leaves nothing behind, and recovers by itself.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use llmwarden_proto::reason::Reason;
use llmwarden_tests::Installation;
use llmwarden_tests::installation::{ENABLED_LABEL, SYSTEM};
use serde_json::{Value, json};

use crate::support::{Tenant, create, object, patch};

const KEY: &str = "sk-test-refusals";

/// Asks for access, and shows that it is refused for `reason` alone: with these words, one event, and no Secret.
async fn assert_refused(tenant: &Tenant, spec: Value, reason: Reason, words: &[&str]) {
    tenant.create_access("agent", spec).await;
    let message = tenant.await_refusal("agent", reason).await;
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message:?}");
    }
    tenant.touch("agent").await;
    assert_eq!(tenant.await_refusal("agent", reason).await, message);
    assert_eq!(tenant.occurrences("agent", reason).await, 1);
    assert_eq!(tenant.secret_names().await, [""; 0]);
    let status = tenant.access("agent").await.status.unwrap();
    assert_eq!((status.secret_ref, status.credential_version), (None, None));
}

async fn assert_recovered(tenant: &Tenant) {
    tenant.await_ready("agent").await;
    assert_eq!(tenant.secret_names().await, ["agent-key", "agent.llmwarden"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_the_label_gets_no_key() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(false).await;
    tenant.create_master(json!({ "api-key": KEY })).await;
    tenant.create_provider(json!({})).await;
    let label = format!("{ENABLED_LABEL}=true");
    let words = [
        "namespace",
        &tenant.namespace,
        &tenant.provider,
        &label,
        "ask the platform team to label",
    ];
    assert_refused(&tenant, json!({}), Reason::NamespaceNotAllowed, &words).await;

    let labels = json!({ "metadata": { "labels": { ENABLED_LABEL: "true" } } });
    patch(&tenant.namespaces(), &tenant.namespace, labels).await;
    assert_recovered(&tenant).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_the_provider_does_not_list_gets_no_key() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    let spec = json!({ "models": ["claude-sonnet-4-6", "claude-unlisted"] });
    let words = [
        "spec.models asks for claude-unlisted,",
        "remove it",
        "spec.allowedModels",
        &tenant.provider,
        "claude-opus-4-6, claude-sonnet-4-6",
    ];
    assert_refused(&tenant, spec, Reason::ModelNotAllowed, &words).await;

    let spec = json!({ "spec": { "allowedModels": ["claude-sonnet-4-6", "claude-unlisted"] } });
    patch(&tenant.providers(), &tenant.provider, spec).await;
    assert_recovered(&tenant).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_does_not_exist_gives_no_key() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    tenant.create_master(json!({ "api-key": KEY })).await;
    let words = [
        "LLMProvider",
        &tenant.provider,
        "does not exist",
        "ask the platform team",
    ];
    assert_refused(&tenant, json!({}), Reason::ProviderMissing, &words).await;

    tenant.create_provider(json!({})).await;
    assert_recovered(&tenant).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_secret_that_does_not_exist_gives_no_key() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    tenant.create_provider(json!({})).await;
    let secret = format!("{SYSTEM}/{}", tenant.master);
    let words = [
        "auth.apiKey.secretRef",
        &tenant.provider,
        &secret,
        "kubectl create secret generic",
        "--from-file=api-key=",
    ];
    assert_refused(&tenant, json!({}), Reason::MasterSecretMissing, &words).await;

    tenant.create_master(json!({ "api-key": KEY })).await;
    assert_recovered(&tenant).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_secret_without_the_named_key_gives_no_key() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    tenant.create_master(json!({ "other": KEY })).await;
    tenant.create_provider(json!({})).await;
    let words = [
        "auth.apiKey.secretRef",
        &tenant.master,
        "`api-key`",
        "correct secretRef.key",
    ];
    assert_refused(&tenant, json!({}), Reason::MasterKeyMissing, &words).await;

    tenant.set_master(KEY).await;
    assert_recovered(&tenant).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_master_key_gives_no_key() {
    let installation = Installation::shared().await.unwrap();
    for blank in ["", " \n"] {
        let tenant = Tenant::new(&installation, blank).await;
        let words = [
            "auth.apiKey.secretRef",
            &tenant.master,
            "`api-key`",
            "is empty",
            "put the key there",
        ];
        assert_refused(&tenant, json!({}), Reason::MasterKeyEmpty, &words).await;

        tenant.set_master(KEY).await;
        assert_recovered(&tenant).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_key_that_fits_in_no_header_gives_no_key() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-one\nsk-test-two").await;
    let words = [
        "auth.apiKey.secretRef",
        &tenant.master,
        "`api-key`",
        "one line of printable ASCII",
    ];
    assert_refused(&tenant, json!({}), Reason::MasterKeyInvalid, &words).await;

    tenant.set_master(KEY).await;
    assert_recovered(&tenant).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_secret_in_a_namespace_that_is_not_trusted_gives_no_key() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    let elsewhere = Installation::unique("elsewhere");
    installation.create_namespace(&elsewhere, false).await.unwrap();
    tenant.create_master_in(&elsewhere, KEY).await;
    tenant.create_master(json!({ "api-key": KEY })).await;
    let secret_ref = |namespace| json!({ "auth": { "apiKey": { "secretRef": { "namespace": namespace } } } });
    tenant.create_provider(secret_ref(&elsewhere)).await;
    let flag = format!("--trusted-namespace {elsewhere}");
    let words = [
        "auth.apiKey.secretRef",
        &tenant.provider,
        &elsewhere,
        "does not trust",
        "the controller's own namespace",
        &flag,
    ];
    assert_refused(&tenant, json!({}), Reason::MasterSecretNotTrusted, &words).await;

    let system = json!({ "spec": secret_ref(&SYSTEM.to_owned()) });
    patch(&tenant.providers(), &tenant.provider, system).await;
    assert_recovered(&tenant).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_secret_in_a_trusted_namespace_is_taken() {
    let installation = Installation::start(&["--trusted-namespace=keys"]).await.unwrap();
    installation.create_namespace("keys", false).await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    tenant.create_master_in("keys", KEY).await;
    let secret_ref = json!({ "auth": { "apiKey": { "secretRef": { "namespace": "keys" } } } });
    tenant.create_provider(secret_ref).await;
    tenant.create_access("agent", json!({})).await;
    assert_recovered(&tenant).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn some_kinds_of_secret_are_never_master_secrets() {
    let installation = Installation::shared().await.unwrap();
    let tls = json!({ "tls.crt": "made up", "tls.key": "made up" });
    let cases = [
        (json!({ "type": "kubernetes.io/tls", "stringData": tls }), "TLS"),
        (json!({ "type": "helm.sh/release.v1" }), "Helm release"),
        (
            json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": "llmwarden" } } }),
            "llmwarden's own",
        ),
        (
            json!({
                "type": "kubernetes.io/service-account-token",
                "metadata": { "annotations": { "kubernetes.io/service-account.name": "default" } },
            }),
            "service account's token",
        ),
    ];
    for (form, why) in cases {
        let tenant = Tenant::names(&installation);
        tenant.create_namespace(true).await;
        let mut secret = json!({ "metadata": { "name": tenant.master }, "stringData": { "api-key": KEY } });
        crate::support::merge(&mut secret, form);
        create(&tenant.masters(), &object::<Secret>(secret)).await;
        tenant.create_provider(json!({})).await;
        let words = [
            "auth.apiKey.secretRef",
            &tenant.provider,
            &tenant.master,
            why,
            "name another one",
        ];
        assert_refused(&tenant, json!({}), Reason::MasterSecretForbidden, &words).await;

        tenant
            .masters()
            .delete(&tenant.master, &DeleteParams::default())
            .await
            .unwrap();
        tenant.create_master(json!({ "api-key": KEY })).await;
        assert_recovered(&tenant).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_handed_out_is_never_a_master_key() {
    let installation = Installation::shared().await.unwrap();
    let owner = Tenant::new(&installation, KEY).await;
    // An access in the controller's own namespace puts its Secrets where master Secrets may live.
    let tenant = Tenant::names(&installation);
    let claim = object(json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMAccess",
        "metadata": { "name": tenant.namespace },
        "spec": { "providerRef": { "name": owner.provider }, "secretName": tenant.master },
    }));
    let open = json!({ "spec": { "namespaceSelector": null } });
    patch(&owner.providers(), &owner.provider, open).await;
    let system = kube::Api::<llmwarden_proto::access::LLMAccess>::namespaced(installation.client(), SYSTEM);
    system.create(&PostParams::default(), &claim).await.unwrap();
    llmwarden_tests::eventually("its Secret", crate::support::SOON, async || {
        tenant.masters().get(&tenant.master).await
    })
    .await;

    tenant.create_namespace(true).await;
    let key = json!({ "auth": { "apiKey": { "secretRef": { "key": "apiKey" } } } });
    tenant.create_provider(key).await;
    let words = [&tenant.master, "llmwarden's own", "name another one"];
    assert_refused(&tenant, json!({}), Reason::MasterSecretForbidden, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_whose_sdks_insist_on_https_has_no_proxy() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    tenant.create_master(json!({ "api-key": KEY })).await;
    tenant.create_provider(json!({ "provider": "aws-bedrock" })).await;
    let spec = json!({ "injection": { "proxy": {} } });
    let words = [
        "spec.injection.proxy",
        "aws-bedrock",
        "insist on https",
        "remove it",
    ];
    assert_refused(&tenant, spec, Reason::ProxyUnsupported, &words).await;

    let direct = json!({ "spec": { "injection": { "proxy": null } } });
    tenant.patch_access("agent", direct).await;
    assert_recovered(&tenant).await;
}
