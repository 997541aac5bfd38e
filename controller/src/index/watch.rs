//! Feeds the index from watches, and tells the controllers what to reconcile.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{Api, PartialObjectMeta};
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Client, Resource};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::errors::{describe, describe_watch};
use llmwarden_proto::names;
use llmwarden_proto::provider::LLMProvider;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;

use super::agent::{Agent, AgentWish};
use super::master::Master;
use super::offer::Offer;
use super::pod::{Labelled, Unlabelled};
use super::secret::ObservedSecret;
use super::{Affected, Claim, Foreign, Health, Index, Key, Kind, Managed, access_ref};

/// How often it is looked whether kagent has been installed.
const LOOK_FOR_KAGENT: Duration = Duration::from_mins(1);
/// Pods that have not ended.
const RUNNING: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// How soon after a failure to find that out at the start.
const RETRY: Duration = Duration::from_secs(2);

/// The index, shared by the watches that feed it and the controllers that read it.
#[derive(Clone, Default)]
pub struct SharedIndex(Arc<Shared>);

impl std::fmt::Debug for SharedIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedIndex")
    }
}

#[derive(Default)]
struct Shared {
    index: RwLock<Index>,
    queues: Mutex<Option<Queues>>,
}

/// Where to send what has to be reconciled.
struct Queues {
    accesses: UnboundedSender<ObjectRef<LLMAccess>>,
    providers: UnboundedSender<ObjectRef<LLMProvider>>,
    pods: UnboundedSender<PodNews>,
}

/// The other ends of the queues.
pub struct News {
    /// Accesses to reconcile.
    pub accesses: UnboundedReceiver<ObjectRef<LLMAccess>>,
    /// Providers to reconcile.
    pub providers: UnboundedReceiver<ObjectRef<LLMProvider>>,
    /// What happened to pods.
    pub pods: UnboundedReceiver<PodNews>,
}

/// What happened to pods.
#[derive(Debug)]
pub enum PodNews {
    /// A pod, or a companion that it mounts, changed.
    Changed(Key),
    /// The pods of an access changed, or what they say.
    Counted(ObjectRef<LLMAccess>),
}

impl SharedIndex {
    /// The index, to read.
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        // Updates do not panic half-way, so what a panicked writer left is as good as any.
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, what has to be reconciled. Before anybody asks for it, and when nobody does any more, it is not kept:
    /// who begins to reconcile looks at everything.
    pub fn subscribe(&self) -> News {
        let (accesses, access_queue) = unbounded_channel();
        let (providers, provider_queue) = unbounded_channel();
        let (pods, pod_queue) = unbounded_channel();
        *self.queues() = Some(Queues {
            accesses,
            providers,
            pods,
        });
        News {
            accesses: access_queue,
            providers: provider_queue,
            pods: pod_queue,
        }
    }

    /// Updates the index and passes on what that affects.
    pub fn update(&self, change: impl FnOnce(&mut Index) -> Affected) {
        let affected = change(&mut self.0.index.write().unwrap_or_else(PoisonError::into_inner));
        let queues = self.queues();
        let Some(queues) = queues.as_ref() else { return };
        // A closed queue means that its reader has stopped.
        for access in affected.accesses {
            let _ = queues.accesses.send(access);
        }
        for provider in affected.providers {
            let _ = queues.providers.send(provider);
        }
        let pods = affected.pods.into_iter().map(PodNews::Changed);
        for news in pods.chain(affected.counted.into_iter().map(PodNews::Counted)) {
            let _ = queues.pods.send(news);
        }
    }

