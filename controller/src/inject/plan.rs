//! From a pod and what it is to get to the patch, or to what is in the way. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, Volume, VolumeMount};
use kube::ResourceExt;
use llmwarden_proto::names;
use serde_json::json;

use super::env::variables;
use super::patch::Draft;
use super::select::{Choice, Selection, list};
use super::sidecar::{self, Delivered, Template};
use super::{Injected, Obstacle, Outcome, SkipReason};
use crate::index::offer::Offer;

/// A container that gets mounts and variables.
struct Target<'a> {
    container: &'a Container,
    /// `containers` or `initContainers`.
    list: &'static str,
    number: String,
}

/// What becomes of a pod that `selection` was found for.
pub fn plan(pod: &Pod, selection: Selection, template: &Template) -> Outcome {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    match present_sidecar(spec, &selection) {
        Ok(false) => {}
        Ok(true) => return Outcome::Skip(SkipReason::AlreadyInjected),
        Err(obstacle) => return selection.obstructed(obstacle),
    }
    let targets = match unobstructed(spec).and_then(|()| targets(pod, spec)) {
        Ok(targets) => targets,
        Err(obstacle) => return selection.obstructed(obstacle),
    };
    if let Some(obstacle) = targets.iter().find_map(|target| {
        let whom = "the sidecar";
        mount_obstacle(spec, target.container, names::DELIVERY_DIR, whom)
    }) {
        return selection.obstructed(obstacle);
    }

    let Selection {
        accesses,
        named,
        mut left_out,
        ..
    } = selection;
    let mut fitting: Vec<Choice> = Vec::new();
    for (number, offer) in accesses.into_iter().enumerate() {
        match fits(spec, &targets, &offer, &fitting) {
            Ok(()) => fitting.push(offer),
            Err(obstacle) if number < named => return Outcome::Deny(obstacle),
            Err(obstacle) => left_out.push(obstacle),
        }
    }
    if fitting.is_empty()
        && let Some(obstacle) = left_out.pop()
    {
        return Outcome::Skip(SkipReason::Obstructed(obstacle));
    }
    let (operations, mut warnings) = changes(pod, spec, &targets, &fitting, template);
    warnings.extend(
        left_out
            .iter()
            .map(|obstacle| format!("not injected: {obstacle}")),
    );
    Outcome::Patch(Injected {
        operations,
        warnings,
        left_out,
    })
}

/// Whether the pod has the sidecar, and with it all that is asked for by name.
fn present_sidecar(spec: &PodSpec, selection: &Selection) -> Result<bool, Obstacle> {
    let foreign = || Obstacle::ForeignContainer {
        accesses: access_names(&selection.accesses).join(","),
    };
    let others = spec.containers.iter().map(|container| &container.name);
    let ephemeral = all(spec.ephemeral_containers.as_ref())
        .iter()
        .map(|container| &container.name);
    if others.chain(ephemeral).any(|name| name == names::SIDECAR) {
        return Err(foreign());
    }
    let mut present = all(spec.init_containers.as_ref())
        .iter()
        .filter(|c| c.name == names::SIDECAR);
    let Some(container) = present.next() else {
        return Ok(false);
    };
    let delivered = sidecar::delivered(container).ok_or_else(foreign)?;
    let named = &selection.accesses[..selection.named];
    if named.iter().all(|choice| {
        delivered
            .iter()
            .any(|delivered| delivered.access == choice.access)
    }) {
        Ok(true)
    } else {
        Err(foreign())
    }
}

