//! Which accesses a pod gets, and what is in the way of some of them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::SelectorExt;
use llmwarden_proto::names;
use llmwarden_proto::profile::{SdkEnv, base_path};

use super::{Obstacle, Outcome, SkipReason};
use crate::index::Index;
use crate::index::offer::Offer;

/// Namespaces that nothing is injected into, besides the controller's own.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// The label of kagent's pods whose value is the Agent's name.
const KAGENT_AGENT_LABEL: &str = "kagent";
/// The label that such a pod counts as having too: what people expect it to be called.
const VIRTUAL_AGENT_LABEL: &str = "kagent.dev/agent";

/// An access that a pod gets, and how.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What the access offers.
    pub offer: Arc<Offer>,
    /// What the containers need to go through the proxy; `None` when they get the key itself.
    pub proxy: Option<Proxied>,
}

/// What SDKs need to know to go through the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxied {
    /// The variables that they read.
    pub env: SdkEnv,
    /// The base URL for them.
    pub base_url: String,
}

impl Deref for Choice {
    type Target = Offer;

    fn deref(&self) -> &Offer {
        &self.offer
    }
}

/// What a pod is to get.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Whether it was asked for by name: then what can't be done is refused, and left undone otherwise.
    pub by_name: bool,
    /// The accesses: those named, in that order, then those that select the pod, by name.
    pub accesses: Vec<Choice>,
    /// How many of them are named.
    pub named: usize,
    /// Accesses that select the pod, and what is in the way of them.
    pub left_out: Vec<Obstacle>,
}

impl Selection {
    /// What follows from something that is in the way of the whole pod.
    pub fn obstructed(&self, obstacle: Obstacle) -> Outcome {
        if self.by_name {
            Outcome::Deny(obstacle)
        } else {
            Outcome::Skip(SkipReason::Obstructed(obstacle))
        }
    }
}

/// Where pods are injected.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// The controller's own namespace: never there.
    pub own: String,
    /// The namespaces that are served; empty means all.
    pub served: Vec<String>,
}

impl Scope {
    /// Whether nothing is ever injected there.
    pub fn excludes(&self, namespace: &str) -> bool {
        namespace == self.own || SYSTEM_NAMESPACES.contains(&namespace)
    }

    fn serves(&self, namespace: &str) -> bool {
        self.served.is_empty() || self.served.iter().any(|served| served == namespace)
    }
}

/// Finds the accesses. `Err` is what becomes of a pod that gets none.
pub fn select(pod: &Pod, namespace: &str, scope: &Scope, index: &Index) -> Result<Selection, Outcome> {
    if scope.excludes(namespace) {
        return Err(Outcome::Skip(SkipReason::SystemNamespace));
    }
    let own = pod.annotations().get(names::INJECT_ANNOTATION);
    let named = match wish(own, pod.labels(), namespace, index) {
        Wish::Nothing => return Err(Outcome::Skip(SkipReason::OptedOut)),
        Wish::Accesses { names, whose } => names
            .into_iter()
            .map(|access| named(namespace, access, &whose, scope, index))
            .collect::<Result<Vec<_>, _>>()
            .map_err(Outcome::Deny)?,
        Wish::None => Vec::new(),
    };
    let mut selection = Selection {
        by_name: !named.is_empty(),
        named: named.len(),
        accesses: named,
        left_out: Vec::new(),
    };
    let labels = labels(pod.labels());
    for offer in index.offers(namespace) {
        let again = || {
            selection
                .accesses
                .iter()
                .any(|other| other.access == offer.access)
        };
        if !selects(offer, &labels) || again() {
            continue;
        }
        match usable(namespace, offer, scope, index) {
            Ok(choice) => selection.accesses.push(choice),
            Err(obstacle) => selection.left_out.push(obstacle),
        }
    }
    if !selection.accesses.is_empty() {
        return Ok(selection);
    }
    Err(Outcome::Skip(match selection.left_out.into_iter().next() {
        Some(obstacle) => SkipReason::Obstructed(obstacle),
        None => SkipReason::NotSelected,
    }))
}

/// What the annotations ask for.
enum Wish<'a> {
    /// They say nothing.
    None,
    /// No injection, whatever selects the pod.
    Nothing,
    /// These accesses.
    Accesses { names: Vec<&'a str>, whose: String },
}

/// What decides whether a pod is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its own annotation that asks for injection.
    pub wish: Option<String>,
}

