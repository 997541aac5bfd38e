//! What lies between hyper and a connection: it bounds how long a client may leave its answer unread, and it keeps hyper's
//! own refusals, which say nothing but a number, from the wire. [`super::farewell`] says more.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::{Connection, Place};

/// How long a client may take to read what there is for it, once it has fallen behind.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may read nothing at all of a stream: it may be busy with what it has read.
const STREAM_TIMEOUT: Duration = Duration::from_mins(10);

/// A connection as hyper sees it.
#[derive(Debug)]
pub(super) struct Stream {
    inner: Connection,
    place: Arc<Place>,
    /// Runs from the first write that had to wait until everything is written, however it trickles; of a stream, until
    /// anything is.
    patience: Option<Pin<Box<Sleep>>>,
    /// Whether the client's side has ended.
    ended: bool,
    /// Whether hyper has refused what was sent. The write side is left open then.
    refused: bool,
}

impl Stream {
    pub(super) fn new(inner: Connection, place: Arc<Place>) -> Self {
        Self {
            inner,
            place,
            patience: None,
            ended: false,
            refused: false,
        }
    }

    pub(super) fn into_inner(self) -> Connection {
        self.inner
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.remaining();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        // hyper gives a request up at the end of its client's side. One turn later, what needs no wait is answered.
        if before > 0 && before == buf.remaining() && !std::mem::replace(&mut this.ended, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut parts = bufs.iter().filter(|part| !part.is_empty());
        if let (Some(head), None) = (parts.next(), parts.next())
            && is_refusal_without_words(head)
        {
            this.refused = true;
            return Poll::Ready(Ok(head.len()));
        }
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        let streaming = this.place.is_streaming();
        if written.is_pending() {
            let limit = if streaming { STREAM_TIMEOUT } else { WRITE_TIMEOUT };
            let patience = this.patience.get_or_insert_with(|| Box::pin(sleep(limit)));
            if patience.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        } else if streaming {
            this.patience = None;
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// Only called once everything is written.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.patience = None;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refused {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

/// hyper's answer to a head that it can't read: 4xx without a body. Every refusal of ours has one, and every answer that is
/// passed on says through whom.
fn is_refusal_without_words(answer: &[u8]) -> bool {
    const NO_BODY: &[u8] = b"\r\ncontent-length: 0\r\n";
    const PASSED_ON: &[u8] = b"\r\nvia: ";
    let holds = |line: &[u8]| answer.windows(line.len()).any(|part| part == line);
    let status = answer.strip_prefix(b"HTTP/1.1 ").unwrap_or_default();
    status.starts_with(b"4") && answer.ends_with(b"\r\n\r\n") && holds(NO_BODY) && !holds(PASSED_ON)
}
