//! Master Secrets, and which of them may serve as one.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use llmwarden_proto::delivery::MAX_KEY_BYTES;
use llmwarden_proto::names;
use secrecy::SecretString;

/// A Secret in a namespace that master keys may live in.
#[derive(Debug)]
pub struct Master {
    /// Its resource version.
    pub resource_version: String,
    /// Why it can never be a master Secret.
    pub forbidden: Option<&'static str>,
    /// Its values; empty when it is forbidden.
    pub values: BTreeMap<String, MasterValue>,
}

/// A value of a master Secret.
#[derive(Debug)]
pub enum MasterValue {
    /// A usable key.
    Key(SecretString),
    /// Nothing, or blanks alone.
    Empty,
    /// Not one line of printable ASCII, which is what fits in a request header, or too long for a sidecar to take.
    Invalid,
}

impl From<Secret> for Master {
    fn from(secret: Secret) -> Self {
        let forbidden = forbidden(&secret);
        let values = match forbidden {
            Some(_) => BTreeMap::new(),
            None => secret
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (name, MasterValue::from(value.0.as_slice())))
                .collect(),
        };
        Self {
            resource_version: secret.metadata.resource_version.unwrap_or_default(),
            forbidden,
            values,
        }
    }
}

impl From<&[u8]> for MasterValue {
    /// Blanks around a key are dropped: `echo key | base64` leaves a newline in so many Secrets.
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes).map(str::trim) {
            Ok("") => Self::Empty,
            Ok(text) if text.len() > MAX_KEY_BYTES => Self::Invalid,
            Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Self::Key(SecretString::from(text))
            }
            _ => Self::Invalid,
        }
    }
}

fn forbidden(secret: &Secret) -> Option<&'static str> {
    let managed = secret
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(names::MANAGED_BY_LABEL));
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    if managed.is_some_and(|by| by == names::MANAGED_BY)
        || name.ends_with(names::COMPANION_SUFFIX)
        || name == names::INSTANCE_SECRET
    {
        return Some("it is one of llmwarden's own");
    }
    match secret.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/service-account-token" => Some("it is a service account's token"),
        "kubernetes.io/tls" => Some("it is a TLS certificate"),
        "bootstrap.kubernetes.io/token" => Some("it is a bootstrap token"),
        kind if kind.starts_with("helm.sh/") => Some("it is a Helm release"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn keys_are_one_line_of_printable_text() {
        for (bytes, expected) in [
            (&b"sk-1"[..], Some("sk-1")),
            (b"sk-1\n", Some("sk-1")),
            (b" sk-1\r\n", Some("sk-1")),
            (b"", None),
            (b" \n", None),
            (b"sk-1\nsk-2", None),
            (b"sk-\xff", None),
            ("sk-é".as_bytes(), None),
            ("k".repeat(MAX_KEY_BYTES + 1).as_bytes(), None),
        ] {
            let key = match MasterValue::from(bytes) {
                MasterValue::Key(key) => Some(key.expose_secret().to_owned()),
                MasterValue::Empty | MasterValue::Invalid => None,
            };
            assert_eq!(key.as_deref(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_key_that_no_sidecar_takes_is_not_kept() {
        for (bytes, kept) in [(MAX_KEY_BYTES, true), (MAX_KEY_BYTES + 1, false)] {
            let value = MasterValue::from(vec![b'k'; bytes].as_slice());
            assert_eq!(matches!(value, MasterValue::Key(_)), kept, "{bytes}");
        }
    }

    #[test]
    fn some_secrets_are_never_masters() {
        for (kind, allowed) in [
            ("Opaque", true),
            ("kubernetes.io/basic-auth", true),
            ("kubernetes.io/service-account-token", false),
            ("kubernetes.io/tls", false),
            ("helm.sh/release.v1", false),
        ] {
            let secret = Secret {
                type_: Some(kind.to_owned()),
                data: Some(BTreeMap::from([("k".to_owned(), ByteString(b"v".to_vec()))])),
                ..Secret::default()
            };
            let master = Master::from(secret);
            assert_eq!(master.forbidden.is_none(), allowed, "{kind}");
            assert_eq!(master.values.is_empty(), !allowed, "{kind}");
        }
    }
}
