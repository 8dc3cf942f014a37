//! What this process may do, and in whose network namespace it is.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::rules::Family;

/// Exists only in the host's own network namespace: the kernel registers the backlog sysctls for
/// `init_net` alone (`net/core/sysctl_net_core.c`).
const HOST_ONLY: &str = "/proc/sys/net/core/netdev_max_backlog";
const STATUS: &str = "/proc/self/status";

/// Why this process may not go on here.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A capability is not in the effective set.
    #[error("{name} is missing{why}; {cure}")]
    Capability {
        /// The capability, as Kubernetes names it.
        name: &'static str,
        /// What wants it.
        why: &'static str,
        /// How to get it.
        cure: &'static str,
    },
    /// The namespace is the host's.
    #[error(
        "this is the host's own network namespace, and the rules would capture the whole node; \
         take hostNetwork off the pod, or say --allow-host-network"
    )]
    HostNetwork,
    /// The kernel does not say.
    #[error("{path}: {source}; mount /proc in the container")]
    Unreadable {
        /// The file.
        path: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// A bit of the effective capability set (`linux/capability.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Needed for everything.
    NetAdmin = 12,
    /// Needed by legacy, which speaks to the kernel through a raw socket.
    NetRaw = 13,
}

/// The effective capabilities of this process.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Reads them from the kernel.
    ///
    /// # Errors
    /// No /proc.
    pub fn read() -> Result<Self, HostError> {
        let status = fs::read_to_string(STATUS)
            .map_err(|source| HostError::Unreadable { path: STATUS.to_owned(), source })?;
        // A kernel without the line is unknown; the strictest reading names the cure.
        Ok(Self(parse_effective(&status).unwrap_or(0)))
    }

    /// A set by its bits, for tests of what follows.
    #[cfg(test)]
    pub(crate) fn of_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// True when the set has it.
    #[must_use]
    pub fn has(self, capability: Capability) -> bool {
        self.0 >> (capability as u32) & 1 == 1
    }

    /// Requires NET_ADMIN.
    ///
    /// # Errors
    /// It is not in the set.
    pub fn require_admin(self) -> Result<(), HostError> {
        if self.has(Capability::NetAdmin) {
            return Ok(());
        }
        Err(HostError::Capability {
            name: "NET_ADMIN",
            why: "",
            cure: "run as root and add it to securityContext.capabilities.add of this container",
        })
    }

    /// Requires NET_RAW. Without it, legacy prints the very text of a missing kernel module.
    ///
    /// # Errors
    /// It is not in the set.
    pub fn require_raw(self) -> Result<(), HostError> {
        if self.has(Capability::NetRaw) {
            return Ok(());
        }
        Err(HostError::Capability {
            name: "NET_RAW",
            why: ", which the legacy backend needs besides NET_ADMIN",
            cure: "add it to securityContext.capabilities.add of this container, or use \
                   --backend=netlink",
        })
    }
}

fn parse_effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Refuses the host's own network namespace.
///
/// # Errors
/// It is the host's, and `allowed` is false.
pub fn refuse_host_network(allowed: bool) -> Result<(), HostError> {
    if !allowed && Path::new(HOST_ONLY).exists() { Err(HostError::HostNetwork) } else { Ok(()) }
}

/// True when the legacy nat table of a family exists in this namespace. Running a legacy program
/// to find out would create it.
///
/// # Errors
/// The kernel's list is there, but cannot be read (it is root's).
pub fn has_legacy_nat(family: Family) -> Result<bool, HostError> {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    match fs::read_to_string(path) {
        Ok(tables) => Ok(tables.lines().any(|table| table == "nat")),
        // No legacy module has ever been asked for.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(HostError::Unreadable { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_bit_by_bit() {
        let of = |hex: &str| Capabilities(parse_effective(&format!("CapEff:\t{hex}\n")).unwrap());
        let admin_alone = of("0000000000001000");
        assert!(admin_alone.require_admin().is_ok());
        assert!(admin_alone.require_raw().unwrap_err().to_string().contains("NET_RAW"));
        let raw_alone = of("0000000000002000");
        assert!(raw_alone.require_admin().unwrap_err().to_string().contains("NET_ADMIN"));
        assert!(raw_alone.require_raw().is_ok());
        assert_eq!(parse_effective("Name:\tx\n"), None);
    }
}
