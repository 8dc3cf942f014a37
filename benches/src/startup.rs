//! `startup`: how long the proxy takes to be ready, and to end once nothing is open.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pillion_testbed::labels::port;
use pillion_testbed::stream::{exchange, pass};
use pillion_testbed::{Context as _, Failure, Pair, Pod, Sidecar};

use crate::cli::StartupOptions;
use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::report::summary::digits;
use crate::run::{machine, now, testbed};
use crate::stats::{Latencies, Quantiles};

/// Between two looks. It is part of what is measured, so it is short.
const LOOK_EVERY: Duration = Duration::from_micros(250);
/// No proxy takes longer, or the run is at an end.
const LIMIT: Duration = Duration::from_secs(20);
/// Where the app listens.
const APP: u16 = 8080;

/// What we have set ourselves, for the slowest run.
const GOALS: [(&str, Duration); 2] = [
    ("from fork to 200 of /healthz/startup", Duration::from_millis(100)),
    ("after SIGTERM, from the end of the last connection to exit", Duration::from_secs(2)),
];

/// Measures and prints, in Markdown.
///
/// # Errors
/// The proxy does not start, or does not end.
pub(crate) fn run(options: &StartupOptions) -> Result<(), Error> {
    let interrupt = Interrupt::listen()?;
    let bed = testbed()?;
    let mut pair = Pair::new(&bed)?;
    let app = pair.listen(pair.server.v4(), APP)?;
    let (mut ready, mut exit) = (Latencies::new()?, Latencies::new()?);
    pair.callee.stop(LIMIT)?;
    for _ in 0..options.runs {
        interrupt.check()?;
        ready.record(start(&pair.server, &mut pair.callee)?);
        // One that is over, so that its tunnel is idle, and one that is open.
        pair.exchange(&app)?;
        let (mut client, mut server) = pair.open(&app)?;
        pass(&mut client, &mut server, b"open")?;
        pair.callee.process().signal(Signal::SIGTERM)?;
        pair.callee.wait_message("told to stop")?;
        exchange(client, server)?;
        exit.record(end(&mut pair.callee)?);
    }
    println!("{}", table(options.runs, [ready.quantiles(), exit.quantiles()]));
    Ok(())
}

/// From before the fork of what becomes the proxy, which enters the pod's namespace and gives up
/// root on its way, to the answer.
fn start(pod: &Pod, sidecar: &mut Sidecar) -> Result<Duration, Failure> {
    let began = Instant::now();
    sidecar.start_again()?;
    pod.enter(|| {
        look("a proxy that is ready", || {
            // Refused until it listens.
            Ok(asked().ok().filter(|answer| answer.starts_with(b"HTTP/1.0 200 ")).map(drop))
        })
    })?;
    Ok(began.elapsed())
}

fn asked() -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port::HEALTH))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /healthz/startup HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// From now, when both ends of the last connection have ended, to the end of the process.
fn end(sidecar: &mut Sidecar) -> Result<Duration, Failure> {
    let began = Instant::now();
    let status = look("the proxy's end", || sidecar.process().ended())?;
    if !status.success() {
        return Err(Failure::Unexpected(format!("the proxy ended with {status}")));
    }
    Ok(began.elapsed())
}

/// Looks for something often.
fn look<T>(
    what: &str,
    mut found: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        if let Some(found) = found()? {
            return Ok(found);
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
    Err(std::io::Error::from(std::io::ErrorKind::TimedOut)).context(|| what)
}

fn table(runs: u32, measured: [Quantiles; 2]) -> String {
    let mut text = format!(
        "{}, {}; {runs} runs.\n\n\
         | startup and exit, ms | median | p99 | max | wanted | |\n|---|---|---|---|---|---|\n",
        now(),
        machine()
    );
    for ((what, goal), found) in GOALS.into_iter().zip(measured) {
        let ms = |nanoseconds: u64| digits(nanoseconds as f64 / 1e6);
        let ok = if u128::from(found.max) <= goal.as_nanos() { "ok" } else { "not" };
        text += &format!(
            "| {what} | {} | {} | {} | ≤ {} | {ok} |\n",
            ms(found.p50),
            ms(found.p99),
            ms(found.max),
            goal.as_millis()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_run_is_held_to_the_goal() {
        let of = |max: u64| Quantiles { count: 9, p50: 5_000_000, p99: max, p999: max, max };
        let text = table(9, [of(100_000_000), of(2_000_000_001)]);
        let rows: Vec<_> = text.lines().skip(4).collect();
        assert!(rows[0].ends_with("| 5.00 | 100 | 100 | ≤ 100 | ok |"), "{text}");
        assert!(rows[1].ends_with("| ≤ 2000 | not |"), "{text}");
    }
}
