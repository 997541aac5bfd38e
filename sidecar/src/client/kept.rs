//! Connections that wait for their next request.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http1::SendRequest;
use tokio::time::{Instant, sleep_until};

use crate::incoming::Incoming;

/// How long a connection is kept for the next request: less than the load balancers of providers keep theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// How many are kept.
pub(super) const MAX_IDLE: usize = 256;

/// The connections to one server that nobody uses.
pub(super) struct Kept<B>(Mutex<State<B>>);

struct State<B> {
    /// The one that was used last at the end.
    idle: VecDeque<Idle<B>>,
    /// Whether there is a task that closes what nobody needs.
    is_watched: bool,
}

struct Idle<B> {
    sender: SendRequest<B>,
    until: Instant,
}

impl<B> Kept<B> {
    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.state().idle.len()
    }

    /// The one that was used last, of those that can be used.
    pub(super) fn take(&self) -> Option<SendRequest<B>> {
        let idle = &mut self.state().idle;
        let at = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        idle.remove(at).map(|idle| idle.sender)
    }

    /// Closes what nobody has used for long. Says when to come again; nothing if there is nothing left.
    fn close_old(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state();
        state
            .idle
            .retain(|idle| now < idle.until && !idle.sender.is_closed());
        let next = state.idle.front().map(|idle| idle.until);
        state.is_watched = next.is_some();
        next
    }
}

impl<B: Send + 'static> Kept<B> {
    fn put(self: &Arc<Self>, sender: SendRequest<B>) {
        if sender.is_closed() {
            return;
        }
        let until = Instant::now() + IDLE_TIMEOUT;
        let mut state = self.state();
        if state.idle.len() == MAX_IDLE {
            state.idle.retain(|idle| !idle.sender.is_closed());
        }
        if state.idle.len() == MAX_IDLE {
            state.idle.pop_front();
        }
        state.idle.push_back(Idle { sender, until });
        if !std::mem::replace(&mut state.is_watched, true) {
            tokio::spawn(close_old(Arc::downgrade(self), until));
        }
    }
}

async fn close_old<B>(kept: Weak<Kept<B>>, mut next: Instant) {
    loop {
        sleep_until(next).await;
        let again = kept.upgrade().and_then(|kept| kept.close_old());
        let Some(again) = again else { return };
        next = again;
    }
}

impl<B> Default for Kept<B> {
    fn default() -> Self {
        Self(Mutex::new(State {
            idle: VecDeque::new(),
            is_watched: false,
        }))
    }
}

/// The body of an answer. Its connection is kept when it was read to its end, and closed otherwise.
pub struct Received<B: Send + 'static> {
    body: Incoming,
    has_ended: bool,
    connection: Option<(SendRequest<B>, Arc<Kept<B>>)>,
}

impl<B: Send + 'static> Received<B> {
    pub(super) fn new(body: Incoming, sender: SendRequest<B>, kept: Arc<Kept<B>>) -> Self {
        Self {
            body,
            has_ended: false,
            connection: Some((sender, kept)),
        }
    }
}

impl<B: Send + 'static> Body for Received<B> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let next = ready!(Pin::new(&mut this.body).poll_frame(cx));
        this.has_ended |= next.is_none();
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Send + 'static> Drop for Received<B> {
    fn drop(&mut self) {
        if self.is_end_stream()
            && let Some((sender, kept)) = self.connection.take()
        {
            kept.put(sender);
        }
    }
}
