//! The path from a leaf to an authority of its trust domain: webpki's work, and what webpki does
//! not look at.

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::RevocationOptions;

use crate::bundles::{Authority, Bundle};
use crate::dates::{rfc3339, seconds};
use crate::leaf;
use crate::refusal::{LeafSummary, PeerRefusal};

/// Whether a path leads from the chain's leaf to an authority of the bundle (RFC 5280 §6.1).
///
/// # Errors
/// webpki's; [`refusal`] puts it in our words.
pub(crate) fn check(
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    bundle: &Bundle,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
    revocation: Option<RevocationOptions<'_>>,
) -> Result<(), webpki::Error> {
    let (end_entity, intermediates) = chain.split_first().ok_or(webpki::Error::UnknownIssuer)?;
    // webpki takes an anchor as a key and a name; its dates and path length, and the key usage
    // of the issuers between, are checked here (RFC 5280 §6.1.3, §6.1.4 (m) and (n)).
    let issuers_may_issue = |path: &webpki::VerifiedPath<'_>| {
        let mut issuers = 0;
        for issuer in path.intermediate_certificates() {
            leaf::check_issuer(&issuer.der())?;
            issuers += 1;
        }
        let authority = (bundle.anchors.iter().zip(&bundle.authorities))
            .find(|(anchor, _)| std::ptr::eq::<TrustAnchor<'_>>(*anchor, path.anchor()))
            .map(|(_, authority)| authority)
            .ok_or(webpki::Error::UnknownIssuer)?;
        if authority.path_len.is_some_and(|most| issuers > most) {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        check_dates(authority, now)
    };
    webpki::EndEntityCert::try_from(end_entity)?
        .verify_for_usage(
            algorithms,
            &bundle.anchors,
            intermediates,
            now,
            BothAuths,
            revocation,
            Some(&issuers_may_issue),
        )
        .map(|_| ())
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
    let at = |date: i64| {
        let date = u64::try_from(date).unwrap_or(0);
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(date))
    };
    if seconds(now) < authority.not_before {
        let not_before = at(authority.not_before);
        return Err(webpki::Error::CertNotValidYet { time: now, not_before });
    }
    if seconds(now) > authority.not_after {
        return Err(webpki::Error::CertExpired { time: now, not_after: at(authority.not_after) });
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
