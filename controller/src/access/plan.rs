//! What to write for an access: decided from an [`Observation`] alone, without a cluster.

mod secrets;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use llmwarden_proto::access::{LLMAccessStatus, Trigger};
use llmwarden_proto::delivery::{MAX_VERSION, State, next_version};
use llmwarden_proto::names;
use llmwarden_proto::provider::{LLMProvider, whole_seconds};
use llmwarden_proto::reason::Reason;
use secrecy::SecretString;

use super::desired::{Data, DesiredSecret, active_companion, application_data, withdrawn_companion};
use super::grant::{Grant, Refusal, decide};
use super::observe::Observation;
use super::pods;
use super::promises;
use super::status::{self, Delivered};
use crate::conditions;
use crate::index::secret::ObservedSecret;
use crate::inject::select::Scope;
use crate::instance::Instance;
use secrets::{announce_recreation, ensure, remove_others, write_own};

/// What a plan depends on besides what was observed.
pub struct Settings {
    /// Namespaces that master keys may live in.
    pub trusted: Vec<String>,
    /// Namespaces whose accesses are served; empty means all.
    pub served: Vec<String>,
    /// How long a key stays after its access stopped being allowed.
    pub denial_grace: Duration,
    /// What placeholders and key ids are derived from.
    pub instance: Instance,
    /// Where pods are injected; `None` without the webhook.
    pub injects: Option<Scope>,
}

/// One write of a Secret. Each has a precondition, so that it is harmless when the observation is out of date.
#[derive(Debug, Clone)]
pub enum Write {
    /// Fails when the name is taken.
    Create(DesiredSecret),
    /// Fails when it is not this very Secret in this very version.
    Replace(DesiredSecret, Arc<ObservedSecret>),
    /// Deletes and creates: an immutable Secret takes no other content.
    Recreate(DesiredSecret, Arc<ObservedSecret>),
    /// Fails when it is not this very Secret in this very version.
    Delete(Arc<ObservedSecret>),
}

/// An event to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventNote {
    /// Whether it is something to worry about.
    pub warning: bool,
    /// In one word.
    pub reason: Reason,
    /// In a sentence.
    pub message: String,
}

impl EventNote {
    /// Something to worry about.
    pub fn warning(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            warning: true,
            reason,
            message: message.into(),
        }
    }

    /// Something that went as it should.
    pub fn normal(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            warning: false,
            reason,
            message: message.into(),
        }
    }
}

/// What to do for an access, in this order: Secrets, then status, then events.
#[derive(Debug, Default)]
pub struct Plan {
    /// Secrets to write, in order.
    pub writes: Vec<Write>,
    /// The status once they are written.
    pub status: LLMAccessStatus,
    /// What to tell once the status is written.
    pub events: Vec<EventNote>,
    /// Whether the request to rotate has been dealt with.
    pub rotation_handled: bool,
    /// When to look again, even if nothing happens.
    pub look_again: Option<Duration>,
}

impl Plan {
    /// Sets conditions of the status.
    pub fn conditions(&mut self, seen: &Observation) -> conditions::Setter<'_> {
        conditions::Setter {
            conditions: &mut self.status.conditions,
            generation: seen.access.metadata.generation,
            now: seen.now,
        }
    }

    /// Looks again after this time, or earlier if that is planned already.
    pub fn look_again_in(&mut self, pause: Duration) {
        self.look_again = Some(self.look_again.map_or(pause, |planned| planned.min(pause)));
    }
}

/// Decides. `None`: too little is known yet, or the access is being deleted and its Secrets with it.
pub fn plan(seen: &Observation, settings: &Settings) -> Option<Plan> {
    if seen.access.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let mut plan = match not_served(seen.namespace_name(), &settings.served) {
        Some(refusal) => hold(seen, &refusal),
        None => match decide(seen, &settings.trusted)? {
            Ok(grant) => provision(seen, seen.provider.as_ref()?, &grant, settings),
            Err(refusal) if refusal.denied => deny(seen, &refusal, settings),
            Err(refusal) => hold(seen, &refusal),
        },
    };
    pods::report(seen, settings.injects.as_ref(), &mut plan);
    promises::promise(seen, &mut plan);
    Some(plan)
}

