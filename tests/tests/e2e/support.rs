//! The node that all tests share, and pods as the injection will make them.

use std::io::Write as _;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use llmwarden_proto::names::{self, API_KEY};
use llmwarden_tests::readers::Readers;
use llmwarden_tests::{Image, Installation, Node, Options, binaries, eventually, node};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::task::{JoinError, spawn_blocking};

use crate::tenant::{Tenant, create, object, patch};

/// More than anything takes but what waits for the kubelet's own time.
pub const SOON: Duration = Duration::from_mins(1);
/// The kubelet looks at a Secret again after a minute, and then at the pod.
pub const KUBELETS_TIME: Duration = Duration::from_mins(3);

/// The access of every test's namespace.
pub const ACCESS: &str = "agent";
/// The sidecar's container.
pub const SIDECAR: &str = "llmwarden";
/// The agent's container.
pub const AGENT: &str = "agent";
const DELIVERY: &str = "llmwarden";

/// Asks for file and endpoint before anything else.
pub const FIRST: &str = r#"
dir=/var/run/llmwarden
file=$(cat $dir/agent/apiKey)
endpoint=$(wget -q -O - --header "$(cat $dir/auth-header)" http://127.0.0.1:9470/v1/keys/agent/apiKey)
echo "first: file=$file endpoint=$endpoint"
"#;
/// Reads the file every 10 ms, and says what should never be seen.
pub const FOREVER: &str = r#"
while usleep 10000; do
    key=$(cat $dir/agent/apiKey) && [ -n "$key" ] || echo "missed a read"
    [ "$key" = "$last" ] || echo "now: $key"
    last=$key
done
"#;

/// Prints a figure, also of a test that passes.
pub fn figure(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What [`FOREVER`] says then.
pub const MISSED: &str = "missed a read";

/// llmwarden on a control plane with a node, for all tests of this program.
pub struct Cluster {
    // In the order in which they stop.
    pub node: Node,
    pub installation: Installation,
    pub sidecar: Image,
    pub until_ready: Duration,
}

/// What keeps everything for a look when the test that has it fails.
pub struct Shared(&'static Cluster);

impl Deref for Shared {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.installation.keep_if_panicking();
    }
}

impl Cluster {
    pub async fn shared() -> Shared {
        // In a task, whose panic is kept: a node that did not start is not started again by the next test.
        static SHARED: OnceCell<Result<Cluster, JoinError>> = OnceCell::const_new();
        let start = || Handle::current().block_on(Self::start());
        let started = SHARED.get_or_init(|| spawn_blocking(start));
        Shared(started.await.as_ref().expect("the node starts"))
    }

    async fn start() -> Self {
        let options = Options {
            node_address: Some(node::address().unwrap()),
            ..Options::default()
        };
        let installation = Installation::start_on(options, &[], "info").await.unwrap();
        let begun = Instant::now();
        let node = Node::start(&installation).await.unwrap();
        let until_ready = begun.elapsed();
        let sidecar = Image::product(&binaries::sidecar().unwrap(), node.images())
            .await
            .unwrap();
        node.load(&sidecar).await.unwrap();
        Self {
            node,
            installation,
            sidecar,
            until_ready,
        }
    }
}

/// A namespace under the `restricted` standard, with an access that has `key`.
pub async fn tenant(cluster: &Cluster, key: &str) -> Tenant {
    let tenant = Tenant::new(&cluster.installation, key).await;
    let restricted =
        json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "restricted" } } });
    patch(&tenant.namespaces(), &tenant.namespace, restricted).await;
    tenant.create_access(ACCESS, json!({})).await;
    tenant.await_ready(ACCESS).await;
    tenant
}

/// The spec of a pod whose agent runs `script` beside the sidecar.
pub fn pod_spec(cluster: &Cluster, script: &str) -> Value {
    let security = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
    });
    let limits = json!({ "cpu": "1", "memory": "64Mi" });
    json!({
        "automountServiceAccountToken": false,
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        "terminationGracePeriodSeconds": 10,
        "initContainers": [{
            "name": SIDECAR,
            "image": cluster.sidecar.reference(),
            "imagePullPolicy": "Never",
            "restartPolicy": "Always",
            "args": ["--source", format!("{ACCESS}=/var/run/secrets/llmwarden/{ACCESS}")],
            "startupProbe": {
                "httpGet": { "path": "/startupz", "port": names::STATUS_PORT },
                "periodSeconds": 1,
                "failureThreshold": 100_000,
            },
            "resources": { "requests": { "cpu": "5m", "memory": "16Mi" }, "limits": { "cpu": "1", "memory": "32Mi" } },
            "securityContext": security,
            "volumeMounts": [
                { "name": DELIVERY, "mountPath": names::DELIVERY_DIR },
                { "name": "companion", "mountPath": format!("/var/run/secrets/llmwarden/{ACCESS}"), "readOnly": true },
            ],
        }],
        "containers": [{
            "name": AGENT,
            "image": llmwarden_tests::image::BUSYBOX,
            "imagePullPolicy": "Never",
            "command": ["/bin/busybox", "sh", "-c", script],
            "resources": { "requests": { "cpu": "5m", "memory": "16Mi" }, "limits": limits },
            "securityContext": merged(&security, json!({ "runAsUser": 1001 })),
            "volumeMounts": [{ "name": DELIVERY, "mountPath": names::DELIVERY_DIR, "readOnly": true }],
        }],
        "volumes": [
            { "name": DELIVERY, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
            {
                "name": "companion",
                "secret": { "secretName": names::companion(ACCESS), "optional": true, "defaultMode": 0o444 },
            },
        ],
    })
}

