//! The story of one outbound connection: from our app to a server.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::dial::dial;
use crate::live::{Conn, Registry, Shared, Tls};
use crate::net::{self, Leg, LegIo, OriginalDst};
use crate::policy::{DEFAULT_RULE, Destination, OutboundAction, OutboundDecision};
use crate::relay::{Ended, Limits, relay};
use crate::telemetry::{CloseReason, Direction};
use crate::tls::{self, ClientStream};

/// Serves a redirected connection to its end, and says why it ended.
pub async fn serve(
    shared: &Shared,
    registry: &Rc<Registry>,
    conn: &Rc<Conn>,
    mut leg: Leg,
) -> CloseReason {
    let ended = match conn.unless_stopped(reach(shared, registry, conn, &leg)).await {
        Err(reason) => return reason,
        Ok(Upstream::Tls(mut server)) => run(shared, conn, &mut leg, &mut *server).await,
        Ok(Upstream::Plain(mut server)) => run(shared, conn, &mut leg, &mut server).await,
    };
    if let Some(detail) = ended.detail {
        conn.set_detail(detail);
    }
    ended.reason
}

async fn run(shared: &Shared, conn: &Conn, app: &mut Leg, server: &mut impl LegIo) -> Ended {
    let limits = Limits {
        up: &conn.from_app,
        down: &conn.to_app,
        half_close: shared.config.timeouts.half_close,
    };
    relay(app, server, limits, conn.stopped()).await
}

/// The server's side.
enum Upstream {
    Tls(Box<ClientStream>),
    Plain(Leg),
}

/// Everything up to a server that may be talked to. The app's first byte is not
/// waited for: in many protocols the server speaks first.
async fn reach(
    shared: &Shared,
    registry: &Rc<Registry>,
    conn: &Rc<Conn>,
    leg: &Leg,
) -> Result<Upstream, CloseReason> {
    let dst = net::original_dst(leg.stream()).map_err(|e| {
        conn.set_detail(e.to_string());
        CloseReason::NoOriginalDst
    })?;
    conn.set_destination(dst);
    let local = shared.published.local.load_full();
    if local.is_own(dst.0.ip()) && shared.own_ports.contains(&dst.0.port()) {
        shared.metrics.self_calls.inc();
        return Err(CloseReason::SelfCall);
    }
    if local.is_exempt(dst.0) {
        conn.exempt();
        conn.set_tls(Tls::Passthrough);
        return connect(shared, conn, dst).await.map(Upstream::Plain);
    }
    let decision = decide(shared, conn, dst).await?;
    match decision {
        OutboundDecision::Deny { .. } => Err(CloseReason::Denied),
        OutboundDecision::Passthrough { .. } => {
            conn.set_tls(Tls::Passthrough);
            connect(shared, conn, dst).await.map(Upstream::Plain)
        }
        OutboundDecision::Mtls { destination, .. } => {
            conn.set_tls(Tls::Mtls);
            let server = connect(shared, conn, dst).await?;
            originate(shared, registry, conn, server, dst, destination).await
        }
    }
}

/// The verdict. An address that none of the policy's names is known to have may
/// have become theirs a moment ago, so it is looked up once more before anything
/// weaker than a denial is decided.
async fn decide(
    shared: &Shared,
    conn: &Conn,
    dst: OriginalDst,
) -> Result<OutboundDecision, CloseReason> {
    let mut decision = evaluate(shared, dst)?;
    // A destination that denies is final; the default is what is left when no name
    // is known to have this address.
    let denied = matches!(&decision, OutboundDecision::Deny { rule } if **rule != *DEFAULT_RULE);
    if !denied {
        shared.resolve_miss(dst.0.ip()).await;
        // Whatever came of it: the policy may have changed during the wait, too.
        decision = evaluate(shared, dst)?;
    }
    if let Some(name) = unknown_name(shared, dst, &decision) {
        conn.set_detail(format!("{name} has never been resolved, and may be what {dst} is"));
        return Err(CloseReason::NameUnresolved);
    }
    conn.set_names(shared.published.hosts.load().names_of(dst.0.ip()));
    let (allow, rule, shadow) = match &decision {
        OutboundDecision::Deny { rule } => (false, rule, None),
        OutboundDecision::Mtls { rule, shadow, .. }
        | OutboundDecision::Passthrough { rule, shadow } => (true, rule, shadow.clone()),
    };
    shared.decided(conn, allow, rule, shadow);
    Ok(decision)
}

