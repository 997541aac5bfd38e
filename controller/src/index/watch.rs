//! Feeds the index from watches, and tells the controllers what to reconcile.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, PartialObjectMeta};
use kube::core::NamespaceResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Client, Resource};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names;
use llmwarden_proto::provider::LLMProvider;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;

use super::master::Master;
use super::secret::ObservedSecret;
use super::{Affected, Claim, Foreign, Index, Key, Kind, Managed};

/// The index, shared by the watches that feed it and the controllers that read it.
#[derive(Clone)]
pub struct SharedIndex {
    index: Arc<RwLock<Index>>,
    accesses: UnboundedSender<ObjectRef<LLMAccess>>,
    providers: UnboundedSender<ObjectRef<LLMProvider>>,
}

impl SharedIndex {
    /// An empty index, with where to send what has to be reconciled.
    pub fn new(
        accesses: UnboundedSender<ObjectRef<LLMAccess>>,
        providers: UnboundedSender<ObjectRef<LLMProvider>>,
    ) -> Self {
        Self {
            index: Arc::default(),
            accesses,
            providers,
        }
    }

    /// The index, to read.
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        // Updates do not panic half-way, so what a panicked writer left is as good as any.
        self.index
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Updates the index and passes on what that affects.
    pub fn update(&self, change: impl FnOnce(&mut Index) -> Affected) {
        let affected = change(
            &mut self
                .index
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        // A closed channel means that the process is stopping.
        for access in affected.accesses {
            let _ = self.accesses.send(access);
        }
        for provider in affected.providers {
            let _ = self.providers.send(provider);
        }
    }
}

/// Starts every watch. The second value turns true once each of them has listed everything: nothing may be concluded
/// from an absence before.
pub fn start(
    client: &Client,
    index: &SharedIndex,
    master_namespaces: &[String],
    served_namespaces: &[String],
    tasks: &mut JoinSet<()>,
) -> watch::Receiver<usize> {
    // Secrets are watched only where they may be read.
    let scopes = match served_namespaces {
        [] => vec![None],
        names => names.iter().map(Some).collect(),
    };
    let (pending, listed) = watch::channel(3 + 2 * scopes.len() + master_namespaces.len());
    let done = move || pending.send_modify(|count| *count -= 1);

    let feed = index.clone();
    tasks.spawn(drive(
        Api::<LLMProvider>::all(client.clone()),
        Config::default(),
        done.clone(),
        move |change| feed_kind(&feed, change, |_| true, Arc::<LLMProvider>::new),
    ));

    let feed = index.clone();
    tasks.spawn(drive(
        Api::<PartialObjectMeta<Namespace>>::all(client.clone()),
        Config::default(),
        done.clone(),
        move |change| {
            let labels =
                |namespace: PartialObjectMeta<Namespace>| namespace.metadata.labels.unwrap_or_default();
            feed_kind(&feed, change, |_| true, labels);
        },
    ));

    let feed = index.clone();
    tasks.spawn(drive(
        Api::<LLMAccess>::all(client.clone()),
        Config::default(),
        done.clone(),
        move |change| feed_kind(&feed, change, |_| true, |access: LLMAccess| Claim::from(&access)),
    ));

    let ours = format!("{}={}", names::MANAGED_BY_LABEL, names::MANAGED_BY);
    let not_ours = format!("{}!={}", names::MANAGED_BY_LABEL, names::MANAGED_BY);
    for scope in scopes {
        let feed = index.clone();
        let within = is_in(scope);
        tasks.spawn(drive(
            secrets::<Secret>(client, scope),
            Config::default().labels(&ours),
            done.clone(),
            move |change| {
                let observed = |secret: Secret| Managed(Arc::new(ObservedSecret::from(secret)));
                feed_kind(&feed, change, &within, observed);
            },
        ));

        let feed = index.clone();
        let within = is_in(scope);
        tasks.spawn(drive(
            secrets::<PartialObjectMeta<Secret>>(client, scope),
            Config::default().labels(&not_ours),
            done.clone(),
            move |change| {
                let observed = |secret: PartialObjectMeta<Secret>| {
                    Foreign(Arc::new(ObservedSecret::from_metadata(secret.metadata)))
                };
                feed_kind(&feed, change, &within, observed);
            },
        ));
    }

    for namespace in master_namespaces {
        let feed = index.clone();
        let within = is_in(Some(namespace));
        tasks.spawn(drive(
            secrets::<Secret>(client, Some(namespace)),
            Config::default(),
            done.clone(),
            move |change| {
                feed_kind(&feed, change, &within, |secret| Arc::new(Master::from(secret)));
            },
        ));
    }
    listed
}

/// Secrets, or their metadata, of one namespace or of all.
fn secrets<K>(client: &Client, namespace: Option<&String>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Whether a key is of this namespace, or of any.
fn is_in(namespace: Option<&String>) -> impl Fn(&Key) -> bool + use<> {
    let namespace = namespace.cloned();
    move |key| namespace.as_ref().is_none_or(|namespace| key.0 == *namespace)
}

/// Something a watch saw.
enum Change<K> {
    Apply(Key, K),
    Delete(Key),
    /// A complete list.
    Reset(BTreeMap<Key, K>),
}

fn feed_kind<K, E: Kind>(
    feed: &SharedIndex,
    change: Change<K>,
    scope: impl Fn(&Key) -> bool,
    entry: impl Fn(K) -> E,
) {
    match change {
        Change::Apply(key, object) => feed.update(|index| index.apply(&key, entry(object))),
        Change::Delete(key) => feed.update(|index| index.delete::<E>(&key)),
        Change::Reset(all) => {
            let all = all
                .into_iter()
                .map(|(key, object)| (key, entry(object)))
                .collect();
            feed.update(|index| index.reset(scope, all));
        }
    }
}

async fn drive<K>(api: Api<K>, config: Config, listed: impl FnOnce(), mut feed: impl FnMut(Change<K>))
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut listed = Some(listed);
    let mut list = BTreeMap::new();
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => list.clear(),
            Ok(Event::InitApply(object)) => {
                list.insert(key(&object), object);
            }
            Ok(Event::InitDone) => {
                feed(Change::Reset(std::mem::take(&mut list)));
                if let Some(listed) = listed.take() {
                    listed();
                }
            }
            Ok(Event::Apply(object)) => feed(Change::Apply(key(&object), object)),
            Ok(Event::Delete(object)) => feed(Change::Delete(key(&object))),
            Err(error) => warn!(kind = %K::kind(&()), error = %error, "a watch failed and is tried again"),
        }
    }
}

fn key<K: Resource>(object: &K) -> Key {
    let metadata = object.meta();
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}
