//! A Kubernetes node on a [`ControlPlane`]: containerd, kubelet, kube-proxy and the scheduler, as real processes, so that
//! pods run. They live in the namespaces that `tests/e2e` makes, and everything about them ends with those.

mod config;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1;
use kube::{Api, ResourceExt};
use llmwarden_proto::names::STATUS_PORT;
use llmwarden_proto::status::Status;
use nix::mount::{MsFlags, mount};

use crate::control_plane::ControlPlane;
use crate::image::Image;
use crate::process::{Process, output, tail};
use crate::wait::try_eventually;

/// What the node is called.
pub const NAME: &str = "node";

const START: Duration = Duration::from_mins(2);
/// Where the kubelet keeps pods.
const PODS: &str = "/var/lib/kubelet/pods";
/// Places that are compiled in. Here, the work directory is mounted there; on the machine an empty directory may be left.
const FIXED: [&str; 3] = ["/var/lib/kubelet", "/var/lib/cni", "/var/log"];

/// A running node. Dropping it stops its processes; pods go on until the namespaces end.
#[derive(Debug)]
pub struct Node {
    // In the order in which they stop.
    scheduler: Process,
    proxy: Process,
    kubelet: Mutex<Process>,
    containerd: Process,
}

/// The address that the node has in its network namespace, for [`crate::Options`].
pub fn address() -> Result<Ipv4Addr> {
    Ok(variable("LLMWARDEN_NODE_ADDRESS")?.parse()?)
}

impl Node {
    /// Starts a node that has these images, and waits until it is Ready. There can be one in a set of namespaces.
    pub async fn start(cluster: &ControlPlane, images: &[Image]) -> Result<Self> {
        let kubelet = cluster.bin_dir().join("kubelet");
        ensure!(
            kubelet.is_file(),
            "there is no {}: unset KUBEBUILDER_ASSETS",
            kubelet.display()
        );
        let dir = cluster.work_dir();
        for place in FIXED {
            let source = dir.join(place.trim_start_matches('/').replace('/', "-"));
            fs::create_dir_all(&source)?;
            fs::create_dir_all(place)?;
            mount(Some(&source), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| place.to_owned())?;
        }
        let containerd = start_containerd(dir).await?;
        import(&Image::busybox(dir).await?).await?;
        for image in images {
            import(image).await?;
        }
        let node = Self {
            scheduler: start_scheduler(cluster)?,
            proxy: start_proxy(cluster)?,
            kubelet: Mutex::new(start_kubelet(cluster)?),
            containerd,
        };
        node.await_ready(cluster).await?;
        Ok(node)
    }

    /// Kills the kubelet and starts another one. Pods go on meanwhile.
    pub fn restart_kubelet(&self, cluster: &ControlPlane) -> Result<()> {
        let mut kubelet = self.kubelet();
        kubelet.kill();
        *kubelet = start_kubelet(cluster)?;
        Ok(())
    }

    fn kubelet(&self) -> MutexGuard<'_, Process> {
        self.kubelet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process id of a running container's first process. `id` as the pod's status has it.
    pub async fn container_pid(&self, id: &str) -> Result<u32> {
        let id = id
            .strip_prefix("containerd://")
            .context("not a container of containerd")?;
        let mut command = ctr();
        command.args(["tasks", "list"]);
        let tasks = output(command).await?;
        let task = tasks.lines().find(|line| line.starts_with(id));
        let pid = task.and_then(|line| line.split_whitespace().nth(1));
        Ok(pid
            .with_context(|| format!("no task {id} in\n{tasks}"))?
            .parse()?)
    }

    /// What a part that has ended left in its log.
    fn dead(&self) -> Option<String> {
        let kubelet = self.kubelet();
        let parts = [&self.containerd, &kubelet, &self.proxy, &self.scheduler];
        let dead = parts.into_iter().find(|part| part.exited().is_some())?;
        Some(format!("{} ended\n{}", dead.name(), tail(&dead.log(), 30)))
    }

    async fn await_ready(&self, cluster: &ControlPlane) -> Result<()> {
        let nodes = Api::<v1::Node>::all(cluster.client());
        let outcome = try_eventually("a Ready node", START, async || {
            if let Some(dead) = self.dead() {
                return Ok(Err(dead));
            }
            let conditions = nodes.get(NAME).await?.status.and_then(|status| status.conditions);
            let ready = conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            ensure!(ready, "{conditions:?}");
            Ok(Ok(()))
        });
        outcome.await?.map_err(anyhow::Error::msg)
    }
}

