//! The story of one outbound connection: from our app to a server.

mod decide;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pillion_certs::generation::{Offer, TlsGeneration};
use pillion_certs::verify::VerifiedPeer;
use pillion_policy::{Destination, OutboundDecision, Policy};
use rustls::pki_types::UnixTime;
use tokio::io::AsyncReadExt;

use crate::dial::{DialError, Source, dial, dial_through};
use crate::lane::{Key, Lane, Parked};
use crate::live::{Conn, Dial, Shared, Tls};
use crate::net::{self, Leg, OriginalDst};
use crate::relay::{self, Ended};
use crate::telemetry::{CloseReason, Direction};
use crate::tls::{self, Established, HandshakeError};
use crate::tunnel::{self, Life, Role};
use crate::wire::{self, Wire};

/// How long an app that may be ourselves is waited for, before the other end is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How often a server is dialled for one connection of the app, the first time included.
const MOST_DIALS: usize = 4;

/// How many expected identities a line of the log names.
const MOST_NAMED: usize = 8;

/// Serves a redirected connection to its end, and says why it ended.
pub async fn serve(lane: &Rc<Lane>, conn: &Rc<Conn>, mut leg: Leg) -> CloseReason {
    let reached = Box::pin(conn.unless_stopped(reach(lane, conn, &mut leg))).await;
    let ended = match reached {
        Err(reason) => return reason,
        Ok(Upstream::Plain(mut server)) => {
            let own = (&lane.buffers, &lane.pipes);
            let limits = lane.limits(conn);
            Box::pin(relay::plain(&mut leg, &mut server, limits, own, conn.stopped())).await
        }
        Ok(Upstream::Mtls(mut server)) => {
            let ended = Box::pin(through(lane, conn, &mut leg, &mut server)).await;
            let_go(lane, *server, ended.reason);
            ended
        }
    };
    if let Some(detail) = ended.detail {
        conn.set_detail(detail);
    }
    ended.reason
}

/// The server's side.
enum Upstream {
    Mtls(Box<Server>),
    Plain(Leg),
}

/// A protected connection to a server, and what is needed to use it once more.
struct Server {
    parked: Parked,
    key: Key,
    life: Life,
    reused: bool,
}

/// Relays through a protected connection: the app's stream is one in a tunnel, or the
/// only one.
async fn through(lane: &Lane, conn: &Conn, app: &mut Leg, server: &mut Server) -> Ended {
    let wire = &mut *server.parked.wire;
    if wire.tunnel().is_some() {
        lane.shared.metrics.tunnel_stream(server.reused);
        if let Err(e) = wire.queue(&tunnel::open(conn.source.0)) {
            let (reason, detail) = wire::classify(&e);
            return Ended { reason, detail };
        }
        // One look at the reactor: an app that speaks first has spoken by now, and
        // what it said goes out together with OPEN.
        tokio::task::yield_now().await;
    }
    // The policy may have denied it a moment ago.
    if let Some(reason) = conn.stop_reason() {
        return reason.into();
    }
    relay::secure(app, wire, lane.limits(conn), conn.stopped()).await
}

/// Keeps the tunnel for the next app connection, or ends it as this one has ended.
fn let_go(lane: &Lane, server: Server, reason: CloseReason) {
    let Server { mut parked, key, life, .. } = server;
    if parked.wire.tunnel().is_none() {
        return;
    }
    // A server has nothing to say between streams but that it goes away.
    let may_stay = parked.wire.is_reusable() && !parked.wire.has_leftover();
    if may_stay && reason == CloseReason::Closed {
        lane.tunnels.put(key, parked, life);
    } else if reason == CloseReason::Closed {
        parked.wire.close();
    } else {
        parked.wire.abort(reason.to_peer());
    }
}

/// Panics as a fault of ours would, in a build for tests alone, and only for a destination that
/// nobody has (TEST-NET-1, RFC 5737).
#[cfg(debug_assertions)]
#[allow(clippy::panic, reason = "a test asks for it: one panic must end one connection")]
fn panic_for_a_test(dst: OriginalDst) {
    if dst.0 == SocketAddr::from(([192, 0, 2, 27], 27)) {
        panic!("an app has dialled {dst}, where a build for tests panics");
    }
}

