//! What happens to accesses while controllers are killed.

use llmwarden_proto::access::Trigger;
use llmwarden_proto::names::{ADOPT_ANNOTATION, ROTATE_ANNOTATION};
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::api_proxy::Call;
use llmwarden_tests::eventually;
use llmwarden_tests::installation::ENABLED_LABEL;
use serde_json::json;

use crate::conflicts::{create_foreign, delete_secret};
use crate::support::{SOON, Tenant, patch};

const KEY: &str = "sk-test-crash-1";
const NEW_KEY: &str = "sk-test-crash-2";

/// What happens to an access. The controller's grace is long where the key has to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Provision,
    Rotate,
    RotateNow,
    RotateWithout,
    Settings,
    Withdraw,
    AllowAfterWithdrawal,
    Deny,
    AllowInTime,
    Adopt,
    Rename,
    RestoreApplication,
    RestoreCompanion,
    RecreateApplication,
    RecreateCompanion,
    Provider,
}

/// What has to come of a change.
pub struct Expected {
    pub ready: (&'static str, Reason),
    /// Of those, the last ones are told after everything else.
    pub events: &'static [Reason],
    pub secrets: &'static [&'static str],
    pub newest: Option<Trigger>,
}

impl Change {
    pub const ALL: [Self; 16] = [
        Self::Provision,
        Self::Rotate,
        Self::RotateNow,
        Self::RotateWithout,
        Self::Settings,
        Self::Withdraw,
        Self::AllowAfterWithdrawal,
        Self::Deny,
        Self::AllowInTime,
        Self::Adopt,
        Self::Rename,
        Self::RestoreApplication,
        Self::RestoreCompanion,
        Self::RecreateApplication,
        Self::RecreateCompanion,
        Self::Provider,
    ];

    /// Makes what stands before the change.
    pub async fn prepare(self, tenant: &Tenant) {
        tenant.create_namespace(true).await;
        tenant.create_master(json!({ "api-key": KEY })).await;
        tenant.create_provider(json!({})).await;
        match self {
            Self::Provision => return,
            Self::Adopt => {
                create_foreign(tenant, "agent-key").await;
                tenant.create_access("agent", json!({})).await;
                tenant.await_refusal("agent", Reason::SecretConflict).await;
                return;
            }
            Self::Provider => {
                eventually("the provider's status", SOON, async || {
                    provider_ready(tenant).await.0 == "True"
                })
                .await;
                return;
            }
            _ => {}
        }
        tenant.create_access("agent", json!({})).await;
        tenant.await_ready("agent").await;
        if let Self::AllowAfterWithdrawal | Self::AllowInTime = self {
            label(tenant, false).await;
            let kept = if self == Self::AllowInTime {
                ("True", Reason::Provisioned)
            } else {
                ("False", Reason::NamespaceNotAllowed)
            };
            tenant.await_refusal("agent", Reason::NamespaceNotAllowed).await;
            let kind = ConditionType::CredentialProvisioned;
            tenant.await_condition("agent", kind, kept.0, kept.1).await;
        }
    }

    /// Makes the change.
    pub async fn make(self, tenant: &Tenant) {
        let secrets = tenant.secrets();
        match self {
            Self::Provision => drop(tenant.create_access("agent", json!({})).await),
            Self::Rotate => tenant.set_master(NEW_KEY).await,
            Self::RotateNow => {
                tenant.set_master(NEW_KEY).await;
                request_rotation(tenant).await;
            }
            Self::RotateWithout => request_rotation(tenant).await,
            Self::Settings => {
                let spec = json!({ "spec": { "endpoint": { "baseURL": "https://gateway.example/v1" } } });
                patch(&tenant.providers(), &tenant.provider, spec).await;
            }
            Self::Withdraw | Self::Deny => label(tenant, false).await,
            Self::AllowAfterWithdrawal | Self::AllowInTime => label(tenant, true).await,
            Self::Adopt => {
                let ours = json!({ "metadata": { "annotations": { ADOPT_ANNOTATION: "agent" } } });
                patch(&secrets, "agent-key", ours).await;
            }
            Self::Rename => {
                let renamed = json!({ "spec": { "secretName": "renamed" } });
                tenant.patch_access("agent", renamed).await;
            }
            Self::RestoreApplication => {
                let theirs = json!({ "stringData": { "apiKey": "theirs" } });
                patch(&secrets, "agent-key", theirs).await;
            }
            Self::RestoreCompanion => delete_secret(tenant, "agent.llmwarden").await,
            Self::RecreateApplication | Self::RecreateCompanion => {
                let name = if self == Self::RecreateApplication {
                    "agent-key"
                } else {
                    "agent.llmwarden"
                };
                patch(&secrets, name, json!({ "immutable": true })).await;
            }
            Self::Provider => tenant.set_master("").await,
        }
    }

