//! Streams of mutated bytes at each port of the proxy: whatever they are, it serves on, and
//! nothing is left of them. A stream is a connection of its own.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "bytes are cut where they were counted"
)]

mod crowd;
mod http;
mod inbound;
mod mutation;
mod outbound;

use std::time::{Duration, Instant};

use pillion_testbed::labels::metric;
use pillion_testbed::{Failure, Settings, Sidecar, let_pass, wait_until};

use crowd::Tally;

const APP: u16 = 8080;

/// How long whatever is open may take to end, once nobody throws anything any more.
const LIMIT: Duration = Duration::from_secs(60);

/// How much more memory the proxy may have after all of it than after the first quarter.
const GROWTH: u64 = 8 << 20;

/// A run's streams, and where their bytes come from.
#[derive(Debug, Clone, Copy)]
struct Round {
    streams: u32,
    seed: u64,
}

/// What is left of a sidecar's streams once they have ended.
#[derive(Debug, Clone, Copy)]
struct Rest {
    resident: u64,
    descriptors: usize,
}

impl Rest {
    /// Once nothing is open and no tunnel is idle.
    fn of(sidecar: &mut Sidecar) -> Result<Self, Failure> {
        wait_until("no connection left", LIMIT, || {
            let metrics = sidecar.metrics()?;
            let left = metrics.sum(metric::OPEN, &[]) + metrics.sum(metric::IDLE, &[]);
            Ok((left == 0.0).then_some(()))
        })?;
        // The question for the metrics was itself a connection, which may not have gone yet.
        let mut descriptors = usize::MAX;
        for _ in 0..10 {
            let_pass(Duration::from_millis(50));
            descriptors = descriptors.min(sidecar.process().descriptors()?);
        }
        Ok(Self { resident: sidecar.process().resident()?, descriptors })
    }
}

/// Has a quarter of the streams thrown to warm up, and then all of them, and looks what they have
/// left. Gives back what became of the streams, those of the first quarter among them.
fn wear_down(
    sidecar: &mut Sidecar,
    streams: u32,
    throw: impl Fn(Round) -> Result<Tally, Failure>,
) -> Result<Tally, Failure> {
    let mut total = throw(Round { streams: streams / 4, seed: 0x5eed })?;
    let before = Rest::of(sidecar)?;
    let start = Instant::now();
    total.add(&throw(Round { streams, seed: 0xbad5eed })?);
    let took = start.elapsed();
    let after = Rest::of(sidecar)?;
    println!("{streams} streams in {took:.1?}; {before:?}, then {after:?}");
    println!("what came back, the first quarter's too: {total}");
    // The last of them may still wait to be accepted, only to be found reset.
    let metrics = wait_until("all that were opened to be closed", LIMIT, || {
        let metrics = sidecar.metrics()?;
        let [open, opened, closed] =
            [metric::OPEN, metric::OPENED, metric::CLOSED].map(|name| metrics.sum(name, &[]));
        Ok((open == 0.0 && opened == closed).then_some(metrics))
    })?;
    for (name, label) in [(metric::CLOSED, "reason"), (metric::HANDSHAKES, "result")] {
        println!("{name}: {:?}", metrics.by(name, label));
    }
    assert!(sidecar.process().ended()?.is_none(), "it is the process that it was");
    assert_eq!(metrics.sum(metric::PANICS, &[]), 0.0);
    assert_eq!(metrics.sum(metric::ACCEPT_ERRORS, &[]), 0.0);
    assert!(after.descriptors <= before.descriptors, "{before:?} and {after:?}");
    assert!(after.resident < before.resident + GROWTH, "{before:?} and {after:?}");
    assert_eq!(total.sum(), u64::from(streams) + u64::from(streams / 4), "each has an end");
    Ok(total)
}

/// How many streams a test throws: a few, or a million.
fn streams(settings: &Settings, few: u32) -> u32 {
    settings.few_or(few, 1_000_000)
}
