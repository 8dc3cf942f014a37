//! One generation of certificates, with all that a handshake needs, built once.
//!
//! A generation never changes. When the files do, the next one is built beside it and published in
//! its place; connections keep the one that they began with.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::dates::{seconds, system_time};
use crate::expiry::{Lifetime, Subject};
use crate::leaf::{self, Leaf};
use crate::refusal::PeerRefusal;
use crate::revocation::{RevocationLists, RevokedEntry};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::verify::{SvidVerifier, TrustBundles, VerifiedPeer, check_size};

/// The ALPN under which one TLS connection is one connection of the application, as Istio's
/// sidecars name it.
pub const ALPN_MESH: &[u8] = b"istio";

/// The ALPN of the tunnel, in which one connection of the application follows another.
pub const ALPN_TUNNEL: &[u8] = b"pillion/1";

/// What a mesh client offers and a mesh server accepts, the preferred first.
pub const ALPN_PROTOCOLS: &[&[u8]] = &[ALPN_TUNNEL, ALPN_MESH];

/// What a client offers by ALPN (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offer {
    /// [`ALPN_PROTOCOLS`].
    Tunnel,
    /// [`ALPN_MESH`]: one TLS connection is one connection of the application.
    Single,
    /// No protocol, which means the same: for a server that refuses those it does not know.
    Nothing,
}

/// Which key exchange groups are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeyExchange {
    /// X25519MLKEM768 first, then X25519 and P-256.
    #[default]
    Auto,
    /// X25519 and P-256 alone: a smaller ClientHello, for peers or paths that choke on a large one.
    Classic,
}

/// What peers will make of our own certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OwnState {
    /// They will take it, as far as we can tell.
    Good,
    /// It isn't valid yet; often a clock is wrong.
    NotYetValid,
    /// It has expired, or an intermediate in our chain without which no path is left.
    Expired,
    /// It, or one of its issuers, is in a revocation list.
    Revoked,
}

/// Why a generation can't be built from certificates that could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// The private key isn't the leaf's.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The private key is of a kind that isn't taken.
    #[error("the private key can't be used: {0}; use ECDSA P-256, P-384, Ed25519 or RSA 2048")]
    UnusableKey(String),
    /// Our own leaf breaks a rule that we hold peers to.
    #[error("our own certificate is no X.509-SVID: {0}")]
    OwnSvid(PeerRefusal),
    /// TLS can't be set up; a fault of this build, not of the files.
    #[error("TLS can't be set up: {0}")]
    Tls(String),
}

/// An own identity, the bundles to check peers with, and the TLS configurations made of them.
pub struct TlsGeneration {
    own: Leaf,
    /// The last second at which our chain is good; the leaf's, or of an intermediate before it.
    own_end: i64,
    own_revocation: Option<RevokedEntry>,
    identity: Arc<CertifiedKey>,
    key_exchange: KeyExchange,
    verifier: Arc<SvidVerifier>,
    server_mesh: Arc<ServerConfig>,
    server_plain: Arc<ServerConfig>,
    client_tunnel: Arc<ClientConfig>,
    client_mesh: Arc<ClientConfig>,
    client_plain: Arc<ClientConfig>,
}