/// The plan when the API server refused a write: nothing but to say so. A withdrawal stays due.
pub fn refused(seen: &Observation, settings: &Settings, what: &str) -> Plan {
    let denial = decide(seen, &settings.trusted)
        .and_then(Result::err)
        .filter(|refusal| refusal.denied);
    let Some(denial) = denial else {
        return hold(seen, &Refusal::held(Reason::WriteRefused, what.to_owned()));
    };
    let message = format!("{}. The key should be gone, but {what}", denial.message);
    let mut plan = hold(seen, &Refusal::held(Reason::WriteRefused, message));
    plan.status.withdraw_at = old_status(seen).withdraw_at;
    plan
}

/// Nothing is known of the Secrets of other namespaces, and nothing may be written there.
pub(super) fn not_served(namespace: &str, served: &[String]) -> Option<Refusal> {
    if served.is_empty() || served.iter().any(|name| name == namespace) {
        return None;
    }
    let message = format!(
        "this llmwarden does not serve namespace {namespace} (it serves {}): ask the platform team to add it",
        served.join(", ")
    );
    Some(Refusal::held(Reason::NamespaceNotServed, message))
}

fn provision(seen: &Observation, provider: &LLMProvider, grant: &Grant, settings: &Settings) -> Plan {
    let access = seen.access.as_ref();
    let old = old_status(seen);
    let placeholder = settings.instance.placeholder(seen.namespace_name(), seen.name());
    let mut plan = Plan {
        status: status::base(seen),
        ..Plan::default()
    };

    let companion_name = access.companion_name();
    if let Some(announcement) = announce_recreation(seen, &[&access.spec.secret_name, &companion_name]) {
        return announcement;
    }

    let application = application_data(access, provider, grant, &placeholder);
    let restored_application = ensure(
        seen,
        &access.spec.secret_name,
        application,
        None,
        grant,
        &mut plan.writes,
    );

    let present = seen.own_companion();
    let render = |stamp| active_companion(access, provider, grant, &placeholder, stamp);
    let settled = settled_stamp(seen, present, render);
    let stamp = settled.unwrap_or_else(|| next_stamp(seen));
    let delivered = Delivered {
        version: stamp.0,
        issued_at: stamp.1,
        key_id: settings.instance.key_id(&grant.key),
        companion_intact: companion_intact(seen, &grant.key),
        cause: settled.and(present).and_then(|companion| companion.cause()),
    };
    let trigger = status::record_delivery(&mut plan.status, &old, &delivered);
    let companion = render(stamp);
    ensure(
        seen,
        &companion_name,
        companion,
        trigger.as_ref(),
        grant,
        &mut plan.writes,
    );

    let keep = BTreeSet::from([access.spec.secret_name.as_str(), companion_name.as_str()]);
    let mut leftovers = remove_others(seen, &keep, &mut plan.writes);
    // Removed before a crash: the status still speaks of it.
    leftovers.extend(
        old.secret_ref
            .map(|secret| secret.name)
            .filter(|name| *name != access.spec.secret_name),
    );

    status::granted(seen, provider, grant, &delivered, &mut plan);

    for name in &grant.adopts {
        plan.events.push(EventNote::normal(
            Reason::Adopted,
            format!("Secret {name} was taken over, as its annotation asked"),
        ));
    }
    plan.events.extend(
        trigger
            .as_ref()
            .map(|trigger| status::delivery_event(trigger, access)),
    );
    if trigger.is_none() && restored_application {
        let text = format!(
            "Secret {} is as it was before it was edited or deleted",
            access.spec.secret_name
        );
        plan.events.push(EventNote::normal(Reason::Restored, text));
    }
    for name in leftovers {
        let text = format!(
            "Secret {name} was removed: spec.secretName is {} now",
            access.spec.secret_name
        );
        plan.events.push(EventNote::normal(Reason::SecretRemoved, text));
    }
    if seen.rotation_requested() {
        plan.rotation_handled = true;
        if trigger.is_none() {
            plan.events.push(EventNote::warning(
                Reason::NothingToRotate,
                status::nothing_to_rotate(provider),
            ));
        }
    }
    plan
}

