//! What the proxy gives up at its start is gone: tried from inside the running process, in each of
//! its threads, by a system call that is put into it. And what it needs still works.
//! Of Landlock as much is expected as the kernel at hand can.
#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends at what it did not expect"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "arguments of system calls are registers, whatever their type"
)]

mod older_kernels;

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::time::Duration;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    Scope,
};
use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pillion_testbed::labels::{CLIENT, SERVER, STRANGER, port};
use pillion_testbed::{
    Came, Context, Failure, Intruder, LogLine, MeshOptions, Pair, Pod, Process, Sidecar, http_get,
    policy, run, wait_until,
};
use serde_json::Value;

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(30);
const SANDBOX: &str = "PILLION_SANDBOX";

const FILES: &str = "files";
const LISTENING: &str = "listening on TCP ports";
const ABSTRACT_SOCKETS: &str = "signals and abstract sockets";

/// What the kernel at hand can restrict by Landlock, in the words of docs/hardening.md: asked of
/// the kernel, not of the proxy.
fn landlock() -> Vec<&'static str> {
    type Asked = Result<Ruleset, RulesetError>;
    let ask = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let files = |since| ask().handle_access(AccessFs::from_all(since));
    let asked: [(&str, Asked); 5] = [
        (FILES, files(ABI::V1)),
        ("truncation", files(ABI::V3)),
        (LISTENING, ask().handle_access(AccessNet::BindTcp)),
        ("ioctl on devices", files(ABI::V5)),
        (ABSTRACT_SOCKETS, ask().scope(Scope::from_all(ABI::V6))),
    ];
    let had = asked.into_iter().filter(|(_, asked)| asked.is_ok());
    had.map(|(name, _)| name).collect()
}

/// Whether the kernel at hand has all of the sandbox. It has seccomp since long ago.
fn has_all() -> bool {
    landlock().len() == 5
}

fn serve() -> MeshOptions {
    MeshOptions::new(policy::serve(&[CLIENT]), SERVER)
}

fn threads(process: &Process) -> Result<Vec<Pid>, Failure> {
    let tasks = fs::read_dir(process.proc("task")).context(|| "its threads")?;
    let ids = tasks.map(|task| Ok(task?.file_name().to_string_lossy().parse().ok()));
    let ids: Result<Vec<Option<i32>>, Failure> = ids.collect();
    Ok(ids?.into_iter().flatten().map(Pid::from_raw).collect())
}

/// A file of a thread in /proc; none of one that has ended since it was listed, as those do that
/// only wait for work.
fn of_thread(process: &Process, thread: Pid, name: &str) -> Result<Option<String>, Failure> {
    match fs::read_to_string(process.proc(&format!("task/{thread}/{name}"))) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Of each thread: whether it can gain privileges no more, and its mode of seccomp.
fn confinement(process: &Process) -> Result<Vec<[String; 2]>, Failure> {
    let mut each = Vec::new();
    for thread in threads(process)? {
        each.extend(of_thread(process, thread, "status")?.map(|status| confined(&status)));
    }
    Ok(each)
}

fn confined(status: &str) -> [String; 2] {
    ["NoNewPrivs:", "Seccomp:"].map(|name| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_default().trim().to_owned()
    })
}

fn told(pod: &Pod) -> Result<Value, Failure> {
    let admin = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port::ADMIN);
    let (_, body) = http_get(pod, admin, "/config")?;
    let config: Value =
        serde_json::from_str(&body).map_err(|e| Failure::Unexpected(format!("{e}: {body}")))?;
    Ok(config["sandbox"].clone())
}

#[test]
fn every_thread_is_confined_and_the_operator_is_told() {
    run("sandbox-threads", |bed| {
        let pod = bed.pod("srv")?;
        let mut sidecar = pod.mesh(bed, serve())?;
        let threads = confinement(sidecar.process())?;
        assert!(threads.len() >= 4, "control, workers, log and watch: {threads:?}");
        for thread in &threads {
            assert_eq!(thread, &["1", "2"], "{threads:?}");
        }
        let said = sidecar.messages("sandboxed")?;
        assert_eq!(said.len(), 1);
        let told = told(&pod)?;
        let missing = told["missing"].as_array().map(Vec::len);
        assert_eq!(missing == Some(0), has_all(), "{told}");
        assert_eq!(told["no_new_privs"], true);
        assert_eq!(told["seccomp"], true);
        assert_eq!(told["landlock"], Value::from(landlock()), "{told}");
        Ok(())
    });
}

