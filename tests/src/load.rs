//! Many short connections from one pod to another, at a steady rate.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use crate::{Context, Failure, Pod, let_pass};

/// Clients at once, and apps that answer them.
const CLIENTS: u32 = 8;

/// So many short connections would use up ports and the kernel's table of connections.
///
/// # Errors
/// The kernel refuses.
pub fn recycle_ports(pod: &Pod) -> Result<(), Failure> {
    pod.enter(|| {
        for (name, value) in [
            ("ipv4/tcp_tw_reuse", "1"),
            ("ipv4/ip_local_port_range", "16000 60999"),
            ("netfilter/nf_conntrack_tcp_timeout_time_wait", "5"),
        ] {
            fs::write(format!("/proc/sys/net/{name}"), value).context(|| name)?;
        }
        Ok(())
    })
}

/// An app that sends back what it gets, once it has got it all, until it is told to stop.
///
/// # Errors
/// A connection breaks.
pub fn echo(listener: &TcpListener, done: &AtomicBool) -> Result<(), Failure> {
    while !done.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).context(|| "the app reads")?;
                stream.write_all(&bytes).context(|| "the app writes")?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let_pass(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// One connection to an [`echo`], from the namespace that the thread is in.
///
/// # Errors
/// It is not served, or not with the same bytes.
pub fn ask_echo(to: SocketAddr, message: &[u8]) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(to).context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(message).context(|| format!("writing to {to}"))?;
    stream.shutdown(Shutdown::Write).context(|| format!("FIN to {to}"))?;
    let mut answer = Vec::with_capacity(message.len());
    stream.read_to_end(&mut answer).context(|| format!("reading from {to}"))?;
    if answer == message {
        return Ok(());
    }
    Err(Failure::Unexpected(format!("{to}: {} of {} bytes", answer.len(), message.len())))
}

/// What a thread ended with; its panic goes on here.
///
/// # Errors
/// The thread's own.
pub fn joined(thread: ScopedJoinHandle<'_, Result<(), Failure>>) -> Result<(), Failure> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Opens `a_second` connections a second from `client` to an app behind `listener` while
/// `meanwhile` runs; it is given a question, whether all goes well so far. Returns how many
/// were served.
///
/// # Errors
/// The first connection that was not served ends it, or `meanwhile` does.
pub fn under_load(
    client: &Pod,
    listener: &TcpListener,
    a_second: u32,
    meanwhile: impl FnOnce(&dyn Fn() -> bool) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let to = listener.local_addr()?;
    let (done, closing) = (AtomicBool::new(false), AtomicBool::new(false));
    let served = AtomicU64::new(0);
    let every = Duration::from_secs(1) * CLIENTS / a_second.max(1);
    std::thread::scope(|scope| {
        let (done, closing, served) = (&done, &closing, &served);
        let apps: Vec<_> =
            (0..2 * CLIENTS).map(|_| scope.spawn(move || echo(listener, closing))).collect();
        let ask = move |number: u32| {
            client.enter(|| {
                let mut next = Instant::now() + every * number / CLIENTS;
                while !done.load(Ordering::Relaxed) {
                    let_pass(next.saturating_duration_since(Instant::now()));
                    next += every;
                    ask_echo(to, b"one of many")?;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || ask(number))).collect();
        let result = meanwhile(&|| clients.iter().all(|client| !client.is_finished()));
        done.store(true, Ordering::Relaxed);
        let ended = clients.into_iter().try_for_each(joined);
        // Only now: the apps serve whoever is under way.
        closing.store(true, Ordering::Relaxed);
        let closed = apps.into_iter().try_for_each(joined);
        ended.and(closed).and(result)
    })?;
    Ok(served.load(Ordering::Relaxed))
}
