//! What the proxy costs, next to nginx that does the same: HTTP/1.1 in on loopback, the key in place of the caller's
//! credential, TLS to the provider, and what comes back passed on at once. Both go to one bare hyper responder. They are
//! loaded in turns; each has one core, the load and the provider have the other one.

mod servers;

use std::time::Instant;

use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::figures::{Weight, median, percentile};
use crate::load::{Connection, Target, aside, micros};
use servers::Servers;

/// With seven, the ratio of one build differed by a tenth from run to run; with these, by two or three hundredths.
const ROUNDS: usize = 21;
/// Connections, and requests on each. No more than idle connections to the provider are kept, so that there are no handshakes.
const LOADS: [(usize, usize); 3] = [(1, 3_000), (16, 1_000), (256, 40)];
/// In a row, in each round.
const STREAMS: usize = 200;
/// At a time, for what they take of memory.
const OPEN: usize = 1_000;
/// Of the goals.
const CPU: f64 = 1.0;
const P50: f64 = 1.0;
const P99: f64 = 1.2;
/// What is asked for.
const PATH: &str = "/v1/chat/completions";

/// The sidecar against nginx.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    rows: Vec<Row>,
}

/// Medians over the rounds, that of the ratios too.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    sidecar: f64,
    nginx: f64,
    ratio: f64,
    /// What the ratio is to be at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<f64>,
}

impl Row {
    fn new(what: impl Into<String>, goal: Option<f64>, rounds: &[[f64; 2]]) -> Self {
        let of = |proxy: usize| median(rounds.iter().map(|round| round[proxy]));
        Self {
            what: what.into(),
            sidecar: of(0),
            nginx: of(1),
            ratio: median(rounds.iter().map(|[sidecar, nginx]| sidecar / nginx)),
            goal,
        }
    }
}

impl Comparison {
    /// Of the report.
    pub fn table(&self) -> String {
        let head = format!(
            "{:<52}{:>10}{:>10}{:>12}{:>8}",
            format!("proxy, median of {ROUNDS} rounds"),
            "sidecar",
            "nginx",
            "to nginx",
            "goal"
        );
        let lines = self.rows.iter().map(|row| {
            let goal = row.goal.map(|goal| format!("≤ {goal:.1}")).unwrap_or_default();
            format!(
                "{:<52}{:>10.1}{:>10.1}{:>12.2}{goal:>8}",
                row.what, row.sidecar, row.nginx, row.ratio
            )
        });
        std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
    }
}

/// Measures both in turns.
pub async fn measure() -> Result<Comparison> {
    // Each stream takes two descriptors of a proxy.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let servers = Servers::start().await?;

    let mut rounds = Vec::new();
    for number in 0..=ROUNDS {
        let round = Round::measure(&servers, number % 2 == 1).await?;
        // The first one warms everything up.
        if number > 0 {
            rounds.push(round);
        }
    }
    let of = |part: &dyn Fn(&Round) -> [f64; 2]| rounds.iter().map(part).collect::<Vec<_>>();
    let mut rows = Vec::new();
    for (index, (connections, _)) in LOADS.into_iter().enumerate() {
        let what = format!("CPU µs a request, of {connections} at a time");
        rows.push(Row::new(what, Some(CPU), &of(&|round| round.cpu[index])));
    }
    for (index, (connections, _)) in LOADS.into_iter().enumerate() {
        let what = format!("requests/s, {connections} at a time");
        rows.push(Row::new(what, None, &of(&|round| round.rate[index])));
    }
    let mut memory = [0.0; 2];
    for (memory, proxy) in memory.iter_mut().zip(&servers.proxies) {
        *memory = resident_with_streams(proxy).await?;
    }
    rows.extend([
        Row::new("added latency, p50 µs", Some(P50), &of(&|round| round.p50)),
        Row::new("added latency, p99 µs", Some(P99), &of(&|round| round.p99)),
        Row::new(
            "added until a stream's first event, p50 µs",
            None,
            &of(&|round| round.first),
        ),
        Row::new(
            "added until a stream's end, p50 µs",
            None,
            &of(&|round| round.last),
        ),
        Row::new(format!("memory with {OPEN} open streams, MiB"), None, &[memory]),
    ]);
    Ok(Comparison { rows })
}

