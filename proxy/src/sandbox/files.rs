//! Landlock: which files the process may open, and on which ports it may listen.
//!
//! A rule holds for a folder as it is, not for its name (Landlock, "Inode tagging"): a folder that
//! is replaced by another takes its rule with it. So rules name the folders that files lie in. In
//! these anything may be replaced: a file by a rename, a Kubernetes volume's content by the swap of
//! its `..data`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};

use crate::config::{Config, SandboxMode};

/// What is asked for; later versions would add rights that have not been tried with this proxy.
const ASKED: ABI = ABI::V6;

/// What each version of Landlock brought, and with which Linux.
const RIGHTS: &[(ABI, &str, &str)] = &[
    (ABI::V1, "files", "5.13"),
    (ABI::V3, "truncation", "6.2"),
    (ABI::V4, "listening on TCP ports", "6.7"),
    (ABI::V5, "ioctl on devices", "6.10"),
    (ABI::V6, "signals and abstract sockets", "6.12"),
];

/// What Landlock restricts, and since which Linux it can.
pub fn landlock_rights() -> impl Iterator<Item = (&'static str, &'static str)> {
    RIGHTS.iter().map(|(_, name, linux)| (*name, *linux))
}

/// How many symlinks in a row are followed; the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The rules that bind this process.
#[derive(Debug)]
pub(super) struct Domain {
    status: LandlockStatus,
    readable: Vec<PathBuf>,
    wider: Vec<(PathBuf, PathBuf)>,
    /// Keeps the kernel from forgetting the folder that the rule for it is tied to: `/proc` makes
    /// a new one for each look that finds none in the cache.
    _own_proc: Option<PathFd>,
}

impl Domain {
    fn abi(&self) -> ABI {
        match self.status {
            LandlockStatus::Available { effective_abi, .. } => effective_abi,
            LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => ABI::Unsupported,
        }
    }

    /// What is restricted, by name.
    pub(super) fn rights(&self) -> Vec<&'static str> {
        let had = RIGHTS.iter().filter(|(since, ..)| self.abi() >= *since);
        had.map(|(_, name, _)| *name).collect()
    }

    /// What can't be restricted here, and what it takes.
    pub(super) fn missing(&self) -> Vec<String> {
        match self.status {
            LandlockStatus::NotEnabled => {
                vec!["the kernel was booted without it: add landlock to its lsm= parameter".into()]
            }
            LandlockStatus::NotImplemented => vec![
                "the kernel does not know it: it takes Linux 5.13 with CONFIG_SECURITY_LANDLOCK, \
                 and a container runtime whose seccomp profile lets it pass"
                    .into(),
            ],
            LandlockStatus::Available { .. } => RIGHTS
                .iter()
                .filter(|(since, ..)| self.abi() < *since)
                .map(|(_, name, linux)| format!("{name}: it takes Linux {linux}"))
                .collect(),
        }
    }

    /// The files and folders that may be read, with all that is below them.
    pub(super) fn readable(&self) -> Vec<String> {
        self.readable.iter().map(|path| path.display().to_string()).collect()
    }

    /// Folders that were not there, each with the one above it that was opened in its place.
    pub(super) fn wider(&self) -> &[(PathBuf, PathBuf)] {
        &self.wider
    }
}

/// Restricts this thread, and those that it will start.
pub(super) fn restrict(config: &Config, also: &[PathBuf]) -> Result<Domain, String> {
    debug_assert!(config.sandbox != SandboxMode::Off);
    let (readable, wider) = opened(&folders(config));
    enforce(config, readable, wider, also).map_err(|e| e.to_string())
}

fn enforce(
    config: &Config,
    mut readable: Vec<PathBuf>,
    wider: Vec<(PathBuf, PathBuf)>,
    also: &[PathBuf],
) -> Result<Domain, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ASKED))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(ASKED))?
        .create()?;
    readable.extend(also.iter().filter(|path| path.exists()).cloned());
    for path in &readable {
        // What has gone since then needs no rule.
        if let Ok(fd) = PathFd::new(path) {
            rules = allow_reading(rules, &fd, path.is_dir())?;
        }
    }
    let own_proc = PathFd::new("/proc/self").ok();
    if let Some(fd) = &own_proc {
        rules = allow_reading(rules, fd, true)?;
        readable.push("/proc/self".into());
    }
    // Port 0 is one that the kernel chooses: a connection from a source address binds so.
    let dialled_from = config.source_ports.iter().cloned().flatten();
    for port in config.own_ports().into_iter().chain([0]).chain(dialled_from) {
        rules = rules.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    let RestrictionStatus { ruleset, landlock, .. } = rules.restrict_self()?;
    let status = match ruleset {
        RulesetStatus::NotEnforced if matches!(landlock, LandlockStatus::Available { .. }) => {
            LandlockStatus::NotEnabled
        }
        _ => landlock,
    };
    Ok(Domain { status, readable, wider, _own_proc: own_proc })
}

