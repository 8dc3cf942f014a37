//! Connections on which nothing happens for long: half-closed ones that have to live, and those
//! of clients that never finish a handshake, which must not.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, reason};
use pillion_testbed::pace::{paced, runtime};
use pillion_testbed::peer::{TlsPeer, identity};
use pillion_testbed::stream::{End, pass, read_to_end};
use pillion_testbed::wear::descriptors_at_rest;
use pillion_testbed::{
    Context, Failure, LogLine, MemoryGroup, MeshOptions, Pair, Pod, Settings, Sidecar, accept,
    complete, let_pass, more_descriptors, policy, run, untouched, wait_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

const APP: u16 = 8080;

/// The connection table of the tests forgets a half-closed connection after so many seconds
/// without a packet: more than a keepalive's 15 s, by what a kernel's timer may be late, instead of
/// the kernel's 60.
const FORGETS: u64 = 20;

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
        let mut pair = Pair::new(bed)?;
        for pod in [&pair.client, &pair.server] {
            forget_sooner(pod)?;
        }
        let listener = pair.listen(pair.server.v4(), APP)?;
        // What a process opens once is open before it is counted.
        pair.exchange(&listener)?;
        let calls = policy::call(&pair.server.addresses(), SERVER);
        let before = descriptors_at_rest(&mut pair, &format!("{calls}# revision 1\n"))?;
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
            let all = pairs + 1;
            assert_eq!(sidecar.metric(metric::CLOSED, &closed)?, all as f64, "{way}");
            let lines = sidecar.wait_logs("ends", all, |line| line.is(way, reason::CLOSED))?;
            assert_eq!(lines.len(), all);
        }
        for pod in [&pair.client, &pair.server] {
            for state in ["close-wait", "fin-wait-2"] {
                wait_until(&format!("no {state}"), Duration::from_secs(30), || {
                    Ok((in_state(pod, state)? == 0).then_some(()))
                })?;
            }
        }
        let after = descriptors_at_rest(&mut pair, &format!("{calls}# revision 2\n"))?;
        println!("{pairs} pairs; descriptors at rest: {before:?} before, {after:?} after");
        assert!(
            after[0] <= before[0] && after[1] <= before[1],
            "descriptors: {before:?}, {after:?}"
        );
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
        wait_until("a line for each", Duration::from_secs(30), || {
            let mut lines = [pair.caller.log_lines()?, pair.callee.log_lines()?].concat();
            lines.retain(|line| line.reason() == reason::HALF_CLOSE_TIMEOUT);
            assert!(lines.len() as f64 <= given_up, "{lines:?}");
            Ok((lines.len() as f64 == given_up).then_some(()))
        })
    });
}

/// What those say who never finish a handshake: the beginning of a ClientHello, and how it goes on.
#[derive(Debug, Clone, Copy)]
struct Manner {
    name: &'static str,
    /// How much of the ClientHello comes at once, of its length.
    says: fn(usize) -> usize,
    /// Whether a byte more comes every five seconds.
    drips: bool,
}

const MANNERS: [Manner; 5] = [
    Manner { name: "silent", says: |_| 0, drips: false },
    Manner { name: "three bytes", says: |_| 3, drips: false },
    Manner { name: "half a ClientHello", says: |length| length / 2, drips: false },
    Manner { name: "a whole one", says: |length| length, drips: false },
    Manner { name: "byte by byte", says: |_| 1, drips: true },
];

/// When those who stall were closed: how long after each had connected.
type Closed = Vec<(Manner, Duration)>;

/// Opens a connection for each who stalls, so many a second, and says when the last of them is open;
/// returns once all are closed.
async fn stall(
    to: SocketAddr,
    hello: Vec<u8>,
    who: impl Iterator<Item = Manner>,
    a_second: u32,
    opened: mpsc::Sender<()>,
) -> Result<Closed, Failure> {
    let hello: Arc<[u8]> = hello.into();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / a_second);
    let mut stalled = JoinSet::new();
    for manner in who {
        tick.tick().await;
        let since = Instant::now();
        let stream = match tokio::net::TcpStream::connect(to).await {
            // It was made, and reset before it was known of here.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                stalled.spawn(async move { (manner, since.elapsed()) });
                continue;
            }
            stream => stream.context(|| "one who stalls")?,
        };
        let hello = Arc::clone(&hello);
        stalled.spawn(async move {
            until_closed(stream, manner, &hello).await;
            (manner, since.elapsed())
        });
    }
    let _ = opened.send(());
    let ended = tokio::time::timeout(4 * HANDSHAKE, stalled.join_all()).await;
    ended.context(|| "the ends of all")
}

