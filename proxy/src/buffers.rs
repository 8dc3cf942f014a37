//! A worker's buffers: borrowed while bytes are in flight, and given back.
//!
//! An idle connection holds none. There are three sizes: a page for messages, one TLS
//! record, and sixteen for bulk, of which a worker lends a limited number at once, so
//! that a thousand stalled readers cost a thousand small buffers.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio::task::Id;

/// The largest plaintext of a TLS record (RFC 8446, 5.1).
pub const MAX_PLAINTEXT: usize = 1 << 14;
/// The header of a TLS record.
pub const RECORD_HEADER: usize = 5;
/// What a record that we seal adds behind its plaintext: content type and AEAD tag.
pub const RECORD_TRAILER: usize = 1 + 16;
/// A full record as we seal it.
pub const RECORD: usize = RECORD_HEADER + MAX_PLAINTEXT + RECORD_TRAILER;
/// The largest record that a peer may send (RFC 8446, 5.2: 256 bytes of expansion).
pub const MAX_RECORD: usize = RECORD_HEADER + MAX_PLAINTEXT + 256;

/// Holds most messages.
pub const TINY: usize = 4096;
/// Holds any one record.
pub const SMALL: usize = MAX_RECORD;
/// Records that a large buffer holds.
pub const RUN: usize = 16;
/// Holds [`RUN`] records.
pub const LARGE: usize = RUN * RECORD;

/// Free buffers that are kept for the next borrower; the rest goes back to the allocator.
const KEPT_TINY: usize = 64;
const KEPT_SMALL: usize = 16;
const KEPT_LARGE: usize = 4;
/// Large buffers lent at once, where memory is no matter: 32 MiB a worker.
pub const MAX_LARGE: usize = 128;

/// Messages whose borrowers are remembered.
const RECENT: usize = 8;

/// Which size is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// A page.
    #[default]
    Tiny,
    /// One record.
    Small,
    /// [`RUN`] records, or one when too many are lent.
    Large,
}

impl Size {
    /// The smallest that holds `n` bytes.
    #[must_use]
    pub fn holding(n: usize) -> Self {
        match n {
            0..=TINY => Self::Tiny,
            _ if n <= SMALL => Self::Small,
            _ => Self::Large,
        }
    }

    /// What the next buffer should be, after `n` bytes came into this one's room for
    /// `room`: the next larger when they filled it, the next smaller when they would have
    /// fitted in that twice.
    #[must_use]
    pub fn after(self, n: usize, room: usize) -> Self {
        match self {
            Self::Tiny if n == room => Self::Small,
            _ if n == room => Self::Large,
            Self::Large if n * 2 <= SMALL => Self::Small,
            Self::Small if n * 2 <= TINY => Self::Tiny,
            now => now,
        }
    }
}

/// The buffers of one worker.
#[derive(Debug)]
pub struct Buffers {
    tiny: RefCell<Vec<Memory>>,
    small: RefCell<Vec<Memory>>,
    large: RefCell<Vec<Memory>>,
    large_lent: Cell<usize>,
    most_large: usize,
    messages: Cell<u64>,
    borrowers: Cell<[Option<Id>; RECENT]>,
    watcher: RefCell<Option<Waker>>,
}

impl Buffers {
    /// No buffer yet; they are made when they are wanted.
    pub fn new() -> Rc<Self> {
        Self::with_large(MAX_LARGE)
    }

    /// The same with at most so many large ones lent at once.
    pub fn with_large(most_large: usize) -> Rc<Self> {
        Rc::new(Self {
            tiny: RefCell::default(),
            small: RefCell::default(),
            large: RefCell::default(),
            large_lent: Cell::default(),
            most_large,
            messages: Cell::default(),
            borrowers: Cell::default(),
            watcher: RefCell::default(),
        })
    }

    /// Lends a buffer of that size, or one record's when it is too large to be had. Its
    /// content is whatever the last borrower left.
    pub fn lend(self: &Rc<Self>, size: Size) -> Buffer {
        if size == Size::Tiny {
            self.note_message();
        }
        let large = size == Size::Large && self.large_lent.get() < self.most_large;
        let (shelf, len) = match size {
            Size::Tiny => (&self.tiny, TINY),
            Size::Large if large => (&self.large, LARGE),
            Size::Small | Size::Large => (&self.small, SMALL),
        };
        let memory = shelf.borrow_mut().pop();
        let memory = memory.unwrap_or_else(|| Memory::new(len));
        if large {
            self.large_lent.set(self.large_lent.get() + 1);
        }
        Buffer { memory, home: Rc::clone(self) }
    }

