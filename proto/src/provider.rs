//! `LLMProvider`: what the platform team declares.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::Injection;
use crate::profile::ProviderKind;

/// An LLM provider: which one, where its master or admin key lives, which models and which namespaces.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "llmwarden.io",
    version = "v1alpha1",
    kind = "LLMProvider",
    plural = "llmproviders",
    shortname = "llmp",
    status = "LLMProviderStatus",
    derive = "PartialEq",
    doc = "An LLM provider that namespaces may use: where its master key lives, which models, which namespaces.",
    printcolumn = r#"{"name":"Provider","type":"string","jsonPath":".spec.provider"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Accesses","type":"integer","jsonPath":".status.accessCount"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#
)]
#[x_kube(validation = Rule::new("!(self.provider in ['aws-bedrock', 'gcp-vertexai']) || !has(self.proxy) || self.proxy != 'Required'")
    .message("spec.proxy Required is not possible for aws-bedrock and gcp-vertexai, whose SDKs insist on https: write Optional"))]
#[serde(rename_all = "camelCase")]
pub struct LLMProviderSpec {
    /// Which provider this is.
    pub provider: ProviderKind,
    /// How llmwarden gets a key for it.
    pub auth: Auth,
    /// Models that may be asked for: exact names, or a prefix and a final `*`. Empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub allowed_models: Vec<String>,
    /// Namespaces that may use the provider, by their labels. Absent or empty means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Limits, accepted but not enforced yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Where and how the provider is called, if not at its public address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Whether every access of the provider is in proxy mode, so that no agent ever holds its key.
    #[serde(default, skip_serializing_if = "ProxyPolicy::is_optional")]
    pub proxy: ProxyPolicy,
}

/// Whether agents may hold the provider's key.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyPolicy {
    /// Each access decides.
    #[default]
    Optional,
    /// Every access is in proxy mode.
    Required,
}

impl ProxyPolicy {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
    fn is_optional(&self) -> bool {
        *self == Self::Optional
    }
}

/// How llmwarden gets a key.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.type != 'apiKey' || has(self.apiKey)")
        .message("auth.apiKey is missing: auth.type apiKey needs it, with secretRef.name, secretRef.namespace and secretRef.key"),
    validation = Rule::new("self.type != 'externalSecret' || has(self.externalSecret)")
        .message("auth.externalSecret is missing: auth.type externalSecret needs it, with store and remoteRef"),
    validation = Rule::new("self.type != 'workloadIdentity' || has(self.workloadIdentity)")
        .message("auth.workloadIdentity is missing: auth.type workloadIdentity needs it, with one of aws, azure, gcp, openai, anthropic")
)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// Which of the sections below is used.
    #[serde(rename = "type")]
    pub kind: AuthType,
    /// A key in a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<ApiKeyAuth>,
    /// A key that the External Secrets Operator brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_secret: Option<ExternalSecretAuth>,
    /// Short-lived credentials from a workload identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_identity: Option<WorkloadIdentityAuth>,
}

/// A way to get a key.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AuthType {
    /// A key in a Secret.
    ApiKey,
    /// A key that the External Secrets Operator brings.
    ExternalSecret,
    /// Short-lived credentials from a workload identity.
    WorkloadIdentity,
}

/// A key in a Secret: handed out as it is, or, with an issuer, an admin key that mints keys.
#[derive(JsonSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyAuth {
    /// Where the master key lives.
    pub secret_ref: SecretRef,
    /// How often the key is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// Who mints keys; absent, the master key itself is handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Issuer>,
}

