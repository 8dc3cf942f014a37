//! A network that breaks what it carries between two sidecars: at each byte of the handshake and
//! of the stream. No app ever gets a byte that was not sent, or takes a part for the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, direction, metric, reason};
use pillion_testbed::stream::{End, pass, read_to_end};
use pillion_testbed::{
    Carried, Failure, Fault, FaultProxy, LogLine, MeshOptions, Plan, Pod, Sidecar, Testbed, accept,
    let_pass, policy, run, wait_until,
};

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(30);

/// What the client's app says, and what the server's answers: more than one record of each.
const ASKED: usize = 20_000;
const ANSWERED: usize = 18_000;

/// Faults of the stream are put into its first bytes, so that enough follows to notice.
const OF_STREAM: usize = 1500;

/// A handshake is a few bytes longer or shorter the next time: by its signatures' encoding.
const VARIES: usize = 16;

fn text(length: usize, step: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at * step % 251).unwrap_or(0)).collect()
}

/// Two sidecars, and the network between them.
struct Network {
    client: Pod,
    caller: Sidecar,
    callee: Sidecar,
    relay: FaultProxy,
    app: TcpListener,
    asked: Vec<u8>,
    answer: Vec<u8>,
}

/// How a connection looked to an app: what came, and how that ended.
type Seen = (Vec<u8>, End);

impl Network {
    fn new(bed: &Testbed) -> Result<Self, Failure> {
        Self::with(bed, false, ["srv", "cli", "net"], ["10s", "10s"])
    }

    /// What never ends in the handshake is given up soon: by the client's sidecar first.
    fn impatient(bed: &Testbed) -> Result<Self, Failure> {
        Self::with(bed, false, ["srv", "cli", "net"], ["3s", "9s"])
    }

    fn with(
        bed: &Testbed,
        tunnel: bool,
        names: [&str; 3],
        [caller_waits, callee_waits]: [&str; 2],
    ) -> Result<Self, Failure> {
        let [server, client, middle] = names.map(|name| bed.pod(name));
        let (server, client, middle) = (server?, client?, middle?);
        let short = |options: MeshOptions, deadline: &str| {
            // The ClientHello is short without ML-KEM.
            options
                .env("PILLION_KEY_EXCHANGE", "classic")
                .env("PILLION_HANDSHAKE_TIMEOUT", deadline)
                .env("PILLION_WORKERS", "1")
        };
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
        let callee = server.mesh(bed, short(serve, callee_waits))?;
        let call = if tunnel { policy::call } else { policy::call_without_reuse };
        let call = MeshOptions::new(call(&[middle.v4()], SERVER), CLIENT);
        let caller = client.mesh(bed, short(call, caller_waits))?;
        let app = server.listen(std::net::SocketAddr::new(server.v4(), APP))?;
        let relay = FaultProxy::start(&middle, APP, app.local_addr()?)?;
        let (asked, answer) = (text(ASKED, 7), text(ANSWERED, 11));
        Ok(Self { client, caller, callee, relay, app, asked, answer })
    }

    /// One connection of the client's app through a network with these faults: what it saw.
    fn ask(&self, plan: Plan) -> Result<Seen, Failure> {
        self.relay.set(plan);
        let mut stream = match self.client.connect(self.relay.address()) {
            // Established, and reset before connect(2) had returned.
            Err(failure) if failure.io_kind() == Some(ErrorKind::ConnectionReset) => {
                return Ok((Vec::new(), End::Reset));
            }
            connected => connected?,
        };
        // A reset may overtake either step, which is then told of it, and reading no more.
        let said = stream.write_all(&self.asked).and_then(|()| stream.shutdown(Shutdown::Write));
        let (came, end) = read_to_end(&mut stream)?;
        Ok((came, if said.is_ok() { end } else { End::Reset }))
    }

    /// Runs `work` while the server's app answers; returns what the app saw of each connection.
    fn serving<T>(
        &self,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<(T, Vec<Seen>), Failure> {
        let (done, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            let app = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    match self.app.accept() {
                        Ok((stream, _)) => {
                            let came = self.answer_one(stream)?;
                            seen.lock().map_err(|_| poisoned())?.push(came);
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            let_pass(Duration::from_millis(1));
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok::<_, Failure>(())
            });
            let worked = work();
            // The server's sidecar may be about to tell its app of the last one.
            let idle = self.callee.wait_idle();
            done.store(true, Ordering::Relaxed);
            app.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            idle?;
            worked
        })
        .and_then(|worked| Ok((worked, seen.into_inner().map_err(|_| poisoned())?)))
    }

