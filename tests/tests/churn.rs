//! Churn: connection after connection between two pods while everything that may change does.
//! Not one of them may fail, and nothing may stay behind. It goes on for as long as
//! `PILLION_TEST_CHURN_SECONDS` says.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, metric, reason};
use pillion_testbed::load::{ask_echo, echo, joined, recycle_ports};
use pillion_testbed::{Failure, Pair, Pod, Sidecar, Testbed, let_pass, policy, run};

/// Connections to this port go over tunnels that are used again.
const REUSED: u16 = 8080;
/// Each connection to this port has a TLS connection of its own.
const FRESH: u16 = 8081;
const CLIENTS: usize = 8;

/// How long one change has before the next.
const STEP: Duration = Duration::from_millis(700);

fn call(pair: &Pair, revision: u32) -> String {
    let address = pair.server.v4();
    let destination = |name: &str, port: u16, more: &str| {
        format!(
            "  - {{name: {name}, ipBlocks: [\"{address}\"], ports: [{port}], action: mtls, \
             serverIdentities: [\"{SERVER}\"]{more}}}\n"
        )
    };
    policy::with_body(&format!(
        "inbound: {{mtls: strict, defaultAction: deny}}\n\
         outbound:\n  defaultAction: deny\n  destinations:\n{}{}# revision {revision}\n",
        destination("reused", REUSED, ""),
        destination("fresh", FRESH, ", tunnelReuse: false"),
    ))
}

fn serve(revision: u32) -> String {
    format!("{}# revision {revision}\n", policy::serve(&[CLIENT]))
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

/// Closes the idle tunnels and counts what is open then, for as long as nothing is asked.
fn at_rest(pair: &mut Pair, revision: u32) -> Result<[usize; 2], Failure> {
    pair.caller.load_policy(&call(pair, revision))?;
    for sidecar in [&pair.caller, &pair.callee] {
        sidecar.wait_idle()?;
        sidecar.wait_metric(metric::IDLE, &[], 0.0)?;
    }
    // The question for the metrics was itself a connection, which may not have gone yet.
    let mut least = [usize::MAX; 2];
    for _ in 0..10 {
        let [client, server] = least;
        least = [
            client.min(pair.caller.process().descriptors()?),
            server.min(pair.callee.process().descriptors()?),
        ];
        let_pass(Duration::from_millis(100));
    }
    Ok(least)
}

/// How much memory each sidecar has at a moment, in MiB.
struct Sample {
    seconds: f64,
    client: f64,
    server: f64,
}

/// One change after another, and how much memory each sidecar has over time.
fn change_everything(
    bed: &Testbed,
    pair: &mut Pair,
    until: Instant,
    go_on: impl Fn() -> bool,
) -> Result<Vec<Sample>, Failure> {
    let start = Instant::now();
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
        pair.callee.load_policy(&serve(revision))?;
        let_pass(STEP);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        samples.push(Sample {
            seconds: start.elapsed().as_secs_f64(),
            client: mib(pair.caller.process().resident()?),
            server: mib(pair.callee.process().resident()?),
        });
    }
    Ok(samples)
}

/// The slope of a line through what was measured in the second half, when caches are warm, in MiB
/// a minute (least squares).
fn slope(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let late = || samples.iter().skip(samples.len() / 2);
    let count = late().count() as f64;
    let mean_x = late().map(|sample| sample.seconds).sum::<f64>() / count;
    let mean_y = late().map(&of).sum::<f64>() / count;
    let over: f64 = late().map(|s| (s.seconds - mean_x) * (of(s) - mean_y)).sum();
    let under: f64 = late().map(|s| (s.seconds - mean_x).powi(2)).sum();
    if under > 0.0 { 60.0 * over / under } else { 0.0 }
}

fn report(pair: &Pair, served: u64, samples: &[Sample]) -> Result<(), Failure> {
    let of = |sidecar: &Sidecar, name, labels: &[(&str, &str)]| sidecar.metric(name, labels);
    let reused = of(&pair.caller, metric::STREAMS, &[("reused", "true")])?;
    let fresh = of(&pair.caller, metric::STREAMS, &[("reused", "false")])?;
    let handshakes = of(&pair.callee, metric::HANDSHAKES, &[("result", "ok")])?;
    println!("{served} connections: {reused} over a tunnel that was there, {fresh} over a new one");
    println!("{handshakes} handshakes, {} rounds of changes", samples.len());
    if let Some(last) = samples.last() {
        let client = slope(samples, |sample| sample.client);
        let server = slope(samples, |sample| sample.server);
        println!("resident, client: {:.1} MiB, {client:+.2} MiB a minute", last.client);
        println!("resident, server: {:.1} MiB, {server:+.2} MiB a minute", last.server);
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
        let before = at_rest(&mut pair, 1)?;
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
        let after = at_rest(&mut pair, 2)?;
        report(&pair, served.load(Ordering::Relaxed), &samples)?;
        assert_eq!(after, before, "descriptors of the client's and the server's sidecar");
        for sidecar in [&pair.caller, &pair.callee] {
            let reasons = sidecar.metrics()?.by(metric::CLOSED, "reason");
            assert_eq!(reasons.keys().collect::<Vec<_>>(), [reason::CLOSED], "{reasons:?}");
        }
        Ok(())
    });
}
