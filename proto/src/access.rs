//! `LLMAccess`: what an agent team asks for.

use k8s_openapi::api::core::v1::LocalObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names;

/// How many entries of `status.history` are kept.
pub const HISTORY_LIMIT: usize = 10;

/// A request for a provider's key in a namespace.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "llmwarden.io",
    version = "v1alpha1",
    kind = "LLMAccess",
    plural = "llmaccesses",
    shortname = "llma",
    namespaced,
    status = "LLMAccessStatus",
    derive = "PartialEq",
    doc = "A request for an LLM provider's key in this namespace: which provider, which models, which Secret, which pods.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Provisioned","type":"string","jsonPath":".status.conditions[?(@.type==\"CredentialProvisioned\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Provider","type":"string","priority":1,"jsonPath":".spec.providerRef.name"}"#,
    printcolumn = r#"{"name":"Secret","type":"string","priority":1,"jsonPath":".spec.secretName"}"#,
    printcolumn = r#"{"name":"Version","type":"integer","priority":1,"jsonPath":".status.credentialVersion"}"#,
    printcolumn = r#"{"name":"Last-Rotation","type":"date","priority":1,"jsonPath":".status.lastRotation"}"#,
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("metadata.name must have at most 63 characters: choose a shorter name"),
    validation = Rule::new("!(self.metadata.name in ['token', 'auth-header', 'llmwarden.sock'])")
        .message("metadata.name must not be token, auth-header or llmwarden.sock: these are files of the sidecar, choose another name"),
    validation = Rule::new("self.spec.secretName != self.metadata.name + '.llmwarden'")
        .message("spec.secretName must not be the companion's name (<metadata.name>.llmwarden): choose a name that does not end in .llmwarden")
)]
#[serde(rename_all = "camelCase")]
pub struct LLMAccessSpec {
    /// The provider; cannot be changed.
    pub provider_ref: ProviderRef,
    /// Models that are needed: exact names, or a prefix and a final `*`. Empty means the provider's whole list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub models: Vec<String>,
    /// The Secret that applications reference. llmwarden makes it.
    #[schemars(length(max = 253))]
    #[x_kube(
        validation = Rule::new("self != ''").message("spec.secretName must not be empty: write the name of the Secret that llmwarden should make"),
        validation = Rule::new("self == '' || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')")
            .message("spec.secretName must be a Secret's name: lower-case letters, digits, '-' and '.', such as kagent-anthropic"),
        validation = Rule::new("self.size() <= 243").message("spec.secretName must have at most 243 characters: choose a shorter name"),
        validation = Rule::new("!self.endsWith('.llmwarden')").message("spec.secretName must not end in .llmwarden: such names are the companions', choose another")
    )]
    pub secret_name: String,
    /// Pods that get the sidecar, by their labels. Absent means none, `{}` all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<LabelSelector>,
    /// What the pods' containers get on top of the sidecar.
    #[serde(default)]
    pub injection: Injection,
    /// Tightens the provider's rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<AccessRotation>,
}

/// Names a provider.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderRef {
    /// Name of the `LLMProvider`.
    #[schemars(length(max = 253))]
    #[x_kube(
        validation = Rule::new("self != ''").message("spec.providerRef.name must not be empty: write the name of an LLMProvider"),
        validation = Rule::new("self == oldSelf").message("spec.providerRef.name cannot be changed: delete the LLMAccess and make another for the other provider")
    )]
    pub name: String,
}

/// What the containers of selected pods get.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injection {
    /// Environment variables that hold the key. They are read once, when the container starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.all(entry, self.exists_one(other, other.name == entry.name))")
        .message("injection.env has the same name twice: keep one entry for each environment variable"))]
    pub env: Vec<EnvVar>,
    /// A directory with the key, kept up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// The localhost proxy: the containers hold a placeholder, never the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
}

