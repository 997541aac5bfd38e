//! The status of an access, and the events that go with its changes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::LocalObjectReference;
use llmwarden_proto::access::{HISTORY_LIMIT, HistoryEntry, LLMAccess, LLMAccessStatus, Trigger};
use llmwarden_proto::interval::Interval;
use llmwarden_proto::provider::{LLMProvider, whole_seconds};
use llmwarden_proto::reason::{ConditionType, Reason};

use super::grant::{Grant, Refusal};
use super::observe::Observation;
use super::plan::{EventNote, Plan, until};
use crate::conditions::{self, Truth};

/// What the companion holds once the plan is carried out.
pub struct Delivered {
    /// Its version.
    pub version: u64,
    /// When that was made.
    pub issued_at: Timestamp,
    /// Which key it holds.
    pub key_id: String,
    /// Whether, before, it held the same key, in the version that the status speaks of.
    pub companion_intact: bool,
    /// Why the version was made, if it was there already.
    pub cause: Option<Trigger>,
}

/// The status to start from: what a plan does not set again stays.
pub fn base(seen: &Observation) -> LLMAccessStatus {
    LLMAccessStatus {
        observed_generation: seen.access.metadata.generation,
        withdraw_at: None,
        ..seen.access.status.clone().unwrap_or_default()
    }
}

/// Enters a delivered version into the history, unless it stands there already. Says why it was made.
pub fn record_delivery(
    status: &mut LLMAccessStatus,
    old: &LLMAccessStatus,
    delivered: &Delivered,
) -> Option<Trigger> {
    let version = signed(delivered.version);
    if old.history.first().is_some_and(|last| last.version == version) {
        return None;
    }
    let trigger = match old.history.first().map(|last| last.key_id.as_deref()) {
        None | Some(None) => Trigger::Provisioned,
        Some(Some(last)) if last != delivered.key_id => Trigger::MasterChanged,
        // Written before a crash: what it was like before is lost.
        Some(Some(_)) if delivered.cause == Some(Trigger::SettingsChanged) => Trigger::SettingsChanged,
        Some(Some(_)) if delivered.companion_intact => Trigger::SettingsChanged,
        Some(Some(_)) => Trigger::Restored,
    };
    let time = whole_seconds(delivered.issued_at);
    if matches!(trigger, Trigger::Provisioned | Trigger::MasterChanged) {
        status.last_rotation = Some(time.clone());
    }
    push(
        status,
        HistoryEntry {
            version,
            time,
            trigger: trigger.clone(),
            key_id: Some(delivered.key_id.clone()),
            revoked_at: None,
        },
    );
    Some(trigger)
}

/// Enters a withdrawal into the history, unless it stands there already. Says whether it is news.
pub fn record_withdrawal(
    status: &mut LLMAccessStatus,
    old: &LLMAccessStatus,
    (version, at): (u64, Timestamp),
) -> bool {
    let version = signed(version);
    let news = old.history.first().is_none_or(|last| last.version != version);
    if news {
        let time = whole_seconds(at);
        push(
            status,
            HistoryEntry {
                version,
                time,
                trigger: Trigger::Withdrawn,
                key_id: None,
                revoked_at: None,
            },
        );
    }
    status.secret_ref = None;
    status.next_rotation = None;
    news
}

fn push(status: &mut LLMAccessStatus, entry: HistoryEntry) {
    status.credential_version = Some(entry.version);
    status.history.insert(0, entry);
    status.history.truncate(HISTORY_LIMIT);
}

/// Sets what holds for an access that has its key.
pub fn granted(
    seen: &Observation,
    provider: &LLMProvider,
    grant: &Grant,
    delivered: &Delivered,
    plan: &mut Plan,
) {
    let access = &seen.access;
    plan.status.secret_ref = Some(LocalObjectReference {
        name: access.spec.secret_name.clone(),
    });
    plan.status.provisioned_models.clone_from(&grant.models);

    let was_ready = is_ready(access);
    let mut setter = plan.conditions(seen);
    let message = format!(
        "Secret {} and its companion hold version {}{}",
        access.spec.secret_name,
        delivered.version,
        if grant.proxied {
            "; applications hold a placeholder"
        } else {
            ""
        }
    );
    setter.set(
        ConditionType::Ready,
        Truth::True,
        Reason::Provisioned,
        message.clone(),
    );
    setter.set(
        ConditionType::CredentialProvisioned,
        Truth::True,
        Reason::Provisioned,
        message,
    );
    if !was_ready && delivered_before(access, delivered) {
        let message = format!(
            "Secret {} and its companion hold the key",
            access.spec.secret_name
        );
        plan.events.push(EventNote::normal(Reason::Provisioned, message));
    }
    schedule(seen, provider, plan);
}

