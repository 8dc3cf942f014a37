//! The path from a leaf to an authority of its trust domain: webpki's work, and what webpki does
//! not look at.

use std::cell::{Cell, RefCell};

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{ExpirationPolicy, RevocationOptions};

use crate::bundles::{Authority, Bundle};
use crate::dates::{rfc3339, seconds, unix_time};
use crate::leaf;
use crate::refusal::{LeafSummary, PeerRefusal};
use crate::revocation::{RevocationLists, RevokedEntry};

/// Why no path stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathError {
    /// A certificate on the only path, or on each, is revoked.
    Revoked(RevokedEntry),
    /// webpki's word; [`refusal`] puts it in ours.
    Failed(webpki::Error),
}

impl PathError {
    /// Of several paths, the gravest fault is that of the chain.
    fn gravity(&self) -> u8 {
        match self {
            Self::Revoked(_) => 2,
            Self::Failed(webpki::Error::CrlExpired { .. }) => 1,
            Self::Failed(_) => 0,
        }
    }
}

/// When what a path stands on ends, beside its leaf: the last second of each that still counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PathEnds {
    /// Of the first intermediate to end.
    pub(crate) intermediates: Option<i64>,
    /// Of the authority.
    pub(crate) authority: i64,
    /// Of the first to end of the revocation lists that spoke of the path.
    pub(crate) lists: Option<i64>,
}

impl PathEnds {
    /// The first of them all.
    pub(crate) fn first(&self) -> i64 {
        [self.intermediates, self.lists].into_iter().flatten().fold(self.authority, i64::min)
    }
}

/// A chain, leaf first, and what it is validated by at the time `now`.
pub(crate) struct PathCheck<'a> {
    pub(crate) algorithms: &'a [&'a dyn SignatureVerificationAlgorithm],
    pub(crate) bundle: &'a Bundle,
    pub(crate) chain: &'a [CertificateDer<'a>],
    pub(crate) now: UnixTime,
}

