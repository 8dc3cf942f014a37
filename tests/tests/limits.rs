//! More connections, handshakes and descriptors than there may be, and a reader who takes its time.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pillion_testbed::labels::{CLIENT, SERVER, direction, metric, port, reason};
use pillion_testbed::stream::{End, Outcome, ask, pass, read_to_end};
use pillion_testbed::{
    Failure, LogLine, MeshOptions, Pair, Pod, Process, Sidecar, accept, complete, http_get,
    let_pass, policy, run, untouched, wait_until,
};

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(30);
/// What would be waited for, if for anything.
const HANDSHAKE: Duration = Duration::from_secs(60);

fn closed(sidecar: &Sidecar, why: &str, count: f64) -> Result<(), Failure> {
    let labels = [("direction", direction::INBOUND), ("reason", why)];
    sidecar.wait_metric(metric::CLOSED, &labels, count)
}

/// A server that takes plaintext, so that a connection is one socket of the test's at each end.
fn plaintext(
    server: &Pod,
    options: &dyn Fn(MeshOptions) -> MeshOptions,
    bed: &pillion_testbed::Testbed,
) -> Result<Sidecar, Failure> {
    server.mesh(bed, options(MeshOptions::new(policy::serve_in_mode("disable"), SERVER)))
}

/// An app that takes each connection and ends it at once, until the proxy has none left. It goes on
/// taking them: a connection counts as opened before the proxy has dialled the app.
fn idle_once_taken(sidecar: &Sidecar, app: &TcpListener) -> Result<(), Failure> {
    wait_until("no connection left", LIMIT, || {
        while app.accept().is_ok() {}
        Ok((sidecar.metric(metric::OPEN, &[])? == 0.0).then_some(()))
    })
}

/// One more connection that is served, both ends.
fn served(client: &Pod, app: &TcpListener) -> Result<(TcpStream, TcpStream), Failure> {
    let mut asking = client.connect(app.local_addr()?)?;
    let mut answering = accept(app)?;
    pass(&mut asking, &mut answering, b"in")?;
    pass(&mut answering, &mut asking, b"out")?;
    Ok((asking, answering))
}

#[test]
fn one_connection_more_than_may_be_is_reset() {
    const MOST: usize = 4;
    run("connection-limit", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let most = MOST.to_string();
        let callee = plaintext(&server, &|o| o.env("PILLION_MAX_CONNECTIONS", &most), bed)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let mut open: Vec<_> =
            (0..MOST).map(|_| served(&client, &app)).collect::<Result<_, _>>()?;

        for refused in 1..=3 {
            let outcome = ask(&client, app.local_addr()?, b"one too many")?;
            assert_eq!(outcome, Outcome::Reset);
            closed(&callee, reason::CONNECTION_LIMIT, f64::from(refused))?;
        }
        callee.wait_logs("the limit", 3, |line| {
            line.is(direction::INBOUND, reason::CONNECTION_LIMIT)
        })?;
        untouched(&app)?;
        for (asking, answering) in &mut open {
            pass(asking, answering, b"the others go on")?;
        }
        assert_eq!(callee.metric(metric::OPEN, &[])?, MOST as f64);

        drop(open.pop());
        callee.wait_metric(metric::OPEN, &[], (MOST - 1) as f64)?;
        open.push(served(&client, &app)?);
        drop(open);
        callee.wait_idle()
    });
}

