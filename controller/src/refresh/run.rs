//! Carries out what is planned, pod by pod.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::core::Status;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::scheduler::{ScheduleRequest, scheduler};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::errors::describe;
use llmwarden_proto::names;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::ask::ask;
use super::plan::{Progress, Step, has_arrived, plan};
use crate::index::pod::{Pod, Report, Told};
use crate::index::watch::{PodNews, SharedIndex};
use crate::index::{Affected, Key};
use crate::metrics::Metrics;

/// How many pods are patched at a time. A thousand take about a second.
const REQUESTS_AT_A_TIME: usize = 16;
/// How many sidecars are asked at a time: most answer at once, but those that can't be reached take their time.
const QUESTIONS_AT_A_TIME: usize = 128;
/// How soon one is asked whose turn it was not: nobody stands in line, so that a new version finds every pod ready.
const NEXT_TURN: Duration = Duration::from_millis(200);
/// How long a patch may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often the status of an access follows what its pods say.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// The most that is remembered of what a sidecar lacks, and of each word of it: it ends in the status.
const MAX_LACKING: (usize, usize) = (8, 64);

/// What the holder of the Lease needs to keep running pods up to date.
pub struct Refresher {
    /// The API server.
    pub client: Client,
    /// What the watches saw, and what sidecars said.
    pub index: SharedIndex,
    /// What is counted.
    pub metrics: Metrics,
}

/// Whether what is refused is that a pod's UID changes: another pod has the name.
fn is_of_another(status: &Status) -> bool {
    let details = status.details.as_ref();
    details.is_some_and(|details| details.causes.iter().any(|cause| cause.field == "metadata.uid"))
}

/// A look at a pod that is over.
struct Look {
    key: Key,
    progress: Option<Progress>,
    again: Option<Duration>,
}

