//! Thousands of idle mTLS connections, and new ones that come and go beside them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, metric, reason};
use pillion_testbed::load::recycle_ports;
use pillion_testbed::pace::{Times, paced, runtime};
use pillion_testbed::stream::{exchange, pass};
use pillion_testbed::wear::descriptors_at_rest;
use pillion_testbed::{
    Context, Failure, MeshOptions, Pair, Pod, Process, Testbed, let_pass, more_descriptors, policy,
    run,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

const APP: u16 = 8080;

/// Connections that are being opened at once.
const OPENERS: usize = 16;
/// No connection is opened more slowly.
const LIMIT: Duration = Duration::from_secs(20);
/// What one idle connection may take of each sidecar's memory, in KiB: half as much again as was
/// measured.
const EACH: f64 = 10.0;
/// What the idle ones may take of a CPU's time: keepalive is the kernel's, so nothing wakes a proxy
/// for them but its own clocks.
const FOR_NOTHING: f64 = 0.1;

/// How many are idle, how many come and go a second, and for how long; how long nothing happens.
struct Size {
    idle: usize,
    a_second: u32,
    beside: Duration,
    quiet: Duration,
}

impl Size {
    fn of(bed: &Testbed) -> Self {
        let (idle, a_second, beside, quiet) =
            bed.settings().few_or((600, 40, 3, 2), (9_000, 300, 60, 20));
        let [beside, quiet] = [beside, quiet].map(Duration::from_secs);
        Self { idle, a_second, beside, quiet }
    }
}

/// Each connection has a TLS connection of its own.
fn call(server: &Pod, revision: u32) -> String {
    format!("{}# revision {revision}\n", policy::call_without_reuse(&server.addresses(), SERVER))
}

/// Two sidecars that may have so many connections open, and a few more.
fn meshed(bed: &Testbed, connections: usize) -> Result<Pair, Failure> {
    let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
    recycle_ports(&client)?;
    recycle_ports(&server)?;
    // Two for each connection, and a reserve for what is none.
    let most = u32::try_from(2 * (connections + 600)).unwrap_or(u32::MAX);
    let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER).descriptors(most);
    let callee = server.mesh(bed, serve)?;
    let caller = client.mesh(bed, MeshOptions::new(call(&server, 0), CLIENT).descriptors(most))?;
    Ok(Pair { client, caller, server, callee })
}

/// Something of the client's sidecar, and of the server's.
fn of_both<T>(
    pair: &mut Pair,
    of: impl Fn(&mut Process) -> Result<T, Failure>,
) -> Result<[T; 2], Failure> {
    Ok([of(pair.caller.process())?, of(pair.callee.process())?])
}

/// Opens so many connections, a few at once; each has passed some bytes both ways. Both apps' ends.
fn open(
    pair: &Pair,
    listener: &TcpListener,
    count: usize,
) -> Result<Vec<(TcpStream, TcpStream)>, Failure> {
    let (to, app) = (listener.local_addr()?, listener.try_clone()?);
    let held = pair.client.enter(|| runtime()?.block_on(open_all(app, to, count)))?;
    let blocking = |stream: tokio::net::TcpStream| {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok::<_, Failure>(stream)
    };
    held.into_iter().map(|(client, server)| Ok((blocking(client)?, blocking(server)?))).collect()
}

type Ends = (tokio::net::TcpStream, tokio::net::TcpStream);

async fn open_all(app: TcpListener, to: SocketAddr, count: usize) -> Result<Vec<Ends>, Failure> {
    let app = tokio::net::TcpListener::from_std(app)?;
    let (mut opening, mut answering) = (JoinSet::new(), JoinSet::new());
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    let mut begun = 0;
    while clients.len() < count || servers.len() < count {
        while begun < count && opening.len() < OPENERS {
            opening.spawn(tokio::time::timeout(LIMIT, say_number(to, begun as u64)));
            begun += 1;
        }
        tokio::select! {
            accepted = app.accept() => {
                answering.spawn(tokio::time::timeout(LIMIT, repeat_number(accepted?.0)));
            }
            Some(opened) = opening.join_next() => {
                let opened = opened.context(|| "a client")?.context(|| "the number's return")?;
                clients.push(opened?);
            }
            Some(opened) = answering.join_next() => {
                let opened = opened.context(|| "the app")?.context(|| "the client's number")?;
                servers.push(opened?);
            }
        }
    }
    // They have finished in any order; the two ends of one have its number.
    clients.sort_unstable_by_key(|(number, _)| *number);
    servers.sort_unstable_by_key(|(number, _)| *number);
    let ends = clients.into_iter().zip(servers);
    Ok(ends.map(|((_, client), (_, server))| (client, server)).collect())
}

async fn say_number(to: SocketAddr, number: u64) -> Result<(u64, tokio::net::TcpStream), Failure> {
    let mut stream =
        tokio::net::TcpStream::connect(to).await.context(|| format!("connecting to {to}"))?;
    stream.write_all(&number.to_be_bytes()).await.context(|| "saying a number")?;
    let came = stream.read_u64().await.context(|| format!("hearing {number}"))?;
    if came == number {
        return Ok((number, stream));
    }
    Err(Failure::Unexpected(format!("{number} became {came}")))
}

async fn repeat_number(
    mut stream: tokio::net::TcpStream,
) -> Result<(u64, tokio::net::TcpStream), Failure> {
    let number = stream.read_u64().await.context(|| "a number")?;
    stream.write_all(&number.to_be_bytes()).await.context(|| "repeating a number")?;
    Ok((number, stream))
}

