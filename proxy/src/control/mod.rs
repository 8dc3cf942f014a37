//! The control thread's work: loading and reloading certificates and policy,
//! resolving names, and publishing the results to the workers.

mod expiry;
mod identity;
mod memory;
mod readiness;
mod reload;
mod resolve;
mod source;
mod throttle;
#[cfg(feature = "workload-api")]
mod workload_api;

pub use memory::{memory_files, most_large_buffers, watch_memory};
pub use readiness::Readiness;
pub use reload::Reload;
pub use resolve::Resolver;
pub use source::Report;
pub use throttle::{CPU_STAT, watch_throttling};

use tokio::sync::mpsc;

use crate::worker::Command;

/// All workers' inboxes.
#[derive(Clone, Debug)]
pub struct Workers(pub Vec<mpsc::UnboundedSender<Command>>);

impl Workers {
    /// Has every worker judge its connections again.
    pub fn rejudge(&self) {
        self.tell(|| Command::Rejudge);
    }

    /// Has every worker end connections to peers that are revoked now, and give up idle
    /// tunnels, which were made with other certificates.
    pub fn renew(&self) {
        self.tell(|| Command::Renew);
    }

    /// Has every worker give up idle tunnels for good.
    pub fn retire(&self) {
        self.tell(|| Command::Retire);
    }

    /// Has every worker end the older half of its handshakes.
    pub fn shed_handshakes(&self) {
        self.tell(|| Command::ShedHandshakes);
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.0 {
            // A worker that has gone has no connections either.
            let _ = worker.send(command());
        }
    }
}
