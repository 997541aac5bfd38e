//! The components' command lines, and the files that they need.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use anyhow::Result;

use super::Options;
use crate::certificates::{Authority, Certificate};
use crate::kubeconfig::{self, User};
use crate::ports::free_port;
use crate::process::Process;

/// What pods know the API server by: the first address of the range of Services.
const SERVICE_ADDRESS: &str = "10.96.0.1";

/// Everything about a cluster that stays the same when a component is restarted.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) bin: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) authority: Authority,
    dir: PathBuf,
    admin: Certificate,
    serving: Certificate,
    service_accounts: Certificate,
    etcd_port: u16,
    api_port: u16,
    options: Options,
}

impl Layout {
    pub(super) fn create(dir: &Path, bin: &Path, options: &Options) -> Result<Self> {
        let authority = Authority::new(&dir.join("certificates"))?;
        let mut names = vec![
            "127.0.0.1",
            "localhost",
            "kubernetes.default.svc",
            SERVICE_ADDRESS,
        ];
        let node = options.node_address.map(|address| address.to_string());
        names.extend(node.as_deref());
        let mut layout = Self {
            bin: bin.to_owned(),
            kubeconfig: PathBuf::new(),
            dir: dir.to_owned(),
            admin: authority.client("admin", "system:masters")?,
            serving: authority.server("kube-apiserver", &names)?,
            service_accounts: authority.service_accounts()?,
            authority,
            etcd_port: free_port(),
            api_port: free_port(),
            options: options.clone(),
        };
        let user = User::Certificate(&layout.admin);
        let authority = layout.authority.certificate();
        layout.kubeconfig = kubeconfig::write(dir, "admin", &layout.url(), &authority, &user)?;
        Ok(layout)
    }

    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port)
    }

    pub(super) fn start_etcd(&self) -> Result<Process> {
        let client = self.etcd_url();
        let mut command = self.command("etcd");
        command
            .arg(flag("data-dir", self.dir.join("etcd")))
            .arg(flag("listen-client-urls", &client))
            .arg(flag("advertise-client-urls", &client))
            // It has no peers: any port does.
            .arg("--listen-peer-urls=http://127.0.0.1:0")
            .arg("--log-level=warn")
            // Nobody needs this data after a power cut.
            .arg("--unsafe-no-fsync");
        self.spawn("etcd", &command)
    }

    pub(super) fn start_api_server(&self) -> Result<Process> {
        let mut command = self.command("kube-apiserver");
        command
            .arg(flag("etcd-servers", self.etcd_url()))
            .arg(flag("secure-port", self.api_port.to_string()))
            .arg(flag("tls-cert-file", &self.serving.certificate))
            .arg(flag("tls-private-key-file", &self.serving.key))
            .arg(flag("client-ca-file", self.authority.certificate()))
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg(flag(
                "service-account-key-file",
                &self.service_accounts.certificate,
            ))
            .arg(flag(
                "service-account-signing-key-file",
                &self.service_accounts.key,
            ))
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg("--authorization-mode=Node,RBAC")
            .arg("--enable-admission-plugins=NodeRestriction")
            .arg("--allow-privileged=true");
        if !self.has_controller_manager() {
            // It refuses pods in namespaces without a service account, and nobody makes those then.
            command.arg("--disable-admission-plugins=ServiceAccount");
        }
        match self.options.node_address {
            None => command
                .arg("--bind-address=127.0.0.1")
                .arg("--advertise-address=127.0.0.1")
                // A loopback address is no valid endpoint of the `kubernetes` Service.
                .arg("--endpoint-reconciler-type=none"),
            Some(address) => command
                .arg(flag("advertise-address", address.to_string()))
                // For the logs of pods, and commands in them.
                .arg(flag("kubelet-client-certificate", &self.admin.certificate))
                .arg(flag("kubelet-client-key", &self.admin.key))
                // There is no name server.
                .arg("--kubelet-preferred-address-types=InternalIP"),
        };
        command.args(&self.options.api_server_flags);
        self.spawn("kube-apiserver", &command)
    }

    /// `None` with envtest's programs, which have no controller manager.
    pub(super) fn start_controller_manager(&self) -> Result<Option<Process>> {
        if !self.has_controller_manager() {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                eprintln!(
                    "NO CONTROLLER MANAGER in {}: tests of garbage collection, namespace deletion and service accounts will fail",
                    self.bin.display()
                );
            });
            return Ok(None);
        }
        let mut command = self.command("kube-controller-manager");
        command
            .arg(flag("kubeconfig", &self.kubeconfig))
            .arg("--leader-elect=false")
            // It serves nothing that a test asks for.
            .arg("--secure-port=0")
            .arg(flag("root-ca-file", self.authority.certificate()))
            .arg(flag(
                "service-account-private-key-file",
                &self.service_accounts.key,
            ));
        self.spawn("kube-controller-manager", &command).map(Some)
    }

    fn has_controller_manager(&self) -> bool {
        self.bin.join("kube-controller-manager").is_file()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(&self.dir);
        command
    }

    fn spawn(&self, name: &str, command: &Command) -> Result<Process> {
        Process::spawn(name, command, self.dir.join(format!("{name}.log")))
    }
}

fn flag(name: &str, value: impl AsRef<Path>) -> String {
    format!("--{name}={}", value.as_ref().display())
}
