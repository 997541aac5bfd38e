//! What injection promises, sentence by sentence.

use serde_json::{Value, json};

use super::fixtures::*;
use super::{Obstacle, Outcome, SkipReason};
use crate::index::Index;

/// The accesses that the sidecar of a pod delivers.
fn delivered(pod: &Value) -> Vec<String> {
    let arguments = by_name(&pod["spec"]["initContainers"], "llmwarden")["args"].as_array();
    let arguments = arguments.into_iter().flatten().filter_map(Value::as_str);
    arguments
        .filter_map(|argument| argument.split_once('=').map(|(access, _)| access.to_owned()))
        .collect()
}

fn two_accesses() -> Index {
    let mut index = world();
    for name in ["a", "b"] {
        add_access(&mut index, name, json!({}));
    }
    index
}

#[test]
fn selects_by_annotation_agent_and_labels() {
    let mut index = world();
    let selector =
        |label: &str, value: &str| json!({ "workloadSelector": { "matchLabels": { label: value } } });
    add_access(&mut index, "plain", json!({}));
    add_access(&mut index, "other", json!({}));
    add_access(&mut index, "labelled", selector("team", "x"));
    add_access(&mut index, "guide", selector("kagent.dev/agent", "reasoning"));
    add_agent(&mut index, "wishes", Some("plain"));
    add_agent(&mut index, "declines", Some("false"));
    add_agent(&mut index, "silent", None);
    let kagent = |agent: &str| json!({ "app": "kagent", "kagent": agent });
    let both = |labels: Value, annotation: &str| {
        let annotations = json!({ "llmwarden.io/inject": annotation });
        pod(json!({ "metadata": { "labels": labels, "annotations": annotations } }))
    };
    let cases: Vec<(Value, &[&str])> = vec![
        (annotated("plain", json!({})), &["plain"]),
        // In the order in which they are named, each once.
        (annotated(" plain , other,plain,", json!({})), &["plain", "other"]),
        (annotated("other,plain", json!({})), &["other", "plain"]),
        (labelled(json!({ "team": "x" }), json!({})), &["labelled"]),
        (both(json!({ "team": "x" }), "plain"), &["plain", "labelled"]),
        (both(json!({ "team": "x" }), "labelled"), &["labelled"]),
        // An annotation that kagent could only empty says nothing.
        (both(json!({ "team": "x" }), ""), &["labelled"]),
        (labelled(kagent("wishes"), json!({})), &["plain"]),
        (both(kagent("wishes"), "other"), &["other"]),
        (both(kagent("declines"), "other"), &["other"]),
        // kagent's pods count as labelled with what the guide selects by.
        (labelled(kagent("reasoning"), json!({})), &["guide"]),
        (
            labelled(json!({ "kagent.dev/agent": "reasoning" }), json!({})),
            &["guide"],
        ),
    ];
    for (pod, expected) in cases {
        assert_eq!(delivered(&patched(&pod, &index)), expected, "{}", pod["metadata"]);
    }
    let none = [
        (pod(json!({})), SkipReason::NotSelected),
        (labelled(kagent("silent"), json!({})), SkipReason::NotSelected),
        // Not kagent's pods.
        (
            labelled(json!({ "kagent": "reasoning" }), json!({})),
            SkipReason::NotSelected,
        ),
        (
            labelled(json!({ "app": "other", "kagent": "wishes" }), json!({})),
            SkipReason::NotSelected,
        ),
        // A label of the pod's own is what counts.
        (
            labelled(
                json!({ "app": "kagent", "kagent": "reasoning", "kagent.dev/agent": "x" }),
                json!({}),
            ),
            SkipReason::NotSelected,
        ),
        (annotated("false", json!({})), SkipReason::OptedOut),
        (both(json!({ "team": "x" }), "false"), SkipReason::OptedOut),
        (labelled(kagent("declines"), json!({})), SkipReason::OptedOut),
    ];
    for (pod, expected) in none {
        assert_eq!(skipped(&pod, &index), expected, "{}", pod["metadata"]);
    }
}

#[test]
fn an_empty_selector_selects_all_and_none_nothing() {
    let mut index = world();
    add_access(&mut index, "all", json!({ "workloadSelector": {} }));
    add_access(&mut index, "none", json!({}));
    assert_eq!(delivered(&patched(&pod(json!({})), &index)), ["all"]);
}

