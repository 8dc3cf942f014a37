//! The figures of a run: medians over its rounds.

use crate::load::Outcome;
use crate::plan::{Load, Unit};
use crate::stack::StackKind;
use crate::stats::{median, ratio};

/// A figure of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Units a second.
    Throughput,
    /// Nanoseconds of the proxies' processor time for a unit.
    Cpu,
    /// Context switches of the proxies for a unit.
    Switches,
    /// Quantiles of the latency, in nanoseconds.
    P50,
    /// As above.
    P99,
    /// As above.
    P999,
    /// The proxies' resident memory at the end, in KiB.
    Memory,
    /// How fast it grew, in KiB a second.
    MemorySlope,
    /// The same before the first connection.
    BaseMemory,
    /// What it grew by for a unit, in KiB.
    MemoryPerUnit,
}

impl Metric {
    /// The name in the JSON, with the unit.
    pub(crate) const NAMES: [(Self, &'static str); 10] = [
        (Self::Throughput, "units_per_second"),
        (Self::Cpu, "cpu_ns_per_unit"),
        (Self::Switches, "context_switches_per_unit"),
        (Self::P50, "p50_ns"),
        (Self::P99, "p99_ns"),
        (Self::P999, "p999_ns"),
        (Self::Memory, "rss_kib"),
        (Self::MemorySlope, "rss_slope_kib_per_second"),
        (Self::BaseMemory, "base_rss_kib"),
        (Self::MemoryPerUnit, "rss_kib_per_unit"),
    ];

    /// Whether `a` is better than `b`.
    pub(crate) fn is_better(self, a: f64, b: f64) -> bool {
        if self == Self::Throughput { a > b } else { a < b }
    }

    /// The figure of one outcome; none where it has none: a load without a latency, a stack
    /// without a proxy.
    pub(crate) fn of(self, outcome: &Outcome) -> Option<f64> {
        let units = outcome.units as f64;
        let latency = |ns: u64| (outcome.latency_ns.count > 0).then_some(ns as f64);
        let proxied = |figure: Option<f64>| figure.filter(|_| outcome.rss_kb > 0);
        match self {
            Self::Throughput => ratio(units, outcome.seconds),
            Self::Cpu => proxied(ratio(outcome.cpu_ns as f64, units)),
            Self::Switches => proxied(ratio(outcome.switches as f64, units)),
            Self::P50 => latency(outcome.latency_ns.p50),
            Self::P99 => latency(outcome.latency_ns.p99),
            Self::P999 => latency(outcome.latency_ns.p999),
            Self::Memory => proxied(Some(outcome.rss_kb as f64)),
            Self::MemorySlope => proxied(Some(outcome.rss_slope_kb)),
            Self::BaseMemory => proxied(Some(outcome.rss_before_kb as f64)),
            Self::MemoryPerUnit => {
                proxied(ratio(outcome.rss_kb as f64 - outcome.rss_before_kb as f64, units))
            }
        }
    }
}

/// One load under one stack, once.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) stack: StackKind,
    pub(crate) load: String,
    pub(crate) outcome: Outcome,
}

/// What a run was, and all that it found.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    /// When it began, RFC 3339.
    pub(crate) date: String,
    /// The machine: processors, kernel.
    pub(crate) machine: String,
    /// The stacks and the loads, in order.
    pub(crate) stacks: Vec<StackKind>,
    pub(crate) loads: Vec<Load>,
    pub(crate) rounds: u32,
    /// How long each load was measured, in seconds.
    pub(crate) seconds: f64,
    /// The rate of the open loop, requests a second, where there was one.
    pub(crate) rate: Option<f64>,
    pub(crate) samples: Vec<Sample>,
}

impl Summary {
    /// The samples of one load under one stack.
    pub(crate) fn of(&self, load: &str, stack: StackKind) -> impl Iterator<Item = &Outcome> {
        let wanted = move |sample: &&Sample| sample.load == load && sample.stack == stack;
        self.samples.iter().filter(wanted).map(|sample| &sample.outcome)
    }

    /// The median of a figure over the rounds; none where no round has it.
    pub(crate) fn figure(&self, load: &str, stack: StackKind, metric: Metric) -> Option<f64> {
        median(self.of(load, stack).filter_map(|outcome| metric.of(outcome)).collect())
    }

    /// How many requests or connections failed, in all rounds together.
    pub(crate) fn failures(&self, load: &str, stack: StackKind) -> u64 {
        self.of(load, stack).map(|outcome| outcome.failures).sum()
    }
}

