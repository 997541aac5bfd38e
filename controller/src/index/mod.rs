//! What the watches saw, in memory: providers, namespaces, accesses, Secrets (digests only) and master keys.
//!
//! Updates are synchronous and return what they touch; [`watch`] feeds them from the API server.

pub mod agent;
pub mod health;
pub mod master;
pub mod offer;
pub mod pod;
pub mod secret;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names;
use llmwarden_proto::provider::LLMProvider;

use self::agent::AgentWish;
pub use self::health::Health;
use self::master::Master;
use self::offer::Offer;
use self::pod::{Labelled, Report, Unlabelled};
use self::secret::ObservedSecret;

/// Namespace (empty for cluster-scoped objects) and name.
pub type Key = (String, String);

/// What other accesses have to know of an access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// When it was created; the oldest claim wins.
    pub created: Option<Timestamp>,
    /// The Secret it claims.
    pub secret_name: String,
    /// The provider it uses.
    pub provider: String,
}

impl From<&LLMAccess> for Claim {
    fn from(access: &LLMAccess) -> Self {
        Self {
            name: access.metadata.name.clone().unwrap_or_default(),
            uid: access.metadata.uid.clone().unwrap_or_default(),
            created: access.metadata.creation_timestamp.as_ref().map(|time| time.0),
            secret_name: access.spec.secret_name.clone(),
            provider: access.spec.provider_ref.name.clone(),
        }
    }
}

/// What an update concerns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// Accesses to reconcile.
    pub accesses: HashSet<ObjectRef<LLMAccess>>,
    /// Providers to reconcile.
    pub providers: HashSet<ObjectRef<LLMProvider>>,
    /// Pods to look at: they, or a companion that they mount, changed.
    pub pods: HashSet<Key>,
    /// Accesses whose pods changed: their status counts them.
    pub counted: HashSet<ObjectRef<LLMAccess>>,
}

/// One kind of thing that is indexed.
pub trait Kind: Sized + Clone {
    /// The map of this kind.
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self>;
    /// What depends on this entry.
    fn affects(index: &Index, key: &Key, entry: &Self) -> Affected;
    /// Every way by which the entry is found besides its key.
    fn ways<'a>(index: &'a mut Index, key: &Key, entry: &Self) -> Vec<(&'a mut Ways, Vec<Key>)> {
        let _ = (index, key, entry);
        Vec::new()
    }
    /// Whether nothing that is remembered differs, so that nothing follows. Asked of what changes often without it.
    fn is_same(&self, other: &Self) -> bool {
        let _ = other;
        false
    }
}

/// Everything the watches saw.
#[derive(Default)]
pub struct Index {
    providers: BTreeMap<Key, Arc<LLMProvider>>,
    namespaces: BTreeMap<Key, NamespaceLabels>,
    claims: BTreeMap<Key, Claim>,
    claims_by_provider: Ways,
    claims_by_secret: Ways,
    claims_by_uid: Ways,
    health: BTreeMap<Key, Health>,
    offers: BTreeMap<Key, Arc<Offer>>,
    agents: BTreeMap<Key, AgentWish>,
    managed: BTreeMap<Key, Managed>,
    managed_by_owner: Ways,
    foreign: BTreeMap<Key, Foreign>,
    foreign_by_owner: Ways,
    masters: BTreeMap<Key, Arc<Master>>,
    labelled: BTreeMap<Key, Labelled>,
    unlabelled: BTreeMap<Key, Unlabelled>,
    pods_by_access: Ways,
    reports: BTreeMap<Key, Report>,
}

/// From something that entries have in common to their keys, so that none of them has to be looked for.
#[derive(Debug, Default)]
pub struct Ways(BTreeMap<Key, BTreeSet<Key>>);

impl Ways {
    fn add(&mut self, from: Key, to: &Key) {
        self.0.entry(from).or_default().insert(to.clone());
    }

    fn remove(&mut self, from: &Key, to: &Key) {
        if let Some(all) = self.0.get_mut(from) {
            all.remove(to);
            if all.is_empty() {
                self.0.remove(from);
            }
        }
    }

