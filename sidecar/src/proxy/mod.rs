//! The proxy: `/proxy/<access>/…` goes to the access' provider with the live key in place of the placeholder, and the answer
//! comes back as it comes.
//!
//! What may pass is decided without waiting, in [`target`], [`caller`], [`routes`] and [`models`]; [`forward`] makes the
//! exchange, and what is refused is told in the provider's own form ([`refusal`]).

pub mod account;
mod answer;
mod body;
pub mod caller;
pub mod dead_key;
mod forward;
pub mod headers;
pub mod json;
pub mod models;
pub mod query;
pub mod refusal;
pub mod routes;
pub mod target;
mod upstream;
pub mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderValue, VIA};
use hyper::{HeaderMap, Method, Request, Response, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use llmwarden_proto::delivery::ErrorShape;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::warn;

use crate::endpoint::guard::{self, Guard, Transport};
use crate::metrics::Metrics;
use crate::server::{Answer, Answering, Place, later};
use crate::store::{Delivered, Held, Slot, Store};
use account::{Account, Exchange};
use answer::Relayed;
use body::{Inbound, Inspection, MAX_HELD_TOTAL};
use forward::{Answered, Forward, Head};
use models::{Ambiguous, Named, Scanner};
use refusal::Refusal;
use routes::{Decision, is_model_allowed};
use target::{Target, Tricky};
use upstream::{Clients, Provider};

/// How many requests may be on their way at a time.
pub const MAX_REQUESTS: usize = 1_024;

/// On every answer that is passed on.
const VIA_US: HeaderValue = HeaderValue::from_static("1.1 llmwarden");

/// What requests are passed on with.
#[derive(Debug)]
pub struct Proxy {
    guard: Arc<Guard>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    /// Of each access that is used through the proxy here.
    accesses: BTreeMap<String, Access>,
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Access {
    account: Arc<Account>,
    clients: Clients,
}

/// What is asked.
struct Asked<'a> {
    method: Method,
    target: Result<Target<'a>, Tricky>,
    headers: HeaderMap,
    body: Incoming,
}

/// A refusal, and in which form it is told.
struct Refuse {
    refusal: Refusal,
    shape: ErrorShape,
}

impl Proxy {
    /// For the accesses of the store that are used through it, which go out as the environment says.
    pub fn new(guard: Arc<Guard>, store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        let egress = Arc::new(Matcher::from_env());
        let proxied = store
            .accesses()
            .filter(|access| store.get(access).is_some_and(|slot| slot.mode.is_proxy()));
        let accesses = proxied.map(|access| {
            let account = Arc::new(Account::new(access, metrics.proxy.clone()));
            let clients = Clients::new(egress.clone());
            (access.to_owned(), Access { account, clients })
        });
        Self {
            accesses: accesses.collect(),
            guard,
            store,
            metrics,
            places: Arc::new(Semaphore::new(MAX_REQUESTS)),
            room: Arc::new(Semaphore::new(MAX_HELD_TOTAL)),
        }
    }

    /// Whether a request is one for the proxy.
    pub fn is_asked<B>(request: &Request<B>) -> bool {
        request.uri().path().starts_with(target::PREFIX)
    }

    /// How many running requests use each version of an access.
    pub fn in_use(&self, access: &str) -> BTreeMap<u64, u64> {
        self.accesses
            .get(access)
            .map(|access| access.account.in_use())
            .unwrap_or_default()
    }

    /// Brings the metrics up to date.
    pub fn show(&self) {
        self.metrics
            .proxy
            .show(self.accesses.values().map(|access| access.account.as_ref()));
    }

    /// Answers a request.
    pub fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        place: &Place,
        transport: Transport,
    ) -> Answering {
        place.set_streaming(true);
        let proxy = self.clone();
        later(async move { proxy.respond(request, transport).await })
    }

    async fn respond(&self, request: Request<Incoming>, transport: Transport) -> Answer {
        let (head, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        let target = Target::parse(&head.uri);
        let access = target.map_or("", |target| target.access);
        let asked = Asked {
            method: head.method,
            target,
            headers: head.headers,
            body,
        };
        match self.pass_on(asked, transport).await {
            Ok(answer) => answer,
            Err(Refuse { refusal, shape }) => {
                match self.accesses.get(access) {
                    Some(access) => access.account.refused(&refusal),
                    None => self.metrics.refused(refusal.reason()),
                }
                let mut answer = refusal
                    .response(shape, access)
                    .map(|body| Either::Left(Full::new(body)));
                if has_body {
                    // What is left of it is not read.
                    answer
                        .headers_mut()
                        .insert(CONNECTION, HeaderValue::from_static("close"));
                }
                answer
            }
        }
    }

    async fn pass_on(&self, asked: Asked<'_>, transport: Transport) -> Result<Answer, Refuse> {
        // Until it is known whose access it is.
        let plainly = |refusal| Refuse {
            refusal,
            shape: ErrorShape::default(),
        };
        let origin = self.guard.check_origin(&asked.headers, transport);
        origin.map_err(|refusal| plainly(refusal.into()))?;
        let target = asked.target.map_err(|tricky| plainly(tricky.into()))?;
        let slot = self.store.subscribe(target.access);
        let slot = slot.ok_or_else(|| plainly(Refusal::UnknownAccess))?;
        let delivered = held(&slot).map_err(plainly)?;
        let Access { account, clients } = self
            .accesses
            .get(target.access)
            .ok_or_else(|| plainly(Refusal::NotProxied))?;
        let Some(upstream) = delivered.upstream() else {
            return Err(plainly(Refusal::NoUpstream));
        };
        let passing = Passing {
            delivered: &delivered,
            account,
            clients,
            slot,
        };
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| Refusal::Busy);
        let passed = async { passing.pass(asked, target, place?, &self.room).await };
        passed.await.map_err(|refusal| Refuse {
            refusal,
            shape: upstream.errors,
        })
    }
}

