//! Revocation lists of our own authorities, made with rcgen.

use std::str::FromStr;
use std::time::Duration;

pub use rcgen::RevocationReason;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::issue::{BACKDATE, CertificateAuthority, IssueError, issuer};
use crate::{leaf, revocation};

/// The most bytes that a serial number has, as RFC 5280 §4.1.2.2 bounds it.
const MAX_SERIAL_BYTES: usize = 20;

/// The serial number of a certificate: 1 to 20 bytes, positive, as RFC 5280 §4.1.2.2 has them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// Of the first certificate in a PEM file, which the authority must have issued by its name.
    ///
    /// # Errors
    /// [`IssueError::BadRevocation`].
    pub fn of_certificate(
        pem: &[u8],
        authority: &CertificateAuthority,
    ) -> Result<Self, IssueError> {
        let bad = |e: &dyn std::fmt::Display| IssueError::BadRevocation(e.to_string());
        let der = CertificateDer::from_pem_slice(pem).map_err(|e| bad(&e))?;
        let certificate = leaf::parse(&der).map_err(|e| bad(&e))?;
        let ca = certificate_of(authority)?;
        let ca = leaf::parse(&ca).map_err(|e| bad(&e))?;
        if certificate.issuer().as_raw() != ca.subject().as_raw() {
            return Err(bad(&"the authority has not issued the certificate; use its own"));
        }
        Ok(Self::from_integer(certificate.raw_serial()))
    }

    // DER writes a zero before a number whose first bit is set.
    fn from_integer(bytes: &[u8]) -> Self {
        Self(bytes.iter().copied().skip_while(|byte| *byte == 0).collect())
    }
}

impl FromStr for Serial {
    type Err = String;

    /// Hex digits of either case, with or without colons between bytes.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let digits = if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") };
        let pairs = digits.as_bytes().chunks(2).map(|pair| {
            let pair = pair.iter().map(|byte| char::from(*byte).to_digit(16));
            pair.into_iter().try_fold(0, |byte, digit| Some(byte * 16 + digit?))
        });
        let bytes: Option<Vec<u8>> =
            pairs.map(|byte| byte.and_then(|byte| u8::try_from(byte).ok())).collect();
        let serial = bytes.map(|bytes| Self::from_integer(&bytes));
        serial.filter(|s| (1..=MAX_SERIAL_BYTES).contains(&s.0.len())).ok_or_else(|| {
            format!("{text:?} is no serial number; write its 1 to 20 bytes in hex, as inspect does")
        })
    }
}

/// A list, signed by the authority, of all that `previous` (PEM, one list of the same authority)
/// revokes and of `revoked`, with `reason`, as of now. It ends `next_update` from now.
///
/// A certificate that is in the list already stays as it is there. The list's number is one more
/// than the previous one's, or 1.
///
/// # Errors
/// [`IssueError::BadRevocation`] for a previous list that isn't the authority's, or that isn't alone;
/// [`IssueError::BadTtl`] for a `next_update` of less than a second or more than 100 years.
pub fn revocation_list(
    authority: &CertificateAuthority,
    previous: Option<&[u8]>,
    revoked: &[Serial],
    reason: Option<RevocationReason>,
    next_update: Duration,
) -> Result<String, IssueError> {
    crate::issue::check_ttl(next_update)?;
    let now = OffsetDateTime::now_utc();
    let (number, mut entries) = match previous {
        Some(pem) => previous_entries(pem, authority)?,
        None => (0, Vec::new()),
    };
    for serial in revoked {
        let number = SerialNumber::from_slice(&serial.0);
        if entries.iter().all(|entry| entry.serial_number != number) {
            entries.push(RevokedCertParams {
                serial_number: number,
                revocation_time: now,
                reason_code: reason,
                invalidity_date: None,
            });
        }
    }
    let list = CertificateRevocationListParams {
        this_update: now - BACKDATE,
        next_update: now + next_update,
        crl_number: SerialNumber::from(number.saturating_add(1)),
        issuing_distribution_point: None,
        revoked_certs: entries,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(list.signed_by(&issuer(authority)?)?.pem()?)
}

/// The number and the entries of a list that the authority has signed.
fn previous_entries(
    pem: &[u8],
    authority: &CertificateAuthority,
) -> Result<(u64, Vec<RevokedCertParams>), IssueError> {
    let bad = |e: &dyn std::fmt::Display| {
        IssueError::BadRevocation(format!("the list that is there: {e}; name another file"))
    };
    let ders = revocation::ders(pem).map_err(|e| bad(&e))?;
    let [der] = ders.as_slice() else { return Err(bad(&"it is one of several in the file")) };
    let (_, list) = CertificateRevocationList::from_der(der).map_err(|e| bad(&e))?;
    let ca = certificate_of(authority)?;
    let (_, ca) = X509Certificate::from_der(&ca).map_err(|e| bad(&e))?;
    if list.issuer().as_raw() != ca.subject().as_raw()
        || list.verify_signature(ca.public_key()).is_err()
    {
        return Err(bad(&"it is not signed by this authority"));
    }
    let number = list.crl_number().and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
    let entries = list.iter_revoked_certificates().map(|entry| {
        let reason = entry.reason_code().and_then(|(_, code)| reason_of(code.0));
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&Serial::from_integer(entry.raw_serial()).0),
            revocation_time: entry.revocation_date.to_datetime(),
            reason_code: reason,
            invalidity_date: entry.invalidity_date().map(|(_, date)| date.to_datetime()),
        })
    });
    Ok((number, entries.collect::<Result<_, IssueError>>()?))
}

