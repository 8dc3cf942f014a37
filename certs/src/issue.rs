//! Authorities and SVIDs, made with rcgen: ECDSA P-256, a fresh key each time.
//!
//! For development, demos and tests, and for whoever runs a handful of services without a SPIRE or
//! cert-manager. The authority's key is a file; there is no audit. [`crate::revoke`] revokes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::files::parent;
pub use crate::forge::{BadSvid, Forge, bad_svids};
use crate::leaf;
use crate::spiffe::{SpiffeId, TrustDomain};

/// How far a certificate's validity begins before its issuing, for peers whose clocks lag.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The authority's certificate or key can't be read as such.
    #[error("the authority can't be used: {0}; make one with `pillion-certs ca`")]
    BadAuthority(String),
    /// The authority speaks for another trust domain.
    #[error("the authority is of trust domain {authority}, the identity of {id}; use its own")]
    WrongDomain {
        /// The authority's trust domain.
        authority: TrustDomain,
        /// The identity's.
        id: TrustDomain,
    },
    /// The certificate would outlive its authority.
    #[error("the authority ends in {left:?}, before the certificate would ({ttl:?}); shorten it")]
    OutlivesAuthority {
        /// What is left of the authority.
        left: Duration,
        /// What was asked for.
        ttl: Duration,
    },
    /// A lifetime of nothing, or beyond what a date can hold.
    #[error("a lifetime of {0:?} can't be issued; use something between 1 s and 100 years")]
    BadTtl(Duration),
    /// What should be revoked, or the list that it should be added to, can't be.
    #[error("can't be revoked: {0}")]
    BadRevocation(String),
    /// rcgen's reason.
    #[error("can't be issued: {0}")]
    Rcgen(#[from] rcgen::Error),
}

/// A certificate authority: its certificate and its private key.
pub struct CertificateAuthority {
    /// The certificate.
    pub cert_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: Zeroizing<String>,
}

/// An issued certificate with its key.
pub struct Issued {
    /// The certificate, leaf first, without the authority's own.
    pub chain_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: Zeroizing<String>,
}

impl Issued {
    /// Key and chain in one, as [`crate::load::SvidSource::Bundle`] reads it.
    #[must_use]
    pub fn bundle_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}{}", self.key_pem.as_str(), self.chain_pem))
    }
}

/// A self-signed authority for a trust domain, valid from [`BACKDATE`] ago for `ttl` from now.
///
/// It has the trust domain's id as URI SAN, and a path length of 0: it issues leaves alone.
///
/// # Errors
/// [`IssueError::BadTtl`] for less than a second or more than 100 years.
pub fn make_ca(domain: &TrustDomain, ttl: Duration) -> Result<CertificateAuthority, IssueError> {
    let key = KeyPair::generate()?;
    let mut params = base_params(ttl)?;
    params.distinguished_name = name(&authority_name(domain, &key));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(CertificateAuthority {
        cert_pem: certificate.pem(),
        key_pem: Zeroizing::new(key.serialize_pem()),
    })
}

/// A name of its own for every authority, by a part of its key's hash: a chain names its issuer by
/// this name alone, and one of a replaced authority is then told from a forged one. At most 64
/// characters (X.520, ub-common-name).
fn authority_name(domain: &TrustDomain, key: &KeyPair) -> String {
    let hash = digest::digest(&digest::SHA256, key.public_key_raw());
    let part: String = hash.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{:.44} authority {part}", domain.as_str())
}

