//! The protected side of a connection: a leg, the TLS session on it, and, if the peer
//! speaks it, the tunnel in that. Between the app's bytes and the socket's there is
//! one buffer a direction, and only while bytes are in it.

mod error;
mod slots;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::buffers::{Buffer, Buffers, MAX_PLAINTEXT, RECORD, RECORD_HEADER, Size};
use crate::net::Leg;
use crate::tls::{self, Established, Found, Session};
use crate::tunnel::{self, Closed, End, Event, Frame, HEADER_LEN, Kind, Reason, Role};

use error::violation;
pub use error::{classify, more_telling, reset_by};
pub use slots::Slots;

/// Pieces of plaintext that are handed to one `writev`.
pub const MAX_PIECES: usize = 32;

/// An established, protected connection.
#[derive(Debug)]
pub struct Wire {
    leg: Leg,
    session: Session,
    tunnel: Option<End>,
    inbox: Inbox,
    outbox: Outbox,
    buffers: Rc<Buffers>,
}

/// What has come and is not dealt with.
#[derive(Debug, Default)]
struct Inbox {
    buffer: Option<Buffer>,
    /// Not yet opened.
    sealed: Range<usize>,
    /// Opened and not yet looked at: in `spill` if there is one, else in `buffer`.
    plain: Range<usize>,
    /// Where an engine that does not work in place puts what it opens, and how much
    /// is in it.
    spill: Option<(Buffer, usize)>,
    /// The next buffer's size: large after a read that filled the last one.
    size: Size,
    ended: bool,
}

/// What is sealed and not yet sent.
#[derive(Debug, Default)]
struct Outbox {
    buffer: Option<Buffer>,
    sealed: Range<usize>,
    /// Bytes of the session's control records that go before `sealed`; the others go
    /// behind.
    control_first: usize,
    /// Of the run in `sealed`: the plaintext of each record but the last, that of all,
    /// and how much of it was counted already.
    each: usize,
    plain: usize,
    counted: usize,
}

/// Something that the peer sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes of the app's, and where they lie: see [`Wire::pieces`].
    Data(Range<usize>),
    /// The peer's direction of the app's stream has ended.
    Fin,
    /// A stream begins, of an app connection from there.
    Open(SocketAddr),
    /// The stream is aborted.
    Reset(Reason),
    /// The server takes no further stream.
    GoAway,
    /// The peer has ended the TLS stream, between app connections.
    Closed,
}

impl Wire {
    /// What a handshake on `leg` made. `role` is ours, if this is a tunnel.
    pub fn new(leg: Leg, made: Established, role: Role, buffers: &Rc<Buffers>) -> Self {
        let tunnel = made.tunnel.then(|| End::new(role));
        let mut wire = Self {
            leg,
            session: made.session,
            tunnel,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            buffers: Rc::clone(buffers),
        };
        // What came behind the handshake is read again first.
        if !made.rest.is_empty() {
            wire.leg.put_back(made.rest);
        }
        wire
    }

    /// The socket.
    pub fn leg(&self) -> &Leg {
        &self.leg
    }

    /// The socket, to end it cleanly.
    pub fn leg_mut(&mut self) -> &mut Leg {
        &mut self.leg
    }

    /// The tunnel's state; none when the TLS connection is one app connection.
    pub fn tunnel(&self) -> Option<&End> {
        self.tunnel.as_ref()
    }

    /// Whether another app connection may follow on this tunnel.
    pub fn is_reusable(&self) -> bool {
        self.tunnel.as_ref().is_some_and(End::is_reusable) && !self.has_queued()
    }

    /// Whether the peer has sent more than was looked at.
    pub fn has_leftover(&self) -> bool {
        !self.inbox.plain.is_empty() || !self.inbox.sealed.is_empty()
    }

    // ---- receiving

