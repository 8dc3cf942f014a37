//! From a connection to a verdict.

use std::net::IpAddr;
use std::sync::Arc;

use pillion_certs::spiffe::{SpiffeId, TrustDomain};

use super::compile::{Destination, OutboundClass, Policy, Rule};
use super::index::{Query, RuleIndex};
use super::{Action, AppAddress, Enforcement, Mode};

/// What is known of an inbound connection when it is judged.
#[derive(Debug, Clone, Copy)]
pub struct InboundConn<'a> {
    /// The peer's address; never an IPv4-mapped one.
    pub source: IpAddr,
    /// The port that the workload listens on.
    pub port: u16,
    /// The peer's verified identity; `None` for plaintext.
    pub identity: Option<&'a SpiffeId>,
}

/// The verdict that is only reported: the denial that `enforcement: audit` lifted, or else what
/// the rules with `mode: audit` would have led to, where that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// Whether the connection would have been let through.
    pub allow: bool,
    /// What would have decided.
    pub rule: Arc<str>,
}

/// A verdict on an inbound connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is let through.
    pub allow: bool,
    /// The rule that decided; "default" for `defaultAction`; "audit" where `enforcement: audit`
    /// lifted a denial; "probes" for a health probe.
    pub rule: Arc<str>,
    /// What is to be reported.
    pub shadow: Option<Shadow>,
}

/// A verdict on an outbound connection. `rule` is as in [`Decision::rule`].
#[derive(Debug, Clone)]
pub enum OutboundDecision {
    /// It is refused.
    Deny {
        /// What decided.
        rule: Arc<str>,
    },
    /// It is carried over mTLS; if that fails it is closed.
    Mtls {
        /// What decided.
        rule: Arc<str>,
        /// Who may answer, and how.
        destination: Arc<Destination>,
        /// The denial that `enforcement: audit` lifted.
        shadow: Option<Shadow>,
    },
    /// It is carried as it is.
    Passthrough {
        /// What decided.
        rule: Arc<str>,
        /// The denial that `enforcement: audit` lifted.
        shadow: Option<Shadow>,
    },
}

/// The addresses of the names that `hosts` lists, resolved elsewhere.
pub trait HostTable {
    /// Whether `ip` is at present an address of `host`, which is one of [`Policy::hosts`].
    fn contains(&self, host: &str, ip: IpAddr) -> bool;
}

/// No name has an address.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHosts;

impl HostTable for NoHosts {
    fn contains(&self, _: &str, _: IpAddr) -> bool {
        false
    }
}

impl Policy {
    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first 64 bits of the SHA-256 of the file's text, in hex.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether the file's authorization acts or only reports.
    #[must_use]
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// How a port of the workload takes TLS.
    #[must_use]
    pub fn inbound_mode(&self, port: u16) -> Mode {
        let ports = &self.inbound.ports;
        let listed = ports.binary_search_by_key(&port, |(port, _)| *port).ok();
        listed.and_then(|at| ports.get(at)).map_or(self.inbound.mtls, |(_, mode)| *mode)
    }

    /// Whether peers of the domain are accepted. Without `trustDomains` and without an own domain
    /// nobody is.
    #[must_use]
    pub fn accepts_trust_domain(&self, domain: &TrustDomain) -> bool {
        self.trust_domains.contains(domain)
    }

    /// The accepted trust domains.
    #[must_use]
    pub fn trust_domains(&self) -> &[TrustDomain] {
        &self.trust_domains
    }

    /// The exact paths that a plaintext health probe may ask for on a port that is strict.
    pub fn probe(&self, port: u16) -> impl Iterator<Item = &str> {
        self.inbound.probes.iter().filter(move |(on, _)| *on == port).map(|(_, path)| &**path)
    }

    /// Where the application is reached.
    #[must_use]
    pub fn app_address(&self) -> AppAddress {
        self.inbound.app_address
    }

    /// Every name that a destination lists, once each, in lower case.
    #[must_use]
    pub fn hosts(&self) -> &[Arc<str>] {
        &self.outbound.hosts
    }

