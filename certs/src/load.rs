//! From files to a [`TlsGeneration`].

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::files::{Content, ContentHash, Directories, Hasher, ReadFault};
pub use crate::generation::KeyExchange;
use crate::generation::{GenerationError, TlsGeneration};
use crate::keys::{Key, without_keys};
use crate::pem;
use crate::refusal::PeerRefusal;
use crate::revocation::{CrlError, RevocationLists};
use crate::spiffe::TrustDomain;
use crate::verify::TrustBundles;

/// The most bytes that any one file may have, but for that of revocation lists.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The most bytes that the file of revocation lists may have.
pub const MAX_CRL_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// The most bundles that a directory of trust bundles may hold.
pub const MAX_TRUST_BUNDLES: usize = 256;

/// How often all files are read until two readings in a row agree.
const MAX_READINGS: usize = 5;

/// Where our own certificate and private key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SvidSource {
    /// Two PEM files: the chain, leaf first, and the key.
    Files {
        /// The chain.
        cert: PathBuf,
        /// The private key: PKCS#8, SEC1 or PKCS#1.
        key: PathBuf,
    },
    /// One PEM file with the key and the chain, in either order.
    Bundle {
        /// The file.
        file: PathBuf,
    },
}

/// The files of an identity, and what must hold for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Our certificate and key.
    pub svid: SvidSource,
    /// The authorities of our own trust domain, PEM.
    pub ca: PathBuf,
    /// A directory with `<trust domain>.pem` for each other domain. Other files in it, and hidden
    /// ones, are left alone.
    pub trust_bundles_dir: Option<PathBuf>,
    /// Revocation lists, PEM or DER, of authorities of any domain. Without one nothing is revoked.
    pub crl: Option<PathBuf>,
    /// Our trust domain, where it isn't simply that of our certificate; the two must be equal.
    pub trust_domain: Option<TrustDomain>,
    /// Which key exchange to offer.
    pub key_exchange: KeyExchange,
}

impl IdentityFiles {
    /// Everything that is read, for a watch: the files, and the directory of bundles.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let mut paths = match &self.svid {
            SvidSource::Files { cert, key } => vec![cert.clone(), key.clone()],
            SvidSource::Bundle { file } => vec![file.clone()],
        };
        paths.push(self.ca.clone());
        paths.extend(self.trust_bundles_dir.clone());
        paths.extend(self.crl.clone());
        paths
    }
}

/// Why there is no generation from these files. Each message names the file and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file isn't there.
    #[error("{}: not found; is the volume mounted and the certificate issued?", .0.display())]
    NotFound(PathBuf),
    /// The file can't be opened or read.
    #[error("{}: {reason}; check its mode, owner and kind, and that its folder was not replaced", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// More than [`MAX_FILE_BYTES`], or of revocation lists than [`MAX_CRL_FILE_BYTES`].
    #[error("{}: {bytes} bytes; {most} is the most, is it the right file?", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How many bytes it has.
        bytes: u64,
        /// How many it may have.
        most: u64,
    },
    /// No bytes at all.
    #[error("{}: empty; wait for its writer or issue the certificate again", .0.display())]
    Empty(PathBuf),
    /// Not PEM, or without what the file is for.
    #[error("{}: {reason}; it must hold {wanted} in PEM", .path.display())]
    BadPem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What the file is for.
        wanted: &'static str,
    },
    /// The key isn't the certificate's: often a pair caught between two writes.
    #[error("{}: the key does not belong to the certificate; issue both together", .0.display())]
    KeyMismatch(PathBuf),
    /// The key is of a kind that isn't taken.
    #[error("{}: {reason}", .path.display())]
    UnusableKey {
        /// The file with the key.
        path: PathBuf,
        /// What is wrong and what would do.
        reason: String,
    },
    /// Our certificate breaks a rule that peers hold us to.
    #[error("{}: not an X.509-SVID that peers accept: {refusal}", .path.display())]
    OwnSvidInvalid {
        /// The file with the certificate.
        path: PathBuf,
        /// The rule.
        refusal: PeerRefusal,
    },
    /// Our certificate is of another trust domain than configured.
    #[error("{}: of trust domain {found}, but {expected} is configured", .path.display())]
    TrustDomain {
        /// The file with the certificate.
        path: PathBuf,
        /// The certificate's.
        found: TrustDomain,
        /// The configured one.
        expected: TrustDomain,
    },
    /// A trust bundle that can't be taken.
    #[error("{}: as a trust bundle: {reason}", .path.display())]
    Bundle {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Revocation lists that can't be used.
    #[error("{}: as revocation lists: {error}", .path.display())]
    BadCrl {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: CrlError,
    },
    /// The files changed all the while.
    #[error("the certificate files keep changing; write each whole, and rename it into place")]
    Changing,
    /// What the SPIFFE Workload API answers, or that it doesn't.
    #[error("the Workload API: {0}; see the SPIFFE agent's log and the workload's registration")]
    WorkloadApi(String),
    /// TLS can't be set up.
    #[error("TLS can't be set up: {0}")]
    Tls(String),
}

