//! A run of records before it is sealed.

use std::io::{self, IoSliceMut};
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::buffers::{Buffer, Buffers, MAX_PLAINTEXT, RECORD, RECORD_HEADER, RECORD_TRAILER, RUN};
use crate::net::Leg;
use crate::tls::{self, Session};
use crate::tunnel::{self, HEADER_LEN, Kind};

/// A buffer that is laid out as records: before and behind each one's plaintext is the
/// room that sealing needs.
#[derive(Debug)]
pub struct Slots {
    buffer: Buffer,
    head: usize,
    framed: bool,
}

impl Slots {
    /// `head` is what lies before the plaintext of each: the record's header, and with
    /// `framed` that of the tunnel's frame.
    pub(super) fn new(buffer: Buffer, head: usize, framed: bool) -> Self {
        Self { buffer, head, framed }
    }

    /// Whether each slot becomes a frame of the tunnel's.
    pub(super) fn is_framed(&self) -> bool {
        self.framed
    }

    /// The application data that fits one slot.
    pub(super) fn payload(&self) -> usize {
        let most = MAX_PLAINTEXT + RECORD_HEADER - self.head;
        most.min(self.buffer.len() - self.head - RECORD_TRAILER)
    }

    /// How many there are. The only one of a tiny buffer is shorter than a record.
    fn count(&self) -> usize {
        (self.buffer.len() / RECORD).max(1)
    }

    /// Reads from `leg` into the slots, in order.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>, leg: &mut Leg) -> Poll<io::Result<usize>> {
        let (head, payload) = (self.head, self.payload());
        let slots = self.count();
        let mut slices = self.buffer.chunks_mut(RECORD).filter_map(|slot| {
            let data = slot.get_mut(head..head + payload)?;
            Some(IoSliceMut::new(data))
        });
        let mut into: [IoSliceMut<'_>; RUN] =
            std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        leg.poll_recv(cx, into.get_mut(..slots).unwrap_or_default())
    }

    /// How many bytes fit.
    pub fn capacity(&self) -> usize {
        self.count() * self.payload()
    }

    /// Seals the first `n` bytes. Gives the buffer that the records are in, from its
    /// beginning, and their length.
    pub(super) fn seal(
        mut self,
        session: &mut Session,
        n: usize,
        buffers: &Rc<Buffers>,
    ) -> io::Result<(Buffer, usize)> {
        let payload = self.payload();
        let mut other = (!session.in_place()).then(|| buffers.lend(self.buffer.size()));
        let mut len = 0;
        let mut left = n;
        for slot in self.buffer.chunks_mut(RECORD) {
            let part = left.min(payload);
            if part == 0 {
                break;
            }
            left -= part;
            let mut plain = part;
            if self.framed {
                let header = tunnel::header(Kind::Data, part);
                if let Some(place) = slot.get_mut(RECORD_HEADER..self.head) {
                    place.copy_from_slice(&header);
                }
                plain += HEADER_LEN;
            }
            len += match &mut other {
                None => session.seal(slot, plain),
                Some(other) => {
                    let plain = slot.get(RECORD_HEADER..RECORD_HEADER + plain).unwrap_or_default();
                    session.seal_into(plain, other.get_mut(len..).unwrap_or_default())
                }
            }
            .map_err(tls::stream_error)?;
        }
        debug_assert!(len <= n + n.div_ceil(payload) * (self.head + RECORD_TRAILER));
        Ok((other.unwrap_or(self.buffer), len))
    }
}
