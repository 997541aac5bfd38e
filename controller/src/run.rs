//! Wires the watches, the index and the two controllers, and runs until it is told to stop.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum_server::Handle;
use futures::{StreamExt, stream};
use kube::runtime::controller::{Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::recorders::Recorders;
use crate::certificates::keep::Keeper;
use crate::certificates::plan::Lifetimes;
use crate::certificates::serving::{self, Serving};
use crate::config::RunOptions;
use crate::index::watch::{self, News, SharedIndex, Watched};
use crate::inject::serve::Webhook;
use crate::instance::Instance;
use crate::lease::Candidacy;
use crate::metrics::{Exposition, Metrics};
use crate::pulse::Pulse;
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
    let waits_for = waits_for(listed.clone(), admits.then(|| serving.clone()));
    let exposition = Exposition::new(&metrics, index.clone());
    parts.spawn(admin::serve(options.status, exposition, waits_for));
    let (mut pending, watched) = watch::start(&client, &index, &trusted, &served, admits, &mut parts);
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

    let pulse = Pulse::default();
    parts.spawn(pulse.clone().feel());
    let writer = Writer {
        watched,
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
            recorders: Recorders::new(&client),
            told: access::told::Told::default(),
            folding: access::folding::Folding::default(),
            superseded: access::superseded::Superseded::default(),
            pulse,
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

/// What a controller that is not ready yet waits for.
fn waits_for(
    listed: CancellationToken,
    serving: Option<Arc<Serving>>,
) -> impl Fn() -> Option<&'static str> + Clone + Send + Sync + 'static {
    move || {
        let is_certified = serving.as_ref().is_none_or(|serving| serving.is_loaded());
        match (listed.is_cancelled(), is_certified) {
            (false, _) => Some("the first complete lists from the API server"),
            (true, false) => Some("the webhook's certificate"),
            (true, true) => None,
        }
    }
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
        // A pass that hangs does not hold up the end.
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
    watched: Watched,
    accesses: Arc<access::reconcile::Context>,
    providers: Arc<provider::Context>,
    refresher: Refresher,
    certificates: Option<Keeper>,
}

impl Writer {
    /// Reconciles everything that there is, and then what changes, until the end of the tenure.
    async fn write(&self, tenure: &CancellationToken) {
        let News {
            accesses: access_queue,
            providers: provider_queue,
            pods,
        } = self.accesses.index.subscribe();
        let accesses = controller(&self.watched.accesses, access_queue)
            .with_config(Config::default().concurrency(CONCURRENCY))
            .graceful_shutdown_on(tenure.clone().cancelled_owned())
            .run(
                access::reconcile::reconcile,
                access::reconcile::on_error,
                self.accesses.clone(),
            )
            .for_each(|_| std::future::ready(()));
        let providers = controller(&self.watched.providers, provider_queue)
            .with_config(Config::default().debounce(PROVIDER_DEBOUNCE))
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

/// A controller of what is watched already: it begins with all that there is, and goes on with what is queued.
fn controller<K>(watched: &Store<K>, queue: UnboundedReceiver<ObjectRef<K>>) -> Controller<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let all = watched.state();
    let all: Vec<_> = all
        .iter()
        .map(|object| ObjectRef::from_obj(object.as_ref()))
        .collect();
    let later = stream::unfold(queue, |mut queue| async {
        let next = queue.recv().await?;
        Some((next, queue))
    });
    Controller::for_stream(stream::pending(), watched.clone()).reconcile_on(stream::iter(all).chain(later))
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
