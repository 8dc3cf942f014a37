//! The connections of one worker.

use std::cell::{Cell, LazyCell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::net::ClientAddr;
use crate::telemetry::{CloseReason, Direction};

use super::{Conn, Shared};

/// All connections of one worker, and those among them in a handshake.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    worker: usize,
    next_id: Cell<u64>,
    conns: RefCell<BTreeMap<u64, Rc<Conn>>>,
    /// By direction: a flood from the network must not end the app's own.
    inbound_handshakes: RefCell<VecDeque<Rc<Conn>>>,
    outbound_handshakes: RefCell<VecDeque<Rc<Conn>>>,
}

impl Registry {
    /// The empty registry of a worker.
    pub fn new(shared: Arc<Shared>, worker: usize) -> Rc<Self> {
        Rc::new(Self {
            shared,
            worker,
            next_id: Cell::new(0),
            conns: RefCell::default(),
            inbound_handshakes: RefCell::default(),
            outbound_handshakes: RefCell::default(),
        })
    }

    /// Registers a connection that was just accepted.
    pub fn register(self: &Rc<Self>, direction: Direction, source: ClientAddr) -> Guard {
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        let metrics = &self.shared.metrics;
        metrics.connection_opened(direction);
        if self.shared.open.fetch_add(1, Ordering::Relaxed) == 0 {
            self.shared.first_open.notify_one();
        }
        if let Some(load) = self.shared.loads.get(self.worker) {
            load.fetch_add(1, Ordering::Relaxed);
        }
        let conn = Rc::new(Conn::new(id, direction, source, metrics.byte_counters(direction)));
        self.conns.borrow_mut().insert(id, Rc::clone(&conn));
        Guard { conn, registry: Rc::clone(self), reason: Cell::new(None) }
    }

    /// Counts `conn` as being in a handshake until the slot is dropped. When there
    /// are too many, the oldest is stopped: under a flood of clients that stall,
    /// that is a stalled one, while an honest one is done within milliseconds.
    pub fn begin_handshake(self: &Rc<Self>, conn: &Rc<Conn>) -> HandshakeSlot {
        let mut handshakes = self.handshakes(conn.direction).borrow_mut();
        if handshakes.len() >= self.shared.config.max_pending_handshakes
            && let Some(oldest) = handshakes.pop_front()
        {
            self.shed(&oldest);
        }
        handshakes.push_back(Rc::clone(conn));
        HandshakeSlot { registry: Rc::clone(self), conn: Rc::clone(conn) }
    }

