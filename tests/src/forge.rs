//! Certificates that break a rule, as files that `openssl` can present.

use std::fs;
use std::path::Path;

use pillion_certs::issue::{self, CertificateAuthority, Forge, Issued};
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

/// The authority in a directory that has `ca.crt` and `ca.key`.
fn authority(ca: &Path) -> Result<CertificateAuthority, Failure> {
    let read =
        |name: &str| fs::read_to_string(ca.join(name)).context(|| format!("the CA's {name}"));
    Ok(CertificateAuthority { cert_pem: read("ca.crt")?, key_pem: read("ca.key")?.into() })
}

/// Writes an SVID that is valid from and until so many seconds from now into a new directory, as
/// `tls.crt`, `tls.key` and `ca.crt`.
///
/// # Errors
/// The authority cannot be read, or a file not be written.
pub fn valid(ca: &Path, id: &str, from: i64, until: i64, out: &Path) -> Result<(), Failure> {
    let authority = authority(ca)?;
    let svid = Forge::new(id).and_then(|forge| forge.valid(from, until).sign(&authority));
    let svid = svid.map_err(|error| Failure::Unexpected(format!("forging an SVID: {error}")))?;
    write(&svid, &authority, out)
}

fn write(svid: &Issued, authority: &CertificateAuthority, out: &Path) -> Result<(), Failure> {
    fs::create_dir_all(out)?;
    fs::write(out.join("tls.crt"), &svid.chain_pem)?;
    fs::write(out.join("tls.key"), svid.key_pem.as_bytes())?;
    fs::write(out.join("ca.crt"), &authority.cert_pem).map_err(Failure::from)
}

/// Writes one SVID for each rule that can be broken, signed by the authority in `ca`, into
/// directories below `out`.
///
/// # Errors
/// The authority cannot be read, or a file not be written.
pub fn bad_svids(ca: &Path, out: &Path) -> Result<Vec<BadSvid>, Failure> {
    let authority = authority(ca)?;
    let domain: TrustDomain =
        TRUST_DOMAIN.parse().map_err(|error| Failure::Unexpected(format!("{error}")))?;
    let bad = issue::bad_svids(&authority, &domain)
        .map_err(|error| Failure::Unexpected(format!("forging bad SVIDs: {error}")))?;
    bad.into_iter()
        .enumerate()
        .map(|(number, bad)| {
            let directory = out.join(number.to_string());
            write(&bad.svid, &authority, &directory)?;
            Ok(BadSvid {
                name: bad.name.to_owned(),
                svid: Svid::in_directory(&directory),
                label: bad.expected_label.to_owned(),
            })
        })
        .collect()
}
