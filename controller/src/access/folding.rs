//! Which events are folded into one object. The recorder folds those of one action, also if they differ in their words, which
//! are then lost; and keeps all others apart, which an access that goes to and fro would make thousands of.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use llmwarden_proto::reason::Reason;

use super::plan::EventNote;
use super::recent::Recent;
use crate::index::secret::{Digest, digest};

/// How many events of one reason that differ in their words an access has before the rest is folded.
const APART: usize = 5;
/// After how long without any of them they are forgotten: as the recorder does.
const MEMORY: Duration = Duration::from_mins(6);

/// The words of each reason's events, by the access's UID.
pub struct Folding(Mutex<Recent<(String, Reason), Vec<Digest>>>);

impl Default for Folding {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(MEMORY)))
    }
}

impl Folding {
    /// The action to publish an event with.
    pub fn action(&self, uid: &str, event: &EventNote, now: Timestamp) -> String {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let apart = all.touch((uid.to_owned(), event.reason), now);
        let these = digest(event.message.as_bytes());
        if !apart.contains(&these) {
            if apart.len() == APART {
                return "Reconcile".to_owned();
            }
            apart.push(these);
        }
        let [a, b, c, d, ..] = these;
        format!("Reconcile-{a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn some_words_are_kept_apart_and_thousands_are_folded() {
        let folding = Folding::default();
        let start = Timestamp::UNIX_EPOCH;
        let action = |uid, number: usize, now| {
            let event = EventNote::warning(Reason::NamespaceNotAllowed, format!("words {number}"));
            folding.action(uid, &event, now)
        };
        let actions: BTreeSet<_> = (0..5000).map(|number| action("a", number, start)).collect();
        assert_eq!(actions.len(), APART + 1);
        assert_eq!(action("a", 4999, start), "Reconcile");
        assert_ne!(action("a", 0, start), "Reconcile");
        assert_ne!(action("b", 4999, start), "Reconcile");
        assert_ne!(action("a", 4999, start + MEMORY), "Reconcile");
    }
}