#[test]
fn off_leaves_everything_as_it_was() {
    run("sandbox-off", |bed| {
        let pod = bed.pod("srv")?;
        let mut sidecar = pod.mesh(bed, serve().env(SANDBOX, "off"))?;
        let threads = confinement(sidecar.process())?;
        // A test in a container may have a filter of its own, which goes to who it starts.
        let ours = confined(&fs::read_to_string("/proc/thread-self/status")?);
        assert!(threads.iter().all(|thread| *thread == ours), "{threads:?}, and here {ours:?}");
        assert_eq!(sidecar.messages("PILLION_SANDBOX=off")?.len(), 1);
        assert_eq!(told(&pod)?["landlock"], Value::Array(Vec::new()));
        Ok(())
    });
}

/// What an intruder tries in one thread, and what comes of it: every way that is refused and not
/// fatal, and some that are left open.
struct Tries<'a> {
    intruder: &'a mut Intruder,
    came: Vec<(&'static str, i64)>,
}

impl Tries<'_> {
    fn all(intruder: &mut Intruder) -> Result<Vec<(&'static str, i64)>, Failure> {
        let mut tries = Tries { intruder, came: Vec::new() };
        tries.files()?;
        tries.sockets()?;
        tries.addresses()?;
        tries.memory()?;
        tries.others()?;
        Ok(tries.came)
    }

    fn call(
        &mut self,
        what: &'static str,
        number: c_long,
        arguments: &[u64],
    ) -> Result<u64, Failure> {
        let Came::Back(came) = self.intruder.call(number, arguments)? else {
            return Err(Failure::Unexpected(format!("{what} ended the process")));
        };
        self.came.push((what, came));
        Ok(came as u64)
    }

    fn socket(&mut self, what: &'static str, arguments: [c_int; 3]) -> Result<u64, Failure> {
        self.call(what, libc::SYS_socket, &arguments.map(|argument| argument as u64))
    }

    fn files(&mut self) -> Result<(), Failure> {
        let world_readable = self.intruder.place(b"/etc/passwd\0")?;
        let null = self.intruder.place(b"/dev/null\0")?;
        let here = libc::AT_FDCWD as u64;
        let (read, write) = (libc::O_RDONLY as u64, libc::O_WRONLY as u64);
        self.call(READ, libc::SYS_openat, &[here, world_readable, read])?;
        // A static program's way to random numbers.
        let random = self.intruder.place(b"/dev/urandom\0")?;
        self.call("read random numbers", libc::SYS_openat, &[here, random, read])?;
        self.call("write a file", libc::SYS_openat, &[here, null, write])?;
        self.call("file in memory", libc::SYS_memfd_create, &[world_readable, 0]).map(drop)
    }

    fn sockets(&mut self) -> Result<(), Failure> {
        use libc::{AF_INET, AF_NETLINK, AF_PACKET, AF_UNIX, AF_VSOCK};
        use libc::{SOCK_DGRAM, SOCK_RAW, SOCK_STREAM};
        self.socket("packet socket", [AF_PACKET, SOCK_RAW, 0])?;
        self.socket("raw socket", [AF_INET, SOCK_RAW, libc::IPPROTO_ICMP])?;
        self.socket("SCTP socket", [AF_INET, SOCK_STREAM, libc::IPPROTO_SCTP])?;
        self.socket("MPTCP socket", [AF_INET, SOCK_STREAM, libc::IPPROTO_MPTCP])?;
        self.socket("UDP-Lite socket", [AF_INET, SOCK_DGRAM, libc::IPPROTO_UDPLITE])?;
        self.socket("datagrams between processes", [AF_UNIX, SOCK_DGRAM, 0])?;
        self.socket("netfilter", [AF_NETLINK, SOCK_RAW, libc::NETLINK_NETFILTER])?;
        self.socket("vsock", [AF_VSOCK, SOCK_STREAM, 0])?;
        self.socket("UDP socket", [AF_INET, SOCK_DGRAM, 0]).map(drop)
    }

    fn addresses(&mut self) -> Result<(), Failure> {
        let tcp = [libc::AF_INET, libc::SOCK_STREAM, 0];
        let address = |port: u16| {
            let [high, low] = port.to_be_bytes();
            let mut address = [0; 16];
            address[..4].copy_from_slice(&[libc::AF_INET as u8, 0, high, low]);
            address
        };
        let other = self.intruder.place(&address(9999))?;
        let any = self.intruder.place(&address(0))?;
        let socket = self.socket("TCP socket", tcp)?;
        self.call(BIND, libc::SYS_bind, &[socket, other, 16])?;
        self.call("give it back", libc::SYS_close, &[socket])?;
        let socket = self.socket("TCP socket", tcp)?;
        self.call("bind any port", libc::SYS_bind, &[socket, any, 16])?;
        self.call("listen", libc::SYS_listen, &[socket, 1])?;
        let tables = [socket, libc::IPPROTO_IP as u64, IPT_SO_SET_REPLACE, any, 16];
        self.call("change iptables", libc::SYS_setsockopt, &tables)?;
        let kernel_tls = self.intruder.place(b"tls")?;
        let upper = [socket, libc::IPPROTO_TCP as u64, libc::TCP_ULP as u64, kernel_tls, 3];
        self.call("kernel TLS", libc::SYS_setsockopt, &upper)?;
        let filter = [socket, libc::SOL_SOCKET as u64, libc::SO_ATTACH_BPF as u64, any, 4];
        self.call("attach a filter", libc::SYS_setsockopt, &filter)?;
        let mut name = [0; 2 + 1 + ABSTRACT.len()];
        name[0] = libc::AF_UNIX as u8;
        name[3..].copy_from_slice(ABSTRACT);
        let (address, length) = (self.intruder.place(&name)?, name.len() as u64);
        let socket = self.socket("Unix socket", [libc::AF_UNIX, libc::SOCK_STREAM, 0])?;
        let arguments = [socket, address, length];
        self.call(CONNECT_ABSTRACT, libc::SYS_connect, &arguments).map(drop)
    }

    fn memory(&mut self) -> Result<(), Failure> {
        let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let code = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let data = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let page = |protection| [0, 4096, protection, anonymous, u64::MAX, 0];
        self.call("map code", libc::SYS_mmap, &page(code))?;
        let mapped = self.call("map data", libc::SYS_mmap, &page(data))?;
        self.call("make code of data", libc::SYS_mprotect, &[mapped, 4096, code]).map(drop)
    }

    fn others(&mut self) -> Result<(), Failure> {
        let parent = Pid::this().as_raw() as u64;
        self.call("signal another process", libc::SYS_kill, &[parent, 0])?;
        let dumpable = [libc::PR_SET_DUMPABLE as u64, 1];
        self.call("allow core dumps", libc::SYS_prctl, &dumpable)?;
        self.call("terminal's buffer", libc::SYS_ioctl, &[0, TIOCSTI, 0])?;
        self.call("io_uring", libc::SYS_io_uring_setup, &[1, 0]).map(drop)
    }
}

