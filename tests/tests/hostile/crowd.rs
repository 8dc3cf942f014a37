//! Many connections of one thread: each says its bytes, waits a moment for an answer, and goes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pillion_testbed::stream::reset;
use pillion_testbed::{Context, Failure, Pod};

/// Threads that throw; the proxy has two workers at most.
const THREADS: u32 = 2;

/// Connections that have an end, by what it was.
#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<String, u64>);

impl Tally {
    pub(crate) fn count(&mut self, what: String) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        self.0.values().sum()
    }

    /// The sum of those whose word begins so.
    pub(crate) fn sum_of(&self, prefix: &str) -> u64 {
        self.0.iter().filter(|(what, _)| what.starts_with(prefix)).map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Runs `work` on a few threads within a pod, each with its number and its share of the streams.
pub(crate) fn at_once(
    pod: &Pod,
    streams: u32,
    work: impl Fn(u32, u32) -> Result<Tally, Failure> + Sync,
) -> Result<Tally, Failure> {
    let work = &work;
    std::thread::scope(|scope| {
        let share = |number| streams / THREADS + u32::from(number < streams % THREADS);
        let threads: Vec<_> = (0..THREADS)
            .map(|number| scope.spawn(move || pod.enter(|| work(number, share(number)))))
            .collect();
        let mut total = Tally::default();
        for thread in threads {
            let ended = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            total.add(&ended?);
        }
        Ok(total)
    })
}

/// The connections that a thread has open.
pub(crate) struct Crowd {
    open: Vec<Held>,
    most: usize,
    patience: Duration,
    /// The word for an answer, by its beginning.
    word: fn(&[u8]) -> String,
    tally: Tally,
}

struct Held {
    stream: TcpStream,
    since: Instant,
    said_all: bool,
}

impl Crowd {
    /// At most so many connections, none of which waits longer for an answer.
    pub(crate) fn new(most: usize, patience: Duration, word: fn(&[u8]) -> String) -> Self {
        Self { open: Vec::new(), most, patience, word, tally: Tally::default() }
    }

    /// Makes a connection from the namespace that the thread is in, and sends what the peer takes
    /// at once; a FIN behind it where that is `all`.
    pub(crate) fn throw(&mut self, to: SocketAddr, bytes: &[u8], all: bool) -> Result<(), Failure> {
        match TcpStream::connect(to) {
            Ok(stream) => self.hold(stream, bytes, all),
            // It may be reset before we have looked.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                self.tally.count("reset".to_owned());
                Ok(())
            }
            Err(error) => Err(error).context(|| format!("connecting to {to}")),
        }
    }

    /// The same on a connection that is there.
    pub(crate) fn hold(
        &mut self,
        mut stream: TcpStream,
        bytes: &[u8],
        all: bool,
    ) -> Result<(), Failure> {
        stream.set_nonblocking(true)?;
        // It takes what fits; who is gone says so once.
        let gone = stream.write(bytes).is_err_and(|error| error.kind() != ErrorKind::WouldBlock);
        let said_all = all && stream.shutdown(Shutdown::Write).is_ok();
        if gone || all != said_all {
            self.tally.count("reset".to_owned());
            return Ok(());
        }
        self.open.push(Held { stream, since: Instant::now(), said_all });
        self.shrink(self.most)
    }

    pub(crate) fn count(&mut self, what: &str) {
        self.tally.count(what.to_owned());
    }

    /// Waits for what is left, and tells what became of all.
    pub(crate) fn end(mut self) -> Result<Tally, Failure> {
        self.shrink(0)?;
        Ok(self.tally)
    }

    fn shrink(&mut self, most: usize) -> Result<(), Failure> {
        while self.open.len() > most {
            let waited = self.open.first().map_or(self.patience, |held| held.since.elapsed());
            self.look(self.patience.saturating_sub(waited))?;
        }
        Ok(())
    }

    /// Lets those go that were answered or have ended, once one has, or whose time is over.
    pub(crate) fn look(&mut self, limit: Duration) -> Result<(), Failure> {
        let ready = ready(self.open.iter().map(|held| &held.stream), limit)?;
        for (held, ready) in std::mem::take(&mut self.open).into_iter().zip(ready) {
            if ready || held.since.elapsed() >= self.patience {
                self.retire(held)?;
            } else {
                self.open.push(held);
            }
        }
        Ok(())
    }

    /// A RST for most; those that have sent their FIN are just closed.
    fn retire(&mut self, mut held: Held) -> Result<(), Failure> {
        let mut answer = [0; 64];
        let word = match held.stream.read(&mut answer) {
            Ok(0) => "fin".to_owned(),
            Ok(length) => (self.word)(&answer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => "silent".to_owned(),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset".to_owned(),
            Err(error) => return Err(error).context(|| "reading an answer"),
        };
        self.tally.count(word);
        if held.said_all { Ok(()) } else { reset(held.stream) }
    }
}

/// Which of them have something to read or have ended, once one has, or the time is over.
pub(crate) fn ready<'a>(
    sockets: impl Iterator<Item = &'a (impl AsFd + 'a)>,
    limit: Duration,
) -> Result<Vec<bool>, Failure> {
    let mut polled: Vec<_> =
        sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
    // To the next millisecond: a shorter wait would be none.
    let limit = u16::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    match poll(&mut polled, PollTimeout::from(limit)) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => return Err(error).context(|| "poll"),
    }
    Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect())
}

/// Says that something is over when it goes, also by a panic: nobody waits for the other threads of
/// a test that has failed.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Apps that take every connection, and close it when the first bytes have come or, where they are
/// `patient`, when it has ended.
pub(crate) fn sink(listeners: &[(&TcpListener, bool)], done: &AtomicBool) -> Result<(), Failure> {
    let mut open: Vec<(TcpStream, bool)> = Vec::new();
    let mut bytes = vec![0; 16 << 10];
    while !done.load(Ordering::Relaxed) {
        for (listener, patient) in listeners {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true)?;
                open.push((stream, *patient));
            }
        }
        let fds = listeners.iter().map(|(listener, _)| listener.as_fd());
        let fds: Vec<_> = fds.chain(open.iter().map(|(stream, _)| stream.as_fd())).collect();
        let ready = ready(fds.iter(), Duration::from_millis(20))?;
        let mut ready = ready.into_iter().skip(listeners.len());
        open.retain_mut(|(stream, patient)| {
            let ready = ready.next().unwrap_or_default();
            !ready || matches!(stream.read(&mut bytes), Ok(length) if length > 0 && *patient)
        });
    }
    Ok(())
}
