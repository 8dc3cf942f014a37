//! Servers that refuse a ClientHello for the protocols it offers, as nginx does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a server is remembered. Whoever takes its place is offered the tunnel again after
/// that, or once a handshake fails.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The most servers that are remembered: one that is forgotten costs one more dial.
const CAPACITY: usize = 1024;

/// The addresses of such servers, with the time at which each refused.
#[derive(Debug, Default)]
pub struct WithoutAlpn(RefCell<HashMap<SocketAddr, Instant>>);

impl WithoutAlpn {
    /// Whether nothing is to be offered at `server`.
    pub fn contains(&self, server: SocketAddr, now: Instant) -> bool {
        let servers = self.0.borrow();
        servers.get(&server).is_some_and(|since| now.duration_since(*since) < REMEMBERED)
    }

    /// Remembers that `server` refuses.
    pub fn insert(&self, server: SocketAddr, now: Instant) {
        let mut servers = self.0.borrow_mut();
        if servers.len() >= CAPACITY {
            servers.retain(|_, since| now.duration_since(*since) < REMEMBERED);
        }
        if servers.len() < CAPACITY {
            servers.insert(server, now);
        }
    }

    /// Forgets `server`.
    pub fn remove(&self, server: SocketAddr) {
        self.0.borrow_mut().remove(&server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_remembered_for_a_while_and_only_so_many_are() {
        let (servers, now) = (WithoutAlpn::default(), Instant::now());
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        servers.insert(at(1), now);
        assert!(servers.contains(at(1), now + REMEMBERED - Duration::from_millis(1)));
        assert!(!servers.contains(at(1), now + REMEMBERED));
        assert!(!servers.contains(at(2), now));
        servers.remove(at(1));
        assert!(!servers.contains(at(1), now));
        for port in 0..3000 {
            servers.insert(at(port), now);
        }
        assert_eq!(servers.0.borrow().len(), CAPACITY);
        servers.insert(at(9999), now + REMEMBERED);
        assert!(servers.contains(at(9999), now + REMEMBERED), "the old ones make room");
        assert_eq!(servers.0.borrow().len(), 1);
    }
}
