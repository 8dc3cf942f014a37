//! Addresses and ports, cut along the boundaries of both files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::address::AddressSet;
use crate::index::Work;

/// Some ports out of all, 1 to 65535.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// These alone, sorted.
    Only(Vec<u16>),
    /// All but these, sorted.
    AllBut(Vec<u16>),
}

impl Ports {
    /// Whether `port` is one of them.
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        match self {
            Self::Only(list) => list.contains(&port),
            Self::AllBut(list) => !list.contains(&port),
        }
    }
}

/// A rule or destination: whether of the new file, and its number there.
pub(super) type Numbered = (bool, u32);
/// Those that list each port.
pub(super) type ByPort = BTreeMap<u16, Vec<Numbered>>;

/// Every port with what both files say of it: ports of which they say the same are one class.
pub(super) struct PortClasses<S> {
    /// Each class: what is said of it, and its ports; of the last, if there, those not listed.
    pub(super) classes: Vec<(S, Ports)>,
    listed: BTreeSet<u16>,
}

impl<S: Eq + Hash + Ord + Clone> PortClasses<S> {
    /// `said` has what the files say of ports they list, `others` what goes for all others.
    pub(super) fn new(said: BTreeMap<u16, S>, others: S) -> Self {
        let mut classes: BTreeMap<S, Vec<u16>> = BTreeMap::new();
        let listed: BTreeSet<u16> = said.keys().copied().collect();
        for (port, said) in said {
            classes.entry(said).or_default().push(port);
        }
        let alike = classes.remove(&others).unwrap_or_default();
        let listed_otherwise: Vec<u16> =
            listed.iter().copied().filter(|port| alike.binary_search(port).is_err()).collect();
        let mut classes: Vec<_> =
            classes.into_iter().map(|(said, ports)| (said, Ports::Only(ports))).collect();
        classes.push((others, Ports::AllBut(listed_otherwise)));
        classes.retain(|(_, ports)| ports.sample().is_some());
        Self { classes, listed }
    }

    /// Some of the classes as one.
    pub(super) fn union(&self, parts: &[&Ports]) -> Ports {
        let has = |port: &u16| parts.iter().any(|part| part.has(*port));
        if parts.iter().any(|part| matches!(part, Ports::AllBut(_))) {
            Ports::AllBut(self.listed.iter().copied().filter(|port| !has(port)).collect())
        } else {
            Ports::Only(self.listed.iter().copied().filter(has).collect())
        }
    }
}

impl Ports {
    /// One of them; `None` if there is none.
    pub(super) fn sample(&self) -> Option<u16> {
        match self {
            Self::Only(list) => list.first().copied(),
            Self::AllBut(list) => (1..=u16::MAX).find(|port| list.binary_search(port).is_err()),
        }
    }
}

/// Addresses that are in the same sets.
pub(super) struct AddressClass {
    pub(super) sample: IpAddr,
    ranges: Vec<(IpAddr, IpAddr)>,
}

/// IPv4-mapped addresses, which no connection has.
const MAPPED: (u128, u128) = (0xffff << 32, (0xffff << 32) | 0xffff_ffff);

/// Cuts the address space along the ends of `sets`; `None` when that is too much work.
pub(super) fn addresses(sets: &[&AddressSet], work: &Work) -> Option<Vec<AddressClass>> {
    let mut classes: HashMap<Vec<usize>, Vec<(IpAddr, IpAddr)>> = HashMap::new();
    for v4 in [true, false] {
        let last_of_all = if v4 { u128::from(u32::MAX) } else { u128::MAX };
        // Where membership changes; a set that goes on to the last address has no end there.
        let mut toggles: Vec<(u128, usize)> = vec![(0, usize::MAX)];
        if !v4 {
            let (first, last) = MAPPED;
            toggles.extend([(first, usize::MAX), (last.saturating_add(1), usize::MAX)]);
        }
        for (number, set) in sets.iter().enumerate() {
            for (first, last) in set.ranges().filter(|(first, _)| first.is_ipv4() == v4) {
                toggles.push((to_bits(first), number));
                toggles.extend(to_bits(last).checked_add(1).map(|after| (after, number)));
            }
        }
        toggles.sort_unstable();
        let mut inside = BTreeSet::new();
        let mut groups = toggles.chunk_by(|a, b| a.0 == b.0).peekable();
        while let Some(here) = groups.next() {
            for (_, number) in here.iter().filter(|(_, number)| *number != usize::MAX) {
                if !inside.remove(number) {
                    inside.insert(*number);
                }
            }
            if !work.spend(inside.len().saturating_add(1)) {
                return None;
            }
            let first = here.first()?.0;
            let next = groups.peek().and_then(|next| next.first()).map(|next| next.0);
            let last = next.map_or(last_of_all, |next| next.saturating_sub(1));
            if first > last || (!v4 && first == MAPPED.0) {
                continue;
            }
            let range = (of_bits(first, v4), of_bits(last, v4));
            classes.entry(inside.iter().copied().collect()).or_default().push(range);
        }
    }
    let mut classes: Vec<_> = classes.into_values().collect();
    classes.sort();
    let class = |ranges: Vec<(IpAddr, IpAddr)>| {
        ranges.first().map(|(sample, _)| AddressClass { sample: *sample, ranges: ranges.clone() })
    };
    Some(classes.into_iter().filter_map(class).collect())
}

