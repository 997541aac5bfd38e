//! Makes authorities and certificates.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;

use super::plan::{Lifetimes, Step};
use super::stored::{BACKDATED, Certificate, Stored};

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The library did not do what was asked.
    #[error("cannot make a certificate: {0}")]
    Library(#[from] rcgen::Error),
    /// What it made can't be read.
    #[error("cannot read a certificate that was just made: {0}")]
    Unreadable(String),
}

/// What the Secret holds after a step.
pub fn take(
    step: Step,
    stored: Option<Stored>,
    names: &BTreeSet<String>,
    lifetimes: &Lifetimes,
    now: Timestamp,
) -> Result<Option<Stored>, MakeError> {
    let taken = match (step, stored) {
        (Step::Nothing, stored) => return Ok(stored),
        (Step::Begin, _) | (_, None) => {
            let (authority, authority_key) = authority(lifetimes.authority, now)?;
            let (leaf, leaf_key) = leaf(&authority, &authority_key, names, lifetimes.leaf, now)?;
            Stored {
                authorities: vec![authority],
                authority_key,
                leaf,
                leaf_key,
            }
        }
        (Step::AddAuthority, Some(mut stored)) => {
            let (authority, authority_key) = authority(lifetimes.authority, now)?;
            stored.authorities.insert(0, authority);
            Stored {
                authority_key,
                ..stored
            }
        }
        (Step::IssueLeaf, Some(stored)) => {
            let newest = &stored.authorities[0];
            let (leaf, leaf_key) = leaf(newest, &stored.authority_key, names, lifetimes.leaf, now)?;
            Stored {
                leaf,
                leaf_key,
                ..stored
            }
        }
        (Step::DropOldAuthorities, Some(mut stored)) => {
            stored.authorities.truncate(1);
            stored
        }
    };
    Ok(Some(taken))
}

fn authority(lifetime: Duration, now: Timestamp) -> Result<(Certificate, SecretString), MakeError> {
    let mut params = CertificateParams::default();
    // A name of its own: who verifies looks for the issuer by its name.
    let name = format!("llmwarden webhook authority {:016x}", rand::random::<u64>());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = time(now - BACKDATED);
    params.not_after = time(now + lifetime);
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    Ok((read(&pem)?, key.serialize_pem().into()))
}

fn leaf(
    authority: &Certificate,
    authority_key: &SecretString,
    names: &BTreeSet<String>,
    lifetime: Duration,
    now: Timestamp,
) -> Result<(Certificate, SecretString), MakeError> {
    let authority_key = KeyPair::from_pem(authority_key.expose_secret())?;
    let issuer = Issuer::from_ca_cert_pem(&authority.pem, authority_key)?;
    let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "llmwarden webhook");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = time(now - BACKDATED);
    params.not_after = time((now + lifetime).min(authority.expires));
    let key = KeyPair::generate()?;
    let pem = params.signed_by(&key, &issuer)?.pem();
    Ok((read(&pem)?, key.serialize_pem().into()))
}

fn read(pem: &str) -> Result<Certificate, MakeError> {
    let mut all = Certificate::read(pem).map_err(MakeError::Unreadable)?;
    all.pop()
        .ok_or_else(|| MakeError::Unreadable("nothing there".to_owned()))
}

fn time(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(at.as_second())
}
