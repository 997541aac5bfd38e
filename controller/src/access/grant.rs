//! Whether an access gets a key now, and if not, whether what it has is to go (denied) or to stay (held back).

use std::collections::BTreeMap;

use kube::core::{Selector, SelectorExt};
use llmwarden_proto::names;
use llmwarden_proto::provider::{AuthType, LLMProvider, SecretRef};
use llmwarden_proto::reason::Reason;
use secrecy::SecretString;

use super::observe::Observation;
use crate::index::Claim;
use crate::index::master::{Master, MasterValue};
use crate::index::secret::ObservedSecret;

/// What an access gets.
#[derive(Debug)]
pub struct Grant {
    /// The key.
    pub key: SecretString,
    /// Models it may use; empty means all.
    pub models: Vec<String>,
    /// Whether applications get a placeholder instead of the key.
    pub proxied: bool,
    /// A foreign Secret that its owner hands over.
    pub adopts: Vec<String>,
}

/// Why an access gets no key now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whether the key it has is to be withdrawn.
    pub denied: bool,
    /// In one word.
    pub reason: Reason,
    /// In words that say what to do. The same for the same cause, so that nothing is written twice.
    pub message: String,
}

impl Refusal {
    fn denied(reason: Reason, message: String) -> Self {
        Self {
            denied: true,
            reason,
            message,
        }
    }

    /// A refusal that leaves the last good key in place.
    pub fn held(reason: Reason, message: String) -> Self {
        Self {
            denied: false,
            reason,
            message,
        }
    }
}

/// Decides. `trusted` are the namespaces that master keys may live in. `None`: too little is known yet.
pub fn decide(seen: &Observation, trusted: &[String]) -> Option<Result<Grant, Refusal>> {
    let name = &seen.access.spec.provider_ref.name;
    let Some(provider) = &seen.provider else {
        let message = format!(
            "LLMProvider {name} does not exist: ask the platform team for it, or name another one in a new LLMAccess. \
             A key that was delivered stays"
        );
        return Some(Err(Refusal::held(Reason::ProviderMissing, message)));
    };
    let labels = seen.namespace.as_ref()?;
    Some(allowed(seen, provider, labels).and_then(|models| {
        let proxied = proxied(seen, provider)?;
        let mut adopts = Vec::new();
        for wanted in [&seen.access.spec.secret_name, &seen.access.companion_name()] {
            if occupied(seen, wanted)? == Occupant::HandedOver {
                adopts.push(wanted.clone());
            }
        }
        let key = master_key(provider, seen.master.as_deref(), trusted)?;
        Ok(Grant {
            key,
            models,
            proxied,
            adopts,
        })
    }))
}

fn allowed(
    seen: &Observation,
    provider: &LLMProvider,
    labels: &BTreeMap<String, String>,
) -> Result<Vec<String>, Refusal> {
    let name = &seen.access.spec.provider_ref.name;
    let selector = provider.spec.namespace_selector.clone().unwrap_or_default();
    let Ok(parsed) = Selector::try_from(selector.clone()) else {
        // Not a denial: a slip of the pen must not take everybody's key.
        let message = format!(
            "spec.namespaceSelector of LLMProvider {name} can't be read: ask the platform team to correct it (operators \
             are In and NotIn, with values, Exists and DoesNotExist, without)"
        );
        return Err(Refusal::held(Reason::NamespaceSelectorInvalid, message));
    };
    if !parsed.matches(labels) {
        let hint = selector
            .match_labels
            .as_ref()
            .filter(|l| !l.is_empty())
            .map_or_else(String::new, |wanted| {
                let wanted: Vec<String> = wanted
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                format!(" (it wants the label {})", wanted.join(" and "))
            });
        let message = format!(
            "namespace {} is not selected by spec.namespaceSelector of LLMProvider {name}{hint}: ask the platform \
                 team to label the namespace",
            seen.namespace_name()
        );
        return Err(Refusal::denied(Reason::NamespaceNotAllowed, message));
    }
    let offered = &provider.spec.allowed_models;
    let wanted = &seen.access.spec.models;
    let refused: Vec<&str> = wanted
        .iter()
        .filter(|model| !offers(offered, model))
        .map(String::as_str)
        .collect();
    if !refused.is_empty() {
        let message = format!(
            "spec.models asks for {}, which LLMProvider {name} does not allow: remove it, or ask the platform team to \
             add it to spec.allowedModels (allowed are {})",
            refused.join(", "),
            offered.join(", ")
        );
        return Err(Refusal::denied(Reason::ModelNotAllowed, message));
    }
    Ok(if wanted.is_empty() {
        offered.clone()
    } else {
        wanted.clone()
    })
}

