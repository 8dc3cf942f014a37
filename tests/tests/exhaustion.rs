//! What a pod runs out of: ports, memory, patience of a network that does not answer, entries of
//! the connection table. Those whom it concerns are told at once, and nobody else notices.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, port, reason};
use pillion_testbed::pace::{Times, paced};
use pillion_testbed::stream::{End, Outcome, ask, pass, read_exactly, read_to_end};
use pillion_testbed::{
    Context, Failure, LogLine, MemoryGroup, MeshOptions, Pair, Pod, Sidecar, accept, complete,
    let_pass, more_descriptors, policy, run, untouched, wait_until,
};
use socket2::{Domain, SockRef, Socket, Type};

const APP: u16 = 8080;
const OTHER_APP: u16 = 8081;
const LIMIT: Duration = Duration::from_secs(30);

/// So many local ports are left.
const PORTS: usize = 64;

fn set(pod: &Pod, name: &str, value: &str) -> Result<(), Failure> {
    pod.enter(|| std::fs::write(format!("/proc/sys/net/{name}"), value).context(|| name))
}

/// Exactly `count` connections of a direction have ended for a reason, each with its line; what
/// the lines say is given to `detail`.
fn ended(
    sidecar: &Sidecar,
    way: &str,
    why: &str,
    count: usize,
    detail: impl Fn(&str) -> bool,
) -> Result<(), Failure> {
    let lines = sidecar.wait_ended(way, why, count)?;
    assert!(lines.iter().all(|line| detail(&line.text(field::DETAIL))), "{lines:?}");
    Ok(())
}

/// A connection of an app's from a port of its own choice, which may be outside the range.
fn connect_from(pod: &Pod, own_port: u16, to: SocketAddr) -> Result<TcpStream, Failure> {
    pod.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(pod.v4(), own_port).into())?;
        socket.connect(&to.into()).context(|| format!("connecting to {to}"))?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket.into())
    })
}

/// Sixty-four local ports, and one destination takes them all. The next connection to it is reset;
/// another destination has the same ports once more.
#[test]
fn without_a_local_port_one_client_is_reset_and_no_other() {
    run("outbound-ports", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        // No ports of the proxy's own.
        let pass_on = MeshOptions::new(policy::pass(), CLIENT).env("PILLION_SOURCE_PORTS", "off");
        let caller = client.mesh(bed, pass_on)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let other = server.listen(SocketAddr::new(server.v4(), OTHER_APP))?;
        set(&client, "ipv4/ip_local_port_range", "40000 40063")?;
        let to = app.local_addr()?;
        let mut open = Vec::new();
        for n in 0..PORTS {
            let asking = connect_from(&client, 50_000 + u16::try_from(n).unwrap_or(0), to)?;
            open.push((asking, accept(&app)?));
        }
        for n in 0..3 {
            let mut refused = connect_from(&client, 51_000 + n, to)?;
            assert_eq!(read_to_end(&mut refused)?, (Vec::new(), End::Reset));
        }
        ended(&caller, direction::OUTBOUND, reason::NO_LOCAL_PORT, 3, |detail| {
            detail.contains(&to.to_string())
        })?;
        let failed = [("direction", direction::OUTBOUND), ("reason", reason::NO_LOCAL_PORT)];
        assert_eq!(caller.metric(metric::CONNECT_FAILURES, &failed)?, 3.0);
        for (asking, answering) in &mut open {
            pass(asking, answering, b"the others go on")?;
        }
        let mut asking = connect_from(&client, 52_000, other.local_addr()?)?;
        pass(&mut asking, &mut accept(&other)?, b"elsewhere")?;
        if let Some((mut asking, answering)) = open.pop() {
            // Whoever closes first keeps its port for a while (TIME-WAIT): not the proxy.
            drop(answering);
            assert_eq!(read_to_end(&mut asking)?, (Vec::new(), End::Fin));
        }
        caller.wait_metric(metric::OPEN, &[], PORTS as f64)?;
        let mut asking = connect_from(&client, 52_001, to)?;
        pass(&mut asking, &mut accept(&app)?, b"a port is back")
    });
}

