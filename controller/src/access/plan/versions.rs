//! Versions of the companion, whatever happens and whoever writes: they grow, and no two contents share one.

use std::collections::BTreeMap;

use llmwarden_proto::delivery::Delivery;
use proptest::prelude::*;
use serde_json::json;

use super::world::{World, parse};
use super::*;

/// What can happen to an access, between passes of two controllers that do not know of each other.
#[derive(Debug, Clone)]
enum Step {
    /// Another master key.
    Key(u8),
    /// Another base URL.
    Url(u8),
    /// The namespace may, or may not, have the key.
    Allow(bool),
    /// The companion is deleted.
    DeleteCompanion,
    /// Both Secrets are.
    DeleteBoth,
    /// The companion as it was some versions ago is put back.
    PutBack(usize),
    /// Time passes, in milliseconds.
    Clock(u64),
    /// A controller looks.
    Look(bool),
    /// A controller carries out so many writes of what it planned when it last looked; the preconditions are the API server's.
    Write(bool, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u8).prop_map(Step::Key),
        (0..4_u8).prop_map(Step::Url),
        any::<bool>().prop_map(Step::Allow),
        Just(Step::DeleteCompanion),
        Just(Step::DeleteBoth),
        (0..4_usize).prop_map(Step::PutBack),
        (0..400_000_u64).prop_map(Step::Clock),
        any::<bool>().prop_map(Step::Look),
        any::<bool>().prop_map(Step::Look),
        (any::<bool>(), 0..5_usize).prop_map(|(who, steps)| Step::Write(who, steps)),
        (any::<bool>(), 4..5_usize).prop_map(|(who, steps)| Step::Write(who, steps)),
    ]
}

/// A world, what two controllers mean to write to it, and every companion that a controller wrote.
struct Run {
    world: World,
    /// With the status and the number of versions that there were when they looked.
    plans: [Option<(Plan, LLMAccessStatus, usize)>; 2],
    written: Vec<(u64, Data)>,
    backups: Vec<k8s_openapi::api::core::v1::Secret>,
}

impl Run {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Key(number) => self.world.set_key(&format!("sk-test-{number}")),
            Step::Url(number) => {
                let endpoint = json!({ "baseURL": format!("https://gateway-{number}.example") });
                self.world.provider().spec.endpoint = Some(parse(endpoint));
            }
            Step::Allow(true) => drop(self.world.labels.insert("llm".to_owned(), "yes".to_owned())),
            Step::Allow(false) => self.world.labels.clear(),
            Step::DeleteCompanion => drop(self.world.secrets.remove("agent.llmwarden")),
            Step::DeleteBoth => self.world.secrets.clear(),
            Step::PutBack(ago) => {
                let backup = self.backups.iter().rev().nth(*ago).cloned();
                let recorded = self.world.status().credential_version;
                if let (Some(backup), Some(present)) = (backup, self.world.secrets.get_mut("agent.llmwarden"))
                {
                    // Over a version that is not recorded yet, for as long as a pass takes: the other half of the one hole.
                    let version = ObservedSecret::from(present.clone())
                        .delivery()
                        .map(|d| d.version);
                    if version.and_then(|version| i64::try_from(version).ok()) != recorded {
                        return;
                    }
                    present.data = backup.data;
                    present.metadata.resource_version = Some(format!("edit-{}", self.backups.len()));
                    self.backups.push(present.clone());
                }
            }
            Step::Clock(by) => self.world.now += Duration::from_millis(*by),
            Step::Look(who) => {
                // No two looks in one millisecond: of a version that was neither recorded nor kept only the clock knows.
                self.world.now += Duration::from_millis(1);
                let plan = (self.world.plan(), self.world.status(), self.written.len());
                self.plans[usize::from(*who)] = Some(plan);
            }
            Step::Write(who, steps) => self.write(usize::from(*who), *steps),
        }
    }

    fn write(&mut self, who: usize, steps: usize) {
        let Some((plan, seen_status, versions)) = self.plans[who].take() else {
            return;
        };
        for write in plan.writes.iter().take(steps) {
            // What the API server checks; a pass that fails it ends.
            let allowed = match write {
                // A companion that came and went since the look, recorded nowhere, is known to nobody: the one hole, for as
                // long as a pass takes. It is left out here.
                Write::Create(desired) => {
                    !self.world.secrets.contains_key(&desired.name) && versions == self.written.len()
                }
                Write::Replace(_, present) => self.is_there(present, true),
                Write::Recreate(_, present) | Write::Delete(present) => self.is_there(present, false),
            };
            if !allowed {
                return;
            }
            let one = Plan {
                writes: vec![write.clone()],
                ..Plan::default()
            };
            self.world.apply(&one, 1);
            if let Write::Create(desired) | Write::Replace(desired, _) = write {
                self.note(desired);
            }
        }
        let finished = plan.writes.len() < steps;
        if finished && self.world.status() == seen_status {
            self.world.access.status = Some(plan.status);
        }
    }

    fn is_there(&self, present: &ObservedSecret, unchanged: bool) -> bool {
        self.world.secrets.get(&present.name).is_some_and(|secret| {
            secret.metadata.uid.as_ref() == Some(&present.uid)
                && (!unchanged
                    || secret.metadata.resource_version.as_ref() == Some(&present.resource_version))
        })
    }

    fn note(&mut self, desired: &DesiredSecret) {
        if desired.name == "agent.llmwarden" {
            let document: Delivery = self.world.document();
            self.written.push((document.version, desired.data.clone()));
            self.backups.push(self.world.secrets["agent.llmwarden"].clone());
        }
    }
}

fn plain(data: &Data) -> BTreeMap<&str, &str> {
    use secrecy::ExposeSecret;
    data.iter()
        .map(|(name, value)| (name.as_str(), value.expose_secret()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn versions_grow_and_have_one_content_each(steps in prop::collection::vec(step(), 1..60)) {
        let mut run = Run {
            world: World::new(),
            plans: [None, None],
            written: Vec::new(),
            backups: Vec::new(),
        };
        for step in &steps {
            run.take(step);
        }
        // In the end, one controller is left.
        run.world.labels.insert("llm".to_owned(), "yes".to_owned());
        run.world.settle();
        let last = run.world.document();
        let mut by_version: BTreeMap<u64, BTreeMap<&str, &str>> = BTreeMap::new();
        for (version, data) in &run.written {
            let data = plain(data);
            let first = by_version.entry(*version).or_insert_with(|| data.clone());
            prop_assert!(*first == data, "two contents of version {version}");
            prop_assert!(*version <= last.version, "{version} after {}", last.version);
        }
        let status = run.world.status();
        prop_assert_eq!(status.credential_version, i64::try_from(last.version).ok());
    }
}
