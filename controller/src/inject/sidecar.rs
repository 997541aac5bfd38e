//! The sidecar's container and its volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, ExecAction, Pod, PodSpec, Probe,
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
}

/// The sidecar's arguments for these accesses.
fn arguments(accesses: &[&str]) -> Vec<String> {
    let mut arguments = vec!["--dir".to_owned(), names::DELIVERY_DIR.to_owned()];
    for access in accesses {
        arguments.push("--source".to_owned());
        arguments.push(format!("{access}={}", source_dir(access)));
    }
    arguments
}

fn source_dir(access: &str) -> String {
    format!("{}/{access}", names::COMPANIONS_DIR)
}

/// The accesses that a container delivers, if it is the sidecar: known by its name, its kind and its arguments. (Others
/// rewrite images and resources.)
pub fn delivered(container: &Container) -> Option<Vec<&str>> {
    if container.name != names::SIDECAR || container.restart_policy.as_deref() != Some("Always") {
        return None;
    }
    let given = container.args.as_deref().unwrap_or_default();
    let accesses: Vec<&str> = given
        .iter()
        .filter_map(|argument| argument.split_once('=').map(|(access, _)| access))
        .collect();
    (!accesses.is_empty() && given == arguments(&accesses)).then_some(accesses)
}

/// The accesses whose companions a pod's sidecar mounts: by its structure too, but whatever else an earlier or a later version
/// gave it, since pods outlive controllers.
pub fn mounted(spec: &PodSpec) -> Vec<String> {
    let is_sidecar = |container: &&Container| {
        container.name == names::SIDECAR && container.restart_policy.as_deref() == Some("Always")
    };
    let Some(sidecar) = spec.init_containers.iter().flatten().find(is_sidecar) else {
        return Vec::new();
    };
    let companion_at = |dir: &str| {
        let mount = sidecar
            .volume_mounts
            .iter()
            .flatten()
            .find(|mount| mount.mount_path == dir)?;
        let volume = spec
            .volumes
            .iter()
            .flatten()
            .find(|volume| volume.name == mount.name)?;
        volume.secret.as_ref()?.secret_name.as_deref()
    };
    let arguments = sidecar.args.as_deref().unwrap_or_default();
    arguments
        .windows(2)
        .filter(|pair| pair[0] == "--source")
        .filter_map(|pair| pair[1].split_once('='))
        .filter(|(access, dir)| companion_at(dir) == Some(names::companion(access).as_str()))
        .map(|(access, _)| access.to_owned())
        .collect()
}

/// The container: a native sidecar, valid under the `restricted` standard.
pub fn container(pod: &Pod, accesses: &[&str], template: &Template) -> Container {
    let mut mounts = vec![
        mount(names::SIDECAR, names::DELIVERY_DIR, false),
        mount(NO_TOKEN_VOLUME, TOKEN_DIR, true),
    ];
    for (number, access) in accesses.iter().enumerate() {
        mounts.push(mount(&source_volume(number), &source_dir(access), true));
    }
    Container {
        name: names::SIDECAR.to_owned(),
        image: Some(template.image.clone()),
        args: Some(arguments(accesses)),
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

fn runs_as_root(pod: &Pod) -> bool {
    let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    security.and_then(|security| security.run_as_user) == Some(0)
}

/// The volumes: the one that is shared, the companions, and the empty one in place of the service account's token.
pub fn volumes(accesses: &[&str], template: &Template) -> Vec<Volume> {
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
                secret_name: Some(names::companion(access)),
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
