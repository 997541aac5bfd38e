//! A control plane of its own until it is killed: prints, as one line of JSON, its directory (with a kubeconfig in it)
//! and the process ids of its components.

use std::io::Write as _;

use anyhow::Result;
use llmwarden_tests::ControlPlane;

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = ControlPlane::start().await?;
    let line = serde_json::to_string(&(cluster.work_dir(), cluster.pids()))?;
    writeln!(std::io::stdout(), "{line}")?;
    std::future::pending().await
}
