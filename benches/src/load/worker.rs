//! A thread that carries its share of a load's connections, and what the threads share.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use super::{Kind, Options, bulk, exchange, open_loop};
use crate::error::{Context, Error};
use crate::stats::Latencies;

/// As many as the proxies have workers.
pub(super) const COUNT: usize = 2;
/// How long one connection may take to be made.
const ONE_CONNECT: Duration = Duration::from_secs(10);
/// How many connections a thread makes at a time: fewer than any listener's backlog.
const CONNECTING: usize = 16;
/// How long the connections may take to end once the load is over.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// After a failure, so that a dead server is not dialled in a tight loop.
const PAUSE: Duration = Duration::from_millis(10);

/// Where a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    /// Under load, but not measured.
    WarmUp,
    /// Under load, and measured.
    Measure,
    /// No new work; what is under way ends.
    Stop,
}

/// What all threads of a load see.
#[derive(Debug)]
pub(super) struct Shared {
    phase: AtomicU8,
    units: AtomicU64,
    failures: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::WarmUp as u8),
            units: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            failure: Mutex::new(None),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn units(&self) -> u64 {
        self.units.load(Ordering::Relaxed)
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The first failure's reason.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().ok()?.clone()
    }
}

/// What a connection's task sees. Stays on its thread.
#[derive(Debug, Clone)]
pub(super) struct Task {
    shared: Arc<Shared>,
    latencies: Rc<RefCell<Latencies>>,
}

impl Task {
    /// Whether there is more to do.
    pub(super) fn running(&self) -> bool {
        self.shared.phase.load(Ordering::Relaxed) < Phase::Stop as u8
    }

    /// Counts units without a latency.
    pub(super) fn done(&self, units: usize) {
        self.shared.units.fetch_add(units as u64, Ordering::Relaxed);
    }

    /// Counts one unit that began, or was due, at `since`. What is answered after the end was
    /// begun before it: leaving it out would hide the longest waits.
    pub(super) fn done_since(&self, since: Instant) {
        self.done(1);
        if self.shared.phase.load(Ordering::Relaxed) >= Phase::Measure as u8 {
            self.latencies.borrow_mut().record(since.elapsed());
        }
    }

    /// Counts a failure; the first one's reason is kept.
    pub(super) fn failed(&self, what: &str, error: &io::Error) {
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.shared.failure.lock() {
            first.get_or_insert_with(|| format!("{what}: {error}"));
        }
    }

    /// The same, and waits a little.
    pub(super) async fn failed_pause(&self, what: &str, error: &io::Error) {
        self.failed(what, error);
        tokio::time::sleep(PAUSE).await;
    }

    /// Waits for the end of the load.
    pub(super) async fn until_stop(&self) {
        while self.running() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Opens a connection.
pub(super) async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(ONE_CONNECT, TcpStream::connect(to)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Carries the share of thread `index`; says when its connections are there, and returns the
/// latencies when all have ended.
///
/// # Errors
/// The kernel gives no runtime.
pub(super) fn run(
    index: usize,
    options: &Options,
    shared: &Arc<Shared>,
    ready: &Sender<()>,
) -> Result<Latencies, Error> {
    let latencies = Rc::new(RefCell::new(Latencies::new()?));
    let task = Task { shared: Arc::clone(shared), latencies: Rc::clone(&latencies) };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    LocalSet::new().block_on(&runtime, async {
        let mut tasks = JoinSet::new();
        start(index, options, &task, &mut tasks).await?;
        // Nobody listens any more when another thread was late: then the load is over.
        let _ = ready.send(());
        task.until_stop().await;
        let late = tokio::time::timeout(LAST_ANSWERS, async {
            while tasks.join_next().await.is_some() {}
        });
        if late.await.is_err() {
            for _ in 0..tasks.len() {
                task.failed("the end of a connection", &io::ErrorKind::TimedOut.into());
            }
        }
        Ok::<_, Error>(())
    })?;
    Ok(latencies.replace(Latencies::new()?))
}

/// Starts the tasks, each with its connection where it keeps one.
async fn start(
    index: usize,
    options: &Options,
    task: &Task,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error> {
    let share = (index..options.connections).step_by(COUNT).count();
    let to = SocketAddr::new(options.to, exchange::port(options.kind));
    let mut streams = Vec::new();
    if options.kind != Kind::Churn {
        streams = connect_all(share, to, task).await;
    }
    match options.kind {
        Kind::HttpOpen => {
            let rate = options.rate * share as f64 / options.connections as f64;
            open_loop::start(rate, streams, task, tasks)?;
        }
        Kind::Churn => {
            for _ in 0..share {
                tasks.spawn_local(exchange::churn(to, task.clone()));
            }
        }
        Kind::Idle => idle(streams, task, tasks).await,
        _ => {
            for stream in streams {
                let task = task.clone();
                match options.kind {
                    Kind::BulkUp => tasks.spawn_local(bulk::up(stream, task)),
                    Kind::BulkDown => tasks.spawn_local(bulk::down(stream, task)),
                    kind => {
                        let exchange = exchange::Exchange::new(kind, options.size);
                        tasks.spawn_local(exchange::closed_loop(to, stream, exchange, task))
                    }
                };
            }
        }
    }
    Ok(())
}

/// Opens connections, some at a time; those that cannot be had are failures.
async fn connect_all(count: usize, to: SocketAddr, task: &Task) -> Vec<TcpStream> {
    let (mut connecting, mut streams) = (JoinSet::new(), Vec::with_capacity(count));
    let mut begun = 0;
    loop {
        while begun < count && connecting.len() < CONNECTING {
            connecting.spawn(connect(to));
            begun += 1;
        }
        match connecting.join_next().await {
            Some(Ok(Ok(stream))) => streams.push(stream),
            Some(Ok(Err(error))) => task.failed("connecting", &error),
            Some(Err(panic)) => task.failed("connecting", &io::Error::other(panic)),
            None => return streams,
        }
    }
}

/// One request on each, so that every proxy has done all that a connection needs; then silence.
async fn idle(streams: Vec<TcpStream>, task: &Task, tasks: &mut JoinSet<()>) {
    let exchange = exchange::Exchange::new(Kind::Http, 0);
    let (mut answer, mut held) = (exchange.buffer(), Vec::with_capacity(streams.len()));
    for mut stream in streams {
        match exchange.once(&mut stream, &mut answer).await {
            Err(error) => task.failed("the request before idling", &error),
            Ok(()) => {
                task.done(1);
                held.push(stream);
            }
        }
    }
    let task = task.clone();
    tasks.spawn_local(async move {
        task.until_stop().await;
        drop(held);
    });
}
