//! The webhook on a real API server: what becomes of pods, and what their authors are told.

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Api, ResourceExt};
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::webhook::{ANNOTATED, CONFIGURATION};
use llmwarden_tests::{Installation, Signal, eventually};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::support::{SOON, Tenant, create, install_kagent, merge, object, patch};

/// The label of the namespaces whose pods the webhook is asked about: other tests' are not delayed by it.
pub const LABEL: (&str, &str) = ("injection", "on");

/// The shared installation, with the webhook registered and trusted.
pub async fn shared() -> llmwarden_tests::installation::Shared {
    static REGISTERED: OnceCell<()> = OnceCell::const_new();
    let installation = Installation::shared_with_webhook().await.unwrap();
    REGISTERED
        .get_or_init(async || register(&installation).await)
        .await;
    installation
}

async fn register(installation: &Installation) {
    installation.register_webhook(LABEL).await.unwrap();
    let api = Api::<MutatingWebhookConfiguration>::all(installation.client());
    eventually("caBundle in every entry", SOON, async || {
        let webhooks = api.get(CONFIGURATION).await?.webhooks.unwrap_or_default();
        let trusted = webhooks
            .iter()
            .all(|webhook| webhook.client_config.ca_bundle.is_some());
        if trusted {
            Ok(())
        } else {
            Err(anyhow::anyhow!("not yet"))
        }
    })
    .await;
    // The API server takes it in a little later; a pod that nothing selects is what it answers.
    let tenant = tenant(installation).await;
    eventually("an answer of the webhook", SOON, async || {
        let error = pods(installation, &tenant)
            .create(&dry_run(), &pod("probe", annotated("gone")))
            .await
            .unwrap_err();
        let text = error.to_string();
        if text.contains("does not exist") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

pub async fn tenant(installation: &Installation) -> Tenant {
    let tenant = Tenant::new(installation, "sk-test-injection").await;
    let labels = json!({ "metadata": { "labels": { LABEL.0: LABEL.1 } } });
    patch(&tenant.namespaces(), &tenant.namespace, labels).await;
    tenant
}

fn pods(installation: &Installation, tenant: &Tenant) -> Api<Pod> {
    Api::namespaced(installation.client(), &tenant.namespace)
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

pub fn annotated(accesses: &str) -> Value {
    json!({ "metadata": { "annotations": { "llmwarden.io/inject": accesses } } })
}

fn labelled(labels: &Value) -> Value {
    json!({ "metadata": { "labels": labels } })
}

pub fn pod(name: &str, change: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "agent", "image": "agent" }] },
    });
    merge(&mut pod, change);
    object(pod)
}

fn init_containers(pod: &Pod) -> Vec<&str> {
    let init = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    init.map(|container| container.name.as_str()).collect()
}