    /// What has to come of it.
    pub fn expected(self) -> Expected {
        let usual = Expected {
            ready: ("True", Reason::Provisioned),
            events: &[],
            secrets: &["agent-key", "agent.llmwarden"],
            newest: Some(Trigger::Provisioned),
        };
        match self {
            Self::Provision | Self::AllowInTime | Self::AllowAfterWithdrawal => Expected {
                events: &[Reason::Provisioned],
                ..usual
            },
            Self::Rotate | Self::RotateNow => Expected {
                events: &[Reason::Rotated],
                newest: Some(Trigger::MasterChanged),
                ..usual
            },
            Self::RotateWithout => Expected {
                events: &[Reason::NothingToRotate],
                ..usual
            },
            Self::Settings => Expected {
                events: &[Reason::SettingsChanged],
                newest: Some(Trigger::SettingsChanged),
                ..usual
            },
            Self::Withdraw => Expected {
                ready: ("False", Reason::NamespaceNotAllowed),
                events: &[Reason::NamespaceNotAllowed, Reason::Withdrawn],
                secrets: &["agent.llmwarden"],
                newest: Some(Trigger::Withdrawn),
            },
            Self::Deny => Expected {
                ready: ("False", Reason::NamespaceNotAllowed),
                events: &[Reason::NamespaceNotAllowed],
                ..usual
            },
            Self::Adopt => Expected {
                events: &[Reason::Adopted, Reason::Provisioned],
                ..usual
            },
            Self::Rename => Expected {
                events: &[Reason::SecretRemoved],
                secrets: &["agent.llmwarden", "renamed"],
                ..usual
            },
            Self::RestoreApplication => Expected {
                events: &[Reason::Restored],
                ..usual
            },
            Self::RestoreCompanion => Expected {
                events: &[Reason::Restored],
                newest: Some(Trigger::Restored),
                ..usual
            },
            Self::RecreateApplication | Self::RecreateCompanion => Expected {
                events: &[Reason::ImmutableSecretRecreated],
                ..usual
            },
            Self::Provider => Expected {
                ready: ("False", Reason::MasterKeyEmpty),
                secrets: &[],
                newest: None,
                ..usual
            },
        }
    }

    /// Nothing records what these are about but what was written: a crash after that swallows them.
    pub fn may_lose(self, reason: Reason) -> bool {
        matches!(
            (self, reason),
            (Self::Adopt, Reason::Adopted)
                | (Self::RestoreApplication, Reason::Restored)
                | (Self::RotateWithout, Reason::NothingToRotate)
        )
    }

    /// Whether a request is one of the writes that the change leads to.
    pub fn is_of(self, call: &Call, tenant: &str) -> bool {
        call.is_write()
            && if self == Self::Provider {
                call.resource == "llmproviders/status" && call.name == format!("{tenant}-provider")
            } else {
                call.namespace == tenant
            }
    }
}

async fn label(tenant: &Tenant, enabled: bool) {
    let value = enabled.then_some("true");
    let labels = json!({ "metadata": { "labels": { ENABLED_LABEL: value } } });
    patch(&tenant.namespaces(), &tenant.namespace, labels).await;
}

async fn request_rotation(tenant: &Tenant) {
    let request = json!({ "metadata": { "annotations": { ROTATE_ANNOTATION: "now" } } });
    tenant.patch_access("agent", request).await;
}

/// Status and reason of the provider's Ready condition.
pub async fn provider_ready(tenant: &Tenant) -> (String, String) {
    let provider = tenant.providers().get(&tenant.provider).await.unwrap();
    let conditions = provider.status.unwrap_or_default().conditions;
    let ready = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready");
    ready
        .map(|ready| (ready.status, ready.reason))
        .unwrap_or_default()
}
