//! Everything a plan for one access depends on, as it was at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names;
use llmwarden_proto::provider::LLMProvider;

use super::pods::{InjectedPod, Pods};
use crate::index::master::Master;
use crate::index::secret::ObservedSecret;
use crate::index::{Claim, Index, NamespaceLabels};

/// What is known of an access and of all it depends on.
pub struct Observation {
    /// The access.
    pub access: Arc<LLMAccess>,
    /// The time.
    pub now: Timestamp,
    /// Its provider.
    pub provider: Option<Arc<LLMProvider>>,
    /// Labels of its namespace; `None` when the namespace was not seen yet.
    pub namespace: Option<NamespaceLabels>,
    /// The provider's master Secret.
    pub master: Option<Arc<Master>>,
    /// Other accesses that want, or have, a Secret that it needs.
    pub others: Vec<Claim>,
    /// The Secrets that have the names it needs, and all those that it owns.
    pub secrets: BTreeMap<String, Arc<ObservedSecret>>,
    /// Its pods.
    pub pods: Pods,
}

impl Observation {
    /// Takes it all from the index.
    pub fn new(index: &Index, access: Arc<LLMAccess>, now: Timestamp) -> Self {
        let namespace = access.metadata.namespace.clone().unwrap_or_default();
        let uid = access.metadata.uid.clone().unwrap_or_default();
        let provider = index.provider(&access.spec.provider_ref.name);
        let master = provider.as_ref().and_then(|provider| {
            let secret_ref = &provider.spec.auth.api_key.as_ref()?.secret_ref;
            index.master(&secret_ref.namespace, &secret_ref.name)
        });
        let named = [access.spec.secret_name.clone(), access.companion_name()];
        let secrets: BTreeMap<_, _> = named
            .iter()
            .filter_map(|name| index.secret(&namespace, name))
            .chain(index.owned_by(&namespace, &uid))
            .map(|secret| (secret.name.clone(), secret))
            .collect();
        let owners = secrets
            .values()
            .filter_map(|secret| index.owner_of(&namespace, secret));
        Self {
            now,
            provider,
            namespace: index.namespace(&namespace).cloned(),
            master,
            others: index
                .claims_of(&namespace, &access.spec.secret_name)
                .chain(owners)
                .filter(|claim| claim.uid != uid)
                .cloned()
                .collect(),
            secrets,
            pods: pods(index, &namespace, &access),
            access,
        }
    }

    /// Namespace of the access.
    pub fn namespace_name(&self) -> &str {
        self.access.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Name of the access.
    pub fn name(&self) -> &str {
        self.access.metadata.name.as_deref().unwrap_or_default()
    }

    /// UID of the access.
    pub fn uid(&self) -> &str {
        self.access.metadata.uid.as_deref().unwrap_or_default()
    }

    /// A Secret of this name, if the access owns it.
    pub fn own_secret(&self, name: &str) -> Option<&Arc<ObservedSecret>> {
        self.secrets
            .get(name)
            .filter(|secret| secret.is_owned_by(self.uid()))
    }

    /// The companion, if the access owns it.
    pub fn own_companion(&self) -> Option<&Arc<ObservedSecret>> {
        self.own_secret(&self.access.companion_name())
    }

    /// Secrets that are the access's, or that their owners hand over to it, and of which only the metadata were seen.
    pub fn unread(&self) -> Vec<String> {
        let handed_over = |secret: &ObservedSecret| {
            secret
                .annotations
                .get(names::ADOPT_ANNOTATION)
                .map(String::as_str)
                == Some(self.name())
        };
        self.secrets
            .values()
            .filter(|secret| secret.content.is_none())
            .filter(|secret| secret.is_owned_by(self.uid()) || handed_over(secret))
            .map(|secret| secret.name.clone())
            .collect()
    }

    /// Whether a rotation is asked for.
    pub fn rotation_requested(&self) -> bool {
        rotation_requested(&self.access)
    }
}

fn pods(index: &Index, namespace: &str, access: &LLMAccess) -> Pods {
    let name = access.metadata.name.as_deref().unwrap_or_default();
    let injected = index.pods_with(namespace, name).map(|(key, pod)| {
        let report = index
            .report(key)
            .filter(|report| Some(&report.run) == pod.sidecar.as_ref());
        let told = report.and_then(|report| report.accesses.get(name));
        InjectedPod {
            name: key.1.clone(),
            created: pod.created,
            told: told.cloned(),
            proxied: pod.proxied.contains(name),
            reads_secret: pod.environment.contains(&access.spec.secret_name),
            hashes_secret: pod.hashes_secret,
            exposure: pod.exposure.clone(),
        }
    });
    Pods {
        injected: injected.collect(),
        missing: index.pods_without(namespace, name),
    }
}

/// Whether the access's owner asks for a rotation.
pub fn rotation_requested(access: &LLMAccess) -> bool {
    let annotations = access.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(names::ROTATE_ANNOTATION))
        .is_some_and(|value| value == names::ROTATE_NOW)
}
