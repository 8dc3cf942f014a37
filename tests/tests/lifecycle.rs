//! A proxy's life: stopped, killed, and given new policies and certificates while it serves.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pillion_testbed::labels::{CLIENT, STRANGER, direction, metric, reason};
use pillion_testbed::stream::{End, Outcome, ask, pass, read_to_end};
use pillion_testbed::{Failure, Pair, Sidecar, accept, policy, run, untouched, wait_until};

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn sigterm_keeps_open_streams_and_ends_with_the_last() {
    run("drain", |bed| {
        let mut pair = Pair::with_env(bed, &[("PILLION_DRAIN_TIMEOUT", "60s")])?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"before")?;

        for sidecar in [&mut pair.callee, &mut pair.caller] {
            sidecar.process().signal(Signal::SIGTERM)?;
        }
        pass(&mut client, &mut server, b"after")?;
        pass(&mut server, &mut client, b"and back")?;
        for sidecar in [&mut pair.callee, &mut pair.caller] {
            assert!(sidecar.process().ended()?.is_none(), "it serves what is open");
        }

        drop(client);
        assert_eq!(read_to_end(&mut server)?, (Vec::new(), End::Fin));
        drop(server);
        // Long before the deadline of 60 s: the last connection's end is what it waits for.
        assert_eq!(pair.callee.process().wait(LIMIT)?, 0);
        assert_eq!(pair.caller.process().wait(LIMIT)?, 0);
        // Their metrics have gone with them; the logs are there.
        for (sidecar, way) in
            [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
        {
            assert_eq!(lines_for(sidecar, way, reason::CLOSED)?, 1);
            assert_eq!(sidecar.log_lines()?.len(), 1, "{way}: and no other");
        }
        Ok(())
    });
}

/// Lines of the access log, of a proxy that has ended or is quiet.
fn lines_for(sidecar: &Sidecar, way: &str, why: &str) -> Result<usize, Failure> {
    Ok(sidecar.log_lines()?.iter().filter(|line| line.is(way, why)).count())
}

#[test]
fn sigterm_resets_what_is_left_at_the_deadline() {
    run("drain-deadline", |bed| {
        let mut pair = Pair::with_env(bed, &[("PILLION_DRAIN_TIMEOUT", "1s")])?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"before")?;

        let start = Instant::now();
        assert_eq!(pair.callee.stop(LIMIT)?, 0);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(900), "it waited for the stream: {took:?}");
        assert_eq!(read_to_end(&mut server)?, (Vec::new(), End::Reset));
        assert_eq!(read_to_end(&mut client)?, (Vec::new(), End::Reset));
        assert_eq!(lines_for(&pair.callee, direction::INBOUND, reason::SHUTDOWN)?, 1);
        // The metrics of the one that has ended are gone; the other's tell the same.
        pair.caller.wait_ended(direction::OUTBOUND, reason::PEER_RESET, 1).map(drop)
    });
}

/// Two hundred streams in a drain: who is new is served, too. A second signal ends it at once, by a
/// reset of what is left.
#[test]
fn sigterm_with_many_streams_serves_on_and_a_second_one_ends_it() {
    const STREAMS: usize = 200;
    run("drain-many", |bed| {
        let mut pair = Pair::with_env(bed, &[("PILLION_DRAIN_TIMEOUT", "60s")])?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let mut open = Vec::new();
        for _ in 0..STREAMS {
            let (mut client, mut server) = pair.open(&listener)?;
            pass(&mut client, &mut server, b"before")?;
            open.push((client, server));
        }
        pair.callee.process().signal(Signal::SIGTERM)?;
        pair.callee.wait_message("told to stop")?;
        for (client, server) in &mut open {
            pass(client, server, b"after")?;
            pass(server, client, b"and back")?;
        }
        pair.exchange(&listener)?;
        assert!(pair.callee.process().ended()?.is_none(), "it serves what is open");

        let start = Instant::now();
        assert_eq!(pair.callee.stop(LIMIT)?, 0);
        assert!(start.elapsed() < LIMIT, "long before the deadline: {:?}", start.elapsed());
        for (mut client, mut server) in open {
            assert_eq!(read_to_end(&mut server)?, (Vec::new(), End::Reset));
            assert_eq!(read_to_end(&mut client)?, (Vec::new(), End::Reset));
        }
        let ended = |why| lines_for(&pair.callee, direction::INBOUND, why);
        assert_eq!((ended(reason::SHUTDOWN)?, ended(reason::CLOSED)?), (STREAMS, 1));
        // The metrics of the one that has ended are gone; the other's tell the same.
        pair.caller.wait_ended(direction::OUTBOUND, reason::PEER_RESET, STREAMS)?;
        pair.caller.wait_ended(direction::OUTBOUND, reason::CLOSED, 1).map(drop)
    });
}