    fn queues(&self) -> MutexGuard<'_, Option<Queues>> {
        self.0.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the controllers read whole, but for who set which field. The same watches feed the index.
pub struct Watched {
    /// All accesses.
    pub accesses: Store<LLMAccess>,
    /// All providers.
    pub providers: Store<LLMProvider>,
}

/// Starts every watch. The first thing that is returned counts those that have not listed everything yet: nothing may be
/// concluded from an absence before all have.
pub fn start(
    client: &Client,
    index: &SharedIndex,
    master_namespaces: &[String],
    served_namespaces: &[String],
    injects: bool,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> (watch::Receiver<usize>, Watched) {
    // Secrets and pods are watched only where they may be read.
    let scopes = match served_namespaces {
        [] => vec![None],
        names => names.iter().map(Some).collect(),
    };
    let injection = usize::from(injects);
    let (pending, listed) =
        watch::channel(3 + (3 + injection) * scopes.len() + injection + master_namespaces.len());
    let done = move || pending.send_modify(|count| *count -= 1);

    let feed = index.clone();
    let (providers, events) = keep_whole::<LLMProvider>(client);
    tasks.spawn(follow(
        events,
        done.clone(),
        Arc::<LLMProvider>::new,
        move |change| feed_provider(&feed, change),
    ));

    let feed = index.clone();
    tasks.spawn(drive(
        Api::<PartialObjectMeta<Namespace>>::all(client.clone()),
        Config::default(),
        done.clone(),
        |namespace: PartialObjectMeta<Namespace>| namespace.metadata.labels.unwrap_or_default(),
        move |change| feed_kind(&feed, change, |_| true),
    ));

    let feed = index.clone();
    let (accesses, events) = keep_whole::<LLMAccess>(client);
    tasks.spawn(follow(events, done.clone(), Seen::from, move |change| {
        feed_access(&feed, change);
    }));

    let ours = format!("{}={}", names::MANAGED_BY_LABEL, names::MANAGED_BY);
    let not_ours = format!("{}!={}", names::MANAGED_BY_LABEL, names::MANAGED_BY);
    // The label only spares reading others' pods whole.
    let injected = format!("{}=true", names::INJECTED_LABEL);
    let not_injected = format!("{}!=true", names::INJECTED_LABEL);
    for scope in scopes {
        let feed = index.clone();
        let within = is_in(scope);
        tasks.spawn(drive(
            within_scope::<Secret>(client, scope),
            Config::default().labels(&ours),
            done.clone(),
            |secret| Managed(Arc::new(ObservedSecret::from(secret))),
            move |change| feed_kind(&feed, change, &within),
        ));

        let feed = index.clone();
        let within = is_in(scope);
        tasks.spawn(drive(
            within_scope::<PartialObjectMeta<Secret>>(client, scope),
            Config::default().labels(&not_ours),
            done.clone(),
            |secret| Foreign(Arc::new(ObservedSecret::from_metadata(secret.metadata))),
            move |change| feed_kind(&feed, change, &within),
        ));

        let feed = index.clone();
        let within = is_in(scope);
        tasks.spawn(drive(
            within_scope::<Pod>(client, scope),
            Config::default().labels(&injected).fields(RUNNING),
            done.clone(),
            Labelled::from,
            move |change| feed_kind(&feed, change, &within),
        ));

        if injects {
            let feed = index.clone();
            let within = is_in(scope);
            tasks.spawn(drive(
                within_scope::<PartialObjectMeta<Pod>>(client, scope),
                Config::default().labels(&not_injected).fields(RUNNING),
                done.clone(),
                Unlabelled::from,
                move |change| feed_kind(&feed, change, &within),
            ));
        }
    }

    if injects {
        tasks.spawn(watch_agents(client.clone(), index.clone(), done.clone()));
    }

    for namespace in master_namespaces {
        let feed = index.clone();
        let within = is_in(Some(namespace));
        tasks.spawn(drive(
            within_scope::<Secret>(client, Some(namespace)),
            Config::default(),
            done.clone(),
            |secret| Arc::new(Master::from(secret)),
            move |change| feed_kind(&feed, change, &within),
        ));
    }
    (listed, Watched { accesses, providers })
}

/// Watches what is kept whole.
fn keep_whole<K>(client: &Client) -> (Store<K>, impl Stream<Item = watcher::Result<Event<K>>> + use<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let (store, kept) = reflector::store();
    let events = watcher(Api::<K>::all(client.clone()), Config::default())
        // Who set which field is most of an object in memory, and nothing is decided by it.
        .modify(|object| object.meta_mut().managed_fields = None)
        .reflect(kept);
    (store, events)
}

/// What is in one namespace, or in all.
fn within_scope<K>(client: &Client, namespace: Option<&String>) -> Api<K>
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

/// kagent may not be installed, or come later.
async fn watch_agents(client: Client, feed: SharedIndex, listed: impl FnOnce() + Send) -> anyhow::Result<()> {
    let mut listed = Some(listed);
    loop {
        match agents_are_served(&client).await {
            Ok(true) => break,
            Ok(false) => {
                if let Some(listed) = listed.take() {
                    listed();
                }
            }
            // Nothing is known then, and nothing concluded.
            Err(error) => {
                let error = describe(&error);
                warn!(error, "cannot find out whether kagent is installed");
            }
        }
        let pause = if listed.is_some() { RETRY } else { LOOK_FOR_KAGENT };
        tokio::time::sleep(pause).await;
    }
    drive(
        Api::<PartialObjectMeta<Agent>>::all(client),
        Config::default(),
        move || {
            if let Some(listed) = listed {
                listed();
            }
        },
        AgentWish::from,
        move |change| feed_kind(&feed, change, |_| true),
    )
    .await
}

async fn agents_are_served(client: &Client) -> Result<bool, kube::Error> {
    let version = format!("{}/{}", Agent::GROUP, Agent::VERSION);
    match client.list_api_group_resources(&version).await {
        Ok(served) => Ok(served
            .resources
            .iter()
            .any(|resource| resource.name == Agent::PLURAL)),
        // By its code: of a group that is not there the API server speaks in plain text.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Something a watch saw.
enum Change<E> {
    Apply(Key, E),
    Delete(Key),
    /// A complete list.
    Reset(BTreeMap<Key, E>),
}

fn feed_kind<E: Kind>(feed: &SharedIndex, change: Change<E>, scope: impl Fn(&Key) -> bool) {
    match change {
        Change::Apply(key, entry) => feed.update(|index| index.apply(&key, entry)),
        Change::Delete(key) => feed.update(|index| index.delete::<E>(&key)),
        Change::Reset(all) => feed.update(|index| index.reset(scope, all)),
    }
}

/// Three things are remembered of an access: how it is, which changes most often, what it offers to pods, and what it wants,
/// which others depend on.
struct Seen {
    health: Health,
    offer: Arc<Offer>,
    claim: Claim,
}

impl From<LLMAccess> for Seen {
    fn from(access: LLMAccess) -> Self {
        Self {
            health: Health::from(&access),
            offer: Arc::new(Offer::from(&access)),
            claim: Claim::from(&access),
        }
    }
}

fn feed_access(feed: &SharedIndex, change: Change<Seen>) {
    match change {
        Change::Apply(key, seen) => feed.update(|index| {
            let mut affected = index.apply(&key, seen.health);
            affected.merge(index.apply(&key, seen.offer));
            affected.merge(index.apply(&key, seen.claim));
            affected.accesses.insert(access_ref(&key));
            affected
        }),
        Change::Delete(key) => feed.update(|index| {
            let mut affected = index.delete::<Health>(&key);
            affected.merge(index.delete::<Arc<Offer>>(&key));
            affected.merge(index.delete::<Claim>(&key));
            affected
        }),
        Change::Reset(all) => {
            let listed: HashSet<_> = all.keys().map(access_ref).collect();
            let (mut health, mut offers, mut claims) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            for (key, seen) in all {
                health.insert(key.clone(), seen.health);
                offers.insert(key.clone(), seen.offer);
                claims.insert(key, seen.claim);
            }
            feed.update(|index| {
                let mut affected = index.reset::<Health>(|_| true, health);
                affected.merge(index.reset::<Arc<Offer>>(|_| true, offers));
                affected.merge(index.reset::<Claim>(|_| true, claims));
                affected.accesses.extend(listed);
                affected
            });
        }
    }
}

/// Whatever changes of a provider is looked at, also its status, which the index does not remember.
fn feed_provider(feed: &SharedIndex, change: Change<Arc<LLMProvider>>) {
    let provider = |key: &Key| ObjectRef::new(&key.1);
    feed.update(|index| match change {
        Change::Apply(key, entry) => {
            let mut affected = index.apply(&key, entry);
            affected.providers.insert(provider(&key));
            affected
        }
        Change::Delete(key) => index.delete::<Arc<LLMProvider>>(&key),
        Change::Reset(all) => {
            let listed: Vec<_> = all.keys().map(provider).collect();
            let mut affected = index.reset(|_| true, all);
            affected.providers.extend(listed);
            affected
        }
    });
}

/// Watches objects of which the index alone remembers anything: whole ones are not kept, not even those of a list.
async fn drive<K, E>(
    api: Api<K>,
    config: Config,
    listed: impl FnOnce(),
    entry: impl Fn(K) -> E,
    feed: impl FnMut(Change<E>),
) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    follow(watcher(api, config), listed, entry, feed).await
}

/// Feeds what the index is to remember of each object.
async fn follow<K, E>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    listed: impl FnOnce(),
    entry: impl Fn(K) -> E,
    mut feed: impl FnMut(Change<E>),
) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()>,
{
    let mut listed = Some(listed);
    let mut list = BTreeMap::new();
    let mut events = std::pin::pin!(events.default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => list.clear(),
            Ok(Event::InitApply(object)) => {
                list.insert(key(&object), entry(object));
            }
            Ok(Event::InitDone) => {
                feed(Change::Reset(std::mem::take(&mut list)));
                if let Some(listed) = listed.take() {
                    listed();
                }
            }
            Ok(Event::Apply(object)) => feed(Change::Apply(key(&object), entry(object))),
            Ok(Event::Delete(object)) => feed(Change::Delete(key(&object))),
            Err(error) => {
                warn!(kind = %K::kind(&()), error = describe_watch(&error), "a watch failed and is tried again");
            }
        }
    }
    anyhow::bail!("the watch of {} ended", K::kind(&()))
}

fn key<K: Resource>(object: &K) -> Key {
    let metadata = object.meta();
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}
