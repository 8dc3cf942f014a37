//! Watches how much memory is left of what the cgroup grants: near the limit no connection more is
//! taken, so that the out-of-memory killer does not come for all that are open.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::buffers::{LARGE, MAX_LARGE};
use crate::live::Shared;

use super::Workers;

/// How often it is looked: at most, by how much of the limit is used, and at least while nothing is
/// open. A crowd takes some MiB in a tenth of a second.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_EVERY_FROM: [(u64, Duration); 2] =
    [(75, Duration::from_millis(10)), (50, Duration::from_millis(50))];
const LOOK_EVERY_IDLE: Duration = Duration::from_secs(1);

/// The part of the limit that the large buffers of all workers may take together.
const LARGE_PART: u64 = 8;

/// From this part of the limit on, in percent, there are to be no more connections than are open
/// then; and again any number when less than the other is used.
const SHORT_FROM: u64 = 85;
const ENOUGH_BELOW: u64 = 80;

/// What more has to be used, in percent of the limit, for that number to be counted anew.
const STEP: u64 = 1;

/// It is so for this long at least, so that the log has a line a second at most.
const HOLD: Duration = Duration::from_secs(1);

/// What a limit of cgroup v1 says when there is none: the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 60;

/// Looks for ever. Without a limit, or files that tell one, memory is never short.
pub async fn watch_memory(shared: Arc<Shared>, workers: Workers) {
    let groups = own_groups();
    let mut shortage: Option<Shortage> = None;
    let mut percent = 0;
    loop {
        if shared.open_connections() == 0 {
            // What is used changes little until somebody comes.
            let _ = timeout(LOOK_EVERY_IDLE, shared.first_open.notified()).await;
        }
        let zone = LOOK_EVERY_FROM.iter().find(|(from, _)| percent >= *from);
        tokio::time::sleep(zone.map_or(LOOK_EVERY, |(_, pause)| *pause)).await;
        let usage = groups.iter().find_map(Group::usage).unwrap_or(Usage { used: 0, limit: 1 });
        percent = usage.percent();
        let open = shared.open_connections();
        match &mut shortage {
            None if percent >= SHORT_FROM => {
                let begun = Shortage::begin(&usage, open);
                tracing::warn!(
                    used = usage.used,
                    limit = usage.limit,
                    open,
                    "memory is short: new connections are reset while as many as now are open, \
                     until less is used; raise the container's memory limit"
                );
                shortage = Some(begun);
            }
            None => {}
            Some(it) if percent < ENOUGH_BELOW && it.since.elapsed() >= HOLD => {
                shortage = None;
                tracing::info!(
                    used = usage.used,
                    limit = usage.limit,
                    "memory is enough again: connections are served"
                );
            }
            Some(it) => {
                let has_grown = it.go_on(&usage, open);
                if has_grown {
                    // A handshake takes more with each message, and who makes thousands of them
                    // has not said who he is.
                    workers.shed_handshakes();
                }
            }
        }
        let room = shortage.as_ref().map_or(usize::MAX, |it| it.room);
        shared.memory_room.store(room, Ordering::Relaxed);
    }
}

/// A time in which memory is short. The heap seldom shrinks: what an ended connection had serves
/// the next one, so as many as filled it may be open again, whatever the kernel counts.
#[derive(Debug)]
struct Shortage {
    since: Instant,
    /// The most that was used, in bytes.
    peak: u64,
    /// How many connections were open then, and one at least.
    room: usize,
}

impl Shortage {
    fn begin(usage: &Usage, open: usize) -> Self {
        Self { since: Instant::now(), peak: usage.used, room: open.max(1) }
    }

    /// Those that are open may grow; then there is room for fewer, and it is told.
    fn go_on(&mut self, usage: &Usage, open: usize) -> bool {
        let has_grown = usage.used.saturating_sub(self.peak) >= usage.limit / 100 * STEP;
        if has_grown {
            self.peak = usage.used;
            self.room = open.clamp(1, self.room);
        }
        has_grown
    }
}

/// How many large buffers each of so many workers may lend at once, by the limit of now.
pub fn most_large_buffers(workers: usize) -> usize {
    let limit = own_groups().iter().find_map(Group::usage).map(|usage| usage.limit);
    large_within(limit, workers)
}

fn large_within(limit: Option<u64>, workers: usize) -> usize {
    let Some(limit) = limit else { return MAX_LARGE };
    let bytes = usize::try_from(limit / LARGE_PART).unwrap_or(usize::MAX);
    bytes.checked_div(LARGE.saturating_mul(workers)).unwrap_or(0).clamp(1, MAX_LARGE)
}

/// The files that tell it, for our group and those above it: the innermost that has a limit counts,
/// and not all need be there.
pub fn memory_files() -> Vec<PathBuf> {
    let files = |group: &Group| {
        let Names { limit, used, .. } = *group.names;
        [limit, used, STAT].map(|name| group.folder.join(name))
    };
    own_groups().iter().flat_map(files).collect()
}

fn own_groups() -> Vec<Group> {
    // There may be no cgroups at all.
    fs::read_to_string("/proc/self/cgroup").map(|text| groups(&text)).unwrap_or_default()
}

/// What is used of a limit, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    used: u64,
    limit: u64,
}

impl Usage {
    /// The part that is used; of a limit of nothing, all.
    fn percent(&self) -> u64 {
        self.used.saturating_mul(100).checked_div(self.limit).unwrap_or(100)
    }
}

/// A version of cgroups and a group's folder.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    names: &'static Names,
}