/// Says what `manner` says, and waits for the end.
async fn until_closed(mut stream: tokio::net::TcpStream, manner: Manner, hello: &[u8]) {
    let (first, rest) = hello.split_at((manner.says)(hello.len()));
    // It may have ended already, or do so between two bytes: reading says so.
    let _ = stream.write_all(first).await;
    let mut drips = rest.iter();
    let mut next = tokio::time::interval(HANDSHAKE / 2);
    next.tick().await;
    let mut buffer = [0; 256];
    loop {
        tokio::select! {
            // The server's part of the handshake is no end; a RST is one.
            read = stream.read(&mut buffer) => if read.unwrap_or(0) == 0 {
                return;
            },
            _ = next.tick(), if manner.drips => {
                let _ = stream.write_all(drips.next().map_or(&[], std::slice::from_ref)).await;
            }
        }
    }
}

/// How many stall, how fast they come, and what is asked of the rest.
struct Stall {
    count: usize,
    arrive: u32,
    /// Honest connections a second.
    honest: u32,
    /// How long those are alone.
    alone: Duration,
    /// When the last that stalls has to be closed, after it had connected.
    latest: Duration,
    /// What the p99 of the honest ones may be, from what it is while they are alone.
    allowed: fn(Duration) -> Duration,
}

impl Stall {
    fn of(settings: &Settings) -> Self {
        // A machine that does other things, too, looks at them later: the figures are for a quiet
        // one. Who drips has said so much by the latest of times that a deadline anew with each
        // byte would never come; and honest ones would wait for the deadline, if for anything.
        let few = Self {
            count: 500,
            arrive: 500,
            honest: 40,
            alone: Duration::from_secs(2),
            latest: 2 * HANDSHAKE,
            allowed: |_| HANDSHAKE / 2,
        };
        let all = Self {
            count: 5_000,
            arrive: 2_500,
            honest: 100,
            alone: Duration::from_secs(10),
            latest: HANDSHAKE + Duration::from_millis(500),
            allowed: |alone| (2 * alone).max(alone + NOISE),
        };
        settings.few_or(few, all)
    }
}

/// What a p99 of less than this differs by is a matter of when the scheduler came by.
const NOISE: Duration = Duration::from_millis(2);

/// Silent, three bytes, half a ClientHello, a whole one and no word after it, one byte every five
/// seconds. The deadline is one for all of the handshake, whatever comes meanwhile.
#[test]
fn stalled_handshakes_end_at_the_deadline_and_honest_ones_do_not_notice() {
    run("stalled", |bed| {
        let Stall { count, arrive, honest, alone, latest, allowed } = Stall::of(bed.settings());
        more_descriptors()?;
        let (server, liar, client) = (bed.pod("srv")?, bed.pod("sil")?, bed.pod("cli")?);
        let most = (2 * count).to_string();
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER)
            .env("PILLION_MAX_PENDING_HANDSHAKES", &most);
        let callee = server.mesh(bed, serve)?;
        let call = policy::call_without_reuse(&server.addresses(), SERVER);
        let caller = client.mesh(bed, MeshOptions::new(call, CLIENT))?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let to = app.local_addr()?;
        let svid = identity(&bed.issue(&bed.ca()?, CLIENT, "liar")?)?;
        let hello = TlsPeer::hello(&svid)?;
        let served_while = |meanwhile: &dyn Fn()| {
            paced(&client, &app, honest, || {
                meanwhile();
                Ok(())
            })
            .map(|((), times)| times)
        };
        served_while(&|| let_pass(Duration::from_secs(1)))?;
        let alone = served_while(&|| let_pass(alone))?;
        println!("honest ones alone: {alone}");
        let (closed, beside) = std::thread::scope(|scope| {
            let (opened, all_open) = mpsc::channel();
            let who = MANNERS.into_iter().cycle().take(count);
            let stalling = scope.spawn(|| {
                liar.enter(move || runtime()?.block_on(stall(to, hello, who, arrive, opened)))
            });
            let coming = served_while(&|| {
                // It ends without a word where it fails, which it says below.
                let _ = all_open.recv();
            })?;
            println!("while {count} that stall come, {arrive} a second: {coming}");
            let beside = served_while(&|| {
                while !stalling.is_finished() {
                    let_pass(Duration::from_millis(10));
                }
            })?;
            let closed = stalling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Failure>((closed?, beside))
        })?;
        println!("while all of them are open, and until the last is closed: {beside}");
        assert_eq!(closed.len(), count);
        for manner in MANNERS {
            let took = closed.iter().filter(|(it, _)| it.name == manner.name).map(|(_, took)| took);
            let (first, last) = (took.clone().min(), took.max());
            println!("{}: closed after {first:?} to {last:?}", manner.name);
            assert!(first.is_some_and(|first| *first >= HANDSHAKE.mul_f32(0.95)), "{manner:?}");
            assert!(last.is_some_and(|last| *last <= latest), "{manner:?}");
        }
        let (alone, beside) = (alone.percentile(99), beside.percentile(99));
        assert!(beside <= allowed(alone), "p99 {beside:?} beside them, {alone:?} alone");
        check_told(&callee, count)?;
        caller.wait_idle()?;
        untouched(&app)
    });
}