/// A static master key is replaced by somebody, or not: the interval is a promise whose breach is reported.
fn schedule(seen: &Observation, provider: &LLMProvider, plan: &mut Plan) {
    let due = interval(&seen.access, provider)
        .zip(plan.status.last_rotation.as_ref())
        .and_then(|(interval, last)| {
            let next = last.0.saturating_add(interval.duration()).ok()?;
            Some((interval, next))
        });
    plan.status.next_rotation = due.map(|(_, next)| whole_seconds(next));
    let mut setter = plan.conditions(seen);
    let Some((interval, next)) = due else {
        setter.clear(ConditionType::RotationOverdue);
        return;
    };
    if seen.now < next {
        let message = format!("a new master key is due at {next}");
        setter.set(
            ConditionType::RotationOverdue,
            Truth::False,
            Reason::RotationScheduled,
            message,
        );
        plan.look_again_in(until(seen.now, next));
        return;
    }
    let message = format!(
        "the key is older than {interval}: a new one was due at {next}. llmwarden cannot mint one from a static master \
         key: put a new key into {}",
        master_secret(provider)
    );
    let overdue = (
        ConditionType::RotationOverdue,
        Truth::True,
        Reason::RotationOverdue,
    );
    let said = seen
        .access
        .status
        .as_ref()
        .is_some_and(|s| conditions::is(&s.conditions, overdue.0, overdue.1, overdue.2));
    setter.set(overdue.0, overdue.1, overdue.2, message.clone());
    if !said {
        plan.events
            .push(EventNote::warning(Reason::RotationOverdue, message));
    }
}

fn interval(access: &LLMAccess, provider: &LLMProvider) -> Option<Interval> {
    let rotation = provider
        .spec
        .auth
        .api_key
        .as_ref()
        .and_then(|auth| auth.rotation.as_ref());
    let promised = rotation
        .filter(|rotation| rotation.enabled)
        .and_then(|rotation| rotation.interval.as_ref());
    let tightened = access
        .spec
        .rotation
        .as_ref()
        .and_then(|rotation| rotation.interval.as_ref());
    // The CRD refuses what does not parse.
    promised
        .into_iter()
        .chain(tightened)
        .filter_map(|text| text.parse().ok())
        .min()
}

/// Sets what holds for an access that gets no key now.
pub fn refused(seen: &Observation, refusal: &Refusal, message: &str, provisioned: bool, plan: &mut Plan) {
    let access = &seen.access;
    let ready = (ConditionType::Ready, Truth::False, refusal.reason);
    let said = access
        .status
        .as_ref()
        .is_some_and(|s| conditions::is(&s.conditions, ready.0, ready.1, ready.2));
    let mut setter = plan.conditions(seen);
    setter.set(ready.0, ready.1, ready.2, message);
    let (truth, text) = if provisioned {
        (Truth::True, "the last good key is still there".to_owned())
    } else {
        setter.clear(ConditionType::RotationOverdue);
        (Truth::False, message.to_owned())
    };
    let reason = if provisioned {
        Reason::Provisioned
    } else {
        refusal.reason
    };
    setter.set(ConditionType::CredentialProvisioned, truth, reason, text);
    if !provisioned {
        plan.status.secret_ref = None;
        plan.status.provisioned_models.clear();
        plan.status.next_rotation = None;
    }
    if !said {
        plan.events.push(EventNote::warning(refusal.reason, message));
    }
    // A key that stays grows old all the same.
    if let Some(provider) = seen.provider.as_ref().filter(|_| provisioned) {
        schedule(seen, provider, plan);
    }
}

/// What to tell of a delivery. Without its version, so that the events of many rotations are folded into one.
pub fn delivery_event(trigger: &Trigger, access: &LLMAccess) -> EventNote {
    let secret = &access.spec.secret_name;
    match trigger {
        Trigger::Provisioned => EventNote::normal(
            Reason::Provisioned,
            format!("Secret {secret} and its companion were provisioned with a key"),
        ),
        Trigger::MasterChanged => EventNote::normal(
            Reason::Rotated,
            format!("the master key changed: Secret {secret} and its companion hold the new key"),
        ),
        Trigger::SettingsChanged => EventNote::normal(
            Reason::SettingsChanged,
            "the settings changed, the key did not: the companion holds the new settings",
        ),
        Trigger::Restored | Trigger::Withdrawn | Trigger::Other(_) => EventNote::normal(
            Reason::Restored,
            "the companion was edited or deleted: it holds the same key again, as a new version",
        ),
    }
}

/// What to tell who asked for a rotation of a static key that nobody replaced.
pub fn nothing_to_rotate(provider: &LLMProvider) -> String {
    format!(
        "a rotation was asked for, but the key in {} is the one already delivered: llmwarden cannot mint one from a \
         static master key, put a new key there",
        master_secret(provider)
    )
}

fn master_secret(provider: &LLMProvider) -> String {
    provider
        .spec
        .auth
        .api_key
        .as_ref()
        .map_or_else(String::new, |auth| {
            format!(
                "`{}` of Secret {}/{}",
                auth.secret_ref.key, auth.secret_ref.namespace, auth.secret_ref.name
            )
        })
}

fn is_ready(access: &LLMAccess) -> bool {
    access
        .status
        .as_ref()
        .and_then(|status| conditions::find(&status.conditions, ConditionType::Ready))
        .is_some_and(|ready| ready.status == Truth::True.as_str())
}

/// Whether the version was there before, so that becoming ready is the only news.
fn delivered_before(access: &LLMAccess, delivered: &Delivered) -> bool {
    let last = access.status.as_ref().and_then(|status| status.history.first());
    last.is_some_and(|last| last.version == signed(delivered.version))
}

fn signed(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}
