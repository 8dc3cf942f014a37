//! Listening sockets, and accepting that never gives up.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::leg::set_options;
use super::{ClientAddr, canonical};

/// Connections that the kernel holds for us before we accept them.
const BACKLOG: i32 = 4096;

/// Binds a listener that nobody shares. IPv6 sockets are IPv6 only; IPv4 has its
/// own, so that no mapped address ever arrives.
///
/// # Errors
/// Whatever bind(2) and listen(2) say; see [`is_absent_family`] for a machine
/// without IPv6.
pub fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    listen(addr, false)
}

/// Binds as many listeners to one address as there are workers: the kernel spreads
/// connections over them (`SO_REUSEPORT`, socket(7)).
///
/// # Errors
/// As [`bind`]; an address that another process listens on is taken, even if that
/// process would share it.
pub fn bind_shared(addr: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    // Only a socket that does not share finds out that somebody else does.
    drop(listen(addr, false)?);
    (0..workers).map(|_| listen(addr, true)).collect()
}

fn listen(addr: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    set_options(&socket)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether binding failed because this network namespace has no IPv6 (the module
/// is absent, or `disable_ipv6=1` left `lo` without `::1`).
pub fn is_absent_family(addr: SocketAddr, e: &io::Error) -> bool {
    use nix::errno::Errno;
    let errno = e.raw_os_error().map(Errno::from_raw);
    let everywhere = addr.ip().is_unspecified() || addr.ip().is_loopback();
    addr.is_ipv6()
        && (errno == Some(Errno::EAFNOSUPPORT) || everywhere && errno == Some(Errno::EADDRNOTAVAIL))
}

/// Accepts for ever. A resource that ran out (descriptors, memory) is waited for
/// with a growing pause instead of a spin; a connection that died in the queue is
/// passed over. No error ends a listener.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

impl Acceptor {
    /// Takes a socket from [`bind`] over; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the runtime can't register the descriptor.
    pub fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::from_std(listener)?, pause: FIRST_PAUSE })
    }

    /// The next connection. `on_error` sees each error before the pause.
    pub async fn accept(&mut self, on_error: impl Fn(&io::Error)) -> (TcpStream, ClientAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, client)) => {
                    self.pause = FIRST_PAUSE;
                    return (stream, ClientAddr(canonical(client)));
                }
                Err(e) if died_in_the_queue(&e) => on_error(&e),
                Err(e) => {
                    on_error(&e);
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

/// Errors of the connection itself, which accept(2) reports in its place: the
/// next one may be fine, so there is nothing to wait for.
fn died_in_the_queue(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn workers_share_an_address_and_nobody_else_does() {
        let addr = bind("127.0.0.1:0".parse().unwrap()).unwrap().local_addr().unwrap();
        let mut listeners = bind_shared(addr, 2).unwrap();
        assert_eq!(bind_shared(addr, 2).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(bind(addr).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let mut acceptor = Acceptor::new(listeners.remove(0)).unwrap();
        drop(listeners);
        let client = TcpStream::connect(addr).await.unwrap();
        let (_, from) = acceptor.accept(|e| panic!("{e}")).await;
        assert_eq!(from.0, client.local_addr().unwrap());
    }

    #[test]
    fn an_absent_family_is_told_from_a_taken_port() {
        let v6 = "[::1]:1".parse().unwrap();
        let absent = io::Error::from_raw_os_error(nix::errno::Errno::EADDRNOTAVAIL as i32);
        let taken = io::Error::from_raw_os_error(nix::errno::Errno::EADDRINUSE as i32);
        assert!(is_absent_family(v6, &absent));
        assert!(!is_absent_family(v6, &taken));
        assert!(!is_absent_family("127.0.0.1:1".parse().unwrap(), &absent));
        assert!(!is_absent_family("[fd00::1]:1".parse().unwrap(), &absent), "a typo is an error");
    }
}
