//! Connections by this pod, by destination, port and name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::identities::IdentityClasses;
use super::inbound::domains;
use super::space::{self, AddressClass, ByPort, Numbered, PortClasses, Ports};
use super::{Change, Effect, Identities, Outcome, What, Who};
use crate::address::AddressSet;
use crate::index::Work;
use crate::{Destination, HostTable, OutboundAction, OutboundDecision, Policy, Shadow};

type Key = (Effect, What, Outcome, Outcome);
type Line = (Key, Vec<IpNet>, Vec<Who>, bool);

/// The one name that an address has.
struct Called<'n>(Option<&'n str>);

impl HostTable for Called<'_> {
    fn contains(&self, host: &str, _: IpAddr) -> bool {
        self.0 == Some(host)
    }
}

/// What changes alike: how, from where, and for which of the others.
type Group<K> = (K, Vec<IpNet>, BTreeSet<usize>);

/// Judges each class of addresses with each of `others`, and puts together what changes alike:
/// the change, the networks, and the numbers of the others. `None` when that is too much work.
pub(super) fn gather<K: Ord + Hash + Clone>(
    addresses: &[AddressClass],
    others: usize,
    work: &Work,
    judge: impl Fn(&AddressClass, usize) -> Option<Vec<K>>,
) -> Option<Vec<Group<K>>> {
    let mut groups: BTreeMap<(K, BTreeSet<usize>), Vec<usize>> = BTreeMap::new();
    for (number, address) in addresses.iter().enumerate() {
        if !work.spend(others) {
            return None;
        }
        let mut here: HashMap<K, BTreeSet<usize>> = HashMap::new();
        for other in 0..others {
            for key in judge(address, other).unwrap_or_default() {
                here.entry(key).or_default().insert(other);
            }
        }
        for group in here {
            groups.entry(group).or_default().push(number);
        }
    }
    let group = |((key, some), numbers): ((K, _), Vec<usize>)| {
        let classes = numbers.into_iter().filter_map(|n| addresses.get(n));
        (key, space::networks(classes), some)
    };
    Some(groups.into_iter().map(group).collect())
}

/// Every change; `None` when there are too many classes.
pub(super) fn changes(old: &Policy, new: &Policy, work: &Work) -> Option<Vec<Change>> {
    let ports = ports(old, new);
    let mut lines: BTreeMap<Line, Vec<&Ports>> = BTreeMap::new();
    for (said, ports) in &ports.classes {
        for line in of_ports(old, new, said, ports.sample()?, work)? {
            lines.entry(line).or_default().push(ports);
        }
    }
    let change = |((key, addresses, who, everyone), parts): (Line, Vec<&Ports>)| {
        let (effect, what, was, now) = key;
        let ports = ports.union(&parts);
        Change { effect, inbound: false, ports, addresses, who, everyone, what, was, now }
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

/// The changes on ports that are all alike, by one of them.
fn of_ports(
    old: &Policy,
    new: &Policy,
    said: &[Numbered],
    port: u16,
    work: &Work,
) -> Option<Vec<Line>> {
    let mut sets: Vec<&AddressSet> = Vec::new();
    let mut hosts: BTreeSet<&Arc<str>> = BTreeSet::new();
    for (is_new, number) in said {
        let policy = if *is_new { new } else { old };
        let one = policy.destinations().get(usize::try_from(*number).ok()?)?;
        let entries = policy.outbound.class(one.action()).by_address.entries_of(*number);
        sets.extend(entries.filter_map(|entry| entry.addresses.as_deref()));
        hosts.extend(one.hosts());
    }
    let addresses = space::addresses(&sets, work)?;
    let names: Vec<Option<&Arc<str>>> =
        [None].into_iter().chain(hosts.into_iter().map(Some)).collect();
    let servers = std::cell::RefCell::new(Servers { old, new, work, known: HashMap::new() });
    let judge = |address: &AddressClass, name: usize| {
        let table = Called(names.get(name).copied().flatten().map(|name| &**name));
        let was = old.outbound(address.sample, port, &table);
        let now = new.outbound(address.sample, port, &table);
        Some(differences(&was, &now, &mut servers.borrow_mut()))
    };
    let grouped = gather(&addresses, names.len(), work, judge)?;
    if servers.borrow().known.values().any(Option::is_none) {
        return None;
    }
    let lines = grouped.into_iter().map(|(key, networks, some)| {
        let who = some.iter().filter_map(|n| {
            Some(names.get(*n)?.map_or(Who::NoName, |name| Who::Name(Arc::clone(name))))
        });
        (key, networks, who.collect(), some.len() == names.len())
    });
    Some(lines.collect())
}

/// All in which two verdicts differ.
fn differences(
    was: &OutboundDecision,
    now: &OutboundDecision,
    servers: &mut Servers<'_>,
) -> Vec<Key> {
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
        if let Some((gained, lost)) = servers.between(from, to) {
            if !gained.is_empty() {
                note(Effect::Loosens, What::ServersGained(gained.clone()));
            }
            if !lost.is_empty() {
                note(Effect::Tightens, What::ServersLost(lost.clone()));
            }
        }
        if from.tunnel_reuse() != to.tunnel_reuse() {
            note(Effect::Changes, What::TunnelReuse);
        }
    }
    found
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
    /// By the destinations themselves, for several may stand on one line; `None` where it was too
    /// much work.
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
            Some((classes.describe(&gained), classes.describe(&lost)))
        };
        self.known.entry([from, to].map(Arc::as_ptr)).or_insert_with(compare).as_ref()
    }
}
