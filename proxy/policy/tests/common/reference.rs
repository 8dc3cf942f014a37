//! What a file means, sentence by sentence of docs/policy.md: slow, and obvious.

use std::net::IpAddr;

use super::OWN;
use super::written::{Block, Destination, Entry, File, Mode, Rule, Way};

/// A verdict, what decided, and what would have been reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub allow: bool,
    pub rule: String,
    pub shadow: Option<(bool, String)>,
}

/// The same, outbound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub way: Way,
    pub rule: String,
    pub shadow: Option<(bool, String)>,
}

/// The destinations that a connection's address and names fall under, and the whole file.
pub struct Reference<'f> {
    pub file: &'f File,
    /// Whether our own trust domain is known.
    pub own_known: bool,
}

/// An address, or a network's, as its family and a number of that many bits.
fn number(ip: IpAddr) -> (bool, u32, u128) {
    match ip {
        IpAddr::V4(v4) => (true, 32, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => number(IpAddr::V4(v4)),
            None => (false, 128, u128::from(v6)),
        },
    }
}

/// Whether an address is in a CIDR as it is written: the bits above the prefix are the same.
pub fn in_cidr(cidr: &str, ip: IpAddr) -> bool {
    let (network, prefix) = cidr.split_once('/').map_or((cidr, None), |(a, p)| (a, Some(p)));
    let network: IpAddr = network.parse().unwrap();
    let written = if network.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(written, |text| text.parse().unwrap());
    let ((v4, bits, base), (is_v4, _, at)) = (number(network), number(ip));
    // Of a mapped network the 96 bits before the IPv4 address are gone.
    let free = bits - (prefix - (written - bits));
    v4 == is_v4 && (free == 128 || base >> free == at >> free)
}

fn in_blocks(blocks: &[Block], ip: IpAddr) -> bool {
    let has = |block: &Block| {
        in_cidr(&block.cidr, ip) && !block.except.iter().any(|inner| in_cidr(inner, ip))
    };
    blocks.iter().any(has)
}

/// Segment by segment, from the end of the pattern where it has `**`.
pub fn is_meant(pattern: &str, id: &str, own_known: bool) -> bool {
    let full = match pattern.split_once('/') {
        Some(_) if pattern.starts_with("spiffe://") => pattern.to_owned(),
        Some((ns, sa)) if own_known => format!("spiffe://{OWN}/ns/{ns}/sa/{sa}"),
        _ => return false,
    };
    let (pattern, id): (Vec<_>, Vec<_>) = (full.split('/').collect(), id.split('/').collect());
    let (head, long) = match pattern.strip_suffix(&["**"]) {
        Some(head) => (head, id.len() > head.len()),
        None => (&pattern[..], id.len() == pattern.len()),
    };
    long && head.iter().zip(&id).all(|(want, have)| *want == "*" || want == have)
}

fn has_port(ports: Option<&Vec<u16>>, port: u16) -> bool {
    ports.is_none_or(|list| list.contains(&port))
}

