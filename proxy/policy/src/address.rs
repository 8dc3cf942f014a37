//! Sets of addresses that stay fast when they are large.
//!
//! A set is the sorted list of the places where membership changes: an address is in the set when
//! an odd number of them lie at or below it. Exceptions, nesting and overlap are gone by then, so
//! that a lookup costs the same for any file with as many ranges.

use std::net::IpAddr;

use ipnet::IpNet;

use super::cidr::Block;
use super::directory::{Directory, Word};

/// Closed ranges of one family, merged and sorted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Ranges<K> {
    /// The first member of each range and the first non-member after it, alternating.
    bounds: Box<[K]>,
    directory: Option<Box<Directory<K>>>,
}

impl<K: Word> Ranges<K> {
    /// The union of `blocks`, each a range and the ranges that are left out of it.
    fn new(blocks: &[Parts<K>]) -> Self {
        let mut pieces = Vec::with_capacity(blocks.len());
        for block in blocks {
            if block.except.is_empty() {
                pieces.push(block.range);
            } else {
                subtract(block, &mut pieces);
            }
        }
        Self::of_ranges(pieces)
    }

    fn of_ranges(mut pieces: Vec<(K, K)>) -> Self {
        pieces.sort_unstable();
        let mut bounds: Vec<K> = Vec::with_capacity(pieces.len().saturating_mul(2));
        // `None` once a range reaches the last address there is: it never ends.
        let mut open: Option<Option<K>> = None;
        for (first, last) in pieces {
            match open {
                Some(None) => break,
                Some(Some(end)) if first <= end => {
                    open = Some(last.successor().map(|after| after.max(end)));
                }
                _ => {
                    if let Some(Some(end)) = open {
                        bounds.push(end);
                    }
                    bounds.push(first);
                    open = Some(last.successor());
                }
            }
        }
        if let Some(Some(end)) = open {
            bounds.push(end);
        }
        let directory = Directory::new(&bounds).map(Box::new);
        Self { bounds: bounds.into_boxed_slice(), directory }
    }

    fn contains(&self, key: K) -> bool {
        self.below(key) % 2 == 1
    }

    fn below(&self, key: K) -> usize {
        Directory::count_at_or_below(self.directory.as_deref(), &self.bounds, key)
    }

    /// Closed ranges, in order.
    fn ranges(&self) -> impl Iterator<Item = (K, K)> {
        self.bounds.chunks(2).filter_map(|pair| {
            let first = *pair.first()?;
            Some((first, pair.get(1).map_or(K::MAX, |after| after.predecessor())))
        })
    }

    /// Whether no key is left out; however many blocks make it, they are one range by now.
    fn is_whole(&self) -> bool {
        self.ranges().next() == Some((K::default(), K::MAX))
    }

    fn covers(&self, other: &Self) -> bool {
        other.ranges().all(|(first, last)| {
            let at = self.below(first);
            at % 2 == 1 && self.bounds.get(at).is_none_or(|end| *end > last)
        })
    }
}

/// A range and the ranges that are left out of it.
struct Parts<K> {
    range: (K, K),
    except: Vec<(K, K)>,
}

fn subtract<K: Word>(block: &Parts<K>, out: &mut Vec<(K, K)>) {
    let mut except = block.except.clone();
    except.sort_unstable();
    let (first, last) = block.range;
    let mut next = Some(first);
    for (from, to) in except {
        let Some(start) = next else { return };
        if from > start {
            out.push((start, from.predecessor()));
        }
        next = to.successor().map(|after| after.max(start));
    }
    if let Some(start) = next.filter(|start| *start <= last) {
        out.push((start, last));
    }
}

