//! From a connection to the first matching entry of one class of rules.
//!
//! A class is what is asked at once: the enforced denies, say. Its entries are grouped by the
//! rule's list of ports, then filed once each: under their identities or under their CIDRs,
//! whichever tell entries apart better. What the filing didn't prove, the entry itself is asked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;

use ipnet::IpNet;
use pillion_certs::spiffe::SpiffeId;

use super::address::{AddressSet, v4_range, v6_range};
use super::cidr::Block;
use super::identity::{IdentitySet, prefixes};
use super::prefixes::{Posting, PrefixIndex};

/// One `from` entry of a rule, or the `ipBlocks` of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    /// `None`: every address.
    pub(super) addresses: Option<AddressSet>,
    /// `None`: everyone, a plaintext peer included.
    pub(super) identities: Option<IdentitySet>,
}

impl Entry {
    pub(super) fn has_address(&self, source: IpAddr) -> bool {
        self.addresses.as_ref().is_none_or(|set| set.contains(source))
    }

    /// A peer without an identity matches only an entry that asks for none.
    pub(super) fn has_identity(&self, identity: Option<&SpiffeId>) -> bool {
        match (&self.identities, identity) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(set), Some(id)) => set.matches(id),
        }
    }

    fn anyone(&self) -> bool {
        self.addresses.is_none() && self.identities.is_none()
    }
}

/// An entry as it is filed.
pub(super) struct Filed<'b> {
    pub(super) rule: u32,
    pub(super) ports: Option<&'b Arc<[u16]>>,
    pub(super) entry: Entry,
    /// What `entry.addresses` was made of.
    pub(super) blocks: &'b [Block],
}

/// One class of rules.
#[derive(Debug, Default)]
pub(super) struct RuleIndex {
    entries: Box<[(u32, Entry)]>,
    /// Rules without `ports`.
    all_ports: Option<Box<Group>>,
    groups: Box<[Group]>,
    /// Each port with the groups that list it, sorted.
    by_port: Box<[(u16, u32)]>,
}

/// The entries of the rules that have one list of ports.
#[derive(Debug, Default)]
struct Group {
    /// The first entry that matches everyone.
    anyone: Option<u32>,
    v4: Option<Box<PrefixIndex<u32>>>,
    v6: Option<Box<PrefixIndex<u128>>>,
    identities: Option<Box<ByIdentity>>,
    /// Every address from which some identity could match; `None`: all of them.
    reach: Option<Box<AddressSet>>,
}

/// An entry's number, its blocks, and whether it is filed under its identities.
type Member<'b> = (u32, &'b [Block], bool);

/// Entries by the key of their patterns.
#[derive(Debug, Default)]
struct ByIdentity {
    exact: HashMap<Box<str>, Vec<u32>>,
    wildcards: HashMap<Box<str>, Vec<u32>>,
}

/// What is known of a connection when a class is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'q> {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) identity: Option<&'q SpiffeId>,
}

impl RuleIndex {
    pub(super) fn new(filed: Vec<Filed<'_>>) -> Self {
        let popular = Popularity::of(&filed);
        let mut entries = Vec::with_capacity(filed.len());
        let mut lists: HashMap<Option<Arc<[u16]>>, Vec<Member<'_>>> = HashMap::new();
        for one in filed {
            let number = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            let by_identity = popular.prefer_identity(&one);
            let group = lists.entry(one.ports.cloned()).or_default();
            group.push((number, one.blocks, by_identity));
            entries.push((one.rule, one.entry));
        }
        let mut all_ports = None;
        let mut groups = Vec::with_capacity(lists.len());
        let mut by_port = Vec::new();
        for (ports, members) in lists {
            let group = Group::new(&entries, &members);
            match ports {
                None => all_ports = Some(Box::new(group)),
                Some(ports) => {
                    let number = u32::try_from(groups.len()).unwrap_or(u32::MAX);
                    by_port.extend(ports.iter().map(|port| (*port, number)));
                    groups.push(group);
                }
            }
        }
        by_port.sort_unstable();
        Self {
            entries: entries.into_boxed_slice(),
            all_ports,
            groups: groups.into_boxed_slice(),
            by_port: by_port.into_boxed_slice(),
        }
    }

