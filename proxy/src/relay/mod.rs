//! Moves bytes between two legs until both directions have ended.
//!
//! The app must not be able to tell that somebody stands between: an end of
//! stream is passed on as an end of stream while the other direction flows on, an
//! abort as an abort, and a writer that is faster than its reader is held back by
//! TCP alone, because at most one buffer a direction is in flight. A buffer is
//! borrowed when bytes are there and given back when they have gone.

mod copy;
mod pipes;
mod secure;

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::Sleep;

use crate::buffers::Buffers;
use crate::net::Leg;
use crate::telemetry::CloseReason;
use crate::tunnel;
use crate::wire::{self, Received, Wire};

use copy::Copy;
pub use pipes::Pipes;
use secure::{Open, Seal};

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

impl From<CloseReason> for Ended {
    fn from(reason: CloseReason) -> Self {
        Self { reason, detail: None }
    }
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

/// Relays plaintext both ways until both directions have ended, one of the sides fails,
/// the half-closed connection falls silent, or `stopped` resolves.
///
/// Only after [`CloseReason::Closed`] do the legs end cleanly; after anything else
/// dropping them resets both peers. A changed policy says goodbye with a FIN, and
/// leaves a second to answer it.
pub async fn plain(
    client: &mut Leg,
    server: &mut Leg,
    limits: Limits<'_>,
    (buffers, pipes): (&Rc<Buffers>, &Rc<Pipes>),
    stopped: impl Future<Output = CloseReason>,
) -> Ended {
    let up = Copy::new(limits.up, buffers, pipes);
    let down = Copy::new(limits.down, buffers, pipes);
    relay(&mut Plain { client, server, up, down }, &limits, stopped).await
}

/// The same between the app and a protected connection. `limits` counts up from the app
/// to the wire. In a tunnel the wire stays open behind [`CloseReason::Closed`], and may
/// be used again.
pub async fn secure(
    app: &mut Leg,
    wire: &mut Wire,
    limits: Limits<'_>,
    stopped: impl Future<Output = CloseReason>,
) -> Ended {
    let (seal, open) = (Seal::new(limits.up), Open::new(limits.down));
    relay(&mut Secure { app, wire, seal, open }, &limits, stopped).await
}

/// After a failure of the app's side: where our direction of a tunnel's stream has ended
/// already, the peer may have ended its own too and count on the tunnel for another
/// stream. It has a second to say so. True when it did, and the tunnel is still good.
pub async fn hear_out(wire: &mut Wire) -> bool {
    let ours_has_ended = wire.tunnel().is_some_and(|t| t.sending() == tunnel::Direction::Finished);
    let hear = async {
        std::future::poll_fn(|cx| wire.poll_flush(cx, &mut 0)).await?;
        drain_wire(wire).await
    };
    ours_has_ended
        && matches!(tokio::time::timeout(GOODBYE, hear).await, Ok(Ok(())))
        && wire.is_reusable()
}

/// How far a direction has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    /// The reader has ended; what was read before is still to be written.
    Ending,
    Done,
}

/// What one poll of a direction may move before it gives way to the other direction
/// and to other connections.
struct Budget {
    rounds: u32,
    bytes: usize,
}

impl Budget {
    const fn new() -> Self {
        Self { rounds: 32, bytes: 1 << 20 }
    }

    fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Counts a round. When nothing is left, the task is woken again at once.
    fn lasts(&mut self, cx: &Context<'_>) -> bool {
        let lasts = self.rounds > 0 && self.bytes > 0;
        self.rounds = self.rounds.saturating_sub(1);
        if !lasts {
            cx.waker().wake_by_ref();
        }
        lasts
    }
}

