//! The arithmetic of the report: medians, slopes, quantiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longer waits are recorded as this long: no load waits longer.
const LONGEST: Duration = Duration::from_secs(60);

/// The middle of some values, the mean of the two middle ones of an even number; none of none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *values.get((values.len() / 2).checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}

/// `a / b`, where that is a number.
pub(crate) fn ratio(a: f64, b: f64) -> Option<f64> {
    let ratio = a / b;
    ratio.is_finite().then_some(ratio)
}

/// The slope of the line of least squares through `(x, y)`; 0 where the points have none.
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    let common: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    ratio(common, spread).unwrap_or(0.0)
}

/// A histogram of latencies in nanoseconds, with three significant digits.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// An empty one.
    pub(crate) fn new() -> Result<Self, hdrhistogram::CreationError> {
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self(Histogram::new_with_bounds(1, longest, 3)?))
    }

    /// Takes one latency down.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Takes all of another's down.
    pub(crate) fn add(&mut self, other: &Self) {
        // Both have the same bounds, which is all that can go wrong.
        let _ = self.0.add(&other.0);
    }

    /// The quantiles that are reported.
    pub(crate) fn quantiles(&self) -> Quantiles {
        let at = |quantile| self.0.value_at_quantile(quantile);
        Quantiles {
            count: self.0.len(),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: self.0.max(),
        }
    }
}

/// Quantiles of latencies, in nanoseconds; all 0 when there were none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    /// How many latencies there were.
    pub(crate) count: u64,
    /// The median.
    pub(crate) p50: u64,
    /// 99 of 100 are at most this.
    pub(crate) p99: u64,
    /// 999 of 1,000 are at most this.
    pub(crate) p999: u64,
    /// The longest.
    pub(crate) max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 90.0]), Some(3.0));
    }

    #[test]
    fn a_ratio_to_nothing_is_none() {
        assert_eq!(ratio(3.0, 2.0), Some(1.5));
        assert_eq!(ratio(3.0, 0.0), None);
        assert_eq!(ratio(0.0, 0.0), None);
    }

    #[test]
    fn the_slope_is_that_of_the_line() {
        assert_eq!(slope(&[]), 0.0);
        assert_eq!(slope(&[(1.0, 5.0)]), 0.0);
        let line: Vec<_> = (0..5).map(|x| (f64::from(x), 7.0 - 2.0 * f64::from(x))).collect();
        assert!((slope(&line) + 2.0).abs() < 1e-9);
    }

    #[test]
    fn quantiles_are_within_three_digits() {
        let (mut even, mut odd) = (Latencies::new().unwrap(), Latencies::new().unwrap());
        for micros in 1..=1000 {
            let one = if micros % 2 == 0 { &mut even } else { &mut odd };
            one.record(Duration::from_micros(micros));
        }
        even.add(&odd);
        let found = even.quantiles();
        assert_eq!(found.count, 1000);
        for (value, micros) in [(found.p50, 500), (found.p99, 990), (found.p999, 999)] {
            let wanted = micros * 1000;
            assert!(value.abs_diff(wanted) * 1000 <= wanted, "{value} for {wanted}");
        }
    }

    #[test]
    fn a_wait_beyond_the_longest_still_counts() {
        let mut latencies = Latencies::new().unwrap();
        latencies.record(Duration::from_secs(3600));
        latencies.record(Duration::ZERO);
        assert_eq!(latencies.quantiles().count, 2);
        assert!(latencies.quantiles().max >= 59_900_000_000);
    }
}
