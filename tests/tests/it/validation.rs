//! What the definitions refuse: each refusal names the field and says what to write instead.

use kube::CustomResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::provider::LLMProvider;
use llmwarden_tests::Installation;
use serde::Serialize;
use serde_json::{Value, json};

use crate::support::object;

const INVALID_INTERVALS: [&str; 9] = ["7x", "0d", "-1h", "invalid", "", "30", "1.5h", "1h30m", "30 d"];

/// Values that a field must not have, and what their refusal has to say: the field and what to write instead.
struct Case {
    pointer: &'static str,
    values: Vec<Value>,
    field: &'static str,
    instead: &'static str,
}

fn case<V: Serialize>(
    pointer: &'static str,
    values: impl IntoIterator<Item = V>,
    field: &'static str,
    instead: &'static str,
) -> Case {
    Case {
        pointer,
        values: values.into_iter().map(|value| json!(value)).collect(),
        field,
        instead,
    }
}

fn access() -> Value {
    json!({
        "apiVersion": "llmwarden.io/v1alpha1",
        "kind": "LLMAccess",
        "metadata": { "name": "agent" },
        "spec": {
            "providerRef": { "name": "anthropic" },
            "secretName": "agent-key",
            "rotation": {},
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
            "endpoint": {},
            "auth": {
                "type": "apiKey",
                "apiKey": {
                    "secretRef": { "name": "master", "namespace": "llmwarden-system", "key": "api-key" },
                    "rotation": { "enabled": true },
                },
            },
        },
    })
}

/// Sets a field, whether it is there or not.
fn with(mut object: Value, pointer: &str, value: &Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    match parent.as_array_mut() {
        Some(array) => array[field.parse::<usize>().unwrap()] = value.clone(),
        None => parent[field] = value.clone(),
    }
    object
}

fn without(mut object: Value, pointer: &str) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    parent.as_object_mut().unwrap().remove(field).unwrap();
    object
}

/// What the API server says to an object, which it does not keep.
async fn try_out(installation: &Installation, candidate: Value) -> Result<(), String> {
    let kind: ApiResource = match candidate["kind"].as_str().unwrap() {
        "LLMAccess" => LLMAccess::api_resource(),
        _ => LLMProvider::api_resource(),
    };
    let api = match kind.kind.as_str() {
        "LLMAccess" => Api::default_namespaced_with(installation.client(), &kind),
        _ => Api::all_with(installation.client(), &kind),
    };
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match api.create(&dry_run, &object::<DynamicObject>(candidate)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 422 => Err(status.message),
        Err(error) => panic!("{error}"),
    }
}

