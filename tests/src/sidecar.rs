//! The sidecar as a process, delivering to a directory of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llmwarden_proto::logging::LEVEL_VARIABLE;
use llmwarden_proto::names;
use llmwarden_proto::status::Status;
use tempfile::TempDir;

use crate::binaries;
use crate::control_plane::Account;
use crate::process::{Process, tail};
use crate::wait::try_eventually;

const START: Duration = Duration::from_secs(30);
/// By these a process is told to go out through a proxy.
const EGRESS: [&str; 4] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"];

/// How a sidecar is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its `--source` flags.
    pub sources: Vec<String>,
    /// The accesses in proxy mode.
    pub proxied: Vec<String>,
    /// Port of the endpoint; 0 for any free one.
    pub port: u16,
    /// Address of health, metrics and status.
    pub status: String,
    /// What a `kube:` source connects with.
    pub account: Option<Account>,
    /// Level of the log.
    pub log_level: String,
    /// More of its environment: nothing of this process' goes there that says which way out is.
    pub env: Vec<(String, String)>,
    /// Where to deliver to; a new directory unless given.
    pub dir: Option<PathBuf>,
}

impl Options {
    /// These sources, on free ports.
    pub fn new(sources: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            sources: sources.into_iter().map(Into::into).collect(),
            proxied: Vec::new(),
            port: 0,
            status: "127.0.0.1:0".to_owned(),
            account: None,
            log_level: std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_| "debug".to_owned()),
            env: Vec::new(),
            dir: None,
        }
    }

    /// The command line of a sidecar that delivers to `dir`.
    pub fn command(&self, dir: &Path) -> Result<Command> {
        let mut command = Command::new(binaries::sidecar()?);
        for source in &self.sources {
            command.args(["--source", source]);
        }
        for access in &self.proxied {
            command.args(["--proxy", access]);
        }
        command
            .arg("--dir")
            .arg(dir)
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--status", &self.status])
            .envs(image_environment())
            .env(LEVEL_VARIABLE, &self.log_level);
        for variable in EGRESS {
            command
                .env_remove(variable)
                .env_remove(variable.to_ascii_lowercase());
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(Account { server, directory }) = &self.account {
            command.arg("--service-account").arg(directory);
            match server.strip_prefix("https://").and_then(|at| at.split_once(':')) {
                // As a pod is told.
                Some((host, port)) => {
                    command.envs([
                        ("KUBERNETES_SERVICE_HOST", host),
                        ("KUBERNETES_SERVICE_PORT", port),
                    ]);
                }
                None => {
                    command.args(["--api-server", server]);
                }
            }
        }
        Ok(command)
    }
}

/// What its image has it run with, of its environment.
pub fn image_environment() -> impl Iterator<Item = (&'static str, &'static str)> {
    let stages = include_str!("../../Dockerfile.sidecar").split("\nFROM ");
    let last = stages.last().unwrap_or_default();
    last.lines()
        .filter_map(|line| line.strip_prefix("ENV ")?.split_once('='))
}

/// A sidecar that listens. Dropping it kills it and removes what it delivered.
#[derive(Debug)]
pub struct Sidecar {
    process: Process,
    endpoint: SocketAddr,
    status: SocketAddr,
    options: Options,
    home: Home,
}

/// Where a sidecar lives: its log, and what it delivers, on tmpfs where the machine has one and unless told otherwise.
#[derive(Debug)]
struct Home {
    own: TempDir,
    delivery: PathBuf,
}

impl Home {
    fn new(delivery: Option<PathBuf>) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let builder = |parent: &Path| tempfile::Builder::new().prefix("llmwarden-").tempdir_in(parent);
        let own = builder(memory).or_else(|_| builder(&std::env::temp_dir()))?;
        let delivery = delivery.unwrap_or_else(|| own.path().join("run"));
        Ok(Self { own, delivery })
    }

    fn log(&self) -> PathBuf {
        self.own.path().join("sidecar.log")
    }
}

impl Sidecar {
    /// Starts one and waits until it listens.
    pub async fn start(options: Options) -> Result<Self> {
        let home = Home::new(options.dir.clone())?;
        Self::start_at(options, home).await
    }

    async fn start_at(options: Options, home: Home) -> Result<Self> {
        let offset = std::fs::metadata(home.log()).map_or(0, |log| log.len());
        let process = Process::spawn("sidecar", &options.command(&home.delivery)?, home.log())?;
        let line = process
            .await_log_from(usize::try_from(offset)?, START, |line| {
                line.contains("listening endpoint=")
            })
            .await?;
        let address = |name: &str| -> Result<SocketAddr> {
            let (_, rest) = line
                .split_once(name)
                .with_context(|| format!("no {name} in: {line}"))?;
            Ok(rest.split(' ').next().unwrap_or_default().parse()?)
        };
        Ok(Self {
            endpoint: address("endpoint=")?,
            status: address("status=")?,
            process,
            options,
            home,
        })
    }

    /// Ends it with SIGKILL, and starts another one that delivers to the same directory.
    pub async fn restart(self) -> Result<Self> {
        self.process.kill();
        Self::start_at(self.options, self.home).await
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The directory that it delivers to.
    pub fn dir(&self) -> PathBuf {
        self.home.delivery.clone()
    }

    /// The file with a value of an access.
    pub fn file(&self, access: &str, key: &str) -> PathBuf {
        self.dir().join(access).join(key)
    }

    /// The file for `curl -H @…`.
    pub fn auth_header(&self) -> PathBuf {
        self.dir().join(names::AUTH_HEADER_FILE)
    }

    /// Where the endpoint listens.
    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// A URL of the endpoint.
    pub fn url(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.endpoint.port())
    }

    /// A URL of the status port.
    pub fn status_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.status)
    }

    /// What a probe of the status port answers: the status code and the text.
    pub async fn probe(&self, path: &str) -> Result<(u16, String)> {
        let url = self.status_url(path);
        tokio::task::spawn_blocking(move || {
            let config = ureq::Agent::config_builder().http_status_as_error(false).build();
            let mut answer = ureq::Agent::new_with_config(config).get(&url).call()?;
            Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
        })
        .await?
    }

    /// Waits until it has a key for every access.
    pub async fn await_keys(&self, timeout: Duration) -> Result<()> {
        try_eventually("a key for every access", timeout, async || {
            let (status, text) = self.probe("/startupz").await?;
            ensure!(status == 200, "{text}");
            Ok(())
        })
        .await
    }

    /// The samples of `/metrics` whose names, with labels, begin like this: the rest of the name, and the value.
    pub async fn samples(&self, begin: &str) -> Result<BTreeMap<String, f64>> {
        let (_, text) = self.probe("/metrics").await?;
        let samples = text.lines().filter_map(|line| line.strip_prefix(begin));
        let samples = samples.filter_map(|rest| rest.rsplit_once(' '));
        samples
            .map(|(name, value)| Ok((name.to_owned(), value.parse()?)))
            .collect()
    }

    /// What `/status` says.
    pub async fn status(&self) -> Result<Status> {
        let (_, text) = self.probe("/status").await?;
        Ok(serde_json::from_str(&text)?)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("--- the end of the sidecar's log\n{}", tail(&log, 30));
        }
    }
}
