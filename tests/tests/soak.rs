//! All kinds of load at once, for as long as `PILLION_TEST_SOAK_SECONDS` says. One pair of pods is
//! given new certificates and policies meanwhile, and serves without an error; of another a sidecar
//! is killed now and then, and errors are those of that time alone.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{metric, reason};
use pillion_testbed::load::{ask_echo, joined, recycle_ports};
use pillion_testbed::stream::{End, pass, read_to_end};
use pillion_testbed::wear::{Sample, courses, descriptors_at_rest};
use pillion_testbed::{
    Context, Failure, Pair, Pod, Testbed, let_pass, more_descriptors, policy, run,
};

/// Connections to this port, long and short, go over tunnels that are used again.
const REUSED: u16 = 8080;
/// Each connection to this port has a TLS connection of its own.
const FRESH: u16 = 8081;
/// Where the killed pair serves.
const KILLED: u16 = 8082;

/// Threads that open short connections, to each pair, and how often each does.
const CLIENTS: usize = 4;
const EVERY: Duration = Duration::from_millis(25);
/// Connections that are open all the time; each is asked once in a while.
const IDLE: usize = 200;
const PULSE: Duration = Duration::from_secs(5);
/// Transfers that go on all the time, and what is sent at a time.
const STREAMS: usize = 2;
const BLOCK: usize = 64 << 10;
/// What is sent begins anew after so many bytes: no power of two, so that a lost block shows.
const PERIOD: usize = 251;
const BREATH: Duration = Duration::from_millis(20);
/// How long one change has before the next.
const STEP: Duration = Duration::from_millis(1500);
/// How long after a restart a connection that met the killed proxy may still fail: an app waits for
/// its answer to a SYN that nobody got.
const AFTERMATH: Duration = Duration::from_secs(2);
/// When caches are warm, in a run of at least twice as long.
const WARM: Duration = Duration::from_secs(600);

/// A connection that was not served.
struct Failed {
    from: Instant,
    until: Instant,
    what: String,
}

/// When a proxy was killed, and when another was ready in its place.
type Outage = (Instant, Instant);

/// What the threads share.
#[derive(Default)]
struct Load {
    done: AtomicBool,
    /// Set when no client is left: the apps serve whoever is under way.
    closing: AtomicBool,
    served: AtomicU64,
    carried: AtomicU64,
    failed: Mutex<Vec<Failed>>,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.done.load(Ordering::Relaxed)
    }

    /// Opens one connection after another, to the ports in turn.
    fn churn(&self, client: &Pod, to: &[SocketAddr], number: usize) -> Result<(), Failure> {
        let message: Vec<u8> = (0..=250).cycle().take(100_000).collect();
        client.enter(|| {
            let mut next = Instant::now();
            let lengths = [10, 1_000, 20_000, 10, 1_000, 100_000];
            for (to, length) in to.iter().cycle().skip(number).zip(lengths.into_iter().cycle()) {
                if !self.goes_on() {
                    break;
                }
                let_pass(next.saturating_duration_since(Instant::now()));
                next += EVERY;
                let from = Instant::now();
                match ask_echo(*to, message.get(..length).unwrap_or(&message)) {
                    Ok(()) => {
                        self.served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(failure) => self.note(from, failure.to_string()),
                }
            }
            Ok(())
        })
    }

    /// Sends back what each connection brings. One that breaks is its client's to tell.
    fn echo(&self, listener: &TcpListener) -> Result<(), Failure> {
        while !self.closing.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                let_pass(Duration::from_millis(1));
                continue;
            };
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).and_then(|_| stream.write_all(&bytes));
        }
        Ok(())
    }

    /// Asks each of the open connections now and then, and ends them at the end.
    fn hold(&self, mut open: Vec<(TcpStream, TcpStream)>) -> Result<(), Failure> {
        let mut next = Instant::now();
        loop {
            let over = !self.goes_on();
            for (asking, answering) in &mut open {
                pass(asking, answering, b"are you there?")?;
                pass(answering, asking, b"I am")?;
            }
            if over {
                return Ok(());
            }
            next += PULSE;
            while self.goes_on() && Instant::now() < next {
                let_pass(Duration::from_millis(50));
            }
        }
    }

    /// Sends without an end, until there is one: all of it has to arrive.
    fn stream(&self, mut from: TcpStream, mut to: TcpStream) -> Result<(), Failure> {
        let pattern: Vec<u8> = (0..=250).cycle().take(BLOCK + PERIOD).collect();
        let from_offset = |offset: usize| pattern.get(offset % PERIOD..).unwrap_or_default();
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut sent = 0;
                while self.goes_on() {
                    let block = from_offset(sent).get(..BLOCK).unwrap_or_default();
                    from.write_all(block).context(|| "a stream")?;
                    sent += BLOCK;
                    let_pass(BREATH);
                }
                from.shutdown(Shutdown::Write).context(|| "the FIN of a stream")?;
                assert_eq!(read_to_end(&mut from)?, (Vec::new(), End::Fin));
                Ok::<_, Failure>(sent)
            });
            let (mut came, mut buffer) = (0, vec![0; BLOCK]);
            loop {
                let read = to.read(&mut buffer).context(|| "a stream's reader")?;
                if read == 0 {
                    break;
                }
                let right = from_offset(came).starts_with(buffer.get(..read).unwrap_or_default());
                assert!(right, "a wrong byte after {came}");
                came += read;
                self.carried.fetch_add(read as u64, Ordering::Relaxed);
            }
            drop(to);
            let sent = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            assert_eq!(came, sent, "a stream is whole");
            Ok::<_, Failure>(())
        })
    }

    fn note(&self, from: Instant, what: String) {
        let failed = Failed { from, until: Instant::now(), what };
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(failed);
    }

    /// Those that no outage explains, and how many there are.
    fn unexplained(&self, outages: &[Outage]) -> (Vec<String>, usize) {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let met =
            |it: &Failed, outage: &Outage| it.until >= outage.0 && it.from <= outage.1 + AFTERMATH;
        let rest = failed.iter().filter(|it| !outages.iter().any(|outage| met(it, outage)));
        (rest.map(|it| it.what.clone()).collect(), failed.len())
    }
}