const ABSTRACT: &[u8] = b"neighbour";
/// `linux/netfilter_ipv4/ip_tables.h`
const IPT_SO_SET_REPLACE: u64 = 64;
/// `asm-generic/ioctls.h`
const TIOCSTI: u64 = 0x5412;

/// What is refused with the sandbox, with which error; all else of [`Tries`] is done.
const REFUSED: &[(&str, Errno)] = &[
    (READ, Errno::EACCES),
    ("write a file", Errno::ENOSYS),
    ("packet socket", Errno::ENOSYS),
    ("raw socket", Errno::ENOSYS),
    ("SCTP socket", Errno::ENOSYS),
    ("MPTCP socket", Errno::ENOSYS),
    ("UDP-Lite socket", Errno::ENOSYS),
    ("datagrams between processes", Errno::ENOSYS),
    ("netfilter", Errno::ENOSYS),
    ("vsock", Errno::ENOSYS),
    (BIND, Errno::EACCES),
    ("listen", Errno::ENOSYS),
    ("change iptables", Errno::ENOSYS),
    ("kernel TLS", Errno::ENOSYS),
    ("attach a filter", Errno::ENOSYS),
    (CONNECT_ABSTRACT, Errno::EPERM),
    ("map code", Errno::ENOSYS),
    ("make code of data", Errno::ENOSYS),
    ("file in memory", Errno::ENOSYS),
    ("signal another process", Errno::ENOSYS),
    ("allow core dumps", Errno::ENOSYS),
    ("terminal's buffer", Errno::ENOSYS),
    ("io_uring", Errno::ENOSYS),
];

const READ: &str = "read a file";
const BIND: &str = "bind another port";
const CONNECT_ABSTRACT: &str = "connect to an abstract socket";

