//! Which accesses the watch has yet to bring. A pass that begins between a write of a status and the word of it would plan
//! from the old one: its write would be refused, and until then it would tell what has been told. But other watches may go on
//! while that of accesses hangs, so after a moment it is made all the same: Secrets have preconditions of their own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use llmwarden_proto::access::LLMAccess;

use super::recent::Recent;

/// How long the watch is waited for.
const MEMORY: Duration = Duration::from_secs(5);

/// The resource version of each access, by its UID, that this process has replaced by a newer one.
pub struct Superseded(Mutex<Recent<String, Option<String>>>);

impl Default for Superseded {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(MEMORY)))
    }
}

impl Superseded {
    /// The access was written as it was seen here, so the watch will bring it anew.
    pub fn insert(&self, access: &LLMAccess, now: Timestamp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.touch(access.uid().unwrap_or_default(), now) = access.resource_version();
    }

    /// Whether the access has been written since it was seen like this, a moment ago.
    pub fn contains(&self, access: &LLMAccess, now: Timestamp) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&access.uid().unwrap_or_default(), now)
            .is_some_and(|version| version.is_some() && *version == access.resource_version())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn access(uid: &str, version: Option<&str>) -> LLMAccess {
        serde_json::from_value(json!({
            "apiVersion": "llmwarden.io/v1alpha1",
            "kind": "LLMAccess",
            "metadata": { "name": "agent", "uid": uid, "resourceVersion": version },
            "spec": { "providerRef": { "name": "p" }, "secretName": "s" },
        }))
        .expect("an access")
    }

    #[test]
    fn what_was_replaced_is_known_and_nothing_else() {
        let superseded = Superseded::default();
        let start = Timestamp::UNIX_EPOCH;
        superseded.insert(&access("a", Some("1")), start);
        assert!(superseded.contains(&access("a", Some("1")), start));
        for other in [access("a", Some("2")), access("b", Some("1")), access("b", None)] {
            assert!(!superseded.contains(&other, start));
        }
        superseded.insert(&access("a", Some("2")), start);
        assert!(superseded.contains(&access("a", Some("2")), start));
        // A watch that hangs holds nothing up.
        assert!(!superseded.contains(&access("a", Some("2")), start + MEMORY));
    }
}
