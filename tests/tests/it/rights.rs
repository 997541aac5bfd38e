//! Each right that the chart gives the controller is needed: without it something fails, and an operator can see what.

use std::collections::BTreeSet;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use llmwarden_proto::names::{ADOPT_ANNOTATION, INSTANCE_SECRET, ROTATE_ANNOTATION, ROTATE_NOW};
use llmwarden_proto::reason::Reason;
use llmwarden_tests::installation::{ACCOUNT, ENABLED_LABEL, SYSTEM};
use llmwarden_tests::wait::same;
use llmwarden_tests::{Installation, Signal, eventually};
use serde_json::json;

use crate::support::{SOON, Tenant, create, object, patch, value};

/// Rights that are there before their use is: the test fails when that comes, and when one is used already.
const AHEAD: [&str; 4] = ["create leases", "get leases", "patch leases", "update leases"];

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

/// All that a controller does in its life, from its first start on. Every step waits for what it brings about.
async fn live(tenant: &Tenant) {
    tenant.create_provider(json!({})).await;
    let handed = json!({ "metadata": { "name": "first", "annotations": { ADOPT_ANNOTATION: "agent" } } });
    create(&tenant.secrets(), &object::<Secret>(handed)).await;
    tenant
        .create_access("agent", json!({ "secretName": "first" }))
        .await;
    tenant.await_ready("agent").await;
    await_occurrences(tenant, Reason::Adopted, 1).await;
    eventually("the provider's status", SOON, async || {
        let provider = tenant.providers().get(&tenant.provider).await.unwrap();
        same(&provider.status.map(|status| status.access_count), &Some(1))
    })
    .await;

    tenant.set_master(KEYS[1]).await;
    eventually("the new key", SOON, async || {
        same(&value(&tenant.secret("first").await, "apiKey").as_str(), &KEYS[1])
    })
    .await;
    for times in 1..=2 {
        let request = json!({ "metadata": { "annotations": { ROTATE_ANNOTATION: ROTATE_NOW } } });
        tenant.patch_access("agent", request).await;
        await_occurrences(tenant, Reason::NothingToRotate, times).await;
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
    let label = json!({ "metadata": { "labels": { ENABLED_LABEL: null } } });
    patch(&tenant.namespaces(), &tenant.namespace, label).await;
    tenant.await_refusal("agent", Reason::NamespaceNotAllowed).await;
}

async fn await_occurrences(tenant: &Tenant, reason: Reason, times: i32) {
    eventually("an event", SOON, async || {
        same(&tenant.occurrences("agent", reason).await, &times)
    })
    .await;
}

/// What an operator sees of a refusal: a line of the log, or a condition.
async fn refusal(installation: &Installation, tenant: &Tenant, log_from: usize) -> Option<String> {
    let log = installation.controller_log();
    let line = log[log_from..]
        .lines()
        .find(|line| line.contains("forbidden"))
        .map(str::to_owned);
    let access = tenant.accesses().get_opt("agent").await.unwrap();
    let conditions = access
        .and_then(|access| access.status)
        .unwrap_or_default()
        .conditions;
    let condition = conditions
        .into_iter()
        .find(|condition| condition.reason == Reason::WriteRefused.as_str());
    line.or_else(|| condition.map(|condition| condition.message))
}

/// Lets a new controller live, and returns the first refusal that it meets.
async fn try_to_live(installation: &Installation, tenant: &Tenant) -> Option<String> {
    let client = installation.client();
    let everything = ListParams::default();
    let gone = DeleteParams::default();
    let secrets = Api::<Secret>::namespaced(client.clone(), SYSTEM);
    let _ = secrets.delete(INSTANCE_SECRET, &gone).await;
    let leases = Api::<Lease>::namespaced(client, SYSTEM);
    leases.delete_collection(&gone, &everything).await.unwrap();

    let log_from = installation.controller_log().len();
    let _controller = installation.spawn_controller().unwrap();
    let look = eventually("a refusal", SOON * 2, async || {
        refusal(installation, tenant, log_from).await
    });
    let refusal = tokio::select! {
        refusal = look => Some(refusal),
        () = live(tenant) => refusal(installation, tenant, log_from).await,
    };
    // For the next one there is less to do.
    let _ = tenant.accesses().delete("agent", &gone).await;
    let _ = tenant.providers().delete(&tenant.provider, &gone).await;
    refusal
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_of_its_rights_the_controller_fails() {
    let installation = Installation::start_logging(&[], "info").await.unwrap();
    installation.stop_controller(Signal::SIGKILL).await.unwrap();
    let tenant = || async {
        let tenant = Tenant::names(&installation);
        tenant.create_namespace(true).await;
        tenant.create_master(json!({ "api-key": KEYS[0] })).await;
        tenant
    };
    let roles = Granted::all(&installation, &tenant().await.namespace).await;
    let is_ahead = |right: &Right| AHEAD.contains(&right.name().as_str());
    let named: BTreeSet<_> = roles
        .iter()
        .flat_map(|role| Right::all(&role.rules))
        .map(|right| right.name())
        .collect();
    assert!(AHEAD.iter().all(|name| named.contains(*name)), "{named:?}");

    for role in &roles {
        let (ahead, used): (Vec<_>, Vec<_>) = Right::all(&role.rules).into_iter().partition(is_ahead);
        role.reduce(&used).await;
        for right in ahead {
            role.await_answer(&installation, &right, false).await;
        }
    }
    let seen = try_to_live(&installation, &tenant().await).await;
    assert_eq!(seen, None, "with all rights that it uses");

    let mut superfluous = Vec::new();
    for role in &roles {
        let rights: Vec<_> = Right::all(&role.rules)
            .into_iter()
            .filter(|right| !is_ahead(right))
            .collect();
        for (place, right) in rights.iter().enumerate() {
            let mut others = rights.clone();
            others.remove(place);
            role.reduce(&others).await;
            role.await_answer(&installation, right, false).await;
            let refusal = try_to_live(&installation, &tenant().await).await;
            println!(
                "{} / {}: {}",
                role.name,
                right.name(),
                refusal.as_deref().unwrap_or("NOTHING FAILED")
            );
            if refusal.is_none() {
                superfluous.push(format!("{} of {}", right.name(), role.name));
            }
            role.reduce(&rights).await;
            role.await_answer(&installation, right, true).await;
        }
    }
    assert!(
        superfluous.is_empty(),
        "nothing needed these rights: {superfluous:?}"
    );
}
