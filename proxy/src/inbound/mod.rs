//! The story of one inbound connection: from a peer to our app.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use pillion_certs::generation::TlsGeneration;
use pillion_certs::verify::VerifiedPeer;
use pillion_policy::{AppAddress, InboundConn, Mode, Policy};
use tokio::io::AsyncReadExt;

use crate::detect::{self, Hello, MAX_HELLO};
use crate::dial::{Source, dial};
use crate::lane::Lane;
use crate::live::{Conn, Guard, Shared, Tls};
use crate::net::{self, Leg, OriginalDst};
use crate::probe;
use crate::relay::{self, Ended, Limits};
use crate::telemetry::{CloseReason, Direction};
use crate::tls::{self, MESH_PROTOCOLS};
use crate::tunnel::Role;
use crate::wire::Wire;

mod streams;

/// Serves a redirected connection to its end. Each stage has a future of its own, which
/// goes when it is over: what an idle connection holds is the last one.
pub async fn serve(lane: &Rc<Lane>, guard: Guard, leg: Leg) {
    let conn = Rc::clone(&guard.conn);
    let reason = match Box::pin(conn.unless_stopped(identify(lane, &conn, leg))).await {
        Err(reason) => reason,
        Ok((dst, Downstream::Tls(wire, made))) if wire.tunnel().is_some() => {
            return Box::pin(streams::serve(lane, guard, wire, made, dst)).await;
        }
        Ok((dst, downstream)) => Box::pin(serve_one(lane, &conn, dst, downstream)).await,
    };
    guard.end(reason);
}

/// Serves a client whose connection is one of the app's.
async fn serve_one(
    lane: &Lane,
    conn: &Conn,
    dst: OriginalDst,
    downstream: Downstream,
) -> CloseReason {
    let admitted = Box::pin(conn.unless_stopped(admit(lane, conn, dst, &downstream))).await;
    let mut app = match admitted {
        Err(reason) => return reason,
        Ok(app) => app,
    };
    let limits = lane.limits(conn);
    let ended = match downstream {
        Downstream::Tls(mut wire, _) => {
            relay::secure(&mut app, &mut wire, limits, conn.stopped()).await
        }
        Downstream::Plain(mut client) => {
            let limits = Limits { up: limits.down, down: limits.up, ..limits };
            let own = (&lane.buffers, &lane.pipes);
            relay::plain(&mut client, &mut app, limits, own, conn.stopped()).await
        }
        Downstream::Probe(mut client, request) => {
            return conn
                .unless_stopped(probe::forward(&mut client, &request, &mut app, conn))
                .await
                .unwrap_or_else(|reason| reason);
        }
    };
    ended_with(conn, ended)
}

fn ended_with(conn: &Conn, ended: Ended) -> CloseReason {
    if let Some(detail) = ended.detail {
        conn.set_detail(detail);
    }
    ended.reason
}

/// The client's side, once it is known what it speaks.
enum Downstream {
    Tls(Box<Wire>, Box<Identified>),
    Plain(Leg),
    /// A plaintext health probe on a strict port, with its one request.
    Probe(Leg, probe::Request),
}

/// What the handshake found out about the client.
struct Identified {
    peer: VerifiedPeer,
    /// What it was verified with.
    generation: Arc<TlsGeneration>,
}

/// Everything up to knowing who the client is.
async fn identify(
    lane: &Rc<Lane>,
    conn: &Rc<Conn>,
    leg: Leg,
) -> Result<(OriginalDst, Downstream), CloseReason> {
    let shared = &lane.shared;
    let dst = net::original_dst(leg.stream()).map_err(|e| {
        conn.set_detail(e.to_string());
        CloseReason::NoOriginalDst
    })?;
    conn.set_destination(dst);
    if shared.own_ports.contains(&dst.0.port()) {
        shared.metrics.self_calls.inc();
        return Err(CloseReason::SelfCall);
    }
    let policy = shared.published.policy.load_full().ok_or(CloseReason::NoPolicy)?;
    refuse_by_address(shared, conn, &policy, dst)?;

    let port = dst.0.port();
    let downstream = match policy.inbound_mode(port) {
        Mode::Disable => Downstream::Plain(leg),
        Mode::Strict => Box::pin(strict(lane, conn, leg, &policy, port)).await?,
        Mode::Permissive => Box::pin(permissive(lane, conn, leg, &policy, port)).await?,
    };
    if !matches!(downstream, Downstream::Tls(..)) {
        conn.set_tls(Tls::Plaintext);
    }
    Ok((dst, downstream))
}

