//! How fast a key is delivered. A delivery through the API server is compared with a bare client that watches the same
//! Secret in the same rotations.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::watcher;
use llmwarden_proto::names;
use llmwarden_tests::readers::Readers;
use llmwarden_tests::sidecar::{self, Sidecar};
use llmwarden_tests::{Installation, Volume, volume};
use serde::Serialize;
use tokio::sync::watch;

use crate::figures::{Report, Weight, percentile};

/// Of each way.
pub const ROTATIONS: usize = 1000;
const SOON: Duration = Duration::from_secs(30);
/// Of the guide's example.
const NAMESPACE: &str = "kagent";
const ACCESS: &str = "agent-anthropic";
const MASTER: &str = "anthropic-master-key";

/// Times from a write until a reader has the new key.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    from: &'static str,
    to: &'static str,
    p50_ms: f64,
    p99_ms: f64,
    /// Against the bare watch in the same rotations; absent where nothing bare does the same.
    p50_of_bare: Option<f64>,
}

impl Delivery {
    /// A line of the table.
    pub fn line(&self) -> String {
        let way = format!("{} → {}", self.from, self.to);
        let ratio = self
            .p50_of_bare
            .map(|ratio| format!("{ratio:.2}"))
            .unwrap_or_default();
        format!("{way:<52}{:>10.2}{:>10.2}{ratio:>12}", self.p50_ms, self.p99_ms)
    }
}

/// Measures every way.
pub async fn measure(report: &mut Report) -> Result<()> {
    let llmwarden = Installation::start_logging(&[], "info").await?;
    llmwarden.create_namespace(NAMESPACE, true).await?;
    watched_secret(&llmwarden, report).await?;
    mounted_volume(report).await?;
    through_the_controller(&llmwarden, report).await?;
    let controller = llmwarden.controller_pid().context("it runs")?;
    report
        .weights
        .push(Weight::resident("controller, memory", controller)?);
    Ok(())
}

/// `kube` source: from the request that writes the companion, next to a bare watch of the same Secret. (A watch hears
/// of a write before the writer does, so its answer would be no beginning.)
async fn watched_secret(llmwarden: &Installation, report: &mut Report) -> Result<()> {
    let secrets = Api::<Secret>::namespaced(llmwarden.client(), NAMESPACE);
    let name = names::companion("unmanaged");
    let mut secret = secrets
        .create(&PostParams::default(), &companion(&name, 0)?)
        .await?;
    let sidecar = start_watching(llmwarden, &name).await?;
    let readers = read(&sidecar).await?;

    let (seen, mut bare) = watch::channel((usize::MAX, Instant::now()));
    let mut changes = watcher::watch_object(secrets.clone(), &name).boxed();
    let watching = tokio::spawn(async move {
        while let Some(Ok(Some(secret))) = changes.next().await {
            let key = secret.data.unwrap_or_default().remove(names::API_KEY);
            let number =
                key.and_then(|ByteString(key)| String::from_utf8(key).ok()?.rsplit('-').next()?.parse().ok());
            seen.send_replace((number.unwrap_or(usize::MAX), Instant::now()));
        }
    });

    let mut times: [Vec<Duration>; 3] = Default::default();
    for number in 1..=ROTATIONS {
        readers.expect(&key(number));
        secret.data = None;
        secret.string_data = companion(&name, number)?.string_data;
        let begun = Instant::now();
        secret = secrets.replace(&name, &PostParams::default(), &secret).await?;
        let (file, endpoint) = readers.saw(&key(number), SOON).await?;
        let (_, watched) = *bare.wait_for(|(seen, _)| *seen == number).await?;
        for (times, at) in times.iter_mut().zip([watched, file, endpoint]) {
            times.push(at.saturating_duration_since(begun));
        }
    }
    watching.abort();
    check(&readers)?;
    report.weights.push(Weight::resident(
        "sidecar with a kube source, memory",
        sidecar.process().pid(),
    )?);
    let from = "write of the companion Secret";
    let [bare, file, endpoint] = times;
    let bare = delivery(from, "a bare watch", bare, None);
    let baseline = Some(bare.p50_ms);
    report.deliveries.push(bare);
    report.deliveries.push(delivery(from, "file", file, baseline));
    report
        .deliveries
        .push(delivery(from, "endpoint", endpoint, baseline));
    Ok(())
}