    fn keys<'a>(&'a self, from: &Key) -> impl Iterator<Item = &'a Key> + use<'a> {
        self.0.get(from).into_iter().flatten()
    }
}

/// Labels of a namespace.
pub type NamespaceLabels = BTreeMap<String, String>;

/// A Secret that carries llmwarden's label.
#[derive(Clone)]
pub struct Managed(pub Arc<ObservedSecret>);

/// A Secret that does not: only its metadata is known.
#[derive(Clone)]
pub struct Foreign(pub Arc<ObservedSecret>);

impl Index {
    /// Takes in an object that is new or changed.
    pub fn apply<K: Kind>(&mut self, key: &Key, entry: K) -> Affected {
        if K::table(self).get(key).is_some_and(|old| old.is_same(&entry)) {
            return Affected::default();
        }
        let mut affected = self.delete::<K>(key);
        affected.merge(K::affects(self, key, &entry));
        for (ways, all) in K::ways(self, key, &entry) {
            for from in all {
                ways.add(from, key);
            }
        }
        K::table(self).insert(key.clone(), entry);
        affected
    }

    /// Takes out an object that is gone.
    pub fn delete<K: Kind>(&mut self, key: &Key) -> Affected {
        let Some(old) = K::table(self).remove(key) else {
            return Affected::default();
        };
        for (ways, all) in K::ways(self, key, &old) {
            for from in all {
                ways.remove(&from, key);
            }
        }
        K::affects(self, key, &old)
    }

    /// Replaces the entries that `scope` selects by what a complete list found.
    pub fn reset<K: Kind>(&mut self, scope: impl Fn(&Key) -> bool, listed: BTreeMap<Key, K>) -> Affected {
        let gone: Vec<Key> = K::table(self)
            .keys()
            .filter(|key| scope(key) && !listed.contains_key(*key))
            .cloned()
            .collect();
        let mut affected = Affected::default();
        for key in gone {
            affected.merge(self.delete::<K>(&key));
        }
        for (key, entry) in listed {
            affected.merge(self.apply(&key, entry));
        }
        affected
    }

    /// A provider.
    pub fn provider(&self, name: &str) -> Option<Arc<LLMProvider>> {
        self.providers.get(&cluster_key(name)).cloned()
    }

    /// A namespace's labels; `None` when there is no such namespace (or it was not seen yet).
    pub fn namespace(&self, name: &str) -> Option<&NamespaceLabels> {
        self.namespaces.get(&cluster_key(name))
    }

    /// A Secret in a namespace that master keys may live in.
    pub fn master(&self, namespace: &str, name: &str) -> Option<Arc<Master>> {
        self.masters
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// A Secret, whosever it is.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<Arc<ObservedSecret>> {
        let key = (namespace.to_owned(), name.to_owned());
        // For a moment both may know it, when the label came or went: the newer one is right, but a label that is
        // there means that the content is known, and every write has a precondition.
        self.managed
            .get(&key)
            .map(|m| Arc::clone(&m.0))
            .or_else(|| self.foreign.get(&key).map(|f| Arc::clone(&f.0)))
    }

    /// Every Secret in a namespace that an access owns. (An owner in another namespace is none.)
    pub fn owned_by(&self, namespace: &str, uid: &str) -> Vec<Arc<ObservedSecret>> {
        let owner = (namespace.to_owned(), uid.to_owned());
        let managed = self.managed_by_owner.keys(&owner);
        let foreign = self.foreign_by_owner.keys(&owner);
        managed
            .filter_map(|key| self.managed.get(key).map(|secret| Arc::clone(&secret.0)))
            .chain(foreign.filter_map(|key| self.foreign.get(key).map(|secret| Arc::clone(&secret.0))))
            .collect()
    }

