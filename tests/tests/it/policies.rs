//! What the chart's admission policies refuse the controller, were it to try, and what they let through. All requests are
//! dry runs, so that no case depends on another.

use http::{Method, Request};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, Resource};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names::{
    ADOPT_ANNOTATION, CERTIFICATES_SECRET, INSTANCE_SECRET, MANAGED_BY, MANAGED_BY_LABEL,
};
use llmwarden_tests::installation::{ACCOUNT, SYSTEM};
use llmwarden_tests::{Installation, eventually};
use serde_json::{Value, json};

use crate::support::{SOON, Tenant, create, merge, object};

/// The API server's words before those of the policy.
const DENIED: &str = "denied request: the llmwarden controller may ";

/// A request, and what is to come of it.
struct Case {
    what: &'static str,
    method: Method,
    path: String,
    body: Value,
    /// What the policy says, from [`DENIED`] on; `None` when it lets the request through.
    refusal: Option<&'static str>,
}

impl Case {
    fn new(what: &'static str, method: Method, path: impl Into<String>, body: Value) -> Self {
        Self {
            what,
            method,
            path: path.into(),
            body,
            refusal: None,
        }
    }

    /// A change by JSON patch operations.
    fn patch(what: &'static str, path: impl Into<String>, operations: Value) -> Self {
        Self::new(what, Method::PATCH, path, operations)
    }

    fn delete(what: &'static str, path: impl Into<String>) -> Self {
        // Next to a body the parameter of that name does not count.
        Self::new(what, Method::DELETE, path, json!({ "dryRun": ["All"] }))
    }

    fn refused(mut self, refusal: &'static str) -> Self {
        self.refusal = Some(refusal);
        self
    }

    /// Sends it, and returns the error.
    async fn send(&self, client: &Client) -> Option<String> {
        let media = match self.method {
            Method::PATCH => "application/json-patch+json",
            _ => "application/json",
        };
        let separator = if self.path.contains('?') { '&' } else { '?' };
        let request = Request::builder()
            .method(&self.method)
            .uri(format!("{}{separator}dryRun=All", self.path))
            .header("Content-Type", media)
            .body(serde_json::to_vec(&self.body).unwrap())
            .unwrap();
        let outcome = client.request_text(request).await;
        outcome.err().map(|error| error.to_string())
    }

    /// What is wrong with an answer.
    fn complaint(&self, answer: Option<&str>) -> Option<String> {
        let as_expected = match self.refusal {
            Some(refusal) => answer.is_some_and(|answer| answer.contains(&format!("{DENIED}{refusal}"))),
            None => answer.is_none(),
        };
        (!as_expected).then(|| format!("{}: {}", self.what, answer.unwrap_or("it went through")))
    }
}

/// Who has the controller's name, and every right: what stops it is a policy.
fn almighty_controller(installation: &Installation) -> Client {
    let mut config = installation.config();
    config.auth_info.impersonate = Some(format!("system:serviceaccount:{SYSTEM}:{ACCOUNT}"));
    config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned()]);
    Client::try_from(config).unwrap()
}

