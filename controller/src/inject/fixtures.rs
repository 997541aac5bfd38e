//! What the tests of injection are made from.
#![expect(clippy::needless_pass_by_value, reason = "what is passed is written in place")]

use std::collections::BTreeMap;
use std::sync::Arc;

use json_patch::PatchOperation;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::provider::LLMProvider;
use serde_json::{Value, json};

use super::plan::plan;
use super::select::{Scope, select};
use super::sidecar::Template;
use super::{Injected, Obstacle, Outcome, SkipReason};
use crate::index::agent::AgentWish;
use crate::index::offer::Offer;
use crate::index::secret::ObservedSecret;
use crate::index::{Claim, Foreign, Index};

pub const NAMESPACE: &str = "kagent";

/// An index with the provider `anthropic`.
pub fn world() -> Index {
    let mut index = Index::default();
    add_provider(&mut index, "anthropic", json!({}));
    index
}

pub fn add_provider(index: &mut Index, name: &str, spec: Value) {
    let mut provider = json!({
        "metadata": { "name": name },
        "spec": { "provider": "anthropic", "auth": { "type": "apiKey" } },
    });
    json_patch::merge(&mut provider["spec"], &spec);
    let provider: LLMProvider = serde_json::from_value(provider).expect("a provider");
    index.apply(&(String::new(), name.to_owned()), Arc::new(provider));
}

/// An access with the Secret `<name>-key`, changed as the merge patch says.
pub fn add_access(index: &mut Index, name: &str, spec: Value) {
    add_access_in(NAMESPACE, index, name, spec);
}

pub fn add_access_in(namespace: &str, index: &mut Index, name: &str, spec: Value) {
    let mut access = json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMAccess",
        "metadata": { "name": name, "namespace": namespace, "uid": format!("uid-{name}") },
        "spec": { "providerRef": { "name": "anthropic" }, "secretName": format!("{name}-key") },
    });
    json_patch::merge(&mut access["spec"], &spec);
    let access: LLMAccess = serde_json::from_value(access).expect("an access");
    let key = (namespace.to_owned(), name.to_owned());
    index.apply(&key, Claim::from(&access));
    index.apply(&key, Arc::new(Offer::from(&access)));
}

/// A Secret that no access owns.
pub fn add_foreign_secret(index: &mut Index, name: &str) {
    let secret: Secret = serde_json::from_value(json!({ "metadata": { "name": name } })).expect("a Secret");
    let observed = Foreign(Arc::new(ObservedSecret::from_metadata(secret.metadata)));
    index.apply(&(NAMESPACE.to_owned(), name.to_owned()), observed);
}

pub fn add_agent(index: &mut Index, name: &str, annotation: Option<&str>) {
    let key = (NAMESPACE.to_owned(), name.to_owned());
    index.apply(&key, AgentWish(annotation.map(str::to_owned)));
}

/// A pod with the container `agent`, changed as the merge patch says.
pub fn pod(change: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "generateName": "agent-" },
        "spec": { "containers": [{ "name": "agent", "image": "agent" }] },
    });
    json_patch::merge(&mut pod, &change);
    pod
}

/// [`pod`], annotated with these accesses.
pub fn annotated(accesses: &str, spec: Value) -> Value {
    let annotations = json!({ "llmwarden.io/inject": accesses });
    pod(json!({ "metadata": { "annotations": annotations }, "spec": spec }))
}

/// [`pod`], with these labels.
pub fn labelled(labels: Value, spec: Value) -> Value {
    pod(json!({ "metadata": { "labels": labels }, "spec": spec }))
}

pub fn outcome_in(namespace: &str, pod: &Value, index: &Index) -> Outcome {
    let typed: Pod = serde_json::from_value(pod.clone()).expect("a pod");
    match select(&typed, namespace, &scope(), index) {
        Ok(selection) => plan(&typed, selection, &template()),
        Err(outcome) => outcome,
    }
}

/// The controller of these tests is in `llmwarden-system`, and serves two namespaces.
pub fn scope() -> Scope {
    Scope {
        own: "llmwarden-system".to_owned(),
        served: [NAMESPACE, "elsewhere"].map(str::to_owned).to_vec(),
    }
}

pub fn outcome(pod: &Value, index: &Index) -> Outcome {
    outcome_in(NAMESPACE, pod, index)
}

pub fn template() -> Template {
    let resources = |memory: &str| [("memory".to_owned(), Quantity(memory.to_owned()))].into();
    Template {
        image: "sidecar:test".to_owned(),
        requests: resources("16Mi"),
        limits: resources("64Mi"),
        volume_size: Quantity("16Mi".to_owned()),
        egress: BTreeMap::new(),
    }
}

pub fn injected(pod: &Value, index: &Index) -> Injected {
    match outcome(pod, index) {
        Outcome::Patch(injected) => injected,
        other => panic!("{other:?}"),
    }
}

/// The pod as it is after the injection.
pub fn patched(pod: &Value, index: &Index) -> Value {
    apply(pod, &injected(pod, index).operations)
}

pub fn apply(pod: &Value, operations: &[PatchOperation]) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, operations).expect("the patch fits");
    pod
}

/// What is in the way, of an outcome that is a denial.
pub fn denied(pod: &Value, index: &Index) -> Obstacle {
    match outcome(pod, index) {
        Outcome::Deny(obstacle) => obstacle,
        other => panic!("{other:?}"),
    }
}

/// Why it is skipped.
pub fn skipped(pod: &Value, index: &Index) -> SkipReason {
    match outcome(pod, index) {
        Outcome::Skip(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// The first element of a list that has this name.
pub fn by_name<'a>(list: &'a Value, name: &str) -> &'a Value {
    let all = list.as_array().into_iter().flatten();
    all.into_iter()
        .find(|item| item["name"] == name)
        .unwrap_or(&Value::Null)
}

/// The names in a list.
pub fn names(list: &Value) -> Vec<&str> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|item| item["name"].as_str()).collect()
}