/// What there is of an access, if there is a key.
fn held(slot: &watch::Receiver<Slot>) -> Result<Arc<Delivered>, Refusal> {
    match slot.borrow().held.clone() {
        Held::Active(delivered) => Ok(delivered),
        Held::Pending => Err(Refusal::NotThereYet),
        Held::Withdrawn(withdrawn) => Err(Refusal::Withdrawn(withdrawn.reason)),
    }
}

/// One request, and all that it takes to pass it on.
struct Passing<'a> {
    delivered: &'a Arc<Delivered>,
    account: &'a Arc<Account>,
    clients: &'a Clients,
    slot: watch::Receiver<Slot>,
}

/// Where a request goes.
struct Way {
    provider: Arc<Provider>,
    uri: Uri,
    /// Whether its model is in its body.
    inspect: bool,
}

impl Passing<'_> {
    async fn pass(
        self,
        asked: Asked<'_>,
        Target { path, query, .. }: Target<'_>,
        place: OwnedSemaphorePermit,
        room: &Arc<Semaphore>,
    ) -> Result<Answer, Refusal> {
        let Asked {
            method,
            mut headers,
            body,
            ..
        } = asked;
        let mut delivered = self.delivered.clone();
        let upstream = delivered.upstream().ok_or(Refusal::NoUpstream)?;
        let query = caller::authenticate(&mut headers, query, &upstream.auth, delivered.placeholder())?;
        let way = |delivered: &Delivered| self.way(delivered, &method, path, query.as_deref(), &headers);
        let Way {
            mut provider,
            mut uri,
            mut inspect,
        } = way(&delivered)?;
        let mut exchange = Exchange::begin(self.account.clone(), delivered.version(), place);
        let body = Inbound::read(body, room).await?;
        // A caller takes its time to send it: what holds by now counts.
        let now = held(&self.slot)?;
        if !Arc::ptr_eq(&now, &delivered) {
            delivered = now;
            Way {
                provider,
                uri,
                inspect,
            } = way(&delivered)?;
            exchange.go_on_with(delivered.version());
        }
        let upstream = delivered.upstream().ok_or(Refusal::NoUpstream)?;
        let mut inspection = None;
        if inspect {
            let mut scanner = Scanner::new(upstream);
            match &body {
                Inbound::Whole { data, .. } => {
                    scanner.push(data)?;
                    check_models(&upstream.models, scanner.finish()?)?;
                }
                Inbound::Begun { .. } => {
                    let models = upstream.models.clone();
                    inspection = Some(Inspection {
                        scanner,
                        decide: Box::new(move |named| check_models(&models, named?)),
                    });
                }
            }
        }
        headers::outbound(&mut headers);
        let live = delivered.live().ok_or(Refusal::NotThereYet)?;
        let (auth, _) = live.key.header().ok_or(Refusal::NoUpstream)?;
        // What each try puts in has its place already: a copy of the map has no room to grow.
        for name in [HOST, auth.clone()] {
            headers.insert(name, HeaderValue::from_static(""));
        }
        let head = Head { method, uri, headers };
        let forward = Forward {
            provider,
            upstream,
            slot: self.slot,
            delivered: delivered.clone(),
        };
        let answered = forward.exchange(head, body, inspection, &mut exchange).await?;
        Ok(relay(answered, exchange))
    }

    /// Where a request goes, if it may be made as far as its head tells.
    fn way(
        &self,
        delivered: &Delivered,
        method: &Method,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Way, Refusal> {
        let upstream = delivered.upstream().ok_or(Refusal::NoUpstream)?;
        let inspect = match routes::decide(upstream, method, path, query) {
            Decision::Allow => false,
            Decision::ModelInBody => true,
            Decision::Model(model) => {
                check_model(&upstream.models, model)?;
                false
            }
            Decision::Denied(reason) => return Err(Refusal::RouteDenied(reason.to_owned())),
        };
        if inspect && is_encoded(headers) {
            return Err(Refusal::ModelUnreadable(Ambiguous::Syntax));
        }
        let provider = self.clients.provider(upstream).map_err(|error| {
            warn!(%error, provider = upstream.provider, "the provider can't be called");
            Refusal::NoUpstream
        })?;
        let uri = origin_form(path, query).ok_or(Refusal::NoUpstream)?;
        Ok(Way {
            provider,
            uri,
            inspect,
        })
    }
}