/// Two sides with a direction each way.
trait Sides {
    /// Polls both directions, the one that ends at the server first.
    fn poll(&mut self, cx: &mut Context<'_>) -> [Poll<io::Result<()>>; 2];
    /// Whether either direction has ended, or is about to.
    fn half_closed(&self) -> bool;
    /// Whether a failure of either leg would be seen by a read.
    fn sees(&self) -> bool;
    fn legs(&self) -> [&Leg; 2];
    /// Both directions have ended: so may the legs.
    fn end_cleanly(&mut self);
    /// Ends both streams, then waits for the peers to end theirs.
    async fn say_goodbye(&mut self) -> io::Result<()>;
}

async fn relay(
    sides: &mut impl Sides,
    limits: &Limits<'_>,
    stopped: impl Future<Output = CloseReason>,
) -> Ended {
    let mut silence = Silence::default();
    let mut blind = BlindSpot::default();
    let both = std::future::poll_fn(|cx| {
        let result = poll_both(cx, sides, &mut blind);
        if result.is_pending() && sides.half_closed() {
            ready!(silence.poll(cx, limits));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        result
    });
    // The relay first: what has come by now is passed on before anything else.
    let result = tokio::select! {
        biased;
        result = both => Ok(result),
        reason = stopped => Err(reason),
    };
    match result {
        Ok(Ok(())) => {
            sides.end_cleanly();
            Ended { reason: CloseReason::Closed, detail: None }
        }
        Ok(Err(_)) if silence.is_over() => {
            Ended { reason: CloseReason::HalfCloseTimeout, detail: None }
        }
        Ok(Err(e)) => {
            let (reason, detail) = wire::classify(&e);
            Ended { reason, detail }
        }
        Err(reason) => {
            if reason == CloseReason::PolicyChanged {
                // Boxed: it is rare, and must not make every connection larger.
                let goodbye = Box::pin(tokio::time::timeout(GOODBYE, sides.say_goodbye()));
                if matches!(goodbye.await, Ok(Ok(()))) {
                    sides.end_cleanly();
                }
            }
            Ended { reason, detail: None }
        }
    }
}

/// How long the peers of a connection that the policy ends may take to answer.
const GOODBYE: Duration = Duration::from_secs(1);

/// Both directions; an error of one ends both, once the other has passed on what had
/// already arrived: a server's early answer must survive the reset that follows it.
fn poll_both(
    cx: &mut Context<'_>,
    sides: &mut impl Sides,
    blind: &mut BlindSpot,
) -> Poll<io::Result<()>> {
    match sides.poll(cx) {
        [Poll::Ready(Ok(())), Poll::Ready(Ok(()))] => return Poll::Ready(Ok(())),
        [Poll::Ready(Err(one)), Poll::Ready(Err(other))] => {
            return Poll::Ready(Err(wire::more_telling(one, other)));
        }
        [Poll::Ready(Err(e)), _] | [_, Poll::Ready(Err(e))] => return Poll::Ready(Err(e)),
        _ => {}
    }
    if sides.sees() {
        blind.rest(cx);
        return Poll::Pending;
    }
    blind.poll(cx, sides.legs())
}

/// A leg that nobody reads, because its stream has ended or its bytes wait for a
/// slow writer, shows a reset to nobody. Both legs are asked for one, once a
/// second and only while there is such a leg.
#[derive(Default)]
struct BlindSpot(Option<Pin<Box<Sleep>>>);

impl BlindSpot {
    const EVERY: Duration = Duration::from_secs(1);

    /// There is no such leg now. The timer stays until it is over: a writer that waits now
    /// and then would need a new one each time.
    fn rest(&mut self, cx: &mut Context<'_>) {
        if self.0.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            self.0 = None;
        }
    }

    /// Ready when a leg has failed.
    fn poll(&mut self, cx: &mut Context<'_>, legs: [&Leg; 2]) -> Poll<io::Result<()>> {
        loop {
            let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(Self::EVERY)));
            ready!(sleep.as_mut().poll(cx));
            for leg in legs {
                if let Some(e) = leg.stream().take_error()? {
                    return Poll::Ready(Err(e));
                }
            }
            self.0 = None;
        }
    }
}

/// Watches a half-closed connection. An open one has no timer.
#[derive(Default)]
struct Silence {
    timer: Option<Pin<Box<Sleep>>>,
    last: u64,
    parts: u32,
}

impl Silence {
    /// Ready when no byte has moved for the timeout (or up to a quarter longer).
    fn poll(&mut self, cx: &mut Context<'_>, limits: &Limits<'_>) -> Poll<()> {
        loop {
            let part = limits.half_close / SILENCE_PARTS;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(part)));
            ready!(timer.as_mut().poll(cx));
            let moved = limits.up.get().wrapping_add(limits.down.get());
            self.parts = if moved == self.last { self.parts + 1 } else { 0 };
            self.last = moved;
            if self.is_over() {
                return Poll::Ready(());
            }
            self.timer = None;
        }
    }

    fn is_over(&self) -> bool {
        self.parts > SILENCE_PARTS
    }
}