    fn note_message(&self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.wake();
        }
        self.messages.set(self.messages.get().wrapping_add(1));
        let mut borrowers = self.borrowers.get();
        borrowers.rotate_right(1);
        if let Some(newest) = borrowers.first_mut() {
            *newest = tokio::task::try_id();
        }
        self.borrowers.set(borrowers);
    }

    /// How many connections the last few of them were lent to.
    pub fn recent_borrowers(&self) -> usize {
        let all = self.borrowers.get();
        let is_first = |(n, id): &(usize, &Option<Id>)| !all.iter().take(*n).any(|i| i == *id);
        all.iter().enumerate().filter(is_first).count()
    }

    /// How many buffers for messages were ever lent: it moves when messages do. Bulk does
    /// not count, for which it is better to let more of it come together.
    pub fn messages(&self) -> u64 {
        self.messages.get()
    }

    /// Resolves with [`Buffers::messages`] when the next such buffer is lent. One task waits.
    pub async fn next_message(&self) -> u64 {
        let now = self.messages();
        std::future::poll_fn(|cx| {
            if self.messages() != now {
                return Poll::Ready(self.messages());
            }
            self.watcher.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn take_back(&self, mut memory: Memory) {
        memory.pieces.clear();
        let (shelf, keep) = match Size::holding(memory.bytes.len()) {
            Size::Tiny => (&self.tiny, KEPT_TINY),
            Size::Small => (&self.small, KEPT_SMALL),
            Size::Large => {
                self.large_lent.set(self.large_lent.get().saturating_sub(1));
                (&self.large, KEPT_LARGE)
            }
        };
        let mut shelf = shelf.borrow_mut();
        if shelf.len() < keep {
            shelf.push(memory);
        }
    }
}

/// The bytes, and a list of places in them, which is kept with them so that a
/// connection without bytes in flight has no list either.
#[derive(Debug, Default)]
struct Memory {
    bytes: Box<[u8]>,
    pieces: Vec<Range<usize>>,
}

impl Memory {
    fn new(len: usize) -> Self {
        Self { bytes: vec![0; len].into_boxed_slice(), pieces: Vec::new() }
    }
}

/// A borrowed buffer; dropping it gives it back.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    home: Rc<Buffers>,
}

impl Buffer {
    /// Which size this is.
    pub fn size(&self) -> Size {
        Size::holding(self.len())
    }

    /// The borrower's list of places in the buffer; empty at first.
    pub fn pieces(&mut self) -> &mut Vec<Range<usize>> {
        &mut self.memory.pieces
    }

    /// The bytes and the list, both.
    pub fn parts(&self) -> (&[u8], &[Range<usize>]) {
        (&self.memory.bytes, &self.memory.pieces)
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.bytes
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.take_back(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_are_lent_again() {
        let buffers = Buffers::new();
        let mut one = buffers.lend(Size::Small);
        one[0] = 7;
        drop(one);
        assert_eq!(buffers.lend(Size::Small)[0], 7, "the same one");
        assert_eq!(buffers.small.borrow().len(), 1);
        drop(buffers.lend(Size::Large));
        assert_eq!(buffers.large.borrow().len(), 1);
        assert_eq!(buffers.large_lent.get(), 0);
    }

    #[test]
    fn the_size_follows_what_comes() {
        use Size::{Large, Small, Tiny};
        for (now, n, room, next) in [
            (Tiny, 100, TINY, Tiny),
            (Tiny, TINY, TINY, Small),
            (Small, SMALL, SMALL, Large),
            (Small, 10, 10, Large),
            (Small, 9000, SMALL, Small),
            (Small, 100, SMALL, Tiny),
            (Large, LARGE, LARGE, Large),
            (Large, 100_000, LARGE, Large),
            (Large, 5000, LARGE, Small),
            (Large, 100, LARGE, Small),
        ] {
            assert_eq!(now.after(n, room), next, "{now:?} after {n} of {room}");
        }
        assert_eq!([Size::holding(TINY), Size::holding(SMALL)], [Tiny, Small]);
    }

    #[test]
    fn large_ones_are_limited_and_few_are_kept() {
        let buffers = Buffers::new();
        let lent: Vec<_> = (0..MAX_LARGE).map(|_| buffers.lend(Size::Large)).collect();
        assert!(lent.iter().all(|b| b.size() == Size::Large));
        assert_eq!(buffers.lend(Size::Large).len(), SMALL);
        drop(lent);
        assert_eq!(buffers.large.borrow().len(), KEPT_LARGE);
        assert_eq!(buffers.lend(Size::Large).len(), LARGE);
    }
}
