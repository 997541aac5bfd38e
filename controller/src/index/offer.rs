//! What an access offers to the pods of its namespace: what injection is decided by.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::core::Selector;
use llmwarden_proto::access::{Injection, LLMAccess};

use super::{Affected, Index, Key, Kind};

/// What an access offers to pods.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Its name.
    pub access: String,
    /// Its UID.
    pub uid: String,
    /// The Secret that applications reference.
    pub secret_name: String,
    /// The provider it uses.
    pub provider: String,
    /// The pods that it selects; `None` when it selects none.
    pub selector: Option<Selector>,
    /// What the containers get on top of the sidecar.
    pub injection: Injection,
}

impl From<&LLMAccess> for Offer {
    fn from(access: &LLMAccess) -> Self {
        let selector = access.spec.workload_selector.clone();
        Self {
            access: access.metadata.name.clone().unwrap_or_default(),
            uid: access.metadata.uid.clone().unwrap_or_default(),
            secret_name: access.spec.secret_name.clone(),
            provider: access.spec.provider_ref.name.clone(),
            // A selector that the API server takes but that cannot be read selects nothing.
            selector: selector.and_then(|selector| selector.try_into().ok()),
            injection: access.spec.injection.clone(),
        }
    }
}

impl Kind for Arc<Offer> {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.offers
    }

    /// Nothing that is reconciled is decided by it.
    fn affects(_: &Index, _: &Key, _: &Self) -> Affected {
        Affected::default()
    }
}
