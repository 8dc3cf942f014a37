//! What is still missing before the proxy may serve, and that nothing is any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use pillion_certs::generation::OwnState;
use rustls::pki_types::UnixTime;

use crate::live::Shared;

/// Whether everything is there, by what is published.
pub struct Readiness {
    shared: Arc<Shared>,
    started: AtomicBool,
}

impl Readiness {
    /// Nothing has been there yet; the listeners are bound.
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, started: AtomicBool::new(false) })
    }

    /// Whether everything has been there once.
    pub(super) fn started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// What is missing, by name. When that is nothing for the first time, the log has it.
    pub(super) fn pending(&self) -> Vec<&'static str> {
        let published = &self.shared.published;
        let mut pending = Vec::new();
        match published.tls.load().as_ref() {
            None => pending.push("certificates"),
            Some(tls) => match tls.own_state(UnixTime::now()) {
                OwnState::Good => {}
                OwnState::Expired => pending.push("certificates (ours is expired)"),
                OwnState::NotYetValid => pending.push("certificates (ours is not valid yet)"),
                OwnState::Revoked => pending.push("certificates (ours is revoked)"),
            },
        }
        match published.policy.load().as_ref() {
            None => pending.push("policy"),
            Some(policy) => {
                // Once started, a name that a new policy adds makes no running pod unready.
                let hosts = published.hosts.load();
                if !self.started() && !policy.hosts().iter().all(|host| hosts.is_answered(host)) {
                    pending.push("names in the policy");
                }
            }
        }
        if pending.is_empty() && !self.started.swap(true, Ordering::Relaxed) {
            let after_ms = since_start().and_then(|age| u64::try_from(age.as_millis()).ok());
            tracing::info!(after_ms, "ready");
        }
        pending
    }

    /// To be called when something was published: it may have been the last that was missing.
    pub(super) fn look(&self) {
        if !self.started() {
            self.pending();
        }
    }
}

/// Since this process was started, by its parent's fork(2): to the kernel's tick, 10 ms.
fn since_start() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let ticks_a_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let milliseconds = start_ticks(&stat)?.checked_mul(1000)?.checked_div(ticks_a_second)?;
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    now.checked_sub(Duration::from_millis(milliseconds))
}

/// `starttime` of proc_pid_stat(5), since the machine's boot: field 22, where the name of the
/// program, which is the second, may hold anything up to the last parenthesis.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found_whatever_the_program_is_called() {
        let stat = "7 (a) (b 1 2) S 1 7 7 0 -1 4194560 9 0 0 0 1 2 0 0 20 0 3 0 12345 99 1 18\n";
        assert_eq!(start_ticks(stat), Some(12345));
        assert_eq!(start_ticks("7 (a) S 1"), None);
        assert_eq!(start_ticks(""), None);
    }

    #[test]
    fn this_process_began_within_the_machines_life() {
        let age = since_start().unwrap();
        let up = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap());
        assert!(age < up, "{age:?} of {up:?}");
    }
}