/// How much of one CPU each sidecar takes while nothing happens.
fn share_for_nothing(pair: &mut Pair, quiet: Duration) -> Result<[f64; 2], Failure> {
    let start = Instant::now();
    let [client, server] = of_both(pair, |process| process.cpu())?;
    let_pass(quiet);
    let [client_after, server_after] = of_both(pair, |process| process.cpu())?;
    let passed = start.elapsed().as_secs_f64();
    let took = [client_after.saturating_sub(client), server_after.saturating_sub(server)];
    Ok(took.map(|took| took.as_secs_f64() / passed))
}

/// So many connections come and go for so long.
fn come_and_go(
    pair: &Pair,
    listener: &TcpListener,
    a_second: u32,
    time: Duration,
) -> Result<Times, Failure> {
    let nothing = || {
        let_pass(time);
        Ok(())
    };
    Ok(paced(&pair.client, listener, a_second, nothing)?.1)
}

/// Each still passes bytes both ways, while all are open; then all end, each by a FIN either way.
fn end(mut held: Vec<(TcpStream, TcpStream)>) -> Result<(), Failure> {
    for (client, server) in &mut held {
        pass(client, server, b"are you there?")?;
        pass(server, client, b"I am")?;
    }
    held.into_iter().try_for_each(|(client, server)| exchange(client, server))
}

/// A connection takes little of a sidecar's resident memory, and what one had that has ended serves
/// the next: in bytes, when none was there, with all, without them, and with as many again.
fn check_memory(name: &str, readings: [u64; 4], idle: usize, most: f64) {
    let [empty, full, after, again] = readings.map(|bytes| bytes >> 10);
    let taken = full.saturating_sub(empty);
    let each = taken as f64 / idle as f64;
    println!(
        "the {name} sidecar: {empty} KiB, {full} KiB with {idle} idle, {each:.1} KiB each, {after} \
         KiB after, {again} KiB with as many again"
    );
    assert!(each < most, "{name}: {each} KiB each");
    let more = again.saturating_sub(after);
    assert!(
        more < (taken / 4).max(1024),
        "{name}: {taken} KiB, and {more} KiB more the second time"
    );
}

#[test]
fn new_connections_are_served_beside_thousands_that_are_idle() {
    run("crowd", |bed| {
        let Size { idle, a_second, beside, quiet } = Size::of(bed);
        more_descriptors()?;
        let mut pair = meshed(bed, idle)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        // What a process opens and allocates once is there before it is measured.
        let warm = come_and_go(&pair, &listener, a_second, Duration::from_secs(1))?;
        let text = call(&pair.server, 1);
        let before = descriptors_at_rest(&mut pair, &text)?;
        let alone = come_and_go(&pair, &listener, a_second, beside / 3)?;
        pair.caller.wait_idle()?;
        pair.callee.wait_idle()?;

        let empty = of_both(&mut pair, |process| process.resident())?;
        let start = Instant::now();
        let held = open(&pair, &listener, idle)?;
        println!("{idle} opened within {:.1?}", start.elapsed());
        let_pass(Duration::from_secs(1));
        let full = of_both(&mut pair, |process| process.resident())?;
        let shares = share_for_nothing(&mut pair, quiet)?;
        println!("of a CPU while nothing happens, client's and server's: {shares:.4?}");
        for sidecar in [&pair.caller, &pair.callee] {
            assert_eq!(sidecar.metric(metric::OPEN, &[])?, idle as f64);
        }
        let came = come_and_go(&pair, &listener, a_second, beside)?;
        println!("new ones, {a_second} a second, alone: {alone}");
        println!("new ones beside those that are idle: {came}");
        for sidecar in [&pair.caller, &pair.callee] {
            sidecar.wait_metric(metric::OPEN, &[], idle as f64)?;
        }
        end(held)?;

        let text = call(&pair.server, 2);
        let rest = descriptors_at_rest(&mut pair, &text)?;
        let after = of_both(&mut pair, |process| process.resident())?;
        let held = open(&pair, &listener, idle)?;
        let again = of_both(&mut pair, |process| process.resident())?;
        end(held)?;
        let readings = [empty, full, after, again];
        // Of a few, what a burst of handshakes takes counts for more.
        let most = bed.settings().few_or(2.0 * EACH, EACH);
        check_memory("client's", readings.map(|[client, _]| client), idle, most);
        check_memory("server's", readings.map(|[_, server]| server), idle, most);
        assert!(shares.iter().all(|share| *share < FOR_NOTHING), "{shares:?}");
        // The rate was kept: who asks less often would be served, too.
        let asked = f64::from(a_second) * beside.as_secs_f64();
        let least = bed.settings().few_or(0.5, 0.98) * asked;
        assert!(came.served() as f64 >= least, "{} of {asked}", came.served());
        assert!(rest[0] <= before[0] && rest[1] <= before[1], "descriptors: {before:?}, {rest:?}");
        let all = warm.served() + alone.served() + came.served() + 2 * idle;
        for sidecar in [&pair.caller, &pair.callee] {
            sidecar.wait_idle()?;
            let metrics = sidecar.metrics()?;
            let reasons = metrics.by(metric::CLOSED, "reason");
            assert_eq!(reasons, BTreeMap::from([(reason::CLOSED.to_owned(), all as f64)]));
            assert_eq!(metrics.sum(metric::PANICS, &[]), 0.0);
        }
        Ok(())
    });
}