impl LoadError {
    /// Every value that [`LoadError::label`] can have.
    pub const ALL_LABELS: &'static [&'static str] = &[
        "not_found",
        "unreadable",
        "too_large",
        "empty",
        "bad_pem",
        "key_mismatch",
        "unusable_key",
        "own_svid_invalid",
        "trust_domain",
        "bundle",
        "bad_crl",
        "changing",
        "workload_api",
        "tls",
    ];

    /// The reason as a stable `snake_case` word, for a metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Unreadable { .. } => "unreadable",
            Self::TooLarge { .. } => "too_large",
            Self::Empty(_) => "empty",
            Self::BadPem { .. } => "bad_pem",
            Self::KeyMismatch(_) => "key_mismatch",
            Self::UnusableKey { .. } => "unusable_key",
            Self::OwnSvidInvalid { .. } => "own_svid_invalid",
            Self::TrustDomain { .. } => "trust_domain",
            Self::Bundle { .. } => "bundle",
            Self::BadCrl { .. } => "bad_crl",
            Self::Changing => "changing",
            Self::WorkloadApi(_) => "workload_api",
            Self::Tls(_) => "tls",
        }
    }

    fn building(cert: &Path, key: &Path, error: GenerationError) -> Self {
        match error {
            GenerationError::KeyMismatch => Self::KeyMismatch(key.to_owned()),
            GenerationError::UnusableKey(_) => {
                Self::UnusableKey { path: key.to_owned(), reason: error.to_string() }
            }
            GenerationError::OwnSvid(refusal) => {
                Self::OwnSvidInvalid { path: cert.to_owned(), refusal }
            }
            GenerationError::Tls(reason) => Self::Tls(reason),
        }
    }

    fn reading(path: &Path, most: u64, fault: ReadFault) -> Self {
        let path = path.to_owned();
        match fault {
            ReadFault::NotFound => Self::NotFound(path),
            ReadFault::Unreadable(reason) => Self::Unreadable { path, reason },
            ReadFault::TooLarge(bytes) => Self::TooLarge { path, bytes, most },
            ReadFault::Empty => Self::Empty(path),
        }
    }
}

/// Loads a generation. An expired certificate of our own is no error, see
/// [`TlsGeneration::own_state`]; one that doesn't chain to our own bundle at `now` is only warned
/// of, because certificate and bundle rotate at different moments.
///
/// # Errors
/// The first [`LoadError`]; also that of a part that a [`Reloader`](crate::reload::Reloader) does
/// without.
pub fn load(files: &IdentityFiles, now: UnixTime) -> Result<TlsGeneration, LoadError> {
    let Built { generation, faults } = build(files, &read_stable(files)?, None, now)?;
    faults.into_iter().next().map_or(Ok(generation), Err)
}

/// What a file holds, or why it can't be read.
type Read = Result<Content, LoadError>;

/// All that the files hold, from one reading.
pub(crate) struct Snapshot {
    cert: Read,
    key: Read,
    ca: Read,
    crl: Option<Read>,
    bundles: Result<Vec<BundleFile>, LoadError>,
    pub(crate) hash: ContentHash,
}

/// A file in the directory of trust bundles.
struct BundleFile {
    path: PathBuf,
    domain: Result<TrustDomain, LoadError>,
    content: Read,
}

/// A generation, and what could not be used for it.
pub(crate) struct Built {
    pub(crate) generation: TlsGeneration,
    /// Each of a file that is others' business, or that of revocation lists: the domain's bundle
    /// of before stays, if there was one, and the lists of before do.
    pub(crate) faults: Vec<LoadError>,
}

/// Reads everything until two readings agree, so that a file caught during its rewriting isn't
/// taken.
pub(crate) fn read_stable(files: &IdentityFiles) -> Result<Snapshot, LoadError> {
    settled(|| read_once(files))
}

fn settled(mut read: impl FnMut() -> Snapshot) -> Result<Snapshot, LoadError> {
    let mut last = read();
    for _ in 1..MAX_READINGS {
        let next = read();
        if last.hash == next.hash {
            return Ok(next);
        }
        last = next;
    }
    Err(LoadError::Changing)
}

