//! What becomes of running pods when something about their access changes, and every way to get the key.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use llmwarden_proto::names::{API_KEY, INJECT_ANNOTATION};
use llmwarden_tests::installation::ENABLED_LABEL;
use llmwarden_tests::{eventually, node};
use serde_json::{Value, json};

use crate::support::{
    ACCESS, AgentPod, Cluster, FIRST, SOON, agent, figure, is_ready, reading_agent, restrict, tenant,
};
use crate::tenant::{Tenant, create, object, patch};

const KEY: &str = "sk-ant-test-e2e-access";
/// How long a change of an access takes to a running pod at most: the grace here is a second, in whole ones two, a refresh
/// takes less, and is asked for again after two. A kubelet that nobody asks takes a minute.
const SECONDS: Duration = Duration::from_secs(6);
/// Asks the endpoint for the key.
const ASK: &str = r#"wget -q -O - --header "$(cat /var/run/llmwarden/auth-header)" http://127.0.0.1:9470/v1/keys/agent/apiKey"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_key_goes_from_a_running_pod_and_comes_back_as_its_access_does() {
    let cluster = Cluster::shared().await;
    let tenant = tenant(&cluster, KEY).await;
    let script = format!("{FIRST}\nexec sleep 100000");
    let pod = AgentPod::create(&cluster, &tenant, agent("agent", &script)).await;
    pod.await_ready().await;
    pod.await_file(Some(KEY)).await;
    let allow = async |value: Value| {
        let label = json!({ "metadata": { "labels": { ENABLED_LABEL: value } } });
        patch(&tenant.namespaces(), &tenant.namespace, label).await;
    };
    let await_file = async |key: Option<&str>, begun: Instant, what: &str| {
        pod.await_file(key).await;
        let took = begun.elapsed();
        figure(&format!("{what} after {:.1} s", took.as_secs_f64()));
        assert!(took < SECONDS, "{what} after {took:?}");
    };
    for (gone, back) in [("no longer allowed", "allowed again"), ("deleted", "made anew")] {
        let begun = Instant::now();
        if gone == "deleted" {
            tenant
                .accesses()
                .delete(ACCESS, &DeleteParams::default())
                .await
                .unwrap();
        } else {
            allow(Value::Null).await;
        }
        await_file(
            None,
            begun,
            &format!("access {gone}: the key was gone from the pod"),
        )
        .await;
        let answer = pod.run(ASK).await;
        assert!(answer.contains("410"), "{answer}");

        let begun = Instant::now();
        if gone == "deleted" {
            tenant.create_access(ACCESS, json!({})).await;
        } else {
            allow(json!("true")).await;
        }
        await_file(
            Some(KEY),
            begun,
            &format!("access {back}: the key was back in the pod"),
        )
        .await;
        assert_eq!(pod.run(ASK).await, KEY);
        assert_eq!(pod.restarts().await, (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_there_first_starts_as_soon_as_there_is_a_key() {
    let cluster = Cluster::shared().await;
    let tenant = Tenant::names(&cluster.installation);
    tenant.create_namespace(true).await;
    restrict(&tenant).await;
    tenant.create_provider(json!({})).await;
    let access = tenant.create_access(ACCESS, json!({})).await;
    tenant.await_observed(&access).await;
    let pod = AgentPod::create(&cluster, &tenant, reading_agent(json!({}))).await;
    // What it waits for is said where its owner looks.
    let events = format!("events --namespace {} --for pod/{}", tenant.namespace, pod.name);
    eventually("the probe's words", SOON, async || {
        let events = cluster.installation.run_kubectl(&events).await.unwrap();
        let line = events.lines().find(|line| line.contains("Startup probe failed"));
        let line = line.map(str::to_owned);
        line.filter(|line| line.contains(ACCESS)).ok_or(events)
    })
    .await;
    let begun = Instant::now();
    tenant.create_master(json!({ "api-key": KEY })).await;
    let first = format!("first: file={KEY} endpoint={KEY}\n");
    pod.await_log(|log| log.starts_with(&first)).await;
    let seconds = begun.elapsed().as_secs_f64();
    figure(&format!(
        "a waiting agent ran {seconds:.1} s after the master key came"
    ));
    assert_eq!(pod.restarts().await, (0, 0));
}

/// Two accesses, of two providers, in each of two pods: as variable, in a directory elsewhere, as file and from the endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn two_agents_get_two_keys_in_every_way() {
    let cluster = Cluster::shared().await;
    let tenant = tenant(&cluster, KEY).await;
    let mut other = Tenant::new(&cluster.installation, "sk-test-e2e-other").await;
    other.namespace.clone_from(&tenant.namespace);
    let injection = json!({
        "env": [{ "name": "OTHER_API_KEY", "secretKey": "apiKey" }],
        "volume": { "mountPath": "/etc/other" },
    });
    other
        .create_access("other", json!({ "injection": injection }))
        .await;
    other.await_ready("other").await;
    let script = format!(
        "{FIRST}\necho \"others: $ANTHROPIC_API_KEY $OTHER_API_KEY $(cat /etc/other/apiKey) $(cat $dir/other/apiKey)\"\nexec sleep 100000"
    );
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let mut pod = agent(name, &script);
        pod["metadata"]["annotations"][INJECT_ANNOTATION] = format!("{ACCESS},other").into();
        pods.push(AgentPod::create(&cluster, &tenant, pod).await);
    }
    let other_key = "sk-test-e2e-other";
    let expected =
        format!("first: file={KEY} endpoint={KEY}\nothers: {KEY} {other_key} {other_key} {other_key}\n");
    for pod in &pods {
        pod.await_log(|log| log == expected).await;
    }
    let (changed, other_changed) = (format!("{KEY}-2"), format!("{other_key}-2"));
    tenant.set_master(&changed).await;
    other.set_master(&other_changed).await;
    for pod in &pods {
        pod.await_file(Some(&changed)).await;
        eventually("the other key", SOON, async || {
            let read = pod
                .run("cat /etc/other/apiKey /var/run/llmwarden/other/apiKey")
                .await;
            llmwarden_tests::wait::same(&read, &other_changed.repeat(2))
        })
        .await;
        assert_eq!(pod.run(ASK).await, changed);
        assert_eq!(pod.restarts().await, (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_pods_start_at_once_and_all_get_the_next_key() {
    const PODS: usize = 30;
    // The machine has enough to do.
    let cluster = Cluster::alone().await;
    let tenant = tenant(&cluster, KEY).await;
    let labels = json!({ "app": "agents" });
    let mut template = agent(
        "template",
        &format!("{FIRST}\n[ \"$file$endpoint\" = {KEY}{KEY} ] && exec sleep 100000"),
    );
    template["metadata"] = json!({ "labels": labels, "annotations": { INJECT_ANNOTATION: ACCESS } });
    let deployment = json!({
        "metadata": { "name": "agents" },
        "spec": { "replicas": PODS, "selector": { "matchLabels": labels }, "template": template },
    });
    let deployments = Api::<Deployment>::namespaced(cluster.installation.client(), &tenant.namespace);
    let begun = Instant::now();
    create(&deployments, &object(deployment)).await;
    let pods = Api::<Pod>::namespaced(cluster.installation.client(), &tenant.namespace);
    let all = eventually("ready pods", SOON * 4, async || {
        let all = pods.list(&ListParams::default()).await.unwrap().items;
        let ready = all.iter().filter(|pod| is_ready(pod)).count();
        if ready == PODS {
            Ok(all)
        } else {
            Err(format!("{ready} of {PODS}"))
        }
    })
    .await;
    let seconds = begun.elapsed().as_secs_f64();
    figure(&format!(
        "{PODS} pods were Ready {seconds:.1} s after their Deployment's creation"
    ));
    let restarts = all.iter().flat_map(|pod| {
        let status = pod.status.as_ref().unwrap();
        let containers = [&status.init_container_statuses, &status.container_statuses];
        containers
            .into_iter()
            .flatten()
            .flatten()
            .map(|container| container.restart_count)
    });
    assert_eq!(restarts.sum::<i32>(), 0);

    let changed = format!("{KEY}-2");
    let begun = Instant::now();
    tenant.set_master(&changed).await;
    let files = all.iter().map(|pod| {
        let dir = node::empty_dir(pod.metadata.uid.as_ref().unwrap(), "llmwarden");
        dir.join(ACCESS).join(API_KEY)
    });
    let mut late: Vec<_> = files.collect();
    eventually("the next key in all", SOON, async || {
        late.retain(|file| std::fs::read_to_string(file).ok().as_ref() != Some(&changed));
        if late.is_empty() {
            Ok(())
        } else {
            Err(format!("{} without", late.len()))
        }
    })
    .await;
    let seconds = begun.elapsed().as_secs_f64();
    figure(&format!(
        "the next key was in all {PODS} pods after {seconds:.2} s"
    ));
    deployments
        .delete("agents", &DeleteParams::default())
        .await
        .unwrap();
}
