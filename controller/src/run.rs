//! Wires the watches, the index and the two controllers, and runs until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::{Stream, StreamExt};
use kube::api::Api;
use kube::runtime::controller::{Config, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Client, Resource};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::provider::LLMProvider;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::RunOptions;
use crate::index::watch::{self, SharedIndex};
use crate::instance::Instance;
use crate::{access, provider};

/// How many accesses are worked on at a time.
const CONCURRENCY: u16 = 32;
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

    let (access_triggers, access_queue) = unbounded_channel();
    let (provider_triggers, provider_queue) = unbounded_channel();
    let index = SharedIndex::new(access_triggers, provider_triggers);
    let mut watches = JoinSet::new();
    let mut pending = watch::start(&client, &index, &trusted, &served, &mut watches);
    tokio::select! {
        listed = pending.wait_for(|count| *count == 0) => { listed.context("a watch ended")?; }
        () = stop.cancelled() => return Ok(()),
    }
    info!(namespace = options.namespace, "everything is listed, reconciling");

    let reporter = Reporter {
        controller: "llmwarden-controller".into(),
        instance: None,
    };
    let accesses = Arc::new(access::reconcile::Context {
        client: client.clone(),
        index: index.clone(),
        settings: access::plan::Settings {
            trusted: trusted.clone(),
            served,
            denial_grace: options.denial_grace,
            instance,
        },
        recorder: Recorder::new(client.clone(), reporter),
    });
    let providers = Arc::new(provider::Context {
        client: client.clone(),
        index,
        trusted,
    });
    let access_controller =
        Controller::new(Api::<LLMAccess>::all(client.clone()), watcher::Config::default())
            .with_config(Config::default().concurrency(CONCURRENCY))
            .reconcile_on(queue(access_queue))
            .graceful_shutdown_on(stop.clone().cancelled_owned())
            .run(
                access::reconcile::reconcile,
                access::reconcile::on_error,
                accesses,
            )
            .for_each(|_| std::future::ready(()));
    let provider_controller = Controller::new(Api::<LLMProvider>::all(client), watcher::Config::default())
        .with_config(Config::default().debounce(PROVIDER_DEBOUNCE))
        .reconcile_on(queue(provider_queue))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(provider::reconcile, provider::on_error, providers)
        .for_each(|_| std::future::ready(()));
    tokio::join!(access_controller, provider_controller);
    info!("stopped");
    Ok(())
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