async fn assert_refused(valid: Value, cases: Vec<Case>) {
    let installation = Installation::shared().await.unwrap();
    assert_eq!(try_out(&installation, valid.clone()).await, Ok(()));
    for case in cases {
        for value in case.values {
            let candidate = with(valid.clone(), case.pointer, &value);
            let told = try_out(&installation, candidate).await;
            let told = told.expect_err(&format!("{} takes {value}", case.pointer));
            assert!(
                told.contains(case.field) && told.contains(case.instead),
                "{} {value}: no {:?} or no {:?} in {told}",
                case.pointer,
                case.field,
                case.instead
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_work_are_refused() {
    let at_most_63 = "at most 63 characters: choose a shorter name";
    let at_most_243 = "at most 243 characters: choose a shorter name";
    let (access_name, secret_name) = ("/metadata/name", "/spec/secretName");
    let not_a_name = [
        "Agent",
        "agent_key",
        "-agent",
        "agent-",
        "a..b",
        "agent/key",
        "a b",
        "a\n",
    ];
    let cases = vec![
        case(access_name, ["a".repeat(64)], "metadata.name", at_most_63),
        case(
            access_name,
            ["token", "auth-header", "llmwarden.sock"],
            "metadata.name",
            "choose another name",
        ),
        case(
            "/spec/providerRef/name",
            [""],
            "spec.providerRef.name",
            "write the name of an LLMProvider",
        ),
        case(
            secret_name,
            [""],
            "spec.secretName",
            "write the name of the Secret",
        ),
        case(
            secret_name,
            not_a_name,
            "spec.secretName",
            "such as kagent-anthropic",
        ),
        case(secret_name, ["a".repeat(244)], "spec.secretName", at_most_243),
        case(
            secret_name,
            ["agent.llmwarden"],
            "spec.secretName must not be the companion's name",
            "choose a name",
        ),
        case(
            secret_name,
            ["other.llmwarden"],
            "spec.secretName must not end in .llmwarden",
            "choose another",
        ),
    ];
    assert_refused(access(), cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn injections_that_cannot_work_are_refused() {
    let entry = |name: &str| json!({ "name": name, "secretKey": "apiKey" });
    let twice = json!([entry("API_KEY"), entry("OTHER"), entry("API_KEY")]);
    let (path, mount_path) = ("/spec/injection/volume/mountPath", "injection.volume.mountPath");
    let (name, key) = ("/spec/injection/env/0/name", "/spec/injection/env/0/secretKey");
    let dots_and_colons = [
        "/etc/../root",
        "/..",
        "/var/run/x/../llmwarden",
        "/var/./run/secrets",
        "/etc/llm:ro",
    ];
    let taken = [
        "/var/run/llmwarden",
        "/var/run/llmwarden/agent",
        "//var//run/llmwarden/",
        "/run/llmwarden",
        "/var/run/secrets",
        "/var/run/secrets/kubernetes.io/serviceaccount",
        "/run/secrets/x",
    ];
    let dangerous = ["PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "KUBERNETES_SERVICE_HOST"];
    let cases = vec![
        case(path, ["etc/llm", ".", "", "~/llm"], mount_path, "begin it with /"),
        case(path, ["/", "//"], mount_path, "name a directory"),
        case(path, dots_and_colons, mount_path, "name a plain directory"),
        case(path, taken, mount_path, "choose another directory"),
        case(
            "/spec/injection/env",
            [twice],
            "injection.env has the same name twice",
            "keep one entry",
        ),
        case(name, dangerous, "injection.env[].name", "choose another name"),
        case(
            name,
            ["", "1KEY", "API-KEY", "API KEY", "API=KEY"],
            "injection.env[].name",
            "such as ANTHROPIC_API_KEY",
        ),
        case(
            key,
            ["", "a/b", "..", "..data", "."],
            "injection.env[].secretKey",
            "such as apiKey",
        ),
        case(key, ["baseUrl"], "injection.env[].secretKey", "write apiKey"),
    ];
    assert_refused(access(), cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_that_cannot_work_are_refused() {
    let issuers = [json!({ "openrouter": {}, "litellm": {} }), json!({})];
    let urls = [
        "gateway",
        "ftp://gateway",
        "https://user@gateway",
        "https://gateway?a=b",
    ];
    let cases = vec![
        case(
            "/spec/provider",
            ["nobody"],
            "spec.provider",
            "supported values: \"openai\", \"anthropic\"",
        ),
        case(
            "/spec/auth/apiKey",
            [Value::Null],
            "auth.apiKey is missing",
            "secretRef.name, secretRef.namespace and secretRef.key",
        ),
        case(
            "/spec/auth/type",
            ["externalSecret"],
            "auth.externalSecret is missing",
            "store and remoteRef",
        ),
        case(
            "/spec/auth/type",
            ["workloadIdentity"],
            "auth.workloadIdentity is missing",
            "one of aws, azure, gcp, openai, anthropic",
        ),
        case(
            "/spec/auth/workloadIdentity",
            [json!({})],
            "auth.workloadIdentity takes exactly one",
            "keep one",
        ),
        case(
            "/spec/auth/apiKey/issuer",
            issuers,
            "auth.apiKey.issuer takes exactly one",
            "keep one and remove the others",
        ),
        case(
            "/spec/endpoint/baseURL",
            urls,
            "endpoint.baseURL",
            "write https://gateway.example.com/v1",
        ),
    ];
    assert_refused(provider(), cases).await;

    let installation = Installation::shared().await.unwrap();
    let no_section = without(provider(), "/spec/auth/apiKey");
    let told = try_out(&installation, no_section).await.unwrap_err();
    assert!(told.contains("auth.apiKey is missing"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_not_required_of_sdks_that_insist_on_https() {
    for kind in ["aws-bedrock", "gcp-vertexai"] {
        let valid = with(provider(), "/spec/provider", &json!(kind));
        let required = case("/spec/proxy", ["Required"], "spec.proxy", "write Optional");
        assert_refused(valid, vec![required]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn intervals_are_days_hours_or_minutes() {
    let interval = "/spec/rotation/interval";
    let cases = vec![case(
        interval,
        INVALID_INTERVALS,
        "rotation.interval",
        "write 30d, 12h or 45m",
    )];
    assert_refused(access(), cases).await;
    let fields = [
        ("/spec/auth/apiKey/rotation/interval", "rotation.interval"),
        ("/spec/auth/apiKey/rotation/overlap", "rotation.overlap"),
        (
            "/spec/auth/apiKey/rotation/revokeDeadline",
            "rotation.revokeDeadline",
        ),
    ];
    let cases = fields.map(|(pointer, field)| case(pointer, INVALID_INTERVALS, field, "12h or 45m"));
    assert_refused(provider(), cases.into()).await;

    let installation = Installation::shared().await.unwrap();
    for value in ["30d", "12h", "45m", "720h", "1440m"].map(|value| json!(value)) {
        let candidate = with(access(), interval, &value);
        assert_eq!(try_out(&installation, candidate).await, Ok(()), "{value}");
        for (pointer, _) in fields {
            let candidate = with(provider(), pointer, &value);
            assert_eq!(
                try_out(&installation, candidate).await,
                Ok(()),
                "{pointer} {value}"
            );
        }
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
    let refused = accesses.patch("agent", &PatchParams::default(), &change).await;
    let told = refused.unwrap_err().to_string();
    assert!(
        told.contains("spec.providerRef.name cannot be changed") && told.contains("make another"),
        "{told}"
    );
}
