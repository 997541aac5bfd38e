//! The local endpoint: names and versions at `/v1/keys`, values below. A request first passes the [`guard`].

pub mod answer;
pub mod guard;
mod wait;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONNECTION, ETAG, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Request, StatusCode, header};
use jiff::Timestamp;
use secrecy::zeroize::Zeroizing;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, age_seconds};
use crate::server::{Answer, Answering, Place, at_once, later};
use crate::store::{Delivered, Held, Store};
use guard::{Guard, Refusal, Transport};
use wait::Conditions;

/// How many requests may wait for a newer version at a time. They do not count as connections.
const MAX_WAITING: usize = 256;

/// What the answers are made from.
#[derive(Debug)]
pub struct Endpoint {
    /// Who may ask.
    pub guard: Arc<Guard>,
    /// What there is.
    pub store: Arc<Store>,
    /// Where answers and refusals are counted.
    pub metrics: Arc<Metrics>,
    /// Ends requests that wait.
    pub stop: CancellationToken,
    waiting: Semaphore,
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    List,
    Access(&'a str),
    Key(&'a str, &'a str),
}

impl<'a> Route<'a> {
    /// No route has an encoded or empty part, so nothing is decoded.
    fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v1/keys")?;
        if rest.is_empty() {
            return Some(Self::List);
        }
        let rest = rest.strip_prefix('/')?;
        match rest.split_once('/') {
            None => Some(Self::Access(rest)),
            Some((access, key)) if !key.contains('/') => Some(Self::Key(access, key)),
            Some(_) => None,
        }
    }
}

/// A request that waits for something newer than it has.
struct Wait {
    access: String,
    key: Option<String>,
    conditions: Conditions,
    limit: Duration,
}

/// `/v1/keys`, one access.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    access: &'a str,
    state: &'static str,
    version: Option<u64>,
    issued_at: Option<Timestamp>,
    age_seconds: Option<i64>,
    keys: Vec<&'a str>,
}

impl Endpoint {
    /// An endpoint with its own limit of waiting requests.
    pub fn new(guard: Arc<Guard>, store: Arc<Store>, metrics: Arc<Metrics>, stop: CancellationToken) -> Self {
        Self {
            guard,
            store,
            metrics,
            stop,
            waiting: Semaphore::new(MAX_WAITING),
        }
    }

    /// Answers a request.
    pub fn answer<B>(
        self: &Arc<Self>,
        request: &Request<B>,
        place: &Arc<Place>,
        transport: Transport,
    ) -> Answering {
        place.set_streaming(false);
        let answer = match self.guard.check(request, transport) {
            Ok(()) => self.route(request),
            Err(refusal) => Ok(self.refuse(refusal, request)),
        };
        match answer {
            Ok(answer) => {
                self.metrics.answered(answer.status().as_u16());
                at_once(answer)
            }
            Err(wait) => {
                let (endpoint, place) = (self.clone(), place.clone());
                later(async move {
                    let answer = endpoint.wait(wait, &place).await;
                    endpoint.metrics.answered(answer.status().as_u16());
                    answer
                })
            }
        }
    }

