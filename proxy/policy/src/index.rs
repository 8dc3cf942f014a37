//! From a connection to the first matching entry of one class of rules.
//!
//! A class is what is asked at once: the enforced denies, say. Its entries are grouped by the
//! rule's list of ports, then filed once each: under their identities or under their CIDRs,
//! whichever tell entries apart better. What the filing didn't prove, the entry itself is asked.

use std::cell::Cell;
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
    pub(super) addresses: Option<Box<AddressSet>>,
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
}

/// Where an entry stands in the file.
pub(super) struct Source<'b> {
    /// Equal lists are one and the same.
    pub(super) ports: Option<&'b Arc<[u16]>>,
    /// What the entry's addresses were made of.
    pub(super) blocks: &'b [Block],
}

/// What may still be spent on looking for mistakes in a file: each step costs one. What is left
/// unlooked at is taken for good, since no file that a person wrote comes near the end of it.
#[derive(Debug)]
pub(super) struct Work(Cell<usize>);

impl Work {
    pub(super) fn new(steps: usize) -> Self {
        Self(Cell::new(steps))
    }

    /// Whether there was that much left; all of it is gone otherwise.
    pub(super) fn spend(&self, steps: usize) -> bool {
        let left = self.0.get().checked_sub(steps);
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.get()
    }
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
    /// Where there are only a few entries, each is asked and nothing else is there.
    few: Box<[u32]>,
    /// The first entry that matches everyone.
    anyone: Option<u32>,
    v4: Option<Box<PrefixIndex<u32>>>,
    v6: Option<Box<PrefixIndex<u128>>>,
    identities: Option<Box<ByIdentity>>,
    /// Every address from which some identity could match; `None`: all of them.
    reach: Option<Box<AddressSet>>,
}

/// Groups up to this large have no index: there may be as many groups as rules.
const FEW: usize = 4;

/// What the groups of a class are built from.
struct Build<'b> {
    entries: &'b [(u32, Entry)],
    sources: &'b [Source<'b>],
    popular: Popularity<'b>,
}

/// Entries by the key of their patterns.
#[derive(Debug, Default)]
struct ByIdentity {
    exact: Keyed,
    wildcards: Keyed,
}

/// Each key's part of `entries`, in order.
#[derive(Debug, Default)]
struct Keyed {
    parts: HashMap<Arc<str>, (u32, u32)>,
    entries: Box<[u32]>,
}

impl Keyed {
    fn new(mut pairs: Vec<(Arc<str>, u32)>) -> Self {
        pairs.sort_unstable();
        pairs.dedup();
        let entries = pairs.iter().map(|(_, number)| *number).collect();
        let keys = pairs.chunk_by(|a, b| a.0 == b.0);
        let mut parts = HashMap::with_capacity(keys.clone().count());
        let mut from = 0;
        for same in keys {
            let to = u32::try_from(same.len()).map_or(u32::MAX, |len| len.saturating_add(from));
            parts.extend(same.first().map(|(key, _)| (key.clone(), (from, to))));
            from = to;
        }
        Self { parts, entries }
    }

    fn get(&self, key: &str) -> Option<&[u32]> {
        let (from, to) = self.parts.get(key)?;
        self.entries.get(usize::try_from(*from).ok()?..usize::try_from(*to).ok()?)
    }
}

/// What is known of a connection when a class is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'q> {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) identity: Option<&'q SpiffeId>,
}

