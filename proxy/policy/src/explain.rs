//! Why a verdict is what it is, rule by rule. Each answer comes from the functions that the
//! verdict itself asks.

use std::net::IpAddr;
use std::sync::Arc;

use pillion_certs::spiffe::SpiffeId;

use super::compile::{Policy, Rule};
use super::verdict::{HostTable, InboundConn, OutboundDecision, Shadow};
use super::{Enforcement, Mode, OutboundAction};

/// Where nameservers listen.
const DNS_PORT: u16 = 53;

/// What one rule, or destination, had to do with a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its name.
    pub name: Arc<str>,
    /// The line of the file that names it, from 1.
    pub line: u32,
    /// Its action, a word of the file.
    pub action: &'static str,
    /// Whether it decided.
    pub decides: bool,
    /// Why it did, or did not.
    pub why: String,
}

/// A verdict and its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// `allow`, `deny`, `mtls` or `passthrough`; `exempt` for what is outside the policy.
    pub verdict: &'static str,
    /// What decided: a rule's name, "default", "audit", "tls" when the connection never gets
    /// as far as the rules, or "loopback" when none applies to it.
    pub rule: Arc<str>,
    /// Why, in a sentence.
    pub why: String,
    /// What is only reported: the denial that `enforcement: audit` lifted, or what would have been
    /// decided with the audit rules in, where it differs.
    pub shadow: Option<Shadow>,
    /// Each rule or destination, in the file's order.
    pub lines: Vec<Line>,
}

impl Policy {
    /// Whether an item of the file is an `ns/sa` whose trust domain isn't known.
    #[must_use]
    pub fn needs_own_trust_domain(&self) -> bool {
        let inbound = &self.inbound;
        let classes = [&inbound.deny, &inbound.allow, &inbound.audit_deny, &inbound.audit_allow];
        let rules = (0..).take(inbound.rules.len());
        let mut entries = rules.flat_map(|n| classes.iter().flat_map(move |c| c.entries_of(n)));
        entries.any(|e| e.identities.as_ref().is_some_and(super::IdentitySet::has_relative))
            || self.destinations().iter().any(|d| d.server_identities().has_relative())
    }

    /// Explains the verdict on an inbound connection, TLS by the port's mode included, in the order
    /// of the proxy: what no identity could lift is refused, and named, before TLS. On a port with
    /// `mtls: disable` an identity is left out, as the proxy sees none there.
    #[must_use]
    pub fn explain_inbound(&self, conn: &InboundConn<'_>) -> Explained {
        if conn.identity.is_some() && self.inbound_mode(conn.port) == Mode::Disable {
            let mut explained = self.explain_inbound(&InboundConn { identity: None, ..*conn });
            explained.why = format!(
                "port {} is mtls: disable, where no peer has an identity, so it is judged without; \
                 {}",
                conn.port, explained.why
            );
            return explained;
        }
        let decision = match (
            self.inbound_by_address(conn.source, conn.port),
            self.tls(conn.port, conn.identity),
        ) {
            (Some(denied), _) => denied,
            (None, Ok(())) => self.inbound(conn),
            (None, Err(why)) => {
                let rule = Arc::from("tls");
                return Explained { verdict: "deny", rule, why, shadow: None, lines: Vec::new() };
            }
        };
        let by = decider(&decision.rule, decision.shadow.as_ref());
        let lines = (0..).zip(self.rules()).map(|(number, rule)| {
            let decides = rule.name() == &decision.rule;
            let why = if decides {
                "matches and decides".to_owned()
            } else if let Some(why) = self.mismatch(number, rule, conn) {
                why
            } else if decision.shadow.as_ref().is_some_and(|s| s.rule == *rule.name()) {
                "matches; it would decide, and is only reported: audit".to_owned()
            } else if rule.enforcement() == Enforcement::Audit && *by == decision.rule {
                "matches, and only reports: mode audit; with it the verdict is the same".to_owned()
            } else if rule.enforcement() == Enforcement::Audit {
                format!("matches, and only reports: mode audit; the denial by \"{by}\" is reported")
            } else {
                format!("matches, but is shadowed: \"{by}\" decides")
            };
            let (name, action) = (rule.name().clone(), rule.action().as_str());
            Line { name, line: rule.line(), action, decides, why }
        });
        let lines = lines.collect();
        let verdict = if decision.allow { "allow" } else { "deny" };
        let why = self.why(&decision.rule, decision.allow);
        Explained { verdict, rule: decision.rule, why, shadow: decision.shadow, lines }
    }

