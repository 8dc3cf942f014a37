//! Whoever reads the log, scrapes the metrics or asks the admin server, and does it badly: the
//! connections of the apps do not notice.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, direction, metric, port, reason};
use pillion_testbed::stream::{exchange, read_to_end};
use pillion_testbed::{
    Failure, MeshOptions, Pair, Pod, Sidecar, Stdout, Testbed, accept, complete, let_pass, policy,
    run,
};

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(30);

/// What an operator's client has for all it wants.
const DEADLINE: Duration = Duration::from_secs(5);

/// A pair whose server's sidecar has a standard output of this kind.
fn pair_with(bed: &Testbed, names: [&str; 2], stdout: Stdout) -> Result<Both, Failure> {
    let [server, client] = names.map(|name| bed.pod(name));
    let (server, client) = (server?, client?);
    let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER).stdout(stdout);
    let callee = server.mesh(bed, serve)?;
    let call = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
    let caller = client.mesh(bed, call)?;
    let app = server.listen(SocketAddr::new(server.v4(), APP))?;
    Ok(Both { client, caller, callee, app })
}

struct Both {
    client: Pod,
    caller: Sidecar,
    callee: Sidecar,
    app: TcpListener,
}

impl Both {
    fn exchange(&self) -> Result<Duration, Failure> {
        let start = Instant::now();
        let client = self.client.connect(self.app.local_addr()?)?;
        exchange(client, accept(&self.app)?)?;
        Ok(start.elapsed())
    }

    /// How long each of fifty took, the shortest first.
    fn fifty(&self) -> Result<Vec<Duration>, Failure> {
        let mut took = (0..50).map(|_| self.exchange()).collect::<Result<Vec<_>, _>>()?;
        took.sort();
        Ok(took)
    }
}

/// Below this, how long one takes is a matter of when the scheduler came by.
const NOISE: Duration = Duration::from_millis(2);

/// The pipe is full and nobody reads: lines are dropped and counted, and nobody waits.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    run("blocked-log", |bed| {
        let fifo = bed.directory().join("stdout");
        complete(std::process::Command::new("mkfifo").arg(&fifo))?;
        let mut both = pair_with(bed, ["srv", "cli"], Stdout::Blocked(fifo))?;
        let before = both.fifty()?;
        // Each is refused at once, and has a line; the queue has 8192.
        let plain = bed.pod("pln")?;
        let own = SocketAddr::new(both.app.local_addr()?.ip(), port::INBOUND);
        let dialled = plain.enter(|| {
            // It is reset, before connect(2) returns or at the latest when it is closed here.
            let made = |tried: std::io::Result<_>| {
                tried.map_or_else(|e| e.kind() == ErrorKind::ConnectionReset, |_| true)
            };
            Ok((0..9_500).filter(|_| made(TcpStream::connect(own).map(drop))).count())
        })?;
        let refused = [("direction", direction::INBOUND), ("reason", reason::SELF_CALL)];
        both.callee.wait_metric(metric::CLOSED, &refused, dialled as f64)?;
        let dropped = both.callee.metric(metric::LINES_DROPPED, &[])?;
        assert!(dropped > 0.0 && dropped < 9_500.0 - 8_192.0, "{dropped}");
        let took = both.fifty()?;
        println!(
            "{dropped} lines of {dialled} were dropped; 50 took from {:?} to {:?} before that, and \
             from {:?} to {:?} after",
            before[0], before[49], took[0], took[49]
        );
        // The last but one is the 98th percentile: they do not wait for the log.
        let least = bed.settings().few_or(Duration::from_secs(1), NOISE);
        assert!(took[48] <= 2 * before[48].max(least), "{before:?} and {took:?}");
        both.callee.wait_idle()?;
        both.callee.wait_metric(metric::LINES_DROPPED, &[], dropped + 50.0)?;
        both.callee.wait_metric(metric::CLOSED, &[("reason", reason::CLOSED)], 100.0)?;
        // Who has a reader has all lines.
        both.caller.wait_ended(direction::OUTBOUND, reason::CLOSED, 100)?;
        assert_eq!(both.caller.metric(metric::LINES_DROPPED, &[])?, 0.0);
        assert_eq!(both.callee.health("/healthz/ready")?.0, 200);
        // A writer that is stuck does not keep it from its end.
        assert_eq!(both.callee.stop(LIMIT)?, 0);
        Ok(())
    });
}