    /// The next thing among the bytes that are here; none when more have to come.
    ///
    /// # Errors
    /// A bad record, a broken rule of the tunnel, a truncated stream.
    pub fn receive(&mut self) -> io::Result<Option<Received>> {
        loop {
            if !self.inbox.plain.is_empty() {
                if let Some(received) = self.look_at_plain()? {
                    return Ok(Some(received));
                }
                continue;
            }
            let inbox = &mut self.inbox;
            let Some(buffer) = inbox.buffer.as_mut() else { break };
            if let Some((spill, used)) = &mut inbox.spill
                && spill.pieces().is_empty()
            {
                *used = 0;
            }
            let sealed = buffer.get_mut(inbox.sealed.clone()).unwrap_or_default();
            if !self.session.in_place() && inbox.spill.is_none() {
                inbox.spill = Some((self.buffers.lend(inbox.size.max(Size::Small)), 0));
            }
            let (spill, used) = match &mut inbox.spill {
                Some((spill, used)) => (spill.get_mut(*used..).unwrap_or_default(), *used),
                None => (&mut [][..], inbox.sealed.start),
            };
            if !self.session.in_place() && spill.len() < MAX_PLAINTEXT {
                break; // Until what is in the spill has been written.
            }
            let opened = self.session.open(sealed, spill).map_err(tls::stream_error)?;
            inbox.sealed.start += opened.consumed;
            match opened.found {
                Found::More => break,
                Found::Nothing => {}
                Found::Data(Range { start, end }) => {
                    inbox.plain = used + start..used + end;
                    if let Some((_, used)) = &mut inbox.spill {
                        *used += end;
                    }
                }
                Found::CloseNotify => return self.closed().map(Some),
            }
        }
        if self.inbox.ended {
            // RFC 8446, 6.1: without close_notify there may have been more.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(None)
    }

    fn look_at_plain(&mut self) -> io::Result<Option<Received>> {
        let plain = self.inbox.plain.clone();
        let Some(tunnel) = &mut self.tunnel else {
            self.inbox.plain = 0..0;
            return Ok(Some(Received::Data(plain)));
        };
        let memory = match &self.inbox.spill {
            Some((spill, _)) => Some(spill),
            None => self.inbox.buffer.as_ref(),
        };
        let bytes = memory.and_then(|m| m.get(plain.clone())).unwrap_or_default();
        let step = tunnel.receive(bytes).map_err(violation)?;
        self.inbox.plain.start += step.consumed;
        Ok(match step.event {
            None | Some(Event::Raw) => None,
            Some(Event::Data(Range { start, end })) => {
                Some(Received::Data(plain.start + start..plain.start + end))
            }
            Some(Event::Open(client)) => Some(Received::Open(client)),
            Some(Event::Fin) => Some(Received::Fin),
            Some(Event::Reset(reason)) => Some(Received::Reset(reason)),
            Some(Event::GoAway) => Some(Received::GoAway),
        })
    }

    fn closed(&mut self) -> io::Result<Received> {
        match self.tunnel.as_mut().map(End::closed) {
            None | Some(Closed::EndOfStream) => Ok(Received::Fin),
            Some(Closed::Clean) => Ok(Received::Closed),
            Some(Closed::Truncated) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Keeps a place of [`Received::Data`] for [`Wire::pieces`]. False when there are
    /// enough for one `writev`.
    pub fn keep_piece(&mut self, piece: Range<usize>) -> bool {
        match self.memory_mut() {
            None => false,
            Some(memory) => {
                memory.pieces().push(piece);
                memory.pieces().len() < MAX_PIECES
            }
        }
    }

    /// What [`Wire::keep_piece`] has kept.
    pub fn pieces(&self) -> (&[u8], &[Range<usize>]) {
        let memory = match &self.inbox.spill {
            Some((spill, _)) => Some(spill),
            None => self.inbox.buffer.as_ref(),
        };
        memory.map_or((&[], &[]), Buffer::parts)
    }

    /// Forgets the first `n` bytes of the kept pieces.
    pub fn forget(&mut self, mut n: usize) {
        let Some(memory) = self.memory_mut() else { return };
        let pieces = memory.pieces();
        let mut gone = 0;
        for piece in pieces.iter_mut() {
            let taken = n.min(piece.len());
            piece.start += taken;
            n -= taken;
            if piece.start < piece.end {
                break;
            }
            gone += 1;
        }
        pieces.drain(..gone);
    }

    fn memory_mut(&mut self) -> Option<&mut Buffer> {
        match &mut self.inbox.spill {
            Some((spill, _)) => Some(spill),
            None => self.inbox.buffer.as_mut(),
        }
    }

    /// Reads more from the socket. To be called when [`Wire::receive`] wants more and no
    /// piece is kept.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.leg.poll_readable(cx)?.is_pending() {
            self.put_away();
            return Poll::Pending;
        }
        let Some((leg, room)) = self.room() else { return Poll::Pending };
        let size = room.len();
        match leg.poll_recv(cx, &mut [IoSliceMut::new(room)]) {
            Poll::Pending => {
                self.put_away();
                Poll::Pending
            }
            Poll::Ready(read) => Poll::Ready(read.map(|n| self.inbox.filled(n, size))),
        }
    }

    /// The same without asking the reactor, after a write has failed.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::WouldBlock`] when nothing is there.
    pub fn fill_now(&mut self) -> io::Result<()> {
        let Some((leg, room)) = self.room() else { return Ok(()) };
        let size = room.len();
        if size == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = leg.recv_now(room)?;
        self.inbox.filled(n, size);
        Ok(())
    }

    /// The leg, and room to read to behind what is not opened yet.
    fn room(&mut self) -> Option<(&mut Leg, &mut [u8])> {
        let inbox = &mut self.inbox;
        inbox.spill = None;
        // A part of a record that fills its buffer has made the next size wanted.
        let size = inbox.size.max(Size::holding(inbox.sealed.len() + 1));
        if inbox.buffer.as_ref().is_none_or(|b| b.size() != size) {
            let next = self.buffers.lend(size);
            inbox.move_to(next);
        } else if let Some(buffer) = &mut inbox.buffer {
            buffer.copy_within(inbox.sealed.clone(), 0);
        }
        inbox.sealed = 0..inbox.sealed.len();
        let room = inbox.buffer.as_mut()?.get_mut(inbox.sealed.end..)?;
        Some((&mut self.leg, room))
    }

    /// Gives back what is not needed while nothing comes: all, or, for the part of a
    /// record that is here, all but the smallest buffer that holds it.
    pub fn put_away(&mut self) {
        let inbox = &mut self.inbox;
        if !inbox.plain.is_empty() {
            return;
        }
        inbox.spill = None;
        if inbox.sealed.is_empty() {
            inbox.buffer = None;
        } else {
            let size = Size::holding(inbox.sealed.len());
            if inbox.buffer.as_ref().is_some_and(|b| b.size() > size) {
                let next = self.buffers.lend(size);
                inbox.move_to(next);
            }
        }
    }

    // ---- sending

    /// Room for a run of records in a new buffer, where plaintext may be read to.
    pub fn slots(&self, size: Size) -> Slots {
        let framed = self.tunnel.as_ref().is_some_and(|t| t.sending() == tunnel::Direction::Open);
        let head = RECORD_HEADER + if framed { HEADER_LEN } else { 0 };
        Slots::new(self.buffers.lend(size), head, framed)
    }

    /// Whether a run is sealed and not yet sent: the next one has to wait.
    pub fn is_sending(&self) -> bool {
        self.outbox.buffer.is_some()
    }

    /// Seals the first `n` bytes that were read into `slots`. [`Wire::poll_flush`]
    /// sends them.
    ///
    /// # Errors
    /// No key is left to seal with.
    pub fn seal(&mut self, slots: Slots, n: usize) -> io::Result<()> {
        self.session.before_run().map_err(tls::stream_error)?;
        if slots.is_framed()
            && let Some(tunnel) = &mut self.tunnel
        {
            tunnel.sent(Kind::Data).map_err(violation)?;
        }
        self.outbox.control_first = self.session.outgoing().len();
        let each = slots.payload();
        let (buffer, len) = slots.seal(&mut self.session, n, &self.buffers)?;
        self.outbox.buffer = Some(buffer);
        self.outbox.sealed = 0..len;
        (self.outbox.each, self.outbox.plain, self.outbox.counted) = (each, n, 0);
        Ok(())
    }

    /// Queues a frame of the tunnel's, behind what is sealed already.
    ///
    /// # Errors
    /// The protocol does not allow it now, or no key is left.
    pub fn queue(&mut self, frame: &Frame) -> io::Result<()> {
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.sent(frame.kind()).map_err(violation)?;
        }
        self.session.before_run().map_err(tls::stream_error)?;
        let mut slot = [0; 64];
        let len = frame.len();
        if let Some(plain) = slot.get_mut(RECORD_HEADER..RECORD_HEADER + len) {
            plain.copy_from_slice(frame);
        }
        let mut out = [0; 64];
        let record = if self.session.in_place() {
            self.session.seal(&mut slot, len).map(|n| slot.get(..n))
        } else {
            let plain = slot.get(RECORD_HEADER..RECORD_HEADER + len).unwrap_or_default();
            self.session.seal_into(plain, &mut out).map(|n| out.get(..n))
        };
        let record = record.map_err(tls::stream_error)?.unwrap_or_default();
        self.session.outgoing().extend_from_slice(record);
        Ok(())
    }

