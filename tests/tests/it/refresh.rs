//! Running pods on a real API server, without a kubelet: who is asked to refresh, when, and what the status makes of the answers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use llmwarden_proto::names::{self, REFRESH_ANNOTATION, STATUS_PORT};
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::api_proxy::{Call, Side};
use llmwarden_tests::installation::{ENABLED_LABEL, SYSTEM};
use llmwarden_tests::sidecar::Options;
use llmwarden_tests::volume::document;
use llmwarden_tests::wait::same;
use llmwarden_tests::{ApiProxy, Installation, Sidecar, Volume, eventually};
use serde_json::{Value, json};

use crate::injection;
use crate::support::{SOON, Tenant, create, merge, object, patch, value};

/// An image that the guard takes for the sidecar's.
const SIDECAR_IMAGE: &str = "llmwarden/llmwarden-sidecar:test";

/// A pod as the webhook leaves it, as far as its structure counts, with the sidecar for these accesses.
pub fn injected(name: &str, accesses: &[&str]) -> Pod {
    let dir = |access: &str| format!("/var/run/secrets/llmwarden/{access}");
    let volume = |access: &str| access.replace('.', "-");
    let sources = accesses
        .iter()
        .flat_map(|access| ["--source".to_owned(), format!("{access}={}", dir(access))]);
    let arguments: Vec<_> = ["--dir".to_owned(), names::DELIVERY_DIR.to_owned()]
        .into_iter()
        .chain(sources)
        .collect();
    let mounts = accesses
        .iter()
        .map(|access| json!({ "name": volume(access), "mountPath": dir(access) }));
    let volumes = accesses.iter().map(|access| {
        let secret = json!({ "secretName": names::companion(access), "optional": true });
        json!({ "name": volume(access), "secret": secret })
    });
    object(json!({
        "metadata": { "name": name, "labels": { names::INJECTED_LABEL: "true" } },
        "spec": {
            "containers": [{ "name": "agent", "image": "agent" }],
            "initContainers": [{
                "name": names::SIDECAR, "image": SIDECAR_IMAGE, "restartPolicy": "Always",
                "args": arguments, "volumeMounts": mounts.collect::<Vec<_>>(),
            }],
            "volumes": volumes.collect::<Vec<_>>(),
        },
    }))
}

/// A pod that only looks injected: the label is there, the structure is not.
fn forged(name: &str) -> Pod {
    let mut forged = injected(name, &["agent"]);
    forged.spec.as_mut().unwrap().volumes = None;
    let sidecar = &mut forged.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0];
    sidecar.volume_mounts = None;
    forged
}

fn pods(installation: &Installation, tenant: &Tenant) -> Api<Pod> {
    Api::namespaced(installation.client(), &tenant.namespace)
}

/// What the kubelet was asked for.
fn asked(pod: &Pod) -> Option<&str> {
    pod.annotations().get(REFRESH_ANNOTATION).map(String::as_str)
}

async fn await_asked(api: &Api<Pod>, pod: &str, wanted: &str) {
    eventually(
        &format!("{wanted} in the annotation of {pod}"),
        SOON,
        async || same(&asked(&api.get(pod).await.unwrap()), &Some(wanted)),
    )
    .await;
}

/// Waits until the access is ready with a later version than `before`.
async fn await_version(tenant: &Tenant, access: &str, before: Option<i64>) -> i64 {
    eventually("a later version", SOON, async || {
        let status = tenant.access(access).await.status.unwrap_or_default();
        status
            .credential_version
            .filter(|version| Some(*version) > before)
    })
    .await
}

/// Says what the kubelet would: that the sidecar runs, and where.
async fn set_running(api: &Api<Pod>, pod: &str, address: Ipv4Addr, container: &str) {
    let state = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
    let sidecar = json!({
        "name": names::SIDECAR, "image": SIDECAR_IMAGE, "imageID": "", "ready": true, "restartCount": 0,
        "containerID": container, "state": state,
    });
    let status = json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "initContainerStatuses": [sidecar] });
    let change = Patch::Merge(json!({ "status": status }));
    api.patch_status(pod, &PatchParams::default(), &change)
        .await
        .unwrap();
}

