//! Our own connections to servers while their handshakes are under way, so that one which comes
//! back to us is known.
//!
//! The redirect rules let the proxy's user pass, but conntrack asks them for new connections only.
//! While it remembers a connection of the app's that we have reset (`CLOSE`, ten seconds), a SYN
//! of ours with the same addresses and ports belongs to that one, and is redirected to us as that
//! one was. We would then speak TLS to ourselves, and to the server inside of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Local and remote address.
type Pair = (SocketAddr, SocketAddr);

/// The connections that are being made.
#[derive(Debug, Default)]
pub struct Dials(Mutex<HashMap<Pair, Arc<AtomicBool>>>);

impl Dials {
    /// Remembers a connection of ours until the result is dropped.
    pub fn begin(self: &Arc<Self>, local: SocketAddr, remote: SocketAddr) -> Dial {
        let came_back = Arc::new(AtomicBool::new(false));
        let pair = (local, remote);
        self.lock().insert(pair, Arc::clone(&came_back));
        Dial { dials: Arc::clone(self), pair, came_back }
    }

    /// Whether a connection that was redirected to us, from `source` and meant for `destination`,
    /// is one of ours. Whoever makes it is told.
    pub fn came_back(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        let dials = self.lock();
        let Some(flag) = dials.get(&(source, destination)) else { return false };
        flag.store(true, Ordering::Release);
        true
    }

    // Each statement leaves the map whole.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Pair, Arc<AtomicBool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection that is being made.
#[derive(Debug)]
pub struct Dial {
    dials: Arc<Dials>,
    pair: Pair,
    came_back: Arc<AtomicBool>,
}

impl Dial {
    /// Whether it came back to us instead of reaching its server.
    pub fn has_come_back(&self) -> bool {
        self.came_back.load(Ordering::Acquire)
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        self.dials.lock().remove(&self.pair);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_connection_is_known_and_only_while_it_is_made() {
        let dials = Arc::new(Dials::default());
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (local, remote) = (at("10.0.0.1:40000"), at("10.0.0.2:443"));
        let dial = dials.begin(local, remote);
        assert!(!dials.came_back(local, at("10.0.0.3:443")), "another server");
        assert!(!dials.came_back(at("10.0.0.1:40001"), remote), "another port of ours");
        assert!(!dial.has_come_back());
        assert!(dials.came_back(local, remote) && dial.has_come_back());
        drop(dial);
        assert!(!dials.came_back(local, remote));
    }
}