/// A key of a Secret.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace: the controller's own, or one it was told to trust.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The data key that holds the master key.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// When and how a key is replaced.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// Whether the interval counts.
    #[serde(default)]
    pub enabled: bool,
    /// How long a key is used, such as `30d`, `12h` or `45m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,4}[dhm]$')")
        .message("rotation.interval must be a whole number above 0 and a unit: write 30d, 12h or 45m"))]
    pub interval: Option<String>,
    /// Who makes the new key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<RotationStrategy>,
    /// How long the old key stays valid beside the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,4}[dhm]$')")
        .message("rotation.overlap must be a whole number above 0 and a unit: write 1d, 12h or 45m"))]
    pub overlap: Option<String>,
    /// After how long the old key is revoked even if not every consumer has confirmed the new one. Absent means never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,4}[dhm]$')")
        .message("rotation.revokeDeadline must be a whole number above 0 and a unit: write 7d, 12h or 45m"))]
    pub revoke_deadline: Option<String>,
}

/// Who makes a new key.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RotationStrategy {
    /// The issuer mints it.
    ProviderAPI,
    /// Somebody replaces the master key.
    RecreateSecret,
}

/// Who mints and revokes keys: exactly one.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.openai), has(self.openrouter), has(self.litellm), has(self.anthropic), has(self.webhook)].filter(present, present).size() == 1")
    .message("auth.apiKey.issuer takes exactly one of openai, openrouter, litellm, anthropic, webhook: keep one and remove the others"))]
#[serde(rename_all = "camelCase")]
pub struct Issuer {
    /// `OpenAI`'s admin API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openai: Option<OpenaiIssuer>,
    /// `OpenRouter`'s key API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openrouter: Option<OpenrouterIssuer>,
    /// A `LiteLLM` proxy's key API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub litellm: Option<LitellmIssuer>,
    /// Anthropic's admin API, which can disable keys but not make them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anthropic: Option<AnthropicIssuer>,
    /// A service of the platform team's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookIssuer>,
}

/// Keys of a service account of an `OpenAI` project.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenaiIssuer {
    /// The project, `proj_…`.
    #[schemars(length(min = 1, max = 128))]
    pub project_id: String,
}

/// Keys of an `OpenRouter` account.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenrouterIssuer {}

/// Keys of a `LiteLLM` proxy, at `endpoint.baseURL`.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LitellmIssuer {}

/// Anthropic's admin API.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnthropicIssuer {}

/// A service that mints and revokes keys.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookIssuer {
    /// Its address, https.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
}

/// A key that the External Secrets Operator brings.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalSecretAuth {
    /// The store it comes from.
    pub store: StoreRef,
    /// Where it is in the store.
    pub remote_ref: RemoteRef,
    /// How often the store is asked, such as `1h`, `15m` or `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,4}[dhms]$')")
        .message("externalSecret.refreshInterval must be a whole number above 0 and a unit: write 1h, 15m or 30s"))]
    pub refresh_interval: Option<String>,
}

/// A store of the External Secrets Operator.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its kind.
    pub kind: StoreKind,
}

/// Kind of a store.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreKind {
    /// In one namespace.
    SecretStore,
    /// For the cluster.
    ClusterSecretStore,
}

/// An entry of a store.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteRef {
    /// Its key or path.
    #[schemars(length(min = 1, max = 1024))]
    pub key: String,
    /// A property within it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub property: Option<String>,
}

/// Short-lived credentials: exactly one source.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.aws), has(self.azure), has(self.gcp), has(self.openai), has(self.anthropic)].filter(present, present).size() == 1")
    .message("auth.workloadIdentity takes exactly one of aws, azure, gcp, openai, anthropic: keep one and remove the others"))]
pub struct WorkloadIdentityAuth {
    /// An AWS role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsIdentity>,
    /// An Azure application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure: Option<AzureIdentity>,
    /// A Google Cloud service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gcp: Option<GcpIdentity>,
    /// An `OpenAI` identity provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openai: Option<OpenaiIdentity>,
    /// An Anthropic federation rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anthropic: Option<AnthropicIdentity>,
}

/// An AWS role.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwsIdentity {
    /// ARN of the role.
    #[schemars(length(min = 1, max = 2048))]
    pub role_arn: String,
    /// Region of the service.
    #[schemars(length(min = 1, max = 64))]
    pub region: String,
}

