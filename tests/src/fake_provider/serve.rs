//! Connections, and what happens to a request between its first byte and the last of its answer.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Answer, Call, Content, End, Fault, Refusal, Script, Seen, State, api};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves until the fake is dropped.
pub(super) async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    let closed = state.closed.clone();
    let accepting = async {
        loop {
            // Out of descriptors, say: clients see that well enough.
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            // Pieces are small, and none waits for another.
            let _ = stream.set_nodelay(true);
            let (tls, state) = (tls.clone(), state.clone());
            tokio::spawn(closed.clone().run_until_cancelled_owned(async move {
                match tls {
                    None => connection(stream, state).await,
                    Some(tls) => {
                        // How a handshake ends is its client's matter, and so is how a connection ends.
                        if let Ok(stream) = tls.accept(stream).await {
                            connection(stream, state).await;
                        }
                    }
                }
            }));
        }
    };
    closed.run_until_cancelled(accepting).await;
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, state: Arc<State>) {
    let service = service_fn(move |request| respond(request, state.clone()));
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// The entry of one request in the fake's memory. Dropped before its end was noted, its client has gone.
struct Entry {
    number: u64,
    state: Arc<State>,
}

impl Entry {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.state.inner().seen.get_mut(&self.number) {
            change(seen);
        }
    }

    fn end(&self, end: End) {
        self.note(|seen| seen.end = seen.end.or(Some(end)));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end(End::Abandoned);
    }
}

async fn respond(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>> {
    let api = api(state.kind);
    let (parts, body) = request.into_parts();
    let mut call = Call {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        headers: parts.headers,
        body: Value::Null,
    };
    // The key counts as it was when the request came.
    let (entry, key) = arrive(&call, api.key(&call), state);
    read_body(body, &entry, &mut call).await?;
    entry.note(|seen| seen.model = api.model(&call).map(str::to_owned));

    let (fault, pace) = {
        let mut inner = entry.state.inner();
        (fault_of(&mut inner, api.model(&call), key), inner.pace)
    };
    let script = Script {
        number: entry.number,
        pieces: pace.pieces,
    };
    let answer = match &fault {
        Some(Fault::Refuse(refusal)) => Err(refusal.clone()),
        Some(Fault::HangUp) => {
            entry.end(End::Cut);
            anyhow::bail!("hung up");
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Delay(delay)) => {
            tokio::time::sleep(*delay).await;
            api.answer(&call, script)
        }
        None | Some(Fault::Cut | Fault::ErrorInStream) => api.answer(&call, script),
    };
    let answer = answer.unwrap_or_else(|refusal| api.refuse(&refusal, &call, entry.number));
    let error = (fault == Some(Fault::ErrorInStream)).then(|| api.error_event(&call));
    send(answer, pace.every, fault == Some(Fault::Cut), error, entry)
}

/// Notes that a request came, and says what its key is worth.
fn arrive(call: &Call, key: Option<&str>, state: Arc<State>) -> (Entry, Result<(), Refusal>) {
    let mut inner = state.inner();
    let number = inner.next;
    inner.next += 1;
    let known = key.and_then(|key| inner.keys.iter().position(|known| known == key));
    let worth = match (key, known) {
        (None, _) => Err(Refusal::NoKey),
        (Some(_), Some(number)) if inner.valid.contains(&number) => Ok(()),
        (Some(key), _) => Err(Refusal::DeadKey(key.to_owned())),
    };
    let seen = Seen {
        method: call.method.to_string(),
        path: call.path.clone(),
        query: call.query.clone(),
        headers: call.headers.clone(),
        key: known,
        body_bytes: 0,
        model: None,
        body_digest: None,
        status: None,
        end: None,
    };
    inner.seen.insert(number, seen);
    drop(inner);
    (Entry { number, state }, worth)
}

async fn read_body(mut body: Incoming, entry: &Entry, call: &mut Call) -> Result<()> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
            entry.note(|seen| seen.body_bytes = bytes.len() as u64);
        }
    }
    entry.note(|seen| seen.body_digest = Some(Sha256::digest(&bytes).into()));
    call.body = serde_json::from_slice(&bytes).unwrap_or_default();
    Ok(())
}

fn fault_of(inner: &mut super::Inner, model: Option<&str>, key: Result<(), Refusal>) -> Option<Fault> {
    if let Err(refusal) = key {
        return Some(Fault::Refuse(refusal));
    }
    if model == Some("fake-flaky") {
        inner.flaky += 1;
        return (inner.flaky % 2 == 1).then_some(Fault::Refuse(Refusal::RateLimited));
    }
    model
        .and_then(Fault::of_model)
        .or_else(|| inner.faults.pop_front())
}

/// A part of an answer.
enum Piece {
    Data(String),
    /// The connection ends here.
    Cut,
}

fn send(
    answer: Answer,
    every: Duration,
    cut: bool,
    error: Option<String>,
    entry: Entry,
) -> Result<Response<Body>> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let mut pieces: VecDeque<_> = match answer.content {
        Content::Json(value) => {
            let text = value.to_string();
            response = response
                .header(CONTENT_TYPE, "application/json")
                .header(CONTENT_LENGTH, text.len());
            let (one, other) = text.split_at(text.len() / 2);
            [one, other].map(|half| Piece::Data(half.to_owned())).into()
        }
        Content::Events(events) => {
            response = response
                .header(CONTENT_TYPE, "text/event-stream; charset=utf-8")
                .header("cache-control", "no-cache");
            events.into_iter().map(Piece::Data).collect()
        }
    };
    if cut || error.is_some() {
        pieces.truncate(pieces.len() / 2);
        pieces.push_back(error.map_or(Piece::Cut, Piece::Data));
    }
    entry.note(|seen| seen.status = Some(answer.status));
    let body = stream::unfold(
        (pieces, entry, true),
        move |(mut pieces, entry, first)| async move {
            let piece = pieces.pop_front()?;
            if !first {
                // What was said so far goes out, also when the next thing is the end of the connection.
                tokio::task::yield_now().await;
                tokio::time::sleep(every).await;
            }
            let frame = match piece {
                Piece::Data(data) => Ok(Frame::data(Bytes::from(data))),
                Piece::Cut => {
                    entry.end(End::Cut);
                    Err(io::Error::other("cut"))
                }
            };
            if pieces.is_empty() {
                entry.end(End::Complete);
            }
            Some((frame, (pieces, entry, false)))
        },
    );
    let body = StreamBody::new(body).boxed_unsync();
    response.body(body).context("an answer that HTTP can't express")
}
