//! Pods: which of them have the sidecar, known by their structure, which don't, and what running sidecars said last. Never
//! whole pods.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core;
use kube::api::{ObjectMeta, PartialObjectMeta};
use kube::runtime::reflector::ObjectRef;
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names;
use serde::Deserialize;

use super::{Affected, Index, Key, Kind, Ways};
use crate::inject::plan::exposure;
use crate::inject::select::{Identity, wants};
use crate::inject::sidecar;

/// In the annotations of a pod of kagent's: a hash of all that it is to be replaced for.
const CONFIG_HASH: &str = "kagent.dev/config-hash";
/// Of an agent that brings its own image, of which kagent looks at no Secret.
const NO_HASH: &str = "0";

/// What is remembered of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// What it is selected by.
    pub identity: Identity,
    /// Whether kagent made it, and makes another one when its model's Secret changes.
    pub hashes_secret: bool,
    /// Why it was left without the sidecar, if the webhook was asked.
    pub skipped: Option<String>,
    /// The accesses whose companions its sidecar mounts, in the order of the sidecar's arguments; none without a sidecar.
    pub accesses: Vec<String>,
    /// Those of them whose key stays in the sidecar.
    pub proxied: BTreeSet<String>,
    /// The Secrets that its containers read into their environment.
    pub environment: BTreeSet<String>,
    /// What lets its containers into the sidecar, if something does.
    pub exposure: Option<String>,
    /// The versions that its kubelet was asked to fetch.
    pub refresh: Option<String>,
    /// Its sidecar, while that runs.
    pub sidecar: Option<Run>,
}

/// A run of a pod's sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where it answers.
    pub address: IpAddr,
    /// Differs from run to run.
    pub container: String,
}

/// A pod that carries the label of injected ones. Whether it is one its structure tells.
#[derive(Debug, Clone)]
pub struct Labelled(pub Arc<Pod>);

/// A pod that does not: only its metadata are known.
#[derive(Debug, Clone)]
pub struct Unlabelled(pub Arc<Pod>);

/// What a running sidecar said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which run of it.
    pub run: Run,
    /// What it said of each access.
    pub accesses: BTreeMap<String, Told>,
}

/// What a sidecar said of an access: of `/status`, which is only added to, what is needed here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Whether it has a key to hand out.
    pub state: String,
    /// The version that its endpoint serves, or that said that the key is gone.
    pub version: Option<u64>,
    /// The version that its files show.
    pub file_version: Option<u64>,
    /// What the companion asks for and it lacks.
    #[serde(default)]
    pub lacking: Vec<String>,
}

impl Told {
    /// Whether this version has arrived, in the files too.
    pub fn has(&self, version: u64) -> bool {
        match version {
            names::NO_VERSION => self.state != "active",
            version => self.version >= Some(version) && self.file_version >= Some(version),
        }
    }
}

impl Pod {
    fn from_metadata(metadata: ObjectMeta) -> Self {
        let mut annotations = metadata.annotations.unwrap_or_default();
        let hash = annotations.remove(CONFIG_HASH);
        let identity = Identity {
            wish: annotations.remove(names::INJECT_ANNOTATION),
            labels: metadata.labels.unwrap_or_default(),
        };
        Self {
            uid: metadata.uid.unwrap_or_default(),
            created: metadata.creation_timestamp.map(|time| time.0),
            leaving: metadata.deletion_timestamp.is_some(),
            skipped: annotations
                .remove(names::SKIPPED_ANNOTATION)
                .map(|why| short(&why)),
            refresh: annotations.remove(names::REFRESH_ANNOTATION),
            hashes_secret: identity.is_kagents() && hash.as_deref() != Some(NO_HASH),
            identity,
            ..Self::default()
        }
    }

    /// Whether it runs the sidecar for an access.
    pub fn delivers(&self, access: &str) -> bool {
        !self.leaving && self.accesses.iter().any(|mounted| mounted == access)
    }
}

impl From<core::v1::Pod> for Labelled {
    fn from(pod: core::v1::Pod) -> Self {
        let run = running(&pod);
        let spec = pod.spec.unwrap_or_default();
        let mounted = sidecar::mounted(&spec);
        if mounted.is_empty() {
            return Self(Arc::new(Pod::from_metadata(pod.metadata)));
        }
        let proxied = mounted.iter().filter(|mounted| mounted.proxied);
        Self(Arc::new(Pod {
            sidecar: run,
            accesses: mounted.iter().map(|mounted| mounted.access.to_owned()).collect(),
            proxied: proxied.map(|mounted| mounted.access.to_owned()).collect(),
            environment: environment(&spec),
            exposure: exposure(&spec),
            ..Pod::from_metadata(pod.metadata)
        }))
    }
}

impl From<PartialObjectMeta<core::v1::Pod>> for Unlabelled {
    fn from(pod: PartialObjectMeta<core::v1::Pod>) -> Self {
        Self(Arc::new(Pod::from_metadata(pod.metadata)))
    }
}

/// Anybody can annotate a pod: what is shown in the status has an end.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn environment(spec: &core::v1::PodSpec) -> BTreeSet<String> {
    let init = spec.init_containers.iter().flatten();
    let mut names = BTreeSet::new();
    for container in spec.containers.iter().chain(init) {
        let variables = container.env.iter().flatten();
        let single = variables.filter_map(|variable| variable.value_from.as_ref()?.secret_key_ref.as_ref());
        names.extend(single.map(|reference| reference.name.clone()));
        let whole = container.env_from.iter().flatten();
        let whole = whole.filter_map(|source| source.secret_ref.as_ref());
        names.extend(whole.map(|reference| reference.name.clone()));
    }
    names
}

