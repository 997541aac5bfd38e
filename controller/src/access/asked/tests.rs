//! Requests, and what is answered.
#![expect(clippy::needless_pass_by_value, reason = "what is passed is written in place")]

use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use super::*;
use crate::access::plan::world::{World, parse};
use crate::index::NamespaceLabels;
use crate::index::master::Master;
use crate::inject::fixtures::{add_access_in, add_provider};

const TEAM: &str = "team";

/// An access, changed as the merge patch says.
fn access(change: Value) -> DynamicObject {
    let mut access = json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMAccess",
        "metadata": { "name": "agent", "namespace": TEAM },
        "spec": {
            "providerRef": { "name": "anthropic" }, "secretName": "agent-key", "models": ["claude-a"], "injection": {},
        },
    });
    json_patch::merge(&mut access, &change);
    parse(access)
}

/// The same, with these annotations of ours.
fn annotated(annotations: &[(&str, &str)], spec: Value) -> DynamicObject {
    let annotations: serde_json::Map<_, _> = annotations
        .iter()
        .map(|(name, value)| (format!("llmwarden.io/{name}"), json!(value)))
        .collect();
    access(json!({ "metadata": { "annotations": annotations }, "spec": spec }))
}

fn by(user: &str) -> DynamicObject {
    annotated(&[("requested-by", user)], json!({}))
}

#[test]
fn who_asks_is_named_and_nobody_else() {
    let longest = "x".repeat(names::MAX_REQUESTED_BY);
    let too_long = format!("{longest}x");
    let rotate = |value| annotated(&[("requested-by", "ann"), ("rotate", value)], json!({}));
    let other = |said: &str| annotated(&[("requested-by", said)], json!({ "secretName": "other" }));
    for (what, before, after, user, named) in [
        ("a new one", None, access(json!({})), "bob", Some("bob")),
        (
            "annotations",
            None,
            annotated(&[("x", "y")], json!({})),
            "bob",
            Some("bob"),
        ),
        ("another's name", None, by("ann"), "bob", Some("bob")),
        ("one's own name", None, by("bob"), "bob", Some("bob")),
        (
            "a long name",
            None,
            access(json!({})),
            &longest,
            Some(longest.as_str()),
        ),
        ("too long a name", None, by("ann"), &too_long, None),
        ("another spec", Some(by("ann")), other("ann"), "bob", Some("bob")),
        (
            "another spec, no name",
            Some(by("ann")),
            access(json!({ "spec": { "models": null } })),
            "bob",
            Some("bob"),
        ),
        (
            "a default written out",
            Some(by("ann")),
            annotated(&[("requested-by", "ann")], json!({ "injection": null })),
            "bob",
            Some("bob"),
        ),
        ("a rotation", Some(by("ann")), rotate("now"), "bob", Some("bob")),
        (
            "a rotation asked for before",
            Some(rotate("now")),
            rotate("now"),
            "bob",
            Some("ann"),
        ),
        (
            "a rotation that is done",
            Some(rotate("now")),
            by("ann"),
            "controller",
            Some("ann"),
        ),
        ("an empty wish", Some(by("ann")), rotate(""), "bob", Some("ann")),
        (
            "a label",
            Some(by("ann")),
            access(
                json!({ "metadata": { "labels": { "x": "y" }, "annotations": { "llmwarden.io/requested-by": "ann" } } }),
            ),
            "bob",
            Some("ann"),
        ),
        ("a name alone", Some(by("ann")), by("bob"), "bob", Some("ann")),
        (
            "a name removed",
            Some(by("ann")),
            access(json!({})),
            "bob",
            Some("ann"),
        ),
        (
            "a name where none was",
            Some(access(json!({}))),
            by("bob"),
            "bob",
            None,
        ),
    ] {
        let operations = sign(&after, before.as_ref(), user);
        let mut patched = json!(after);
        json_patch::patch(&mut patched, &operations).expect("the patch fits");
        let patched: DynamicObject = parse(patched);
        assert_eq!(
            annotation(&patched, names::REQUESTED_BY_ANNOTATION),
            named,
            "{what}"
        );
        // What is as it should be is left alone, and nothing else is ever changed.
        assert_eq!(
            operations.is_empty(),
            annotation(&after, names::REQUESTED_BY_ANNOTATION) == named,
            "{what}"
        );
        assert_eq!(patched.data, after.data, "{what}");
        assert!(operations.len() <= 1, "{what}");
    }
}

