//! Waiting for something to become true, with the last thing seen in the message when it doesn't.

use std::fmt::{Debug, Display};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

const INTERVAL: Duration = Duration::from_millis(20);

/// What one look at the world can return: `Some`, `Ok` and `true` end the wait, everything else is tried again.
pub trait Observation {
    /// What the wait returns.
    type Value;

    /// The value, or what was seen instead of it.
    fn settle(self) -> Result<Self::Value, String>;
}

impl<T> Observation for Option<T> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Display> Observation for Result<T, E> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        // The alternate form is what makes an `anyhow::Error` print its whole chain.
        self.map_err(|error| format!("{error:#}"))
    }
}

impl Observation for bool {
    type Value = ();

    fn settle(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".to_owned()) }
    }
}

/// Looks until the look succeeds, and returns what it gave.
///
/// # Panics
///
/// After `timeout`, with what was seen last. (A panic lets a [`crate::ControlPlane`] in scope keep its logs.)
pub async fn eventually<F, O>(what: &str, timeout: Duration, look: F) -> O::Value
where
    F: AsyncFnMut() -> O,
    O: Observation,
{
    match try_eventually(what, timeout, look).await {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// [`eventually`] for code that handles the failure itself.
pub async fn try_eventually<F, O>(what: &str, timeout: Duration, mut look: F) -> Result<O::Value>
where
    F: AsyncFnMut() -> O,
    O: Observation,
{
    let deadline = Instant::now() + timeout;
    let mut last = "no look finished".to_owned();
    let mut looks = 0;
    loop {
        // A look that hangs must not outlast the deadline either.
        match timeout_at(deadline, look()).await.map(Observation::settle) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last = seen,
            Err(_) => {}
        }
        looks += 1;
        if Instant::now() + INTERVAL >= deadline {
            bail!("waited {timeout:?} in vain for: {what}\n  last seen, after {looks} looks: {last}");
        }
        sleep(INTERVAL).await;
    }
}

/// `Ok` when the two are equal; otherwise an error that shows both, for use inside [`eventually`].
pub fn same<T: PartialEq + Debug>(seen: &T, expected: &T) -> Result<(), String> {
    if seen == expected {
        Ok(())
    } else {
        Err(format!("{seen:?} instead of {expected:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn returns_what_the_look_found() {
        let mut looks = 0;
        let found = eventually("three looks", Duration::from_secs(5), async || {
            looks += 1;
            (looks == 3).then_some("here")
        });
        assert_eq!(found.await, "here");
    }

    #[tokio::test]
    async fn the_last_observation_is_in_the_message() {
        let error = try_eventually("a Ready pod", SHORT, async || same(&"Pending", &"Ready"))
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("a Ready pod") && text.contains("\"Pending\" instead of \"Ready\""),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_at_the_deadline() {
        let error = try_eventually("an answer", SHORT, async || std::future::pending::<bool>().await).await;
        assert!(error.unwrap_err().to_string().contains("no look finished"));
    }
}
