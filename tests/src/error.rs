//! Why a test could not go on.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a test could not go on. Each message names the place and, where there is one, the cure.
#[derive(thiserror::Error)]
pub enum Failure {
    /// The suites make network namespaces, which only root may do.
    #[error(
        "the testbed makes network namespaces: run it as root (sudo, or a privileged container)"
    )]
    NotRoot,
    /// One of the project's binaries is not built.
    #[error(
        "{path} is missing: build it with `scripts/cargo build --workspace --bins`, or name its directory \
         in PILLION_BIN_DIR"
    )]
    MissingBinary {
        /// Where the binary was looked for.
        path: PathBuf,
    },
    /// A command that must succeed did not.
    #[error("{command}\nended with {status}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status, in words.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A condition did not come true in time.
    #[error("{what}: not within {} ms", limit.as_millis())]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A call to the system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Something is not what the test needs it to be.
    #[error("{0}")]
    Unexpected(String),
}

/// `unwrap` and a test's `Err` print this: a person reads it, so it is the message.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Self::Io { what: "input or output".to_owned(), source }
    }
}

impl Failure {
    /// The system's error kind, when a call to the system is what failed.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

/// Says what was being done when a call to the system failed.
pub trait Context<T> {
    /// Wraps the error together with `what`, which is only made when there is an error.
    ///
    /// # Errors
    /// The error of `self`, named.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|source| Failure::Io { what: what().into(), source: source.into() })
    }
}
