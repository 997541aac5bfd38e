//! What the watches saw, in memory: providers, namespaces, accesses, Secrets (digests only) and master keys.
//!
//! Updates are synchronous and return what they touch; [`watch`] feeds them from the API server.

pub mod master;
pub mod secret;
pub mod watch;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names;
use llmwarden_proto::provider::LLMProvider;

use self::master::Master;
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
}

/// One kind of thing that is indexed.
pub trait Kind: Sized + Clone {
    /// The map of this kind.
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self>;
    /// What depends on this entry.
    fn affects(index: &Index, key: &Key, entry: &Self) -> Affected;
}

/// Everything the watches saw.
#[derive(Default)]
pub struct Index {
    providers: BTreeMap<Key, Arc<LLMProvider>>,
    namespaces: BTreeMap<Key, NamespaceLabels>,
    claims: BTreeMap<Key, Claim>,
    managed: BTreeMap<Key, Managed>,
    foreign: BTreeMap<Key, Foreign>,
    masters: BTreeMap<Key, Arc<Master>>,
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
        let mut affected = K::affects(self, key, &entry);
        if let Some(old) = K::table(self).insert(key.clone(), entry) {
            affected.merge(K::affects(self, key, &old));
        }
        affected
    }

    /// Takes out an object that is gone.
    pub fn delete<K: Kind>(&mut self, key: &Key) -> Affected {
        K::table(self)
            .remove(key)
            .map(|old| K::affects(self, key, &old))
            .unwrap_or_default()
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

    /// Every Secret in a namespace that an access owns.
    pub fn owned_by(&self, namespace: &str, uid: &str) -> Vec<Arc<ObservedSecret>> {
        let managed = within(&self.managed, namespace).map(|m| &m.0);
        let foreign = within(&self.foreign, namespace).map(|f| &f.0);
        managed
            .chain(foreign)
            .filter(|secret| secret.is_owned_by(uid))
            .map(Arc::clone)
            .collect()
    }

    /// Every access of a namespace.
    pub fn claims_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Claim> {
        within(&self.claims, namespace)
    }

    /// How many accesses use a provider.
    pub fn access_count(&self, provider: &str) -> usize {
        self.claims
            .values()
            .filter(|claim| claim.provider == provider)
            .count()
    }

    fn accesses_using(&self, provider: &str) -> impl Iterator<Item = ObjectRef<LLMAccess>> {
        self.claims
            .iter()
            .filter(move |(_, claim)| claim.provider == provider)
            .map(|(key, _)| access_ref(key))
    }
}

impl Affected {
    fn merge(&mut self, other: Self) {
        self.accesses.extend(other.accesses);
        self.providers.extend(other.providers);
    }
}

impl Kind for Arc<LLMProvider> {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.providers
    }

    fn affects(index: &Index, key: &Key, _: &Self) -> Affected {
        Affected {
            accesses: index.accesses_using(&key.1).collect(),
            // A provider's own controller watches it.
            providers: HashSet::new(),
        }
    }
}

impl Kind for NamespaceLabels {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.namespaces
    }

    fn affects(index: &Index, key: &Key, _: &Self) -> Affected {
        let accesses = index
            .claims_in(&key.1)
            .map(|claim| ObjectRef::new(&claim.name).within(&key.1))
            .collect();
        Affected {
            accesses,
            providers: HashSet::new(),
        }
    }
}

impl Kind for Claim {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.claims
    }

    fn affects(index: &Index, key: &Key, claim: &Self) -> Affected {
        let rivals = index
            .claims_in(&key.0)
            .filter(|other| other.secret_name == claim.secret_name && other.uid != claim.uid)
            .map(|other| ObjectRef::new(&other.name).within(&key.0))
            .collect();
        Affected {
            accesses: rivals,
            providers: HashSet::from([ObjectRef::new(&claim.provider)]),
        }
    }
}

impl Kind for Managed {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.managed
    }

    fn affects(index: &Index, key: &Key, secret: &Self) -> Affected {
        affected_by_secret(index, key, &secret.0)
    }
}

impl Kind for Foreign {
    fn table(index: &mut Index) -> &mut BTreeMap<Key, Self> {
        &mut index.foreign
    }

    fn affects(index: &Index, key: &Key, secret: &Self) -> Affected {
        affected_by_secret(index, key, &secret.0)
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
        }
    }
}

/// The owner, and whoever would like to have the name.
fn affected_by_secret(index: &Index, key: &Key, secret: &ObservedSecret) -> Affected {
    let (namespace, name) = key;
    let companion_of = name.strip_suffix(names::COMPANION_SUFFIX);
    let accesses = index
        .claims_in(namespace)
        .filter(|claim| {
            claim.secret_name == *name
                || companion_of == Some(claim.name.as_str())
                || secret.is_owned_by(&claim.uid)
        })
        .map(|claim| ObjectRef::new(&claim.name).within(namespace))
        .collect();
    Affected {
        accesses,
        providers: HashSet::new(),
    }
}

/// The entries of one namespace. Keys are ordered by namespace first, so that no other is looked through.
fn within<'a, V>(table: &'a BTreeMap<Key, V>, namespace: &'a str) -> impl Iterator<Item = &'a V> {
    table
        .range((namespace.to_owned(), String::new())..)
        .take_while(move |(key, _)| key.0 == namespace)
        .map(|(_, v)| v)
}

fn cluster_key(name: &str) -> Key {
    (String::new(), name.to_owned())
}

fn access_ref(key: &Key) -> ObjectRef<LLMAccess> {
    ObjectRef::new(&key.1).within(&key.0)
}
