//! The next generation when the files change; the last good one when they are broken.

use std::sync::Arc;
use std::time::Instant;

use rustls_pki_types::UnixTime;

use crate::files::ContentHash;
use crate::generation::TlsGeneration;
use crate::load::{
    Built, IdentityFiles, LoadError, Snapshot, build, read_once, read_stable, with_newer_lists,
};
use crate::stillness::{Look, Stillness};

/// What a poll found.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing new, be it good or bad.
    Unchanged,
    /// Something new, that may be half of what is being written: to be looked at again after
    /// [`STILL_FOR`](crate::stillness::STILL_FOR).
    Unsettled,
    /// A generation to publish: a new one, or the last one again when its content came back after
    /// something broken.
    Loaded(Arc<TlsGeneration>),
    /// A generation to publish that does without the parts whose faults are here. A trust domain's
    /// bundle that can't be used stays as it was, or is missing where there was none; revocation
    /// lists that can't be used stay as they were, and where our own part can't be used, all but
    /// newer lists does. At least one fault.
    Partly(Arc<TlsGeneration>, Vec<LoadError>),
    /// Something new and broken: at least one fault. The last good generation stays.
    Failed(Vec<LoadError>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Nothing,
    Content(ContentHash),
    Unread(LoadError),
}

/// A content, the generation that it makes, and what of it can't be used.
type Good = (ContentHash, Arc<TlsGeneration>, Vec<LoadError>);

impl Outcome {
    /// A generation to publish, and what it does without.
    #[must_use]
    pub fn loaded(generation: Arc<TlsGeneration>, faults: Vec<LoadError>) -> Self {
        if faults.is_empty() { Self::Loaded(generation) } else { Self::Partly(generation, faults) }
    }
}

/// Polls an identity's files. By content, not by time stamps: those lie on some volumes, and a
/// rewrite with the same bytes is no rotation.
pub struct Reloader {
    files: IdentityFiles,
    seen: Seen,
    stillness: Stillness<Seen>,
    good: Option<Good>,
}

impl Reloader {
    /// A reloader that has read nothing yet; the first poll loads.
    #[must_use]
    pub fn new(files: IdentityFiles) -> Self {
        Self { files, seen: Seen::Nothing, stillness: Stillness::default(), good: None }
    }

    /// The last good generation, if there ever was one.
    #[must_use]
    pub fn current(&self) -> Option<&Arc<TlsGeneration>> {
        self.good.as_ref().map(|(_, generation, _)| generation)
    }

    /// The files that it polls, for a watch.
    #[must_use]
    pub fn files(&self) -> &IdentityFiles {
        &self.files
    }

    /// Reads the files; builds and returns the next generation where their content is new and
    /// stands still. Each content that fails is reported once. Before there is a generation, two
    /// readings that agree will do: then there is none that a half-written one could replace.
    pub fn poll(&mut self, now: UnixTime) -> Outcome {
        let running = self.good.is_some();
        let snapshot = if running { Ok(read_once(&self.files)) } else { read_stable(&self.files) };
        let seen = match &snapshot {
            Ok(snapshot) => Seen::Content(snapshot.hash),
            Err(error) => Seen::Unread(error.clone()),
        };
        if seen == self.seen {
            self.stillness.rest();
            return Outcome::Unchanged;
        }
        if running {
            match self.stillness.look(seen.clone(), Instant::now()) {
                Look::Still => {}
                Look::Again => return Outcome::Unsettled,
                Look::Restless if self.seen == Seen::Unread(LoadError::Changing) => {
                    return Outcome::Unsettled;
                }
                Look::Restless => {
                    self.seen = Seen::Unread(LoadError::Changing);
                    return Outcome::Failed(vec![LoadError::Changing]);
                }
            }
        }
        self.seen = seen;
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => return Outcome::Failed(vec![error]),
        };
        if let Some((hash, generation, faults)) = &self.good
            && *hash == snapshot.hash
        {
            return Outcome::loaded(Arc::clone(generation), faults.clone());
        }
        let before = self.current().map(Arc::as_ref);
        let Built { generation, faults } = match build(&self.files, &snapshot, before, now) {
            Ok(built) => built,
            Err(error) => match self.with_newer_lists(&snapshot) {
                Ok(Some(generation)) => Built { generation, faults: vec![error] },
                Ok(None) => return Outcome::Failed(vec![error]),
                Err(of_lists) => return Outcome::Failed(vec![error, of_lists]),
            },
        };
        let generation = Arc::new(generation);
        self.good = Some((snapshot.hash, Arc::clone(&generation), faults.clone()));
        Outcome::loaded(generation, faults)
    }

    fn with_newer_lists(&self, snapshot: &Snapshot) -> Result<Option<TlsGeneration>, LoadError> {
        self.current().map_or(Ok(None), |before| with_newer_lists(&self.files, snapshot, before))
    }
}
