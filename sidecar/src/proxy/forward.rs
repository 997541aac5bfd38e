//! One exchange with a provider: the request goes out with the live key; if the provider says that the key is dead, once more
//! with another one, and, if that was the one before, with the next.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::Either;
use http_body_util::BodyExt;
use hyper::{HeaderMap, Method, Request, Response, Uri};
use llmwarden_proto::delivery::Upstream;
use llmwarden_proto::profile::AuthHeader;
use tokio::sync::watch;
use tracing::{info, warn};

use super::account::Exchange;
use super::body::{Outbound, Refused};
use super::dead_key;
use super::packed::Packed;
use super::refusal::Refusal;
use super::upstream::Provider;
use crate::client::{self, Received};
use crate::server::LazyTimer;
use crate::store::{Delivered, Held, LiveKey, Slot};

/// How long the head of an answer may take, the request's own body included: reasoning models think for minutes.
const HEAD_TIMEOUT: Duration = Duration::from_mins(10);
/// How much of an answer is read to see whether it says that the key is dead.
const MAX_VERDICT: usize = 64 * 1024;
/// How long the rest of that may take.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for the next version after its key is found dead: a rotation reaches a pod in less. Once that
/// was in vain, others need not wait for it.
const NEXT_KEY: Duration = Duration::from_secs(3);

/// How many keys a request is tried with: the live one, the one before, and the next.
const MAX_KEYS: usize = 3;

/// A request as it is to go out, but for the key.
pub struct Head {
    /// Its method.
    pub method: Method,
    /// The path and the query.
    pub uri: Uri,
    /// Without anything of the caller's that is a credential, or is about the caller's connection only. Its `Host` is still
    /// there: the client always puts the provider's in its place.
    pub headers: HeaderMap,
}

/// An answer to pass on: what was read of its body, and the rest.
pub struct Answered {
    /// Its head, and what is to come of its body.
    pub response: Response<Received<Outbound>>,
    /// What was read of its body.
    pub read: Option<Bytes>,
}

/// What an exchange is made with.
pub struct Forward<'a> {
    /// The provider, and the connections to it.
    pub provider: &'a Provider,
    /// How it is spoken to.
    pub upstream: &'a Upstream,
    /// The access as it is now, and as it becomes.
    pub slot: &'a mut watch::Receiver<Slot>,
    /// What this request begins with.
    pub delivered: &'a Arc<Delivered>,
    /// What is asked, until it is sent.
    pub head: &'a mut Option<Head>,
    /// Where it is counted.
    pub exchange: &'a mut Exchange,
    /// How long the head of an answer may take is counted there.
    pub timer: &'a LazyTimer,
}

/// What comes of a request that was sent.
type Sent = Result<Response<Received<Outbound>>, client::Error>;