/// Waits until the controller's index has an access, so that what follows is decided by it.
pub async fn await_known(installation: &Installation, tenant: &Tenant, access: &str) {
    let mut number = 0;
    eventually("an access that the webhook knows", SOON, async || {
        number += 1;
        let probe = pod(&format!("probe-{number}"), annotated(access));
        let created = pods(installation, tenant).create(&dry_run(), &probe).await;
        match created {
            Err(error) if error.to_string().contains("does not exist") => Err(error.to_string()),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_the_sidecar_by_annotation_and_by_label() {
    let installation = shared().await;
    let tenant = tenant(&installation).await;
    let selector = json!({ "matchLabels": { "kagent.dev/agent": "writer" } });
    tenant.create_access("named", json!({})).await;
    tenant
        .create_access("selected", json!({ "workloadSelector": selector }))
        .await;
    await_known(&installation, &tenant, "named,selected").await;
    let api = pods(&installation, &tenant);

    for (name, change, source) in [
        (
            "annotated",
            annotated("named"),
            "named=/var/run/secrets/llmwarden/named",
        ),
        (
            "labelled",
            labelled(&json!({ "app": "kagent", "kagent": "writer" })),
            "selected=/var/run/secrets/llmwarden/selected",
        ),
    ] {
        let created = create(&api, &pod(name, change)).await;
        assert_eq!(init_containers(&created), ["llmwarden"], "{name}");
        assert_eq!(created.labels()["llmwarden.io/injected"], "true");
        let spec = created.spec.unwrap();
        let sidecar = &spec.init_containers.unwrap()[0];
        assert_eq!(sidecar.args.as_ref().unwrap().last().unwrap(), source);
        // The service account's token is where it was for the agent, and nothing of it in the sidecar.
        let mounts = |container: &k8s_openapi::api::core::v1::Container| {
            let all = container.volume_mounts.iter().flatten();
            let token = |mount: &&k8s_openapi::api::core::v1::VolumeMount| {
                mount.mount_path == "/var/run/secrets/kubernetes.io/serviceaccount"
            };
            all.filter(token)
                .map(|mount| mount.name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(mounts(sidecar), ["llmwarden-no-token"]);
        assert!(mounts(&spec.containers[0])[0].starts_with("kube-api-access-"));
    }
    for (name, change) in [
        ("plain", json!({})),
        ("declines", annotated("false")),
        ("empty", annotated("")),
    ] {
        let created = create(&api, &pod(name, change)).await;
        assert_eq!(init_containers(&created), [""; 0], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_own_annotation_counts_once_kagent_is_there() {
    // kagent's definition is for the whole cluster.
    let installation = Installation::start_with_webhook(&[]).await.unwrap();
    install_kagent(&installation).await;
    // A controller that starts now sees it at once.
    installation.stop_controller(Signal::SIGTERM).await.unwrap();
    installation.start_controller().await.unwrap();
    register(&installation).await;

    let tenant = tenant(&installation).await;
    tenant.create_access("named", json!({})).await;
    await_known(&installation, &tenant, "named").await;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("kagent.dev", "v1alpha2", "Agent"));
    let agents = Api::<DynamicObject>::namespaced_with(installation.client(), &tenant.namespace, &kind);
    for (agent, annotation) in [("writer", "named"), ("wrong", "gone")] {
        let agent: DynamicObject = object(json!({
            "apiVersion": "kagent.dev/v1alpha2",
            "kind": "Agent",
            "metadata": { "name": agent, "annotations": { "llmwarden.io/inject": annotation } },
        }));
        agents.create(&PostParams::default(), &agent).await.unwrap();
    }
    let api = pods(&installation, &tenant);
    let of = |agent: &str| pod("p", labelled(&json!({ "app": "kagent", "kagent": agent })));
    eventually("the Agent's wish", SOON, async || {
        let created = api.create(&dry_run(), &of("writer")).await.unwrap();
        init_containers(&created) == ["llmwarden"]
    })
    .await;
    let error = eventually("a denial", SOON, async || {
        api.create(&dry_run(), &of("wrong")).await.err()
    })
    .await;
    assert!(error.to_string().contains("of Agent wrong names it"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_names_what_is_not_there_is_told_so() {
    let installation = shared().await;
    let tenant = tenant(&installation).await;
    // Before the access: what is there first is somebody else's.
    let taken = object(json!({ "metadata": { "name": "taken" }, "stringData": { "k": "v" } }));
    create(&tenant.secrets(), &taken).await;
    tenant
        .create_access("conflict", json!({ "secretName": "taken" }))
        .await;
    tenant.create_access("good", json!({})).await;
    tenant.await_refusal("conflict", Reason::SecretConflict).await;
    await_known(&installation, &tenant, "good").await;
    let file = installation.work_dir().join("denied.yaml");
    for (accesses, host_network, expected) in [
        (
            "gone",
            false,
            "LLMAccess {namespace}/gone does not exist, and the annotation llmwarden.io/inject of the pod",
        ),
        (
            "conflict",
            false,
            "LLMAccess conflict is in conflict, Secret taken is not its own: kubectl describe llmaccess conflict",
        ),
        ("good", true, "the pod has hostNetwork"),
    ] {
        let mut denied = pod("denied", annotated(accesses));
        denied.spec.as_mut().unwrap().host_network = Some(host_network);
        std::fs::write(&file, serde_json::to_string(&denied).unwrap()).unwrap();
        let apply = format!("create -n {} -f {}", tenant.namespace, file.display());
        let error = installation.run_kubectl(&apply).await.unwrap_err().to_string();
        let expected = expected.replace("{namespace}", &tenant.namespace);
        let text = format!("admission webhook \"{ANNOTATED}\" denied the request: {expected}");
        assert!(error.contains(&text), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selected_pod_that_cannot_be_injected_is_created_with_a_warning() {
    let installation = shared().await;
    let tenant = tenant(&installation).await;
    tenant
        .create_access("all", json!({ "workloadSelector": {} }))
        .await;
    await_known(&installation, &tenant, "all").await;
    let file = installation.work_dir().join("warned.yaml");
    let mut warned = pod("warned", json!({}));
    warned.spec.as_mut().unwrap().host_network = Some(true);
    std::fs::write(&file, serde_json::to_string(&warned).unwrap()).unwrap();
    let mut kubectl = installation.kubectl();
    kubectl.args(["create", "-n", &tenant.namespace, "-f"]).arg(&file);
    let output = kubectl.output().await.unwrap();
    let reported = tenant
        .await_condition(
            "all",
            ConditionType::InjectionReady,
            "False",
            Reason::PodsMissingInjection,
        )
        .await;
    let expected = "the sidecar is missing in pod warned (the pod has hostNetwork";
    assert!(reported.message.starts_with(expected), "{}", reported.message);
    assert_eq!(tenant.occurrences("all", Reason::PodsMissingInjection).await, 1);
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{warning}");
    assert!(
        warning.contains("Warning: not injected: the pod has hostNetwork"),
        "{warning}"
    );
}

/// What the `restricted` standard allows without the sidecar it allows with it; and a dry run leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_injected_pod_is_as_restricted_as_it_was() {
    let installation = shared().await;
    let tenant = tenant(&installation).await;
    let enforce = json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "restricted" } } });
    patch(
        &Api::<Namespace>::all(installation.client()),
        &tenant.namespace,
        enforce,
    )
    .await;
    let injection = json!({ "volume": { "mountPath": "/etc/llm" } });
    tenant.create_access("a", json!({ "injection": injection })).await;
    let api = pods(&installation, &tenant);
    let container = |change: Value| {
        let mut container = json!({
            "name": "agent",
            "image": "agent",
            "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
        });
        merge(&mut container, change);
        container
    };
    let security = |change: Value| {
        let mut security = json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
        merge(&mut security, change);
        security
    };
    let spec = |context: Value, init: Value| {
        let containers = [container(json!({}))];
        json!({ "spec": { "containers": containers, "securityContext": context, "initContainers": init } })
    };
    await_known(&installation, &tenant, "a").await;
    for change in [
        spec(security(json!({})), json!([])),
        spec(security(json!({ "runAsUser": 1001, "fsGroup": 1001 })), json!([])),
        spec(
            security(json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "p" } })),
            json!([]),
        ),
        spec(security(json!({})), json!([container(json!({ "name": "init" }))])),
        spec(json!({}), json!([])),
        spec(security(json!({ "runAsUser": 0 })), json!([])),
        json!({ "spec": { "hostPID": true } }),
    ] {
        let before = api.create(&dry_run(), &pod("p", change.clone())).await;
        let mut injected = change.clone();
        merge(&mut injected, annotated("a"));
        let after = api.create(&dry_run(), &pod("p", injected)).await;
        match (before, after) {
            (Ok(_), Ok(after)) => assert_eq!(init_containers(&after)[0], "llmwarden"),
            // It says who is to blame, and that is never the sidecar.
            (Err(_), Err(error)) => {
                let text = error.to_string();
                assert!(
                    text.contains("violates PodSecurity") && !text.contains("\"llmwarden\""),
                    "{text}"
                );
            }
            (before, after) => panic!("{change}: {before:?}, injected: {after:?}"),
        }
    }
    assert_eq!(
        api.list(&kube::api::ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        0
    );
}

/// A later webhook that changes the pod has the API server call ours again.
#[tokio::test(flavor = "multi_thread")]
async fn an_injected_pod_is_left_alone_when_it_comes_again() {
    let installation = shared().await;
    let tenant = tenant(&installation).await;
    tenant.create_access("a", json!({})).await;
    await_known(&installation, &tenant, "a").await;
    let api = pods(&installation, &tenant);
    let first = create(&api, &pod("first", annotated("a"))).await;
    // As somebody copies it: what the API server has set is not part of that.
    let mut copy = first.clone();
    copy.metadata = object(json!({
        "name": "second",
        "annotations": first.annotations(),
        "labels": first.labels(),
    }));
    let sidecar = &mut copy.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0];
    sidecar.image = Some("llmwarden/llmwarden-sidecar:another".to_owned());
    let second = create(&api, &copy).await;
    assert_eq!(second.spec, copy.spec);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_webhook_annotated_pods_wait_and_others_are_created() {
    let installation = Installation::start_with_webhook(&[]).await.unwrap();
    register(&installation).await;
    let tenant = tenant(&installation).await;
    tenant.create_access("a", json!({ "workloadSelector": {} })).await;
    await_known(&installation, &tenant, "a").await;
    installation.stop_controller(Signal::SIGKILL).await.unwrap();
    let api = pods(&installation, &tenant);
    let error = api
        .create(&PostParams::default(), &pod("annotated", annotated("a")))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("failed calling webhook \"{ANNOTATED}\"")),
        "{error}"
    );
    for (name, change) in [("selected", json!({})), ("declines", annotated("false"))] {
        let created = create(&api, &pod(name, change)).await;
        assert_eq!(init_containers(&created), [""; 0]);
    }
}

/// What is not a review gets an answer that says so, and what is too large none.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_reviews_are_answered() -> Result<()> {
    let installation = shared().await;
    for (body, status, expected) in [
        ("{".to_owned(), 200, "not the AdmissionReview of a pod"),
        (json!({ "request": { "uid": "u-1" } }).to_string(), 200, "u-1"),
        ("x".repeat(15 * 1024 * 1024), 413, "4194304 bytes at most"),
    ] {
        let (seen, text) = installation.post_to_webhook(body).await?;
        assert_eq!(seen, status, "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(status != 200 || text.contains("\"allowed\":false"), "{text}");
    }
    Ok(())
}