/// Those that stalled are counted and in the log, each once.
fn check_told(callee: &Sidecar, count: usize) -> Result<(), Failure> {
    let labels = [("direction", direction::INBOUND), ("reason", reason::HANDSHAKE_TIMEOUT)];
    callee.wait_metric(metric::CLOSED, &labels, count as f64)?;
    let timeout = [("direction", direction::INBOUND), ("result", "timeout")];
    callee.wait_metric(metric::HANDSHAKES, &timeout, count as f64)?;
    let late = |line: &LogLine| line.is(direction::INBOUND, reason::HANDSHAKE_TIMEOUT);
    assert_eq!(callee.wait_logs("the stalled", count, late)?.len(), count);
    Ok(())
}

/// On a permissive port the first bytes say what a client speaks. Who does not show it is waited for
/// as long as the variable says, whatever comes meanwhile, and the app is not dialled before.
#[test]
fn on_a_permissive_port_who_does_not_show_what_it_speaks_is_reset() {
    const DETECT: Duration = Duration::from_secs(2);
    run("detect-timeout", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let serve = MeshOptions::new(policy::serve_in_mode("permissive"), SERVER);
        let callee = server.mesh(bed, serve.env("PILLION_DETECT_TIMEOUT", "2s"))?;
        let hello = TlsPeer::hello(&identity(&bed.issue(&bed.ca()?, CLIENT, "own")?)?)?;
        let mut count = 0;
        for address in server.addresses() {
            let app = server.listen(SocketAddr::new(address, APP))?;
            // A whole ClientHello shows all that there is to show.
            let unclear = |manner: &Manner| (manner.says)(hello.len()) < hello.len();
            for manner in MANNERS.into_iter().filter(unclear) {
                let (said, rest) = hello.split_at((manner.says)(hello.len()));
                let start = Instant::now();
                let mut stream = client.connect(app.local_addr()?)?;
                stream.write_all(said)?;
                for byte in rest.iter().take(if manner.drips { 5 } else { 0 }) {
                    let_pass(DETECT / 10);
                    stream.write_all(&[*byte])?;
                }
                assert_eq!(read_to_end(&mut stream)?, (Vec::new(), End::Reset), "{manner:?}");
                let took = start.elapsed();
                println!("{address}, {}: reset after {took:?}", manner.name);
                assert!(took >= DETECT.mul_f32(0.95), "{manner:?}: {took:?}");
                assert!(took < 3 * DETECT, "{manner:?}: {took:?}");
                count += 1;
            }
            untouched(&app)?;
            // Who speaks is served.
            let mut asking = client.connect(app.local_addr()?)?;
            asking.write_all(b"hello")?;
            pass(&mut accept(&app)?, &mut asking, b"and back")?;
        }
        let lines = callee.wait_ended(direction::INBOUND, reason::DETECT_TIMEOUT, count)?;
        assert!(lines.iter().all(|line| line.text(field::PEER).is_empty()), "{lines:?}");
        assert_eq!(callee.metric(metric::HANDSHAKES, &[])?, 0.0, "none has begun");
        Ok(())
    });
}

/// Handshakes that stall take nearly all the memory that a container has. When they have gone,
/// others are served: the heap keeps what they had, but for whoever comes.
#[test]
fn memory_that_stalled_handshakes_had_serves_others() {
    const STALLED: usize = 2_000;
    run("stalled-memory", |bed| {
        more_descriptors()?;
        // They take 29 MiB: more than 85 percent, and what the heap keeps is more than 80.
        let Some(group) = MemoryGroup::new(bed, 33 << 20)? else { return Ok(()) };
        let (server, liar, client) = (bed.pod("srv")?, bed.pod("sil")?, bed.pod("cli")?);
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER)
            .env("PILLION_MAX_PENDING_HANDSHAKES", "4096")
            .memory(&group);
        let callee = server.mesh(bed, serve)?;
        let call = policy::call_without_reuse(&server.addresses(), SERVER);
        let caller = client.mesh(bed, MeshOptions::new(call, CLIENT))?;
        let pair = Pair { client, caller, server, callee };
        let app = pair.listen(pair.server.v4(), APP)?;
        let svid = identity(&bed.issue(&bed.ca()?, CLIENT, "liar")?)?;
        let (to, hello) = (app.local_addr()?, TlsPeer::hello(&svid)?);
        let mut stalled = liar.enter(|| {
            // Where sockets are counted as well, some are turned away.
            let connect = |_| match TcpStream::connect(to) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
                made => Some(made.context(|| "one who stalls")),
            };
            (0..STALLED).filter_map(connect).collect::<Result<Vec<_>, _>>()
        })?;
        pair.callee.wait_metric(metric::OPENED, &[], STALLED as f64)?;
        // Only now, when they have been let in: a handshake takes more once it has begun.
        for stream in &mut stalled {
            // One who has been turned away since has nothing to say.
            let _ = stream.write_all(&hello);
        }
        pair.callee.wait_idle()?;
        println!("{} bytes are used when they have gone", group.used()?);
        for _ in 0..3 {
            pair.exchange(&app)?;
        }
        assert_eq!(group.killed()?, 0, "the killer did not come");
        Ok(())
    });
}
