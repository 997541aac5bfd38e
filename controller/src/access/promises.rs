//! What the status promises to whoever uses the key: that a new one needs no restart, and that the list of models counts.

use std::time::Duration;

use llmwarden_proto::provider::LLMProviderSpec;
use llmwarden_proto::reason::{ConditionType, Reason};

use super::observe::Observation;
use super::plan::{Plan, until};
use super::pods::{InjectedPod, some};
use crate::conditions::{self, Truth};

/// How long is said that pods must restart, after a Secret was made anew: those that are not known may be older.
const RECREATION: Duration = Duration::from_hours(1);

/// Sets both conditions, as far as they are decided by what is known.
pub fn promise(seen: &Observation, plan: &mut Plan) {
    let Some(provider) = &seen.provider else { return };
    let proxied = provider.spec.is_proxied(&seen.access.spec.injection);
    models(seen, proxied, plan);
    if waits_for_restarts(seen, plan) {
        return;
    }
    let (kind, live) = (ConditionType::LiveRotation, live(seen, &provider.spec, proxied));
    let mut setter = plan.conditions(seen);
    match live {
        Some((truth, reason, message)) => setter.set(kind, truth, reason, message),
        None => setter.clear(kind),
    }
}

fn models(seen: &Observation, proxied: bool, plan: &mut Plan) {
    let kind = ConditionType::ModelsEnforced;
    if plan.status.provisioned_models.is_empty() {
        return plan.conditions(seen).clear(kind);
    }
    let direct = named(&seen.pods.injected, |pod| !pod.proxied);
    let (truth, reason, message) = if !proxied {
        let message = "nothing keeps an agent that holds the key from other models: add injection.proxy: {}";
        (Truth::False, Reason::NotEnforced, message.to_owned())
    } else if direct.is_empty() {
        let message = "the sidecar's proxy refuses requests for other models";
        (Truth::True, Reason::EnforcedByProxy, message.to_owned())
    } else {
        let message = format!(
            "the key is in {}, from before the proxy: restart it",
            some(&direct)
        );
        (Truth::False, Reason::NotEnforced, message)
    };
    plan.conditions(seen).set(kind, truth, reason, message);
}

/// `None`: nobody who uses the key is known.
fn live(seen: &Observation, provider: &LLMProviderSpec, proxied: bool) -> Option<(Truth, Reason, String)> {
    let injected = &seen.pods.injected;
    let secret = &seen.access.spec.secret_name;
    let holding = named(injected, |pod| pod.reads_secret && !pod.proxied);
    if proxied {
        return Some(if holding.is_empty() {
            let message = "the sidecar's proxy puts the current key on each request";
            (Truth::True, Reason::ThroughProxy, message.to_owned())
        } else {
            let message = format!(
                "{} read the key when it started, before the proxy: restart it",
                some(&holding)
            );
            (Truth::False, Reason::KeyInEnvironment, message)
        });
    }
    let remedy = match provider.proxy_hindrance() {
        None => ": add injection.proxy: {}",
        Some(_) => "",
    };
    let of_kagent = named(injected, |pod| pod.reads_secret && pod.hashes_secret);
    if !of_kagent.is_empty() {
        let message = format!(
            "kagent restarts {} whenever Secret {secret} changes, which it does with each new key{remedy}",
            some(&of_kagent)
        );
        return Some((Truth::False, Reason::KagentHashesSecret, message));
    }
    if !holding.is_empty() || !seen.access.spec.injection.env.is_empty() {
        let message = format!(
            "programs read their environment once, so a new key reaches them with a restart, or in the sidecar's file and at \
             its endpoint{remedy}"
        );
        return Some((Truth::False, Reason::KeyInEnvironment, message));
    }
    let message = "the sidecar's file and endpoint have each new key";
    (!injected.is_empty()).then(|| (Truth::True, Reason::DeliveredLive, message.to_owned()))
}

/// Whether it was said that pods must restart, since a Secret was made anew, and may still be so.
fn waits_for_restarts(seen: &Observation, plan: &mut Plan) -> bool {
    let kind = ConditionType::LiveRotation;
    let said = conditions::find(&plan.status.conditions, kind)
        .is_some_and(|condition| condition.reason == Reason::ImmutableSecretRecreated.as_str());
    if !said {
        return false;
    }
    let own: Vec<_> = seen
        .secrets
        .values()
        .filter(|secret| secret.is_owned_by(seen.uid()))
        .collect();
    // Announced, and not done yet.
    if own.iter().any(|secret| secret.is_immutable()) {
        return true;
    }
    let Some(recreated) = own.iter().filter_map(|secret| secret.created).max() else {
        return false;
    };
    if seen.pods.injected.iter().any(|pod| pod.created < Some(recreated)) {
        return true;
    }
    let left = recreated
        .saturating_add(RECREATION)
        .map_or(Duration::ZERO, |end| until(seen.now, end));
    if !left.is_zero() {
        plan.look_again_in(left);
    }
    !left.is_zero()
}

fn named(pods: &[InjectedPod], which: impl Fn(&InjectedPod) -> bool) -> Vec<String> {
    pods.iter()
        .filter(|pod| which(pod))
        .map(|pod| pod.name.clone())
        .collect()
}