/// The way to the app has one source address. Without IP_BIND_ADDRESS_NO_PORT each connection would
/// keep a port of its own, whichever app it is for.
#[test]
fn two_apps_of_a_pod_have_all_local_ports_each() {
    run("inbound-ports", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let serve = MeshOptions::new(policy::serve_in_mode("disable"), SERVER);
        let callee = server.mesh(bed, serve)?;
        let apps = [APP, OTHER_APP].map(|port| server.listen(SocketAddr::new(server.v4(), port)));
        let [app, other] = apps;
        let (app, other) = (app?, other?);
        set(&server, "ipv4/ip_local_port_range", "40000 40063")?;
        let mut open = Vec::new();
        for listener in [&app, &other] {
            for _ in 0..PORTS {
                let asking = client.connect(listener.local_addr()?)?;
                open.push((asking, accept(listener)?));
            }
        }
        let outcome = ask(&client, app.local_addr()?, b"one too many")?;
        assert_eq!(outcome, Outcome::Reset);
        ended(&callee, direction::INBOUND, reason::NO_LOCAL_PORT, 1, |detail| !detail.is_empty())?;
        for (asking, answering) in &mut open {
            pass(asking, answering, b"all go on")?;
        }
        Ok(())
    });
}

/// The SYN-ACK never comes, as if the SYN had been dropped.
#[test]
fn a_server_that_does_not_answer_the_syn_is_given_up_after_five_seconds() {
    run("no-syn-ack", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let call = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
        let caller = client.mesh(bed, call)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let words = format!("ip route add blackhole {}", client.v4());
        complete(&mut server.shell(&words))?;
        let (start, to) = (Instant::now(), app.local_addr()?);
        assert_eq!(ask(&client, to, b"hello?")?, Outcome::Reset);
        let took = start.elapsed();
        println!("given up after {took:?}");
        assert!(took >= Duration::from_millis(4900) && took < Duration::from_secs(9), "{took:?}");
        ended(&caller, direction::OUTBOUND, reason::CONNECT_TIMEOUT, 1, |detail| {
            detail.contains(&to.to_string()) && detail.contains("5s")
        })?;
        let failed = [("direction", direction::OUTBOUND), ("reason", reason::CONNECT_TIMEOUT)];
        assert_eq!(caller.metric(metric::CONNECT_FAILURES, &failed)?, 1.0);
        untouched(&app)
    });
}

/// A server that refuses, and one that there is no way to: the app learns it at once, by a reset.
#[test]
fn a_refused_and_an_unreachable_server_are_told_at_once() {
    run("unreachable", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let nowhere = IpAddr::from(Ipv4Addr::new(192, 0, 2, 9));
        let servers = [server.addresses(), vec![nowhere]].concat();
        let call = MeshOptions::new(policy::call(&servers, SERVER), CLIENT);
        let caller = client.mesh(bed, call.env("PILLION_CONNECT_TIMEOUT", "20s"))?;
        // By a rule of our own mark: the app's own packets take the route before the redirect.
        complete(&mut client.shell(&format!(
            "ip route add unreachable {nowhere} table 99 && ip rule add uidrange 1337-1337 lookup 99"
        )))?;
        for (to, why) in
            [(server.v4(), reason::CONNECT_REFUSED), (nowhere, reason::CONNECT_UNREACHABLE)]
        {
            let to = SocketAddr::new(to, APP);
            for _ in 0..3 {
                let start = Instant::now();
                assert_eq!(ask(&client, to, b"anyone?")?, Outcome::Reset, "{to}");
                // What would be waited for is the deadline, of 20 s.
                assert!(start.elapsed() < Duration::from_secs(15), "{to}: {:?}", start.elapsed());
            }
            let named = |detail: &str| detail.contains(&to.to_string());
            ended(&caller, direction::OUTBOUND, why, 3, named)?;
            let failed = [("direction", direction::OUTBOUND), ("reason", why)];
            assert_eq!(caller.metric(metric::CONNECT_FAILURES, &failed)?, 3.0);
        }
        // The log itself is not filled by servers that are down: a line each in the access log.
        let said = caller.messages("")?;
        let of_it = |line: &&LogLine| ["WARN", "ERROR"].contains(&&*line.text("level"));
        let of_it: Vec<_> = said.iter().filter(of_it).collect();
        assert!(of_it.is_empty(), "{of_it:?}");
        Ok(())
    });
}

