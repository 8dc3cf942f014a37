//! One virtual switch and the pods plugged into it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use tempfile::TempDir;

use crate::exec::tail;
use crate::{
    Container, Context, Failure, Pod, Settings, complete, container, namespace, require_root,
};

/// What the pods of a testbed share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) prefix: String,
    directory: TempDir,
}

impl Shared {
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The namespace that holds the bridge.
    pub(crate) fn switch(&self) -> String {
        format!("{}sw", self.prefix)
    }

    /// The certificate authority of the mesh.
    pub(crate) fn ca(&self) -> PathBuf {
        self.directory().join("ca")
    }
}

/// One virtual switch and the pods plugged into it. Nothing is put into the host's own namespace.
#[derive(Debug)]
pub struct Testbed {
    shared: Arc<Shared>,
    namespaces: std::sync::Mutex<Vec<String>>,
    next_host: AtomicU8,
}

/// Runs a test in a testbed with the given settings of the environment. When it fails, by an
/// error or by a panic, the ends of all logs are printed.
///
/// # Panics
/// The testbed cannot be made, or `test` returns an error: the panic carries the message.
pub fn run(name: &str, test: impl FnOnce(&Testbed) -> Result<(), Failure>) {
    run_with(name, None, test);
}

/// Like [`run`], with IPv6 on or off whatever the environment says.
///
/// # Panics
/// As [`run`].
#[allow(clippy::panic, reason = "this is how a test fails")]
pub fn run_with(
    name: &str,
    ipv6: Option<bool>,
    test: impl FnOnce(&Testbed) -> Result<(), Failure>,
) {
    println!("testbed {name}");
    let result = Testbed::new(ipv6).and_then(|bed| {
        let result = test(&bed);
        if result.is_err() {
            bed.print_logs();
        }
        result
    });
    if let Err(failure) = result {
        panic!("{name}: {failure}");
    }
}

impl Testbed {
    /// Makes the switch. Removes what killed runs have left first.
    ///
    /// # Errors
    /// Not root, or the kernel refuses.
    pub fn new(ipv6: Option<bool>) -> Result<Self, Failure> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        require_root()?;
        namespace::sweep_once();
        let settings = Settings::from_environment()?;
        let settings = settings.with_ipv6(ipv6);
        let prefix = namespace::prefix(NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        // The proxy and the databases run as users of their own and must get in.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        let shared = Arc::new(Shared { settings, prefix, directory });
        let switch = shared.switch();
        let bed = Self {
            shared,
            namespaces: std::sync::Mutex::new(vec![switch.clone()]),
            next_host: AtomicU8::new(1),
        };
        namespace::create(&switch)?;
        namespace::ip(&format!("-n {switch} link add br0 type bridge"))?;
        namespace::ip(&format!("-n {switch} link set br0 up"))?;
        Ok(bed)
    }

    /// Makes a pod and plugs it in. Its name is short: it becomes part of an interface's name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pod(&self, name: &str) -> Result<Pod, Failure> {
        let host = self.next_host.fetch_add(1, Ordering::Relaxed);
        let pod = Pod::new(Arc::clone(&self.shared), name, host);
        if let Ok(mut namespaces) = self.namespaces.lock() {
            namespaces.push(pod.namespace().to_owned());
        }
        pod.plug_in()?;
        Ok(pod)
    }

    /// Makes a pod of containers, and plugs it in: `image` has the `sleep` that keeps its namespace.
    /// The pod lasts as long as the container that comes with it.
    ///
    /// # Errors
    /// The container engine or the kernel refuses.
    pub fn container_pod(&self, name: &str, image: &str) -> Result<(Pod, Container), Failure> {
        let host = self.next_host.fetch_add(1, Ordering::Relaxed);
        let pod = Pod::new(Arc::clone(&self.shared), name, host);
        let keeper = container::keep(&pod, image)?;
        if let Ok(mut namespaces) = self.namespaces.lock() {
            namespaces.push(pod.namespace().to_owned());
        }
        namespace::attach(pod.namespace(), keeper.pid()?)?;
        pod.connect_cable()?;
        Ok((pod, keeper))
    }

    /// Makes the mesh's certificate authority, for `cluster.local`, unless it is there already.
    ///
    /// # Errors
    /// `pillion-certs` is missing or fails.
    pub fn ca(&self) -> Result<PathBuf, Failure> {
        let directory = self.shared.ca();
        if !directory.exists() {
            self.make_ca(crate::labels::TRUST_DOMAIN, &directory)?;
        }
        Ok(directory)
    }

    /// Makes another certificate authority, which the mesh does not trust.
    ///
    /// # Errors
    /// `pillion-certs` is missing or fails.
    pub fn foreign_ca(&self, trust_domain: &str) -> Result<PathBuf, Failure> {
        let directory = self.shared.directory().join("foreign-ca");
        self.make_ca(trust_domain, &directory)?;
        Ok(directory)
    }

    fn make_ca(&self, trust_domain: &str, directory: &Path) -> Result<(), Failure> {
        let certs = self.settings().binary("pillion-certs")?;
        let mut command = Command::new(certs);
        command.args(["ca", "--trust-domain", trust_domain, "--out"]).arg(directory);
        complete(&mut command).map(drop)
    }

    /// Issues an SVID into a new directory `<name>`, as `tls.crt`, `tls.key` and `ca.crt`.
    ///
    /// # Errors
    /// `pillion-certs` is missing or fails.
    pub fn issue(&self, ca: &Path, identity: &str, name: &str) -> Result<PathBuf, Failure> {
        let out = self.directory().join(name);
        let mut command = Command::new(self.settings().binary("pillion-certs")?);
        command.arg("issue").arg("--ca").arg(ca).args(["--id", identity, "--out"]).arg(&out);
        complete(&mut command)?;
        Ok(out)
    }

    /// A directory that goes when the testbed goes. Every user may enter it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.shared.directory()
    }

    /// What the person who runs the suite has set.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// The ends of all output files, for a person who reads a failure.
    fn print_logs(&self) {
        let Ok(entries) = fs::read_dir(self.directory()) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let is_log = path.extension().is_some_and(|ext| ext == "out" || ext == "err");
            // Not each file can be read to an end: a pipe cannot.
            let Some(bytes) = is_log.then(|| fs::read(&path).ok()).flatten() else { continue };
            if !bytes.is_empty() {
                let text = String::from_utf8_lossy(&bytes);
                println!("--- {}\n{}", path.display(), tail(&text).trim_end());
            }
        }
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        let namespaces = self.namespaces.get_mut().map(std::mem::take).unwrap_or_default();
        // Pods first, the switch last: it was the first to be made.
        for name in namespaces.iter().rev().filter(|name| namespace::path(name).exists()) {
            if let Err(error) = namespace::remove(name) {
                println!("testbed: {name} is left to the next run's sweep: {error}");
            }
        }
    }
}

/// Changes the owner of a file or a directory and of what is right in it.
pub(crate) fn give_to(user: u32, path: &Path) -> Result<(), Failure> {
    let give = |path: &Path| {
        std::os::unix::fs::lchown(path, Some(user), Some(user))
            .context(|| format!("owner of {}", path.display()))
    };
    give(path)?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path())?;
        }
    }
    Ok(())
}