    /// Queues the end of our direction of the app's stream: FIN in a tunnel,
    /// close_notify elsewhere.
    ///
    /// # Errors
    /// As [`Wire::queue`].
    pub fn queue_fin(&mut self) -> io::Result<()> {
        match &mut self.tunnel {
            Some(tunnel) if tunnel.sending() == tunnel::Direction::Open => {
                self.queue(&tunnel::fin())
            }
            _ => self.queue_close(),
        }
    }

    fn queue_close(&mut self) -> io::Result<()> {
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.sent_close().map_err(violation)?;
        }
        self.session.close().map_err(tls::stream_error)
    }

    /// Sends what is sealed and queued. Gives how many bytes of the app's have left
    /// with it.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>, sent: &mut usize) -> Poll<io::Result<()>> {
        self.flush_by(sent, |leg, slices| leg.poll_send(cx, slices))
    }

    fn flush_by(
        &mut self,
        sent: &mut usize,
        mut send: impl FnMut(&Leg, &[IoSlice<'_>]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        loop {
            let control = &mut *self.session.outgoing();
            let out = &mut self.outbox;
            if out.buffer.is_none() && control.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let sealed = out.buffer.as_ref().and_then(|b| b.get(out.sealed.clone()));
            let (before, behind) = control.split_at(out.control_first.min(control.len()));
            let sealed = sealed.unwrap_or_default();
            let n = if control.is_empty() {
                ready!(send(&self.leg, &[IoSlice::new(sealed)]))?
            } else {
                let slices = [before, sealed, behind].map(IoSlice::new);
                ready!(send(&self.leg, &slices))?
            };
            let first = n.min(before.len());
            let second = (n - first).min(out.sealed.len());
            let third = n - first - second;
            control.drain(..first + third);
            out.control_first -= first;
            out.sealed.start += second;
            *sent += out.progress();
            if out.sealed.is_empty() {
                *out = Outbox::default();
            }
        }
    }

    /// Whether anything waits to be sent.
    pub fn has_queued(&self) -> bool {
        self.outbox.buffer.is_some() || self.session.has_outgoing()
    }

    /// Says why the stream ends, as far as that is possible at once. Dropping the wire
    /// then resets the connection.
    pub fn abort(&mut self, reason: Reason) {
        // Whatever fails here, the reset says enough.
        let _ = self.queue(&tunnel::reset(reason));
        self.flush_now();
    }

    /// Ends a tunnel between streams: close_notify, then FIN when the wire is dropped.
    pub fn close(&mut self) {
        if self.queue_close().is_ok() {
            self.flush_now();
        }
        self.leg.end_cleanly();
    }

    /// Sends what can be sent without waiting, and without asking the reactor.
    pub fn flush_now(&mut self) {
        // What is not sent now is lost with the connection.
        let _ = self.flush_by(&mut 0, |leg, slices| Poll::Ready(leg.send_now(slices)));
    }
}

impl Inbox {
    /// `n` bytes were read into room for `size`.
    fn filled(&mut self, n: usize, size: usize) {
        self.ended = n == 0;
        self.sealed.end += n;
        self.size = self.size.after(n, size);
    }

    /// Goes on in another buffer, with what is not opened yet at its front.
    fn move_to(&mut self, mut next: Buffer) {
        let rest = self.buffer.as_ref().and_then(|b| b.get(self.sealed.clone()));
        let rest = rest.unwrap_or_default();
        if let Some(front) = next.get_mut(..rest.len()) {
            front.copy_from_slice(rest);
        }
        self.sealed = 0..rest.len();
        self.buffer = Some(next);
    }
}

impl Outbox {
    /// Plaintext whose records have left whole since the last call.
    fn progress(&mut self) -> usize {
        let left = if self.sealed.is_empty() {
            self.plain
        } else {
            (self.sealed.start / RECORD * self.each).min(self.plain)
        };
        let new = left - self.counted;
        self.counted = left;
        new
    }
}