impl RuleIndex {
    /// `entries` are in the order of their rules, and `sources` in the order of `entries`.
    pub(super) fn new(entries: Vec<(u32, Entry)>, sources: &[Source<'_>]) -> Self {
        // The reader makes equal lists one, so a list is known by where it stands. Group 0 is of
        // the rules without ports.
        let mut numbers: HashMap<*const u16, u32> = HashMap::new();
        let mut by_port = Vec::new();
        let mut members: Vec<(u32, u32)> = Vec::with_capacity(entries.len());
        for (number, source) in (0..).zip(sources) {
            let group = source.ports.map_or(0, |ports| {
                let next = u32::try_from(numbers.len()).map_or(u32::MAX, |n| n.saturating_add(1));
                *numbers.entry(ports.as_ptr()).or_insert_with(|| {
                    by_port.extend(ports.iter().map(|port| (*port, next - 1)));
                    next
                })
            });
            members.push((group, number));
        }
        members.sort_unstable();
        let build =
            Build { popular: Popularity::of(&entries, sources), entries: &entries, sources };
        let mut all_ports = None;
        let mut groups = Vec::with_capacity(numbers.len());
        drop(numbers);
        for members in members.chunk_by(|a, b| a.0 == b.0) {
            let group = Group::new(&build, members);
            match members.first() {
                Some((0, _)) => all_ports = Some(Box::new(group)),
                _ => groups.push(group),
            }
        }
        drop(build);
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
            let found = |number: u32| {
                best = best.min(number);
                ControlFlow::Break(())
            };
            group.visit(&self.entries, query, || true, found);
        }
        self.rule_of(best)
    }