impl TlsGeneration {
    /// Builds everything from our chain (leaf first), its private key and the trust bundles.
    ///
    /// Of the key, aws-lc keeps its own form of it, and wipes that when the last user of the
    /// generation is gone; to wipe `key` is up to the caller.
    ///
    /// The leaf is held to the rules for a peer's, but for its dates and issuer: an expired
    /// certificate loads, see [`TlsGeneration::own_state`].
    ///
    /// # Errors
    /// [`GenerationError`]; an empty chain is `OwnSvid(NoCertificate)`.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
        bundles: TrustBundles,
        key_exchange: KeyExchange,
    ) -> Result<Self, GenerationError> {
        Self::next(None, chain, key, bundles, key_exchange)
    }

    /// The same after `before`, whose form of the key it has where the certificate is the same: an
    /// open connection keeps the generation that it began with, and a key is to be in memory once.
    pub(crate) fn next(
        before: Option<&Self>,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
        bundles: TrustBundles,
        key_exchange: KeyExchange,
    ) -> Result<Self, GenerationError> {
        let end_entity =
            chain.first().ok_or(GenerationError::OwnSvid(PeerRefusal::NoCertificate))?;
        check_size(&chain).map_err(GenerationError::OwnSvid)?;
        let own = leaf::check(end_entity).map_err(GenerationError::OwnSvid)?;
        let identity = certified_key(chain, key)?;
        // A certificate has one key, and this one is it.
        let same = before.filter(|before| before.identity.cert == identity.cert);
        let identity = match same {
            Some(before) => Arc::clone(&before.identity),
            None => Arc::new(identity),
        };
        Self::assemble(own, identity, bundles, key_exchange)
    }

    /// The same, with other revocation lists; `None` where they are the ones that it has.
    pub(crate) fn with_newer_lists(&self, lists: RevocationLists) -> Option<Self> {
        let bundles = self.verifier.bundles();
        if bundles.revocation_lists().are(&lists) {
            return None;
        }
        let bundles = bundles.clone().with_revocation_lists(lists);
        let identity = Arc::clone(&self.identity);
        // It was built from the same identity before.
        Self::assemble(self.own.clone(), identity, bundles, self.key_exchange).ok()
    }

    fn assemble(
        own: Leaf,
        identity: Arc<CertifiedKey>,
        bundles: TrustBundles,
        key_exchange: KeyExchange,
    ) -> Result<Self, GenerationError> {
        let verifier = Arc::new(SvidVerifier::new(bundles));
        let own_revocation = verifier.own_revocation(&own, &identity.cert);
        let own_end = verifier.own_end(&own, &identity.cert);
        let provider = Arc::new(provider(key_exchange));
        let tls = |e: rustls::Error| GenerationError::Tls(e.to_string());
        let server = |alpn: &[&[u8]]| server_config(&provider, &verifier, &identity, alpn);
        let client = |alpn: &[&[u8]]| client_config(&provider, &verifier, &identity, alpn);
        Ok(Self {
            own,
            own_end,
            own_revocation,
            server_mesh: Arc::new(server(ALPN_PROTOCOLS).map_err(tls)?),
            server_plain: Arc::new(server(&[]).map_err(tls)?),
            client_tunnel: Arc::new(client(ALPN_PROTOCOLS).map_err(tls)?),
            client_mesh: Arc::new(client(&[ALPN_MESH]).map_err(tls)?),
            client_plain: Arc::new(client(&[]).map_err(tls)?),
            identity,
            key_exchange,
            verifier,
        })
    }

    /// Our own identity.
    #[must_use]
    pub fn own_id(&self) -> &SpiffeId {
        &self.own.id
    }

    /// Our own trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        self.own.id.trust_domain()
    }

    /// The serial number of our leaf in lower-case hex.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.own.serial
    }

    /// The beginning of our leaf's validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        system_time(self.own.not_before)
    }

    /// The end of our chain's validity: the leaf's, or that of an intermediate that ends before
    /// it and without which our bundle has no path.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        system_time(self.own_end)
    }

    /// What peers will make of our own certificate; but for [`OwnState::Good`] whoever holds this
    /// isn't ready, because they will refuse it.
    #[must_use]
    pub fn own_state(&self, now: UnixTime) -> OwnState {
        if self.own_revocation.is_some() {
            OwnState::Revoked
        } else if seconds(now) > self.own_end {
            OwnState::Expired
        } else if seconds(now) < self.own.not_before {
            OwnState::NotYetValid
        } else {
            OwnState::Good
        }
    }

    /// The entry of a revocation list that revokes a certificate of our own chain.
    #[must_use]
    pub fn own_revocation(&self) -> Option<&RevokedEntry> {
        self.own_revocation.as_ref()
    }

    /// Whether a peer, verified by this generation or an earlier one, is revoked by the lists of
    /// this one; see [`SvidVerifier::revocation_of`].
    #[must_use]
    pub fn revocation_of(&self, peer: &VerifiedPeer) -> Option<PeerRefusal> {
        self.verifier.revocation_of(peer, UnixTime::now())
    }

    /// The revocation lists that peers are held against.
    #[must_use]
    pub fn revocation_lists(&self) -> &RevocationLists {
        self.verifier.bundles().revocation_lists()
    }

    /// Everything that ends: our own certificate, the authority of each trusted domain that counts
    /// at the time `now` (see [`TrustBundles::lifetimes`]), each revocation list.
    #[must_use]
    pub fn lifetimes(&self, now: UnixTime) -> Vec<Lifetime> {
        let own =
            Lifetime { subject: Subject::OwnSvid, from: self.own.not_before, until: self.own_end };
        let bundles = self.verifier.bundles();
        let mut all = vec![own];
        all.extend(bundles.lifetimes(now));
        all.extend(bundles.revocation_lists().lifetimes().cloned());
        all
    }

    /// The server's side: TLS 1.3, a client certificate is mandatory, no resumption.
    ///
    /// With `alpn`, a client that offers protocols must offer one of [`ALPN_PROTOCOLS`] (one that
    /// offers none is served); without, whatever it offers is left unanswered.
    #[must_use]
    pub fn server_config(&self, alpn: bool) -> Arc<ServerConfig> {
        Arc::clone(if alpn { &self.server_mesh } else { &self.server_plain })
    }

    /// The client's side: TLS 1.3, our certificate, no SNI, no resumption. Connect with
    /// [`TlsGeneration::server_name`].
    #[must_use]
    pub fn client_config(&self, offer: Offer) -> Arc<ClientConfig> {
        Arc::clone(match offer {
            Offer::Tunnel => &self.client_tunnel,
            Offer::Single => &self.client_mesh,
            Offer::Nothing => &self.client_plain,
        })
    }

    /// The name to hand to a TLS client where its interface wants one. It is never sent and never
    /// compared: peers are known by their SPIFFE identity.
    #[must_use]
    pub fn server_name() -> ServerName<'static> {
        ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into())
    }

    /// The verifier of peers, for a check without a handshake.
    #[must_use]
    pub fn verifier(&self) -> &Arc<SvidVerifier> {
        &self.verifier
    }

    /// The identity of a peer whose handshake has just finished under this generation.
    ///
    /// The verifier remembers the chains that it verified, by their SHA-256; one that isn't
    /// remembered (or has expired since) gets the full check again, so there is no way to a
    /// [`VerifiedPeer`] without one.
    ///
    /// # Errors
    /// The reason to refuse the chain; `None` and an empty one are [`PeerRefusal::NoCertificate`].
    pub fn verified_peer(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<VerifiedPeer, PeerRefusal> {
        self.verifier.verified_peer(chain, UnixTime::now())
    }
}

