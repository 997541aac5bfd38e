//! A proxy between a program under test and the API server: it counts, and does to chosen requests what a bad day would.
//!
//! Plain HTTP on loopback towards the program, whose own credentials are passed on; bodies are streamed, so that watches work.

mod call;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use kube::config::AuthInfo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::control_plane::{Account, ControlPlane};
pub use call::Call;

/// How long a write is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is passed on.
    Forward,
    /// It is passed on this much later.
    Delay(Duration),
    /// The program gets this status, and the API server nothing.
    Refuse(u16),
    /// The same, and when to try again, in seconds.
    RefuseFor(u16, u32),
    /// A watch begins, and its first event is an error with this code.
    WatchError(u16),
    /// The connection ends without an answer.
    HangUp,
}

/// Which moment of a write is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before the API server hears of it.
    Before,
    /// When the API server has acknowledged it, before the program hears of that.
    After,
}

/// A request, and how it was answered.
#[derive(Debug, Clone)]
pub struct Record {
    /// The request.
    pub call: Call,
    /// The status, once there is one.
    pub status: Option<u16>,
}

impl Record {
    /// Whether it changed something.
    pub fn wrote(&self) -> bool {
        self.call.is_write() && self.status.is_some_and(|status| status < 300)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.call, self.status)
    }
}

type Rule = Box<dyn FnMut(&Call) -> Fate + Send>;
type Scope = Box<dyn Fn(&Call) -> bool + Send>;

/// A running proxy. Dropping it ends every connection.
#[derive(Debug)]
pub struct ApiProxy {
    address: SocketAddr,
    state: Arc<State>,
    accepting: AbortHandle,
}

struct State {
    upstream: Client,
    inner: Mutex<Inner>,
    /// Ends all connections.
    closed: CancellationToken,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Inner {
    rule: Option<Rule>,
    stops: BTreeMap<usize, StopState>,
    records: Vec<Record>,
    watches: CancellationToken,
    next_stop: usize,
}

struct StopState {
    scope: Scope,
    number: usize,
    side: Side,
    written: usize,
    pause: Option<Pause>,
}

/// The proxy's ends of a [`Stop`].
struct Pause {
    reached: oneshot::Sender<()>,
    go_on: oneshot::Receiver<()>,
}

/// A write that is held when it comes. Dropping it ends that request's connection instead.
#[derive(Debug)]
pub struct Stop {
    id: usize,
    state: Arc<State>,
    reached: oneshot::Receiver<()>,
    go_on: Option<oneshot::Sender<()>>,
}

impl Stop {
    /// Waits until the write is held.
    pub async fn reached(&mut self) -> Result<()> {
        let reached = tokio::time::timeout(PATIENCE, &mut self.reached).await;
        reached
            .context("the write did not come")?
            .context("the write was passed on")
    }

