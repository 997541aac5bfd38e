//! Names that several parts of llmwarden, and its users, have to agree on.

/// Label that marks every Secret the controller writes.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`] on what the controller writes.
pub const MANAGED_BY: &str = "llmwarden";

/// Annotation on an `LLMAccess`: [`ROTATE_NOW`] asks for a rotation now. The controller removes it once handled.
pub const ROTATE_ANNOTATION: &str = "llmwarden.io/rotate";
/// The one value of [`ROTATE_ANNOTATION`] that is acted on.
pub const ROTATE_NOW: &str = "now";
/// Annotation on an `LLMAccess`: the user who asked for what it is now. The webhook sets it, and a policy keeps everybody from
/// naming somebody else.
pub const REQUESTED_BY_ANNOTATION: &str = "llmwarden.io/requested-by";
/// The most characters of [`REQUESTED_BY_ANNOTATION`]: who is called longer is not named. The policy says the same.
pub const MAX_REQUESTED_BY: usize = 1024;
/// Annotation on a Secret that llmwarden does not own: its owner hands it over to the `LLMAccess` that is named here.
pub const ADOPT_ANNOTATION: &str = "llmwarden.io/adopt";

/// Annotation on a companion: why its version was made ([`crate::access::Trigger`]). Whoever finds a version that is not
/// recorded yet, after a crash, could not tell otherwise.
pub const CAUSE_ANNOTATION: &str = "llmwarden.io/cause";

/// Annotation on a pod, or on the kagent Agent that it belongs to: the accesses whose keys it gets, separated by commas, or
/// [`INJECT_NOTHING`].
pub const INJECT_ANNOTATION: &str = "llmwarden.io/inject";
/// The value of [`INJECT_ANNOTATION`] that keeps a pod as it is, whatever selects it.
pub const INJECT_NOTHING: &str = "false";
/// Annotation on a pod: the containers that get mounts and variables, separated by commas; all of them without it.
pub const CONTAINERS_ANNOTATION: &str = "llmwarden.io/containers";
/// Label on injected pods; its value is `true`. For people to select by: what is injected is known by its structure.
pub const INJECTED_LABEL: &str = "llmwarden.io/injected";

/// Annotation on an injected pod: the versions that its kubelet was asked to fetch, those of each access that its sidecar mounts
/// ([`NO_VERSION`] where there is no companion). It is changed when one of them does, since the kubelet looks at a pod's
/// volumes when the pod changes, and about once a minute otherwise.
pub const REFRESH_ANNOTATION: &str = "llmwarden.io/refresh";
/// In place of a version, in [`REFRESH_ANNOTATION`]: there is no companion.
pub const NO_VERSION: u64 = 0;

/// Annotation that the webhook puts on a pod that an access selects and that is created without the sidecar: why.
pub const SKIPPED_ANNOTATION: &str = "llmwarden.io/skipped";

/// Name of the sidecar's container, and of the volume that it shares with the agent's containers.
pub const SIDECAR: &str = "llmwarden";
/// What the names of the sidecar's other volumes begin with.
pub const VOLUME_PREFIX: &str = "llmwarden-";
/// Where the companions are mounted, each in a directory of its own: in the sidecar alone.
pub const COMPANIONS_DIR: &str = "/var/run/secrets/llmwarden";

/// Name of the Secret with the webhook's certificates, in the controller's own namespace.
pub const CERTIFICATES_SECRET: &str = "llmwarden-webhook-certificates";

/// Name of the controller's own Secret, in its own namespace: what placeholders and key ids are derived from.
pub const INSTANCE_SECRET: &str = "llmwarden-instance";

/// Data key under which the credential always stands, in the application's Secret and in the companion.
pub const API_KEY: &str = "apiKey";
/// Data key of the key before the live one in the companion, present while both are valid.
pub const PREVIOUS_API_KEY: &str = "previousApiKey";
/// Data key of the provider's base URL in the application's Secret, present when the provider overrides it.
pub const BASE_URL: &str = "baseUrl";
/// Data key of the delivery document in the companion ([`crate::delivery::Delivery`]).
pub const LIVE_JSON: &str = "live.json";
/// Data key of the constant placeholder in the companion.
pub const PLACEHOLDER: &str = "placeholder";
/// What every placeholder begins with, and no provider's key.
pub const PLACEHOLDER_PREFIX: &str = "sk-llmwarden-";

/// What a companion's name ends in; the rest is the name of its `LLMAccess`.
pub const COMPANION_SUFFIX: &str = ".llmwarden";

/// Name of the companion Secret of an `LLMAccess`: what only sidecars mount.
pub fn companion(access: &str) -> String {
    format!("{access}{COMPANION_SUFFIX}")
}

/// Where the sidecar delivers: a tmpfs that it shares with the agent's containers.
pub const DELIVERY_DIR: &str = "/var/run/llmwarden";
/// File in the delivery directory: the bearer token for the endpoint on TCP.
pub const TOKEN_FILE: &str = "token";
/// File in the delivery directory: the same token as a header line, for `curl -H @file`.
pub const AUTH_HEADER_FILE: &str = "auth-header";
/// Unix socket in the delivery directory: the endpoint without a token.
pub const SOCKET_FILE: &str = "llmwarden.sock";

/// Port of the endpoint (and the proxy), on 127.0.0.1.
pub const ENDPOINT_PORT: u16 = 9470;
/// The base URL of an access in proxy mode, for the SDKs of its pod: `path` is that of the provider's own.
pub fn proxy_url(access: &str, path: &str) -> String {
    format!("http://127.0.0.1:{ENDPOINT_PORT}/proxy/{access}{path}")
}

/// Port of health, metrics and status.
pub const STATUS_PORT: u16 = 9471;