/// The verdict, and the connection to the app.
async fn admit(
    lane: &Lane,
    conn: &Conn,
    dst: OriginalDst,
    downstream: &Downstream,
) -> Result<Leg, CloseReason> {
    match downstream {
        Downstream::Probe(_, request) => judge_probe(&lane.shared, conn, dst, request)?,
        _ => judge(&lane.shared, conn, dst)?,
    }
    connect_app(&lane.shared, conn, dst).await
}

/// A source that no identity could save is refused before any work is done for it.
fn refuse_by_address(
    shared: &Shared,
    conn: &Conn,
    policy: &Policy,
    dst: OriginalDst,
) -> Result<(), CloseReason> {
    match policy.inbound_by_address(conn.source.0.ip(), dst.0.port()) {
        None => Ok(()),
        Some(d) => {
            shared.decided(conn, false, &d.rule, d.shadow);
            Err(CloseReason::Denied)
        }
    }
}

/// A probe is served if the policy of this moment still lists it, and no rule denies its address.
fn judge_probe(
    shared: &Shared,
    conn: &Conn,
    dst: OriginalDst,
    request: &probe::Request,
) -> Result<(), CloseReason> {
    let policy = shared.published.policy.load_full().ok_or(CloseReason::NoPolicy)?;
    if policy.inbound_mode(dst.0.port()) == Mode::Disable {
        // Nothing there asks for TLS any more, so it is a request as any other.
        return judge(shared, conn, dst);
    }
    if !policy.probe(dst.0.port()).any(|listed| *listed == *request.path) {
        return Err(CloseReason::PlaintextRefused);
    }
    let decision = policy.inbound_probe(conn.source.0.ip(), dst.0.port());
    shared.decided(conn, decision.allow, &decision.rule, decision.shadow);
    if !decision.allow {
        return Err(CloseReason::Denied);
    }
    conn.probe(&request.path);
    Ok(())
}

/// The verdict, by the policy of this moment: it may have changed since the
/// handshake began, and the port's mode with it.
fn judge(shared: &Shared, conn: &Conn, dst: OriginalDst) -> Result<(), CloseReason> {
    let policy = shared.published.policy.load_full().ok_or(CloseReason::NoPolicy)?;
    let source = conn.source.0.ip();
    let port = dst.0.port();
    let decision = conn.with_peer(|peer| {
        if conn.tls() != Some(Tls::Mtls) && policy.inbound_mode(port) == Mode::Strict {
            return Err(CloseReason::PlaintextRefused);
        }
        if peer.is_some_and(|id| !policy.accepts_trust_domain(id.trust_domain())) {
            return Err(CloseReason::CertificateRefused);
        }
        Ok(policy.inbound(&InboundConn { source, port, identity: peer }))
    });
    let decision = decision.inspect_err(|reason| match reason {
        CloseReason::CertificateRefused => {
            conn.set_detail(format!(
                "untrusted_domain: the policy's trustDomains do not list the peer's ({})",
                conn.leaf()
            ));
        }
        _ => conn.set_detail("the port has become strict"),
    })?;
    shared.decided(conn, decision.allow, &decision.rule, decision.shadow);
    if decision.allow { Ok(()) } else { Err(CloseReason::Denied) }
}

/// A strict port: mTLS, or a health probe that the policy lists.
async fn strict(
    lane: &Rc<Lane>,
    conn: &Rc<Conn>,
    mut leg: Leg,
    policy: &Policy,
    port: u16,
) -> Result<Downstream, CloseReason> {
    let slot = lane.registry.begin_handshake(conn);
    let work = async {
        let (mut seen, hello) = first_bytes(&mut leg).await?;
        let mesh = match hello {
            Hello::Tls { mesh } => mesh,
            Hello::NotTls | Hello::Incomplete => {
                let request = Box::pin(read_probe(&mut leg, &mut seen, policy, port)).await;
                return match request {
                    Some(request) => Ok(Downstream::Probe(leg, request)),
                    None => Err(Box::pin(refuse_plaintext(&lane.shared, conn, leg, seen)).await),
                };
            }
        };
        terminate(lane, conn, leg, seen, mesh).await
    };
    let done = in_time(&lane.shared, work).await;
    drop(slot);
    done
}

/// A permissive port: the mesh's own TLS is terminated, everything else belongs
/// to the app and is passed on byte for byte.
async fn permissive(
    lane: &Rc<Lane>,
    conn: &Rc<Conn>,
    mut leg: Leg,
    policy: &Policy,
    port: u16,
) -> Result<Downstream, CloseReason> {
    let timeouts = &lane.shared.config.timeouts;
    let detect = async {
        let (mut seen, hello) = first_bytes(&mut leg).await?;
        let probe = match hello {
            Hello::Tls { .. } => None,
            _ => Box::pin(read_probe(&mut leg, &mut seen, policy, port)).await,
        };
        Ok((seen, hello, probe))
    };
    let (seen, hello, probe) = tokio::time::timeout(timeouts.detect, detect)
        .await
        .map_err(|_| CloseReason::DetectTimeout)??;
    if let Some(request) = probe {
        return Ok(Downstream::Probe(leg, request));
    }
    if hello != (Hello::Tls { mesh: true }) {
        leg.put_back(seen);
        return Ok(Downstream::Plain(leg));
    }
    let _slot = lane.registry.begin_handshake(conn);
    in_time(&lane.shared, terminate(lane, conn, leg, seen, true)).await
}