    /// Stops the older half of those that are in a handshake; of one, none.
    pub fn shed_handshakes(&self) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            let mut handshakes = self.handshakes(direction).borrow_mut();
            let half = handshakes.len() / 2;
            handshakes.drain(..half).for_each(|oldest| self.shed(&oldest));
        }
    }

    fn shed(&self, conn: &Conn) {
        self.shared.metrics.handshake(conn.direction, "shed");
        conn.stop(CloseReason::HandshakeShed);
    }

    fn handshakes(&self, direction: Direction) -> &RefCell<VecDeque<Rc<Conn>>> {
        match direction {
            Direction::Inbound => &self.inbound_handshakes,
            Direction::Outbound => &self.outbound_handshakes,
        }
    }

    /// Judges every connection by the policy and the addresses that are published now, and
    /// stops those that are denied. The others are known by their names of now, too.
    pub fn rejudge(&self) {
        let Some(policy) = self.shared.published.policy.load_full() else { return };
        let hosts = self.shared.published.hosts.load();
        // Few have an open connection out to ask for.
        let names = LazyCell::new(|| hosts.by_address());
        for conn in self.snapshot() {
            match conn.denied_by(&policy, &hosts) {
                None => conn.add_names(|ip| names.get(&ip)),
                Some(rule) if conn.stop(CloseReason::PolicyChanged) => {
                    self.shared.metrics.terminated(&rule);
                    conn.set_detail(format!("the policy denies it now: {rule}"));
                }
                Some(_) => {}
            }
        }
    }

    /// Stops every connection whose peer is revoked by the lists that are published now.
    /// Nothing else of a certificate ends an open connection.
    pub fn end_revoked(&self) {
        let Some(generation) = self.shared.published.tls.load_full() else { return };
        if generation.revocation_lists().is_empty() {
            return;
        }
        // The connections of a peer share its verification; to judge it takes milliseconds where
        // the lists are long, and nothing else runs meanwhile.
        let mut judged = HashMap::new();
        for conn in self.snapshot() {
            let Some(peer) = conn.peer() else { continue };
            let verdict = judged.entry(peer.shared());
            if let Some(refusal) = verdict.or_insert_with(|| generation.revocation_of(&peer))
                && conn.stop(CloseReason::Revoked)
            {
                conn.set_detail(refusal.to_string());
            }
        }
    }

    /// Whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.conns.borrow().is_empty()
    }

    /// Stops every connection.
    pub fn stop_all(&self, reason: CloseReason) {
        for conn in self.snapshot() {
            conn.stop(reason);
        }
    }

    /// Brings the byte metrics up to date for connections that stay open for long.
    pub fn flush_bytes(&self) {
        for conn in self.conns.borrow().values() {
            conn.flush_bytes();
        }
    }

    /// For the admin endpoint.
    pub fn to_json(&self) -> Vec<Value> {
        let hosts = self.shared.published.hosts.load();
        self.conns.borrow().values().map(|c| c.to_json(&hosts)).collect()
    }

    fn snapshot(&self) -> Vec<Rc<Conn>> {
        self.conns.borrow().values().map(Rc::clone).collect()
    }

    fn remove(&self, conn: &Conn, reason: CloseReason) {
        self.conns.borrow_mut().remove(&conn.id);
        conn.flush_bytes();
        let shared = &self.shared;
        // Whoever sees that it is open no more finds its line, and then its place in the counters.
        conn.with_record(reason, |record| shared.access_log.write(record));
        if reason == CloseReason::Panic {
            shared.metrics.panics.inc();
        }
        shared.metrics.connection_closed(conn.direction, reason);
        if let Some(load) = shared.loads.get(self.worker) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
        shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends the registration when it is dropped, whatever the way out: gauges count
/// down and the access log has its line for a cancelled or panicking task too.
#[derive(Debug)]
pub struct Guard {
    /// The connection.
    pub conn: Rc<Conn>,
    registry: Rc<Registry>,
    reason: Cell<Option<CloseReason>>,
}

impl Guard {
    /// The connection ended with `reason`.
    pub fn end(self, reason: CloseReason) {
        self.reason.set(Some(reason));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let reason = self.reason.get().unwrap_or(if std::thread::panicking() {
            CloseReason::Panic
        } else {
            CloseReason::Shutdown
        });
        self.registry.remove(&self.conn, reason);
    }
}

/// A handshake under way.
#[derive(Debug)]
pub struct HandshakeSlot {
    registry: Rc<Registry>,
    conn: Rc<Conn>,
}

impl Drop for HandshakeSlot {
    fn drop(&mut self) {
        let handshakes = self.registry.handshakes(self.conn.direction);
        handshakes.borrow_mut().retain(|c| c.id != self.conn.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    use crate::live::testing::shared;

    #[test]
    fn a_connection_goes_to_the_worker_with_clearly_fewer() {
        let shared = shared(&[]);
        let place = |mine, other| {
            for (load, value) in shared.loads.iter().zip([mine, other]) {
                load.store(value, Ordering::Relaxed);
            }
            shared.better_placed(0)
        };
        for (mine, other, placed) in [
            (0, 0, None),
            (1, 0, None),
            (2, 0, Some(1)),
            (0, 9, None),
            (16, 14, None),
            (17, 14, Some(1)),
            (1000, 940, None),
            (1000, 900, Some(1)),
        ] {
            assert_eq!(place(mine, other), placed, "{mine} and {other}");
        }
    }

    #[tokio::test]
    async fn of_handshakes_the_older_half_is_shed_in_either_direction() {
        let shared = shared(&[]);
        let registry = Registry::new(Arc::clone(&shared), 0);
        let source = ClientAddr("10.0.0.1:1".parse().unwrap());
        let guards: Vec<_> = [Direction::Inbound; 5]
            .into_iter()
            .chain([Direction::Outbound; 2])
            .map(|direction| registry.register(direction, source))
            .collect();
        let slots: Vec<_> = guards.iter().map(|it| registry.begin_handshake(&it.conn)).collect();
        registry.shed_handshakes();
        let stopped: Vec<_> = guards.iter().map(|it| it.conn.stop_reason().is_some()).collect();
        assert_eq!(stopped, [true, true, false, false, false, true, false]);
        drop(slots);
        registry.shed_handshakes();
        let stopped = guards.iter().filter(|it| it.conn.stop_reason().is_some()).count();
        assert_eq!(stopped, 3, "who is done is not touched");
    }

    #[tokio::test]
    async fn a_panic_ends_one_connection_and_is_counted() {
        let shared = shared(&[]);
        let registry = Registry::new(Arc::clone(&shared), 0);
        let source = ClientAddr("10.0.0.1:1".parse().unwrap());
        let other = registry.register(Direction::Inbound, source);
        let panicking = registry.register(Direction::Inbound, source);
        let task = async {
            let task = async move {
                let _guard = panicking;
                panic!("as a bug would");
            };
            tokio::task::spawn_local(task).await
        };
        assert!(LocalSet::new().run_until(task).await.unwrap_err().is_panic());
        assert_eq!(shared.metrics.panics.get(), 1);
        assert_eq!(shared.open_connections(), 1, "the other stays");
        other.end(CloseReason::Closed);
        assert!(registry.is_empty());
        assert_eq!(shared.metrics.panics.get(), 1);
        assert_eq!(shared.open_connections(), 0);
    }
}
