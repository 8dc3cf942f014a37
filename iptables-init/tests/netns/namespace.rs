//! A network namespace of a test's own, with what stands in for a pod's uplink.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

use crate::tables_of;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What one command did.
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Done {
    /// Requires an exit code; the message has what was printed.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        self
    }

    /// Requires a text on standard error.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "`{text}` is not in:\n{}", self.stderr);
        self
    }
}

/// Deleted when dropped, also by a panic.
pub(crate) struct Namespace(String);

impl Namespace {
    /// A new one, with `lo` up and no route.
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces; run them as root"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pl{}-init{number}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output().unwrap();
        Done::from(made).exits(0);
        let namespace = Self(name);
        namespace.shell("ip link set lo up").exits(0);
        namespace
    }

    /// A new one with an address of each family and default routes; nobody is at the other end.
    pub(crate) fn with_uplink() -> Self {
        let namespace = Self::new();
        namespace
            .shell(
                "ip link add up0 type veth peer name up1 && ip link set up1 up \
                 && ip addr add 10.99.0.2/24 dev up0 && ip -6 addr add fd99::2/64 dev up0 nodad \
                 && ip link set up0 up && ip route add default dev up0 \
                 && ip -6 route add default dev up0",
            )
            .exits(0);
        namespace
    }

    /// Two, joined: `(pod, peer)` at 10.98.0.1 and .2, fd98::1 and ::2.
    pub(crate) fn joined() -> (Self, Self) {
        let (pod, peer) = (Self::new(), Self::new());
        pod.join(&peer, "up0", ["10.98.0", "fd98:"]);
        (pod, peer)
    }

    /// Another link between two: hosts 1 and 2 of these networks.
    pub(crate) fn join(&self, peer: &Self, link: &str, [v4, v6]: [&str; 2]) {
        self.shell(&format!("ip link add {link} type veth peer name {link} netns {}", peer.0))
            .exits(0);
        for (namespace, host) in [(self, 1), (peer, 2)] {
            namespace
                .shell(&format!(
                    "ip addr add {v4}.{host}/24 dev {link} \
                     && ip -6 addr add {v6}:{host}/64 dev {link} nodad && ip link set {link} up"
                ))
                .exits(0);
        }
    }

    /// Runs a shell script in it, with a mount namespace of its own.
    pub(crate) fn shell(&self, script: &str) -> Done {
        self.command(&["sh", "-c", script]).output().unwrap().into()
    }

    /// Runs `pillion-init` in it.
    pub(crate) fn init(&self, arguments: &[&str]) -> Done {
        self.command(&[BINARY]).args(arguments).output().unwrap().into()
    }

    /// The same with `directory` first in `PATH`.
    pub(crate) fn init_with(&self, directory: &Path, arguments: &[&str]) -> Done {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", directory.display());
        self.command(&["env", &format!("PATH={path}"), BINARY])
            .args(arguments)
            .output()
            .unwrap()
            .into()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).args(words);
        command
    }

    /// The tables by one of the save programs, without comments and counters.
    pub(crate) fn saved(&self, program: &str) -> Vec<String> {
        ["nat", "filter"].map(|table| self.saved_table(program, table)).concat()
    }

    fn saved_table(&self, program: &str, table: &str) -> Vec<String> {
        let done = self.command(&[program, "-t", table]).output().unwrap();
        let text = Done::from(done).exits(0).stdout;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| match line.split_once(" [") {
                Some((chain, _)) if line.starts_with(':') => format!("{chain} [0:0]"),
                _ => line.to_owned(),
            })
            .collect()
    }

    /// Both families' tables in one backend.
    pub(crate) fn tables(&self, backend: &str) -> [Vec<String>; 2] {
        let tables = tables_of(backend);
        ["iptables", "ip6tables"].map(|stem| self.saved(&format!("{stem}-{tables}-save")))
    }

    /// True when the legacy nat table exists; asking does not make it.
    pub(crate) fn has_legacy_table(&self) -> bool {
        let list = "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2> /dev/null || true";
        self.shell(list).exits(0).stdout.lines().any(|table| table == "nat")
    }

    /// True when the inbound proxy's source is on `lo`.
    pub(crate) fn has_source(&self) -> bool {
        self.shell("ip -6 addr show dev lo").exits(0).stdout.contains("::6/128")
    }

    /// Listens in it. A listener that was just dropped may live on for a moment in a child of
    /// another test's thread, between fork(2) and execve(2), which closes it.
    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        let address: SocketAddr = address.parse().unwrap();
        let late = Instant::now() + Duration::from_secs(5);
        self.inside(move || {
            loop {
                match TcpListener::bind(address) {
                    Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < late => {
                        std::thread::yield_now();
                    }
                    bound => return bound.unwrap(),
                }
            }
        })
    }

    /// Dials from it.
    pub(crate) fn dial(&self, address: &str) -> TcpStream {
        let address: SocketAddr = address.parse().unwrap();
        self.inside(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap())
    }

    /// The kernel's file of it, which legacy locks.
    pub(crate) fn file(&self) -> File {
        File::open(Path::new("/run/netns").join(&self.0)).unwrap()
    }

    /// A socket belongs to the namespace of the thread that makes it, and keeps it.
    pub(crate) fn inside<T: Send + 'static>(&self, make: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.file();
        let thread = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            make()
        });
        thread.join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.0]).status();
        if !std::thread::panicking() {
            assert!(deleted.unwrap().success(), "{} stays", self.0);
        }
    }
}

/// Puts a shell script of that name in a directory.
pub(crate) fn program(directory: &Path, name: &str, script: &str) {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A directory with a program that does nothing but fail.
pub(crate) fn failing(name: &str) -> TempDir {
    let directory = TempDir::new().unwrap();
    program(directory.path(), name, "cat > /dev/null\necho 'made to fail' >&2\nexit 1");
    directory
}

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_pillion-init");
