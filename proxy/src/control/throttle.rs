//! Watches whether the CPU quota holds the process back: then no worker waits awake.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::live::Shared;

/// Where a container sees its own group: cgroup v2, then v1.
pub const CPU_STAT: [&str; 2] = ["/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"];

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long workers keep still after a period in which the quota was used up.
const HOLD: Duration = Duration::from_secs(60);

/// Looks for ever. Without such a file there is no quota to use up.
pub async fn watch_throttling(shared: Arc<Shared>) {
    let mut last = throttled();
    let mut until = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = throttled();
        if now > last {
            until = Instant::now() + HOLD;
        }
        last = now;
        shared.may_busy_poll.store(Instant::now() >= until, Ordering::Relaxed);
    }
}

fn throttled() -> Option<u64> {
    let texts = CPU_STAT.iter().filter_map(|path| std::fs::read_to_string(Path::new(path)).ok());
    texts.filter_map(|text| periods(&text)).next()
}

/// The periods in which the group was held back (`nr_throttled`, cgroup-v2.rst and
/// sched-bwc.rst of the kernel).
fn periods(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_either_version() {
        let v2 = "usage_usec 5\nuser_usec 3\nnr_periods 9\nnr_throttled 4\nthrottled_usec 1\n";
        assert_eq!(periods(v2), Some(4));
        assert_eq!(periods("nr_periods 0\nnr_throttled 0\nthrottled_time 0\n"), Some(0));
        assert_eq!(periods("usage_usec 5\n"), None, "a group without the cpu controller");
        assert_eq!(periods("nr_throttled x\n"), None);
    }
}
