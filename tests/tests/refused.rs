//! Who is refused, seen three ways: by the client, by the metric and by the access log. In every
//! case no byte and no connection reaches the app.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{
    CLIENT, SERVER, STRANGER, direction, field, metric, reason, refusal,
};
use pillion_testbed::stream::{Outcome, ask, read_to_end};
use pillion_testbed::{
    Failure, LogLine, MeshOptions, Metrics, Pod, Sidecar, policy, run, untouched,
};

const APP: u16 = 8080;

/// How often each refusal is provoked: once could be luck, and a counter could count twice.
const TIMES: usize = 3;

/// A refused client learns it in this time: no deadline of the proxy's, of 5 s at least, may be
/// waited for.
const QUICKLY: Duration = Duration::from_secs(4);

/// `TIMES` as metrics count.
fn times() -> f64 {
    TIMES as f64
}

/// Dials the app `TIMES` times and requires to be turned away quickly each time.
fn turned_away(client: &Pod, to: SocketAddr) -> Result<(), Failure> {
    for _ in 0..TIMES {
        let start = Instant::now();
        let outcome = ask(client, to, b"let me in\n")?;
        let took = start.elapsed();
        println!("{to}: {outcome:?} after {took:?}");
        assert!(outcome.is_turned_away(), "{to}: {outcome:?}");
        assert!(took < QUICKLY, "{to}: turned away only after {took:?}");
    }
    Ok(())
}

/// Checks that exactly `TIMES` connections ended, all for `why`, and returns their log lines.
fn closed_for(
    sidecar: &Sidecar,
    before: &Metrics,
    way: &str,
    why: &str,
    to: SocketAddr,
) -> Result<Vec<LogLine>, Failure> {
    let labels = [("direction", way), ("reason", why)];
    let base = before.sum(metric::CLOSED, &labels);
    sidecar.wait_metric(metric::CLOSED, &labels, base + times())?;
    sidecar.wait_idle()?;
    let after = sidecar.metrics()?;
    let all = |metrics: &Metrics| metrics.sum(metric::CLOSED, &[("direction", way)]);
    assert_eq!(after.sum(metric::CLOSED, &labels) - base, times(), "{way} {why}");
    assert_eq!(all(&after) - all(before), times(), "{:?}", after.by(metric::CLOSED, "reason"));
    let to = to.to_string();
    let ours = |line: &LogLine| line.is(way, why) && line.text(field::DESTINATION) == to;
    let lines = sidecar.wait_logs(why, TIMES, ours)?;
    assert_eq!(lines.len(), TIMES, "one line a connection: {lines:?}");
    Ok(lines)
}

/// Checks that exactly `TIMES` verdicts of a rule were given.
fn decided(
    sidecar: &Sidecar,
    before: &Metrics,
    way: &str,
    decision: &str,
    rule: &str,
) -> Result<(), Failure> {
    let labels = [("direction", way), ("decision", decision), ("rule", rule)];
    let base = before.sum(metric::DECISIONS, &labels);
    let now = sidecar.metric(metric::DECISIONS, &labels)?;
    assert_eq!(now - base, times(), "{way} {decision} {rule}");
    Ok(())
}

#[test]
fn outside_the_source_range() {
    run("source-range", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        // The identity is right, the network is not.
        let text = policy::serve_from(&[CLIENT], &["192.0.2.0/24"]);
        let callee = server.mesh(bed, MeshOptions::new(text, SERVER))?;
        let call = policy::call(&server.addresses(), SERVER);
        let _caller = client.mesh(bed, MeshOptions::new(call, CLIENT))?;
        for address in server.addresses() {
            let to = SocketAddr::new(address, APP);
            let app = server.listen(to)?;
            let before = callee.metrics()?;
            turned_away(&client, to)?;
            let lines = closed_for(&callee, &before, direction::INBOUND, reason::DENIED, to)?;
            decided(&callee, &before, direction::INBOUND, "deny", "default")?;
            assert!(lines.iter().all(|line| line.text(field::RULE) == "default"), "{lines:?}");
            // Decided by the address, before any TLS work.
            assert_eq!(callee.metric(metric::HANDSHAKES, &[])?, 0.0);
            untouched(&app)?;
        }
        Ok(())
    });
}

#[test]
fn wrong_client_identity() {
    run("client-identity", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        let call = policy::call(&server.addresses(), SERVER);
        let _caller = client.mesh(bed, MeshOptions::new(call, STRANGER))?;
        for address in server.addresses() {
            let to = SocketAddr::new(address, APP);
            let app = server.listen(to)?;
            let before = callee.metrics()?;
            turned_away(&client, to)?;
            let lines = closed_for(&callee, &before, direction::INBOUND, reason::DENIED, to)?;
            decided(&callee, &before, direction::INBOUND, "deny", "default")?;
            assert!(lines.iter().all(|line| line.text(field::PEER) == STRANGER), "{lines:?}");
            untouched(&app)?;
        }
        Ok(())
    });
}

