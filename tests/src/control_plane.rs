//! A Kubernetes control plane of the test's own: etcd, the API server and the controller manager, as real processes on
//! loopback. There are no nodes (that is [`crate::Node`]): pods can be created and stay Pending.

mod components;

use std::fs;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::binaries;
use crate::kubeconfig::{self, User};
use crate::process::Process;
use crate::wait::try_eventually;
use crate::work_dir::WorkDir;
use components::Layout;

/// Several clusters start at once on a small machine, so this is far more than one needs.
const START: Duration = Duration::from_mins(2);
const ATTEMPTS: usize = 3;

/// What a cluster starts with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Established before the controller manager starts. Of kinds that come later its garbage collector hears up to
    /// half a minute late, so tests of owner references want theirs here.
    pub crds: Vec<CustomResourceDefinition>,
    /// The flags of `helm install` that llmwarden's chart is installed with, likewise before the controller manager starts.
    pub chart: Option<Vec<String>>,
    /// Further flags of the API server.
    pub api_server_flags: Vec<String>,
    /// The address of the node that is going to run on it: pods reach the API server there. Without it, it is on
    /// loopback alone.
    pub node_address: Option<Ipv4Addr>,
}

/// A service account as a pod has it.
#[derive(Debug, Clone)]
pub struct Account {
    /// Where the API server is.
    pub server: String,
    /// The directory with `token` and `ca.crt`.
    pub directory: PathBuf,
}

/// A running control plane. Dropping it stops it; its directory with all logs stays if the test is panicking, so tests
/// unwrap where they would otherwise return an error.
#[derive(Debug)]
pub struct ControlPlane {
    // In the order in which they stop: clients of a component before the component.
    controller_manager: Option<Process>,
    api_server: Mutex<Option<Process>>,
    etcd: Process,
    layout: Layout,
    config: kube::Config,
    work_dir: WorkDir,
}

/// The control plane that the tests of one process share; see [`ControlPlane::shared`].
#[derive(Debug)]
pub struct Shared(&'static ControlPlane);

impl Deref for Shared {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.keep_if_panicking();
    }
}

impl ControlPlane {
    /// Starts a control plane and waits until it is ready and has its `default` namespace and service account.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// [`start`](Self::start), with options.
    pub async fn start_with(options: Options) -> Result<Self> {
        // The first caller builds for minutes, if nothing is there yet.
        let bin = tokio::task::spawn_blocking(binaries::control_plane).await??;
        for _ in 1..ATTEMPTS {
            match Self::attempt(&bin, &options).await {
                // Somebody else took the port between our look and the component's bind.
                Err(error) if format!("{error:#}").contains("address already in use") => {}
                outcome => return outcome,
            }
        }
        Self::attempt(&bin, &options).await
    }

    /// One control plane for all tests of this process that can share it, with a namespace for each. It ends with the
    /// process.
    pub async fn shared() -> Result<Shared> {
        static CLUSTER: OnceCell<ControlPlane> = OnceCell::const_new();
        CLUSTER.get_or_try_init(Self::start).await.map(Shared)
    }