#[test]
fn accesses_of_other_namespaces_are_none() {
    let mut index = world();
    add_access(&mut index, "all", json!({ "workloadSelector": {} }));
    let outcome = outcome_in("elsewhere", &pod(json!({})), &index);
    assert_eq!(outcome, Outcome::Skip(SkipReason::NotSelected));
}

#[test]
fn where_no_key_is_provisioned_nothing_is_injected() {
    let mut index = world();
    add_access_in("unserved", &mut index, "a", json!({ "workloadSelector": {} }));
    let obstacle = Obstacle::NamespaceNotServed {
        namespace: "unserved".to_owned(),
    };
    let outcome = |pod: &Value| outcome_in("unserved", pod, &index);
    assert_eq!(
        outcome(&annotated("a", json!({}))),
        Outcome::Deny(obstacle.clone())
    );
    let skipped = Outcome::Skip(SkipReason::Obstructed(obstacle));
    assert_eq!(outcome(&pod(json!({}))), skipped);
}

#[test]
fn system_namespaces_are_never_injected_into() {
    let index = two_accesses();
    for namespace in [
        "kube-system",
        "kube-public",
        "kube-node-lease",
        "llmwarden-system",
    ] {
        let outcome = outcome_in(namespace, &annotated("a", json!({})), &index);
        assert_eq!(outcome, Outcome::Skip(SkipReason::SystemNamespace), "{namespace}");
    }
}

/// The reason, the pod's spec, a change of the world, and what the text says.
type Case<'a> = (&'static str, Value, &'a dyn Fn(&mut Index), &'static str);

/// Whatever is in the way: a pod that asks by name is refused, one that is only selected stays as it is.
#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn what_is_asked_for_by_name_is_refused_and_what_is_selected_skipped() {
    let plain = |_: &mut Index| {};
    let container = |change: Value| {
        let mut container = json!({ "name": "agent", "image": "agent" });
        json_patch::merge(&mut container, &change);
        json!({ "containers": [container] })
    };
    let mount =
        |name: &str, path: &str| container(json!({ "volumeMounts": [{ "name": name, "mountPath": path }] }));
    let at_etc_llm = |index: &mut Index| {
        let volume =
            json!({ "injection": { "volume": { "mountPath": "/etc/llm/" } }, "workloadSelector": {} });
        add_access(index, "a", volume);
    };
    let cases: Vec<Case> = vec![
        (
            "HostNetwork",
            json!({ "hostNetwork": true }),
            &plain,
            "remove hostNetwork",
        ),
        (
            "Windows",
            json!({ "os": { "name": "windows" } }),
            &plain,
            "for Windows",
        ),
        (
            "Windows",
            json!({ "nodeSelector": { "kubernetes.io/os": "windows" } }),
            &plain,
            "for Windows",
        ),
        (
            "ForeignContainer",
            container(json!({ "name": "llmwarden" })),
            &plain,
            "named llmwarden",
        ),
        (
            "ForeignContainer",
            json!({ "initContainers": [{ "name": "llmwarden", "restartPolicy": "Always", "args": ["--dir", "/x"] }] }),
            &plain,
            "named llmwarden",
        ),
        // Ours but for the restart policy.
        (
            "ForeignContainer",
            json!({ "initContainers": [{ "name": "llmwarden", "args": [
                "--dir", "/var/run/llmwarden", "--source", "a=/var/run/secrets/llmwarden/a",
            ] }] }),
            &plain,
            "named llmwarden",
        ),
        (
            "ForeignContainer",
            json!({ "ephemeralContainers": [{ "name": "llmwarden" }] }),
            &plain,
            "named llmwarden",
        ),
        (
            "ForeignVolume",
            json!({ "volumes": [{ "name": "llmwarden", "emptyDir": {} }] }),
            &plain,
            "named llmwarden:",
        ),
        (
            "ForeignVolume",
            json!({ "volumes": [{ "name": "llmwarden-x" }] }),
            &plain,
            "named llmwarden-x:",
        ),
        // Declared before there is such a volume: it would be the companion.
        (
            "ForeignVolume",
            mount("llmwarden-source-0", "/x"),
            &plain,
            "named llmwarden-source-0:",
        ),
        (
            "ForeignVolume",
            json!({ "initContainers": [{ "name": "i", "volumeMounts": [{ "name": "llmwarden", "mountPath": "/x" }] }] }),
            &plain,
            "named llmwarden:",
        ),
        (
            "ForeignVolume",
            json!({ "ephemeralContainers": [{ "name": "e", "volumeMounts": [{ "name": "llmwarden", "mountPath": "/x" }] }] }),
            &plain,
            "named llmwarden:",
        ),
        (
            "MountPathTaken",
            mount("own", "/var/run/llmwarden"),
            &plain,
            "/var/run/llmwarden can't be mounted for the sidecar",
        ),
        (
            "MountPathTaken",
            mount("own", "/run/llmwarden/x/"),
            &plain,
            "mounts /run/llmwarden/x/",
        ),
        (
            "MountPathTaken",
            mount("own", "/etc/llm"),
            &at_etc_llm,
            "/etc/llm/ can't be mounted for LLMAccess a",
        ),
        (
            "MountPathTaken",
            mount("own", "/etc//llm/sub"),
            &at_etc_llm,
            "mounts /etc//llm/sub",
        ),
        (
            "PortTaken",
            container(json!({ "ports": [{ "containerPort": 9470 }] })),
            &plain,
            "port 9470",
        ),
        (
            "PortTaken",
            container(json!({ "ports": [{ "containerPort": 9471 }] })),
            &plain,
            "port 9471",
        ),
        (
            "SecretConflict",
            json!({}),
            &|index| add_foreign_secret(index, "a-key"),
            "Secret a-key is not its own",
        ),
        (
            "SecretConflict",
            json!({}),
            &|index| add_foreign_secret(index, "a.llmwarden"),
            "a.llmwarden is not",
        ),
        (
            "ProviderMissing",
            json!({}),
            &|index| {
                let spec = json!({ "providerRef": { "name": "gone" }, "workloadSelector": {} });
                add_access(index, "a", spec);
            },
            "LLMProvider gone",
        ),
        (
            "ProxyUnsupported",
            json!({}),
            &|index| {
                add_provider(
                    index,
                    "anthropic",
                    json!({ "provider": "azure-openai", "proxy": "Required" }),
                );
            },
            "set spec.endpoint.baseURL",
        ),
        (
            "ProxyUnsupported",
            json!({}),
            &|index| {
                add_provider(index, "anthropic", json!({ "provider": "aws-bedrock" }));
                let spec = json!({ "injection": { "proxy": {} }, "workloadSelector": {} });
                add_access(index, "a", spec);
            },
            "the SDKs of aws-bedrock insist on https",
        ),
    ];
    for (reason, spec, change, text) in cases {
        let mut index = world();
        add_access(&mut index, "a", json!({ "workloadSelector": {} }));
        change(&mut index);
        let denial = denied(&annotated("a", spec.clone()), &index);
        assert_eq!(denial.reason(), reason, "{spec}");
        assert!(denial.to_string().contains(text), "{denial}");
        assert_eq!(
            skipped(&pod(json!({ "spec": spec })), &index),
            SkipReason::Obstructed(denial)
        );
    }
}

