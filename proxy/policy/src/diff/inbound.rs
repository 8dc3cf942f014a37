//! Connections to this pod, by source, port and peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use pillion_certs::spiffe::{SpiffeId, TrustDomain};

use super::identities::IdentityClasses;
use super::outbound::gather;
use super::space::{self, AddressClass, ByPort, Numbered, PortClasses, Ports};
use super::{Change, Effect, Outcome, What, Who};
use crate::address::AddressSet;
use crate::index::{Entry, Work};
use crate::{Decision, InboundConn, Mode, Policy};

/// What both files say of a port: the rules that list it, the modes, the probes.
type Said = (Vec<Numbered>, [Mode; 2], [Vec<Box<str>>; 2]);

/// What a peer comes with.
enum Peer<'p> {
    Plaintext,
    Probe(&'p str),
    Identity(&'p SpiffeId),
}

/// Which verdict differs how, and what goes before it: what lines are grouped by.
type Key = (Effect, What, Outcome, Outcome);

/// Every change of a verdict; `None` when there are too many classes.
pub(super) fn changes(old: &Policy, new: &Policy, work: &Work) -> Option<Vec<Change>> {
    let ports = ports(old, new);
    let mut lines: BTreeMap<_, Vec<&Ports>> = BTreeMap::new();
    for (said, ports) in &ports.classes {
        for (key, addresses, who, everyone) in of_ports(old, new, said, ports.sample()?, work)? {
            lines.entry((key, addresses, who, everyone)).or_default().push(ports);
        }
    }
    let change = |((key, addresses, who, everyone), parts): (_, Vec<&Ports>)| {
        let (effect, what, was, now): Key = key;
        let ports = ports.union(&parts);
        let told = false;
        Change { effect, inbound: true, ports, addresses, who, everyone, what, was, now, told }
    };
    Some(lines.into_iter().map(change).collect())
}

/// The ports of both files, by all that they say of them.
fn ports(old: &Policy, new: &Policy) -> PortClasses<Said> {
    let both = [(false, old), (true, new)];
    let mut listed: BTreeSet<u16> = BTreeSet::new();
    let (mut by_port, mut all) = (ByPort::new(), Vec::new());
    for (is_new, policy) in both {
        listed.extend(policy.inbound.ports.iter().map(|(port, _)| *port));
        listed.extend(policy.inbound.probes.iter().map(|(port, _)| *port));
        for (number, rule) in (0..).zip(policy.rules()) {
            match rule.ports() {
                None => all.push((is_new, number)),
                Some(ports) => {
                    listed.extend(ports);
                    for port in ports {
                        by_port.entry(*port).or_default().push((is_new, number));
                    }
                }
            }
        }
    }
    let modes = |port| [old.inbound_mode(port), new.inbound_mode(port)];
    let probes = |port| [old, new].map(|policy| policy.probe(port).map(Box::from).collect());
    let said = listed.into_iter().map(|port| {
        let mut rules = by_port.remove(&port).unwrap_or_default();
        rules.extend(&all);
        rules.sort_unstable();
        (port, (rules, modes(port), probes(port)))
    });
    let said = said.collect();
    all.sort_unstable();
    PortClasses::new(said, (all, [old.inbound.mtls, new.inbound.mtls], Default::default()))
}

type Line = (Key, Vec<ipnet::IpNet>, Vec<Who>, bool);

/// The changes on ports that are all alike, by one of them.
fn of_ports(old: &Policy, new: &Policy, said: &Said, port: u16, work: &Work) -> Option<Vec<Line>> {
    let (rules, _, probes) = said;
    let entries = rules.iter().flat_map(|(is_new, number)| {
        let policy = if *is_new { new } else { old };
        entries_of(policy, *number)
    });
    let entries: Vec<&Entry> = entries.collect();
    let sets: Vec<&AddressSet> = entries.iter().filter_map(|e| e.addresses.as_deref()).collect();
    let addresses = space::addresses(&sets, work)?;
    let patterns = entries.iter().filter_map(|e| e.identities.as_ref());
    let patterns: BTreeSet<Arc<str>> = patterns.flat_map(|set| set.texts()).collect();
    let identities = IdentityClasses::new(&patterns, &domains(old, new), work)?;
    let paths: BTreeSet<&str> = probes.iter().flatten().map(|path| &**path).collect();
    let stranger = stranger(old, new)?;
    let peers: Vec<Peer<'_>> = [Peer::Plaintext, Peer::Identity(&stranger)]
        .into_iter()
        .chain(paths.iter().map(|path| Peer::Probe(path)))
        .chain(identities.classes.iter().map(|class| Peer::Identity(&class.sample)))
        .collect();
    let before_identities = paths.len().saturating_add(2);

    let differ = |address: &AddressClass, peer: &Peer<'_>| {
        let (was, now) = (
            admission(old, address.sample, port, peer),
            admission(new, address.sample, port, peer),
        );
        let rank = |outcome: &Outcome| outcome.verdict == "allow";
        (was != now).then(|| (Effect::of(rank(&was), rank(&now)), What::Verdict, was, now))
    };
    let grouped = gather(&addresses, work, |address| {
        work.spend(peers.len()).then_some(())?;
        let keys = (0..).zip(&peers).filter_map(|(n, peer)| Some((differ(address, peer)?, n)));
        Some(keys.collect::<Vec<(Key, usize)>>())
    })?;
    let lines = grouped.into_iter().map(|(key, networks, some)| {
        let everyone = some.len() == peers.len();
        let mut who: Vec<Who> = Vec::new();
        who.extend(some.iter().filter_map(|n| match peers.get(*n)? {
            Peer::Plaintext => Some(Who::Plaintext),
            Peer::Probe(path) => Some(Who::Probe(Box::from(*path))),
            Peer::Identity(id) => (**id == stranger).then_some(Who::Stranger),
        }));
        let classes = some.iter().filter_map(|n| n.checked_sub(before_identities)).collect();
        let described = identities.describe(&classes, work)?;
        who.extend(described.into_iter().map(Who::Identities));
        Some((key, networks, who, everyone))
    });
    lines.collect()
}