    async fn attempt(bin: &Path, options: &Options) -> Result<Self> {
        let work_dir = WorkDir::create(&binaries::target_dir()?.join("cluster/run"))?;
        let layout = Layout::create(work_dir.path(), bin, options)?;
        let etcd = layout.start_etcd()?;
        let api_server = layout.start_api_server()?;
        let kubeconfig = Kubeconfig::read_from(&layout.kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let api_server = Mutex::new(Some(api_server));
        let mut cluster = Self {
            controller_manager: None,
            api_server,
            etcd,
            layout,
            config,
            work_dir,
        };

        let started = async {
            cluster.await_ready().await?;
            cluster.establish(&options.crds).await?;
            if let Some(flags) = &options.chart {
                cluster.install_chart(flags).await?;
            }
            cluster.controller_manager = cluster.layout.start_controller_manager()?;
            cluster.await_default_namespace().await
        };
        if let Err(error) = started.await {
            cluster.work_dir.keep("a cluster did not start");
            return Err(error);
        }
        Ok(cluster)
    }

    /// A new client with all rights. (A client lives on the runtime that made it, so each test asks for its own.)
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn client(&self) -> Client {
        Client::try_from(self.config()).expect("a client from the configuration that the start used")
    }

    /// The configuration of [`client`](Self::client).
    pub fn config(&self) -> kube::Config {
        self.config.clone()
    }

    /// The kubeconfig with all rights.
    pub fn kubeconfig(&self) -> &Path {
        &self.layout.kubeconfig
    }

    /// The API server's URL.
    pub fn url(&self) -> String {
        self.layout.url()
    }

    /// The certificate of the authority that signed the API server's.
    pub fn authority(&self) -> PathBuf {
        self.layout.authority.certificate()
    }

    /// A kubeconfig of a user in a group, by a certificate.
    pub fn kubeconfig_as(&self, user: &str, group: &str) -> Result<PathBuf> {
        let certificate = self.layout.authority.client(user, group)?;
        kubeconfig::write(
            self.work_dir(),
            user,
            &self.url(),
            &self.authority(),
            &User::Certificate(&certificate),
        )
    }

    /// A kubeconfig with the rights of a service account, which is made, with its namespace, unless it exists.
    pub async fn kubeconfig_for(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        self.kubeconfig_through(&self.url(), namespace, name).await
    }

    /// [`kubeconfig_for`](Self::kubeconfig_for) a program that reaches the API server at another URL.
    pub async fn kubeconfig_through(&self, server: &str, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.token_of(namespace, name).await?;
        let port = server.rsplit(':').next().unwrap_or_default();
        let file = format!("{namespace}.{name}.{port}");
        let user = User::Token(&token);
        kubeconfig::write(self.work_dir(), &file, server, &self.authority(), &user)
    }

    /// A service account as its pods have it; it is made, with its namespace, unless it exists.
    pub async fn account(&self, namespace: &str, name: &str) -> Result<Account> {
        let directory = self.work_dir().join(format!("{namespace}.{name}"));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("token"), self.token_of(namespace, name).await?)?;
        fs::copy(self.authority(), directory.join("ca.crt"))?;
        Ok(Account {
            server: self.url(),
            directory,
        })
    }

    /// Gives a service account all rights.
    pub async fn make_admin(&self, namespace: &str, name: &str) -> Result<()> {
        let binding: ClusterRoleBinding = serde_json::from_value(json!({
            "metadata": { "name": format!("{namespace}.{name}") },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
            "subjects": [{ "kind": "ServiceAccount", "namespace": namespace, "name": name }],
        }))?;
        ensure_exists(&Api::all(self.client()), &binding).await
    }

    async fn token_of(&self, namespace: &str, name: &str) -> Result<String> {
        let metadata = |name: &str| ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        };
        let client = self.client();
        let namespaces = Api::<Namespace>::all(client.clone());
        ensure_exists(
            &namespaces,
            &Namespace {
                metadata: metadata(namespace),
                ..Namespace::default()
            },
        )
        .await?;
        let accounts = Api::<ServiceAccount>::namespaced(client, namespace);
        ensure_exists(
            &accounts,
            &ServiceAccount {
                metadata: metadata(name),
                ..ServiceAccount::default()
            },
        )
        .await?;

