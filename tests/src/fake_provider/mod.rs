//! A fake: an LLM provider's API as the vendors document it, for programs on the official SDKs to talk to.
//!
//! It checks keys, speaks in the provider's own shapes and remembers what it saw. What it says has no meaning. One
//! server stands for one provider; each API is a file of its own, and none of them keeps any state.
//!
//! Whoever can't reach into the test, such as a client program, picks a fault by the name of the model: [`Fault::of_model`].

mod anthropic;
mod azure;
mod chat;
mod compatible;
mod gemini;
mod openai;
mod reply;
mod responses;
mod serve;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::HeaderMap;
use llmwarden_proto::profile::ProviderKind;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::certificates::Authority;
pub use reply::INPUT_TOKENS;

/// A running fake. Dropping it ends every connection.
#[derive(Debug)]
pub struct FakeProvider {
    kind: ProviderKind,
    address: SocketAddr,
    /// What its clients call it.
    host: String,
    state: Arc<State>,
    /// What signed its certificate; plain HTTP without.
    authority: Option<(TempDir, PathBuf)>,
}

/// A request, and what became of it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path, as it came.
    pub path: String,
    /// Its query, as it came.
    pub query: Option<String>,
    /// Its headers, credentials included: they are made up.
    pub headers: HeaderMap,
    /// Which of the keys that were ever valid it came with, counted from 0 in the order in which they became so.
    pub key: Option<usize>,
    /// How much of its body has come.
    pub body_bytes: u64,
    /// The model that it asked for.
    pub model: Option<String>,
    /// SHA-256 of all of it, once it is there.
    pub body_digest: Option<[u8; 32]>,
    /// The status it was answered with.
    pub status: Option<u16>,
    /// How it ended.
    pub end: Option<End>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a complete answer.
    Complete,
    /// With a connection that a [`Fault`] cut.
    Cut,
    /// With a client that went away.
    Abandoned,
}

/// What goes wrong with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is refused.
    Refuse(Refusal),
    /// It is answered this much later.
    Delay(Duration),
    /// It is never answered.
    Hang,
    /// The connection ends without an answer.
    HangUp,
    /// The connection ends halfway through the answer.
    Cut,
    /// Halfway through a stream, which began with status 200, an error takes the place of the rest.
    ErrorInStream,
}

/// Why a request is refused; each API has its own words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no key.
    NoKey,
    /// There is this one, and it is not valid.
    DeadKey(String),
    /// The key may not use the model.
    Forbidden(String),
    /// There is no such model.
    UnknownModel(String),
    /// There is no such path.
    UnknownRoute,
    /// The body lacks this field.
    Missing(&'static str),
    /// Too many requests.
    RateLimited,
    /// Too many requests of everybody.
    Overloaded,
    /// The provider broke.
    Broken,
}

impl Fault {
    /// The fault that a model of this name has: `fake-forbidden`, `fake-unknown`, `fake-rate-limited`, `fake-overloaded`,
    /// `fake-broken`, `fake-cut` and `fake-error-in-stream`. (`fake-flaky` refuses every other request.)
    pub fn of_model(name: &str) -> Option<Self> {
        Some(match name {
            "fake-forbidden" => Self::Refuse(Refusal::Forbidden(name.to_owned())),
            "fake-unknown" => Self::Refuse(Refusal::UnknownModel(name.to_owned())),
            "fake-rate-limited" => Self::Refuse(Refusal::RateLimited),
            "fake-overloaded" => Self::Refuse(Refusal::Overloaded),
            "fake-broken" => Self::Refuse(Refusal::Broken),
            "fake-cut" => Self::Cut,
            "fake-error-in-stream" => Self::ErrorInStream,
            _ => return None,
        })
    }
}

/// How long answers are, and how fast they stream.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How many pieces a text has.
    pub pieces: u32,
    /// How long a stream waits between two events.
    pub every: Duration,
}

impl Default for Pace {
    /// What the programs in `tests/clients` look for, at once.
    fn default() -> Self {
        Self {
            pieces: 6,
            every: Duration::ZERO,
        }
    }
}

#[derive(Debug)]
struct State {
    kind: ProviderKind,
    inner: Mutex<Inner>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Inner {
    /// Every key that was ever valid; those that are, have their numbers in `valid`.
    keys: Vec<String>,
    valid: Vec<usize>,
    faults: VecDeque<Fault>,
    pace: Pace,
    flaky: u32,
    seen: BTreeMap<u64, Seen>,
    next: u64,
}

impl State {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeProvider {
    /// Starts one on a loopback port of its own, over plain HTTP.
    pub async fn start(kind: ProviderKind) -> Result<Self> {
        Self::listen(kind, "127.0.0.1:0".parse()?, None).await
    }

    /// Starts one that speaks TLS, as providers do.
    pub async fn start_tls(kind: ProviderKind) -> Result<Self> {
        Self::listen(kind, "127.0.0.1:0".parse()?, Some(&["localhost", "127.0.0.1"])).await
    }