#[test]
fn an_access_that_does_not_exist_is_a_denial_that_says_so() {
    let mut index = two_accesses();
    add_agent(&mut index, "agent", Some("gone"));
    let text = denied(&annotated("a,gone", json!({})), &index).to_string();
    assert!(text.starts_with("LLMAccess kagent/gone does not exist"), "{text}");
    assert!(text.contains("llmwarden.io/inject of the pod names it"), "{text}");
    let text = denied(
        &labelled(json!({ "app": "kagent", "kagent": "agent" }), json!({})),
        &index,
    )
    .to_string();
    assert!(text.contains("of Agent agent names it"), "{text}");
}

#[test]
fn of_several_that_select_a_pod_those_in_the_way_are_left_out() {
    let mut index = world();
    for name in ["a", "b"] {
        add_access(&mut index, name, json!({ "workloadSelector": {} }));
    }
    add_foreign_secret(&mut index, "a-key");
    let pod = pod(json!({}));
    let injected = injected(&pod, &index);
    assert_eq!(delivered(&patched(&pod, &index)), ["b"]);
    assert_eq!(injected.left_out.len(), 1);
    assert!(
        injected.warnings[0].starts_with("not injected: LLMAccess a is in conflict"),
        "{injected:?}"
    );
}

#[test]
fn of_two_accesses_that_want_one_secret_the_older_is_injected() {
    let mut index = world();
    add_access(&mut index, "a", json!({ "secretName": "same" }));
    add_access(&mut index, "b", json!({ "secretName": "same" }));
    assert_eq!(delivered(&patched(&annotated("a", json!({})), &index)), ["a"]);
    assert_eq!(
        denied(&annotated("b", json!({})), &index).reason(),
        "SecretConflict"
    );
}

