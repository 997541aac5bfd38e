//! The llmwarden controller: see the library for what it does.

use std::process::ExitCode;

use clap::Parser;
use llmwarden_controller::config::{Cli, Command};
use llmwarden_controller::{crd, run};
use llmwarden_proto::logging;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::Crd(options)) => crd::run(&options),
        Some(Command::Run(options)) => {
            logging::init(options.log_format);
            run::run(options)
        }
        None => {
            logging::init(cli.run.log_format);
            run::run(cli.run)
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
