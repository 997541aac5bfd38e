//! What holds for every pod.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixtures::*;
use super::{Outcome, SkipReason};
use crate::index::Index;

fn index() -> Index {
    let mut index = world();
    let env = |name: &str| json!([{ "name": name, "secretKey": "apiKey" }]);
    add_access(&mut index, "a", json!({ "injection": { "env": env("A_KEY") } }));
    let volume = json!({ "mountPath": "/etc/b" });
    add_access(
        &mut index,
        "b.c",
        json!({ "injection": { "env": env("B_KEY"), "volume": volume } }),
    );
    add_access(&mut index, "all", json!({ "workloadSelector": {} }));
    add_access(&mut index, "proxied", json!({ "injection": { "proxy": {} } }));
    index
}

fn variable() -> impl Strategy<Value = Value> {
    ("[A-C]_(KEY|URL)", any::<bool>()).prop_map(|(name, literal)| {
        if literal {
            json!({ "name": name, "value": "own" })
        } else {
            json!({ "name": name, "valueFrom": { "secretKeyRef": { "name": "theirs", "key": "k" } } })
        }
    })
}

fn mount() -> impl Strategy<Value = Value> {
    "/(app|etc|data)/[b-d]".prop_map(|path| json!({ "name": "v", "mountPath": path }))
}

fn container(prefix: &'static str) -> impl Strategy<Value = Value> {
    let lists = (option::of(vec(variable(), 0..4)), option::of(vec(mount(), 0..3)));
    ("[a-z]{3}", lists).prop_map(move |(name, (env, mounts))| {
        let mut container = json!({ "name": format!("{prefix}-{name}"), "image": "agent" });
        if let Some(env) = env {
            container["env"] = env.into();
        }
        if let Some(mounts) = mounts {
            container["volumeMounts"] = mounts.into();
        }
        container
    })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let lists = (
        vec(container("main"), 1..4),
        option::of(vec(container("init"), 0..3)),
        option::of(Just(json!([{ "name": "v", "emptyDir": {} }]))),
    );
    let labels = option::of(Just(json!({ "app": "x" })));
    let accesses = prop_oneof![
        Just("a"),
        Just("b.c"),
        Just("a,b.c"),
        Just("b.c,a"),
        Just("proxied,a"),
        Just("")
    ];
    (lists, labels, accesses).prop_map(|((main, init, volumes), labels, accesses)| {
        let mut pod = annotated(accesses, json!({ "containers": main }));
        if let Some(init) = init {
            pod["spec"]["initContainers"] = init.into();
        }
        if let Some(volumes) = volumes {
            pod["spec"]["volumes"] = volumes;
        }
        if let Some(labels) = labels {
            pod["metadata"]["labels"] = labels;
        }
        pod
    })
}

/// The pod without everything that injection adds. `original` tells whose the variables are.
fn removed(mut pod: Value, original: &Value) -> Value {
    let ours = |item: &Value| {
        item["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("llmwarden"))
    };
    let retain = |list: &mut Value, keep: &dyn Fn(&Value) -> bool| {
        if let Some(list) = list.as_array_mut() {
            list.retain(|item| keep(item));
        }
    };
    if let Some(labels) = pod["metadata"]["labels"].as_object_mut() {
        labels.remove("llmwarden.io/injected");
    }
    retain(&mut pod["spec"]["volumes"], &|item| !ours(item));
    retain(&mut pod["spec"]["initContainers"], &|item| !ours(item));
    for list in ["containers", "initContainers"] {
        let containers = pod["spec"][list].as_array_mut();
        for (number, container) in containers.into_iter().flatten().enumerate() {
            retain(&mut container["volumeMounts"], &|item| !ours(item));
            let before = original["spec"][list][number]["env"]
                .as_array()
                .map_or(0, Vec::len);
            if let Some(env) = container["env"].as_array_mut() {
                env.truncate(before);
            }
        }
    }
    pod
}

/// Without empty lists and objects, which say nothing.
fn normal(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(normal).collect(),
        Value::Object(members) => {
            let empty = |value: &Value| {
                value.is_null()
                    || value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(serde_json::Map::is_empty)
            };
            let members = members.into_iter().map(|(key, value)| (key, normal(value)));
            members.filter(|(_, value)| !empty(value)).collect()
        }
        value => value,
    }
}

/// What a container has twice under one name or path, though it had not before.
fn duplicates(container: &Value, list: &str, key: &str) -> usize {
    let mut all: Vec<&str> = container[list]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item[key].as_str())
        .collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    count - all.len()
}

proptest! {
    #[test]
    fn injecting_twice_is_injecting_once(pod in any_pod()) {
        let index = index();
        if let Outcome::Patch(injected) = outcome(&pod, &index) {
            let once = apply(&pod, &injected.operations);
            prop_assert_eq!(outcome(&once, &index), Outcome::Skip(SkipReason::AlreadyInjected));
        }
    }

    #[test]
    fn removing_what_was_added_gives_the_original(pod in any_pod()) {
        if let Outcome::Patch(injected) = outcome(&pod, &index()) {
            let after = apply(&pod, &injected.operations);
            prop_assert_eq!(normal(removed(after, &pod)), normal(pod));
        }
    }

    #[test]
    fn nothing_is_there_twice_that_was_not_before(pod in any_pod()) {
        if let Outcome::Patch(injected) = outcome(&pod, &index()) {
            let after = removed_sidecar(apply(&pod, &injected.operations));
            for list in ["containers", "initContainers"] {
                let containers = after["spec"][list].as_array().into_iter().flatten();
                for (number, container) in containers.enumerate() {
                    let before = &pod["spec"][list][number];
                    for (of, key) in [("env", "name"), ("volumeMounts", "mountPath")] {
                        prop_assert_eq!(duplicates(container, of, key), duplicates(before, of, key));
                    }
                }
            }
        }
    }
}

fn removed_sidecar(mut pod: Value) -> Value {
    if let Some(init) = pod["spec"]["initContainers"].as_array_mut() {
        init.remove(0);
    }
    pod
}