/// A set of IPv4 and IPv6 addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct AddressSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl AddressSet {
    pub(super) fn new(blocks: &[Block]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for block in blocks {
            match block.net {
                IpNet::V4(net) => {
                    let except = block.except.iter().filter_map(v4_range).collect();
                    v4.push(Parts {
                        range: (net.network().into(), net.broadcast().into()),
                        except,
                    });
                }
                IpNet::V6(net) => {
                    let except = block.except.iter().filter_map(v6_range).collect();
                    v6.push(Parts {
                        range: (net.network().into(), net.broadcast().into()),
                        except,
                    });
                }
            }
        }
        Self { v4: Ranges::new(&v4), v6: Ranges::new(&v6) }
    }

    /// The union of several sets.
    pub(super) fn union<'s>(sets: impl Iterator<Item = &'s Self> + Clone) -> Self {
        Self {
            v4: Ranges::of_ranges(sets.clone().flat_map(|set| set.v4.ranges()).collect()),
            v6: Ranges::of_ranges(sets.flat_map(|set| set.v6.ranges()).collect()),
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(v4.into()),
            IpAddr::V6(v6) => self.v6.contains(v6.into()),
        }
    }

    /// Whether every address of `other` is in this set.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.v4.covers(&other.v4) && self.v6.covers(&other.v6)
    }

    /// Whether it has every address of a family: of IPv4, and of IPv6.
    pub(super) fn whole_families(&self) -> [bool; 2] {
        [self.v4.is_whole(), self.v6.is_whole()]
    }

    /// Exceptions may have left nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// Its ranges, first and last address, IPv4 before IPv6 and each in order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let v4 = self.v4.ranges().map(|(a, b)| (IpAddr::V4(a.into()), IpAddr::V4(b.into())));
        let v6 = self.v6.ranges().map(|(a, b)| (IpAddr::V6(a.into()), IpAddr::V6(b.into())));
        v4.chain(v6)
    }

    /// How many range ends it has: what it costs to hold it against another.
    pub(super) fn len(&self) -> usize {
        self.v4.bounds.len().saturating_add(self.v6.bounds.len())
    }

    /// The lowest address, IPv4 before IPv6.
    pub(super) fn first(&self) -> Option<IpAddr> {
        let v4 = self.v4.bounds.first().map(|first| IpAddr::V4((*first).into()));
        v4.or_else(|| self.v6.bounds.first().map(|first| IpAddr::V6((*first).into())))
    }
}

pub(super) fn v4_range(net: &IpNet) -> Option<(u32, u32)> {
    match net {
        IpNet::V4(net) => Some((net.network().into(), net.broadcast().into())),
        IpNet::V6(_) => None,
    }
}

pub(super) fn v6_range(net: &IpNet) -> Option<(u128, u128)> {
    match net {
        IpNet::V6(net) => Some((net.network().into(), net.broadcast().into())),
        IpNet::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cidr::parse_net;
    use crate::yaml::Pos;

    fn set(blocks: &[(&str, &[&str])]) -> AddressSet {
        let blocks: Vec<_> = blocks
            .iter()
            .map(|(net, except)| Block {
                pos: Pos::START,
                net: parse_net(net).unwrap(),
                except: except.iter().map(|e| parse_net(e).unwrap()).collect(),
            })
            .collect();
        AddressSet::new(&blocks)
    }

    fn has(set: &AddressSet, address: &str) -> bool {
        set.contains(address.parse().unwrap())
    }

    #[test]
    fn the_ends_of_the_space_belong_to_it() {
        let all = set(&[("0.0.0.0/0", &[]), ("::/0", &[])]);
        for address in ["0.0.0.0", "255.255.255.255", "::", "ffff::ffff"] {
            assert!(has(&all, address), "{address}");
        }
        let most = set(&[("0.0.0.0/0", &["255.255.255.255", "0.0.0.0"])]);
        assert!(!has(&most, "0.0.0.0") && !has(&most, "255.255.255.255"));
        assert!(has(&most, "0.0.0.1") && has(&most, "255.255.255.254") && !has(&most, "::"));
    }

    #[test]
    fn an_exception_is_of_its_own_block_alone() {
        let set = set(&[("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24"]), ("10.1.3.0/24", &[])]);
        assert!(has(&set, "10.0.0.1") && has(&set, "10.2.0.0") && has(&set, "10.1.3.9"));
        assert!(!has(&set, "10.1.2.3") && !has(&set, "10.1.255.255"));
    }

    #[test]
    fn covering() {
        let wide = set(&[("10.0.0.0/9", &[]), ("10.128.0.0/9", &["10.200.0.0/16"])]);
        assert!(wide.covers(&set(&[("10.0.0.0/9", &[])])));
        assert!(wide.covers(&set(&[("10.64.0.0/10", &[]), ("10.128.0.0/12", &[])])));
        assert!(!wide.covers(&set(&[("10.0.0.0/8", &[])])));
        assert!(wide.covers(&set(&[("10.0.0.0/8", &["10.200.0.0/15"])])));
        assert!(!wide.covers(&set(&[("fd00::/8", &[])])));
        assert!(set(&[("0.0.0.0/0", &[])]).covers(&wide));
        assert!(set(&[("10.0.0.0/24", &["10.0.0.0/24"])]).is_empty());
        let all_but_the_last = set(&[("10.0.0.0/24", &["10.0.0.255"])]);
        assert!(!all_but_the_last.covers(&set(&[("10.0.0.0/24", &[])])));
    }
}
