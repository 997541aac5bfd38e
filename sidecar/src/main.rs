//! The llmwarden sidecar: see the library for what it does.

use std::process::ExitCode;

use llmwarden_proto::{hardening, logging};
use llmwarden_sidecar::config::{Cli, Command};
use llmwarden_sidecar::{probe, run};

fn main() -> ExitCode {
    let cli = Cli::from_args();
    if let Some(Command::Probe(options)) = cli.command {
        return probe::run(options.status);
    }
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
