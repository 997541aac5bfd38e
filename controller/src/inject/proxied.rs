//! Pods in proxy mode: what their sidecar is told, and what their containers get.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::SkipReason;
use super::fixtures::*;
use super::sidecar::{Delivered, Template, container};
use crate::index::Index;

fn proxied(provider: Value) -> Index {
    let mut index = world();
    add_provider(&mut index, "anthropic", provider);
    add_access(&mut index, "a", json!({ "injection": { "proxy": {} } }));
    index
}

/// The environment of a container that had `env`, name by name.
fn environment(index: &Index, accesses: &str, env: &Value) -> (Vec<String>, Vec<String>) {
    let pod = annotated(
        accesses,
        json!({ "containers": [{ "name": "agent", "image": "agent", "env": env }] }),
    );
    let injected = injected(&pod, index);
    let after = apply(&pod, &injected.operations);
    let env = after["spec"]["containers"][0]["env"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    (env.iter().map(said).collect(), injected.warnings)
}

fn said(variable: &Value) -> String {
    let name = variable["name"].as_str().unwrap_or_default();
    let reference = &variable["valueFrom"]["secretKeyRef"];
    match (variable["value"].as_str(), reference["name"].as_str()) {
        (Some(value), _) => format!("{name}={value}"),
        (None, Some(secret)) => format!(
            "{name}<{secret}/{}",
            reference["key"].as_str().unwrap_or_default()
        ),
        _ => format!("{name}?"),
    }
}

fn from_secret(name: &str, secret: &str) -> Value {
    json!({ "name": name, "valueFrom": { "secretKeyRef": { "name": secret, "key": "apiKey" } } })
}

#[test]
fn a_sidecar_that_calls_providers_is_told_the_way_out() {
    let way = BTreeMap::from([
        ("HTTPS_PROXY", "http://egress.test:3128".to_owned()),
        ("NO_PROXY", ".svc,10.0.0.0/8".to_owned()),
    ]);
    let told = |proxied: [bool; 2], egress: &BTreeMap<&'static str, String>| {
        let accesses =
            [("a", proxied[0]), ("b", proxied[1])].map(|(access, proxied)| Delivered { access, proxied });
        let template = Template {
            egress: egress.clone(),
            ..template()
        };
        let variables = container(&Pod::default(), &accesses, &template).env?;
        let pairs = variables
            .into_iter()
            .map(|variable| (variable.name, variable.value));
        Some(pairs.collect::<Vec<_>>())
    };
    let expected = way
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Some(value.clone())));
    assert_eq!(told([false, true], &way), Some(expected.collect()));
    // Without a proxy in it, it calls nobody.
    assert_eq!(told([false, false], &way), None);
    assert_eq!(told([true, true], &BTreeMap::new()), None);
}

#[test]
fn the_sidecar_is_told_which_accesses_keep_their_key() {
    let mut index = proxied(json!({}));
    add_access(&mut index, "b", json!({}));
    let pod = annotated("b,a", json!({}));
    let after = patched(&pod, &index);
    let arguments = &after["spec"]["initContainers"][0]["args"];
    let expected = [
        "--dir",
        "/var/run/llmwarden",
        "--source",
        "b=/var/run/secrets/llmwarden/b",
        "--source",
        "a=/var/run/secrets/llmwarden/a",
        "--proxy",
        "a",
    ];
    assert_eq!(arguments, &json!(expected));
    // How a pod uses an access is fixed when it is injected, whatever becomes of the access.
    add_access(&mut index, "a", json!({}));
    assert_eq!(skipped(&after, &index), SkipReason::AlreadyInjected);
    add_provider(&mut index, "anthropic", json!({ "proxy": "Required" }));
    assert_eq!(skipped(&after, &index), SkipReason::AlreadyInjected);
}

