//! One open connection: what is known of it, and the handle that ends it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use pillion_certs::generation::TlsGeneration;
use pillion_certs::refusal::PeerRefusal;
use pillion_certs::spiffe::SpiffeId;
use pillion_certs::verify::VerifiedPeer;
use pillion_policy::{DEFAULT_RULE, HostTable, Policy, Shadow};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::net::{ClientAddr, OriginalDst};
use crate::telemetry::{ByteCounters, CloseReason, Direction, Record};

use super::{AsOpened, HostAddresses};

/// What protects a connection on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// We terminate or originate mutual TLS.
    Mtls,
    /// Inbound plaintext (or TLS of the app's own) on a permissive or disabled port.
    Plaintext,
    /// Outbound bytes passed on as they are.
    Passthrough,
}

impl Tls {
    /// The log field.
    pub fn label(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::Plaintext => "plaintext",
            Self::Passthrough => "passthrough",
        }
    }
}

/// How far a connection has come; decides how a changed policy judges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Accepted, not judged: it will be judged by the policy of that moment.
    Opening,
    /// Judged and allowed: a new policy judges it again.
    Allowed,
    /// Outside the policy: the pod's own addresses and its nameservers.
    Exempt,
    /// A plaintext health probe, of a path that the policy lists for its port.
    Probe(Box<str>),
}

impl Stage {
    /// The word of the admin endpoint.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Allowed => "allowed",
            Self::Exempt => "exempt",
            Self::Probe(_) => "probe",
        }
    }

    /// The path of a probe.
    fn path(&self) -> Option<&str> {
        match self {
            Self::Probe(path) => Some(path),
            Self::Opening | Self::Allowed | Self::Exempt => None,
        }
    }
}

/// A connection, owned by its worker. It is registered before it is judged, so
/// that no change of policy slips between the two.
#[derive(Debug)]
pub struct Conn {
    /// Unique on its worker.
    pub id: u64,
    /// Which way.
    pub direction: Direction,
    /// Who connected.
    pub source: ClientAddr,
    opened: Instant,
    facts: RefCell<Facts>,
    /// Application bytes so far, to the app.
    pub to_app: Cell<u64>,
    /// Application bytes so far, from the app.
    pub from_app: Cell<u64>,
    counters: ByteCounters,
    flushed: Cell<(u64, u64)>,
    stop: Cell<Option<CloseReason>>,
    stopped: Notify,
}

#[derive(Debug)]
struct Facts {
    stage: Stage,
    destination: Option<OriginalDst>,
    names: Vec<Arc<str>>,
    peer: Option<VerifiedPeer>,
    tls: Option<Tls>,
    verdict: Option<&'static str>,
    rule: Option<Arc<str>>,
    shadow: Option<Shadow>,
    detail: Option<String>,
}

impl Conn {
    pub(super) fn new(
        id: u64,
        direction: Direction,
        source: ClientAddr,
        counters: ByteCounters,
    ) -> Self {
        Self {
            id,
            direction,
            source,
            opened: Instant::now(),
            facts: RefCell::new(Facts {
                stage: Stage::Opening,
                destination: None,
                names: Vec::new(),
                peer: None,
                tls: None,
                verdict: None,
                rule: None,
                shadow: None,
                detail: None,
            }),
            to_app: Cell::new(0),
            from_app: Cell::new(0),
            counters,
            flushed: Cell::new((0, 0)),
            stop: Cell::new(None),
            stopped: Notify::new(),
        }
    }

    /// Records where the client meant to go.
    pub fn set_destination(&self, dst: OriginalDst) {
        self.facts.borrow_mut().destination = Some(dst);
    }

    /// Where the client meant to go, once that is known.
    pub fn destination(&self) -> Option<OriginalDst> {
        self.facts.borrow().destination
    }

    /// Records the policy's names that the destination has.
    pub fn set_names(&self, names: Vec<Arc<str>>) {
        self.facts.borrow_mut().names = names;
    }

