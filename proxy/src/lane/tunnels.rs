//! Idle tunnels to servers, for the next app connection that wants to go there.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use pillion_certs::generation::TlsGeneration;
use pillion_certs::verify::VerifiedPeer;
use pillion_policy::Policy;

use crate::live::Shared;
use crate::tunnel::{Life, Limits, Pool};
use crate::wire::Wire;

use super::Held;

/// What two app connections must have in common to share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Where the app wants to go.
    pub destination: SocketAddr,
    /// The destination rule that decides it.
    pub rule: Arc<str>,
}

/// An idle tunnel and all that was found out when it was made.
#[derive(Debug)]
pub struct Parked {
    /// The connection.
    pub wire: Box<Wire>,
    /// The server's verified identity.
    pub peer: VerifiedPeer,
    /// The certificates that it was verified with.
    pub generation: Arc<TlsGeneration>,
}

/// What the idle tunnels were made under; a change of either empties the pool.
#[derive(Debug, Default)]
struct Epoch {
    policy: Option<Arc<Policy>>,
    generation: Option<Arc<TlsGeneration>>,
}

/// The idle tunnels of one worker.
#[derive(Debug)]
pub struct Tunnels {
    shared: Arc<Shared>,
    pool: RefCell<Pool<Key, Idle>>,
    epoch: RefCell<Epoch>,
    stopped: Cell<bool>,
}

#[derive(Debug)]
struct Idle {
    parked: Parked,
    _held: Held,
}

impl Idle {
    /// Whether the server has said or ended anything since. A server has nothing to
    /// say on an idle tunnel but that it is over.
    fn has_ended(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.parked.wire.leg().poll_readable(&mut cx).is_ready()
    }

    /// The same, by asking the kernel: the reactor learns of it a moment later.
    fn is_alive(&self) -> bool {
        let socket = self.parked.wire.leg().stream().as_raw_fd();
        let peeked = recv(socket, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        peeked == Err(Errno::EAGAIN)
    }

    fn close(mut self) {
        self.parked.wire.close();
    }
}

impl Tunnels {
    /// How often idle tunnels are looked through.
    pub const SWEEP_EVERY: Duration = Duration::from_millis(500);

    pub(super) fn new(shared: Arc<Shared>, seed: u64) -> Self {
        Self {
            shared,
            pool: RefCell::new(Pool::new(Limits::default(), seed)),
            epoch: RefCell::default(),
            stopped: Cell::new(false),
        }
    }

    /// The life of a tunnel that is made now.
    pub fn birth(&self) -> Life {
        self.pool.borrow_mut().birth(Instant::now())
    }

    /// An idle tunnel, if there is one that is still good.
    pub fn take(&self, key: &Key) -> Option<(Parked, Life)> {
        self.keep_up();
        loop {
            let idle = self.pool.borrow_mut().take(key, Instant::now())?;
            if idle.item.is_alive() {
                return Some((idle.item.parked, idle.life));
            }
            idle.item.close();
        }
    }

    /// Keeps a tunnel for the next app connection, or closes it if it is not to be used
    /// again.
    pub fn put(&self, key: Key, parked: Parked, life: Life) {
        self.keep_up();
        let current = self
            .epoch
            .borrow()
            .generation
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, &parked.generation));
        let idle = Idle { parked, _held: Held::new(&self.shared) };
        if !current || self.stopped.get() {
            return idle.close();
        }
        let over = self.pool.borrow_mut().put(key, idle, life, Instant::now());
        if let Some(over) = over {
            over.close();
        }
    }

    /// Closes what has been idle for too long, and what its server has ended.
    pub fn sweep(&self) {
        self.keep_up();
        let expired = self.pool.borrow_mut().expire(Instant::now());
        let ended = self.pool.borrow_mut().retire(|_, idle| idle.has_ended());
        expired.into_iter().chain(ended).for_each(Idle::close);
    }

    /// Closes all.
    pub fn close_all(&self) {
        let all = self.pool.borrow_mut().drain();
        all.into_iter().for_each(Idle::close);
    }

    /// Keeps none from here on.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Empties the pool if the policy or the certificates are not those that its
    /// tunnels were made under.
    fn keep_up(&self) {
        let published = &self.shared.published;
        let policy = published.policy.load();
        let generation = published.tls.load();
        let same = {
            let epoch = self.epoch.borrow();
            is_same(epoch.policy.as_ref(), policy.as_ref())
                && is_same(epoch.generation.as_ref(), generation.as_ref())
        };
        if !same {
            self.close_all();
            *self.epoch.borrow_mut() =
                Epoch { policy: policy.clone(), generation: generation.clone() };
        }
    }
}

fn is_same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}