    /// Every access of a namespace that wants this Secret.
    pub fn claims_of(&self, namespace: &str, secret: &str) -> impl Iterator<Item = &Claim> {
        self.claims_by_secret
            .keys(&(namespace.to_owned(), secret.to_owned()))
            .filter_map(|key| self.claims.get(key))
    }

    /// The access of a namespace that controls a Secret there.
    pub fn owner_of(&self, namespace: &str, secret: &ObservedSecret) -> Option<&Claim> {
        let owner = (namespace.to_owned(), secret.controller.as_ref()?.uid.clone());
        let key = self.claims_by_uid.keys(&owner).next()?;
        self.claims.get(key)
    }

    /// Whether a Secret's name is taken from the access with this UID: somebody else has it, or an older access wants it.
    pub fn is_others(&self, namespace: &str, secret: &str, uid: &str) -> bool {
        match self.secret(namespace, secret) {
            Some(secret) => !secret.is_owned_by(uid),
            None => self
                .claims_of(namespace, secret)
                .min_by_key(|claim| (claim.created, &claim.name))
                .is_some_and(|oldest| oldest.uid != uid),
        }
    }

    /// How many accesses use a provider.
    pub fn access_count(&self, provider: &str) -> usize {
        self.claims_by_provider.keys(&cluster_key(provider)).count()
    }

    /// How many accesses use each provider that is used at all.
    pub fn accesses_per_provider(&self) -> Vec<(String, usize)> {
        let all = self.claims_by_provider.0.iter();
        all.map(|((_, provider), accesses)| (provider.clone(), accesses.len()))
            .collect()
    }

    /// How every access is.
    pub fn health(&self) -> Vec<(Key, Health)> {
        let all = self.health.iter();
        all.map(|(key, health)| (key.clone(), health.clone())).collect()
    }

    /// What an access offers to pods.
    pub fn offer(&self, namespace: &str, access: &str) -> Option<&Arc<Offer>> {
        self.offers.get(&(namespace.to_owned(), access.to_owned()))
    }

    /// What every access of a namespace offers to pods, by name.
    pub fn offers(&self, namespace: &str) -> impl Iterator<Item = &Arc<Offer>> {
        // Keys are ordered by namespace first, so that no other is looked through.
        self.offers
            .range((namespace.to_owned(), String::new())..)
            .take_while(move |((of, _), _)| of == namespace)
            .map(|(_, offer)| offer)
    }

    /// The accesses that a kagent Agent's annotation names.
    pub fn agent_wish(&self, namespace: &str, agent: &str) -> Option<&str> {
        let wish = self.agents.get(&(namespace.to_owned(), agent.to_owned()))?;
        wish.0.as_deref()
    }

    fn accesses_using(&self, provider: &str) -> impl Iterator<Item = ObjectRef<LLMAccess>> {
        self.claims_by_provider
            .keys(&cluster_key(provider))
            .map(access_ref)
    }
}

impl Affected {
    fn merge(&mut self, other: Self) {
        self.accesses.extend(other.accesses);
        self.providers.extend(other.providers);
        self.pods.extend(other.pods);
        self.counted.extend(other.counted);
    }
}

impl Kind for Arc<LLMProvider> {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.providers
    }

    fn affects(index: &Index, key: &Key, _: &Self) -> Affected {
        Affected {
            accesses: index.accesses_using(&key.1).collect(),
            // It itself is looked at whatever of it changes.
            ..Affected::default()
        }
    }

    /// Its status is of no interest here: it changes with each of its accesses, and would bring all of them a pass.
    fn is_same(&self, other: &Self) -> bool {
        self.metadata.uid == other.metadata.uid && self.spec == other.spec
    }
}

impl Kind for NamespaceLabels {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.namespaces
    }

    fn affects(index: &Index, key: &Key, _: &Self) -> Affected {
        // Keys are ordered by namespace first, so that no other is looked through.
        let accesses = index
            .claims
            .range((key.1.clone(), String::new())..)
            .take_while(|((namespace, _), _)| *namespace == key.1)
            .map(|(key, _)| access_ref(key))
            .collect();
        Affected {
            accesses,
            ..Affected::default()
        }
    }
}

