//! Bodies of requests on their way to the provider. Small ones are held, so that they can be sent once more with another
//! key; of the others only the last piece is, until it is known that all of it may go.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::models::{Ambiguous, Named, Scanner};
use super::refusal::Refusal;
use crate::idle::{Broken, Idle};
use crate::incoming::Incoming;
use crate::server::BoxError;

/// The largest body that is held.
const MAX_HELD: usize = 1024 * 1024;
/// How long the caller may send nothing of it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How much is held in the whole process.
pub const MAX_HELD_TOTAL: usize = 16 * MAX_HELD;

/// A request's body as it came: whole, or its beginning.
#[derive(Debug)]
pub enum Inbound {
    /// All of it, which is held as long as the reservation.
    Whole {
        /// Its data.
        data: Bytes,
        /// Its trailers.
        trailers: Option<Box<HeaderMap>>,
        /// Its part of what may be held.
        reservation: Option<OwnedSemaphorePermit>,
    },
    /// Too much of it to be held.
    Begun {
        /// What has been read.
        read: VecDeque<Bytes>,
        /// The rest.
        rest: Idle<Incoming>,
        /// The part of what may be held that was read has.
        reservation: Option<OwnedSemaphorePermit>,
    },
}

impl Inbound {
    /// Reads a body as far as there is room to hold it.
    pub async fn read(body: Incoming, room: &Arc<Semaphore>) -> Result<Self, Broken> {
        let mut body = Idle::new(body, IDLE_TIMEOUT);
        let mut read = VecDeque::new();
        let known = body
            .size_hint()
            .exact()
            .and_then(|size| usize::try_from(size).ok());
        if known == Some(0) {
            return Ok(Self::whole(read, None, None));
        }
        let reserve = |size: usize| {
            let permits = u32::try_from(size).ok().filter(|_| size <= MAX_HELD)?;
            room.clone().try_acquire_many_owned(permits).ok()
        };
        // Without a length, room is taken as the body comes.
        let Some(mut reservation) = reserve(known.unwrap_or(0)) else {
            return Ok(Self::Begun {
                read,
                rest: body,
                reservation: None,
            });
        };
        let (mut size, mut trailers) = (0, None);
        // Of one with a length, the end is not waited for.
        while !body.is_end_stream()
            && let Some(frame) = body.frame().await
        {
            match frame?.into_data() {
                Ok(data) => {
                    size += data.len();
                    let more = known.is_none().then(|| reserve(data.len()));
                    let is_full = matches!(more, Some(None));
                    if let Some(more) = more.flatten() {
                        reservation.merge(more);
                    }
                    read.push_back(data);
                    if is_full || size > MAX_HELD {
                        return Ok(Self::Begun {
                            read,
                            rest: body,
                            reservation: Some(reservation),
                        });
                    }
                }
                Err(frame) => trailers = frame.into_trailers().ok().map(Box::new),
            }
        }
        Ok(Self::whole(read, trailers, Some(reservation)))
    }

    fn whole(
        mut read: VecDeque<Bytes>,
        trailers: Option<Box<HeaderMap>>,
        reservation: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let data = match read.len() {
            0 => Bytes::new(),
            1 => read.pop_front().unwrap_or_default(),
            _ => {
                let mut all = BytesMut::with_capacity(read.iter().map(Bytes::len).sum());
                for part in &read {
                    all.extend_from_slice(part);
                }
                all.freeze()
            }
        };
        Self::Whole {
            data,
            trailers,
            reservation,
        }
    }
}

/// Looks for the models in a body that passes, and says whether the body may go.
pub struct Inspection {
    /// Reads the body.
    pub scanner: Scanner,
    /// Decides when all of it was read.
    pub decide: Decide,
}

/// Decides about the models that a body names.
type Decide = Box<dyn FnOnce(Result<Named, Ambiguous>) -> Result<(), Refusal> + Send>;

/// A place for the refusal of a body that was already on its way.
#[derive(Debug, Clone, Default)]
pub struct Refused(Arc<Mutex<Option<Refusal>>>);

