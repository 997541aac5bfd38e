//! Flags, each with a `LLMWARDEN_*` twin. Bad ones end the program with exit code 2 and a line that says what to write.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use hyper::Uri;
use llmwarden_proto::logging::LogFormat;
use llmwarden_proto::names;

use crate::store::Mode;

/// Command line of the sidecar.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "llmwarden-sidecar",
    version,
    about = "Delivers each new key to the running agent",
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// What to do; deliver when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// An access and where its companion Secret comes from: <access>=<directory that it is mounted at>, or
    /// <access>=kube:<namespace>/<secret> for a watch through the API server. Repeatable, or separated by commas.
    #[arg(
        long = "source",
        env = "LLMWARDEN_SOURCE",
        value_delimiter = ',',
        required = true
    )]
    pub sources: Vec<Source>,
    /// The API server of kube: sources, outside of a pod; unless given, that of the pod. http:// on loopback alone, as
    /// `kubectl proxy` has it.
    #[arg(long, env = "LLMWARDEN_API_SERVER", value_name = "URL", value_parser = api_server)]
    pub api_server: Option<Uri>,
    /// Directory with the `token` and the `ca.crt` that kube: sources use there; unless given, that of the pod's service
    /// account, over TLS alone.
    #[arg(long, env = "LLMWARDEN_SERVICE_ACCOUNT", value_name = "DIR")]
    pub service_account: Option<PathBuf>,
    /// An access whose key stays here: its requests go through /proxy/<access>, and its files and the endpoint hand out a
    /// placeholder. Repeatable, or separated by commas.
    #[arg(long = "proxy", env = "LLMWARDEN_PROXY", value_delimiter = ',')]
    pub proxied: Vec<String>,
    /// Directory to deliver to, on tmpfs. Made for the user alone when it does not exist.
    #[arg(long, env = "LLMWARDEN_DIR", default_value = names::DELIVERY_DIR)]
    pub dir: PathBuf,
    /// Address of the endpoint; loopback only.
    #[arg(long, env = "LLMWARDEN_LISTEN", default_value = "127.0.0.1:9470", value_parser = loopback)]
    pub listen: SocketAddr,
    /// Address of health, metrics and status, which hold no secrets.
    #[arg(long, env = "LLMWARDEN_STATUS", default_value = "[::]:9471")]
    pub status: SocketAddr,
    /// Format of the logs.
    #[arg(long, env = "LLMWARDEN_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// What the program does instead of delivering.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Asks the sidecar that runs here whether it has a key for every access, and prints its answer.
    Probe(ProbeOptions),
}

/// Flags of `probe`.
#[derive(Debug, Clone, Args)]
pub struct ProbeOptions {
    /// The sidecar's own `--status`.
    #[arg(long, env = "LLMWARDEN_STATUS", default_value = "[::]:9471")]
    pub status: SocketAddr,
}

impl Cli {
    /// Reads the command line; ends the program if it is not valid.
    pub fn from_args() -> Self {
        Self::checked(Self::parse()).unwrap_or_else(|error| error.exit())
    }

    /// What one flag alone can't tell.
    fn checked(cli: Self) -> Result<Self, clap::Error> {
        let refuse = |text: String| Err(Self::command().error(ErrorKind::ValueValidation, text));
        let mut seen = BTreeSet::new();
        if let Some(source) = cli.sources.iter().find(|source| !seen.insert(&source.access)) {
            let access = &source.access;
            return refuse(format!(
                "--source names `{access}` twice: an access has one source"
            ));
        }
        if cli.command.is_none()
            && let Some(access) = cli.proxied.iter().find(|access| !seen.contains(access))
        {
            return refuse(format!(
                "--proxy {access}: give its companion too, with --source {access}=<directory>"
            ));
        }
        Ok(cli)
    }

    /// How an access is used here, with the proxy at this address.
    pub fn mode(&self, access: &str, endpoint: SocketAddr) -> Mode {
        if self.proxied.iter().any(|proxied| proxied == access) {
            Mode::Proxy(format!("http://{endpoint}/proxy/{access}").into())
        } else {
            Mode::Direct
        }
    }
}

/// One access and where its companion comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Name of the access.
    pub access: String,
    /// Where its companion is.
    pub origin: Origin,
}

/// Where a companion is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In a directory: a mounted Secret, or any directory with the same files.
    Volume(PathBuf),
    /// In the API server.
    Kube {
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        secret: String,
    },
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (access, origin) = text
            .split_once('=')
            .ok_or("write <access>=<directory> or <access>=kube:<namespace>/<secret>")?;
        if !is_object_name(access) || access.len() > 63 {
            return Err(format!(
                "`{access}` is not the name of an LLMAccess: lower-case letters, digits, '-' and '.', at most 63"
            ));
        }
        if [names::TOKEN_FILE, names::AUTH_HEADER_FILE, names::SOCKET_FILE].contains(&access) {
            return Err(format!(
                "no access can be named `{access}`: a file of the sidecar is"
            ));
        }
        let origin = match origin.strip_prefix("kube:") {
            Some(reference) => match reference.split_once('/') {
                Some((namespace, secret)) if is_object_name(namespace) && is_object_name(secret) => {
                    Origin::Kube {
                        namespace: namespace.to_owned(),
                        secret: secret.to_owned(),
                    }
                }
                _ => return Err(format!("`kube:{reference}` is not kube:<namespace>/<secret>")),
            },
            None if origin.is_empty() => return Err(format!("`{access}=` lacks the directory")),
            None => Origin::Volume(PathBuf::from(origin)),
        };
        Ok(Self {
            access: access.to_owned(),
            origin,
        })
    }
}

