//! Answers on their way to the caller: each piece as it comes, however long it takes in all, and watched for what the
//! metrics tell. One that breaks off breaks off for the caller too.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::account::Exchange;
use super::usage::Observer;
use crate::server::BoxError;

/// How long a provider may send nothing: reasoning models think for minutes.
const IDLE_TIMEOUT: Duration = Duration::from_mins(10);

/// A provider's answer as it comes.
pub struct Relayed {
    /// What was read of it before it was clear that it is passed on.
    read: Option<Bytes>,
    rest: Incoming,
    /// When it is given up, unless something comes: counted while it is waited for.
    deadline: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    observer: Option<Observer>,
    exchange: Exchange,
}

/// Why an answer breaks off here.
#[derive(Debug, thiserror::Error)]
#[error("the provider sent nothing for {} s", IDLE_TIMEOUT.as_secs())]
struct Silent;

impl Relayed {
    /// What was read of an answer, and what is to come.
    pub fn new(read: Option<Bytes>, rest: Incoming, observer: Option<Observer>, exchange: Exchange) -> Self {
        Self {
            read: read.filter(|read| !read.is_empty()),
            rest,
            deadline: None,
            timer: Box::pin(sleep_until(Instant::now() + IDLE_TIMEOUT)),
            observer,
            exchange,
        }
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(read) = self.read.take() {
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        if let Poll::Ready(next) = Pin::new(&mut self.rest).poll_frame(cx) {
            self.deadline = None;
            return Poll::Ready(next.map(|frame| frame.map_err(Into::into)));
        }
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + IDLE_TIMEOUT);
        // Set anew only when it ends: most pieces come long before.
        while self.timer.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(Some(Err(Silent.into())));
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let next = ready!(this.poll_rest(cx));
        match &next {
            Some(Ok(frame)) => {
                if let (Some(observer), Some(data)) = (&mut this.observer, frame.data_ref()) {
                    observer.push(data);
                }
            }
            Some(Err(error)) => this.exchange.broken(error.as_ref()),
            None => this.end(),
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.as_ref().map_or(0, |read| read.len() as u64);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint
    }
}

impl Drop for Relayed {
    /// hyper asks no more once it has as much as was announced.
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.end();
        }
    }
}

impl Relayed {
    fn end(&mut self) {
        if let Some(usage) = self.observer.take().and_then(|observer| observer.usage()) {
            self.exchange.used(usage);
        }
        self.exchange.completed();
    }
}
