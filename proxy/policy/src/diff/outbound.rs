//! Connections by this pod, by destination, port and name.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::identities::IdentityClasses;
use super::inbound::domains;
use super::names::{self, Called, NameClass, Rank};
use super::space::{self, AddressClass, ByPort, Numbered, PortClasses, Ports};
use super::{Change, Effect, Identities, Outcome, What, Who};
use crate::address::AddressSet;
use crate::index::Work;
use crate::{Destination, OutboundAction, OutboundDecision, Policy, Shadow};

type Key = (Effect, What, Outcome, Outcome);
/// A change, and whether one of two names has a line of this effect alone.
type Told = (Key, bool);
type Line = (Told, Vec<IpNet>, Vec<Who>, bool);

/// What changes alike: how, from where, and for which of the others.
type Group<K, O> = (K, Vec<IpNet>, BTreeSet<O>);

/// Puts together what changes alike: `judge` tells all the changes of a class of addresses, each
/// with the one of the others that it is for. `None` when that is too much work.
pub(super) fn gather<K: Ord + Clone, O: Ord + Clone>(
    addresses: &[AddressClass],
    work: &Work,
    judge: impl Fn(&AddressClass) -> Option<Vec<(K, O)>>,
) -> Option<Vec<Group<K, O>>> {
    let mut groups: BTreeMap<(K, BTreeSet<O>), Vec<usize>> = BTreeMap::new();
    for (number, address) in addresses.iter().enumerate() {
        let mut here: BTreeMap<K, BTreeSet<O>> = BTreeMap::new();
        for (key, other) in judge(address)? {
            here.entry(key).or_default().insert(other);
        }
        for group in here {
            groups.entry(group).or_default().push(number);
        }
    }
    let group = |((key, some), numbers): ((K, _), Vec<usize>)| {
        let classes = numbers.into_iter().filter_map(|n| addresses.get(n));
        let networks = space::networks(classes);
        // They are memory, too.
        work.spend(networks.len()).then_some((key, networks, some))
    };
    groups.into_iter().map(group).collect()
}

/// Every change; `None` when there are too many classes.
pub(super) fn changes(old: &Policy, new: &Policy, work: &Work) -> Option<Vec<Change>> {
    let ports = ports(old, new);
    let places = [old, new].map(names::places);
    let mut lines: BTreeMap<Line, Vec<&Ports>> = BTreeMap::new();
    for (said, ports) in &ports.classes {
        let judge = Judge { old, new, places: &places, port: ports.sample()?, work };
        for line in judge.lines(said)? {
            lines.entry(line).or_default().push(ports);
        }
    }
    let change = |(((key, told), addresses, who, everyone), parts): (Line, Vec<&Ports>)| {
        let (effect, what, was, now) = key;
        let ports = ports.union(&parts);
        Change { effect, inbound: false, ports, addresses, who, everyone, what, was, now, told }
    };
    Some(lines.into_iter().map(change).collect())
}

/// The ports of both files, by the destinations that they are listed by.
fn ports(old: &Policy, new: &Policy) -> PortClasses<Vec<Numbered>> {
    let (mut said, mut all) = (ByPort::new(), Vec::new());
    for (is_new, policy) in [(false, old), (true, new)] {
        for (number, one) in (0..).zip(policy.destinations()) {
            match one.ports() {
                None => all.push((is_new, number)),
                Some(ports) => {
                    ports.iter().for_each(|p| said.entry(*p).or_default().push((is_new, number)));
                }
            }
        }
    }
    for list in said.values_mut() {
        list.extend(&all);
        list.sort_unstable();
    }
    PortClasses::new(said, all)
}

/// Both files, on ports that are all alike, by one of them.
struct Judge<'p> {
    old: &'p Policy,
    new: &'p Policy,
    places: &'p [HashMap<Arc<str>, usize>; 2],
    port: u16,
    work: &'p Work,
}

/// What becomes of an address with some names.
struct Judged {
    keys: Vec<Key>,
    rank: Rank,
}

