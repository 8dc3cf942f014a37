//! What a person may set for a run of the suites.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Failure;

/// What a person may set for a run of the suites, read from the environment once a testbed.
#[derive(Debug, Clone)]
pub struct Settings {
    bin_dir: PathBuf,
    ipv6: bool,
    bulk_bytes: u64,
}

/// The only reader of the environment in the testbed.
#[allow(clippy::disallowed_methods, reason = "this is the testbed's `config`")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

impl Settings {
    /// Reads `PILLION_BIN_DIR` (where the binaries are; by default beside the test's own
    /// `deps` directory), `PILLION_TEST_IPV6=off` (the whole suite runs in pods without IPv6)
    /// and `PILLION_TEST_BULK_MIB` (the size of a bulk transfer; 1024 by default).
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
        let mebibytes = match variable("PILLION_TEST_BULK_MIB") {
            None => 1024,
            Some(value) => value
                .to_str()
                .and_then(|text| text.parse::<u32>().ok())
                .filter(|mebibytes| *mebibytes > 0)
                .ok_or_else(|| bad_variable("PILLION_TEST_BULK_MIB", &value, "mebibytes, 1 up"))?,
        };
        Ok(Self { bin_dir, ipv6, bulk_bytes: u64::from(mebibytes) << 20 })
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
