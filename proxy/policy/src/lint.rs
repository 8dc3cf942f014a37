//! What only shows when the file is seen whole: rules that decide nothing, and mistakes that
//! would be silent.

mod overlap;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use pillion_certs::spiffe::SpiffeId;

use super::compile::Policy;
use super::diagnostic::{Kind, Sink};
use super::identity::IdentitySet;
use super::index::{Entry, Query, RuleIndex, Work};
use super::model::{Destination, File, Inbound, Rule};
use super::{Action, Enforcement, Mode, OutboundAction};

/// Protocols whose server speaks first: there is no ClientHello to wait for.
pub(super) const SERVER_FIRST: [u16; 5] = [25, 110, 143, 3306, 587];
/// How many denies are tried as the one that shadows a rule. More is more than a person wrote.
const MOST_CANDIDATES: usize = 64;

/// The steps that a file's rules may take to be compared: well under a second.
pub(super) const MOST_STEPS: usize = 500_000;

/// The whole file, and what may still be spent on looking at it.
struct Lint<'f> {
    file: &'f File,
    policy: &'f Policy,
    work: Work,
    /// Every port's mode is `disable`.
    all_plain: bool,
    /// Some port's mode is `permissive`.
    some_permissive: bool,
}

/// Looks at the file, which `policy` was compiled from, for `steps` at most.
pub(super) fn check(file: &File, policy: &Policy, steps: usize, sink: &mut Sink<'_>) {
    let lint = Lint {
        file,
        policy,
        work: Work::new(steps),
        all_plain: file.inbound.mtls.is_some()
            && file.inbound.modes().all(|mode| mode == Mode::Disable),
        some_permissive: file.inbound.modes().any(|mode| mode == Mode::Permissive),
    };
    server_first(&file.inbound, sink);
    lint.rules(sink);
    lint.destinations(sink);
    lint.overlaps(sink);
}

impl Lint<'_> {
    fn rules(&self, sink: &mut Sink<'_>) {
        let (inbound, policy) = (&self.file.inbound, self.policy);
        let hashing = RandomState::new();
        // By hash alone: two unequal rules of one hash would only leave a mistake unseen.
        let mut earlier: HashMap<u64, u32> = HashMap::new();
        for (number, rule) in (0..).zip(&inbound.rules) {
            let entries: Vec<&Entry> = class(policy, rule).entries_of(number).collect();
            if let Some(why) =
                self.never_matches(rule, &entries).or_else(|| self.shadowed(rule, &entries))
            {
                unreachable(sink, rule.pos, &rule.name, &why);
                continue;
            }
            let key = hashing.hash_one((rule.action, rule.ports.as_deref(), &entries));
            let first = earlier.get(&key).and_then(|first| {
                let other = rule_at(inbound, *first)?;
                let same = other.action == rule.action
                    && other.ports == rule.ports
                    && class(policy, other).entries_of(*first).eq(entries.iter().copied());
                same.then_some(other)
            });
            match first {
                // Of an enforced rule and an audit rule it is the audit rule that says nothing,
                // whichever comes first.
                Some(first) if first.mode == Enforcement::Enforce || first.mode == rule.mode => {
                    let why =
                        format!("rule \"{}\" before it matches the same and does it", first.name);
                    unreachable(sink, rule.pos, &rule.name, &why);
                }
                Some(first) => {
                    let why =
                        format!("the enforced rule \"{}\" matches the same and does it", rule.name);
                    unreachable(sink, first.pos, &first.name, &why);
                    earlier.insert(key, number);
                }
                None => drop(earlier.insert(key, number)),
            }
            self.warn(rule, &entries, sink);
        }
    }
}