/// Everything up to a server that may be talked to. The app's first byte is not
/// waited for: in many protocols the server speaks first.
async fn reach(lane: &Rc<Lane>, conn: &Rc<Conn>, leg: &mut Leg) -> Result<Upstream, CloseReason> {
    let shared = &lane.shared;
    let dst = net::original_dst(leg.stream()).map_err(|e| {
        conn.set_detail(e.to_string());
        CloseReason::NoOriginalDst
    })?;
    conn.set_destination(dst);
    #[cfg(debug_assertions)]
    panic_for_a_test(dst);
    refuse_our_own(shared, conn, leg, dst).await?;
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
    let decision = decide::decide(shared, conn, dst).await?;
    match decision {
        OutboundDecision::Deny { .. } => Err(CloseReason::Denied),
        OutboundDecision::Passthrough { .. } => {
            conn.set_tls(Tls::Passthrough);
            connect(shared, conn, dst).await.map(Upstream::Plain)
        }
        OutboundDecision::Mtls { destination, rule, .. } => {
            conn.set_tls(Tls::Mtls);
            let key = Key { destination: dst.0, rule };
            if let Some(server) = warm(lane, conn, &key, &destination) {
                return Ok(Upstream::Mtls(server));
            }
            originate(lane, conn, dst, key, destination).await
        }
    }
}

/// An idle tunnel to the same place, whose server is one that the destination expects.
fn warm(lane: &Lane, conn: &Conn, key: &Key, destination: &Destination) -> Option<Box<Server>> {
    if !destination.tunnel_reuse() {
        return None;
    }
    let policy = lane.shared.published.policy.load_full()?;
    let now = UnixTime::now();
    lane.shared.published.usable_tls()?;
    loop {
        let (mut parked, life) = lane.tunnels.take(key)?;
        if is_expected(&policy, destination, &parked.peer) && parked.peer.is_valid_at(now) {
            conn.set_peer(parked.peer.clone());
            return Some(Box::new(Server { parked, key: key.clone(), life, reused: true }));
        }
        parked.wire.close();
    }
}

fn is_expected(policy: &Policy, destination: &Destination, peer: &VerifiedPeer) -> bool {
    destination.server_identities().matches(peer.id())
        && policy.accepts_trust_domain(peer.id().trust_domain())
}

/// A connection that we make ourselves and that was redirected to us in place of its server:
/// see [`Dials`](crate::live::Dials). Whoever makes it tries again.
async fn refuse_our_own(
    shared: &Shared,
    conn: &Conn,
    leg: &mut Leg,
    dst: OriginalDst,
) -> Result<(), CloseReason> {
    let Some(like) = shared.dials.like(conn.source.0, dst.0) else { return Ok(()) };
    let mut first = Vec::new();
    let ours = loop {
        if let Some(ours) = like.has_sent(&first) {
            break ours;
        }
        if like.is_over() {
            break false;
        }
        // An app may let its server speak first.
        match tokio::time::timeout(LOOK_AGAIN, leg.read_buf(&mut first)).await {
            Ok(Ok(0)) => break false,
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(e)) => {
                let (reason, detail) = wire::classify(&e);
                conn.set_detail(detail.unwrap_or_default());
                return Err(reason);
            }
        }
    };
    if !ours {
        leg.put_back(first);
        return Ok(());
    }
    shared.metrics.self_calls.inc();
    conn.set_detail("our own connection came back: conntrack takes it for one of the app's");
    Err(CloseReason::SelfCall)
}

/// Opens the connection to the very address that the app asked for, where TLS will be spoken.
async fn connect_for_tls(
    shared: &Shared,
    conn: &Conn,
    dst: OriginalDst,
) -> Result<(Leg, Dial), CloseReason> {
    let noted = |connect: &dyn Fn() -> io::Result<SocketAddr>| shared.dials.begin(dst.0, connect);
    let source = Source::Ports(&shared.source_ports);
    let dialled = dial_through(dst.0, source, shared.config.timeouts.connect, noted).await;
    dialled.map_err(|e| not_connected(shared, conn, &e))
}

fn not_connected(shared: &Shared, conn: &Conn, e: &DialError) -> CloseReason {
    shared.metrics.connect_failure(Direction::Outbound, e.reason());
    conn.set_detail(e.to_string());
    e.reason()
}

/// Opens the connection to the very address that the app asked for.
async fn connect(shared: &Shared, conn: &Conn, dst: OriginalDst) -> Result<Leg, CloseReason> {
    let source = Source::Ports(&shared.source_ports);
    let dialled = dial(dst.0, source, shared.config.timeouts.connect).await;
    dialled.map_err(|e| not_connected(shared, conn, &e))
}

