//! Landlock: which files the process may open, and on which ports it may listen.
//!
//! A rule holds for a folder as it is, not for its name (Landlock, "Inode tagging"): a folder that
//! is replaced by another takes its rule with it. So rules name the folders that files lie in. In
//! these anything may be replaced: a file by a rename, a Kubernetes volume's content by the swap of
//! its `..data`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
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

    /// Whether that is every file there is, as a file was wanted that lies in the root.
    pub(super) fn is_all_readable(&self) -> bool {
        let root = Path::new("/");
        self.readable.iter().any(|folder| folder == root)
            && !self.wider.iter().any(|(_, opened)| opened == root)
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
    let (files, bundles) = match config.workload_api {
        Some(_) => (Vec::new(), None),
        None => (config.identity.paths(), config.identity.trust_bundles_dir.as_deref()),
    };
    let files = files.iter().filter(|path| Some(path.as_path()) != bundles);
    let of_files = files.chain([&config.policy_file]).flat_map(|file| of_file(file));
    of_files.chain(bundles.into_iter().flat_map(of_folder)).collect()
}

/// The folders that a file is in: its own, and those that its links lead to.
fn of_file(path: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut next = path.to_owned();
    for _ in 0..MAX_LINKS {
        let folder = parent(&next).to_owned();
        folders.extend(beside(&folder));
        folders.push(folder.clone());
        match fs::read_link(&next) {
            Ok(target) => next = folder.join(target),
            Err(_) => break,
        }
    }
    folders
}

/// A folder whose files are all read, and the folders that these are in.
fn of_folder(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let of_files = entries.flat_map(|entry| of_file(&entry.path()));
    beside(path).chain([path.to_owned()]).chain(of_files).collect()
}

/// Where a path leads through folders that are links (`current -> releases/42`), the next one lies
/// beside the target of now: what these lie in. Not all there is, for a link to a folder of `/`.
fn beside(folder: &Path) -> impl Iterator<Item = PathBuf> {
    folder.ancestors().filter(|ancestor| ancestor.is_symlink()).filter_map(|link| {
        let target = fs::canonicalize(link).ok()?;
        target.parent().filter(|beside| beside.parent().is_some()).map(Path::to_owned)
    })
}

/// The folder of a file; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Which folders are to be opened: those wanted, and for one that is not there the nearest above
/// it that is, because it may come later, and startup waits for its files. None that lies in
/// another. And those that are opened for no other reason than such a folder, each with it.
fn opened(wanted: &BTreeSet<PathBuf>) -> (Vec<PathBuf>, Vec<(PathBuf, PathBuf)>) {
    let (mut found, mut instead) = (BTreeSet::new(), Vec::new());
    for folder in wanted {
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
        let real = absolute.ancestors().find_map(|a| match fs::canonicalize(a) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            real => Some((a, real)),
        });
        match real {
            Some((nearest, Ok(real))) if nearest == absolute => {
                found.insert(real);
            }
            Some((_, Ok(real))) => instead.push((absolute.clone(), real)),
            // Where even the look is refused there is nothing to be read.
            Some((_, Err(_))) | None => {}
        }
    }
    instead.retain(|(_, real)| !found.iter().any(|folder| real.starts_with(folder)));
    found.extend(instead.iter().map(|(_, real)| real.clone()));
    let outermost = |folder: &&PathBuf| !folder.ancestors().skip(1).any(|a| found.contains(a));
    (found.iter().filter(outermost).cloned().collect(), instead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open(paths: &[PathBuf]) -> (Vec<PathBuf>, Vec<(PathBuf, PathBuf)>) {
        opened(&paths.iter().flat_map(|path| of_file(path)).collect())
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
        fs::create_dir(root.join("releases/42/tls")).unwrap();
        let (folders, _) = open(&[root.join("current/tls/tls.crt")]);
        assert_eq!(folders, [root.join("releases")], "a link farther up is swapped as well");
        fs::create_dir_all(root.join("volume/..1")).unwrap();
        symlink("..1", root.join("volume/..data")).unwrap();
        symlink(root.join("volume/..data/ca.crt"), root.join("a/ca.crt")).unwrap();
        let (folders, _) = open(&[root.join("a/ca.crt")]);
        assert_eq!(folders, [root.join("a"), root.join("volume")], "of another volume");
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
    fn a_folder_of_bundles_opens_itself_and_where_its_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["bundles", "elsewhere"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        symlink("../elsewhere/partner.pem", root.join("bundles/partner.pem")).unwrap();
        let bundles = root.join("bundles");
        let (folders, wider) = opened(&of_folder(&bundles).into_iter().collect());
        assert_eq!((folders, wider), (vec![bundles, root.join("elsewhere")], vec![]));
        let late = root.join("late");
        let (folders, wider) = opened(&of_folder(&late).into_iter().collect());
        assert_eq!(folders, std::slice::from_ref(&root));
        assert_eq!(wider, [(late, root)], "and it is told");
    }

    #[test]
    fn what_is_opened_anyway_is_not_opened_instead() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        symlink("..gone", root.join("..data")).unwrap();
        symlink("..data/tls.crt", root.join("tls.crt")).unwrap();
        assert_eq!(open(&[root.join("tls.crt")]), (vec![root], vec![]));
    }

    #[test]
    fn a_bare_name_is_in_the_working_directory() {
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(open(&["policy.yaml".into()]).0, [here]);
    }
}