    /// Whether TLS lets the connection come before the rules.
    fn tls(&self, port: u16, identity: Option<&SpiffeId>) -> Result<(), String> {
        match (self.inbound_mode(port), identity) {
            (Mode::Strict, None) => Err(format!(
                "port {port} is mtls: strict, and a peer without an identity is refused before \
                 any rule (health probes excepted)"
            )),
            (_, Some(id)) if !self.accepts_trust_domain(id.trust_domain()) => Err(format!(
                "the trust domain {} isn't accepted, and the handshake fails before any rule",
                id.trust_domain()
            )),
            _ => Ok(()),
        }
    }

    fn mismatch(&self, number: u32, rule: &Rule, conn: &InboundConn<'_>) -> Option<String> {
        if !rule.has_port(conn.port) {
            return Some(format!("no: port {} is none of its ports", conn.port));
        }
        let class = self.inbound.class(rule.action(), rule.enforcement());
        let mut near = class.entries_of(number).filter(|e| e.has_address(conn.source)).peekable();
        if near.peek().is_none() {
            return Some(format!("no: the address {} is in none of its ipBlocks", conn.source));
        }
        if near.any(|entry| entry.has_identity(conn.identity)) {
            return None;
        }
        Some(match conn.identity {
            None => "no: it asks for an identity, and a plaintext peer has none".to_owned(),
            Some(id) => format!("no: the identity {id} is none of its identities"),
        })
    }

    fn why(&self, rule: &str, allow: bool) -> String {
        match rule {
            super::DEFAULT_RULE => "no rule matches, so defaultAction decides".to_owned(),
            super::AUDIT_RULE => "enforcement: audit lifts the denial and reports it".to_owned(),
            rule => format!("rule \"{rule}\" {}", if allow { "allows it" } else { "denies it" }),
        }
    }

    /// Explains the verdict on an outbound connection. What else is outside the policy, the pod's
    /// own addresses and its nameservers, is not known here: for port 53, the answer says so.
    #[must_use]
    pub fn explain_outbound(&self, dst: IpAddr, port: u16, hosts: &dyn HostTable) -> Explained {
        if dst.is_loopback() || dst.is_unspecified() {
            let why = format!("{dst} stays in the pod, and no policy applies to it");
            let rule = Arc::from("loopback");
            return Explained { verdict: "exempt", rule, why, shadow: None, lines: Vec::new() };
        }
        let (verdict, rule, shadow) = match self.outbound(dst, port, hosts) {
            OutboundDecision::Deny { rule } => (OutboundAction::Deny, rule, None),
            OutboundDecision::Mtls { rule, shadow, .. } => (OutboundAction::Mtls, rule, shadow),
            OutboundDecision::Passthrough { rule, shadow } => {
                (OutboundAction::Passthrough, rule, shadow)
            }
        };
        let lines = (0..).zip(self.destinations()).map(|(number, one)| {
            let decides = one.name() == &rule;
            let class = &self.outbound.class(one.action()).by_address;
            let matches = class.entries_of(number).any(|entry| entry.has_address(dst))
                || one.has_host(dst, hosts);
            let why = if decides {
                "matches and decides".to_owned()
            } else if !one.has_port(port) {
                format!("no: port {port} is none of its ports")
            } else if !matches {
                format!("no: {dst} is in none of its ipBlocks and no address of its hosts")
            } else if shadow.as_ref().is_some_and(|s| s.rule == *one.name()) {
                "matches; it would decide, and is only reported: audit".to_owned()
            } else {
                let denial = shadow.as_ref().filter(|_| one.action() == OutboundAction::Deny);
                let by = denial.map_or_else(|| decider(&rule, shadow.as_ref()), |s| &s.rule);
                format!("matches, but is shadowed: \"{by}\" decides")
            };
            let (name, action) = (one.name().clone(), one.action().as_str());
            Line { name, line: one.line(), action, decides, why }
        });
        let lines = lines.collect();
        let mut why = match &*rule {
            super::DEFAULT_RULE => "no destination matches, so defaultAction decides".to_owned(),
            super::AUDIT_RULE => "enforcement: audit lifts the denial and reports it".to_owned(),
            name => format!("destination \"{name}\" is the strictest that matches"),
        };
        if port == DNS_PORT {
            why += "; but a nameserver of the pod's resolv.conf is exempt on port 53";
        }
        Explained { verdict: verdict.as_str(), rule, why, shadow, lines }
    }
}

/// What a matching rule is behind: under a lifted denial, that which denied.
fn decider<'d>(rule: &'d Arc<str>, shadow: Option<&'d Shadow>) -> &'d Arc<str> {
    shadow.filter(|_| &**rule == super::AUDIT_RULE).map_or(rule, |shadow| &shadow.rule)
}