/// Reads everything; what can't be read is told by whoever needs it.
pub(crate) fn read_once(files: &IdentityFiles) -> Snapshot {
    let mut directories = Directories::default();
    let mut read_up_to = |path: &Path, most: u64| {
        directories.read(path, most).map_err(|fault| LoadError::reading(path, most, fault))
    };
    let crl = files.crl.as_ref().map(|path| read_up_to(path, MAX_CRL_FILE_BYTES));
    let mut read = |path: &Path| read_up_to(path, MAX_FILE_BYTES);
    let (cert, key) = match &files.svid {
        SvidSource::Files { cert, key } => (read(cert), read(key)),
        SvidSource::Bundle { file } => {
            let both = read(file);
            (both.clone(), both)
        }
    };
    let ca = read(&files.ca);
    let bundles = files.trust_bundles_dir.as_ref();
    let bundles = bundles.map_or(Ok(Vec::new()), |folder| read_bundles(folder, &mut directories));
    let hash = hash_of([&cert, &key, &ca].into_iter().chain(&crl), &bundles);
    Snapshot { cert, key, ca, crl, bundles, hash }
}

fn hash_of<'a>(
    files: impl Iterator<Item = &'a Read>,
    bundles: &Result<Vec<BundleFile>, LoadError>,
) -> ContentHash {
    let mut hasher = Hasher::new();
    let fault = |fault: &LoadError| format!("fault: {fault:?}");
    let mut read = |content: &Read| match content {
        Ok(content) => hasher.part(content),
        Err(e) => hasher.part(fault(e).as_bytes()),
    };
    files.for_each(&mut read);
    match bundles {
        Ok(bundles) => {
            bundles.iter().for_each(|bundle| read(&bundle.content));
            for bundle in bundles {
                hasher.part(bundle.path.as_os_str().as_encoded_bytes());
            }
        }
        Err(e) => hasher.part(fault(e).as_bytes()),
    }
    hasher.finish()
}

fn read_bundles(
    directory: &Path,
    directories: &mut Directories,
) -> Result<Vec<BundleFile>, LoadError> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => LoadError::NotFound(directory.to_owned()),
        _ => LoadError::Unreadable { path: directory.to_owned(), reason: error.to_string() },
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if let Some(name) = name.to_str()
            && let Some(domain) = name.strip_suffix(".pem")
            && !name.starts_with('.')
        {
            names.push((directory.join(name), domain.to_owned()));
        }
        if names.len() > MAX_TRUST_BUNDLES {
            let reason = format!("more than {MAX_TRUST_BUNDLES} bundles");
            return Err(LoadError::Bundle { path: directory.to_owned(), reason });
        }
    }
    // The kubelet swaps a volume's versions first, and then removes the links that lead to nothing.
    // Where nobody can say what they lead to, reading them does.
    names.retain(|(path, _)| {
        directories.behind_data(path).is_none_or(|file| file.try_exists().unwrap_or(true))
    });
    names.sort();
    let mut bundle = |(path, name): (PathBuf, String)| BundleFile {
        domain: name.parse::<TrustDomain>().map_err(|error| LoadError::Bundle {
            path: path.clone(),
            reason: format!("the file's name is no trust domain: {error}"),
        }),
        content: directories
            .read(&path, MAX_FILE_BYTES)
            .map_err(|fault| LoadError::reading(&path, MAX_FILE_BYTES, fault)),
        path,
    };
    Ok(names.into_iter().map(&mut bundle).collect())
}

/// Builds a generation, of `before` where a part can't be used that must not hold up the rest: a
/// partner's bundle must not hold up our own rotation or a revocation, nor a broken list our own
/// rotation.
pub(crate) fn build(
    files: &IdentityFiles,
    snapshot: &Snapshot,
    before: Option<&TlsGeneration>,
    now: UnixTime,
) -> Result<Built, LoadError> {
    let (cert_path, key_path) = match &files.svid {
        SvidSource::Files { cert, key } => (cert, key),
        SvidSource::Bundle { file } => (file, file),
    };
    let chain = certificates(cert_path, whole(&snapshot.cert)?)?;
    let key = private_key(key_path, whole(&snapshot.key)?)?;
    let refused = |refusal| LoadError::OwnSvidInvalid { path: cert_path.clone(), refusal };
    let own = chain.first().ok_or(PeerRefusal::NoCertificate).and_then(crate::leaf::check);
    let own_domain = own.map_err(refused)?.id.trust_domain().clone();
    if let Some(expected) = files.trust_domain.as_ref().filter(|domain| **domain != own_domain) {
        let (path, expected) = (cert_path.clone(), expected.clone());
        return Err(LoadError::TrustDomain { path, found: own_domain, expected });
    }
    let known = before.map(|generation| generation.verifier().bundles());
    let mut faults = Vec::new();
    let bundles = trust_bundles(files, snapshot, &own_domain, known, &mut faults)?;
    let bundles = match (revocation_lists(files, snapshot), known) {
        (Ok(lists), known) => bundles.with_lists_or_those_of(lists, known),
        (Err(fault), Some(known)) => {
            faults.push(fault);
            bundles.with_the_lists_of(known)
        }
        // What they would have revoked is not known.
        (Err(fault), None) => return Err(fault),
    };
    let generation =
        key.der().map_err(|fault| GenerationError::UnusableKey(fault.to_string())).and_then(
            |key| TlsGeneration::next(before, chain.clone(), &key, bundles, files.key_exchange),
        );
    let generation = generation.map_err(|error| LoadError::building(cert_path, key_path, error))?;
    if let Err(refusal) = generation.verifier().verify(&chain, now) {
        let (file, reason) = (cert_path.display(), refusal.to_string());
        tracing::warn!(%file, %reason, "peers with our trust bundle would refuse our certificate");
    }
    warn_if_world_readable(key_path);
    Ok(Built { generation, faults })
}

