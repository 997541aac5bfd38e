//! Each right that the chart gives the controller is needed: without it something fails, and an operator can see what.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use llmwarden_proto::names::{
    ADOPT_ANNOTATION, CERTIFICATES_SECRET, INSTANCE_SECRET, REFRESH_ANNOTATION, ROTATE_ANNOTATION, ROTATE_NOW,
};
use llmwarden_proto::reason::Reason;
use llmwarden_tests::installation::{ACCOUNT, ENABLED_LABEL, SYSTEM};
use llmwarden_tests::wait::same;
use llmwarden_tests::webhook::{self, CONFIGURATION};
use llmwarden_tests::{Installation, Signal, chart, eventually};
use serde_json::json;

use crate::refresh::injected;
use crate::support::{SOON, Tenant, create, install_kagent, object, patch, value};

const KEYS: [&str; 2] = ["sk-test-rights-1", "sk-test-rights-2"];

/// One verb on one resource.
#[derive(Clone)]
struct Right(PolicyRule);

impl Right {
    fn all(rules: &[PolicyRule]) -> Vec<Self> {
        let mut all = Vec::new();
        for rule in rules {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    all.push(Self(PolicyRule {
                        resources: Some(vec![resource.clone()]),
                        verbs: vec![verb.clone()],
                        ..rule.clone()
                    }));
                }
            }
        }
        all
    }

    fn verb(&self) -> &str {
        &self.0.verbs[0]
    }

    fn resource(&self) -> &str {
        &self.0.resources.as_ref().unwrap()[0]
    }

    fn name(&self) -> String {
        format!("{} {}", self.verb(), self.resource())
    }
}

/// A role of the chart's.
struct Granted {
    api: Api<DynamicObject>,
    name: String,
    /// Where it holds.
    namespace: String,
    rules: Vec<PolicyRule>,
}

impl Granted {
    /// Every role of the release. Those of the cluster are looked at in `namespace`, wherever they are bound.
    async fn all(installation: &Installation, namespace: &str) -> Vec<Self> {
        let client = installation.client();
        let ours = ListParams::default().labels("app.kubernetes.io/name=llmwarden");
        let mut all = Vec::new();
        for kind in [
            ApiResource::erase::<ClusterRole>(&()),
            ApiResource::erase::<Role>(&()),
        ] {
            let found = Api::<DynamicObject>::all_with(client.clone(), &kind)
                .list(&ours)
                .await;
            for role in found.unwrap() {
                all.push(Self {
                    api: match role.namespace() {
                        Some(own) => Api::namespaced_with(client.clone(), &own, &kind),
                        None => Api::all_with(client.clone(), &kind),
                    },
                    name: role.name_any(),
                    namespace: role.namespace().unwrap_or_else(|| namespace.to_owned()),
                    rules: object(role.data["rules"].clone()),
                });
            }
        }
        all
    }

    /// Leaves it these rights alone.
    async fn reduce(&self, rights: &[Right]) {
        let rules: Vec<_> = rights.iter().map(|right| &right.0).collect();
        let change = Patch::Merge(json!({ "rules": rules }));
        self.api
            .patch(&self.name, &PatchParams::default(), &change)
            .await
            .unwrap();
    }