fn merged(base: &Value, change: Value) -> Value {
    let mut merged = base.clone();
    crate::tenant::merge(&mut merged, change);
    merged
}

/// A pod with an agent that reads on and on, and outside of it everything to look at it with.
pub struct AgentPod<'a> {
    pub cluster: &'a Cluster,
    pub pods: Api<Pod>,
    name: String,
    namespace: String,
}

impl<'a> AgentPod<'a> {
    /// Creates it and waits until it is ready.
    pub async fn start(cluster: &'a Cluster, tenant: &Tenant) -> Self {
        let pod = Self::create(cluster, tenant).await;
        pod.await_ready().await;
        pod
    }

    /// Creates it.
    pub async fn create(cluster: &'a Cluster, tenant: &Tenant) -> Self {
        let pods = Api::namespaced(cluster.installation.client(), &tenant.namespace);
        let name = "agent".to_owned();
        let spec = pod_spec(cluster, &format!("{FIRST}{FOREVER}"));
        create(
            &pods,
            &object(json!({ "metadata": { "name": name }, "spec": spec })),
        )
        .await;
        Self {
            cluster,
            pods,
            name,
            namespace: tenant.namespace.clone(),
        }
    }

    pub async fn get(&self) -> Pod {
        self.pods.get(&self.name).await.unwrap()
    }

    /// Waits until all of its containers are ready.
    pub async fn await_ready(&self) {
        eventually("a Ready pod", SOON, async || {
            let status = self.get().await.status.unwrap_or_default();
            let ready = status
                .conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            if ready {
                Ok(())
            } else {
                Err(serde_json::to_string(&status).unwrap())
            }
        })
        .await;
    }

    /// What the status says of a container.
    pub async fn container(&self, name: &str) -> ContainerStatus {
        let status = self.get().await.status.unwrap();
        let all = [status.init_container_statuses, status.container_statuses];
        let mut all = all.into_iter().flatten().flatten();
        all.find(|container| container.name == name).unwrap()
    }

    /// How often sidecar and agent were restarted.
    pub async fn restarts(&self) -> (i32, i32) {
        let sidecar = self.container(SIDECAR).await.restart_count;
        (sidecar, self.container(AGENT).await.restart_count)
    }

    /// The process id of a container's first process.
    pub async fn pid(&self, container: &str) -> u32 {
        let id = self.container(container).await.container_id.unwrap();
        self.cluster.node.container_pid(&id).await.unwrap()
    }

    /// What the agent has printed.
    pub async fn log(&self) -> String {
        let arguments = format!(
            "logs --namespace {} {} --container {AGENT}",
            self.namespace, self.name
        );
        self.cluster.installation.run_kubectl(&arguments).await.unwrap()
    }

    /// Waits until what the agent has printed is as `wanted`.
    pub async fn await_log(&self, wanted: impl Fn(&str) -> bool) {
        eventually("what the agent prints", SOON, async || {
            let log = self.log().await;
            if wanted(&log) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// What the sidecar delivers, as the machine sees it.
    pub async fn delivery_dir(&self) -> PathBuf {
        node::empty_dir(&self.get().await.metadata.uid.unwrap(), DELIVERY)
    }

    /// Readers of the pod's file and endpoint that never stop.
    pub async fn read(&self, key: &str) -> Readers {
        let dir = self.delivery_dir().await;
        let url = format!(
            "http://127.0.0.1:{}/v1/keys/{ACCESS}/{API_KEY}",
            names::ENDPOINT_PORT
        );
        let readers = Readers::start_beside(
            Some(self.pid(AGENT).await),
            dir.join(ACCESS).join(API_KEY),
            &url,
            &dir.join(names::AUTH_HEADER_FILE),
            key,
        )
        .unwrap();
        readers.saw(key, SOON).await.unwrap();
        readers
    }

    /// Has the kubelet look at the pod's volumes now, as the controller will.
    pub async fn refresh(&self, version: &str) {
        let change = json!({ "metadata": { "annotations": { names::REFRESH_ANNOTATION: version } } });
        self.pods
            .patch_status(&self.name, &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap();
    }
}