/// An address on loopback that no other test listens on.
fn address() -> Ipv4Addr {
    static COUNT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = u16::try_from(std::process::id() % 65_536).unwrap().to_be_bytes();
    let count = u8::try_from(COUNT.fetch_add(1, Ordering::Relaxed)).unwrap();
    Ipv4Addr::new(127, 100 + count, high, low.max(1))
}

async fn await_pods(tenant: &Tenant, delivered: i64, total: i64) {
    eventually("the count of pods", SOON, async || {
        let rotation = tenant.access("agent").await.status.unwrap_or_default().rotation;
        let pods = rotation.map(|rotation| (rotation.pods.delivered, rotation.pods.total));
        same(&pods, &Some((delivered, total)))
    })
    .await;
}

const CROWD: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn every_injected_pod_is_refreshed_and_no_other() {
    let installation = injection::shared().await;
    let tenant = injection::tenant(&installation).await;
    tenant.create_access("agent", json!({})).await;
    tenant.create_access("other", json!({})).await;
    tenant.await_ready("agent").await;
    tenant.await_ready("other").await;
    injection::await_known(&installation, &tenant, "agent,other").await;
    let api = pods(&installation, &tenant);
    for (name, change) in [("plain", json!({})), ("another", injection::annotated("other"))] {
        create(&api, &injection::pod(name, change)).await;
    }
    create(&api, &forged("forged")).await;
    let names: Vec<_> = (0..CROWD).map(|number| format!("agent-{number}")).collect();
    futures::stream::iter(&names)
        .for_each_concurrent(16, async |name| {
            create(&api, &injection::pod(name, injection::annotated("agent"))).await;
        })
        .await;
    await_pods(&tenant, 0, i64::try_from(CROWD).unwrap()).await;
    // A pod that is as young as the version may be asked for that at once: what follows is about the next one.
    let settled = |all: &[Pod]| all.iter().filter(|pod| asked(pod).is_some()).count();
    let list = async || api.list(&ListParams::default()).await.unwrap().items;
    let mut before = settled(&list().await);
    eventually("an end to what came with the start", SOON, async || {
        let now = settled(&list().await);
        let same = now == before;
        before = now;
        same
    })
    .await;
    let others = |all: &[Pod]| -> BTreeMap<String, Option<String>> {
        let others = all.iter().filter(|pod| !pod.name_any().starts_with("agent-"));
        others
            .map(|pod| (pod.name_any(), pod.resource_version()))
            .collect()
    };
    let others_before = others(&list().await);

    let version = tenant.access("agent").await.status.unwrap().credential_version;
    let begin = Instant::now();
    tenant.set_master("sk-test-refreshed").await;
    // "other" has the same master: what is read is one provider's.
    let version = await_version(&tenant, "agent", version).await.to_string();
    eventually("all pods", SOON, async || {
        let all = list().await;
        let crowd = all.iter().filter(|pod| pod.name_any().starts_with("agent-"));
        let done = crowd.filter(|pod| asked(pod) == Some(&version)).count();
        same(&done, &CROWD)
    })
    .await;
    println!(
        "{CROWD} pods refreshed within {:?} of the change of the master key",
        begin.elapsed()
    );
    eventually("the pod of the other access", SOON, async || {
        let now = others(&list().await);
        now["another"] != others_before["another"]
    })
    .await;
    let others_after = others(&list().await);
    for (name, before) in &others_before {
        let touched = others_after[name] != *before;
        assert_eq!(touched, name == "another", "{name}");
    }
    assert!(others_after.contains_key("forged") && others_after.contains_key("plain"));
    api.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_did_not_hear_is_asked_again() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-again-1").await;
    tenant.create_access("agent", json!({})).await;
    tenant.await_ready("agent").await;
    let first = await_version(&tenant, "agent", None).await;
    let api = pods(&installation, &tenant);
    create(&api, &injected("agent", &["agent"])).await;

    // In place of the kubelet, the test writes the volume; the sidecar is the real one.
    let mut volume = Volume::new().unwrap();
    volume
        .publish(u64::try_from(first).unwrap(), "sk-test-again-1")
        .unwrap();
    let address = address();
    let sidecar = Sidecar::start(Options {
        status: format!("{address}:{STATUS_PORT}"),
        ..Options::new([volume.source("agent")])
    })
    .await
    .unwrap();
    set_running(&api, "agent", address, "containerd://1").await;
    await_pods(&tenant, 1, 1).await;

    tenant.set_master("sk-test-again-2").await;
    let second = await_version(&tenant, "agent", Some(first)).await;
    await_asked(&api, "agent", &second.to_string()).await;
    await_pods(&tenant, 0, 1).await;
    let begin = Instant::now();
    await_asked(&api, "agent", &format!("{second}~2")).await;
    assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
    let mut asks_much = document(u64::try_from(second).unwrap());
    asks_much.requires = vec!["telepathy".to_owned()];
    volume.publish_document(&asks_much, "sk-test-again-2").unwrap();
    await_pods(&tenant, 1, 1).await;
    let lacking = tenant
        .await_condition(
            "agent",
            ConditionType::SidecarOutdated,
            "True",
            Reason::SidecarLacksFeatures,
        )
        .await;
    assert!(
        lacking.message.contains("pod agent (lacks telepathy)"),
        "{}",
        lacking.message
    );
    assert_eq!(tenant.occurrences("agent", Reason::SidecarLacksFeatures).await, 1);
    let settled = api.get("agent").await.unwrap();
    assert_eq!(asked(&settled), Some(format!("{second}~2").as_str()));

    // A sidecar that is no longer there is asked about no more, and nothing is said of it.
    let gone = api
        .delete("agent", &DeleteParams::default().grace_period(0))
        .await;
    gone.unwrap();
    eventually("a status without pods", SOON, async || {
        let status = tenant.access("agent").await.status.unwrap_or_default();
        let outdated = ConditionType::SidecarOutdated.as_str();
        status.rotation.is_none()
            && status
                .conditions
                .iter()
                .all(|condition| condition.type_ != outdated)
    })
    .await;
    drop(sidecar);
}

