//! The sidecar's container and its volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, ExecAction, Pod, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use llmwarden_proto::names;

/// Where the API server mounts the token of the pod's service account, unless something is mounted there.
const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An empty volume that is mounted there.
const NO_TOKEN_VOLUME: &str = "llmwarden-no-token";
/// What the name of a companion's volume begins with. Names of accesses don't fit: they may have dots and 63 characters.
const SOURCE_VOLUME: &str = "llmwarden-source-";
/// The flags that say which accesses there are, and which of them are in proxy mode.
const SOURCE: &str = "--source";
const PROXY: &str = "--proxy";
/// The program, in the image: it has no search path.
const PROGRAM: &str = "/llmwarden-sidecar";
/// Readable by any user: the sidecar may run as whoever the pod runs as.
const SOURCE_MODE: i32 = 0o444;
/// Who the sidecar runs as where the pod runs as root. Everywhere else it is the image's user, or the pod's.
const NOT_ROOT: i64 = 65532;

/// What differs between installations.
#[derive(Debug, Clone)]
pub struct Template {
    /// The image.
    pub image: String,
    /// What the container requests.
    pub requests: BTreeMap<String, Quantity>,
    /// What it is limited to.
    pub limits: BTreeMap<String, Quantity>,
    /// The most that the shared volume may hold.
    pub volume_size: Quantity,
    /// Variables that say which way requests to providers take out of the cluster.
    pub egress: BTreeMap<&'static str, String>,
}

/// An access that a sidecar delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered<'a> {
    /// Its name.
    pub access: &'a str,
    /// Whether its key stays in the sidecar.
    pub proxied: bool,
}

/// The sidecar's arguments for these accesses.
fn arguments(accesses: &[Delivered]) -> Vec<String> {
    let mut arguments = vec!["--dir".to_owned(), names::DELIVERY_DIR.to_owned()];
    for Delivered { access, .. } in accesses {
        arguments.extend([SOURCE.to_owned(), format!("{access}={}", source_dir(access))]);
    }
    for Delivered { access, .. } in accesses.iter().filter(|access| access.proxied) {
        arguments.extend([PROXY.to_owned(), (*access).to_owned()]);
    }
    arguments
}

/// The values that arguments give a flag.
fn values<'a>(arguments: &'a [String], flag: &str) -> impl Iterator<Item = &'a str> {
    let pairs = arguments.windows(2).filter(move |pair| pair[0] == flag);
    pairs.map(|pair| pair[1].as_str())
}

fn source_dir(access: &str) -> String {
    format!("{}/{access}", names::COMPANIONS_DIR)
}

/// The accesses that a container delivers, if it is the sidecar: known by its name, its kind and its arguments. (Others
/// rewrite images and resources.)
pub fn delivered(container: &Container) -> Option<Vec<Delivered<'_>>> {
    if !is_sidecar(container) {
        return None;
    }
    let given = container.args.as_deref().unwrap_or_default();
    let proxied: Vec<&str> = values(given, PROXY).collect();
    let accesses: Vec<_> = values(given, SOURCE)
        .filter_map(|source| source.split_once('='))
        .map(|(access, _)| Delivered {
            access,
            proxied: proxied.contains(&access),
        })
        .collect();
    (!accesses.is_empty() && given == arguments(&accesses)).then_some(accesses)
}

/// The accesses whose companions a pod's sidecar mounts: by its structure too, but whatever else an earlier or a later version
/// gave it, since pods outlive controllers.
pub fn mounted(spec: &PodSpec) -> Vec<Delivered<'_>> {
    let Some(sidecar) = spec.init_containers.iter().flatten().find(|c| is_sidecar(c)) else {
        return Vec::new();
    };
    let companion_at = |dir: &str| {
        let mut mounts = sidecar.volume_mounts.iter().flatten();
        let mount = mounts.find(|mount| mount.mount_path == dir)?;
        let mut volumes = spec.volumes.iter().flatten();
        let volume = volumes.find(|volume| volume.name == mount.name)?;
        volume.secret.as_ref()?.secret_name.as_deref()
    };
    let given = sidecar.args.as_deref().unwrap_or_default();
    values(given, SOURCE)
        .filter_map(|source| source.split_once('='))
        .filter(|(access, dir)| companion_at(dir) == Some(names::companion(access).as_str()))
        .map(|(access, _)| Delivered {
            access,
            proxied: values(given, PROXY).any(|proxied| proxied == access),
        })
        .collect()
}