#[test]
fn under_silent_clients_the_oldest_is_shed_and_an_honest_one_served() {
    const MOST: usize = 8;
    const SILENT: usize = 20;
    run("handshake-shed", |bed| {
        let (server, silent, honest) = (bed.pod("srv")?, bed.pod("sil")?, bed.pod("cli")?);
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER)
            .env("PILLION_MAX_PENDING_HANDSHAKES", &MOST.to_string())
            .env("PILLION_HANDSHAKE_TIMEOUT", &format!("{}s", HANDSHAKE.as_secs()))
            .env("PILLION_WORKERS", "1");
        let callee = server.mesh(bed, serve)?;
        let call = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
        let caller = honest.mesh(bed, call)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let to = app.local_addr()?;
        let start = Instant::now();
        let mut waiting: Vec<TcpStream> =
            (0..SILENT).map(|_| silent.connect(to)).collect::<Result<_, _>>()?;
        let shed = SILENT - MOST;
        closed(&callee, reason::HANDSHAKE_SHED, shed as f64)?;
        let counted = [("direction", direction::INBOUND), ("result", "shed")];
        callee.wait_metric(metric::HANDSHAKES, &counted, shed as f64)?;
        for stream in waiting.drain(..shed) {
            let mut stream = stream;
            assert_eq!(read_to_end(&mut stream)?, (Vec::new(), End::Reset), "the oldest go");
        }
        assert_eq!(callee.metric(metric::OPEN, &[])?, MOST as f64, "the youngest stay");

        let asked = Instant::now();
        drop(served(&honest, &app)?);
        let took = asked.elapsed();
        assert!(took < HANDSHAKE / 3, "the honest one has waited for {took:?}");
        // It took the place of one more who was silent.
        closed(&callee, reason::HANDSHAKE_SHED, (shed + 1) as f64)?;
        assert!(start.elapsed() < HANDSHAKE, "or it was the deadline that ended them");
        closed(&callee, reason::CLOSED, 1.0)?;
        let ok = [("result", "ok")];
        assert_eq!(caller.metric(metric::HANDSHAKES, &ok)?, 1.0);
        callee
            .wait_logs("the shed", shed + 1, |line| {
                line.is(direction::INBOUND, reason::HANDSHAKE_SHED)
            })
            .map(drop)
    });
}

/// Few descriptors from the start: the proxy keeps enough of them for what is no connection.
#[test]
fn few_descriptors_are_kept_for_health_and_metrics() {
    const CLIENTS: usize = 120;
    run("descriptors", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let mut callee = plaintext(&server, &|o| o.descriptors(200), bed)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        // Connected, however it goes on: those above the limit are reset.
        let open: Vec<_> =
            (0..CLIENTS).filter_map(|_| client.connect(app.local_addr().ok()?).ok()).collect();
        let limit = [("direction", direction::INBOUND), ("reason", reason::CONNECTION_LIMIT)];
        let shed = wait_until("the limit", LIMIT, || {
            let metrics = callee.metrics()?;
            let (shed, open) =
                (metrics.sum(metric::CLOSED, &limit), metrics.sum(metric::OPEN, &[]));
            Ok((shed > 0.0 && (shed + open - CLIENTS as f64).abs() < 0.5).then_some(shed))
        })?;
        println!("{shed} of {CLIENTS} were shed");
        let admin = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port::ADMIN);
        for _ in 0..50 {
            assert_eq!(callee.health("/healthz/ready")?.0, 200);
            assert_eq!(http_get(&server, admin, "/connections")?.0, 200);
        }
        assert_eq!(callee.metric(metric::ACCEPT_ERRORS, &[])?, 0.0, "none ran out");
        assert!(callee.process().ended()?.is_none());
        drop(open);
        idle_once_taken(&callee, &app)?;
        drop(served(&client, &app)?);
        Ok(())
    });
}

