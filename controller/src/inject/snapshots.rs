//! Patches of whole admission requests, as kagent's pods make them: ours, and those that kagent itself made, which are not
//! part of the repository. Of these the snapshots hold nothing but our patch.

use std::path::Path;

use json_patch::PatchOperation;
use llmwarden_tests::shared_dir;
use serde_json::{Value, json};

use super::fixtures::*;
use super::serve::Webhook;
use crate::index::Index;
use crate::index::watch::SharedIndex;
use crate::metrics::Metrics;

/// The guide's two accesses, for every Agent that there are requests of.
fn guide() -> Index {
    let mut index = world();
    add_provider(&mut index, "openai", json!({ "provider": "openai" }));
    let env = |name: &str| json!([{ "name": name, "secretKey": "apiKey" }]);
    let for_agents = |agents: &[&str]| json!({ "matchExpressions": [{ "key": "kagent.dev/agent", "operator": "In", "values": agents }] });
    add_access(
        &mut index,
        "agent-anthropic",
        json!({
            "secretName": "kagent-anthropic",
            "workloadSelector": for_agents(&["writer", "reasoning-agent", "proxied-agent", "restricted-skills-agent", "byo-ready"]),
            "injection": { "env": env("ANTHROPIC_API_KEY") },
        }),
    );
    add_access(
        &mut index,
        "agent-openai",
        json!({
            "providerRef": { "name": "openai" },
            "secretName": "kagent-openai",
            "workloadSelector": for_agents(&["code-review-agent", "byo-agent"]),
            "injection": { "env": env("OPENAI_API_KEY"), "volume": { "mountPath": "/etc/openai" } },
        }),
    );
    index
}

/// The same accesses, of providers that require the proxy.
fn guide_with_proxy() -> Index {
    let mut index = guide();
    add_provider(&mut index, "anthropic", json!({ "proxy": "Required" }));
    add_provider(
        &mut index,
        "openai",
        json!({ "provider": "openai", "proxy": "Required" }),
    );
    index
}

/// The patch that the webhook answers a request with, from request to answer.
fn answer(review: &Path, guide: fn() -> Index) -> Vec<PatchOperation> {
    let text = std::fs::read_to_string(review).expect("readable");
    let review: Value = serde_saphyr::from_str(&text).expect("YAML");
    let index = SharedIndex::default();
    index.update(|shared| {
        *shared = guide();
        crate::index::Affected::default()
    });
    let webhook = Webhook {
        index,
        scope: scope(),
        trusted: Vec::new(),
        template: template(),
        metrics: Metrics::default(),
    };
    let answer = webhook.review(review.to_string().as_bytes());
    let response = answer.response.expect("an answer");
    assert_eq!(response.uid, review["request"]["uid"]);
    assert!(response.allowed, "{response:?}");
    let patch = response.patch.expect("a patch");
    let operations: Vec<PatchOperation> = serde_json::from_slice(&patch).expect("a patch");
    let pod = review["request"]["object"].clone();
    // It fits, and gives the same when given again.
    let after = apply(&pod, &operations);
    assert_eq!(skipped(&after, &guide()), super::SkipReason::AlreadyInjected);
    operations
}

#[test]
fn a_pod_of_kagents_shape() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/inject/fixtures");
    let operations = answer(&fixtures.join("agent.yaml"), guide);
    insta::assert_json_snapshot!(operations);
}

#[test]
fn the_pods_that_kagent_made() {
    let Some(shared) = shared_dir() else { return };
    for agent in [
        "reasoning-agent",
        "code-review-agent",
        "byo-agent",
        "byo-ready",
        "proxied-agent",
        "restricted-skills-agent",
        "featureful-agent",
    ] {
        let review = shared.join(format!("kagent-pods/admissionreview-pod-{agent}.yaml"));
        insta::assert_json_snapshot!(agent, answer(&review, guide));
        insta::assert_json_snapshot!(
            format!("{agent}-in-proxy-mode"),
            answer(&review, guide_with_proxy)
        );
    }
}
