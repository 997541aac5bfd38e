//! Which events have been told. An event comes before the status that it is about, so that a crash cannot swallow it; a pass
//! whose status is not taken comes again, and must not tell it again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use llmwarden_proto::access::LLMAccess;

use super::plan::EventNote;
use super::recent::Recent;
use crate::index::secret::{Digest, digest};

/// How long is remembered what was told of an access: longer than any pass is tried again for.
const MEMORY: Duration = Duration::from_mins(10);

/// What was told of each access since its status last changed, by the access's UID.
pub struct Told(Mutex<Recent<String, Notes>>);

#[derive(Default)]
struct Notes {
    status: Digest,
    events: Vec<EventNote>,
}

impl Default for Told {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(MEMORY)))
    }
}

impl Told {
    /// Whether an event was told of this access while its status was the same as now.
    pub fn has(&self, access: &LLMAccess, event: &EventNote, now: Timestamp) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&uid(access), now)
            .is_some_and(|notes| notes.status == status(access) && notes.events.contains(event))
    }

    /// Remembers that an event was told.
    pub fn remember(&self, access: &LLMAccess, event: &EventNote, now: Timestamp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let status = status(access);
        let notes = all.touch(uid(access), now);
        if notes.status != status {
            notes.status = status;
            notes.events.clear();
        }
        notes.events.push(event.clone());
    }
}

fn uid(access: &LLMAccess) -> String {
    access.uid().unwrap_or_default()
}

fn status(access: &LLMAccess) -> Digest {
    digest(&serde_json::to_vec(&access.status).expect("a status has string keys and no failing values"))
}

#[cfg(test)]
mod tests {
    use llmwarden_proto::reason::Reason;
    use serde_json::json;

    use super::*;

    fn access(uid: &str, version: i64) -> LLMAccess {
        serde_json::from_value(json!({
            "apiVersion": "llmwarden.io/v1alpha1",
            "kind": "LLMAccess",
            "metadata": { "name": "agent", "uid": uid },
            "spec": { "providerRef": { "name": "p" }, "secretName": "s" },
            "status": { "credentialVersion": version },
        }))
        .expect("an access")
    }

    #[test]
    fn an_event_is_told_once_for_each_status() {
        let now = Timestamp::UNIX_EPOCH;
        let rotated = EventNote::normal(Reason::Rotated, "text");
        let restored = EventNote::normal(Reason::Restored, "text");
        let told = Told::default();
        told.remember(&access("a", 1), &rotated, now);
        assert!(told.has(&access("a", 1), &rotated, now));
        for (other, event) in [
            (access("b", 1), &rotated),
            (access("a", 2), &rotated),
            (access("a", 1), &restored),
        ] {
            assert!(!told.has(&other, event, now));
        }
        told.remember(&access("a", 2), &restored, now);
        assert!(!told.has(&access("a", 1), &rotated, now));
        told.remember(&access("b", 1), &rotated, now + MEMORY);
        assert!(!told.has(&access("a", 2), &restored, now));
    }
}