/// What Landlock refuses, and the part of it that does. All else is seccomp's.
const BY_LANDLOCK: &[(&str, &str)] =
    &[(READ, FILES), (BIND, LISTENING), (CONNECT_ABSTRACT, ABSTRACT_SOCKETS)];

/// How the sandbox refuses it, if it does on this kernel.
fn refused(what: &str) -> Option<Errno> {
    let needed = BY_LANDLOCK.iter().find(|(name, _)| *name == what);
    if needed.is_some_and(|(_, part)| !landlock().contains(part)) {
        return None;
    }
    REFUSED.iter().find(|(name, _)| *name == what).map(|(_, error)| *error)
}

fn error(came: i64) -> Option<Errno> {
    (came < 0).then(|| Errno::from_raw(i32::try_from(-came).expect("an error's number")))
}

fn neighbour(pod: &Pod) -> Result<UnixListener, Failure> {
    pod.enter(|| {
        let address = UnixAddr::from_abstract_name(ABSTRACT)?;
        UnixListener::bind_addr(&address).context(|| "the neighbour's socket")
    })
}

#[test]
fn an_intruder_in_any_thread_gets_nowhere() {
    run("intruder", |bed| {
        let pair = Pair::new(bed)?;
        let (pod, mut sidecar) = (&pair.server, pair.callee);
        let _neighbour = neighbour(pod)?;
        let mut tried_in = 0;
        for thread in threads(sidecar.process())? {
            let mut intruder = match Intruder::stop(sidecar.process(), thread) {
                Err(_) if of_thread(sidecar.process(), thread, "comm")?.is_none() => continue,
                stopped => stopped?,
            };
            tried_in += 1;
            let tried = Tries::all(&mut intruder)?;
            for (what, came) in &tried {
                assert_eq!(error(*came), refused(what), "{thread}: {what}");
            }
            let names: HashSet<_> = tried.iter().map(|(what, _)| *what).collect();
            assert!(REFUSED.iter().all(|(what, _)| names.contains(what)), "{names:?}");
        }
        assert!(tried_in >= 4, "control, workers, log and watch: {tried_in}");
        Ok(())
    });
}

/// The same ways are open, or refused for another reason, where there is no sandbox: else the test
/// above would not test it.
#[test]
fn without_the_sandbox_an_intruder_gets_further() {
    run("intruder-off", |bed| {
        let pod = bed.pod("srv")?;
        let mut sidecar = pod.mesh(bed, serve().env(SANDBOX, "off"))?;
        let _neighbour = neighbour(&pod)?;
        let thread = *threads(sidecar.process())?.first().expect("a thread");
        let mut intruder = Intruder::stop(sidecar.process(), thread)?;
        for (what, came) in Tries::all(&mut intruder)? {
            if refused(what).is_some() {
                assert_ne!(error(came), refused(what), "{what}");
            }
        }
        Ok(())
    });
}