/// How a version names what is asked (cgroup-v2.rst; cgroup-v1/memory.rst of the kernel).
#[derive(Debug, PartialEq, Eq)]
struct Names {
    limit: &'static str,
    used: &'static str,
    reclaimable: &'static str,
}

/// Under this name in both.
const STAT: &str = "memory.stat";
const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file ",
};
const V2: Names =
    Names { limit: "memory.max", used: "memory.current", reclaimable: "inactive_file " };

impl Group {
    /// What it uses of its limit, less the pages of files that the kernel takes back first; none
    /// where it has no limit, or is not to be seen from here.
    fn usage(&self) -> Option<Usage> {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        let limit = limit(&read(self.names.limit)?)?;
        let mut usage = Usage { used: read(self.names.used)?.trim().parse().ok()?, limit };
        // To gather these numbers is work for the kernel, and they only make it less.
        if usage.percent() >= ENOUGH_BELOW {
            let stat = read(STAT).unwrap_or_default();
            let files = reclaimable(&stat, self.names.reclaimable);
            usage.used = usage.used.saturating_sub(files);
        }
        Some(usage)
    }
}

/// The limit, if there is one.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)
}

fn reclaimable(stat: &str, name: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}

/// Our group and those above it, as /proc/self/cgroup tells (cgroups(7)). Not all can be seen: a
/// container has its own at the top of the mount, whatever the path says.
fn groups(proc_cgroup: &str) -> Vec<Group> {
    let lines = || {
        proc_cgroup.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?, parts.next()?))
        })
    };
    let v1 = lines().find(|(controllers, _)| controllers.split(',').any(|c| c == "memory"));
    let v2 = lines().find(|(controllers, _)| controllers.is_empty());
    let (mount, names, path) = match (v1, v2) {
        (Some((_, path)), _) => ("/sys/fs/cgroup/memory", &V1, path),
        (None, Some((_, path))) => ("/sys/fs/cgroup", &V2, path),
        (None, None) => return Vec::new(),
    };
    let mount = Path::new(mount);
    let own = mount.join(path.trim_start_matches('/'));
    let up = own.ancestors().take_while(|folder| folder.starts_with(mount));
    up.map(|folder| Group { folder: folder.to_owned(), names }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(proc_cgroup: &str) -> Vec<String> {
        groups(proc_cgroup).iter().map(|group| group.folder.display().to_string()).collect()
    }

    #[test]
    fn our_group_is_found_with_those_above_it_in_either_version() {
        assert_eq!(
            folders("0::/kubepods/pod1/c1\n"),
            ["kubepods/pod1/c1", "kubepods/pod1", "kubepods"]
                .map(|path| format!("/sys/fs/cgroup/{path}"))
                .into_iter()
                .chain(["/sys/fs/cgroup".to_owned()])
                .collect::<Vec<_>>()
        );
        assert_eq!(folders("0::/\n"), ["/sys/fs/cgroup/"], "a namespace of cgroups");
        let both = "5:cpu,cpuacct:/x\n4:hugetlb,memory:/pod:1/c\n0::/\n";
        let v1 = ["/pod:1/c", "/pod:1", ""].map(|path| format!("/sys/fs/cgroup/memory{path}"));
        assert_eq!(folders(both), v1, "of two mounts the one that has memory");
        assert!(groups(both).iter().all(|group| group.names == &V1));
        assert_eq!(folders("4:memory2:/x\n"), [""; 0]);
        assert_eq!(folders("nonsense\n"), [""; 0]);
    }

    #[test]
    fn large_buffers_take_a_part_of_the_limit() {
        assert_eq!(large_within(None, 2), MAX_LARGE);
        assert_eq!(large_within(Some(64 << 20), 2), 15, "of 256 KiB and their records' frames");
        assert_eq!(large_within(Some(1 << 20), 2), 1);
        assert_eq!(large_within(Some(u64::MAX), 1), MAX_LARGE);
    }

    #[tokio::test]
    async fn as_many_as_filled_the_memory_may_be_open_again() {
        let usage = |used| Usage { used, limit: 1000 };
        let mut shortage = Shortage::begin(&usage(850), 40);
        // The heap keeps what ended connections had.
        assert!(!shortage.go_on(&usage(859), 7));
        assert_eq!((shortage.room, shortage.peak), (40, 850));
        assert!(shortage.go_on(&usage(860), 30));
        assert_eq!((shortage.room, shortage.peak), (30, 860), "30 have grown to more than 40 had");
        shortage.go_on(&usage(900), 35);
        assert_eq!(shortage.room, 30, "it never grows");
        shortage.go_on(&usage(950), 0);
        assert_eq!(shortage.room, 1, "it is not for connections that it has grown");
        assert_eq!(Shortage::begin(&usage(990), 0).room, 1);
    }

    #[test]
    fn no_limit_is_told_from_one() {
        assert_eq!(limit("67108864\n"), Some(64 << 20));
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None, "v1's word for none");
    }

    #[test]
    fn files_that_the_kernel_takes_back_do_not_count_near_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let group = |names| Group { folder: folder.path().to_owned(), names };
        assert_eq!(group(&V2).usage(), None, "not to be seen");
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 500\ninactive_file 300\nactive_file 100\n");
        assert_eq!(group(&V2).usage(), Some(Usage { used: 600, limit: 1000 }));
        write("memory.current", "790\n");
        assert_eq!(group(&V2).usage().unwrap().percent(), 79, "not asked so far below");
        write("memory.limit_in_bytes", "1000\n");
        write("memory.usage_in_bytes", "990\n");
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 90\n");
        assert_eq!(group(&V1).usage().unwrap().percent(), 90);
        write("memory.max", "0\n");
        assert_eq!(group(&V2).usage().unwrap().percent(), 100);
    }
}