#[test]
fn outbound_denied() {
    run("outbound-denied", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let text = policy::call_denied(&server.addresses());
        let caller = client.mesh(bed, MeshOptions::new(text, CLIENT))?;
        for address in server.addresses() {
            let to = SocketAddr::new(address, APP);
            let app = server.listen(to)?;
            let before = caller.metrics()?;
            turned_away(&client, to)?;
            let lines = closed_for(&caller, &before, direction::OUTBOUND, reason::DENIED, to)?;
            decided(&caller, &before, direction::OUTBOUND, "deny", "blocked")?;
            assert!(lines.iter().all(|line| line.text(field::RULE) == "blocked"), "{lines:?}");
            untouched(&app)?;
        }
        Ok(())
    });
}

#[test]
fn wrong_server_identity() {
    run("server-identity", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let _callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        let call = policy::call(&server.addresses(), STRANGER);
        let caller = client.mesh(bed, MeshOptions::new(call, CLIENT))?;
        for address in server.addresses() {
            let to = SocketAddr::new(address, APP);
            let app = server.listen(to)?;
            let before = caller.metrics()?;
            let capture = client.capture(&format!("identity-{}", address.is_ipv6()))?;
            turned_away(&client, to)?;
            let lines =
                closed_for(&caller, &before, direction::OUTBOUND, reason::WRONG_IDENTITY, to)?;
            let both = |line: &LogLine| line.mentions(SERVER) && line.mentions(STRANGER);
            assert!(lines.iter().all(both), "both identities are named: {lines:?}");
            let wire = capture.finish(&server)?;
            assert!(!wire.contains(b"let me in"), "never plaintext");
            // The server's proxy may have dialled its app when the TLS handshake ended, before
            // the client looked at whom it had reached. What counts is that no byte came.
            while let Ok(mut stream) = accept_now(&app) {
                let (bytes, _) = read_to_end(&mut stream)?;
                assert_eq!(bytes, b"");
            }
        }
        Ok(())
    });
}

/// A connection that is waiting already.
fn accept_now(app: &TcpListener) -> io::Result<std::net::TcpStream> {
    let (stream, _) = app.accept()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(QUICKLY))?;
    Ok(stream)
}

#[test]
fn plaintext_to_a_strict_port() {
    run("plaintext", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        for address in server.addresses() {
            let to = SocketAddr::new(address, APP);
            let app = server.listen(to)?;
            let before = callee.metrics()?;
            let mut fastest = QUICKLY;
            for _ in 0..TIMES {
                let start = Instant::now();
                let outcome = ask(&client, to, b"GET / HTTP/1.1\r\nHost: srv\r\n\r\n")?;
                println!("{to}: {outcome:?} after {:?}", start.elapsed());
                assert!(start.elapsed() < QUICKLY);
                fastest = fastest.min(start.elapsed());
                if let Outcome::Served(bytes) = outcome {
                    assert!(is_alert(&bytes), "an alert (RFC 8446, 6) at the most: {bytes:?}");
                }
            }
            // A machine that does other things, too, looks at them later.
            let at_once = bed.settings().few_or(QUICKLY, Duration::from_millis(100));
            assert!(fastest < at_once, "{to}: {fastest:?}");
            closed_for(&callee, &before, direction::INBOUND, reason::PLAINTEXT_REFUSED, to)?;
            untouched(&app)?;
        }
        Ok(())
    });
}

/// One plaintext TLS alert record: type 21, version, length 2, level and description.
fn is_alert(bytes: &[u8]) -> bool {
    matches!(bytes, [21, 3, _, 0, 2, 2, _])
}

/// A pod whose sidecar was given the certificates of another mesh, under the same names.
#[test]
fn a_sidecar_with_a_foreign_certificate() {
    run("foreign-sidecar", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        let foreign = bed.issue(&bed.foreign_ca("cluster.local")?, CLIENT, "foreign")?;
        let call = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
        let caller = client.mesh(bed, call.certificates_from(foreign))?;
        for address in server.addresses() {
            let to = SocketAddr::new(address, APP);
            let app = server.listen(to)?;
            let before = caller.metrics()?;
            turned_away(&client, to)?;
            let way = direction::OUTBOUND;
            let lines = closed_for(&caller, &before, way, reason::CERTIFICATE_REFUSED, to)?;
            let prefix = format!("{}:", refusal::UNKNOWN_ISSUER);
            assert!(lines.iter().all(|line| line.text(field::DETAIL).starts_with(&prefix)));
            untouched(&app)?;
        }
        assert_eq!(callee.metric(metric::HANDSHAKES, &[("result", "ok")])?, 0.0);
        Ok(())
    });
}