/// Ways that end the process: what is called, with arguments by which it does nothing where it is
/// allowed.
const FATAL: &[(&str, c_long, &[u64])] = &[
    ("execve", libc::SYS_execve, &[0, 0, 0]),
    ("execveat", libc::SYS_execveat, &[u64::MAX, 0, 0, 0, 0]),
    // Without CLONE_VM this is an error; it is not CLONE_THREAD either, hence a new process.
    ("clone", libc::SYS_clone, &[libc::CLONE_SIGHAND as u64, 0, 0, 0, 0]),
    ("ptrace", libc::SYS_ptrace, &[libc::PTRACE_PEEKDATA as u64, 0, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, &[0, 0, 0, 0, 0, u64::MAX]),
    ("unshare", libc::SYS_unshare, &[u64::MAX]),
    ("setns", libc::SYS_setns, &[u64::MAX, 0]),
    ("mount", libc::SYS_mount, &[0, 0, 0, 0, 0]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, &[u64::MAX, 0, 0]),
    ("bpf", libc::SYS_bpf, &[u64::MAX, 0, 0]),
    ("keyctl", libc::SYS_keyctl, &[u64::MAX, 0, 0, 0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, &[u64::MAX]),
    ("perf_event_open", libc::SYS_perf_event_open, &[0, 0, 0, 0, 0]),
    ("init_module", libc::SYS_init_module, &[0, 0, 0]),
];

fn worker(process: &Process) -> Result<Pid, Failure> {
    wait_until("a worker", LIMIT, || {
        for thread in threads(process)? {
            let name = of_thread(process, thread, "comm")?;
            if name.is_some_and(|name| name.starts_with("worker")) {
                return Ok(Some(thread));
            }
        }
        Ok(None)
    })
}

#[test]
fn what_only_an_intruder_calls_ends_the_process() {
    run("fatal", |bed| {
        let pod = bed.pod("srv")?;
        let mut sidecar = pod.mesh(bed, serve())?;
        for (what, number, arguments) in FATAL {
            let thread = worker(sidecar.process())?;
            let mut intruder = Intruder::stop(sidecar.process(), thread)?;
            let came = intruder.call(*number, arguments)?;
            assert_eq!(came, Came::Ended(Signal::SIGSYS), "{what}");
            drop(intruder);
            let code = sidecar.process().wait(LIMIT)?;
            assert_eq!(code, 128 + Signal::SIGSYS as i32, "{what}: all of it");
            sidecar.start_again()?;
        }
        let mut free = bed.pod("off")?.mesh(bed, serve().env(SANDBOX, "off"))?;
        let thread = worker(free.process())?;
        let mut intruder = Intruder::stop(free.process(), thread)?;
        for (what, number, arguments) in FATAL {
            let came = intruder.call(*number, arguments)?;
            assert!(matches!(came, Came::Back(back) if back < 0), "{what} without it: {came:?}");
        }
        Ok(())
    });
}

/// `/proc` forgets its folders when memory is short, and Landlock knows them by what is forgotten.
#[test]
fn the_process_still_finds_itself_when_the_kernel_has_emptied_its_caches() {
    run("caches", |bed| {
        let pair = Pair::new(bed)?;
        let metrics = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port::METRICS);
        // It is left out when it cannot be read; the others keep what they had.
        let knows_itself = || {
            let (_, body) = http_get(&pair.server, metrics, "/metrics")?;
            Ok::<_, Failure>(body.contains("\nprocess_cpu_seconds_total "))
        };
        assert!(knows_itself()?);
        fs::write("/proc/sys/vm/drop_caches", "2").context(|| "vm.drop_caches")?;
        assert!(knows_itself()?, "/proc/self is still open to it");
        let listener = pair.listen(pair.server.v4(), APP)?;
        pair.exchange(&listener)
    });
}

/// A folder that comes after the start is waited for, and what is open in its place is told.
#[test]
fn a_folder_that_comes_late_is_read_and_what_that_opens_is_said() {
    run("late-folder", |bed| {
        let pod = bed.pod("srv")?;
        let late = bed.directory().join("late");
        let file = late.join("policy.yaml");
        let options = serve().env("PILLION_POLICY_FILE", &file.display().to_string());
        let sidecar = pod.mesh_unready(bed, options)?;
        let said = sidecar.wait_message("a folder is not there yet")?;
        let [said] = said.as_slice() else { panic!("{said:?}") };
        assert_eq!(said.text("missing"), late.display().to_string());
        assert_eq!(said.text("readable"), bed.directory().display().to_string());
        assert_eq!(sidecar.health("/healthz/ready")?.0, 503);
        fs::create_dir(&late)?;
        fs::write(&file, policy::serve(&[CLIENT]))?;
        becomes_ready(&sidecar)
    });
}

/// What is below a folder may be replaced; the folder itself is what the sandbox knows, where the
/// kernel has Landlock.
#[test]
fn a_folder_that_is_replaced_is_refused_with_its_cure_and_the_last_good_stays() {
    if !landlock().contains(&FILES) {
        return println!("no Landlock here");
    }
    run("new-folder", |bed| {
        let mut pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        pair.callee.load_policy(&policy::serve(&[CLIENT, STRANGER]))?;
        let folder = pair.server.path("policy");
        fs::rename(&folder, pair.server.path("policy-before"))?;
        fs::create_dir(&folder)?;
        pair.callee.set_policy(&policy::serve(&[]))?;
        let said = pair.callee.wait_message("replaced")?;
        let refused = |line: &LogLine| line.text("message").contains("the policy can't be used");
        assert!(said.iter().any(refused), "{said:?}");
        pair.exchange(&listener)?;
        assert!(pair.callee.process().ended()?.is_none());
        Ok(())
    });
}

/// Files are compared every 10 s, as long as their folder can't be watched.
fn becomes_ready(sidecar: &Sidecar) -> Result<(), Failure> {
    wait_until("a ready proxy", LIMIT, || {
        Ok((sidecar.health("/healthz/ready")?.0 == 200).then_some(()))
    })
}