/// `volume` source: from before the directory is written and swapped, as the kubelet does it.
async fn mounted_volume(report: &mut Report) -> Result<()> {
    let mut volume = Volume::new()?;
    volume.publish(version(0)?, &key(0))?;
    let sidecar = Sidecar::start(sidecar::Options::new([volume.source(ACCESS)])).await?;
    let readers = read(&sidecar).await?;
    let mut times: [Vec<Duration>; 2] = Default::default();
    for number in 1..=ROTATIONS {
        readers.expect(&key(number));
        let begun = Instant::now();
        volume.publish(version(number)?, &key(number))?;
        let (file, endpoint) = readers.saw(&key(number), SOON).await?;
        for (times, at) in times.iter_mut().zip([file, endpoint]) {
            times.push(at.saturating_duration_since(begun));
        }
    }
    check(&readers)?;
    report.weights.push(Weight::resident(
        "sidecar with a volume source, memory",
        sidecar.process().pid(),
    )?);
    let [file, endpoint] = times;
    report
        .deliveries
        .push(delivery("write of the companion volume", "file", file, None));
    report.deliveries.push(delivery(
        "write of the companion volume",
        "endpoint",
        endpoint,
        None,
    ));
    Ok(())
}

/// The whole way: from the request that writes the master Secret, through the controller.
async fn through_the_controller(llmwarden: &Installation, report: &mut Report) -> Result<()> {
    llmwarden.create_master_key(MASTER, &key(0)).await?;
    for file in ["provider", "access"] {
        llmwarden
            .run_kubectl(&format!("apply -f examples/kagent/single/{file}.yaml"))
            .await?;
    }
    let name = names::companion(ACCESS);
    let sidecar = start_watching(llmwarden, &name).await?;
    let readers = read(&sidecar).await?;
    let mut times: [Vec<Duration>; 2] = Default::default();
    for number in 1..=ROTATIONS {
        readers.expect(&key(number));
        let begun = Instant::now();
        llmwarden.replace_master_key(MASTER, &key(number)).await?;
        let (file, endpoint) = readers.saw(&key(number), SOON).await?;
        for (times, at) in times.iter_mut().zip([file, endpoint]) {
            times.push(at.saturating_duration_since(begun));
        }
    }
    check(&readers)?;
    let [file, endpoint] = times;
    report
        .deliveries
        .push(delivery("write of the master Secret", "file", file, None));
    report
        .deliveries
        .push(delivery("write of the master Secret", "endpoint", endpoint, None));
    Ok(())
}

async fn start_watching(llmwarden: &Installation, secret: &str) -> Result<Sidecar> {
    let account = llmwarden.account(NAMESPACE, secret).await?;
    llmwarden.make_admin(NAMESPACE, secret).await?;
    let options = sidecar::Options {
        account: Some(account),
        log_level: "info".to_owned(),
        ..sidecar::Options::new([format!("{ACCESS}=kube:{NAMESPACE}/{secret}")])
    };
    Sidecar::start(options).await
}

/// Readers of what the sidecar delivers, once both have the first key.
async fn read(sidecar: &Sidecar) -> Result<Readers> {
    let url = sidecar.url(&format!("/v1/keys/{ACCESS}/{}", names::API_KEY));
    let file = sidecar.file(ACCESS, names::API_KEY);
    let readers = Readers::start(file, &url, &sidecar.auth_header(), &key(0))?;
    readers.saw(&key(0), SOON).await?;
    Ok(readers)
}

/// Speed by way of broken reads is none.
fn check(readers: &Readers) -> Result<()> {
    let (file, endpoint) = readers.tallies();
    ensure!(
        file.torn + file.backward + endpoint.torn + endpoint.backward == 0,
        "a reader got what no agent should get: {file:?} {endpoint:?}"
    );
    Ok(())
}

fn key(number: usize) -> String {
    format!("sk-ant-bench-{}-{number}", "0123456789abcdef".repeat(6))
}

fn version(number: usize) -> Result<u64> {
    Ok(u64::try_from(number)? + 1)
}

fn companion(name: &str, number: usize) -> Result<Secret> {
    let document = volume::document(version(number)?);
    let data = [
        (names::API_KEY, key(number)),
        (names::LIVE_JSON, serde_json::to_string(&document)?),
    ];
    Ok(Secret {
        metadata: kube::api::ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        string_data: Some(data.map(|(name, value)| (name.to_owned(), value)).into()),
        ..Secret::default()
    })
}

fn delivery(from: &'static str, to: &'static str, mut times: Vec<Duration>, bare: Option<f64>) -> Delivery {
    times.sort();
    let milliseconds = |percent| percentile(&times, percent).as_secs_f64() * 1000.0;
    Delivery {
        from,
        to,
        p50_ms: milliseconds(50),
        p99_ms: milliseconds(99),
        p50_of_bare: bare.map(|bare| milliseconds(50) / bare),
    }
}
