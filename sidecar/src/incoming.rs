//! What hyper receives, without turns in vain: hyper 1.12 wakes a connection for each piece that is taken of a body, also for
//! the last one, when nothing is left to do, and such a turn looks at all that a connection has. (Its `body::chan` would only
//! have to ask whether the sender is still there.)

use std::cell::Cell;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

thread_local! {
    /// What becomes on this thread of a connection that is woken.
    static WAKES: Cell<Wakes> = const { Cell::new(Wakes::Pass) };
}

#[derive(Default)]
enum Wakes {
    #[default]
    Pass,
    /// It is kept here; any other passes.
    Hold(Option<Arc<Task>>),
}

/// While it lives, a connection that is woken is held, whatever becomes of the poll.
struct Holding;

impl Drop for Holding {
    fn drop(&mut self) {
        if let Wakes::Hold(Some(task)) = WAKES.take() {
            task.wake_now();
        }
    }
}

/// A connection, server or client, whose bodies are taken as [`Incoming`].
#[derive(Debug)]
pub struct Connection<C> {
    inner: C,
    task: Arc<Task>,
    waker: Waker,
}

/// The task that polls a connection.
#[derive(Debug)]
struct Task(Mutex<Waker>);

/// A body that has come, or comes.
#[derive(Debug)]
pub struct Incoming(hyper::body::Incoming);

impl<C> Connection<C> {
    /// Of a connection that nobody has polled.
    pub fn new(inner: C) -> Self {
        let task = Arc::new(Task(Mutex::new(Waker::noop().clone())));
        Self {
            inner,
            waker: task.clone().into(),
            task,
        }
    }

    /// The connection, to be told of a shutdown.
    pub fn inner_mut(&mut self) -> &mut C {
        &mut self.inner
    }

    /// The connection, to be taken apart.
    pub fn into_inner(self) -> C {
        self.inner
    }
}

impl<C: Future + Unpin> Future for Connection<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.get_mut();
        this.task
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(cx.waker());
        Pin::new(&mut this.inner).poll(&mut Context::from_waker(&this.waker))
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        match WAKES.take() {
            Wakes::Hold(None) => WAKES.set(Wakes::Hold(Some(self))),
            other => {
                WAKES.set(other);
                self.wake_now();
            }
        }
    }
}

impl Task {
    fn wake_now(&self) {
        let waker = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waker.wake();
    }
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(body: hyper::body::Incoming) -> Self {
        Self(body)
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        WAKES.set(Wakes::Hold(None));
        let _passed_on_in_the_end = Holding;
        let next = Pin::new(&mut this.0).poll_frame(cx);
        if this.is_end_stream() {
            // All that was announced has been taken. Whoever sent the last piece has in the same turn begun to wait for what
            // comes after it.
            WAKES.set(Wakes::Pass);
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use http_body_util::{BodyExt, Full};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// How many turns a server's connection takes to answer one request with its own body, and to end.
    fn turns<B>(head: &str, body: &str, take: impl Fn(hyper::body::Incoming) -> B + Send + 'static) -> usize
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.expect("a runtime").block_on(async {
            let (mut client, server) = duplex(1_024);
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let body = take(request.into_body()).collect();
                async move { Ok::<_, hyper::Error>(Response::new(Full::new(body.await?.to_bytes()))) }
            });
            let serving = http1::Builder::new().serve_connection(TokioIo::new(server), answer);
            let mut serving = Connection::new(serving);
            let turns = Arc::new(AtomicUsize::new(0));
            let counted = turns.clone();
            let serving = tokio::spawn(std::future::poll_fn(move |cx| {
                counted.fetch_add(1, Ordering::Relaxed);
                Pin::new(&mut serving).poll(cx)
            }));
            let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n{body}");
            let sent = timeout(SOON, client.write_all(request.as_bytes())).await;
            sent.expect("a turn").expect("sent");
            let mut answer = Vec::new();
            while !answer.ends_with(b" end") {
                let read = timeout(SOON, client.read_buf(&mut answer)).await;
                assert_ne!(read.expect("a turn").expect("an answer"), 0);
            }
            drop(client);
            let ended = timeout(SOON, serving).await.expect("a turn");
            ended.expect("a task").expect("a clean end");
            turns.load(Ordering::Relaxed)
        })
    }

    /// Should both be equal one day, hyper does so itself, and this module can go.
    #[test]
    fn the_last_piece_takes_no_turn_of_its_own() {
        let plainly = turns("content-length: 5", "b end", |body| body);
        let held_back = turns("content-length: 5", "b end", Incoming::from);
        assert_eq!((held_back, plainly), (2, 3));
    }

    #[test]
    fn the_next_piece_is_still_asked_for() {
        let long = "piece ".repeat(10_000) + " end";
        turns(&format!("content-length: {}", long.len()), &long, Incoming::from);
        let chunks = "3\r\nb e\r\n2\r\nnd\r\n0\r\n\r\n";
        turns("transfer-encoding: chunked", chunks, Incoming::from);
        turns(
            "content-length: 5\r\nexpect: 100-continue",
            "b end",
            Incoming::from,
        );
    }
}