fn to_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn of_bits(bits: u128, v4: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if v4 => IpAddr::V4(Ipv4Addr::from(bits)),
        _ => IpAddr::V6(Ipv6Addr::from(bits)),
    }
}

/// The networks that some classes together are, as few as there can be.
pub(super) fn networks<'c>(classes: impl Iterator<Item = &'c AddressClass>) -> Vec<IpNet> {
    let mut ranges: Vec<_> = classes.flat_map(|class| class.ranges.iter().copied()).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((start, end)) if start.is_ipv4() == first.is_ipv4() && adjoin(*end, first) => {
                *end = last;
            }
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().flat_map(|(first, last)| subnets(first, last)).collect()
}

fn subnets(first: IpAddr, last: IpAddr) -> Vec<IpNet> {
    match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Ipv4Subnets::new(a, b, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(a), IpAddr::V6(b)) => Ipv6Subnets::new(a, b, 0).map(IpNet::V6).collect(),
        _ => Vec::new(),
    }
}

/// All that sorted networks, which do not overlap, leave out of both families.
pub(super) fn others(nets: &[IpNet]) -> Vec<IpNet> {
    let mut out = Vec::new();
    for v4 in [true, false] {
        let last_of_all = if v4 { u128::from(u32::MAX) } else { u128::MAX };
        let mut next = Some(0);
        for net in nets.iter().filter(|net| net.addr().is_ipv4() == v4) {
            let (first, last) = (to_bits(net.network()), to_bits(net.broadcast()));
            let gap = next.and_then(|from| Some((from, first.checked_sub(1)?)));
            let gap = gap.filter(|(from, to)| from <= to);
            out.extend(gap.into_iter().flat_map(|(a, b)| subnets(of_bits(a, v4), of_bits(b, v4))));
            next = last.checked_add(1).filter(|next| *next <= last_of_all);
        }
        let rest = next.map(|from| subnets(of_bits(from, v4), of_bits(last_of_all, v4)));
        out.extend(rest.into_iter().flatten());
    }
    out
}

/// Whether no address that a connection may have lies between two of one family.
fn adjoin(end: IpAddr, start: IpAddr) -> bool {
    let (after, start) = (to_bits(end).saturating_add(1), to_bits(start));
    after == start || (after == MAPPED.0 && start == MAPPED.1.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cidr::Block;
    use crate::yaml::Pos;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    /// The networks of the addresses that are in the set, and of those that are not.
    fn inside_and_outside(set: &str) -> [Vec<IpNet>; 2] {
        let block = |net| Block { pos: Pos::START, net, except: Box::new([]) };
        let set = AddressSet::new(&nets(set).into_iter().map(block).collect::<Vec<_>>());
        let classes = addresses(&[&set], &Work::new(1000)).unwrap();
        [true, false].map(|inside| {
            networks(classes.iter().filter(|class| set.contains(class.sample) == inside))
        })
    }

    #[test]
    fn addresses_that_no_connection_has_are_nobodys() {
        // All IPv6 addresses before the mapped ones, or all after them: what lies between goes with
        // either, and with neither.
        let before: String = (0_u32..16)
            .map(|bits| format!("::{:x}:0:0/{} ", 0xffff & !(0xffff_u32 >> bits), 81 + bits))
            .collect();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let [inside, outside] = inside_and_outside(&before);
        assert_eq!(inside, nets(&before));
        assert!(!outside.iter().any(|net| net.contains(&mapped)), "{outside:?}");
        // Two that only seem to be neighbours.
        let apart = "::/96 ::1:0:0:0/80";
        assert_eq!(inside_and_outside(apart)[0], nets(apart));
        // And two that are: together, they are one network.
        let after = "::1:0:0:0/80 ";
        assert_eq!(inside_and_outside(&format!("{before}{after}"))[0], nets("::/79"));
    }

    #[test]
    fn what_networks_leave_out() {
        for (some, rest) in [
            ("", "0.0.0.0/0 ::/0"),
            ("0.0.0.0/0 ::/0", ""),
            ("0.0.0.0/1 ::/0", "128.0.0.0/1"),
            ("0.0.0.0/2 128.0.0.0/1", "64.0.0.0/2 ::/0"),
            ("0.0.0.0/0 8000::/1", "::/1"),
        ] {
            assert_eq!(others(&nets(some)), nets(rest), "{some}");
            assert_eq!(others(&nets(rest)), nets(some), "{rest}");
        }
    }
}
