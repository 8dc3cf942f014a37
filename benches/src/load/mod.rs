//! One load: connections from the client's pod, for some time, and what came of it.
//!
//! The main thread keeps the time and looks at the proxies' processes; the worker threads carry
//! the connections. All threads start and end their measurement with the same phase.

mod bulk;
mod exchange;
mod open_loop;
mod worker;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::stats::{Latencies, Quantiles, slope};
use crate::usage::Usage;
use worker::{Phase, Shared};

/// How long connecting may take, all connections together.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at the proxies' memory.
const LOOK: Duration = Duration::from_millis(100);

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Write as fast as the other end reads.
    BulkUp,
    /// Read as fast as the other end writes.
    BulkDown,
    /// HTTP requests, one after another on each connection.
    Http,
    /// HTTP requests at a fixed rate, whether answers come or not.
    HttpOpen,
    /// Messages that come back, one after another on each connection.
    Echo,
    /// Connect, one request, close.
    Churn,
    /// One request, then nothing.
    Idle,
}

/// One load, as the command line of `pillion-bench load` gives it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// What the connections do.
    pub(crate) kind: Kind,
    /// Where `pillion-bench serve` listens.
    #[arg(long)]
    pub(crate) to: IpAddr,
    /// How many connections at once.
    #[arg(long, default_value_t = 1)]
    pub(crate) connections: usize,
    /// The size of an echo's message, in bytes.
    #[arg(long, default_value_t = 1)]
    pub(crate) size: usize,
    /// Requests a second, of all connections together, for http-open.
    #[arg(long, default_value_t = 1000.0)]
    pub(crate) rate: f64,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,
    /// How long to load before measuring, in seconds.
    #[arg(long, default_value_t = 0.5)]
    pub(crate) warm_up: f64,
    /// Process ids of the proxies, separated by commas: what they use is measured too.
    #[arg(long, value_delimiter = ',')]
    pub(crate) watch: Vec<u32>,
}

/// What came of a load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// How long was measured, in seconds.
    pub(crate) seconds: f64,
    /// Bytes, requests or connections in that time; the open connections of an idle load.
    pub(crate) units: u64,
    /// The same from the first connection to the last answer.
    pub(crate) units_in_all: u64,
    /// Connections or requests that failed, at any time.
    pub(crate) failures: u64,
    /// One of their reasons.
    pub(crate) failure: Option<String>,
    /// Latencies of the units; of an open loop, from when each was due.
    pub(crate) latency_ns: Quantiles,
    /// The proxies' time on a processor while it was measured, in nanoseconds.
    pub(crate) cpu_ns: u64,
    /// The proxies' context switches in that time.
    pub(crate) switches: u64,
    /// The proxies' resident memory before the first connection, in KiB.
    pub(crate) rss_before_kb: u64,
    /// The same at the end of the measurement.
    pub(crate) rss_kb: u64,
    /// How fast it grew while it was measured, in KiB a second.
    pub(crate) rss_slope_kb: f64,
}

/// Runs a load.
///
/// # Errors
/// The threads do not get their connections within a minute, or a watched process has ended. A
/// failing request is no error: it is counted.
pub(crate) fn run(options: &Options) -> Result<Outcome, Error> {
    let before = Usage::of(&options.watch)?;
    let shared = Arc::new(Shared::new());
    let (ready, became_ready) = channel();
    let workers: Vec<_> = (0..worker::COUNT)
        .map(|index| {
            let (options, shared, ready) = (options.clone(), Arc::clone(&shared), ready.clone());
            std::thread::spawn(move || worker::run(index, &options, &shared, &ready))
        })
        .collect();
    drop(ready);
    let waited = wait_ready(&became_ready);
    let measured = waited.and_then(|()| measure(options, &shared, &became_ready));
    shared.enter(Phase::Stop);
    let mut latencies = Latencies::new()?;
    for worker in workers {
        let ended = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        latencies.add(&ended?);
    }
    Ok(Outcome {
        units_in_all: shared.units(),
        failures: shared.failures(),
        failure: shared.failure(),
        latency_ns: latencies.quantiles(),
        rss_before_kb: before.rss_kb,
        ..measured?
    })
}