impl Refused {
    /// The refusal, once there is one.
    pub fn take(&self) -> Option<Refusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn leave(&self, refusal: Refusal) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }
}

/// A body on its way to the provider.
pub enum Outbound {
    /// One that is held.
    Held {
        /// What is left to send of it.
        data: Option<Bytes>,
        /// What comes after it.
        trailers: Option<Box<HeaderMap>>,
    },
    /// One that passes.
    Passing(Box<Passing>),
}

/// A body that passes piece by piece.
pub struct Passing {
    /// What was read and may be sent or looked at next.
    read: VecDeque<Frame<Bytes>>,
    /// Held while some of that is left.
    reservation: Option<OwnedSemaphorePermit>,
    rest: Idle<Incoming>,
    /// The piece that goes when the next one has come, or when all of it may go.
    withheld: Option<Frame<Bytes>>,
    inspection: Option<Box<Inspection>>,
    /// Where a refusal is left for whoever waits for the answer.
    refused: Refused,
}

/// The body is not to arrive whole.
#[derive(Debug, thiserror::Error)]
#[error("the request was refused on its way")]
struct Stopped;

impl Outbound {
    /// A body that was read whole. What is sent twice is not copied.
    pub fn held(data: &Bytes, trailers: Option<&HeaderMap>) -> Self {
        Self::Held {
            data: Some(data.clone()).filter(|data| !data.is_empty()),
            trailers: trailers.cloned().map(Box::new),
        }
    }

    /// A body that was only begun.
    pub fn passing(
        read: VecDeque<Bytes>,
        rest: Idle<Incoming>,
        reservation: Option<OwnedSemaphorePermit>,
        inspection: Option<Box<Inspection>>,
        refused: Refused,
    ) -> Self {
        Self::Passing(Box::new(Passing {
            read: read.into_iter().map(Frame::data).collect(),
            reservation,
            rest,
            withheld: None,
            inspection,
            refused,
        }))
    }
}

impl Passing {
    /// The provider is not to take for whole what it has got.
    fn stop<T>(&self, why: impl Into<Refusal>) -> Poll<Option<Result<T, BoxError>>> {
        self.refused.leave(why.into());
        Poll::Ready(Some(Err(Stopped.into())))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let next = match self.read.pop_front() {
                Some(frame) => Some(frame),
                None if self.reservation.take().is_some() => continue,
                None => match ready!(Pin::new(&mut self.rest).poll_frame(cx)).transpose() {
                    Ok(next) => next,
                    Err(broken) => return self.stop(broken),
                },
            };
            let Some(inspection) = &mut self.inspection else {
                return Poll::Ready(next.map(Ok));
            };
            match next {
                Some(frame) if frame.is_data() => {
                    let data = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
                    if data.is_empty() {
                        continue;
                    }
                    if let Err(ambiguous) = inspection.scanner.push(data) {
                        return self.stop(ambiguous);
                    }
                    if let Some(before) = self.withheld.replace(frame) {
                        return Poll::Ready(Some(Ok(before)));
                    }
                }
                // Trailers come after everything that is looked at.
                end => {
                    if let Some(inspection) = self.inspection.take()
                        && let Err(refusal) = (inspection.decide)(inspection.scanner.finish())
                    {
                        return self.stop(refusal);
                    }
                    self.read.extend(self.withheld.take().into_iter().chain(end));
                    if self.read.is_empty() {
                        return Poll::Ready(None);
                    }
                }
            }
        }
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Held { data, trailers } => {
                let data = data.take().map(Frame::data);
                let frame = data.or_else(|| trailers.take().map(|trailers| Frame::trailers(*trailers)));
                Poll::Ready(frame.map(Ok))
            }
            Self::Passing(passing) => passing.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(
            self,
            Self::Held {
                data: None,
                trailers: None
            }
        )
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held { data, trailers: None } => {
                SizeHint::with_exact(data.as_ref().map_or(0, Bytes::len) as u64)
            }
            // Only chunks can have trailers. Of one that passes, the request's own head says how long it is.
            Self::Held { .. } | Self::Passing(_) => SizeHint::default(),
        }
    }
}