impl Kind for Claim {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.claims
    }

    fn affects(index: &Index, key: &Key, claim: &Self) -> Affected {
        let rivals = index
            .claims_of(&key.0, &claim.secret_name)
            .filter(|other| other.uid != claim.uid)
            .map(|other| ObjectRef::new(&other.name).within(&key.0))
            .collect();
        Affected {
            accesses: rivals,
            providers: HashSet::from([ObjectRef::new(&claim.provider)]),
            ..Affected::default()
        }
    }

    fn ways<'a>(index: &'a mut Index, key: &Key, claim: &Self) -> Vec<(&'a mut Ways, Vec<Key>)> {
        vec![
            (&mut index.claims_by_provider, vec![cluster_key(&claim.provider)]),
            (
                &mut index.claims_by_secret,
                vec![(key.0.clone(), claim.secret_name.clone())],
            ),
            (&mut index.claims_by_uid, vec![(key.0.clone(), claim.uid.clone())]),
        ]
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

impl Kind for Managed {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.managed
    }

    fn affects(index: &Index, key: &Key, secret: &Self) -> Affected {
        affected_by_secret(index, key, &secret.0)
    }

    fn ways<'a>(index: &'a mut Index, key: &Key, secret: &Self) -> Vec<(&'a mut Ways, Vec<Key>)> {
        match &secret.0.controller {
            Some(owner) => vec![(
                &mut index.managed_by_owner,
                vec![(key.0.clone(), owner.uid.clone())],
            )],
            None => Vec::new(),
        }
    }
}

impl Kind for Foreign {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.foreign
    }

    fn affects(index: &Index, key: &Key, secret: &Self) -> Affected {
        affected_by_secret(index, key, &secret.0)
    }

    fn ways<'a>(index: &'a mut Index, key: &Key, secret: &Self) -> Vec<(&'a mut Ways, Vec<Key>)> {
        match &secret.0.controller {
            Some(owner) => vec![(
                &mut index.foreign_by_owner,
                vec![(key.0.clone(), owner.uid.clone())],
            )],
            None => Vec::new(),
        }
    }
}

impl Kind for Arc<Master> {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.masters
    }

    fn affects(index: &Index, key: &Key, _: &Self) -> Affected {
        let providers: Vec<&str> =
            index
                .providers
                .values()
                .filter(|provider| {
                    provider.spec.auth.api_key.as_ref().is_some_and(|auth| {
                        auth.secret_ref.namespace == key.0 && auth.secret_ref.name == key.1
                    })
                })
                .filter_map(|provider| provider.metadata.name.as_deref())
                .collect();
        Affected {
            accesses: providers
                .iter()
                .flat_map(|name| index.accesses_using(name))
                .collect(),
            providers: providers.iter().map(|name| ObjectRef::new(name)).collect(),
            ..Affected::default()
        }
    }
}

/// The owner, and whoever would like to have the name.
fn affected_by_secret(index: &Index, (namespace, name): &Key, secret: &ObservedSecret) -> Affected {
    let of = name
        .strip_suffix(names::COMPANION_SUFFIX)
        .map(|access| (namespace.clone(), access.to_owned()));
    let companion_of = of.as_ref().and_then(|access| index.claims.get(access));
    let mounting = of.iter().flat_map(|access| index.pods_by_access.keys(access));
    let owner = index.owner_of(namespace, secret);
    let concerned = index.claims_of(namespace, name).chain(companion_of).chain(owner);
    Affected {
        accesses: concerned
            .map(|claim| ObjectRef::new(&claim.name).within(namespace))
            .collect(),
        pods: mounting.cloned().collect(),
        ..Affected::default()
    }
}

fn cluster_key(name: &str) -> Key {
    (String::new(), name.to_owned())
}

fn access_ref(key: &Key) -> ObjectRef<LLMAccess> {
    ObjectRef::new(&key.1).within(&key.0)
}

#[cfg(test)]
mod tests;
