//! Churn: connection after connection between two pods while everything that may change does.
//! Not one of them may fail, and nothing may stay behind. It goes on for as long as
//! `PILLION_TEST_CHURN_SECONDS` says.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{metric, reason};
use pillion_testbed::load::{ask_echo, echo, joined, recycle_ports};
use pillion_testbed::wear::{Sample, courses, descriptors_at_rest};
use pillion_testbed::{Failure, Pair, Pod, Sidecar, Testbed, let_pass, policy, run};

/// Connections to this port go over tunnels that are used again.
const REUSED: u16 = 8080;
/// Each connection to this port has a TLS connection of its own.
const FRESH: u16 = 8081;
const CLIENTS: usize = 8;

/// How long one change has before the next.
const STEP: Duration = Duration::from_millis(700);

fn call(pair: &Pair, revision: u32) -> String {
    policy::call_either_way(pair.server.v4(), REUSED, FRESH, revision)
}

/// Alternates between the ports until told to stop, with messages of several sizes; the first
/// failure ends it.
fn churn(
    client: &Pod,
    server: &Pod,
    number: usize,
    done: &AtomicBool,
    served: &AtomicU64,
) -> Result<(), Failure> {
    let message: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    client.enter(|| {
        let mut round = number;
        while !done.load(Ordering::Relaxed) {
            round += 1;
            let length = match round % 60 {
                0 => 300_000,
                some if some % 3 == 0 => 10,
                some if some % 3 == 1 => 1_000,
                _ => 20_000,
            };
            let port = if round.is_multiple_of(2) { REUSED } else { FRESH };
            let to = SocketAddr::new(server.v4(), port);
            ask_echo(to, message.get(..length).unwrap_or(&message))?;
            served.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// One change after another, and how much memory each sidecar has over time.
fn change_everything(
    bed: &Testbed,
    pair: &mut Pair,
    until: Instant,
    go_on: impl Fn() -> bool,
) -> Result<Vec<Sample>, Failure> {
    let mut samples = Vec::new();
    for revision in (10..).step_by(2) {
        if Instant::now() >= until || !go_on() {
            break;
        }
        pair.caller.issue(bed)?;
        let_pass(STEP);
        // With the server's certificate its clients' tunnels go: each gets a GOAWAY.
        pair.callee.issue(bed)?;
        let_pass(STEP);
        let text = call(pair, revision);
        pair.caller.load_policy(&text)?;
        let_pass(STEP);
        pair.callee.load_policy(&policy::serve_revision(revision))?;
        let_pass(STEP);
        samples.push(Sample::take(pair)?);
    }
    Ok(samples)
}

fn report(pair: &Pair, served: u64, samples: &[Sample], length: Duration) -> Result<(), Failure> {
    let of = |sidecar: &Sidecar, name, labels: &[(&str, &str)]| sidecar.metric(name, labels);
    let reused = of(&pair.caller, metric::STREAMS, &[("reused", "true")])?;
    let fresh = of(&pair.caller, metric::STREAMS, &[("reused", "false")])?;
    let handshakes = of(&pair.callee, metric::HANDSHAKES, &[("result", "ok")])?;
    println!("{served} connections: {reused} over a tunnel that was there, {fresh} over a new one");
    let courses = courses(samples, length / 2);
    println!("{handshakes} handshakes, {} rounds of changes", samples.len());
    for (name, course) in ["client", "server"].iter().zip(courses.into_iter().flatten()) {
        let a_minute = course.an_hour / 60.0;
        println!("resident, {name}: {:.1} MiB, {a_minute:+.2} MiB a minute", course.last);
    }
    assert!(reused > served as f64 / 3.0, "about half are to go over used tunnels: {reused}");
    assert!(fresh > samples.len() as f64, "each change gives tunnels up: {fresh}");
    Ok(())
}

#[test]
fn nothing_fails_while_everything_changes() {
    run("churn", |bed| {
        let mut pair = Pair::with_env(bed, &[("PILLION_ACCESS_LOG", "denied")])?;
        recycle_ports(&pair.client)?;
        recycle_ports(&pair.server)?;
        pair.caller.load_policy(&call(&pair, 0))?;
        let address = pair.server.v4();
        let listeners = [pair.listen(address, REUSED)?, pair.listen(address, FRESH)?];
        let (done, closing) = (AtomicBool::new(false), AtomicBool::new(false));
        let served = AtomicU64::new(0);
        let (client, server) = (pair.client.clone(), pair.server.clone());

        // What a process opens once is open before it is counted.
        for listener in &listeners {
            pair.exchange(listener)?;
        }
        let text = call(&pair, 1);
        let before = descriptors_at_rest(&mut pair, &text)?;
        let until = Instant::now() + bed.settings().churn();
        let samples = std::thread::scope(|scope| {
            let (done, closing, served) = (&done, &closing, &served);
            let apps: Vec<_> = (0..2 * CLIENTS)
                .zip(listeners.iter().cycle())
                .map(|(_, listener)| scope.spawn(move || echo(listener, closing)))
                .collect();
            let (client, server) = (&client, &server);
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| scope.spawn(move || churn(client, server, number, done, served)))
                .collect();
            let all_run = || clients.iter().all(|client| !client.is_finished());
            let samples = change_everything(bed, &mut pair, until, all_run);
            done.store(true, Ordering::Relaxed);
            let ended = clients.into_iter().try_for_each(joined);
            // Only now: the apps serve whoever is under way.
            closing.store(true, Ordering::Relaxed);
            let closed = apps.into_iter().try_for_each(joined);
            ended.and(closed)?;
            samples
        })?;
        let text = call(&pair, 2);
        let after = descriptors_at_rest(&mut pair, &text)?;
        report(&pair, served.load(Ordering::Relaxed), &samples, bed.settings().churn())?;
        assert!(
            after[0] <= before[0] && after[1] <= before[1],
            "descriptors: {before:?}, {after:?}"
        );
        for sidecar in [&pair.caller, &pair.callee] {
            let reasons = sidecar.metrics()?.by(metric::CLOSED, "reason");
            assert_eq!(reasons.keys().collect::<Vec<_>>(), [reason::CLOSED], "{reasons:?}");
        }
        Ok(())
    });
}