/// Everything that an access needs.
fn index() -> Index {
    let mut index = Index::default();
    let secret_ref = json!({ "name": "master", "namespace": "system", "key": "api-key" });
    add_provider(
        &mut index,
        "anthropic",
        json!({
            "auth": { "apiKey": { "secretRef": secret_ref } },
            "allowedModels": ["claude-a"],
            "namespaceSelector": { "matchLabels": { "llm": "yes" } },
        }),
    );
    let master: Secret =
        parse(json!({ "metadata": { "name": "master" }, "data": { "api-key": "c2stdGVzdC0x" } }));
    let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
    index.apply(&key("system", "master"), Arc::new(Master::from(master)));
    for (namespace, labels) in [
        (
            TEAM,
            NamespaceLabels::from([("llm".to_owned(), "yes".to_owned())]),
        ),
        ("others", NamespaceLabels::new()),
    ] {
        index.apply(&key("", namespace), labels);
    }
    add_access_in(TEAM, &mut index, "rival", json!({ "secretName": "rivals-key" }));
    index
}

fn warned(namespace: &str, object: &DynamicObject) -> Vec<String> {
    let trusted = ["system".to_owned()];
    let served = [TEAM, "others"].map(str::to_owned);
    let now = "2026-06-01T12:00:00Z".parse().expect("a time");
    warnings(object, namespace, &index(), &trusted, &served, now)
}

#[test]
fn what_is_in_the_way_is_told_at_once() {
    let spec = |spec: Value| access(json!({ "spec": spec }));
    let withdrawn =
        json!({ "spec": { "models": ["claude-b"] }, "status": { "secretRef": { "name": "agent-key" } } });
    for (namespace, access, told) in [
        (TEAM, access(json!({})), vec![]),
        // Its name is made later.
        (
            TEAM,
            access(json!({ "metadata": { "name": null, "generateName": "agent-" } })),
            vec![],
        ),
        // The API server refuses it, in better words.
        (TEAM, spec(json!({ "models": 1 })), vec![]),
        (
            TEAM,
            spec(json!({ "providerRef": { "name": "nobody" } })),
            vec!["LLMProvider nobody does not exist"],
        ),
        (
            TEAM,
            spec(json!({ "models": ["claude-b"] })),
            vec!["spec.models asks for claude-b, which"],
        ),
        (
            TEAM,
            access(withdrawn),
            vec!["The key that it has is going to be withdrawn"],
        ),
        (
            TEAM,
            spec(json!({ "secretName": "rivals-key" })),
            vec!["also claimed by the older LLMAccess rival"],
        ),
        (
            "others",
            access(json!({})),
            vec!["namespace others is not selected"],
        ),
        (
            "elsewhere",
            access(json!({})),
            vec!["does not serve namespace elsewhere"],
        ),
        (
            TEAM,
            annotated(&[("rotate", "yes")], json!({})),
            vec!["write llmwarden.io/rotate=now"],
        ),
        (TEAM, annotated(&[("rotate", "now")], json!({})), vec![]),
        (
            TEAM,
            spec(json!({
                "workloadSelector": { "matchExpressions": [{ "key": "app", "operator": "Equals", "values": ["a"] }] },
                "providerRef": { "name": "nobody" },
            })),
            vec![
                "spec.workloadSelector can't be read",
                "LLMProvider nobody does not exist",
            ],
        ),
    ] {
        let warnings = warned(namespace, &access);
        assert_eq!(warnings.len(), told.len(), "{warnings:?}");
        for (warning, told) in warnings.iter().zip(told) {
            assert!(warning.contains(told), "{warning}");
        }
    }
}

#[test]
fn the_audit_names_who_asked_for_this_very_change() {
    let named = |world: &World, trigger: Trigger, rotates: bool| {
        let change = HistoryEntry {
            version: 1,
            time: Time(world.now),
            trigger,
            key_id: None,
            revoked_at: None,
        };
        requested_by(&world.observe(), &change, rotates).map(str::to_owned)
    };
    let signed = |mut world: World| {
        let annotations = world.access.metadata.annotations.get_or_insert_default();
        annotations.insert(names::REQUESTED_BY_ANNOTATION.to_owned(), "ann".to_owned());
        world
    };
    let ann = Some("ann".to_owned());
    assert_eq!(
        named(&World::new(), Trigger::Provisioned, false),
        None,
        "nobody known"
    );
    assert_eq!(named(&signed(World::new()), Trigger::Provisioned, false), ann);

    // A pass that had to wait for the provider.
    let mut late = signed(World::new());
    let provider = late.provider.take();
    late.settle();
    late.provider = provider;
    assert_eq!(named(&late, Trigger::Provisioned, false), ann);

    let mut settled = signed(World::settled());
    for trigger in [
        Trigger::Provisioned,
        Trigger::SettingsChanged,
        Trigger::MasterChanged,
        Trigger::Restored,
    ] {
        assert_eq!(
            named(&settled, trigger.clone(), false),
            None,
            "{trigger:?}: not through the access"
        );
    }
    assert_eq!(named(&settled, Trigger::MasterChanged, true), ann);
    settled.access.metadata.generation = Some(2);
    assert_eq!(named(&settled, Trigger::SettingsChanged, false), ann);
    assert_eq!(named(&settled, Trigger::MasterChanged, false), None);
    assert_eq!(named(&settled, Trigger::Restored, false), None);
    assert_eq!(named(&settled, Trigger::Withdrawn, false), None);
}
