//! The X509-SVID rules for one certificate, without its issuers.

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::refusal::{LeafSummary, PeerRefusal};
use crate::spiffe::{SpiffeId, TrustDomain};

/// A leaf that keeps every rule.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) serial: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// The leaf, or the first rule that it breaks. Its dates are read, not judged.
pub(crate) fn check(der: &CertificateDer<'_>) -> Result<Leaf, PeerRefusal> {
    let certificate = parse(der)?;
    let mut broken = Vec::new();
    let id = faults(&certificate, &mut broken);
    match (id, broken.into_iter().next()) {
        (_, Some(first)) => Err(first),
        (None, None) => Err(PeerRefusal::Malformed("no identity".to_owned())),
        (Some(id), None) => Ok(Leaf {
            id,
            serial: serial(&certificate),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        }),
    }
}

pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerRefusal> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(PeerRefusal::Malformed(format!("{} bytes after it", rest.len()))),
        Err(error) => Err(PeerRefusal::Malformed(error.to_string())),
    }
}

/// The serial number in lower-case hex, cut at RFC 5280's 20 bytes (and a sign byte).
pub(crate) fn serial(certificate: &X509Certificate<'_>) -> String {
    hex(certificate.raw_serial())
}

pub(crate) fn hex(serial: &[u8]) -> String {
    serial.iter().take(21).map(|byte| format!("{byte:02x}")).collect()
}

/// Every rule that a leaf breaks, in the order of [`PeerRefusal`]; the identity where it has a good
/// one.
pub(crate) fn faults(
    certificate: &X509Certificate<'_>,
    broken: &mut Vec<PeerRefusal>,
) -> Option<SpiffeId> {
    let serial = serial(certificate);
    let uris = match uri_sans(certificate) {
        Ok(uris) => uris,
        Err(refusal) => {
            broken.push(refusal);
            return None;
        }
    };
    let leaf = LeafSummary::new(&serial, uris.first().copied());
    let id = match uris.as_slice() {
        [] => Err(PeerRefusal::NoUriSan(leaf.clone())),
        [uri] => uri
            .parse::<SpiffeId>()
            .map_err(|error| PeerRefusal::SpiffeId { leaf: leaf.clone(), error }),
        _ => Err(PeerRefusal::TwoUriSans { leaf: leaf.clone(), count: uris.len() }),
    };
    let id = id.map_err(|refusal| broken.push(refusal)).ok();
    usage_faults(certificate, &leaf, broken)
        .unwrap_or_else(|error| broken.push(PeerRefusal::Malformed(error.to_string())));
    id
}

/// The URI SANs of a certificate, in their order.
///
/// A name of any type that doesn't decode makes the certificate malformed: it could be a second
/// identity in the eyes of another reader.
pub(crate) fn uri_sans<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Result<Vec<&'a str>, PeerRefusal> {
    let extension = certificate
        .subject_alternative_name()
        .map_err(|error| PeerRefusal::Malformed(format!("subject alternative name: {error}")))?;
    let names = extension.as_ref().map(|e| e.value.general_names.as_slice()).unwrap_or_default();
    if certificate.subject().iter().next().is_none() && extension.is_some_and(|e| !e.critical) {
        let what = "with an empty subject, the subject alternative name must be critical";
        return Err(PeerRefusal::Malformed(format!("{what} (RFC 5280 §4.2.1.6)")));
    }
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(tag, _) => {
                let what = format!("subject alternative name with tag {} does not decode", tag.0);
                return Err(PeerRefusal::Malformed(what));
            }
            _ => {}
        }
    }
    Ok(uris)
}

fn usage_faults(
    certificate: &X509Certificate<'_>,
    leaf: &LeafSummary,
    broken: &mut Vec<PeerRefusal>,
) -> Result<(), X509Error> {
    if certificate.basic_constraints()?.is_some_and(|e| e.value.ca) {
        broken.push(PeerRefusal::LeafIsCa(leaf.clone()));
    }
    let extension = certificate.key_usage()?;
    let usage = extension.as_ref().map(|e| e.value);
    if usage.is_some_and(|u| u.key_cert_sign()) {
        broken.push(PeerRefusal::KeyCertSign(leaf.clone()));
    }
    if usage.is_some_and(|u| u.crl_sign()) {
        broken.push(PeerRefusal::CrlSign(leaf.clone()));
    }
    // Absent, key usage allows everything in RFC 5280; an SVID must have it (X509-SVID §4.3).
    if !usage.is_some_and(|u| u.digital_signature()) {
        broken.push(PeerRefusal::NoDigitalSignature(leaf.clone()));
    }
    if extension.is_some_and(|e| !e.critical) {
        broken.push(PeerRefusal::KeyUsageNotCritical(leaf.clone()));
    }
    if let Some(purposes) = certificate.extended_key_usage()?.map(|e| e.value) {
        if !purposes.client_auth {
            broken.push(PeerRefusal::EkuMissingClientAuth(leaf.clone()));
        }
        if !purposes.server_auth {
            broken.push(PeerRefusal::EkuMissingServerAuth(leaf.clone()));
        }
    }
    Ok(())
}

/// Why a certificate between leaf and bundle can't be a signing certificate of SPIFFE's: one may
/// name its trust domain, once, and never a workload (X509-SVID §2, §3.2).
pub(crate) fn issuer_name_fault(
    der: &CertificateDer<'_>,
) -> Result<Option<&'static str>, PeerRefusal> {
    let certificate = parse(der)?;
    Ok(match uri_sans(&certificate)?.as_slice() {
        // Surplus in the chain: no path leads through it.
        _ if !certificate.is_ca() => None,
        [] => None,
        [uri] if TrustDomain::from_id(uri).is_ok() => None,
        [_] => Some("its URI SAN is no trust domain's"),
        _ => Some("it has more than one URI SAN"),
    })
}

/// Whether a certificate between leaf and bundle may sign certificates, of which webpki asks for
/// `cA` alone, and the last second of its validity.
pub(crate) fn check_issuer(der: &CertificateDer<'_>) -> Result<i64, webpki::Error> {
    let (_, issuer) = X509Certificate::from_der(der).map_err(|_| webpki::Error::BadDer)?;
    let usage = issuer.key_usage().map_err(|_| webpki::Error::MalformedExtensions)?;
    if usage.is_some_and(|e| e.value.key_cert_sign()) {
        Ok(issuer.validity().not_after.timestamp())
    } else {
        Err(webpki::Error::EndEntityUsedAsCa)
    }
}