    /// Waits until the API server's answer to whether the controller has a right is this.
    async fn await_answer(&self, installation: &Installation, right: &Right, allowed: bool) {
        let (resource, subresource) = match right.resource().split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource)),
            None => (right.resource(), None),
        };
        let first = |list: &Option<Vec<String>>| list.as_ref().and_then(|all| all.first().cloned());
        let spec = SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{SYSTEM}:{ACCOUNT}")),
            resource_attributes: Some(ResourceAttributes {
                group: first(&right.0.api_groups),
                resource: Some(resource.to_owned()),
                subresource: subresource.map(str::to_owned),
                verb: Some(right.verb().to_owned()),
                namespace: Some(self.namespace.clone()),
                name: first(&right.0.resource_names),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview {
            spec,
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(installation.client());
        eventually("the change of a right", SOON, async || {
            let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
            same(&answer.status.unwrap().allowed, &allowed)
        })
        .await;
    }
}

/// Where the controller is tried.
struct Scene {
    installation: Installation,
    tenant: Tenant,
    /// The namespace of the tenant's master Secret.
    masters: &'static str,
}

impl Scene {
    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.installation.client(), namespace)
    }

    /// As if no controller had been there yet.
    async fn clear(&self) {
        let (everything, gone) = (ListParams::default(), DeleteParams::default());
        let client = self.installation.client();
        let namespace = &self.tenant.namespace;
        let _ = self.tenant.accesses().delete("agent", &gone).await;
        let _ = self.tenant.providers().delete(&self.tenant.provider, &gone).await;
        let _ = self.secrets(SYSTEM).delete(INSTANCE_SECRET, &gone).await;
        let _ = self
            .secrets(self.masters)
            .delete(&self.tenant.master, &gone)
            .await;
        self.secrets(namespace)
            .delete_collection(&gone, &everything)
            .await
            .unwrap();
        let at_once = gone.clone().grace_period(0);
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        pods.delete_collection(&at_once, &everything).await.unwrap();
        let events = Api::<Event>::namespaced(client.clone(), namespace);
        events.delete_collection(&gone, &everything).await.unwrap();
        let leases = Api::<Lease>::namespaced(client.clone(), SYSTEM);
        leases.delete_collection(&gone, &everything).await.unwrap();
        let _ = self.secrets(SYSTEM).delete(CERTIFICATES_SECRET, &gone).await;
        let webhooks = Api::<MutatingWebhookConfiguration>::all(client);
        let _ = webhooks.delete(CONFIGURATION, &gone).await;
    }

    /// All that a controller does in its life, from its first start on. Every step waits for what it brings about.
    async fn live(&self) {
        let tenant = &self.tenant;
        self.have_certificates().await;
        let label = |value| json!({ "metadata": { "labels": { ENABLED_LABEL: value } } });
        patch(&tenant.namespaces(), &tenant.namespace, label(Some("true"))).await;
        tenant.create_master_in(self.masters, KEYS[0]).await;
        let secret_ref = json!({ "secretRef": { "namespace": self.masters } });
        tenant
            .create_provider(json!({ "auth": { "apiKey": secret_ref } }))
            .await;
        let handed = json!({ "metadata": { "name": "first", "annotations": { ADOPT_ANNOTATION: "agent" } } });
        create(&tenant.secrets(), &object::<Secret>(handed)).await;
        tenant
            .create_access("agent", json!({ "secretName": "first" }))
            .await;
        tenant.await_ready("agent").await;
        self.await_occurrences(Reason::Adopted, 1).await;
        eventually("the provider's status", SOON, async || {
            let provider = tenant.providers().get(&tenant.provider).await.unwrap();
            same(&provider.status.map(|status| status.access_count), &Some(1))
        })
        .await;

        let pods = Api::<Pod>::namespaced(self.installation.client(), &tenant.namespace);
        create(&pods, &injected("pod", &["agent"])).await;
        eventually("a pod that is refreshed", SOON, async || {
            let pod = pods.get("pod").await.unwrap();
            pod.annotations().contains_key(REFRESH_ANNOTATION)
        })
        .await;

        let change = json!({ "stringData": { "api-key": KEYS[1] } });
        patch(&self.secrets(self.masters), &tenant.master, change).await;
        self.await_occurrences(Reason::Rotated, 1).await;
        // With that the pass is over: a request that comes before is met by the new key.
        eventually("the rotation in the status", SOON, async || {
            let access = tenant.accesses().get("agent").await.unwrap();
            same(&access.status.map(|status| status.history.len()), &Some(2))
        })
        .await;
        assert_eq!(value(&tenant.secret("first").await, "apiKey"), KEYS[1]);
        for times in 1..=2 {
            let request = json!({ "metadata": { "annotations": { ROTATE_ANNOTATION: ROTATE_NOW } } });
            tenant.patch_access("agent", request).await;
            self.await_occurrences(Reason::NothingToRotate, times).await;
        }
        tenant
            .patch_access("agent", json!({ "spec": { "secretName": "second" } }))
            .await;
        eventually("the second Secret alone", SOON, async || {
            same(
                &tenant.secret_names().await,
                &vec!["agent.llmwarden".to_owned(), "second".to_owned()],
            )
        })
        .await;
        patch(&tenant.namespaces(), &tenant.namespace, label(None)).await;
        tenant.await_refusal("agent", Reason::NamespaceNotAllowed).await;
    }

    /// Lets the controller make the webhook's certificates, have them trusted, and replace them.
    async fn have_certificates(&self) {
        let webhooks = Api::<MutatingWebhookConfiguration>::all(self.installation.client());
        // Of no namespace's pods: nobody answers there.
        let nowhere = self
            .installation
            .webhook_configuration("https://127.0.0.1:1", ("no-namespace", "has-this"));
        create(&webhooks, &nowhere.await.unwrap()).await;
        let secrets = self.secrets(SYSTEM);
        eventually("certificates that are trusted", SOON, async || {
            secrets.get(CERTIFICATES_SECRET).await?;
            let entries = webhooks.get(CONFIGURATION).await?.webhooks.unwrap_or_default();
            let trusted = entries
                .iter()
                .all(|entry| entry.client_config.ca_bundle.is_some());
            if trusted {
                Ok(())
            } else {
                Err(anyhow::anyhow!("no caBundle"))
            }
        })
        .await;
        let request = json!({ "metadata": { "annotations": { ROTATE_ANNOTATION: ROTATE_NOW } } });
        patch(&secrets, CERTIFICATES_SECRET, request).await;
        eventually("another authority", SOON, async || {
            let secret = secrets.get(CERTIFICATES_SECRET).await.unwrap();
            !secret.annotations().contains_key(ROTATE_ANNOTATION)
        })
        .await;
    }

    async fn await_occurrences(&self, reason: Reason, times: i32) {
        eventually("an event", SOON, async || {
            same(&self.tenant.occurrences("agent", reason).await, &times)
        })
        .await;
    }

    /// What an operator sees of a refusal: a line of the log, or a condition.
    async fn refusal(&self, log_from: usize) -> Option<String> {
        let log = self.installation.controller_log();
        let mut lines = log[log_from..].lines();
        if let Some(line) = lines.find(|line| line.contains("forbidden")) {
            return Some(line.to_owned());
        }
        let access = self.tenant.accesses().get_opt("agent").await.unwrap()?;
        let mut conditions = access.status?.conditions.into_iter();
        let refused = conditions.find(|condition| condition.reason == Reason::WriteRefused.as_str())?;
        Some(format!("WriteRefused: {}", refused.message))
    }

    /// Lets a new controller live, and returns the first refusal that it meets.
    async fn try_to_live(&self) -> Option<String> {
        self.clear().await;
        let log_from = self.installation.controller_log().len();
        let _controller = self.installation.spawn_controller().unwrap();
        let look = eventually("a refusal", SOON * 2, async || self.refusal(log_from).await);
        tokio::select! {
            refusal = look => Some(refusal),
            () = self.live() => self.refusal(log_from).await,
        }
    }

    /// Takes away each right on what `counts`, one at a time.
    async fn try_without_each(&self, counts: impl Fn(&Right) -> bool) {
        let roles = Granted::all(&self.installation, &self.tenant.namespace).await;
        let seen = self.try_to_live().await;
        assert_eq!(seen, None, "with all its rights");

        let mut superfluous = Vec::new();
        for role in &roles {
            let rights = Right::all(&role.rules);
            for (place, right) in rights.iter().enumerate().filter(|(_, right)| counts(right)) {
                let mut others = rights.clone();
                others.remove(place);
                role.reduce(&others).await;
                role.await_answer(&self.installation, right, false).await;
                let refusal = self.try_to_live().await;
                let what = format!("{} ({} in {})", right.name(), role.name, role.namespace);
                println!("{what}: {}", refusal.as_deref().unwrap_or("NOTHING FAILED"));
                if refusal.is_none() {
                    superfluous.push(what);
                }
                role.reduce(&rights).await;
                role.await_answer(&self.installation, right, true).await;
            }
        }
        assert!(
            superfluous.is_empty(),
            "nothing needed these rights: {superfluous:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_of_its_rights_the_controller_fails() {
    let installation = Installation::start_logging(&webhook::FLAGS, "info")
        .await
        .unwrap();
    installation.stop_controller(Signal::SIGKILL).await.unwrap();
    let tenant = Tenant::names(&installation);
    tenant.create_namespace(true).await;
    // Its Agents are watched where it is installed.
    install_kagent(&installation).await;
    let scene = Scene {
        installation,
        tenant,
        masters: SYSTEM,
    };
    scene.try_without_each(|_| true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_serves_some_namespaces_it_needs_each_right_on_secrets() {
    let served = ["--access-namespace=served", "--trusted-namespace=masters"];
    let flags = [webhook::FLAGS.as_slice(), &served].concat();
    let installation = Installation::start_logging(&flags, "info").await.unwrap();
    installation.stop_controller(Signal::SIGKILL).await.unwrap();
    let elsewhere = Tenant::names(&installation);
    let mut tenant = Tenant::names(&installation);
    tenant.namespace = "served".to_owned();
    elsewhere.create_namespace(true).await;
    tenant.create_namespace(true).await;
    installation.create_namespace("masters", false).await.unwrap();
    let chart = chart::dir();
    let upgrade = [
        "upgrade",
        chart::RELEASE,
        chart.to_str().unwrap(),
        chart::WITHOUT_CONTROLLER,
        "--set=accessNamespaces={served}",
        "--set=trustedNamespaces={masters}",
    ];
    installation.run_helm(upgrade).await.unwrap();
    let scene = Scene {
        installation,
        tenant,
        masters: "masters",
    };
    scene
        .try_without_each(|right| right.resource() == "secrets")
        .await;

    // What it may not read there it does not ask for, and who asks is told.
    let log_from = scene.installation.controller_log().len();
    scene.installation.start_controller().await.unwrap();
    elsewhere.create_access("agent", json!({})).await;
    let message = elsewhere.await_refusal("agent", Reason::NamespaceNotServed).await;
    assert!(message.contains("it serves served"), "{message}");
    assert_eq!(scene.refusal(log_from).await, None);
}
