//! Flags, each with a `LLMWARDEN_*` twin.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;
use llmwarden_proto::logging::LogFormat;

/// Command line of the controller.
#[derive(Debug, Parser)]
#[command(
    name = "llmwarden-controller",
    version,
    about = "Provisions, rotates and withdraws the Secrets of LLMAccess objects"
)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `run`.
    #[command(flatten)]
    pub run: RunOptions,
}

/// What the binary does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the controller (the default).
    Run(RunOptions),
    /// Prints the custom resource definitions.
    Crd(CrdOptions),
}

/// Flags of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// The controller's own namespace: master Secrets are read there, its own Secret is kept there.
    #[arg(long, env = "LLMWARDEN_NAMESPACE", default_value = "llmwarden-system")]
    pub namespace: String,
    /// A further namespace that master Secrets may live in (repeatable, or separated by commas).
    #[arg(
        long = "trusted-namespace",
        env = "LLMWARDEN_TRUSTED_NAMESPACE",
        value_delimiter = ','
    )]
    pub trusted_namespaces: Vec<String>,
    /// What this replica is called as the holder of the Lease: different for each, the same after a restart. In a pod, its
    /// name; the host's when absent.
    #[arg(long, env = "LLMWARDEN_IDENTITY", default_value_t = host_name())]
    pub identity: String,
    /// A namespace whose accesses are served (repeatable, or separated by commas); all of them when absent.
    #[arg(
        long = "access-namespace",
        env = "LLMWARDEN_ACCESS_NAMESPACE",
        value_delimiter = ','
    )]
    pub access_namespaces: Vec<String>,
    /// How long a key stays after its access stopped being allowed, such as 5m, 30s or 0.
    #[arg(long, env = "LLMWARDEN_DENIAL_GRACE", default_value = "5m", value_parser = parse_duration)]
    pub denial_grace: Duration,
    /// Address of health and metrics, which hold no secrets.
    #[arg(long, env = "LLMWARDEN_STATUS", default_value = "[::]:9472")]
    pub status: SocketAddr,
    /// Format of the logs.
    #[arg(long, env = "LLMWARDEN_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Flags of `crd`.
#[derive(Debug, Clone, Args)]
pub struct CrdOptions {
    /// Writes one file for each definition here, instead of printing them all.
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Fails when the files in this directory are not what would be written.
    #[arg(long, value_name = "DIR", conflicts_with = "output_dir")]
    pub check: Option<PathBuf>,
}

impl RunOptions {
    /// Every namespace that master Secrets may live in.
    pub fn master_namespaces(&self) -> Vec<String> {
        let mut all = vec![self.namespace.clone()];
        all.extend(self.trusted_namespaces.iter().cloned());
        each_once(all)
    }

    /// Every namespace whose accesses are served; empty means all.
    pub fn served_namespaces(&self) -> Vec<String> {
        each_once(self.access_namespaces.clone())
    }
}

fn each_once(mut names: Vec<String>) -> Vec<String> {
    // A variable that is set to nothing is one empty name.
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

fn host_name() -> String {
    // What has no name is alone.
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.into_string().unwrap_or_else(|_| "llmwarden".to_owned())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    SignedDuration::from_str(text)
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "write a number and a unit, such as 5m, 30s or 1h, or 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        for (text, seconds) in [("0", 0), ("0s", 0), ("30s", 30), ("5m", 300), ("1h", 3600)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "-5m", "5", "five"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn run_is_the_default_command() {
        let cli = Cli::parse_from([
            "llmwarden-controller",
            "--namespace",
            "a",
            "--trusted-namespace",
            "c,b",
            "--access-namespace",
            "",
        ]);
        assert!(cli.command.is_none());
        assert_eq!(cli.run.master_namespaces(), ["a", "b", "c"]);
        assert!(cli.run.served_namespaces().is_empty());
    }
}