/// The rules are there before the proxy is: nothing is served, and nothing leaves.
#[test]
fn before_the_proxy_is_there_nothing_leaves_and_nothing_comes_in() {
    const SECRET: &[u8] = b"sent before the proxy is there";
    run("before", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        for pod in [&server, &client] {
            pillion_testbed::complete(&mut pod.init()?)?;
        }
        let capture = client.capture("before")?;
        for address in server.addresses() {
            let listener = server.listen(SocketAddr::new(address, APP))?;
            assert_eq!(ask(&client, listener.local_addr()?, SECRET)?, Outcome::Refused);
            untouched(&listener)?;
        }
        let wire = capture.finish(&server)?;
        assert!(!wire.contains(SECRET), "no plaintext leaves");
        assert_eq!(wire.flows(APP).count(), 0, "nothing leaves for the app at all");

        // A client without rules of its own, of which the server's has to be safe.
        let plain = bed.pod("pln")?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        assert_eq!(ask(&plain, listener.local_addr()?, SECRET)?, Outcome::Refused);
        untouched(&listener)?;
        drop(listener);

        let pair = Pair::mesh(bed, client, server, &[])?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let capture = pair.client.capture("after")?;
        pair.exchange(&listener)?;
        let wire = capture.finish(&pair.server)?;
        assert!(!wire.contains(b"what is the answer?"), "TLS, and nothing else");
        let (tls, other) = wire.summary(APP);
        assert!(tls > 0 && other == 0, "{tls} flows of TLS, {other} of anything else");
        for (sidecar, way) in
            [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
        {
            let opened = [("direction", way)];
            assert_eq!(sidecar.metric(metric::OPENED, &opened)?, 1.0, "{way}: none from before");
            sidecar.wait_ended(way, reason::CLOSED, 1)?;
        }
        Ok(())
    });
}

#[test]
fn sigterm_without_connections_ends_at_once() {
    run("idle-stop", |bed| {
        let mut pair = Pair::new(bed)?;
        let start = Instant::now();
        assert_eq!(pair.callee.stop(LIMIT)?, 0);
        // Long before the drain's deadline, of 10 s.
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        // It has gone, and the rules have not.
        let app = pair.listen(pair.server.v4(), APP)?;
        assert!(ask(&pair.client, app.local_addr()?, b"anyone?")?.is_turned_away());
        untouched(&app)?;
        refused_once(&pair.caller)
    });
}

/// Of the connections of the client's, one has not ended well. Its sidecar, which lives, tells so:
/// nobody listened for it any more, or a tunnel that was idle had gone.
fn refused_once(caller: &Sidecar) -> Result<(), Failure> {
    caller.wait_idle()?;
    let mut reasons = caller.metrics()?.by(metric::CLOSED, "reason");
    reasons.remove(reason::CLOSED);
    let refused = [reason::CONNECT_REFUSED, reason::PEER_RESET];
    let why = reasons.keys().find(|why| refused.contains(&why.as_str())).cloned();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    caller.wait_ended(direction::OUTBOUND, &why.unwrap_or_default(), 1).map(drop)
}

#[test]
fn killed_it_fails_closed_and_serves_again_after_a_restart() {
    const SECRET: &[u8] = b"sent while the proxy is dead";
    run("kill", |bed| {
        let mut pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let to = listener.local_addr()?;
        drop(pair.open(&listener)?);

        let capture = pair.client.capture("killed")?;
        pair.caller.kill9()?;
        let outcome = ask(&pair.client, to, SECRET)?;
        assert!(outcome.is_turned_away(), "the rules stay, so nobody answers: {outcome:?}");
        let wire = capture.finish(&pair.server)?;
        assert!(!wire.contains(SECRET), "no plaintext leaves");
        assert_eq!(wire.flows(APP).count(), 0, "nothing leaves for the app at all");

        // A machine that does other things, too, starts it later.
        let soon = bed.settings().few_or(LIMIT, Duration::from_secs(1));
        pair.caller.restart()?;
        ready_after(&pair.caller, soon)?;
        pair.exchange(&listener)?;
        // It has begun anew: one connection is all that it knows of.
        pair.caller.wait_ended(direction::OUTBOUND, reason::CLOSED, 1)?;
        assert_eq!(pair.caller.metric(metric::OPENED, &[])?, 1.0);

        pair.callee.kill9()?;
        let outcome = ask(&pair.client, to, SECRET)?;
        assert!(outcome.is_turned_away(), "the server's side: {outcome:?}");
        untouched(&listener)?;
        refused_once(&pair.caller)?;
        pair.callee.restart()?;
        ready_after(&pair.callee, soon)?;
        pair.exchange(&listener)?;
        pair.callee.wait_ended(direction::INBOUND, reason::CLOSED, 1)?;
        assert_eq!(pair.callee.metric(metric::OPENED, &[])?, 1.0);
        Ok(())
    });
}

