//! What speaks to the kernel: netlink, or the programs of iptables. nft and legacy are two sets of
//! tables that act independently of each other; a pod should have rules of ours in one of them
//! only. Netlink and the nft programs share one.

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::netlink;
use crate::rules::{Family, TableName};
use crate::snapshot::Snapshot;

/// Where the programs are when `PATH` does not say.
const SEARCH_PATH: &[&str] =
    &["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin", "/usr/local/bin"];

/// How long another program may hold the lock, in seconds. nft has none: the kernel orders its
/// transactions.
const LOCK_WAIT_SECONDS: &str = "5";

/// The lock that legacy takes. A file that every namespace has, and that one with a read-only
/// root can open.
const LOCK_FILE: &str = "/proc/self/ns/net";

/// The exit status of "another app is currently holding the xtables lock" (`xtables.h`,
/// RESOURCE_PROBLEM).
const RESOURCE_PROBLEM: i32 = 4;

/// Why the kernel was not reached, or said no.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A program is not there.
    #[error(
        "{program} is neither in PATH nor in {}; install the package iptables (Debian's name)",
        SEARCH_PATH.join(", ")
    )]
    Missing {
        /// The program.
        program: String,
    },
    /// The program is there, but the kernel does not serve it.
    #[error(
        "{program}: {message}; load the kernel's {modules} module, or choose another --backend"
    )]
    Unusable {
        /// The program.
        program: String,
        /// What it printed.
        message: String,
        /// What the kernel lacks.
        modules: &'static str,
    },
    /// The kernel has no nf_tables, so that no rules can be in them.
    #[error(
        "{program}: this kernel has no nf_tables ({source}); load its nf_tables module, or choose \
         another --backend"
    )]
    Absent {
        /// Who asked.
        program: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The kernel says that this process may not, whatever its capabilities are.
    #[error(
        "{program}: {message}; run this in the user namespace that owns the pod's network, and \
         allow it in the container's seccomp and AppArmor profiles"
    )]
    Denied {
        /// The program.
        program: String,
        /// What it printed.
        message: String,
    },
    /// The lock is taken.
    #[error(
        "{program}: another program held the iptables lock for {LOCK_WAIT_SECONDS} s; end it and \
         run this again"
    )]
    Locked {
        /// The program.
        program: String,
    },
    /// Others changed the rules whenever they were read.
    #[error(
        "{program}: others changed the rules at each of many tries; end what does it and run this \
         again"
    )]
    Busy {
        /// Who tried.
        program: String,
    },
    /// The program could not be run.
    #[error("{program}: {source}; check that this file can be executed")]
    Run {
        /// The program.
        program: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The kernel refused the transaction; nothing of it is in force.
    #[error("{program}: {message}; nothing of this transaction is in force")]
    Refused {
        /// The program.
        program: String,
        /// What it printed.
        message: String,
    },
}

/// One of the kernel's two sets of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// nf_tables; needs NET_ADMIN.
    Nft,
    /// `ip_tables` and `ip6_tables`; needs NET_RAW besides.
    Legacy,
}

impl Tables {
    /// Both.
    pub const ALL: [Tables; 2] = [Tables::Nft, Tables::Legacy];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Tables::Nft => Tables::Legacy,
            Tables::Legacy => Tables::Nft,
        }
    }

    /// The program with which people change the rules of a family, such as `ip6tables-nft`.
    #[must_use]
    pub fn program(self, family: Family) -> String {
        let stem = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{stem}-{self}")
    }

    fn modules(self, family: Family) -> &'static str {
        match (self, family) {
            (Tables::Nft, _) => "nf_tables",
            (Tables::Legacy, Family::V4) => "iptable_nat and iptable_filter",
            (Tables::Legacy, Family::V6) => "ip6table_nat and ip6table_filter",
        }
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tables::Nft => "nft",
            Tables::Legacy => "legacy",
        })
    }
}

/// What a run speaks to the kernel through.
#[derive(Clone, Debug)]
pub enum Backend {
    /// This process itself; no program is needed.
    Netlink,
    /// The programs of iptables.
    Programs(Programs),
}

impl Backend {
    /// Where its rules are.
    #[must_use]
    pub fn tables(&self) -> Tables {
        match self {
            Backend::Netlink => Tables::Nft,
            Backend::Programs(programs) => programs.tables,
        }
    }

    /// What the tables have, once it is known that our rules can be in them.
    ///
    /// # Errors
    /// The program is missing, or the kernel does not serve it.
    pub fn save(&self, family: Family) -> Result<Snapshot, BackendError> {
        match self {
            Backend::Netlink => {
                netlink::usable(family)?;
                self.read(family)
            }
            Backend::Programs(programs) => programs.save(family),
        }
    }

    /// What the tables have, once rules of ours are in them.
    ///
    /// # Errors
    /// As [`Backend::save`].
    pub fn read(&self, family: Family) -> Result<Snapshot, BackendError> {
        match self {
            Backend::Netlink => Ok(netlink::read(family)?.snapshot()),
            Backend::Programs(programs) => programs.save(family),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Netlink => f.write_str("netlink"),
            Backend::Programs(programs) => programs.tables.fmt(f),
        }
    }
}

