//! Everything that plans for one access depend on, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use llmwarden_proto::access::{LLMAccess, LLMAccessStatus};
use llmwarden_proto::delivery::Delivery;
use llmwarden_proto::provider::LLMProvider;
use llmwarden_proto::reason::{ConditionType, Reason};
use serde_json::{Value, json};

use super::{DesiredSecret, Observation, ObservedSecret, Plan, Settings, Write, plan};
use crate::access::pods::Pods;
use crate::conditions;
use crate::index::master::Master;
use crate::index::{Claim, NamespaceLabels};
use crate::inject::select::Scope;
use crate::instance::Instance;

const NOW: &str = "2026-06-01T12:00:00Z";
pub const GRACE: Duration = Duration::from_mins(5);

pub fn settings() -> Settings {
    Settings {
        trusted: vec!["system".to_owned()],
        served: Vec::new(),
        denial_grace: GRACE,
        instance: Instance::new(vec![7; 32]),
        injects: Some(Scope::default()),
    }
}

pub fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of its kind")
}

/// Everything an access depends on, and its Secrets.
#[derive(Clone)]
pub struct World {
    pub now: Timestamp,
    pub access: LLMAccess,
    pub provider: Option<LLMProvider>,
    pub labels: NamespaceLabels,
    pub master: Option<Value>,
    pub others: Vec<Claim>,
    pub secrets: BTreeMap<String, Secret>,
    pub pods: Pods,
    writes: u32,
}

impl World {
    /// Everything in place but the Secrets.
    pub fn new() -> Self {
        Self {
            now: NOW.parse().expect("a time"),
            access: parse(json!({
                "apiVersion": "llmwarden.io/v1alpha1",
                "kind": "LLMAccess",
                "metadata": {
                    "name": "agent", "namespace": "team", "uid": "uid-agent", "generation": 1,
                    "creationTimestamp": "2026-01-02T00:00:00Z",
                },
                "spec": { "providerRef": { "name": "anthropic" }, "secretName": "agent-key" },
            })),
            provider: Some(parse(json!({
                "apiVersion": "llmwarden.io/v1alpha1",
                "kind": "LLMProvider",
                "metadata": { "name": "anthropic" },
                "spec": {
                    "provider": "anthropic",
                    "auth": {
                        "type": "apiKey",
                        "apiKey": { "secretRef": { "name": "master", "namespace": "system", "key": "api-key" } },
                    },
                    "allowedModels": ["claude-a", "claude-b"],
                    "namespaceSelector": { "matchLabels": { "llm": "yes" } },
                },
            }))),
            labels: [("llm".to_owned(), "yes".to_owned())].into(),
            master: Some(json!({ "stringData": { "api-key": "sk-test-1" } })),
            others: Vec::new(),
            secrets: BTreeMap::new(),
            pods: Pods::default(),
            writes: 0,
        }
    }

    /// One that has been provisioned.
    pub fn settled() -> Self {
        let mut world = Self::new();
        world.settle();
        world
    }

    pub fn provider(&mut self) -> &mut LLMProvider {
        self.provider.as_mut().expect("a provider")
    }

    pub fn set_key(&mut self, key: &str) {
        self.master = Some(json!({ "stringData": { "api-key": key } }));
    }

    pub fn observe(&self) -> Observation {
        let master = self.master.clone().map(|value| {
            let mut secret: Secret = parse(value);
            let text = secret.string_data.take().unwrap_or_default();
            secret.data = Some(
                text.into_iter()
                    .map(|(name, value)| (name, k8s_openapi::ByteString(value.into_bytes())))
                    .collect(),
            );
            Arc::new(Master::from(secret))
        });
        let observed = |secret: &Secret| Arc::new(ObservedSecret::from(secret.clone()));
        Observation {
            access: Arc::new(self.access.clone()),
            now: self.now,
            provider: self.provider.clone().map(Arc::new),
            namespace: Some(self.labels.clone()),
            master,
            others: self.others.clone(),
            pods: self.pods.clone(),
            secrets: self
                .secrets
                .iter()
                .map(|(name, secret)| (name.clone(), observed(secret)))
                .collect(),
        }
    }

