//! What can go wrong in a run, and the exit code of each.

use crate::address::AddressError;
use crate::apply::ApplyError;
use crate::backend::BackendError;
use crate::config::ConfigErrors;
use crate::host::HostError;
use crate::stale::StaleError;
use crate::verify::VerifyError;

/// Every exit code and its meaning, as `--help` and the documentation have it.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "done, or nothing to do"),
    (2, "a flag or variable cannot be used"),
    (
        3,
        "a capability is missing (NET_ADMIN, for legacy NET_RAW too), or the kernel denies it here",
    ),
    (4, "no backend: neither nf_tables nor an iptables program that this kernel serves"),
    (5, "another program held the iptables lock, or changed the rules all the time"),
    (
        6,
        "the rules could not be installed or removed as a whole; the message says what is in force",
    ),
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
    /// Removing what an earlier run left.
    #[error(transparent)]
    Stale(#[from] StaleError),
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
            Error::Host(HostError::Capability { .. }) | Error::Address(AddressError::Denied(_)) => {
                3
            }
            Error::Backend(BackendError::Unusable { .. } | BackendError::Absent { .. }) => 4,
            Error::Backend(error) => backend_code(error),
            Error::Apply(error) => error.backend().map_or(6, backend_code),
            Error::Stale(error) => backend_code(error.backend()),
            Error::Address(_) | Error::Output(_) | Error::Host(HostError::Unreadable { .. }) => 6,
            Error::Verify(_) => 7,
            Error::Host(HostError::HostNetwork) => 8,
        }
    }
}

/// The code of what a backend said in the middle of a run. That it works at all is known by then,
/// or it is IPv6 alone that does not: so `Unusable` is no missing backend here.
fn backend_code(error: &BackendError) -> u8 {
    match error {
        BackendError::Denied { .. } => 3,
        BackendError::Missing { .. } => 4,
        BackendError::Locked { .. } | BackendError::Busy { .. } => 5,
        BackendError::Run { .. }
        | BackendError::Refused { .. }
        | BackendError::Unusable { .. }
        | BackendError::Absent { .. } => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Tables;
    use crate::rules::Family;

    #[test]
    fn the_cause_gives_the_code_wherever_it_comes_up() {
        let program = || "iptables-nft-restore".to_owned();
        let message = || "no".to_owned();
        let family = Family::V6;
        type Cause<'a> = &'a dyn Fn() -> BackendError;
        let causes: [(Cause<'_>, u8); 5] = [
            (&|| BackendError::Denied { program: program(), message: message() }, 3),
            (&|| BackendError::Missing { program: program() }, 4),
            (&|| BackendError::Locked { program: program() }, 5),
            (&|| BackendError::Busy { program: program() }, 5),
            (&|| BackendError::Refused { program: program(), message: message() }, 6),
        ];
        for (source, code) in causes {
            let exposure = String::new();
            for error in [
                Error::Backend(source()),
                ApplyError::Install { family, source: source() }.into(),
                ApplyError::RollBack { family, cause: message(), source: source() }.into(),
                ApplyError::Bypass { exposure, source: source() }.into(),
                ApplyError::NoIpv6Rules(source()).into(),
                ApplyError::Together { source: source() }.into(),
                StaleError::Beside { family, tables: Tables::Nft, source: source() }.into(),
                StaleError::Remaining { family, tables: Tables::Nft, source: source() }.into(),
            ] {
                assert_eq!(error.exit_code(), code, "{error}");
            }
        }
        let denied = AddressError::Denied(std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(Error::from(denied).exit_code(), 3);
    }

    #[test]
    fn what_stays_beside_the_new_rules_claims_no_rollback() {
        let source = BackendError::Locked { program: "iptables-legacy-restore".to_owned() };
        let stale = StaleError::Beside { family: Family::V4, tables: Tables::Legacy, source };
        assert!(stale.to_string().starts_with("the new rules are in force"), "{stale}");
    }
}