/// A path and a query as a request names them.
fn origin_form(path: &str, query: Option<&str>) -> Option<Uri> {
    match query {
        Some(query) => Uri::try_from(format!("{path}?{query}")).ok(),
        None => Uri::try_from(path).ok(),
    }
}

fn relay(Answered { response, read }: Answered, mut exchange: Exchange) -> Answer {
    let (head, rest) = response.into_parts();
    exchange.answered(head.status);
    let observer = if head.status.is_success() {
        usage::Observer::of(&head.headers)
    } else {
        None
    };
    let relayed = Relayed::new(read, rest, observer, exchange);
    // The version of the provider's protocol stays there.
    let mut answer = Response::new(Either::Right(UnsyncBoxBody::new(relayed)));
    *answer.status_mut() = head.status;
    *answer.headers_mut() = head.headers;
    headers::strip_hop_by_hop(answer.headers_mut());
    answer.headers_mut().append(VIA, VIA_US);
    answer
}

fn check_models(allowed: &[String], Named { model, in_tools }: Named) -> Result<(), Refusal> {
    check_model(allowed, model.ok_or(Refusal::ModelMissing)?)?;
    in_tools
        .into_iter()
        .try_for_each(|model| check_model(allowed, model))
}

fn check_model(allowed: &[String], model: String) -> Result<(), Refusal> {
    if is_model_allowed(allowed, &model) {
        return Ok(());
    }
    Err(Refusal::ModelNotAllowed {
        model,
        allowed: allowed.to_vec(),
    })
}

/// A body in a coding is not what it seems to a reader of JSON.
fn is_encoded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(hyper::header::CONTENT_ENCODING);
    codings.iter().any(|coding| coding != "identity")
}

impl From<guard::Refusal> for Refusal {
    fn from(refusal: guard::Refusal) -> Self {
        match refusal {
            guard::Refusal::Forwarded => Self::Forwarded,
            guard::Refusal::Browser => Self::Browser,
            _ => Self::Host,
        }
    }
}
