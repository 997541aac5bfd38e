//! The llmwarden controller: see the library for what it does.

use std::process::ExitCode;

use clap::Parser;
use llmwarden_controller::config::{Cli, Command};
use llmwarden_controller::{crd, run};
use llmwarden_proto::{hardening, logging};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::Crd(options)) => crd::run(&options),
        command => {
            let options = match command {
                Some(Command::Run(options)) => *options,
                _ => cli.run,
            };
            logging::init(options.log_format);
            hardening::apply()
                .map_err(anyhow::Error::from)
                .and_then(|()| run::run(options))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("llmwarden-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}
