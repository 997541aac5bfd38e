//! llmwarden on a control plane: its chart, and the controller as a process with the rights that the chart gives it.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use llmwarden_proto::logging::LEVEL_VARIABLE;
use serde_json::json;
use tokio::sync::{MutexGuard, OnceCell};

use crate::binaries;
use crate::chart;
use crate::control_plane::{ControlPlane, Options};
use crate::process::{Process, Signal};
use crate::webhook;

/// The namespace of the controller and of the master Secrets, as in the guide.
pub const SYSTEM: &str = "llmwarden-system";
/// The controller's service account, in [`SYSTEM`]: what the chart lets it do is all that it may do.
pub const ACCOUNT: &str = "llmwarden-controller";
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
    kubeconfig: PathBuf,
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

/// The installation without a controller that the tests of one process share, one at a time; see
/// [`Installation::exclusive`].
#[derive(Debug)]
pub struct Exclusive {
    installation: &'static Installation,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Exclusive {
    type Target = Installation;

    fn deref(&self) -> &Installation {
        self.installation
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.installation.cluster.keep_if_panicking();
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

    /// [`start_logging`](Self::start_logging), on a control plane with these options, to which our chart is added.
    pub async fn start_on(options: Options, flags: &[&str], level: &str) -> Result<Self> {
        let installation = Self::without_controller(options, flags, level).await?;
        installation.start_controller().await?;
        Ok(installation)
    }

    /// [`start`](Self::start), with the webhook.
    pub async fn start_with_webhook(flags: &[&str]) -> Result<Self> {
        let flags: Vec<_> = webhook::FLAGS.iter().chain(flags).copied().collect();
        Self::start(&flags).await
    }

    /// One installation with the webhook for all tests of this process that can share it.
    pub async fn shared_with_webhook() -> Result<Shared> {
        static SHARED: OnceCell<Installation> = OnceCell::const_new();
        SHARED
            .get_or_try_init(async || Self::start_with_webhook(&[]).await)
            .await
            .map(Shared)
    }

    /// What the chart installs with these flags of helm's, its own controller if there is a node to run it.
    pub async fn deployed(mut options: Options, flags: &[&str]) -> Result<Self> {
        options.chart = Some(flags.iter().map(ToString::to_string).collect());
        Self::without_controller(options, &[], "info").await
    }

    async fn without_controller(mut options: Options, flags: &[&str], level: &str) -> Result<Self> {
        options
            .chart
            .get_or_insert_with(|| vec![chart::WITHOUT_CONTROLLER.to_owned()]);
        // Some distributions have it, and with it a right more is needed.
        let plugin = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement";
        options.api_server_flags.push(plugin.to_owned());
        let cluster = ControlPlane::start_with(options).await?;
        let installation = Self {
            controller: Mutex::default(),
            flags: flags.iter().map(ToString::to_string).collect(),
            log_level: level.to_owned(),
            kubeconfig: cluster.kubeconfig_for(SYSTEM, ACCOUNT).await?,
            cluster,
        };
        Ok(installation)
    }

    /// One installation without a controller, for tests that start and kill their own: each has it for itself, with what
    /// earlier ones left there. It ends with the process.
    pub async fn exclusive() -> Result<Exclusive> {
        static SHARED: OnceCell<Installation> = OnceCell::const_new();
        static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let turn = TURN.lock().await;
        let installation =
            SHARED.get_or_try_init(async || Self::without_controller(Options::default(), &[], "debug").await);
        Ok(Exclusive {
            installation: installation.await?,
            _turn: turn,
        })
    }

    /// Starts a further controller, which reaches the API server as `kubeconfig` says and logs to `<name>.log`, and waits
    /// until it reconciles.
    pub async fn start_through(&self, kubeconfig: &Path, name: &str, flags: &[&str]) -> Result<Process> {
        let log = self.work_dir().join(format!("{name}.log"));
        let already = std::fs::metadata(&log).map_or(0, |log| log.len());
        let process = self.spawn_through(kubeconfig, name, flags)?;
        process
            .await_log_from(usize::try_from(already)?, START, |line| line.contains(LEADS))
            .await?;
        Ok(process)
    }

    /// [`start_through`](Self::start_through), without waiting.
    pub fn spawn_through(&self, kubeconfig: &Path, name: &str, flags: &[&str]) -> Result<Process> {
        let mut command = Command::new(binaries::controller()?);
        command
            .args(["--namespace", SYSTEM, "--status", "127.0.0.1:0"])
            .args(flags)
            .env("KUBECONFIG", kubeconfig)
            .env(LEVEL_VARIABLE, &self.log_level);
        Process::spawn(name, &command, self.work_dir().join(format!("{name}.log")))
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

    /// Starts a controller with the chart's rights alone, and leaves it to the caller whether it gets anywhere.
    pub fn spawn_controller(&self) -> Result<Process> {
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        self.spawn_through(&self.kubeconfig, "controller", &flags)
    }

    /// Starts the controller, and waits until it reconciles.
    pub async fn start_controller(&self) -> Result<()> {
        let already = self.controller_log().len();
        let process = self.spawn_controller()?;
        process
            .await_log_from(already, START, |line| line.contains(LEADS))
            .await?;
        *self.controller.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// Starts another replica of the controller, that logs to `<name>.log` and asks for the Lease as `name`.
    pub fn start_replica(&self, name: &str) -> Result<Process> {
        let own = self.flags.iter().map(String::as_str);
        let flags: Vec<_> = own.chain(["--identity", name]).collect();
        self.spawn_through(&self.kubeconfig, name, &flags)
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
