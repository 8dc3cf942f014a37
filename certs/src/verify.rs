//! The check of a peer's X.509-SVID, whole, in both directions of the handshake.
//!
//! A chain is judged in this order: its size, the leaf by the X509-SVID rules, then the path, from
//! the leaf to an authority in the bundle of the identity's own trust domain. No name of the
//! transport (SNI, DNS or IP SANs) has a part in it: an identity is a SPIFFE ID and nothing else.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;
use rustls::SignatureScheme;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::ExpirationPolicy;

use crate::bundles::Bundle;
pub use crate::bundles::{BundleError, TrustBundles};
use crate::dates::{seconds, system_time, unix_time};
use crate::leaf::{self, Leaf};
use crate::path::{self, PathCheck, PathError};
use crate::refusal::{LeafSummary, PeerRefusal};
use crate::revocation::{RevocationLists, RevokedEntry};
use crate::seen::SeenPeers;
use crate::spiffe::SpiffeId;

/// The most certificates that a peer's chain may have, the leaf included.
pub const MAX_CHAIN_CERTIFICATES: usize = 4;
/// The most DER bytes that a peer's chain may have.
pub const MAX_CHAIN_BYTES: usize = 16 * 1024;

/// A peer whose certificate passed the full check. Only [`SvidVerifier`] makes one.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifiedPeer(Arc<Peer>);

struct Peer {
    id: SpiffeId,
    serial: String,
    not_before: i64,
    not_after: i64,
    /// As it was verified, leaf first.
    chain: Vec<CertificateDer<'static>>,
    /// When and by what it was verified: a later revocation is judged by these, since the chain
    /// may have expired by then, and its authority have left the bundle.
    verified_at: UnixTime,
    bundle: Arc<Bundle>,
    /// The last second of the first to end of all that its verification stood on.
    until: i64,
}

impl PartialEq for Peer {
    // All but the circumstances of the check is in the chain.
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain
    }
}

impl Eq for Peer {}

impl VerifiedPeer {
    /// The peer's identity.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// The leaf's serial number in lower-case hex, without a prefix.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.0.serial
    }

    /// The beginning of the leaf's validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        system_time(self.0.not_before)
    }

    /// The end of the leaf's validity, the last second that still counts.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        system_time(self.0.not_after)
    }

    /// The same for all values that share one verification, and for no others that exist beside
    /// them.
    #[must_use]
    pub fn shared(&self) -> *const () {
        Arc::as_ptr(&self.0).cast()
    }

    pub(crate) fn verified_at(&self) -> UnixTime {
        self.0.verified_at
    }

    /// The chain that was verified, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// Whether the leaf is within its validity, and nothing that its verification stood on has
    /// ended since: no intermediate of the path, not its authority, no revocation list that the
    /// path was held against.
    #[must_use]
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        (self.0.not_before..=self.0.until).contains(&seconds(now))
    }
}

impl fmt::Debug for VerifiedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedPeer({}, serial {})", self.0.id, self.0.serial)
    }
}

/// Checks a peer's chain, for clients and servers alike. A certificate is mandatory.
pub struct SvidVerifier {
    bundles: TrustBundles,
    algorithms: WebPkiSupportedAlgorithms,
    seen: SeenPeers,
}

impl SvidVerifier {
    /// A verifier of the peers whose domains are in `bundles`.
    #[must_use]
    pub fn new(bundles: TrustBundles) -> Self {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        Self {
            bundles,
            algorithms: provider.signature_verification_algorithms,
            seen: SeenPeers::default(),
        }
    }