/// Runs the programs for one set of tables.
#[derive(Clone, Debug)]
pub struct Programs {
    tables: Tables,
    path: Vec<PathBuf>,
}

impl Programs {
    /// Programs that are looked for in `path` (the variable `PATH`) first.
    #[must_use]
    pub fn new(tables: Tables, path: &str) -> Self {
        // A relative or empty entry would run a program of the working directory, as root.
        let entries = path.split(':').filter(|entry| entry.starts_with('/'));
        Self {
            tables,
            path: entries.chain(SEARCH_PATH.iter().copied()).map(PathBuf::from).collect(),
        }
    }

    /// What the tables have. Asking for one by name creates it, empty, in both backends.
    ///
    /// # Errors
    /// The program is missing, or the kernel does not serve it.
    pub fn save(&self, family: Family) -> Result<Snapshot, BackendError> {
        let text = |table: TableName| self.saved(family, &["-t", table.name()]);
        Ok(Snapshot::parse(&(text(TableName::Nat)? + &text(TableName::Filter)?)))
    }

    /// What the tables have, from a list of all that there are. With nft, this creates nothing.
    ///
    /// # Errors
    /// As [`Backend::save`].
    pub fn look(&self, family: Family) -> Result<Snapshot, BackendError> {
        Ok(Snapshot::parse(&self.saved(family, &[])?))
    }

    fn saved(&self, family: Family, arguments: &[&str]) -> Result<String, BackendError> {
        let program = self.name(family, "save");
        let output = self.run(&program, arguments, "")?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let modules = self.tables.modules(family);
            Err(common(&program, &output).unwrap_or_else(|| BackendError::Unusable {
                program,
                message: message(&output),
                modules,
            }))
        }
    }

    /// Makes the transactions of a text, one a table: of each all, or nothing.
    ///
    /// # Errors
    /// The program is missing, the lock is taken, or the kernel refuses; nothing has changed in the
    /// table that it refuses, nor in those behind it.
    pub fn restore(&self, family: Family, text: &str) -> Result<(), BackendError> {
        let program = self.name(family, "restore");
        let arguments: &[&str] = match self.tables {
            Tables::Nft => &["--noflush"],
            Tables::Legacy => &["--noflush", "-w", LOCK_WAIT_SECONDS],
        };
        let output = self.run(&program, arguments, text)?;
        if output.status.success() {
            Ok(())
        } else {
            let message = message(&output);
            Err(common(&program, &output).unwrap_or(BackendError::Refused { program, message }))
        }
    }

    /// The program's name, such as `ip6tables-nft-save`.
    fn name(&self, family: Family, verb: &str) -> String {
        format!("{}-{verb}", self.tables.program(family))
    }

    fn find(&self, program: &str) -> Result<OsString, BackendError> {
        let mut places = self.path.iter().map(|directory| directory.join(program));
        let found = places.find(|place| place.is_file());
        found
            .map(PathBuf::into_os_string)
            .ok_or_else(|| BackendError::Missing { program: program.to_owned() })
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<Output, BackendError> {
        let found = self.find(program)?;
        let failed = |source| BackendError::Run {
            program: String::from_utf8_lossy(found.as_bytes()).into_owned(),
            source,
        };
        let mut child = Command::new(&found)
            .args(arguments)
            .env("LC_ALL", "C")
            .env("XTABLES_LOCKFILE", LOCK_FILE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()) {
                // It ended before it had read all; its exit status and its words say why.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                other => other.map_err(failed)?,
            }
        }
        child.wait_with_output().map_err(failed)
    }
}

/// What went wrong, where reading and writing fail alike. The programs have no exit status for a
/// refusal by the kernel's permission check, only words.
fn common(program: &str, output: &Output) -> Option<BackendError> {
    let (program, message) = (program.to_owned(), message(output));
    if output.status.code() == Some(RESOURCE_PROBLEM) && message.contains("xtables lock") {
        Some(BackendError::Locked { program })
    } else if message.contains("Permission denied") || message.contains("not permitted") {
        Some(BackendError::Denied { program, message })
    } else {
        None
    }
}

/// What a program printed, in one line.
fn message(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { output.status.to_string() } else { lines.join(" / ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_has_its_name() {
        let legacy = Programs::new(Tables::Legacy, "");
        assert_eq!(legacy.name(Family::V6, "restore"), "ip6tables-legacy-restore");
        assert_eq!(Programs::new(Tables::Nft, "").name(Family::V4, "save"), "iptables-nft-save");
    }

    #[test]
    fn a_relative_path_is_never_searched() {
        let programs = Programs::new(Tables::Nft, ".::bin:/opt/iptables/sbin");
        assert!(programs.path.iter().all(|directory| directory.is_absolute()));
        assert_eq!(programs.path.first(), Some(&PathBuf::from("/opt/iptables/sbin")));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = Programs::new(Tables::Nft, "").find("pillion-no-such-program").unwrap_err();
        assert!(error.to_string().contains("install the package iptables"), "{error}");
    }
}
