//! Moves bytes between two legs until both directions have ended.
//!
//! The app must not be able to tell that somebody stands between: an end of
//! stream is passed on as an end of stream while the other direction flows on, an
//! abort as an abort, and a writer that is faster than its reader is held back by
//! TCP alone, because at most one buffer a direction is in flight.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;

use crate::net::{Leg, LegIo};
use crate::telemetry::CloseReason;
use crate::tls;

/// Bytes in flight a direction: two full TLS records.
const BUFFER: usize = 32 * 1024;

/// A half-closed connection's silence is counted in parts of its timeout, so that
/// nothing has to reset a timer for each read.
const SILENCE_PARTS: u32 = 4;

/// How a relay ended.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub reason: CloseReason,
    /// The error's own words, if there was one.
    pub detail: Option<String>,
}

/// Byte counts and deadlines of one relay.
#[derive(Debug)]
pub struct Limits<'a> {
    /// Bytes from `client` to `server`, counted as they are written.
    pub up: &'a Cell<u64>,
    /// Bytes from `server` to `client`.
    pub down: &'a Cell<u64>,
    /// How long a half-closed connection may be silent.
    pub half_close: Duration,
}

/// Relays until both directions have ended, one of the sides fails, the
/// half-closed connection falls silent, or `stopped` resolves.
///
/// Only after [`CloseReason::Closed`] do the legs end cleanly; after anything else
/// dropping them resets both peers. A changed policy says goodbye with a FIN, and
/// leaves a second to answer it.
pub async fn relay(
    client: &mut impl LegIo,
    server: &mut impl LegIo,
    limits: Limits<'_>,
    stopped: impl Future<Output = CloseReason>,
) -> Ended {
    let half_closed = Cell::new(false);
    let reason = tokio::select! {
        biased;
        ended = both(client, server, &limits, &half_closed) => {
            if ended.reason == CloseReason::Closed {
                client.leg_mut().end_cleanly();
                server.leg_mut().end_cleanly();
            }
            return ended;
        }
        reason = stopped => reason,
        () = silence(&limits, &half_closed) => CloseReason::HalfCloseTimeout,
    };
    if reason == CloseReason::PolicyChanged {
        say_goodbye(client, server).await;
    }
    Ended { reason, detail: None }
}

/// Copies both directions; an error of one ends both, once the other has passed on
/// what had already arrived: a server's early answer must survive the reset that
/// follows it.
async fn both(
    client: &mut impl LegIo,
    server: &mut impl LegIo,
    limits: &Limits<'_>,
    half_closed: &Cell<bool>,
) -> Ended {
    let mut up = Pump::new(limits.up);
    let mut down = Pump::new(limits.down);
    let mut blind = BlindSpot::default();
    let result = std::future::poll_fn(|cx| {
        let up_result = up.poll(cx, client, server);
        let down_result = down.poll(cx, server, client);
        half_closed.set(up.state != State::Copying || down.state != State::Copying);
        match (up_result, down_result) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            (Poll::Ready(Err(one)), Poll::Ready(Err(other))) => {
                return Poll::Ready(Err(tls::more_telling(one, other)));
            }
            (Poll::Ready(Err(e)), _) | (_, Poll::Ready(Err(e))) => return Poll::Ready(Err(e)),
            _ => {}
        }
        if up.reads() && down.reads() {
            blind = BlindSpot::default();
            return Poll::Pending;
        }
        blind.poll(cx, client.leg_mut(), server.leg_mut())
    })
    .await;
    match result {
        Ok(()) => Ended { reason: CloseReason::Closed, detail: None },
        Err(e) => {
            let (reason, detail) = tls::classify(&e);
            Ended { reason, detail }
        }
    }
}

/// A leg that nobody reads, because its stream has ended or its bytes wait for a
/// slow writer, shows a reset to nobody. Both legs are asked for one, once a
/// second and only while there is such a leg.
#[derive(Default)]
struct BlindSpot(Option<Pin<Box<Sleep>>>);

impl BlindSpot {
    const EVERY: Duration = Duration::from_secs(1);

