use llmwarden_proto::delivery::ErrorShape;
use serde_json::json;

use super::*;

const KEY: &str = "sk-test-golden";

/// A document that sidecars in the field read.
macro_rules! golden {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../proto/tests/golden/schema-1/",
            $name
        ))
    };
}

fn stamp(version: u64) -> (u64, Timestamp) {
    let millisecond = i64::try_from(version).expect("a time");
    let issued_at = Timestamp::from_millisecond(millisecond).expect("a time");
    (version, issued_at)
}

fn live_json(data: &Data) -> &str {
    data[names::LIVE_JSON].expose_secret()
}

#[test]
fn companions_are_written_as_they_always_were() {
    let auth = json!({
        "type": "apiKey",
        "apiKey": { "secretRef": { "name": "master", "namespace": "system", "key": "api-key" } },
    });
    let cases = [
        (
            json!({ "provider": "anthropic", "auth": auth }),
            json!({}),
            Vec::new(),
            false,
            golden!("active.json"),
        ),
        (
            json!({
                "provider": "openai",
                "auth": auth,
                "endpoint": {
                    "baseURL": "https://llm.example.com/v1", "authHeader": "X-LLM-Key", "authScheme": "Key",
                },
                "rateLimit": { "requestsPerMinute": 60, "tokensPerMinute": 90000 },
            }),
            json!({ "env": [{ "name": "OPENAI_API_KEY", "secretKey": "OPENAI_API_KEY" }] }),
            vec!["gpt-a".to_owned(), "gpt-b".to_owned()],
            false,
            golden!("settings.json"),
        ),
        (
            json!({ "provider": "openai", "auth": auth }),
            json!({ "proxy": {} }),
            Vec::new(),
            true,
            golden!("proxied.json"),
        ),
    ];
    for (version, (provider, injection, models, proxied, expected)) in (1_767_225_600_000..).zip(cases) {
        let access: LLMAccess = serde_json::from_value(json!({
            "apiVersion": "llmwarden.io/v1alpha1",
            "kind": "LLMAccess",
            "metadata": { "name": "agent", "namespace": "team" },
            "spec": { "providerRef": { "name": "provider" }, "secretName": "agent-key", "injection": injection },
        }))
        .expect("an access");
        let provider: LLMProvider = serde_json::from_value(json!({
            "apiVersion": "llmwarden.io/v1alpha1",
            "kind": "LLMProvider",
            "metadata": { "name": "provider" },
            "spec": provider,
        }))
        .expect("a provider");
        let kind = provider.spec.provider;
        let grant = Grant {
            key: KEY.into(),
            models,
            proxied,
            adopts: Vec::new(),
        };
        let placeholder = SecretString::from("sk-llmwarden-golden");
        let data = active_companion(&access, &provider, &grant, &placeholder, stamp(version));
        let mut document: Delivery = serde_json::from_str(live_json(&data)).expect("a document");
        let upstream = document.upstream.as_mut().expect("an upstream");
        let known = kind.upstream(upstream.base_url.as_deref());
        assert_eq!(
            (&upstream.routes, &upstream.dead_key),
            (&known.routes, &known.dead_key)
        );
        assert!(!upstream.routes.is_empty());
        // What has been added to the format since.
        upstream.routes.clear();
        upstream.dead_key.clear();
        upstream.models_elsewhere.clear();
        upstream.model_tools.clear();
        upstream.errors = ErrorShape::default();
        assert_eq!(serde_json::to_string(&document).expect("serializes"), expected);
        let names: Vec<_> = data.keys().map(String::as_str).collect();
        assert_eq!(names, [names::API_KEY, names::LIVE_JSON, names::PLACEHOLDER]);
        assert_eq!(data[names::API_KEY].expose_secret(), KEY);
    }
    let withdrawn = withdrawn_companion("namespace team lacks the label llm=yes", stamp(1_767_225_600_003));
    assert_eq!(live_json(&withdrawn), golden!("withdrawn.json"));
    assert_eq!(withdrawn.len(), 1);
}

#[test]
fn the_endpoints_certificates_are_passed_on() {
    let access: LLMAccess = serde_json::from_value(json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMAccess",
        "metadata": { "name": "agent", "namespace": "team" },
        "spec": { "providerRef": { "name": "provider" }, "secretName": "agent-key" },
    }))
    .expect("an access");
    let grant = Grant {
        key: KEY.into(),
        models: Vec::new(),
        proxied: true,
        adopts: Vec::new(),
    };
    let ca_bundle = |endpoint: serde_json::Value| {
        let provider: LLMProvider = serde_json::from_value(json!({
            "apiVersion": "llmwarden.io/v1alpha1",
            "kind": "LLMProvider",
            "metadata": { "name": "provider" },
            "spec": { "provider": "custom", "auth": { "type": "apiKey" }, "endpoint": endpoint },
        }))
        .expect("a provider");
        let data = active_companion(&access, &provider, &grant, &KEY.into(), stamp(1));
        let document: Delivery = serde_json::from_str(live_json(&data)).expect("a document");
        document.upstream.expect("an upstream").ca_bundle
    };
    let pem = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
    assert_eq!(ca_bundle(json!({ "caBundle": pem })).as_deref(), Some(pem));
    assert_eq!(ca_bundle(json!({ "caBundle": "" })), None);
    assert_eq!(ca_bundle(json!({})), None);
}