    /// The entries of one rule.
    pub(super) fn entries_of(&self, rule: u32) -> impl Iterator<Item = &Entry> + Clone {
        let from = self.entries.partition_point(|(of, _)| *of < rule);
        self.entries.iter().skip(from).take_while(move |(of, _)| *of == rule).map(|(_, e)| e)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first rule of the file, of this class, that matches.
    #[inline]
    pub(super) fn first(&self, query: &Query<'_>) -> Option<u32> {
        let mut best = u32::MAX;
        for group in self.groups_of(query.port) {
            // A group's postings come in order: beyond the best there is nothing to gain.
            let _ = group.visit(&self.entries, query, &mut |number| {
                best = best.min(number);
                ControlFlow::<()>::Break(())
            });
        }
        self.rule_of(best)
    }

    /// Up to `most` rules that match, in no order. `port: None` asks only the rules for all ports.
    pub(super) fn some(&self, query: &Query<'_>, every_port: bool, most: usize) -> Vec<u32> {
        let mut out = Vec::new();
        let groups = self.groups_of(query.port).filter(|group| {
            !every_port || self.all_ports.as_deref().is_some_and(|all| std::ptr::eq(all, *group))
        });
        for group in groups {
            let mut seen = 0;
            let _ = group.visit(&self.entries, query, &mut |number| {
                out.extend(self.rule_of(number));
                seen += 1;
                if seen < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
        }
        out
    }

    /// Whether some identity, or none, could match from this address.
    pub(super) fn could_match(&self, address: IpAddr, port: u16) -> bool {
        self.groups_of(port)
            .any(|group| group.reach.as_deref().is_none_or(|set| set.contains(address)))
    }

    fn rule_of(&self, number: u32) -> Option<u32> {
        self.entries.get(usize::try_from(number).ok()?).map(|(rule, _)| *rule)
    }

    fn groups_of(&self, port: u16) -> impl Iterator<Item = &Group> {
        let from = if self.by_port.is_empty() {
            0
        } else {
            self.by_port.partition_point(|(listed, _)| *listed < port)
        };
        let listed = self.by_port.iter().skip(from).take_while(move |(p, _)| *p == port);
        let listed = listed.filter_map(|(_, g)| self.groups.get(usize::try_from(*g).ok()?));
        self.all_ports.as_deref().into_iter().chain(listed)
    }
}

impl Group {
    fn new(entries: &[(u32, Entry)], members: &[Member<'_>]) -> Self {
        let mut group = Self::default();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let mut identities = ByIdentity::default();
        let of = |number: u32| {
            usize::try_from(number).ok().and_then(|at| entries.get(at)).map(|(_, entry)| entry)
        };
        for (number, blocks, by_identity) in members {
            let Some(entry) = of(*number) else { continue };
            match &entry.identities {
                None if entry.addresses.is_none() => {
                    group.anyone = group.anyone.or(Some(*number));
                }
                Some(set) if *by_identity => identities.file(*number, set),
                _ => {
                    for block in *blocks {
                        let posting = Posting {
                            entry: *number,
                            ask_addresses: !block.except.is_empty(),
                            ask_identities: entry.identities.is_some(),
                        };
                        let (net4, net6) = (v4_range(&block.net), v6_range(&block.net));
                        v4.extend(net4.map(|(first, last)| (first, last, posting)));
                        v6.extend(net6.map(|(first, last)| (first, last, posting)));
                    }
                }
            }
        }
        group.v4 = PrefixIndex::new(v4).map(Box::new);
        group.v6 = PrefixIndex::new(v6).map(Box::new);
        if !(identities.exact.is_empty() && identities.wildcards.is_empty()) {
            group.identities = Some(Box::new(identities));
        }
        let sets = members.iter().map(|(number, ..)| of(*number)?.addresses.as_ref());
        if sets.clone().all(|set| set.is_some()) {
            group.reach = Some(Box::new(AddressSet::union(sets.flatten())));
        }
        group
    }

    /// Shows `found` entries that match. It breaks to leave the list at hand: each list is in
    /// order, so its first match is the best it has.
    #[inline]
    fn visit(
        &self,
        entries: &[(u32, Entry)],
        query: &Query<'_>,
        found: &mut impl FnMut(u32) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if let Some(number) = self.anyone {
            let _ = found(number);
        }
        let ask = |number: u32, addresses: bool, identities: bool| {
            if !addresses && !identities {
                return true;
            }
            let entry = usize::try_from(number).ok().and_then(|at| entries.get(at));
            entry.is_some_and(|(_, entry)| {
                (!addresses || entry.has_address(query.address))
                    && (!identities || entry.has_identity(query.identity))
            })
        };
        let mut in_order = |postings: &[Posting]| {
            for p in postings {
                if ask(p.entry, p.ask_addresses, p.ask_identities) && found(p.entry).is_break() {
                    break;
                }
            }
            ControlFlow::<()>::Continue(())
        };
        let _ = match query.address {
            IpAddr::V4(ip) => self.v4.as_ref().map(|index| index.visit(ip.into(), &mut in_order)),
            IpAddr::V6(ip) => self.v6.as_ref().map(|index| index.visit(ip.into(), &mut in_order)),
        };
        if let (Some(index), Some(id)) = (&self.identities, query.identity) {
            for (list, wildcard) in index.lists(id.as_str()) {
                for number in list {
                    // An exact key proves the identity; a wildcard's is only where it begins.
                    if ask(*number, true, wildcard) && found(*number).is_break() {
                        break;
                    }
                }
            }
        }
        ControlFlow::Continue(())
    }
}

impl ByIdentity {
    fn file(&mut self, number: u32, set: &IdentitySet) {
        for pattern in set.iter().filter(|pattern| !pattern.is_relative()) {
            let map = if pattern.is_exact() { &mut self.exact } else { &mut self.wildcards };
            let list = map.entry(Box::from(pattern.key())).or_default();
            // An entry's patterns come one after the other, so a repeated one is the last.
            if list.last() != Some(&number) {
                list.push(number);
            }
        }
    }

    fn lists<'s>(&'s self, id: &'s str) -> impl Iterator<Item = (&'s [u32], bool)> {
        let wild = (!self.wildcards.is_empty()).then(|| prefixes(id));
        let wild = wild.into_iter().flatten().filter_map(|prefix| self.wildcards.get(prefix));
        let exact = self.exact.get(id).into_iter().map(|list| (list.as_slice(), false));
        exact.chain(wild.map(|list| (list.as_slice(), true)))
    }
}

/// How many entries share each key, among those that have both identities and CIDRs.
struct Popularity {
    identities: HashMap<Box<str>, u32>,
    networks: HashMap<IpNet, u32>,
}

impl Popularity {
    fn of(filed: &[Filed<'_>]) -> Self {
        let mut out = Self { identities: HashMap::new(), networks: HashMap::new() };
        for one in filed.iter().filter(|one| !one.entry.anyone() && !one.blocks.is_empty()) {
            let Some(set) = &one.entry.identities else { continue };
            for pattern in set.iter() {
                *out.identities.entry(Box::from(pattern.key())).or_default() += 1;
            }
            for block in one.blocks {
                *out.networks.entry(block.net).or_default() += 1;
            }
        }
        out
    }

    /// Files an entry where fewer others are.
    fn prefer_identity(&self, one: &Filed<'_>) -> bool {
        let Some(set) = &one.entry.identities else { return false };
        if one.entry.addresses.is_none() {
            return true;
        }
        let most = |counts: &mut dyn Iterator<Item = u32>| counts.max().unwrap_or(0);
        let ids = most(&mut set.iter().filter_map(|p| self.identities.get(p.key())).copied());
        let nets = most(&mut one.blocks.iter().filter_map(|b| self.networks.get(&b.net)).copied());
        ids <= nets
    }
}