/// An X.509-SVID with a fresh key, valid from [`BACKDATE`] ago for `ttl` from now.
///
/// # Errors
/// [`IssueError`], among them an authority of another trust domain (where its certificate names
/// one) and one that ends before the certificate would.
pub fn issue(
    authority: &CertificateAuthority,
    id: &SpiffeId,
    ttl: Duration,
) -> Result<Issued, IssueError> {
    let bad = |reason: &dyn std::fmt::Display| IssueError::BadAuthority(reason.to_string());
    let der = CertificateDer::from_pem_slice(authority.cert_pem.as_bytes()).map_err(|e| bad(&e))?;
    let parsed = leaf::parse(&der).map_err(|e| bad(&e))?;
    if !parsed.is_ca() {
        return Err(bad(&"its certificate is no CA certificate"));
    }
    let uris = leaf::uri_sans(&parsed).map_err(|e| bad(&e))?;
    if let Some(domain) = uris.first().and_then(|uri| TrustDomain::from_id(uri).ok())
        && domain != *id.trust_domain()
    {
        return Err(IssueError::WrongDomain { authority: domain, id: id.trust_domain().clone() });
    }
    let left = parsed.validity().not_after.timestamp() - OffsetDateTime::now_utc().unix_timestamp();
    let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
    if ttl > left {
        return Err(IssueError::OutlivesAuthority { left, ttl });
    }
    let mut params = svid_params(ttl)?;
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    sign(params, authority)
}

/// What a good SVID has, but for its name.
pub(crate) fn svid_params(ttl: Duration) -> Result<CertificateParams, IssueError> {
    let mut params = base_params(ttl)?;
    params.distinguished_name = name("workload");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Signs whatever it is given, under a fresh key.
pub(crate) fn sign(
    params: CertificateParams,
    authority: &CertificateAuthority,
) -> Result<Issued, IssueError> {
    sign_for(params, authority, &KeyPair::generate()?)
}

/// Signs whatever it is given, under this key.
pub(crate) fn sign_for(
    params: CertificateParams,
    authority: &CertificateAuthority,
    key: &KeyPair,
) -> Result<Issued, IssueError> {
    let certificate = params.signed_by(key, &issuer(authority)?)?;
    Ok(Issued { chain_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()) })
}

/// The authority as rcgen wants it.
pub(crate) fn issuer(
    authority: &CertificateAuthority,
) -> Result<Issuer<'static, KeyPair>, IssueError> {
    let key = KeyPair::from_pem(&authority.key_pem)
        .map_err(|error| IssueError::BadAuthority(format!("its key: {error}")))?;
    Issuer::from_ca_cert_pem(&authority.cert_pem, key)
        .map_err(|error| IssueError::BadAuthority(format!("its certificate: {error}")))
}

pub(crate) fn check_ttl(ttl: Duration) -> Result<(), IssueError> {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    if !(Duration::from_secs(1)..=CENTURY).contains(&ttl) {
        return Err(IssueError::BadTtl(ttl));
    }
    Ok(())
}

pub(crate) fn base_params(ttl: Duration) -> Result<CertificateParams, IssueError> {
    check_ttl(ttl)?;
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = now + ttl;
    Ok(params)
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Pillion");
    name.push(DnType::CommonName, common_name);
    name
}

/// A file to be written: where, what, and its mode.
#[derive(Clone, Copy)]
pub struct NewFile<'a> {
    /// Where.
    pub path: &'a Path,
    /// What.
    pub bytes: &'a [u8],
    /// Its permission bits, for example `0o600`.
    pub mode: u32,
}

/// A file that couldn't be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}; check that its directory exists and may be written", .path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

/// Writes a file so that a reader sees the old content or the new and nothing between: a temporary
/// file beside it, fsync, rename, fsync of the directory.
///
/// # Errors
/// [`WriteError`]; the old content stays then.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WriteError> {
    write_together(&[NewFile { path, bytes, mode }])
}