/// A connection and its handshake, made again where it came back to us: with another port.
async fn reach_server(
    lane: &Rc<Lane>,
    conn: &Rc<Conn>,
    dst: OriginalDst,
    tunnel: bool,
    generation: &TlsGeneration,
) -> Result<(Leg, Established), CloseReason> {
    let shared = &lane.shared;
    let mut dials_left = MOST_DIALS;
    loop {
        dials_left -= 1;
        let (leg, mut dial) = connect_for_tls(shared, conn, dst).await?;
        let started = Instant::now();
        let slot = lane.registry.begin_handshake(conn);
        let handshake = shake_hands(lane, conn, (leg, &mut dial), dst, tunnel, generation);
        let done = tokio::time::timeout(shared.config.timeouts.handshake, handshake).await;
        drop(slot);
        let made = done.unwrap_or_else(|_| {
            shared.metrics.handshake(Direction::Outbound, "timeout");
            Err(CloseReason::HandshakeTimeout)
        });
        if made.is_ok() {
            shared.metrics.handshake(Direction::Outbound, "ok");
            let seconds = started.elapsed().as_secs_f64();
            shared.metrics.handshake_seconds(Direction::Outbound, seconds);
            // That of a connection before this one, which came back.
            conn.forget_detail();
        }
        if made.is_ok() || dials_left == 0 || !dial.has_come_back() {
            return made;
        }
    }
}

/// A handshake. A server that refuses our protocols, which means nothing against mTLS with
/// it, is dialled again and offered none; `dial` is then that connection's.
async fn shake_hands(
    lane: &Lane,
    conn: &Conn,
    (mut leg, dial): (Leg, &mut Dial),
    dst: OriginalDst,
    tunnel: bool,
    generation: &TlsGeneration,
) -> Result<(Leg, Established), CloseReason> {
    let (shared, without) = (&lane.shared, &lane.without_alpn);
    let engine = shared.config.tls_engine;
    let failed = |e: HandshakeError| {
        shared.metrics.handshake(Direction::Outbound, e.label());
        conn.set_detail(format!("{}: {e}", e.label()));
        e.reason()
    };
    let known = without.contains(dst.0, Instant::now());
    if !known {
        let offer = if tunnel { Offer::Tunnel } else { Offer::Single };
        match tls::connect(&mut leg, offer, generation, engine, &|hello| dial.says(hello)).await {
            Err(HandshakeError::NoProtocol) => {}
            made => return made.map(|made| (leg, made)).map_err(failed),
        }
        shared.metrics.handshake(Direction::Outbound, HandshakeError::NoProtocol.label());
        (leg, *dial) = connect_for_tls(shared, conn, dst).await?;
    }
    // Another server may be there by now, and one of ours would know us by the offer alone, or
    // stay silent until the deadline: who is remembered is one with whom this has just gone well.
    // And an alert alone is nobody's word.
    without.remove(dst.0);
    let says = |hello: &[u8]| dial.says(hello);
    let made = tls::connect(&mut leg, Offer::Nothing, generation, engine, &says).await;
    let made = made.map_err(failed)?;
    without.insert(dst.0, Instant::now());
    Ok((leg, made))
}

/// mTLS to the server, whose identity must be one that the destination expects.
/// There is no fallback to plaintext.
async fn originate(
    lane: &Rc<Lane>,
    conn: &Rc<Conn>,
    dst: OriginalDst,
    mut key: Key,
    destination: Arc<Destination>,
) -> Result<Upstream, CloseReason> {
    let shared = &lane.shared;
    let generation = shared.published.usable_tls().ok_or(CloseReason::NoCertificate)?;
    let tunnel = destination.tunnel_reuse();
    let (leg, made) = reach_server(lane, conn, dst, tunnel, &generation).await?;
    // The policy may have changed during the handshake: the newest one decides who
    // the server has to be. That DNS has taken the address away meanwhile changes nothing.
    let destination = match decide::decide_again(shared, conn, dst)? {
        OutboundDecision::Deny { .. } => return Err(CloseReason::PolicyChanged),
        OutboundDecision::Mtls { destination, rule, .. } => {
            key.rule = rule;
            destination
        }
        OutboundDecision::Passthrough { .. } => destination,
    };
    let policy = shared.published.policy.load_full().ok_or(CloseReason::NoPolicy)?;
    let peer = made.peer.clone();
    conn.set_peer(peer.clone());
    shared.refuse_revoked(conn, &generation)?;
    if !is_expected(&policy, &destination, &peer) {
        let expected = expected(destination.server_identities().patterns());
        conn.set_detail(format!("the server is {}, expected is {expected}", peer.id()));
        return Err(CloseReason::WrongIdentity);
    }
    let wire = Box::new(Wire::new(leg, made, Role::Client, &lane.buffers));
    let parked = Parked { wire, peer, generation };
    let life = lane.tunnels.birth();
    Ok(Upstream::Mtls(Box::new(Server { parked, key, life, reused: false })))
}

