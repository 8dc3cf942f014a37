//! Why a peer's certificate is refused: one variant for each reason.

use std::fmt;

use crate::dates::rfc3339;
use crate::revocation::RevokedEntry;
use crate::spiffe::SpiffeIdError;

/// What is known of a leaf certificate when it is refused, for the log.
///
/// Both strings came from the peer: they are escaped and cut, so that they may go into a log line,
/// and belong in no metric label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafSummary {
    /// The serial number in lower-case hex, at most 20 bytes of it (RFC 5280 §4.1.2.2).
    pub serial: String,
    /// The URI SAN that names the identity, or `none`.
    pub id: String,
}

impl LeafSummary {
    const MAX_ID_CHARS: usize = 256;

    pub(crate) fn new(serial: &str, id: Option<&str>) -> Self {
        let id = id.map_or_else(
            || "none".to_owned(),
            |id| id.escape_default().take(Self::MAX_ID_CHARS).collect(),
        );
        Self { serial: serial.to_owned(), id }
    }
}

impl fmt::Display for LeafSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "serial {}, identity {}", self.serial, self.id)
    }
}

/// Why a peer's certificate chain is refused.
///
/// The order of the checks is that of the variants: the cheap ones and those of the leaf alone come
/// first, so that a certificate which breaks its format is named for that and not for its issuer.
/// Dates are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    /// The peer sent no certificate.
    #[error("the peer sent no certificate; it must present an X.509-SVID")]
    NoCertificate,
    /// More certificates or bytes than a chain may have.
    #[error(
        "the chain has {certificates} certificates and {bytes} bytes; \
         {} and {} are the most",
        crate::verify::MAX_CHAIN_CERTIFICATES,
        crate::verify::MAX_CHAIN_BYTES
    )]
    ChainTooLong {
        /// How many certificates the chain has.
        certificates: usize,
        /// Their DER bytes together.
        bytes: usize,
    },
    /// Not an X.509 certificate in DER (RFC 5280 §4.1).
    #[error("the certificate is malformed: {0}")]
    Malformed(String),
    /// No URI SAN: the certificate names no SPIFFE identity (X509-SVID §2).
    #[error("no URI SAN, so no SPIFFE identity ({0})")]
    NoUriSan(LeafSummary),
    /// More than one URI SAN (X509-SVID §2), whatever they hold.
    #[error("{count} URI SANs where an SVID has exactly one ({leaf})")]
    TwoUriSans {
        /// The leaf, with the first URI.
        leaf: LeafSummary,
        /// How many URI SANs it has.
        count: usize,
    },
    /// The URI SAN is no SPIFFE identity (SPIFFE-ID §2).
    #[error("the URI SAN is no SPIFFE identity: {error} ({leaf})")]
    SpiffeId {
        /// The leaf.
        leaf: LeafSummary,
        /// The rule that its URI breaks.
        error: SpiffeIdError,
    },
    /// The leaf has `cA` set (X509-SVID §4.1).
    #[error("the leaf is a CA certificate; issue it with cA false ({0})")]
    LeafIsCa(LeafSummary),
    /// The leaf may sign certificates (X509-SVID §4.3).
    #[error("the leaf's key usage has keyCertSign; issue it without ({0})")]
    KeyCertSign(LeafSummary),
    /// The leaf may sign revocation lists (X509-SVID §4.3).
    #[error("the leaf's key usage has cRLSign; issue it without ({0})")]
    CrlSign(LeafSummary),
    /// The leaf's key usage is absent or lacks `digitalSignature` (X509-SVID §4.3).
    #[error("the leaf's key usage lacks digitalSignature; issue it with ({0})")]
    NoDigitalSignature(LeafSummary),
    /// The leaf's key usage may be ignored by whoever doesn't know it (X509-SVID §4.3).
    #[error("the leaf's key usage is not marked critical; issue it so ({0})")]
    KeyUsageNotCritical(LeafSummary),
    /// An extended key usage without `clientAuth` (X509-SVID §4.4).
    #[error("the leaf's extended key usage lacks clientAuth; an SVID has both ({0})")]
    EkuMissingClientAuth(LeafSummary),
    /// An extended key usage without `serverAuth` (X509-SVID §4.4).
    #[error("the leaf's extended key usage lacks serverAuth; an SVID has both ({0})")]
    EkuMissingServerAuth(LeafSummary),
    /// No trust bundle for the identity's trust domain.
    #[error("no trust bundle for the peer's trust domain; federate with it or refuse it ({0})")]
    UntrustedDomain(LeafSummary),
    /// A certificate of the chain has expired.
    #[error("expired at {}, now {} ({leaf})", rfc3339(*.not_after), rfc3339(*.now))]
    Expired {
        /// The leaf of the chain.
        leaf: LeafSummary,
        /// The end of the certificate that has expired.
        not_after: i64,
        /// The time of the check.
        now: i64,
    },
    /// A certificate of the chain isn't valid yet.
    #[error(
        "valid only from {}, now {}; compare the clocks ({leaf})",
        rfc3339(*.not_before), rfc3339(*.now)
    )]
    NotYetValid {
        /// The leaf of the chain.
        leaf: LeafSummary,
        /// The beginning of the certificate that isn't valid yet.
        not_before: i64,
        /// The time of the check.
        now: i64,
    },
    /// No path to a certificate in the bundle of the identity's trust domain.
    #[error("not issued by an authority in its trust domain's bundle ({0})")]
    UnknownIssuer(LeafSummary),
    /// An issuer has the right name but the signature isn't of its key.
    #[error("a signature in the chain is not its issuer's ({0})")]
    BadSignature(LeafSummary),
    /// The peer doesn't hold the leaf's private key (RFC 8446 §4.4.3).
    #[error("the handshake isn't signed with the certificate's key")]
    BadHandshakeSignature,
    /// A signature or key algorithm that isn't taken.
    #[error("a signature algorithm in the chain is not supported ({0})")]
    UnsupportedAlgorithm(LeafSummary),
    /// An issuer that may not issue this: not a CA, no keyCertSign, path length, name constraints.
    #[error("an issuer in the chain may not issue this: {what} ({leaf})")]
    IssuerConstraint {
        /// The leaf of the chain.
        leaf: LeafSummary,
        /// The constraint.
        what: String,
    },
    /// A certificate of the chain is in its issuer's revocation list (RFC 5280 §6.3).
    #[error(
        "certificate {} was revoked at {}, reason {} ({leaf})",
        .entry.serial, rfc3339(.entry.at), .entry.reason.unwrap_or("not given")
    )]
    Revoked {
        /// The leaf of the chain.
        leaf: LeafSummary,
        /// The certificate's entry in the list.
        entry: RevokedEntry,
    },
    /// The revocation list of an issuer of the chain is past its nextUpdate (RFC 5280 §5.1.2.5).
    #[error(
        "an issuer's revocation list ended at {}, now {}; publish a new one ({leaf})",
        rfc3339(*.next_update), rfc3339(*.now)
    )]
    CrlExpired {
        /// The leaf of the chain.
        leaf: LeafSummary,
        /// The list's nextUpdate.
        next_update: i64,
        /// The time of the check.
        now: i64,
    },
    /// A revocation list has the name of an issuer of the chain, and isn't that issuer's: it is
    /// signed by another key, or the issuer may not sign lists.
    #[error("a revocation list with the name of an issuer is not that issuer's: {what} ({leaf})")]
    CrlInvalid {
        /// The leaf of the chain.
        leaf: LeafSummary,
        /// What is wrong.
        what: String,
    },
}