/// An environment variable.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Its name.
    #[schemars(length(max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z_][A-Za-z0-9_]*$')")
            .message("injection.env[].name must be an environment variable's name: letters, digits and '_', such as ANTHROPIC_API_KEY"),
        validation = Rule::new("self != 'PATH' && !self.startsWith('LD_') && !self.startsWith('KUBERNETES_')")
            .message("injection.env[].name must not be PATH, LD_* or KUBERNETES_*: these change how the container runs, choose another name")
    )]
    pub name: String,
    /// The data key of `secretName` that it is read from; llmwarden puts the key there.
    #[schemars(length(max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$') && self != '.' && !self.startsWith('..')")
            .message("injection.env[].secretKey must be a Secret's data key: letters, digits, '-', '_' and '.', such as apiKey"),
        validation = Rule::new("self != 'baseUrl'")
            .message("injection.env[].secretKey must not be baseUrl: that holds the provider's URL, write apiKey or a name of your own")
    )]
    pub secret_key: String,
}

/// A directory with the key.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Where it is mounted.
    #[schemars(length(max = 512))]
    #[x_kube(
        validation = Rule::new("self.startsWith('/')").message("injection.volume.mountPath must be absolute: begin it with /"),
        validation = Rule::new("!self.matches('^/+$')").message("injection.volume.mountPath must not be /: name a directory such as /etc/llm"),
        validation = Rule::new("!self.split('/').exists(part, part == '.' || part == '..') && !self.contains(':')")
            .message("injection.volume.mountPath must not contain '.' or '..' as a part, or ':': name a plain directory such as /etc/llm"),
        validation = Rule::new("!self.matches('^/+(var/+)?run/+(llmwarden|secrets)(/|$)')")
            .message("injection.volume.mountPath must not be under /var/run/llmwarden or /var/run/secrets: choose another directory such as /etc/llm")
    )]
    pub mount_path: String,
    /// Whether the mount is read-only, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

/// The localhost proxy.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {}

/// Tightens the provider's rotation.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRotation {
    /// How long a key is used, such as `7d` or `24h`; counts where it is shorter than the provider's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,4}[dhm]$')")
        .message("rotation.interval must be a whole number above 0 and a unit: write 30d, 12h or 45m"))]
    pub interval: Option<String>,
}

impl LLMAccess {
    /// Name of the companion Secret.
    pub fn companion_name(&self) -> String {
        names::companion(self.metadata.name.as_deref().unwrap_or_default())
    }
}

/// What the controller observed of an access, and did for it.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LLMAccessStatus {
    /// See [`crate::reason::ConditionType`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The Secret that applications reference, once made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalObjectReference>,
    /// Version of what the companion holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_version: Option<i64>,
    /// When the key last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rotation: Option<Time>,
    /// When the key should change next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_rotation: Option<Time>,
    /// When the key will be, or was, withdrawn; only while the access is not allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdraw_at: Option<Time>,
    /// Models that the access may use; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub provisioned_models: Vec<String>,
    /// The generation that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How far the version has come; only while pods have the sidecar for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationStatus>,
    /// The last versions, newest first, [`HISTORY_LIMIT`] at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
}

/// How far a version has come.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationStatus {
    /// Pods whose sidecar delivers this access.
    pub pods: PodCount,
}

/// A count of running pods.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCount {
    /// How many of them have said that they deliver the version.
    pub delivered: i64,
    /// How many there are.
    pub total: i64,
}

/// One version of a credential.
#[derive(JsonSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The version.
    pub version: i64,
    /// When it was made.
    pub time: Time,
    /// Why it was made.
    #[schemars(with = "String")]
    pub trigger: Trigger,
    /// Tells keys apart without telling anything about them; absent when there is no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// When the key was revoked at the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
}

/// Why a version was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trigger {
    /// The first key, or the first after a withdrawal.
    Provisioned,
    /// The master key changed.
    MasterChanged,
    /// The provider's or the access's settings changed, the key did not.
    SettingsChanged,
    /// The companion had been edited or deleted.
    Restored,
    /// The access is no longer allowed.
    Withdrawn,
    /// What a later version came up with, before this one came back.
    #[serde(untagged)]
    Other(String),
}
