//! Files as the kubelet lays out a volume of a ConfigMap or a Secret.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use crate::{Context, Failure};

/// Puts what `fill` writes into an empty folder in the place of what `volume` has: each file of a
/// volume is a symlink through `..data`, and swapping that one link swaps them all. The folder
/// that it led to before is removed, as the kubelet's `AtomicWriter` does.
///
/// # Errors
/// The files cannot be written.
pub(crate) fn publish(
    volume: &Path,
    fill: impl FnOnce(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let data = volume.join("..data");
    let before = fs::read_link(&data).map(|before| volume.join(before));
    // The kubelet's names are the time, too.
    let name = format!("..{}", SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
    let fresh = volume.join(&name);
    fs::create_dir(&fresh).context(|| fresh.display().to_string())?;
    fill(&fresh)?;
    for file in fs::read_dir(&fresh)? {
        let file = file?.file_name();
        let link = volume.join(&file);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(&file), link)?;
        }
    }
    let link = volume.join("..data_tmp");
    std::os::unix::fs::symlink(&name, &link)?;
    fs::rename(&link, &data).context(|| data.display().to_string())?;
    match before.ok().filter(|before| before.is_dir()) {
        Some(before) => fs::remove_dir_all(&before).context(|| before.display().to_string()),
        None => Ok(()),
    }
}
