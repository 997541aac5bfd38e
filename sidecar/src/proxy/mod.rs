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
mod packed;
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
use hyper::header::{CONNECTION, HeaderValue, VIA};
use hyper::{HeaderMap, Method, Request, Response, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use llmwarden_proto::delivery::{ErrorShape, Upstream};
use secrecy::SecretString;
use tokio::sync::{Semaphore, watch};
use tracing::warn;

use crate::endpoint::guard::{self, Guard, Transport};
use crate::metrics::Metrics;
use crate::server::{Answer, Answering, LazyTimer, Place, at_once, later};
use crate::store::{Delivered, Held, Slot, Store};
use account::{Account, Exchange};
use answer::Relayed;
use body::{Inbound, Inspection, MAX_HELD_TOTAL, Outbound, Refused};
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
    accesses: BTreeMap<String, Arc<Access>>,
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Access {
    account: Arc<Account>,
    clients: Clients,
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
            (access.to_owned(), Arc::new(Access { account, clients }))
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
    pub fn answer(&self, request: Request<Incoming>, place: &Place, transport: Transport) -> Answering {
        place.set_streaming(true);
        let (head, body) = request.into_parts();
        let target = Target::parse(&head.uri);
        match self.admit(head.method, target, head.headers, transport) {
            Ok(passing) => later(passing.answer(body, place.timer().clone())),
            Err(Refuse { refusal, shape }) => {
                let name = target.map_or("", |target| target.access);
                match self.accesses.get(name) {
                    Some(access) => access.account.refused(&refusal),
                    None => self.metrics.refused(refusal.reason()),
                }
                at_once(tell(&refusal, shape, name, !body.is_end_stream()))
            }
        }
    }

    /// Lets a request in if it may be passed on as far as its head tells.
    fn admit(
        &self,
        method: Method,
        target: Result<Target<'_>, Tricky>,
        headers: HeaderMap,
        transport: Transport,
    ) -> Result<Passing, Refuse> {
        // Until it is known whose access it is.
        let plainly = |refusal| Refuse {
            refusal,
            shape: ErrorShape::default(),
        };
        let origin = self.guard.check_origin(&headers, transport);
        origin.map_err(|refusal| plainly(refusal.into()))?;
        let target = target.map_err(|tricky| plainly(tricky.into()))?;
        let slot = self.store.subscribe(target.access);
        let slot = slot.ok_or_else(|| plainly(Refusal::UnknownAccess))?;
        let delivered = held(&slot).map_err(plainly)?;
        let access = self.accesses.get(target.access);
        let access = access.ok_or_else(|| plainly(Refusal::NotProxied))?.clone();
        let Some(upstream) = delivered.upstream() else {
            return Err(plainly(Refusal::NoUpstream));
        };
        let shape = upstream.errors;
        let place = self.places.clone().try_acquire_owned();
        place
            .map_err(|_| Refusal::Busy)
            .and_then(|place| {
                let placeholder = delivered.placeholder();
                let head = outbound_head(upstream, placeholder, method, target, headers)?;
                let way = access.way(upstream, &head)?;
                let account = access.account.clone();
                Ok(Passing {
                    way,
                    head: Some(head),
                    exchange: Exchange::begin(account, delivered.version(), place),
                    access,
                    slot,
                    delivered: delivered.clone(),
                    room: self.room.clone(),
                    shape,
                })
            })
            .map_err(|refusal| Refuse { refusal, shape })
    }
}

/// A refusal as an answer.
fn tell(refusal: &Refusal, shape: ErrorShape, access: &str, has_body: bool) -> Answer {
    let mut answer = refusal
        .response(shape, access)
        .map(|body| Either::Left(Full::new(body)));
    if has_body {
        // What is left of it is not read.
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(CONNECTION, close);
    }
    answer
}

/// What there is of an access, if there is a key.
fn held(slot: &watch::Receiver<Slot>) -> Result<Arc<Delivered>, Refusal> {
    match slot.borrow().held.clone() {
        Held::Active(delivered) => Ok(delivered),
        Held::Pending => Err(Refusal::NotThereYet),
        Held::Withdrawn(withdrawn) => Err(Refusal::Withdrawn(withdrawn.reason)),
    }
}

/// Where a request goes.
struct Way {
    provider: Arc<Provider>,
    /// Whether its model is in its body.
    inspect: bool,
}

impl Access {
    /// Where a request goes, if it may be made as far as its head tells.
    fn way(&self, upstream: &Upstream, head: &Head) -> Result<Way, Refusal> {
        let inspect = match routes::decide(upstream, &head.method, head.uri.path(), head.uri.query()) {
            Decision::Allow => false,
            Decision::ModelInBody => true,
            Decision::Model(model) => {
                check_model(&upstream.models, model)?;
                false
            }
            Decision::Denied(reason) => return Err(Refusal::RouteDenied(reason.to_owned())),
        };
        if inspect && is_encoded(&head.headers) {
            return Err(Refusal::ModelUnreadable(Ambiguous::Syntax));
        }
        let provider = self.clients.provider(upstream).map_err(|error| {
            warn!(%error, provider = upstream.provider, "the provider can't be called");
            Refusal::NoUpstream
        })?;
        Ok(Way { provider, inspect })
    }
}

/// One request that was let in, and all that it takes to pass it on.
struct Passing {
    access: Arc<Access>,
    slot: watch::Receiver<Slot>,
    delivered: Arc<Delivered>,
    way: Way,
    /// Until it is sent.
    head: Option<Head>,
    exchange: Exchange,
    room: Arc<Semaphore>,
    shape: ErrorShape,
}

impl Passing {
    fn answer(mut self, body: Incoming, timer: LazyTimer) -> impl Future<Output = Answer> + Send {
        let has_body = !body.is_end_stream();
        // What an `async fn` is given, it would hold twice.
        async move {
            match self.pass(body, &timer).await {
                Ok(answered) => relay(answered, self.exchange),
                Err(refusal) => {
                    let account = &self.access.account;
                    account.refused(&refusal);
                    tell(&refusal, self.shape, account.access(), has_body)
                }
            }
        }
    }

    async fn pass(&mut self, body: Incoming, timer: &LazyTimer) -> Result<Answered, Refusal> {
        let body = Inbound::read(body.into(), &self.room).await?;
        // A caller takes its time to send it: what holds by now counts.
        let now = held(&self.slot)?;
        if !Arc::ptr_eq(&now, &self.delivered) {
            let upstream = now.upstream().ok_or(Refusal::NoUpstream)?;
            let head = self.head.as_ref().ok_or(Refusal::NoUpstream)?;
            self.way = self.access.way(upstream, head)?;
            self.exchange.go_on_with(now.version());
            self.delivered = now;
        }
        let upstream = self.delivered.upstream().ok_or(Refusal::NoUpstream)?;
        let inspection = if self.way.inspect {
            inspect(&body, upstream)?
        } else {
            None
        };
        let forward = Forward {
            provider: &self.way.provider,
            upstream,
            slot: &mut self.slot,
            delivered: &self.delivered,
            head: &mut self.head,
            exchange: &mut self.exchange,
            timer,
        };
        match body {
            Inbound::Whole {
                data,
                trailers,
                // Held until the answer is there.
                reservation: _reservation,
            } => forward.answer(data, trailers).await,
            Inbound::Begun {
                read,
                rest,
                reservation,
            } => {
                let refused = Refused::default();
                let body = Outbound::passing(read, rest, reservation, inspection, refused.clone());
                Box::pin(forward.answer_once(body, refused)).await
            }
        }
    }
}

/// Reads the models in a body that is there, or prepares for reading them as it passes.
fn inspect(body: &Inbound, upstream: &Upstream) -> Result<Option<Box<Inspection>>, Refusal> {
    let mut scanner = Scanner::new(upstream);
    match body {
        Inbound::Whole { data, .. } => {
            scanner.push(data)?;
            check_models(&upstream.models, scanner.finish()?)?;
            Ok(None)
        }
        Inbound::Begun { .. } => {
            let models = upstream.models.clone();
            Ok(Some(Box::new(Inspection {
                scanner,
                decide: Box::new(move |named| check_models(&models, named?)),
            })))
        }
    }
}

/// What a caller who may ask sends, as it goes out but for the key: that is what is decided about.
fn outbound_head(
    upstream: &Upstream,
    placeholder: &SecretString,
    method: Method,
    Target { path, query, .. }: Target<'_>,
    mut headers: HeaderMap,
) -> Result<Head, Refusal> {
    let query = caller::authenticate(&mut headers, query, &upstream.auth, placeholder)?;
    headers::outbound(&mut headers);
    let uri = origin_form(path, query.as_deref()).ok_or(Refusal::NoUpstream)?;
    Ok(Head { method, uri, headers })
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
