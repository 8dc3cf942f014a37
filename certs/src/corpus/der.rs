//! DER (X.690) written and taken apart, as far as a forger needs it.

use rcgen::{KeyPair, SigningKey};
use rustls_pki_types::CertificateDer;

use crate::issue::{CertificateAuthority, IssueError};

pub(super) const SEQUENCE: u8 = 0x30;

/// One element: tag, length, content.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut out = vec![tag];
    match length.as_slice() {
        [] => out.push(0),
        [short] if *short < 0x80 => out.push(*short),
        long => {
            out.push(0x80 | u8::try_from(long.len()).unwrap_or_default());
            out.extend(long);
        }
    }
    out.extend(content);
    out
}

/// The content of the element at the beginning, and what is behind it.
fn open(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, length) = match *der.get(1)? {
        short @ 0..0x80 => (2, usize::from(short)),
        long => {
            let bytes = usize::from(long & 0x7f);
            let digits = der.get(2..2 + bytes)?;
            (2 + bytes, digits.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte)))
        }
    };
    Some((der.get(header..header + length)?, der.get(header + length..)?))
}

/// The elements of a content, each with its tag and length.
fn elements(content: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut all) = (content, Vec::new());
    while let Some((_, behind)) = open(rest) {
        all.extend(rest.get(..rest.len() - behind.len()).map(<[u8]>::to_vec));
        rest = behind;
    }
    all
}

/// A certificate with the elements of its TBSCertificate changed, and signed again.
pub(super) fn rewritten(
    certificate: &CertificateDer<'_>,
    issuer: &CertificateAuthority,
    change: impl FnOnce(&mut Vec<Vec<u8>>),
) -> Result<CertificateDer<'static>, IssueError> {
    let [tbs, algorithm, _] = parts(certificate)?;
    let mut inside = elements(open(&tbs).map(|(content, _)| content).unwrap_or_default());
    change(&mut inside);
    let tbs = element(SEQUENCE, &inside.concat());
    let key = KeyPair::from_pem(&issuer.key_pem)?;
    let signature = [vec![0], key.sign(&tbs)?].concat();
    Ok(certificate_of(&tbs, &algorithm, &element(0x03, &signature)))
}

/// A certificate with its three parts changed, and not signed again.
pub(super) fn mangled(
    certificate: &CertificateDer<'_>,
    change: impl FnOnce(&mut [Vec<u8>; 3]),
) -> Result<CertificateDer<'static>, IssueError> {
    let mut parts = parts(certificate)?;
    change(&mut parts);
    let [tbs, algorithm, signature] = parts;
    Ok(certificate_of(&tbs, &algorithm, &signature))
}

/// TBSCertificate, signatureAlgorithm, signatureValue (RFC 5280 §4.1).
fn parts(certificate: &CertificateDer<'_>) -> Result<[Vec<u8>; 3], IssueError> {
    let content = open(certificate).map(|(content, _)| content).unwrap_or_default();
    elements(content)
        .try_into()
        .map_err(|_| IssueError::BadAuthority("a certificate without three parts".to_owned()))
}

fn certificate_of(tbs: &[u8], algorithm: &[u8], signature: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from(element(SEQUENCE, &[tbs, algorithm, signature].concat()))
}