    fn refuse<B>(&self, refusal: Refusal, request: &Request<B>) -> Answer {
        self.metrics.refused(refusal.reason());
        let text = format!("llmwarden: {}", self.guard.explain(refusal, request.uri().path()));
        let mut answer = answer::text(refusal.status(), &text);
        let extra = match refusal {
            Refusal::Token => Some((WWW_AUTHENTICATE, "Bearer realm=\"llmwarden\"")),
            Refusal::Method => Some((header::ALLOW, "GET")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        // Its body, if it has one, is not read.
        close(&mut answer);
        answer
    }

    fn route<B>(&self, request: &Request<B>) -> Result<Answer, Wait> {
        match Route::of(request.uri().path()) {
            Some(Route::List) => Ok(self.list()),
            Some(Route::Access(access)) => self.deliver(access, None, request.headers()),
            Some(Route::Key(access, key)) => self.deliver(access, Some(key), request.headers()),
            None => Ok(answer::text(
                StatusCode::NOT_FOUND,
                "llmwarden: there are /v1/keys, /v1/keys/<access> and /v1/keys/<access>/<key>",
            )),
        }
    }

    fn list(&self) -> Answer {
        let slots: Vec<_> = self
            .store
            .accesses()
            .filter_map(|access| Some((access, self.store.held(access)?)))
            .collect();
        let summaries: Vec<_> = slots.iter().map(|(access, held)| summary(access, held)).collect();
        answer::json(StatusCode::OK, &serde_json::json!({ "accesses": summaries }))
    }

    /// Answers with a value of an access, or with all of them, unless the request waits for something newer.
    fn deliver(&self, access: &str, key: Option<&str>, headers: &HeaderMap) -> Result<Answer, Wait> {
        let Some(held) = self.store.held(access) else {
            let known: Vec<_> = self.store.accesses().collect();
            let text = format!("llmwarden: no such access here; there are: {}", known.join(", "));
            return Ok(answer::text(StatusCode::NOT_FOUND, &text));
        };
        let conditions = Conditions::of(headers);
        match conditions.wait {
            _ if !conditions.match_held(&held) => Ok(respond(access, &held, key)),
            None => Ok(not_modified(&held)),
            Some(limit) => Err(Wait {
                access: access.to_owned(),
                key: key.map(str::to_owned),
                conditions,
                limit,
            }),
        }
    }

    /// Answers with something newer, or at the end of the wait.
    async fn wait(&self, wait: Wait, place: &Place) -> Answer {
        let Wait {
            access,
            key,
            conditions,
            limit,
        } = wait;
        let (Ok(_waiting), Some(mut slot)) = (self.waiting.try_acquire(), self.store.subscribe(&access))
        else {
            self.metrics.refused("waiting");
            let text = "llmwarden: too many requests wait at once; ask without Prefer: wait";
            return retry_later(answer::text(StatusCode::SERVICE_UNAVAILABLE, text));
        };
        place.leave();
        let news = slot.wait_for(|slot| !conditions.match_held(&slot.held));
        tokio::select! {
            _ = tokio::time::timeout(limit, news) => {}
            () = self.stop.cancelled() => {}
        }
        let held = slot.borrow().held.clone();
        let mut answer = if conditions.match_held(&held) {
            not_modified(&held)
        } else {
            respond(&access, &held, key.as_deref())
        };
        if !place.take_again() {
            close(&mut answer);
        }
        answer
    }
}

fn respond(access: &str, held: &Held, key: Option<&str>) -> Answer {
    match held {
        Held::Active(delivered) => {
            let mut answer = match key {
                Some(key) => one(access, delivered, key),
                None => whole(access, delivered),
            };
            tag(&mut answer, delivered);
            answer
        }
        Held::Pending => {
            let text = format!("llmwarden: no key for {access} yet; try again soon");
            retry_later(answer::text(StatusCode::SERVICE_UNAVAILABLE, &text))
        }
        Held::Withdrawn(withdrawn) => {
            let text = format!(
                "llmwarden: the key of {access} was withdrawn: {}",
                withdrawn.reason
            );
            answer::text(StatusCode::GONE, &text)
        }
    }
}

fn summary<'a>(access: &'a str, held: &'a Held) -> Summary<'a> {
    let (state, delivered) = match held {
        Held::Pending => ("pending", None),
        Held::Active(delivered) => ("active", Some(delivered)),
        Held::Withdrawn(_) => ("withdrawn", None),
    };
    let issued_at = delivered.map(|delivered| delivered.issued_at());
    Summary {
        access,
        state,
        version: held.version(),
        issued_at,
        age_seconds: issued_at.map(age_seconds),
        keys: delivered
            .map(|delivered| delivered.names().collect())
            .unwrap_or_default(),
    }
}

/// All values of an access.
fn whole(access: &str, delivered: &Delivered) -> Answer {
    // The one place where keys are serialized: into the answer that is meant to carry them.
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Delivery<'a> {
        access: &'a str,
        version: u64,
        issued_at: Timestamp,
        values: BTreeMap<&'a str, &'a str>,
    }
    let delivery = Delivery {
        access,
        version: delivered.version(),
        issued_at: delivered.issued_at(),
        values: delivered
            .names()
            .filter_map(|name| Some((name, delivered.expose(name)?)))
            .collect(),
    };
    let body = serde_json::to_vec(&delivery).expect("strings and numbers always serialize");
    answer::value("application/json", Bytes::from_owner(Zeroizing::new(body)))
}

/// One value of an access.
fn one(access: &str, delivered: &Delivered, key: &str) -> Answer {
    if let Some(value) = delivered.body(key) {
        answer::value("text/plain; charset=utf-8", value)
    } else {
        let names: Vec<_> = delivered.names().collect();
        let text = format!(
            "llmwarden: {access} has no such key; it has: {}",
            names.join(", ")
        );
        answer::text(StatusCode::NOT_FOUND, &text)
    }
}

fn not_modified(held: &Held) -> Answer {
    let mut answer = answer::empty(StatusCode::NOT_MODIFIED);
    if let Held::Active(delivered) = held {
        tag(&mut answer, delivered);
    }
    answer
}

fn tag(answer: &mut Answer, delivered: &Delivered) {
    answer.headers_mut().insert(ETAG, delivered.etag().clone());
}

fn retry_later(mut answer: Answer) -> Answer {
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn close(answer: &mut Answer) {
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
}