/// The limit falls under a proxy that runs, as no start-up check can foresee: accept(2) itself
/// fails. The proxy waits for descriptors, without a flood of lines, and goes on when they are back.
#[test]
fn out_of_descriptors_it_waits_and_goes_on() {
    const CLIENTS: usize = 60;
    run("emfile", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let mut callee = plaintext(&server, &|o| o.env("PILLION_WORKERS", "1"), bed)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let pid = callee.process().pid();
        let used = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        // For seven connections, two each; the eighth waits in the kernel's queue.
        let few = used + 14;
        // The soft limit, which a process of the same user may change.
        let set = |most: usize| {
            let words = [format!("--pid={pid}"), format!("--nofile={most}:")];
            complete(server.daemon_as("1337", "prlimit").args(words))
        };
        set(few)?;
        let start = Instant::now();
        let to = app.local_addr()?;
        // One that gets a descriptor, but none for its way to the app, is reset.
        let clients: Vec<_> = (0..CLIENTS).filter_map(|_| client.connect(to).ok()).collect();
        callee.wait_message("accept failed")?;
        // Long enough for a second line, and for a loop that spins to show in the CPU's time.
        let before = cpu_ticks(pid)?;
        let watched = Duration::from_secs(3);
        let from = Instant::now();
        wait_until("some time without descriptors", LIMIT, || {
            Ok((from.elapsed() >= watched).then_some(()))
        })?;
        let ticks = cpu_ticks(pid)? - before;
        println!("{ticks} ticks of 10 ms in {watched:?} without descriptors");
        assert!(ticks <= 15, "{ticks} ticks of 10 ms in {watched:?}: at most 5 % of a core");
        assert!(callee.process().ended()?.is_none(), "it lives");

        set(1024)?;
        let opened = [("direction", direction::INBOUND)];
        let back = Instant::now();
        callee.wait_metric(metric::OPENED, &opened, CLIENTS as f64)?;
        println!("recovered after {:?}", back.elapsed());
        assert!(back.elapsed() < Duration::from_secs(8), "recovered after {:?}", back.elapsed());
        drop(clients);
        idle_once_taken(&callee, &app)?;
        let seconds = start.elapsed().as_secs_f64();
        let said = callee.messages("accept failed")?.len();
        assert!(said as f64 <= seconds + 2.0, "{said} lines in {seconds} s");
        assert!(callee.metric(metric::ACCEPT_ERRORS, &[("errno", "EMFILE")])? >= 1.0);
        assert_eq!(callee.health("/healthz/ready")?.0, 200);
        drop(served(&client, &app)?);
        Ok(())
    });
}

/// Whose calls fail with an error that this machine could not be brought to: strace answers the
/// proxy's worker in the kernel's place, until it is told to stop.
fn failing(server: &Pod, pid: u32, call: &str, errno: &str) -> Result<Process, Failure> {
    let worker = fs::read_dir(format!("/proc/{pid}/task"))?.flatten().find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "worker-0")
    });
    let worker = worker.ok_or_else(|| Failure::Unexpected("no worker".to_owned()))?.path();
    let thread = worker.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut strace = server.daemon("strace");
    strace.args(["-q", "-p", &thread, "-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:error={errno}")]);
    let strace = server.spawn(&format!("strace-{call}-{errno}"), &mut strace)?;
    wait_until("strace to attach", LIMIT, || {
        let status = fs::read_to_string(worker.join("status"))?;
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        Ok(tracer.is_some_and(|pid| pid.trim() != "0").then_some(()))
    })?;
    Ok(strace)
}

#[test]
fn whatever_the_kernel_lacks_it_waits_and_goes_on() {
    const CLIENTS: usize = 3;
    run("lack", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let mut callee = plaintext(&server, &|o| o.env("PILLION_WORKERS", "1"), bed)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let pid = callee.process().pid();
        let start = Instant::now();
        for (round, errno) in (1..).zip(["ENFILE", "ENOBUFS", "ENOMEM"]) {
            let mut strace = failing(&server, pid, "accept4", errno)?;
            let waiting: Vec<_> = (0..CLIENTS)
                .map(|_| client.connect(app.local_addr()?))
                .collect::<Result<_, Failure>>()?;
            let failures = || callee.metric(metric::ACCEPT_ERRORS, &[("errno", errno)]);
            // It tries again, after 10, 20, 40 and 80 ms, and later less often.
            wait_until("four tries", LIMIT, || Ok((failures()? >= 4.0).then_some(())))?;
            let (before, from) = (failures()?, Instant::now());
            let_pass(Duration::from_secs(1));
            let tries = failures()? - before;
            let most = from.elapsed().as_secs_f64() / 0.16 + 2.0;
            assert!(tries <= most, "{errno}: {tries} tries in {:?}", from.elapsed());
            assert_eq!(callee.health("/healthz/ready")?.0, 200);
            strace.signal(Signal::SIGINT)?;
            strace.wait(LIMIT)?;
            // All three have waited in the kernel's queue.
            let inbound = [("direction", direction::INBOUND)];
            callee.wait_metric(metric::OPENED, &inbound, f64::from(round * 5 - 2))?;
            drop(waiting);
            idle_once_taken(&callee, &app)?;

            let mut strace = failing(&server, pid, "socket", errno)?;
            assert_eq!(ask(&client, app.local_addr()?, b"no socket for it")?, Outcome::Reset);
            closed(&callee, reason::CONNECT_FAILED, f64::from(round))?;
            strace.signal(Signal::SIGINT)?;
            strace.wait(LIMIT)?;
            drop(served(&client, &app)?);
            callee.wait_idle()?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let said = callee.messages("accept failed")?.len();
        assert!((1.0..=seconds + 2.0).contains(&(said as f64)), "{said} lines in {seconds} s");
        let failed = |line: &LogLine| line.is(direction::INBOUND, reason::CONNECT_FAILED);
        let lines = callee.wait_logs("those without a socket", 3, failed)?;
        assert_eq!(lines.len(), 3, "one line each");
        untouched(&app)
    });
}

