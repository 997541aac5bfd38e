//! The chart, and the real helm that installs it.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::binaries;
use crate::control_plane::ControlPlane;
use crate::installation::SYSTEM;

/// The name of the release.
pub const RELEASE: &str = "llmwarden";
/// What has the chart bring everything but the controller, which is then a process of the test's.
pub const WITHOUT_CONTROLLER: &str = "--set=controller.enabled=false";

/// The directory of the chart.
pub fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/llmwarden")
}

impl ControlPlane {
    /// Installs the chart with these flags, and waits until its definitions can be used.
    pub(crate) async fn install_chart(&self, flags: &[String]) -> Result<()> {
        let chart = dir().display().to_string();
        let install = ["install", RELEASE, &chart, "--create-namespace"];
        let flags = flags.iter().map(String::as_str);
        self.run_helm(install.into_iter().chain(flags)).await?;
        self.await_established().await
    }

    /// The one object that a template of the chart makes with these flags.
    pub async fn render_chart(&self, template: &str, flags: &[&str]) -> Result<Value> {
        let chart = dir().display().to_string();
        let template = ["template", RELEASE, &chart, "--show-only", template];
        let text = self.run_helm(template.iter().chain(flags).copied()).await?;
        Ok(serde_saphyr::from_str(&text)?)
    }

    /// Runs `helm` with all rights on this cluster, in the controller's namespace, and returns what it printed.
    pub async fn run_helm(&self, arguments: impl IntoIterator<Item = &str>) -> Result<String> {
        // The first caller builds for minutes, if nothing is there yet.
        let program = tokio::task::spawn_blocking(binaries::helm).await??;
        let arguments: Vec<&str> = arguments.into_iter().collect();
        let mut command = Command::new(program);
        command
            .args(&arguments)
            .args(["--namespace", SYSTEM])
            .env("KUBECONFIG", self.kubeconfig());
        // The user's plugins and caches have no part in this.
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.work_dir().join("helm"));
        }
        let output = command.kill_on_drop(true).output().await?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("helm {}: {error}", arguments.join(" "));
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}
