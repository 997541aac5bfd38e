//! What is remembered of a Secret: who owns it, and digests of what it holds. Never its content.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use llmwarden_proto::access::Trigger;
use llmwarden_proto::delivery::Delivery;
use llmwarden_proto::names;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use sha2::{Digest as _, Sha256};

/// SHA-256 of a value.
pub type Digest = [u8; 32];

/// Digest of a value.
pub fn digest(value: &[u8]) -> Digest {
    Sha256::digest(value).into()
}

/// A Secret as it was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedSecret {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its resource version.
    pub resource_version: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations, without those that can hold a copy of the data.
    pub annotations: BTreeMap<String, String>,
    /// Its finalizers.
    pub finalizers: Vec<String>,
    /// Whether it has been deleted, and only its finalizers keep it.
    pub terminating: bool,
    /// The owner reference marked as controller.
    pub controller: Option<OwnerReference>,
    /// What it holds; `None` when only its metadata was seen.
    pub content: Option<Content>,
}

/// What a Secret holds, in digests.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// Its type.
    pub kind: String,
    /// Whether somebody made it immutable.
    pub immutable: bool,
    /// Digest of each value.
    pub digests: BTreeMap<String, Digest>,
    /// Its delivery document, if it holds a valid one. That document has no secrets.
    pub delivery: Option<Delivery>,
}

/// Where `kubectl apply` keeps a copy of the whole object, keys included.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

impl ObservedSecret {
    /// From its metadata alone.
    pub fn from_metadata(metadata: ObjectMeta) -> Self {
        let mut annotations = metadata.annotations.unwrap_or_default();
        annotations.remove(LAST_APPLIED);
        Self {
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            resource_version: metadata.resource_version.unwrap_or_default(),
            created: metadata.creation_timestamp.map(|time| time.0),
            labels: metadata.labels.unwrap_or_default(),
            annotations,
            finalizers: metadata.finalizers.unwrap_or_default(),
            terminating: metadata.deletion_timestamp.is_some(),
            controller: metadata
                .owner_references
                .unwrap_or_default()
                .into_iter()
                .find(|o| o.controller == Some(true)),
            content: None,
        }
    }

    /// Whether the object with this UID is its controller.
    pub fn is_owned_by(&self, uid: &str) -> bool {
        self.controller.as_ref().is_some_and(|owner| owner.uid == uid)
    }

    /// Whether it carries the label of what llmwarden manages.
    pub fn is_labelled(&self) -> bool {
        self.labels
            .get(names::MANAGED_BY_LABEL)
            .is_some_and(|value| value == names::MANAGED_BY)
    }

    /// Its delivery document.
    pub fn delivery(&self) -> Option<&Delivery> {
        self.content
            .as_ref()
            .and_then(|content| content.delivery.as_ref())
    }

    /// Why its version was made, as it says itself.
    pub fn cause(&self) -> Option<Trigger> {
        let text = self.annotations.get(names::CAUSE_ANNOTATION)?;
        Trigger::deserialize(text.as_str().into_deserializer())
            .map_err(|_: serde::de::value::Error| ())
            .ok()
    }

    /// Whether it holds exactly these data.
    pub fn holds(&self, data: &BTreeMap<String, SecretString>) -> bool {
        self.content.as_ref().is_some_and(|content| {
            content.digests.len() == data.len()
                && data.iter().all(|(name, value)| self.holds_value(name, value))
        })
    }

    /// Whether it holds this value under this name.
    pub fn holds_value(&self, name: &str, value: &SecretString) -> bool {
        self.content
            .as_ref()
            .and_then(|content| content.digests.get(name))
            .is_some_and(|present| *present == digest(value.expose_secret().as_bytes()))
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.content
            .as_ref()
            .is_some_and(|content| content.digests.is_empty())
    }

    /// Whether somebody made it immutable.
    pub fn is_immutable(&self) -> bool {
        self.content.as_ref().is_some_and(|content| content.immutable)
    }
}

impl From<Secret> for ObservedSecret {
    fn from(secret: Secret) -> Self {
        let data = secret.data.unwrap_or_default();
        let delivery = data
            .get(names::LIVE_JSON)
            .and_then(|text| Delivery::read(&text.0).ok())
            // What can't be read in it is put right, as it differs from what should be there.
            .map(|(delivery, _)| delivery);
        let content = Content {
            kind: secret.type_.unwrap_or_default(),
            immutable: secret.immutable.unwrap_or_default(),
            digests: data
                .into_iter()
                .map(|(name, value)| (name, digest(&value.0)))
                .collect(),
            delivery,
        };
        Self {
            content: Some(content),
            ..Self::from_metadata(secret.metadata)
        }
    }
}
