//! Where our certificates come from, and whether there are new ones.

use std::path::PathBuf;
use std::sync::Arc;

use pillion_certs::load::{IdentityFiles, LoadError};
use pillion_certs::received::Received;
use pillion_certs::reload::{Outcome, Reloader};
use pillion_certs::watch::ContentHash;
use rustls::pki_types::UnixTime;
use tokio::sync::{Notify, mpsc};

use crate::config::Config;

/// The source of our identity.
pub(super) enum Identity {
    /// Files, compared by their content.
    Files(Reloader),
    /// The SPIFFE Workload API.
    Agent(Agent),
}

impl Identity {
    /// As the configuration says. What isn't a file calls `changed` when there is news.
    pub(super) fn new(config: &Config, changed: &Arc<Notify>) -> Self {
        match Agent::new(config, changed) {
            Some(agent) => Self::Agent(agent),
            None => Self::Files(Reloader::new(config.identity.clone())),
        }
    }

    /// What is to be watched.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Files(files) => files.files().paths(),
            Self::Agent(_) => Vec::new(),
        }
    }

    /// What is new since the last call.
    pub(super) fn poll(&mut self, now: UnixTime) -> Outcome {
        match self {
            Self::Files(files) => files.poll(now),
            Self::Agent(agent) => agent.poll(),
        }
    }
}

/// The answers of the agent that serves the Workload API.
pub(super) struct Agent {
    answers: mpsc::Receiver<Result<Received, String>>,
    /// What was wrong last: it is told once.
    said: Option<LoadError>,
    /// What was good last: it is no news.
    good: Option<ContentHash>,
    identity: IdentityFiles,
}

impl Agent {
    #[cfg(feature = "workload-api")]
    fn new(config: &Config, changed: &Arc<Notify>) -> Option<Self> {
        let socket = config.workload_api.clone()?;
        // One answer at a time: the next waits in the stream.
        let (sender, answers) = mpsc::channel(1);
        tokio::spawn(super::workload_api::follow(socket, sender, Arc::clone(changed)));
        Some(Self { answers, said: None, good: None, identity: config.identity.clone() })
    }

    // Configured nevertheless, it has stopped the start.
    #[cfg(not(feature = "workload-api"))]
    fn new(_: &Config, _: &Arc<Notify>) -> Option<Self> {
        None
    }

    fn poll(&mut self) -> Outcome {
        let Ok(answer) = self.answers.try_recv() else { return Outcome::Unchanged };
        let (domain, key_exchange) = (&self.identity.trust_domain, self.identity.key_exchange);
        let loaded = answer.map_err(LoadError::WorkloadApi).and_then(|received| {
            let hash = received.content_hash();
            if self.good == Some(hash) {
                return Ok(None);
            }
            let generation = received.generation(domain.as_ref(), key_exchange)?;
            Ok(Some((hash, generation)))
        });
        match loaded {
            Ok(None) => Outcome::Unchanged,
            Ok(Some((hash, generation))) => {
                (self.said, self.good) = (None, Some(hash));
                Outcome::Loaded(Arc::new(generation))
            }
            Err(error) if self.said.as_ref() == Some(&error) => Outcome::Unchanged,
            Err(error) => {
                self.said = Some(error.clone());
                Outcome::Failed(error)
            }
        }
    }
}
