//! Which writes make the Secrets of an access what they should be.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use llmwarden_proto::access::Trigger;
use llmwarden_proto::reason::{ConditionType, Reason};

use super::{EventNote, Plan, Write, old_status};
use crate::access::desired::{Data, DesiredSecret};
use crate::access::grant::Grant;
use crate::access::observe::Observation;
use crate::conditions::{self, Truth};
use crate::index::secret::ObservedSecret;

/// Makes a Secret be as desired. Says whether one that was there before had to be mended.
pub(super) fn ensure(
    seen: &Observation,
    name: &str,
    data: Data,
    cause: Option<&Trigger>,
    grant: &Grant,
    writes: &mut Vec<Write>,
) -> bool {
    let present = seen.secrets.get(name);
    let mut desired = DesiredSecret::new(name, data, present.map(AsRef::as_ref));
    if let Some(cause) = cause {
        desired = desired.caused_by(cause);
    }
    match present {
        Some(foreign) if grant.adopts.iter().any(|adopted| adopted == name) => {
            writes.push(Write::Replace(desired, Arc::clone(foreign)));
            false
        }
        own => write_own(own, desired, writes) && old_status(seen).secret_ref.is_some_and(|s| s.name == name),
    }
}

pub(super) fn write_own(
    present: Option<&Arc<ObservedSecret>>,
    desired: DesiredSecret,
    writes: &mut Vec<Write>,
) -> bool {
    match present {
        None => writes.push(Write::Create(desired)),
        Some(own) if own.is_immutable() => {
            // Announced already.
            writes.push(Write::Recreate(desired, Arc::clone(own)));
            return false;
        }
        Some(own) if !own.is_labelled() || !own.holds(&desired.data) => {
            writes.push(Write::Replace(desired, Arc::clone(own)));
        }
        Some(_) => return false,
    }
    true
}

/// Deletes what the access owns under other names.
pub(super) fn remove_others(
    seen: &Observation,
    keep: &BTreeSet<&str>,
    writes: &mut Vec<Write>,
) -> BTreeSet<String> {
    let others = seen
        .secrets
        .values()
        .filter(|s| s.is_owned_by(seen.uid()) && !s.terminating && !keep.contains(s.name.as_str()));
    others
        .map(|secret| {
            writes.push(Write::Delete(Arc::clone(secret)));
            secret.name.clone()
        })
        .collect()
}

/// The kubelet never follows an immutable Secret to its successor, so pods must restart. That is said before it is
/// recreated: after a crash in between nobody could tell.
pub(super) fn announce_recreation(seen: &Observation, names: &[&str]) -> Option<Plan> {
    let immutable: Vec<_> = names
        .iter()
        .filter_map(|name| seen.own_secret(name))
        .filter(|secret| secret.is_immutable())
        .map(|secret| format!("{} (uid {})", secret.name, secret.uid))
        .collect();
    if immutable.is_empty() {
        return None;
    }
    let message = format!(
        "Secret {} was made immutable by somebody and is recreated: pods that were started with it must be restarted to \
         get new keys",
        immutable.join(" and ")
    );
    let status = old_status(seen);
    let announced = conditions::find(&status.conditions, ConditionType::LiveRotation)
        .is_some_and(|condition| condition.message == message);
    if announced {
        return None;
    }
    let reason = Reason::ImmutableSecretRecreated;
    let mut plan = Plan {
        status,
        events: vec![EventNote::warning(reason, message.clone())],
        look_again: Some(Duration::ZERO),
        ..Plan::default()
    };
    plan.conditions(seen)
        .set(ConditionType::LiveRotation, Truth::False, reason, message);
    Some(plan)
}
