//! Kinds of keys, and whose key it is.

use aws_lc_rs::signature::Ed25519KeyPair;
use base64ct::{Base64, Encoding};
use rcgen::{KeyPair, RsaKeySize, SignatureAlgorithm};

use super::Verdict::{Good, Refused};
use super::{Authorities, Entry, authority};
use crate::issue::{self, IssueError};

pub(super) fn entries(made: &Authorities) -> Result<Vec<Entry>, IssueError> {
    let mut entries = Vec::new();
    let of = |algorithm: &'static SignatureAlgorithm| KeyPair::generate_for(algorithm);
    let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
    for (name, key) in [
        ("a P-384 key", of(&rcgen::PKCS_ECDSA_P384_SHA384)?),
        ("a P-521 key", of(&rcgen::PKCS_ECDSA_P521_SHA512)?),
        ("an Ed25519 key", ed25519()?),
        ("an RSA key of 2048 bits", rsa(RsaKeySize::_2048)?),
        ("an RSA key of 3072 bits", rsa(RsaKeySize::_3072)?),
        ("an RSA key of 4096 bits", rsa(RsaKeySize::_4096)?),
    ] {
        entries.push(Entry::new(name, Good, &made.good()?.sign_for(&made.plain, &key)?)?);
    }
    let stranger = issue::make_ca(&"elsewhere.example".parse().map_err(bad)?, super::DAY * 30)?;
    let same_domain = issue::make_ca(&made.domain, super::DAY * 30)?;
    let namesake = namesake(made)?;
    for (name, label, ca) in [
        ("issued by the authority of another domain", "unknown_issuer", &stranger),
        (
            "issued by an authority of our domain that is not in the bundle",
            "unknown_issuer",
            &same_domain,
        ),
        ("issued by an authority of the same name with another key", "bad_signature", &namesake),
    ] {
        entries.push(Entry::new(name, Refused(label), &made.good()?.sign(ca)?)?);
    }
    let untrusted =
        [("with that authority behind it", &stranger), ("with the namesake behind it", &namesake)];
    for ((name, ca), label) in untrusted.into_iter().zip(["unknown_issuer", "bad_signature"]) {
        let svid = made.good()?.sign(ca)?;
        entries.push(Entry::new(name, Refused(label), &svid)?.through(&[ca])?);
    }
    let own = made.good()?.self_signed()?;
    entries.push(Entry::new("signed by itself", Refused("unknown_issuer"), &own)?);
    Ok(entries)
}

/// As RFC 8410 §7 has it; what rcgen makes itself has the public key too, and OpenSSL 3.0 does
/// not read that form.
fn ed25519() -> Result<KeyPair, IssueError> {
    let key = Ed25519KeyPair::generate().and_then(|key| key.to_pkcs8v1()).map_err(bad)?;
    let text = Base64::encode_string(key.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    Ok(KeyPair::from_pem(&pem)?)
}

fn namesake(made: &Authorities) -> Result<issue::CertificateAuthority, IssueError> {
    let plain = super::der_of(&made.plain.cert_pem)?;
    let parsed = crate::leaf::parse(&plain).map_err(bad)?;
    let first = |mut names: Vec<&str>| names.pop().unwrap_or_default().to_owned();
    let organization =
        first(parsed.subject().iter_organization().filter_map(|n| n.as_str().ok()).collect());
    let common =
        first(parsed.subject().iter_common_name().filter_map(|n| n.as_str().ok()).collect());
    authority("", None, |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        params.distinguished_name.push(rcgen::DnType::CommonName, common);
    })
}

fn bad(error: impl std::fmt::Display) -> IssueError {
    IssueError::BadAuthority(error.to_string())
}