impl PeerRefusal {
    /// Every value that [`PeerRefusal::label`] can have.
    pub const ALL_LABELS: &'static [&'static str] = &[
        "no_certificate",
        "chain_too_long",
        "malformed",
        "no_uri_san",
        "two_uri_sans",
        "spiffe_query",
        "spiffe_fragment",
        "spiffe_port",
        "spiffe_percent",
        "spiffe_dot_segment",
        "spiffe_empty_segment",
        "spiffe_upper_case",
        "spiffe_no_path",
        "spiffe_userinfo",
        "spiffe_bad",
        "leaf_is_ca",
        "key_cert_sign",
        "crl_sign",
        "no_digital_signature",
        "key_usage_not_critical",
        "eku_missing_client_auth",
        "eku_missing_server_auth",
        "untrusted_domain",
        "expired",
        "not_yet_valid",
        "unknown_issuer",
        "bad_signature",
        "bad_handshake_signature",
        "unsupported_algorithm",
        "issuer_constraint",
        "revoked",
        "crl_expired",
        "crl_invalid",
    ];

    /// The reason as a stable `snake_case` word, for a metric label; one of
    /// [`PeerRefusal::ALL_LABELS`], never anything from the peer.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::ChainTooLong { .. } => "chain_too_long",
            Self::Malformed(_) => "malformed",
            Self::NoUriSan(_) => "no_uri_san",
            Self::TwoUriSans { .. } => "two_uri_sans",
            Self::SpiffeId { error, .. } => spiffe_label(error),
            Self::LeafIsCa(_) => "leaf_is_ca",
            Self::KeyCertSign(_) => "key_cert_sign",
            Self::CrlSign(_) => "crl_sign",
            Self::NoDigitalSignature(_) => "no_digital_signature",
            Self::KeyUsageNotCritical(_) => "key_usage_not_critical",
            Self::EkuMissingClientAuth(_) => "eku_missing_client_auth",
            Self::EkuMissingServerAuth(_) => "eku_missing_server_auth",
            Self::UntrustedDomain(_) => "untrusted_domain",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::UnknownIssuer(_) => "unknown_issuer",
            Self::BadSignature(_) => "bad_signature",
            Self::BadHandshakeSignature => "bad_handshake_signature",
            Self::UnsupportedAlgorithm(_) => "unsupported_algorithm",
            Self::IssuerConstraint { .. } => "issuer_constraint",
            Self::Revoked { .. } => "revoked",
            Self::CrlExpired { .. } => "crl_expired",
            Self::CrlInvalid { .. } => "crl_invalid",
        }
    }
}

