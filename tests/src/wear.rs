//! What a sidecar has gathered while it served: descriptors and memory, over time.

use std::time::{Duration, Instant};

use crate::labels::metric;
use crate::{Failure, Pair, let_pass};

/// How much memory each sidecar of a pair has at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    at: Instant,
    /// The caller's and the callee's, in MiB.
    resident: [f64; 2],
}

impl Sample {
    /// Takes one now.
    ///
    /// # Errors
    /// A sidecar has ended.
    pub fn take(pair: &mut Pair) -> Result<Self, Failure> {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let resident =
            [pair.caller.process().resident()?, pair.callee.process().resident()?].map(mib);
        Ok(Self { at: Instant::now(), resident })
    }
}

/// How the memory of one sidecar goes.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    /// At the last sample, in MiB.
    pub last: f64,
    /// The slope of a line through the samples, in MiB an hour (least squares).
    pub an_hour: f64,
}

/// The course of the caller's memory and of the callee's, from the sample on that was taken so long
/// after the first, when caches are warm. None from fewer than two samples.
#[must_use]
pub fn courses(samples: &[Sample], warm_after: Duration) -> Option<[Course; 2]> {
    let start = samples.first()?.at;
    let late: Vec<_> = samples.iter().filter(|it| it.at - start >= warm_after).collect();
    let (last, count) = (late.last()?, late.len() as f64);
    let hours = |sample: &Sample| (sample.at - start).as_secs_f64() / 3600.0;
    let mean_x = late.iter().map(|it| hours(it)).sum::<f64>() / count;
    let under: f64 = late.iter().map(|it| (hours(it) - mean_x).powi(2)).sum();
    let course = |of: fn(&[f64; 2]) -> f64| {
        let mean_y = late.iter().map(|it| of(&it.resident)).sum::<f64>() / count;
        let from_mean = |it: &Sample| (hours(it) - mean_x) * (of(&it.resident) - mean_y);
        let over: f64 = late.iter().map(|it| from_mean(it)).sum();
        Course { last: of(&last.resident), an_hour: over / under }
    };
    (under > 0.0).then(|| [course(|[caller, _]| *caller), course(|[_, callee]| *callee)])
}

/// How many descriptors the caller and the callee have when nothing is open and no tunnel is idle:
/// `policy` is loaded into the caller to end those.
///
/// # Errors
/// Something stays open for 30 s.
pub fn descriptors_at_rest(pair: &mut Pair, policy: &str) -> Result<[usize; 2], Failure> {
    pair.caller.load_policy(policy)?;
    for sidecar in [&pair.caller, &pair.callee] {
        sidecar.wait_idle()?;
        sidecar.wait_metric(metric::IDLE, &[], 0.0)?;
    }
    // The question for the metrics was itself a connection, which may not have gone yet.
    let mut least = [usize::MAX; 2];
    for _ in 0..30 {
        let [client, server] = least;
        least = [
            client.min(pair.caller.process().descriptors()?),
            server.min(pair.callee.process().descriptors()?),
        ];
        let_pass(Duration::from_millis(100));
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_through_what_is_warm() {
        let start = Instant::now();
        let at = |minutes: u64, caller| Sample {
            at: start + Duration::from_secs(60 * minutes),
            resident: [caller, 7.0],
        };
        let samples = [at(0, 1.0), at(10, 20.0), at(20, 20.5), at(30, 21.0)];
        let [caller, callee] = courses(&samples, Duration::from_secs(600)).unwrap();
        assert!((caller.an_hour - 3.0).abs() < 1e-6 && (caller.last - 21.0).abs() < 1e-6);
        assert!(callee.an_hour.abs() < 1e-6);
        assert!(courses(&samples, Duration::from_secs(1800)).is_none(), "one is no line");
        assert!(courses(&[], Duration::ZERO).is_none());
    }
}