    /// Adds the names that an outbound connection's destination has now: the answer that takes one
    /// away ends it no more than those that are opened now.
    pub fn add_names<'a>(&self, names_of: impl FnOnce(IpAddr) -> Option<&'a Vec<Arc<str>>>) {
        if self.direction == Direction::Inbound {
            return;
        }
        let mut facts = self.facts.borrow_mut();
        if let Some(now) = facts.destination.and_then(|d| names_of(d.0.ip())) {
            let new: Vec<_> = now.iter().filter(|name| !facts.names.contains(name)).collect();
            let new = new.into_iter().cloned();
            facts.names.extend(new);
        }
    }

    /// Records what protects the connection.
    pub fn set_tls(&self, tls: Tls) {
        self.facts.borrow_mut().tls = Some(tls);
    }

    /// Records the verified identity of the other end.
    pub fn set_peer(&self, peer: VerifiedPeer) {
        self.facts.borrow_mut().peer = Some(peer);
    }

    /// The verification of the other end's certificate, if there was one.
    pub fn peer(&self) -> Option<VerifiedPeer> {
        self.facts.borrow().peer.clone()
    }

    /// What protects the connection, once that is known.
    pub fn tls(&self) -> Option<Tls> {
        self.facts.borrow().tls
    }

    /// Calls `f` with the verified identity of the other end, if it has one.
    pub fn with_peer<R>(&self, f: impl FnOnce(Option<&SpiffeId>) -> R) -> R {
        f(self.facts.borrow().peer.as_ref().map(VerifiedPeer::id))
    }

    /// The peer's serial number and identity, as the details of refusals have them.
    pub fn leaf(&self) -> String {
        let of = |peer: &VerifiedPeer| format!("serial {}, identity {}", peer.serial(), peer.id());
        self.facts.borrow().peer.as_ref().map_or_else(|| "no certificate".to_owned(), of)
    }

    /// Records more on the reason that this connection is about to end with.
    pub fn set_detail(&self, detail: impl Into<String>) {
        self.facts.borrow_mut().detail = Some(detail.into());
    }

    /// Forgets that: what it was about is mended.
    pub fn forget_detail(&self) {
        self.facts.borrow_mut().detail = None;
    }

    /// Records the verdict, and that a later policy has to judge again.
    pub fn judged(&self, allow: bool, rule: &Arc<str>, shadow: Option<Shadow>) {
        let mut facts = self.facts.borrow_mut();
        facts.verdict = Some(if allow { "allow" } else { "deny" });
        facts.rule = Some(Arc::clone(rule));
        facts.shadow = shadow;
        if allow {
            facts.stage = Stage::Allowed;
        }
    }

    /// Records that no policy applies.
    pub fn exempt(&self) {
        self.facts.borrow_mut().stage = Stage::Exempt;
    }

    /// Records that this is a health probe of a path.
    pub fn probe(&self, path: &str) {
        self.facts.borrow_mut().stage = Stage::Probe(path.into());
    }

    /// Asks the connection's task to end with `reason`. The first reason stands;
    /// false when there was one already.
    pub fn stop(&self, reason: CloseReason) -> bool {
        if self.stop.get().is_some() {
            return false;
        }
        self.stop.set(Some(reason));
        self.stopped.notify_one();
        true
    }

    /// Why it was asked to end, if it was.
    pub fn stop_reason(&self) -> Option<CloseReason> {
        self.stop.get()
    }

    /// Resolves when somebody calls [`Conn::stop`]. One task waits at a time.
    pub async fn stopped(&self) -> CloseReason {
        loop {
            if let Some(reason) = self.stop.get() {
                return reason;
            }
            self.stopped.notified().await;
        }
    }

    /// Runs `story` unless the connection is stopped first.
    ///
    /// # Errors
    /// The story's own end, or the reason it was stopped for.
    pub async fn unless_stopped<T, E: From<CloseReason>>(
        &self,
        story: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            reason = self.stopped() => Err(reason.into()),
            result = story => result,
        }
    }

    /// The rule by which `policy` no longer lets this connection be, if it does not; see
    /// [`Facts::denied_by`](super::Facts::denied_by). The default ends no outbound connection while
    /// the first look-up of a name that may allow it is under way: when that has ended, all are
    /// judged again.
    pub fn denied_by(&self, policy: &Policy, hosts: &HostAddresses) -> Option<Arc<str>> {
        let facts = self.facts.borrow();
        let judged = super::Facts {
            direction: self.direction,
            source: self.source.0,
            destination: facts.destination.map(|d| d.0),
            stage: &facts.stage,
            names: &facts.names,
            peer: facts.peer.as_ref().map(VerifiedPeer::id),
            tls: facts.tls,
        };
        let rule = judged.denied_by(policy, hosts)?;
        let by_default = self.direction == Direction::Outbound && *rule == *DEFAULT_RULE;
        let destination = facts.destination.filter(|_| by_default);
        let allowed_yet =
            destination.is_some_and(|d| hosts.may_yet_allow(policy, d.0.ip(), d.0.port()));
        (!allowed_yet).then_some(rule)
    }

    /// Calls `f` with the addresses of now and the names that the destination had when this was
    /// judged.
    pub fn with_hosts<R>(&self, now: &HostAddresses, f: impl FnOnce(&dyn HostTable) -> R) -> R {
        f(&AsOpened { now, names: &self.facts.borrow().names })
    }

    /// Why the peer's certificate, verified by an earlier generation, is revoked by the
    /// lists of this one, if it is.
    pub fn revoked_by(&self, generation: &TlsGeneration) -> Option<PeerRefusal> {
        generation.revocation_of(self.facts.borrow().peer.as_ref()?)
    }

    /// Adds what was relayed since the last call to the metrics.
    pub fn flush_bytes(&self) {
        let (to_app, from_app) = self.flushed.get();
        self.counters.to_app.inc_by(self.to_app.get().saturating_sub(to_app));
        self.counters.from_app.inc_by(self.from_app.get().saturating_sub(from_app));
        self.flushed.set((self.to_app.get(), self.from_app.get()));
    }

    /// Calls `f` with the access-log record of an end with `reason`.
    pub(super) fn with_record<R>(
        &self,
        reason: CloseReason,
        f: impl FnOnce(&Record<'_>) -> R,
    ) -> R {
        let facts = self.facts.borrow();
        f(&Record {
            direction: self.direction,
            source: self.source.0,
            destination: facts.destination.map(|d| d.0),
            peer: facts.peer.as_ref().map(|p| p.id().as_str()),
            tls: facts.tls.map(Tls::label),
            verdict: facts.verdict,
            rule: facts.rule.as_deref(),
            shadow: facts
                .shadow
                .as_ref()
                .map(|s| (if s.allow { "allow" } else { "deny" }, s.rule.as_ref())),
            reason,
            detail: facts.detail.as_deref(),
            bytes_to_app: self.to_app.get(),
            bytes_from_app: self.from_app.get(),
            duration: self.opened.elapsed(),
        })
    }

    /// For the admin endpoint. All that [`Conn::denied_by`] asks is there: `names` are those of
    /// then and, by `hosts`, of now.
    pub fn to_json(&self, hosts: &HostAddresses) -> Value {
        let facts = self.facts.borrow();
        let now = facts.destination.map(|d| hosts.names_of(d.0.ip())).unwrap_or_default();
        let names: BTreeSet<&str> = facts.names.iter().chain(&now).map(|name| &**name).collect();
        json!({
            "direction": self.direction.label(),
            "source": self.source.0,
            "destination": facts.destination.map(|d| d.0),
            "names": names,
            "peer": facts.peer.as_ref().map(|p| p.id().as_str()),
            "tls": facts.tls.map(Tls::label),
            "stage": facts.stage.label(),
            "probe": facts.stage.path(),
            "verdict": facts.verdict,
            "rule": facts.rule.as_deref(),
            "bytes_to_app": self.to_app.get(),
            "bytes_from_app": self.from_app.get(),
            "age_ms": u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}
