//! The programs that speak to the kernel. nft and legacy are two sets of tables that act
//! independently of each other; a pod should have rules of ours in one of them only.

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::rules::Family;
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

impl BackendError {
    /// True when the kernel has no such tables at all, so that no rules can be in them. nft's
    /// programs say it with the answer of a kernel without netlink's netfilter family, or without
    /// nf_tables in it (`nfnetlink_rcv_msg`).
    #[must_use]
    pub fn is_absent_from_kernel(&self) -> bool {
        let BackendError::Unusable { message, .. } = self else { return false };
        message.contains("Protocol not supported")
            || message.contains("rule set generation id: Invalid argument")
    }
}

/// One of the kernel's two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// nf_tables; needs NET_ADMIN.
    Nft,
    /// `ip_tables` and `ip6_tables`; needs NET_RAW besides.
    Legacy,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Nft, Kind::Legacy];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Kind::Nft => Kind::Legacy,
            Kind::Legacy => Kind::Nft,
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
            (Kind::Nft, _) => "nf_tables",
            (Kind::Legacy, Family::V4) => "iptable_nat",
            (Kind::Legacy, Family::V6) => "ip6table_nat",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Nft => "nft",
            Kind::Legacy => "legacy",
        })
    }
}

/// Runs the programs of one backend.
#[derive(Clone, Debug)]
pub struct Backend {
    kind: Kind,
    path: Vec<PathBuf>,
}

impl Backend {
    /// A backend whose programs are looked for in `path` (the variable `PATH`) first.
    #[must_use]
    pub fn new(kind: Kind, path: &str) -> Self {
        // A relative or empty entry would run a program of the working directory, as root.
        let entries = path.split(':').filter(|entry| entry.starts_with('/'));
        Self { kind, path: entries.chain(SEARCH_PATH.iter().copied()).map(PathBuf::from).collect() }
    }

    /// Which it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Looks for the programs, and runs none.
    ///
    /// # Errors
    /// One is missing.
    pub fn installed(&self) -> Result<(), BackendError> {
        for family in Family::ALL {
            self.find(&self.name(family, "save"))?;
            self.find(&self.name(family, "restore"))?;
        }
        Ok(())
    }

    /// What the nat table has. Asking for it by name creates it, empty, in both backends.
    ///
    /// # Errors
    /// The program is missing, or the kernel does not serve it.
    pub fn save(&self, family: Family) -> Result<Snapshot, BackendError> {
        self.saved(family, &["-t", "nat"])
    }

    /// What the nat table has, from a list of all tables that there are. With nft, this creates
    /// nothing.
    ///
    /// # Errors
    /// As [`Backend::save`].
    pub fn look(&self, family: Family) -> Result<Snapshot, BackendError> {
        self.saved(family, &[])
    }

    fn saved(&self, family: Family, arguments: &[&str]) -> Result<Snapshot, BackendError> {
        let program = self.name(family, "save");
        let output = self.run(&program, arguments, "")?;
        if output.status.success() {
            Ok(Snapshot::parse(&String::from_utf8_lossy(&output.stdout)))
        } else {
            let modules = self.kind.modules(family);
            Err(common(&program, &output).unwrap_or_else(|| BackendError::Unusable {
                program,
                message: message(&output),
                modules,
            }))
        }
    }

    /// Makes a transaction of the nat table: all of it, or nothing.
    ///
    /// # Errors
    /// The program is missing, the lock is taken, or the kernel refuses; nothing has changed.
    pub fn restore(&self, family: Family, text: &str) -> Result<(), BackendError> {
        let program = self.name(family, "restore");
        let arguments: &[&str] = match self.kind {
            Kind::Nft => &["--noflush"],
            Kind::Legacy => &["--noflush", "-w", LOCK_WAIT_SECONDS],
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
        format!("{}-{verb}", self.kind.program(family))
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
        let legacy = Backend::new(Kind::Legacy, "");
        assert_eq!(legacy.name(Family::V6, "restore"), "ip6tables-legacy-restore");
        assert_eq!(Backend::new(Kind::Nft, "").name(Family::V4, "save"), "iptables-nft-save");
    }

    #[test]
    fn only_a_kernel_without_nf_tables_has_no_rules_in_it() {
        let says = |message: &str| BackendError::Unusable {
            program: "iptables-nft-save".to_owned(),
            message: message.to_owned(),
            modules: "nf_tables",
        };
        for message in [
            "iptables-nft-save: Could not fetch rule set generation id: Invalid argument",
            "iptables-nft-save: Failed to initialize nft: Protocol not supported",
        ] {
            assert!(says(message).is_absent_from_kernel(), "{message}");
        }
        assert!(!says("exit status: 1").is_absent_from_kernel());
        assert!(!says("Could not fetch rule set generation id: No buffer").is_absent_from_kernel());
    }

    #[test]
    fn a_relative_path_is_never_searched() {
        let backend = Backend::new(Kind::Nft, ".::bin:/opt/iptables/sbin");
        assert!(backend.path.iter().all(|directory| directory.is_absolute()));
        assert_eq!(backend.path.first(), Some(&PathBuf::from("/opt/iptables/sbin")));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = Backend::new(Kind::Nft, "").find("pillion-no-such-program").unwrap_err();
        assert!(error.to_string().contains("install the package iptables"), "{error}");
    }
}