/// What is in the way whatever is injected.
fn unobstructed(spec: &PodSpec) -> Result<(), Obstacle> {
    if spec.host_network == Some(true) {
        return Err(Obstacle::HostNetwork);
    }
    let os = spec.os.as_ref().map(|os| os.name.as_str());
    let node_os = spec
        .node_selector
        .as_ref()
        .and_then(|labels| labels.get("kubernetes.io/os"));
    if os == Some("windows") || node_os.is_some_and(|os| os == "windows") {
        return Err(Obstacle::Windows);
    }
    let declared = all(spec.volumes.as_ref()).iter().map(|volume| &volume.name);
    let mounted = containers(spec).flat_map(|(_, _, container)| mounts(container));
    let mounted_later = all(spec.ephemeral_containers.as_ref())
        .iter()
        .flat_map(ephemeral_mounts);
    let mut names = declared.chain(mounted.chain(mounted_later).map(|mount| &mount.name));
    if let Some(volume) = names.find(|name| *name == names::SIDECAR || name.starts_with(names::VOLUME_PREFIX))
    {
        return Err(Obstacle::ForeignVolume {
            volume: volume.clone(),
        });
    }
    for (_, _, container) in containers(spec) {
        let ports = all(container.ports.as_ref())
            .iter()
            .map(|port| port.container_port);
        let ours = [names::ENDPOINT_PORT, names::STATUS_PORT].map(i32::from);
        if let Some(port) = ports.into_iter().find(|port| ours.contains(port)) {
            return Err(Obstacle::PortTaken {
                container: container.name.clone(),
                port,
            });
        }
    }
    Ok(())
}

