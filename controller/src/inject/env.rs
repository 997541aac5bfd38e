//! The environment of a container: what it gets, and what of its own stays.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, SecretKeySelector};
use llmwarden_proto::names;

use super::select::{Choice, Proxied};

/// What an SDK of the proxy must reach without another proxy.
const LOCAL: [&str; 2] = ["127.0.0.1", "localhost"];
/// Variables that send requests through another proxy, in capitals; small letters count too.
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
/// The variable that names what goes through none.
const NO_PROXY: &str = "NO_PROXY";

/// Changes of a container's environment.
#[derive(Debug, Default)]
pub struct Variables {
    /// In place of those with these numbers.
    pub replaced: Vec<(usize, EnvVar)>,
    /// At the end.
    pub added: Vec<EnvVar>,
}

/// Changes under construction.
struct Draft<'a> {
    container: &'a Container,
    /// The access that each variable is of.
    given: BTreeMap<String, &'a str>,
    variables: Variables,
    warnings: &'a mut BTreeSet<String>,
}

/// What a container has under a name.
enum Present {
    Nothing,
    /// Its own: left alone.
    Its,
    /// Ours to replace.
    Ours,
}

/// What a container gets for these accesses. Of several that want one variable the first one has it.
pub fn variables(container: &Container, accesses: &[Choice], warnings: &mut BTreeSet<String>) -> Variables {
    let mut draft = Draft {
        container,
        given: BTreeMap::new(),
        variables: Variables::default(),
        warnings,
    };
    for choice in accesses {
        for wanted in &choice.injection.env {
            draft.declared(
                choice,
                from_secret(&wanted.name, &choice.secret_name, &wanted.secret_key),
            );
        }
        if let Some(proxied) = &choice.proxy {
            draft.sdk(choice, proxied);
        }
    }
    if accesses.iter().any(|choice| choice.proxy.is_some()) {
        draft.keep_local();
    }
    draft.variables
}

impl<'a> Draft<'a> {
    /// A variable that the access declares.
    fn declared(&mut self, choice: &'a Choice, wanted: EnvVar) {
        let (name, access) = (&wanted.name, &choice.access);
        if self.given.contains_key(name) {
            self.warnings.insert(format!(
                "{name} is wanted by more than one LLMAccess: the first one has it, not {access}"
            ));
            return;
        }
        self.given.insert(name.clone(), access);
        if matches!(self.present(&wanted, choice), Present::Its) {
            let container = &self.container.name;
            self.warnings.insert(format!(
                "container {container} sets {name} itself, so LLMAccess {access} does not"
            ));
        }
        self.set(choice, wanted);
    }

    /// What the provider's SDKs read: both or none, since a key is good at its own base URL alone.
    fn sdk(&mut self, choice: &'a Choice, proxied: &Proxied) {
        let access = &choice.access;
        let key = from_secret(proxied.env.key, &choice.secret_name, names::API_KEY);
        let base_url = EnvVar {
            name: proxied.env.base_url.to_owned(),
            value: Some(proxied.base_url.clone()),
            value_from: None,
        };
        let url = &proxied.base_url;
        for name in [&key.name, &base_url.name] {
            if self.given.get(name).is_some_and(|of| of != access) {
                self.warnings.insert(format!(
                    "{name} is another LLMAccess's: a client of LLMAccess {access} needs the base URL {url} and the key in \
                     Secret {}",
                    choice.secret_name
                ));
                return;
            }
        }
        for wanted in [&key, &base_url] {
            if matches!(self.present(wanted, choice), Present::Its) {
                self.warnings.insert(format!(
                    "container {} sets {} itself, so it does not go through the proxy of LLMAccess {access}: remove that, or \
                     set the base URL {url}",
                    self.container.name, wanted.name
                ));
                return;
            }
        }
        for wanted in [key, base_url] {
            if self.given.insert(wanted.name.clone(), access).is_none() {
                self.set(choice, wanted);
            }
        }
    }

    fn all(&self, name: &str) -> impl Iterator<Item = (usize, &'a EnvVar)> + use<'a> {
        let name = name.to_owned();
        let all = self.container.env.iter().flatten().enumerate();
        all.filter(move |(_, variable)| variable.name == name)
    }

    /// Of several with one name, the last one counts.
    fn present(&self, wanted: &EnvVar, choice: &Choice) -> Present {
        match self.all(&wanted.name).last() {
            None => Present::Nothing,
            Some((_, last)) if is_ours(last, wanted, choice) => Present::Ours,
            Some(_) => Present::Its,
        }
    }

    fn set(&mut self, choice: &Choice, wanted: EnvVar) {
        if matches!(self.present(&wanted, choice), Present::Nothing) {
            self.variables.added.push(wanted);
            return;
        }
        let ours = self
            .all(&wanted.name)
            .filter(|(_, present)| is_ours(present, &wanted, choice) && !is_same(present, &wanted));
        self.variables
            .replaced
            .extend(ours.map(|(number, _)| (number, wanted.clone())));
    }

    /// Keeps requests to the sidecar from going through another proxy, if the container has one.
    fn keep_local(&mut self) {
        let variables = || self.container.env.iter().flatten();
        if !variables().any(|variable| PROXIES.contains(&variable.name.to_ascii_uppercase().as_str())) {
            return;
        }
        let mut found = false;
        for (number, present) in variables().enumerate() {
            if present.name.to_ascii_uppercase() != NO_PROXY {
                continue;
            }
            found = true;
            if present.value_from.is_some() {
                self.warnings.insert(format!(
                    "{} of container {} is not written in the pod: see that it names {}",
                    present.name,
                    self.container.name,
                    LOCAL.join(",")
                ));
                continue;
            }
            let value = present.value.clone().unwrap_or_default();
            let entries: Vec<&str> = value
                .split(',')
                .map(str::trim)
                .filter(|entry| !entry.is_empty())
                .collect();
            let missing: Vec<&str> = LOCAL
                .into_iter()
                .filter(|local| !entries.contains(local))
                .collect();
            if !entries.contains(&"*") && !missing.is_empty() {
                let variable = EnvVar {
                    value: Some([entries, missing].concat().join(",")),
                    ..present.clone()
                };
                self.variables.replaced.push((number, variable));
            }
        }
        if !found {
            self.variables.added.push(EnvVar {
                name: NO_PROXY.to_owned(),
                value: Some(LOCAL.join(",")),
                value_from: None,
            });
        }
    }
}

fn from_secret(name: &str, secret: &str, key: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: key.to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    }
}

fn secret_key(variable: &EnvVar) -> Option<&SecretKeySelector> {
    variable.value_from.as_ref()?.secret_key_ref.as_ref()
}

/// Ours is what points at the access's Secret, and what is as it should be.
fn is_ours(present: &EnvVar, wanted: &EnvVar, choice: &Choice) -> bool {
    secret_key(present).is_some_and(|reference| reference.name == choice.secret_name)
        || is_same(present, wanted)
}

fn is_same(one: &EnvVar, other: &EnvVar) -> bool {
    match (secret_key(one), secret_key(other)) {
        (Some(one), Some(other)) => one.name == other.name && one.key == other.key,
        (None, None) => one.value_from == other.value_from && one.value == other.value,
        _ => false,
    }
}