    /// Lets the write go on.
    pub fn release(mut self) {
        if let Some(go_on) = self.go_on.take() {
            // The program may have died meanwhile, and its request with it.
            let _ = go_on.send(());
        }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.state.inner().stops.remove(&self.id);
    }
}

impl ApiProxy {
    /// Starts one in front of a control plane.
    pub async fn start(cluster: &ControlPlane) -> Result<Self> {
        let mut config = cluster.config();
        // The program's own credentials count, and its own retries.
        config.auth_info = AuthInfo::default();
        config.default_retry = false;
        let state = Arc::new(State {
            upstream: Client::try_from(config)?,
            inner: Mutex::default(),
            closed: CancellationToken::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(accept(listener, state.clone())).abort_handle();
        Ok(Self {
            address,
            state,
            accepting,
        })
    }

    /// A kubeconfig that leads through the proxy, for a service account with all rights.
    pub async fn kubeconfig(
        &self,
        cluster: &ControlPlane,
        namespace: &str,
        account: &str,
    ) -> Result<PathBuf> {
        let server = format!("http://{}", self.address);
        let path = cluster.kubeconfig_through(&server, namespace, account).await?;
        cluster.make_admin(namespace, account).await?;
        Ok(path)
    }

    /// [`kubeconfig`](Self::kubeconfig) in the form that a pod has it.
    pub async fn account(&self, cluster: &ControlPlane, namespace: &str, name: &str) -> Result<Account> {
        cluster.make_admin(namespace, name).await?;
        Ok(Account {
            server: format!("http://{}", self.address),
            ..cluster.account(namespace, name).await?
        })
    }

    /// From now on `rule` decides about each request, instead of an earlier rule.
    pub fn rule(&self, rule: impl FnMut(&Call) -> Fate + Send + 'static) {
        self.state.inner().rule = Some(Box::new(rule));
    }

    /// From now on everything is passed on.
    pub fn no_rule(&self) {
        self.state.inner().rule = None;
    }

    /// Holds the `number`-th write (from 1) in `scope`, from now on. Writes that the API server refuses do not count.
    pub fn stop_at(&self, number: usize, side: Side, scope: impl Fn(&Call) -> bool + Send + 'static) -> Stop {
        let (reached, is_reached) = oneshot::channel();
        let (go_on, may_go_on) = oneshot::channel();
        let pause = Some(Pause {
            reached,
            go_on: may_go_on,
        });
        let mut inner = self.state.inner();
        let id = inner.next_stop;
        inner.next_stop += 1;
        let stop = StopState {
            scope: Box::new(scope),
            number,
            side,
            written: 0,
            pause,
        };
        inner.stops.insert(id, stop);
        Stop {
            id,
            state: self.state.clone(),
            reached: is_reached,
            go_on: Some(go_on),
        }
    }

    /// Ends every watch that is open.
    pub fn cut_watches(&self) {
        std::mem::take(&mut self.state.inner().watches).cancel();
    }

    /// Every request since the start, or since the last [`forget`](Self::forget).
    pub fn records(&self) -> Vec<Record> {
        self.state.inner().records.clone()
    }

    /// Those of them that changed something.
    pub fn writes(&self) -> Vec<Record> {
        let records = self.records();
        records.into_iter().filter(Record::wrote).collect()
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.state.closed.cancel();
    }
}

impl Inner {
    /// The pause that a write runs into, once.
    fn pause(&mut self, call: &Call, side: Side) -> Option<Pause> {
        self.stops
            .values_mut()
            .filter(|stop| stop.side == side && (stop.scope)(call))
            .filter(|stop| match side {
                Side::Before => stop.written + 1 == stop.number,
                Side::After => stop.written == stop.number,
            })
            .find_map(|stop| stop.pause.take())
    }
}

impl State {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, call: &Call) -> (usize, Fate, Option<Pause>) {
        let mut inner = self.inner();
        inner.records.push(Record {
            call: call.clone(),
            status: None,
        });
        let fate = inner.rule.as_mut().map_or(Fate::Forward, |rule| rule(call));
        let pause = call.is_write().then(|| inner.pause(call, Side::Before)).flatten();
        (inner.records.len() - 1, fate, pause)
    }

    fn answered(&self, index: usize, call: &Call, status: u16) -> Option<Pause> {
        let mut inner = self.inner();
        inner.records[index].status = Some(status);
        if !inner.records[index].wrote() {
            return None;
        }
        for stop in inner.stops.values_mut().filter(|stop| (stop.scope)(call)) {
            stop.written += 1;
        }
        inner.pause(call, Side::After)
    }

    /// Does to a request what the rule says; an error ends the connection.
    async fn handle(&self, request: Request<Incoming>) -> Result<Answer> {
        let call = Call::new(request.method(), request.uri());
        // Taken before the rule is asked: a watch that an older rule let pass is one that the next cut ends.
        let cut = self.inner().watches.clone();
        let (index, fate, pause) = self.arrived(&call);
        if let Some(pause) = pause {
            pause.wait().await?;
        }
        let answer = match fate {
            Fate::Forward => self.forward(request).await?,
            Fate::Delay(time) => {
                tokio::time::sleep(time).await;
                self.forward(request).await?
            }
            Fate::Refuse(code) => refusal(code, None)?,
            Fate::RefuseFor(code, seconds) => refusal(code, Some(seconds))?,
            Fate::WatchError(code) => {
                let event = json!({ "type": "ERROR", "object": status(code) });
                answer(Response::builder(), format!("{event}\n"))?
            }
            Fate::HangUp => anyhow::bail!("as the rule says"),
        };
        if let Some(pause) = self.answered(index, &call, answer.status().as_u16()) {
            pause.wait().await?;
        }
        Ok(if call.verb == "watch" {
            answer.map(|body| {
                let frames = BodyStream::new(body).take_until(cut.cancelled_owned());
                BodyExt::boxed_unsync(StreamBody::new(frames))
            })
        } else {
            answer
        })
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Answer> {
        let (mut head, body) = request.into_parts();
        // That of the proxy.
        head.headers.remove(http::header::HOST);
        let body = Body::from(body.collect().await?.to_bytes());
        let answer = self.upstream.send(Request::from_parts(head, body)).await?;
        Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync()))
    }
}

impl Pause {
    async fn wait(self) -> Result<()> {
        // Nobody may be waiting for it any more.
        let _ = self.reached.send(());
        self.go_on.await.context("the stop was given up")
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(stream, state.clone()));
    }
}

async fn converse(stream: TcpStream, state: Arc<State>) {
    let closed = state.closed.clone();
    let service = service_fn(move |request| {
        let state = state.clone();
        // On a task of its own: what the API server was asked to do it does, also when the program dies meanwhile.
        async move {
            let answer = tokio::spawn(async move { state.handle(request).await });
            answer.await?.map_err(io::Error::other)
        }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // An error is the end of a program, or of the API server, or what the test asked for.
    let _: Option<Result<(), _>> = closed.run_until_cancelled(connection).await;
}

fn refusal(code: u16, retry_after: Option<u32>) -> Result<Answer> {
    let mut response = Response::builder().status(code);
    if let Some(seconds) = retry_after {
        response = response.header(http::header::RETRY_AFTER, seconds);
    }
    answer(response, status(code).to_string())
}

fn answer(response: http::response::Builder, text: String) -> Result<Answer> {
    let body = Full::new(Bytes::from(text)).map_err(|error: Infallible| match error {});
    Ok(response
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.boxed_unsync())?)
}

fn status(code: u16) -> serde_json::Value {
    let reason = match code {
        403 => "Forbidden",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
        "message": format!("{reason}, as the test wants it"),
    })
}
