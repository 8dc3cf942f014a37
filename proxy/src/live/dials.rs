//! Our own connections to servers while their handshakes are under way, so that one which comes
//! back to us is known.
//!
//! The redirect rules let the proxy's user pass, but conntrack asks them for new connections only.
//! While it remembers a connection of the app's that we have reset (`CLOSE`, ten seconds), a SYN
//! of ours with the same addresses and ports belongs to that one, and is redirected to us as that
//! one was. We would then speak TLS to ourselves, and to the server inside of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::net;

/// Local and remote address.
type Pair = (SocketAddr, SocketAddr);

type Table = HashMap<Pair, Arc<AtomicBool>>;

/// Connections to different servers seldom wait for each other.
const SHARDS: usize = 16;

/// The connections that are being made.
#[derive(Debug, Default)]
pub struct Dials {
    shards: [Mutex<Table>; SHARDS],
    hasher: RandomState,
}

impl Dials {
    /// Sends the SYN of a connection, and remembers the connection until the result is dropped.
    ///
    /// `connect` sends it, must not wait for the answer, and returns our own address. It is not
    /// known before, and another worker may accept what came back before this thread goes on: so
    /// whoever [asks](Self::came_back) for a connection to this server waits until it is noted.
    ///
    /// # Errors
    /// Those of `connect`.
    pub fn begin(
        self: &Arc<Self>,
        remote: SocketAddr,
        connect: impl FnOnce() -> io::Result<SocketAddr>,
    ) -> io::Result<Dial> {
        let came_back = Arc::new(AtomicBool::new(false));
        let mut table = self.lock(remote);
        let pair = (net::canonical(connect()?), remote);
        table.insert(pair, Arc::clone(&came_back));
        Ok(Dial { dials: Arc::clone(self), pair, came_back })
    }

    /// Whether a connection that was redirected to us, from `source` and meant for `destination`,
    /// is one of ours. Whoever makes it is told.
    pub fn came_back(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        let table = self.lock(destination);
        let Some(flag) = table.get(&(source, destination)) else { return false };
        flag.store(true, Ordering::Release);
        true
    }

    // Each statement leaves the map whole.
    fn lock(&self, remote: SocketAddr) -> MutexGuard<'_, Table> {
        let shard = self.hasher.hash_one(remote) % SHARDS as u64;
        let [first, ..] = &self.shards;
        let shard = usize::try_from(shard).ok().and_then(|shard| self.shards.get(shard));
        shard.unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut table = self.dials.lock(self.pair.1);
        // A connection that was reset lets go of its port, and the next one may have got it.
        if let Entry::Occupied(entry) = table.entry(self.pair)
            && Arc::ptr_eq(entry.get(), &self.came_back)
        {
            entry.remove();
        }
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
        let dial = dials.begin(remote, || Ok(local)).unwrap();
        assert!(!dials.came_back(local, at("10.0.0.3:443")), "another server");
        assert!(!dials.came_back(at("10.0.0.1:40001"), remote), "another port of ours");
        assert!(!dial.has_come_back());
        assert!(dials.came_back(local, remote) && dial.has_come_back());
        drop(dial);
        assert!(!dials.came_back(local, remote));
        assert!(dials.begin(remote, || Err(io::ErrorKind::AddrInUse.into())).is_err());
    }

    #[test]
    fn the_end_of_a_connection_takes_nothing_from_the_next_one_with_the_same_port() {
        let dials = Arc::new(Dials::default());
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (local, remote) = (at("10.0.0.1:40000"), at("10.0.0.2:443"));
        let mut dial = dials.begin(remote, || Ok(local)).unwrap();
        let first = Arc::clone(&dial.came_back);
        dial = dials.begin(remote, || Ok(local)).unwrap();
        assert!(dials.came_back(local, remote) && dial.has_come_back());
        assert!(!first.load(Ordering::Acquire), "that was the other one");
        drop(dial);
        assert!(dials.lock(remote).is_empty());
    }

    /// The SYN is on its way and has come back, and whoever sent it was not heard of again yet.
    #[test]
    fn whoever_asks_too_early_waits() {
        let dials = Arc::new(Dials::default());
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (local, remote) = (at("10.0.0.1:40000"), at("10.0.0.2:443"));
        let (asking, asked) = std::sync::mpsc::channel();
        let dial = dials.begin(remote, || {
            let dials = Arc::clone(&dials);
            let other = std::thread::spawn(move || {
                asking.send(None).unwrap();
                asking.send(Some(dials.came_back(local, remote))).unwrap();
            });
            assert_eq!(asked.recv().unwrap(), None, "it is about to ask");
            // However long this takes, there is no answer before it is known.
            std::thread::park_timeout(std::time::Duration::from_millis(50));
            assert!(asked.try_recv().is_err());
            drop(other);
            Ok(local)
        });
        assert_eq!(asked.recv().unwrap(), Some(true));
        assert!(dial.unwrap().has_come_back());
    }
}