fn trust_bundles(
    files: &IdentityFiles,
    snapshot: &Snapshot,
    own_domain: &TrustDomain,
    before: Option<&TrustBundles>,
    faults: &mut Vec<LoadError>,
) -> Result<TrustBundles, LoadError> {
    let mut bundles = TrustBundles::new();
    let mut add = |path: &Path, domain: &TrustDomain, content: &[u8]| {
        bundles
            .add(domain.clone(), &certificates(path, content)?)
            .map_err(|error| LoadError::Bundle { path: path.to_owned(), reason: error.to_string() })
    };
    add(&files.ca, own_domain, whole(&snapshot.ca)?)?;
    let mut broken = Vec::new();
    for BundleFile { path, domain, content } in snapshot.bundles.as_ref().map_err(Clone::clone)? {
        let added = match (domain, content) {
            (Ok(domain), Ok(content)) => add(path, domain, content),
            (Err(fault), _) | (_, Err(fault)) => Err(fault.clone()),
        };
        if let Err(fault) = added {
            broken.extend(domain.as_ref().ok());
            faults.push(fault);
        }
    }
    for domain in broken {
        bundles.keep(domain, before);
    }
    Ok(bundles)
}

fn revocation_lists(
    files: &IdentityFiles,
    snapshot: &Snapshot,
) -> Result<RevocationLists, LoadError> {
    let (Some(path), Some(content)) = (&files.crl, &snapshot.crl) else {
        return Ok(RevocationLists::default());
    };
    RevocationLists::from_file(whole(content)?)
        .map_err(|error| LoadError::BadCrl { path: path.clone(), error })
}

fn whole(read: &Read) -> Result<&Content, LoadError> {
    read.as_ref().map_err(Clone::clone)
}

/// The last generation with newer revocation lists, where there are any and the rest can't be used:
/// a fault of ours must not hold up a revocation.
///
/// # Errors
/// What is wrong of these.
pub(crate) fn with_newer_lists(
    files: &IdentityFiles,
    snapshot: &Snapshot,
    before: &TlsGeneration,
) -> Result<Option<TlsGeneration>, LoadError> {
    Ok(before.with_newer_lists(revocation_lists(files, snapshot)?))
}

fn certificates(path: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let bad = |reason: String| LoadError::BadPem {
        path: path.to_owned(),
        reason,
        wanted: "certificates",
    };
    // What is meant to be trusted, presented or obeyed must not be lost in silence.
    let is_lost =
        |label: &[u8]| pem::is_other_certificate(label) || label.trim_ascii().ends_with(b"CRL");
    let strict = pem::check_marks(content).and(pem::check_labels(content, is_lost));
    let certificates = strict.and_then(|()| pem::certificates(&without_keys(content)));
    let certificates = certificates.map_err(|fault| bad(fault.to_string()))?;
    if certificates.is_empty() {
        return Err(bad("no \"BEGIN CERTIFICATE\" in it".to_owned()));
    }
    Ok(certificates)
}

fn private_key(path: &Path, content: &[u8]) -> Result<Key, LoadError> {
    let bad = |reason: String| LoadError::BadPem {
        path: path.to_owned(),
        reason,
        wanted: "a private key (PKCS#8, SEC1 or PKCS#1)",
    };
    pem::check_marks(content).map_err(|fault| bad(fault.to_string()))?;
    Key::from_pem(content).map_err(|fault| bad(fault.to_string()))
}

// The mode is whoever's who mounted it: a warning, not a refusal.
fn warn_if_world_readable(key: &Path) {
    let mode = fs::metadata(key).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o004 != 0 {
        let file = key.display();
        tracing::warn!(%file, mode = %format!("{:o}", mode & 0o777), "anyone may read the private key");
    }
}

#[cfg(test)]
mod tests;
