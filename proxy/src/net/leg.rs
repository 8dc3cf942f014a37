//! One TCP socket of a proxied connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Idle time before the first keepalive probe, and between probes. Shorter than
/// conntrack's 60 s for CLOSE_WAIT: else the entry goes while one side is
/// half-closed, the later FIN is never delivered, and the socket leaks.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Unanswered probes after which the peer is taken for gone: 60 s after its last word.
const KEEPALIVE_PROBES: u32 = 3;

/// A TCP socket that resets its peer when it is dropped, unless it ended well.
///
/// A proxy must not turn an abort of one side into a clean end of stream on the
/// other: a reader would take a truncated reply for a whole one. So the default
/// of every exit, be it an error, a cancelled task or a panic, is a RST, and the
/// one path that saw both directions end says so with [`Leg::end_cleanly`].
#[derive(Debug)]
pub struct Leg {
    stream: TcpStream,
    clean: bool,
}

impl Leg {
    /// Takes a socket over and sets the options that every leg has: no delay for
    /// small messages, and keepalive.
    ///
    /// There is no `TCP_USER_TIMEOUT` on purpose: the kernel applies it to a peer
    /// that is alive and keeps its window closed too, so a reader that pauses for
    /// longer than the timeout (a pager, a debugger, a busy consumer) would be
    /// reset, which it is not without a proxy.
    ///
    /// # Errors
    /// A socket whose options can't be set is already gone.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        let leg = Self { stream, clean: false };
        set_options(leg.stream.as_fd())?;
        Ok(leg)
    }

    /// From here on dropping the socket sends a FIN.
    pub fn end_cleanly(&mut self) {
        self.clean = true;
    }

    /// The socket, for its addresses.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        if !self.clean {
            // Nothing can be done about an error here; the socket is closed either way.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Sets the options of every leg. Kept apart from [`Leg`] so that a test can read
/// them back from any socket.
fn set_options(fd: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// What the relay needs of a side beyond bytes: the leg underneath.
pub trait LegIo: AsyncRead + AsyncWrite + Unpin {
    /// The socket underneath whatever wraps it.
    fn leg_mut(&mut self) -> &mut Leg;
}

impl LegIo for Leg {
    fn leg_mut(&mut self) -> &mut Leg {
        self
    }
}

impl AsyncRead for Leg {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Leg {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    async fn pair() -> (Leg, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Leg::new(listener.accept().await.unwrap().0).unwrap(), client)
    }

    #[tokio::test]
    async fn every_leg_has_its_options() {
        let (leg, _client) = pair().await;
        let socket = SockRef::from(leg.stream());
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }

    #[tokio::test]
    async fn a_dropped_leg_resets_and_a_clean_one_ends() {
        let (leg, mut client) = pair().await;
        drop(leg);
        let e = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);

        let (mut leg, mut client) = pair().await;
        leg.end_cleanly();
        drop(leg);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
