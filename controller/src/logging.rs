//! Logs on standard error, as text or JSON.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging. The level is `LLMWARDEN_LOG`'s, in the syntax of `RUST_LOG`; `info` when it is not set.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("LLMWARDEN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
