//! The llmwarden sidecar: see the library for what it does.

use std::process::ExitCode;

use llmwarden_proto::{hardening, logging};
use llmwarden_sidecar::config::Cli;
use llmwarden_sidecar::run;

fn main() -> ExitCode {
    let cli = Cli::from_args();
    logging::init(cli.log_format);
    let outcome = hardening::apply()
        .map_err(anyhow::Error::from)
        .and_then(|()| run::run(cli));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("llmwarden-sidecar: {error:#}");
            ExitCode::FAILURE
        }
    }
}
