//! Pods with the sidecar beside an agent, in a namespace under the `restricted` standard: start, rotation, restart, end.

use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use llmwarden_proto::names::{INJECT_ANNOTATION, SIDECAR};
use llmwarden_tests::eventually;
use llmwarden_tests::readers::Readers;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{
    ACCESS, AGENT, AgentPod, Cluster, FIRST, KUBELETS_TIME, MISSED, SOON, agent, figure, reading_agent,
    tenant,
};
use crate::tenant::{Tenant, create, object};

const KEY: &str = "sk-ant-test-e2e";
/// Rotations closer together share the kubelet's one look a second at a pod, and say nothing about a single one.
const APART: Duration = Duration::from_secs(3);

/// Replaces the master key, and says when.
async fn rotate(tenant: &Tenant, readers: &Readers, key: &str) -> Instant {
    readers.expect(key);
    let begun = Instant::now();
    tenant.set_master(key).await;
    begun
}

/// How long after `begun` file and endpoint had `key`: the later of the two.
async fn delivered(readers: &Readers, key: &str, begun: Instant) -> Duration {
    let (file, endpoint) = readers.saw(key, KUBELETS_TIME).await.unwrap();
    file.max(endpoint).duration_since(begun)
}

fn resident(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap().trim().to_owned()
}

/// That no agent missed a read, and nothing was restarted: what file and endpoint gave, and what the agent itself saw.
async fn assert_unnoticed(pod: &AgentPod<'_>, readers: &Readers) {
    let (file, endpoint) = readers.tallies();
    assert_eq!((file.bad(), endpoint.bad()), (0, 0), "{file:?} {endpoint:?}");
    let log = pod.log().await;
    assert!(!log.contains(MISSED), "{log}");
    assert_eq!(pod.restarts().await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_there_at_the_agents_first_instruction() {
    let cluster = Cluster::shared().await;
    let tenant = tenant(&cluster, KEY).await;
    let begun = Instant::now();
    let pod = AgentPod::start(&cluster, &tenant).await;
    let seconds = begun.elapsed().as_secs_f64();
    figure(&format!("the pod was Ready {seconds:.1} s after its creation"));
    figure(&format!(
        "the sidecar in it holds {}",
        resident(pod.pid(SIDECAR).await)
    ));
    let first = format!("first: file={KEY} endpoint={KEY}\n");
    pod.await_log(|log| log.starts_with(&first)).await;
    assert_eq!(pod.restarts().await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_the_running_pod_at_once() {
    let cluster = Cluster::shared().await;
    let tenant = tenant(&cluster, KEY).await;
    let pod = AgentPod::start(&cluster, &tenant).await;
    let readers = pod.read(KEY).await;
    let mut times = Vec::new();
    for number in 0..5 {
        let key = format!("{KEY}-{number}");
        sleep(APART).await;
        let begun = rotate(&tenant, &readers, &key).await;
        times.push(delivered(&readers, &key, begun).await);
        pod.await_log(|log| log.ends_with(&format!("now: {key}\n"))).await;
    }
    figure(&format!("rotations took {times:.2?} with a refresh"));
    assert_unnoticed(&pod, &readers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_a_pod_that_nobody_refreshes_in_the_kubelets_own_time() {
    let cluster = Cluster::shared().await;
    let tenant = tenant(&cluster, KEY).await;
    // As the webhook makes it, but for the spelling of one argument: the controller does not know it.
    let pods = Api::<Pod>::namespaced(cluster.installation.client(), &tenant.namespace);
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let injected = pods
        .create(&dry_run, &object(reading_agent(json!({}))))
        .await
        .unwrap();
    let mut unknown = json!({ "metadata": { "name": AGENT }, "spec": injected.spec });
    let arguments = unknown["spec"]["initContainers"][0]["args"]
        .as_array_mut()
        .unwrap();
    let source = arguments.pop().unwrap();
    *arguments.last_mut().unwrap() = format!("--source={}", source.as_str().unwrap()).into();
    let pod = AgentPod::create(&cluster, &tenant, unknown).await;
    pod.await_ready().await;
    let readers = pod.read(KEY).await;
    let key = format!("{KEY}-later");
    sleep(APART).await;
    let begun = rotate(&tenant, &readers, &key).await;
    let time = delivered(&readers, &key, begun).await.as_secs_f64();
    figure(&format!("a rotation took {time:.1} s without a refresh"));
    assert_unnoticed(&pod, &readers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_comes_back_and_the_agent_reads_meanwhile() {
    let cluster = Cluster::shared().await;
    let tenant = tenant(&cluster, KEY).await;
    let pod = AgentPod::start(&cluster, &tenant).await;
    let readers = pod.read(KEY).await;
    let pid = pod.pid(SIDECAR).await;
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    eventually("another sidecar, started", SOON, async || {
        let sidecar = pod.container(SIDECAR).await;
        if sidecar.restart_count == 1 && sidecar.started == Some(true) {
            Ok(())
        } else {
            Err(format!("{sidecar:?}"))
        }
    })
    .await;
    let key = format!("{KEY}-after");
    let begun = rotate(&tenant, &readers, &key).await;
    delivered(&readers, &key, begun).await;

    let (file, _) = readers.tallies();
    assert_eq!(file.bad(), 0, "{file:?}");
    let log = pod.log().await;
    assert!(!log.contains(MISSED), "{log}");
    assert_eq!(pod.restarts().await, (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_the_sidecar_completes() {
    let cluster = Cluster::shared().await;
    let tenant = tenant(&cluster, KEY).await;
    let jobs = Api::<Job>::namespaced(cluster.installation.client(), &tenant.namespace);
    let mut template: Value = agent("template", FIRST);
    template["metadata"] = json!({ "annotations": { INJECT_ANNOTATION: ACCESS } });
    template["spec"]["restartPolicy"] = "Never".into();
    let job = json!({ "metadata": { "name": "agent" }, "spec": { "backoffLimit": 0, "template": template } });
    create(&jobs, &object(job)).await;
    eventually("a complete Job", SOON, async || {
        let status = jobs.get("agent").await.unwrap().status.unwrap_or_default();
        if status.succeeded == Some(1) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    let arguments = format!(
        "logs --namespace {} job/agent --container {AGENT}",
        tenant.namespace
    );
    let log = cluster.installation.run_kubectl(&arguments).await.unwrap();
    assert_eq!(log, format!("first: file={KEY} endpoint={KEY}\n"));
}