    /// Ready when a leg has failed.
    fn poll(&mut self, cx: &mut Context<'_>, one: &Leg, other: &Leg) -> Poll<io::Result<()>> {
        loop {
            let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(Self::EVERY)));
            ready!(sleep.as_mut().poll(cx));
            for leg in [one, other] {
                if let Some(e) = leg.stream().take_error()? {
                    return Poll::Ready(Err(e));
                }
            }
            self.0 = None;
        }
    }
}

/// Resolves when the connection is half-closed and has moved no byte for the
/// timeout (or up to a quarter longer).
async fn silence(limits: &Limits<'_>, half_closed: &Cell<bool>) {
    let mut last = 0;
    let mut silent_parts = 0;
    loop {
        tokio::time::sleep(limits.half_close / SILENCE_PARTS).await;
        let moved = limits.up.get().wrapping_add(limits.down.get());
        silent_parts = if half_closed.get() && moved == last { silent_parts + 1 } else { 0 };
        last = moved;
        if silent_parts > SILENCE_PARTS {
            return;
        }
    }
}

/// Ends both streams, then waits up to a second for the peers to end theirs.
async fn say_goodbye(client: &mut impl LegIo, server: &mut impl LegIo) {
    let goodbye = async {
        // A peer that has gone already needs no goodbye.
        let _ = tokio::join!(client.shutdown(), server.shutdown());
        tokio::join!(drain(client), drain(server));
    };
    if tokio::time::timeout(Duration::from_secs(1), goodbye).await.is_ok() {
        client.leg_mut().end_cleanly();
        server.leg_mut().end_cleanly();
    }
}

/// Reads and forgets until the end of the stream or an error.
async fn drain(io: &mut impl LegIo) {
    let mut scratch = [0; 2048];
    while matches!(io.read(&mut scratch).await, Ok(n) if n > 0) {}
}

/// Buffers that one poll of a direction may move before it gives way to the other
/// direction and to other connections.
const ROUNDS: usize = 16;

/// One direction: what was read and is not yet written, and how far its end has
/// come.
struct Pump<'a> {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    state: State,
    unflushed: bool,
    count: &'a Cell<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Copying,
    ShuttingDown,
    Done,
}

impl<'a> Pump<'a> {
    fn new(count: &'a Cell<u64>) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { buffer, start: 0, end: 0, state: State::Copying, unflushed: false, count }
    }

    /// Whether this direction waits for its reader, and so would see it fail.
    fn reads(&self) -> bool {
        self.state == State::Copying && self.start == self.end
    }

