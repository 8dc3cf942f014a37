//! Opens a TCP connection: with a source, within a deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use crate::net::{self, Leg, SourcePorts};
use crate::telemetry::CloseReason;

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The deadline passed.
    #[error("no answer from {0} within {1:?}")]
    Timeout(SocketAddr, Duration),
    /// The kernel said no.
    #[error("connect to {0}: {1}")]
    Failed(SocketAddr, io::Error),
    /// The source address is not on this machine.
    #[error(
        "cannot connect from {0}: {1}; pillion-init adds that address to lo, so check that it ran"
    )]
    NoSource(IpAddr, io::Error),
}

impl DialError {
    /// The reason that the other side's connection ends with.
    pub fn reason(&self) -> CloseReason {
        let e = match self {
            Self::Timeout(..) => return CloseReason::ConnectTimeout,
            Self::NoSource(..) => return CloseReason::NoLocalPort,
            Self::Failed(_, e) => e,
        };
        match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => CloseReason::ConnectRefused,
            Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ENETDOWN) => {
                CloseReason::ConnectUnreachable
            }
            Some(Errno::EADDRNOTAVAIL | Errno::EADDRINUSE) => CloseReason::NoLocalPort,
            Some(Errno::ETIMEDOUT) => CloseReason::ConnectTimeout,
            // It was made, and reset before we had looked.
            Some(Errno::ECONNRESET) => CloseReason::PeerReset,
            _ => CloseReason::ConnectFailed,
        }
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// This address, and a port that the kernel picks.
    Address(IpAddr),
    /// The address that the route says, and one of these ports while there is a free one.
    Ports(&'a SourcePorts),
}

/// How many ports are tried before the kernel picks one. Each costs a socket, and ports come in
/// turn: where two have not been given back since the last time, the others hardly have been.
const TRIES: usize = 2;

/// Connects to `dst`.
///
/// # Errors
/// See [`DialError`]; nothing is retried, because the client would not retry either.
pub async fn dial(
    dst: SocketAddr,
    source: Source<'_>,
    timeout: Duration,
) -> Result<Leg, DialError> {
    dial_through(dst, source, timeout, |connect| connect().map(|_| ())).await.map(|(leg, ())| leg)
}

/// The same; `through` is what sends the SYN: it calls the function that it gets, which returns
/// our own address at once. It is asked again where a port is in use.
///
/// # Errors
/// See [`dial`], and those of `through`.
pub async fn dial_through<T>(
    dst: SocketAddr,
    source: Source<'_>,
    timeout: Duration,
    through: impl Fn(&dyn Fn() -> io::Result<SocketAddr>) -> io::Result<T>,
) -> Result<(Leg, T), DialError> {
    let failed = |e| DialError::Failed(dst, e);
    let (socket, told) = match source {
        Source::Address(address) => {
            let socket = socket(dst).map_err(failed)?;
            // The port is chosen at connect(2), by the whole four-tuple: without this
            // every connection from one source takes a port of its own (ip(7)).
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
                .map_err(|e| failed(e.into()))?;
            let bound = socket.bind(&SocketAddr::new(address, 0).into());
            bound.map_err(|e| DialError::NoSource(address, e))?;
            let told = send_syn(&socket, dst, &through).map_err(failed)?;
            (socket, told)
        }
        Source::Ports(ports) => from_ports(dst, ports, &through).map_err(failed)?,
    };
    let stream = TcpStream::from_std(socket.into()).map_err(failed)?;
    let connected = async {
        stream.writable().await?;
        stream.take_error()?.map_or(Ok(()), Err)
    };
    tokio::time::timeout(timeout, connected)
        .await
        .map_err(|_| DialError::Timeout(dst, timeout))?
        .map_err(failed)?;
    Ok((Leg::new(stream), told))
}

fn socket(dst: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(dst), kind, None)?;
    net::set_options(&socket)?;
    Ok(socket)
}

