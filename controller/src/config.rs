//! Flags, each with a `LLMWARDEN_*` twin.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hyper::Uri;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use llmwarden_proto::logging::LogFormat;

use crate::inject::select::Scope;
use crate::inject::sidecar::Template;

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
    Run(Box<RunOptions>),
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
    /// Flags of the webhook.
    #[command(flatten)]
    pub webhook: WebhookOptions,
}

/// Flags of the webhook, and of the sidecar that it injects.
#[derive(Debug, Clone, Args)]
pub struct WebhookOptions {
    /// Address of the webhook, such as `[::]:9443`; without it nothing is injected, and no certificates are made.
    #[arg(long = "webhook", env = "LLMWARDEN_WEBHOOK")]
    pub listen: Option<SocketAddr>,
    /// Name of the `MutatingWebhookConfiguration` whose `caBundle` is kept up to date.
    #[arg(
        long = "webhook-configuration",
        env = "LLMWARDEN_WEBHOOK_CONFIGURATION",
        default_value = "llmwarden"
    )]
    pub configuration: String,
    /// Name of the Service, in the controller's namespace, that the API server calls the webhook by.
    #[arg(
        long = "webhook-service",
        env = "LLMWARDEN_WEBHOOK_SERVICE",
        default_value = "llmwarden-webhook"
    )]
    pub service: String,
    /// A further name or address that the webhook is called by (repeatable, or separated by commas).
    #[arg(long = "webhook-host", env = "LLMWARDEN_WEBHOOK_HOST", value_delimiter = ',')]
    pub hosts: Vec<String>,
    /// How long API servers and replicas are given to take in a change of the webhook's authority.
    #[arg(long = "webhook-settle", env = "LLMWARDEN_WEBHOOK_SETTLE", default_value = "5m", value_parser = parse_duration)]
    pub settle: Duration,
    /// Image of the sidecar, with the program at /llmwarden-sidecar and a number other than 0 as its user.
    #[arg(long, env = "LLMWARDEN_SIDECAR_IMAGE", default_value = DEFAULT_IMAGE)]
    pub sidecar_image: String,
    /// What the sidecar requests.
    #[arg(long, env = "LLMWARDEN_SIDECAR_REQUESTS", value_delimiter = ',', default_value = "cpu=10m,memory=16Mi", value_parser = parse_quantity)]
    pub sidecar_requests: Vec<(String, Quantity)>,
    /// What the sidecar is limited to.
    #[arg(long, env = "LLMWARDEN_SIDECAR_LIMITS", value_delimiter = ',', default_value = "cpu=500m,memory=128Mi", value_parser = parse_quantity)]
    pub sidecar_limits: Vec<(String, Quantity)>,
    /// The most that the volume with the delivered keys may hold. It counts as the sidecar's memory.
    #[arg(long, env = "LLMWARDEN_SIDECAR_VOLUME_SIZE", default_value = "16Mi")]
    pub sidecar_volume_size: String,
    /// The http:// URL of the proxy through which sidecars reach providers, by CONNECT, where nothing gets out otherwise.
    #[arg(long, env = "LLMWARDEN_SIDECAR_HTTPS_PROXY", default_value = "", value_parser = parse_proxy)]
    pub sidecar_https_proxy: String,
    /// Hosts that sidecars reach without that proxy: names with all below them, addresses, networks; separated by commas.
    #[arg(long, env = "LLMWARDEN_SIDECAR_NO_PROXY", default_value = "")]
    pub sidecar_no_proxy: String,
}

