//! What is aimed at, as data: ratios to the best peer in the same run. Absolute figures carry
//! over to no other machine, so there are none.

use crate::report::summary::{Metric, Summary};
use crate::stack::StackKind;
use crate::stats::ratio;

/// A bound of a ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// So much or more.
    AtLeast(f64),
    /// So much or less.
    AtMost(f64),
}

impl Bound {
    /// Whether a ratio keeps it.
    pub(crate) fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
        }
    }

    /// As text.
    pub(crate) fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {least}"),
            Self::AtMost(most) => format!("≤ {most}"),
        }
    }
}

/// Whom a goal compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Against {
    /// Of the peers that were measured, the one that does best by this metric.
    BestPeer,
    /// The plain copying proxy.
    Copy,
}

/// One goal.
#[derive(Debug)]
pub(crate) struct Goal {
    /// What it is about, for people.
    pub(crate) title: &'static str,
    /// The load that tells.
    pub(crate) load: &'static str,
    /// The figure of it that tells.
    pub(crate) metric: Metric,
    /// Whom it asks of.
    pub(crate) of: StackKind,
    /// Whom that is compared with.
    pub(crate) against: Against,
    /// What the ratio of the two should be.
    pub(crate) bound: Bound,
}

const fn goal(title: &'static str, load: &'static str, metric: Metric, bound: Bound) -> Goal {
    Goal { title, load, metric, of: StackKind::Pillion, against: Against::BestPeer, bound }
}

/// All goals.
pub(crate) const GOALS: &[Goal] = &[
    goal("bulk up, 1 stream", "bulk-up-1", Metric::Throughput, Bound::AtLeast(1.4)),
    goal("bulk up, CPU of the pair", "bulk-up-1", Metric::Cpu, Bound::AtMost(0.66)),
    goal("bulk down, 1 stream", "bulk-down-1", Metric::Throughput, Bound::AtLeast(1.4)),
    goal("HTTP, 32 connections", "http-32", Metric::Throughput, Bound::AtLeast(1.3)),
    goal("HTTP, 32 connections, CPU of the pair", "http-32", Metric::Cpu, Bound::AtMost(0.75)),
    goal("HTTP, 32 connections, p99", "http-32", Metric::P99, Bound::AtMost(0.8)),
    goal("HTTP, 1 connection, p50", "http-1", Metric::P50, Bound::AtMost(0.6)),
    goal("new connections", "churn-16", Metric::Throughput, Bound::AtLeast(1.3)),
    goal("new connections, CPU of the pair", "churn-16", Metric::Cpu, Bound::AtMost(0.7)),
    goal("memory of an idle connection, pair", "idle", Metric::MemoryPerUnit, Bound::AtMost(0.95)),
    goal("memory before the first connection", "idle", Metric::BaseMemory, Bound::AtMost(0.4)),
    Goal {
        title: "passthrough, bulk up, CPU",
        load: "bulk-up-1",
        metric: Metric::Cpu,
        of: StackKind::Passthrough,
        against: Against::Copy,
        bound: Bound::AtMost(0.45),
    },
];

/// What became of a goal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// The figure of the one that is asked.
    pub(crate) ours: f64,
    /// The figure that it is compared with.
    pub(crate) theirs: f64,
    /// Whose that is.
    pub(crate) whose: StackKind,
    /// The ratio of the two.
    pub(crate) ratio: f64,
    /// Whether it is as aimed at. Never when either had failures.
    pub(crate) ok: bool,
}

impl Goal {
    /// Looks at a run; none where it measured one of the two not at all.
    pub(crate) fn look(&self, summary: &Summary) -> Option<Found> {
        let figure = |stack| summary.figure(self.load, stack, self.metric);
        let rivals = StackKind::ALL.into_iter().filter(|stack| match self.against {
            Against::BestPeer => stack.is_peer(),
            Against::Copy => *stack == StackKind::Copy,
        });
        let (whose, theirs) = rivals
            .filter_map(|stack| Some((stack, figure(stack)?)))
            .reduce(|best, next| if self.metric.is_better(next.1, best.1) { next } else { best })?;
        let ours = figure(self.of)?;
        let ratio = ratio(ours, theirs)?;
        let clean = |stack| summary.failures(self.load, stack) == 0;
        let ok = self.bound.holds(ratio) && clean(self.of) && clean(whose);
        Some(Found { ours, theirs, whose, ratio, ok })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::summary::tests::{outcome, summary};

    fn goal(title: &str) -> &'static Goal {
        GOALS.iter().find(|goal| goal.title == title).unwrap()
    }

    #[test]
    fn a_goal_is_a_ratio_to_the_best_peer() {
        let run = summary(&[
            ("bulk-up-1", StackKind::Pillion, outcome(1400, 0)),
            ("bulk-up-1", StackKind::Envoy, outcome(1000, 0)),
            ("bulk-up-1", StackKind::Haproxy, outcome(900, 0)),
            ("bulk-up-1", StackKind::Direct, outcome(9000, 0)),
        ]);
        let found = goal("bulk up, 1 stream").look(&run).unwrap();
        assert_eq!((found.whose, found.ok), (StackKind::Envoy, true));
        assert!((found.ratio - 1.4).abs() < 1e-9, "{found:?}");
        // The same CPU for fewer bytes: less CPU a byte is better.
        let found = goal("bulk up, CPU of the pair").look(&run).unwrap();
        assert_eq!((found.whose, found.ok), (StackKind::Envoy, false));
        assert!((found.ratio - 1.0 / 1.4).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn failures_are_never_a_goal_reached() {
        let run = summary(&[
            ("churn-16", StackKind::Pillion, outcome(9000, 1)),
            ("churn-16", StackKind::Envoy, outcome(1000, 0)),
        ]);
        let found = goal("new connections").look(&run).unwrap();
        assert!(found.ratio > 8.0 && !found.ok, "{found:?}");
    }

    #[test]
    fn a_goal_without_a_peer_is_not_looked_at() {
        let run = summary(&[("http-1", StackKind::Pillion, outcome(10, 0))]);
        assert!(GOALS.iter().all(|goal| goal.look(&run).is_none()));
    }

    #[test]
    fn passthrough_is_compared_with_the_copy_alone() {
        let run = summary(&[
            ("bulk-up-1", StackKind::Passthrough, outcome(3000, 0)),
            ("bulk-up-1", StackKind::Copy, outcome(1000, 0)),
            ("bulk-up-1", StackKind::Envoy, outcome(9000, 0)),
        ]);
        let found = goal("passthrough, bulk up, CPU").look(&run).unwrap();
        assert_eq!((found.whose, found.ok), (StackKind::Copy, true));
    }
}