#[test]
fn the_sidecar_is_the_first_native_sidecar_and_restricted() {
    let index = two_accesses();
    let pod = annotated(
        "a,b",
        json!({ "initContainers": [{ "name": "first" }, { "name": "second" }] }),
    );
    let pod = patched(&pod, &index);
    let init = &pod["spec"]["initContainers"];
    assert_eq!(names(init), ["llmwarden", "first", "second"]);
    let sidecar = &init[0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["image"], "sidecar:test");
    let sources = [
        "--source",
        "a=/var/run/secrets/llmwarden/a",
        "--source",
        "b=/var/run/secrets/llmwarden/b",
    ];
    let arguments = [&["--dir", "/var/run/llmwarden"], sources.as_slice()].concat();
    assert_eq!(sidecar["args"], json!(arguments));
    let probe = &sidecar["startupProbe"];
    assert_eq!(probe["exec"]["command"], json!(["/llmwarden-sidecar", "probe"]));
    assert_eq!(probe["failureThreshold"], i32::MAX);
    let security = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    assert_eq!(sidecar["securityContext"], security);
    assert_eq!(
        sidecar["resources"],
        json!({ "requests": { "memory": "16Mi" }, "limits": { "memory": "64Mi" } })
    );
    assert_eq!(pod["metadata"]["labels"]["llmwarden.io/injected"], "true");
}

#[test]
fn the_sidecar_has_a_user_of_its_own_only_where_the_pods_is_root() {
    let index = two_accesses();
    for (security, expected) in [
        (json!({}), Value::Null),
        (json!({ "runAsUser": 1000 }), Value::Null),
        (json!({ "runAsUser": 0 }), json!(65532)),
    ] {
        let pod = patched(&annotated("a", json!({ "securityContext": security })), &index);
        let context = &pod["spec"]["initContainers"][0]["securityContext"];
        assert_eq!(context["runAsUser"], expected, "{security}");
    }
}

