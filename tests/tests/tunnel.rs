//! The tunnel between two sidecars: used again, given up when something has changed, and never
//! the reason that a connection fails.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pillion_testbed::labels::{CLIENT, SERVER, STRANGER, direction, field, metric, reason};
use pillion_testbed::stream::{Outcome, ask, exchange, pass};
use pillion_testbed::{
    Failure, Flow, Pair, Sidecar, Testbed, Wire, let_pass, policy, run, wait_until,
};

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(10);
const PROMPTLY: Duration = Duration::from_secs(15);

/// One worker each, as a pool belongs to a worker.
fn pair(bed: &Testbed) -> Result<Pair, Failure> {
    Pair::with_env(bed, &[("PILLION_WORKERS", "1"), ("PILLION_DRAIN_TIMEOUT", "60s")])
}

fn handshakes(sidecar: &Sidecar, way: &str) -> Result<f64, Failure> {
    sidecar.metric(metric::HANDSHAKES, &[("direction", way), ("result", "ok")])
}

/// How often the client's sidecar has opened a tunnel, and used one again.
fn streams(caller: &Sidecar) -> Result<(f64, f64), Failure> {
    let metrics = caller.metrics()?;
    let of = |reused| metrics.sum(metric::STREAMS, &[("reused", reused)]);
    Ok((of("false"), of("true")))
}

/// TCP connections to the app's port.
fn connections(wire: &Wire) -> usize {
    let to_app = |(flow, _): &(&Flow, &[u8])| flow.to.port() == APP;
    wire.flows(APP).filter(to_app).count()
}

/// Waits until each sidecar has so many idle tunnels.
fn idle(pair: &Pair, count: f64) -> Result<(), Failure> {
    pair.caller.wait_metric(metric::IDLE, &[], count)?;
    pair.callee.wait_metric(metric::IDLE, &[], count)
}

