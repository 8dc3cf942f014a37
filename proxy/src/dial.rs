//! Opens a TCP connection: with a source, within a deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use crate::net::{self, Leg};
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
            _ => CloseReason::ConnectFailed,
        }
    }
}

/// Connects to `dst`, from `source` when one is given.
///
/// # Errors
/// See [`DialError`]; nothing is retried, because the client would not retry either.
pub async fn dial(
    dst: SocketAddr,
    source: Option<IpAddr>,
    timeout: Duration,
) -> Result<Leg, DialError> {
    dial_through(dst, source, timeout, |connect| connect().map(|_| ())).await.map(|(leg, ())| leg)
}

/// The same; `through` is what sends the SYN: it calls the function that it gets, which returns
/// our own address at once.
///
/// # Errors
/// See [`dial`], and those of `through`.
pub async fn dial_through<T>(
    dst: SocketAddr,
    source: Option<IpAddr>,
    timeout: Duration,
    through: impl FnOnce(&dyn Fn() -> io::Result<SocketAddr>) -> io::Result<T>,
) -> Result<(Leg, T), DialError> {
    let failed = |e| DialError::Failed(dst, e);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(dst), kind, None).map_err(failed)?;
    net::set_options(&socket).map_err(failed)?;
    if let Some(source) = source {
        // The port is chosen at connect(2), by the whole four-tuple: without this
        // every connection from one source takes a port of its own (ip(7)).
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).map_err(|e| failed(e.into()))?;
        socket
            .bind(&SocketAddr::new(source, 0).into())
            .map_err(|e| DialError::NoSource(source, e))?;
    }
    let told = through(&|| {
        match socket.connect(&dst.into()) {
            Err(e) if e.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(e),
            _ => {}
        }
        let own = socket.local_addr()?;
        own.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    });
    let told = told.map_err(failed)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn connects_from_the_source_it_was_given() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dst = listener.local_addr().unwrap();
        let source = "127.0.0.6".parse().unwrap();
        let _leg = dial(dst, Some(source), Duration::from_secs(5)).await.unwrap();
        assert_eq!(listener.accept().await.unwrap().1.ip(), source);
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_and_an_absent_source_named() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let e = dial(free, None, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(e.reason(), CloseReason::ConnectRefused);
        let absent = "192.0.2.77".parse().unwrap();
        let e = dial(free, Some(absent), Duration::from_secs(5)).await.unwrap_err();
        assert!(e.to_string().contains("192.0.2.77"), "{e}");
    }
}
