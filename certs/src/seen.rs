//! The peers that a verifier has verified lately.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::verify::VerifiedPeer;

/// How many chains are remembered. A miss costs one more verification, nothing else.
const CAPACITY: usize = 1024;

/// Chain hash to verified peer; when full, the oldest goes. It is locked twice a handshake, for a
/// map access each time, and never while a certificate is checked.
#[derive(Default)]
pub(crate) struct SeenPeers(Mutex<Table>);

#[derive(Default)]
struct Table {
    peers: HashMap<[u8; 32], VerifiedPeer>,
    order: VecDeque<[u8; 32]>,
}

impl SeenPeers {
    pub(crate) fn get(&self, key: &[u8; 32]) -> Option<VerifiedPeer> {
        self.lock().peers.get(key).cloned()
    }

    /// Remembers a peer, and gives back the one that is remembered: all connections of a
    /// peer share one. One that has ended since it was verified gives way to what was found now.
    pub(crate) fn insert(&self, key: [u8; 32], peer: VerifiedPeer) -> VerifiedPeer {
        let mut table = self.lock();
        let same = |known: &&VerifiedPeer| **known == peer && known.is_valid_at(peer.verified_at());
        if let Some(known) = table.peers.get(&key).filter(same) {
            return known.clone();
        }
        let shared = peer.clone();
        if table.peers.insert(key, peer).is_none() {
            table.order.push_back(key);
        }
        if table.order.len() > CAPACITY
            && let Some(oldest) = table.order.pop_front()
        {
            table.peers.remove(&oldest);
        }
        shared
    }

    // The table is whole after every statement above, so a panic elsewhere leaves nothing torn.
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        let table = self.lock();
        (table.peers.len(), table.order.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue;
    use crate::verify::{SvidVerifier, TrustBundles};
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, UnixTime};
    use std::time::Duration;

    #[test]
    fn it_stays_bounded_and_forgets_the_oldest() {
        let domain: crate::spiffe::TrustDomain = "d".parse().unwrap();
        let ca = issue::make_ca(&domain, Duration::from_secs(60)).unwrap();
        let svid =
            issue::issue(&ca, &"spiffe://d/a".parse().unwrap(), Duration::from_secs(30)).unwrap();
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.add(domain, &[der(&ca.cert_pem)]).unwrap();
        let verifier = SvidVerifier::new(bundles);
        let peer = verifier.verify(&[der(&svid.chain_pem)], UnixTime::now()).unwrap();

        let table = SeenPeers::default();
        let key = |number: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            key
        };
        for number in 0..3 * CAPACITY {
            assert_eq!(table.insert(key(number), peer.clone()), peer);
            assert_eq!(table.insert(key(number), peer.clone()), peer);
        }
        assert_eq!(table.len(), (CAPACITY, CAPACITY));
        assert!(table.get(&key(0)).is_none());
        let last = key(3 * CAPACITY - 1);
        assert_eq!(table.get(&last), Some(peer.clone()));

        // The same chain, read under other bundles: what was verified last is what counts.
        let svid =
            issue::issue(&ca, &"spiffe://d/b".parse().unwrap(), Duration::from_secs(30)).unwrap();
        let other = verifier.verify(&[der(&svid.chain_pem)], UnixTime::now()).unwrap();
        assert_ne!(other, peer);
        assert_eq!(table.insert(last, other.clone()), other);
        assert_eq!(table.get(&last), Some(other.clone()));
        assert_eq!(table.get(&last).map(|it| it.shared()), Some(other.shared()));
        assert_ne!(other.shared(), peer.shared());
    }
}