    /// The inbound rules, in the file's order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.inbound.rules
    }

    /// The destinations, in the file's order.
    #[must_use]
    pub fn destinations(&self) -> &[Arc<Destination>] {
        &self.outbound.destinations
    }

    /// The destinations with `hosts` on a port, the strictest first. Those by address alone cost
    /// nothing here, however many there are.
    pub fn destinations_by_name(&self, port: u16) -> impl Iterator<Item = &Arc<Destination>> {
        let numbers = self.outbound.classes.iter().flat_map(|class| &class.by_host);
        let get = |number: &u32| self.outbound.destinations.get(usize::try_from(*number).ok()?);
        numbers.filter_map(get).filter(move |one| one.has_port(port))
    }

    /// The denial that stands whatever identity the peer turns out to have, so that it can be
    /// refused before any work on TLS. `None`: the identity matters, to the verdict or to what an
    /// audit rule would report, or the connection may be a health probe, which needs no rule; ask
    /// [`Self::inbound`] once it is known.
    #[must_use]
    pub fn inbound_by_address(&self, source: IpAddr, port: u16) -> Option<Decision> {
        debug_assert!(!is_mapped(source), "IPv4-mapped addresses are made plain at the edge");
        let inbound = &self.inbound;
        if self.enforcement == Enforcement::Audit {
            return None;
        }
        let query = Query { address: source, port, identity: None };
        // A deny that matches without an identity asks for none, and so matches with any.
        if let Some(rule) = inbound.deny.first(&query) {
            return Some(Decision { allow: false, rule: self.rule_name(Some(rule)), shadow: None });
        }
        let open = inbound.default == Action::Allow
            || inbound.allow.could_match(source, port)
            || inbound.audit_allow.could_match(source, port)
            || self.probe(port).next().is_some();
        (!open).then(|| Decision { allow: false, rule: self.default_name.clone(), shadow: None })
    }

    /// Judges an inbound connection: enforced deny rules, enforced allow rules, `defaultAction`;
    /// then the same with the audit rules in, for [`Decision::shadow`]. A denial that
    /// `enforcement: audit` lifts is always the shadow, whatever audit rules say: it is what the
    /// file will do once it is enforced.
    #[must_use]
    pub fn inbound(&self, conn: &InboundConn<'_>) -> Decision {
        debug_assert!(!is_mapped(conn.source), "IPv4-mapped addresses are made plain at the edge");
        let query = Query { address: conn.source, port: conn.port, identity: conn.identity };
        let (allow, rule) = self.judge(&query, false);
        if !allow && self.enforcement == Enforcement::Audit {
            let shadow = Some(Shadow { allow: false, rule: self.rule_name(rule) });
            return Decision { allow: true, rule: self.audit_name.clone(), shadow };
        }
        let inbound = &self.inbound;
        let any_audit = !(inbound.audit_deny.is_empty() && inbound.audit_allow.is_empty());
        let (would, by) = if any_audit { self.judge(&query, true) } else { (allow, rule) };
        let shadow = (would != allow).then(|| Shadow { allow: would, rule: self.rule_name(by) });
        Decision { allow, rule: self.rule_name(rule), shadow }
    }

    /// Judges a health probe of a path that the policy lists for the port ([`Self::probe`]): it
    /// needs no rule to let it through, and a deny rule that asks for no identity denies it.
    #[must_use]
    pub fn inbound_probe(&self, source: IpAddr, port: u16) -> Decision {
        debug_assert!(!is_mapped(source), "IPv4-mapped addresses are made plain at the edge");
        let query = Query { address: source, port, identity: None };
        let denied = self.inbound.deny.first(&query);
        if denied.is_some() && self.enforcement == Enforcement::Enforce {
            return Decision { allow: false, rule: self.rule_name(denied), shadow: None };
        }
        let lifted = denied.is_some();
        let would = denied.or_else(|| self.inbound.audit_deny.first(&query));
        let shadow = would.map(|_| Shadow { allow: false, rule: self.rule_name(would) });
        let rule = if lifted { &self.audit_name } else { &self.probes_name };
        Decision { allow: true, rule: rule.clone(), shadow }
    }

    /// The verdict and the rule that decides it; `None` is the default.
    fn judge(&self, query: &Query<'_>, with_audit: bool) -> (bool, Option<u32>) {
        let inbound = &self.inbound;
        let first = |enforced: &RuleIndex, audit: &RuleIndex| {
            let audited = if with_audit { audit.first(query) } else { None };
            enforced.first(query).into_iter().chain(audited).min()
        };
        if let Some(rule) = first(&inbound.deny, &inbound.audit_deny) {
            return (false, Some(rule));
        }
        if let Some(rule) = first(&inbound.allow, &inbound.audit_allow) {
            return (true, Some(rule));
        }
        (inbound.default == Action::Allow, None)
    }

    fn rule_name(&self, rule: Option<u32>) -> Arc<str> {
        let rule = rule.and_then(|n| self.inbound.rules.get(usize::try_from(n).ok()?));
        rule.map_or_else(|| self.default_name.clone(), |rule| rule.name.clone())
    }

    /// Judges an outbound connection: the strictest destination that matches, else the default.
    /// Under `enforcement: audit` a denial is lifted and reported, and what is left decides: an
    /// mtls destination stays mtls.
    #[must_use]
    pub fn outbound(&self, dst: IpAddr, port: u16, hosts: &dyn HostTable) -> OutboundDecision {
        debug_assert!(!is_mapped(dst), "IPv4-mapped addresses are made plain at the edge");
        let query = Query { address: dst, port, identity: None };
        let [deny, mtls, passthrough] = &self.outbound.classes;
        let find = |class| self.destination(class, &query, hosts);
        let audit = self.enforcement == Enforcement::Audit;
        let mut shadow = None;
        if let Some(denied) = find(deny) {
            let rule = denied.name.clone();
            if !audit {
                return OutboundDecision::Deny { rule };
            }
            shadow = Some(Shadow { allow: false, rule });
        }
        if let Some(found) = find(mtls) {
            let (rule, destination) = (found.name.clone(), found.clone());
            return OutboundDecision::Mtls { rule, destination, shadow };
        }
        if let Some(found) = find(passthrough) {
            return OutboundDecision::Passthrough { rule: found.name.clone(), shadow };
        }
        let default = self.default_name.clone();
        if shadow.is_none() && self.outbound.default == Action::Deny {
            if !audit {
                return OutboundDecision::Deny { rule: default };
            }
            shadow = Some(Shadow { allow: false, rule: default.clone() });
        }
        let rule = if shadow.is_some() { self.audit_name.clone() } else { default };
        OutboundDecision::Passthrough { rule, shadow }
    }

    fn destination(
        &self,
        class: &OutboundClass,
        query: &Query<'_>,
        hosts: &dyn HostTable,
    ) -> Option<&Arc<Destination>> {
        let by_address = class.by_address.first(query).unwrap_or(u32::MAX);
        let get = |number| self.outbound.destinations.get(usize::try_from(number).ok()?);
        // Of two that match, the first of the file is named, whichever way it matched.
        let earlier = class.by_host.iter().take_while(|number| **number < by_address);
        let mut earlier = earlier.filter_map(|number| get(*number));
        let by_host = earlier
            .find(|found| found.has_port(query.port) && found.has_host(query.address, hosts));
        by_host.or_else(|| get(by_address))
    }
}

impl Rule {
    pub(super) fn has_port(&self, port: u16) -> bool {
        has_port(self.ports(), port)
    }
}

impl Destination {
    pub(super) fn has_port(&self, port: u16) -> bool {
        has_port(self.ports(), port)
    }

    pub(super) fn has_host(&self, ip: IpAddr, hosts: &dyn HostTable) -> bool {
        self.hosts.iter().any(|host| hosts.contains(host, ip))
    }
}

fn has_port(ports: Option<&[u16]>, port: u16) -> bool {
    ports.is_none_or(|ports| ports.binary_search(&port).is_ok())
}

fn is_mapped(address: IpAddr) -> bool {
    address.to_canonical() != address
}