/// Whether a list of models, each exact or a prefix and `*`, covers a model (or a whole pattern). An empty list covers all.
fn offers(offered: &[String], wanted: &str) -> bool {
    offered.is_empty()
        || offered.iter().any(|entry| match entry.strip_suffix('*') {
            Some(prefix) => wanted.starts_with(prefix),
            None => entry == wanted,
        })
}

fn proxied(seen: &Observation, provider: &LLMProvider) -> Result<bool, Refusal> {
    if !provider.spec.is_proxied(&seen.access.spec.injection) {
        return Ok(false);
    }
    match provider.spec.proxy_hindrance() {
        None => Ok(true),
        Some(why) => {
            let message =
                format!("spec.injection.proxy (or spec.proxy of the LLMProvider) is not possible: {why}");
            Err(Refusal::held(Reason::ProxyUnsupported, message))
        }
    }
}

/// Who has a name that an access needs.
#[derive(PartialEq, Eq)]
enum Occupant {
    /// Nobody, or the access.
    NobodyElse,
    /// Somebody who hands it over.
    HandedOver,
}

fn occupied(seen: &Observation, wanted: &str) -> Result<Occupant, Refusal> {
    let namespace = seen.namespace_name();
    let conflict = |text: String| Err(Refusal::held(Reason::SecretConflict, text));
    let Some(secret) = seen.secrets.get(wanted) else {
        let older = seen
            .others
            .iter()
            .filter(|other| other.secret_name == wanted && is_older(other, seen))
            .min_by_key(
                // The oldest of all is the one that will get it.
                |other| (other.created, other.name.clone()),
            );
        return match older {
            Some(rival) => conflict(format!(
                "spec.secretName {wanted} is also claimed by the older LLMAccess {}: choose another spec.secretName",
                rival.name
            )),
            None => Ok(Occupant::NobodyElse),
        };
    };
    if secret.is_owned_by(seen.uid()) {
        if secret.terminating {
            return conflict(format!(
                "Secret {namespace}/{wanted} is being deleted, but kept by the finalizers {}: waiting until they are removed",
                secret.finalizers.join(", ")
            ));
        }
        return Ok(Occupant::NobodyElse);
    }
    match &secret.controller {
        Some(owner) if owner.kind == "LLMAccess" => match seen.others.iter().find(|other| other.uid == owner.uid) {
            Some(rival) => conflict(format!(
                "Secret {namespace}/{wanted} belongs to LLMAccess {}: choose another spec.secretName",
                rival.name
            )),
            None => conflict(format!(
                "Secret {namespace}/{wanted} belongs to LLMAccess {} that was deleted: waiting until the garbage \
                 collector removes it",
                owner.name
            )),
        },
        owner => handed_over(secret, seen.name()).map_err(|why_not| {
            let text = match (why_not, owner) {
                (Some(why_not), _) => format!(
                    "Secret {namespace}/{wanted} is annotated {}={}, but {why_not}: delete it, or choose another \
                     spec.secretName",
                    names::ADOPT_ANNOTATION,
                    seen.name()
                ),
                (None, Some(owner)) => format!(
                    "Secret {namespace}/{wanted} belongs to {} {}: choose another spec.secretName",
                    owner.kind, owner.name
                ),
                (None, None) => format!(
                    "Secret {namespace}/{wanted} exists and is not llmwarden's: choose another spec.secretName, delete \
                     that Secret, or hand it over: kubectl annotate secret {wanted} -n {namespace} {}={}",
                    names::ADOPT_ANNOTATION,
                    seen.name()
                ),
            };
            Refusal::held(Reason::SecretConflict, text)
        }),
    }
}

