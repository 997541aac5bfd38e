//! What the modules share: a tenant of the installation, with names that no other test uses.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::provider::LLMProvider;
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::installation::{ENABLED_LABEL, SYSTEM};
use llmwarden_tests::{Installation, eventually};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// More than anything takes, on a machine that runs everything else at the same time.
pub const SOON: Duration = Duration::from_mins(1);

/// A namespace, a provider for it, and the provider's master Secret.
pub struct Tenant {
    client: Client,
    pub namespace: String,
    pub provider: String,
    pub master: String,
}

impl Tenant {
    /// With everything in place: `key` is the master key.
    pub async fn new(installation: &Installation, key: &str) -> Self {
        let tenant = Self::names(installation);
        tenant.create_namespace(true).await;
        tenant.create_master(json!({ "api-key": key })).await;
        tenant.create_provider(json!({})).await;
        tenant
    }

    /// The names alone: nothing is made yet.
    pub fn names(installation: &Installation) -> Self {
        let name = Installation::unique("tenant");
        Self {
            client: installation.client(),
            provider: format!("{name}-provider"),
            master: format!("{name}-master"),
            namespace: name,
        }
    }

    /// The same, seen and changed by somebody else.
    pub fn with_client(&self, client: Client) -> Self {
        Self {
            client,
            namespace: self.namespace.clone(),
            provider: self.provider.clone(),
            master: self.master.clone(),
        }
    }

    /// Makes the namespace, with the label that the provider asks for if `enabled`.
    pub async fn create_namespace(&self, enabled: bool) {
        let labels = if enabled {
            json!({ ENABLED_LABEL: "true" })
        } else {
            json!({})
        };
        let namespace = object(json!({ "metadata": { "name": self.namespace, "labels": labels } }));
        create(&Api::<Namespace>::all(self.client.clone()), &namespace).await;
    }

    /// Makes the master Secret, with these data.
    pub async fn create_master(&self, data: Value) {
        let secret = object(json!({ "metadata": { "name": self.master }, "stringData": data }));
        create(&self.masters(), &secret).await;
    }

    /// Makes the master Secret in another namespace than the controller's.
    pub async fn create_master_in(&self, namespace: &str, key: &str) {
        let secret = object(json!({ "metadata": { "name": self.master }, "stringData": { "api-key": key } }));
        create(
            &Api::<Secret>::namespaced(self.client.clone(), namespace),
            &secret,
        )
        .await;
    }

    /// Puts `key` into the master Secret.
    pub async fn set_master(&self, key: &str) {
        patch(
            &self.masters(),
            &self.master,
            json!({ "stringData": { "api-key": key } }),
        )
        .await;
    }

    /// Makes the provider: the guide's, changed as the merge patch `spec` says.
    pub async fn create_provider(&self, spec: Value) -> LLMProvider {
        let mut provider = json!({
            "apiVersion": "llmwarden.io/v1alpha1",
            "kind": "LLMProvider",
            "metadata": { "name": self.provider },
            "spec": {
                "provider": "anthropic",
                "auth": {
                    "type": "apiKey",
                    "apiKey": {
                        "secretRef": { "name": self.master, "namespace": SYSTEM, "key": "api-key" },
                        "rotation": { "enabled": true, "interval": "30d" },
                    },
                },
                "allowedModels": ["claude-opus-4-6", "claude-sonnet-4-6"],
                "namespaceSelector": { "matchLabels": { ENABLED_LABEL: "true" } },
            },
        });
        merge(&mut provider["spec"], spec);
        create(&self.providers(), &object(provider)).await
    }

    /// Makes an access with the Secret `<name>-key`, changed as the merge patch `spec` says.
    pub async fn create_access(&self, name: &str, spec: Value) -> LLMAccess {
        let mut access = json!({
            "apiVersion": "llmwarden.io/v1alpha1",
            "kind": "LLMAccess",
            "metadata": { "name": name },
            "spec": {
                "providerRef": { "name": self.provider },
                "models": ["claude-sonnet-4-6"],
                "secretName": format!("{name}-key"),
                "injection": { "env": [{ "name": "ANTHROPIC_API_KEY", "secretKey": "apiKey" }] },
            },
        });
        merge(&mut access["spec"], spec);
        create(&self.accesses(), &object(access)).await
    }

    /// Changes the access as the merge patch says.
    pub async fn patch_access(&self, name: &str, change: Value) -> LLMAccess {
        patch(&self.accesses(), name, change).await
    }

    /// Waits until a condition of an access has this status and reason.
    pub async fn await_condition(
        &self,
        access: &str,
        kind: ConditionType,
        status: &str,
        reason: Reason,
    ) -> Condition {
        let what = format!(
            "{kind}={status} ({reason}) of LLMAccess {}/{access}",
            self.namespace
        );
        eventually(&what, SOON, async || {
            let status_seen = self.access(access).await.status.unwrap_or_default();
            let found = status_seen.conditions.iter().find(|condition| {
                condition.type_ == kind.as_str()
                    && condition.status == status
                    && condition.reason == reason.as_str()
            });
            found
                .cloned()
                .ok_or_else(|| format!("{:?}", status_seen.conditions))
        })
        .await
    }

