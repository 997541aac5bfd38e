//! HTTP/1.1 over any listener: a bounded number of connections, each with time limits for what it sends and for what it
//! reads, drained at the end. Whom the server itself refuses, it tells why.

mod farewell;
mod stream;
mod timer;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, BoxFuture};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::incoming;
use crate::metrics::Metrics;
use farewell::Refusal;
use stream::Stream;
pub use timer::LazyTimer;

/// How long a head may take, and how long a connection may wait for its next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How many connections a listener serves at a time, unless told otherwise.
pub const MAX_CONNECTIONS: usize = 64;
/// How many of those that are too many hear why at a time.
const MAX_TURNED_AWAY: usize = 64;

/// Where connections come from. Both kinds are one type, so that the program holds one copy of hyper's server.
pub type Listener = either::Either<TcpListener, UnixListener>;
type Connection = either::Either<TcpStream, UnixStream>;

/// An answer.
pub type Answer = Response<Body>;

/// An answer's body: short and in memory, or passed on from elsewhere as it comes. One that fails breaks the connection, so
/// that no client takes it for whole.
pub type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, BoxError>>;

/// Why a body failed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An answer that is there at once, as most are, or later. What is there at once has no future of its own to be moved about.
pub type Answering =
    future::Either<Ready<Result<Answer, Infallible>>, BoxFuture<'static, Result<Answer, Infallible>>>;

/// An answer that is there.
pub fn at_once(answer: Answer) -> Answering {
    Answering::Left(ready(Ok(answer)))
}

/// An answer that takes its time.
pub fn later(answer: impl Future<Output = Answer> + Send + 'static) -> Answering {
    Answering::Right(Box::pin(answer.map(Ok)))
}

/// What answers requests. Each comes with the place of its connection.
pub trait Site: Send + Sync + 'static {
    /// Answers a request.
    fn answer(self: &Arc<Self>, request: Request<Incoming>, place: &Arc<Place>) -> Answering;
}

/// A connection's place among the limited number.
#[derive(Debug)]
pub struct Place {
    places: Arc<Semaphore>,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    /// Whether what the client reads now may be a stream, which it reads as slowly as it likes.
    streaming: AtomicBool,
    /// For what its requests wait for, which is one thing at a time.
    timer: LazyTimer,
}

impl Place {
    /// Gives the place to another connection while this one only waits.
    pub fn leave(&self) {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Says whether the answer to come may be a stream.
    pub fn set_streaming(&self, streaming: bool) {
        self.streaming.store(streaming, Ordering::Relaxed);
    }

    /// Its timer.
    pub fn timer(&self) -> &LazyTimer {
        &self.timer
    }

    fn is_streaming(&self) -> bool {
        self.streaming.load(Ordering::Relaxed)
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

/// What hyper asks on one connection.
struct Conversation<S> {
    site: Arc<S>,
    place: Arc<Place>,
}

impl<S: Site> Service<Request<Incoming>> for Conversation<S> {
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        self.site.answer(request, &self.place)
    }
}

/// What serving needs besides a listener and a site.
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
    /// Accepts connections until the stop, and has their requests answered.
    pub async fn serve(self, mut listener: Listener, site: Arc<impl Site>) {
        let turned_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            let connection = match accepted {
                Ok(either::Either::Left((tcp, _))) => Connection::Left(tcp),
                Ok(either::Either::Right((unix, _))) => Connection::Right(unix),
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
                    streaming: AtomicBool::new(false),
                    timer: LazyTimer::default(),
                });
                self.connections
                    .spawn(self.clone().converse(connection, place, site.clone()));
            } else {
                self.metrics.refused(Refusal::Connections.reason());
                // Beyond these there is no room even for words.
                if let Ok(permit) = turned_away.clone().try_acquire_owned() {
                    self.connections.spawn(async move {
                        farewell::say(connection, Refusal::Connections).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn converse(self, connection: Connection, place: Arc<Place>, site: Arc<impl Site>) {
        let stream = Stream::new(connection, place.clone());
        let mut http = http1::Builder::new();
        http.timer(LazyTimer::default())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES);
        let serving = http.serve_connection(TokioIo::new(stream), Conversation { site, place });
        let mut serving = incoming::Connection::new(serving);
        let ended = tokio::select! {
            biased;
            ended = &mut serving => ended,
            () = self.stop.cancelled() => {
                std::pin::Pin::new(serving.inner_mut()).graceful_shutdown();
                (&mut serving).await
            }
        };
        // With the service goes the place, which is held until then.
        let parts = serving.into_inner().into_parts();
        let connection = parts.io.into_inner().into_inner();
        let Err(error) = ended else {
            return farewell::linger(connection).await;
        };
        debug!(%error, "a connection ended early");
        if let Some(refusal) = Refusal::of(&error, !parts.read_buf.is_empty()) {
            self.metrics.refused(refusal.reason());
            farewell::say(connection, refusal).await;
        }
    }
}
