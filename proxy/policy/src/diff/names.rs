//! The names that an address may have: none, one, or two whose destinations meet.
//!
//! An outbound verdict is a minimum over the destinations that match. With any number of names the
//! old one is therefore that of one name, the new one that of one name, and of those two alone
//! both are what they are with all: pairs suffice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use super::space::Numbered;
use super::{Outcome, Who};
use crate::index::Work;
use crate::{HostTable, Policy};

/// Names that the same destinations of both files list, and so fare alike.
pub(super) type NameClass = Vec<Arc<str>>;

/// Which names an address has, by the numbers of their classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Called {
    Nothing,
    One(usize),
    Both(usize, usize),
}

impl Called {
    /// A table that has just these.
    pub(super) fn table(self, classes: &[NameClass]) -> Table<'_> {
        let first = |class: usize| classes.get(class)?.first().map(|name| &**name);
        Table(match self {
            Self::Nothing => [None, None],
            Self::One(one) => [first(one), None],
            Self::Both(one, other) => [first(one), first(other)],
        })
    }

    /// Whom a line is about.
    pub(super) fn who(self, classes: &[NameClass]) -> Vec<Who> {
        let names = |class: usize| classes.get(class).cloned().unwrap_or_default();
        match self {
            Self::Nothing => vec![Who::NoName],
            Self::One(one) => names(one).into_iter().map(Who::Name).collect(),
            Self::Both(one, other) => vec![Who::Names(names(one), names(other))],
        }
    }
}

/// The names that the address at hand has.
pub(super) struct Table<'n>([Option<&'n str>; 2]);

impl HostTable for Table<'_> {
    fn contains(&self, host: &str, _: IpAddr) -> bool {
        self.0.contains(&Some(host))
    }
}

/// The names of some destinations, by which of them list each.
pub(super) fn classes(listed: BTreeMap<&Arc<str>, Vec<Numbered>>) -> Vec<NameClass> {
    let mut classes: BTreeMap<Vec<Numbered>, NameClass> = BTreeMap::new();
    for (name, by) in listed {
        classes.entry(by).or_default().push(Arc::clone(name));
    }
    classes.into_values().collect()
}

/// What decides for a name in the old file and in the new one, and what denies there and is only
/// reported: places in the order in which destinations come before each other.
pub(super) type Rank = [usize; 4];

/// The place of each destination of a file, the strictest first and then by the file's order.
pub(super) fn places(policy: &Policy) -> HashMap<Arc<str>, usize> {
    let mut list: Vec<_> = policy.destinations().iter().collect();
    list.sort_by_key(|one| one.action());
    list.into_iter().map(|one| Arc::clone(one.name())).zip(0..).collect()
}

/// Of the old outcome and the new one; what is no destination's comes last.
pub(super) fn rank(places: [&HashMap<Arc<str>, usize>; 2], outcomes: [&Outcome; 2]) -> Rank {
    let place = |side: usize, rule: Option<&Arc<str>>| {
        let known = places.get(side).zip(rule).and_then(|(known, rule)| known.get(rule));
        known.copied().unwrap_or(usize::MAX)
    };
    let [was, now] = outcomes;
    let denial = |outcome: &'_ Outcome| outcome.reported.as_ref().map(|(_, rule)| Arc::clone(rule));
    [
        place(0, Some(&was.rule)),
        place(1, Some(&now.rule)),
        place(0, denial(was).as_ref()),
        place(1, denial(now).as_ref()),
    ]
}

/// The pairs that fare as neither of the two alone: each comes first somewhere. `None` when that is
/// too much work.
pub(super) fn rivals(ranks: &[Rank], work: &Work) -> Option<BTreeSet<(usize, usize)>> {
    let mut found = BTreeSet::new();
    for (one, other) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
        let by = |rank: &Rank, n: usize| rank.get(n).copied().unwrap_or(usize::MAX);
        let mut sorted: Vec<(usize, usize, usize)> =
            ranks.iter().enumerate().map(|(n, rank)| (by(rank, one), by(rank, other), n)).collect();
        sorted.sort_unstable();
        // Those that come first by `one`, by their place by `other`.
        let mut earlier: BTreeSet<(usize, usize)> = BTreeSet::new();
        for same in sorted.chunk_by(|a, b| a.0 == b.0) {
            for (_, place, number) in same {
                let behind = (Bound::Excluded((*place, usize::MAX)), Bound::Unbounded);
                for (_, rival) in earlier.range(behind) {
                    if !work.spend(1) {
                        return None;
                    }
                    found.insert((*number.min(rival), *number.max(rival)));
                }
            }
            earlier.extend(same.iter().map(|(_, place, number)| (*place, *number)));
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the plain reading: neither of the two is at least as early in every order.
    #[test]
    fn rivals_are_those_of_whom_each_comes_first_somewhere() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut some = 0;
        for _ in 0..500 {
            let place = |random: &mut fastrand::Rng| match random.usize(..4) {
                3 => usize::MAX,
                n => n,
            };
            let ranks: Vec<Rank> =
                (0..random.usize(..6)).map(|_| [(); 4].map(|()| place(&mut random))).collect();
            let before = |a: &Rank, b: &Rank| a.iter().zip(b).all(|(a, b)| a <= b);
            let mut want = BTreeSet::new();
            for (b, other) in ranks.iter().enumerate() {
                for (a, one) in ranks.iter().enumerate().take(b) {
                    if !before(one, other) && !before(other, one) {
                        want.insert((a, b));
                    }
                }
            }
            some += want.len();
            assert_eq!(rivals(&ranks, &Work::new(1_000)), Some(want), "{ranks:?}");
        }
        assert!(some > 500, "{some}");
        assert_eq!(rivals(&[[0, 1, 0, 0], [1, 0, 0, 0]], &Work::new(0)), None);
    }
}
