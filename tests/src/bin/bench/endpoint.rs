//! How many requests the endpoint answers on connections that are kept, next to a bare hyper responder. The two are loaded
//! in turns; each server has one core, the load the other one.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use llmwarden_proto::names;
use llmwarden_tests::sidecar::{self, Sidecar};
use llmwarden_tests::{Process, Volume};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::figures::{Weight, percentile};

const ROUNDS: usize = 9;
const CONNECTIONS: usize = 16;
const REQUESTS: usize = 1_000;
const ACCESS: &str = "agent-anthropic";
const SOON: Duration = Duration::from_secs(30);

/// Medians over the rounds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throughput {
    endpoint: Load,
    bare: Load,
    /// Requests a second, endpoint against bare: median of the rounds' ratios.
    ratio: f64,
    idle_kib: u64,
}

/// What a server did under load.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct Load {
    requests_per_second: f64,
    cpu_us_per_request: f64,
}

impl Throughput {
    /// Of the report.
    pub fn table(&self) -> String {
        let line = |what: &str, load: &Load| {
            format!(
                "{what:<52}{:>10.0}{:>14.1}",
                load.requests_per_second, load.cpu_us_per_request
            )
        };
        format!(
            "{:<52}{:>10}{:>14}\n{}\n{}\n{:<52}{:>10.2}",
            format!("{CONNECTIONS} connections, median of {ROUNDS} rounds"),
            "requests/s",
            "CPU µs each",
            line("bare hyper responder", &self.bare),
            line("endpoint", &self.endpoint),
            "endpoint / bare",
            self.ratio
        )
    }
}

/// Measures both in turns.
pub async fn measure() -> Result<Throughput> {
    let key = format!("sk-ant-bench-{}", "0123456789abcdef".repeat(6));
    let mut volume = Volume::new()?;
    volume.publish(1, &key)?;
    let options = sidecar::Options {
        log_level: "info".to_owned(),
        ..sidecar::Options::new([volume.source(ACCESS)])
    };
    let sidecar = Sidecar::start(options).await?;
    llmwarden_tests::try_eventually("the key", SOON, async || {
        let (status, text) = sidecar.probe("/startupz").await?;
        ensure!(status == 200, "{text}");
        Ok(())
    })
    .await?;
    let idle_kib = Weight::resident("idle", sidecar.process().pid())?.kib();

    let log = tempfile::NamedTempFile::new()?;
    let program = std::env::current_exe()?.with_file_name("bare");
    let bare = Process::spawn("bare", Command::new(program).arg(&key), log.path())?;
    let address: SocketAddr = bare.await_log(SOON, |line| line.contains(':')).await?.parse()?;

    let path = format!("/v1/keys/{ACCESS}/{}", names::API_KEY);
    let header = std::fs::read_to_string(sidecar.auth_header())?;
    let request = |host: SocketAddr| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\n{}\r\n\r\n",
            header.trim_end()
        )
        .into_bytes()
    };
    let targets = [
        (sidecar.process().pid(), sidecar.endpoint()),
        (bare.pid(), address),
    ];
    for (pid, _) in targets {
        on_core(i32::try_from(pid)?, 0)?;
    }
    let mut rounds: [Vec<Load>; 2] = Default::default();
    for round in 0..=ROUNDS {
        for (loads, (pid, address)) in rounds.iter_mut().zip(targets) {
            let load = load(pid, address, request(address), &key).await?;
            // The first one warms everything up.
            if round > 0 {
                loads.push(load);
            }
        }
    }
    let [endpoint, bare] = rounds;
    let ratios = endpoint.iter().zip(&bare);
    let ratios = ratios.map(|(endpoint, bare)| endpoint.requests_per_second / bare.requests_per_second);
    Ok(Throughput {
        ratio: median(ratios),
        endpoint: middle(&endpoint),
        bare: middle(&bare),
        idle_kib,
    })
}

fn middle(loads: &[Load]) -> Load {
    Load {
        requests_per_second: median(loads.iter().map(|load| load.requests_per_second)),
        cpu_us_per_request: median(loads.iter().map(|load| load.cpu_us_per_request)),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    percentile(&values, 50)
}

/// One round, from a thread of its own on the other core.
async fn load(pid: u32, address: SocketAddr, request: Vec<u8>, key: &str) -> Result<Load> {
    let key = key.to_owned();
    let before = cpu_time(pid)?;
    let round = tokio::task::spawn_blocking(move || -> Result<Duration> {
        on_core(0, 1)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let begun = Instant::now();
            let clients = (0..CONNECTIONS).map(|_| client(address, &request, &key));
            futures::future::try_join_all(clients).await?;
            Ok(begun.elapsed())
        })
    });
    let took = round.await??.as_secs_f64();
    let cpu = cpu_time(pid)?.saturating_sub(before).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand requests")]
    let requests = (CONNECTIONS * REQUESTS) as f64;
    Ok(Load {
        requests_per_second: requests / took,
        cpu_us_per_request: cpu * 1e6 / requests,
    })
}

/// Asks over and over on one connection. All answers are as long as the first one, which is looked at.
async fn client(address: SocketAddr, request: &[u8], key: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 4096];
    let mut length = None;
    for _ in 0..REQUESTS {
        stream.write_all(request).await?;
        let mut read = 0;
        loop {
            let count = stream.read(&mut buffer[read..]).await?;
            ensure!(count > 0, "the server closed the connection");
            read += count;
            let whole = length.map_or_else(
                || buffer[..read].ends_with(key.as_bytes()),
                |length| read >= length,
            );
            if whole {
                break;
            }
        }
        ensure!(
            buffer.starts_with(b"HTTP/1.1 200") && *length.get_or_insert(read) == read,
            "another answer than the first"
        );
    }
    Ok(())
}

fn on_core(pid: i32, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(pid), &cores)?)
}

/// The time that all threads of a process have run.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let ran = text.split(' ').next().context("an empty schedstat")?;
        total += ran.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}