/// The image of this version.
const DEFAULT_IMAGE: &str = concat!("llmwarden/llmwarden-sidecar:", env!("CARGO_PKG_VERSION"));

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

    /// Where pods are injected.
    pub fn scope(&self) -> Scope {
        Scope {
            own: self.namespace.clone(),
            served: self.served_namespaces(),
        }
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

impl WebhookOptions {
    /// Every name and address that the webhook is called by, in this namespace.
    pub fn names(&self, namespace: &str) -> BTreeSet<String> {
        let service = format!("{}.{namespace}.svc", self.service);
        let mut names = BTreeSet::from([format!("{service}.cluster.local"), service]);
        names.extend(self.hosts.iter().filter(|name| !name.is_empty()).cloned());
        names
    }

    /// The sidecar to inject.
    pub fn template(&self) -> Template {
        let egress = [
            ("HTTPS_PROXY", &self.sidecar_https_proxy),
            ("NO_PROXY", &self.sidecar_no_proxy),
        ];
        Template {
            image: self.sidecar_image.clone(),
            requests: self.sidecar_requests.iter().cloned().collect(),
            limits: self.sidecar_limits.iter().cloned().collect(),
            volume_size: Quantity(self.sidecar_volume_size.clone()),
            egress: egress
                .into_iter()
                // What needs no proxy is of no interest where there is none.
                .filter(|(_, value)| !self.sidecar_https_proxy.is_empty() && !value.is_empty())
                .map(|(name, value)| (name, value.clone()))
                .collect(),
        }
    }
}

fn parse_quantity(text: &str) -> Result<(String, Quantity), String> {
    text.split_once('=')
        .filter(|(resource, quantity)| !resource.is_empty() && !quantity.is_empty())
        .map(|(resource, quantity)| (resource.to_owned(), Quantity(quantity.to_owned())))
        .ok_or_else(|| "write <resource>=<quantity>, such as memory=64Mi".to_owned())
}

/// Empty, or what the sidecar can use.
fn parse_proxy(text: &str) -> Result<String, String> {
    let usable = || {
        let uri: Uri = text.parse().ok()?;
        let (host, path) = (uri.authority()?.as_str(), uri.path());
        Some(uri.scheme_str() == Some("http") && path == "/" && !host.contains('@'))
    };
    if text.is_empty() || usable() == Some(true) {
        Ok(text.to_owned())
    } else {
        Err("write http://<host>:<port>: sidecars speak to the proxy itself in plain HTTP, and through it in TLS. It stands in \
             every pod, so it has no user and no password".to_owned())
    }
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

    #[test]
    fn the_webhook_has_the_names_of_its_service() {
        let cli = Cli::parse_from(["llmwarden-controller", "--webhook-host", "127.0.0.1"]);
        let names: Vec<_> = cli.run.webhook.names("n").into_iter().collect();
        let service = ["llmwarden-webhook.n.svc", "llmwarden-webhook.n.svc.cluster.local"];
        assert_eq!(names, [&["127.0.0.1"], service.as_slice()].concat());
    }

    #[test]
    fn reads_what_the_sidecar_gets() {
        let cli = Cli::parse_from(["llmwarden-controller", "--sidecar-limits", "memory=32Mi"]);
        let template = cli.run.webhook.template();
        assert_eq!(template.limits["memory"].0, "32Mi");
        assert_eq!(template.requests["cpu"].0, "10m");
        assert!(template.egress.is_empty());
        let egress = |arguments: &[&str]| {
            let all = [&["llmwarden-controller", "--sidecar-no-proxy", ".svc"], arguments].concat();
            Cli::parse_from(all)
                .run
                .webhook
                .template()
                .egress
                .into_keys()
                .collect::<Vec<_>>()
        };
        assert!(egress(&[]).is_empty());
        let both = egress(&["--sidecar-https-proxy", "http://egress:3128"]);
        assert_eq!(both, ["HTTPS_PROXY", "NO_PROXY"]);
        for text in ["", "memory", "=1", "memory="] {
            assert!(parse_quantity(text).is_err(), "{text}");
        }
        for text in [
            "egress:3128",
            "https://egress:3128",
            "http://",
            "http://egress host:3128",
            "http://user:word@egress:3128",
            "http://egress:3128/path",
        ] {
            assert!(parse_proxy(text).is_err(), "{text}");
        }
    }
}