fn call(pair: &Pair, revision: u32) -> String {
    policy::call_either_way(pair.server.v4(), REUSED, FRESH, revision)
}

/// One change after another, and how much memory each sidecar has over time.
fn change_everything(
    bed: &Testbed,
    pair: &mut Pair,
    until: Instant,
) -> Result<Vec<Sample>, Failure> {
    let mut samples = Vec::new();
    for revision in (10..).step_by(2) {
        if Instant::now() >= until {
            break;
        }
        pair.caller.issue(bed)?;
        let_pass(STEP);
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

/// Kills one sidecar and then the other, again and again, and starts it anew.
fn kill_now_and_then(
    pair: &mut Pair,
    every: Duration,
    load: &Load,
) -> Result<Vec<Outage>, Failure> {
    let mut outages = Vec::new();
    let mut next = Instant::now() + every;
    while load.goes_on() {
        let_pass(Duration::from_millis(50));
        if Instant::now() < next {
            continue;
        }
        let sidecar = if outages.len() % 2 == 0 { &mut pair.caller } else { &mut pair.callee };
        let killed = Instant::now();
        sidecar.kill9()?;
        sidecar.restart()?;
        outages.push((killed, Instant::now()));
        next += every;
    }
    Ok(outages)
}

#[test]
fn nothing_fails_that_is_not_explained_and_nothing_is_gathered() {
    run("soak", |bed| {
        more_descriptors()?;
        let length = bed.settings().soak();
        let quiet = [("PILLION_ACCESS_LOG", "denied")];
        let mut steady = Pair::with_env(bed, &quiet)?;
        let mut killed = Pair::mesh(bed, bed.pod("cli2")?, bed.pod("srv2")?, &quiet)?;
        for pod in [&steady.client, &steady.server, &killed.client, &killed.server] {
            recycle_ports(pod)?;
        }
        steady.caller.load_policy(&call(&steady, 0))?;
        let address = steady.server.v4();
        let listeners = [steady.listen(address, REUSED)?, steady.listen(address, FRESH)?];
        let beside = killed.listen(killed.server.v4(), KILLED)?;
        // What a process opens once is open before it is counted.
        for listener in &listeners {
            steady.exchange(listener)?;
        }
        let text = call(&steady, 1);
        let before = descriptors_at_rest(&mut steady, &text)?;

        let open = |count: usize| {
            (0..count).map(|_| steady.open(&listeners[0])).collect::<Result<Vec<_>, _>>()
        };
        let (idle, streams) = (open(IDLE)?, open(STREAMS)?);
        let start = Instant::now();
        let [calm, storm] = [Load::default(), Load::default()];
        let ports = [REUSED, FRESH].map(|port| SocketAddr::new(address, port));
        let to_killed = [SocketAddr::new(killed.server.v4(), KILLED)];
        let (client, other) = (steady.client.clone(), killed.client.clone());
        let (samples, outages) = std::thread::scope(|scope| {
            let mut apps = Vec::new();
            let mut clients = Vec::new();
            let (calm, storm) = (&calm, &storm);
            let (ports, to_killed, client, other) = (&ports, &to_killed, &client, &other);
            for number in 0..CLIENTS {
                for listener in &listeners {
                    apps.push(scope.spawn(move || calm.echo(listener)));
                }
                let beside = &beside;
                apps.push(scope.spawn(move || storm.echo(beside)));
                clients.push(scope.spawn(move || calm.churn(client, ports, number)));
                clients.push(scope.spawn(move || storm.churn(other, to_killed, number)));
            }
            clients.push(scope.spawn(move || calm.hold(idle)));
            for (from, to) in streams {
                clients.push(scope.spawn(move || calm.stream(from, to)));
            }
            let every = (length / 30).max(Duration::from_secs(4));
            let to_kill = &mut killed;
            let killing = scope.spawn(move || kill_now_and_then(to_kill, every, storm));
            let samples = change_everything(bed, &mut steady, start + length);
            for load in [calm, storm] {
                load.done.store(true, Ordering::Relaxed);
            }
            let outages = killing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let ended: Vec<_> = clients.into_iter().map(joined).collect();
            for load in [calm, storm] {
                load.closing.store(true, Ordering::Relaxed);
            }
            let closed: Vec<_> = apps.into_iter().map(joined).collect();
            ended.into_iter().chain(closed).collect::<Result<(), _>>()?;
            Ok::<_, Failure>((samples?, outages?))
        })?;
        let text = call(&steady, 2);
        let after = descriptors_at_rest(&mut steady, &text)?;
        let report = Report { length: start.elapsed(), calm, storm, samples, outages };
        report.print();
        println!("descriptors at rest, client's and server's: {before:?} before, {after:?} after");
        report.check();
        assert!(
            after[0] <= before[0] && after[1] <= before[1],
            "descriptors: {before:?}, {after:?}"
        );
        for sidecar in [&steady.caller, &steady.callee] {
            let metrics = sidecar.metrics()?;
            let reasons = metrics.by(metric::CLOSED, "reason");
            assert_eq!(reasons.keys().collect::<Vec<_>>(), [reason::CLOSED], "{reasons:?}");
            assert_eq!(metrics.sum(metric::PANICS, &[]), 0.0);
        }
        for sidecar in [&killed.caller, &killed.callee] {
            assert_eq!(sidecar.metric(metric::PANICS, &[])?, 0.0);
        }
        Ok(())
    });
}

struct Report {
    length: Duration,
    calm: Load,
    storm: Load,
    samples: Vec<Sample>,
    outages: Vec<Outage>,
}

impl Report {
    fn print(&self) {
        let [calm, storm] = [&self.calm, &self.storm].map(|it| it.served.load(Ordering::Relaxed));
        let carried = self.calm.carried.load(Ordering::Relaxed) >> 20;
        let (unexplained, failed) = self.storm.unexplained(&self.outages);
        println!("{:.0?}: {} rounds of changes", self.length, self.samples.len());
        println!(
            "{calm} connections served, {} failed; {IDLE} were idle, {STREAMS} carried {carried} MiB",
            self.calm.unexplained(&[]).1
        );
        println!(
            "beside {} kills: {storm} served, {failed} failed, {} of them unexplained",
            self.outages.len(),
            unexplained.len()
        );
        for (name, course) in ["client", "server"].iter().zip(self.courses().into_iter().flatten())
        {
            println!(
                "resident, {name}'s: {:.1} MiB, {:+.2} MiB an hour",
                course.last, course.an_hour
            );
        }
    }

    /// From the second half of a short run, or from ten minutes on.
    fn courses(&self) -> Option<[pillion_testbed::wear::Course; 2]> {
        courses(&self.samples, WARM.min(self.length / 2))
    }

    fn check(&self) {
        let none: Vec<String> = Vec::new();
        assert_eq!(self.calm.unexplained(&[]).0, none, "nothing explains an error here");
        assert_eq!(self.storm.unexplained(&self.outages).0, none, "no proxy was down");
        let [calm, storm] = [&self.calm, &self.storm].map(|it| it.served.load(Ordering::Relaxed));
        assert!(calm > 0 && storm > 0 && !self.outages.is_empty(), "{calm} {storm}");
        // A line through less says nothing.
        if self.length >= 2 * WARM {
            let courses = self.courses().into_iter().flatten();
            for (name, course) in ["client", "server"].iter().zip(courses) {
                assert!(course.an_hour < 1.0, "{name}: {course:?}");
            }
        }
    }
}
