//! One thread, one single-threaded runtime, its own listeners and connections.
//! What happens on the data path of a worker is shared with no other thread.

mod busy_poll;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use serde_json::Value;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};

use crate::lane::{Lane, Tunnels};
use crate::live::{Registry, Shared};
use crate::net::{Acceptor, ClientAddr, Leg};
use crate::telemetry::{CloseReason, Direction};
use crate::{inbound, outbound};

/// How often the byte metrics of open connections are brought up to date.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// What the control thread asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// The policy has changed: judge again.
    Rejudge,
    /// Serve a connection that another worker has accepted and has no time for.
    Adopt(Direction, std::net::TcpStream, ClientAddr),
    /// The certificates have changed: connections to the revoked end, idle tunnels are
    /// given up.
    Renew,
    /// The proxy will stop: idle tunnels are given up, and none is kept from here on.
    Retire,
    /// Memory runs out: the older half of the handshakes under way end.
    ShedHandshakes,
    /// Tell about the open connections.
    Connections(oneshot::Sender<Vec<Value>>),
    /// Accept no more, reset everything that is open, answer, and end.
    Reset(oneshot::Sender<()>),
}

/// The listening sockets of one worker.
#[derive(Debug)]
pub struct Listeners {
    /// Where redirected inbound connections arrive.
    pub inbound: Vec<std::net::TcpListener>,
    /// Where redirected outbound connections arrive.
    pub outbound: Vec<std::net::TcpListener>,
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    /// To the worker's thread.
    pub commands: mpsc::UnboundedSender<Command>,
    /// The thread; ends when `commands` is dropped.
    pub thread: JoinHandle<()>,
}

/// Starts a worker for each set of listeners.
///
/// # Errors
/// When a thread or its runtime can't be made, or a listener not be registered.
pub fn start(shared: &Arc<Shared>, sets: Vec<Listeners>) -> io::Result<Vec<Worker>> {
    let (commands, inboxes): (Vec<_>, Vec<_>) =
        sets.iter().map(|_| mpsc::unbounded_channel()).unzip();
    let workers = sets.into_iter().zip(inboxes).zip(&commands).enumerate();
    workers
        .map(|(n, ((listeners, inbox), own))| {
            let others = commands.iter().map(mpsc::UnboundedSender::downgrade).collect();
            let me = Place { n, others };
            let thread = start_one(me, Arc::clone(shared), listeners, inbox)?;
            Ok(Worker { commands: own.clone(), thread })
        })
        .collect()
}

/// A worker's number, and the inboxes of all. They are weak: a worker ends when the
/// control thread lets go of it.
struct Place {
    n: usize,
    others: Vec<mpsc::WeakUnboundedSender<Command>>,
}

fn start_one(
    me: Place,
    shared: Arc<Shared>,
    listeners: Listeners,
    inbox: mpsc::UnboundedReceiver<Command>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let acceptors = {
        let _inside = runtime.enter();
        let inbound = listeners.inbound.into_iter().map(|l| (Direction::Inbound, l));
        let outbound = listeners.outbound.into_iter().map(|l| (Direction::Outbound, l));
        let acceptors = inbound.chain(outbound).map(|(d, l)| Ok((d, Acceptor::new(l)?)));
        acceptors.collect::<io::Result<Vec<_>>>()?
    };
    std::thread::Builder::new().name(format!("worker-{}", me.n)).spawn(move || {
        let local = LocalSet::new();
        local.block_on(&runtime, work(Rc::new(me), shared, acceptors, inbox));
    })
}

