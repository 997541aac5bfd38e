//! The harness itself, on real control planes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Resource, ResourceExt};
use llmwarden_tests::process::is_running;
use llmwarden_tests::{ControlPlane, Options, Process, Signal, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_mins(1);

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name }, "data": { "key": "value" } })).unwrap()
}

async fn client_of(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_run_side_by_side_and_share_nothing() {
    let (one, other) = tokio::join!(ControlPlane::start(), ControlPlane::start());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(one.url(), other.url());

    let maps = Api::<ConfigMap>::default_namespaced(one.client());
    maps.create(&PostParams::default(), &config_map("only-here"))
        .await
        .unwrap();
    let elsewhere = Api::<ConfigMap>::default_namespaced(other.client());
    assert!(elsewhere.get_opt("only-here").await.unwrap().is_none());

    let output = one
        .kubectl()
        .args(["get", "configmap", "only-here", "-o", "name"])
        .output()
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "configmap/only-here\n",
        "{output:?}"
    );

    let (dir, pids) = (one.work_dir().to_owned(), one.pids());
    drop(one);
    assert!(!dir.exists());
    assert!(pids.iter().all(|pid| !is_running(*pid).unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_custom_resource_owns_goes_with_it() {
    let crd = json!({
        "metadata": { "name": "widgets.example.com" },
        "spec": {
            "group": "example.com",
            "names": { "kind": "Widget", "plural": "widgets" },
            "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object" } },
            }],
        },
    });
    let options = Options {
        crds: vec![serde_json::from_value(crd).unwrap()],
        ..Options::default()
    };
    let cluster = ControlPlane::start_with(options).await.unwrap();
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Widget"));
    let widgets = Api::<DynamicObject>::default_namespaced_with(cluster.client(), &kind);
    let widget = widgets
        .create(&PostParams::default(), &DynamicObject::new("owner", &kind))
        .await
        .unwrap();

    let maps = Api::<ConfigMap>::default_namespaced(cluster.client());
    let mut part = config_map("part");
    part.metadata.owner_references = Some(vec![widget.controller_owner_ref(&kind).unwrap()]);
    maps.create(&PostParams::default(), &part).await.unwrap();

    widgets.delete("owner", &DeleteParams::default()).await.unwrap();
    eventually("the end of what it owned", SOON, async || {
        match maps.get_opt("part").await {
            Ok(None) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_may_only_do_what_a_role_allows() {
    let cluster = ControlPlane::shared().await.unwrap();
    let kubeconfig = cluster.kubeconfig_for("robots", "marvin").await.unwrap();
    let client = client_of(&kubeconfig).await;
    // That it is known and only lacks the right tells a denial from a token that isn't taken.
    let denied = Api::<Secret>::namespaced(client, "robots")
        .list(&ListParams::default())
        .await
        .unwrap_err();
    let kube::Error::Api(status) = denied else {
        panic!("{denied}")
    };
    assert_eq!(status.code, 403);
    assert!(
        status.message.contains("system:serviceaccount:robots:marvin"),
        "{}",
        status.message
    );

    let grant = [
        "create",
        "rolebinding",
        "-n",
        "robots",
        "view",
        "--clusterrole=admin",
        "--serviceaccount=robots:marvin",
    ];
    let granted = cluster.kubectl().args(grant).output().await.unwrap();
    assert!(granted.status.success(), "{granted:?}");
    let secrets = Api::<Secret>::namespaced(client_of(&kubeconfig).await, "robots");
    eventually("the right to list Secrets", SOON, async || {
        secrets.list(&ListParams::default()).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_api_server_has_its_data() {
    let cluster = ControlPlane::start().await.unwrap();
    let maps = Api::<ConfigMap>::default_namespaced(cluster.client());
    let before = maps
        .create(&PostParams::default(), &config_map("lasting"))
        .await
        .unwrap();

    cluster.stop_api_server();
    assert!(maps.get("lasting").await.is_err());
    cluster.start_api_server().await.unwrap();
    let after = maps.get("lasting").await.unwrap();
    assert_eq!(after.uid(), before.uid());
    assert!(cluster.start_api_server().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_component_outlives_a_killed_test() {
    let dir = tempfile::tempdir().unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_cluster"));
    let helper = Process::spawn("cluster", &command, dir.path().join("cluster.log")).unwrap();
    let line = helper
        .await_log(SOON * 2, |line| line.starts_with('['))
        .await
        .unwrap();
    let (work_dir, pids): (String, Vec<u32>) = serde_json::from_str(&line).unwrap();
    assert!(
        pids.len() >= 2 && pids.iter().all(|pid| is_running(*pid).unwrap()),
        "{pids:?}"
    );
    assert!(Path::new(&work_dir).exists());

    helper.signal(Signal::SIGKILL).unwrap();
    eventually("the end of its cluster", SOON, async || {
        let left: Vec<_> = pids.iter().filter(|pid| is_running(**pid).unwrap()).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?} run"))
        }
    })
    .await;

    // What it could not remove is removed by the next cluster that starts: this one, or another test's, which may be at it still.
    drop(ControlPlane::start().await.unwrap());
    eventually("the end of its directory", SOON, async || {
        if Path::new(&work_dir).exists() {
            Err("it is there")
        } else {
            Ok(())
        }
    })
    .await;
}
