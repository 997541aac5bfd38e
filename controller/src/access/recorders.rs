//! Publishes events about accesses.

use std::hash::{DefaultHasher, Hash, Hasher};

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use llmwarden_proto::access::LLMAccess;

use super::plan::EventNote;

/// How many recorders there are.
const SHARDS: usize = 64;

/// For each event a recorder looks through all that it remembers, which is everything of the last minutes. So each has but a
/// part of the accesses.
pub struct Recorders(Vec<Recorder>);

impl Recorders {
    /// Recorders that report as the controller.
    pub fn new(client: &Client) -> Self {
        let recorder = || Recorder::new(client.clone(), Reporter::from("llmwarden-controller"));
        Self(std::iter::repeat_with(recorder).take(SHARDS).collect())
    }

    /// Publishes an event about an access. What has the same action is folded into one.
    pub async fn publish(&self, about: &LLMAccess, note: &EventNote, action: String) -> kube::Result<()> {
        let event = Event {
            type_: if note.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: note.reason.as_str().to_owned(),
            note: Some(note.message.clone()),
            action,
            secondary: None,
        };
        let mut hasher = DefaultHasher::new();
        about.uid().hash(&mut hasher);
        let [byte, ..] = hasher.finish().to_le_bytes();
        self.0[usize::from(byte) % SHARDS]
            .publish(&event, &about.object_ref(&()))
            .await
    }
}
