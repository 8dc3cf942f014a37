//! Bulk in plaintext: every byte, every byte counted, and no CPU time for nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use pillion_testbed::labels::{CLIENT, direction, metric};
use pillion_testbed::stream::{End, pass, read_exactly, read_to_end, reset};
use pillion_testbed::{
    Context, Failure, MeshOptions, Pod, Sidecar, accept, let_pass, policy, run, wait_until,
};

const APP: u16 = 8080;

/// How long nothing happens, and how much CPU time a sidecar may take to do nothing.
const QUIET: Duration = Duration::from_secs(3);
const FOR_NOTHING: Duration = Duration::from_millis(30);

/// A pod with a sidecar that passes everything through, and a pod without one.
struct Through {
    client: Pod,
    caller: Sidecar,
    listener: TcpListener,
}

impl Through {
    fn new(bed: &pillion_testbed::Testbed) -> Result<Self, Failure> {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let caller = client.mesh(bed, MeshOptions::new(policy::pass(), CLIENT))?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        Ok(Self { client, caller, listener })
    }

    fn open(&self) -> Result<(TcpStream, TcpStream), Failure> {
        let client = self.client.connect(self.listener.local_addr()?)?;
        Ok((client, accept(&self.listener)?))
    }

    /// What is counted from the app and to it, once nothing is open.
    fn counted(&self) -> Result<[f64; 2], Failure> {
        self.caller.wait_idle()?;
        let metrics = self.caller.metrics()?;
        let of = |flow| {
            metrics.sum(metric::BYTES, &[("direction", direction::OUTBOUND), ("flow", flow)])
        };
        Ok([of("from_app"), of("to_app")])
    }
}

/// Bytes that repeat only after a length that no buffer has.
fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..1_000_003).map(step).collect()
}

fn send_bulk(to: &mut TcpStream, pattern: &[u8], bytes: u64) -> Result<(), Failure> {
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(pattern.len());
        to.write_all(pattern.get(..part).unwrap_or_default())
            .context(|| format!("sending, {left} left"))?;
        left -= part as u64;
    }
    to.shutdown(Shutdown::Write).context(|| "FIN")
}

/// Reads to the FIN and compares each byte; returns how many there were.
fn check_bulk(from: &mut TcpStream, pattern: &[u8]) -> Result<u64, Failure> {
    let mut buffer = vec![0; 256 << 10];
    let (mut at, mut total) = (0, 0);
    loop {
        let n = from.read(&mut buffer).context(|| format!("reading at {total}"))?;
        if n == 0 {
            return Ok(total);
        }
        let mut came = buffer.get(..n).unwrap_or_default();
        while !came.is_empty() {
            let part = came.len().min(pattern.len() - at);
            let (now, later) = came.split_at(part);
            assert!(Some(now) == pattern.get(at..at + part), "other bytes in {n} from {total} on");
            came = later;
            at = (at + part) % pattern.len();
        }
        total += n as u64;
    }
}

#[test]
fn bulk_is_exact_both_ways_at_once() {
    const BYTES: u64 = 256 << 20;
    run("splice", |bed| {
        let through = Through::new(bed)?;
        let (client, server) = through.open()?;
        let pattern = pattern();
        std::thread::scope(|scope| {
            let pattern = &pattern;
            let mut workers = Vec::new();
            for stream in [&client, &server] {
                let (mut from, mut to) = (stream.try_clone()?, stream.try_clone()?);
                workers
                    .push(scope.spawn(move || send_bulk(&mut to, pattern, BYTES).map(|()| BYTES)));
                workers.push(scope.spawn(move || check_bulk(&mut from, pattern)));
            }
            for worker in workers {
                let bytes = worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
                assert_eq!(bytes, BYTES);
            }
            Ok::<_, Failure>(())
        })?;
        drop((client, server));
        assert_eq!(through.counted()?, [BYTES as f64; 2]);
        Ok(())
    });
}

/// A transfer that either app breaks off: what is counted is no less than what the reader has got,
/// and no more than what the writer has given.
#[test]
fn what_is_cut_is_counted_as_far_as_it_came() {
    const READ: usize = 24 << 20;
    run("splice-cut", |bed| {
        let through = Through::new(bed)?;
        let mut before = [0.0; 2];
        for (flow, down) in [(0, false), (1, true)] {
            for by_reader in [true, false] {
                let (client, server) = through.open()?;
                let (mut from, mut to) = if down { (server, client) } else { (client, server) };
                let (given, got) = std::thread::scope(|scope| {
                    let writing = scope.spawn(move || {
                        let (block, mut given) = (vec![7; 64 << 10], 0);
                        while given < 2 * READ {
                            match from.write(&block) {
                                Ok(n) => given += n,
                                Err(_) => break,
                            }
                        }
                        reset(from).map(|()| given)
                    });
                    let got = if by_reader {
                        let got = read_exactly(&mut to, READ)?.len();
                        reset(to)?;
                        got
                    } else {
                        let (came, end) = read_to_end(&mut to)?;
                        assert_eq!(end, End::Reset);
                        came.len()
                    };
                    let given = writing.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
                    Ok::<_, Failure>((given, got))
                })?;
                let now = through.counted()?;
                let counted = now[flow] - before[flow];
                println!("down {down}, by reader {by_reader}: {got} <= {counted} <= {given}");
                assert!(got as f64 <= counted && counted <= given as f64);
                assert_eq!(now[1 - flow], before[1 - flow], "nothing went the other way");
                before = now;
            }
        }
        Ok(())
    });
}

/// How much CPU time the sidecar takes while nothing happens.
fn cpu_of_quiet(caller: &mut Sidecar) -> Result<Duration, Failure> {
    let process = caller.process();
    let before = process.cpu()?;
    let_pass(QUIET);
    Ok(process.cpu()? - before)
}

/// Fills every buffer on the way, until nothing more goes.
fn fill(stream: &mut TcpStream) -> Result<usize, Failure> {
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    let (block, mut given) = (vec![7; 64 << 10], 0);
    loop {
        match stream.write(&block) {
            Ok(n) => given += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(given),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn a_quiet_connection_costs_no_cpu_time() {
    const BULK: usize = 32 << 20;
    run("splice-quiet", |bed| {
        let mut through = Through::new(bed)?;
        let (mut client, mut server) = through.open()?;
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| client.write_all(&vec![7; BULK]));
            let came = read_exactly(&mut server, BULK)?;
            assert!(came.iter().all(|byte| *byte == 7));
            sending.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
            Ok::<_, Failure>(())
        })?;
        let idle = cpu_of_quiet(&mut through.caller)?;
        println!("idle behind bulk: {idle:?} in {QUIET:?}");
        assert!(idle < FOR_NOTHING, "{idle:?}");

        for down in [false, true] {
            let (from, to) =
                if down { (&mut server, &mut client) } else { (&mut client, &mut server) };
            let given = fill(from)?;
            let paused = cpu_of_quiet(&mut through.caller)?;
            println!("{given} bytes that nobody reads, down {down}: {paused:?} in {QUIET:?}");
            assert!(paused < FOR_NOTHING, "{paused:?}");
            assert_eq!(read_exactly(to, given)?.len(), given);
            pass(from, to, b"and on it goes")?;
        }
        drop(client);
        wait_until("the end", QUIET, || Ok((read_to_end(&mut server)?.1 == End::Fin).then_some(())))
    });
}