fn rule_at(inbound: &Inbound, number: u32) -> Option<&Rule> {
    inbound.rules.get(usize::try_from(number).ok()?)
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

impl Lint<'_> {
    /// Whether no entry of the rule can match any connection.
    fn never_matches(&self, rule: &Rule, entries: &[&Entry]) -> Option<String> {
        if entries.iter().all(|entry| entry.addresses.as_ref().is_some_and(|set| set.is_empty())) {
            return Some("its exceptions leave no address".to_owned());
        }
        let plain = match &rule.ports {
            Some(ports) => {
                ports.iter().all(|port| self.file.inbound.mode(*port) == Some(Mode::Disable))
            }
            None => self.all_plain,
        };
        (plain && entries.iter().all(|entry| entry.identities.is_some())).then(|| {
            "it asks for an identity, and its ports are mtls: disable, where no peer has one"
                .to_owned()
        })
    }

    /// Whether the file's denials act. Under `enforcement: audit` they are lifted, and so leave
    /// other rules all that they had.
    fn denies(&self) -> bool {
        self.file.enforcement == Enforcement::Enforce
    }

    /// The enforced deny that leaves an allow rule nothing.
    fn shadowed(&self, rule: &Rule, entries: &[&Entry]) -> Option<String> {
        let denies = &self.policy.inbound.deny;
        if rule.action == Action::Deny || denies.is_empty() || !self.denies() {
            return None;
        }
        // A deny that covers the rule matches any one connection that the rule does.
        let candidates = self.candidates(denies, rule.ports.as_deref(), entries.first()?);
        let covers = |number: u32| {
            let deny = rule_at(&self.file.inbound, number)?;
            let all = self.covers_ports(deny.ports.as_ref(), rule.ports.as_ref())
                && self.covers_entries(denies.entries_of(number), entries);
            all.then(|| format!("the enforced deny \"{}\" takes all that it matches", deny.name))
        };
        candidates.into_iter().find_map(covers)
    }

    /// Rules of `index` that match one connection that `entry` matches.
    fn candidates(&self, index: &RuleIndex, ports: Option<&[u16]>, entry: &Entry) -> Vec<u32> {
        let address = match &entry.addresses {
            Some(set) => set.first(),
            // What covers every address has this one, too.
            None => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        };
        let pattern = entry.identities.as_ref().and_then(|set| set.iter().next());
        let identity = pattern.and_then(|pattern| pattern.sample().parse::<SpiffeId>().ok());
        let Some(address) = address else { return Vec::new() };
        let port = ports.and_then(|ports| ports.first()).copied();
        let query = Query { address, port: port.unwrap_or(0), identity: identity.as_ref() };
        index.some(&query, port.is_none(), MOST_CANDIDATES, &self.work)
    }

    fn covers_ports(&self, wide: Option<&Arc<[u16]>>, narrow: Option<&Arc<[u16]>>) -> bool {
        match (wide, narrow) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wide), Some(narrow)) => {
                Arc::ptr_eq(wide, narrow)
                    || (self.work.spend(narrow.len())
                        && narrow.iter().all(|p| wide.binary_search(p).is_ok()))
            }
        }
    }

    fn covers_entries<'e>(
        &self,
        wide: impl Iterator<Item = &'e Entry> + Clone,
        narrow: &[&Entry],
    ) -> bool {
        narrow.iter().all(|n| wide.clone().any(|w| self.covers(w, n)))
    }

    /// Whether every connection of `narrow` is provably one of `wide`.
    fn covers(&self, wide: &Entry, narrow: &Entry) -> bool {
        let length = |e: &Entry| e.identities.as_ref().map_or(0, IdentitySet::len);
        let (ours, theirs) = (length(wide), length(narrow));
        // Long lists are only compared item by item.
        let identities = ours.saturating_mul(theirs).min(4096).max(ours.min(theirs));
        let addresses = narrow.addresses.as_ref().map_or(0, |set| set.len());
        if !self.work.spend(addresses.saturating_add(identities).saturating_add(1)) {
            return false;
        }
        let addresses = match (&wide.addresses, &narrow.addresses) {
            (None, _) => true,
            (Some(wide), None) => wide.whole_families() == [true, true],
            (Some(wide), Some(narrow)) => wide.covers(narrow),
        };
        addresses
            && match (&wide.identities, &narrow.identities) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(wide), Some(narrow)) => wide.covers(narrow),
            }
    }
}