/// Sends all cases as the controller, and what it is refused also as an administrator, who isn't bound by the policies.
async fn check(installation: &Installation, cases: &[Case]) {
    let controller = almighty_controller(installation);
    let first = cases.iter().find(|case| case.refusal.is_some()).unwrap();
    eventually("the enforcement of the policy", SOON, async || {
        let answer = first.send(&controller).await;
        first.complaint(answer.as_deref()).map_or(Ok(()), Err)
    })
    .await;
    let mut complaints = Vec::new();
    for case in cases {
        let answer = case.send(&controller).await;
        complaints.extend(case.complaint(answer.as_deref()));
        let answer = case.send(&installation.client()).await.unwrap_or_default();
        if answer.contains("ValidatingAdmissionPolicy") {
            complaints.push(format!("{}, by an administrator: {answer}", case.what));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn owned_by(access: &LLMAccess) -> Value {
    json!([access.controller_owner_ref(&()).unwrap()])
}

/// A Secret as the controller writes it, changed as the merge patch says.
fn ours(name: &str, access: &LLMAccess, change: Value) -> Value {
    let mut secret = json!({
        "metadata": {
            "name": name,
            "labels": { MANAGED_BY_LABEL: MANAGED_BY },
            "ownerReferences": owned_by(access),
        },
        "type": "Opaque",
        "stringData": { "apiKey": "sk-test-policies" },
    });
    merge(&mut secret, change);
    secret
}

/// JSON patch: sets what is at a path.
fn set(path: &str, value: Value) -> Value {
    let mut operation = json!({ "op": "add", "path": path });
    operation["value"] = value;
    json!([operation])
}

/// JSON patch: makes a Secret one of an access.
fn take(access: &LLMAccess) -> Value {
    json!([
        { "op": "add", "path": "/metadata/labels", "value": { MANAGED_BY_LABEL: MANAGED_BY } },
        { "op": "add", "path": "/metadata/ownerReferences", "value": owned_by(access) },
    ])
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "it is a table")]
async fn of_secrets_it_may_write_only_those_of_an_access() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    // Without a provider the controller leaves their Secrets alone.
    let one = tenant.create_access("one", json!({})).await;
    let two = tenant.create_access("two", json!({})).await;
    let maps = Api::namespaced(installation.client(), &tenant.namespace);
    let map: ConfigMap = create(&maps, &object(json!({ "metadata": { "name": "owner" } }))).await;
    let by_map = json!([map.controller_owner_ref(&()).unwrap()]);
    for secret in [
        ours("owned", &one, json!({})),
        json!({ "metadata": { "name": "foreign" } }),
        json!({ "metadata": { "name": "handed", "annotations": { ADOPT_ANNOTATION: "one" } } }),
        json!({ "metadata": {
            "name": "controlled", "annotations": { ADOPT_ANNOTATION: "one" }, "ownerReferences": by_map,
        } }),
    ] {
        create(&tenant.secrets(), &object::<Secret>(secret)).await;
    }

    let all = format!("/api/v1/namespaces/{}/secrets", tenant.namespace);
    let of = |name: &str| format!("{all}/{name}");
    let system = format!("/api/v1/namespaces/{SYSTEM}/secrets");
    let instance = format!("{system}/{INSTANCE_SECRET}");
    let post = |what, change| Case::new(what, Method::POST, &all, ours("new", &one, change));
    let mut uncontrolled = owned_by(&one);
    uncontrolled[0]["controller"] = false.into();
    let mut stranger = owned_by(&one);
    stranger[0]["apiVersion"] = "example.com/v1".into();
    let token = json!({
        "metadata": { "annotations": { "kubernetes.io/service-account.name": "default" } },
        "type": "kubernetes.io/service-account-token",
    });
    let owners = |value: &Value| json!({ "metadata": { "ownerReferences": value } });
    let (write, remove, take_over) = (
        "write only Secrets that an LLMAccess controls",
        "delete only Secrets that an LLMAccess controls",
        "take over only a Secret without a controller",
    );
    let label = "write only Secrets with the label";
    let edit = json!([{ "op": "add", "path": "/data", "value": { "apiKey": "c2s=" } }]);
    let cases = [
        post("makes one without an owner", owners(&json!(null))).refused(write),
        post("makes one for a ConfigMap", owners(&by_map)).refused(write),
        post("makes one that an access only owns", owners(&uncontrolled)).refused(write),
        post("makes one for another group's LLMAccess", owners(&stranger)).refused(write),
        post(
            "makes one without the label",
            json!({ "metadata": { "labels": null } }),
        )
        .refused(label),
        post("makes a service account's token", token).refused("create only Secrets of the type Opaque"),
        post("makes one for an access", json!({})),
        Case::new(
            "makes an instance secret in a tenant's namespace",
            Method::POST,
            &all,
            json!({ "metadata": { "name": INSTANCE_SECRET, "labels": { MANAGED_BY_LABEL: MANAGED_BY } } }),
        )
        .refused(write),
        Case::new(
            "makes the webhook's certificates in a tenant's namespace",
            Method::POST,
            &all,
            json!({ "metadata": { "name": CERTIFICATES_SECRET, "labels": { MANAGED_BY_LABEL: MANAGED_BY } } }),
        )
        .refused(write),
        Case::new(
            "makes the webhook's certificates in its own namespace",
            Method::POST,
            &system,
            json!({ "metadata": { "name": CERTIFICATES_SECRET, "labels": { MANAGED_BY_LABEL: MANAGED_BY } } }),
        ),
        Case::new(
            "makes another Secret in its own namespace",
            Method::POST,
            &system,
            json!({ "metadata": { "name": "another", "labels": { MANAGED_BY_LABEL: MANAGED_BY } } }),
        )
        .refused(write),
        Case::patch("changes its own", of("owned"), edit.clone()),
        Case::patch("takes what is handed over", of("handed"), take(&one)),
        Case::patch("changes a foreign one", of("foreign"), edit.clone()).refused(write),
        Case::patch(
            "changes what is handed over, without taking it",
            of("handed"),
            edit.clone(),
        )
        .refused(write),
        Case::patch("changes the instance secret", &instance, edit).refused(write),
        Case::patch("takes a foreign one", of("foreign"), take(&one)).refused(take_over),
        Case::patch("takes what is handed to another", of("handed"), take(&two)).refused(take_over),
        Case::patch("takes what another controls", of("controlled"), take(&one)).refused(take_over),
        Case::patch("gives its own to another access", of("owned"), take(&two)).refused(take_over),
        Case::patch(
            "disowns its own",
            of("owned"),
            json!([{ "op": "remove", "path": "/metadata/ownerReferences" }]),
        )
        .refused(write),
        Case::patch(
            "takes the label off its own",
            of("owned"),
            json!([{ "op": "remove", "path": "/metadata/labels" }]),
        )
        .refused(label),
        Case::delete("deletes its own", of("owned")),
        Case::delete("deletes a foreign one", of("foreign")).refused(remove),
        Case::delete("deletes what is handed over", of("handed")).refused(remove),
        Case::delete("deletes what another controls", of("controlled")).refused(remove),
        Case::delete("deletes the instance secret", &instance).refused(remove),
        Case::delete("deletes all", &all).refused(remove),
    ];
    check(&installation, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policies_bind_who_has_the_controllers_token() {
    let installation = Installation::shared().await.unwrap();
    let controller = installation.client_for(SYSTEM, ACCOUNT).await.unwrap();
    let make = |name: &str| {
        let secret = json!({ "metadata": { "name": name, "labels": { MANAGED_BY_LABEL: MANAGED_BY } } });
        Case::new(
            "makes one without an owner",
            Method::POST,
            format!("/api/v1/namespaces/{SYSTEM}/secrets"),
            secret,
        )
    };
    let another = make("another").refused("write only Secrets that an LLMAccess controls");
    eventually("the enforcement of the policy", SOON, async || {
        let answer = another.send(&controller).await;
        another.complaint(answer.as_deref()).map_or(Ok(()), Err)
    })
    .await;
    // Of the two that it may make without an owner this one is there already.
    let answer = make(INSTANCE_SECRET).send(&controller).await.unwrap_or_default();
    assert!(answer.contains("already exists"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_pods_it_may_change_only_the_refresh_annotation() {
    let installation = Installation::shared().await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    let pods = Api::<Pod>::namespaced(installation.client(), &tenant.namespace);
    let pod = |name: &str, annotations: Value| {
        json!({
            "metadata": { "name": name, "labels": { "app": "kagent" }, "annotations": annotations },
            "spec": { "containers": [{ "name": "agent", "image": "agent" }] },
        })
    };
    let refreshed = json!({ "note": "keep", "llmwarden.io/refresh": "1" });
    for (name, annotations) in [("plain", json!(null)), ("agent", refreshed)] {
        let pod: Pod = object(pod(name, annotations));
        // Until the namespace has its service account.
        eventually("a pod", SOON, async || {
            pods.create(&PostParams::default(), &pod).await
        })
        .await;
    }

    let all = format!("/api/v1/namespaces/{}/pods", tenant.namespace);
    let agent = format!("{all}/agent");
    let status = format!("{agent}/status");
    let refresh = "/metadata/annotations/llmwarden.io~1refresh";
    let change = |what, path: &str, value: Value| {
        let nothing_else = "change nothing of a pod but the annotation llmwarden.io/refresh";
        Case::patch(what, &status, set(path, value)).refused(nothing_else)
    };
    let only_status = "change pods only through pods/status";
    let mut both = set(refresh, json!("2"));
    both.as_array_mut()
        .unwrap()
        .push(json!({ "op": "remove", "path": "/metadata/labels/app" }));
    let cases = [
        change("labels it", "/metadata/labels/team", json!("x")),
        change("changes a label", "/metadata/labels/app", json!("x")),
        change("annotates it", "/metadata/annotations/other", json!("x")),
        change("changes an annotation", "/metadata/annotations/note", json!("x")),
        change(
            "removes the other annotations",
            "/metadata/annotations",
            json!({ "llmwarden.io/refresh": "2" }),
        ),
        change(
            "sets a finalizer",
            "/metadata/finalizers",
            json!(["example.com/stay"]),
        ),
        change("moves it", "/status/podIP", json!("10.0.0.1")),
        change("ends it", "/status/phase", json!("Succeeded")),
        change(
            "calls it ready",
            "/status/conditions",
            json!([{ "type": "Ready", "status": "True" }]),
        ),
        Case::patch("refreshes it and takes its label", &status, both)
            .refused("change nothing of a pod but the annotation llmwarden.io/refresh"),
        Case::patch("refreshes it again", &status, set(refresh, json!("2"))),
        Case::patch(
            "refreshes one without annotations",
            format!("{all}/plain/status"),
            set("/metadata/annotations", json!({ "llmwarden.io/refresh": "1" })),
        ),
        Case::patch("refreshes it by the pod itself", &agent, set(refresh, json!("2"))).refused(only_status),
        Case::patch(
            "swaps its image",
            &agent,
            set("/spec/containers/0/image", json!("x")),
        )
        .refused(only_status),
        Case::new("makes one", Method::POST, &all, pod("new", json!(null))).refused(only_status),
        Case::delete("deletes it", &agent).refused(only_status),
        Case::new(
            "evicts it",
            Method::POST,
            format!("{agent}/eviction"),
            json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "agent" } }),
        )
        .refused(only_status),
        Case::patch(
            "adds an ephemeral container",
            format!("{agent}/ephemeralcontainers"),
            set(
                "/spec/ephemeralContainers",
                json!([{ "name": "debug", "image": "x" }]),
            ),
        )
        .refused(only_status),
    ];
    check(&installation, &cases).await;
}

/// A webhook that selects nothing: other tests are at work here.
fn webhook(name: &str) -> Value {
    json!({
        "name": format!("{name}.llmwarden.io"),
        "clientConfig": { "url": "https://127.0.0.1:9443/inject" },
        "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] }],
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "no-such-namespace" } },
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    })
}

fn configuration(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "webhooks": [webhook("named"), webhook("selected")] })
}