/// The access is not allowed: its key goes, after the announced time.
fn deny(seen: &Observation, refusal: &Refusal, settings: &Settings) -> Plan {
    let grace = settings.denial_grace;
    let old = old_status(seen);
    let mut plan = Plan {
        status: status::base(seen),
        ..Plan::default()
    };
    let companion = seen.own_companion();
    let application = seen.own_secret(&seen.access.spec.secret_name);

    let provisioned =
        companion.is_some() || seen.secrets.values().any(|secret| secret.is_owned_by(seen.uid()));
    if !provisioned && old.credential_version.is_none() {
        status::refused(seen, refusal, &refusal.message, false, &mut plan);
        return plan;
    }
    let Some(withdraw_at) = old.withdraw_at.as_ref().map(|time| time.0) else {
        // The intent is recorded first: after a crash the announced time still counts.
        let at = end_of_grace(seen.now, grace);
        let message = format!("{}. The key is withdrawn at {}", refusal.message, at.0);
        plan.look_again_in(until(seen.now, at.0));
        plan.status.withdraw_at = Some(at);
        status::refused(seen, refusal, &message, true, &mut plan);
        return plan;
    };
    if seen.now < withdraw_at {
        let message = format!("{}. The key is withdrawn at {withdraw_at}", refusal.message);
        plan.status.withdraw_at.clone_from(&old.withdraw_at);
        status::refused(seen, refusal, &message, true, &mut plan);
        plan.look_again_in(until(seen.now, withdraw_at));
        return plan;
    }
    let name = seen.access.companion_name();
    if let Some(announcement) = announce_recreation(seen, &[&name]) {
        return announcement;
    }

    let mut message = format!("{}. The key was withdrawn at {withdraw_at}", refusal.message);
    let mut keep = BTreeSet::from([name.as_str()]);
    let placeholder = settings.instance.placeholder(seen.namespace_name(), seen.name());
    match application {
        // A placeholder opens nothing, and agents that reference it can go on starting.
        Some(application) if application.holds_value(names::API_KEY, &placeholder) => {
            keep.insert(application.name.as_str());
        }
        // What a finalizer keeps must not keep the key.
        Some(application) if !application.finalizers.is_empty() && !application.is_empty() => {
            let emptied = DesiredSecret::new(&application.name, Data::new(), Some(application));
            write_own(Some(application), emptied, &mut plan.writes);
            keep.insert(application.name.as_str());
            plan.look_again_in(Duration::ZERO);
        }
        _ => {}
    }
    // The application's Secret goes first, whatever becomes of the companion.
    remove_others(seen, &keep, &mut plan.writes);
    let render = |stamp| withdrawn_companion(&refusal.message, stamp);
    let stamp = if seen.secrets.contains_key(&name) && companion.is_none() {
        write!(
            message,
            ". Secret {name} is somebody else's, so that sidecars are not told"
        )
        .expect("writing to a String does not fail");
        recorded_withdrawal(&old).unwrap_or_else(|| next_stamp(seen))
    } else {
        let stamp = settled_stamp(seen, companion, render).unwrap_or_else(|| next_stamp(seen));
        let withdrawn = DesiredSecret::new(&name, render(stamp), companion.map(AsRef::as_ref));
        write_own(companion, withdrawn, &mut plan.writes);
        stamp
    };
    plan.status.withdraw_at.clone_from(&old.withdraw_at);
    let news = status::record_withdrawal(&mut plan.status, &old, stamp);
    status::refused(seen, refusal, &message, false, &mut plan);
    if news {
        plan.events.push(EventNote::warning(Reason::Withdrawn, message));
    }
    plan
}

