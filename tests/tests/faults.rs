//! Faults of peers and applications, each passed on as what it is.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use pillion_testbed::forge::Svid;
use pillion_testbed::labels::{CLIENT, SERVER, direction, metric, port, reason};
use pillion_testbed::stream::{End, Outcome, ask, pass, read_exactly, read_to_end, reset};
use pillion_testbed::{
    Failure, LogLine, MeshOptions, Pair, Pod, Sidecar, Testbed, accept, complete, policy, run,
    untouched,
};

const APP: u16 = 8080;

#[test]
fn rst_is_rst_both_ways() {
    run("rst", |bed| {
        let pair = Pair::new(bed)?;
        for address in pair.server.addresses() {
            let listener = pair.listen(address, APP)?;

            let (mut client, mut server) = pair.open(&listener)?;
            pass(&mut client, &mut server, b"hello")?;
            reset(client)?;
            assert_eq!(read_to_end(&mut server)?, (Vec::new(), End::Reset), "{address}: client's");

            let (mut client, mut server) = pair.open(&listener)?;
            pass(&mut client, &mut server, b"hello")?;
            reset(server)?;
            assert_eq!(read_to_end(&mut client)?, (Vec::new(), End::Reset), "{address}: server's");
        }
        let resets = 2.0 * f64::from(u8::try_from(pair.server.addresses().len()).unwrap_or(0));
        for (sidecar, way) in
            [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
        {
            let labels = [("direction", way), ("reason", reason::PEER_RESET)];
            sidecar.wait_metric(metric::CLOSED, &labels, resets)?;
            sidecar.wait_idle()?;
            sidecar.wait_logs("resets", 2, |line| line.is(way, reason::PEER_RESET))?;
        }
        Ok(())
    });
}

#[test]
fn fin_is_fin_both_ways() {
    run("fin", |bed| {
        let pair = Pair::new(bed)?;
        for address in pair.server.addresses() {
            let listener = pair.listen(address, APP)?;
            for client_first in [true, false] {
                let (mut client, mut server) = pair.open(&listener)?;
                let (first, second) = if client_first {
                    (&mut client, &mut server)
                } else {
                    (&mut server, &mut client)
                };
                first.write_all(b"last words")?;
                first.shutdown(Shutdown::Write)?;
                assert_eq!(read_to_end(second)?, (b"last words".to_vec(), End::Fin));
                pass(second, first, b"the other direction flows on")?;
                second.shutdown(Shutdown::Write)?;
                assert_eq!(read_to_end(first)?, (Vec::new(), End::Fin));
            }
        }
        for sidecar in [&pair.caller, &pair.callee] {
            sidecar.wait_idle()?;
            let reasons = sidecar.metrics()?.by(metric::CLOSED, "reason");
            assert_eq!(reasons.keys().collect::<Vec<_>>(), [reason::CLOSED], "{reasons:?}");
        }
        Ok(())
    });
}

#[test]
fn a_closed_app_port_is_refused_at_once() {
    run("refused-app", |bed| {
        let pair = Pair::new(bed)?;
        for address in pair.server.addresses() {
            let start = Instant::now();
            let outcome = ask(&pair.client, SocketAddr::new(address, APP), b"anyone?")?;
            assert!(outcome.is_turned_away(), "{address}: {outcome:?}");
            assert!(start.elapsed() < Duration::from_secs(2), "{address}: {:?}", start.elapsed());
        }
        pair.callee
            .wait_logs("a refused app", 1, |line| {
                line.is(direction::INBOUND, reason::CONNECT_REFUSED)
            })
            .map(drop)
    });
}

/// A TLS peer that goes without `close_notify` has not said that it is done (RFC 8446, 6.1): the
/// app must not take what came for all there is.
#[test]
fn truncation_is_no_end_of_file() {
    run("truncation", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        let svid = Svid::in_directory(&bed.issue(&bed.ca()?, CLIENT, "client")?);
        let to = SocketAddr::new(server.v4(), APP);
        let listener = server.listen(to)?;
        let line = format!(
            "{{ echo half a message; sleep 60; }} | \
             openssl s_client -connect {to} -tls1_3 -quiet -cert {} -key {}",
            svid.cert, svid.key
        );
        let peer = client.spawn("s_client", &mut client.shell(&line))?;
        let mut app = accept(&listener)?;
        assert_eq!(read_exactly(&mut app, 15)?, b"half a message\n");
        // Killed, its kernel sends a FIN and nobody sends a close_notify.
        drop(peer);
        assert_eq!(read_to_end(&mut app)?, (Vec::new(), End::Reset));
        let labels = [("direction", direction::INBOUND), ("reason", reason::TRUNCATED)];
        callee.wait_metric(metric::CLOSED, &labels, 1.0)?;
        callee
            .wait_logs("the truncation", 1, |line| line.is(direction::INBOUND, reason::TRUNCATED))
            .map(drop)
    });
}

