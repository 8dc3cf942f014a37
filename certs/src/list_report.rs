//! What a revocation list holds, for people and for scripts.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use serde::Serialize;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::dates::{rfc3339, seconds};
use crate::inspect::Broken;
use crate::leaf;
use crate::revocation::RevocationLists;

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryReport {
    /// The serial number of the revoked certificate, in lower-case hex.
    pub serial: String,
    /// When it was revoked, RFC 3339.
    pub at: String,
    /// The reason as RFC 5280 §5.3.1 names it, where the list has one.
    pub reason: Option<String>,
}

/// One revocation list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListReport {
    /// The issuer's distinguished name.
    pub issuer: String,
    /// When it was issued, RFC 3339.
    pub this_update: String,
    /// When it ends, RFC 3339; none makes it useless.
    pub next_update: Option<String>,
    /// What it revokes, in the list's order.
    pub revoked: Vec<EntryReport>,
    /// What is wrong with it.
    pub broken: Vec<Broken>,
}

/// The lists in a PEM file, or one in DER, judged at the time `now`; with `authorities`, also whether one of them
/// has signed it. `None` when the file has no list.
pub(crate) fn lists(
    pem: &[u8],
    authorities: Option<&[CertificateDer<'_>]>,
    now: UnixTime,
) -> Option<Vec<ListReport>> {
    let ders: Vec<_> = if CertificateRevocationList::from_der(pem).is_ok() {
        vec![CertificateRevocationListDer::from(pem)]
    } else {
        CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?
    };
    let reports: Vec<_> = ders.iter().map(|der| report(der, authorities, now)).collect();
    (!reports.is_empty()).then_some(reports)
}

fn report(
    der: &CertificateRevocationListDer<'_>,
    authorities: Option<&[CertificateDer<'_>]>,
    now: UnixTime,
) -> ListReport {
    let mut broken = Vec::new();
    let mut fault = |rule, message: String| broken.push(Broken { rule, message });
    // As the proxy reads it.
    if let Err(error) = RevocationLists::from_file(der) {
        fault("bad_crl", error.to_string());
    }
    let Ok((_, list)) = CertificateRevocationList::from_der(der) else {
        let unknown = String::new();
        let this_update = unknown.clone();
        let revoked = Vec::new();
        return ListReport { issuer: unknown, this_update, next_update: None, revoked, broken };
    };
    let next_update = list.next_update().map(|date| date.timestamp());
    if let Some(end) = next_update.filter(|end| seconds(now) >= *end) {
        fault("crl_expired", format!("it ended at {}; publish a new one", rfc3339(end)));
    }
    if authorities.is_some_and(|authorities| !authorities.iter().any(|ca| has_signed(ca, &list))) {
        fault("crl_invalid", "it is not signed by one of the authorities".to_owned());
    }
    ListReport {
        issuer: list.issuer().to_string().escape_debug().to_string(),
        this_update: rfc3339(list.last_update().timestamp()),
        next_update: next_update.map(rfc3339),
        revoked: list
            .iter_revoked_certificates()
            .map(|entry| EntryReport {
                serial: leaf::hex(entry.raw_serial()),
                at: rfc3339(entry.revocation_date.timestamp()),
                reason: entry.reason_code().map(|(_, code)| code.to_string()),
            })
            .collect(),
        broken,
    }
}

fn has_signed(authority: &CertificateDer<'_>, list: &CertificateRevocationList<'_>) -> bool {
    leaf::parse(authority).is_ok_and(|ca| {
        ca.subject().as_raw() == list.issuer().as_raw()
            && list.verify_signature(ca.public_key()).is_ok()
    })
}