impl Judge<'_> {
    /// The changes, by the destinations that have the port.
    fn lines(&self, said: &[Numbered]) -> Option<Vec<Line>> {
        let mut sets: Vec<&AddressSet> = Vec::new();
        let mut hosts: BTreeMap<&Arc<str>, Vec<Numbered>> = BTreeMap::new();
        for (is_new, number) in said {
            let policy = if *is_new { self.new } else { self.old };
            let one = policy.destinations().get(usize::try_from(*number).ok()?)?;
            let entries = policy.outbound.class(one.action()).by_address.entries_of(*number);
            sets.extend(entries.filter_map(|entry| entry.addresses.as_deref()));
            for host in one.hosts() {
                hosts.entry(host).or_default().push((*is_new, *number));
            }
        }
        let addresses = space::addresses(&sets, self.work)?;
        let classes = names::classes(hosts);
        let (old, new, work) = (self.old, self.new, self.work);
        let servers = RefCell::new(Servers { old, new, work, known: HashMap::new() });
        let grouped = gather(&addresses, work, |address| {
            self.address(address.sample, &classes, &mut servers.borrow_mut())
        })?;
        let lines = grouped.into_iter().map(|(told, networks, some)| {
            let who = some.iter().flat_map(|called| called.who(&classes)).collect();
            let single = some.iter().filter(|called| !matches!(called, Called::Both(..)));
            (told, networks, who, single.count() > classes.len())
        });
        Some(lines.collect())
    }

    /// What changes for an address without a name, with each alone, and with two of them where that
    /// is what neither alone has.
    fn address(
        &self,
        at: IpAddr,
        classes: &[NameClass],
        servers: &mut Servers<'_>,
    ) -> Option<Vec<(Told, Called)>> {
        let mut found = Vec::new();
        let mut note = |keys: Vec<(Key, bool)>, called| {
            found.extend(keys.into_iter().map(|told| (told, called)));
        };
        let mut judge = |called: Called| {
            self.work.spend(1).then_some(())?;
            let table = called.table(classes);
            let was = self.old.outbound(at, self.port, &table);
            let now = self.new.outbound(at, self.port, &table);
            let [old, new] = self.places;
            let rank = names::rank([old, new], [&outcome(&was).0, &outcome(&now).0]);
            Some(Judged { keys: differences(&was, &now, servers)?, rank })
        };
        let alone = |keys: &[Key]| keys.iter().map(|key| (key.clone(), false)).collect();
        note(alone(&judge(Called::Nothing)?.keys), Called::Nothing);
        let mut single = Vec::with_capacity(classes.len());
        for class in 0..classes.len() {
            let judged = judge(Called::One(class))?;
            note(alone(&judged.keys), Called::One(class));
            single.push(judged);
        }
        let ranks: Vec<Rank> = single.iter().map(|judged| judged.rank).collect();
        for (one, other) in names::rivals(&ranks, self.work)? {
            let both = judge(Called::Both(one, other))?.keys.into_iter();
            let known: Vec<&Key> =
                [one, other].iter().filter_map(|n| single.get(*n)).flat_map(|j| &j.keys).collect();
            let both = both.filter(|key| !known.contains(&key)).map(|key| {
                let same_effect =
                    |k: &&Key| k.0 == key.0 && (k.0 != Effect::Changes || k.1 == key.1);
                let told = known.iter().copied().any(|k| same_effect(&k));
                (key, told)
            });
            note(both.collect(), Called::Both(one, other));
        }
        Some(found)
    }
}

/// All in which two verdicts differ.
fn differences(
    was: &OutboundDecision,
    now: &OutboundDecision,
    servers: &mut Servers<'_>,
) -> Option<Vec<Key>> {
    let ((old, before), (new, after)) = (outcome(was), outcome(now));
    let mut found = Vec::new();
    let mut note = |effect, what| found.push((effect, what, old.clone(), new.clone()));
    if old != new {
        note(Effect::of(before, after), What::Verdict);
    }
    if let (
        OutboundDecision::Mtls { destination: from, .. },
        OutboundDecision::Mtls { destination: to, .. },
    ) = (was, now)
    {
        let (gained, lost) = servers.between(from, to)?;
        if !gained.is_empty() {
            note(Effect::Loosens, What::ServersGained(gained.clone()));
        }
        if !lost.is_empty() {
            note(Effect::Tightens, What::ServersLost(lost.clone()));
        }
        if from.tunnel_reuse() != to.tunnel_reuse() {
            note(Effect::Changes, What::TunnelReuse);
        }
    }
    Some(found)
}

fn outcome(decision: &OutboundDecision) -> (Outcome, OutboundAction) {
    let (action, rule, shadow) = match decision {
        OutboundDecision::Deny { rule } => (OutboundAction::Deny, rule, None),
        OutboundDecision::Mtls { rule, shadow, .. } => {
            (OutboundAction::Mtls, rule, shadow.as_ref())
        }
        OutboundDecision::Passthrough { rule, shadow } => {
            (OutboundAction::Passthrough, rule, shadow.as_ref())
        }
    };
    let reported = shadow.map(|Shadow { allow, rule }| (*allow, Arc::clone(rule)));
    (Outcome { verdict: action.as_str(), rule: Arc::clone(rule), reported }, action)
}

type GainedLost = (Vec<Identities>, Vec<Identities>);

/// Who may answer, by pairs of destinations: the many classes have few of them.
struct Servers<'p> {
    old: &'p Policy,
    new: &'p Policy,
    work: &'p Work,
    /// By the destinations themselves, for several may stand on one line.
    known: HashMap<[*const Destination; 2], Option<GainedLost>>,
}

impl Servers<'_> {
    /// Those gained, and those lost.
    fn between(&mut self, from: &Arc<Destination>, to: &Arc<Destination>) -> Option<&GainedLost> {
        let (old, new, work) = (self.old, self.new, self.work);
        let compare = || {
            let sets = [from, to].map(|d| d.server_identities());
            let patterns: BTreeSet<Arc<str>> = sets.iter().flat_map(|set| set.texts()).collect();
            let classes = IdentityClasses::new(&patterns, &domains(old, new), work)?;
            let (mut gained, mut lost) = (BTreeSet::new(), BTreeSet::new());
            for (number, class) in classes.classes.iter().enumerate() {
                let id = &class.sample;
                let may = |policy: &Policy, one: &Destination| {
                    policy.accepts_trust_domain(id.trust_domain())
                        && one.server_identities().matches(id)
                };
                match (may(old, from), may(new, to)) {
                    (false, true) => drop(gained.insert(number)),
                    (true, false) => drop(lost.insert(number)),
                    _ => {}
                }
            }
            Some((classes.describe(&gained, work)?, classes.describe(&lost, work)?))
        };
        self.known.entry([from, to].map(Arc::as_ptr)).or_insert_with(compare).as_ref()
    }
}
