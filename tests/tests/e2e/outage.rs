//! When something that pods depend on is down. Each test has the node for itself.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use llmwarden_proto::names::{API_KEY, SIDECAR};
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::wait::same;
use llmwarden_tests::webhook::ANNOTATED;
use llmwarden_tests::{eventually, node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::{ACCESS, AGENT, AgentPod, Cluster, MISSED, SOON, reading_agent, tenant};
use crate::tenant::{create, object};

const KEY: &str = "sk-ant-test-e2e-outage";

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// Kills a sidecar, with nothing left of what it has delivered: it writes no more when that is removed.
async fn kill_bare(sidecar: u32, delivered: &Path) {
    signal(sidecar, Signal::SIGSTOP);
    eventually("a sidecar that stands still", SOON, async || {
        let status = fs::read_to_string(format!("/proc/{sidecar}/status"))?;
        anyhow::ensure!(status.contains("State:\tT"), status);
        Ok(())
    })
    .await;
    for entry in fs::read_dir(delivered).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
    signal(sidecar, Signal::SIGKILL);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_webhook_annotated_pods_are_refused_and_who_slips_through_is_reported() {
    let cluster = Cluster::alone().await;
    let tenant = tenant(&cluster, KEY).await;
    let selector = json!({ "matchLabels": { "app": "selected" } });
    tenant
        .create_access("selecting", json!({ "workloadSelector": selector }))
        .await;
    tenant.await_ready("selecting").await;
    cluster.scale(0).await;

    let pods = Api::<Pod>::namespaced(cluster.installation.client(), &tenant.namespace);
    let annotated = object(reading_agent(json!({})));
    let error = pods
        .create(&PostParams::default(), &annotated)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("failed calling webhook \"{ANNOTATED}\"")),
        "{error}"
    );
    for (name, labels) in [("other", json!({})), ("selected", json!({ "app": "selected" }))] {
        let pod =
            reading_agent(json!({ "metadata": { "name": name, "labels": labels, "annotations": null } }));
        let created = create(&pods, &object(pod)).await;
        assert!(created.spec.unwrap().init_containers.is_none(), "{name}");
    }

    cluster.scale(2).await;
    cluster.await_webhook().await;
    let told = tenant
        .await_condition(
            "selecting",
            ConditionType::InjectionReady,
            "False",
            Reason::PodsMissingInjection,
        )
        .await;
    assert!(told.message.contains("selected"), "{}", told.message);
    create(&pods, &annotated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_is_restarted_leaves_the_agent_its_key() {
    let cluster = Cluster::alone().await;
    let tenant = tenant(&cluster, KEY).await;
    let pod = AgentPod::start(&cluster, &tenant).await;
    let readers = pod.read(KEY).await;
    cluster.node.restart_kubelet(&cluster.installation).unwrap();
    let key = format!("{KEY}-2");
    readers.expect(&key);
    tenant.set_master(&key).await;
    readers.saw(&key, SOON).await.unwrap();
    pod.await_ready().await;
    let (file, endpoint) = readers.tallies();
    assert_eq!((file.bad(), endpoint.bad()), (0, 0), "{file:?} {endpoint:?}");
    assert_eq!(pod.restarts().await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_api_server_and_controller_down_agents_keep_their_key_and_those_that_restart_get_it() {
    let cluster = Cluster::alone().await;
    let tenant = tenant(&cluster, KEY).await;
    let pods = [
        AgentPod::start(&cluster, &tenant).await,
        AgentPod::create(
            &cluster,
            &tenant,
            reading_agent(json!({ "metadata": { "name": "restarted" } })),
        )
        .await,
    ];
    pods[1].await_ready().await;
    let readers = pods[0].read(KEY).await;
    let logs = node::logs(&pods[1].get().await, AGENT);
    let (sidecar, agent) = (pods[1].pid(SIDECAR).await, pods[1].pid(AGENT).await);
    let delivered = pods[1].delivery_dir().await;
    cluster.scale(0).await;
    cluster.installation.stop_api_server();

    // What a sidecar delivered outlives it, and would do for the next one. Without that, it is the mounted companion alone
    // that has the key.
    kill_bare(sidecar, &delivered).await;
    let file = delivered.join(ACCESS).join(API_KEY);
    eventually("the key's file, from the mounted companion", SOON, async || {
        same(&fs::read_to_string(&file).ok().as_deref(), &Some(KEY))
    })
    .await;
    signal(agent, Signal::SIGKILL);
    let first = format!("first: file={KEY} endpoint={KEY}");
    eventually(
        "the first words of an agent that was restarted",
        SOON,
        async || fs::read_to_string(logs.join("1.log")).is_ok_and(|log| log.contains(&first)),
    )
    .await;
    cluster.installation.start_api_server().await.unwrap();
    cluster.scale(2).await;
    cluster.await_webhook().await;

    let key = format!("{KEY}-2");
    readers.expect(&key);
    tenant.set_master(&key).await;
    readers.saw(&key, SOON).await.unwrap();
    pods[1].await_file(Some(&key)).await;
    let (file, endpoint) = readers.tallies();
    assert_eq!((file.bad(), endpoint.bad()), (0, 0), "{file:?} {endpoint:?}");
    assert!(!pods[0].log().await.contains(MISSED));
    assert_eq!(pods[0].restarts().await, (0, 0));
    assert_eq!(pods[1].restarts().await, (1, 1));
}