#[test]
fn each_providers_sdks_find_the_proxy() {
    let endpoint = |url: &str| json!({ "baseURL": url });
    for (provider, expected) in [
        (
            json!({ "provider": "anthropic" }),
            [
                "ANTHROPIC_API_KEY<a-key/apiKey",
                "ANTHROPIC_BASE_URL=http://127.0.0.1:9470/proxy/a",
            ],
        ),
        (
            json!({ "provider": "openai" }),
            [
                "OPENAI_API_KEY<a-key/apiKey",
                "OPENAI_BASE_URL=http://127.0.0.1:9470/proxy/a/v1",
            ],
        ),
        (
            json!({ "provider": "openai", "endpoint": endpoint("https://gw.example.com/team/v1/") }),
            [
                "OPENAI_API_KEY<a-key/apiKey",
                "OPENAI_BASE_URL=http://127.0.0.1:9470/proxy/a/team/v1",
            ],
        ),
        (
            json!({ "provider": "openrouter" }),
            [
                "OPENAI_API_KEY<a-key/apiKey",
                "OPENAI_BASE_URL=http://127.0.0.1:9470/proxy/a/api/v1",
            ],
        ),
        (
            json!({ "provider": "litellm", "endpoint": endpoint("http://litellm.ai:4000") }),
            [
                "OPENAI_API_KEY<a-key/apiKey",
                "OPENAI_BASE_URL=http://127.0.0.1:9470/proxy/a",
            ],
        ),
        (
            json!({ "provider": "azure-openai", "endpoint": endpoint("https://r.openai.azure.com/") }),
            [
                "AZURE_OPENAI_API_KEY<a-key/apiKey",
                "AZURE_OPENAI_ENDPOINT=http://127.0.0.1:9470/proxy/a",
            ],
        ),
        (
            json!({ "provider": "gemini" }),
            [
                "GOOGLE_API_KEY<a-key/apiKey",
                "GOOGLE_GEMINI_BASE_URL=http://127.0.0.1:9470/proxy/a",
            ],
        ),
    ] {
        let (env, warnings) = environment(&proxied(provider), "a", &json!([]));
        assert_eq!(env, expected);
        assert!(warnings.is_empty(), "{warnings:?}");
    }
    // The guide's own access, unchanged, where the provider requires the proxy.
    let mut index = world();
    add_provider(&mut index, "anthropic", json!({ "proxy": "Required" }));
    let env = json!([{ "name": "ANTHROPIC_API_KEY", "secretKey": "apiKey" }]);
    add_access(&mut index, "a", json!({ "injection": { "env": env } }));
    let (env, warnings) = environment(&index, "a", &json!([]));
    let expected = [
        "ANTHROPIC_API_KEY<a-key/apiKey",
        "ANTHROPIC_BASE_URL=http://127.0.0.1:9470/proxy/a",
    ];
    assert_eq!((env, warnings), (expected.map(str::to_owned).into(), vec![]));
}

#[test]
fn what_a_container_has_is_not_there_twice_and_its_own_stays() {
    let key = || from_secret("ANTHROPIC_API_KEY", "a-key");
    let url = "ANTHROPIC_BASE_URL=http://127.0.0.1:9470/proxy/a";
    let cases: [(Value, &[&str], Option<&str>); 6] = [
        // As kagent makes it.
        (json!([key()]), &["ANTHROPIC_API_KEY<a-key/apiKey", url], None),
        (
            json!([key(), key()]),
            &[
                "ANTHROPIC_API_KEY<a-key/apiKey",
                "ANTHROPIC_API_KEY<a-key/apiKey",
                url,
            ],
            None,
        ),
        // Somebody's own key would be of no use at the proxy.
        (
            json!([from_secret("ANTHROPIC_API_KEY", "theirs")]),
            &["ANTHROPIC_API_KEY<theirs/apiKey"],
            Some("sets ANTHROPIC_API_KEY itself"),
        ),
        (
            json!([key(), { "name": "ANTHROPIC_BASE_URL", "value": "https://elsewhere" }]),
            &[
                "ANTHROPIC_API_KEY<a-key/apiKey",
                "ANTHROPIC_BASE_URL=https://elsewhere",
            ],
            Some("sets ANTHROPIC_BASE_URL itself"),
        ),
        (
            json!([key(), { "name": "ANTHROPIC_BASE_URL", "value": "http://127.0.0.1:9470/proxy/a" }]),
            &["ANTHROPIC_API_KEY<a-key/apiKey", url],
            None,
        ),
        // It points at our Secret, so it is ours.
        (
            json!([{ "name": "ANTHROPIC_BASE_URL", "valueFrom": { "secretKeyRef": { "name": "a-key", "key": "baseUrl" } } }]),
            &[url, "ANTHROPIC_API_KEY<a-key/apiKey"],
            None,
        ),
    ];
    for (before, expected, warning) in cases {
        let (env, warnings) = environment(&proxied(json!({})), "a", &before);
        assert_eq!(env, expected, "{before}");
        assert_eq!(warnings.is_empty(), warning.is_none(), "{warnings:?}");
        assert!(
            warnings
                .iter()
                .all(|said| said.contains(warning.unwrap_or_default())),
            "{warnings:?}"
        );
    }
}