/// Dials and says whether the connection was made; it must be over within a second.
fn dial(from: &Pod, to: SocketAddr) -> Result<bool, Failure> {
    let start = Instant::now();
    let outcome = ask(from, to, b"is this a loop?\n")?;
    let took = start.elapsed();
    println!("pod {} dials {to}: {outcome:?} after {took:?}", from.name());
    assert!(!matches!(outcome, Outcome::Served(_)), "{to}: {outcome:?}");
    assert!(took < Duration::from_secs(1), "{to}: {took:?}");
    Ok(outcome != Outcome::Refused)
}

#[test]
fn its_own_ports_are_no_destination() {
    run("self-call", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        let has_v6 = server.addresses().len() > 1;

        // From the pod itself, past the redirect: only what listens there can be reached.
        let loopback = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 6), Ipv4Addr::UNSPECIFIED];
        let loopback = loopback.map(IpAddr::from);
        let mapped = |v4: IpAddr| match v4 {
            IpAddr::V4(v4) => IpAddr::from(v4.to_ipv6_mapped()),
            v6 => v6,
        };
        // An IPv6 socket reaches IPv4 by mapped addresses.
        let v6 = [Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()]
            .into_iter()
            .chain([mapped(loopback[0]), mapped(server.v4())]);
        let v6 = v6.filter(|_| has_v6);
        let own: Vec<IpAddr> = loopback.into_iter().chain(v6).chain(server.addresses()).collect();
        let mut made = 0_u32;
        for address in &own {
            for own_port in [port::OUTBOUND, port::INBOUND] {
                made += u32::from(dial(&server, SocketAddr::new(*address, own_port))?);
            }
        }
        // From a peer, through the redirect.
        for address in server.addresses() {
            for own_port in [port::OUTBOUND, port::INBOUND, port::ADMIN] {
                made += u32::from(dial(&client, SocketAddr::new(address, own_port))?);
            }
        }
        assert!(made > 0, "some are reached, or this tests nothing");
        callee.wait_metric(metric::SELF_CALL, &[], f64::from(made))?;
        callee.wait_idle()?;
        assert_eq!(callee.metric(metric::SELF_CALL, &[])?, f64::from(made), "no second hop");
        let reasons = callee.metrics()?.by(metric::CLOSED, "reason");
        assert_eq!(reasons.keys().collect::<Vec<_>>(), [reason::SELF_CALL], "{reasons:?}");
        let count = usize::try_from(made).unwrap_or(usize::MAX);
        let own_call = |line: &LogLine| line.reason() == reason::SELF_CALL;
        callee.wait_logs("self calls", count, own_call).map(drop)
    });
}

/// Each says too little: nothing, three bytes, half of a ClientHello. The deadline is one for the
/// whole handshake.
#[test]
fn a_silent_peer_is_closed_at_the_deadline() {
    const DEADLINE: Duration = Duration::from_secs(1);
    let half_a_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03half of a random";
    run("silence", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
        let callee = server.mesh(bed, serve.env("PILLION_HANDSHAKE_TIMEOUT", "1s"))?;
        let mut silent = 0.0;
        for address in server.addresses() {
            for said in [b"".as_slice(), b"\x16\x03\x01", half_a_hello] {
                let start = Instant::now();
                let mut stream = client.connect(SocketAddr::new(address, APP))?;
                stream.write_all(said)?;
                // A FIN or a RST: either is an end.
                let (bytes, end) = read_to_end(&mut stream)?;
                let took = start.elapsed();
                println!("{address}: {} bytes, then {end:?} after {took:?}", said.len());
                assert_eq!(bytes, b"");
                assert!(took >= DEADLINE.mul_f32(0.9), "{took:?}");
                assert!(took < DEADLINE * 3, "{took:?}");
                silent += 1.0;
            }
        }
        let labels = [("direction", direction::INBOUND), ("reason", reason::HANDSHAKE_TIMEOUT)];
        callee.wait_metric(metric::CLOSED, &labels, silent)?;
        let timeout = [("direction", direction::INBOUND), ("result", "timeout")];
        callee.wait_metric(metric::HANDSHAKES, &timeout, silent)
    });
}

