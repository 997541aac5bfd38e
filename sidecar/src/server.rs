//! HTTP/1.1 over any listener: a bounded number of connections, each with a time limit for its heads, drained at the end.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt};
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// How long a head may take, and how long a connection may wait for its next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest head; hyper answers 431 to longer ones.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How many connections a listener serves at a time, unless told otherwise.
pub const MAX_CONNECTIONS: usize = 64;

/// An answer. All of them are short and in memory.
pub type Answer = Response<Full<Bytes>>;

/// A request, and the place of the connection that it came on.
#[derive(Debug)]
pub struct Arrival {
    /// The request.
    pub request: Request<Incoming>,
    /// The connection's place.
    pub place: Arc<Place>,
}

/// A connection's place among the limited number.
#[derive(Debug)]
pub struct Place {
    places: Arc<Semaphore>,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Place {
    /// Gives the place to another connection while this one only waits.
    pub fn leave(&self) {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Takes a place again; false if there is none, and the connection has to end.
    pub fn take_again(&self) -> bool {
        let mut permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        if permit.is_none() {
            *permit = self.places.clone().try_acquire_owned().ok();
        }
        permit.is_some()
    }
}

/// What serving needs besides a listener and a handler.
#[derive(Debug, Clone)]
pub struct Server {
    /// The places that its connections share.
    pub places: Arc<Semaphore>,
    /// Where refused connections are counted.
    pub metrics: Arc<Metrics>,
    /// Ends the accepting, then the connections.
    pub stop: CancellationToken,
    /// Every connection, so that the end can be awaited.
    pub connections: TaskTracker,
}

impl Server {
    /// Accepts connections until the stop, and has their requests answered by `service`.
    pub async fn serve<L, S>(self, mut listener: L, service: S)
    where
        L: Listener,
        L::Io: Send + Unpin + 'static,
        S: Service<Arrival, Response = Answer, Error = Infallible, Future: Send> + Clone + Send + 'static,
    {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            let connection = match accepted {
                Ok((connection, _)) => connection,
                Err(error) => {
                    // Out of file descriptors, mostly: the next accept fails at once too.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if let Ok(permit) = self.places.clone().try_acquire_owned() {
                let place = Arc::new(Place {
                    places: self.places.clone(),
                    permit: Mutex::new(Some(permit)),
                });
                self.connections
                    .spawn(converse(connection, place, service.clone(), self.stop.clone()));
            } else {
                self.metrics.refused("connections");
                self.connections.spawn(turn_away(connection));
            }
        }
    }
}

async fn converse<Io, S>(connection: Io, place: Arc<Place>, service: S, stop: CancellationToken)
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Arrival, Response = Answer, Error = Infallible> + Clone,
{
    let service = service.map_request(move |request| Arrival {
        request,
        place: place.clone(),
    });
    let service = TowerToHyperService::new(service);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

/// Says why to a connection that has no place. Reads on for a moment: closing a socket with unread data would take the
/// answer back.
async fn turn_away(mut connection: impl AsyncRead + AsyncWrite + Unpin) {
    let body = "llmwarden: too many connections at once; close some, or wait\n";
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
         content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let answer = async {
        connection.write_all((head + body).as_bytes()).await?;
        connection.shutdown().await?;
        let mut ignored = [0; 1024];
        while connection.read(&mut ignored).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whether it was heard is the client's matter.
    let _ = tokio::time::timeout(Duration::from_secs(1), answer).await;
}