/// As a process of its own would be killed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_controller_left_is_done_by_the_next_and_never_to_another_pod() {
    let installation = Installation::exclusive().await.unwrap();
    let tenant = Tenant::new(&installation, "sk-test-killed-1").await;
    let proxy = ApiProxy::start(&installation).await.unwrap();
    let kubeconfig = proxy.kubeconfig(&installation, SYSTEM, "refresh").await.unwrap();
    let start = async || {
        installation
            .start_through(&kubeconfig, "refresh", &["--denial-grace=0"])
            .await
            .unwrap()
    };
    let controller = start().await;
    tenant.create_access("agent", json!({})).await;
    tenant.await_ready("agent").await;
    let first = await_version(&tenant, "agent", None).await;
    let api = pods(&installation, &tenant);
    let other: Value = json!({ "metadata": { "annotations": { REFRESH_ANNOTATION: first.to_string() } } });
    let pod = |name: &str| -> Pod {
        let mut pod = serde_json::to_value(injected(name, &["agent"])).unwrap();
        merge(&mut pod, other.clone());
        object(pod)
    };
    create(&api, &pod("agent")).await;
    await_pods(&tenant, 0, 1).await;

    let of_pods = |call: &Call| call.resource == "pods/status";
    let mut stop = proxy.stop_at(1, Side::Before, of_pods);
    tenant.set_master("sk-test-killed-2").await;
    stop.reached().await.unwrap();
    controller.kill();
    drop(stop);
    // The status may not know it yet.
    let companion = value(&tenant.secret("agent.llmwarden").await, names::LIVE_JSON);
    let companion: Value = serde_json::from_str(&companion).unwrap();
    let second = companion["version"].as_i64().unwrap();
    assert!(second > first);
    assert_eq!(
        asked(&api.get("agent").await.unwrap()),
        Some(first.to_string().as_str())
    );
    let controller = start().await;
    await_asked(&api, "agent", &second.to_string()).await;

    // A patch that is under way when the pod is replaced does nothing to its successor.
    let mut stop = proxy.stop_at(1, Side::Before, of_pods);
    tenant.set_master("sk-test-killed-3").await;
    stop.reached().await.unwrap();
    let third = await_version(&tenant, "agent", Some(second)).await;
    let held = proxy.records().len();
    api.delete("agent", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    // The successor has what there is already.
    let other = json!({ "metadata": { "annotations": { REFRESH_ANNOTATION: third.to_string() } } });
    let mut successor = serde_json::to_value(injected("agent", &["agent"])).unwrap();
    merge(&mut successor, other);
    let successor: Pod = object(successor);
    let created = create(&api, &successor).await;
    stop.release();
    eventually("the answer", SOON, async || {
        let records = proxy.records();
        let patched = |record: &&llmwarden_tests::api_proxy::Record| record.call.resource == "pods/status";
        let last = records[..held].iter().rfind(patched).unwrap();
        same(&last.status, &Some(422))
    })
    .await;
    let now = api.get("agent").await.unwrap();
    assert_eq!(
        (now.uid(), now.resource_version()),
        (created.uid(), created.resource_version())
    );

    // Withdrawn, allowed again, deleted: the volume has to follow each time.
    let label = |value: Option<&str>| json!({ "metadata": { "labels": { ENABLED_LABEL: value } } });
    patch(&tenant.namespaces(), &tenant.namespace, label(None)).await;
    tenant.await_refusal("agent", Reason::NamespaceNotAllowed).await;
    let withdrawn = await_version(&tenant, "agent", Some(third)).await;
    await_asked(&api, "agent", &withdrawn.to_string()).await;
    patch(&tenant.namespaces(), &tenant.namespace, label(Some("true"))).await;
    tenant.await_ready("agent").await;
    let again = await_version(&tenant, "agent", Some(withdrawn)).await;
    await_asked(&api, "agent", &again.to_string()).await;
    tenant
        .accesses()
        .delete("agent", &DeleteParams::default())
        .await
        .unwrap();
    await_asked(&api, "agent", "0").await;
    controller.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selected_pod_that_slipped_through_is_reported() {
    let installation = injection::shared().await;
    // The webhook is not asked about its pods yet, as when it is down.
    let tenant = Tenant::new(&installation, "sk-test-slipped").await;
    let selector = json!({ "matchLabels": { "kagent.dev/agent": "writer" } });
    tenant
        .create_access("agent", json!({ "workloadSelector": selector }))
        .await;
    let await_injection = async |status, reason| {
        let ready = tenant.await_condition("agent", ConditionType::InjectionReady, status, reason);
        ready.await.message
    };
    await_injection("False", Reason::NoPodMatched).await;
    let api = pods(&installation, &tenant);
    let writer = json!({ "metadata": { "labels": { "app": "kagent", "kagent": "writer" } } });
    for (name, change) in [("slipped", writer.clone()), ("plain", json!({}))] {
        create(&api, &injection::pod(name, change)).await;
    }
    let mut declines = injection::annotated("false");
    merge(&mut declines, writer.clone());
    create(&api, &injection::pod("declines", declines)).await;
    let message = await_injection("False", Reason::PodsMissingInjection).await;
    assert!(
        message.contains("the sidecar is missing in pod slipped: "),
        "{message}"
    );
    assert_eq!(tenant.occurrences("agent", Reason::PodsMissingInjection).await, 1);

    let labels = json!({ "metadata": { "labels": { injection::LABEL.0: injection::LABEL.1 } } });
    patch(&tenant.namespaces(), &tenant.namespace, labels).await;
    api.delete("slipped", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    await_injection("False", Reason::NoPodMatched).await;
    eventually("an injected pod", SOON, async || {
        let created = create(&api, &injection::pod("writer", writer.clone())).await;
        if created.labels().contains_key(names::INJECTED_LABEL) {
            return Ok(());
        }
        api.delete("writer", &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        Err("the webhook is not asked yet")
    })
    .await;
    await_injection("True", Reason::PodsInjected).await;
    await_pods(&tenant, 0, 1).await;
}