/// The server's side of the same: an app that calls a server which never answers the ClientHello.
#[test]
fn a_silent_server_is_given_up_at_the_deadline() {
    run("silent-server", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let call = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
        let caller = client.mesh(bed, call.env("PILLION_HANDSHAKE_TIMEOUT", "1s"))?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let start = Instant::now();
        let mut app = client.connect(listener.local_addr()?)?;
        let mut silent = accept(&listener)?;
        let mut hello = [0; 1];
        silent.read_exact(&mut hello)?;
        assert_eq!(hello, [22], "a handshake record, never plaintext");
        assert_eq!(read_to_end(&mut app)?, (Vec::new(), End::Reset));
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        let labels = [("direction", direction::OUTBOUND), ("reason", reason::HANDSHAKE_TIMEOUT)];
        caller.wait_metric(metric::CLOSED, &labels, 1.0)
    });
}

/// How an address is written must not matter: a mapped one is the IPv4 address that it stands for,
/// and a link-local one is dialled in its zone.
#[test]
fn mapped_and_link_local_addresses_are_what_they_stand_for() {
    run("mapped", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let IpAddr::V4(v4) = pair.server.v4() else {
            return Err(Failure::Unexpected("no IPv4 address".to_owned()));
        };
        if pair.server.addresses().len() < 2 {
            return pair.exchange(&listener);
        }
        let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), APP);
        let mut client = pair.client.connect(mapped)?;
        let mut server = accept(&listener)?;
        pass(&mut client, &mut server, b"to a mapped address")?;
        drop((client, server));
        pair.check_meshed()?;
        let to = listener.local_addr()?.to_string();
        for (sidecar, way) in
            [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
        {
            let lines = sidecar.wait_logs("the mapped", 1, |line| {
                line.is(way, reason::CLOSED) && line.text("destination") == to
            })?;
            assert!(lines.iter().all(|line| !line.text("source").contains("ffff")), "{lines:?}");
            let closed = [("direction", way), ("reason", reason::CLOSED)];
            assert_eq!(sidecar.metric(metric::CLOSED, &closed)?, 1.0);
        }
        link_local(bed, &pair.server, &pair.callee)
    });
}

/// A client in a pod without rules dials the server's link-local address. No app can be dialled
/// there from the inbound source address, which is of no link: the client is told by a reset.
fn link_local(bed: &Testbed, server: &Pod, callee: &Sidecar) -> Result<(), Failure> {
    let client = bed.pod("pln")?;
    let show = "ip -6 -o addr show dev eth0 scope link | awk '{print $4}' | cut -d/ -f1";
    let address = complete(&mut server.shell(show))?;
    let zone = complete(&mut client.shell("ip -o link show eth0 | cut -d: -f1"))?;
    let none = |what: &dyn std::fmt::Display| Failure::Unexpected(format!("no address: {what}"));
    let ip: Ipv6Addr = address.trim().parse().map_err(|error| none(&error))?;
    let zone: u32 = zone.trim().parse().map_err(|error| none(&error))?;
    callee.load_policy(&policy::serve_in_mode("disable"))?;
    let listener = server.listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), APP + 1))?;
    let to = SocketAddrV6::new(ip, APP + 1, 0, zone).into();
    assert_eq!(ask(&client, to, b"by a link-local address")?, Outcome::Reset);
    let named = |line: &LogLine| {
        line.text("destination").starts_with("[fe80:") && line.reason().starts_with("connect_")
    };
    assert_eq!(callee.wait_logs("the link-local", 1, named)?.len(), 1);
    untouched(&listener)
}

/// In a build for tests the proxy panics where an app dials one address that nobody has.
#[test]
fn a_panic_ends_one_connection_and_nothing_else() {
    run("panic", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"before")?;
        for panics in 1..=3 {
            let to = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 27).into(), 27);
            assert_eq!(ask(&pair.client, to, b"panic")?, Outcome::Reset);
            pair.caller.wait_metric(metric::PANICS, &[], f64::from(panics))?;
        }
        let labels = [("direction", direction::OUTBOUND), ("reason", reason::PANIC)];
        assert_eq!(pair.caller.metric(metric::CLOSED, &labels)?, 3.0);
        let panicked = |line: &LogLine| line.is(direction::OUTBOUND, reason::PANIC);
        assert_eq!(pair.caller.wait_logs("panics", 3, panicked)?.len(), 3);
        pass(&mut client, &mut server, b"the open one goes on")?;
        pass(&mut server, &mut client, b"both ways")?;
        assert_eq!(pair.caller.metric(metric::OPEN, &[])?, 1.0);
        assert_eq!(pair.caller.health("/healthz/ready")?.0, 200);
        pair.exchange(&listener)
    });
}
