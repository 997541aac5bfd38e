//! What the chart's guard keeps the companion from, and what it leaves alone.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use llmwarden_tests::{ControlPlane, chart, eventually};
use serde_json::{Value, json};

use crate::support::{SOON, create, merge, object};

/// Namespace of all pods here.
const NAMESPACE: &str = "default";
const COMPANION: &str = "agent.llmwarden";
const SIDECAR: &str = "llmwarden/llmwarden-sidecar:0.0.1";

fn pod(name: &str, spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "agent", "image": "agent" }] },
    });
    merge(&mut pod["spec"], spec);
    object(pod)
}

/// A volume that holds the companion.
fn volume() -> Value {
    json!([{ "name": "key", "secret": { "secretName": COMPANION } }])
}

fn mounting(name: &str, image: &str) -> Value {
    json!({ "name": name, "image": image, "volumeMounts": [{ "name": "key", "mountPath": "/key" }] })
}

fn variable(secret: &str) -> Value {
    json!([{ "name": "KEY", "valueFrom": { "secretKeyRef": { "name": secret, "key": "apiKey" } } }])
}

fn sidecar(image: &str) -> Value {
    let mut container = mounting("llmwarden", image);
    container["restartPolicy"] = "Always".into();
    container
}

/// An agent that mounts this volume.
fn with_volume(source: Value) -> Value {
    let mut volume = json!({ "name": "key" });
    merge(&mut volume, source);
    json!({ "volumes": [volume], "containers": [mounting("agent", "agent")] })
}

/// Whether an answer refuses this container, or none.
fn complaint<T>(what: &str, refused: Option<&str>, answer: kube::Result<T>) -> Result<(), String> {
    let expected = refused.map(|container| {
        format!("denied request: container {container} may not use a Secret whose name ends in .llmwarden")
    });
    match (answer.map_err(|error| error.to_string()), expected) {
        (Ok(_), None) => Ok(()),
        (Err(error), Some(expected)) if error.contains(&expected) => Ok(()),
        (answer, _) => Err(format!(
            "{what}: {}",
            answer.err().unwrap_or_else(|| "it went through".to_owned())
        )),
    }
}

