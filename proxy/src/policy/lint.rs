//! What only shows when the file is seen whole: rules that decide nothing, and mistakes that
//! would be silent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use pillion_certs::spiffe::SpiffeId;

use super::compile::Policy;
use super::diagnostic::{Kind, Sink};
use super::index::{Entry, Query, RuleIndex};
use super::model::{Destination, File, Inbound, Rule};
use super::{Action, Enforcement, Mode, OutboundAction};

/// Protocols whose server speaks first: there is no ClientHello to wait for.
pub(super) const SERVER_FIRST: [u16; 5] = [25, 110, 143, 3306, 587];
/// How many denies are tried as the one that shadows a rule. More is more than a person wrote.
const MOST_CANDIDATES: usize = 64;

/// What a rule does to what, so that equal rules are equal.
type Match<'r> = (Action, Option<&'r [u16]>, Vec<&'r Entry>);

pub(super) fn check(file: &File, policy: &Policy, sink: &mut Sink<'_>) {
    let inbound = &file.inbound;
    server_first(inbound, sink);
    let mut earlier: HashMap<Match<'_>, (&Rule, Enforcement)> = HashMap::new();
    for (number, rule) in (0..).zip(&inbound.rules) {
        let entries: Vec<&Entry> = class(policy, rule).entries_of(number).collect();
        if let Some(why) = never_matches(inbound, rule, &entries)
            .or_else(|| shadowed(policy, inbound, rule, &entries))
        {
            unreachable(sink, rule.pos, &rule.name, &why);
            continue;
        }
        let key = (rule.action, rule.ports.as_deref(), entries);
        match earlier.get(&key) {
            // An enforced rule decides where an audit rule before it only reports.
            Some((first, mode)) if *mode == Enforcement::Enforce || *mode == rule.mode => {
                let why = format!("rule \"{}\" before it matches the same and does it", first.name);
                unreachable(sink, rule.pos, &rule.name, &why);
            }
            _ => drop(earlier.insert(key, (rule, rule.mode))),
        }
        warn(inbound, rule, sink);
    }
    destinations(file, policy, sink);
}

fn class<'p>(policy: &'p Policy, rule: &Rule) -> &'p RuleIndex {
    policy.inbound.class(rule.action, rule.mode)
}

fn unreachable(sink: &mut Sink<'_>, pos: super::yaml::Pos, name: &str, why: &str) {
    let message = format!("\"{name}\" can never decide anything: {why}; mend or remove it");
    sink.add(Kind::UnreachableRule, pos, message);
}

/// `permissive` on a port of the file whose protocol it breaks. Ports that the file doesn't name
/// are taken for ones where nothing listens.
fn server_first(inbound: &Inbound, sink: &mut Sink<'_>) {
    let mut note = |port: u16, pos| {
        let message = format!(
            "port {port} is permissive, and there the server speaks first: nothing would come to \
             tell TLS by; write ports: {{{port}: {{mtls: strict}}}} or disable"
        );
        sink.add(Kind::PermissiveServerFirst, pos, message);
    };
    for port in SERVER_FIRST {
        if inbound.mode(port) != Some(Mode::Permissive) {
            continue;
        }
        if let Some(listed) = inbound.ports.get(&port) {
            note(port, listed.pos);
            continue;
        }
        let listing = |rule: &&Rule| rule.ports.as_ref().is_some_and(|list| list.contains(&port));
        if let Some(rule) = inbound.rules.iter().find(listing) {
            note(port, rule.ports_pos);
        }
    }
}

