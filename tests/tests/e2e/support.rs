//! The node that all tests share, llmwarden on it as its chart installs it, and pods that its webhook injects.

use std::io::Write as _;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use llmwarden_proto::names::{self, API_KEY};
use llmwarden_tests::installation::SYSTEM;
use llmwarden_tests::readers::Readers;
use llmwarden_tests::{Image, Installation, Node, Options, binaries, eventually, node};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::task::{JoinError, spawn_blocking};

use crate::tenant::{Tenant, create, merge, object, patch};

/// More than anything takes but what waits for the kubelet's own time.
pub const SOON: Duration = Duration::from_mins(1);
/// The kubelet looks at a Secret again after a minute, and then at the pod.
pub const KUBELETS_TIME: Duration = Duration::from_mins(3);

/// The access of every test's namespace.
pub const ACCESS: &str = "agent";
/// The agent's container.
pub const AGENT: &str = "agent";
/// The users of kagent's images.
pub const USERS: [u32; 2] = [65532, 1001];

/// Asks for file and endpoint before anything else.
pub const FIRST: &str = r#"
dir=/var/run/llmwarden
file=$(cat $dir/agent/apiKey)
endpoint=$(wget -q -O - --header "$(cat $dir/auth-header)" http://127.0.0.1:9470/v1/keys/agent/apiKey)
echo "first: file=$file endpoint=$endpoint"
"#;
/// Reads the file every 10 ms, and says what should never be seen.
const FOREVER: &str = r#"
while usleep 10000; do
    key=$(cat $dir/agent/apiKey) && [ -n "$key" ] || echo "missed a read"
    [ "$key" = "$last" ] || echo "now: $key"
    last=$key
done
"#;
/// What [`FOREVER`] says then.
pub const MISSED: &str = "missed a read";

/// Prints a figure, also of a test that passes.
pub fn figure(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// llmwarden on a control plane with a node, for all tests of this program.
pub struct Cluster {
    // In the order in which they stop.
    pub node: Node,
    pub installation: Installation,
    pub until_ready: Duration,
}

/// Tests run side by side, but for those that stop what the others need.
static TURNS: RwLock<()> = RwLock::const_new(());

#[expect(dead_code, reason = "they are held")]
enum Turn {
    Together(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// What keeps everything for a look when the test that has it fails.
pub struct Shared {
    cluster: &'static Cluster,
    _turn: Turn,
}

impl Deref for Shared {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.cluster.installation.keep_if_panicking();
    }
}

impl Cluster {
    /// Beside other tests.
    pub async fn shared() -> Shared {
        let turn = Turn::Together(TURNS.read().await);
        Self::in_turn(turn).await
    }

    /// While no other test has it.
    pub async fn alone() -> Shared {
        let turn = Turn::Alone(TURNS.write().await);
        Self::in_turn(turn).await
    }

    async fn in_turn(turn: Turn) -> Shared {
        // In a task, whose panic is kept: a node that did not start is not started again by the next test.
        static SHARED: OnceCell<Result<Cluster, JoinError>> = OnceCell::const_new();
        let start = || Handle::current().block_on(Self::start());
        let started = SHARED.get_or_init(|| spawn_blocking(start));
        Shared {
            cluster: started.await.as_ref().expect("the node starts"),
            _turn: turn,
        }
    }

    async fn start() -> Self {
        let options = Options {
            node_address: Some(node::address().unwrap()),
            ..Options::default()
        };
        let installation = Installation::deployed(
            options,
            &[
                "--set=controller.image.repository=localhost/llmwarden-controller",
                "--set=controller.image.tag=test",
                "--set=sidecar.image.repository=localhost/llmwarden-sidecar",
                "--set=sidecar.image.tag=test",
                "--set=denialGrace=1s",
            ],
        );
        let installation = installation.await.unwrap();
        let dir = installation.work_dir();
        let mut images = Vec::new();
        for program in [binaries::controller(), binaries::sidecar()] {
            images.push(Image::product(&program.unwrap(), dir).await.unwrap());
        }
        for user in USERS {
            images.push(Image::agent(user, dir).await.unwrap());
        }
        let program = binaries::go_client().unwrap();
        images.push(Image::program(&program, USERS[0], dir).await.unwrap());
        let begun = Instant::now();
        let node = Node::start(&installation, &images).await.unwrap();
        let until_ready = begun.elapsed();
        let cluster = Self {
            node,
            installation,
            until_ready,
        };
        cluster.await_webhook().await;
        figure(&format!(
            "llmwarden answered {:.1} s after the node's start",
            begun.elapsed().as_secs_f64()
        ));
        cluster
    }

    /// Has the controller run in this many replicas, and waits until nothing is left of more.
    pub async fn scale(&self, replicas: usize) {
        let client = self.installation.client();
        let deployments = Api::<Deployment>::namespaced(client.clone(), SYSTEM);
        let change = json!({ "spec": { "replicas": replicas } });
        patch(&deployments, "llmwarden-controller", change).await;
        let pods = Api::<Pod>::namespaced(client, SYSTEM);
        eventually("the controller's pods", SOON, async || {
            pods.list(&ListParams::default()).await.unwrap().items.len() == replicas
        })
        .await;
    }

    /// Waits until the webhook answers for all replicas: what it is asked for does not exist, which it says.
    pub async fn await_webhook(&self) {
        let deployments = Api::<Deployment>::namespaced(self.installation.client(), SYSTEM);
        let pods = Api::<Pod>::namespaced(self.installation.client(), "default");
        let probe = object(json!({
            "metadata": { "name": "probe", "annotations": { names::INJECT_ANNOTATION: "gone" } },
            "spec": { "containers": [{ "name": "agent", "image": "agent" }] },
        }));
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        eventually("an answer of the webhook", SOON * 2, async || {
            let error = pods.create(&dry_run, &probe).await.unwrap_err().to_string();
            let status = deployments.get("llmwarden-controller").await.unwrap().status;
            let available = status.and_then(|status| status.available_replicas);
            if error.contains("does not exist") && available == Some(2) {
                Ok(())
            } else {
                let own = Api::<Pod>::namespaced(self.installation.client(), SYSTEM);
                let own = own.list(&ListParams::default()).await.unwrap().items;
                let containers = own.into_iter().filter_map(|pod| pod.status?.container_statuses);
                Err(format!(
                    "{available:?} available, {error}, {:?}",
                    containers.collect::<Vec<_>>()
                ))
            }
        })
        .await;
    }
}

/// A namespace under the `restricted` standard, with an access that has `key`.
pub async fn tenant(cluster: &Cluster, key: &str) -> Tenant {
    let tenant = Tenant::new(&cluster.installation, key).await;
    restrict(&tenant).await;
    tenant.create_access(ACCESS, json!({})).await;
    tenant.await_ready(ACCESS).await;
    tenant
}

/// Puts a namespace under the `restricted` standard.
pub async fn restrict(tenant: &Tenant) {
    let restricted =
        json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "restricted" } } });
    patch(&tenant.namespaces(), &tenant.namespace, restricted).await;
}

