//! What a person may set for a run of the suites.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{Context, Failure};

/// Every variable that the testbed reads: the proxy would warn of those it does not know.
const VARIABLES: [&str; 9] = [
    "PILLION_BIN_DIR",
    "PILLION_TEST_IPV6",
    "PILLION_TEST_BULK_MIB",
    "PILLION_TEST_TLS_ENGINE",
    "PILLION_TEST_CHURN_SECONDS",
    "PILLION_TEST_RELOADS",
    "PILLION_TEST_SOAK_SECONDS",
    "PILLION_TEST_ENVOY",
    "PILLION_TEST_FAULTS",
];

/// What a person may set for a run of the suites, read from the environment once a testbed.
#[derive(Debug, Clone)]
pub struct Settings {
    bin_dir: PathBuf,
    ipv6: bool,
    bulk_bytes: u64,
    tls_engine: Option<String>,
    churn: Duration,
    reloads: u32,
    soak: Duration,
    envoy: PathBuf,
    all_faults: bool,
}

/// The only reader of the environment in the testbed.
#[allow(clippy::disallowed_methods, reason = "this is the testbed's `config`")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

impl Settings {
    /// Reads `PILLION_BIN_DIR` (where the binaries are; by default beside the test's own
    /// `deps` directory), `PILLION_TEST_IPV6=off` (the whole suite runs in pods without IPv6),
    /// `PILLION_TEST_BULK_MIB` (the size of a bulk transfer; 1024 by default),
    /// `PILLION_TEST_TLS_ENGINE` (`PILLION_TLS_ENGINE` of every sidecar; the proxy's default if it
    /// is not set), `PILLION_TEST_CHURN_SECONDS` (how long the churn goes on; 20 by default),
    /// `PILLION_TEST_RELOADS` (how often certificates are replaced under load; 100 by default),
    /// `PILLION_TEST_SOAK_SECONDS` (how long the soak goes on; 20 by default),
    /// `PILLION_TEST_ENVOY` (Envoy's binary; by default where `scripts/bench-setup` puts it) and
    /// `PILLION_TEST_FAULTS=full` (faults in their full number, for their full time).
    ///
    /// # Errors
    /// A value that means nothing, or a test binary that cannot find itself.
    pub fn from_environment() -> Result<Self, Failure> {
        let bin_dir = match variable("PILLION_BIN_DIR") {
            Some(directory) => std::path::absolute(directory)?,
            None => beside_this_test()?,
        };
        let ipv6 = match variable("PILLION_TEST_IPV6") {
            None => true,
            Some(value) if value == "on" => true,
            Some(value) if value == "off" => false,
            Some(value) => return Err(bad_variable("PILLION_TEST_IPV6", &value, "on or off")),
        };
        let mebibytes = number("PILLION_TEST_BULK_MIB", 1024, "mebibytes, 1 up")?;
        let churn = number("PILLION_TEST_CHURN_SECONDS", 20, "seconds, 1 up")?;
        let reloads = number("PILLION_TEST_RELOADS", 100, "reloads, 1 up")?;
        let soak = number("PILLION_TEST_SOAK_SECONDS", 20, "seconds, 1 up")?;
        let tls_engine = match variable("PILLION_TEST_TLS_ENGINE") {
            None => None,
            Some(value) if value == "records" || value == "rustls" => value.into_string().ok(),
            Some(value) => {
                return Err(bad_variable("PILLION_TEST_TLS_ENGINE", &value, "records or rustls"));
            }
        };
        let all_faults = match variable("PILLION_TEST_FAULTS") {
            None => false,
            Some(value) if value == "few" => false,
            Some(value) if value == "full" => true,
            Some(value) => return Err(bad_variable("PILLION_TEST_FAULTS", &value, "few or full")),
        };
        let envoy = match variable("PILLION_TEST_ENVOY") {
            Some(path) => PathBuf::from(path),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench-tools/envoy"),
        };
        Ok(Self {
            bin_dir,
            ipv6,
            bulk_bytes: u64::from(mebibytes) << 20,
            tls_engine,
            churn: Duration::from_secs(churn.into()),
            reloads,
            soak: Duration::from_secs(soak.into()),
            envoy,
            all_faults,
        })
    }