    /// Some rules that match, up to `most`, each once. `every_port` asks only those for all ports.
    pub(super) fn some(
        &self,
        query: &Query<'_>,
        every_port: bool,
        most: usize,
        work: &Work,
    ) -> Vec<u32> {
        let mut out: Vec<u32> = Vec::new();
        let groups = self.groups_of(query.port).filter(|group| {
            !every_port || self.all_ports.as_deref().is_some_and(|all| std::ptr::eq(all, *group))
        });
        for group in groups {
            if out.len() >= most || !work.spend(1) {
                break;
            }
            let found = |number: u32| {
                out.extend(self.rule_of(number).filter(|rule| !out.contains(rule)));
                if out.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            group.visit(&self.entries, query, || work.spend(1), found);
        }
        out
    }

    /// Whether some identity, or none, could match from this address.
    pub(super) fn could_match(&self, address: IpAddr, port: u16) -> bool {
        self.groups_of(port).any(|group| match &*group.few {
            [] => group.reach.as_deref().is_none_or(|set| set.contains(address)),
            few => {
                few.iter().any(|n| at(&self.entries, *n).is_some_and(|e| e.has_address(address)))
            }
        })
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

fn at(entries: &[(u32, Entry)], number: u32) -> Option<&Entry> {
    entries.get(usize::try_from(number).ok()?).map(|(_, entry)| entry)
}

impl Group {
    /// `members` are numbers of entries, in order, each behind the group's own.
    fn new(build: &Build<'_>, members: &[(u32, u32)]) -> Self {
        let entries = build.entries;
        let mut group = Self::default();
        if members.len() <= FEW {
            group.few = members.iter().map(|(_, number)| *number).collect();
            return group;
        }
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let (mut exact, mut wildcards) = (Vec::new(), Vec::new());
        for (_, number) in members {
            let source = usize::try_from(*number).ok().and_then(|n| build.sources.get(n));
            let (Some(entry), Some(source)) = (at(entries, *number), source) else { continue };
            match &entry.identities {
                None if entry.addresses.is_none() => {
                    group.anyone = group.anyone.or(Some(*number));
                }
                Some(set) if build.popular.prefer_identity(entry, source.blocks) => {
                    for pattern in set.iter().filter(|pattern| !pattern.is_relative()) {
                        if pattern.is_exact() {
                            exact.push((pattern.text().clone(), *number));
                        } else {
                            wildcards.push((Arc::from(pattern.key()), *number));
                        }
                    }
                }
                _ => {
                    for block in source.blocks {
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
        if !(exact.is_empty() && wildcards.is_empty()) {
            let (exact, wildcards) = (Keyed::new(exact), Keyed::new(wildcards));
            group.identities = Some(Box::new(ByIdentity { exact, wildcards }));
        }
        let sets = members.iter().map(|(_, number)| at(entries, *number)?.addresses.as_deref());
        if sets.clone().all(|set| set.is_some()) {
            group.reach = Some(Box::new(AddressSet::union(sets.flatten())));
        }
        group
    }

    /// Shows `found` entries that match. It breaks to leave the list at hand: each list is in
    /// order, so its first match is the best it has. `go` is asked before each entry; after its
    /// no, no further one is.
    #[inline]
    fn visit(
        &self,
        entries: &[(u32, Entry)],
        query: &Query<'_>,
        go: impl Fn() -> bool,
        mut found: impl FnMut(u32) -> ControlFlow<()>,
    ) {
        if let Some(number) = self.anyone {
            let _ = found(number);
        }
        let ask = |number: u32, addresses: bool, identities: bool| {
            if !addresses && !identities {
                return true;
            }
            at(entries, number).is_some_and(|entry| {
                (!addresses || entry.has_address(query.address))
                    && (!identities || entry.has_identity(query.identity))
            })
        };
        for number in &self.few {
            if !go() || (ask(*number, true, true) && found(*number).is_break()) {
                return;
            }
        }
        let mut in_order = |postings: &[Posting]| {
            for p in postings {
                if !go() {
                    return ControlFlow::Break(());
                }
                if ask(p.entry, p.ask_addresses, p.ask_identities) && found(p.entry).is_break() {
                    break;
                }
            }
            ControlFlow::Continue(())
        };
        let _ = match query.address {
            IpAddr::V4(ip) => self.v4.as_ref().map(|index| index.visit(ip.into(), &mut in_order)),
            IpAddr::V6(ip) => self.v6.as_ref().map(|index| index.visit(ip.into(), &mut in_order)),
        };
        if let (Some(index), Some(id)) = (&self.identities, query.identity) {
            for (list, wildcard) in index.lists(id.as_str()) {
                for number in list {
                    if !go() {
                        return;
                    }
                    // An exact key proves the identity; a wildcard's is only where it begins.
                    if ask(*number, true, wildcard) && found(*number).is_break() {
                        break;
                    }
                }
            }
        }
    }
}

impl ByIdentity {
    fn lists<'s>(&'s self, id: &'s str) -> impl Iterator<Item = (&'s [u32], bool)> {
        let wild = (!self.wildcards.parts.is_empty()).then(|| prefixes(id));
        let wild = wild.into_iter().flatten().filter_map(|prefix| self.wildcards.get(prefix));
        let exact = self.exact.get(id).into_iter().map(|list| (list, false));
        exact.chain(wild.map(|list| (list, true)))
    }
}

/// How many entries share each key, among those that have both identities and CIDRs.
struct Popularity<'e> {
    identities: HashMap<&'e str, u32>,
    networks: HashMap<IpNet, u32>,
}

impl<'e> Popularity<'e> {
    fn of(entries: &'e [(u32, Entry)], sources: &[Source<'_>]) -> Self {
        let mut out = Self { identities: HashMap::new(), networks: HashMap::new() };
        for ((_, entry), source) in entries.iter().zip(sources) {
            let (Some(set), Some(_)) = (&entry.identities, &entry.addresses) else { continue };
            for pattern in set.iter() {
                *out.identities.entry(pattern.key()).or_default() += 1;
            }
            for block in source.blocks {
                *out.networks.entry(block.net).or_default() += 1;
            }
        }
        out
    }

    /// Files an entry where fewer others are.
    fn prefer_identity(&self, entry: &Entry, blocks: &[Block]) -> bool {
        let Some(set) = &entry.identities else { return false };
        if entry.addresses.is_none() {
            return true;
        }
        let most = |counts: &mut dyn Iterator<Item = u32>| counts.max().unwrap_or(0);
        let ids = most(&mut set.iter().filter_map(|p| self.identities.get(p.key())).copied());
        let nets = most(&mut blocks.iter().filter_map(|b| self.networks.get(&b.net)).copied());
        ids <= nets
    }
}
