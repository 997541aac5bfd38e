//! The custom resource definitions: what the chart carries, and what they refuse.

use std::path::Path;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, CustomResourceExt};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::provider::LLMProvider;
use llmwarden_tests::{ControlPlane, Installation, binaries};
use serde_json::{Value, json};

use crate::support::{SOON, merge, object};

/// A change of a valid object, and what the refusal has to say: the field and what to write instead.
type Case = (Value, &'static str, &'static str);

fn access() -> Value {
    json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMAccess",
        "metadata": { "name": "agent" },
        "spec": {
            "providerRef": { "name": "anthropic" },
            "secretName": "agent-key",
            "rotation": { "interval": "12h" },
            "injection": {
                "env": [{ "name": "ANTHROPIC_API_KEY", "secretKey": "apiKey" }],
                "volume": { "mountPath": "/etc/llm" },
            },
        },
    })
}

fn provider() -> Value {
    json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMProvider",
        "metadata": { "name": "anthropic" },
        "spec": {
            "provider": "anthropic",
            "auth": {
                "type": "apiKey",
                "apiKey": {
                    "secretRef": { "name": "master", "namespace": "llmwarden-system", "key": "api-key" },
                    "rotation": { "enabled": true, "interval": "30d" },
                },
            },
        },
    })
}

/// What the API server says to an object, without keeping it.
async fn try_out(client: &Client, valid: Value, change: &Value) -> Result<(), String> {
    let mut candidate = valid;
    merge(&mut candidate, change.clone());
    let (kind, api) = match candidate["kind"].as_str() {
        Some("LLMAccess") => {
            let kind = LLMAccess::api_resource();
            let api = Api::<DynamicObject>::namespaced_with(client.clone(), "default", &kind);
            (kind, api)
        }
        _ => {
            let kind: ApiResource = LLMProvider::api_resource();
            let api = Api::all_with(client.clone(), &kind);
            (kind, api)
        }
    };
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match api.create(&dry, &object(candidate)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 422 => Err(status.message),
        Err(error) => panic!("{}: {error}", kind.kind),
    }
}

async fn assert_refused(valid: Value, cases: Vec<Case>) {
    let installation = Installation::shared().await.unwrap();
    let client = installation.client();
    assert_eq!(try_out(&client, valid.clone(), &json!({})).await, Ok(()));
    for (change, field, instead) in cases {
        let message = try_out(&client, valid.clone(), &change)
            .await
            .expect_err(&format!("accepted: {change}"));
        assert!(
            message.contains(field) && message.contains(instead),
            "{change}: no {field:?} or no {instead:?} in {message}"
        );
    }
}