/// What Kubernetes calls a DNS subdomain name.
fn is_object_name(text: &str) -> bool {
    let label = |label: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(label.chars().next())
            && edge(label.chars().last())
            && label
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "write an address and a port, such as 127.0.0.1:9470".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("the endpoint hands out keys, so it listens on loopback only: write 127.0.0.1:<port>".to_owned())
    }
}

/// A URL that a token may be sent to.
fn api_server(text: &str) -> Result<Uri, String> {
    let url: Uri = text
        .parse()
        .map_err(|_| "write a URL, such as http://127.0.0.1:8001 for `kubectl proxy`".to_owned())?;
    let host = url.host().unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse();
    let is_local = host == "localhost" || ip.is_ok_and(|ip: IpAddr| ip.is_loopback());
    let is_bare = url.path() == "/" && url.query().is_none() && !text.contains('@');
    match url.scheme_str() {
        Some("https" | "http") if !is_bare => Err("write nothing behind the host and the port".to_owned()),
        Some("https") => Ok(url),
        Some("http") if is_local => Ok(url),
        Some("http") => Err("without TLS only an API server on loopback: write https://".to_owned()),
        _ => Err("write http:// or https:// before the host".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, String> {
        let all = ["llmwarden-sidecar"].iter().chain(arguments);
        Cli::try_parse_from(all)
            .and_then(Cli::checked)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn reads_both_kinds_of_source() {
        let cli = parse(&["--source", "a=/keys/a", "--source", "b.c=kube:ns/b.c.llmwarden"]).expect("valid");
        assert_eq!(cli.sources[0].origin, Origin::Volume("/keys/a".into()));
        let kube = Origin::Kube {
            namespace: "ns".into(),
            secret: "b.c.llmwarden".into(),
        };
        assert_eq!(
            (cli.sources[1].access.as_str(), &cli.sources[1].origin),
            ("b.c", &kube)
        );
        assert_eq!(cli.listen.to_string(), "127.0.0.1:9470");
        assert_eq!(cli.status.to_string(), "[::]:9471");
    }

    #[test]
    fn an_access_is_proxied_where_a_flag_says_so() {
        let cli = parse(&["--source", "a=/keys/a,b=/keys/b", "--proxy", "b"]).expect("valid");
        let proxy = Mode::Proxy("http://127.0.0.1:9470/proxy/b".into());
        assert_eq!(
            ["a", "b"].map(|access| cli.mode(access, cli.listen)),
            [Mode::Direct, proxy]
        );
    }

    #[test]
    fn a_probe_needs_no_source() {
        let cli = parse(&["probe"]).expect("valid");
        let Some(Command::Probe(options)) = cli.command else {
            panic!("{cli:?}");
        };
        assert_eq!(options.status.port(), 9471);
    }

    #[test]
    fn says_what_is_wrong_with_a_flag() {
        let cases: [(&[&str], &str); 14] = [
            (&["--source", "a=/keys", "--proxy", "b"], "--source b="),
            (&["--source", "a=/keys", "--source", "a=/other"], "`a` twice"),
            (&[], "--source"),
            (&["--source", "a"], "write <access>=<directory>"),
            (&["--source", "=/keys"], "not the name of an LLMAccess"),
            (&["--source", "../a=/keys"], "not the name of an LLMAccess"),
            (&["--source", "token=/keys"], "a file of the sidecar"),
            (&["--source", "a="], "lacks the directory"),
            (&["--source", "a=kube:b"], "is not kube:<namespace>/<secret>"),
            (
                &["--source", "a=/keys", "--listen", "0.0.0.0:9470"],
                "loopback only",
            ),
            (
                &["--source", "a=/keys", "--listen", "localhost"],
                "an address and a port",
            ),
            (
                &["--source", "a=/keys", "--api-server", "http://10.0.0.1:6443"],
                "write https://",
            ),
            (
                &[
                    "--source",
                    "a=/keys",
                    "--api-server",
                    "https://rancher/k8s/clusters/c1",
                ],
                "nothing behind",
            ),
            (
                &["--source", "a=/keys", "--api-server", "10.0.0.1:6443"],
                "before the host",
            ),
        ];
        for (arguments, expected) in cases {
            let error = parse(arguments).expect_err("refused");
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn an_api_server_is_reached_over_tls_or_on_loopback() {
        for url in [
            "https://10.0.0.1:6443",
            "https://api.internal/",
            "http://localhost:8001",
            "http://[::1]:8001",
        ] {
            assert!(api_server(url).is_ok(), "{url}");
        }
    }
}
