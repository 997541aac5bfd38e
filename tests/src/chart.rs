//! The chart, and the real helm that installs it.

use std::path::PathBuf;

use anyhow::{Result, bail};
use tokio::process::Command;

use crate::binaries;
use crate::control_plane::ControlPlane;
use crate::installation::SYSTEM;

/// The name of the release.
pub const RELEASE: &str = "llmwarden";

/// The directory of the chart.
pub fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/llmwarden")
}

impl ControlPlane {
    /// Installs the chart with its default values, and waits until its definitions can be used.
    pub(crate) async fn install_chart(&self) -> Result<()> {
        let arguments = [
            "install",
            RELEASE,
            &dir().display().to_string(),
            "--create-namespace",
        ];
        self.run_helm(arguments).await?;
        self.await_established().await
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
