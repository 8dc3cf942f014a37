//! What processes have used, as proc(5) tells it.

use std::fs;

use crate::error::{Context, Error};

/// What some processes have used since they began, and the memory that they hold now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time on a processor of all threads that live, user and system together, in nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Context switches, voluntary and not, of all threads that live.
    pub(crate) switches: u64,
    /// Resident memory, in KiB.
    pub(crate) rss_kb: u64,
}

impl Usage {
    /// Looks at processes now.
    ///
    /// # Errors
    /// One has ended, or the kernel keeps no schedstat.
    pub(crate) fn of(pids: &[u32]) -> Result<Self, Error> {
        let mut sum = Self::default();
        for pid in pids {
            let status = read(&format!("/proc/{pid}/status"))?;
            sum.rss_kb += number_after(&status, "VmRSS:");
            let tasks = format!("/proc/{pid}/task");
            for task in fs::read_dir(&tasks).context(tasks.as_str())? {
                let task = task.context(tasks.as_str())?.path();
                let file = |name| read(&format!("{}/{name}", task.display()));
                let (status, schedstat) = match (file("status"), file("schedstat")) {
                    (Ok(status), Ok(schedstat)) => (status, schedstat),
                    // A thread may end between the listing and either look.
                    _ if !task.exists() => continue,
                    (status, schedstat) => (status?, schedstat?),
                };
                sum.switches += number_after(&status, "\nvoluntary_ctxt_switches:");
                sum.switches += number_after(&status, "\nnonvoluntary_ctxt_switches:");
                sum.cpu_ns += on_processor(&schedstat);
            }
        }
        Ok(sum)
    }

    /// What was used from `before` to now; the memory is that of now.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            switches: self.switches.saturating_sub(before.switches),
            rss_kb: self.rss_kb,
        }
    }
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).context(path)
}

/// The number that follows a label; 0 where there is none.
fn number_after(text: &str, label: &str) -> u64 {
    let rest = text.find(label).and_then(|at| text.get(at + label.len()..)).unwrap_or_default();
    rest.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// The first number of a schedstat: nanoseconds on a processor.
fn on_processor(schedstat: &str) -> u64 {
    number_after(schedstat, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_switches_are_told_apart() {
        let status = "VmRSS:\t   5160 kB\nvoluntary_ctxt_switches:\t12\n\
                      nonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(number_after(status, "VmRSS:"), 5160);
        assert_eq!(number_after(status, "\nvoluntary_ctxt_switches:"), 12);
        assert_eq!(number_after(status, "\nnonvoluntary_ctxt_switches:"), 3);
        assert_eq!(number_after(status, "VmSwap:"), 0);
        assert_eq!(on_processor("123456 789 3\n"), 123_456);
    }

    #[test]
    fn work_is_seen() {
        let own = [std::process::id()];
        let before = Usage::of(&own).unwrap();
        assert!(before.rss_kb > 100, "{before:?}");
        let mut sum = 0_u64;
        while Usage::of(&own).unwrap().since(before).cpu_ns < 1_000_000 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(Usage::of(&[u32::MAX]).is_err(), "no such process");
    }
}
