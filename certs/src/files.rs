//! Reading a set of files as one: all from the same generation, and none half-written.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use zeroize::Zeroizing;

/// A file's content; it may be a private key, so it is wiped when dropped.
pub(crate) type Content = Zeroizing<Vec<u8>>;

/// Why a file can't be read. Two that are equal tell the same to whoever reads the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadFault {
    NotFound,
    Unreadable(String),
    TooLarge(u64),
    Empty,
}

/// The SHA-256 of a set of files, for "has anything changed?".
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// The directories of one attempt at reading, each resolved once.
///
/// Kubernetes mounts a Secret or ConfigMap as `dir/name -> ..data/name`, `..data -> ..<time>/`,
/// and publishes the next version by swapping `..data` (kubernetes/pkg/volume/util/atomic_writer).
/// Whoever opens two files by their names can get one from each side of the swap; whoever resolves
/// `..data` once can't.
#[derive(Default)]
pub(crate) struct Directories(BTreeMap<PathBuf, PathBuf>);

impl Directories {
    /// Where the files of `directory` really are, as of the first time this was asked.
    fn resolve(&mut self, directory: &Path) -> &Path {
        self.0.entry(directory.to_owned()).or_insert_with(|| {
            fs::canonicalize(directory.join("..data")).unwrap_or_else(|_| directory.to_owned())
        })
    }

    /// Reads a file that must hold something, of at most `limit` bytes.
    pub(crate) fn read(&mut self, path: &Path, limit: u64) -> Result<Content, ReadFault> {
        read_file(&self.behind_data(path).unwrap_or_else(|| path.to_owned()), limit)
    }

    /// Where a link through `..data` leads, even to nothing. A file beside `..data` is read under
    /// its own name, whatever a version has under that name.
    pub(crate) fn behind_data(&mut self, path: &Path) -> Option<PathBuf> {
        let link = fs::read_link(path).ok()?;
        let name = link.strip_prefix("..data").ok()?;
        Some(self.resolve(parent(path)).join(name))
    }
}

/// The directory that a file is in; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn read_file(path: &Path, limit: u64) -> Result<Content, ReadFault> {
    let fault = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ReadFault::NotFound,
        _ => ReadFault::Unreadable(error.to_string()),
    };
    // Asked before opening: to open a FIFO waits for its writer.
    let metadata = fs::metadata(path).map_err(fault)?;
    if !metadata.is_file() {
        return Err(ReadFault::Unreadable("not a regular file".to_owned()));
    }
    if metadata.len() > limit {
        return Err(ReadFault::TooLarge(metadata.len()));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(
        usize::try_from(metadata.len()).unwrap_or_default().saturating_add(1),
    ));
    let file = File::open(path).map_err(fault)?;
    file.take(limit.saturating_add(1)).read_to_end(&mut content).map_err(fault)?;
    match content.len() as u64 {
        0 => Err(ReadFault::Empty),
        length if length > limit => Err(ReadFault::TooLarge(length)),
        _ => Ok(content),
    }
}

/// Collects named contents into a [`ContentHash`]; the order counts.
pub(crate) struct Hasher(digest::Context);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Each part goes in with its length, so that no two lists of parts collide by their joints.
    pub(crate) fn part(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> ContentHash {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.0.finish().as_ref());
        ContentHash(hash)
    }
}

/// The most of one file that [`content_hash`] reads.
pub const MAX_HASHED_BYTES: u64 = 16 * 1024 * 1024;