/// As [`write_atomically`] for several files: all are written in full before the first is renamed,
/// so that only a crash between two renames leaves a mixture.
///
/// # Errors
/// [`WriteError`] for the first file that fails.
pub fn write_together(files: &[NewFile<'_>]) -> Result<(), WriteError> {
    let failed = |path: &Path, source| WriteError { path: path.to_owned(), source };
    let mut written = Vec::with_capacity(files.len());
    for file in files {
        written.push((file.path, write_beside(file).map_err(|e| failed(file.path, e))?));
    }
    for (path, temporary) in written {
        temporary.persist(path).map_err(|error| failed(path, error.error))?;
    }
    for file in files {
        let directory = parent(file.path);
        File::open(directory).and_then(|d| d.sync_all()).map_err(|e| failed(directory, e))?;
    }
    Ok(())
}

fn write_beside(file: &NewFile<'_>) -> io::Result<NamedTempFile> {
    // Created with mode 0600, so a key is never readable by others, not even for a moment.
    let mut temporary = tempfile::Builder::new().prefix(".new-").tempfile_in(parent(file.path))?;
    temporary.write_all(file.bytes)?;
    temporary.as_file().set_permissions(fs::Permissions::from_mode(file.mode))?;
    temporary.as_file().sync_all()?;
    Ok(temporary)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn domain() -> TrustDomain {
        "example.org".parse().unwrap()
    }

    #[test]
    fn an_identity_may_live_as_long_as_its_authority_and_no_second_longer() {
        let ca = make_ca(&domain(), HOUR).unwrap();
        let id = "spiffe://example.org/a".parse().unwrap();
        let (_, der) = ::x509_parser::pem::parse_x509_pem(ca.cert_pem.as_bytes()).unwrap();
        let end = der.parse_x509().unwrap().validity().not_after.timestamp();
        let left = || {
            let seconds = end - OffsetDateTime::now_utc().unix_timestamp();
            Duration::from_secs(seconds.unsigned_abs())
        };
        // Both sides look at the clock; a second that began between the two proves nothing.
        let same_second = |more| loop {
            let ttl = left() + more;
            let outcome = issue(&ca, &id, ttl);
            if ttl == left() + more {
                return outcome.err();
            }
        };
        assert!(same_second(Duration::ZERO).is_none());
        let refused = same_second(Duration::from_secs(1));
        assert!(matches!(refused, Some(IssueError::OutlivesAuthority { .. })), "{refused:?}");
    }

    #[test]
    fn an_authority_issues_for_its_own_domain_and_time_alone() {
        let ca = make_ca(&domain(), HOUR).unwrap();
        let issue_for = |id: &str, ttl| issue(&ca, &id.parse().unwrap(), ttl).err();
        assert!(issue_for("spiffe://example.org/a", HOUR / 2).is_none());
        assert!(matches!(
            issue_for("spiffe://other.org/a", HOUR / 2),
            Some(IssueError::WrongDomain { .. })
        ));
        assert!(matches!(
            issue_for("spiffe://example.org/a", HOUR * 2),
            Some(IssueError::OutlivesAuthority { .. })
        ));
        assert!(matches!(
            issue_for("spiffe://example.org/a", Duration::ZERO),
            Some(IssueError::BadTtl(_))
        ));
        let years = |years: u32| make_ca(&domain(), HOUR * (365 * 24 * years));
        assert!(years(100).is_ok() && matches!(years(101), Err(IssueError::BadTtl(_))));
        let leaf = issue(&ca, &"spiffe://example.org/a".parse().unwrap(), HOUR / 2).unwrap();
        let not_ca = CertificateAuthority { cert_pem: leaf.chain_pem, key_pem: leaf.key_pem };
        let refused = issue(&not_ca, &"spiffe://example.org/b".parse().unwrap(), HOUR / 4);
        assert!(matches!(refused, Err(IssueError::BadAuthority(_))));
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_nothing_is_left_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tls.key");
        for content in ["first, and longer", "second"] {
            write_atomically(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn of_files_written_together_none_is_replaced_when_one_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("a");
        fs::write(&good, "old").unwrap();
        let nowhere = dir.path().join("missing/b");
        let error = write_together(&[
            NewFile { path: &good, bytes: b"new", mode: 0o644 },
            NewFile { path: &nowhere, bytes: b"new", mode: 0o644 },
        ])
        .unwrap_err();
        assert_eq!(error.path, nowhere);
        assert_eq!(fs::read_to_string(&good).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
