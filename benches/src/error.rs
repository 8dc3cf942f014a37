//! Why a benchmark could not go on.

use std::io;
use std::path::{Path, PathBuf};

use pillion_testbed::Failure;

/// Why a benchmark could not go on; a load that merely goes badly is a result, not an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Testbed(#[from] Failure),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{what} is not the JSON that was wanted: {source}")]
    Json { what: String, source: serde_json::Error },
    #[error("no histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    #[error("unknown {kind} `{name}`: there is {known}")]
    Unknown { kind: &'static str, name: String, known: String },
    #[error("{path} is missing: run scripts/bench-setup, or leave `{stack}` out of --stacks")]
    MissingPeer { stack: &'static str, path: PathBuf },
    #[error(
        "{stack}: the wire or the answer is not as it should be (encrypted: {mtls}): look at its \
         configuration in the benchmark's stack module"
    )]
    NotAsMeant { stack: &'static str, mtls: bool },
    #[error("no `{load}` measurement of `{stack}` has units: it did no work")]
    NoWork { load: String, stack: &'static str },
    #[error("{load} ended with {code} under {stack}: {output}")]
    Load { load: String, stack: &'static str, code: i32, output: String },
    #[error("strace printed no table for {stack}: {output}")]
    Strace { stack: &'static str, output: String },
    #[error("the load's threads were not ready within {seconds} s: {why}")]
    NotReady { seconds: u64, why: String },
    #[error("interrupted")]
    Interrupted,
}

/// Says what was being done when a call to the system failed.
pub(crate) trait Context<T> {
    /// Wraps the error together with `what`.
    fn context(self, what: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T, Error> {
        self.map_err(|source| Error::Io { what: what.into(), source: source.into() })
    }
}

/// Writes a file, naming it in the error.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).context(path.display().to_string())
}
