//! Logs of both programs: on standard error, as text or JSON.

use clap::ValueEnum;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Environment variable with the levels: `info` when it is not set, or by target as in `info,kube=debug`.
pub const LEVEL_VARIABLE: &str = "LLMWARDEN_LOG";

/// Format of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. Levels that can't be read are told, and count as `info`.
pub fn init(format: LogFormat) {
    let wanted = std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_| "info".to_owned());
    let levels = wanted.parse::<Targets>();
    // Not `EnvFilter`: what it can do beyond this costs every sidecar more than half a megabyte.
    let filter = levels
        .as_ref()
        .cloned()
        .unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    // It logs whole answers that it can't read, and those may be Secrets.
    let filter = filter.with_target("kube_client::client", tracing::Level::ERROR);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Text => registry.with(lines.with_ansi(false).with_filter(filter)).init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).init(),
    }
    if let Err(error) = levels {
        tracing::warn!(%error, "{LEVEL_VARIABLE} can't be read: write a level, or levels by target as in info,kube=debug");
    }
}
