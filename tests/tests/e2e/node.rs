//! The node itself.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use llmwarden_tests::eventually;
use llmwarden_tests::image::BUSYBOX;
use serde_json::json;

use crate::support::{Cluster, SOON, figure};
use crate::tenant::{create, object};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reaches_the_api_server_by_its_service() {
    let cluster = Cluster::shared().await;
    let seconds = cluster.until_ready.as_secs_f64();
    figure(&format!("the node was Ready {seconds:.1} s after its start"));
    let pods = Api::<Pod>::namespaced(cluster.installation.client(), "default");
    let script =
        "until echo | nc -w 1 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT; do usleep 100000; done";
    let pod = json!({
        "metadata": { "name": "service" },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "client",
                "image": BUSYBOX,
                "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "sh", "-c", script],
            }],
        },
    });
    create(&pods, &object(pod)).await;
    eventually("the pod's end", SOON, async || {
        let status = pods.get("service").await.unwrap().status.unwrap_or_default();
        match status.phase.as_deref() {
            Some("Succeeded") => Ok(()),
            _ => Err(serde_json::to_string(&status).unwrap()),
        }
    })
    .await;
}