/// Whether no entry of the rule can match any connection.
fn never_matches(inbound: &Inbound, rule: &Rule, entries: &[&Entry]) -> Option<String> {
    if entries.iter().all(|entry| entry.addresses.as_ref().is_some_and(|set| set.is_empty())) {
        return Some("its exceptions leave no address".to_owned());
    }
    let plain = |mode: Option<Mode>| mode == Some(Mode::Disable);
    let plain = match &rule.ports {
        Some(ports) => ports.iter().all(|port| plain(inbound.mode(*port))),
        None => {
            plain(inbound.mtls.as_ref().map(|m| m.value))
                && inbound.ports.values().all(|mode| plain(Some(mode.value)))
        }
    };
    (plain && entries.iter().all(|entry| entry.identities.is_some())).then(|| {
        "it asks for an identity, and its ports are mtls: disable, where no peer has one".to_owned()
    })
}

/// The enforced deny that leaves an allow rule nothing.
fn shadowed(policy: &Policy, inbound: &Inbound, rule: &Rule, entries: &[&Entry]) -> Option<String> {
    let denies = &policy.inbound.deny;
    if rule.action == Action::Deny || denies.is_empty() {
        return None;
    }
    // A deny that covers the rule matches any one connection that the rule does.
    let candidates = candidates(denies, rule.ports.as_deref(), entries.first()?);
    let covers = |number: u32| {
        let deny = inbound.rules.get(usize::try_from(number).ok()?)?;
        let all = covers_ports(deny.ports.as_ref(), rule.ports.as_ref())
            && covers_entries(denies.entries_of(number), entries);
        all.then(|| format!("the enforced deny \"{}\" takes all that it matches", deny.name))
    };
    candidates.into_iter().find_map(covers)
}

/// Rules of `index` that match one connection that `entry` matches.
fn candidates(index: &RuleIndex, ports: Option<&[u16]>, entry: &Entry) -> Vec<u32> {
    let address = match &entry.addresses {
        Some(set) => set.first(),
        // No deny by address covers every address of both families, but in one way: by /0s.
        None => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    let pattern = entry.identities.as_ref().and_then(|set| set.iter().next());
    let identity = pattern.and_then(|pattern| pattern.sample().parse::<SpiffeId>().ok());
    let Some(address) = address else { return Vec::new() };
    let port = ports.and_then(|ports| ports.first()).copied();
    let query = Query { address, port: port.unwrap_or(0), identity: identity.as_ref() };
    index.some(&query, port.is_none(), MOST_CANDIDATES)
}

fn covers_ports(wide: Option<&Arc<[u16]>>, narrow: Option<&Arc<[u16]>>) -> bool {
    match (wide, narrow) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => {
            Arc::ptr_eq(wide, narrow) || narrow.iter().all(|p| wide.binary_search(p).is_ok())
        }
    }
}

fn covers_entries<'e>(wide: impl Iterator<Item = &'e Entry> + Clone, narrow: &[&Entry]) -> bool {
    // Bounds what is quadratic; a file that reaches it isn't written by hand.
    if wide.clone().count().saturating_mul(narrow.len()) > 4096 {
        return false;
    }
    narrow.iter().all(|n| wide.clone().any(|w| covers(w, n)))
}

fn covers(wide: &Entry, narrow: &Entry) -> bool {
    let addresses = match (&wide.addresses, &narrow.addresses) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => wide.covers(narrow),
    };
    addresses
        && match (&wide.identities, &narrow.identities) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wide), Some(narrow)) => wide.covers(narrow),
        }
}

