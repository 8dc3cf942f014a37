//! Sets of TCP ports, and how many of them fit one rule.

use std::fmt;

/// What the kernel's multiport match holds; a range takes two.
/// (`XT_MULTI_PORTS` in `linux/netfilter/xt_multiport.h`)
const MULTIPORT_SLOTS: usize = 15;

/// One port, or a range with both its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// A range with both its ends; `None` when it is empty or has port 0, which no connection has.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first > 0 && first <= last).then_some(Self { first, last })
    }

    fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    fn slots(self) -> usize {
        if self.first == self.last { 1 } else { 2 }
    }
}

impl fmt::Display for PortRange {
    /// As multiport writes it: `80`, `8000:8080`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}:{}", self.first, self.last)
        }
    }
}

/// Ports in ascending order, each named once.
///
/// Ranges that overlap are joined. Neighbours are not: `15020,15021` stays as the user wrote it,
/// and a range of two would take as many slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<PortRange>);

impl FromIterator<PortRange> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortRange>>(ranges: I) -> Self {
        let mut ranges: Vec<PortRange> = ranges.into_iter().collect();
        ranges.sort_unstable();
        let mut joined: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(before) if range.first <= before.last => {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        Self(joined)
    }
}

impl PortSet {
    /// True when no port is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when `port` is in it.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(port))
    }

    /// The set in pieces that each fit one multiport match; none for an empty set.
    #[must_use]
    pub fn multiports(&self) -> Vec<PortSet> {
        let mut pieces: Vec<PortSet> = Vec::new();
        let mut free = 0;
        for &range in &self.0 {
            match pieces.last_mut() {
                Some(piece) if range.slots() <= free => piece.0.push(range),
                _ => {
                    pieces.push(PortSet(vec![range]));
                    free = MULTIPORT_SLOTS;
                }
            }
            free -= range.slots();
        }
        pieces
    }

    /// The first and the last port of each range, in order.
    pub fn ranges(&self) -> impl Iterator<Item = (u16, u16)> {
        self.0.iter().map(|range| (range.first, range.last))
    }

    /// The union of two sets.
    #[must_use]
    pub fn with(&self, other: &PortSet) -> PortSet {
        self.0.iter().chain(&other.0).copied().collect()
    }
}

impl fmt::Display for PortSet {
    /// As multiport writes it: `80,443,8000:8080`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(u16, u16)]) -> PortSet {
        ranges.iter().map(|&(first, last)| PortRange::new(first, last).unwrap()).collect()
    }

    #[test]
    fn order_and_repetition_do_not_matter_and_overlaps_join() {
        let ports = set(&[(9000, 9000), (80, 80), (80, 80), (8000, 8080), (8040, 8100)]);
        assert_eq!(ports.to_string(), "80,8000:8100,9000");
        assert!(ports.contains(8090) && !ports.contains(8101));
    }

    #[test]
    fn neighbours_stay_apart() {
        assert_eq!(set(&[(15021, 15021), (15020, 15020)]).to_string(), "15020,15021");
    }

    #[test]
    fn a_range_inside_another_vanishes() {
        assert_eq!(set(&[(1, 65535), (80, 90)]).to_string(), "1:65535");
    }

    #[test]
    fn ranges_without_a_port_cannot_be_made() {
        assert_eq!(PortRange::new(0, 5), None);
        assert_eq!(PortRange::new(6, 5), None);
    }

    #[test]
    fn fifteen_slots_fit_one_match_and_a_range_takes_two() {
        let fifteen: Vec<(u16, u16)> = (1..=15).map(|n| (n * 10, n * 10)).collect();
        assert_eq!(set(&fifteen).multiports().len(), 1);

        let mut ranged = fifteen.clone();
        ranged[14] = (150, 155);
        let pieces: Vec<String> =
            set(&ranged).multiports().iter().map(ToString::to_string).collect();
        assert_eq!(pieces, ["10,20,30,40,50,60,70,80,90,100,110,120,130,140", "150:155"]);

        let eight: Vec<(u16, u16)> = (1..=8).map(|n| (n * 10, n * 10 + 5)).collect();
        assert_eq!(set(&eight).multiports().len(), 2);
        assert!(PortSet::default().multiports().is_empty());
    }
}
