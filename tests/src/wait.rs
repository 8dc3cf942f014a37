//! Waiting for a condition.

use std::time::{Duration, Instant};

use crate::Failure;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Lets time pass, where what is tested is that nothing happens in it.
pub fn let_pass(time: Duration) {
    let start = Instant::now();
    // It never fails: the condition comes true at the limit.
    let _ = wait_until("time", time * 2, || Ok((start.elapsed() >= time).then_some(())));
}

/// Polls until `poll` gives a value, and returns it.
///
/// The condition is always looked at once more after `limit` has passed, so a slow machine
/// cannot make a condition that holds look as if it did not.
///
/// # Errors
/// [`Failure::Deadline`] naming `what` after `limit`; any error of `poll` at once.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place where a test waits: between two looks at a condition of another process"
)]
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut poll: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let start = Instant::now();
    loop {
        let late = start.elapsed() >= limit;
        if let Some(value) = poll()? {
            return Ok(value);
        }
        if late {
            return Err(Failure::Deadline { what: what.to_owned(), limit });
        }
        std::thread::sleep(INTERVAL);
    }
}