#[test]
fn of_two_accesses_of_one_provider_the_first_named_has_the_variables() {
    let mut index = proxied(json!({}));
    add_access(&mut index, "b", json!({ "injection": { "proxy": {} } }));
    add_access(
        &mut index,
        "direct",
        json!({ "injection": { "env": [{ "name": "ANTHROPIC_API_KEY", "secretKey": "apiKey" }] } }),
    );
    let (env, warnings) = environment(&index, "b,a", &json!([]));
    assert_eq!(
        env,
        [
            "ANTHROPIC_API_KEY<b-key/apiKey",
            "ANTHROPIC_BASE_URL=http://127.0.0.1:9470/proxy/b"
        ]
    );
    assert!(
        warnings[0].contains("needs the base URL http://127.0.0.1:9470/proxy/a"),
        "{warnings:?}"
    );
    // A key is never paired with another access's base URL.
    let (env, warnings) = environment(&index, "direct,a", &json!([]));
    assert_eq!(env, ["ANTHROPIC_API_KEY<direct-key/apiKey"]);
    assert!(
        warnings[0].contains("ANTHROPIC_API_KEY is another LLMAccess's"),
        "{warnings:?}"
    );
}

#[test]
fn requests_to_the_sidecar_go_through_no_other_proxy() {
    let behind = |more: Value| {
        let mut env = vec![json!({ "name": "https_proxy", "value": "http://egress:3128" })];
        env.extend(more.as_array().cloned().unwrap_or_default());
        Value::from(env)
    };
    let no_proxy = |value: &str| json!([{ "name": "no_proxy", "value": value }]);
    let cases: [(Value, &[&str]); 7] = [
        (json!([]), &[]),
        (no_proxy(".svc"), &["no_proxy=.svc"]),
        (behind(json!([])), &["NO_PROXY=127.0.0.1,localhost"]),
        (
            behind(no_proxy(".svc, 10.0.0.0/8")),
            &["no_proxy=.svc,10.0.0.0/8,127.0.0.1,localhost"],
        ),
        (
            behind(no_proxy("localhost,127.0.0.1")),
            &["no_proxy=localhost,127.0.0.1"],
        ),
        (behind(no_proxy("*")), &["no_proxy=*"]),
        (
            behind(json!([{ "name": "NO_PROXY", "value": "a" }, { "name": "no_proxy", "value": "" }])),
            &["NO_PROXY=a,127.0.0.1,localhost", "no_proxy=127.0.0.1,localhost"],
        ),
    ];
    for (before, expected) in cases {
        let (env, warnings) = environment(&proxied(json!({})), "a", &before);
        let found: Vec<_> = env
            .iter()
            .filter(|said| said.to_lowercase().starts_with("no_proxy"))
            .collect();
        assert_eq!(found, expected, "{before}");
        assert!(warnings.is_empty(), "{warnings:?}");
    }
    let unknown =
        json!([{ "name": "NO_PROXY", "valueFrom": { "configMapKeyRef": { "name": "c", "key": "k" } } }]);
    let (_, warnings) = environment(&proxied(json!({})), "a", &behind(unknown));
    assert!(
        warnings[0].contains("see that it names 127.0.0.1,localhost"),
        "{warnings:?}"
    );
    // Without the proxy it is none of ours.
    let mut direct = world();
    add_access(&mut direct, "a", json!({}));
    let (env, _) = environment(&direct, "a", &behind(json!([])));
    assert_eq!(env, ["https_proxy=http://egress:3128"]);
}

#[test]
fn an_agent_that_can_get_at_the_sidecar_is_warned_of() {
    let index = proxied(json!({}));
    let privileged =
        json!({ "containers": [{ "name": "skills", "securityContext": { "privileged": true } }] });
    for (spec, expected) in [
        (json!({}), None),
        (
            json!({ "shareProcessNamespace": true }),
            Some("the pod has shareProcessNamespace: "),
        ),
        (privileged.clone(), Some("container skills is privileged: ")),
    ] {
        let warnings = injected(&annotated("a", spec), &index).warnings;
        assert_eq!(warnings.is_empty(), expected.is_none(), "{warnings:?}");
        assert!(
            warnings
                .iter()
                .all(|said| said.starts_with(expected.unwrap_or_default())),
            "{warnings:?}"
        );
    }
    let mut direct = world();
    add_access(&mut direct, "a", json!({}));
    assert!(injected(&annotated("a", privileged), &direct).warnings.is_empty());
}
