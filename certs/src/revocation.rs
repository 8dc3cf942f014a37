//! Certificate revocation lists (RFC 5280 §5), and what they say of a chain (§6.3).
//!
//! Signatures, scopes and dates of lists are webpki's work. Here is which lists a path is held
//! against: webpki looks into the first list that has the issuer's name and the certificate in its
//! scope, and into no other. But authorities that share a name, as an old and a new one do, have a
//! list each under different keys, and one authority may spread its entries over lists of
//! different scopes. So each list is asked alone.

use std::fmt;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder, RevocationReason,
    UnknownStatusPolicy,
};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::dates::seconds;
use crate::expiry::{Lifetime, Subject};
use crate::files::{ContentHash, Hasher};
use crate::leaf;
use crate::path::PathError;
use crate::pem;

/// The most lists that may be loaded together.
pub const MAX_LISTS: usize = 256;

/// The most lists with the same issuer's name. It bounds how often a path is validated.
pub const MAX_LISTS_OF_ONE_NAME: usize = 4;

/// Why a revocation list can't be used. Numbers count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Neither PEM with an `X509 CRL` in it, nor DER.
    #[error("{0}")]
    NoList(String),
    /// Not a list of RFC 5280's profile: version 2, with nextUpdate, no delta, no unknown critical
    /// extension; or one whose scope webpki does not know.
    #[error(
        "list {0}: {1}; it must be a version 2 list with nextUpdate, no delta, not indirect, of all \
         reasons, and an issuing distribution point must have a name"
    )]
    Malformed(usize, String),
    /// More than [`MAX_LISTS`], or more than [`MAX_LISTS_OF_ONE_NAME`].
    #[error("more than {MAX_LISTS} lists, or {MAX_LISTS_OF_ONE_NAME} of one issuer's name")]
    TooMany,
}

struct List {
    lifetime: Lifetime,
    crl: CertRevocationList<'static>,
    /// Of its DER.
    hash: ContentHash,
}

/// Revocation lists by their issuers' names. None at all is fine: nothing is revoked then.
#[derive(Default)]
pub struct RevocationLists(Vec<List>);

/// A certificate that a list names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedEntry {
    /// The certificate's serial number in lower-case hex.
    pub serial: String,
    /// When it was revoked, in seconds since the Unix epoch.
    pub at: i64,
    /// The reason as RFC 5280 §5.3.1 names it, where the list has one.
    pub reason: Option<&'static str>,
}

fn hash_of(der: &[u8]) -> ContentHash {
    let mut hasher = Hasher::new();
    hasher.part(der);
    hasher.finish()
}

impl RevocationLists {
    /// The lists in a file: PEM with any number of them, or one in DER. An expired list is taken;
    /// it refuses its issuer's peers.
    ///
    /// # Errors
    /// [`CrlError`]; one list that can't be used spoils the file, since what it would have revoked
    /// is not known.
    pub fn from_file(content: &[u8]) -> Result<Self, CrlError> {
        Self::from_ders(&ders(content)?)
    }