/// One hash over files, by content: a rewrite with the same bytes is no change, a swapped symlink
/// with others is.
///
/// Never fails: a file that is missing, empty, unreadable or over [`MAX_HASHED_BYTES`] counts with
/// that as its content, so its return is seen as a change too.
#[must_use]
pub fn content_hash(paths: &[PathBuf]) -> ContentHash {
    let mut directories = Directories::default();
    let mut hasher = Hasher::new();
    for path in paths {
        hasher.part(path.as_os_str().as_encoded_bytes());
        match directories.read(path, MAX_HASHED_BYTES) {
            Ok(content) => {
                hasher.part(b"content");
                hasher.part(&content);
            }
            Err(fault) => {
                hasher.part(b"fault");
                hasher.part(format!("{fault:?}").as_bytes());
            }
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_hash_is_of_content_and_of_its_absence() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a"), dir.path().join("b")];
        let missing = content_hash(&paths);
        fs::write(&paths[0], "one").unwrap();
        fs::write(&paths[1], "two").unwrap();
        let first = content_hash(&paths);
        assert_ne!(missing, first);
        fs::write(&paths[0], "one").unwrap();
        assert_eq!(content_hash(&paths), first, "the same bytes again are no change");
        fs::write(&paths[0], "onet").unwrap();
        fs::write(&paths[1], "wo").unwrap();
        assert_ne!(content_hash(&paths), first, "the joint between two files counts");
        assert_eq!(first.to_string().len(), 64);
    }

    #[test]
    fn one_attempt_stays_on_one_side_of_a_swap() {
        let dir = tempfile::tempdir().unwrap();
        for (version, content) in [("..1", "old"), ("..2", "new")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            for name in ["tls.crt", "tls.key"] {
                fs::write(dir.path().join(version).join(name), content).unwrap();
            }
        }
        let data = dir.path().join("..data");
        symlink("..1", &data).unwrap();
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
        }
        let mut attempt = Directories::default();
        let crt = attempt.read(&dir.path().join("tls.crt"), 100).unwrap();
        fs::remove_file(&data).unwrap();
        symlink("..2", &data).unwrap();
        let key = attempt.read(&dir.path().join("tls.key"), 100).unwrap();
        assert_eq!((crt.as_slice(), key.as_slice()), (&b"old"[..], &b"old"[..]));
        let fresh = || Directories::default().read(&dir.path().join("tls.key"), 100);
        assert_eq!(fresh().unwrap().as_slice(), b"new");

        // Someone's own file in the place of the link: the volume's is no longer meant.
        fs::write(dir.path().join("own"), "own").unwrap();
        fs::rename(dir.path().join("own"), dir.path().join("tls.key")).unwrap();
        assert_eq!(fresh().unwrap().as_slice(), b"own");
        fs::remove_file(dir.path().join("tls.key")).unwrap();
        assert_eq!(fresh(), Err(ReadFault::NotFound));
    }

    #[test]
    fn every_fault_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let read = |limit| Directories::default().read(&path, limit);
        assert_eq!(read(10), Err(ReadFault::NotFound));
        fs::write(&path, "").unwrap();
        assert_eq!(read(10), Err(ReadFault::Empty));
        fs::write(&path, "12345678901").unwrap();
        assert_eq!(read(10), Err(ReadFault::TooLarge(11)));
        assert_eq!(read(11).unwrap().len(), 11);
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(10), Err(ReadFault::Unreadable("not a regular file".to_owned())));
    }

    #[test]
    fn a_file_that_is_longer_than_it_said_is_too_large() {
        // Files of procfs say that they have no bytes.
        let path = Path::new("/proc/self/status");
        assert_eq!(fs::metadata(path).unwrap().len(), 0);
        assert_eq!(Directories::default().read(path, 10), Err(ReadFault::TooLarge(11)));
    }

    #[test]
    fn a_hash_is_of_16_mib_and_no_more() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a")];
        let file = File::create(&paths[0]).unwrap();
        let hash_with_last_byte = |length: u64, last: u8| {
            file.set_len(length).unwrap();
            file.write_all_at(&[last], length - 1).unwrap();
            content_hash(&paths)
        };
        let most = 16 * 1024 * 1024;
        assert_ne!(hash_with_last_byte(most, 1), hash_with_last_byte(most, 2));
        assert_eq!(hash_with_last_byte(most + 1, 1), hash_with_last_byte(most + 1, 2));
    }
}