/// It was ready so soon after its start, as it says itself.
fn ready_after(sidecar: &Sidecar, soon: Duration) -> Result<(), Failure> {
    let said = sidecar.wait_message("ready")?;
    let after: Option<u64> = said.iter().find_map(|line| line.text("after_ms").parse().ok());
    println!("ready after {after:?} ms");
    assert!(after.is_some_and(|after| Duration::from_millis(after) < soon), "{said:?}");
    Ok(())
}

#[test]
fn a_policy_that_denies_ends_open_connections_and_a_looser_one_touches_none() {
    run("policy-change", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"allowed")?;

        let loaded = |text: &str| {
            let hash = |metrics: &pillion_testbed::Metrics| metrics.by(metric::POLICY, "hash");
            let before = hash(&pair.callee.metrics()?);
            pair.callee.set_policy(text)?;
            wait_until("the new policy", LIMIT, || {
                Ok((hash(&pair.callee.metrics()?) != before).then_some(()))
            })
        };
        loaded(&policy::serve(&[CLIENT, STRANGER]))?;
        pass(&mut client, &mut server, b"still allowed")?;
        pass(&mut server, &mut client, b"both ways")?;

        loaded(&policy::serve(&[STRANGER]))?;
        let start = Instant::now();
        let (bytes, _) = read_to_end(&mut client)?;
        let took = start.elapsed();
        assert_eq!(bytes, b"");
        // FIN at once, RST a second later; the change itself was seen before the clock started.
        assert!(took < Duration::from_secs(8), "ended only after {took:?}");
        drop((client, server));
        let lines = pair.callee.wait_ended(direction::INBOUND, reason::POLICY_CHANGED, 1)?;
        assert!(lines.iter().all(|line| line.mentions(CLIENT)), "{lines:?}");
        let outcome = ask(&pair.client, listener.local_addr()?, b"again")?;
        assert!(outcome.is_turned_away(), "{outcome:?}");
        Ok(())
    });
}

#[test]
fn a_broken_policy_changes_nothing() {
    run("policy-broken", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pair.callee.set_policy("inbound: {mtls: perhaps}\n")?;
        pair.callee.wait_metric(metric::POLICY_LOADED, &[], 0.0)?;
        assert_eq!(pair.callee.wait_message("the policy can't be used")?.len(), 1, "told once");
        pass(&mut client, &mut server, b"the open one stays")?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"new ones are served")?;
        pair.callee.set_policy(&policy::serve(&[CLIENT]))?;
        pair.callee.wait_metric(metric::POLICY_LOADED, &[], 1.0)
    });
}

#[test]
fn certificates_are_replaced_under_traffic() {
    const ROUNDS: u8 = 3;
    run("certificates", |bed| {
        let mut pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let to = listener.local_addr()?;
        let (mut long_client, mut long_server) = pair.open(&listener)?;
        let loads = [("result", "ok")];
        for round in 1..=ROUNDS {
            for callee in [true, false] {
                let sidecar = if callee { &mut pair.callee } else { &mut pair.caller };
                let before = sidecar.metric(metric::CERTIFICATE_RELOADS, &loads)?;
                sidecar.issue(bed)?;
                let sidecar = if callee { &pair.callee } else { &pair.caller };
                // Connection after connection until the new certificate is in force, then some.
                let mut after = 0;
                let count = wait_for_reload(|| {
                    exchange(&pair, to, &listener)?;
                    let now = sidecar.metric(metric::CERTIFICATE_RELOADS, &loads)?;
                    after += u32::from(now > before);
                    Ok(after > 5)
                })?;
                println!("round {round}: {count} connections across the change");
            }
            pass(&mut long_client, &mut long_server, b"the long stream goes on")?;
        }
        let loads = usize::from(ROUNDS) + 1;
        for sidecar in [&pair.caller, &pair.callee] {
            let results = sidecar.metrics()?.by(metric::CERTIFICATE_RELOADS, "result");
            assert!(results.iter().eq([(&"ok".to_owned(), &(loads as f64))]), "{results:?}");
            assert_eq!(sidecar.messages("certificates loaded")?.len(), loads);
        }
        pair.check_meshed()
    });
}

/// One connection that must succeed.
fn exchange(pair: &Pair, to: SocketAddr, listener: &std::net::TcpListener) -> Result<(), Failure> {
    let mut client = pair.client.connect(to)?;
    let mut server = accept(listener)?;
    pass(&mut client, &mut server, b"ping")?;
    pass(&mut server, &mut client, b"pong")
}

/// Repeats `step` until it says that it is done, at most for the time a poll of the files takes.
fn wait_for_reload(mut step: impl FnMut() -> Result<bool, Failure>) -> Result<u32, Failure> {
    let mut count = 0;
    wait_until("a reload of the certificates", Duration::from_secs(15), || {
        count += 1;
        Ok(step()?.then_some(()))
    })?;
    Ok(count)
}