fn wait_ready(became_ready: &Receiver<()>) -> Result<(), Error> {
    for _ in 0..worker::COUNT {
        became_ready.recv_timeout(CONNECT_LIMIT).map_err(|error| Error::NotReady {
            seconds: CONNECT_LIMIT.as_secs(),
            why: error.to_string(),
        })?;
    }
    Ok(())
}

fn measure(options: &Options, shared: &Shared, ended: &Receiver<()>) -> Result<Outcome, Error> {
    // The workers drop their ends of the channel when they end, all of them only when no
    // connection is left: then there is nothing to wait for.
    let rest = |span: Duration| ended.recv_timeout(span) == Err(RecvTimeoutError::Timeout);
    rest(Duration::from_secs_f64(options.warm_up));
    let (before, start) = (Usage::of(&options.watch)?, Instant::now());
    shared.enter(Phase::Measure);
    let units = shared.units();
    let length = Duration::from_secs_f64(options.seconds);
    let mut memory = Vec::new();
    loop {
        let left = length.saturating_sub(start.elapsed());
        if left.is_zero() || !rest(left.min(LOOK)) {
            break;
        }
        let now = Usage::of(&options.watch)?;
        memory.push((start.elapsed().as_secs_f64(), now.rss_kb as f64));
    }
    let units = match options.kind {
        Kind::Idle => shared.units(),
        _ => shared.units().saturating_sub(units),
    };
    let (seconds, used) = (start.elapsed(), Usage::of(&options.watch)?.since(before));
    Ok(Outcome {
        seconds: seconds.as_secs_f64(),
        units,
        units_in_all: 0,
        failures: 0,
        failure: None,
        latency_ns: Quantiles::default(),
        cpu_ns: used.cpu_ns,
        switches: used.switches,
        rss_before_kb: 0,
        rss_kb: used.rss_kb,
        rss_slope_kb: slope(&memory),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves on a loopback address of its own for the rest of the test process.
    fn served(last: u8) -> IpAddr {
        let address = IpAddr::from([127, 66, 0, last]);
        std::thread::spawn(move || crate::serve::run(address));
        let limit = Duration::from_secs(10);
        pillion_testbed::wait_until("the server", limit, || {
            Ok(std::net::TcpStream::connect((address, crate::wire::HTTP)).ok())
        })
        .unwrap();
        address
    }

    fn options(kind: Kind, to: IpAddr) -> Options {
        Options {
            kind,
            to,
            connections: 4,
            size: 1000,
            rate: 500.0,
            seconds: 0.1,
            warm_up: 0.02,
            watch: vec![std::process::id()],
        }
    }

    #[test]
    fn every_kind_does_its_work_without_failures() {
        let to = served(1);
        for kind in Kind::value_variants() {
            let outcome = run(&options(*kind, to)).unwrap();
            assert_eq!((outcome.failures, &outcome.failure), (0, &None), "{kind:?}");
            assert!(outcome.units > 0, "{kind:?}: {outcome:?}");
            assert!(outcome.units_in_all >= outcome.units, "{kind:?}: {outcome:?}");
            assert!(outcome.rss_kb > 0, "{kind:?}: {outcome:?}");
            let bulk = matches!(kind, Kind::BulkUp | Kind::BulkDown | Kind::Idle);
            assert_eq!(outcome.latency_ns.count > 0, !bulk, "{kind:?}: {outcome:?}");
        }
    }

    #[test]
    fn a_refused_load_is_a_count_of_failures() {
        let nobody = IpAddr::from([127, 66, 0, 99]);
        for kind in Kind::value_variants() {
            let outcome = run(&options(*kind, nobody)).unwrap();
            assert!(outcome.failures > 0, "{kind:?}: {outcome:?}");
            assert_eq!(outcome.units, 0, "{kind:?}");
            assert!(outcome.failure.is_some_and(|why| why.contains("refused")), "{kind:?}");
        }
    }
}