fn refusals(complaints: impl IntoIterator<Item = Result<(), String>>) {
    let complaints: Vec<_> = complaints.into_iter().filter_map(Result::err).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// A cluster with the chart, and pods in it that were there before.
async fn guarded(before: &[Pod]) -> (ControlPlane, Api<Pod>) {
    let cluster = ControlPlane::start().await.unwrap();
    let pods = Api::<Pod>::namespaced(cluster.client(), NAMESPACE);
    for pod in before {
        create(&pods, pod).await;
    }
    let chart = chart::dir().display().to_string();
    let install = [
        "install",
        chart::RELEASE,
        &chart,
        "--create-namespace",
        chart::WITHOUT_CONTROLLER,
    ];
    cluster.run_helm(install).await.unwrap();
    let probe = pod(
        "probe",
        with_volume(json!({ "secret": { "secretName": COMPANION } })),
    );
    eventually("the enforcement of the policy", SOON, async || {
        complaint("probe", Some("agent"), pods.create(&dry_run(), &probe).await)
    })
    .await;
    (cluster, pods)
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_new_pods_the_sidecar_alone_gets_the_companion() {
    let (_cluster, pods) = guarded(&[]).await;
    let agent = |change: Value| {
        let mut agent = json!({ "name": "agent", "image": "agent" });
        merge(&mut agent, change);
        json!({ "containers": [agent] })
    };
    let init = |container: Value| json!({ "volumes": volume(), "initContainers": [container] });
    let digest = format!("llmwarden/llmwarden-sidecar@sha256:{}", "0".repeat(64));
    let mut helper = sidecar(SIDECAR);
    helper["restartPolicy"] = Value::Null;
    let mut beside = init(sidecar(SIDECAR));
    beside["containers"] = json!([mounting("agent", "agent")]);
    let many =
        |what: &str, count: usize| -> Vec<String> { (0..count).map(|n| format!("{what}-{n}")).collect() };
    let large = json!({
        "volumes": many("v", 100).iter().map(|name| json!({ "name": name, "secret": { "secretName": name } })).collect::<Vec<_>>(),
        "containers": many("c", 50).iter().map(|name| json!({
            "name": name,
            "image": "agent",
            "env": many("E", 50).iter().map(|name| json!({ "name": name, "value": "v" })).collect::<Vec<_>>(),
            "volumeMounts": many("v", 100).iter().map(|name| json!({ "name": name, "mountPath": format!("/{name}") })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    let secret = |name: &str| json!({ "secret": { "secretName": name } });
    let projected = |name: &str| json!({ "projected": { "sources": [{ "configMap": { "name": "map" } }, { "secret": { "name": name } }] } });
    let driver = json!({ "csi": { "driver": "example.com", "nodePublishSecretRef": { "name": COMPANION } } });
    let flex = json!({ "flexVolume": { "driver": "example.com/flex", "secretRef": { "name": COMPANION } } });
    let refused = Some("agent");
    let stranger = Some("llmwarden");
    let cases = [
        ("a volume", with_volume(secret(COMPANION)), refused),
        ("a projected volume", with_volume(projected(COMPANION)), refused),
        ("a driver's volume", with_volume(driver), refused),
        ("another driver's volume", with_volume(flex), refused),
        (
            "a variable",
            agent(json!({ "env": variable(COMPANION) })),
            refused,
        ),
        (
            "all variables",
            agent(json!({ "envFrom": [{ "secretRef": { "name": COMPANION } }] })),
            refused,
        ),
        (
            "an init container's volume",
            init(mounting("setup", "agent")),
            Some("setup"),
        ),
        (
            "an init container's variable",
            json!({ "initContainers": [{ "name": "setup", "image": "agent", "env": variable(COMPANION) }] }),
            Some("setup"),
        ),
        ("an agent's volume beside the sidecar", beside, refused),
        ("a sidecar of another image", init(sidecar("agent:1")), stranger),
        (
            "a sidecar of an image that only begins like it",
            init(sidecar("llmwarden/llmwarden-sidecar-2:1")),
            stranger,
        ),
        ("a sidecar that is none", init(helper), stranger),
        (
            "an agent that is called like it",
            json!({ "volumes": volume(), "containers": [mounting("llmwarden", SIDECAR)] }),
            stranger,
        ),
        ("the sidecar", init(sidecar(SIDECAR)), None),
        ("the sidecar by its digest", init(sidecar(&digest)), None),
        (
            "a volume that nothing mounts",
            json!({ "volumes": volume() }),
            None,
        ),
        ("another Secret's volume", with_volume(secret("agent-key")), None),
        (
            "another Secret projected",
            with_volume(projected("agent-key")),
            None,
        ),
        (
            "another Secret's variable",
            agent(json!({ "env": variable("agent-key") })),
            None,
        ),
        ("other volumes", with_volume(json!({ "emptyDir": {} })), None),
        ("none of it", json!({}), None),
        ("a large pod", large, None),
    ];
    let mut complaints = Vec::new();
    for (what, spec, refused) in cases {
        let answer = pods.create(&dry_run(), &pod("new", spec)).await;
        complaints.push(complaint(what, refused, answer));
    }
    refusals(complaints);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_were_there_before_stay_as_they_are() {
    let beside = |image: &str| json!({ "volumes": volume(), "initContainers": [sidecar(image)] });
    let (_cluster, pods) = guarded(&[
        pod(
            "taker",
            with_volume(json!({ "secret": { "secretName": COMPANION } })),
        ),
        pod("agent", beside(SIDECAR)),
        pod("mirrored", beside("mirror/llmwarden-sidecar:1")),
    ])
    .await;

    let label = json!({ "metadata": { "labels": { "team": "x" } } });
    let image =
        |list: &str, name: &str, image: &str| json!({ "spec": { list: [{ "name": name, "image": image }] } });
    let mut complaints = Vec::new();
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    for (what, pod, change, refused) in [
        ("labels one that has it", "taker", label.clone(), None),
        ("labels an injected one", "agent", label.clone(), None),
        ("labels one of another image", "mirrored", label, None),
        (
            "swaps its image",
            "taker",
            image("containers", "agent", "new"),
            Some("agent"),
        ),
        (
            "swaps the sidecar's image",
            "agent",
            image("initContainers", "llmwarden", "new"),
            Some("llmwarden"),
        ),
        (
            "brings the sidecar up to date",
            "agent",
            image("initContainers", "llmwarden", "llmwarden/llmwarden-sidecar:2"),
            None,
        ),
        (
            "swaps another image",
            "agent",
            image("containers", "agent", "new"),
            None,
        ),
    ] {
        let answer = pods.patch(pod, &params, &Patch::Strategic(change)).await;
        complaints.push(complaint(what, refused, answer));
    }

    let debug = |change: Value| {
        let mut container = json!({ "name": "debug", "image": "busybox" });
        merge(&mut container, change);
        json!({ "spec": { "ephemeralContainers": [container] } })
    };
    for (what, pod, container, refused) in [
        ("looks at one that has it", "taker", debug(json!({})), None),
        ("looks at an injected one", "agent", debug(json!({})), None),
        (
            "mounts it there",
            "agent",
            debug(mounting("debug", "busybox")),
            Some("debug"),
        ),
        (
            "takes it into a variable",
            "agent",
            debug(json!({ "env": variable(COMPANION) })),
            Some("debug"),
        ),
        (
            "takes all of it into variables",
            "agent",
            debug(json!({ "envFrom": [{ "secretRef": { "name": COMPANION } }] })),
            Some("debug"),
        ),
        (
            "calls itself the sidecar",
            "taker",
            debug(mounting("llmwarden", SIDECAR)),
            Some("llmwarden"),
        ),
    ] {
        let answer = pods
            .patch_ephemeral_containers(pod, &params, &Patch::Strategic(container))
            .await;
        complaints.push(complaint(what, refused, answer));
    }
    refusals(complaints);
}