/// A figure in the unit that people read it in, and that unit.
pub(crate) fn readable(metric: Metric, unit: Unit, value: f64) -> (f64, &'static str) {
    match (metric, unit) {
        (Metric::Throughput, Unit::Byte) => (value * 8.0 / 1e9, "Gbit/s"),
        (Metric::Throughput, Unit::Connection) => (value, "connections/s"),
        (Metric::Throughput, _) => (value, "requests/s"),
        // Nanoseconds a byte are seconds a gigabyte.
        (Metric::Cpu, Unit::Byte) => (value, "CPU s/GB"),
        (Metric::Cpu, _) => (value / 1e3, "CPU µs each"),
        (Metric::Switches, Unit::Byte) => (value * 1e6, "switches/MB"),
        (Metric::Switches, _) => (value, "switches each"),
        (Metric::P50, _) => (value / 1e6, "p50 ms"),
        (Metric::P99, _) => (value / 1e6, "p99 ms"),
        (Metric::P999, _) => (value / 1e6, "p99.9 ms"),
        (Metric::Memory, _) => (value / 1024.0, "RSS MiB"),
        (Metric::MemorySlope, _) => (value, "RSS KiB/s"),
        (Metric::BaseMemory, _) => (value / 1024.0, "base RSS MiB"),
        (Metric::MemoryPerUnit, _) => (value, "KiB each"),
    }
}

/// With three significant digits, or whole where it is large.
pub(crate) fn digits(value: f64) -> String {
    let places = match value.abs() {
        size if !(5e-7..100.0).contains(&size) => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.01 => 3,
        _ => 5,
    };
    format!("{value:.places$}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan;
    use crate::stats::Quantiles;

    /// One second of work with 1 s of CPU.
    pub(crate) fn outcome(units: u64, failures: u64) -> Outcome {
        let latency_ns =
            Quantiles { count: units, p50: 20_000, p99: 90_000, p999: 100_000, max: 200_000 };
        Outcome {
            seconds: 1.0,
            units,
            units_in_all: units,
            failures,
            failure: (failures > 0).then(|| "a request: refused & <lost>".to_owned()),
            latency_ns,
            cpu_ns: 1_000_000_000,
            switches: 500,
            rss_before_kb: 4096,
            rss_kb: 8192,
            rss_slope_kb: 1.5,
        }
    }

    pub(crate) fn summary(samples: &[(&str, StackKind, Outcome)]) -> Summary {
        let samples = samples.iter().cloned().map(|(load, stack, outcome)| Sample {
            round: 1,
            stack,
            load: load.to_owned(),
            outcome,
        });
        Summary {
            date: "2026-01-02T03:04:05Z".to_owned(),
            machine: "2 processors".to_owned(),
            stacks: StackKind::ALL.to_vec(),
            loads: plan::all(100),
            rounds: 1,
            seconds: 1.0,
            rate: Some(1000.0),
            samples: samples.collect(),
        }
    }

    #[test]
    fn a_figure_is_the_median_of_its_rounds() {
        let stack = StackKind::Pillion;
        let run = summary(&[5, 100, 7].map(|units| ("http-1", stack, outcome(units, 2))));
        assert_eq!(run.figure("http-1", stack, Metric::Throughput), Some(7.0));
        assert_eq!(run.figure("http-32", stack, Metric::Throughput), None);
        assert_eq!(run.failures("http-1", stack), 6);
    }

    #[test]
    fn a_stack_without_a_proxy_has_no_cost() {
        let bare = Outcome { rss_kb: 0, rss_before_kb: 0, cpu_ns: 0, ..outcome(10, 0) };
        assert_eq!(Metric::Throughput.of(&bare), Some(10.0));
        for metric in [Metric::Cpu, Metric::Memory, Metric::Switches, Metric::MemoryPerUnit] {
            assert_eq!(metric.of(&bare), None, "{metric:?}");
        }
    }

    #[test]
    fn no_work_is_no_figure() {
        assert_eq!(Metric::Cpu.of(&outcome(0, 1)), None);
        assert_eq!(Metric::P50.of(&outcome(0, 1)), None);
    }

    #[test]
    fn numbers_are_as_long_as_they_are_exact() {
        for (value, text) in
            [(12345.6, "12346"), (12.345, "12.3"), (1.2345, "1.23"), (0.12345, "0.123"), (0.0, "0")]
        {
            assert_eq!(digits(value), text);
        }
    }

    #[test]
    fn figures_are_read_in_common_units() {
        assert_eq!(readable(Metric::Throughput, Unit::Byte, 1.25e9), (10.0, "Gbit/s"));
        assert_eq!(readable(Metric::Cpu, Unit::Byte, 1.5), (1.5, "CPU s/GB"));
        assert_eq!(readable(Metric::Cpu, Unit::Request, 25_000.0), (25.0, "CPU µs each"));
    }
}