fn running(pod: &core::v1::Pod) -> Option<Run> {
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.as_ref()?.parse().ok()?;
    let container = status
        .init_container_statuses
        .iter()
        .flatten()
        .find(|container| container.name == names::SIDECAR)?;
    container.state.as_ref()?.running.as_ref()?;
    Some(Run {
        address,
        container: container.container_id.clone().unwrap_or_default(),
    })
}

impl Index {
    /// A pod that carries the label of injected ones.
    pub fn pod(&self, key: &Key) -> Option<&Arc<Pod>> {
        self.labelled.get(key).map(|pod| &pod.0)
    }

    /// Every pod that carries the label of injected ones.
    pub fn pods(&self) -> impl Iterator<Item = &Key> {
        self.labelled.keys()
    }

    /// Every pod of a namespace that runs the sidecar for an access.
    pub fn pods_with(&self, namespace: &str, access: &str) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        self.pods_by_access
            .keys(&(namespace.to_owned(), access.to_owned()))
            .filter_map(|key| Some((key, self.pod(key)?)))
            .filter(|(_, pod)| !pod.leaving)
    }

    /// The name of every pod of a namespace that is to have the sidecar for an access and does not have it, and why not, where
    /// that is known.
    pub fn pods_without(&self, namespace: &str, access: &str) -> Vec<(String, Option<String>)> {
        let Some(offer) = self.offer(namespace, access) else {
            return Vec::new();
        };
        let first = (namespace.to_owned(), String::new());
        let labelled = self
            .labelled
            .range(first.clone()..)
            .map(|(key, pod)| (key, &pod.0));
        let unlabelled = self.unlabelled.range(first..).map(|(key, pod)| (key, &pod.0));
        // Keys are ordered by namespace first, so that no other is looked through.
        labelled
            .take_while(|(key, _)| key.0 == namespace)
            .chain(unlabelled.take_while(|(key, _)| key.0 == namespace))
            .filter(|(_, pod)| !pod.leaving && !pod.delivers(access))
            .filter(|(_, pod)| wants(&pod.identity, namespace, offer, self))
            .map(|(key, pod)| (key.1.clone(), pod.skipped.clone()))
            .collect()
    }

    /// The versions that a pod should have, in the order of its accesses.
    pub fn wanted(&self, namespace: &str, pod: &Pod) -> Vec<u64> {
        let version = |access: &String| {
            let companion = (namespace.to_owned(), names::companion(access));
            let delivery = self
                .managed
                .get(&companion)
                .and_then(|secret| secret.0.delivery());
            delivery.map_or(names::NO_VERSION, |delivery| delivery.version)
        };
        pod.accesses.iter().map(version).collect()
    }

    /// What a pod's sidecar said last.
    pub fn report(&self, key: &Key) -> Option<&Report> {
        self.reports.get(key)
    }

    /// Remembers what a pod's sidecar said, or forgets it. Says whether that is news.
    pub fn note_report(&mut self, key: &Key, report: Option<Report>) -> bool {
        if self.reports.get(key) == report.as_ref() {
            return false;
        }
        match report {
            Some(report) => self.reports.insert(key.clone(), report),
            None => self.reports.remove(key),
        };
        true
    }

    /// The accesses that want a pod, whether it has their sidecar or not.
    fn wanting(&self, key: &Key, pod: &Pod) -> HashSet<ObjectRef<LLMAccess>> {
        self.offers(&key.0)
            .filter(|offer| pod.delivers(&offer.access) || wants(&pod.identity, &key.0, offer, self))
            .map(|offer| ObjectRef::new(&offer.access).within(&key.0))
            .collect()
    }
}

impl Kind for Labelled {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.labelled
    }

    fn affects(index: &Index, key: &Key, pod: &Self) -> Affected {
        Affected {
            pods: HashSet::from([key.clone()]),
            counted: index.wanting(key, &pod.0),
            ..Affected::default()
        }
    }

    fn ways<'a>(index: &'a mut Index, key: &Key, pod: &Self) -> Vec<(&'a mut Ways, Vec<Key>)> {
        let accesses = pod.0.accesses.iter();
        let from = accesses.map(|access| (key.0.clone(), access.clone())).collect();
        vec![(&mut index.pods_by_access, from)]
    }

    fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Kind for Unlabelled {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.unlabelled
    }

    fn affects(index: &Index, key: &Key, pod: &Self) -> Affected {
        Affected {
            counted: index.wanting(key, &pod.0),
            ..Affected::default()
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kagent_replaces_the_pods_whose_secret_it_hashes() {
        let hashes = |labels, annotations| {
            let metadata = json!({ "metadata": { "labels": labels, "annotations": annotations } });
            let pod = serde_json::from_value::<PartialObjectMeta<core::v1::Pod>>(metadata).expect("metadata");
            Unlabelled::from(pod).0.hashes_secret
        };
        let kagents = json!({ "app": "kagent", "kagent": "agent" });
        assert!(hashes(
            kagents.clone(),
            json!({ CONFIG_HASH: "18030646368661960583" })
        ));
        assert!(hashes(kagents.clone(), json!({})));
        assert!(!hashes(kagents, json!({ CONFIG_HASH: "0" })));
        assert!(!hashes(json!({ "app": "other" }), json!({ CONFIG_HASH: "1" })));
    }
}