impl Lint<'_> {
    fn warn(&self, rule: &Rule, entries: &[&Entry], sink: &mut Sink<'_>) {
        let inbound = &self.file.inbound;
        if rule.action == Action::Allow && inbound.default == Some(Action::Allow) {
            let message = format!(
                "rule \"{}\" allows what defaultAction: allow lets through anyway; write \
             defaultAction: deny to make it count",
                rule.name
            );
            sink.add(Kind::AllowUnderDefaultAllow, rule.pos, message);
        }
        let on_permissive = match &rule.ports {
            Some(ports) => ports.iter().any(|port| inbound.mode(*port) == Some(Mode::Permissive)),
            None => self.some_permissive,
        };
        let mut from = rule.from.iter().zip(entries);
        if let (Action::Deny, true, Some((from, _))) =
            (rule.action, on_permissive, from.find(|(_, entry)| entry.identities.is_some()))
        {
            let message = format!(
                "rule \"{}\" denies an identity on a permissive port, and a peer that speaks \
             plaintext there has none to deny; make the port strict or deny its addresses",
                rule.name
            );
            sink.add(Kind::DenyIdentityOnPermissive, from.pos, message);
        }
        if rule.action == Action::Allow {
            let open =
                rule.from.iter().zip(entries).filter(|(_, entry)| entry.identities.is_none());
            for (from, entry) in open {
                let blocks = from.blocks.as_deref().unwrap_or_default();
                let mut named: Vec<_> = blocks.iter().filter(|b| b.net.prefix_len() == 0).collect();
                let whole = entry.addresses.as_ref().map_or([false; 2], |set| set.whole_families());
                // In several parts it is as open.
                if named.is_empty() && whole.contains(&true) {
                    named.extend(blocks.first());
                }
                for block in named {
                    let net = block.net;
                    let message = if !block.except.is_empty() && net.prefix_len() == 0 {
                        format!(
                            "{net} is every address but its exceptions and no identity is asked \
                             for; add identities or name the networks that are meant"
                        )
                    } else {
                        let what = if net.prefix_len() == 0 {
                            net.to_string()
                        } else {
                            "this list".to_owned()
                        };
                        format!(
                            "{what} is every address and no identity is asked for; add identities, \
                             or write {{any: true}} if everyone is meant"
                        )
                    };
                    sink.add(Kind::OpenToAll, block.pos, message);
                }
            }
        }
    }

    /// Destinations that a stricter one, or an equal one before them, leaves nothing.
    fn destinations(&self, sink: &mut Sink<'_>) {
        let list = &self.file.outbound.destinations;
        let mut by_host: HashMap<&str, Vec<u32>> = HashMap::new();
        for (number, one) in (0..).zip(list) {
            for host in &one.hosts {
                by_host.entry(host).or_default().push(number);
            }
        }
        let everywhere = (0..).zip(list).filter(|(n, d)| is_everywhere(self.policy, d.action, *n));
        let everywhere: Vec<u32> = everywhere.map(|(n, _)| n).take(MOST_CANDIDATES).collect();
        for (number, one) in (0..).zip(list) {
            let entry = entry_of(self.policy, one.action, number);
            if one.hosts.is_empty()
                && entry.and_then(|e| e.addresses.as_ref()).is_some_and(|set| set.is_empty())
            {
                unreachable(sink, one.pos, &one.name, "its exceptions leave no address");
                continue;
            }
            let candidates: Vec<u32> = match (one.hosts.first(), entry) {
                (Some(host), _) => {
                    let list = by_host.get(&**host).map(Vec::as_slice).unwrap_or_default();
                    let by_name = list.iter().take(MOST_CANDIDATES);
                    by_name.chain(&everywhere).copied().collect()
                }
                (None, Some(entry)) => {
                    let stricter = [OutboundAction::Deny, OutboundAction::Mtls]
                        .into_iter()
                        .filter(|action| *action < one.action);
                    let classes =
                        stricter.chain([one.action]).map(|a| self.policy.outbound.class(a));
                    let ports = one.ports.as_deref();
                    let found =
                        classes.flat_map(|class| self.candidates(&class.by_address, ports, entry));
                    found.collect()
                }
                (None, None) => Vec::new(),
            };
            let others = candidates.into_iter().filter(|other| *other != number);
            let mut others =
                others.filter_map(|other| Some((other, list.get(usize::try_from(other).ok()?)?)));
            if let Some((_, wide)) = others.find(|other| self.takes_all(*other, (number, one))) {
                let why = format!("destination \"{}\" takes all that it matches", wide.name);
                unreachable(sink, one.pos, &one.name, &why);
            }
        }
    }

    /// Whether destination `wide` decides for all that `one` matches.
    fn takes_all(
        &self,
        (other, wide): (u32, &Destination),
        (number, one): (u32, &Destination),
    ) -> bool {
        let stricter =
            wide.action < one.action && (self.denies() || wide.action != OutboundAction::Deny);
        let before = wide.action == one.action && other < number;
        (stricter || before)
            && self.covers_match((other, wide), (number, one))
            && (stricter
                || same_match(self.policy, [(other, wide), (number, one)])
                || (one.action == OutboundAction::Mtls
                    && (one.tunnel_reuse != wide.tunnel_reuse
                        || !self.same_servers(other, number))))
    }

    /// Whether destination `wide` matches all that `one` does.
    fn covers_match(
        &self,
        (other, wide): (u32, &Destination),
        (number, one): (u32, &Destination),
    ) -> bool {
        let hosts = one.hosts.len().saturating_mul(wide.hosts.len());
        if !self.work.spend(hosts.saturating_mul(2).saturating_add(1)) {
            return false;
        }
        let everywhere = is_everywhere(self.policy, wide.action, other);
        self.covers_ports(wide.ports.as_ref(), one.ports.as_ref())
            && (everywhere || one.hosts.iter().all(|host| wide.hosts.contains(host)))
            && match (
                entry_of(self.policy, wide.action, other),
                entry_of(self.policy, one.action, number),
            ) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(wide), Some(narrow)) => self.covers(wide, narrow),
            }
    }
}

/// Whether its `ipBlocks` are every address of both families, and so every name's.
fn is_everywhere(policy: &Policy, action: OutboundAction, number: u32) -> bool {
    let set = entry_of(policy, action, number).and_then(|entry| entry.addresses.as_ref());
    set.is_some_and(|set| set.whole_families() == [true, true])
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