fn send_syn<T>(
    socket: &Socket,
    dst: SocketAddr,
    through: impl Fn(&dyn Fn() -> io::Result<SocketAddr>) -> io::Result<T>,
) -> io::Result<T> {
    through(&|| {
        match socket.connect(&dst.into()) {
            Err(e) if e.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(e),
            _ => {}
        }
        let own = socket.local_addr()?;
        own.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    })
}

/// From one of `ports`, or else from one that the kernel picks.
fn from_ports<T>(
    dst: SocketAddr,
    ports: &SourcePorts,
    through: impl Fn(&dyn Fn() -> io::Result<SocketAddr>) -> io::Result<T>,
) -> io::Result<(Socket, T)> {
    for port in std::iter::from_fn(|| ports.next(dst)).take(TRIES) {
        let socket = socket(dst)?;
        // Connections to several servers, and an app's listener, may share the port.
        socket.set_reuse_address(true)?;
        let any = SocketAddr::new(net::unspecified(dst), port);
        match socket.bind(&any.into()).and_then(|()| send_syn(&socket, dst, &through)) {
            Ok(told) => return Ok((socket, told)),
            Err(e) if is_in_use(&e) => {}
            Err(e) => return Err(e),
        }
    }
    let socket = socket(dst)?;
    let told = send_syn(&socket, dst, &through)?;
    Ok((socket, told))
}

/// Another connection to the server, or a listener, has the port.
fn is_in_use(e: &io::Error) -> bool {
    let errno = e.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EADDRNOTAVAIL | Errno::EADDRINUSE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn none() -> SourcePorts {
        SourcePorts::new(None, &(32_768..=60_999))
    }

    /// A port is free for one server, taken for another, and then the kernel picks.
    #[tokio::test]
    async fn connects_from_its_own_ports_while_there_are_free_ones() {
        const LIMIT: Duration = Duration::from_secs(5);
        let kernels = net::kernel_range().unwrap();
        let last = if *kernels.start() > 1_100 { kernels.start() - 1 } else { u16::MAX };
        let ports = SourcePorts::new(Some(last - 1..=last), &kernels);
        let own = ports.range().unwrap().clone();
        let [one, other] = [listener().await, listener().await];
        let mut legs = Vec::new();
        let mut from = Vec::new();
        for to in [&one, &one, &one, &other] {
            let dst = to.local_addr().unwrap();
            legs.push(dial(dst, Source::Ports(&ports), LIMIT).await.unwrap());
            from.push(to.accept().await.unwrap().1.port());
        }
        let [first, second, third, fourth] = from[..] else { panic!("{from:?}") };
        assert!(own.contains(&first) && own.contains(&second) && first != second, "{from:?}");
        assert!(kernels.contains(&third), "{from:?}");
        assert!(own.contains(&fourth), "shared with one to another server: {from:?}");
    }

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    #[tokio::test]
    async fn connects_from_the_source_it_was_given() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dst = listener.local_addr().unwrap();
        let source = "127.0.0.6".parse().unwrap();
        let _leg = dial(dst, Source::Address(source), Duration::from_secs(5)).await.unwrap();
        assert_eq!(listener.accept().await.unwrap().1.ip(), source);
    }

    /// Which of the two it is, connected or not, depends on how soon we look: the reason must not.
    #[test]
    fn a_server_that_resets_at_once_has_reset() {
        let reset = DialError::Failed("192.0.2.1:80".parse().unwrap(), Errno::ECONNRESET.into());
        assert_eq!(reset.reason(), CloseReason::PeerReset);
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_and_an_absent_source_named() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let e = dial(free, Source::Ports(&none()), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(e.reason(), CloseReason::ConnectRefused);
        let absent = "192.0.2.77".parse().unwrap();
        let e = dial(free, Source::Address(absent), Duration::from_secs(5)).await.unwrap_err();
        assert!(e.to_string().contains("192.0.2.77"), "{e}");
    }
}
