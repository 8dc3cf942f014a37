//! Records what crosses a pod's cable.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::{Context, Failure, Pod, Process, Wire, wait_until};

/// How long `tcpdump` may take to begin, to see a packet and to end.
const LIMIT: Duration = Duration::from_secs(10);

/// The discard service (RFC 863): nobody listens, and nothing but the end mark goes there.
const DISCARD: u16 = 9;

/// A running recording of what crosses a pod's cable, at the switch's end of it: what is seen
/// here has left the pod, or is about to enter it.
#[derive(Debug)]
pub struct Capture {
    pod: Pod,
    process: Process,
    file: PathBuf,
}

impl Capture {
    pub(crate) fn start(pod: &Pod, name: &str) -> Result<Self, Failure> {
        let file = pod.path(&format!("{name}.pcap"));
        let mut command = pod.on_switch("tcpdump");
        command.args(["-i", &pod.switch_port(), "-U", "-s", "0", "-B", "65536"]);
        command.args(["--immediate-mode", "-Z", "root", "-w"]).arg(&file);
        command.args(["tcp", "or", "udp", "port", "9"]);
        let process = pod.spawn("tcpdump", &mut command)?;
        wait_until("a listening tcpdump", LIMIT, || {
            Ok(process.stderr()?.contains("listening on").then_some(()))
        })?;
        Ok(Self { pod: pod.clone(), process, file })
    }

    /// Ends the recording and returns what was on the wire. Everything that crossed before this
    /// call is in it: a datagram sent last is waited for, since packets are recorded in order.
    ///
    /// # Errors
    /// The end mark does not appear, or the file is not as it should be.
    pub fn finish(mut self, towards: &Pod) -> Result<Wire, Failure> {
        let mark = format!("end of the capture {}", self.file.display());
        let to = SocketAddr::new(towards.v4(), DISCARD);
        self.pod.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(mark.as_bytes(), to).context(|| "the end mark")?;
            Ok(())
        })?;
        wait_until("the end mark in the capture", LIMIT, || {
            let bytes = fs::read(&self.file)?;
            Ok(bytes.windows(mark.len()).any(|part| part == mark.as_bytes()).then_some(()))
        })?;
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(LIMIT)?;
        Wire::parse(&fs::read(&self.file)?)
    }
}
