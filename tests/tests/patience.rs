//! Connections on which nothing happens for long: half-closed ones that have to live, and those
//! of clients that never finish a handshake, which must not.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, direction, metric, reason};
use pillion_testbed::peer::{TlsPeer, identity};
use pillion_testbed::stream::{End, pass, read_to_end};
use pillion_testbed::{
    Context, Failure, MeshOptions, Pair, Pod, accept, complete, let_pass, more_descriptors, policy,
    run, untouched, wait_until,
};

const APP: u16 = 8080;

/// The connection table of the tests forgets a half-closed connection after so many seconds
/// without a packet: more than a keepalive's 15 s, by what a kernel's timer may be late, instead of
/// the kernel's 60.
const FORGETS: u64 = 18;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

fn forget_sooner(pod: &Pod) -> Result<(), Failure> {
    pod.enter(|| {
        for state in ["close_wait", "fin_wait", "last_ack"] {
            let name = format!("net/netfilter/nf_conntrack_tcp_timeout_{state}");
            fs::write(format!("/proc/sys/{name}"), FORGETS.to_string()).context(|| name)?;
        }
        Ok(())
    })
}

/// Sockets of a pod in a state, as `ss` lists them.
fn in_state(pod: &Pod, state: &str) -> Result<usize, Failure> {
    let listed = complete(pod.command("ss").args(["-Htn", "state", state]))?;
    Ok(listed.lines().count())
}

/// Half-closed either way for longer than the connection table remembers, without a byte: but for
/// keepalive on every leg the table would forget it, and the last FIN would never arrive.
#[test]
fn half_closed_connections_outlive_the_connection_table_and_lose_nothing() {
    run("half-closed", |bed| {
        let settings = bed.settings();
        let (pairs, forgotten) = (settings.few_or(100, 1000), settings.few_or(2, 10));
        more_descriptors()?;
        let pair = Pair::new(bed)?;
        for pod in [&pair.client, &pair.server] {
            forget_sooner(pod)?;
        }
        let listener = pair.listen(pair.server.v4(), APP)?;
        let mut open = Vec::new();
        for number in 0..pairs {
            let (mut client, mut server) = pair.open(&listener)?;
            pass(&mut client, &mut server, b"before")?;
            // Either way: each second one is finished by the server first.
            let (mut first, mut second) =
                if number % 2 == 0 { (client, server) } else { (server, client) };
            first.write_all(b"last words")?;
            first.shutdown(Shutdown::Write)?;
            assert_eq!(read_to_end(&mut second)?, (b"last words".to_vec(), End::Fin));
            for stream in [&mut first, &mut second] {
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            }
            open.push((first, second));
        }
        let_pass(Duration::from_secs(FORGETS * forgotten + 1));
        for (first, second) in &mut open {
            pass(second, first, b"the other direction flows on")?;
            second.write_all(b"and ends")?;
        }
        for (mut first, second) in open {
            drop(second);
            assert_eq!(read_to_end(&mut first)?, (b"and ends".to_vec(), End::Fin));
        }
        for (sidecar, way) in
            [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
        {
            sidecar.wait_idle()?;
            let closed = [("direction", way), ("reason", reason::CLOSED)];
            assert_eq!(sidecar.metric(metric::CLOSED, &closed)?, pairs as f64, "{way}");
            let lines = sidecar.wait_logs("ends", pairs, |line| line.is(way, reason::CLOSED))?;
            assert_eq!(lines.len(), pairs);
        }
        for pod in [&pair.client, &pair.server] {
            for state in ["close-wait", "fin-wait-2"] {
                wait_until(&format!("no {state}"), Duration::from_secs(5), || {
                    Ok((in_state(pod, state)? == 0).then_some(()))
                })?;
            }
        }
        Ok(())
    });
}

/// A half-closed connection on which nothing moves at all is given up in the end.
#[test]
fn half_closed_and_silent_for_too_long_is_reset() {
    const SILENCE: Duration = Duration::from_secs(5);
    run("half-close-timeout", |bed| {
        let pair = Pair::with_env(bed, &[("PILLION_HALF_CLOSE_TIMEOUT", "5s")])?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"before")?;
        client.shutdown(Shutdown::Write)?;
        assert_eq!(read_to_end(&mut server)?, (Vec::new(), End::Fin));
        let start = Instant::now();
        // Bytes of the other direction begin the time anew.
        let mut last = start;
        while start.elapsed() < 2 * SILENCE {
            let_pass(SILENCE / 10);
            last = Instant::now();
            pass(&mut server, &mut client, b"not silent")?;
        }
        client.set_read_timeout(Some(4 * SILENCE))?;
        assert_eq!(read_to_end(&mut client)?, (Vec::new(), End::Reset));
        let took = last.elapsed();
        println!("reset after {took:?}");
        assert!(took >= SILENCE.mul_f32(0.9), "{took:?}");
        drop(server);
        for sidecar in [&pair.caller, &pair.callee] {
            sidecar.wait_idle()?;
        }
        // Whichever sidecar was first has given it up; the other was reset by it, or was as fast.
        let timeout = [("reason", reason::HALF_CLOSE_TIMEOUT)];
        let given_up = pair.caller.metric(metric::CLOSED, &timeout)?
            + pair.callee.metric(metric::CLOSED, &timeout)?;
        assert!((1.0..=2.0).contains(&given_up), "{given_up}");
        let mut lines = [pair.caller.log_lines()?, pair.callee.log_lines()?].concat();
        lines.retain(|line| line.reason() == reason::HALF_CLOSE_TIMEOUT);
        assert_eq!(lines.len() as f64, given_up);
        Ok(())
    });
}

