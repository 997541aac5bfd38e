//! The certificates as the Secret holds them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use llmwarden_proto::names;
use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use secrecy::{ExposeSecret, SecretString};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::X509Certificate;

/// Data key of the authorities that are trusted, the newest first.
const AUTHORITIES: &str = "ca.crt";
/// Data key of the newest authority's private key.
const AUTHORITY_KEY: &str = "ca.key";
/// Data key of the certificate that is served.
const LEAF: &str = "tls.crt";
/// Data key of its private key.
const LEAF_KEY: &str = "tls.key";

/// What a certificate ends with in PEM.
const PEM_END: &str = "-----END CERTIFICATE-----";

/// Certificates begin this much before they are made, for clocks that go slow.
pub(super) const BACKDATED: Duration = Duration::from_mins(5);

/// Everything that the Secret holds.
pub struct Stored {
    /// The authorities that are trusted, the newest first; never none.
    pub authorities: Vec<Certificate>,
    /// The newest one's private key.
    pub authority_key: SecretString,
    /// The certificate that is served.
    pub leaf: Certificate,
    /// Its private key.
    pub leaf_key: SecretString,
}

/// A certificate, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Itself.
    pub pem: String,
    /// When it was made.
    pub made: Timestamp,
    /// When it expires.
    pub expires: Timestamp,
    /// Whom it is about.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// The names and addresses that it is for.
    pub names: BTreeSet<String>,
}

/// Why a Secret's certificates can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the certificates in Secret {name} can't be used: {why}", name = names::CERTIFICATES_SECRET)]
pub struct Unusable {
    why: String,
}

impl Stored {
    /// From a Secret's data.
    pub fn parse(secret: &Secret) -> Result<Self, Unusable> {
        let unusable = |why: String| Unusable { why };
        let text = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            bytes
                .and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
                .ok_or_else(|| unusable(format!("no {key}")))
        };
        let certificates = |key: &str| {
            let read = Certificate::read(&text(key)?).map_err(|why| unusable(format!("{key}: {why}")));
            read.and_then(|all| {
                if all.is_empty() {
                    Err(unusable(format!("no {key}")))
                } else {
                    Ok(all)
                }
            })
        };
        let mut leaves = certificates(LEAF)?;
        let stored = Self {
            authorities: certificates(AUTHORITIES)?,
            authority_key: text(AUTHORITY_KEY)?.into(),
            leaf: leaves.remove(0),
            leaf_key: text(LEAF_KEY)?.into(),
        };
        KeyPair::from_pem(stored.authority_key.expose_secret())
            .map_err(|error| unusable(format!("{AUTHORITY_KEY}: {error}")))?;
        stored.certified_key()?;
        Ok(stored)
    }

    /// The Secret's object.
    pub fn secret(&self, namespace: &str) -> Secret {
        let data = [
            (AUTHORITIES, self.bundle()),
            (AUTHORITY_KEY, self.authority_key.expose_secret().to_owned()),
            (LEAF, self.leaf.pem.clone()),
            (LEAF_KEY, self.leaf_key.expose_secret().to_owned()),
        ];
        Secret {
            metadata: ObjectMeta {
                name: Some(names::CERTIFICATES_SECRET.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(BTreeMap::from([(
                    names::MANAGED_BY_LABEL.to_owned(),
                    names::MANAGED_BY.to_owned(),
                )])),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(
                data.into_iter()
                    .map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    /// What `caBundle` should be.
    pub fn bundle(&self) -> String {
        self.authorities
            .iter()
            .map(|authority| authority.pem.as_str())
            .collect()
    }

    /// What is served.
    pub fn certified_key(&self) -> Result<CertifiedKey, Unusable> {
        let unusable = |why: String| Unusable { why };
        let certificate = CertificateDer::from_pem_slice(self.leaf.pem.as_bytes())
            .map_err(|error| unusable(format!("{LEAF}: {error}")))?;
        let key = PrivateKeyDer::from_pem_slice(self.leaf_key.expose_secret().as_bytes())
            // The error could quote it.
            .map_err(|_| unusable(format!("{LEAF_KEY} is not a private key")))?;
        CertifiedKey::from_der(vec![certificate], key, &aws_lc_rs::default_provider())
            .map_err(|error| unusable(error.to_string()))
    }
}

impl Certificate {
    /// Reads every certificate of a PEM text.
    pub(super) fn read(text: &str) -> Result<Vec<Self>, String> {
        // Each with its own text, which is written again as it is.
        text.split_inclusive(PEM_END)
            .filter(|block| block.contains(PEM_END))
            .map(|block| {
                let (_, pem) = parse_x509_pem(block.as_bytes()).map_err(|error| error.to_string())?;
                let x509 = pem.parse_x509().map_err(|error| error.to_string())?;
                Self::from_x509(&x509, format!("{}\n", block.trim()))
                    .ok_or_else(|| "a time out of range".to_owned())
            })
            .collect()
    }

    fn from_x509(x509: &X509Certificate, pem: String) -> Option<Self> {
        let time = |seconds| Timestamp::from_second(seconds).ok();
        let alternatives = x509.subject_alternative_name().ok().flatten();
        let names = alternatives.map(|extension| extension.value.general_names.iter().filter_map(name));
        Some(Self {
            pem,
            made: time(x509.validity().not_before.timestamp())? + BACKDATED,
            expires: time(x509.validity().not_after.timestamp())?,
            subject: x509.subject().to_string(),
            issuer: x509.issuer().to_string(),
            names: names.into_iter().flatten().collect(),
        })
    }
}

fn name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| v6()).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}
