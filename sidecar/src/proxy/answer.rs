//! Answers on their way to the caller: each piece as it comes, however long it takes in all, and watched for what the
//! metrics tell. One that breaks off breaks off for the caller too.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::account::Exchange;
use super::body::Outbound;
use super::usage::Observer;
use crate::client::Received;
use crate::idle::Idle;
use crate::server::BoxError;

/// How long a provider may send nothing: reasoning models think for minutes.
const IDLE_TIMEOUT: Duration = Duration::from_mins(10);

/// A provider's answer as it comes.
pub struct Relayed {
    /// What was read of it before it was clear that it is passed on.
    read: Option<Bytes>,
    rest: Idle<Received<Outbound>>,
    observer: Option<Observer>,
    exchange: Exchange,
}

impl Relayed {
    /// What was read of an answer, and what is to come.
    pub fn new(
        read: Option<Bytes>,
        rest: Received<Outbound>,
        observer: Option<Observer>,
        exchange: Exchange,
    ) -> Self {
        Self {
            read: read.filter(|read| !read.is_empty()),
            rest: Idle::new(rest, IDLE_TIMEOUT),
            observer,
            exchange,
        }
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
        let next = match this.read.take() {
            Some(read) => Some(Ok(Frame::data(read))),
            None => ready!(Pin::new(&mut this.rest).poll_frame(cx)),
        };
        match &next {
            Some(Ok(frame)) => {
                if let (Some(observer), Some(data)) = (&mut this.observer, frame.data_ref()) {
                    observer.push(data);
                }
            }
            Some(Err(error)) => this.exchange.broken(error),
            None => this.end(),
        }
        Poll::Ready(next.map(|frame| frame.map_err(Into::into)))
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