/// Without an entry in the kernel's table nobody knows where a client meant to go.
#[test]
fn without_an_original_destination_a_connection_is_closed_and_none_is_guessed() {
    run("no-original-dst", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let serve = MeshOptions::new(policy::serve_in_mode("disable"), SERVER);
        let callee = server.mesh(bed, serve)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let stray = bed.pod("stray")?;
        // Its packets and the answers to them have no entry in the table.
        let untracked = format!(
            "nft add table ip untracked && \
             nft 'add chain ip untracked in {{ type filter hook prerouting priority -300; }}' && \
             nft add rule ip untracked in ip saddr {0} notrack && \
             nft 'add chain ip untracked out {{ type filter hook output priority -300; }}' && \
             nft add rule ip untracked out ip daddr {0} notrack",
            stray.v4()
        );
        complete(&mut server.shell(&untracked))?;
        for _ in 0..3 {
            let to = SocketAddr::new(server.v4(), port::INBOUND);
            let outcome = ask(&stray, to, b"where to?")?;
            assert_eq!(outcome, Outcome::Reset);
        }
        ended(&callee, direction::INBOUND, reason::NO_ORIGINAL_DST, 3, |detail| {
            detail.contains("SO_ORIGINAL_DST")
        })?;
        untouched(&app)?;
        let mut asking = client.connect(app.local_addr()?)?;
        pass(&mut asking, &mut accept(&app)?, b"who is tracked is served")
    });
}