/// `Err(None)`: nobody asked for it. `Err(Some(why))`: it was asked for, but cannot be done.
fn handed_over(secret: &ObservedSecret, access: &str) -> Result<Occupant, Option<String>> {
    if secret
        .annotations
        .get(names::ADOPT_ANNOTATION)
        .is_none_or(|to| to != access)
    {
        return Err(None);
    }
    if let Some(owner) = &secret.controller {
        return Err(Some(format!("{} {} controls it", owner.kind, owner.name)));
    }
    match &secret.content {
        Some(content) if content.kind != "Opaque" => {
            Err(Some(format!("its type is {}, not Opaque", content.kind)))
        }
        Some(content) if content.immutable => Err(Some("it is immutable".to_owned())),
        _ => Ok(Occupant::HandedOver),
    }
}

fn is_older(other: &Claim, seen: &Observation) -> bool {
    let own = Claim::from(seen.access.as_ref());
    (other.created, &other.name) < (own.created, &own.name)
}

/// The key that a provider's `secretRef` points at.
pub fn master_key(
    provider: &LLMProvider,
    master: Option<&Master>,
    trusted: &[String],
) -> Result<SecretString, Refusal> {
    let name = provider.metadata.name.as_deref().unwrap_or_default();
    let held = |reason, text: String| Err(Refusal::held(reason, text));
    let auth = &provider.spec.auth;
    let (AuthType::ApiKey, Some(api_key)) = (auth.kind, &auth.api_key) else {
        return held(
            Reason::AuthTypeUnsupported,
            format!("LLMProvider {name} has an auth.type that is not available yet: use auth.type apiKey"),
        );
    };
    if api_key.issuer.is_some() {
        // With an issuer the master is an admin key: handing that out would be far worse than handing out nothing.
        return held(
            Reason::IssuerUnsupported,
            format!(
                "LLMProvider {name} has auth.apiKey.issuer, which is not available yet: remove it and put a key for \
                 applications, not an admin key, into the master Secret"
            ),
        );
    }
    let SecretRef {
        name: secret,
        namespace,
        key,
    } = &api_key.secret_ref;
    let at = format!("auth.apiKey.secretRef of LLMProvider {name}");
    if !trusted.contains(namespace) {
        return held(
            Reason::MasterSecretNotTrusted,
            format!(
                "{at} points into namespace {namespace}, which the controller does not trust: move the Secret to the \
                 controller's own namespace, or start the controller with --trusted-namespace {namespace}"
            ),
        );
    }
    let Some(master) = master else {
        return held(
            Reason::MasterSecretMissing,
            format!(
                "{at}: Secret {namespace}/{secret} does not exist: kubectl create secret generic {secret} -n {namespace} \
                 --from-file={key}=<file with the key>"
            ),
        );
    };
    if let Some(why) = master.forbidden {
        return held(
            Reason::MasterSecretForbidden,
            format!("{at}: Secret {namespace}/{secret} cannot be a master Secret, {why}: name another one"),
        );
    }
    match master.values.get(key) {
        Some(MasterValue::Key(value)) => Ok(value.clone()),
        Some(MasterValue::Empty) => held(
            Reason::MasterKeyEmpty,
            format!("{at}: `{key}` of Secret {namespace}/{secret} is empty: put the key there"),
        ),
        Some(MasterValue::Invalid) => held(
            Reason::MasterKeyInvalid,
            format!(
                "{at}: `{key}` of Secret {namespace}/{secret} is not one line of printable ASCII of at most 64 KiB: put \
                 the key there, and nothing else"
            ),
        ),
        // What else the Secret holds is none of the tenants' business, who read this too.
        None => held(
            Reason::MasterKeyMissing,
            format!("{at}: Secret {namespace}/{secret} has no `{key}`: add it, or correct secretRef.key"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_models_cover_what_they_name() {
        let list = |entries: &[&str]| entries.iter().map(|&e| e.to_owned()).collect::<Vec<_>>();
        for (offered, wanted, covered) in [
            (&[][..], "anything", true),
            (&["gpt-4o"], "gpt-4o", true),
            (&["gpt-4o"], "gpt-4o-mini", false),
            (&["gpt-*"], "gpt-4o", true),
            (&["gpt-*"], "gpt-4*", true),
            (&["gpt-4*"], "gpt-*", false),
            (&["gpt-4o"], "gpt-*", false),
            (&["*"], "claude-opus-4-6", true),
        ] {
            assert_eq!(offers(&list(offered), wanted), covered, "{offered:?} {wanted}");
        }
    }
}