/// When the grace is over, in the whole seconds of a status: the next one, so that it is never shorter than asked for.
fn end_of_grace(now: Timestamp, grace: Duration) -> Time {
    let due = now.saturating_add(grace).unwrap_or(Timestamp::MAX);
    let end = whole_seconds(due);
    if grace.is_zero() || end.0 == due {
        return end;
    }
    let next = end.0.checked_add(Duration::from_secs(1));
    next.map_or(end, Time)
}

/// The access gets no key now, and keeps what it has.
fn hold(seen: &Observation, refusal: &Refusal) -> Plan {
    let old = old_status(seen);
    let mut plan = Plan {
        status: status::base(seen),
        ..Plan::default()
    };
    let active = seen
        .own_companion()
        .and_then(|c| c.delivery())
        .is_some_and(|d| d.state == State::Active);
    let application = old
        .secret_ref
        .map_or_else(|| seen.access.spec.secret_name.clone(), |secret| secret.name);
    let whole = seen.own_secret(&application).is_some();
    if refusal.reason == Reason::SecretConflict && old.credential_version.is_none() {
        // The conflict showed between two writes: the access that is refused leaves nothing behind.
        remove_others(seen, &BTreeSet::new(), &mut plan.writes);
    }
    if !active {
        plan.status.withdraw_at.clone_from(&old.withdraw_at);
    }
    let message = if active && !whole {
        format!("{}. Secret {application} is missing", refusal.message)
    } else {
        refusal.message.clone()
    };
    let provisioned = active && whole && plan.writes.is_empty();
    status::refused(seen, refusal, &message, provisioned, &mut plan);
    plan
}

/// The version and time of a withdrawal that is recorded as the last thing that happened.
fn recorded_withdrawal(old: &LLMAccessStatus) -> Option<(u64, Timestamp)> {
    let last = old.history.first()?;
    let version = u64::try_from(last.version).ok()?;
    (last.trigger == Trigger::Withdrawn).then_some((version, last.time.0))
}

/// Version and time of a companion that is exactly what it should be. One from a backup is not: sidecars know a newer one.
fn settled_stamp(
    seen: &Observation,
    present: Option<&Arc<ObservedSecret>>,
    render: impl Fn((u64, Timestamp)) -> Data,
) -> Option<(u64, Timestamp)> {
    let present = present?;
    let delivery = present.delivery()?;
    let stamp = (delivery.version, delivery.issued_at);
    (recorded_version(seen) <= Some(delivery.version) && present.holds(&render(stamp))).then_some(stamp)
}

fn next_stamp(seen: &Observation) -> (u64, Timestamp) {
    let written = seen
        .secrets
        .get(&seen.access.companion_name())
        .and_then(|c| c.delivery())
        .map(|d| d.version);
    let issued_at = Timestamp::from_millisecond(seen.now.as_millisecond()).unwrap_or(seen.now);
    (
        next_version(recorded_version(seen).max(written), seen.now),
        issued_at,
    )
}

/// The version that the status speaks of.
fn recorded_version(seen: &Observation) -> Option<u64> {
    let recorded = seen.access.status.as_ref()?.credential_version?;
    // What is larger was taken over from a stranger's companion, by a controller that took any.
    u64::try_from(recorded)
        .ok()
        .filter(|version| *version <= MAX_VERSION)
}

/// Whether the companion holds the key and the version that the status speaks of: then a difference is a change of
/// settings, not an edit.
fn companion_intact(seen: &Observation, key: &SecretString) -> bool {
    seen.own_companion().is_some_and(|companion| {
        companion.holds_value(names::API_KEY, key)
            && companion.delivery().map(|delivery| delivery.version) == recorded_version(seen)
    })
}

fn old_status(seen: &Observation) -> LLMAccessStatus {
    seen.access.status.clone().unwrap_or_default()
}

/// Time from now until then, never negative.
pub(super) fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod consumers;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod versions;
#[cfg(test)]
pub(super) mod world;
