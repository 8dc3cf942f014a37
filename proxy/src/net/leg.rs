//! One TCP socket of a proxied connection.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::uio::{readv, writev};
use nix::unistd::{read, write};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
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
///
/// Readiness comes from tokio's reactor, the system calls are made here: it takes
/// `readv`, `writev` and `splice`, and a short read tells that the socket is empty
/// without asking it again.
#[derive(Debug)]
pub struct Leg {
    stream: TcpStream,
    /// Read before, to look at it; given back first.
    unread: Vec<u8>,
    clean: bool,
}

impl Leg {
    /// Takes a socket over that has the options of every leg: one that [`set_options`]
    /// was called for, or accepted from a listener that it was called for.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, unread: Vec::new(), clean: false }
    }

    /// From here on dropping the socket sends a FIN.
    pub fn end_cleanly(&mut self) {
        self.clean = true;
    }

    /// The socket, for its addresses.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Puts bytes back that were read to look at them: they are read again first.
    pub fn put_back(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.unread.is_empty(), "bytes are put back once");
        self.unread = bytes;
    }

    /// Whether bytes were put back and not yet read again.
    pub fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Ready when a read would not wait, as far as the reactor knows.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_unread() {
            return Poll::Ready(Ok(()));
        }
        self.stream.poll_read_ready(cx)
    }

    /// Reads into `into`, in order. 0 is the end of the stream.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.has_unread() {
            return Poll::Ready(Ok(self.give_back(into)));
        }
        let room: usize = into.iter().map(|slice| slice.len()).sum();
        self.poll_io(cx, Interest::READABLE, |socket| {
            let n = match &mut *into {
                // Without a list to import, the call is cheaper.
                [one] => read(socket, one)?,
                many => readv(socket, many)?,
            };
            // Edge-triggered epoll reports what comes after this (epoll(7)), so a short
            // read needs no second one to find the socket empty.
            Ok((n, n == 0 || n == room))
        })
    }

    /// Calls `io` when the socket is ready, until it does not block. It says whether
    /// the socket may have more, too.
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut io: impl FnMut(BorrowedFd<'_>) -> nix::Result<(usize, bool)>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if interest.is_readable() {
                ready!(self.stream.poll_read_ready(cx))?;
            } else {
                ready!(self.stream.poll_write_ready(cx))?;
            }
            let mut done = None;
            let result = self.stream.try_io(interest, || match io(self.stream.as_fd()) {
                Ok((n, true)) => Ok(n),
                Ok((n, false)) => {
                    done = Some(n);
                    // How the reactor is told that the socket is no longer ready.
                    Err(io::ErrorKind::WouldBlock.into())
                }
                Err(e) => Err(e.into()),
            });
            return Poll::Ready(match (result, done) {
                (Ok(n), _) | (Err(_), Some(n)) => Ok(n),
                (Err(e), None) if e.kind() == io::ErrorKind::WouldBlock => continue,
                (Err(e), None) if e.kind() == io::ErrorKind::Interrupted => continue,
                (Err(e), None) => Err(e),
            });
        }
    }

    /// Reads without asking the reactor, which may not know yet: when a write has met a
    /// reset, what the peer said before it is still to be had.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::WouldBlock`] when there is nothing.
    pub fn recv_now(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.has_unread() {
            return Ok(self.give_back(&mut [IoSliceMut::new(into)]));
        }
        Ok(read(&self.stream, into)?)
    }

    fn give_back(&mut self, into: &mut [IoSliceMut<'_>]) -> usize {
        let mut given = 0;
        for slice in into {
            let rest = self.unread.get(given..).unwrap_or_default();
            let n = rest.len().min(slice.len());
            if let (Some(to), Some(from)) = (slice.get_mut(..n), rest.get(..n)) {
                to.copy_from_slice(from);
            }
            given += n;
        }
        self.unread.drain(..given);
        if self.unread.is_empty() {
            self.unread = Vec::new();
        }
        given
    }

    /// Writes as much of `from` as the socket takes.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_send(&self, cx: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_io(cx, Interest::WRITABLE, |socket| {
            let n = match from {
                [one] => write(socket, one)?,
                many => writev(socket, many)?,
            };
            if n == 0 { Err(Errno::EPIPE) } else { Ok((n, true)) }
        })
    }

    /// Writes without asking the reactor.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::WouldBlock`] when it takes nothing now.
    pub fn send_now(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(writev(&self.stream, from)?)
    }

    /// Moves up to `len` bytes from the socket into an *empty* pipe (splice(2)). With
    /// anything in the pipe, "would block" could as well mean that the pipe is full.
    /// 0 is the end of the stream.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_splice_to(
        &self,
        cx: &mut Context<'_>,
        pipe: BorrowedFd<'_>,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        self.poll_io(cx, Interest::READABLE, |socket| {
            splice(socket, None, pipe, None, len, SPLICE).map(|n| (n, true))
        })
    }

    /// Moves up to `len` bytes, which the pipe holds, into the socket.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_splice_from(
        &self,
        cx: &mut Context<'_>,
        pipe: BorrowedFd<'_>,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        self.poll_io(cx, Interest::WRITABLE, |socket| {
            splice(pipe, None, socket, None, len, SPLICE).map(|n| (n, true))
        })
    }

    /// Ends our half of the stream: the peer sees its end.
    ///
    /// # Errors
    /// The socket's; a peer that has gone already is no error.
    pub fn finish(&self) -> io::Result<()> {
        match SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write) {
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        }
    }
}

/// Never `MORE`: the last piece would wait for a successor that does not come.
const SPLICE: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

impl Drop for Leg {
    fn drop(&mut self) {
        if !self.clean {
            // Nothing can be done about an error here; the socket is closed either way.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Sets the options of every leg: no delay for small messages, and keepalive. What a
/// listener has, the sockets that it accepts inherit (tcp(7)), so that accepting costs
/// no call for each.
///
/// There is no `TCP_USER_TIMEOUT` on purpose: the kernel applies it to a peer that is
/// alive and keeps its window closed too, so a reader that pauses for longer than the
/// timeout (a pager, a debugger, a busy consumer) would be reset, which it is not
/// without a proxy.
///
/// # Errors
/// The socket's: it is already gone.
pub fn set_options(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE)
            .with_retries(KEEPALIVE_PROBES),
    )
}

impl AsyncRead for Leg {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let into = &mut [IoSliceMut::new(buf.initialize_unfilled())];
        let n = ready!(self.poll_recv(cx, into))?;
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Leg {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    async fn pair() -> (Leg, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        set_options(&listener).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepted = listener.accept().await.unwrap().0;
        (Leg::new(accepted), client)
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

    #[tokio::test]
    async fn what_was_put_back_comes_first_whatever_the_size_of_the_reads() {
        let (mut leg, mut client) = pair().await;
        client.write_all(b"world").await.unwrap();
        client.shutdown().await.unwrap();
        leg.put_back(b"hello ".to_vec());
        let (mut one, mut other) = ([0; 2], [0; 2]);
        let into = &mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut other)];
        let n = std::future::poll_fn(|cx| leg.poll_recv(cx, into)).await.unwrap();
        assert_eq!((n, &one, &other), (4, b"he", b"ll"));
        let mut rest = Vec::new();
        leg.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"o world");
    }
}
