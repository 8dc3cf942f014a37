//! A cgroup with a memory limit, as the container runtime makes one for a container.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Context, Failure, Testbed, wait_until};

/// Where the two versions are mounted (cgroups(7)).
const V1: &str = "/sys/fs/cgroup/memory";
const V2: &str = "/sys/fs/cgroup";

/// A cgroup with a memory limit. Dropping it removes it; what ran in it must have ended, so it has
/// to be made before the sidecar.
#[derive(Debug)]
pub struct MemoryGroup {
    folder: PathBuf,
    v1: bool,
}

impl MemoryGroup {
    /// Makes one of so many bytes. None, and a word of it, where the memory controller is not ours
    /// to use: in a container, for example.
    ///
    /// # Errors
    /// What is there does not work.
    pub fn new(bed: &Testbed, limit: u64) -> Result<Option<Self>, Failure> {
        let v1 = Path::new(V1).is_dir();
        let mount = Path::new(if v1 { V1 } else { V2 });
        let name = bed.directory().file_name().unwrap_or_default();
        let folder = mount.join(name);
        if !v1 {
            // It may be on already, or not be ours to turn on; then what follows says so.
            let _ = fs::write(mount.join("cgroup.subtree_control"), "+memory");
        }
        let file = if v1 { "memory.limit_in_bytes" } else { "memory.max" };
        if let Err(error) = fs::create_dir(&folder) {
            println!("no memory limit can be tested here: {}: {error}", folder.display());
            return Ok(None);
        }
        let group = Self { folder, v1 };
        let limited = group.folder.join(file);
        if !limited.exists() {
            println!("no memory limit can be tested here: there is no {}", limited.display());
            return Ok(None);
        }
        fs::write(&limited, limit.to_string()).context(|| limited.display().to_string())?;
        Ok(Some(group))
    }

    /// The file by which a process enters it.
    pub(crate) fn entrance(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// How many processes the out-of-memory killer has ended in it.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn killed(&self) -> Result<u64, Failure> {
        let file = if self.v1 { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.folder.join(file)).context(|| file)?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count
            .and_then(|count| count.trim().parse().ok())
            .ok_or_else(|| Failure::Unexpected(format!("no oom_kill in {file}: {text}")))
    }

    /// How many bytes are used.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn used(&self) -> Result<u64, Failure> {
        let file = if self.v1 { "memory.usage_in_bytes" } else { "memory.current" };
        let text = fs::read_to_string(self.folder.join(file)).context(|| file)?;
        text.trim().parse().map_err(|_| Failure::Unexpected(format!("{file}: {text}")))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A process that was killed leaves the group a moment later.
        let removed = wait_until("an empty cgroup", Duration::from_secs(5), || {
            Ok(fs::remove_dir(&self.folder).is_ok().then_some(()))
        });
        if let Err(failure) = removed {
            println!("testbed: {} stays: {failure}", self.folder.display());
        }
    }
}