    /// Waits until an access is ready, and returns it.
    pub async fn await_ready(&self, access: &str) -> LLMAccess {
        self.await_condition(access, ConditionType::Ready, "True", Reason::Provisioned)
            .await;
        self.access(access).await
    }

    /// Waits until an access is not ready for this reason, and returns the message.
    pub async fn await_refusal(&self, access: &str, reason: Reason) -> String {
        self.await_condition(access, ConditionType::Ready, "False", reason)
            .await
            .message
    }

    /// Lets the controller look at an access again by changing its selector, on which no Secret depends, and waits
    /// until it has done so twice: passes over one access follow each other, so the first is over then, its events
    /// included.
    pub async fn touch(&self, access: &str) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..2 {
            let count = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
            let selector = json!({ "matchLabels": { "touched": count } });
            let touched = self
                .patch_access(access, json!({ "spec": { "workloadSelector": selector } }))
                .await;
            self.await_observed(&touched).await;
        }
    }

    /// Waits until the status speaks of this generation of an access, or a later one.
    pub async fn await_observed(&self, access: &LLMAccess) {
        let generation = access.metadata.generation;
        eventually("a pass over the change", SOON, async || {
            let observed = self
                .access(&access.name_any())
                .await
                .status
                .and_then(|status| status.observed_generation);
            if observed >= generation {
                Ok(())
            } else {
                Err(format!("{observed:?} instead of {generation:?}"))
            }
        })
        .await;
    }

    /// How often an event was published for an access, repetitions that were folded into one object included.
    pub async fn occurrences(&self, access: &str, reason: Reason) -> i32 {
        self.events(access, reason)
            .await
            .iter()
            .map(|event| event.series.as_ref().map_or(1, |series| series.count))
            .sum()
    }

    /// The events of an access with this reason.
    pub async fn events(&self, access: &str, reason: Reason) -> Vec<Event> {
        let all = Api::<Event>::namespaced(self.client.clone(), &self.namespace)
            .list(&ListParams::default())
            .await
            .unwrap();
        all.into_iter()
            .filter(|event| event.reason.as_deref() == Some(reason.as_str()))
            .filter(|event| {
                event
                    .regarding
                    .as_ref()
                    .is_some_and(|object| object.name.as_deref() == Some(access))
            })
            .collect()
    }

    /// An access.
    pub async fn access(&self, name: &str) -> LLMAccess {
        self.accesses().get(name).await.unwrap()
    }

    /// A Secret of the namespace.
    pub async fn secret(&self, name: &str) -> Secret {
        self.secrets().get(name).await.unwrap()
    }

    /// The names of all Secrets of the namespace.
    pub async fn secret_names(&self) -> Vec<String> {
        let all = self.secrets().list(&ListParams::default()).await.unwrap();
        all.iter().map(ResourceExt::name_any).collect()
    }

    pub fn accesses(&self) -> Api<LLMAccess> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn providers(&self) -> Api<LLMProvider> {
        Api::all(self.client.clone())
    }

    pub fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }

    /// The Secrets of the controller's namespace.
    pub fn masters(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), SYSTEM)
    }
}

/// A value of a Secret, as text.
pub fn value(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    String::from_utf8(bytes.unwrap_or_else(|| panic!("no {key}")).0.clone()).unwrap()
}

/// A typed object from JSON.
pub fn object<K: DeserializeOwned>(json: Value) -> K {
    serde_json::from_value(json).unwrap()
}

/// Creates an object.
pub async fn create<K>(api: &Api<K>, object: &K) -> K
where
    K: kube::Resource + Clone + Debug + serde::Serialize + DeserializeOwned,
{
    api.create(&PostParams::default(), object).await.unwrap()
}

/// Changes an object as a merge patch says.
pub async fn patch<K: Clone + Debug + DeserializeOwned>(api: &Api<K>, name: &str, change: Value) -> K {
    api.patch(name, &PatchParams::default(), &Patch::Merge(change))
        .await
        .unwrap()
}

/// Applies a merge patch.
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(&key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

/// Makes kagent's Agents known to the API server, any of them: this is no test of kagent.
pub async fn install_kagent(installation: &Installation) {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let definition: CustomResourceDefinition = object(json!({
        "metadata": { "name": "agents.kagent.dev" },
        "spec": {
            "group": "kagent.dev",
            "names": { "kind": "Agent", "plural": "agents", "singular": "agent", "listKind": "AgentList" },
            "scope": "Namespaced",
            "versions": [{ "name": "v1alpha2", "served": true, "storage": true, "schema": { "openAPIV3Schema": any } }],
        },
    }));
    let definitions = Api::<CustomResourceDefinition>::all(installation.client());
    create(&definitions, &definition).await;
    await_condition(definitions, "agents.kagent.dev", conditions::is_crd_established())
        .await
        .unwrap();
}
