//! How an access is, as its status says: what metrics tell of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use llmwarden_proto::access::{LLMAccess, PodCount};
use llmwarden_proto::reason::ConditionType;

use super::{Affected, Index, Key, Kind};
use crate::conditions::{self, Truth};

/// How an access is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether it is Ready.
    pub ready: bool,
    /// Why, or why not; empty before the first pass.
    pub reason: String,
    /// The version that the companion holds.
    pub version: Option<i64>,
    /// When the key last changed.
    pub last_rotation: Option<Timestamp>,
    /// When it should change next.
    pub next_rotation: Option<Timestamp>,
    /// When it is, or was, withdrawn.
    pub withdraw_at: Option<Timestamp>,
    /// Its pods, and which of them have the version.
    pub pods: Option<PodCount>,
}

impl From<&LLMAccess> for Health {
    fn from(access: &LLMAccess) -> Self {
        let Some(status) = &access.status else {
            return Self::default();
        };
        let ready = conditions::find(&status.conditions, ConditionType::Ready);
        Self {
            ready: ready.is_some_and(|ready| ready.status == Truth::True.as_str()),
            reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
            version: status.credential_version,
            last_rotation: status.last_rotation.as_ref().map(|time| time.0),
            next_rotation: status.next_rotation.as_ref().map(|time| time.0),
            withdraw_at: status.withdraw_at.as_ref().map(|time| time.0),
            pods: status.rotation.as_ref().map(|rotation| rotation.pods),
        }
    }
}

impl Kind for Health {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.health
    }

    /// Nothing is decided by it.
    fn affects(_: &Index, _: &Key, _: &Self) -> Affected {
        Affected::default()
    }
}