    /// The same of lists in DER.
    ///
    /// # Errors
    /// [`CrlError`].
    pub fn from_ders(ders: &[CertificateRevocationListDer<'_>]) -> Result<Self, CrlError> {
        if ders.len() > MAX_LISTS {
            return Err(CrlError::TooMany);
        }
        let mut lists: Vec<List> = Vec::with_capacity(ders.len());
        for (number, der) in (1..).zip(ders) {
            let malformed = |e: &dyn fmt::Display| CrlError::Malformed(number, e.to_string());
            let crl = OwnedCertRevocationList::from_der(der).map_err(|e| malformed(&e))?;
            let crl = CertRevocationList::from(crl);
            let (_, parsed) =
                CertificateRevocationList::from_der(der).map_err(|e| malformed(&e))?;
            let next_update = parsed.next_update().ok_or_else(|| malformed(&"no nextUpdate"))?;
            let of_name = |list: &&List| list.crl.issuer() == crl.issuer();
            if lists.iter().filter(of_name).count() >= MAX_LISTS_OF_ONE_NAME {
                return Err(CrlError::TooMany);
            }
            let issuer = parsed.issuer().to_string().escape_debug().to_string();
            let lifetime = Lifetime {
                subject: Subject::RevocationList(issuer),
                from: parsed.last_update().timestamp(),
                // The first second that is too late.
                until: next_update.timestamp().saturating_sub(1),
            };
            lists.push(List { lifetime, crl, hash: hash_of(der) });
        }
        Ok(Self(lists))
    }

    /// Whether these are the same lists, in the same order.
    pub(crate) fn are(&self, others: &Self) -> bool {
        self.0.iter().map(|list| list.hash).eq(others.0.iter().map(|list| list.hash))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When each of them begins and ends; the last second is that before its nextUpdate.
    pub fn lifetimes(&self) -> impl Iterator<Item = &Lifetime> {
        self.0.iter().map(|list| &list.lifetime)
    }

    /// Whether a list with the right issuer's name names a certificate of the chain. Whether that
    /// issuer has signed the list is for [`RevocationLists::judge`] to say.
    pub(crate) fn name_any_of(&self, chain: &[CertificateDer<'_>]) -> bool {
        self.of_issuers(chain).any(|list| list.entry_of(chain).is_some())
    }

    /// Holds a path that is good but for revocation against each list that concerns it, and says
    /// which second is the last of the first of these lists to end.
    ///
    /// `path` is the leaf and the intermediates, and `validate` runs webpki's validation over that
    /// path and no other, so that nothing else that the peer has sent has a say here. An issuer
    /// without a list is not checked. A revocation or an expiry by any list is final, since webpki
    /// finds both behind a good signature. A signature by another key of the issuer's name is no
    /// fault as long as good lists speak of the same certificates.
    ///
    /// # Errors
    /// The gravest that was found: a revocation, then a list that has ended, then webpki's error
    /// for a list that isn't the issuer's.
    pub(crate) fn judge(
        &self,
        path: &[CertificateDer<'_>],
        now: UnixTime,
        expiration: ExpirationPolicy,
        validate: impl Fn(RevocationOptions<'_>) -> Result<(), webpki::Error>,
    ) -> Result<Option<i64>, PathError> {
        let run = |lists: &[&CertRevocationList<'_>], depth| {
            let builder = RevocationOptionsBuilder::new(lists)
                .map_err(|_| webpki::Error::UnknownRevocationStatus)?;
            let builder = builder.with_status_policy(UnknownStatusPolicy::Allow).with_depth(depth);
            validate(builder.with_expiration_policy(expiration).build())
        };
        let (mut good, mut doubtful, mut ended) = (Vec::new(), Vec::new(), None);
        for list in self.of_issuers(path) {
            let mut verdict = run(&[&list.crl], RevocationCheckDepth::Chain);
            // webpki begins at the authority and ends at the first fault: where an intermediate
            // has an issuer of the same name, it may not have come to the leaf.
            if verdict.as_ref().is_err_and(|error| !is_final(error)) {
                let of_leaf = run(&[&list.crl], RevocationCheckDepth::EndEntity);
                verdict = of_leaf.err().filter(is_final).map_or(verdict, Err);
            }
            match verdict {
                Ok(()) => good.push(list),
                Err(webpki::Error::CertRevoked) => {
                    let entry = list.entry_of(path);
                    let unnamed = || PathError::Failed(webpki::Error::CertRevoked);
                    return Err(entry.map_or_else(unnamed, PathError::Revoked));
                }
                Err(error) if is_final(&error) => ended = Some(error),
                Err(error) => doubtful.push((list, error)),
            }
        }
        if let Some(error) = ended {
            return Err(PathError::Failed(error));
        }
        for (list, error) in doubtful {
            // With the good ones before it, it is asked only of what they don't speak of.
            let of_name = good.iter().filter(|good| good.crl.issuer() == list.crl.issuer());
            let lists: Vec<_> = of_name.chain([&list]).map(|list| &list.crl).collect();
            if run(&lists, RevocationCheckDepth::Chain).is_err() {
                return Err(PathError::Failed(of_list(error)));
            }
        }
        // One that had ended would have been refused, had it spoken of a certificate on the path.
        let ends = good.iter().map(|list| list.lifetime.until).filter(|end| seconds(now) <= *end);
        Ok(ends.min())
    }

    fn of_issuers(&self, chain: &[CertificateDer<'_>]) -> impl Iterator<Item = &List> {
        // Without lists nothing is parsed once more.
        let chain = if self.0.is_empty() { &[] } else { chain };
        let certificates: Vec<_> =
            chain.iter().filter_map(|der| EndEntityCert::try_from(der).ok()).collect();
        self.0
            .iter()
            .filter(move |list| certificates.iter().any(|c| c.issuer() == list.crl.issuer()))
    }
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RevocationLists({})", self.0.len())
    }
}

impl List {
    /// What it says of the first certificate that it names.
    fn entry_of(&self, certificates: &[CertificateDer<'_>]) -> Option<RevokedEntry> {
        certificates.iter().find_map(|der| {
            let certificate = EndEntityCert::try_from(der).ok()?;
            if certificate.issuer() != self.crl.issuer() {
                return None;
            }
            let revoked = self.crl.find_serial(certificate.serial()).ok().flatten()?;
            Some(RevokedEntry {
                serial: leaf::hex(certificate.serial()),
                at: seconds(revoked.revocation_date),
                reason: revoked.reason_code.map(reason_word),
            })
        })
    }
}

/// Whether a list's issuer has said it: webpki looks at dates and entries behind the signature.
fn is_final(error: &webpki::Error) -> bool {
    matches!(error, webpki::Error::CertRevoked | webpki::Error::CrlExpired { .. })
}

/// On the way to authorities of one name, webpki may report a wrong key's signature on a
/// certificate instead of that on the list. The path itself was good.
fn of_list(error: webpki::Error) -> webpki::Error {
    match error {
        webpki::Error::InvalidSignatureForPublicKey => {
            webpki::Error::InvalidCrlSignatureForPublicKey
        }
        other => other,
    }
}

/// The lists of a file, in DER and not looked into: there is one at least, and each section is one.
pub(crate) fn ders(content: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, CrlError> {
    // A SEQUENCE: DER. PEM begins with a letter or a dash.
    if content.first() == Some(&0x30) {
        return Ok(vec![content.to_vec().into()]);
    }
    let strict = pem::check_marks(content).and(pem::check_labels(content, |l| l != b"X509 CRL"));
    strict.map_err(|fault| CrlError::NoList(fault.to_string()))?;
    let lists: Result<Vec<_>, rustls_pki_types::pem::Error> =
        CertificateRevocationListDer::pem_slice_iter(content).take(MAX_LISTS + 1).collect();
    let lists = lists.map_err(|error| CrlError::NoList(error.to_string()))?;
    match lists.len() {
        0 => Err(CrlError::NoList("no \"BEGIN X509 CRL\" in it".to_owned())),
        1..=MAX_LISTS => Ok(lists),
        _ => Err(CrlError::TooMany),
    }
}

fn reason_word(reason: RevocationReason) -> &'static str {
    match reason {
        RevocationReason::Unspecified => "unspecified",
        RevocationReason::KeyCompromise => "keyCompromise",
        RevocationReason::CaCompromise => "cACompromise",
        RevocationReason::AffiliationChanged => "affiliationChanged",
        RevocationReason::Superseded => "superseded",
        RevocationReason::CessationOfOperation => "cessationOfOperation",
        RevocationReason::CertificateHold => "certificateHold",
        RevocationReason::RemoveFromCrl => "removeFromCRL",
        RevocationReason::PrivilegeWithdrawn => "privilegeWithdrawn",
        RevocationReason::AaCompromise => "aACompromise",
    }
}