    fn answer_one(&self, mut stream: TcpStream) -> Result<Seen, Failure> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(2 * LIMIT))?;
        let seen = read_to_end(&mut stream)?;
        if seen.1 == End::Fin {
            // It may have been reset since.
            let _ = stream.write_all(&self.answer);
        }
        Ok(seen)
    }

    /// What a connection without a fault carries.
    fn clean(&self) -> Result<Carried, Failure> {
        let (seen, _) = self.serving(|| self.ask(Plan::default()))?;
        assert!(self.is_whole(&seen), "{} bytes, {:?}", seen.0.len(), seen.1);
        // A tunnel that has stayed would carry the next.
        self.relay.cut_all();
        self.caller.wait_metric(metric::IDLE, &[], 0.0)?;
        self.callee.wait_metric(metric::IDLE, &[], 0.0)?;
        self.callee.wait_idle()?;
        Ok(self.relay.carried())
    }

    fn is_whole(&self, (bytes, end): &Seen) -> bool {
        *bytes == self.answer && *end == End::Fin
    }

    /// Asks once through each plan. Whoever got the whole got all of it right; anybody else got a
    /// part and a reset. Returns how many were served.
    fn ask_each(&self, plans: &[Plan]) -> Result<usize, Failure> {
        let (seen, at_server) = self.serving(|| {
            let each = plans.iter().map(|plan| {
                let seen = self.ask(plan.clone())?;
                let good = self.is_whole(&seen) || seen.1 == End::Reset;
                assert!(good, "{plan:?}: {} bytes and {:?}", seen.0.len(), seen.1);
                assert!(self.answer.starts_with(&seen.0), "{plan:?}: a wrong byte");
                Ok(seen)
            });
            each.collect::<Result<Vec<_>, Failure>>()
        })?;
        for (bytes, end) in &at_server {
            assert!(self.asked.starts_with(bytes), "a wrong byte at the server's app");
            assert!((*bytes == self.asked) == (*end == End::Fin), "{} {end:?}", bytes.len());
        }
        let whole = seen.iter().filter(|seen| self.is_whole(seen)).count();
        println!("{} plans, {whole} served, {} reached the app", plans.len(), at_server.len());
        Ok(whole)
    }

    /// Checks a sidecar's count of each reason since `before`, and that the log has as many lines.
    fn check_reasons(
        &self,
        (sidecar, way): (&Sidecar, &str),
        before: &BTreeMap<String, f64>,
        allowed: &[&str],
        total: f64,
    ) -> Result<BTreeMap<String, f64>, Failure> {
        sidecar.wait_idle()?;
        let mut now = sidecar.metrics()?.by(metric::CLOSED, "reason");
        for (why, count) in before {
            *now.entry(why.clone()).or_insert(0.0) -= count;
        }
        now.retain(|_, count| *count != 0.0);
        println!("{way}: {now:?}");
        assert!(now.keys().all(|why| allowed.contains(&why.as_str())), "{way}: {now:?}");
        assert_eq!(now.values().sum::<f64>(), total, "{way}: each is counted once: {now:?}");
        for (why, count) in &now {
            let wanted = count + before.get(why).copied().unwrap_or(0.0);
            wait_until(&format!("{wanted} lines of {way} {why}, one each"), LIMIT, || {
                let lines = sidecar.log_lines()?;
                let lines = lines.iter().filter(|line| line.is(way, why)).count();
                Ok((lines as f64 == wanted).then_some(()))
            })?;
        }
        Ok(now)
    }

    fn reasons(&self) -> Result<[BTreeMap<String, f64>; 2], Failure> {
        let of =
            |sidecar: &Sidecar| Ok::<_, Failure>(sidecar.metrics()?.by(metric::CLOSED, "reason"));
        Ok([of(&self.caller)?, of(&self.callee)?])
    }
}