    /// The bundles it checks against.
    #[must_use]
    pub fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }

    /// The full check of a chain, leaf first, at the time `now`.
    ///
    /// # Errors
    /// The first rule that the chain breaks, in the order of [`PeerRefusal`]'s variants.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerRefusal> {
        let (end_entity, intermediates) = chain.split_first().ok_or(PeerRefusal::NoCertificate)?;
        check_size(chain)?;
        let leaf = leaf::check(end_entity)?;
        let summary = LeafSummary::new(&leaf.serial, Some(leaf.id.as_str()));
        let Some(bundle) = self.bundles.of(leaf.id.trust_domain()) else {
            return Err(PeerRefusal::UntrustedDomain(summary));
        };
        for issuer in intermediates {
            if let Some(what) = leaf::issuer_name_fault(issuer)? {
                let what = what.to_owned();
                return Err(PeerRefusal::IssuerConstraint { leaf: summary, what });
            }
        }
        let ends = self
            .path_check(bundle, chain, now)
            .run(self.bundles.revocation_lists(), ExpirationPolicy::Enforce)
            .map_err(|error| match error {
                PathError::Revoked(entry) => PeerRefusal::Revoked { leaf: summary.clone(), entry },
                PathError::Failed(error) => path::refusal(&error, summary.clone(), now),
            })?;
        Ok(VerifiedPeer(Arc::new(Peer {
            id: leaf.id,
            serial: leaf.serial,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            until: ends.first().min(leaf.not_after),
            chain: chain.iter().map(|c| c.clone().into_owned()).collect(),
            verified_at: now,
            bundle: Arc::clone(bundle),
        })))
    }

    /// Whether a peer that was verified, here or by an earlier verifier, is revoked by the lists
    /// of this one.
    ///
    /// The revocation alone is judged: a chain that has expired since, an authority that has left
    /// the bundle, or a list that is past its nextUpdate is no answer to this question. The path is
    /// one that stands at the time `now`, or else one by which it was verified. A list that isn't
    /// signed by the issuer revokes nothing. Cheap unless a list has one of the chain's serial
    /// numbers.
    #[must_use]
    pub fn revocation_of(&self, peer: &VerifiedPeer, now: UnixTime) -> Option<PeerRefusal> {
        let VerifiedPeer(peer) = peer;
        let times = [now, peer.verified_at];
        self.revoked(&peer.chain, &peer.bundle, &times).map(|entry| {
            let leaf = LeafSummary::new(&peer.serial, Some(peer.id.as_str()));
            PeerRefusal::Revoked { leaf, entry }
        })
    }

    /// The entry of a list that revokes a certificate of the chain, by its path to the authorities
    /// in `bundle` at the first of these times at which there is one.
    fn revoked(
        &self,
        chain: &[CertificateDer<'_>],
        bundle: &Bundle,
        times: &[UnixTime],
    ) -> Option<RevokedEntry> {
        let lists = self.bundles.revocation_lists();
        if !lists.name_any_of(chain) {
            return None;
        }
        times.iter().find_map(|at| {
            match self.path_check(bundle, chain, *at).run(lists, ExpirationPolicy::Ignore) {
                Err(PathError::Revoked(entry)) => Some(Some(entry)),
                Ok(_) => Some(None),
                Err(PathError::Failed(_)) => None,
            }
        })?
    }

    fn path_check<'a>(
        &'a self,
        bundle: &'a Bundle,
        chain: &'a [CertificateDer<'a>],
        now: UnixTime,
    ) -> PathCheck<'a> {
        PathCheck { algorithms: self.algorithms.all, bundle, chain, now }
    }

    /// The same of a chain of our own, where our own bundle has a path for it.
    pub(crate) fn own_revocation(
        &self,
        own: &Leaf,
        chain: &[CertificateDer<'_>],
    ) -> Option<RevokedEntry> {
        // Its dates are judged elsewhere, and peers may have newer certificates of the authorities.
        let bundle = self.bundles.of(own.id.trust_domain())?.without_dates();
        self.revoked(chain, &bundle, &[within(own, UnixTime::now())])
    }

    /// The last second at which a path leads from a chain of our own to our authorities: that of
    /// the leaf, or of an intermediate where no other path is left without it.
    ///
    /// The authorities' own dates are left out, since peers may have newer certificates of them.
    /// Where our bundle has no path, it is the leaf's.
    pub(crate) fn own_end(&self, own: &Leaf, chain: &[CertificateDer<'_>]) -> i64 {
        let Some(bundle) = self.bundles.of(own.id.trust_domain()) else { return own.not_after };
        let (bundle, no_lists) = (bundle.without_dates(), RevocationLists::default());
        let mut last: Option<i64> = None;
        // Each path that has ended takes one intermediate at least with it.
        for _ in chain {
            let at =
                last.map_or(within(own, UnixTime::now()), |end| unix_time(end.saturating_add(1)));
            let check = self.path_check(&bundle, chain, at);
            match check.run(&no_lists, ExpirationPolicy::Ignore).map(|ends| ends.intermediates) {
                Ok(Some(end)) if end < own.not_after => last = Some(end),
                Ok(_) => return own.not_after,
                Err(PathError::Failed(webpki::Error::CertExpired { not_after, .. }))
                    if last.is_none() =>
                {
                    return seconds(not_after).min(own.not_after);
                }
                Err(_) => break,
            }
        }
        last.unwrap_or(own.not_after)
    }

    /// The identity of a chain that was verified a moment ago, without doing it again; a chain
    /// that isn't remembered is verified now. So there is no way to a [`VerifiedPeer`] around the
    /// full check.
    ///
    /// # Errors
    /// As [`SvidVerifier::verify`]; `None` and an empty chain are [`PeerRefusal::NoCertificate`].
    pub fn verified_peer(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerRefusal> {
        let chain = chain.unwrap_or_default();
        let key = chain_hash(chain);
        match self.seen.get(&key).filter(|peer| peer.is_valid_at(now)) {
            Some(peer) => Ok(peer),
            None => self.verify_and_remember(chain, now),
        }
    }

    fn verify_and_remember(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerRefusal> {
        let peer = self.verify(chain, now)?;
        Ok(self.seen.insert(chain_hash(chain), peer))
    }

    fn verify_in_handshake(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let refused = |refusal: PeerRefusal| {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(
                refusal,
            ))))
        };
        // Counted before the copy below, so that a peer can't make us copy what is refused anyway.
        if intermediates.len() >= MAX_CHAIN_CERTIFICATES {
            let bytes = intermediates.iter().map(|c| c.len()).sum::<usize>() + end_entity.len();
            let certificates = intermediates.len() + 1;
            return Err(refused(PeerRefusal::ChainTooLong { certificates, bytes }));
        }
        let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|c| CertificateDer::from(c.as_ref()))
            .collect();
        self.verify_and_remember(&chain, now).map(|_| ()).map_err(refused)
    }
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidVerifier")
            .field("domains", &self.bundles.domains().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for SvidVerifier {
    // No hints: they would tell any stranger which authorities we trust, and clients have one
    // certificate to choose from.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify_in_handshake(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_in_handshake(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Our reason in a handshake's error, or `None` where the handshake failed for something else than
/// the peer's certificate.
#[must_use]
pub fn refusal_of(error: &rustls::Error) -> Option<PeerRefusal> {
    match error {
        rustls::Error::NoCertificatesPresented => Some(PeerRefusal::NoCertificate),
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => {
            reason.downcast_ref::<PeerRefusal>().cloned()
        }
        // What rustls finds itself: only the handshake's own signature is left to it.
        rustls::Error::InvalidCertificate(
            CertificateError::BadSignature
            // It is by a key of another type.
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => Some(PeerRefusal::BadHandshakeSignature),
        rustls::Error::InvalidCertificate(other) => Some(PeerRefusal::Malformed(other.to_string())),
        _ => None,
    }
}

/// Whether a chain is as small as peers hold each other to.
pub(crate) fn check_size(chain: &[CertificateDer<'_>]) -> Result<(), PeerRefusal> {
    let bytes = chain.iter().map(|c| c.len()).sum();
    if chain.len() > MAX_CHAIN_CERTIFICATES || bytes > MAX_CHAIN_BYTES {
        return Err(PeerRefusal::ChainTooLong { certificates: chain.len(), bytes });
    }
    Ok(())
}

/// The moment of the leaf's validity that is nearest to `now`.
fn within(leaf: &Leaf, now: UnixTime) -> UnixTime {
    unix_time(seconds(now).min(leaf.not_after).max(leaf.not_before))
}

// Never called: our configs offer TLS 1.3 alone. If they did not, this would still refuse.
fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken; only TLS 1.3 is".to_owned())
}

/// SHA-256 of a chain, each certificate with its length before it, so that no two chains that
/// differ only in where one certificate ends have the same hash.
pub(crate) fn chain_hash(chain: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for certificate in chain {
        context.update(&(certificate.len() as u64).to_be_bytes());
        context.update(certificate);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