/// To write into a pipe without a reader is answered with SIGPIPE (pipe(7)), which would end the
/// process; and without a standard output its number would be the next socket's.
#[test]
fn without_a_standard_output_everything_is_served() {
    run("no-log", |bed| {
        let kinds = [(["s1", "c1"], Stdout::Broken), (["s2", "c2"], Stdout::Closed)];
        for (names, stdout) in kinds {
            let what = format!("{stdout:?}");
            let mut both = pair_with(bed, names, stdout)?;
            for _ in 0..30 {
                both.exchange()?;
            }
            assert!(both.callee.process().ended()?.is_none(), "{what}: it lives");
            assert_eq!(both.callee.health("/healthz/ready")?.0, 200, "{what}");
            both.callee.wait_metric(metric::CLOSED, &[("reason", reason::CLOSED)], 30.0)?;
            // Nobody can be told of a line that had no reader; the other end's log has all.
            both.caller.wait_ended(direction::OUTBOUND, reason::CLOSED, 30)?;
            assert_eq!(both.callee.stop(LIMIT)?, 0, "{what}");
        }
        Ok(())
    });
}

/// Clients of the operator's that say half a request, drip, or never read.
#[test]
fn a_stuck_scraper_and_a_slow_admin_client_have_five_seconds() {
    run("slow-clients", |bed| {
        let pair = Pair::new(bed)?;
        let app = pair.listen(pair.server.v4(), APP)?;
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let start = Instant::now();
        let mut waiting = Vec::new();
        for own in [port::METRICS, port::ADMIN, port::HEALTH] {
            for said in ["", "GET /metr", "GET /metrics HTTP/1.1\r\nHost: a\r\n"] {
                let mut stream = pair.server.connect(SocketAddr::new(loopback, own))?;
                stream.write_all(said.as_bytes())?;
                waiting.push((own, said, stream));
            }
            // In order, and never read: it is done with it, and waits for the next request.
            let mut stream = pair.server.connect(SocketAddr::new(loopback, own))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")?;
            waiting.push((own, "not read", stream));
        }
        let mut dripping = pair.server.connect(SocketAddr::new(loopback, port::ADMIN))?;
        let (count, beside) = serve_beside(&pair, &app, &mut dripping, start)?;
        println!("beside them the slowest of {count} of the apps' took {beside:?}");
        // They would wait for the deadline, if for anything.
        assert!(beside < DEADLINE.mul_f32(0.8), "{beside:?}");
        for (own, said, mut stream) in waiting {
            let (answer, end) = read_to_end(&mut stream)?;
            let took = start.elapsed();
            println!("{own} {said:?}: {} bytes and {end:?} after {took:?}", answer.len());
            assert!(took >= DEADLINE.mul_f32(0.9), "{own} {said:?}: {took:?}");
            assert!(took < 3 * DEADLINE, "{own} {said:?}: {took:?}");
        }
        // Nothing of it is a connection of the apps', or a line in their log.
        pair.callee.wait_idle()?;
        pair.callee.wait_ended(direction::INBOUND, reason::CLOSED, count)?;
        assert_eq!(pair.callee.metric(metric::OPENED, &[])?, count as f64);
        assert_eq!(pair.callee.log_lines()?.len(), count);
        Ok(())
    });
}

/// Serves apps, and lets a client drip a request, until it is cut off, which is in time. Returns
/// how many apps were served, and the longest that one waited.
fn serve_beside(
    pair: &Pair,
    app: &TcpListener,
    dripping: &mut TcpStream,
    start: Instant,
) -> Result<(usize, Duration), Failure> {
    let (mut count, mut worst) = (0, Duration::ZERO);
    dripping.set_nonblocking(true)?;
    loop {
        let asked = Instant::now();
        pair.exchange(app)?;
        (count, worst) = (count + 1, worst.max(asked.elapsed()));
        // The metrics are answered, to whoever asks well.
        assert!(pair.callee.metric(metric::OPENED, &[])? > 0.0);
        let ended = match dripping.read(&mut [0; 1]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        let took = start.elapsed();
        if ended || took > 3 * DEADLINE {
            println!("the one that drips was cut off after {took:?}");
            assert!(ended, "it still drips after {took:?}");
            assert!(took >= DEADLINE.mul_f32(0.9), "{took:?}");
            return Ok((count, worst));
        }
        // It may have been cut off since.
        let _ = dripping.write_all(b"G");
        let_pass(Duration::from_millis(100));
    }
}