/// Reads and forgets until the end of the stream.
async fn drain(leg: &mut Leg) -> io::Result<()> {
    let mut scratch = [0; 2048];
    while leg.read(&mut scratch).await? > 0 {}
    Ok(())
}

struct Plain<'a, 'b> {
    client: &'a mut Leg,
    server: &'a mut Leg,
    up: Copy<'b>,
    down: Copy<'b>,
}

impl Sides for Plain<'_, '_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> [Poll<io::Result<()>>; 2] {
        let up = self.up.poll(cx, self.client, self.server, false);
        // A write that meets a reset takes the socket's error with it: what a read finds behind it
        // is 0, and no end. (Behind a FIN the error is EPIPE, and the end is one.)
        let met_reset =
            matches!(&up, Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::ConnectionReset);
        let down = self.down.poll(cx, self.server, self.client, met_reset);
        [up, down]
    }

    fn half_closed(&self) -> bool {
        self.up.state != State::Copying || self.down.state != State::Copying
    }

    fn sees(&self) -> bool {
        self.up.reads() && self.down.reads()
    }

    fn legs(&self) -> [&Leg; 2] {
        [self.client, self.server]
    }

    fn end_cleanly(&mut self) {
        self.client.end_cleanly();
        self.server.end_cleanly();
    }

    async fn say_goodbye(&mut self) -> io::Result<()> {
        self.client.finish()?;
        self.server.finish()?;
        tokio::try_join!(drain(self.client), drain(self.server)).map(drop)
    }
}

struct Secure<'a, 'b> {
    app: &'a mut Leg,
    wire: &'a mut Wire,
    seal: Seal<'b>,
    open: Open<'b>,
}

impl Sides for Secure<'_, '_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> [Poll<io::Result<()>>; 2] {
        let seal = self.seal.poll(cx, self.app, self.wire);
        let mut open = self.open.poll(cx, self.app, self.wire);
        if matches!(seal, Poll::Ready(Err(_))) && open.is_pending() {
            open = self.open.hear_last_words(cx, self.app, self.wire);
        }
        if matches!(open, Poll::Ready(Err(_))) {
            // Our alert, if there is one.
            self.wire.flush_now();
        }
        [seal, open]
    }

    fn half_closed(&self) -> bool {
        self.seal.state != State::Copying || self.open.state != State::Copying
    }

    fn sees(&self) -> bool {
        self.seal.reads(self.wire) && self.open.reads()
    }

    fn legs(&self) -> [&Leg; 2] {
        [self.app, self.wire.leg()]
    }

    fn end_cleanly(&mut self) {
        self.app.end_cleanly();
        if self.wire.tunnel().is_none() {
            self.wire.leg_mut().end_cleanly();
        }
    }

    async fn say_goodbye(&mut self) -> io::Result<()> {
        self.app.finish()?;
        if self.seal.state == State::Copying {
            self.wire.queue_fin()?;
        }
        let wire = &mut *self.wire;
        std::future::poll_fn(|cx| wire.poll_flush(cx, &mut 0)).await?;
        if wire.tunnel().is_none() {
            wire.leg().finish()?;
        }
        if self.open.state == State::Done {
            return drain(self.app).await;
        }
        tokio::try_join!(drain(self.app), drain_wire(wire)).map(drop)
    }
}

/// Reads and forgets until the peer's stream has ended.
async fn drain_wire(wire: &mut Wire) -> io::Result<()> {
    while let Some(piece) = wire.pieces().1.first() {
        let n = piece.len();
        wire.forget(n);
    }
    loop {
        // What comes behind its end belongs to the next stream.
        if wire.tunnel().is_some_and(|t| t.receiving() == tunnel::Direction::Finished) {
            return Ok(());
        }
        match wire.receive()? {
            Some(Received::Fin | Received::Closed) => return Ok(()),
            Some(Received::Reset(reason)) => return Err(wire::reset_by(reason)),
            Some(_) => continue,
            None => {}
        }
        std::future::poll_fn(|cx| wire.poll_fill(cx)).await?;
    }
}

#[cfg(test)]
mod tests;