fn allow_reading(
    rules: RulesetCreated,
    fd: &PathFd,
    is_folder: bool,
) -> Result<RulesetCreated, RulesetError> {
    let access: BitFlags<AccessFs> =
        if is_folder { AccessFs::ReadFile | AccessFs::ReadDir } else { AccessFs::ReadFile.into() };
    rules.add_rule(PathBeneath::new(fd, access))
}

/// The folders that the configuration's files are in.
fn folders(config: &Config) -> BTreeSet<PathBuf> {
    // Certificates from the Workload API are in no file. Its socket needs no rule: to connect is
    // not to open.
    let identity = match config.workload_api {
        Some(_) => Vec::new(),
        None => config.identity.paths(),
    };
    let mut folders = BTreeSet::new();
    for path in identity.iter().chain([&config.policy_file]) {
        folders.extend(folders_of(path));
        if path.is_dir() {
            folders.insert(path.clone());
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            folders.extend(entries.flat_map(|entry| folders_of(&entry.path())));
        }
    }
    folders
}

/// The folders that a file is in: its own, and those that its links lead to.
fn folders_of(path: &Path) -> Vec<PathBuf> {
    let own = parent(path);
    let mut folders = Vec::new();
    // A folder that is a link (`current -> releases/42`) is replaced by another beside its target.
    if own.is_symlink()
        && let Ok(target) = fs::canonicalize(own)
        && let Some(beside) = target.parent()
        && beside.parent().is_some()
    {
        folders.push(beside.to_owned());
    }
    let mut next = path.to_owned();
    for _ in 0..MAX_LINKS {
        let folder = parent(&next).to_owned();
        folders.push(folder.clone());
        match fs::read_link(&next) {
            Ok(target) => next = folder.join(target),
            Err(_) => break,
        }
    }
    folders
}

/// The folder of a file; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Which folders are to be opened: those wanted, and for one that is not there the nearest above
/// it that is, because it may come later, and startup waits for its files. None that lies in
/// another.
fn opened(wanted: &BTreeSet<PathBuf>) -> (Vec<PathBuf>, Vec<(PathBuf, PathBuf)>) {
    let mut found = BTreeSet::new();
    let mut wider = Vec::new();
    for folder in wanted {
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
        let Some((nearest, real)) =
            absolute.ancestors().find_map(|a| Some((a, fs::canonicalize(a).ok()?)))
        else {
            continue;
        };
        if nearest != absolute {
            wider.push((absolute.clone(), real.clone()));
        }
        found.insert(real);
    }
    let outermost = |folder: &&PathBuf| !folder.ancestors().skip(1).any(|a| found.contains(a));
    (found.iter().filter(outermost).cloned().collect(), wider)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open(paths: &[PathBuf]) -> (Vec<PathBuf>, Vec<(PathBuf, PathBuf)>) {
        opened(&paths.iter().flat_map(|path| folders_of(path)).collect())
    }

    #[test]
    fn a_volume_of_kubernetes_is_one_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("tls/..1")).unwrap();
        fs::write(root.join("tls/..1/tls.crt"), "x").unwrap();
        symlink("..1", root.join("tls/..data")).unwrap();
        symlink("..data/tls.crt", root.join("tls/tls.crt")).unwrap();
        let (folders, wider) = open(&[root.join("tls/tls.crt"), root.join("tls/tls.key")]);
        assert_eq!((folders, wider), (vec![root.join("tls")], vec![]));
    }

    #[test]
    fn links_open_where_they_lead_and_a_folder_that_is_one_what_lies_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["a", "elsewhere", "releases/42"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("elsewhere/real"), "x").unwrap();
        symlink("../elsewhere/real", root.join("a/file")).unwrap();
        symlink("releases/42", root.join("current")).unwrap();
        let (folders, _) = open(&[root.join("a/file")]);
        assert_eq!(folders, [root.join("a"), root.join("elsewhere")]);
        let (folders, _) = open(&[root.join("current/policy.yaml")]);
        assert_eq!(folders, [root.join("releases")]);
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(open(&[root.join("loop")]).0, [root], "a loop ends");
    }

    #[test]
    fn what_is_not_there_yet_opens_the_nearest_that_is_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let late = root.join("secrets/late");
        let (folders, wider) = open(&[late.join("tls.crt")]);
        assert_eq!(folders, std::slice::from_ref(&root));
        assert_eq!(wider, [(late, root)]);
    }

    #[test]
    fn a_bare_name_is_in_the_working_directory() {
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(open(&["policy.yaml".into()]).0, [here]);
    }
}