#[test]
fn companions_and_an_empty_token_directory_are_in_the_sidecar_alone() {
    let index = two_accesses();
    let pod = patched(&annotated("a,b", json!({})), &index);
    let volumes = &pod["spec"]["volumes"];
    let shared = json!({ "name": "llmwarden", "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } });
    assert_eq!(by_name(volumes, "llmwarden"), &shared);
    for (number, access) in ["a", "b"].into_iter().enumerate() {
        let name = format!("llmwarden-source-{number}");
        let companion =
            json!({ "secretName": format!("{access}.llmwarden"), "optional": true, "defaultMode": 0o444 });
        assert_eq!(by_name(volumes, &name)["secret"], companion);
    }
    let mounts = &pod["spec"]["initContainers"][0]["volumeMounts"];
    assert_eq!(
        *mounts,
        json!([
            { "name": "llmwarden", "mountPath": "/var/run/llmwarden" },
            { "name": "llmwarden-no-token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true },
            { "name": "llmwarden-source-0", "mountPath": "/var/run/secrets/llmwarden/a", "readOnly": true },
            { "name": "llmwarden-source-1", "mountPath": "/var/run/secrets/llmwarden/b", "readOnly": true },
        ])
    );
    let agent = &pod["spec"]["containers"][0]["volumeMounts"];
    assert_eq!(
        *agent,
        json!([{ "name": "llmwarden", "mountPath": "/var/run/llmwarden", "readOnly": true }])
    );
}

#[test]
fn names_with_dots_and_of_63_characters_fit() {
    let mut index = world();
    let long = "l".repeat(63);
    for name in ["with.dots", &long] {
        add_access(
            &mut index,
            name,
            json!({ "injection": { "volume": { "mountPath": format!("/etc/{name}") } } }),
        );
    }
    let pod = patched(&annotated(&format!("with.dots,{long}"), json!({})), &index);
    for volume in names(&pod["spec"]["volumes"]) {
        assert!(volume.len() <= 63 && !volume.contains('.'), "{volume}");
    }
    assert_eq!(
        pod["spec"]["containers"][0]["volumeMounts"][1]["subPath"],
        "with.dots"
    );
}

#[test]
fn containers_get_what_injection_says_unless_an_annotation_limits_them() {
    let mut index = world();
    let injection = json!({
        "env": [{ "name": "KEY", "secretKey": "apiKey" }],
        "volume": { "mountPath": "/etc/llm" },
    });
    add_access(&mut index, "a", json!({ "injection": injection }));
    let spec = json!({
        "containers": [{ "name": "agent" }, { "name": "other" }],
        "initContainers": [{ "name": "init" }],
    });
    let key =
        json!([{ "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "a-key", "key": "apiKey" } } }]);
    let mounts = json!([
        { "name": "llmwarden", "mountPath": "/var/run/llmwarden", "readOnly": true },
        { "name": "llmwarden", "mountPath": "/etc/llm", "subPath": "a", "readOnly": true },
    ]);
    for (limit, given) in [
        (None, &["agent", "other", "init"][..]),
        (Some(""), &["agent", "other", "init"]),
        (Some("agent"), &["agent"]),
        (Some("init, other"), &["init", "other"]),
    ] {
        let mut pod = annotated("a", spec.clone());
        if let Some(limit) = limit {
            pod["metadata"]["annotations"]["llmwarden.io/containers"] = limit.into();
        }
        let pod = patched(&pod, &index);
        for name in ["agent", "other", "init"] {
            let list = if name == "init" {
                "initContainers"
            } else {
                "containers"
            };
            let container = by_name(&pod["spec"][list], name);
            let expected = if given.contains(&name) {
                (&key, &mounts)
            } else {
                (&Value::Null, &Value::Null)
            };
            assert_eq!(
                (&container["env"], &container["volumeMounts"]),
                expected,
                "{limit:?} {name}"
            );
        }
    }
    let mut pod = annotated("a", spec);
    pod["metadata"]["annotations"]["llmwarden.io/containers"] = "agent,gone".into();
    assert_eq!(denied(&pod, &index).reason(), "ContainerMissing");
}

#[test]
fn a_mount_can_be_asked_to_be_writable() {
    let mut index = world();
    let volume = json!({ "mountPath": "/etc/llm", "readOnly": false });
    add_access(&mut index, "a", json!({ "injection": { "volume": volume } }));
    let pod = patched(&annotated("a", json!({})), &index);
    let mount = &pod["spec"]["containers"][0]["volumeMounts"][1];
    assert_eq!(
        *mount,
        json!({ "name": "llmwarden", "mountPath": "/etc/llm", "subPath": "a" })
    );
}

#[test]
fn mounts_of_the_container_are_in_the_way_only_where_they_must_be() {
    let mut index = world();
    add_access(
        &mut index,
        "a",
        json!({ "injection": { "volume": { "mountPath": "/app/keys" } } }),
    );
    for (volume, mount, fits) in [
        (json!({ "emptyDir": {} }), json!({ "mountPath": "/app" }), true),
        (
            json!({ "emptyDir": {} }),
            json!({ "mountPath": "/app/keys-of-others" }),
            true,
        ),
        (
            json!({ "emptyDir": {} }),
            json!({ "mountPath": "/app", "readOnly": true }),
            false,
        ),
        (json!({ "configMap": {} }), json!({ "mountPath": "/app" }), false),
        (
            json!({ "configMap": {} }),
            json!({ "mountPath": "/app/config" }),
            true,
        ),
        (
            json!({ "emptyDir": {} }),
            json!({ "mountPath": "/app/keys/mine" }),
            false,
        ),
    ] {
        let (mut volume, mut mount) = (volume, mount);
        volume["name"] = "v".into();
        mount["name"] = "v".into();
        let spec =
            json!({ "volumes": [volume], "containers": [{ "name": "agent", "volumeMounts": [mount] }] });
        match outcome(&annotated("a", spec.clone()), &index) {
            Outcome::Patch(_) => assert!(fits, "{spec}"),
            Outcome::Deny(obstacle) => {
                assert_eq!((obstacle.reason(), fits), ("MountPathTaken", false), "{spec}");
            }
            other @ Outcome::Skip(_) => panic!("{other:?}"),
        }
    }
}

#[test]
fn two_accesses_on_one_mount_path_are_a_denial() {
    for (first, second) in [
        ("/etc/llm", "/etc/llm/"),
        ("/etc/llm", "/etc/llm/b"),
        ("/etc/llm/a", "/etc/llm"),
    ] {
        let mut index = world();
        for (name, path) in [("a", first), ("b", second)] {
            let volume = json!({ "mountPath": path });
            add_access(
                &mut index,
                name,
                json!({ "injection": { "volume": volume }, "workloadSelector": {} }),
            );
        }
        let text = denied(&annotated("a,b", json!({})), &index).to_string();
        assert!(text.starts_with("LLMAccess b and LLMAccess a are both"), "{text}");
        // Who is not named is left out.
        let selected = pod(json!({}));
        assert_eq!(delivered(&patched(&selected, &index)), ["a"]);
        assert_eq!(
            injected(&selected, &index).left_out[0].reason(),
            "MountPathShared"
        );
    }
}

#[test]
fn a_variable_is_never_duplicated_and_replaced_only_where_it_points_at_the_secret() {
    let mut index = world();
    let env = json!([{ "name": "KEY", "secretKey": "key" }]);
    add_access(&mut index, "a", json!({ "injection": { "env": env } }));
    let reference = |secret: &str, key: &str| json!({ "name": "KEY", "valueFrom": { "secretKeyRef": { "name": secret, "key": key } } });
    let (right, other) = (reference("a-key", "key"), reference("theirs", "key"));
    let old = reference("a-key", "apiKey");
    let literal = json!({ "name": "KEY", "value": "own" });
    let unrelated = json!({ "name": "UNRELATED", "value": "x" });
    for (before, after, warned) in [
        (vec![], vec![&right], false),
        (vec![&unrelated], vec![&unrelated, &right], false),
        (vec![&right], vec![&right], false),
        (vec![&old], vec![&right], false),
        (vec![&old, &old], vec![&right, &right], false),
        (vec![&literal], vec![&literal], true),
        (vec![&other], vec![&other], true),
        // kagent keeps duplicates, and the last one counts.
        (vec![&literal, &old], vec![&literal, &right], false),
        (vec![&old, &literal], vec![&right, &literal], true),
    ] {
        let container = json!({ "name": "agent", "env": before });
        let pod = annotated("a", json!({ "containers": [container] }));
        let injected = injected(&pod, &index);
        let env = &apply(&pod, &injected.operations)["spec"]["containers"][0]["env"];
        assert_eq!(*env, json!(after), "{before:?}");
        assert_eq!(
            !injected.warnings.is_empty(),
            warned,
            "{before:?}: {:?}",
            injected.warnings
        );
    }
}

#[test]
fn of_two_accesses_that_want_one_variable_the_first_named_has_it() {
    let mut index = world();
    for name in ["a", "b"] {
        add_access(
            &mut index,
            name,
            json!({ "injection": { "env": [{ "name": "KEY", "secretKey": "apiKey" }] } }),
        );
    }
    for (accesses, secret) in [("a,b", "a-key"), ("b,a", "b-key")] {
        let pod = annotated(accesses, json!({}));
        let env = &patched(&pod, &index)["spec"]["containers"][0]["env"];
        assert_eq!(env.as_array().map(Vec::len), Some(1));
        assert_eq!(env[0]["valueFrom"]["secretKeyRef"]["name"], secret);
        assert_eq!(injected(&pod, &index).warnings.len(), 1);
    }
}

#[test]
fn a_pod_that_has_the_sidecar_stays_as_it_is() {
    let index = two_accesses();
    let mut again = patched(&annotated("a", json!({})), &index);
    assert_eq!(skipped(&again, &index), SkipReason::AlreadyInjected);
    // Others rewrite these.
    let sidecar = &mut again["spec"]["initContainers"][0];
    sidecar["image"] = "mirror/sidecar@sha256:0".into();
    sidecar["resources"] = json!({});
    assert_eq!(skipped(&again, &index), SkipReason::AlreadyInjected);
    // Copied from an injected pod, and then made to name another access.
    again["metadata"]["annotations"]["llmwarden.io/inject"] = "a,b".into();
    assert_eq!(denied(&again, &index).reason(), "ForeignContainer");
    // The label alone says nothing.
    let labelled = json!({ "llmwarden.io/injected": "true" });
    let mut forged = annotated("a", json!({}));
    forged["metadata"]["labels"] = labelled;
    assert_eq!(delivered(&patched(&forged, &index)), ["a"]);
}

#[test]
fn fields_that_nobody_knows_yet_survive() {
    let mut index = world();
    add_access(
        &mut index,
        "a",
        json!({ "injection": { "env": [{ "name": "KEY", "secretKey": "key" }] } }),
    );
    let spec = json!({
        "futureField": { "x": 1 },
        "containers": [{ "name": "agent", "futureField": [1], "env": [{ "name": "X", "futureField": true }] }],
    });
    let pod = patched(&annotated("a", spec), &index);
    assert_eq!(pod["spec"]["futureField"], json!({ "x": 1 }));
    assert_eq!(pod["spec"]["containers"][0]["futureField"], json!([1]));
    assert_eq!(pod["spec"]["containers"][0]["env"][0]["futureField"], true);
}
