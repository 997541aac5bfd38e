//! Load on a server that has a core for itself, from a thread on the other one, and what it costs the server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use rustls::pki_types::ServerName;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::figures::median;

/// The core of the server that is measured.
pub const SERVER: usize = 0;
/// The core of what asks it, and of what it asks itself.
pub const OTHERS: usize = 1;

/// A connection to a server, over TLS or not.
pub type Connection = Either<TcpStream, TlsStream<TcpStream>>;

/// A server, and what it is asked.
#[derive(Clone)]
pub struct Target {
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// For a server that is `localhost` and speaks TLS.
    pub tls: Option<TlsConnector>,
    /// The request.
    pub request: Vec<u8>,
    /// How its answers end.
    pub end: Vec<u8>,
    /// Whether the client never sleeps, so that a server that is slower than it does not pay for waking it. Not where
    /// something else needs its core.
    pub awake: bool,
}

/// What a server did under load.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// How many requests it answered in a second.
    pub requests_per_second: f64,
    /// What each one took.
    pub cpu_us_per_request: f64,
    /// How long each one took, in µs.
    #[serde(skip)]
    pub latencies: Vec<f64>,
}

impl Load {
    /// Medians of rounds.
    pub fn middle(loads: &[Self]) -> Self {
        Self {
            requests_per_second: median(loads.iter().map(|load| load.requests_per_second)),
            cpu_us_per_request: median(loads.iter().map(|load| load.cpu_us_per_request)),
            latencies: Vec::new(),
        }
    }
}

impl Target {
    /// A round: so many requests on each of so many connections.
    pub async fn load(&self, connections: usize, requests: usize) -> Result<Load> {
        let (pid, target) = (self.pid, self.clone());
        let before = cpu_time(pid)?;
        let (took, latencies) = aside(async move || {
            if target.awake {
                tokio::spawn(async {
                    loop {
                        tokio::task::yield_now().await;
                    }
                });
            }
            let begun = Instant::now();
            let clients = (0..connections).map(|_| target.client(requests));
            let latencies = futures::future::try_join_all(clients).await?;
            Ok((begun.elapsed(), latencies.concat()))
        })
        .await?;
        let cpu = cpu_time(pid)?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand requests")]
        let requests = latencies.len() as f64;
        Ok(Load {
            requests_per_second: requests / took.as_secs_f64(),
            cpu_us_per_request: micros(cpu) / requests,
            latencies,
        })
    }

    /// Asks over and over on one connection. All answers are as long as the first one, which is looked at.
    async fn client(&self, requests: usize) -> Result<Vec<f64>> {
        let mut connection = self.connect().await?;
        let mut buffer = vec![0; 4096];
        let mut length = None;
        let mut latencies = Vec::with_capacity(requests);
        for _ in 0..requests {
            let begun = Instant::now();
            connection.write_all(&self.request).await?;
            let mut read = 0;
            loop {
                let count = connection.read(&mut buffer[read..]).await?;
                ensure!(count > 0, "the server closed the connection");
                read += count;
                let whole =
                    length.map_or_else(|| buffer[..read].ends_with(&self.end), |length| read >= length);
                if whole {
                    break;
                }
            }
            latencies.push(micros(begun.elapsed()));
            ensure!(
                buffer.starts_with(b"HTTP/1.1 200") && *length.get_or_insert(read) == read,
                "another answer than the first: {}",
                String::from_utf8_lossy(&buffer[..read])
            );
        }
        Ok(latencies)
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            Some(tls) => Either::Right(tls.connect(ServerName::try_from("localhost")?, stream).await?),
            None => Either::Left(stream),
        })
    }
}

/// Runs on a thread of its own, on the core that the server does not have.
pub async fn aside<T: Send + 'static>(run: impl AsyncFnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread = tokio::task::spawn_blocking(move || {
        on_core(0, OTHERS)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(run())
    });
    thread.await?
}

/// Keeps a process on a core; 0 is the calling thread.
pub fn on_core(pid: u32, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(i32::try_from(pid)?), &cores)?)
}

/// In µs.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The time that all threads of a process have run, also those that have ended.
fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(pid)?))?;
    Ok(clock_gettime(clock)?.into())
}
