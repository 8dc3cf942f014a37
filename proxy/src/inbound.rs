//! The story of one inbound connection: from a peer to our app.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use pillion_certs::generation::TlsGeneration;
use tokio::io::AsyncReadExt;

use crate::detect::{self, Hello, MAX_HELLO};
use crate::dial::dial;
use crate::live::{Conn, Registry, Shared, Tls};
use crate::net::{self, Leg, LegIo, OriginalDst, Prefixed};
use crate::policy::{AppAddress, InboundConn, Mode, Policy};
use crate::probe;
use crate::relay::{Ended, Limits, relay};
use crate::telemetry::{CloseReason, Direction};
use crate::tls::{self, MESH_PROTOCOLS, ServerStream};

/// Serves a redirected connection to its end, and says why it ended.
pub async fn serve(
    shared: &Shared,
    registry: &Rc<Registry>,
    conn: &Rc<Conn>,
    leg: Leg,
) -> CloseReason {
    let admitted = conn.unless_stopped(admit(shared, registry, conn, leg)).await;
    let ended = match admitted {
        Err(reason) => return reason,
        Ok((Downstream::Tls(mut client), mut app)) => {
            run(shared, conn, &mut *client, &mut app).await
        }
        Ok((Downstream::Plain(mut client), mut app)) => {
            run(shared, conn, &mut client, &mut app).await
        }
        Ok((Downstream::Probe(mut client, request), mut app)) => {
            return conn
                .unless_stopped(probe::forward(&mut client, &request, &mut app, conn))
                .await
                .unwrap_or_else(|reason| reason);
        }
    };
    if let Some(detail) = ended.detail {
        conn.set_detail(detail);
    }
    ended.reason
}

async fn run(shared: &Shared, conn: &Conn, client: &mut impl LegIo, app: &mut Leg) -> Ended {
    let limits = Limits {
        up: &conn.to_app,
        down: &conn.from_app,
        half_close: shared.config.timeouts.half_close,
    };
    relay(client, app, limits, conn.stopped()).await
}

/// The client's side, once it may talk to the app.
enum Downstream {
    Tls(Box<ServerStream>),
    Plain(Prefixed),
    /// A plaintext health probe on a strict port, with its one request.
    Probe(Prefixed, probe::Request),
}

/// Everything up to the first byte to the app.
async fn admit(
    shared: &Shared,
    registry: &Rc<Registry>,
    conn: &Rc<Conn>,
    leg: Leg,
) -> Result<(Downstream, Leg), CloseReason> {
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
        Mode::Disable => Downstream::Plain(Prefixed::new(Vec::new(), leg)),
        Mode::Strict => strict(shared, registry, conn, leg, &policy, port).await?,
        Mode::Permissive => permissive(shared, registry, conn, leg, &policy, port).await?,
    };
    if !matches!(downstream, Downstream::Tls(_)) {
        conn.set_tls(Tls::Plaintext);
    }
    match &downstream {
        Downstream::Probe(_, request) => judge_probe(shared, conn, dst, request)?,
        _ => judge(shared, conn, dst)?,
    }
    let app = connect_app(shared, conn, dst).await?;
    Ok((downstream, app))
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

/// A probe is served if the policy of this moment still lists it.
fn judge_probe(
    shared: &Shared,
    conn: &Conn,
    dst: OriginalDst,
    request: &probe::Request,
) -> Result<(), CloseReason> {
    let policy = shared.published.policy.load_full().ok_or(CloseReason::NoPolicy)?;
    refuse_by_address(shared, conn, &policy, dst)?;
    if !policy.probe(dst.0.port()).any(|listed| *listed == *request.path) {
        return Err(CloseReason::PlaintextRefused);
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
            conn.set_detail("untrusted_domain: the policy's trustDomains do not list the peer's");
        }
        _ => conn.set_detail("the port has become strict"),
    })?;
    shared.decided(conn, decision.allow, &decision.rule, decision.shadow);
    if decision.allow { Ok(()) } else { Err(CloseReason::Denied) }
}

