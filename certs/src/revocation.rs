//! Certificate revocation lists (RFC 5280 §5), and what they say of a chain (§6.3).
//!
//! Signatures, scopes and dates of lists are webpki's work. Here is which lists a chain is held
//! against: webpki takes the first list with the issuer's name, and authorities that share a name,
//! as an old and a new one do, have a list each under different keys.

use std::collections::BTreeMap;
use std::fmt;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, OwnedCertRevocationList,
    RevocationOptions, RevocationOptionsBuilder, RevocationReason, UnknownStatusPolicy,
};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::dates::seconds;
use crate::expiry::{Lifetime, Subject};
use crate::leaf;

/// The most lists that may be loaded together.
pub const MAX_LISTS: usize = 256;

/// The most lists with the same issuer's name. It bounds how often a path is tried.
pub const MAX_LISTS_OF_ONE_NAME: usize = 4;

/// Why a revocation list can't be used. Numbers count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Neither PEM with an `X509 CRL` in it, nor DER.
    #[error("{0}")]
    NoList(String),
    /// Not a list of RFC 5280's profile: version 2, with nextUpdate, no delta, no unknown critical
    /// extension.
    #[error("list {0}: {1}; it must be a version 2 list with nextUpdate, and no delta")]
    Malformed(usize, String),
    /// More than [`MAX_LISTS`], or more than [`MAX_LISTS_OF_ONE_NAME`].
    #[error("more than {MAX_LISTS} lists, or {MAX_LISTS_OF_ONE_NAME} of one issuer's name")]
    TooMany,
}

struct List {
    lifetime: Lifetime,
    crl: CertRevocationList<'static>,
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
            lists.push(List { lifetime, crl });
        }
        Ok(Self(lists))
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

    /// The last second of the first list to end, of those that a chain is held against.
    pub(crate) fn end_for(&self, chain: &[CertificateDer<'_>]) -> Option<i64> {
        self.of_issuers(chain).map(|list| list.lifetime.until).min()
    }

    /// What a list with the right issuer's name says of a certificate of the chain. Whether that
    /// issuer has signed the list is for [`RevocationLists::check`] to say.
    pub(crate) fn named(&self, chain: &[CertificateDer<'_>]) -> Option<RevokedEntry> {
        let entry = |der: &CertificateDer<'_>| {
            let certificate = EndEntityCert::try_from(der).ok()?;
            let of_issuer = self.0.iter().filter(|l| l.crl.issuer() == certificate.issuer());
            of_issuer
                .filter_map(|list| list.crl.find_serial(certificate.serial()).ok().flatten())
                .map(|revoked| RevokedEntry {
                    serial: leaf::hex(certificate.serial()),
                    at: seconds(revoked.revocation_date),
                    reason: revoked.reason_code.map(reason_word),
                })
                .next()
        };
        chain.iter().find_map(entry)
    }

    /// Runs a path validation with the lists that concern the chain, or with none.
    ///
    /// An issuer without a list is not checked. Where lists share an issuer's name, each selection
    /// of one for each name is tried: a revocation or an expiry in any is final, since it was
    /// found behind a good signature; a signature by another key of that name is no fault as long
    /// as some selection is good.
    ///
    /// # Errors
    /// webpki's, as it came from `validate`.
    pub(crate) fn check(
        &self,
        chain: &[CertificateDer<'_>],
        expiration: ExpirationPolicy,
        validate: impl Fn(Option<RevocationOptions<'_>>) -> Result<(), webpki::Error>,
    ) -> Result<(), webpki::Error> {
        let mut groups: BTreeMap<_, Vec<&CertRevocationList<'static>>> = BTreeMap::new();
        for List { crl, .. } in self.of_issuers(chain) {
            let key = (crl.issuer(), crl.issuing_distribution_point());
            groups.entry(key).or_default().push(crl);
        }
        let groups: Vec<_> = groups.into_values().collect();
        // At most 4 names in a chain, with 4 selections each.
        let selections: usize = groups.iter().map(Vec::len).product();
        let mut verdict = Err(webpki::Error::UnknownRevocationStatus);
        for number in 0..selections {
            let selected = select(&groups, number);
            // An empty selection is no error: no list concerns this chain.
            let options = RevocationOptionsBuilder::new(&selected).ok().map(|builder| {
                builder
                    .with_status_policy(UnknownStatusPolicy::Allow)
                    .with_expiration_policy(expiration)
                    .build()
            });
            let result = validate(options);
            match result {
                Err(webpki::Error::CertRevoked | webpki::Error::CrlExpired { .. }) => {
                    return result;
                }
                Ok(()) => verdict = Ok(()),
                Err(_) if verdict.is_ok() => {}
                Err(_) => verdict = result,
            }
        }
        // Among authorities of one name, webpki may name the wrong key's signature on the leaf
        // instead of that on the list.
        match verdict {
            Err(webpki::Error::InvalidSignatureForPublicKey) if validate(None).is_ok() => {
                Err(webpki::Error::InvalidCrlSignatureForPublicKey)
            }
            other => other,
        }
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

/// One list of each group, by the digits of `number`.
fn select<'a>(
    groups: &[Vec<&'a CertRevocationList<'static>>],
    mut number: usize,
) -> Vec<&'a CertRevocationList<'static>> {
    let mut selected = Vec::with_capacity(groups.len());
    for group in groups {
        selected.extend(group.get(number % group.len().max(1)));
        number /= group.len().max(1);
    }
    selected
}

fn ders(content: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, CrlError> {
    // A SEQUENCE: DER. PEM begins with a letter or a dash.
    if content.first() == Some(&0x30) {
        return Ok(vec![content.to_vec().into()]);
    }
    let lists: Result<Vec<_>, pem::Error> =
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
