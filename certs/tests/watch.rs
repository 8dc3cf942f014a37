//! A watch on directories tells of what changes in them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at what it did not expect")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use pillion_certs::watch::{DirWatch, WatchError};

#[test]
fn a_watch_tells_of_a_swapped_symlink() {
    let dir = tempfile::tempdir().unwrap();
    for version in ["..v1", "..v2"] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("tls.crt"), version).unwrap();
    }
    symlink("..v1", dir.path().join("..data")).unwrap();
    let path = dir.path().join("tls.crt");
    symlink("..data/tls.crt", &path).unwrap();
    let (sender, changes) = std::sync::mpsc::channel();
    let watch = DirWatch::new(std::slice::from_ref(&path), move || {
        sender.send(()).unwrap_or_default();
    })
    .unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "..v1");
    symlink("..v2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    changes.recv().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "..v2");
    drop(watch);
    // The watch's thread ends with it and drops the sender: the receiver's end proves it.
    while changes.recv().is_ok() {}
}

#[test]
fn a_watch_on_a_missing_directory_is_an_error_with_its_name() {
    let path = PathBuf::from("/nonexistent/dir/tls.crt");
    match DirWatch::new(&[path], || {}) {
        Err(WatchError::NoDirectory(dir)) => assert_eq!(dir, Path::new("/nonexistent/dir")),
        other => panic!("{other:?}"),
    }
}