    /// The path of one of the project's binaries.
    ///
    /// # Errors
    /// [`Failure::MissingBinary`], which says how to build it.
    pub fn binary(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.bin_dir.join(name);
        if path.is_file() { Ok(path) } else { Err(Failure::MissingBinary { path }) }
    }

    /// Whether pods have IPv6 unless a test says otherwise.
    #[must_use]
    pub fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// The same with IPv6 on or off, when a test says so.
    pub(crate) fn with_ipv6(mut self, ipv6: Option<bool>) -> Self {
        self.ipv6 = ipv6.unwrap_or(self.ipv6);
        self
    }

    /// The size of a bulk transfer, in bytes.
    #[must_use]
    pub fn bulk_bytes(&self) -> u64 {
        self.bulk_bytes
    }

    /// What carries the records of every sidecar's TLS; `None` leaves it to the proxy's default.
    #[must_use]
    pub fn tls_engine(&self) -> Option<&str> {
        self.tls_engine.as_deref()
    }

    /// How long the churn goes on.
    #[must_use]
    pub fn churn(&self) -> Duration {
        self.churn
    }

    /// How often certificates are replaced under load; every tenth time they are torn.
    #[must_use]
    pub fn reloads(&self) -> u32 {
        self.reloads
    }

    /// How long the soak goes on.
    #[must_use]
    pub fn soak(&self) -> Duration {
        self.soak
    }

    /// One of two sizes of a test of faults: a few, or all of them where that was asked for.
    #[must_use]
    pub fn few_or<T>(&self, few: T, all: T) -> T {
        if self.all_faults { all } else { few }
    }

    /// Envoy's binary.
    ///
    /// # Errors
    /// It is not installed; the message says how it is.
    pub fn envoy(&self) -> Result<PathBuf, Failure> {
        if self.envoy.is_file() {
            return Ok(self.envoy.clone());
        }
        Err(Failure::Unexpected(format!(
            "{} is missing: run scripts/bench-setup, or name Envoy's binary in PILLION_TEST_ENVOY",
            self.envoy.display()
        )))
    }

    /// Keeps the testbed's own variables from a program.
    pub fn hide(command: &mut Command) -> &mut Command {
        for name in VARIABLES {
            command.env_remove(name);
        }
        command
    }
}

/// `target/<profile>`, seen from `target/<profile>/deps/<this test>`.
/// A test is in `deps`, one below the project's binaries; the demo is beside them.
fn beside_this_test() -> Result<PathBuf, Failure> {
    let executable = std::env::current_exe()?;
    let mut above = executable.ancestors().skip(1);
    let directory = above.find(|directory| !directory.ends_with("deps"));
    directory
        .map(PathBuf::from)
        .ok_or_else(|| Failure::Unexpected(format!("{} is in no directory", executable.display())))
}

/// A number from 1 up.
fn number(name: &str, default: u32, wanted: &str) -> Result<u32, Failure> {
    let Some(value) = variable(name) else { return Ok(default) };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.filter(|number| *number > 0).ok_or_else(|| bad_variable(name, &value, wanted))
}

fn bad_variable(name: &str, value: &OsString, wanted: &str) -> Failure {
    Failure::Unexpected(format!("{name}={}: wanted {wanted}", value.display()))
}

/// Checks that this process may make network namespaces.
///
/// # Errors
/// [`Failure::NotRoot`] when it may not.
pub fn require_root() -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Failure::NotRoot) }
}

/// Lets this process have as many descriptors as it may, for tests of many connections.
///
/// # Errors
/// The kernel refuses.
pub fn more_descriptors() -> Result<(), Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context(|| "RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context(|| "RLIMIT_NOFILE")
}
