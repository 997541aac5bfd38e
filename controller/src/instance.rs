//! The instance secret: random bytes, made once, from which placeholders and key ids are derived. It lives in the
//! controller's own namespace, so that both survive the loss of every Secret of an access.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use llmwarden_proto::names;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::Sha256;

const SEED: &str = "seed";
const SEED_BYTES: usize = 32;
/// How long it may take: a restart tries again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Derives what has to be constant for as long as the installation lives.
pub struct Instance {
    seed: SecretBox<Vec<u8>>,
}

/// Why there is no instance secret.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// The API server did not do what was asked.
    #[error("cannot read or make Secret {namespace}/{name}: {source}", name = names::INSTANCE_SECRET)]
    Api {
        /// The controller's own namespace.
        namespace: String,
        /// What the API server said.
        source: kube::Error,
    },
    /// The API server did not answer.
    #[error("the API server did not answer in time when asked for Secret {namespace}/{name}", name = names::INSTANCE_SECRET)]
    NoAnswer {
        /// The controller's own namespace.
        namespace: String,
    },
    /// Somebody else's Secret has the name, or ours was damaged.
    #[error(
        "Secret {namespace}/{name} has no `{SEED}` of at least {SEED_BYTES} bytes: restore it from a backup, or delete \
         it to have a new one made (placeholders then change)",
        name = names::INSTANCE_SECRET
    )]
    Damaged {
        /// The controller's own namespace.
        namespace: String,
    },
}

impl Instance {
    /// Reads the instance secret, and makes it when there is none. Ends even if the API server is silent.
    pub async fn load(client: kube::Client, namespace: &str) -> Result<Self, InstanceError> {
        let loaded = tokio::time::timeout(PATIENCE, Self::read_or_make(client, namespace));
        loaded.await.unwrap_or_else(|_| {
            Err(InstanceError::NoAnswer {
                namespace: namespace.to_owned(),
            })
        })
    }

    async fn read_or_make(client: kube::Client, namespace: &str) -> Result<Self, InstanceError> {
        let api: Api<Secret> = Api::namespaced(client, namespace);
        let failed = |source| InstanceError::Api {
            namespace: namespace.to_owned(),
            source,
        };
        let secret = match api.get_opt(names::INSTANCE_SECRET).await.map_err(failed)? {
            Some(secret) => secret,
            None => match api.create(&PostParams::default(), &fresh()).await {
                Ok(secret) => secret,
                // Another replica was faster.
                Err(kube::Error::Api(status)) if status.is_already_exists() => {
                    api.get(names::INSTANCE_SECRET).await.map_err(failed)?
                }
                Err(error) => return Err(failed(error)),
            },
        };
        let seed = secret
            .data
            .and_then(|mut data| data.remove(SEED))
            .map(|bytes| bytes.0)
            .unwrap_or_default();
        if seed.len() < SEED_BYTES {
            return Err(InstanceError::Damaged {
                namespace: namespace.to_owned(),
            });
        }
        Ok(Self::new(seed))
    }

    /// An instance with this seed.
    pub fn new(seed: Vec<u8>) -> Self {
        Self {
            seed: SecretBox::new(Box::new(seed)),
        }
    }

    /// What stands for the key of an access in proxy mode.
    pub fn placeholder(&self, namespace: &str, access: &str) -> SecretString {
        SecretString::from(format!(
            "sk-llmwarden-{}",
            self.derive("placeholder", &[namespace, access], 16)
        ))
    }

    /// Tells keys apart without telling anything about them.
    pub fn key_id(&self, key: &SecretString) -> String {
        self.derive("key-id", &[key.expose_secret()], 6)
    }

    fn derive(&self, purpose: &str, parts: &[&str], bytes: usize) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.seed.expose_secret()).expect("HMAC takes keys of any length");
        mac.update(purpose.as_bytes());
        for part in parts {
            mac.update(b"\0");
            mac.update(part.as_bytes());
        }
        let digest = mac.finalize().into_bytes();
        digest.iter().take(bytes).fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
            text
        })
    }
}

fn fresh() -> Secret {
    let seed: [u8; SEED_BYTES] = rand::random();
    Secret {
        metadata: ObjectMeta {
            name: Some(names::INSTANCE_SECRET.to_owned()),
            labels: Some(BTreeMap::from([(
                names::MANAGED_BY_LABEL.to_owned(),
                names::MANAGED_BY.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(SEED.to_owned(), ByteString(seed.to_vec()))])),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derives_the_same_for_the_same_and_other_for_others() {
        let instance = Instance::new(vec![7; 32]);
        let placeholder =
            |namespace, access| instance.placeholder(namespace, access).expose_secret().to_owned();
        assert_eq!(placeholder("a", "b"), placeholder("a", "b"));
        assert_ne!(placeholder("a", "b"), placeholder("a", "c"));
        assert_ne!(
            placeholder("a", "b"),
            Instance::new(vec![8; 32]).placeholder("a", "b").expose_secret()
        );
        assert!(placeholder("a", "b").starts_with("sk-llmwarden-"));
        assert_ne!(instance.key_id(&"k1".into()), instance.key_id(&"k2".into()));
    }
}
