//! How many requests the endpoint answers on connections that are kept, next to a bare hyper responder. The two are loaded
//! in turns; each server has one core, the load the other one.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use llmwarden_proto::names;
use llmwarden_tests::sidecar::{self, Sidecar};
use llmwarden_tests::{Process, Volume};
use serde::Serialize;

use crate::figures::{Weight, median};
use crate::load::{Load, SERVER, Target, on_core};

const ROUNDS: usize = 25;
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
            "{:<52}{:>10}{:>14}\n{}\n{}\n{:<52}{:>10.2}\n{:<52}{:>6} KiB",
            format!("{CONNECTIONS} connections, median of {ROUNDS} rounds"),
            "requests/s",
            "CPU µs each",
            line("bare hyper responder", &self.bare),
            line("endpoint", &self.endpoint),
            "endpoint / bare",
            self.ratio,
            "sidecar with a volume source, memory when idle",
            self.idle_kib
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
    sidecar.await_keys(SOON).await?;
    let idle_kib = Weight::resident("idle", sidecar.process().pid())?.kib();

    let log = tempfile::NamedTempFile::new()?;
    let program = std::env::current_exe()?.with_file_name("bare");
    let bare = Process::spawn("bare", Command::new(program).arg(&key), log.path())?;
    let address: SocketAddr = bare.await_log(SOON, |line| line.contains(':')).await?.parse()?;

    let path = format!("/v1/keys/{ACCESS}/{}", names::API_KEY);
    let header = std::fs::read_to_string(sidecar.auth_header())?;
    let target = |pid, address: SocketAddr| Target {
        pid,
        address,
        tls: None,
        request: format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\n{}\r\n\r\n",
            header.trim_end()
        )
        .into_bytes(),
        end: key.clone().into_bytes(),
        awake: true,
    };
    let targets = [
        target(sidecar.process().pid(), sidecar.endpoint()),
        target(bare.pid(), address),
    ];
    for target in &targets {
        on_core(target.pid, SERVER)?;
    }
    let mut rounds: [Vec<Load>; 2] = Default::default();
    for round in 0..=ROUNDS {
        for (loads, target) in rounds.iter_mut().zip(&targets) {
            let load = target.load(CONNECTIONS, REQUESTS).await?;
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
        endpoint: Load::middle(&endpoint),
        bare: Load::middle(&bare),
        idle_kib,
    })
}
