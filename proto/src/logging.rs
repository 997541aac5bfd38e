//! Logs of both programs: on standard error, as text or JSON.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// Environment variable with the level, in the syntax of `RUST_LOG`; `info` when it is not set.
pub const LEVEL_VARIABLE: &str = "LLMWARDEN_LOG";

/// Format of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env(LEVEL_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