#[test]
fn what_the_controller_prints_is_what_the_chart_carries() {
    let output = std::process::Command::new(binaries::controller().unwrap())
        .arg("crd")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/llmwarden/crds");
    let mut carried: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            std::fs::read_to_string(entry.unwrap().path())
                .unwrap()
                .trim()
                .to_owned()
        })
        .collect();
    let mut printed: Vec<String> = printed
        .split("---\n")
        .map(|document| document.trim().to_owned())
        .filter(|document| !document.is_empty())
        .collect();
    carried.sort();
    printed.sort();
    assert!(printed == carried, "run `make crds`");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_definitions_are_established() {
    let cluster = ControlPlane::shared().await.unwrap();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/llmwarden/crds");
    let output = cluster
        .kubectl()
        .args(["apply", "--server-side", "--validate=strict", "-f"])
        .arg(dir)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client());
    for name in ["llmaccesses.llmwarden.io", "llmproviders.llmwarden.io"] {
        let established = await_condition(definitions.clone(), name, conditions::is_crd_established());
        tokio::time::timeout(SOON, established)
            .await
            .expect(name)
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_that_cannot_work_is_refused_with_the_way_out() {
    let spec = |change: Value| json!({ "spec": change });
    let secret_name = |name: &str| json!({ "spec": { "secretName": name } });
    let named = |name: &str| json!({ "metadata": { "name": name } });
    let mount = |path: &str| json!({ "spec": { "injection": { "volume": { "mountPath": path } } } });
    let env = |names: &[&str]| {
        let env: Vec<Value> = names
            .iter()
            .map(|name| json!({ "name": name, "secretKey": "apiKey" }))
            .collect();
        json!({ "spec": { "injection": { "env": env } } })
    };
    let data_key = |key: &str| {
        let env = json!([{ "name": "ANTHROPIC_API_KEY", "secretKey": key }]);
        json!({ "spec": { "injection": { "env": env } } })
    };
    let mut cases = vec![
        (
            spec(json!({ "providerRef": { "name": "" } })),
            "spec.providerRef.name",
            "write the name of an LLMProvider",
        ),
        (secret_name(""), "spec.secretName", "write the name of the Secret"),
        (
            secret_name("agent.llmwarden"),
            "spec.secretName must not be the companion's name",
            "choose a name",
        ),
        (
            secret_name("other.llmwarden"),
            "spec.secretName must not end in .llmwarden",
            "choose another",
        ),
        (
            secret_name(&"a".repeat(244)),
            "spec.secretName",
            "at most 243 characters: choose a shorter name",
        ),
        (
            named(&"a".repeat(64)),
            "metadata.name",
            "at most 63 characters: choose a shorter name",
        ),
        (
            env(&["API_KEY", "OTHER", "API_KEY"]),
            "injection.env has the same name twice",
            "keep one entry",
        ),
    ];
    for name in [
        "Agent",
        "agent_key",
        "-agent",
        "agent-",
        "a..b",
        "agent/key",
        "a b",
    ] {
        cases.push((secret_name(name), "spec.secretName", "such as kagent-anthropic"));
    }
    for name in ["token", "auth-header", "llmwarden.sock"] {
        cases.push((named(name), "metadata.name", "choose another name"));
    }
    for path in ["etc/llm", ".", "", "~/llm"] {
        cases.push((mount(path), "injection.volume.mountPath", "begin it with /"));
    }
    for path in ["/", "//"] {
        cases.push((mount(path), "injection.volume.mountPath", "name a directory"));
    }
    for path in [
        "/etc/../root",
        "/..",
        "/var/run/x/../llmwarden",
        "/var/./run/secrets",
        "/etc/llm:ro",
    ] {
        cases.push((
            mount(path),
            "injection.volume.mountPath",
            "name a plain directory",
        ));
    }
    for path in [
        "/var/run/llmwarden",
        "/var/run/llmwarden/agent",
        "//var//run/llmwarden/",
        "/run/llmwarden",
        "/var/run/secrets",
        "/var/run/secrets/kubernetes.io/serviceaccount",
        "/run/secrets/x",
    ] {
        cases.push((
            mount(path),
            "injection.volume.mountPath",
            "choose another directory",
        ));
    }
    for name in ["PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "KUBERNETES_SERVICE_HOST"] {
        cases.push((env(&[name]), "injection.env[].name", "choose another name"));
    }
    for name in ["", "1KEY", "API-KEY", "API KEY", "API=KEY"] {
        cases.push((env(&[name]), "injection.env[].name", "such as ANTHROPIC_API_KEY"));
    }
    for key in ["", "a/b", "..", "..data", "."] {
        cases.push((data_key(key), "injection.env[].secretKey", "such as apiKey"));
    }
    cases.push((data_key("baseUrl"), "injection.env[].secretKey", "write apiKey"));
    for interval in INVALID_INTERVALS {
        let change = spec(json!({ "rotation": { "interval": interval } }));
        cases.push((change, "rotation.interval", "write 30d, 12h or 45m"));
    }
    assert_refused(access(), cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_cannot_work_is_refused_with_the_way_out() {
    let api_key = |change: Value| json!({ "spec": { "auth": { "apiKey": change } } });
    let mut cases = vec![
        (
            json!({ "spec": { "auth": { "apiKey": null } } }),
            "auth.apiKey is missing",
            "secretRef.name, secretRef.namespace and secretRef.key",
        ),
        (
            json!({ "spec": { "auth": { "type": "externalSecret" } } }),
            "auth.externalSecret is missing",
            "store and remoteRef",
        ),
        (
            json!({ "spec": { "auth": { "type": "workloadIdentity" } } }),
            "auth.workloadIdentity is missing",
            "one of aws, azure, gcp, openai, anthropic",
        ),
        (
            json!({ "spec": { "auth": { "type": "workloadIdentity", "workloadIdentity": {} } } }),
            "auth.workloadIdentity takes exactly one",
            "keep one",
        ),
        (
            api_key(json!({ "issuer": { "openrouter": {}, "litellm": {} } })),
            "auth.apiKey.issuer takes exactly one",
            "keep one and remove the others",
        ),
        (
            api_key(json!({ "issuer": {} })),
            "auth.apiKey.issuer takes exactly one",
            "keep one",
        ),
        (
            json!({ "spec": { "provider": "aws-bedrock", "proxy": "Required" } }),
            "spec.proxy",
            "write Optional",
        ),
        (
            json!({ "spec": { "provider": "gcp-vertexai", "proxy": "Required" } }),
            "spec.proxy",
            "write Optional",
        ),
        (
            json!({ "spec": { "provider": "nobody" } }),
            "spec.provider",
            "supported values: \"openai\", \"anthropic\"",
        ),
    ];
    for url in [
        "gateway",
        "ftp://gateway",
        "https://user@gateway",
        "https://gateway?a=b",
    ] {
        cases.push((
            json!({ "spec": { "endpoint": { "baseURL": url } } }),
            "endpoint.baseURL",
            "write https://gateway.example.com/v1",
        ));
    }
    for interval in INVALID_INTERVALS {
        for field in ["interval", "overlap", "revokeDeadline"] {
            let change = api_key(json!({ "rotation": { field: interval } }));
            cases.push((change, "auth.apiKey.rotation", "12h or 45m"));
        }
    }
    assert_refused(provider(), cases).await;
}

const INVALID_INTERVALS: [&str; 9] = ["7x", "0d", "-1h", "invalid", "", "30", "1.5h", "1h30m", "30 d"];

#[tokio::test(flavor = "multi_thread")]
async fn intervals_in_days_hours_and_minutes_are_accepted() {
    let installation = Installation::shared().await.unwrap();
    let client = installation.client();
    for interval in ["30d", "12h", "45m", "720h", "1440m"] {
        let change = json!({ "spec": { "rotation": { "interval": interval } } });
        assert_eq!(try_out(&client, access(), &change).await, Ok(()), "{interval}");
        let change = json!({ "spec": { "auth": { "apiKey": { "rotation": { "interval": interval } } } } });
        assert_eq!(try_out(&client, provider(), &change).await, Ok(()), "{interval}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_of_an_access_cannot_be_changed() {
    let installation = Installation::shared().await.unwrap();
    let namespace = Installation::unique("immutable");
    installation.create_namespace(&namespace, false).await.unwrap();
    let accesses = Api::<LLMAccess>::namespaced(installation.client(), &namespace);
    accesses
        .create(&PostParams::default(), &object(access()))
        .await
        .unwrap();
    let change = Patch::Merge(json!({ "spec": { "providerRef": { "name": "openai" } } }));
    let error = accesses
        .patch("agent", &PatchParams::default(), &change)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("spec.providerRef.name cannot be changed") && error.contains("make another"),
        "{error}"
    );
}