fn certificate_of(authority: &CertificateAuthority) -> Result<CertificateDer<'static>, IssueError> {
    CertificateDer::from_pem_slice(authority.cert_pem.as_bytes())
        .map_err(|error| IssueError::BadAuthority(error.to_string()))
}

fn reason_of(code: u8) -> Option<RevocationReason> {
    use RevocationReason as R;
    [
        R::KeyCompromise,
        R::CaCompromise,
        R::AffiliationChanged,
        R::Superseded,
        R::CessationOfOperation,
        R::CertificateHold,
        R::RemoveFromCrl,
        R::PrivilegeWithdrawn,
        R::AaCompromise,
    ]
    .into_iter()
    .find(|reason| *reason as u8 == code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue;
    use crate::revocation::RevocationLists;
    use rustls_pki_types::CertificateRevocationListDer;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn serials_are_read_as_people_write_them() {
        let serial = |text: &str| text.parse::<Serial>();
        assert_eq!(serial("0a:FF"), Ok(Serial(vec![0x0a, 0xff])));
        assert_eq!(serial("aff"), serial("0A:ff"));
        assert_eq!(serial("00ff"), serial("ff"), "DER's zero is no part of it");
        for bad in ["", "0", "00", "xyz", "-1", &"11".repeat(21)] {
            assert!(serial(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_list_keeps_what_was_in_it_and_counts_up() {
        let ca = issue::make_ca(&"example.org".parse().unwrap(), HOUR * 9).unwrap();
        let other = issue::make_ca(&"example.org".parse().unwrap(), HOUR * 9).unwrap();
        let list = |previous: Option<&str>, serials: &[&str], reason| {
            let serials: Vec<_> = serials.iter().map(|s| s.parse().unwrap()).collect();
            revocation_list(&ca, previous.map(str::as_bytes), &serials, reason, HOUR)
        };
        let first = list(None, &["0a"], Some(RevocationReason::KeyCompromise)).unwrap();
        let second = list(Some(&first), &["0a", "f1"], Some(RevocationReason::Superseded)).unwrap();
        let der = CertificateRevocationListDer::from_pem_slice(second.as_bytes()).unwrap();
        let (_, parsed) = CertificateRevocationList::from_der(&der).unwrap();
        let entries: Vec<_> = parsed
            .iter_revoked_certificates()
            .map(|e| (leaf::hex(e.raw_serial()), e.reason_code().unwrap().1.0))
            .collect();
        assert_eq!(entries, [("0a".to_owned(), 1), ("00f1".to_owned(), 4)]);
        assert_eq!(parsed.crl_number().map(ToString::to_string).as_deref(), Some("2"));
        assert_eq!(RevocationLists::from_file(second.as_bytes()).unwrap().len(), 1);
        let theirs = revocation_list(&other, None, &[], None, HOUR).unwrap();
        assert!(matches!(list(Some(&theirs), &[], None), Err(IssueError::BadRevocation(_))));
        let both = format!("{first}{second}");
        let one_of_two = list(Some(&both), &[], None).unwrap_err();
        assert!(one_of_two.to_string().contains("one of several"), "the other would be lost");
        let torn = &second[..second.len() / 2];
        assert!(matches!(list(Some(torn), &[], None), Err(IssueError::BadRevocation(_))));
        let never = revocation_list(&ca, None, &[], None, Duration::ZERO);
        assert!(matches!(never, Err(IssueError::BadTtl(_))));
    }

    #[test]
    fn a_certificate_is_revoked_by_its_own_authority_alone() {
        let ca = issue::make_ca(&"example.org".parse().unwrap(), HOUR * 9).unwrap();
        let other = issue::make_ca(&"example.org".parse().unwrap(), HOUR * 9).unwrap();
        let id = "spiffe://example.org/a".parse().unwrap();
        let pem = issue::issue(&ca, &id, HOUR).unwrap().chain_pem;
        assert!(Serial::of_certificate(pem.as_bytes(), &ca).is_ok());
        assert!(Serial::of_certificate(pem.as_bytes(), &other).is_err());
        assert!(Serial::of_certificate(b"hello", &ca).is_err());
    }
}
