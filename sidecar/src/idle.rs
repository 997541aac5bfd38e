//! Bodies as they come, which may take as long as they like, but not pause for too long.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::server::BoxError;

/// A body that fails when nothing has come for some time, counted while it is waited for.
#[derive(Debug)]
pub struct Idle<B> {
    body: B,
    limit: Duration,
    /// When it is given up, unless something comes.
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Nothing came for so long.
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
    /// It ended before its end, or can't be read.
    #[error(transparent)]
    Failed(BoxError),
}

/// Whether a moment has come. The timer may be set for an earlier one, and is only set anew when it ends: most deadlines are
/// put off long before.
pub fn poll_deadline(
    timer: &mut Option<Pin<Box<Sleep>>>,
    deadline: Instant,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
    if deadline < timer.deadline() {
        timer.as_mut().reset(deadline);
    }
    while timer.as_mut().poll(cx).is_ready() {
        if deadline <= Instant::now() {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
    Poll::Pending
}

impl<B> Idle<B> {
    /// A body of which something has to come within `limit`, again and again.
    pub fn new(body: B, limit: Duration) -> Self {
        Self {
            body,
            limit,
            deadline: None,
            timer: None,
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for Idle<B> {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if let Poll::Ready(next) = Pin::new(&mut this.body).poll_frame(cx) {
            this.deadline = None;
            return Poll::Ready(next.map(|frame| frame.map_err(|error| Broken::Failed(error.into()))));
        }
        let deadline = *this.deadline.get_or_insert_with(|| Instant::now() + this.limit);
        let over = poll_deadline(&mut this.timer, deadline, cx);
        over.map(|()| Some(Err(Broken::Silent(this.limit))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::channel::mpsc;
    use http_body_util::{BodyExt, StreamBody};
    use tokio::runtime::Builder;

    use super::*;

    /// Long enough for a machine that is busy.
    const LIMIT: Duration = Duration::from_millis(300);

    fn run(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(test);
    }

    fn piece() -> Frame<Bytes> {
        Frame::data(Bytes::from_static(b"a"))
    }

    #[test]
    fn pieces_may_take_longer_than_a_pause() {
        run(async {
            let (pieces, body) = mpsc::unbounded();
            let mut body = Idle::new(StreamBody::new(body), LIMIT);
            let begun = Instant::now();
            while begun.elapsed() < LIMIT * 3 {
                let later = async {
                    // It is waited for.
                    tokio::task::yield_now().await;
                    tokio::time::sleep(LIMIT / 10).await;
                    pieces.unbounded_send(Ok::<_, Infallible>(piece()))
                };
                let (sent, next) = tokio::join!(later, body.frame());
                sent.expect("somebody listens");
                assert!(next.is_some_and(|next| next.is_ok()));
            }
            let last = body.frame().await;
            assert!(matches!(last, Some(Err(Broken::Silent(LIMIT)))), "{last:?}");
        });
    }

    #[test]
    fn the_end_is_the_bodys() {
        run(async {
            let pieces = futures::stream::iter([Ok(piece()), Err("broken")]);
            let mut body = Idle::new(StreamBody::new(pieces), LIMIT);
            assert!(matches!(body.frame().await, Some(Ok(_))));
            assert!(matches!(body.frame().await, Some(Err(Broken::Failed(_)))));
            assert!(body.frame().await.is_none());
        });
    }
}