impl Reference<'_> {
    fn entry(&self, entry: &Entry, ip: IpAddr, id: Option<&str>) -> bool {
        let here = entry.blocks.as_ref().is_none_or(|blocks| in_blocks(blocks, ip));
        here && match (&entry.identities, id) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(list), Some(id)) => list.iter().any(|p| is_meant(p, id, self.own_known)),
        }
    }

    pub fn rule(&self, rule: &Rule, ip: IpAddr, port: u16, id: Option<&str>) -> bool {
        has_port(rule.ports.as_ref(), port) && rule.from.iter().any(|e| self.entry(e, ip, id))
    }

    /// Enforced denies, enforced allows, the default; with the audit rules among them if asked.
    fn decide(&self, ip: IpAddr, port: u16, id: Option<&str>, audit: bool) -> (bool, String) {
        for deny in [true, false] {
            for rule in &self.file.rules {
                if rule.deny == deny && (audit || !rule.audit) && self.rule(rule, ip, port, id) {
                    return (!deny, rule.name.clone());
                }
            }
        }
        (self.file.allow, "default".to_owned())
    }

    /// The verdict on a connection whose peer is known, TLS aside.
    pub fn inbound(&self, ip: IpAddr, port: u16, id: Option<&str>) -> Verdict {
        let (allow, rule) = self.decide(ip, port, id, false);
        if self.file.audit && !allow {
            return Verdict { allow: true, rule: "audit".to_owned(), shadow: Some((false, rule)) };
        }
        let with_audit = self.decide(ip, port, id, true);
        let shadow = (with_audit.0 != allow).then_some(with_audit);
        Verdict { allow, rule, shadow }
    }

    /// The denial that stands whoever the peer turns out to be: what denies without asking for an
    /// identity, or the default where no rule, an audit one included, and no probe may say more.
    pub fn by_address(&self, ip: IpAddr, port: u16) -> Option<String> {
        if self.file.audit {
            return None;
        }
        let denies = |rule: &&Rule| rule.deny && !rule.audit && self.rule(rule, ip, port, None);
        if let Some(rule) = self.file.rules.iter().find(denies) {
            return Some(rule.name.clone());
        }
        let here = |e: &Entry| e.blocks.as_ref().is_none_or(|blocks| in_blocks(blocks, ip));
        let may_allow = |rule: &Rule| {
            !rule.deny && has_port(rule.ports.as_ref(), port) && rule.from.iter().any(here)
        };
        let open = self.file.allow
            || self.file.rules.iter().any(may_allow)
            || self.file.probes.iter().any(|(on, _)| *on == port);
        (!open).then(|| "default".to_owned())
    }

    /// The verdict on a listed health probe: only a deny that asks for no identity denies it.
    pub fn probe(&self, ip: IpAddr, port: u16) -> Verdict {
        let deny = |audit: bool| {
            let mut rules = self.file.rules.iter().filter(|rule| rule.deny && rule.audit == audit);
            rules.find(|rule| self.rule(rule, ip, port, None)).map(|rule| rule.name.clone())
        };
        let (denied, reported) = (deny(false), deny(true));
        let would = |rule| Some((false, rule));
        let verdict = |allow, rule: &str, shadow| Verdict { allow, rule: rule.to_owned(), shadow };
        match (denied, reported) {
            (Some(rule), _) if self.file.audit => verdict(true, "audit", would(rule)),
            (Some(rule), _) => verdict(false, &rule, None),
            (None, reported) => verdict(true, "probes", reported.and_then(would)),
        }
    }

    pub fn mode(&self, port: u16) -> Mode {
        let listed = self.file.modes.iter().find(|(on, _)| *on == port);
        listed.map_or(self.file.mode, |(_, mode)| *mode)
    }

    pub fn accepts(&self, domain: &str) -> bool {
        match &self.file.domains {
            Some(list) => list.iter().any(|one| one == domain),
            None => self.own_known && domain == OWN,
        }
    }

    /// What becomes of a connection, in the order of the proxy: by address, by TLS ("tls"), by
    /// the rules.
    pub fn admission(&self, ip: IpAddr, port: u16, id: Option<&str>) -> Verdict {
        let denied = |rule: &str| Verdict { allow: false, rule: rule.to_owned(), shadow: None };
        if let Some(rule) = self.by_address(ip, port) {
            return denied(&rule);
        }
        match (self.mode(port), id) {
            (Mode::Strict, None) => denied("tls"),
            (Mode::Disable, _) => self.inbound(ip, port, None),
            (_, Some(id)) if !self.accepts(domain(id)) => denied("tls"),
            _ => self.inbound(ip, port, id),
        }
    }

    pub fn destination(&self, one: &Destination, ip: IpAddr, port: u16, names: &[&str]) -> bool {
        let named = one.hosts.iter().any(|host| names.contains(&&*host.to_ascii_lowercase()));
        has_port(one.ports.as_ref(), port) && (named || in_blocks(&one.blocks, ip))
    }

    /// The strictest that matches, the first of equals; `names` are those that have the address.
    pub fn outbound(
        &self,
        ip: IpAddr,
        port: u16,
        names: &[&str],
    ) -> (Outcome, Option<&Destination>) {
        let hits =
            || self.file.destinations.iter().filter(|d| self.destination(d, ip, port, names));
        let first = |way| hits().find(move |d| d.way == way);
        let denial = first(Way::Deny).map(|d| d.name.clone());
        let other = first(Way::Mtls).or_else(|| first(Way::Passthrough));
        let outcome = |way, rule: &str, shadow| Outcome { way, rule: rule.to_owned(), shadow };
        let default = !self.file.passthrough && denial.is_none() && other.is_none();
        let denial = denial.or_else(|| default.then(|| "default".to_owned()));
        match (denial, other) {
            (Some(rule), _) if !self.file.audit => (outcome(Way::Deny, &rule, None), None),
            (denial, Some(found)) => {
                let shadow = denial.map(|rule| (false, rule));
                (outcome(found.way, &found.name, shadow), Some(found))
            }
            (Some(rule), None) => (outcome(Way::Passthrough, "audit", Some((false, rule))), None),
            (None, None) => (outcome(Way::Passthrough, "default", None), None),
        }
    }
}

/// The trust domain of a SPIFFE ID.
pub fn domain(id: &str) -> &str {
    id.split('/').nth(2).unwrap()
}
