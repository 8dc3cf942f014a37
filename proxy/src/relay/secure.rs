//! Plaintext on one side, records on the other.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use crate::buffers::Size;
use crate::net::Leg;
use crate::wire::{self, MAX_PIECES, Received, Wire};

use super::{Budget, State};

/// From the app to the wire: read into the gaps of a run of records, sealed there,
/// and sent with one call.
pub(super) struct Seal<'a> {
    pub(super) state: State,
    size: Size,
    count: &'a Cell<u64>,
}

impl<'a> Seal<'a> {
    pub(super) fn new(count: &'a Cell<u64>) -> Self {
        Self { state: State::Copying, size: Size::default(), count }
    }

    /// Whether this direction waits for its reader, and so would see it fail.
    pub(super) fn reads(&self, wire: &Wire) -> bool {
        self.state == State::Copying && !wire.is_sending()
    }

    /// Ready once the app's stream has ended and the peer was told so.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut Leg,
        wire: &mut Wire,
    ) -> Poll<io::Result<()>> {
        let mut budget = Budget::new();
        while budget.lasts(cx) {
            if self.state != State::Copying || wire.is_sending() {
                ready!(self.poll_flush(cx, wire))?;
            }
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Ending => {
                    if wire.tunnel().is_none() {
                        wire.leg().finish()?;
                    }
                    self.state = State::Done;
                }
                State::Copying => {
                    let n = match self.poll_read(cx, app, wire)? {
                        Poll::Ready(n) => n,
                        // What TLS or the tunnel has to say goes out without data, too.
                        Poll::Pending if wire.has_queued() => {
                            ready!(self.poll_flush(cx, wire))?;
                            return Poll::Pending;
                        }
                        Poll::Pending => return Poll::Pending,
                    };
                    budget.spend(n);
                    if n == 0 {
                        wire.queue_fin()?;
                        self.state = State::Ending;
                    }
                }
            }
        }
        Poll::Pending
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut Leg,
        wire: &mut Wire,
    ) -> Poll<io::Result<usize>> {
        // Nothing is borrowed before there is something to put in it.
        ready!(app.poll_readable(cx))?;
        let mut slots = wire.slots(self.size);
        let n = ready!(slots.poll_recv(cx, app))?;
        if n > 0 {
            self.size = self.size.after(n, slots.capacity());
            wire.seal(slots, n)?;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let flushed = wire.poll_flush(cx, &mut sent);
        self.count.set(self.count.get().wrapping_add(sent as u64));
        flushed
    }
}

/// From the wire to the app: opened where it was read to, and written with one call.
pub(super) struct Open<'a> {
    pub(super) state: State,
    count: &'a Cell<u64>,
    waiting: bool,
}

impl<'a> Open<'a> {
    pub(super) fn new(count: &'a Cell<u64>) -> Self {
        Self { state: State::Copying, count, waiting: false }
    }

    /// Whether this direction waits for its reader, and so would see it fail.
    pub(super) fn reads(&self) -> bool {
        self.state == State::Copying && !self.waiting
    }

    /// Ready once the peer's stream has ended and the app was told so.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        app: &Leg,
        wire: &mut Wire,
    ) -> Poll<io::Result<()>> {
        let mut budget = Budget::new();
        while budget.lasts(cx) {
            if self.state == State::Done {
                return Poll::Ready(Ok(()));
            }
            self.waiting = true;
            budget.spend(ready!(self.poll_write(cx, app, wire))?);
            self.waiting = false;
            if self.state == State::Ending {
                app.finish()?;
                self.state = State::Done;
                // Nobody reads on before the next stream.
                wire.put_away();
                continue;
            }
            self.gather(wire)?;
            if self.state == State::Copying && wire.pieces().1.is_empty() {
                ready!(wire.poll_fill(cx))?;
            }
        }
        Poll::Pending
    }

    /// Passes on what the peer said before the reset that a write to it has met.
    pub(super) fn hear_last_words(
        &mut self,
        cx: &mut Context<'_>,
        app: &Leg,
        wire: &mut Wire,
    ) -> Poll<io::Result<()>> {
        while self.state == State::Copying && wire.pieces().1.is_empty() && wire.fill_now().is_ok()
        {
            // Pending here means that the reactor has nothing to tell, or the app waits.
            if let done @ Poll::Ready(_) = self.poll(cx, app, wire) {
                return done;
            }
        }
        Poll::Pending
    }

    /// Opens what is here, up to a call's worth of pieces.
    fn gather(&mut self, wire: &mut Wire) -> io::Result<()> {
        while let Some(received) = wire.receive()? {
            match received {
                Received::Data(piece) => {
                    if !wire.keep_piece(piece) {
                        return Ok(());
                    }
                }
                Received::Fin => {
                    self.state = State::Ending;
                    return Ok(());
                }
                Received::Reset(reason) => return Err(wire::reset_by(reason)),
                // It tells of the tunnel's end, not of this stream's.
                Received::GoAway => {}
                // The tunnel's state machine lets neither come within a stream.
                Received::Open(_) | Received::Closed => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(())
    }

    /// Writes all kept pieces.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        app: &Leg,
        wire: &mut Wire,
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        loop {
            let (bytes, pieces) = wire.pieces();
            if pieces.is_empty() {
                return Poll::Ready(Ok(written));
            }
            let mut slices = pieces.iter().filter_map(|piece| bytes.get(piece.clone()));
            let from: [IoSlice<'_>; MAX_PIECES] =
                std::array::from_fn(|_| IoSlice::new(slices.next().unwrap_or_default()));
            let from = from.get(..pieces.len()).unwrap_or_default();
            let n = ready!(app.poll_send(cx, from))?;
            wire.forget(n);
            written += n;
            self.count.set(self.count.get().wrapping_add(n as u64));
        }
    }
}