impl Identity {
    /// Whether the pod is one that kagent made.
    pub fn is_kagents(&self) -> bool {
        kagent_agent(&self.labels).is_some()
    }
}

/// Whether a pod is to get an access, whatever may be in the way of it.
pub fn wants(pod: &Identity, namespace: &str, offer: &Offer, index: &Index) -> bool {
    match wish(pod.wish.as_ref(), &pod.labels, namespace, index) {
        Wish::Nothing => false,
        Wish::Accesses { names, .. } if names.contains(&offer.access.as_str()) => true,
        Wish::Accesses { .. } | Wish::None => selects(offer, &labels(&pod.labels)),
    }
}

fn selects(offer: &Offer, labels: &BTreeMap<String, String>) -> bool {
    let selector = offer.selector.as_ref();
    selector.is_some_and(|selector| selector.matches(labels))
}

/// The pod's own annotation, else that of its kagent Agent: kagent does not pass annotations of the Agent on.
fn wish<'a>(
    own: Option<&'a String>,
    labels: &'a BTreeMap<String, String>,
    namespace: &str,
    index: &'a Index,
) -> Wish<'a> {
    let own = own.map(String::as_str);
    let of_agent = || {
        let agent = kagent_agent(labels)?;
        let wish = index.agent_wish(namespace, agent)?;
        Some((wish, format!("Agent {agent}")))
    };
    // kagent can't remove an annotation again, only empty it: an empty one says nothing.
    let said = own.filter(|value| !list(value).is_empty());
    let Some((value, whose)) = said.map(|value| (value, "the pod".to_owned())).or_else(of_agent) else {
        return Wish::None;
    };
    match list(value) {
        names if names == [names::INJECT_NOTHING] => Wish::Nothing,
        names if names.is_empty() => Wish::None,
        names => Wish::Accesses { names, whose },
    }
}

/// The entries of a list in an annotation, each once.
pub fn list(value: &str) -> Vec<&str> {
    let mut entries = Vec::new();
    for entry in value.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    entries
}

/// The kagent Agent that a pod belongs to.
fn kagent_agent(labels: &BTreeMap<String, String>) -> Option<&str> {
    let agent = labels.get(KAGENT_AGENT_LABEL)?;
    (labels.get("app")? == "kagent").then_some(agent)
}

/// The labels that a pod counts as having.
fn labels(own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = own.clone();
    if let Some(agent) = kagent_agent(own) {
        labels
            .entry(VIRTUAL_AGENT_LABEL.to_owned())
            .or_insert_with(|| agent.to_owned());
    }
    labels
}

fn named(
    namespace: &str,
    access: &str,
    whose: &str,
    scope: &Scope,
    index: &Index,
) -> Result<Choice, Obstacle> {
    let Some(offer) = index.offer(namespace, access) else {
        return Err(Obstacle::AccessMissing {
            namespace: namespace.to_owned(),
            access: access.to_owned(),
            whose: whose.to_owned(),
        });
    };
    usable(namespace, offer, scope, index)
}

/// Whether an access may be injected. It need not be ready: the sidecar waits for the key.
fn usable(namespace: &str, offer: &Arc<Offer>, scope: &Scope, index: &Index) -> Result<Choice, Obstacle> {
    if !scope.serves(namespace) {
        return Err(Obstacle::NamespaceNotServed {
            namespace: namespace.to_owned(),
        });
    }
    let access = || offer.access.clone();
    let provider = || offer.provider.clone();
    let companion = names::companion(&offer.access);
    for secret in [&offer.secret_name, &companion] {
        if index.is_others(namespace, secret, &offer.uid) {
            return Err(Obstacle::SecretConflict {
                access: access(),
                secret: secret.clone(),
            });
        }
    }
    let Some(declared) = index.provider(&offer.provider) else {
        // It may turn out to forbid that pods hold its key.
        return Err(Obstacle::ProviderMissing {
            access: access(),
            provider: provider(),
        });
    };
    let mut proxy = None;
    if declared.spec.is_proxied(&offer.injection) {
        if let Some(why) = declared.spec.proxy_hindrance() {
            return Err(Obstacle::ProxyUnsupported {
                access: access(),
                why,
            });
        }
        let path = declared.spec.base_url().map_or("", base_path);
        proxy = Some(Proxied {
            env: declared.spec.provider.sdk_env(),
            base_url: names::proxy_url(&offer.access, path),
        });
    }
    Ok(Choice {
        offer: Arc::clone(offer),
        proxy,
    })
}