#[tokio::test(flavor = "multi_thread")]
async fn of_webhook_configurations_it_may_change_only_its_own_ca_bundle() {
    let installation = Installation::shared().await.unwrap();
    let mutating = Api::<MutatingWebhookConfiguration>::all(installation.client());
    let validating = Api::<ValidatingWebhookConfiguration>::all(installation.client());
    let other = Installation::unique("webhooks");
    for name in ["llmwarden", &other] {
        create(&mutating, &object(configuration(name))).await;
        create(&validating, &object(configuration(name))).await;
    }

    let bundle = json!(ByteString(std::fs::read(installation.authority()).unwrap()));
    let group = "/apis/admissionregistration.k8s.io/v1";
    let kind = |kind: &str| format!("{group}/{kind}webhookconfigurations");
    let own = format!("{}/llmwarden", kind("mutating"));
    let bundles = json!([
        { "op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle },
        { "op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": bundle },
    ]);
    let change = |what, path: &str, value: Value| {
        let nothing_else = "change nothing of its webhook configuration but caBundle";
        Case::patch(what, &own, set(path, value)).refused(nothing_else)
    };
    let only_own = "update only the webhook configurations named llmwarden";
    let mut both = bundles.clone();
    let policy = json!({ "op": "add", "path": "/webhooks/1/failurePolicy", "value": "Ignore" });
    both.as_array_mut().unwrap().push(policy);
    let cases = [
        change(
            "sends pods elsewhere",
            "/webhooks/0/clientConfig/url",
            json!("https://example.com/"),
        ),
        change(
            "asks for more",
            "/webhooks/1/rules/0/resources/0",
            json!("secrets"),
        ),
        change(
            "selects other namespaces",
            "/webhooks/0/namespaceSelector",
            json!({}),
        ),
        change(
            "is no longer asked in vain",
            "/webhooks/0/failurePolicy",
            json!("Ignore"),
        ),
        change(
            "adds a condition",
            "/webhooks/0/matchConditions",
            json!([{ "name": "never", "expression": "false" }]),
        ),
        change("adds a webhook", "/webhooks/-", webhook("third")),
        change("removes a webhook", "/webhooks", json!([webhook("named")])),
        change(
            "renames a webhook",
            "/webhooks/0/name",
            json!("third.llmwarden.io"),
        ),
        change(
            "swaps the two",
            "/webhooks",
            json!([webhook("selected"), webhook("named")]),
        ),
        change("labels it", "/metadata/labels", json!({ "team": "x" })),
        change(
            "sets a finalizer",
            "/metadata/finalizers",
            json!(["example.com/stay"]),
        ),
        Case::patch("changes the bundle and a policy", &own, both)
            .refused("change nothing of its webhook configuration but caBundle"),
        Case::patch("sets its bundle", &own, bundles.clone()),
        Case::patch(
            "sets its other bundle",
            format!("{}/llmwarden", kind("validating")),
            bundles.clone(),
        ),
        Case::patch(
            "sets another's bundle",
            format!("{}/{other}", kind("mutating")),
            bundles.clone(),
        )
        .refused(only_own),
        Case::patch(
            "sets another's other bundle",
            format!("{}/{other}", kind("validating")),
            bundles,
        )
        .refused(only_own),
        Case::new("makes one", Method::POST, kind("mutating"), configuration("new")).refused(only_own),
        Case::delete("deletes its own", &own).refused(only_own),
    ];
    check(&installation, &cases).await;

    mutating
        .delete("llmwarden", &DeleteParams::default())
        .await
        .unwrap();
    validating
        .delete("llmwarden", &DeleteParams::default())
        .await
        .unwrap();
}
