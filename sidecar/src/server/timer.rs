//! Time limits that are set again and again and hardly ever reached: for each request there is one for its head.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use tokio::time;

use crate::idle::poll_deadline;

/// A connection's timer, for one limit at a time, and all of the same length: the runtime's own, which is set for an
/// earlier one, is only set anew when it ends.
#[derive(Debug, Clone, Default)]
pub(super) struct LazyTimer(Arc<Mutex<Option<Pin<Box<time::Sleep>>>>>);

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
        let mut timer = self.timer.0.lock().unwrap_or_else(PoisonError::into_inner);
        poll_deadline(&mut timer, self.deadline.into(), cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_from_when_it_was_set() {
        const LIMIT: Duration = Duration::from_millis(50);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.expect("a runtime").block_on(async {
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
}
