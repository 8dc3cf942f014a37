//! What can go wrong in a run, and the exit code of each.

use crate::address::AddressError;
use crate::apply::ApplyError;
use crate::backend::BackendError;
use crate::config::ConfigErrors;
use crate::host::HostError;
use crate::verify::VerifyError;

/// Every exit code and its meaning, as `--help` and the documentation have it.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "done, or nothing to do"),
    (2, "a flag or variable cannot be used"),
    (
        3,
        "a capability is missing (NET_ADMIN, for legacy NET_RAW too), or the kernel denies it here",
    ),
    (4, "no backend: no iptables program, or none that this kernel serves"),
    (5, "another program held the iptables lock"),
    (6, "the rules could not be installed or removed; what was there before is back"),
    (7, "the rules are installed but do not redirect"),
    (8, "this is the host's own network namespace, and --allow-host-network is not set"),
];

/// Why a run failed. Each message is `cause; cure`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags or environment.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// Not allowed here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The programs that speak to the kernel.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Installing or removing.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The address that the inbound proxy dials from.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The proof.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Standard output is closed.
    #[error("cannot print the rules: {0}; give the command an open standard output")]
    Output(#[source] std::io::Error),
}

impl Error {
    /// The code from [`EXIT_CODES`].
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) => 2,
            Error::Host(HostError::Capability { .. })
            | Error::Backend(BackendError::Denied { .. }) => 3,
            Error::Backend(BackendError::Locked { .. }) => 5,
            Error::Apply(error) if error.is_lock() => 5,
            Error::Backend(BackendError::Run { .. } | BackendError::Refused { .. })
            | Error::Apply(_)
            | Error::Address(_)
            | Error::Output(_)
            | Error::Host(HostError::Unreadable { .. }) => 6,
            Error::Backend(BackendError::Missing { .. } | BackendError::Unusable { .. }) => 4,
            Error::Verify(_) => 7,
            Error::Host(HostError::HostNetwork) => 8,
        }
    }
}