fn poisoned() -> Failure {
    Failure::Unexpected("the app's thread has panicked".to_owned())
}

/// Where the records of a direction begin.
fn records(carried: &[u8]) -> Vec<usize> {
    let (mut starts, mut at) = (Vec::new(), 0);
    while let Some([_, _, _, high, low]) = carried.get(at..at + 5) {
        starts.push(at);
        at += 5 + usize::from(u16::from_be_bytes([*high, *low]));
    }
    starts
}

/// Where the app's bytes begin: in the first large record.
fn stream_start(starts: &[usize]) -> usize {
    let mut next = starts.iter().zip(starts.iter().skip(1));
    next.find(|(start, next)| *next - *start > 4000).map_or(0, |(start, _)| *start)
}

/// The bytes that get a fault: each `step`th, and the headers of records, up to the stream's
/// [`OF_STREAM`]th.
fn positions(carried: &[u8], step: usize) -> BTreeSet<u64> {
    let starts = records(carried);
    let stream = stream_start(&starts);
    let last = stream + OF_STREAM;
    let headers = starts.iter().flat_map(|start| *start..start + 5);
    headers.chain((0..last).step_by(step)).filter(|at| *at < last).map(|at| at as u64).collect()
}

#[test]
fn a_client_hello_in_any_two_parts_and_a_stream_of_single_bytes_are_served() {
    run("split", |bed| {
        let network = Network::new(bed)?;
        let hello = *records(&network.clean()?.up).get(1).expect("more than a hello");
        println!("a ClientHello of {hello} bytes");
        let before = network.reasons()?;
        let pause = Duration::from_millis(2);
        let mut plans: Vec<Plan> =
            (1..hello as u64).map(|at| Plan::up(&[Fault::Pause { at, time: pause }])).collect();
        let bytewise = vec![Fault::Bytewise];
        plans.push(Plan { up: bytewise.clone(), down: bytewise, ..Plan::default() });
        assert_eq!(network.ask_each(&plans)?, plans.len(), "each is served");
        for (side, before) in network.sides().into_iter().zip(&before) {
            network.check_reasons(side, before, &[reason::CLOSED], plans.len() as f64)?;
        }
        Ok(())
    });
}

impl Network {
    fn sides(&self) -> [(&Sidecar, &'static str); 2] {
        [(&self.caller, direction::OUTBOUND), (&self.callee, direction::INBOUND)]
    }
}

/// What may become of a connection whose bytes are changed on the way.
const BROKEN: &[&str] = &[
    reason::CLOSED,
    reason::PEER_RESET,
    reason::TRUNCATED,
    reason::TLS_ERROR,
    "refused_by_peer",
    reason::HANDSHAKE_FAILED,
    reason::HANDSHAKE_TIMEOUT,
    reason::CERTIFICATE_REFUSED,
    reason::PLAINTEXT_REFUSED,
    reason::TUNNEL_ERROR,
];

#[test]
fn a_byte_that_is_changed_doubled_or_swapped_is_never_taken() {
    run("corrupt", |bed| {
        let network = Network::impatient(bed)?;
        let carried = network.clean()?;
        let step = bed.settings().few_or(97, 1);
        let before = network.reasons()?;
        let mut plans = Vec::new();
        for (up, bytes) in [(true, &carried.up), (false, &carried.down)] {
            for at in positions(bytes, step) {
                let faults =
                    [Fault::Corrupt { at, mask: 1 }, Fault::Duplicate { at }, Fault::Swap { at }];
                plans.extend(
                    faults.map(|fault| if up { Plan::up(&[fault]) } else { Plan::down(&[fault]) }),
                );
            }
        }
        let served = network.ask_each(&plans)?;
        // The version of a record before encryption means nothing (RFC 8446, 5.1), and two equal
        // bytes may change places.
        assert!(served * 6 < plans.len(), "{served} of {}", plans.len());
        let [caller, callee] = network.sides();
        let at_caller = network.check_reasons(caller, &before[0], BROKEN, plans.len() as f64)?;
        let closed = at_caller.get(reason::CLOSED).copied().unwrap_or_default();
        assert_eq!(closed, served as f64, "only what was served has ended well");
        // Not each gets as far as the server's sidecar with its first byte.
        let reached = callee.0.metric(metric::OPENED, &[])? - before[1].values().sum::<f64>();
        network.check_reasons(callee, &before[1], BROKEN, reached)?;
        let (mut client, mut server) = network.open()?;
        pass(&mut client, &mut server, b"and the next is served")
    });
}

impl Network {
    /// A connection without a fault.
    fn open(&self) -> Result<(TcpStream, TcpStream), Failure> {
        self.relay.set(Plan::default());
        Ok((self.client.connect(self.relay.address())?, accept(&self.app)?))
    }

