//! Our own connections to servers while their handshakes are under way, so that one which comes
//! back to us is known.
//!
//! The redirect rules let the proxy's user pass, but conntrack asks them for new connections only.
//! While it remembers a connection of the app's that we have reset (`CLOSE`, ten seconds), a SYN
//! of ours with the same addresses and ports belongs to that one, and is redirected to us as that
//! one was. We would then speak TLS to ourselves, and to the server inside of it.
//! [`SourcePorts`](crate::net::SourcePorts) keep this rare; it is left for where no ports are ours.
//!
//! Addresses and ports alone do not tell. Where an app dials two servers from one port, the kernel
//! gives the second redirected connection another source port, any, which may be one that we dial
//! from. What we send first is ours alone: a ClientHello has 32 random bytes (RFC 8446, 4.1.2).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::net;

/// Local and remote address.
type Pair = (SocketAddr, SocketAddr);

type Table = HashMap<Pair, Arc<Dialled>>;

/// As much of a ClientHello as its random bytes take: behind the headers of the record and of the
/// message, and two bytes of version.
const HELLO: usize = 5 + 4 + 2 + 32;

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
    /// whoever [asks](Self::like) for a connection to this server waits until it is noted.
    ///
    /// # Errors
    /// Those of `connect`.
    pub fn begin(
        self: &Arc<Self>,
        remote: SocketAddr,
        connect: impl FnOnce() -> io::Result<SocketAddr>,
    ) -> io::Result<Dial> {
        let dialled = Arc::new(Dialled::default());
        let mut table = self.lock(remote);
        let pair = (net::canonical(connect()?), remote);
        table.insert(pair, Arc::clone(&dialled));
        Ok(Dial { dials: Arc::clone(self), pair, dialled })
    }

    /// The one of ours that a connection which was redirected to us may be, by where it is from
    /// and was meant to go.
    pub fn like(&self, source: SocketAddr, destination: SocketAddr) -> Option<Arc<Dialled>> {
        self.lock(destination).get(&(source, destination)).cloned()
    }

    // Each statement leaves the map whole.
    fn lock(&self, remote: SocketAddr) -> MutexGuard<'_, Table> {
        let shard = self.hasher.hash_one(remote) % SHARDS as u64;
        let [first, ..] = &self.shards;
        let shard = usize::try_from(shard).ok().and_then(|shard| self.shards.get(shard));
        shard.unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a connection that is being made, for whom it may have come back to.
#[derive(Debug, Default)]
pub struct Dialled {
    hello: OnceLock<[u8; HELLO]>,
    came_back: AtomicBool,
    over: AtomicBool,
}

impl Dialled {
    /// Whether this connection is the one that sent `first` before all else; `None` while these
    /// are too few bytes to tell. When it is, whoever makes it is told.
    pub fn has_sent(&self, first: &[u8]) -> Option<bool> {
        // It is noted before it is sent.
        let Some(hello) = self.hello.get() else {
            return if first.is_empty() { None } else { Some(false) };
        };
        let first = first.get(..HELLO).unwrap_or(first);
        if !hello.starts_with(first) {
            return Some(false);
        }
        if first.len() < HELLO {
            return None;
        }
        self.came_back.store(true, Ordering::Release);
        Some(true)
    }

    /// Whether it is made, or was given up.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// One connection that is being made.
#[derive(Debug)]
pub struct Dial {
    dials: Arc<Dials>,
    pair: Pair,
    dialled: Arc<Dialled>,
}

impl Dial {
    /// Notes the ClientHello, which is about to be sent.
    pub fn says(&self, hello: &[u8]) {
        if let Some(first) = hello.first_chunk() {
            // One connection has one: an answer to HelloRetryRequest repeats these bytes.
            let _ = self.dialled.hello.set(*first);
        }
    }

    /// Whether it came back to us instead of reaching its server.
    pub fn has_come_back(&self) -> bool {
        self.dialled.came_back.load(Ordering::Acquire)
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        let mut table = self.dials.lock(self.pair.1);
        // A connection that was reset lets go of its port, and the next one may have got it.
        if let Entry::Occupied(entry) = table.entry(self.pair)
            && Arc::ptr_eq(entry.get(), &self.dialled)
        {
            entry.remove();
        }
        self.dialled.over.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_very_connection_is_known_and_only_while_it_is_made() {
        let dials = Arc::new(Dials::default());
        let (local, remote) = (at("10.0.0.1:40000"), at("10.0.0.2:443"));
        let dial = dials.begin(remote, || Ok(local)).unwrap();
        assert!(dials.like(local, at("10.0.0.3:443")).is_none(), "another server");
        assert!(dials.like(at("10.0.0.1:40001"), remote).is_none(), "another port of ours");
        let like = dials.like(local, remote).unwrap();
        assert!(!like.is_over());
        drop(dial);
        assert!(dials.like(local, remote).is_none() && like.is_over());
        assert!(dials.begin(remote, || Err(io::ErrorKind::AddrInUse.into())).is_err());
    }

    #[test]
    fn it_is_known_by_what_it_has_sent() {
        let dials = Arc::new(Dials::default());
        let (local, remote) = (at("10.0.0.1:40000"), at("10.0.0.2:443"));
        let dial = dials.begin(remote, || Ok(local)).unwrap();
        let like = dials.like(local, remote).unwrap();
        assert_eq!(like.has_sent(b""), None);
        assert_eq!(like.has_sent(&[22, 3]), Some(false), "it has sent nothing");
        let hello: Vec<u8> = (0..200).collect();
        dial.says(&hello);
        for length in 0..HELLO {
            assert_eq!(like.has_sent(&hello[..length]), None, "{length}");
        }
        let mut other = hello.clone();
        other[HELLO - 1] += 1;
        assert_eq!(like.has_sent(&other), Some(false), "another one's random bytes");
        assert_eq!(like.has_sent(b"GET / HTTP/1.1"), Some(false));
        assert!(!dial.has_come_back());
        assert_eq!(like.has_sent(&hello), Some(true));
        assert!(dial.has_come_back());
    }

    #[test]
    fn the_end_of_a_connection_takes_nothing_from_the_next_one_with_the_same_port() {
        let dials = Arc::new(Dials::default());
        let (local, remote) = (at("10.0.0.1:40000"), at("10.0.0.2:443"));
        let before = dials.begin(remote, || Ok(local)).unwrap();
        let first = dials.like(local, remote).unwrap();
        let dial = dials.begin(remote, || Ok(local)).unwrap();
        drop(before);
        let second = dials.like(local, remote).unwrap();
        assert!(first.is_over() && !second.is_over());
        drop(dial);
        assert!(dials.lock(remote).is_empty());
    }

    /// The SYN is on its way and has come back, and whoever sent it was not heard of again yet.
    #[test]
    fn whoever_asks_too_early_waits() {
        let dials = Arc::new(Dials::default());
        let (local, remote) = (at("10.0.0.1:40000"), at("10.0.0.2:443"));
        let (asking, asked) = std::sync::mpsc::channel();
        let dial = dials.begin(remote, || {
            let dials = Arc::clone(&dials);
            let other = std::thread::spawn(move || {
                asking.send(None).unwrap();
                asking.send(Some(dials.like(local, remote).is_some())).unwrap();
            });
            assert_eq!(asked.recv().unwrap(), None, "it is about to ask");
            // However long this takes, there is no answer before it is known.
            std::thread::park_timeout(std::time::Duration::from_millis(50));
            assert!(asked.try_recv().is_err());
            drop(other);
            Ok(local)
        });
        assert_eq!(asked.recv().unwrap(), Some(true));
        drop(dial);
    }
}
