//! Wires the watches, the index and the two controllers, and runs until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum_server::Handle;
use futures::{Stream, StreamExt};
use kube::api::Api;
use kube::runtime::controller::{Config, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Resource};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::provider::LLMProvider;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::certificates::keep::Keeper;
use crate::certificates::plan::Lifetimes;
use crate::certificates::serving::{self, Serving};
use crate::config::RunOptions;
use crate::index::watch::{self, News, SharedIndex};
use crate::inject::serve::Webhook;
use crate::instance::Instance;
use crate::lease::Candidacy;
use crate::metrics::{Exposition, Metrics};
use crate::refresh::Refresher;
use crate::{access, admin, inject, provider};

/// How long open connections of the webhook may take to finish.
const ADMISSION_DRAIN: Duration = Duration::from_secs(5);
/// How many accesses are worked on at a time.
const CONCURRENCY: u16 = 32;
/// How long passes may take to finish. Pods get 30 s by default.
const DRAIN: Duration = Duration::from_secs(20);
/// A provider's count of accesses is written at most this often.
const PROVIDER_DEBOUNCE: Duration = Duration::from_millis(500);

/// Runs the controller until SIGTERM or SIGINT: passes that have begun are finished.
pub fn run(options: RunOptions) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run_async(options))
}

async fn run_async(options: RunOptions) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let client = Client::try_default()
        .await
        .context("cannot reach an API server: run in a pod, or set KUBECONFIG to a kubeconfig file")?;
    let instance = Instance::load(client.clone(), &options.namespace).await?;
    let trusted = options.master_namespaces();
    let served = options.served_namespaces();

    let index = SharedIndex::default();
    let metrics = Metrics::default();
    let listed = CancellationToken::new();
    let exposition = Exposition::new(&metrics, index.clone());
    let mut parts = JoinSet::new();
    let serving = Arc::new(Serving::default());
    let (certificates, certificates_seen) = tokio::sync::watch::channel(None);
    let admits = options.webhook.listen.is_some();
    if admits {
        parts.spawn(serving::follow(
            client.clone(),
            options.namespace.clone(),
            serving.clone(),
            metrics.clone(),
            certificates,
        ));
    }
    let (all_listed, certified) = (listed.clone(), serving.clone());
    let waits_for = move || match (all_listed.is_cancelled(), certified.is_loaded() || !admits) {
        (false, _) => Some("the first complete lists from the API server"),
        (true, false) => Some("the webhook's certificate"),
        (true, true) => None,
    };
    parts.spawn(admin::serve(options.status, exposition, waits_for));
    let mut pending = watch::start(&client, &index, &trusted, &served, admits, &mut parts);
    tokio::select! {
        all = pending.wait_for(|count| *count == 0) => { all.context("a watch ended")?; }
        ended = parts.join_next() => return part_ended(ended),
        () = stop.cancelled() => return Ok(()),
    }
    listed.cancel();
    info!(namespace = options.namespace, "everything is listed");
    let admission = Handle::new();
    let scope = options.scope();
    if let Some(address) = options.webhook.listen {
        let webhook = Webhook {
            index: index.clone(),
            scope: scope.clone(),
            trusted: trusted.clone(),
            template: options.webhook.template(),
            metrics: metrics.clone(),
        };
        let tls = serving::tls(serving).context("cannot prepare TLS")?;
        parts.spawn(inject::serve::serve(address, webhook, tls, admission.clone()));
    }

    let writer = Writer {
        accesses: Arc::new(access::reconcile::Context {
            client: client.clone(),
            index: index.clone(),
            settings: access::plan::Settings {
                trusted: trusted.clone(),
                served,
                denial_grace: options.denial_grace,
                instance,
                injects: admits.then_some(scope),
            },
            recorder: Recorder::new(client.clone(), Reporter::from("llmwarden-controller")),
            told: access::told::Told::default(),
            folding: access::folding::Folding::default(),
            superseded: access::superseded::Superseded::default(),
            metrics: metrics.clone(),
        }),
        providers: Arc::new(provider::Context {
            client: client.clone(),
            index: index.clone(),
            trusted,
        }),
        refresher: Refresher {
            client: client.clone(),
            index,
            metrics: metrics.clone(),
        },
        certificates: admits.then(|| Keeper {
            client: client.clone(),
            namespace: options.namespace.clone(),
            configuration: options.webhook.configuration.clone(),
            names: options.webhook.names(&options.namespace),
            lifetimes: Lifetimes::with_settle(options.webhook.settle),
            seen: certificates_seen,
        }),
    };
    let mut candidacy = Candidacy::start(client, &options.namespace, &options.identity).await?;
    lead(&mut candidacy, &writer, &metrics, &mut parts, &stop).await?;
    // Answers that are being made are still wanted: the webhook is the one part that ends now.
    admission.graceful_shutdown(Some(ADMISSION_DRAIN));
    let ended = candidacy.end().await;
    if admits {
        let _ = tokio::time::timeout(ADMISSION_DRAIN, parts.join_next()).await;
    }
    ended.context("cannot give the Lease back")?;
    info!("stopped");
    Ok(())
}

