//! Requests at a fixed rate. Each has a time at which it is due, and its latency counts from
//! then: what waits behind a slow answer is as late for its user as the slow one itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::Kind;
use super::exchange::Exchange;
use super::worker::Task;
use crate::error::{Context, Error};

/// A timer of the kernel's: tokio's own rounds up to a millisecond, more than a request takes.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Starts the connections and what sends them their requests, `rate` a second on all together.
///
/// # Errors
/// The kernel gives no timer.
pub(super) fn start(
    rate: f64,
    streams: Vec<TcpStream>,
    task: &Task,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error> {
    if streams.is_empty() {
        return Ok(());
    }
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("a timer")?;
    // Its successor is unsafe: it wants the promise that the descriptor stays the same and open,
    // which `Timer` keeps, since it owns it.
    #[allow(deprecated, reason = "the other constructor is unsafe")]
    let timer = AsyncFd::new(Timer(timer)).context("a timer")?;
    let mut queues = Vec::new();
    for stream in streams {
        let (queue, due) = unbounded_channel();
        queues.push(queue);
        tasks.spawn_local(connection(stream, due, task.clone()));
    }
    let task = task.clone();
    tasks.spawn_local(async move {
        if let Err(error) = pace(rate, &timer, &queues, &task).await {
            task.failed("the timer", &error);
        }
    });
    Ok(())
}

/// Hands out what is due, to one connection after another.
async fn pace(
    rate: f64,
    timer: &AsyncFd<Timer>,
    queues: &[UnboundedSender<Instant>],
    task: &Task,
) -> io::Result<()> {
    let start = Instant::now();
    for (number, queue) in (0_u32..).zip(queues.iter().cycle()) {
        let due = start + Duration::from_secs_f64(f64::from(number) / rate);
        // Where the timer was late, several are due at once, each since its own time.
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            sleep(timer, early).await?;
        }
        if !task.running() {
            break;
        }
        if queue.send(due).is_err() {
            task.failed("a request", &io::ErrorKind::NotConnected.into());
        }
    }
    Ok(())
}

async fn sleep(timer: &AsyncFd<Timer>, span: Duration) -> io::Result<()> {
    let once = Expiration::OneShot(TimeSpec::from_duration(span));
    timer.get_ref().0.set(once, TimerSetTimeFlags::empty())?;
    let mut fired = timer.readable().await?;
    // Setting it again makes it unreadable; there is no count that would have to be read.
    fired.clear_ready();
    Ok(())
}

/// Sends what is due, one after another; also what is still queued when the load is over.
async fn connection(mut stream: TcpStream, mut due: UnboundedReceiver<Instant>, task: Task) {
    let exchange = Exchange::new(Kind::HttpOpen, 0);
    let mut came = exchange.buffer();
    while let Some(since) = due.recv().await {
        match exchange.once(&mut stream, &mut came).await {
            Ok(()) => task.done_since(since),
            Err(error) => {
                task.failed("a request", &error);
                return;
            }
        }
    }
}
