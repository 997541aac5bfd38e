//! Proxy mode, on the controller's and the webhook's side: applications and agents hold a placeholder that never changes.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use llmwarden_proto::names::REFRESH_ANNOTATION;
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::webhook::EGRESS;
use llmwarden_tests::{Installation, Signal, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;

use crate::injection;
use crate::support::{SOON, Tenant, create, patch, value};

const ROTATIONS: usize = 20;

type Data = BTreeMap<String, ByteString>;

async fn application(tenant: &Tenant) -> Data {
    tenant.secret("agent-key").await.data.unwrap()
}

async fn await_companion(tenant: &Tenant, key: &str) {
    eventually("the key in the companion", SOON, async || {
        let companion = tenant.secrets().get_opt("agent.llmwarden").await.unwrap();
        companion.is_some_and(|companion| value(&companion, "apiKey") == key)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_placeholder_outlives_everything_but_the_mode() {
    let installation = Installation::start(&[]).await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-proxy-0").await;
    let require = async |policy: &str| {
        let change = json!({ "spec": { "proxy": policy } });
        patch(&tenant.providers(), &tenant.provider, change).await;
    };
    require("Required").await;
    // The guide's own access: nothing in it speaks of the proxy.
    tenant.create_access("agent", json!({})).await;
    tenant.await_ready("agent").await;
    let first = application(&tenant).await;
    let placeholder = value(&tenant.secret("agent-key").await, "apiKey");
    assert!(placeholder.starts_with("sk-llmwarden-"), "{placeholder}");
    assert_eq!(
        value(&tenant.secret("agent.llmwarden").await, "placeholder"),
        placeholder
    );
    let (live, models) = (ConditionType::LiveRotation, ConditionType::ModelsEnforced);
    tenant
        .await_condition("agent", live, "True", Reason::ThroughProxy)
        .await;
    tenant
        .await_condition("agent", models, "True", Reason::EnforcedByProxy)
        .await;

    let untouched = tenant.secret("agent-key").await.metadata.resource_version;
    for number in 1..=ROTATIONS {
        let key = format!("sk-test-proxy-{number}");
        tenant.set_master(&key).await;
        await_companion(&tenant, &key).await;
        assert_eq!(application(&tenant).await, first, "rotation {number}");
    }
    // Not so much as written: kagent looks at every change.
    assert_eq!(
        tenant.secret("agent-key").await.metadata.resource_version,
        untouched
    );

    let everything = (DeleteParams::default(), ListParams::default());
    tenant
        .secrets()
        .delete_collection(&everything.0, &everything.1)
        .await
        .unwrap();
    let recreated = async || {
        let application = tenant.secrets().get_opt("agent-key").await.unwrap();
        application.is_some_and(|secret| secret.metadata.resource_version != untouched)
    };
    eventually("both Secrets again", SOON, recreated).await;
    await_companion(&tenant, &format!("sk-test-proxy-{ROTATIONS}")).await;
    assert_eq!(application(&tenant).await, first, "loss of both Secrets");
    installation.stop_controller(Signal::SIGKILL).await.unwrap();
    installation.start_controller().await.unwrap();
    tenant.set_master("sk-test-proxy-after").await;
    await_companion(&tenant, "sk-test-proxy-after").await;
    assert_eq!(application(&tenant).await, first, "another controller");

    // Back to the key itself, and to the proxy again: each is a version, and pods in proxy mode go on with the placeholder.
    let version = async || tenant.access("agent").await.status.unwrap().credential_version;
    let before = version().await;
    require("Optional").await;
    tenant
        .await_condition("agent", live, "False", Reason::KeyInEnvironment)
        .await;
    assert_eq!(
        value(&tenant.secret("agent-key").await, "apiKey"),
        "sk-test-proxy-after"
    );
    assert_eq!(
        value(&tenant.secret("agent.llmwarden").await, "placeholder"),
        placeholder
    );
    let direct = version().await;
    assert!(direct > before);
    let own = json!({ "spec": { "injection": { "proxy": {} } } });
    tenant.patch_access("agent", own).await;
    tenant
        .await_condition("agent", live, "True", Reason::ThroughProxy)
        .await;
    assert_eq!(application(&tenant).await, first, "asked for by the access");
    assert!(version().await > direct);
}

fn container<'a>(pod: &'a Pod, name: &str) -> &'a Container {
    let spec = pod.spec.as_ref().unwrap();
    let all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    all.into_iter().find(|container| container.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_is_never_switched() {
    let installation = injection::shared().await;
    let tenant = injection::tenant(&installation).await;
    tenant.create_access("agent", json!({})).await;
    tenant.await_ready("agent").await;
    injection::await_known(&installation, &tenant, "agent").await;
    let api = Api::<Pod>::namespaced(installation.client(), &tenant.namespace);
    let create_pod =
        async |name: &str| create(&api, &injection::pod(name, injection::annotated("agent"))).await;
    let direct = create_pod("direct").await;
    let own: Value = json!({ "spec": { "injection": { "proxy": {} } } });
    tenant.patch_access("agent", own).await;
    let live = ConditionType::LiveRotation;
    eventually("the pod from before the proxy", SOON, async || {
        let condition = tenant
            .await_condition("agent", live, "False", Reason::KeyInEnvironment)
            .await;
        let found = condition.message.contains("pod direct read the key");
        if found { Ok(()) } else { Err(condition.message) }
    })
    .await;
    let proxied = create_pod("proxied").await;

    let arguments = |pod: &Pod| container(pod, "llmwarden").args.clone().unwrap_or_default();
    assert!(!arguments(&direct).contains(&"--proxy".to_owned()));
    assert!(arguments(&proxied).ends_with(&["--proxy".to_owned(), "agent".to_owned()]));
    // Only where a sidecar calls the provider is it told the way out of the cluster.
    let way_out = |pod: &Pod| {
        let env = container(pod, "llmwarden").env.clone().unwrap_or_default();
        env.into_iter()
            .map(|variable| (variable.name, variable.value))
            .collect::<Vec<_>>()
    };
    assert_eq!(way_out(&direct), []);
    let egress = Some(EGRESS.to_owned());
    assert_eq!(way_out(&proxied), [("HTTPS_PROXY".to_owned(), egress)]);
    let env = container(&proxied, "agent").env.clone().unwrap_or_default();
    let base_url = env
        .iter()
        .find(|variable| variable.name == "ANTHROPIC_BASE_URL")
        .unwrap();
    assert_eq!(
        base_url.value.as_deref(),
        Some("http://127.0.0.1:9470/proxy/agent")
    );
    let key = env
        .iter()
        .find(|variable| variable.name == "ANTHROPIC_API_KEY")
        .unwrap();
    let key = key.value_from.as_ref().unwrap().secret_key_ref.as_ref().unwrap();
    assert_eq!((key.name.as_str(), key.key.as_str()), ("agent-key", "apiKey"));

    // The version is another one, so both are refreshed; nothing else of them changes.
    for before in [direct, proxied] {
        let name = before.metadata.name.clone().unwrap();
        let after = eventually("a refreshed pod", SOON, async || {
            let pod = api.get(&name).await.unwrap();
            let annotations = pod.metadata.annotations.clone().unwrap_or_default();
            annotations.contains_key(REFRESH_ANNOTATION).then_some(pod)
        })
        .await;
        assert_eq!(after.spec, before.spec);
    }
    let at_once = DeleteParams::default().grace_period(0);
    api.delete("direct", &at_once).await.unwrap();
    tenant
        .await_condition("agent", live, "True", Reason::ThroughProxy)
        .await;
}
