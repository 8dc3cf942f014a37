//! Certificates that break a rule, as files that `openssl` can present.

use std::fs;
use std::path::Path;

use pillion_certs::issue::{self, CertificateAuthority};
use pillion_certs::spiffe::TrustDomain;

use crate::labels::TRUST_DOMAIN;
use crate::{Context, Failure};

/// The files of an SVID, as words of a command line.
#[derive(Debug, Clone)]
pub struct Svid {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// The authority of the mesh, to check the other side by.
    pub ca: String,
}

impl Svid {
    /// Those in a directory that has `tls.crt`, `tls.key` and `ca.crt`.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        let file = |name: &str| directory.join(name).display().to_string();
        Self { cert: file("tls.crt"), key: file("tls.key"), ca: file("ca.crt") }
    }
}

/// An SVID that must be refused.
#[derive(Debug, Clone)]
pub struct BadSvid {
    /// What is wrong with it.
    pub name: String,
    /// Its files.
    pub svid: Svid,
    /// The label that it is refused with.
    pub label: String,
}

/// Writes one SVID for each rule that can be broken, signed by the authority in `ca`, into
/// directories below `out`.
///
/// # Errors
/// The authority cannot be read, or a file not be written.
pub fn bad_svids(ca: &Path, out: &Path) -> Result<Vec<BadSvid>, Failure> {
    let read =
        |name: &str| fs::read_to_string(ca.join(name)).context(|| format!("the CA's {name}"));
    let authority =
        CertificateAuthority { cert_pem: read("ca.crt")?, key_pem: read("ca.key")?.into() };
    let domain: TrustDomain =
        TRUST_DOMAIN.parse().map_err(|error| Failure::Unexpected(format!("{error}")))?;
    let bad = issue::bad_svids(&authority, &domain)
        .map_err(|error| Failure::Unexpected(format!("forging bad SVIDs: {error}")))?;
    bad.into_iter()
        .enumerate()
        .map(|(number, bad)| {
            let directory = out.join(number.to_string());
            fs::create_dir_all(&directory)?;
            fs::write(directory.join("tls.crt"), &bad.svid.chain_pem)?;
            fs::write(directory.join("tls.key"), bad.svid.key_pem.as_bytes())?;
            fs::write(directory.join("ca.crt"), &authority.cert_pem)?;
            Ok(BadSvid {
                name: bad.name.to_owned(),
                svid: Svid::in_directory(&directory),
                label: bad.expected_label.to_owned(),
            })
        })
        .collect()
}
