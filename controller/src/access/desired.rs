//! What the two Secrets of an access should hold.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use llmwarden_proto::access::{LLMAccess, Trigger};
use llmwarden_proto::delivery::{Delivery, SCHEMA, State, Upstream};
use llmwarden_proto::names;
use llmwarden_proto::profile::base_path;
use llmwarden_proto::provider::LLMProvider;
use secrecy::{ExposeSecret, SecretString};

use super::grant::Grant;
use crate::index::secret::ObservedSecret;

/// The data of a Secret.
pub type Data = BTreeMap<String, SecretString>;

/// Feature a sidecar must know to serve an access in proxy mode.
const PROXY_FEATURE: &str = "proxy";

/// A Secret to write.
#[derive(Debug, Clone)]
pub struct DesiredSecret {
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: Data,
    /// Annotations that others put on the Secret it replaces.
    pub annotations: BTreeMap<String, String>,
    /// Labels that others put on the Secret it replaces.
    pub labels: BTreeMap<String, String>,
}

/// Data of the Secret that applications reference.
pub fn application_data(
    access: &LLMAccess,
    provider: &LLMProvider,
    grant: &Grant,
    placeholder: &SecretString,
) -> Data {
    let value = if grant.proxied { placeholder } else { &grant.key };
    let mut data: Data = key_names(access)
        .into_iter()
        .map(|name| (name, value.clone()))
        .collect();
    if let Some(url) = overridden_base_url(provider) {
        let proxy = || names::proxy_url(&access.name_any(), base_path(url));
        let url = if grant.proxied { proxy() } else { url.to_owned() };
        data.insert(names::BASE_URL.to_owned(), SecretString::from(url));
    }
    data
}

/// Data of a companion that holds a key.
pub fn active_companion(
    access: &LLMAccess,
    provider: &LLMProvider,
    grant: &Grant,
    placeholder: &SecretString,
    (version, issued_at): (u64, Timestamp),
) -> Data {
    let base_url = overridden_base_url(provider);
    let upstream = provider.spec.provider.upstream(base_url);
    let endpoint = provider.spec.endpoint.as_ref();
    let mut auth = upstream.auth.clone();
    if let Some(endpoint) = endpoint {
        if let Some(header) = &endpoint.auth_header {
            // Another header does not inherit the scheme.
            auth.header = header.to_ascii_lowercase();
            auth.scheme = None;
        }
        if let Some(scheme) = &endpoint.auth_scheme {
            auth.scheme = Some(scheme.clone()).filter(|scheme| !scheme.is_empty());
        }
    }
    let limit = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
    let limits = provider.spec.rate_limit.unwrap_or_default();
    let delivery = Delivery {
        schema: SCHEMA,
        version,
        state: State::Active,
        reason: None,
        issued_at,
        keys: key_names(access).into_iter().collect(),
        values: base_url
            .map(|url| (names::BASE_URL.to_owned(), url.to_owned()))
            .into_iter()
            .collect(),
        upstream: Some(Upstream {
            auth,
            ca_bundle: endpoint
                .and_then(|endpoint| endpoint.ca_bundle.clone())
                .filter(|bundle| !bundle.is_empty()),
            models: grant.models.clone(),
            requests_per_minute: limit(limits.requests_per_minute),
            tokens_per_minute: limit(limits.tokens_per_minute),
            ..upstream
        }),
        requires: grant
            .proxied
            .then(|| PROXY_FEATURE.to_owned())
            .into_iter()
            .collect(),
    };
    let mut data = document(&delivery);
    data.insert(names::API_KEY.to_owned(), grant.key.clone());
    data.insert(names::PLACEHOLDER.to_owned(), placeholder.clone());
    data
}

/// Data of a companion that says that the key is gone.
pub fn withdrawn_companion(reason: &str, (version, issued_at): (u64, Timestamp)) -> Data {
    document(&Delivery {
        schema: SCHEMA,
        version,
        state: State::Withdrawn,
        reason: Some(reason.to_owned()),
        issued_at,
        keys: Vec::new(),
        values: BTreeMap::new(),
        upstream: None,
        requires: Vec::new(),
    })
}

fn document(delivery: &Delivery) -> Data {
    let text =
        serde_json::to_string(delivery).expect("a delivery document has string keys and no failing values");
    Data::from([(names::LIVE_JSON.to_owned(), SecretString::from(text))])
}

fn key_names(access: &LLMAccess) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = access
        .spec
        .injection
        .env
        .iter()
        .map(|env| env.secret_key.clone())
        .collect();
    all.insert(names::API_KEY.to_owned());
    all
}

fn overridden_base_url(provider: &LLMProvider) -> Option<&str> {
    provider
        .spec
        .endpoint
        .as_ref()
        .and_then(|endpoint| endpoint.base_url())
}

impl DesiredSecret {
    /// A Secret with these data. What `present` carries of others' labels and annotations stays: other controllers put
    /// theirs there, and would put them there again.
    pub fn new(name: &str, data: Data, present: Option<&ObservedSecret>) -> Self {
        let mut annotations = present
            .map(|secret| secret.annotations.clone())
            .unwrap_or_default();
        annotations.remove(names::ADOPT_ANNOTATION);
        let labels = present.map(|secret| secret.labels.clone()).unwrap_or_default();
        Self {
            name: name.to_owned(),
            data,
            annotations,
            labels,
        }
    }

    /// With a note on why its version was made.
    #[must_use]
    pub fn caused_by(mut self, cause: &Trigger) -> Self {
        self.annotations
            .insert(names::CAUSE_ANNOTATION.to_owned(), format!("{cause:?}"));
        self
    }

    /// The object, owned by the access.
    pub fn object(&self, access: &LLMAccess) -> Secret {
        let mut labels = self.labels.clone();
        labels.insert(names::MANAGED_BY_LABEL.to_owned(), names::MANAGED_BY.to_owned());
        Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: access.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: Some(self.annotations.clone()).filter(|all| !all.is_empty()),
                owner_references: Some(vec![OwnerReference {
                    block_owner_deletion: Some(true),
                    ..owner(access)
                }]),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(
                self.data
                    .iter()
                    .map(|(name, value)| {
                        (
                            name.clone(),
                            ByteString(value.expose_secret().as_bytes().to_vec()),
                        )
                    })
                    .collect(),
            ),
            ..Secret::default()
        }
    }
}

fn owner(access: &LLMAccess) -> OwnerReference {
    access
        .controller_owner_ref(&())
        .expect("an access that was read from the API server has a name and a UID")
}

#[cfg(test)]
mod tests;