/// The CPU's time that a process has used, in ticks of 10 ms (proc_pid_stat(5), utime and stime).
fn cpu_ticks(pid: u32) -> Result<u64, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    Ok(fields.filter_map(|field| field.parse::<u64>().ok()).sum())
}

/// Noise that is the same at both ends; a lost, doubled or swapped byte shows.
fn noise() -> impl FnMut(&mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |buffer| {
        for byte in buffer {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[0];
        }
    }
}

fn send(mut to: TcpStream, bytes: usize) -> Result<(), Failure> {
    let (mut noise, mut buffer) = (noise(), vec![0; 64 << 10]);
    for _ in 0..bytes / buffer.len() {
        noise(&mut buffer);
        to.write_all(&buffer)?;
    }
    Ok(())
}

/// Reads a little, pauses, then reads to the end; returns how much came.
fn receive(mut from: TcpStream, pause: Duration) -> Result<usize, Failure> {
    let (mut noise, mut wanted, mut buffer) = (noise(), Vec::new(), vec![0; 64 << 10]);
    let mut came = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(came);
        }
        wanted.resize(read, 0);
        noise(&mut wanted);
        assert!(buffer.starts_with(&wanted), "not what was sent, after {came} bytes");
        if came == 0 {
            let start = Instant::now();
            wait_until("the end of the pause", pause * 2, || {
                Ok((start.elapsed() >= pause).then_some(()))
            })?;
        }
        came += read;
    }
}

/// A reader in a pager or a debugger: longer than any timeout of TCP's or of the proxy's own.
/// Both directions, so that each leg of both proxies has a full window before it for that long.
#[test]
fn a_reader_who_pauses_loses_nothing() {
    const PAUSE: Duration = Duration::from_secs(35);
    const BYTES: usize = 32 << 20;
    run("pause", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (up_client, up_server) = pair.open(&listener)?;
        let (down_client, down_server) = pair.open(&listener)?;
        for stream in [&up_client, &up_server, &down_client, &down_server] {
            stream.set_read_timeout(Some(2 * PAUSE))?;
            stream.set_write_timeout(Some(2 * PAUSE))?;
        }
        let came = std::thread::scope(|scope| {
            let senders = [(up_client), (down_server)].map(|to| scope.spawn(|| send(to, BYTES)));
            let readers = [up_server, down_client].map(|from| scope.spawn(|| receive(from, PAUSE)));
            for sender in senders {
                sender.join().expect("no panic")?;
            }
            let came = readers.map(|reader| reader.join().expect("no panic"));
            let [up, down] = came;
            Ok::<_, Failure>([up?, down?])
        })?;
        assert_eq!(came, [BYTES, BYTES]);
        pair.callee.wait_idle()?;
        pair.caller.wait_idle()?;
        for sidecar in [&pair.callee, &pair.caller] {
            let reasons = sidecar.metrics()?.by(metric::CLOSED, "reason");
            assert_eq!(reasons.keys().collect::<Vec<_>>(), [reason::CLOSED], "{reasons:?}");
        }
        Ok(())
    });
}
