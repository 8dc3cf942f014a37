//! What a changed policy makes of a connection that is open, from plain facts: the same for the
//! proxy, which ends it, and for the command line, which tells that it would.

use std::net::SocketAddr;
use std::sync::Arc;

use pillion_certs::spiffe::SpiffeId;
use pillion_policy::{
    DEFAULT_RULE, HostTable, InboundConn, Mode, OutboundDecision, PROBES_RULE, Policy,
};
use serde_json::Value;

use crate::telemetry::Direction;

use super::{AsOpened, Stage, Tls};

/// All that a changed policy asks of an open connection.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'c> {
    /// Which way.
    pub direction: Direction,
    /// Who connected.
    pub source: SocketAddr,
    /// Where to, once that is known.
    pub destination: Option<SocketAddr>,
    /// How far it has come.
    pub stage: &'c Stage,
    /// The policy's names that the destination had when it was opened.
    pub names: &'c [Arc<str>],
    /// The verified identity of the other end.
    pub peer: Option<&'c SpiffeId>,
    /// What protects it, once that is known.
    pub tls: Option<Tls>,
}

impl Facts<'_> {
    /// The rule by which `policy` no longer lets this connection be, if it does not; "mtls",
    /// "trustDomains" and "probes" stand for what is not a rule's.
    ///
    /// A connection still opening is judged by what is known of it, its address:
    /// the rest is judged by the newest policy when it is known. To an outbound one the default
    /// does nothing: it may be waiting for the very name that allows it.
    pub fn denied_by(&self, policy: &Policy, hosts: &dyn HostTable) -> Option<Arc<str>> {
        let destination = self.destination?;
        let (source, port) = (self.source.ip(), destination.port());
        match (self.direction, self.stage) {
            (_, Stage::Exempt) => None,
            (Direction::Inbound, Stage::Opening) => {
                policy.inbound_by_address(source, port).map(|d| d.rule)
            }
            (Direction::Inbound, Stage::Probe(path))
                if policy.inbound_mode(port) != Mode::Disable =>
            {
                if !policy.probe(port).any(|listed| *listed == **path) {
                    return Some(Arc::from(PROBES_RULE));
                }
                policy.inbound_by_address(source, port).map(|d| d.rule)
            }
            (Direction::Inbound, Stage::Allowed | Stage::Probe(_)) => {
                if let Some(rule) = self.mode_or_domain_denies(policy, port) {
                    return Some(rule);
                }
                let d = policy.inbound(&InboundConn { source, port, identity: self.peer });
                (!d.allow).then_some(d.rule)
            }
            (Direction::Outbound, stage) => {
                let hosts = AsOpened { now: hosts, names: self.names };
                let decision = policy.outbound(destination.ip(), port, &hosts);
                let rule = self.outbound_denies(policy, decision)?;
                (*stage != Stage::Opening || *rule != *DEFAULT_RULE).then_some(rule)
            }
        }
    }

    /// Plaintext on a port that has become strict, or a peer whose trust domain is no
    /// longer accepted.
    fn mode_or_domain_denies(&self, policy: &Policy, port: u16) -> Option<Arc<str>> {
        if self.tls != Some(Tls::Mtls) && policy.inbound_mode(port) == Mode::Strict {
            return Some(Arc::from("mtls"));
        }
        self.domain_denies(policy)
    }

    fn domain_denies(&self, policy: &Policy) -> Option<Arc<str>> {
        self.peer
            .filter(|id| !policy.accepts_trust_domain(id.trust_domain()))
            .map(|_| Arc::from("trustDomains"))
    }

    /// Whether an outbound connection contradicts a new decision. More protection than the policy
    /// asks for is no contradiction.
    fn outbound_denies(&self, policy: &Policy, decision: OutboundDecision) -> Option<Arc<str>> {
        match decision {
            OutboundDecision::Deny { rule } => Some(rule),
            OutboundDecision::Passthrough { .. } => self.domain_denies(policy),
            OutboundDecision::Mtls { rule, destination, .. } => match (self.tls, self.peer) {
                (Some(Tls::Passthrough), _) => Some(rule),
                (_, Some(id)) if !destination.server_identities().matches(id) => Some(rule),
                _ => self.domain_denies(policy),
            },
        }
    }
}

/// The facts of a connection as `GET /connections` told them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which way.
    pub direction: Direction,
    /// Who connected.
    pub source: SocketAddr,
    /// Where to, once that was known.
    pub destination: Option<SocketAddr>,
    stage: Stage,
    names: Vec<Arc<str>>,
    /// The verified identity of the other end.
    pub peer: Option<SpiffeId>,
    tls: Option<Tls>,
}

impl Told {
    /// Reads one item of the answer.
    ///
    /// # Errors
    /// The field that is missing or means nothing. Nothing is guessed: that would be to promise
    /// that a connection stays.
    pub fn from_json(item: &Value) -> Result<Self, String> {
        let stage = match word(item, "stage")? {
            Some("opening") => Stage::Opening,
            Some("allowed") => Stage::Allowed,
            Some("exempt") => Stage::Exempt,
            Some("probe") => Stage::Probe(word(item, "probe")?.ok_or("probe: no path")?.into()),
            other => return Err(format!("stage: {other:?} is none")),
        };
        let direction = match word(item, "direction")? {
            Some("inbound") => Direction::Inbound,
            Some("outbound") => Direction::Outbound,
            other => return Err(format!("direction: {other:?} is none")),
        };
        let tls = match word(item, "tls")? {
            None => None,
            Some("mtls") => Some(Tls::Mtls),
            Some("plaintext") => Some(Tls::Plaintext),
            Some("passthrough") => Some(Tls::Passthrough),
            Some(other) => return Err(format!("tls: \"{other}\" is none")),
        };
        let names = item.get("names").and_then(Value::as_array).ok_or("names: not a list")?;
        let name = |name: &Value| name.as_str().map(Arc::from).ok_or("names: not text");
        Ok(Self {
            direction,
            source: parsed(item, "source")?.map(plain).ok_or("source: no address")?,
            destination: parsed(item, "destination")?.map(plain),
            stage,
            names: names.iter().map(name).collect::<Result<_, _>>()?,
            peer: parsed(item, "peer")?,
            tls,
        })
    }

    /// For [`Facts::denied_by`].
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            direction: self.direction,
            source: self.source,
            destination: self.destination,
            stage: &self.stage,
            names: &self.names,
            peer: self.peer.as_ref(),
            tls: self.tls,
        }
    }
}

/// The policy knows no IPv4-mapped addresses, and an answer may be written by another hand.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A field of text; `None` for null.
fn word<'v>(item: &'v Value, field: &str) -> Result<Option<&'v str>, String> {
    match item.get(field) {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Null) => Ok(None),
        Some(_) => Err(format!("{field}: neither text nor null")),
        None => Err(format!("{field}: is missing; was this written by another version?")),
    }
}

fn parsed<T: std::str::FromStr>(item: &Value, field: &str) -> Result<Option<T>, String> {
    let parse = |text: &str| text.parse().map_err(|_| format!("{field}: \"{text}\" is none"));
    word(item, field)?.map(parse).transpose()
}

#[cfg(test)]
mod tests;
