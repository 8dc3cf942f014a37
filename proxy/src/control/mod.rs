//! The control thread's work: loading and reloading certificates and policy,
//! resolving names, and publishing the results to the workers.

mod reload;
mod resolve;
mod source;

pub use reload::Reload;
pub use resolve::Resolver;
pub use source::Report;

use tokio::sync::mpsc;

use crate::worker::Command;

/// All workers' inboxes.
#[derive(Clone, Debug)]
pub struct Workers(pub Vec<mpsc::UnboundedSender<Command>>);

impl Workers {
    /// Has every worker judge its connections again.
    pub fn rejudge(&self) {
        for worker in &self.0 {
            // A worker that has gone has no connections either.
            let _ = worker.send(Command::Rejudge);
        }
    }
}
