//! Time limits that are set again and again and hardly ever reached: for each request there is one for its head, and for
//! each that is passed on one for the head of its answer.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use hyper::rt::{Sleep, Timer};
use tokio::time;

use crate::idle::poll_deadline;

/// A connection's timer, for one limit at a time, best of all of the same length: the runtime's own, which is set for an
/// earlier one, is only set anew when it ends.
#[derive(Debug, Clone, Default)]
pub struct LazyTimer(Arc<Mutex<Option<Pin<Box<time::Sleep>>>>>);

impl LazyTimer {
    /// Waits for something, but not for longer than this.
    pub fn within<T>(
        &self,
        limit: Duration,
        mut awaited: impl Future<Output = T> + Unpin,
    ) -> impl Future<Output = Option<T>> {
        let deadline = Instant::now() + limit;
        poll_fn(move |cx| match awaited.poll_unpin(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll(deadline, cx).map(|()| None),
        })
    }

    fn poll(&self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut timer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        poll_deadline(&mut timer, deadline.into(), cx)
    }
}

struct Limit {
    deadline: Instant,
    timer: LazyTimer,
}

impl Timer for LazyTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Limit {
            deadline,
            timer: self.clone(),
        })
    }
}

impl Sleep for Limit {}

impl Future for Limit {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.timer.poll(self.deadline, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.expect("a runtime").block_on(test);
    }

    #[test]
    fn a_limit_counts_from_when_it_was_set() {
        run(async {
            let timer = LazyTimer::default();
            for _ in 0..3 {
                // Dropped early, as that of a head that has come.
                let early = tokio::time::timeout(LIMIT / 2, timer.sleep(LIMIT));
                assert!(early.await.is_err());
                let set = Instant::now();
                timer.sleep(LIMIT).await;
                assert!(set.elapsed() >= LIMIT);
            }
        });
    }

    #[test]
    fn what_is_waited_for_comes_in_time_or_not_at_all() {
        const LATER: Duration = Duration::from_mins(1);
        run(async {
            // It counts from its beginning, whatever the timer was set for before.
            for before in [LIMIT, LATER] {
                let timer = LazyTimer::default();
                let early = Box::pin(time::sleep(LIMIT / 10));
                assert_eq!(timer.within(before, early).await, Some(()));
                let begun = Instant::now();
                let never = std::future::pending::<()>();
                assert_eq!(timer.within(LIMIT, never).await, None);
                assert!((LIMIT..LATER / 2).contains(&begun.elapsed()));
            }
        });
    }
}
