//! What the status says of pods: which have the sidecar, which version they deliver, and what they lack.

use jiff::Timestamp;
use llmwarden_proto::access::{PodCount, RotationStatus};
use llmwarden_proto::names::NO_VERSION;
use llmwarden_proto::reason::{ConditionType, Reason};

use super::observe::Observation;
use super::plan::{EventNote, Plan};
use crate::conditions::{self, Truth};
use crate::index::pod::Told;
use crate::inject::select::Scope;

/// How many are named in a message.
const NAMED: usize = 3;

/// A pod with the sidecar for an access.
#[derive(Debug, Clone, Default)]
pub struct InjectedPod {
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// What its sidecar said last, if it did.
    pub told: Option<Told>,
    /// Whether the key stays in the sidecar.
    pub proxied: bool,
    /// Whether a container reads the application's Secret into its environment.
    pub reads_secret: bool,
    /// Whether kagent makes another one when that Secret changes.
    pub hashes_secret: bool,
    /// What lets its containers into the sidecar, if something does.
    pub exposure: Option<String>,
}

/// The pods of an access.
#[derive(Debug, Clone, Default)]
pub struct Pods {
    /// Those with the sidecar for it.
    pub injected: Vec<InjectedPod>,
    /// Those that are to have it and don't, and why not, where that is known.
    pub missing: Vec<(String, Option<String>)>,
}

/// Sets what holds for the pods of an access once the plan is carried out.
pub fn report(seen: &Observation, injects: Option<&Scope>, plan: &mut Plan) {
    let Pods { injected, missing } = &seen.pods;
    let version = plan
        .status
        .credential_version
        .and_then(|version| u64::try_from(version).ok());
    let has_it = |pod: &&InjectedPod| {
        let told = pod.told.as_ref();
        told.is_some_and(|told| told.has(version.unwrap_or(NO_VERSION)))
    };
    let delivered = injected.iter().filter(has_it).count();
    plan.status.rotation = (!injected.is_empty()).then(|| RotationStatus {
        pods: PodCount {
            delivered: count(delivered),
            total: count(injected.len()),
        },
    });

    let outdated: Vec<String> = injected
        .iter()
        .filter_map(|pod| {
            let lacking = &pod.told.as_ref()?.lacking;
            (!lacking.is_empty()).then(|| format!("{} (lacks {})", pod.name, lacking.join(", ")))
        })
        .collect();
    let (kind, reason) = (ConditionType::SidecarOutdated, Reason::SidecarLacksFeatures);
    if outdated.is_empty() {
        plan.conditions(seen).clear(kind);
    } else {
        let message = format!(
            "the sidecar is older than what its companion asks for in {}: the key it delivers, but restart the pod for the \
             sidecar of this version",
            some(&outdated)
        );
        say(seen, plan, kind, Truth::True, reason, message);
    }

    let kind = ConditionType::InjectionReady;
    if injects.is_none_or(|scope| scope.excludes(seen.namespace_name())) {
        plan.conditions(seen).clear(kind);
    } else if !missing.is_empty() {
        let named: Vec<String> = missing
            .iter()
            .map(|(pod, why)| {
                why.as_ref()
                    .map_or_else(|| pod.clone(), |why| format!("{pod} ({why})"))
            })
            .collect();
        let message = format!(
            "the sidecar is missing in {}: restart what was there before the LLMAccess, or was created while the webhook was \
             down",
            some(&named)
        );
        say(
            seen,
            plan,
            kind,
            Truth::False,
            Reason::PodsMissingInjection,
            message,
        );
    } else if injected.is_empty() {
        let message = "no running pod asks for this LLMAccess: annotate one with llmwarden.io/inject, or set \
                       spec.workloadSelector";
        plan.conditions(seen)
            .set(kind, Truth::False, Reason::NoPodMatched, message);
    } else if let Some((pod, exposure)) = injected.iter().find_map(exposed) {
        let message = format!(
            "every pod that asks for this LLMAccess has the sidecar, but in pod {pod} the proxy does not keep the key from the \
             agent: {exposure}"
        );
        say(seen, plan, kind, Truth::True, Reason::KeyNotIsolated, message);
    } else {
        let message = "every pod that asks for this LLMAccess has the sidecar";
        plan.conditions(seen)
            .set(kind, Truth::True, Reason::PodsInjected, message);
    }
}

fn exposed(pod: &InjectedPod) -> Option<(&String, &String)> {
    Some((&pod.name, pod.exposure.as_ref().filter(|_| pod.proxied)?))
}

/// Sets a condition that is something to worry about, and tells of it when it begins.
fn say(
    seen: &Observation,
    plan: &mut Plan,
    kind: ConditionType,
    truth: Truth,
    reason: Reason,
    message: String,
) {
    if !conditions::is(&plan.status.conditions, kind, truth, reason) {
        plan.events.push(EventNote::warning(reason, message.clone()));
    }
    plan.conditions(seen).set(kind, truth, reason, message);
}

/// The first of them by name, and how many more there are.
pub fn some(all: &[String]) -> String {
    let named = &all[..all.len().min(NAMED)];
    match all.len() - named.len() {
        0 => format!("pod {}", named.join(", ")),
        more => format!("pod {} and {more} more", named.join(", ")),
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