    /// Where the handshake of a direction is under way, and where the app's bytes are.
    fn moments(&self, bytes: &[u8], step: usize) -> ([Vec<u64>; 2], u64) {
        let starts = records(bytes);
        let stream = stream_start(&starts);
        let of = |from: usize, until: usize| -> Vec<u64> {
            (from..until).step_by(step).map(|at| at as u64).collect()
        };
        // In between two records of the app's; they need not be the same the next time.
        let inner = |start: &&usize| **start > stream && **start + 2000 < bytes.len();
        let boundary = starts.iter().find(inner).copied().unwrap_or(stream + OF_STREAM);
        (
            [of(1, stream.saturating_sub(VARIES)), of(stream + VARIES, stream + OF_STREAM)],
            boundary as u64,
        )
    }
}

/// The descriptors of both proxies are back.
fn descriptors_are_back(network: &mut Network, before: [usize; 2]) -> Result<Duration, Failure> {
    let start = Instant::now();
    wait_until("the descriptors", LIMIT, || {
        let now =
            [network.caller.process().descriptors()?, network.callee.process().descriptors()?];
        Ok((now[0] <= before[0] && now[1] <= before[1]).then_some(()))
    })?;
    Ok(start.elapsed())
}

#[test]
fn a_reset_at_any_byte_is_a_reset_at_both_ends() {
    run("reset-anywhere", |bed| {
        let mut network = Network::new(bed)?;
        let carried = network.clean()?;
        let step = bed.settings().few_or(97, 5);
        let used =
            [network.caller.process().descriptors()?, network.callee.process().descriptors()?];
        let before = network.reasons()?;
        let mut plans = Vec::new();
        for (up, bytes) in [(true, &carried.up), (false, &carried.down)] {
            let ([handshake, stream], boundary) = network.moments(bytes, step);
            for at in handshake.into_iter().chain(stream).chain([boundary]) {
                let cut = Fault::Cut { at, how: End::Reset };
                plans.push(if up { Plan::up(&[cut]) } else { Plan::down(&[cut]) });
            }
        }
        assert_eq!(network.ask_each(&plans)?, 0, "none is served");
        let took = descriptors_are_back(&mut network, used)?;
        println!("the descriptors were back after {took:?}");
        let [caller, callee] = network.sides();
        network.check_reasons(caller, &before[0], &[reason::PEER_RESET], plans.len() as f64)?;
        // The server's sidecar may have said all that there was before the reset came.
        let either = [reason::PEER_RESET, reason::CLOSED];
        network.check_reasons(callee, &before[1], &either, plans.len() as f64)?;
        Ok(())
    });
}

/// RFC 8446, 6.1: a stream without `close_notify`, or without a FIN frame, may be a part.
#[test]
fn a_fin_at_any_byte_of_the_stream_is_no_end_of_it() {
    run("fin-anywhere", |bed| {
        for tunnel in [false, true] {
            // A second network in one testbed needs other names.
            let names = if tunnel { ["s2", "c2", "n2"] } else { ["s1", "c1", "n1"] };
            let network = Network::with(bed, tunnel, names, ["10s", "10s"])?;
            let carried = network.clean()?;
            let step = bed.settings().few_or(131, 7);
            for (up, bytes) in [(true, &carried.up), (false, &carried.down)] {
                let ([_, stream], boundary) = network.moments(bytes, step);
                let cuts = stream.into_iter().chain([boundary]).map(|at| {
                    let cut = Fault::Cut { at, how: End::Fin };
                    if up { Plan::up(&[cut]) } else { Plan::down(&[cut]) }
                });
                let plans: Vec<Plan> = cuts.collect();
                let sofar = network.reasons()?;
                assert_eq!(network.ask_each(&plans)?, 0, "tunnel {tunnel}, up {up}");
                let [caller, callee] = network.sides();
                let (receiver, sender) = if up { (callee, caller) } else { (caller, callee) };
                let [of_caller, of_callee] = &sofar;
                let (at_receiver, at_sender) =
                    if up { (of_callee, of_caller) } else { (of_caller, of_callee) };
                // In a tunnel OPEN may share its record with the app's first bytes: cut there, no
                // stream was begun, and the tunnel has merely ended.
                let cut = [reason::TRUNCATED, reason::CLOSED];
                let allowed = if up && tunnel { &cut } else { &cut[..1] };
                let ends =
                    network.check_reasons(receiver, at_receiver, allowed, plans.len() as f64)?;
                let truncated = ends.get(reason::TRUNCATED).copied().unwrap_or_default();
                assert!(truncated * 2.0 > plans.len() as f64, "{ends:?}");
                // The server's sidecar may have said all that there was before the reset came.
                let either = [reason::PEER_RESET, reason::CLOSED];
                let allowed = if up { &either[..1] } else { &either };
                network.check_reasons(sender, at_sender, allowed, plans.len() as f64)?;
            }
        }
        Ok(())
    });
}

/// A network that loses everything from some byte on, without a word: the handshake's deadline
/// ends what never came to be, and nothing waits for longer.
#[test]
fn a_network_that_falls_silent_in_the_handshake_is_given_up_at_the_deadline() {
    run("silent-network", |bed| {
        let network = Network::impatient(bed)?;
        let carried = network.clean()?;
        let before = network.reasons()?;
        let mut plans = Vec::new();
        for (up, bytes) in [(true, &carried.up), (false, &carried.down)] {
            let ([handshake, _], _) = network.moments(bytes, usize::MAX);
            let middle = records(bytes).get(1).copied().unwrap_or(1) as u64;
            for at in handshake.into_iter().chain([0, middle]) {
                let swallow = Fault::Swallow { at };
                plans.push(if up { Plan::up(&[swallow]) } else { Plan::down(&[swallow]) });
            }
        }
        let start = Instant::now();
        assert_eq!(network.ask_each(&plans)?, 0);
        let each = start.elapsed() / u32::try_from(plans.len()).unwrap_or(1);
        assert!(each < Duration::from_secs(8), "{each:?} each");
        let [caller, _] = network.sides();
        // The client's side is done when it has sent its last flight, and that is what one of them
        // loses: it hears of it by the server's reset.
        let (late, reset) = (reason::HANDSHAKE_TIMEOUT, reason::PEER_RESET);
        let ends = network.check_reasons(caller, &before[0], &[late, reset], plans.len() as f64)?;
        let given_up = (plans.len() - 1) as f64;
        assert_eq!((ends.get(late), ends.get(reset)), (Some(&given_up), Some(&1.0)));
        let timeout = [("direction", direction::OUTBOUND), ("result", "timeout")];
        network.caller.wait_metric(metric::HANDSHAKES, &timeout, given_up)?;
        let timeout = [("direction", direction::INBOUND), ("result", "timeout")];
        network.callee.wait_metric(metric::HANDSHAKES, &timeout, 1.0)
    });
}

/// A line of the log about a connection that was broken says where it was bound for.
#[test]
fn a_network_that_refuses_is_a_reset_with_its_reason() {
    run("refusing-network", |bed| {
        let network = Network::new(bed)?;
        let before = network.reasons()?;
        let plans = vec![Plan { refuse: true, ..Plan::default() }; 5];
        assert_eq!(network.ask_each(&plans)?, 0);
        network.check_reasons(
            network.sides()[0],
            &before[0],
            &[reason::PEER_RESET],
            plans.len() as f64,
        )?;
        let to = network.relay.address().to_string();
        let named = |line: &LogLine| line.mentions(&to) && line.reason() == reason::PEER_RESET;
        assert_eq!(network.caller.wait_logs("the server", plans.len(), named)?.len(), plans.len());
        assert_eq!(network.callee.metric(metric::OPENED, &[])?, 0.0);
        Ok(())
    });
}
