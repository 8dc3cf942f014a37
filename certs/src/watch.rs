//! A hint that files may have changed, from inotify.
//!
//! A hint only: events get lost (an overflow, a remount, a network file system), so whoever uses it
//! polls as well, and compares content. What is watched are directories, never a file's inode: a
//! file that is replaced by a rename, or by a swapped `..data` symlink, takes its watch with it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use crate::files::parent;
pub use crate::files::{ContentHash, MAX_HASHED_BYTES, content_hash};

/// How many symlinks in a row are followed; the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Why there is no watch. The caller logs it and lives by its polling.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The directory isn't there.
    #[error("{}: no such directory to watch; changes are found by polling", .0.display())]
    NoDirectory(PathBuf),
    /// There is no inotify instance to be had.
    #[error("inotify: {0}; raise fs.inotify.max_user_instances, until then changes are polled")]
    NoInotify(notify::Error),
    /// The system refuses, often for want of inotify watches.
    #[error(
        "{}: can't be watched: {source}; raise fs.inotify.max_user_watches, \
         until then changes are found by polling",
        .path.display()
    )]
    System {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: notify::Error,
    },
}

/// Watches as long as it lives.
#[derive(Debug)]
pub struct DirWatch {
    // Dropping it ends the watch and its thread.
    _watcher: RecommendedWatcher,
}

impl DirWatch {
    /// Watches the directories of `paths` (a path that is a directory: itself too), and those that
    /// their symlinks lead through. `on_change` runs on the watch's own thread, possibly several
    /// times for one change; it must not block.
    ///
    /// # Errors
    /// [`WatchError`]; nothing is watched then. A path that doesn't exist in a directory that does
    /// is fine: its creation is a change.
    pub fn new(
        paths: &[PathBuf],
        on_change: impl Fn() + Send + 'static,
    ) -> Result<Self, WatchError> {
        let directories: BTreeSet<PathBuf> =
            paths.iter().flat_map(|path| directories_of(path)).collect();
        let handler = move |event: notify::Result<notify::Event>| {
            // An error is reported as a change: it means that events were lost.
            if event.map_or(true, |event| is_change(event.kind)) {
                on_change();
            }
        };
        let mut watcher = notify::recommended_watcher(handler).map_err(WatchError::NoInotify)?;
        for path in directories {
            if !path.is_dir() {
                return Err(WatchError::NoDirectory(path));
            }
            watcher
                .watch(&path, RecursiveMode::NonRecursive)
                .map_err(|source| WatchError::System { path, source })?;
        }
        Ok(Self { _watcher: watcher })
    }
}

// Our own reading opens and closes the files: taken for changes, that would go round for ever.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

/// The directories in which a change can alter what `path` leads to.
fn directories_of(path: &Path) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    if path.is_dir() {
        directories.push(path.to_owned());
    }
    let mut next = path.to_owned();
    for _ in 0..MAX_LINKS {
        let directory = parent(&next).to_owned();
        directories.push(directory.clone());
        // A link among the directories: the one that it lies in is where it can be swapped.
        for ancestor in directory.ancestors().filter(|a| a.is_symlink()) {
            directories.push(parent(ancestor).to_owned());
        }
        match fs::read_link(&next) {
            Ok(target) => next = directory.join(target),
            Err(_) => break,
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, ModifyKind, RemoveKind, RenameMode};
    use std::os::unix::fs::symlink;

    #[test]
    fn reading_is_no_change_and_writing_is() {
        for kind in [
            AccessKind::Open(AccessMode::Any),
            AccessKind::Read,
            AccessKind::Close(AccessMode::Read),
        ] {
            assert!(!is_change(EventKind::Access(kind)), "{kind:?}");
        }
        for kind in [
            EventKind::Access(AccessKind::Close(AccessMode::Write)),
            EventKind::Create(CreateKind::File),
            EventKind::Modify(ModifyKind::Name(RenameMode::To)),
            EventKind::Remove(RemoveKind::File),
        ] {
            assert!(is_change(kind), "{kind:?}");
        }
    }

    #[test]
    fn every_directory_that_the_links_lead_through_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("mount/..v1")).unwrap();
        fs::create_dir_all(root.join("elsewhere")).unwrap();
        fs::write(root.join("elsewhere/real.crt"), "x").unwrap();
        symlink("..v1", root.join("mount/..data")).unwrap();
        symlink(root.join("elsewhere/real.crt"), root.join("mount/..v1/tls.crt")).unwrap();
        symlink("..data/tls.crt", root.join("mount/tls.crt")).unwrap();
        let found: BTreeSet<_> = directories_of(&root.join("mount/tls.crt")).into_iter().collect();
        for directory in ["mount", "mount/..data", "elsewhere"] {
            assert!(found.contains(&root.join(directory)), "{directory} of {found:?}");
        }
        symlink("loop", root.join("loop")).unwrap();
        assert!(directories_of(&root.join("loop")).len() <= 2 * MAX_LINKS + 1, "a loop ends");
    }
}