/// A name that no nameserver has ever answered for, of a destination that would
/// decide more strictly than `decision` if the address were its own. Until it is
/// known, the connection can't be let through with less than the policy may want.
fn unknown_name(
    shared: &Shared,
    dst: OriginalDst,
    decision: &OutboundDecision,
) -> Option<Arc<str>> {
    let hosts = shared.published.hosts.load();
    let policy = shared.published.policy.load();
    let policy = policy.as_deref()?;
    let known = |host: &Arc<str>| hosts.is_known(host, dst.0.ip());
    if policy.hosts().iter().all(known) {
        return None;
    }
    let stricter = |action: OutboundAction| match decision {
        OutboundDecision::Deny { .. } => false,
        OutboundDecision::Mtls { .. } => action == OutboundAction::Deny,
        OutboundDecision::Passthrough { .. } => action != OutboundAction::Passthrough,
    };
    let on_port = |ports: Option<&[u16]>| ports.is_none_or(|ports| ports.contains(&dst.0.port()));
    let candidates =
        policy.destinations().iter().filter(|d| stricter(d.action()) && on_port(d.ports()));
    candidates.flat_map(|d| d.hosts()).find(|host| !known(host)).cloned()
}

/// What the policy of this moment says.
fn evaluate(shared: &Shared, dst: OriginalDst) -> Result<OutboundDecision, CloseReason> {
    let policy = shared.published.policy.load();
    let policy = policy.as_deref().ok_or(CloseReason::NoPolicy)?;
    Ok(policy.outbound(dst.0.ip(), dst.0.port(), &**shared.published.hosts.load()))
}

/// Opens the connection to the very address that the app asked for.
async fn connect(shared: &Shared, conn: &Conn, dst: OriginalDst) -> Result<Leg, CloseReason> {
    dial(dst.0, None, shared.config.timeouts.connect).await.map_err(|e| {
        shared.metrics.connect_failure(Direction::Outbound, e.reason());
        conn.set_detail(e.to_string());
        e.reason()
    })
}

/// mTLS to the server, whose identity must be one that the destination expects.
/// There is no fallback to plaintext.
async fn originate(
    shared: &Shared,
    registry: &Rc<Registry>,
    conn: &Rc<Conn>,
    server: Leg,
    dst: OriginalDst,
    destination: Arc<Destination>,
) -> Result<Upstream, CloseReason> {
    let generation = shared.published.usable_tls().ok_or(CloseReason::NoCertificate)?;
    let started = Instant::now();
    let slot = registry.begin_handshake(conn);
    let handshake = tls::connect(server, &generation);
    let done = tokio::time::timeout(shared.config.timeouts.handshake, handshake).await;
    drop(slot);
    let (stream, peer) = match done {
        Err(_) => {
            shared.metrics.handshake(Direction::Outbound, "timeout");
            return Err(CloseReason::HandshakeTimeout);
        }
        Ok(Err(e)) => {
            shared.metrics.handshake(Direction::Outbound, e.label());
            conn.set_detail(format!("{}: {e}", e.label()));
            return Err(e.reason());
        }
        Ok(Ok(done)) => done,
    };
    shared.metrics.handshake(Direction::Outbound, "ok");
    shared.metrics.handshake_seconds(Direction::Outbound, started.elapsed().as_secs_f64());
    // The policy may have changed during the handshake: the newest one decides who
    // the server has to be.
    let destination = match evaluate(shared, dst)? {
        OutboundDecision::Deny { .. } => return Err(CloseReason::PolicyChanged),
        OutboundDecision::Mtls { destination, .. } => destination,
        OutboundDecision::Passthrough { .. } => destination,
    };
    let policy = shared.published.policy.load_full().ok_or(CloseReason::NoPolicy)?;
    let expected = destination.server_identities().matches(peer.id())
        && policy.accepts_trust_domain(peer.id().trust_domain());
    let id = peer.id().clone();
    conn.set_peer(peer);
    if !expected {
        let expected: Vec<_> = destination.server_identities().patterns().collect();
        conn.set_detail(format!("the server is {id}, expected is {}", expected.join(" or ")));
        return Err(CloseReason::WrongIdentity);
    }
    Ok(Upstream::Tls(Box::new(stream)))
}
