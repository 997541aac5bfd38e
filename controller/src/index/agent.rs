//! kagent's Agents, where kagent is installed: only what their annotation asks for is remembered.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::api::{ObjectMeta, PartialObjectMeta};
use kube::runtime::reflector::ObjectRef;
use llmwarden_proto::names;

use super::{Affected, Index, Key, Kind};
use crate::inject::select::list;

/// kagent's `Agent`, of which the metadata are enough.
#[derive(Debug, Clone)]
pub struct Agent {
    metadata: ObjectMeta,
}

impl Agent {
    /// Its API group.
    pub const GROUP: &str = "kagent.dev";
    /// The version of its API that is read.
    pub const VERSION: &str = "v1alpha2";
    /// Its resource.
    pub const PLURAL: &str = "agents";
}

impl Resource for Agent {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Agent".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        Self::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        Self::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        Self::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The value of an Agent's annotation, if it has one: it never reaches the pods' own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentWish(pub Option<String>);

impl From<PartialObjectMeta<Agent>> for AgentWish {
    fn from(agent: PartialObjectMeta<Agent>) -> Self {
        let annotations = agent.metadata.annotations;
        Self(annotations.and_then(|mut all| all.remove(names::INJECT_ANNOTATION)))
    }
}

impl Kind for AgentWish {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.agents
    }

    /// Running pods are never changed, but one may lack now what its Agent asks for.
    fn affects(_: &Index, key: &Key, wish: &Self) -> Affected {
        let named = wish.0.iter().flat_map(|value| list(value));
        Affected {
            counted: named
                .map(|access| ObjectRef::new(access).within(&key.0))
                .collect(),
            ..Affected::default()
        }
    }
}