/// The containers that get mounts and variables: all, init containers included, unless an annotation limits them.
fn targets<'a>(pod: &'a Pod, spec: &'a PodSpec) -> Result<Vec<Target<'a>>, Obstacle> {
    let mut targets: Vec<Target> = containers(spec)
        .map(|(list, number, container)| Target {
            container,
            list,
            number: number.to_string(),
        })
        .collect();
    if let Some(value) = pod.annotations().get(names::CONTAINERS_ANNOTATION) {
        let limit = list(value);
        let has = |name: &&str| targets.iter().any(|target| target.container.name == **name);
        if let Some(missing) = limit.iter().find(|name| !has(name)) {
            return Err(Obstacle::ContainerMissing {
                container: (*missing).to_owned(),
            });
        }
        // kagent can't remove an annotation again, only empty it.
        targets.retain(|target| limit.is_empty() || limit.contains(&target.container.name.as_str()));
    }
    Ok(targets)
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = (&'static str, usize, &Container)> {
    let init = all(spec.init_containers.as_ref()).iter().enumerate();
    let main = spec.containers.iter().enumerate();
    init.map(|(number, container)| ("initContainers", number, container))
        .chain(main.map(|(number, container)| ("containers", number, container)))
}

/// Whether an access's directory can be mounted in every target, beside the accesses before it.
fn fits(spec: &PodSpec, targets: &[Target], offer: &Offer, before: &[Choice]) -> Result<(), Obstacle> {
    let Some(volume) = &offer.injection.volume else {
        return Ok(());
    };
    let path = &volume.mount_path;
    for other in before {
        let theirs = other.injection.volume.as_ref().map(|volume| &volume.mount_path);
        // One inside the other can't be: both are read-only.
        if theirs.is_some_and(|theirs| covers(theirs, path) || covers(path, theirs)) {
            return Err(Obstacle::MountPathShared {
                access: offer.access.clone(),
                other: other.access.clone(),
                path: path.clone(),
            });
        }
    }
    let whom = format!("LLMAccess {}", offer.access);
    let obstacle = |target: &Target| mount_obstacle(spec, target.container, path, &whom);
    targets.iter().find_map(obstacle).map_or(Ok(()), Err)
}

/// What a container mounts that is in the way of a mount of ours at `ours`.
fn mount_obstacle(spec: &PodSpec, container: &Container, ours: &str, whom: &str) -> Option<Obstacle> {
    let volume = |name: &str| {
        all(spec.volumes.as_ref())
            .iter()
            .find(|volume| volume.name == name)
    };
    let in_the_way = |mount: &&VolumeMount| {
        covers(ours, &mount.mount_path)
            // Nobody could make the directory for ours in it.
            || (covers(&mount.mount_path, ours)
                && (mount.read_only == Some(true) || volume(&mount.name).is_some_and(is_read_only)))
    };
    let taken = mounts(container).iter().find(in_the_way)?;
    Some(Obstacle::MountPathTaken {
        container: container.name.clone(),
        theirs: taken.mount_path.clone(),
        ours: ours.to_owned(),
        whom: whom.to_owned(),
    })
}

fn is_read_only(volume: &Volume) -> bool {
    volume.secret.is_some()
        || volume.config_map.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.image.is_some()
}

/// Whether `inner` is the directory `outer`, or inside it.
fn covers(outer: &str, inner: &str) -> bool {
    let (outer, inner) = (parts(outer), parts(inner));
    inner.starts_with(&outer)
}

/// The parts of a path. In nearly every image, /var/run is a link to /run.
fn parts(path: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.starts_with(&["var", "run"]) {
        parts.remove(0);
    }
    parts
}

/// The operations, and what they leave that the author may not expect.
fn changes(
    pod: &Pod,
    spec: &PodSpec,
    targets: &[Target],
    accesses: &[Choice],
    template: &Template,
) -> (Vec<json_patch::PatchOperation>, Vec<String>) {
    let mut draft = Draft::default();
    let mut warnings = BTreeSet::new();
    match &pod.metadata.labels {
        Some(labels) if !labels.is_empty() => {
            draft.set(&["metadata", "labels", names::INJECTED_LABEL], json!("true"));
        }
        _ => draft.set(&["metadata", "labels"], json!({ names::INJECTED_LABEL: "true" })),
    }
    let delivered: Vec<Delivered> = accesses
        .iter()
        .map(|choice| Delivered {
            access: &choice.access,
            proxied: choice.proxy.is_some(),
        })
        .collect();
    let volumes = sidecar::volumes(&delivered, template);
    draft.append(&["spec", "volumes"], all(spec.volumes.as_ref()), &volumes);

    let mut more = vec![sidecar::delivery_mount()];
    for offer in accesses {
        if let Some(volume) = &offer.injection.volume {
            let read_only = volume.read_only.unwrap_or(true);
            more.push(sidecar::access_mount(
                &offer.access,
                &volume.mount_path,
                read_only,
            ));
        }
    }
    for target in targets {
        let path = ["spec", target.list, &target.number];
        let at = |field| [path.as_slice(), &[field]].concat();
        draft.append(&at("volumeMounts"), mounts(target.container), &more);
        let present = all(target.container.env.as_ref());
        let variables = variables(target.container, accesses, &mut warnings);
        for (number, variable) in variables.replaced {
            draft.replace(&[at("env").as_slice(), &[&number.to_string()]].concat(), variable);
        }
        draft.append(&at("env"), present, &variables.added);
    }
    if let Some(exposed) = exposure(spec).filter(|_| delivered.iter().any(|delivered| delivered.proxied)) {
        warnings.insert(format!("{exposed}: the proxy does not keep the key from it"));
    }
    // Last, as it moves the other init containers: the sidecar runs before any of them.
    let sidecar = sidecar::container(pod, &delivered, template);
    let init = all(spec.init_containers.as_ref());
    draft.prepend(&["spec", "initContainers"], init, sidecar);
    (draft.0, warnings.into_iter().collect())
}

fn access_names(accesses: &[Choice]) -> Vec<&str> {
    accesses.iter().map(|choice| choice.access.as_str()).collect()
}

/// What lets the agent's containers into the sidecar, if something does.
pub fn exposure(spec: &PodSpec) -> Option<String> {
    if spec.share_process_namespace == Some(true) {
        return Some("the pod has shareProcessNamespace".to_owned());
    }
    let privileged = |container: &&Container| {
        let security = container.security_context.as_ref();
        security.is_some_and(|security| security.privileged == Some(true))
    };
    let (_, _, container) = containers(spec).find(|(_, _, container)| privileged(container))?;
    Some(format!("container {} is privileged", container.name))
}

fn mounts(container: &Container) -> &[VolumeMount] {
    all(container.volume_mounts.as_ref())
}

fn ephemeral_mounts(container: &EphemeralContainer) -> &[VolumeMount] {
    all(container.volume_mounts.as_ref())
}

fn all<T>(list: Option<&Vec<T>>) -> &[T] {
    list.map(Vec::as_slice).unwrap_or_default()
}