/// What one round gave: of the sidecar, and of nginx.
#[derive(Debug, Default)]
struct Round {
    /// CPU of a request and requests a second, as in [`LOADS`].
    cpu: [[f64; 2]; 3],
    rate: [[f64; 2]; 3],
    /// Latency that is added, of a request and of a stream, in µs.
    p50: [f64; 2],
    p99: [f64; 2],
    first: [f64; 2],
    last: [f64; 2],
}

impl Round {
    async fn measure(Servers { direct, proxies, .. }: &Servers, nginx_first: bool) -> Result<Self> {
        let order = if nginx_first { [1, 0] } else { [0, 1] };
        let mut round = Self::default();
        for (index, (connections, requests)) in LOADS.into_iter().enumerate() {
            for proxy in order {
                let load = proxies[proxy].load(connections, requests).await?;
                round.cpu[index][proxy] = load.cpu_us_per_request;
                round.rate[index][proxy] = load.requests_per_second;
                if connections == 1 {
                    [round.p50[proxy], round.p99[proxy]] = percentiles(load.latencies);
                }
            }
        }
        let (_, requests) = LOADS[0];
        let [p50, p99] = percentiles(direct.load(1, requests).await?.latencies);
        let (first, last) = streams(direct).await?;
        for proxy in order {
            round.p50[proxy] -= p50;
            round.p99[proxy] -= p99;
            let (proxied_first, proxied_last) = streams(&proxies[proxy]).await?;
            round.first[proxy] = proxied_first - first;
            round.last[proxy] = proxied_last - last;
        }
        Ok(round)
    }
}

fn percentiles(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [50, 99].map(|percent| percentile(&values, percent))
}

/// Until the first event and until the end of a stream, in µs: medians.
async fn streams(target: &Target) -> Result<(f64, f64)> {
    let mut target = target.clone();
    target.request = with_query(&target.request, "1");
    let times = aside(async move || {
        let mut connection = target.connect().await?;
        let mut times = Vec::new();
        for _ in 0..STREAMS {
            let begun = Instant::now();
            let mut stream = Stream::begin(&mut connection, &target).await?;
            let first = micros(begun.elapsed());
            stream.until(b"\r\n0\r\n\r\n").await?;
            times.push((first, micros(begun.elapsed())));
        }
        Ok(times)
    })
    .await?;
    Ok((
        median(times.iter().map(|(first, _)| *first)),
        median(times.iter().map(|(_, last)| *last)),
    ))
}

/// The memory of a server that has many streams, in MiB.
async fn resident_with_streams(target: &Target) -> Result<f64> {
    let mut target = target.clone();
    // None of them ends by itself.
    target.request = with_query(&target.request, "600000");
    aside(async move || {
        let mut connections = Vec::new();
        for _ in 0..OPEN {
            let mut connection = target.connect().await?;
            Stream::begin(&mut connection, &target).await?;
            connections.push(connection);
        }
        let kib = Weight::resident("", target.pid)?.kib();
        #[expect(clippy::cast_precision_loss, reason = "a few MiB")]
        Ok(kib as f64 / 1024.0)
    })
    .await
}

fn with_query(request: &[u8], query: &str) -> Vec<u8> {
    let request = String::from_utf8_lossy(request);
    request.replacen(PATH, &format!("{PATH}?{query}"), 1).into_bytes()
}

/// An answer that comes in pieces.
struct Stream<'a> {
    connection: &'a mut Connection,
    read: Vec<u8>,
}

impl<'a> Stream<'a> {
    /// Asks, and waits for the first event.
    async fn begin(connection: &'a mut Connection, target: &Target) -> Result<Self> {
        connection.write_all(&target.request).await?;
        let mut stream = Self {
            connection,
            read: Vec::new(),
        };
        stream.until(&target.end).await?;
        ensure!(
            stream.read.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&stream.read)
        );
        Ok(stream)
    }

    /// Reads on until these bytes have come.
    async fn until(&mut self, end: &[u8]) -> Result<()> {
        while !self.read.windows(end.len()).any(|part| part == end) {
            let count = self.connection.read_buf(&mut self.read).await?;
            ensure!(
                count > 0,
                "the stream broke off: {}",
                String::from_utf8_lossy(&self.read)
            );
        }
        Ok(())
    }
}
