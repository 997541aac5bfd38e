//! Who asks for what an access is, and what its author should know at once. The webhook answers with it, from what the index
//! holds; it never refuses, as what is wrong for good is refused by the definition itself. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use json_patch::PatchOperation;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::core::{DynamicObject, Selector};
use llmwarden_proto::access::{HistoryEntry, LLMAccess, Trigger};
use llmwarden_proto::names;
use serde_json::json;

use super::grant::decide;
use super::observe::Observation;
use super::plan::not_served;
use crate::index::Index;
use crate::inject::patch::Draft;

/// Has the access say who asked for it: `user`, if the request asks for something, and otherwise what it said before.
/// Objects are compared as they were sent, as the chart's policy compares them.
pub fn sign(access: &DynamicObject, before: Option<&DynamicObject>, user: &str) -> Vec<PatchOperation> {
    let said = |object| annotation(object, names::REQUESTED_BY_ANNOTATION);
    let right = if asks(access, before) {
        Some(user).filter(|user| (1..=names::MAX_REQUESTED_BY).contains(&user.chars().count()))
    } else {
        before.and_then(said)
    };
    let mut draft = Draft::default();
    let path = ["metadata", "annotations", names::REQUESTED_BY_ANNOTATION];
    match right {
        right if right == said(access) => {}
        None => draft.remove(&path),
        Some(right) if access.annotations().is_empty() => {
            draft.set(&path[..2], json!({ names::REQUESTED_BY_ANNOTATION: right }));
        }
        Some(right) => draft.set(&path, json!(right)),
    }
    draft.0
}

/// Whether something is asked of the controller: an access, another spec, or a rotation.
fn asks(access: &DynamicObject, before: Option<&DynamicObject>) -> bool {
    let Some(before) = before else { return true };
    let rotate = |object| annotation(object, names::ROTATE_ANNOTATION).unwrap_or_default();
    access.data.get("spec") != before.data.get("spec")
        || !rotate(access).is_empty() && rotate(access) != rotate(before)
}

fn annotation<'a>(object: &'a DynamicObject, name: &str) -> Option<&'a str> {
    object.annotations().get(name).map(String::as_str)
}

/// What stands in the way of an access now, in the words that its conditions are going to have, and what of it has no effect.
/// `trusted` are the namespaces that master keys may live in, `served` those of accesses.
pub fn warnings(
    object: &DynamicObject,
    namespace: &str,
    index: &Index,
    trusted: &[String],
    served: &[String],
    now: Timestamp,
) -> Vec<String> {
    // What is no access is refused by the API server.
    let Ok(mut access) = object.clone().try_parse::<LLMAccess>() else {
        return Vec::new();
    };
    // Of one that is being created, the API server sets them later.
    access.metadata.namespace = Some(namespace.to_owned());
    access.metadata.creation_timestamp.get_or_insert(Time(now));

    let mut warnings = Vec::new();
    let rotate = annotation(object, names::ROTATE_ANNOTATION);
    if rotate.is_some_and(|value| value != names::ROTATE_NOW) {
        warnings.push(format!(
            "the annotation {} asks for nothing: write {}={}",
            names::ROTATE_ANNOTATION,
            names::ROTATE_ANNOTATION,
            names::ROTATE_NOW
        ));
    }
    let selector = access.spec.workload_selector.clone();
    if selector.is_some_and(|selector| Selector::try_from(selector).is_err()) {
        warnings.push(
            "spec.workloadSelector can't be read, and selects no pods: operators are In and NotIn, with values, Exists \
             and DoesNotExist, without"
                .to_owned(),
        );
    }
    let seen = Observation::new(index, Arc::new(access), now);
    let refusal = not_served(namespace, served).or_else(|| decide(&seen, trusted)?.err());
    if let Some(refusal) = refusal {
        let status = seen.access.status.as_ref();
        let has_key = status.is_some_and(|status| status.secret_ref.is_some());
        warnings.push(if refusal.denied && has_key {
            format!(
                "{}. The key that it has is going to be withdrawn",
                refusal.message
            )
        } else {
            refusal.message
        });
    }
    warnings
}

/// Who asked for the change of a credential that a pass has made, if that was somebody through the access. `rotates`: a
/// rotation was asked for.
pub fn requested_by<'a>(seen: &'a Observation, change: &HistoryEntry, rotates: bool) -> Option<&'a str> {
    let status = seen.access.status.as_ref();
    let asked = match change.trigger {
        Trigger::Provisioned | Trigger::SettingsChanged => {
            let observed = status.and_then(|status| status.observed_generation);
            // Its first key is what the access is there for, however late it comes.
            seen.access.metadata.generation > observed
                || status.is_none_or(|status| status.history.is_empty())
        }
        Trigger::MasterChanged => rotates,
        Trigger::Restored | Trigger::Withdrawn | Trigger::Other(_) => false,
    };
    let by = seen.access.annotations().get(names::REQUESTED_BY_ANNOTATION);
    by.filter(|_| asked).map(String::as_str)
}

#[cfg(test)]
mod tests;