fn entries_of(policy: &Policy, number: u32) -> impl Iterator<Item = &Entry> {
    let rule = usize::try_from(number).ok().and_then(|n| policy.rules().get(n));
    let class = rule.map(|rule| policy.inbound.class(rule.action(), rule.enforcement()));
    class.into_iter().flat_map(move |class| class.entries_of(number))
}

/// The domains that either file accepts.
pub(super) fn domains<'p>(old: &'p Policy, new: &'p Policy) -> BTreeSet<&'p str> {
    [old, new].into_iter().flat_map(Policy::trust_domains).map(TrustDomain::as_str).collect()
}

/// An identity of a domain that neither file accepts.
fn stranger(old: &Policy, new: &Policy) -> Option<SpiffeId> {
    let taken = domains(old, new);
    let domain = (0..).map(|n: u32| format!("other{n}")).find(|name| !taken.contains(&**name))?;
    format!("spiffe://{domain}/any").parse().ok()
}

/// What the proxy does with a connection, in its order: by address, by TLS, by the rules.
fn admission(policy: &Policy, source: IpAddr, port: u16, peer: &Peer<'_>) -> Outcome {
    let outcome = |allow, rule, reported| Outcome {
        verdict: if allow { "allow" } else { "deny" },
        rule,
        reported,
    };
    let other = |rule| outcome(false, Arc::from(rule), None);
    let judged = |d: Decision| outcome(d.allow, d.rule, d.shadow.map(|s| (s.allow, s.rule)));
    if let Some(denied) = policy.inbound_by_address(source, port) {
        return outcome(false, denied.rule, None);
    }
    let mode = policy.inbound_mode(port);
    let identity = match peer {
        _ if mode == Mode::Disable => None,
        Peer::Probe(path) if policy.probe(port).any(|listed| listed == *path) => {
            return judged(policy.inbound_probe(source, port));
        }
        Peer::Plaintext | Peer::Probe(_) if mode == Mode::Strict => return other("mtls"),
        Peer::Plaintext | Peer::Probe(_) => None,
        Peer::Identity(id) if !policy.accepts_trust_domain(id.trust_domain()) => {
            return other("trustDomains");
        }
        Peer::Identity(id) => Some(*id),
    };
    judged(policy.inbound(&InboundConn { source, port, identity }))
}