impl fmt::Debug for TlsGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsGeneration")
            .field("own_id", &self.own.id)
            .field("serial", &self.own.serial)
            .finish_non_exhaustive()
    }
}

/// Our choice and order of algorithms; the signature algorithms are the library's.
fn provider(key_exchange: KeyExchange) -> CryptoProvider {
    let groups: Vec<&'static dyn SupportedKxGroup> = match key_exchange {
        KeyExchange::Auto => {
            vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1]
        }
        KeyExchange::Classic => vec![kx_group::X25519, kx_group::SECP256R1],
    };
    CryptoProvider { cipher_suites: cipher_suites(), kx_groups: groups, ..default_provider() }
}

/// AES-128 first where the CPU computes AES itself, ChaCha20 first where it doesn't.
fn cipher_suites() -> Vec<SupportedCipherSuite> {
    #[cfg(target_arch = "x86_64")]
    let aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let aes = false;
    let mut suites =
        vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384];
    suites.insert(if aes { 2 } else { 0 }, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256);
    suites
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'_>,
) -> Result<CertifiedKey, GenerationError> {
    // By reference: the provider's own loader takes a copy of the DER and drops it unwiped.
    let signing =
        any_supported_type(key).map_err(|error| GenerationError::UnusableKey(error.to_string()))?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(GenerationError::KeyMismatch),
        // What webpki finds of the leaf, which it has to read for this.
        Err(rustls::Error::InvalidCertificate(fault)) => {
            Err(GenerationError::OwnSvid(PeerRefusal::Malformed(fault.to_string())))
        }
        Err(other) => Err(GenerationError::UnusableKey(other.to_string())),
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    verifier: &Arc<SvidVerifier>,
    identity: &Arc<CertifiedKey>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(verifier) as _)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity))));
    // A resumed session would bring back a peer without a look at its certificate's dates.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // For a record layer of the caller's own.
    config.enable_secret_extraction = true;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    verifier: &Arc<SvidVerifier>,
    identity: &Arc<CertifiedKey>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(verifier) as _)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity))));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.enable_secret_extraction = true;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;
    use rustls_pki_types::PrivatePkcs8KeyDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn what_is_the_same_in_the_next_generation_is_in_memory_once() {
        let hour = std::time::Duration::from_secs(3600);
        let domain: TrustDomain = "example.org".parse().unwrap();
        let ca = crate::issue::make_ca(&domain, hour).unwrap();
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let lists = |lifetime| {
            let pem = crate::revoke::revocation_list(&ca, None, &[], None, lifetime).unwrap();
            RevocationLists::from_file(pem.as_bytes()).unwrap()
        };
        let pem = crate::revoke::revocation_list(&ca, None, &[], None, hour).unwrap();
        let same = || RevocationLists::from_file(pem.as_bytes()).unwrap();
        let issued =
            || crate::issue::issue(&ca, &"spiffe://example.org/a".parse().unwrap(), hour / 2);
        let next = |before: Option<&TlsGeneration>, svid: &crate::issue::Issued, lists| {
            let mut bundles = TrustBundles::new();
            bundles.add(domain.clone(), &[der(&ca.cert_pem)]).unwrap();
            let known = before.map(|before| before.verifier.bundles());
            let bundles = bundles.with_lists_or_those_of(lists, known);
            let key = PrivateKeyDer::from_pem_slice(svid.key_pem.as_bytes()).unwrap();
            let chain = vec![der(&svid.chain_pem)];
            TlsGeneration::next(before, chain, &key, bundles, KeyExchange::Auto).unwrap()
        };
        let (one, two) = (issued().unwrap(), issued().unwrap());
        let first = next(None, &one, same());
        let is_shared = |a: &TlsGeneration, b: &TlsGeneration| {
            let lists = std::ptr::eq(a.revocation_lists(), b.revocation_lists());
            (Arc::ptr_eq(&a.identity, &b.identity), lists)
        };
        assert_eq!(is_shared(&first, &next(Some(&first), &one, same())), (true, true));
        assert_eq!(is_shared(&first, &next(Some(&first), &two, same())), (false, true));
        assert_eq!(is_shared(&first, &next(Some(&first), &one, lists(hour * 2))), (true, false));
        assert!(first.with_newer_lists(same()).is_none());
        let newer = first.with_newer_lists(lists(hour * 2)).unwrap();
        assert_eq!(is_shared(&first, &newer), (true, false));
    }

    #[test]
    fn a_leaf_that_the_library_cannot_read_is_not_taken_for_a_fault_of_the_key() {
        let key = KeyPair::generate().unwrap().serialize_der();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let error = certified_key(vec![CertificateDer::from(vec![0x30, 0])], &key).unwrap_err();
        assert!(matches!(&error, GenerationError::OwnSvid(PeerRefusal::Malformed(_))), "{error:?}");
    }
}