async fn work(
    me: Rc<Place>,
    shared: Arc<Shared>,
    acceptors: Vec<(Direction, Acceptor)>,
    mut inbox: mpsc::UnboundedReceiver<Command>,
) {
    let lane = Lane::new(shared, me.n);
    let registry = &lane.registry;
    let mut accepting = JoinSet::new();
    for (direction, acceptor) in acceptors {
        accepting.spawn_local(accept(Rc::clone(&me), Rc::clone(&lane), direction, acceptor));
    }
    if lane.shared.config.busy_poll {
        tokio::task::spawn_local(busy_poll::run(Rc::clone(&lane)));
    }
    let mut flush = tokio::time::interval(FLUSH_EVERY);
    let mut sweep = tokio::time::interval(Tunnels::SWEEP_EVERY);
    loop {
        tokio::select! {
            command = inbox.recv() => match command {
                None => return,
                Some(Command::Adopt(direction, stream, client)) => {
                    adopt(&lane, direction, stream, client);
                }
                Some(Command::Rejudge) => {
                    registry.rejudge();
                    lane.tunnels.sweep();
                }
                Some(Command::Renew) => {
                    registry.end_revoked();
                    lane.retire_tunnels(false);
                }
                Some(Command::Retire) => lane.retire_tunnels(true),
                Some(Command::ShedHandshakes) => registry.shed_handshakes(),
                Some(Command::Connections(reply)) => {
                    // The asker may have gone; nobody else wants the answer.
                    let _ = reply.send(registry.to_json());
                }
                Some(Command::Reset(reply)) => {
                    accepting.abort_all();
                    lane.retire_tunnels(true);
                    reset(registry).await;
                    let _ = reply.send(());
                    return;
                }
            },
            _ = flush.tick() => registry.flush_bytes(),
            _ = sweep.tick() => lane.tunnels.sweep(),
            // A listener ends by a panic alone. The worker ends with it, and the
            // process with the worker: a pod that no longer listens must not look ready.
            Some(_) = accepting.join_next() => return,
        }
    }
}

/// Stops every connection and waits until each has reset its legs and is logged.
async fn reset(registry: &Registry) {
    while !registry.is_empty() {
        registry.stop_all(CloseReason::Shutdown);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn accept(me: Rc<Place>, lane: Rc<Lane>, direction: Direction, mut acceptor: Acceptor) {
    loop {
        let (stream, client) = acceptor.accept(|e| accept_failed(&lane.shared, direction, e)).await;
        let other = lane.shared.better_placed(me.n).and_then(|n| me.others.get(n)?.upgrade());
        match other {
            None => open(&lane, direction, stream, client),
            Some(other) => hand_over(&lane, &other, direction, stream, client),
        }
    }
}

/// Lets another worker serve a connection. Where that can't be done, this one does.
fn hand_over(
    lane: &Rc<Lane>,
    other: &mpsc::UnboundedSender<Command>,
    direction: Direction,
    stream: TcpStream,
    client: ClientAddr,
) {
    let Ok(stream) = stream.into_std() else { return };
    // Should it get lost on the way, the client is reset.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    if let Err(mpsc::error::SendError(Command::Adopt(_, stream, _))) =
        other.send(Command::Adopt(direction, stream, client))
    {
        adopt(lane, direction, stream, client);
    }
}

fn adopt(lane: &Rc<Lane>, direction: Direction, stream: std::net::TcpStream, client: ClientAddr) {
    // The reactor refuses for want of memory; then the client is reset.
    match TcpStream::from_std(stream) {
        Ok(stream) => {
            // From here on the leg sees to how it ends.
            let _ = SockRef::from(&stream).set_linger(None);
            open(lane, direction, stream, client);
        }
        Err(e) => accept_failed(&lane.shared, direction, &e),
    }
}

/// Registers an accepted connection and starts its story, in a task of its own:
/// a panic in it ends this connection alone.
fn open(lane: &Rc<Lane>, direction: Direction, stream: TcpStream, client: ClientAddr) {
    let guard = lane.registry.register(direction, client);
    let leg = Leg::new(stream);
    let is_full = || lane.shared.open.load(Ordering::Relaxed) > lane.shared.max_connections;
    if is_full() {
        // An idle tunnel is worth less than a connection.
        lane.tunnels.close_all();
        if is_full() {
            return guard.end(CloseReason::ConnectionLimit);
        }
    }
    if lane.shared.is_short_of_memory() {
        lane.tunnels.close_all();
        return guard.end(CloseReason::MemoryLimit);
    }
    let lane = Rc::clone(lane);
    tokio::task::spawn_local(async move {
        match direction {
            Direction::Inbound => inbound::serve(&lane, guard, leg).await,
            Direction::Outbound => {
                let reason = outbound::serve(&lane, &guard.conn, leg).await;
                guard.end(reason);
            }
        }
    });
}

fn accept_failed(shared: &Shared, direction: Direction, e: &io::Error) {
    let errno = e.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    let label = match errno {
        Errno::EMFILE => "EMFILE",
        Errno::ENFILE => "ENFILE",
        Errno::ENOBUFS => "ENOBUFS",
        Errno::ENOMEM => "ENOMEM",
        Errno::ECONNABORTED => "ECONNABORTED",
        _ => "other",
    };
    shared.metrics.accept_error(label);
    shared.log_limiter.once_a_second(|suppressed| {
        tracing::error!(%direction, error = %e, suppressed, "accept failed; raise the descriptor limit if it ran out");
    });
}