    /// Starts one at an address; over TLS with a certificate for these names, if there are any: the first one stands in its
    /// base URL.
    pub async fn listen(kind: ProviderKind, address: SocketAddr, names: Option<&[&str]>) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| address.to_string())?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            kind,
            inner: Mutex::new(Inner {
                keys: Vec::new(),
                valid: Vec::new(),
                faults: VecDeque::new(),
                pace: Pace::default(),
                flaky: 0,
                seen: BTreeMap::new(),
                next: 0,
            }),
            closed: CancellationToken::new(),
        });
        let (mut tls, mut kept) = (None, None);
        if let Some(names) = names {
            let dir = tempfile::tempdir()?;
            let authority = Authority::new(dir.path())?;
            tls = Some(authority.server("provider", names)?.acceptor()?);
            kept = Some((dir, authority.certificate()));
        }
        tokio::spawn(serve::accept(listener, tls, state.clone()));
        Ok(Self {
            kind,
            address,
            host: names
                .and_then(|names| names.first())
                .unwrap_or(&"localhost")
                .to_string(),
            state,
            authority: kept,
        })
    }

    /// Which provider it stands for.
    pub fn kind(&self) -> ProviderKind {
        self.kind
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL, as the provider's SDKs take it.
    pub fn base_url(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!(
            "{scheme}://{}:{}{}",
            self.host,
            self.address.port(),
            base_path(self.kind)
        )
    }

    /// The file with the authority that its certificate is from, if it speaks TLS.
    pub fn authority(&self) -> Option<&PathBuf> {
        self.authority.as_ref().map(|(_, certificate)| certificate)
    }

    /// Makes these keys valid, and no others: from now on, also for connections that are open. Streams go on.
    pub fn allow<'a>(&self, keys: impl IntoIterator<Item = &'a str>) {
        let mut inner = self.state.inner();
        inner.valid.clear();
        for key in keys {
            let known = inner.keys.iter().position(|known| known == key);
            let number = known.unwrap_or_else(|| {
                inner.keys.push(key.to_owned());
                inner.keys.len() - 1
            });
            inner.valid.push(number);
        }
    }

    /// What goes wrong with the next request that comes with a valid key and has no fault yet.
    pub fn fail_next(&self, fault: Fault) {
        self.state.inner().faults.push_back(fault);
    }

    /// How long answers are, and how fast they stream, from now on.
    pub fn set_pace(&self, pace: Pace) {
        self.state.inner().pace = pace;
    }

    /// All requests so far, in the order in which they came.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.inner().seen.values().cloned().collect()
    }

    /// Whether there was a request like this; the last ones are looked at first.
    pub fn has_seen(&self, wanted: impl Fn(&Seen) -> bool) -> bool {
        self.state.inner().seen.values().rev().any(wanted)
    }

    /// [`seen`](Self::seen), which begins anew.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.inner().seen)
            .into_values()
            .collect()
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.state.closed.cancel();
    }
}

/// A request, read.
#[derive(Debug)]
struct Call {
    method: http::Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    /// `null` without a body, or with one that is not JSON.
    body: Value,
}

impl Call {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn bearer(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let mut pairs = self.query.as_deref()?.split('&');
        pairs
            .find_map(|pair| pair.split_once('=').filter(|(known, _)| *known == name))
            .map(|(_, value)| value)
    }

    fn post(&self) -> bool {
        self.method == http::Method::POST
    }

    fn text(&self, field: &'static str) -> Result<&str, Refusal> {
        self.body[field].as_str().ok_or(Refusal::Missing(field))
    }

    fn wants_stream(&self) -> bool {
        self.body["stream"] == true
    }
}

/// What is sent back.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Json(Value),
    /// Events of a stream, each as it goes over the wire.
    Events(Vec<String>),
}

impl Answer {
    fn json(value: Value) -> Self {
        Self::error(200, value)
    }

    fn error(status: u16, value: Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            content: Content::Json(value),
        }
    }

    fn events(events: Vec<String>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            content: Content::Events(events),
        }
    }

    fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header, value.into()));
        self
    }
}

/// What an answer is made of besides the request.
#[derive(Debug, Clone, Copy)]
struct Script {
    /// Of the request, and so of all ids in the answer.
    number: u64,
    pieces: u32,
}

/// A provider's API.
trait Api: Sync {
    /// The key, where this provider looks for it.
    fn key<'a>(&self, call: &'a Call) -> Option<&'a str>;

    /// The model that is asked for.
    fn model<'a>(&self, call: &'a Call) -> Option<&'a str> {
        call.body["model"].as_str()
    }

    /// The answer to a request with a valid key.
    fn answer(&self, call: &Call, script: Script) -> Result<Answer, Refusal>;

    /// A refusal in this provider's shape.
    fn refuse(&self, refusal: &Refusal, call: &Call, number: u64) -> Answer;

    /// The event that tells of an error in a stream that has begun.
    fn error_event(&self, call: &Call) -> String;
}

fn api(kind: ProviderKind) -> &'static dyn Api {
    match kind {
        ProviderKind::Anthropic => &anthropic::Anthropic,
        ProviderKind::AzureOpenai => &azure::Azure,
        ProviderKind::Gemini => &gemini::Gemini,
        ProviderKind::Openrouter => &compatible::OpenRouter,
        ProviderKind::Litellm => &compatible::LiteLlm,
        // No proxy stands before the other two, and so no fake behind it.
        ProviderKind::Openai
        | ProviderKind::Custom
        | ProviderKind::AwsBedrock
        | ProviderKind::GcpVertexai => &openai::OpenAi,
    }
}

/// The path of the base URL.
fn base_path(kind: ProviderKind) -> &'static str {
    match kind {
        ProviderKind::Anthropic | ProviderKind::AzureOpenai | ProviderKind::Gemini => "",
        ProviderKind::Openrouter => "/api/v1",
        _ => "/v1",
    }
}

#[cfg(test)]
mod tests;