    pub fn plan(&self) -> Plan {
        plan(&self.observe(), &settings()).expect("a plan")
    }

    fn store(&mut self, desired: &DesiredSecret, uid: Option<&str>) {
        self.writes += 1;
        let mut secret = desired.object(&self.access);
        secret.metadata.uid = Some(uid.map_or_else(|| format!("uid-{}", self.writes), str::to_owned));
        secret.metadata.resource_version = Some(self.writes.to_string());
        self.secrets.insert(desired.name.clone(), secret);
    }

    /// Carries out the first `steps` API writes of a plan: of each Secret (two for one that is recreated), and of the
    /// status at the end. Says whether all of it was done.
    pub fn apply(&mut self, plan: &Plan, mut steps: usize) -> bool {
        let mut step = || {
            let left = steps > 0;
            steps = steps.saturating_sub(1);
            left
        };
        for write in &plan.writes {
            if !step() {
                return false;
            }
            match write {
                Write::Create(desired) => {
                    assert!(
                        !self.secrets.contains_key(&desired.name),
                        "{} exists",
                        desired.name
                    );
                    self.store(desired, None);
                }
                Write::Replace(desired, present) => self.store(desired, Some(&present.uid)),
                Write::Recreate(desired, present) => {
                    self.secrets.remove(&present.name);
                    if !step() {
                        return false;
                    }
                    self.store(desired, None);
                }
                Write::Delete(present) => {
                    self.secrets.remove(&present.name);
                }
            }
        }
        if step() {
            self.access.status = Some(plan.status.clone());
            true
        } else {
            false
        }
    }

    /// Passes until nothing is left to do; the events of all of them.
    pub fn settle(&mut self) -> Vec<Reason> {
        let mut events = Vec::new();
        for _ in 0..5 {
            let plan = self.plan();
            events.extend(plan.events.iter().map(|event| event.reason));
            let settled = plan.writes.is_empty() && self.access.status.as_ref() == Some(&plan.status);
            if settled {
                return events;
            }
            self.apply(&plan, usize::MAX);
        }
        panic!("does not settle: {:?}", self.plan());
    }

    pub fn status(&self) -> LLMAccessStatus {
        self.access.status.clone().unwrap_or_default()
    }

    pub fn document(&self) -> Delivery {
        parse(
            serde_json::from_slice(
                &self.secrets["agent.llmwarden"].data.as_ref().expect("data")["live.json"].0,
            )
            .expect("JSON"),
        )
    }

    pub fn value(&self, secret: &str, key: &str) -> Option<String> {
        let value = self.secrets.get(secret)?.data.as_ref()?.get(key)?;
        Some(String::from_utf8_lossy(&value.0).into_owned())
    }

    /// Reason and status of the Ready condition.
    pub fn ready(&self) -> (String, String) {
        let status = self.status();
        let ready = conditions::find(&status.conditions, ConditionType::Ready).expect("Ready");
        (ready.status.clone(), ready.reason.clone())
    }

    pub fn secret(&mut self, name: &str) -> &mut Secret {
        self.secrets.get_mut(name).expect("a Secret")
    }

    pub fn remove_secret(&mut self, name: &str) {
        self.secrets.remove(name).expect("a Secret");
    }

    pub fn remove_value(&mut self, secret: &str, key: &str) {
        let data = self.secret(secret).data.as_mut().expect("data");
        data.remove(key).expect("a value");
    }

    pub fn rename(&mut self, secret_name: &str) {
        secret_name.clone_into(&mut self.access.spec.secret_name);
    }

    pub fn claim(name: &str, secret_name: &str, created: &str) -> Claim {
        Claim {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            created: Some(created.parse().expect("a time")),
            secret_name: secret_name.to_owned(),
            provider: "anthropic".to_owned(),
        }
    }

    pub fn foreign(&mut self, name: &str, annotations: &Value) {
        let secret = json!({
            "metadata": { "name": name, "uid": "uid-foreign", "resourceVersion": "1", "annotations": annotations },
            "type": "Opaque",
            "data": { "theirs": "eA==" },
        });
        self.secrets.insert(name.to_owned(), parse(secret));
    }
}