/// The patterns for a line of the log: a policy may list 100,000, and a server that is another may
/// be dialled often.
fn expected<'p>(mut patterns: impl Iterator<Item = &'p str>) -> String {
    let named = patterns.by_ref().take(MOST_NAMED).collect::<Vec<_>>().join(" or ");
    match patterns.count() {
        0 => named,
        more => format!("{named} or one of {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::live::testing::shared;
    use crate::net::ClientAddr;
    use crate::tls::tests::generations;

    /// The alert `no_application_protocol`, fatal (RFC 7301, 3.2; RFC 8446, 5.1).
    const NO_PROTOCOL: [u8; 7] = [21, 3, 3, 0, 2, 2, 120];

    #[test]
    fn a_line_names_so_many_identities_and_no_more() {
        assert_eq!(expected(["a", "b"].into_iter()), "a or b");
        assert_eq!(expected(iter::repeat_n("a", 8)), "a or a or a or a or a or a or a or a");
        let many = expected(iter::repeat_n("a", 100_000));
        assert!(many.ends_with("a or one of 99992 more") && many.len() < 60, "{many}");
    }

    #[tokio::test]
    async fn a_connection_that_offers_no_protocol_is_known_as_our_own_and_made_again_too() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let lane = Lane::new(shared(&[]), 0);
        let guard = lane.registry.register(Direction::Outbound, ClientAddr(to));
        let [client, _] = generations();
        let dials = Arc::clone(&lane.shared.dials);
        let serving = async {
            let (mut first, first_from) = listener.accept().await.unwrap();
            first.read_u8().await.unwrap();
            first.write_all(&NO_PROTOCOL).await.unwrap();
            let (mut second, second_from) = listener.accept().await.unwrap();
            assert!(dials.like(first_from, to).is_none(), "that one has gone");
            let mut hello = [0; 100];
            second.read_exact(&mut hello).await.unwrap();
            assert_eq!(dials.like(second_from, to).unwrap().has_sent(&hello), Some(true));
            drop(second);
            drop(listener.accept().await.unwrap());
        };
        let reaching = reach_server(&lane, &guard.conn, OriginalDst(to), false, &client);
        let (made, ()) = tokio::join!(reaching, serving);
        assert!(made.is_err());
        guard.end(CloseReason::HandshakeFailed);
    }

    /// A connection whose source and destination are those of one that is being made.
    async fn alike(over: bool, app: &[u8]) -> (Result<(), CloseReason>, Vec<u8>) {
        let lane = Lane::new(shared(&[]), 0);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, source) = listener.accept().await.unwrap();
        let server: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let dial = lane.shared.dials.begin(server, || Ok(source)).unwrap();
        dial.says(&HELLO);
        let guard = lane.registry.register(Direction::Outbound, ClientAddr(source));
        let mut leg = Leg::new(accepted);
        let refusing = refuse_our_own(&lane.shared, &guard.conn, &mut leg, OriginalDst(server));
        let telling = async {
            client.write_all(app).await.unwrap();
            if over {
                drop(dial);
            } else {
                std::future::pending::<()>().await;
            }
        };
        let refused = tokio::select! {
            refused = refusing => refused,
            () = async { telling.await; std::future::pending().await } => unreachable!(),
        };
        let mut read = vec![0; app.len()];
        if refused.is_ok() {
            leg.read_exact(&mut read).await.unwrap();
        }
        guard.end(CloseReason::Closed);
        (refused, read)
    }

    const HELLO: [u8; 60] = [22; 60];

    #[tokio::test]
    async fn our_own_connection_is_told_from_an_apps_of_the_same_addresses_by_its_first_bytes() {
        assert_eq!(alike(false, &HELLO).await.0, Err(CloseReason::SelfCall));
        for app in [&b"GET / HTTP/1.1\r\n"[..], b"x", &[&HELLO[..20], b"y"].concat()] {
            assert_eq!(alike(false, app).await, (Ok(()), app.to_vec()));
        }
        // Too few to tell, and none at all: until our own is made.
        for app in [&HELLO[..20], b""] {
            assert_eq!(alike(true, app).await, (Ok(()), app.to_vec()));
        }
    }
}