        let spec = TokenRequestSpec {
            expiration_seconds: Some(86_400),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest {
            spec,
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await?;
        Ok(answer.status.context("a TokenRequest without a status")?.token)
    }

    /// A client with the rights of a service account; see [`kubeconfig_for`](Self::kubeconfig_for).
    pub async fn client_for(&self, namespace: &str, name: &str) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig_for(namespace, name).await?)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// `kubectl` with all rights on this cluster.
    pub fn kubectl(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(self.bin_dir().join("kubectl"));
        // A cache of its own: the user's belongs to other clusters, and ports come back.
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.work_dir().join("kubectl"));
        command.kill_on_drop(true);
        command
    }

    /// Runs `kubectl` with these arguments in the repository's directory, and returns what it printed.
    pub async fn run_kubectl(&self, arguments: &str) -> Result<String> {
        let mut command = self.kubectl();
        command
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .args(arguments.split_whitespace());
        let output = command.output().await?;
        if !output.status.success() {
            bail!("kubectl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Where the control plane's programs are.
    pub fn bin_dir(&self) -> &Path {
        &self.layout.bin
    }

    /// The directory of this cluster. What a test puts there is kept with the logs when it fails; of files that end in
    /// `.log` the last lines are printed too.
    pub fn work_dir(&self) -> &Path {
        self.work_dir.path()
    }

    /// The process ids of the components that run.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.etcd.pid()];
        pids.extend(self.api_server().as_ref().map(Process::pid));
        pids.extend(self.controller_manager.as_ref().map(Process::pid));
        pids
    }

    /// Kills the API server. What it has acknowledged is in etcd.
    pub fn stop_api_server(&self) {
        *self.api_server() = None;
    }

    /// Starts the API server again, on the same port and data, and waits until it is ready.
    pub async fn start_api_server(&self) -> Result<()> {
        {
            let mut api_server = self.api_server();
            if api_server.is_some() {
                bail!("the API server runs already");
            }
            *api_server = Some(self.layout.start_api_server()?);
        }
        self.await_ready().await
    }

    /// Keeps the directory when the test that lets go of the cluster is failing.
    pub fn keep_if_panicking(&self) {
        if std::thread::panicking() {
            self.work_dir.keep("a test failed");
        }
    }

    fn api_server(&self) -> MutexGuard<'_, Option<Process>> {
        self.api_server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn await_ready(&self) -> Result<()> {
        let client = self.client();
        self.while_alive("a ready API server", async || {
            client
                .request_text(http::Request::get("/readyz").body(Vec::new())?)
                .await?;
            Ok(())
        })
        .await
    }

    async fn establish(&self, crds: &[CustomResourceDefinition]) -> Result<()> {
        let api = Api::<CustomResourceDefinition>::all(self.client());
        for crd in crds {
            api.create(&PostParams::default(), crd).await?;
        }
        self.await_established().await
    }

    /// Waits until every definition that there is can be used.
    pub(crate) async fn await_established(&self) -> Result<()> {
        let api = Api::<CustomResourceDefinition>::all(self.client());
        for crd in api.list_metadata(&ListParams::default()).await? {
            let name = &crd.name_any();
            let established = await_condition(api.clone(), name, conditions::is_crd_established());
            tokio::time::timeout(START, established)
                .await
                .with_context(|| format!("{name} is not established"))??;
        }
        Ok(())
    }

    async fn await_default_namespace(&self) -> Result<()> {
        let client = self.client();
        self.while_alive("the default namespace and its service account", async || {
            Api::<Namespace>::all(client.clone()).get("default").await?;
            // It is the controller manager that makes it.
            if self.controller_manager.is_some() {
                Api::<ServiceAccount>::namespaced(client.clone(), "default")
                    .get("default")
                    .await?;
            }
            Ok(())
        })
        .await
    }

    /// Waits for something, but not after a component has died.
    async fn while_alive(&self, what: &str, mut look: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        let outcome = try_eventually(what, START, async || match (look().await, self.dead()) {
            (Ok(()), _) => Ok(Ok(())),
            (Err(_), Some(dead)) => Ok(Err(anyhow::Error::msg(dead))),
            (Err(error), None) => Err(error),
        });
        outcome.await?
    }

    /// What the first component that has died left in its log.
    fn dead(&self) -> Option<String> {
        let api_server = self.api_server();
        let all = [
            Some(&self.etcd),
            api_server.as_ref(),
            self.controller_manager.as_ref(),
        ];
        all.into_iter().flatten().find_map(|process| {
            let status = process.exited()?;
            Some(format!(
                "{} ended: {status}\n{}",
                process.name(),
                crate::process::tail(&process.log(), 30)
            ))
        })
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.keep_if_panicking();
    }
}

async fn ensure_exists<K>(api: &Api<K>, object: &K) -> Result<()>
where
    K: Resource + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        outcome => outcome.map(drop).map_err(Into::into),
    }
}