fn warn(inbound: &Inbound, rule: &Rule, sink: &mut Sink<'_>) {
    if rule.action == Action::Allow && inbound.default == Some(Action::Allow) {
        let message = format!(
            "rule \"{}\" allows what defaultAction: allow lets through anyway; write \
             defaultAction: deny to make it count",
            rule.name
        );
        sink.add(Kind::AllowUnderDefaultAllow, rule.pos, message);
    }
    let permissive = |mode: Option<Mode>| mode == Some(Mode::Permissive);
    let on_permissive = match &rule.ports {
        Some(ports) => ports.iter().any(|port| permissive(inbound.mode(*port))),
        None => {
            permissive(inbound.mtls.as_ref().map(|m| m.value))
                || inbound.ports.values().any(|mode| permissive(Some(mode.value)))
        }
    };
    if let (Action::Deny, true, Some(from)) =
        (rule.action, on_permissive, rule.from.iter().find(|from| from.identities.is_some()))
    {
        let message = format!(
            "rule \"{}\" denies an identity on a permissive port, and a peer that speaks \
             plaintext there has none to deny; make the port strict or deny its addresses",
            rule.name
        );
        sink.add(Kind::DenyIdentityOnPermissive, from.pos, message);
    }
    if rule.action == Action::Allow {
        for from in rule.from.iter().filter(|from| from.identities.is_none()) {
            for block in from.blocks.iter().flatten().filter(|b| b.net.prefix_len() == 0) {
                let message = format!(
                    "{} is every address and no identity is asked for; add identities, or write \
                     {{any: true}} if everyone is meant",
                    block.net
                );
                sink.add(Kind::OpenToAll, block.pos, message);
            }
        }
    }
}

/// Destinations that a stricter one, or an equal one before them, leaves nothing.
fn destinations(file: &File, policy: &Policy, sink: &mut Sink<'_>) {
    let list = &file.outbound.destinations;
    let mut by_host: HashMap<&str, Vec<u32>> = HashMap::new();
    for (number, one) in (0..).zip(list) {
        for host in &one.hosts {
            by_host.entry(host).or_default().push(number);
        }
    }
    for (number, one) in (0..).zip(list) {
        let entry = entry_of(policy, one.action, number);
        if one.hosts.is_empty()
            && entry.and_then(|e| e.addresses.as_ref()).is_some_and(|set| set.is_empty())
        {
            unreachable(sink, one.pos, &one.name, "its exceptions leave no address");
            continue;
        }
        let candidates: Vec<u32> = match (one.hosts.first(), entry) {
            (Some(host), _) => {
                let list = by_host.get(&**host).map(Vec::as_slice).unwrap_or_default();
                list.iter().copied().take(MOST_CANDIDATES).collect()
            }
            (None, Some(entry)) => {
                let stricter = [OutboundAction::Deny, OutboundAction::Mtls]
                    .into_iter()
                    .filter(|action| *action < one.action);
                let classes = stricter.chain([one.action]).map(|a| policy.outbound.class(a));
                let ports = one.ports.as_deref();
                classes.flat_map(|class| candidates(&class.by_address, ports, entry)).collect()
            }
            (None, None) => Vec::new(),
        };
        let cover = candidates.into_iter().filter(|other| *other != number).find_map(|other| {
            let wide = list.get(usize::try_from(other).ok()?)?;
            let wins = wide.action < one.action
                || (wide.action == one.action
                    && other < number
                    && same_match(policy, [(other, wide), (number, one)]));
            let all = wins
                && covers_ports(wide.ports.as_ref(), one.ports.as_ref())
                && one.hosts.iter().all(|host| wide.hosts.contains(host))
                && match (entry_of(policy, wide.action, other), entry) {
                    (_, None) => true,
                    (None, Some(_)) => false,
                    (Some(wide), Some(narrow)) => covers(wide, narrow),
                };
            all.then_some(wide)
        });
        if let Some(wide) = cover {
            let why = format!("destination \"{}\" takes all that it matches", wide.name);
            unreachable(sink, one.pos, &one.name, &why);
        }
    }
}

fn entry_of(policy: &Policy, action: OutboundAction, number: u32) -> Option<&Entry> {
    policy.outbound.class(action).by_address.entries_of(number).next()
}

/// Whether two destinations of one action match exactly the same.
fn same_match(policy: &Policy, pair: [(u32, &Destination); 2]) -> bool {
    let [(first, one), (second, other)] = pair;
    let within = |a: &Destination, b: &Destination| a.hosts.iter().all(|h| b.hosts.contains(h));
    one.ports == other.ports
        && entry_of(policy, one.action, first) == entry_of(policy, other.action, second)
        && within(one, other)
        && within(other, one)
}