#[test]
fn one_tunnel_carries_one_connection_after_another() {
    // Fewer than after which the first tunnel may retire.
    const TIMES: u8 = 30;
    run("reuse", |bed| {
        let pair = pair(bed)?;
        for (count, address) in (1..).zip(pair.server.addresses()) {
            let listener = pair.listen(address, APP)?;
            let capture = pair.client.capture("reuse")?;
            for _ in 0..TIMES {
                pair.exchange(&listener)?;
            }
            let wire = capture.finish(&pair.server)?;
            assert_eq!(connections(&wire), 1, "{address}");
            assert_eq!(wire.summary(APP), (2, 0), "{address}: TLS both ways");
            let each = f64::from(TIMES);
            assert_eq!(streams(&pair.caller)?, (f64::from(count), f64::from(count) * (each - 1.0)));
            assert_eq!(handshakes(&pair.caller, direction::OUTBOUND)?, f64::from(count));
            assert_eq!(handshakes(&pair.callee, direction::INBOUND)?, f64::from(count));
            // Each is a connection of its own where it is counted and logged.
            let to = SocketAddr::new(address, APP).to_string();
            for (sidecar, way) in
                [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
            {
                let lines = sidecar.wait_logs("a stream", TIMES.into(), |line| {
                    line.is(way, reason::CLOSED) && line.text(field::DESTINATION) == to
                })?;
                assert_eq!(lines.len(), usize::from(TIMES), "{address}: {way}");
                let peer = if way == direction::INBOUND { CLIENT } else { SERVER };
                assert!(lines.iter().all(|line| line.text(field::PEER) == peer), "{lines:?}");
            }
        }
        for sidecar in [&pair.caller, &pair.callee] {
            sidecar.wait_idle()?;
        }
        Ok(())
    });
}

#[test]
fn a_tunnel_retires_and_the_next_takes_over() {
    // More than after which any tunnel retires.
    const TIMES: u8 = 200;
    run("retirement", |bed| {
        let pair = pair(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let capture = pair.client.capture("retirement")?;
        for _ in 0..TIMES {
            pair.exchange(&listener)?;
        }
        let wire = capture.finish(&pair.server)?;
        let (fresh, reused) = streams(&pair.caller)?;
        println!("{fresh} tunnels for {TIMES} connections");
        assert_eq!(fresh + reused, f64::from(TIMES));
        assert!((3.0..=7.0).contains(&fresh), "32 to 96 streams each: {fresh}");
        assert_eq!(handshakes(&pair.callee, direction::INBOUND)?, fresh);
        assert_eq!(connections(&wire) as f64, fresh);
        Ok(())
    });
}

#[test]
fn reuse_is_off_where_the_policy_says_so() {
    const TIMES: u8 = 5;
    run("no-reuse", |bed| {
        let pair = pair(bed)?;
        let text = policy::call_without_reuse(&pair.server.addresses(), SERVER);
        pair.caller.load_policy(&text)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let capture = pair.client.capture("no-reuse")?;
        for _ in 0..TIMES {
            pair.exchange(&listener)?;
        }
        let wire = capture.finish(&pair.server)?;
        assert_eq!(connections(&wire), usize::from(TIMES));
        // What a ClientHello offers is in the clear.
        assert!(wire.contains(b"\x05istio") && !wire.contains(b"pillion/1"));
        assert_eq!(streams(&pair.caller)?, (0.0, 0.0));
        assert_eq!(handshakes(&pair.callee, direction::INBOUND)?, f64::from(TIMES));
        idle(&pair, 0.0)
    });
}

/// Leaves one idle tunnel; returns how many there were so far.
fn warm(pair: &Pair, listener: &TcpListener) -> Result<f64, Failure> {
    pair.exchange(listener)?;
    idle(pair, 1.0)?;
    Ok(streams(&pair.caller)?.0)
}

/// Checks that idle tunnels are given up, and that the next connection is served by a new one.
fn renewed(pair: &Pair, listener: &TcpListener, before: f64) -> Result<(), Failure> {
    idle(pair, 0.0)?;
    pair.exchange(listener)?;
    assert_eq!(streams(&pair.caller)?.0, before + 1.0, "a new tunnel after the change");
    Ok(())
}

#[test]
fn a_new_policy_or_certificate_empties_the_pool() {
    run("renewal", |bed| {
        let mut pair = pair(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let text = policy::call(&pair.server.addresses(), SERVER);
        let before = warm(&pair, &listener)?;
        pair.caller.load_policy(&format!("{text}# the same, but another file\n"))?;
        renewed(&pair, &listener, before)?;

        let before = warm(&pair, &listener)?;
        pair.caller.issue(bed)?;
        renewed(&pair, &listener, before)?;

        // The server says GOAWAY, and its client closes.
        let before = warm(&pair, &listener)?;
        pair.callee.issue(bed)?;
        renewed(&pair, &listener, before)?;

        let reasons = pair.caller.metrics()?.by(metric::CLOSED, "reason");
        assert_eq!(reasons.keys().collect::<Vec<_>>(), [reason::CLOSED], "{reasons:?}");
        Ok(())
    });
}

/// A tunnel is no permission: the server judges each stream anew.
#[test]
fn each_stream_is_judged() {
    run("judged", |bed| {
        let pair = pair(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        pair.exchange(&listener)?;
        pair.callee.load_policy(&policy::serve(&[STRANGER]))?;
        let outcome = ask(&pair.client, listener.local_addr()?, b"still me")?;
        assert!(outcome.is_turned_away(), "{outcome:?}");
        pillion_testbed::untouched(&listener)?;
        pair.callee
            .wait_logs("the denial", 1, |line| line.is(direction::INBOUND, reason::DENIED))?;
        // What the server says may be lost to the reset that comes with it.
        let told = [reason::REFUSED_BY_PEER, reason::PEER_RESET];
        pair.caller.wait_logs("the refusal", 1, |line| told.contains(&line.reason().as_str()))?;
        pair.callee.load_policy(&policy::serve(&[CLIENT]))?;
        pair.exchange(&listener)
    });
}

#[test]
fn a_killed_server_costs_no_later_connection() {
    run("killed-server", |bed| {
        let mut pair = pair(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let to = listener.local_addr()?;
        for gently in [false, true] {
            pair.exchange(&listener)?;
            idle(&pair, 1.0)?;
            if gently {
                assert_eq!(pair.callee.stop(LIMIT)?, 0);
            } else {
                pair.callee.kill9()?;
            }
            // Nobody listens behind the redirect: as without a tunnel, that is a refusal.
            let outcome = ask(&pair.client, to, b"anyone?")?;
            assert!(matches!(outcome, Outcome::Refused | Outcome::Reset), "{outcome:?}");
            pair.callee.restart()?;
            pair.exchange(&listener)?;
        }
        let (fresh, _) = streams(&pair.caller)?;
        assert_eq!(fresh, 3.0, "none of the old tunnels was used again");
        Ok(())
    });
}

#[test]
fn idle_tunnels_do_not_hold_up_a_stop() {
    run("idle-drain", |bed| {
        let mut pair = pair(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        pair.exchange(&listener)?;
        idle(&pair, 1.0)?;
        let start = Instant::now();
        assert_eq!(pair.callee.stop(LIMIT)?, 0);
        // The drain's deadline is 60 s, and a client looks after its tunnels twice a second.
        let took = start.elapsed();
        assert!(took < PROMPTLY, "the server's sidecar: {took:?}");
        pair.caller.wait_metric(metric::IDLE, &[], 0.0)?;
        pair.callee.restart()?;
        pair.exchange(&listener)?;
        idle(&pair, 1.0)?;
        let start = Instant::now();
        assert_eq!(pair.caller.stop(LIMIT)?, 0);
        let took = start.elapsed();
        assert!(took < PROMPTLY, "the client's sidecar: {took:?}");
        pair.callee.wait_metric(metric::IDLE, &[], 0.0)
    });
}

/// A server that is told to stop during a stream tells its client when the stream has ended.
#[test]
fn a_stop_during_a_stream_ends_with_it() {
    run("stream-drain", |bed| {
        let mut pair = pair(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"before the signal")?;
        pair.callee.process().signal(Signal::SIGTERM)?;
        // It is told, and serves what is open.
        let_pass(Duration::from_secs(1));
        pass(&mut server, &mut client, b"after the signal")?;
        exchange(client, server)?;
        let start = Instant::now();
        assert_eq!(pair.callee.process().wait(LIMIT)?, 0);
        let took = start.elapsed();
        assert!(took < PROMPTLY, "{took:?} after the stream");
        pair.caller.wait_metric(metric::IDLE, &[], 0.0)?;
        pair.callee.restart()?;
        pair.exchange(&listener)
    });
}

/// It is the client that ends an idle tunnel, after 15 s.
#[test]
fn an_idle_tunnel_ends() {
    run("idle-limit", |bed| {
        let pair = pair(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        pair.exchange(&listener)?;
        let start = Instant::now();
        idle(&pair, 1.0)?;
        wait_until("the end of the idle tunnel", Duration::from_secs(20), || {
            Ok((pair.caller.metric(metric::IDLE, &[])? < 0.5).then_some(()))
        })?;
        let took = start.elapsed();
        assert!(took > Duration::from_secs(14), "{took:?}");
        pair.callee.wait_metric(metric::IDLE, &[], 0.0)?;
        pair.exchange(&listener)
    });
}