/// One who never finishes: what it said, and when it was closed.
struct Stalled {
    manner: usize,
    stream: TcpStream,
    since: Instant,
    drips: Vec<u8>,
    ended: Option<Duration>,
}

/// Silent, three bytes, half a ClientHello, a whole one and no word after it, one byte every five
/// seconds. The deadline is one for all of the handshake, whatever comes meanwhile.
#[test]
fn stalled_handshakes_end_at_the_deadline_and_honest_ones_do_not_notice() {
    const MANNERS: usize = 5;
    run("stalled", |bed| {
        let settings = bed.settings();
        let (count, times) = (settings.few_or(500, 5000), settings.few_or(40, 200));
        more_descriptors()?;
        let (server, liar, client) = (bed.pod("srv")?, bed.pod("sil")?, bed.pod("cli")?);
        let most = (2 * count).to_string();
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER)
            .env("PILLION_MAX_PENDING_HANDSHAKES", &most);
        let callee = server.mesh(bed, serve)?;
        let call = policy::call_without_reuse(&server.addresses(), SERVER);
        let caller = client.mesh(bed, MeshOptions::new(call, CLIENT))?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let honest = |times: usize| {
            let mut took = Vec::new();
            for _ in 0..times {
                let start = Instant::now();
                let mut asking = client.connect(app.local_addr()?)?;
                let mut answering = accept(&app)?;
                pass(&mut asking, &mut answering, b"honest")?;
                took.push(start.elapsed());
            }
            took.sort();
            Ok::<_, Failure>(took.get(took.len() * 99 / 100).copied().unwrap_or_default())
        };
        let alone = honest(times)?;
        let svid = identity(&bed.issue(&bed.ca()?, CLIENT, "liar")?)?;
        let hello = TlsPeer::hello(&svid)?;
        let mut stalled = Vec::new();
        for number in 0..count {
            let manner = number % MANNERS;
            let since = Instant::now();
            let mut stream = liar.connect(app.local_addr()?)?;
            let said = [0, 3, hello.len() / 2, hello.len(), 1][manner];
            stream.write_all(&hello[..said])?;
            stream.set_nonblocking(true)?;
            let drips = if manner == 4 { hello[1..].to_vec() } else { Vec::new() };
            stalled.push(Stalled { manner, stream, since, drips, ended: None });
        }
        let beside = honest(times)?;
        println!("honest, p99: {alone:?} alone, {beside:?} beside {count} that stall");
        // They would wait for the deadline, if for anything.
        assert!(beside < HANDSHAKE / 2, "{beside:?} beside them, {alone:?} alone");
        watch(&mut stalled)?;
        // A machine that does other things, too, looks at them later. Who drips has said so much
        // by then that a deadline anew with each byte would never come.
        let latest = 2 * HANDSHAKE;
        for one in &stalled {
            let took = one.ended.unwrap_or_default();
            assert!(took >= HANDSHAKE.mul_f32(0.95), "manner {}: {took:?}", one.manner);
            assert!(took <= latest, "manner {}: {took:?}", one.manner);
        }
        let labels = [("direction", direction::INBOUND), ("reason", reason::HANDSHAKE_TIMEOUT)];
        callee.wait_metric(metric::CLOSED, &labels, count as f64)?;
        let timeout = [("direction", direction::INBOUND), ("result", "timeout")];
        callee.wait_metric(metric::HANDSHAKES, &timeout, count as f64)?;
        let late = |line: &pillion_testbed::LogLine| {
            line.is(direction::INBOUND, reason::HANDSHAKE_TIMEOUT)
        };
        assert_eq!(callee.wait_logs("the stalled", count, late)?.len(), count);
        caller.wait_idle()?;
        untouched(&app)
    });
}

/// Waits for the ends of all; who drips says one more byte every five seconds.
fn watch(stalled: &mut [Stalled]) -> Result<(), Failure> {
    let mut said = Instant::now();
    wait_until("the ends of all", 4 * HANDSHAKE, || {
        let drip = said.elapsed() >= HANDSHAKE / 2;
        if drip {
            said = Instant::now();
        }
        for one in stalled.iter_mut().filter(|one| one.ended.is_none()) {
            if drip && !one.drips.is_empty() {
                let byte = one.drips.remove(0);
                // It may have ended since.
                let _ = one.stream.write_all(&[byte]);
            }
            let over = match one.stream.read(&mut [0; 4096]) {
                Ok(read) => read == 0,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            };
            if over {
                one.ended = Some(one.since.elapsed());
            }
        }
        Ok(stalled.iter().all(|one| one.ended.is_some()).then_some(()))
    })
}