    /// Ready once the reader has ended and the writer was told so.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS * 2 {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::ShuttingDown => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Done;
                }
                State::Copying if self.start < self.end => ready!(self.poll_write(cx, to))?,
                State::Copying => match self.poll_read(cx, from)? {
                    Poll::Ready(()) => {}
                    Poll::Pending => {
                        // A TLS writer may hold sealed records back: nothing more is
                        // coming for now, so they go out.
                        if self.unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<io::Result<()>> {
        let mut buf = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        self.start = 0;
        self.end = buf.filled().len();
        if self.end == 0 {
            self.state = State::ShuttingDown;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
        let n = ready!(Pin::new(to).poll_write(cx, waiting))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.start += n;
        self.unflushed = true;
        self.count.set(self.count.get().wrapping_add(n as u64));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (Leg, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Leg::new(listener.accept().await.unwrap().0).unwrap(), far)
    }

    struct Bench {
        ended: Ended,
        up: u64,
        down: u64,
    }

    /// Runs a relay between two sockets while `apps` plays both apps.
    async fn run<F: Future<Output = ()>>(
        half_close: Duration,
        stopped: impl Future<Output = CloseReason>,
        apps: impl FnOnce(TcpStream, TcpStream) -> F,
    ) -> Bench {
        let (mut client, client_app) = pair().await;
        let (mut server, server_app) = pair().await;
        let (up, down) = (Cell::new(0), Cell::new(0));
        let relay = async {
            let limits = Limits { up: &up, down: &down, half_close };
            let ended = relay(&mut client, &mut server, limits, stopped).await;
            drop((client, server));
            ended
        };
        let (ended, ()) = tokio::join!(relay, apps(client_app, server_app));
        Bench { ended, up: up.get(), down: down.get() }
    }

    async fn until_reset(stream: &TcpStream) {
        let reset = async {
            while stream.take_error().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), reset).await.unwrap();
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn each_direction_ends_on_its_own_and_every_byte_is_counted() {
        let bench = run(HOUR, std::future::pending(), |mut client, mut server| async move {
            client.write_all(&[1; 100_000]).await.unwrap();
            client.shutdown().await.unwrap();
            let mut request = Vec::new();
            server.read_to_end(&mut request).await.unwrap();
            assert_eq!(request, [1; 100_000]);
            server.write_all(&[2; 7]).await.unwrap();
            drop(server);
            let mut reply = Vec::new();
            client.read_to_end(&mut reply).await.unwrap();
            assert_eq!(reply, [2; 7]);
        })
        .await;
        assert_eq!(bench.ended.reason, CloseReason::Closed);
        assert_eq!((bench.up, bench.down), (100_000, 7));
    }

    #[tokio::test]
    async fn a_reset_is_passed_on_as_a_reset() {
        let bench = run(HOUR, std::future::pending(), |mut client, server| async move {
            socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
            let e = client.read(&mut [0; 1]).await.unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
        })
        .await;
        assert_eq!(bench.ended.reason, CloseReason::PeerReset);
    }

    #[tokio::test]
    async fn an_answer_that_came_before_a_reset_is_passed_on() {
        let bench = run(HOUR, std::future::pending(), |mut client, mut server| async move {
            // The server answers early and closes with the request unread: a reset
            // follows its answer while the client still sends.
            server.write_all(b"413").await.unwrap();
            socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
            // Its end may show as an error of this write as well.
            let _ = client.write_all(&[0; 100_000]).await;
            let mut answer = [0; 3];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"413");
        })
        .await;
        assert_eq!(bench.ended.reason, CloseReason::PeerReset);
        assert_eq!(bench.down, 3);
    }

    #[tokio::test]
    async fn a_reset_of_a_half_closed_peer_is_seen() {
        let bench = run(HOUR, std::future::pending(), |mut client, mut server| async move {
            client.shutdown().await.unwrap();
            assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
            // The server says nothing, so only the blind spot's question finds out.
            until_reset(&server).await;
        })
        .await;
        assert_eq!(bench.ended.reason, CloseReason::PeerReset);
    }

    #[tokio::test]
    async fn a_reset_behind_a_writer_that_waits_is_seen() {
        let bench = run(HOUR, std::future::pending(), |mut client, server| async move {
            // The server reads nothing, so the client's bytes fill every buffer.
            let full = async { while client.write_all(&[0; 65536]).await.is_ok() {} };
            assert!(tokio::time::timeout(Duration::from_millis(500), full).await.is_err());
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
            until_reset(&server).await;
        })
        .await;
        assert_eq!(bench.ended.reason, CloseReason::PeerReset);
    }

    #[tokio::test]
    async fn a_silent_half_closed_connection_is_reset_and_an_open_one_is_not() {
        let bench = run(
            Duration::from_millis(200),
            std::future::pending(),
            |mut client, mut server| async move {
                // Open both ways and silent for longer than the timeout: stays.
                tokio::time::sleep(Duration::from_millis(600)).await;
                client.write_all(b"x").await.unwrap();
                server.read_exact(&mut [0; 1]).await.unwrap();
                client.shutdown().await.unwrap();
                let e = client.read(&mut [0; 1]).await.unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
            },
        )
        .await;
        assert_eq!(bench.ended.reason, CloseReason::HalfCloseTimeout);
    }

    #[tokio::test]
    async fn a_changed_policy_says_fin_and_then_resets_who_does_not_answer() {
        let stopped = std::future::ready(CloseReason::PolicyChanged);
        let bench = run(HOUR, stopped, |mut client, mut server| async move {
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
            assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
            // The client never closes, so a write after the second finds a reset.
            let e = loop {
                if let Err(e) = client.write_all(&[0; 1]).await {
                    break e;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            assert!(matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset));
        })
        .await;
        assert_eq!(bench.ended.reason, CloseReason::PolicyChanged);
    }
}
