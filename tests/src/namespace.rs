//! Network namespaces by name: made, entered, emptied and removed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Context, Failure, complete, wait_until};

/// Every namespace and directory of a testbed begins so; the pid of its test follows.
const PREFIX: &str = "pillion-test";

/// The names of one testbed begin with this: unique among live processes, and it tells the next
/// run whose they were.
pub(crate) fn prefix(number: u32) -> String {
    format!("{PREFIX}{}-{number}-", std::process::id())
}

/// Runs `ip` with the given words, which must hold no spaces.
pub(crate) fn ip(words: &str) -> Result<String, Failure> {
    complete(Command::new("ip").args(words.split_whitespace()))
}

/// Where `ip netns` keeps a namespace.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Makes a namespace with its loopback up.
pub(crate) fn create(name: &str) -> Result<(), Failure> {
    ip(&format!("netns add {name}"))?;
    ip(&format!("-n {name} link set lo up")).map(drop)
}

/// Gives a name to the namespace of a process, and brings its loopback up.
pub(crate) fn attach(name: &str, pid: Pid) -> Result<(), Failure> {
    ip(&format!("netns attach {name} {pid}"))?;
    ip(&format!("-n {name} link set lo up")).map(drop)
}

/// Runs `work` on a thread of its own inside a namespace. Sockets that it opens stay there for
/// their life, also when it hands them out. A panic in `work` goes on in the caller.
pub(crate) fn enter<T: Send>(
    name: &str,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let namespace = File::open(path(name)).context(|| format!("namespace {name}"))?;
    let joined = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)
                    .context(|| format!("entering namespace {name}"))?;
                work()
            })
            .join()
    });
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Ends every process in a namespace and removes it.
pub(crate) fn remove(name: &str) -> Result<(), Failure> {
    let limit = Duration::from_secs(5);
    wait_until(&format!("an empty namespace {name}"), limit, || {
        let pids = ip(&format!("netns pids {name}"))?;
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // A process may end between the listing and the signal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(pids.trim().is_empty().then_some(()))
    })?;
    ip(&format!("netns del {name}")).map(drop)
}

/// Removes what killed runs have left, once a process: namespaces and temporary directories whose
/// process is dead, or that carry our own pid from an earlier life.
pub(crate) fn sweep_once() {
    static SWEPT: OnceLock<()> = OnceLock::new();
    SWEPT.get_or_init(|| {
        for name in names_in(Path::new("/run/netns")).iter().filter(|name| is_stale(name)) {
            match remove(name) {
                Ok(()) => println!("testbed: removed {name}, left by a killed run"),
                Err(error) => println!("testbed: {name}, left by a killed run, stays: {error}"),
            }
        }
        let directory = std::env::temp_dir();
        for name in names_in(&directory).iter().filter(|name| is_stale(name)) {
            // What cannot be removed now is tried again by the next run.
            let _ = fs::remove_dir_all(directory.join(name));
        }
    });
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether a name is a testbed's and its process is gone.
fn is_stale(name: &str) -> bool {
    let Some((pid, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    let Ok(pid) = pid.parse::<u32>() else { return false };
    pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_testbeds_are_stale() {
        // Larger than any pid: PID_MAX_LIMIT is 2^22.
        assert!(is_stale("pillion-test99999999-0-a"));
        assert!(is_stale(&format!("{}a", prefix(0))), "our own pid, from an earlier life");
        assert!(!is_stale("pillion-test1-0-a"), "pid 1 lives");
        for foreign in
            ["pillion-99999999-0", "pillion-test-0-a", "cni-99999999-0", "pillion-test99999999", ""]
        {
            assert!(!is_stale(foreign), "{foreign} is not a testbed's");
        }
    }
}