/// The server's app goes away with all its connections and is back at once, and so are its clients.
#[test]
fn a_restarted_app_serves_all_who_come_back_at_once() {
    run("thundering-herd", |bed| {
        let clients = bed.settings().few_or(400, 5000);
        more_descriptors()?;
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        for pod in [&client, &server] {
            pillion_testbed::load::recycle_ports(pod)?;
        }
        // As many for the proxy as for the app: one of the app's that the proxy has just had would
        // be refused.
        set(&client, "ipv4/ip_local_port_range", "16000 39999")?;
        let ports = [("PILLION_SOURCE_PORTS", "40000-65535")];
        let pair = Pair::mesh(bed, client, server, &ports)?;
        let to = SocketAddr::new(pair.server.v4(), APP);
        let mut app = pair.server.listen(to)?;
        // The first ones take what a process takes once.
        let (first, usual) = (one_by_one(&pair, &app)?, one_by_one(&pair, &app)?);
        let mut open = open_all(&pair.client, &app, clients)?;
        println!("{clients} are connected");
        // All connections of the app's end with it.
        drop(app);
        for (asking, answering) in open.drain(..) {
            pillion_testbed::stream::reset(answering)?;
            drop(asking);
        }
        pair.callee.wait_idle()?;
        pair.caller.wait_idle()?;
        app = pair.server.listen(to)?;
        let overflows = [overflows(&pair.client)?, overflows(&pair.server)?];
        let start = Instant::now();
        let open = open_all(&pair.client, &app, clients)?;
        println!("{clients} were back after {:?}", start.elapsed());
        let now = [self::overflows(&pair.client)?, self::overflows(&pair.server)?];
        assert_eq!(now, overflows, "no SYN was lost for want of room");
        // What those take who come now, beside all who are back. On a machine that does other
        // things, too, it is not to the millisecond what it was.
        let (soon, noise) = bed
            .settings()
            .few_or((LIMIT, Duration::from_secs(1)), (Duration::from_secs(10), NOISE));
        let most = 2 * usual.percentile(99).max(noise);
        let mut served = first.served() + usual.served();
        let now = wait_until("the usual time again", soon, || {
            let now = one_by_one(&pair, &app)?;
            served += now.served();
            Ok((now.percentile(99) <= most).then_some(now))
        })?;
        let after = start.elapsed();
        println!("before: {usual}; {after:?} after the restart: {now}");
        assert!(after <= soon, "{after:?}");
        for (sidecar, way) in
            [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
        {
            let opened = sidecar.metric(metric::OPENED, &[("direction", way)])?;
            assert_eq!(opened, (2 * clients + served) as f64, "{way}: none was tried twice");
            // Each of the first ones ended by the app's reset, and has its line.
            ended(sidecar, way, reason::PEER_RESET, clients, |_| true)?;
            ended(sidecar, way, reason::CLOSED, served, |_| true)?;
        }
        drop(open);
        Ok(())
    });
}

/// Below this, a p99 is a matter of when the scheduler came by.
const NOISE: Duration = Duration::from_millis(2);

/// How long those take who come one after another, for a second.
fn one_by_one(pair: &Pair, app: &TcpListener) -> Result<Times, Failure> {
    let a_second = || {
        let_pass(Duration::from_secs(1));
        Ok(())
    };
    paced(&pair.client, app, 100, a_second).map(|((), times)| times)
}

/// Connects so many clients within a moment, and hears from each.
fn open_all(
    client: &Pod,
    app: &TcpListener,
    count: usize,
) -> Result<Vec<(TcpStream, TcpStream)>, Failure> {
    let to = app.local_addr()?;
    // The app has room for as many as the sidecar has.
    SockRef::from(app).listen(4096)?;
    let (asking, answering) = std::thread::scope(|scope| {
        let taking = scope.spawn(|| (0..count).map(|_| accept(app)).collect());
        let asking = client.enter(|| {
            let start = Instant::now();
            let mut asking = Vec::new();
            for _ in 0..count {
                let stream = TcpStream::connect(to).context(|| format!("connecting to {to}"))?;
                stream.set_read_timeout(Some(LIMIT))?;
                asking.push(stream);
            }
            println!("{count} connections were made in {:?}", start.elapsed());
            Ok(asking)
        });
        let answering: Result<Vec<_>, Failure> =
            taking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (asking, answering)
    });
    let (mut asking, mut answering) = (asking?, answering?);
    for stream in &mut answering {
        stream.write_all(b"hello")?;
    }
    for stream in &mut asking {
        assert_eq!(read_exactly(stream, 5)?, b"hello");
    }
    // They need not be each other's: a sidecar may serve a later one first.
    Ok(asking.into_iter().zip(answering).collect())
}

/// SYNs and connections that a listener in a pod had no room for (proc_pid_net(5), netstat).
fn overflows(pod: &Pod) -> Result<(u64, u64), Failure> {
    let text = complete(pod.command("cat").arg("/proc/net/netstat"))?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let value = |wanted: &str| {
        let mut both = names.split(' ').zip(values.split(' '));
        both.find(|(name, _)| *name == wanted).and_then(|(_, value)| value.parse().ok())
    };
    match (value("ListenOverflows"), value("ListenDrops")) {
        (Some(overflows), Some(drops)) => Ok((overflows, drops)),
        _ => Err(Failure::Unexpected("no ListenOverflows in netstat".to_owned())),
    }
}

/// A writer of much and a reader who stops: the writer waits, the proxies hold little of it, and
/// who comes beside it waits for nobody.
#[test]
fn a_writer_waits_for_its_reader_and_nobody_else_does() {
    run("backpressure", |bed| {
        let bytes = bed.settings().few_or(192_usize << 20, 1 << 30);
        let mut pair = Pair::with_env(bed, &[("PILLION_WORKERS", "1")])?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        pair.exchange(&listener)?;
        let (mut client, mut server) = pair.open(&listener)?;
        let resident = [pair.caller.process().resident()?, pair.callee.process().resident()?];
        client.set_nonblocking(true)?;
        let pattern: Vec<u8> = (0..=250).cycle().take(BLOCK + PERIOD).collect();
        let mut sent = 0;
        let mut quiet = Instant::now();
        // Until nothing more has gone for a while: all buffers on the way are full.
        while quiet.elapsed() < Duration::from_millis(700) {
            match client.write(block(&pattern, sent)) {
                Ok(wrote) => (sent, quiet) = (sent + wrote, Instant::now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let_pass(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
        println!("the writer waits after {sent} bytes");
        assert!(sent < bytes / 2, "{sent} bytes went, and nobody reads");
        for (before, now) in resident
            .into_iter()
            .zip([pair.caller.process().resident()?, pair.callee.process().resident()?])
        {
            println!("{before} bytes resident before, {now} now");
            assert!(now.saturating_sub(before) < 4 << 20, "{before} and {now} bytes resident");
        }
        for _ in 0..5 {
            let start = Instant::now();
            pair.exchange(&listener)?;
            assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
        }
        client.set_nonblocking(false)?;
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                while sent < bytes {
                    client.write_all(block(&pattern, sent))?;
                    sent += BLOCK;
                }
                drop(client);
                Ok::<_, Failure>(sent)
            });
            let (mut came, mut buffer) = (0, vec![0; BLOCK]);
            loop {
                let read = server.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                let right = block(&pattern, came).starts_with(&buffer[..read]);
                assert!(right, "a wrong byte after {came}");
                came += read;
            }
            let sent = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            assert_eq!(came, sent, "nothing is lost");
            Ok::<_, Failure>(())
        })?;
        drop(server);
        for (sidecar, way) in
            [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
        {
            ended(sidecar, way, reason::CLOSED, 7, |_| true)?;
        }
        Ok(())
    });
}

/// How much is written and read at a time.
const BLOCK: usize = 64 << 10;

/// What is sent begins anew after so many bytes: no power of two, so that a lost block shows.
const PERIOD: usize = 251;

/// A block of what is sent, from an offset on.
fn block(pattern: &[u8], from: usize) -> &[u8] {
    pattern.get(from % PERIOD..).and_then(|from| from.get(..BLOCK)).unwrap_or_default()
}

/// What one who does not read may take of the memory, in bytes: a record of TLS is 16 KiB.
const STALLED: u64 = 32 << 10;

/// A container with little memory, and clients who ask for much and do not read it. New ones are
/// turned away before the out-of-memory killer comes, and the open ones live.
#[test]
fn short_of_memory_new_connections_are_reset_and_open_ones_go_on() {
    run("memory", |bed| {
        more_descriptors()?;
        let cap = bed.settings().few_or(16_u64 << 20, 64 << 20);
        let most = bed.settings().few_or(4000, 20_000);
        let Some(group) = MemoryGroup::new(bed, cap)? else { return Ok(()) };
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        // It is the proxy's memory that this is about, not the kernel's.
        set(&server, "ipv4/tcp_wmem", "4096 16384 131072")?;
        set(&server, "ipv4/tcp_rmem", "4096 131072 131072")?;
        let serve = MeshOptions::new(policy::serve_in_mode("disable"), SERVER).memory(&group);
        let mut callee = server.mesh(bed, serve)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let to = app.local_addr()?;
        let at_first = group.used()?;
        println!("{at_first} of {cap} bytes before the first");
        let mut asking = client.connect(to)?;
        let mut answering = accept(&app)?;
        pass(&mut asking, &mut answering, b"while there is room")?;

        let shed = [("direction", direction::INBOUND), ("reason", reason::MEMORY_LIMIT)];
        let mut open = Vec::new();
        let filler = vec![7; 64 << 10];
        while open.len() < most && callee.metric(metric::CLOSED, &shed)? == 0.0 {
            for _ in 0..25 {
                let Ok(stream) = client.connect(to) else { continue };
                let taken = wait_until("the app's end", LIMIT, || match app.accept() {
                    Ok((taken, _)) => Ok(Some(Some(taken))),
                    Err(_) if has_ended(&stream) => Ok(Some(None)),
                    Err(_) => Ok(None),
                })?;
                if let Some(mut taken) = taken {
                    // As much as goes, and nobody reads it.
                    taken.set_nonblocking(true)?;
                    while taken.write(&filler).is_ok() {}
                    open.push((stream, taken));
                }
            }
            // The proxy looks at its memory now and then.
            let_pass(Duration::from_millis(20));
        }
        let each = group.used()?.saturating_sub(at_first) / open.len().max(1) as u64;
        println!("{} are open with {} bytes used, {each} each", open.len(), group.used()?);
        // A large buffer, of 256 KiB, is lent to few of them.
        assert!(each < STALLED, "{each} bytes for each who does not read");
        assert!(callee.process().ended()?.is_none(), "it lives");
        assert_eq!(group.killed()?, 0, "the killer did not come");
        let before = callee.count(metric::CLOSED, &shed)?;
        assert!(before > 0, "{} connections fit into the limit", open.len());
        for refused in 1..=3 {
            assert_eq!(ask(&client, to, b"one more")?, Outcome::Reset);
            callee.wait_metric(metric::CLOSED, &shed, (before + refused) as f64)?;
        }
        ended(&callee, direction::INBOUND, reason::MEMORY_LIMIT, before + 3, |_| true)?;
        assert_eq!(callee.messages("memory is short")?.len(), 1, "said once");
        pass(&mut asking, &mut answering, b"the open ones go on")?;
        pass(&mut answering, &mut asking, b"both ways")?;
        assert_eq!(callee.health("/healthz/ready")?.0, 200, "its own servers answer");

        drop(open);
        callee.wait_message("memory is enough again")?;
        let mut again = client.connect(to)?;
        pass(&mut again, &mut accept(&app)?, b"served again")?;
        assert_eq!(group.killed()?, 0);
        Ok(())
    });
}

/// Whether a connection was reset or closed already.
fn has_ended(stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    let looked = stream.peek(&mut [0; 1]);
    let _ = stream.set_nonblocking(false);
    !matches!(looked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}
