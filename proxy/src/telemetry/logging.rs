//! The process's own log: to stdout, through a bounded queue that drops rather
//! than blocks. A reader that has stopped reading must not stop a worker.

use std::io;
use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Lines that may wait for a slow reader.
const QUEUE_LINES: usize = 8192;

/// Keeps the writer thread alive; dropping it flushes what is queued, for about a second at most,
/// which is the library's own limit.
#[derive(Debug)]
pub struct LogHandle {
    writer: NonBlocking,
    dropped: ErrorCounter,
    filter: reload::Handle<EnvFilter, Registry>,
    _flush: Flush,
}

/// How long the end of the process waits for that, whatever the library does.
const FLUSH: Duration = Duration::from_secs(2);

/// The library's own guard waits for ever on a reader who has stopped: it tells of it on the very
/// output that is stuck. So a thread waits for it, which ends with the process if it must.
#[derive(Debug)]
struct Flush(Option<WorkerGuard>);

impl Drop for Flush {
    fn drop(&mut self) {
        // Dropped by that thread or not at all: without one, lines are lost, and the end is not.
        let guard = ManuallyDrop::new(self.0.take());
        let (done, flushed) = mpsc::channel();
        let flush = move || {
            drop(ManuallyDrop::into_inner(guard));
            // Nobody waits any more when it has taken too long.
            let _ = done.send(());
        };
        if thread::Builder::new().name("pillion-flush".to_owned()).spawn(flush).is_ok() {
            // Either way the process may end now.
            let _ = flushed.recv_timeout(FLUSH);
        }
    }
}

impl LogHandle {
    /// A writer into the same queue, for access-log lines.
    pub fn writer(&self) -> NonBlocking {
        self.writer.clone()
    }

    /// Counts lines that found the queue full.
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }

    /// A handle that changes the filter while running.
    pub fn filter(&self) -> reload::Handle<EnvFilter, Registry> {
        self.filter.clone()
    }
}

/// Lets one line a second through and counts the others.
#[derive(Debug, Default)]
pub struct LogLimiter(Mutex<(Option<Instant>, u64)>);

impl LogLimiter {
    /// Calls `log` with the number of lines held back since the last one, unless
    /// that was less than a second ago.
    pub fn once_a_second(&self, log: impl FnOnce(u64)) {
        let held_back = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.0.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
                state.1 += 1;
                return;
            }
            state.0 = Some(Instant::now());
            std::mem::take(&mut state.1)
        };
        log(held_back);
    }
}

/// Installs the global subscriber.
///
/// # Errors
/// When `filter` has no meaning, or a subscriber is already installed.
pub fn init(filter: &str, json: bool) -> Result<LogHandle, Box<dyn std::error::Error>> {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE_LINES)
        .thread_name("pillion-log")
        .finish(io::stdout());
    let dropped = writer.error_counter();
    let (filter, handle) = reload::Layer::new(filter.parse::<EnvFilter>()?);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer.clone());
    if json {
        registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init()?;
    } else {
        registry.with(lines.with_ansi(false)).try_init()?;
    }
    Ok(LogHandle { writer, dropped, filter: handle, _flush: Flush(Some(guard)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_within_a_second_are_held_back_and_counted() {
        let limiter = LogLimiter::default();
        let mut lines = Vec::new();
        for _ in 0..5 {
            limiter.once_a_second(|held_back| lines.push(held_back));
        }
        assert_eq!(lines, [0]);
        assert_eq!(limiter.0.lock().unwrap().1, 4);
    }
}
