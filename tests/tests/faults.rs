//! Faults of peers and applications, each passed on as what it is.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use pillion_testbed::forge::Svid;
use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, port, reason};
use pillion_testbed::stream::{End, Outcome, ask, pass, read_exactly, read_to_end, reset};
use pillion_testbed::wear::descriptors_at_rest;
use pillion_testbed::{
    Failure, LogLine, MeshOptions, Pair, Pod, Sidecar, Testbed, accept, complete, finish, policy,
    run, untouched, wait_until,
};

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(30);

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
        ended_both(&pair, reason::PEER_RESET, 2 * pair.server.addresses().len())
    });
}

/// All that has ended at either sidecar: so many connections for this reason, each with its line.
fn ended_both(pair: &Pair, why: &str, count: usize) -> Result<(), Failure> {
    for (sidecar, way) in [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
    {
        sidecar.wait_idle()?;
        sidecar.wait_ended(way, why, count)?;
        let reasons = sidecar.metrics()?.by(metric::CLOSED, "reason");
        assert_eq!(reasons.keys().collect::<Vec<_>>(), [why], "{way}: {reasons:?}");
    }
    Ok(())
}

/// Both legs of both sidecars, whichever end breaks off.
#[test]
fn after_a_reset_the_descriptors_are_back_at_once() {
    const TIMES: usize = 21;
    run("rst-descriptors", |bed| {
        let mut pair = Pair::new(bed)?;
        let calls = policy::call_without_reuse(&pair.server.addresses(), SERVER);
        pair.caller.load_policy(&calls)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        // What a process opens once is open before it is counted.
        pair.exchange(&listener)?;
        let at_rest = descriptors_at_rest(&mut pair, &format!("{calls}# again\n"))?;
        let mut took = Vec::new();
        for number in 0..TIMES {
            let (mut client, mut server) = pair.open(&listener)?;
            pass(&mut client, &mut server, b"hello")?;
            let (gone, mut told) =
                if number % 2 == 0 { (client, server) } else { (server, client) };
            let start = Instant::now();
            reset(gone)?;
            wait_until("the descriptors", LIMIT, || {
                let now =
                    [pair.caller.process().descriptors()?, pair.callee.process().descriptors()?];
                Ok((now[0] <= at_rest[0] && now[1] <= at_rest[1]).then_some(()))
            })?;
            took.push(start.elapsed());
            assert_eq!(read_to_end(&mut told)?, (Vec::new(), End::Reset));
        }
        took.sort();
        let (median, last) = (took[TIMES / 2], took[TIMES - 1]);
        println!("the descriptors were back after {median:?}, at the latest {last:?}");
        // A machine that does other things, too, looks at them later.
        let at_once = bed.settings().few_or(Duration::from_secs(1), Duration::from_millis(100));
        assert!(median < at_once, "{took:?}");
        for (sidecar, way) in
            [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
        {
            sidecar.wait_ended(way, reason::PEER_RESET, TIMES)?;
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
        ended_both(&pair, reason::CLOSED, 2 * pair.server.addresses().len())
    });
}

#[test]
fn a_closed_app_port_is_refused_at_once() {
    run("refused-app", |bed| {
        let pair = Pair::with_env(bed, &[("PILLION_CONNECT_TIMEOUT", "20s")])?;
        for address in pair.server.addresses() {
            let start = Instant::now();
            let outcome = ask(&pair.client, SocketAddr::new(address, APP), b"anyone?")?;
            assert!(outcome.is_turned_away(), "{address}: {outcome:?}");
            // What would be waited for is the deadline, of 20 s.
            assert!(start.elapsed() < Duration::from_secs(15), "{address}: {:?}", start.elapsed());
        }
        let count = pair.server.addresses().len();
        let lines = pair.callee.wait_ended(direction::INBOUND, reason::CONNECT_REFUSED, count)?;
        let app = format!(":{APP}");
        assert!(lines.iter().all(|it| it.text(field::DESTINATION).ends_with(&app)), "{lines:?}");
        let failed = [("direction", direction::INBOUND), ("reason", reason::CONNECT_REFUSED)];
        assert_eq!(pair.callee.metric(metric::CONNECT_FAILURES, &failed)?, count as f64);
        // The client's sidecar was reset.
        pair.caller.wait_ended(direction::OUTBOUND, reason::PEER_RESET, count).map(drop)
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
        callee.wait_ended(direction::INBOUND, reason::TRUNCATED, 1).map(drop)
    });
}

/// The proxy's own ports.
const OWN: [u16; 5] = [port::OUTBOUND, port::INBOUND, port::METRICS, port::HEALTH, port::ADMIN];

/// What may become of a connection to one of them.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody listens at that address.
    Refused,
    /// By a server of the proxy's own, which is no destination either: it says what is wrong.
    Answered,
    /// Accepted by a listener of the apps' connections, and closed.
    SelfCall,
}

/// What has to become of one: captured, it comes to the inbound listener, and else to whoever
/// listens there.
fn fate(to: SocketAddr, captured: bool) -> Fate {
    let ip = to.ip().to_canonical();
    // To dial no address is to dial loopback; 127.0.0.6 is none that anything is bound to.
    let loopback = ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST;
    match to.port() {
        port::METRICS | port::HEALTH => Fate::Answered,
        _ if captured => Fate::SelfCall,
        port::INBOUND => Fate::SelfCall,
        port::OUTBOUND if loopback => Fate::SelfCall,
        port::ADMIN if loopback => Fate::Answered,
        _ => Fate::Refused,
    }
}

const IS_IT: &[u8] = b"is this a loop?\n";

/// The same question, asked by a program of the proxy's own user: what that dials within the pod is
/// captured as what comes from outside.
fn ask_as_proxy(pod: &Pod, to: SocketAddr) -> Result<Outcome, Failure> {
    let line = "exec 3<>/dev/tcp/$0/$1 && echo 'is this a loop?' >&3 && exec cat <&3";
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    let words = ["20", "bash", "-c", line, &*host, &*port];
    let asked = finish(pod.daemon_as("1337", "timeout").args(words))?;
    Ok(match (asked.stdout.is_empty(), asked.stderr.contains("refused")) {
        (false, _) => Outcome::Served(asked.stdout.into_bytes()),
        (true, true) => Outcome::Refused,
        (true, false) => Outcome::Reset,
    })
}

/// The same of a client with a sidecar, which asks only where somebody is to answer.
fn ask_if_answered(pod: &Pod, to: SocketAddr) -> Result<Outcome, Failure> {
    ask(pod, to, if fate(to, true) == Fate::Answered { IS_IT } else { b"" })
}

/// Dials each of the own ports at these addresses, and checks what becomes of each; returns how
/// many self calls these were.
fn dial_each(
    who: &str,
    addresses: &[IpAddr],
    captured: impl Fn(IpAddr) -> bool,
    dial: impl Fn(SocketAddr) -> Result<Outcome, Failure>,
) -> Result<usize, Failure> {
    let (mut self_calls, mut took) = (0, Vec::new());
    for ip in addresses {
        for own_port in OWN {
            let (to, start) = (SocketAddr::new(*ip, own_port), Instant::now());
            let outcome = dial(to)?;
            took.push(start.elapsed());
            let came = match &outcome {
                Outcome::Refused => Fate::Refused,
                Outcome::Served(bytes) if bytes.starts_with(b"HTTP/1.") => Fate::Answered,
                Outcome::Reset => Fate::SelfCall,
                other => return Err(Failure::Unexpected(format!("{who}, {to}: {other:?}"))),
            };
            assert_eq!(came, fate(to, captured(*ip)), "{who}, {to}: {outcome:?}");
            self_calls += usize::from(came == Fate::SelfCall);
        }
    }
    took.sort();
    let at = |place: usize| took.get(place).copied().unwrap_or_default();
    let (median, last) = (at(took.len() / 2), at(took.len().saturating_sub(1)));
    println!("{who}: {} dials, {self_calls} self calls, {median:?} to {last:?}", took.len());
    // What would be waited for is a deadline, of 5 s at least.
    assert!(median < Duration::from_secs(4) && last < Duration::from_secs(15), "{who}: {took:?}");
    Ok(self_calls)
}

/// Each own port by each way to write an address of the pod, captured or not: within the pod,
/// within it by the proxy's user, from a peer, and from one with a sidecar.
#[test]
fn its_own_ports_are_no_destination() {
    run("self-call", |bed| {
        let (server, plain, client) = (bed.pod("srv")?, bed.pod("pln")?, bed.pod("cli")?);
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        let caller = client.mesh(bed, MeshOptions::new(policy::pass(), CLIENT))?;
        let mapped = |v4: IpAddr| match v4 {
            IpAddr::V4(v4) => IpAddr::from(v4.to_ipv6_mapped()),
            v6 => v6,
        };
        let loopback = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 6), Ipv4Addr::UNSPECIFIED];
        let loopback = loopback.map(IpAddr::from);
        // From outside; an IPv6 socket reaches IPv4 by mapped addresses.
        let mut outer = server.addresses();
        let has_v6 = outer.len() > 1;
        outer.extend(Some(mapped(server.v4())).filter(|_| has_v6));
        let v6 = [Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into(), mapped(loopback[0])];
        let v6 = v6.into_iter().filter(|_| has_v6);
        let inner: Vec<_> = loopback.into_iter().chain(v6).chain(outer.clone()).collect();
        let of_pod = |ip: IpAddr| outer.contains(&ip);

        let by_app = dial_each("the app", &inner, |_| false, |to| ask(&server, to, IS_IT))?;
        let by_user =
            dial_each("the proxy's user", &inner, of_pod, |to| ask_as_proxy(&server, to))?;
        let by_peer = dial_each("a peer", &outer, |_| true, |to| ask(&plain, to, IS_IT))?;
        let by_meshed =
            dial_each("a peer's sidecar", &outer, |_| true, |to| ask_if_answered(&client, to))?;

        let all = by_app + by_user + by_peer + by_meshed;
        callee.wait_idle()?;
        let outbound = callee.count(metric::OPENED, &[("direction", direction::OUTBOUND)])?;
        callee.wait_ended(direction::OUTBOUND, reason::SELF_CALL, outbound)?;
        callee.wait_ended(direction::INBOUND, reason::SELF_CALL, all - outbound)?;
        assert_eq!(callee.metric(metric::SELF_CALL, &[])?, all as f64);
        // No loop, and no second hop: that would be one connection more.
        assert_eq!(callee.metric(metric::OPENED, &[])?, all as f64);
        // To the client's sidecar these are ports of somebody else's.
        caller.wait_idle()?;
        let dials = (OWN.len() * outer.len()) as f64;
        assert_eq!(caller.metric(metric::OPENED, &[])?, dials);
        assert_eq!(caller.metric(metric::SELF_CALL, &[])?, 0.0);
        Ok(())
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
        let mut silent = 0;
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
                assert!(took < Duration::from_secs(8), "the default, of 10 s: {took:?}");
                silent += 1;
            }
        }
        callee.wait_ended(direction::INBOUND, reason::HANDSHAKE_TIMEOUT, silent)?;
        let timeout = [("direction", direction::INBOUND), ("result", "timeout")];
        callee.wait_metric(metric::HANDSHAKES, &timeout, silent as f64)
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
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        caller.wait_ended(direction::OUTBOUND, reason::HANDSHAKE_TIMEOUT, 1)?;
        let timeout = [("direction", direction::OUTBOUND), ("result", "timeout")];
        caller.wait_metric(metric::HANDSHAKES, &timeout, 1.0)
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
            let lines = sidecar.wait_ended(way, reason::CLOSED, 1)?;
            let plain = |line: &LogLine| {
                line.text(field::DESTINATION) == to && !line.text(field::SOURCE).contains("ffff")
            };
            assert!(lines.iter().all(plain), "{lines:?}");
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
    let failed = [("direction", direction::INBOUND)];
    callee.wait_metric(metric::CONNECT_FAILURES, &failed, 1.0)?;
    let named = |line: &LogLine| line.text(field::DESTINATION).starts_with("[fe80:");
    let lines = callee.wait_logs("the link-local", 1, named)?;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let why = lines.first().map(LogLine::reason).unwrap_or_default();
    assert!(why.starts_with("connect_"), "{lines:?}");
    callee.wait_ended(direction::INBOUND, &why, 1)?;
    untouched(&listener)
}

/// Pods of a cluster that has no IPv4.
#[test]
fn pods_with_ipv6_alone_are_served() {
    run("v6-alone", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let Some(address) = server.addresses().into_iter().find(IpAddr::is_ipv6) else {
            return Ok(());
        };
        for pod in [&server, &client] {
            complete(&mut pod.shell("ip -4 addr flush dev eth0 && ip -4 route flush dev eth0"))?;
        }
        let pair = Pair::mesh(bed, client, server, &[])?;
        let listener = pair.listen(address, APP)?;
        pair.exchange(&listener)?;
        ended_both(&pair, reason::CLOSED, 1)?;
        pair.check_meshed()
    });
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
        pair.caller.wait_ended(direction::OUTBOUND, reason::PANIC, 3)?;
        pass(&mut client, &mut server, b"the open one goes on")?;
        pass(&mut server, &mut client, b"both ways")?;
        assert_eq!(pair.caller.metric(metric::OPEN, &[])?, 1.0);
        assert_eq!(pair.caller.health("/healthz/ready")?.0, 200);
        pair.exchange(&listener)
    });
}