impl Refresher {
    /// Looks at all pods, and then at those that something happened to, until the end of the tenure.
    pub async fn run(&self, mut news: UnboundedReceiver<PodNews>, tenure: &CancellationToken) {
        let (requests, receiver) = unbounded_channel();
        let look_at = |key: Key, after: Duration| {
            let request = ScheduleRequest {
                message: key,
                run_at: tokio::time::Instant::now() + after,
            };
            // The scheduler lives as long as this.
            let _ = requests.send(request);
        };
        for key in self.index.read().pods() {
            look_at(key.clone(), Duration::ZERO);
        }
        let receiver = futures::stream::unfold(receiver, |mut receiver| async {
            let next = receiver.recv().await?;
            Some((next, receiver))
        });
        let mut due = std::pin::pin!(scheduler(receiver));
        let limits = (
            Semaphore::new(REQUESTS_AT_A_TIME),
            Semaphore::new(QUESTIONS_AT_A_TIME),
        );
        let mut looks = FuturesUnordered::new();
        let mut under_way: HashSet<Key> = HashSet::new();
        let mut progress: HashMap<Key, Progress> = HashMap::new();
        let mut counted: HashSet<ObjectRef<LLMAccess>> = HashSet::new();
        let mut count = tokio::time::interval(COUNT_INTERVAL);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut ready = due.as_mut().hold_unless(|key| !under_way.contains(key));
            tokio::select! {
                () = tenure.cancelled() => return,
                Some(news) = news.recv() => match news {
                    PodNews::Changed(key) => look_at(key, Duration::ZERO),
                    PodNews::Counted(access) => { counted.insert(access); }
                },
                Some(key) = ready.next() => {
                    let before = progress.remove(&key).unwrap_or_else(|| Progress::new(Instant::now()));
                    under_way.insert(key.clone());
                    looks.push(self.look(key, before, &limits));
                }
                Some(look) = looks.next() => {
                    under_way.remove(&look.key);
                    if let Some(after) = look.again {
                        look_at(look.key.clone(), after);
                    }
                    if let Some(made) = look.progress {
                        progress.insert(look.key, made);
                    }
                }
                _ = count.tick(), if !counted.is_empty() => {
                    let accesses = std::mem::take(&mut counted);
                    self.index.update(|_| Affected { accesses, ..Affected::default() });
                }
            }
        }
    }

    /// Does what comes next for a pod.
    async fn look(
        &self,
        key: Key,
        mut progress: Progress,
        (requests, questions): &(Semaphore, Semaphore),
    ) -> Look {
        let (pod, step) = {
            let index = self.index.read();
            let Some(pod) = index.pod(&key).map(Arc::clone) else {
                drop(index);
                self.note(&key, None);
                return Look {
                    key,
                    progress: None,
                    again: None,
                };
            };
            let wanted = index.wanted(&key.0, &pod);
            let step = plan(&pod, &wanted, index.report(&key), &mut progress, Instant::now());
            (pod, step)
        };
        let again = match step {
            Step::Rest => None,
            Step::Wait(pause) => Some(pause),
            Step::Request(text) => {
                let _turn = requests.acquire().await.expect("it is never closed");
                let outcome = self.request(&key, &pod, &text).await;
                match outcome {
                    Ok(()) => {
                        let first = progress.requests() == 0;
                        self.metrics
                            .refreshed(if first { "requested" } else { "repeated" });
                        progress.requested(Instant::now());
                        Some(Duration::ZERO)
                    }
                    Err(failure) => {
                        self.metrics.refreshed("failed");
                        failure.map(|error| {
                            let pause = progress.failed();
                            let (namespace, pod) = (&key.0, &key.1);
                            warn!(
                                namespace,
                                pod,
                                error,
                                ?pause,
                                "a pod could not be refreshed and is tried again"
                            );
                            pause
                        })
                    }
                }
            }
            Step::Question(address) => match questions.try_acquire() {
                Ok(_turn) => {
                    let arrived = match ask(address).await {
                        Ok(told) => Some(self.heard(&key, &pod, told)),
                        Err(error) => {
                            let error = format!("{error:#}");
                            debug!(namespace = key.0, pod = key.1, error, "a sidecar does not answer");
                            None
                        }
                    };
                    progress.questioned(arrived, Instant::now());
                    Some(Duration::ZERO)
                }
                Err(_) => Some(NEXT_TURN),
            },
        };
        Look {
            key,
            progress: Some(progress),
            again,
        }
    }

    /// Changes the annotation, of this very pod. `Err(None)`: it is gone.
    async fn request(&self, key: &Key, pod: &Pod, text: &str) -> Result<(), Option<String>> {
        let api: Api<v1::Pod> = Api::namespaced(self.client.clone(), &key.0);
        let change =
            json!({ "metadata": { "uid": pod.uid, "annotations": { names::REFRESH_ANNOTATION: text } } });
        let (params, change) = (PatchParams::default(), Patch::Merge(change));
        let patched = api.patch_status(&key.1, &params, &change);
        match tokio::time::timeout(PATIENCE, patched).await {
            Ok(Ok(_)) => {
                debug!(
                    namespace = key.0,
                    pod = key.1,
                    versions = text,
                    "asked the kubelet to refresh"
                );
                Ok(())
            }
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => Err(None),
            Ok(Err(kube::Error::Api(status))) if is_of_another(&status) => Err(None),
            Ok(Err(error)) => Err(Some(describe(&error))),
            Err(_) => Err(Some("the API server did not answer in time".to_owned())),
        }
    }

    /// Remembers what a sidecar said. Says whether everything has arrived.
    fn heard(&self, key: &Key, pod: &Pod, mut told: BTreeMap<String, Told>) -> bool {
        told.retain(|access, _| pod.accesses.contains(access));
        for told in told.values_mut() {
            told.lacking.truncate(MAX_LACKING.0);
            for word in &mut told.lacking {
                *word = word
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(MAX_LACKING.1)
                    .collect();
            }
        }
        let Some(run) = pod.sidecar.clone() else {
            return false;
        };
        let report = Report { run, accesses: told };
        let wanted = self.index.read().wanted(&key.0, pod);
        let arrived = has_arrived(pod, &wanted, &report);
        self.note(key, Some(report));
        arrived
    }

    fn note(&self, key: &Key, report: Option<Report>) {
        self.index.update(|index| {
            if !index.note_report(key, report) {
                return Affected::default();
            }
            let pod = index.pod(key);
            let accesses = pod.iter().flat_map(|pod| &pod.accesses);
            Affected {
                counted: accesses
                    .map(|access| ObjectRef::new(access).within(&key.0))
                    .collect(),
                ..Affected::default()
            }
        });
    }
}