impl Forward<'_> {
    /// Sends the request with a body that is held, and waits for the head of the answer that counts.
    pub fn answer(
        mut self,
        data: Bytes,
        trailers: Option<Box<HeaderMap>>,
    ) -> impl Future<Output = Result<Answered, Refusal>> + Send {
        let packed = self.head.as_ref().map(Packed::new);
        // What an `async fn` is given, it would hold twice.
        async move {
            let mut delivered = self.delivered.clone();
            let mut key = live_key(&delivered)?.clone();
            let mut dead = Vec::new();
            loop {
                let body = Outbound::held(&data, trailers.as_deref());
                let timer = self.timer;
                let sent = self.send(&key, body)?;
                let response = response(timer, sent, None).await?;
                if let Some(answered) = self.judge(response).await? {
                    let is_live = delivered.live().is_some_and(|live| live.key.is(&key));
                    if answered.response.status().is_success() && is_live {
                        delivered.trust();
                    }
                    return Ok(answered);
                }
                dead.push(key);
                let other = Box::pin(self.other_key(&dead)).await;
                let Some((other, newer)) = other else {
                    return Err(Refusal::DeadKey {
                        retry: self.has_moved(),
                    });
                };
                if dead.len() == MAX_KEYS {
                    return Err(Refusal::DeadKey { retry: true });
                }
                let version = newer.version();
                info!(
                    version,
                    "the provider says that the key is dead; once more with another one"
                );
                self.exchange.retry(version);
                (key, delivered) = (other, newer);
                *self.head = packed.as_ref().and_then(Packed::unpack);
            }
        }
    }

    /// The same with a body that passes: it is gone then, and only the caller can send it again.
    pub async fn answer_once(mut self, body: Outbound, refused: Refused) -> Result<Answered, Refusal> {
        let key = live_key(self.delivered)?.clone();
        let timer = self.timer;
        let sent = self.send(&key, body)?;
        let response = response(timer, sent, Some(&refused)).await?;
        match self.judge(response).await? {
            Some(answered) => Ok(answered),
            None => Err(Refusal::DeadKey {
                retry: self.other_key(&[key]).await.is_some() || self.has_moved(),
            }),
        }
    }

    /// Puts the key in; what this returns sends the request. It is boxed: with it, the future of the whole request would be
    /// larger than what an allocator has at hand.
    fn send(
        &mut self,
        key: &LiveKey,
        body: Outbound,
    ) -> Result<Pin<Box<impl Future<Output = Sent>>>, Refusal> {
        let mut request = Request::new(body);
        let head = self.head.take().ok_or(Refusal::NoUpstream)?;
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.headers_mut() = head.headers;
        let (name, value) = key.header().cloned().ok_or(Refusal::NoUpstream)?;
        request.headers_mut().insert(name, value);
        Ok(Box::pin(self.provider.client.send(request)))
    }

    /// The answer as it is to be passed on; nothing if it says that the key is dead.
    fn judge(
        &self,
        response: Response<Received<Outbound>>,
    ) -> impl Future<Output = Result<Option<Answered>, Refusal>> {
        if dead_key::may_be_dead_key(self.upstream, response.status()) {
            Either::Left(Box::pin(self.read_verdict(response)))
        } else {
            Either::Right(ready(Ok(Some(Answered { response, read: None }))))
        }
    }

    async fn read_verdict(
        &self,
        response: Response<Received<Outbound>>,
    ) -> Result<Option<Answered>, Refusal> {
        let status = response.status();
        let (head, mut body) = response.into_parts();
        let mut read = BytesMut::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(|_| Refusal::UpstreamUnreachable)?.into_data() {
                    read.extend_from_slice(&data);
                    if read.len() > MAX_VERDICT {
                        break;
                    }
                }
            }
            Ok::<_, Refusal>(())
        };
        let in_time = tokio::time::timeout(VERDICT_TIMEOUT, reading).await;
        in_time.map_err(|_| Refusal::UpstreamTimeout)??;
        if dead_key::is_dead_key(self.upstream, status, &read) {
            return Ok(None);
        }
        Ok(Some(Answered {
            response: Response::from_parts(head, body),
            read: Some(read.freeze()),
        }))
    }

    /// A key other than the dead ones: that of a newer version, else the one before. Without any, the next version is awaited
    /// unless that was in vain before: somebody is about to replace the key.
    async fn other_key(&mut self, dead: &[LiveKey]) -> Option<(LiveKey, Arc<Delivered>)> {
        let upstream = self.upstream;
        let is_news = |slot: &Slot| has_moved(upstream, slot) || other_than(dead, upstream, slot).is_some();
        if !is_news(&self.slot.borrow_and_update()) {
            if !self.delivered.is_trusted() {
                return None;
            }
            let next = tokio::time::timeout(NEXT_KEY, self.slot.wait_for(is_news)).await;
            if !matches!(next, Ok(Ok(_))) {
                // The next ones need not wait.
                self.delivered.doubt();
                return None;
            }
        }
        other_than(dead, upstream, &self.slot.borrow())
    }

    /// Whether a request that is sent again would go elsewhere.
    fn has_moved(&self) -> bool {
        has_moved(self.upstream, &self.slot.borrow())
    }
}

/// Waits for the head of an answer.
async fn response(
    timer: &LazyTimer,
    sent: impl Future<Output = Sent> + Unpin,
    refused: Option<&Refused>,
) -> Result<Response<Received<Outbound>>, Refusal> {
    match timer.within(HEAD_TIMEOUT, sent).await {
        Some(Ok(response)) => Ok(response),
        Some(Err(error)) => {
            if let Some(refusal) = refused.and_then(Refused::take) {
                return Err(refusal);
            }
            warn!(
                error = &error as &dyn std::error::Error,
                "the provider was not reached"
            );
            Err(Refusal::UpstreamUnreachable)
        }
        None => Err(Refusal::UpstreamTimeout),
    }
}

fn live_key(delivered: &Delivered) -> Result<&LiveKey, Refusal> {
    delivered.live().map(|live| &live.key).ok_or(Refusal::NotThereYet)
}

/// A key for the same place: whoever is there now is not to see one that is meant for another.
fn other_than(dead: &[LiveKey], upstream: &Upstream, slot: &Slot) -> Option<(LiveKey, Arc<Delivered>)> {
    let Held::Active(delivered) = &slot.held else {
        return None;
    };
    if has_moved(upstream, slot) {
        return None;
    }
    let live = delivered.live()?;
    let mut keys = Some(&live.key).into_iter().chain(&live.previous);
    let key = keys.find(|key| dead.iter().all(|dead| !dead.is(key)))?;
    Some((key.clone(), delivered.clone()))
}

/// Whether the provider is called somewhere else by now, or in another way.
fn has_moved(upstream: &Upstream, slot: &Slot) -> bool {
    let Held::Active(delivered) = &slot.held else {
        return false;
    };
    delivered.upstream().map(place) != Some(place(upstream))
}

fn place(upstream: &Upstream) -> (Option<&str>, Option<&str>, &AuthHeader) {
    (
        upstream.base_url.as_deref(),
        upstream.ca_bundle.as_deref(),
        &upstream.auth,
    )
}
