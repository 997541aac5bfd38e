//! llmwarden on a control plane: its definitions, its namespace, and the controller as a process.

use std::ops::Deref;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, CustomResourceExt};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::logging::LEVEL_VARIABLE;
use llmwarden_proto::provider::LLMProvider;
use serde_json::json;
use tokio::sync::OnceCell;

use crate::binaries;
use crate::control_plane::{ControlPlane, Options};
use crate::process::{Process, Signal};

/// The namespace of the controller and of the master Secrets, as in the guide.
pub const SYSTEM: &str = "llmwarden-system";
/// The label that the guide's providers select namespaces by; its value is `true`.
pub const ENABLED_LABEL: &str = "llmwarden.io/ai-enabled";

/// What a controller logs when it begins to reconcile.
pub const LEADS: &str = "holds the Lease";

const START: Duration = Duration::from_mins(1);

/// A control plane with llmwarden on it. It dereferences to the [`ControlPlane`].
#[derive(Debug)]
pub struct Installation {
    // In the order in which they stop.
    controller: Mutex<Option<Process>>,
    flags: Vec<String>,
    log_level: String,
    cluster: ControlPlane,
}

impl Deref for Installation {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        &self.cluster
    }
}

/// The installation that the tests of one process share; see [`Installation::shared`].
#[derive(Debug)]
pub struct Shared(&'static Installation);

impl Deref for Shared {
    type Target = Installation;

    fn deref(&self) -> &Installation {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.cluster.keep_if_panicking();
    }
}

impl Installation {
    /// Starts a control plane of its own and a controller with `flags`, and waits until that reconciles.
    pub async fn start(flags: &[&str]) -> Result<Self> {
        let level = std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_| "debug".to_owned());
        Self::start_logging(flags, &level).await
    }

    /// [`start`](Self::start), with a controller that logs at this level.
    pub async fn start_logging(flags: &[&str], level: &str) -> Result<Self> {
        Self::start_on(Options::default(), flags, level).await
    }

    /// [`start_logging`](Self::start_logging), on a control plane with these options, to which our definitions are added.
    pub async fn start_on(mut options: Options, flags: &[&str], level: &str) -> Result<Self> {
        options.crds.extend([LLMAccess::crd(), LLMProvider::crd()]);
        let installation = Self {
            controller: Mutex::new(None),
            flags: flags.iter().map(ToString::to_string).collect(),
            log_level: level.to_owned(),
            cluster: ControlPlane::start_with(options).await?,
        };
        installation.create_namespace(SYSTEM, false).await?;
        installation.start_controller().await?;
        Ok(installation)
    }

    /// One installation, with the default flags, for all tests of this process that can share it: each works in
    /// namespaces of its own, with providers and master Secrets of its own names. It ends with the process.
    pub async fn shared() -> Result<Shared> {
        static SHARED: OnceCell<Installation> = OnceCell::const_new();
        SHARED
            .get_or_try_init(async || Self::start(&[]).await)
            .await
            .map(Shared)
    }

    /// A name that no other test of this process uses, for namespaces, providers and master Secrets.
    pub fn unique(prefix: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("{prefix}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a namespace, with the label that the guide's providers ask for if `enabled`.
    pub async fn create_namespace(&self, name: &str, enabled: bool) -> Result<()> {
        let labels = if enabled {
            json!({ ENABLED_LABEL: "true" })
        } else {
            json!({})
        };
        let namespace: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } }))?;
        Api::all(self.client())
            .create(&PostParams::default(), &namespace)
            .await
            .with_context(|| format!("create namespace {name}"))?;
        Ok(())
    }

    /// Makes the Secret `name` in [`SYSTEM`] with `key` under `api-key`, as the guide's providers expect it.
    pub async fn create_master_key(&self, name: &str, key: &str) -> Result<()> {
        let secret: Secret = serde_json::from_value(
            json!({ "metadata": { "name": name }, "stringData": { "api-key": key } }),
        )?;
        Api::namespaced(self.client(), SYSTEM)
            .create(&PostParams::default(), &secret)
            .await
            .with_context(|| format!("create Secret {name}"))?;
        Ok(())
    }

    /// Puts another key into the Secret `name` in [`SYSTEM`].
    pub async fn replace_master_key(&self, name: &str, key: &str) -> Result<()> {
        let patch = json!({ "stringData": { "api-key": key } });
        Api::<Secret>::namespaced(self.client(), SYSTEM)
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .with_context(|| format!("patch Secret {name}"))?;
        Ok(())
    }

    /// The controller's process id, while it runs.
    pub fn controller_pid(&self) -> Option<u32> {
        let controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        controller.as_ref().map(Process::pid)
    }

    /// All that the controller has logged, over restarts.
    pub fn controller_log(&self) -> String {
        std::fs::read_to_string(self.work_dir().join("controller.log")).unwrap_or_default()
    }

    /// Starts the controller, and waits until it reconciles.
    pub async fn start_controller(&self) -> Result<()> {
        let already = self.controller_log().len();
        let process = self.spawn_controller("controller", &self.flags)?;
        process
            .await_log_from(already, START, |line| line.contains(LEADS))
            .await?;
        *self.controller.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// Starts another replica of the controller, that logs to `<name>.log` and asks for the Lease as `name`.
    pub fn start_replica(&self, name: &str) -> Result<Process> {
        let mut flags = self.flags.clone();
        flags.extend(["--identity".to_owned(), name.to_owned()]);
        self.spawn_controller(name, &flags)
    }

    fn spawn_controller(&self, name: &str, flags: &[String]) -> Result<Process> {
        let mut command = Command::new(binaries::controller()?);
        command
            .args(["--namespace", SYSTEM, "--status", "127.0.0.1:0"])
            .args(flags)
            .env("KUBECONFIG", self.kubeconfig())
            .env(LEVEL_VARIABLE, &self.log_level);
        Process::spawn(name, &command, self.work_dir().join(format!("{name}.log")))
    }

    /// What the controller's `/metrics` says.
    pub async fn controller_metrics(&self) -> Result<String> {
        let log = self.controller_log();
        // The last one that listened is the one that runs.
        let line = log.lines().rfind(|line| line.contains("listening status="));
        let address = line
            .and_then(|line| line.rsplit("status=").next())
            .context("it does not listen")?;
        let url = format!("http://{address}/metrics");
        tokio::task::spawn_blocking(move || Ok(ureq::get(&url).call()?.body_mut().read_to_string()?)).await?
    }

    /// Sends the controller a signal.
    pub fn signal_controller(&self, signal: Signal) -> Result<()> {
        let controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        controller.as_ref().context("no controller runs")?.signal(signal)
    }

    /// Sends the controller a signal and waits for its end.
    pub async fn stop_controller(&self, signal: Signal) -> Result<ExitStatus> {
        let process = self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .context("no controller runs")?;
        process.signal(signal)?;
        process.wait(START).await
    }
}