/// One total deadline for all of a handshake.
async fn in_time(
    shared: &Shared,
    work: impl Future<Output = Result<Downstream, CloseReason>>,
) -> Result<Downstream, CloseReason> {
    tokio::time::timeout(shared.config.timeouts.handshake, work).await.unwrap_or_else(|_| {
        shared.metrics.handshake(Direction::Inbound, "timeout");
        Err(CloseReason::HandshakeTimeout)
    })
}

/// A plaintext request that is one of the policy's probes on this port, if it is.
async fn read_probe(
    leg: &mut Leg,
    seen: &mut Vec<u8>,
    policy: &Policy,
    port: u16,
) -> Option<probe::Request> {
    policy.probe(port).next()?;
    probe::read(leg, seen, |path| policy.probe(port).any(|p| p == path)).await
}

/// Reads until the bytes show what they are. An end of stream before that shows
/// it too: what was sent is all there is.
async fn first_bytes(leg: &mut Leg) -> Result<(Vec<u8>, Hello), CloseReason> {
    // A connection that says nothing has no buffer.
    std::future::poll_fn(|cx| leg.poll_readable(cx)).await.map_err(|e| tls::classify(&e).0)?;
    let mut seen = Vec::with_capacity(2048);
    loop {
        let n = leg.read_buf(&mut seen).await.map_err(|e| tls::classify(&e).0)?;
        match detect::peek(&seen, MESH_PROTOCOLS) {
            Hello::Incomplete if n > 0 && seen.len() < MAX_HELLO => {}
            hello => return Ok((seen, hello)),
        }
    }
}

async fn terminate(
    lane: &Lane,
    conn: &Conn,
    mut leg: Leg,
    seen: Vec<u8>,
    mesh: bool,
) -> Result<Downstream, CloseReason> {
    let shared = &lane.shared;
    let generation: Arc<TlsGeneration> =
        shared.published.usable_tls().ok_or(CloseReason::NoCertificate)?;
    let started = Instant::now();
    let engine = shared.config.tls_engine;
    match tls::accept(&mut leg, seen, mesh, &generation, engine).await {
        Ok(made) => {
            shared.metrics.handshake(Direction::Inbound, "ok");
            shared.metrics.handshake_seconds(Direction::Inbound, started.elapsed().as_secs_f64());
            conn.set_tls(Tls::Mtls);
            conn.set_peer(made.peer.clone());
            shared.refuse_revoked(conn, &generation)?;
            let identified = Identified { peer: made.peer.clone(), generation };
            let wire = Wire::new(leg, made, Role::Server, &lane.buffers);
            Ok(Downstream::Tls(Box::new(wire), Box::new(identified)))
        }
        Err(e) => {
            shared.metrics.handshake(Direction::Inbound, e.label());
            conn.set_detail(format!("{}: {e}", e.label()));
            Err(e.reason())
        }
    }
}

/// Lets TLS answer what is no TLS: the client gets an alert and a close.
async fn refuse_plaintext(
    shared: &Shared,
    conn: &Conn,
    mut leg: Leg,
    seen: Vec<u8>,
) -> CloseReason {
    let engine = shared.config.tls_engine;
    if let Some(generation) = shared.published.usable_tls()
        && let Err(e) = tls::accept(&mut leg, seen, false, &generation, engine).await
    {
        conn.set_detail(e.to_string());
    }
    shared.metrics.handshake(Direction::Inbound, "failed");
    CloseReason::PlaintextRefused
}

/// Opens the connection to the app, from the source that the rules let pass.
async fn connect_app(shared: &Shared, conn: &Conn, dst: OriginalDst) -> Result<Leg, CloseReason> {
    let policy = shared.published.policy.load_full().ok_or(CloseReason::NoPolicy)?;
    let mut target = dst.0;
    if policy.app_address() == AppAddress::Loopback {
        target = net::on_loopback(target);
    }
    dial(target, Source::Address(net::inbound_source(target)), shared.config.timeouts.connect)
        .await
        .map_err(|e| {
            shared.metrics.connect_failure(Direction::Inbound, e.reason());
            conn.set_detail(e.to_string());
            e.reason()
        })
}