/// A strict port: mTLS, or a health probe that the policy lists.
async fn strict(
    shared: &Shared,
    registry: &Rc<Registry>,
    conn: &Rc<Conn>,
    mut leg: Leg,
    policy: &Policy,
    port: u16,
) -> Result<Downstream, CloseReason> {
    let slot = registry.begin_handshake(conn);
    let work = async {
        let (mut seen, hello) = first_bytes(&mut leg).await?;
        let mesh = match hello {
            Hello::Tls { mesh } => mesh,
            Hello::NotTls | Hello::Incomplete => {
                let request = read_probe(&mut leg, &mut seen, policy, port).await;
                let io = Prefixed::new(seen, leg);
                return match request {
                    Some(request) => Ok(Downstream::Probe(io, request)),
                    None => Err(refuse_plaintext(shared, conn, io).await),
                };
            }
        };
        terminate(shared, conn, Prefixed::new(seen, leg), mesh).await
    };
    let done = in_time(shared, work).await;
    drop(slot);
    done
}

/// A permissive port: the mesh's own TLS is terminated, everything else belongs
/// to the app and is passed on byte for byte.
async fn permissive(
    shared: &Shared,
    registry: &Rc<Registry>,
    conn: &Rc<Conn>,
    mut leg: Leg,
    policy: &Policy,
    port: u16,
) -> Result<Downstream, CloseReason> {
    let timeouts = &shared.config.timeouts;
    let detect = async {
        let (mut seen, hello) = first_bytes(&mut leg).await?;
        let probe = match hello {
            Hello::Tls { .. } => None,
            _ => read_probe(&mut leg, &mut seen, policy, port).await,
        };
        Ok((seen, hello, probe))
    };
    let (seen, hello, probe) = tokio::time::timeout(timeouts.detect, detect)
        .await
        .map_err(|_| CloseReason::DetectTimeout)??;
    let io = Prefixed::new(seen, leg);
    if let Some(request) = probe {
        return Ok(Downstream::Probe(io, request));
    }
    if hello != (Hello::Tls { mesh: true }) {
        return Ok(Downstream::Plain(io));
    }
    let _slot = registry.begin_handshake(conn);
    in_time(shared, terminate(shared, conn, io, true)).await
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
    shared: &Shared,
    conn: &Conn,
    io: Prefixed,
    mesh: bool,
) -> Result<Downstream, CloseReason> {
    let generation: Arc<TlsGeneration> =
        shared.published.usable_tls().ok_or(CloseReason::NoCertificate)?;
    let started = Instant::now();
    match tls::accept(io, mesh, &generation).await {
        Ok((stream, peer)) => {
            shared.metrics.handshake(Direction::Inbound, "ok");
            shared.metrics.handshake_seconds(Direction::Inbound, started.elapsed().as_secs_f64());
            conn.set_tls(Tls::Mtls);
            conn.set_peer(peer);
            Ok(Downstream::Tls(Box::new(stream)))
        }
        Err(e) => {
            shared.metrics.handshake(Direction::Inbound, e.label());
            conn.set_detail(format!("{}: {e}", e.label()));
            Err(e.reason())
        }
    }
}

/// Lets TLS answer what is no TLS: the client gets an alert and a close.
async fn refuse_plaintext(shared: &Shared, conn: &Conn, io: Prefixed) -> CloseReason {
    if let Some(generation) = shared.published.usable_tls()
        && let Err(e) = tls::accept(io, false, &generation).await
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
        target.set_ip(match target {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    dial(target, Some(net::inbound_source(target)), shared.config.timeouts.connect).await.map_err(
        |e| {
            shared.metrics.connect_failure(Direction::Inbound, e.reason());
            conn.set_detail(e.to_string());
            e.reason()
        },
    )
}