impl PathCheck<'_> {
    /// Looks for a path from the leaf to an authority of the bundle (RFC 5280 §6.1) that the lists
    /// leave standing (§6.3), and says when what it stands on ends.
    ///
    /// webpki tries every way through what the peer has sent, and reports what it holds for the
    /// most specific of all that it met; an expired certificate comes before a revoked one. A peer
    /// could hide its revocation behind a surplus certificate. So the search is without lists, each
    /// path that it finds is held against them by itself, and what they say of a path outweighs
    /// whatever the search meets elsewhere.
    pub(crate) fn run(
        &self,
        lists: &RevocationLists,
        expiration: ExpirationPolicy,
    ) -> Result<PathEnds, PathError> {
        let no_issuer = || PathError::Failed(webpki::Error::UnknownIssuer);
        let (leaf, intermediates) = self.chain.split_first().ok_or_else(no_issuer)?;
        let leaf_certificate = webpki::EndEntityCert::try_from(leaf).map_err(PathError::Failed)?;
        let (ends, gravest) = (Cell::new(None), RefCell::new(None::<PathError>));
        let stands = |path: &webpki::VerifiedPath<'_>| {
            let (intermediates, authority) = self.check_issuers(path)?;
            let between: Vec<_> = path.intermediate_certificates().map(webpki::Cert::der).collect();
            let certificates: Vec<_> = std::iter::once(leaf).chain(&between).cloned().collect();
            let judged = lists.judge(&certificates, self.now, expiration, |revocation| {
                self.validate_alone(&leaf_certificate, &between, path.anchor(), revocation)
            });
            let judged =
                judged.map(|lists| ends.set(Some(PathEnds { intermediates, authority, lists })));
            let Err(error) = judged else { return Ok(()) };
            let mut gravest = gravest.borrow_mut();
            if gravest.as_ref().is_none_or(|other| other.gravity() < error.gravity()) {
                *gravest = Some(error);
            }
            // The search goes on: another path may stand.
            Err(webpki::Error::UnknownRevocationStatus)
        };
        let found = leaf_certificate.verify_for_usage(
            self.algorithms,
            &self.bundle.anchors,
            intermediates,
            self.now,
            BothAuths,
            None,
            Some(&stands),
        );
        match found {
            Ok(_) => ends.get().ok_or_else(no_issuer),
            Err(error) => Err(gravest.take().unwrap_or(PathError::Failed(error))),
        }
    }

    /// Validates a path that is known again, with lists; what else there is in the chain and in the
    /// bundle has no part in it.
    fn validate_alone(
        &self,
        leaf: &webpki::EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        anchor: &TrustAnchor<'_>,
        revocation: RevocationOptions<'_>,
    ) -> Result<(), webpki::Error> {
        let is_whole = |path: &webpki::VerifiedPath<'_>| {
            let found = path.intermediate_certificates().map(webpki::Cert::der);
            let whole = found.eq(intermediates.iter().cloned());
            if whole { Ok(()) } else { Err(webpki::Error::UnknownIssuer) }
        };
        leaf.verify_for_usage(
            self.algorithms,
            std::slice::from_ref(anchor),
            intermediates,
            self.now,
            BothAuths,
            Some(revocation),
            Some(&is_whole),
        )
        .map(|_| ())
    }

    // webpki takes an anchor as a key and a name; its dates and path length, and the key usage
    // of the issuers between, are checked here (RFC 5280 §6.1.3, §6.1.4 (m) and (n)). What comes
    // back is when the first of those between ends, and when the anchor does.
    fn check_issuers(
        &self,
        path: &webpki::VerifiedPath<'_>,
    ) -> Result<(Option<i64>, i64), webpki::Error> {
        let mut issuers = 0;
        let mut first_end: Option<i64> = None;
        for issuer in path.intermediate_certificates() {
            let end = leaf::check_issuer(&issuer.der())?;
            first_end = Some(first_end.map_or(end, |first| first.min(end)));
            issuers += 1;
        }
        let authority = (self.bundle.anchors.iter().zip(&self.bundle.authorities))
            .find(|(anchor, _)| std::ptr::eq::<TrustAnchor<'_>>(*anchor, path.anchor()))
            .map(|(_, authority)| authority)
            .ok_or(webpki::Error::UnknownIssuer)?;
        if authority.path_len.is_some_and(|most| issuers > most) {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        check_dates(authority, self.now)?;
        Ok((first_end, authority.not_after))
    }
}

/// The extended key usage of every certificate on the path: absent, or with both purposes.
struct BothAuths;

impl webpki::ExtendedKeyUsageValidator for BothAuths {
    // webpki asks for a certificate without the extension too, with nothing to iterate; an
    // extension with no purpose in it, it refuses itself.
    fn validate(&self, purposes: webpki::KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        const SERVER_AUTH: &[usize] = &[1, 3, 6, 1, 5, 5, 7, 3, 1];
        const CLIENT_AUTH: &[usize] = &[1, 3, 6, 1, 5, 5, 7, 3, 2];
        let (mut server, mut client, mut absent) = (false, false, true);
        for purpose in purposes {
            absent = false;
            let oid: Vec<usize> = purpose?.to_decoded_oid();
            server |= oid == SERVER_AUTH;
            client |= oid == CLIENT_AUTH;
        }
        if absent || (server && client) { Ok(()) } else { Err(webpki::Error::EmptyEkuExtension) }
    }
}

fn check_dates(authority: &Authority, now: UnixTime) -> Result<(), webpki::Error> {
    if seconds(now) < authority.not_before {
        let not_before = unix_time(authority.not_before);
        return Err(webpki::Error::CertNotValidYet { time: now, not_before });
    }
    if seconds(now) > authority.not_after {
        let not_after = unix_time(authority.not_after);
        return Err(webpki::Error::CertExpired { time: now, not_after });
    }
    Ok(())
}

/// Our word for why there is no path.
pub(crate) fn refusal(error: &webpki::Error, leaf: LeafSummary, now: UnixTime) -> PeerRefusal {
    use webpki::Error as E;
    let now = seconds(now);
    let constraint = |what: &str| what.to_owned();
    match error {
        E::CertExpired { not_after, .. } => {
            PeerRefusal::Expired { leaf, not_after: seconds(*not_after), now }
        }
        E::CertNotValidYet { not_before, .. } => {
            PeerRefusal::NotYetValid { leaf, not_before: seconds(*not_before), now }
        }
        E::UnknownIssuer => PeerRefusal::UnknownIssuer(leaf),
        E::CrlExpired { next_update, .. } => {
            PeerRefusal::CrlExpired { leaf, next_update: seconds(*next_update), now }
        }
        E::InvalidCrlSignatureForPublicKey
        | E::UnsupportedCrlSignatureAlgorithmContext(_)
        | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
        | E::IssuerNotCrlSigner => PeerRefusal::CrlInvalid { leaf, what: error.to_string() },
        E::InvalidSignatureForPublicKey | E::SignatureAlgorithmMismatch => {
            PeerRefusal::BadSignature(leaf)
        }
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            PeerRefusal::UnsupportedAlgorithm(leaf)
        }
        E::EndEntityUsedAsCa => {
            PeerRefusal::IssuerConstraint { leaf, what: constraint("it is no CA with keyCertSign") }
        }
        E::PathLenConstraintViolated => {
            PeerRefusal::IssuerConstraint { leaf, what: constraint("its path length") }
        }
        E::NameConstraintViolation => {
            PeerRefusal::IssuerConstraint { leaf, what: constraint("its name constraints") }
        }
        E::EmptyEkuExtension => PeerRefusal::IssuerConstraint {
            leaf,
            what: constraint("its extended key usage lacks serverAuth or clientAuth"),
        },
        other => PeerRefusal::Malformed(format!("{other} ({leaf}, checked at {})", rfc3339(now))),
    }
}