/// What a container of a pod has printed, as the machine sees it: `0.log`, after its first restart `1.log`, and so on.
pub fn logs(pod: &v1::Pod, container: &str) -> PathBuf {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let dir = format!("{namespace}_{name}_{}", pod.uid().unwrap_or_default());
    Path::new("/var/log/pods").join(dir).join(container)
}

/// What the containers of a pod share in an `emptyDir` volume, as the machine sees it.
pub fn empty_dir(pod_uid: &str, volume: &str) -> PathBuf {
    let volumes = Path::new(PODS).join(pod_uid).join("volumes");
    volumes.join("kubernetes.io~empty-dir").join(volume)
}

/// What the sidecar of the pod with this address says at `/status`.
pub async fn sidecar_status(pod_ip: &str) -> Result<Status> {
    let url = format!("http://{pod_ip}:{STATUS_PORT}/status");
    let text = tokio::task::spawn_blocking(move || ureq::get(&url).call()?.body_mut().read_to_string());
    Ok(serde_json::from_str(&text.await??)?)
}

async fn start_containerd(dir: &Path) -> Result<Process> {
    let file = dir.join("containerd.toml");
    let network = dir.join("cni");
    fs::write(&file, config::containerd(&dir.join("containerd"), &network))?;
    write(&network.join("10-node.conflist"), &config::network(dir))?;
    let mut command = Command::new("containerd");
    command.arg("--config").arg(&file);
    let containerd = Process::spawn("containerd", &command, dir.join("containerd.log"))?;
    containerd
        .await_log(START, |line| line.contains("containerd successfully booted"))
        .await?;
    Ok(containerd)
}

fn start_kubelet(cluster: &ControlPlane) -> Result<Process> {
    let cgroup = variable("LLMWARDEN_NODE_CGROUP")?;
    let kubeconfig = cluster.kubeconfig_as(&format!("system:node:{NAME}"), "system:nodes")?;
    let file = cluster.work_dir().join("kubelet.json");
    write(&file, &config::kubelet(&cluster.authority(), &cgroup))?;
    start(cluster, "kubelet", |command| {
        command
            .arg("--config")
            .arg(&file)
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["--hostname-override", NAME])
            .arg("--node-ip")
            .arg(address()?.to_string());
        Ok(())
    })
}

fn start_proxy(cluster: &ControlPlane) -> Result<Process> {
    let kubeconfig = cluster.kubeconfig_as("system:kube-proxy", "system:node-proxiers")?;
    let file = cluster.work_dir().join("kube-proxy.json");
    write(&file, &config::proxy(&kubeconfig))?;
    start(cluster, "kube-proxy", |command| {
        command.arg("--config").arg(&file);
        Ok(())
    })
}

fn start_scheduler(cluster: &ControlPlane) -> Result<Process> {
    let kubeconfig = cluster.kubeconfig_as("system:kube-scheduler", "system:kube-scheduler")?;
    start(cluster, "kube-scheduler", |command| {
        command.arg("--kubeconfig").arg(&kubeconfig);
        command.args(["--leader-elect=false", "--secure-port=0"]);
        Ok(())
    })
}

fn start(
    cluster: &ControlPlane,
    program: &str,
    arguments: impl FnOnce(&mut Command) -> Result<()>,
) -> Result<Process> {
    let mut command = Command::new(cluster.bin_dir().join(program));
    arguments(&mut command)?;
    Process::spawn(
        program,
        &command,
        cluster.work_dir().join(format!("{program}.log")),
    )
}

async fn import(image: &Image) -> Result<()> {
    let mut command = ctr();
    command.args(["images", "import"]).arg(image.archive());
    output(command).await?;
    Ok(())
}

/// containerd's client, in the namespace that the kubelet works in.
fn ctr() -> Command {
    let mut command = Command::new("ctr");
    command.args(["--namespace", "k8s.io"]);
    command
}

fn write(file: &Path, config: &serde_json::Value) -> Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(file, serde_json::to_vec_pretty(config)?)?;
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name}: a node needs the namespaces that tests/e2e makes"))
}