/// Writes whenever the Lease is held, until the stop.
async fn lead(
    candidacy: &mut Candidacy,
    writer: &Writer,
    metrics: &Metrics,
    parts: &mut JoinSet<anyhow::Result<()>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        tokio::select! {
            leads = candidacy.leads.wait_for(|leads| *leads) => { leads.context("the campaign for the Lease ended")?; }
            ended = parts.join_next() => return part_ended(ended),
            () = stop.cancelled() => break,
        }
        info!("holds the Lease, reconciling");
        metrics.leads(true);
        let tenure = stop.child_token();
        let lost = async {
            // An ended campaign is seen at the next turn.
            let _ = candidacy.leads.wait_for(|leads| !*leads).await;
            warn!("lost the Lease");
            tenure.cancel();
            std::future::pending::<()>().await;
        };
        // A controller of kube's that is stopped before its first list is there waits for that for ever.
        let overdue = async {
            tenure.cancelled().await;
            tokio::time::sleep(DRAIN).await;
            warn!("passes were under way at the end");
        };
        tokio::select! {
            () = writer.write(&tenure) => {}
            () = overdue => {}
            () = lost => {}
            ended = parts.join_next() => return part_ended(ended),
        }
        metrics.leads(false);
    }
    Ok(())
}

/// None of them ends before the stop: a restart is better than a controller without one of its parts.
fn part_ended(ended: Option<Result<anyhow::Result<()>, JoinError>>) -> anyhow::Result<()> {
    match ended {
        Some(outcome) => outcome.context("a part of the controller failed")?,
        None => Ok(()),
    }
}

/// What the holder of the Lease does.
struct Writer {
    accesses: Arc<access::reconcile::Context>,
    providers: Arc<provider::Context>,
    refresher: Refresher,
    certificates: Option<Keeper>,
}

impl Writer {
    /// Reconciles everything that there is, and then what changes, until the end of the tenure.
    async fn write(&self, tenure: &CancellationToken) {
        let client = &self.accesses.client;
        let News {
            accesses: access_queue,
            providers: provider_queue,
            pods,
        } = self.accesses.index.subscribe();
        let (reader, writer) = reflector::store();
        let watched = watcher(Api::<LLMAccess>::all(client.clone()), watcher::Config::default())
            // Who set which field is most of an object in memory, and nothing is decided by it.
            .modify(|access| access.metadata.managed_fields = None)
            .reflect(writer)
            .applied_objects();
        let accesses = Controller::for_stream(watched, reader)
            .with_config(Config::default().concurrency(CONCURRENCY))
            .reconcile_on(queue(access_queue))
            .graceful_shutdown_on(tenure.clone().cancelled_owned())
            .run(
                access::reconcile::reconcile,
                access::reconcile::on_error,
                self.accesses.clone(),
            )
            .for_each(|_| std::future::ready(()));
        let providers = Controller::new(
            Api::<LLMProvider>::all(client.clone()),
            watcher::Config::default(),
        )
        .with_config(Config::default().debounce(PROVIDER_DEBOUNCE))
        .reconcile_on(queue(provider_queue))
        .graceful_shutdown_on(tenure.clone().cancelled_owned())
        .run(provider::reconcile, provider::on_error, self.providers.clone())
        .for_each(|_| std::future::ready(()));
        let certificates = async {
            if let Some(keeper) = &self.certificates {
                keeper.keep(tenure).await;
            }
        };
        tokio::join!(
            accesses,
            providers,
            certificates,
            self.refresher.run(pods, tenure)
        );
    }
}

fn queue<K: Resource<DynamicType = ()> + 'static>(
    receiver: UnboundedReceiver<kube::runtime::reflector::ObjectRef<K>>,
) -> impl Stream<Item = kube::runtime::reflector::ObjectRef<K>> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async {
        let next = receiver.recv().await?;
        Some((next, receiver))
    })
}

fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("told to stop");
        told.cancel();
    });
    Ok(stop)
}