fn is_sidecar(container: &Container) -> bool {
    container.name == names::SIDECAR && container.restart_policy.as_deref() == Some("Always")
}

/// The container: a native sidecar, valid under the `restricted` standard.
pub fn container(pod: &Pod, accesses: &[Delivered], template: &Template) -> Container {
    let mut mounts = vec![
        mount(names::SIDECAR, names::DELIVERY_DIR, false),
        mount(NO_TOKEN_VOLUME, TOKEN_DIR, true),
    ];
    for (number, access) in accesses.iter().enumerate() {
        mounts.push(mount(&source_volume(number), &source_dir(access.access), true));
    }
    Container {
        name: names::SIDECAR.to_owned(),
        image: Some(template.image.clone()),
        args: Some(arguments(accesses)),
        // Without a proxy in it, it calls nobody.
        env: accesses
            .iter()
            .any(|access| access.proxied)
            .then(|| egress(template))
            .filter(|variables| !variables.is_empty()),
        restart_policy: Some("Always".to_owned()),
        ports: Some(vec![ContainerPort {
            name: Some(names::SIDECAR.to_owned()),
            container_port: names::STATUS_PORT.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        // The kubelet puts what it prints into the pod's events. A key that comes late is waited for without end.
        startup_probe: Some(Probe {
            exec: Some(ExecAction {
                command: Some(vec![PROGRAM.to_owned(), "probe".to_owned()]),
            }),
            period_seconds: Some(1),
            timeout_seconds: Some(5),
            failure_threshold: Some(i32::MAX),
            ..Probe::default()
        }),
        resources: Some(ResourceRequirements {
            requests: Some(template.requests.clone()),
            limits: Some(template.limits.clone()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            run_as_user: runs_as_root(pod).then_some(NOT_ROOT),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn egress(template: &Template) -> Vec<EnvVar> {
    let variables = template.egress.iter().map(|(name, value)| EnvVar {
        name: (*name).to_owned(),
        value: Some(value.clone()),
        value_from: None,
    });
    variables.collect()
}

fn runs_as_root(pod: &Pod) -> bool {
    let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    security.and_then(|security| security.run_as_user) == Some(0)
}

/// The volumes: the one that is shared, the companions, and the empty one in place of the service account's token.
pub fn volumes(accesses: &[Delivered], template: &Template) -> Vec<Volume> {
    let mut volumes = vec![
        Volume {
            name: names::SIDECAR.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(template.volume_size.clone()),
            }),
            ..Volume::default()
        },
        Volume {
            name: NO_TOKEN_VOLUME.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity("4Ki".to_owned())),
            }),
            ..Volume::default()
        },
    ];
    for (number, access) in accesses.iter().enumerate() {
        volumes.push(Volume {
            name: source_volume(number),
            secret: Some(SecretVolumeSource {
                secret_name: Some(names::companion(access.access)),
                default_mode: Some(SOURCE_MODE),
                // A required one that is missing would hold the pod up for long after it appears, and one that is deleted
                // would stay in running pods.
                optional: Some(true),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes
}

fn source_volume(number: usize) -> String {
    format!("{SOURCE_VOLUME}{number}")
}

/// The mount of everything that is delivered.
pub fn delivery_mount() -> VolumeMount {
    mount(names::SIDECAR, names::DELIVERY_DIR, true)
}

/// The mount of one access's directory, elsewhere. It is a directory of the shared volume, which the sidecar made before
/// these containers start and never replaces: its content changes inside it, so the mount follows, as one of a file would not.
pub fn access_mount(access: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        sub_path: Some(access.to_owned()),
        ..mount(names::SIDECAR, path, read_only)
    }
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