fn spiffe_label(error: &SpiffeIdError) -> &'static str {
    match error {
        SpiffeIdError::Query { .. } => "spiffe_query",
        SpiffeIdError::Fragment { .. } => "spiffe_fragment",
        SpiffeIdError::Port { .. } => "spiffe_port",
        SpiffeIdError::Percent { .. } => "spiffe_percent",
        SpiffeIdError::DotSegment { .. } => "spiffe_dot_segment",
        SpiffeIdError::EmptySegment { .. } | SpiffeIdError::TrailingSlash => "spiffe_empty_segment",
        SpiffeIdError::UpperCaseTrustDomain { .. } => "spiffe_upper_case",
        SpiffeIdError::NoPath => "spiffe_no_path",
        SpiffeIdError::UserInfo { .. } => "spiffe_userinfo",
        SpiffeIdError::Scheme
        | SpiffeIdError::EmptyTrustDomain
        | SpiffeIdError::TrustDomainTooLong(_)
        | SpiffeIdError::TooLong(_)
        | SpiffeIdError::BadCharacter { .. } => "spiffe_bad",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_wrote_is_escaped_and_cut() {
        let hostile = format!("spiffe://d/\n\u{1b}[31m{}", "a".repeat(5000));
        let leaf = LeafSummary::new("0a", Some(&hostile));
        let text = PeerRefusal::NoUriSan(leaf).to_string();
        assert!(text.len() < 400, "{}", text.len());
        assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
    }

    #[test]
    fn labels_are_distinct_snake_case() {
        let mut seen = std::collections::BTreeSet::new();
        for label in PeerRefusal::ALL_LABELS {
            assert!(seen.insert(label), "{label} twice");
            assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{label}");
        }
        for id in ["", "spiffe://", "spiffe://D/a", "spiffe://d", "spiffe://d/a/", "spiffe://d/!"] {
            let error = id.parse::<crate::spiffe::SpiffeId>().unwrap_err();
            let leaf = LeafSummary::new("0a", Some(id));
            let label = PeerRefusal::SpiffeId { leaf, error }.label();
            assert!(seen.contains(&label), "{label} is not in the list");
        }
    }

    #[test]
    fn dates_are_written_out() {
        let leaf = LeafSummary::new("0a", None);
        let refusal = PeerRefusal::Expired { leaf, not_after: 0, now: 86_400 };
        let text = refusal.to_string();
        assert!(text.contains("1970-01-01T00:00:00Z") && text.contains("1970-01-02T00:00:00Z"));
        assert!(text.contains("serial 0a"), "{text}");
    }
}