/// A pod whose agent runs `script`, with no word of a sidecar but the annotation. Valid under the `restricted` standard.
pub fn agent(name: &str, script: &str) -> Value {
    json!({
        "metadata": { "name": name, "annotations": { names::INJECT_ANNOTATION: ACCESS } },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            // A shell that is a container's first process does not hear SIGTERM.
            "terminationGracePeriodSeconds": 1,
            "containers": [container(AGENT, USERS[1], script)],
        },
    })
}

/// A container that runs `script` as this user.
pub fn container(name: &str, user: u32, script: &str) -> Value {
    json!({
        "name": name,
        "image": format!("localhost/agent-{user}:test"),
        "imagePullPolicy": "Never",
        "command": ["/bin/busybox", "sh", "-c", script],
        "resources": { "requests": { "cpu": "5m", "memory": "16Mi" }, "limits": { "cpu": "1", "memory": "64Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
        },
    })
}

/// [`agent`], with an agent that reads on and on, changed as the merge patch says.
pub fn reading_agent(change: Value) -> Value {
    let mut pod = agent(AGENT, &format!("{FIRST}{FOREVER}"));
    merge(&mut pod, change);
    pod
}

/// A pod with an agent, and outside of it everything to look at it with.
pub struct AgentPod<'a> {
    pub cluster: &'a Cluster,
    pub pods: Api<Pod>,
    pub name: String,
    namespace: String,
}