/// An Azure application.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AzureIdentity {
    /// Client id.
    #[schemars(length(min = 1, max = 64))]
    pub client_id: String,
    /// Tenant id.
    #[schemars(length(min = 1, max = 64))]
    pub tenant_id: String,
    /// Resource id of a user-assigned managed identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub managed_identity_resource_id: Option<String>,
}

/// A Google Cloud service account.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcpIdentity {
    /// Email of the service account.
    #[schemars(length(min = 1, max = 256))]
    pub service_account_email: String,
    /// The project.
    #[schemars(length(min = 1, max = 128))]
    pub project_id: String,
}

/// An `OpenAI` identity provider.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenaiIdentity {
    /// Id of the identity provider.
    #[schemars(length(min = 1, max = 128))]
    pub identity_provider_id: String,
    /// Id of the service account.
    #[schemars(length(min = 1, max = 128))]
    pub service_account_id: String,
}

/// An Anthropic federation rule.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnthropicIdentity {
    /// Id of the rule.
    #[schemars(length(min = 1, max = 128))]
    pub federation_rule_id: String,
    /// Id of the organization.
    #[schemars(length(min = 1, max = 128))]
    pub organization_id: String,
    /// Id of the service account.
    #[schemars(length(min = 1, max = 128))]
    pub service_account_id: String,
    /// Id of the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub workspace_id: Option<String>,
}

/// Limits of a provider.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub requests_per_minute: Option<i64>,
    /// Tokens per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub tokens_per_minute: Option<i64>,
}

/// Where and how a provider is called.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Base URL, as the provider's SDKs take it. Empty means the provider's own.
    #[serde(default, rename = "baseURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self == '' || self.matches('^https?://[^/?#@\\\\s]+(/[^?#\\\\s]*)?$')")
        .message("endpoint.baseURL must be an http or https URL without user, query or fragment: write https://gateway.example.com/v1"))]
    pub base_url: Option<String>,
    /// PEM certificates that the endpoint's own certificate is checked against, besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 131_072))]
    pub ca_bundle: Option<String>,
    /// Header that carries the key, if not the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9-]+$')")
        .message("endpoint.authHeader must be a header name: write Authorization or x-api-key"))]
    pub auth_header: Option<String>,
    /// Scheme before the key in that header, such as `Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9-]*$')")
        .message("endpoint.authScheme must be one word: write Bearer, or leave it empty for none"))]
    pub auth_scheme: Option<String>,
}

impl Endpoint {
    /// The base URL, if one is set.
    pub fn base_url(&self) -> Option<&str> {
        self.base_url.as_deref().filter(|url| !url.is_empty())
    }
}

impl LLMProviderSpec {
    /// The base URL for its SDKs; `None` where every account has its own and none is set.
    pub fn base_url(&self) -> Option<&str> {
        let own = self.endpoint.as_ref().and_then(Endpoint::base_url);
        own.or(self.provider.base_url())
    }

    /// Whether an access with this injection is in proxy mode.
    pub fn is_proxied(&self, injection: &Injection) -> bool {
        injection.proxy.is_some() || self.proxy == ProxyPolicy::Required
    }

    /// Why it can't be used through the proxy, if it can't, and what to do.
    pub fn proxy_hindrance(&self) -> Option<String> {
        let kind = self.provider.as_str();
        if !self.provider.supports_proxy() {
            return Some(format!("the SDKs of {kind} insist on https: remove it"));
        }
        self.base_url().is_none().then(|| {
            format!("{kind} has no one base URL: ask the platform team to set spec.endpoint.baseURL of the LLMProvider")
        })
    }
}

/// What the controller observed of a provider.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LLMProviderStatus {
    /// `Ready` and `CredentialValid`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// How many `LLMAccess` objects name the provider.
    #[serde(default)]
    pub access_count: i64,
    /// When the provider was last asked whether its key works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_credential_check: Option<Time>,
    /// The generation that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The instant as Kubernetes writes times: whole seconds.
pub fn whole_seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}
