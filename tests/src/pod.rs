//! A pod: a network namespace that programs and sockets live in.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::testbed::Shared;
use crate::{Capture, Context, Failure, Process, Settings, namespace, wait_until};

/// No read, write or connect of a test's own socket waits longer.
pub(crate) const SOCKET_LIMIT: Duration = Duration::from_secs(20);

/// No program that is run to its end runs longer, in seconds; `timeout` then ends it with 124.
const PROGRAM_LIMIT: &str = "180";

/// A pod: a network namespace with loopback, an IPv4 and (unless it is off) an IPv6 address, and
/// a default route, plugged into the testbed's switch.
#[derive(Debug, Clone)]
pub struct Pod {
    pub(crate) shared: Arc<Shared>,
    name: String,
    namespace: String,
    v4: Ipv4Addr,
    v6: Option<Ipv6Addr>,
    runs: Arc<AtomicU32>,
}

impl Pod {
    pub(crate) fn new(shared: Arc<Shared>, name: &str, host: u8) -> Self {
        let namespace = format!("{}{name}", shared.prefix);
        let v6 = shared
            .settings
            .ipv6()
            .then(|| Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(host)));
        Self {
            shared,
            name: name.to_owned(),
            namespace,
            v4: Ipv4Addr::new(10, 77, 0, host),
            v6,
            runs: Arc::default(),
        }
    }

    /// Makes the namespace, its addresses and its cable to the switch.
    pub(crate) fn plug_in(&self) -> Result<(), Failure> {
        namespace::create(&self.namespace)?;
        self.connect_cable()
    }

    /// Makes the addresses and the cable of a namespace that is there.
    pub(crate) fn connect_cable(&self) -> Result<(), Failure> {
        let (own, switch, port) = (&self.namespace, self.shared.switch(), self.switch_port());
        if self.v6.is_none() {
            self.enter(|| {
                fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")
                    .context(|| "net.ipv6.conf.all.disable_ipv6")
            })?;
        }
        namespace::ip(&format!(
            "-n {own} link add eth0 type veth peer name {port} netns {switch}"
        ))?;
        namespace::ip(&format!("-n {switch} link set {port} master br0 up"))?;
        self.set_up_link()
    }

    /// Joins this pod and `other` by a pair of virtual interfaces alone, without the
    /// switch between them: for a measurement, to which the switch would add its own work.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join_directly(&self, other: &Self) -> Result<(), Failure> {
        let (own, others) = (&self.namespace, &other.namespace);
        for pod in [own, others] {
            namespace::ip(&format!("-n {pod} link del eth0"))?;
        }
        namespace::ip(&format!("-n {own} link add eth0 type veth peer name eth0 netns {others}"))?;
        self.set_up_link()?;
        other.set_up_link()
    }

    /// Gives `eth0` its addresses and routes.
    fn set_up_link(&self) -> Result<(), Failure> {
        let own = &self.namespace;
        namespace::ip(&format!("-n {own} addr add {}/24 dev eth0", self.v4))?;
        if let Some(v6) = self.v6 {
            // Without duplicate address detection an address serves at once.
            namespace::ip(&format!("-n {own} addr add {v6}/64 dev eth0 nodad"))?;
        }
        namespace::ip(&format!("-n {own} link set eth0 up"))?;
        namespace::ip(&format!("-n {own} route add default dev eth0"))?;
        if self.v6.is_some() {
            namespace::ip(&format!("-n {own} -6 route add default dev eth0"))?;
        }
        Ok(())
    }

    /// The name that the test gave it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its namespace, as `ip netns` knows it.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> IpAddr {
        self.v4.into()
    }

    /// Its addresses: IPv4, then IPv6 unless it is off. What IPv6 rows are skipped is printed.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        if self.v6.is_none() {
            println!("pod {}: IPv6 is off, its rows are skipped", self.name);
        }
        std::iter::once(self.v4()).chain(self.v6.map(IpAddr::from)).collect()
    }

    /// Whether it has IPv6.
    pub(crate) fn has_v6(&self) -> bool {
        self.v6.is_some()
    }

    /// What the person who runs the suite has set.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// A new path in the testbed's directory, unique to this pod.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.shared.directory().join(format!("{}-{name}", self.name))
    }

    /// Runs `work` on a thread inside the pod. Sockets that it opens stay in the pod.
    ///
    /// # Errors
    /// Those of `work`, or the namespace is gone.
    pub fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        namespace::enter(&self.namespace, work)
    }

    /// A command that will run in the pod as root, without an end of its own; for [`Pod::spawn`].
    #[must_use]
    pub fn daemon(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = inside(&self.namespace);
        command.arg(program);
        command
    }

    /// The same as another user, with no further group and no capability.
    #[must_use]
    pub fn daemon_as(&self, user: &str, program: impl AsRef<OsStr>) -> Command {
        self.daemon_through(&[], user, program)
    }

    /// The same, started through `launcher`, which runs as root and then becomes the program.
    pub(crate) fn daemon_through(
        &self,
        launcher: &[String],
        user: &str,
        program: impl AsRef<OsStr>,
    ) -> Command {
        let mut command = inside(&self.namespace);
        command.args(launcher).args(["setpriv", "--reuid", user, "--regid", user]);
        command.args(["--clear-groups", "--"]).arg(program);
        command
    }

    /// A command that will run in the pod as root and is ended after three minutes; for
    /// [`finish`](crate::finish) and [`complete`](crate::complete).
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.daemon("timeout");
        command.args(["--kill-after=2", PROGRAM_LIMIT]).arg(program);
        command
    }

    /// A shell line that will run in the pod: for a pipe or a redirection. Any part of a
    /// pipe that fails makes it fail.
    #[must_use]
    pub fn shell(&self, line: &str) -> Command {
        let mut command = self.command("bash");
        command.args(["-o", "pipefail", "-c", line]);
        command
    }

    /// Starts a program in the background.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Process, Failure> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{name}.{run}", self.name);
        Process::start(self.shared.directory(), &name, command)
    }

    /// Opens a connection from the pod. Reads and writes on it fail after 20 s.
    ///
    /// # Errors
    /// [`Failure::Io`] with the kernel's answer.
    pub fn connect(&self, to: SocketAddr) -> Result<TcpStream, Failure> {
        self.enter(|| {
            let stream = TcpStream::connect_timeout(&to, SOCKET_LIMIT)
                .context(|| format!("connecting to {to}"))?;
            limit(&stream)?;
            Ok(stream)
        })
    }

    /// Opens a listener in the pod, on one address.
    ///
    /// # Errors
    /// [`Failure::Io`] with the kernel's answer.
    pub fn listen(&self, on: SocketAddr) -> Result<TcpListener, Failure> {
        self.enter(|| {
            // A listener that was just dropped may live on for a moment in a child of another
            // test's thread, between fork(2) and execve(2), which closes it.
            let listener =
                wait_until("a free port", SOCKET_LIMIT, || match TcpListener::bind(on) {
                    Ok(listener) => Ok(Some(listener)),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
                    Err(error) => Err(error).context(|| format!("listening on {on}")),
                })?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// Waits until something in the pod listens on a port.
    ///
    /// # Errors
    /// Nothing does within 30 s.
    pub fn wait_for_port(&self, on: SocketAddr) -> Result<(), Failure> {
        // A table of listeners is read instead of a connection made: a server that speaks first
        // or that counts its connections must not see one of ours.
        let wanted = format!(":{}", on.port());
        let limit = Duration::from_secs(30);
        wait_until(&format!("a listener on {on} in pod {}", self.name), limit, || {
            let listed = crate::complete(self.command("ss").args(["-Hltn"]))?;
            let found = listed
                .lines()
                .filter_map(|line| line.split_whitespace().nth(3))
                .any(|local| local.ends_with(&wanted));
            Ok(found.then_some(()))
        })
    }

    /// Records what crosses this pod's cable, into `<name>.pcap`.
    ///
    /// # Errors
    /// `tcpdump` cannot be started.
    pub fn capture(&self, name: &str) -> Result<Capture, Failure> {
        Capture::start(self, name)
    }

    /// The switch's end of this pod's cable.
    pub(crate) fn switch_port(&self) -> String {
        format!("p-{}", self.name)
    }

    /// A command that will run in the switch's namespace.
    pub(crate) fn on_switch(&self, program: &str) -> Command {
        let mut command = inside(&self.shared.switch());
        command.arg(program);
        command
    }
}

/// The beginning of a command that runs in a namespace; the program follows.
fn inside(name: &str) -> Command {
    let mut net = OsString::from("--net=");
    net.push(namespace::path(name));
    let mut command = Command::new("nsenter");
    // Programs that give up root may not be let into the directory that the test runs in.
    command.current_dir("/").arg(net).arg("--");
    command
}

/// Takes the next connection of a listener made by [`Pod::listen`].
///
/// # Errors
/// None comes within 20 s.
pub fn accept(listener: &TcpListener) -> Result<TcpStream, Failure> {
    let stream = wait_until("a connection to accept", SOCKET_LIMIT, || match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    stream.set_nonblocking(false)?;
    limit(&stream)?;
    Ok(stream)
}

/// Checks that nobody has connected to an app's listener, made by [`Pod::listen`].
///
/// # Errors
/// Somebody has.
pub fn untouched(app: &TcpListener) -> Result<(), Failure> {
    match app.accept() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Ok((_, from)) => Err(Failure::Unexpected(format!("the app was reached from {from}"))),
        Err(error) => Err(error.into()),
    }
}

fn limit(stream: &TcpStream) -> Result<(), Failure> {
    stream.set_read_timeout(Some(SOCKET_LIMIT))?;
    stream.set_write_timeout(Some(SOCKET_LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(())
}