impl<'a> AgentPod<'a> {
    /// One whose agent reads on and on; waits until it is ready.
    pub async fn start(cluster: &'a Cluster, tenant: &Tenant) -> Self {
        let pod = Self::create(cluster, tenant, reading_agent(json!({}))).await;
        pod.await_ready().await;
        pod
    }

    /// Creates one.
    pub async fn create(cluster: &'a Cluster, tenant: &Tenant, pod: Value) -> Self {
        let pods = Api::namespaced(cluster.installation.client(), &tenant.namespace);
        let created = create(&pods, &object(pod)).await;
        Self::of(cluster, tenant, &created)
    }

    /// One that is there.
    pub fn of(cluster: &'a Cluster, tenant: &Tenant, pod: &Pod) -> Self {
        Self {
            cluster,
            pods: Api::namespaced(cluster.installation.client(), &tenant.namespace),
            name: pod.name_any(),
            namespace: tenant.namespace.clone(),
        }
    }

    pub async fn get(&self) -> Pod {
        self.pods.get(&self.name).await.unwrap()
    }

    /// Waits until all of its containers are ready.
    pub async fn await_ready(&self) {
        eventually("a Ready pod", SOON, async || {
            let pod = self.get().await;
            if is_ready(&pod) {
                Ok(())
            } else {
                Err(serde_json::to_string(&pod.status).unwrap())
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
        let sidecar = self.container(names::SIDECAR).await.restart_count;
        (sidecar, self.container(AGENT).await.restart_count)
    }

    /// The process id of a container's first process.
    pub async fn pid(&self, container: &str) -> u32 {
        let id = self.container(container).await.container_id.unwrap();
        self.cluster.node.container_pid(&id).await.unwrap()
    }

    /// What the agent has printed.
    pub async fn log(&self) -> String {
        self.log_of(AGENT).await
    }

    /// What a container has printed.
    pub async fn log_of(&self, container: &str) -> String {
        let arguments = format!(
            "logs --namespace {} {} --container {container}",
            self.namespace, self.name
        );
        self.cluster
            .installation
            .run_kubectl(&arguments)
            .await
            .unwrap_or_default()
    }

    /// Waits until what the agent has printed is as `wanted`.
    pub async fn await_log(&self, wanted: impl Fn(&str) -> bool) {
        eventually("what the agent prints", SOON, async || {
            let log = self.log().await;
            if wanted(&log) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// What a script prints in the agent's container, errors included.
    pub async fn run(&self, script: &str) -> String {
        self.run_in(AGENT, script).await
    }

    /// What a script prints in a container, errors included.
    pub async fn run_in(&self, container: &str, script: &str) -> String {
        let mut kubectl = self.cluster.installation.kubectl();
        kubectl.args([
            "exec",
            "--namespace",
            &self.namespace,
            &self.name,
            "--container",
            container,
            "--",
        ]);
        let output = kubectl
            .args(["/bin/busybox", "sh", "-c", script])
            .output()
            .await
            .unwrap();
        [output.stdout, output.stderr]
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .concat()
    }

    /// What the sidecar delivers, as the machine sees it.
    pub async fn delivery_dir(&self) -> PathBuf {
        node::empty_dir(&self.get().await.metadata.uid.unwrap(), names::SIDECAR)
    }

    /// Waits until the file with the key of the access holds this, or is gone.
    pub async fn await_file(&self, expected: Option<&str>) {
        let file = self.delivery_dir().await.join(ACCESS).join(API_KEY);
        eventually("the key's file", SOON, async || {
            let found = std::fs::read_to_string(&file).ok();
            llmwarden_tests::wait::same(&found.as_deref(), &expected)
        })
        .await;
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
}

/// Whether all of a pod's containers are ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.status == "True")
}
