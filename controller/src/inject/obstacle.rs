//! What can be in the way of an injection. Its text is what `kubectl` shows, so it says what to do.

use llmwarden_proto::names;

/// What is in the way of an injection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The pod, or its Agent, names an access that does not exist.
    #[error(
        "LLMAccess {namespace}/{access} does not exist, and the annotation {annotation} of {whose} names it: create it, or \
         correct the annotation",
        annotation = names::INJECT_ANNOTATION
    )]
    AccessMissing {
        /// The pod's namespace.
        namespace: String,
        /// What is named.
        access: String,
        /// Whose annotation it is.
        whose: String,
    },
    /// No key is provisioned in the namespace.
    #[error("this llmwarden does not serve namespace {namespace}: ask the platform team to add it")]
    NamespaceNotServed {
        /// The pod's namespace.
        namespace: String,
    },
    /// A Secret of the access belongs to somebody else.
    #[error(
        "LLMAccess {access} is in conflict, Secret {secret} is not its own: kubectl describe llmaccess {access} says what to do"
    )]
    SecretConflict {
        /// The access.
        access: String,
        /// The Secret.
        secret: String,
    },
    /// Its provider does not exist, so nobody knows whether the pod may hold the key.
    #[error("LLMProvider {provider} of LLMAccess {access} does not exist: ask the platform team for it")]
    ProviderMissing {
        /// The access.
        access: String,
        /// The provider.
        provider: String,
    },
    /// The pod must not hold the key, and the proxy that would can't be used for its provider.
    #[error("LLMAccess {access} wants the proxy, which is not possible: {why}")]
    ProxyUnsupported {
        /// The access.
        access: String,
        /// Why, and what to do.
        why: String,
    },
    /// On the node's network, localhost is the node's.
    #[error("the pod has hostNetwork, where the sidecar's localhost would be the node's: remove hostNetwork")]
    HostNetwork,
    /// There is no sidecar for Windows.
    #[error(
        "the pod is for Windows, which the sidecar does not run on: remove the annotation or the label that selects it"
    )]
    Windows,
    /// A container has the sidecar's name and is something else, or delivers other accesses.
    #[error(
        "the pod has a container named {name} that is not the sidecar for {accesses}: rename or remove it",
        name = names::SIDECAR
    )]
    ForeignContainer {
        /// What the sidecar would deliver.
        accesses: String,
    },
    /// The pod's author declared a volume, or a mount of one, under the sidecar's names.
    #[error(
        "the pod declares or mounts a volume named {volume}: {own} and {prefix}* are the sidecar's names, choose another",
        own = names::SIDECAR,
        prefix = names::VOLUME_PREFIX
    )]
    ForeignVolume {
        /// The volume.
        volume: String,
    },
    /// Something is mounted where the keys go, or in the way of it.
    #[error("container {container} mounts {theirs}, so {ours} can't be mounted for {whom}: move one of them")]
    MountPathTaken {
        /// The container.
        container: String,
        /// What it mounts.
        theirs: String,
        /// What would be mounted.
        ours: String,
        /// The access, or the sidecar.
        whom: String,
    },
    /// Two accesses want one directory.
    #[error(
        "LLMAccess {access} and LLMAccess {other} are both to be mounted at {path}: give one of them another \
         injection.volume.mountPath"
    )]
    MountPathShared {
        /// The second one.
        access: String,
        /// The first one.
        other: String,
        /// The directory of the second one.
        path: String,
    },
    /// A container listens on a port of the sidecar.
    #[error("container {container} has port {port}, which is the sidecar's: choose another")]
    PortTaken {
        /// The container.
        container: String,
        /// The port.
        port: i32,
    },
    /// The annotation names a container that the pod does not have.
    #[error(
        "the pod has no container {container}, and its annotation {annotation} names it: correct the annotation",
        annotation = names::CONTAINERS_ANNOTATION
    )]
    ContainerMissing {
        /// What is named.
        container: String,
    },
}

impl Obstacle {
    /// In one word, for metrics and events.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::AccessMissing { .. } => "AccessMissing",
            Self::NamespaceNotServed { .. } => "NamespaceNotServed",
            Self::SecretConflict { .. } => "SecretConflict",
            Self::ProviderMissing { .. } => "ProviderMissing",
            Self::ProxyUnsupported { .. } => "ProxyUnsupported",
            Self::HostNetwork => "HostNetwork",
            Self::Windows => "Windows",
            Self::ForeignContainer { .. } => "ForeignContainer",
            Self::ForeignVolume { .. } => "ForeignVolume",
            Self::MountPathTaken { .. } => "MountPathTaken",
            Self::MountPathShared { .. } => "MountPathShared",
            Self::PortTaken { .. } => "PortTaken",
            Self::ContainerMissing { .. } => "ContainerMissing",
        }
    }
}
