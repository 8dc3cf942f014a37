//! What one worker owns and lends to its connections: nothing in here is shared with
//! another thread but what is behind [`Shared`].

mod tunnels;
mod without_alpn;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use crate::buffers::Buffers;
use crate::live::{Conn, Registry, Shared};
use crate::relay::{Limits, Pipes};

pub use tunnels::{Key, Parked, Tunnels};
pub use without_alpn::WithoutAlpn;

/// A worker's own.
#[derive(Debug)]
pub struct Lane {
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// The connections.
    pub registry: Rc<Registry>,
    /// Memory for bytes in flight.
    pub buffers: Rc<Buffers>,
    /// Pipes for bulk plaintext.
    pub pipes: Rc<Pipes>,
    /// Idle tunnels to servers.
    pub tunnels: Tunnels,
    /// Servers to which no protocol is offered.
    pub without_alpn: WithoutAlpn,
    /// Counts up whenever idle tunnels of clients should go away.
    retired: watch::Sender<u64>,
}

impl Lane {
    /// A worker without connections.
    pub fn new(shared: Arc<Shared>, worker: usize) -> Rc<Self> {
        // Workers must not draw alike, nor one process as another.
        let seed = fastrand::u64(..);
        Rc::new(Self {
            registry: Registry::new(Arc::clone(&shared), worker),
            buffers: Buffers::with_large(shared.most_large_buffers),
            pipes: Pipes::new(),
            tunnels: Tunnels::new(Arc::clone(&shared), seed),
            without_alpn: WithoutAlpn::default(),
            retired: watch::Sender::new(0),
            shared,
        })
    }

    /// What a relay between `conn`'s app and the other side counts and keeps to; up is from
    /// the app.
    pub fn limits<'a>(&self, conn: &'a Conn) -> Limits<'a> {
        let half_close = self.shared.config.timeouts.half_close;
        Limits { up: &conn.from_app, down: &conn.to_app, half_close }
    }

    /// Gives up every idle tunnel: ours are closed, clients are told to go away. With
    /// `for_good` no tunnel is kept from here on.
    pub fn retire_tunnels(&self, for_good: bool) {
        if for_good {
            self.tunnels.stop();
        }
        self.tunnels.close_all();
        self.retired.send_modify(|times| *times = times.wrapping_add(1));
    }

    /// Whether no tunnel is to be kept any more.
    pub fn is_stopping(&self) -> bool {
        self.tunnels.is_stopped()
    }

    /// Changes with every call of [`Lane::retire_tunnels`].
    pub fn retired(&self) -> watch::Receiver<u64> {
        self.retired.subscribe()
    }
}

/// A descriptor that is held without an app connection behind it: it counts as a
/// connection where the limit and the drain are concerned.
#[derive(Debug)]
pub struct Held(Arc<Shared>);

impl Held {
    /// Counts one more.
    pub fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::Relaxed);
        shared.metrics.tunnels_idle.inc();
        Self(Arc::clone(shared))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.tunnels_idle.dec();
    }
}
