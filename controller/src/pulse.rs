//! Notices that the process stood still: it was stopped, or had no processor. What its watches saw is old then, and another
//! replica may hold the Lease by now. Preconditions keep a write from doing harm, but not an event from being told twice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is felt.
const BEAT: Duration = Duration::from_millis(500);
/// What is longer is no busy moment. It is less than a holder of the Lease that is gone is waited for.
const STANDSTILL: Duration = Duration::from_secs(4);
/// How long the watches and the Lease have to catch up.
pub const CATCH_UP: Duration = Duration::from_secs(2);

/// The pulse of the process.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    felt: Instant,
    /// When the last standstill ended.
    resumed: Option<Instant>,
}

impl Default for Pulse {
    fn default() -> Self {
        let state = State {
            felt: Instant::now(),
            resumed: None,
        };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl Pulse {
    /// Feels it for ever, so that a process with nothing to do is known from one that stood still.
    pub async fn feel(self) -> anyhow::Result<()> {
        loop {
            self.has_stood_still();
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Whether the process stood still until a moment ago.
    pub fn has_stood_still(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.beat(Instant::now())
    }
}

impl State {
    fn beat(&mut self, now: Instant) -> bool {
        if now.duration_since(self.felt) > STANDSTILL {
            self.resumed = Some(now);
        }
        self.felt = now;
        self.resumed
            .is_some_and(|resumed| now.duration_since(resumed) < CATCH_UP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_counts_until_the_rest_has_caught_up() {
        let start = Instant::now();
        let mut state = State {
            felt: start,
            resumed: None,
        };
        let mut at = |millis| state.beat(start + Duration::from_millis(millis));
        assert!(!at(500) && !at(4_000));
        assert!(at(12_000) && at(12_500) && at(13_900));
        assert!(!at(14_000) && !at(17_000));
    }
}
