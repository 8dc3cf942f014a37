//! Random policy files, and a second reading of what they mean.
//!
//! Nothing here is the engine's: a file is what was written, its meaning plain loops over that,
//! and the crate is used by its public functions alone.
#![allow(dead_code, unreachable_pub, reason = "each test binary takes what it needs")]

pub mod random;
pub mod reference;
pub mod written;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;

/// The trust domain that stands for our own.
pub const OWN: &str = "cluster.local";

/// How many pairs of a policy and a connection a test judges: a million, or `PILLION_TEST_PAIRS`,
/// which mutation tests set low.
#[expect(clippy::disallowed_methods, reason = "how long a test runs is no setting of the proxy")]
pub fn pairs() -> u64 {
    match std::env::var("PILLION_TEST_PAIRS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("PILLION_TEST_PAIRS={text}: a number")),
        Err(_) => 1_000_000,
    }
}

/// Runs `one` for each seed below `count` on every CPU, and gives the sum of what it returns. A
/// failure names its seed, and is the same when that seed is run alone.
pub fn for_each_seed(count: u64, one: impl Fn(u64, &mut Rng) -> u64 + Sync) -> u64 {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let (next, sum) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        break;
                    }
                    sum.fetch_add(one(seed, &mut Rng::with_seed(seed)), Ordering::Relaxed);
                }
            });
        }
    });
    sum.into_inner()
}
