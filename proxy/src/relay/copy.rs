//! Plaintext to plaintext: copied through a buffer at first, spliced through a pipe
//! once it turns out to be bulk.
//!
//! splice(2) saves two copies of every byte and costs a call more for every message,
//! so a direction has to show that it is worth it, and loses it when it goes quiet.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::buffers::{Buffer, Buffers, SMALL, Size};
use crate::net::Leg;

use super::pipes::{PIPE_SIZE, Pipe, Pipes};
use super::{Budget, State};

/// Bytes in large reads, one after the other, that make a direction bulk.
const PROMOTE_AFTER: usize = 1 << 20;
/// A read that counts as large.
const LARGE_READ: usize = 32 * 1024;
/// Small pieces, one after the other, that make it quiet.
const DEMOTE_AFTER: u32 = 8;

/// One direction.
pub(super) struct Copy<'a> {
    pub(super) state: State,
    flight: Flight,
    /// The next buffer's size.
    size: Size,
    /// Bytes in large reads, up to [`PROMOTE_AFTER`].
    large: usize,
    /// Small pieces that were spliced, one after the other.
    small: u32,
    count: &'a Cell<u64>,
    buffers: Rc<Buffers>,
    pipes: Rc<Pipes>,
}

/// What was read and is not yet written.
enum Flight {
    None,
    Buffer(Buffer, Range<usize>),
    Pipe(Pipe, usize),
}

impl<'a> Copy<'a> {
    pub(super) fn new(count: &'a Cell<u64>, buffers: &Rc<Buffers>, pipes: &Rc<Pipes>) -> Self {
        Self {
            state: State::Copying,
            flight: Flight::None,
            size: Size::default(),
            large: 0,
            small: 0,
            count,
            buffers: Rc::clone(buffers),
            pipes: Rc::clone(pipes),
        }
    }

    /// Whether this direction waits for its reader, and so would see it fail.
    pub(super) fn reads(&self) -> bool {
        self.state == State::Copying && matches!(self.flight, Flight::None)
    }

    /// Ready once the reader has ended and the writer was told so. After `was_reset` there is no
    /// end, only what had come before.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Leg,
        to: &Leg,
        was_reset: bool,
    ) -> Poll<io::Result<()>> {
        let mut budget = Budget::new();
        while budget.lasts(cx) {
            if self.state == State::Done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_write(cx, to))?;
            if self.state == State::Ending {
                to.finish()?;
                self.state = State::Done;
                continue;
            }
            let n = ready!(self.poll_read(cx, from))?;
            budget.spend(n);
            if n == 0 {
                self.flight = Flight::None;
                if was_reset {
                    return Poll::Pending;
                }
                self.state = State::Ending;
            }
        }
        Poll::Pending
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, from: &mut Leg) -> Poll<io::Result<usize>> {
        // Nothing is borrowed before there is something to put in it.
        ready!(from.poll_readable(cx))?;
        if self.large >= PROMOTE_AFTER
            && !from.has_unread()
            && let Some(pipe) = self.pipes.lend()
        {
            let Poll::Ready(n) = from.poll_splice_to(cx, pipe.input.as_fd(), PIPE_SIZE)? else {
                self.pipes.give_back(pipe);
                return Poll::Pending;
            };
            self.flight = Flight::Pipe(pipe, n);
            self.small = if n < SMALL { self.small + 1 } else { 0 };
            if self.small >= DEMOTE_AFTER {
                (self.large, self.small) = (0, 0);
            }
            return Poll::Ready(Ok(n));
        }
        let mut buffer = self.buffers.lend(self.size);
        let n = ready!(from.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)]))?;
        self.size = self.size.after(n, buffer.len());
        self.large = if n >= LARGE_READ { self.large.saturating_add(n) } else { 0 };
        self.flight = Flight::Buffer(buffer, 0..n);
        Poll::Ready(Ok(n))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, to: &Leg) -> Poll<io::Result<()>> {
        loop {
            let n = match &mut self.flight {
                Flight::None => return Poll::Ready(Ok(())),
                Flight::Buffer(buffer, range) => {
                    let waiting = buffer.get(range.clone()).unwrap_or_default();
                    let n = ready!(to.poll_send(cx, &[IoSlice::new(waiting)]))?;
                    range.start += n;
                    if range.start == range.end {
                        self.flight = Flight::None;
                    }
                    n
                }
                Flight::Pipe(pipe, level) => {
                    let n = ready!(to.poll_splice_from(cx, pipe.output.as_fd(), *level))?;
                    *level -= n;
                    if *level == 0
                        && let Flight::Pipe(pipe, _) =
                            std::mem::replace(&mut self.flight, Flight::None)
                    {
                        // Only an empty pipe may carry another connection's bytes.
                        self.pipes.give_back(pipe);
                    }
                    n
                }
            };
            self.count.set(self.count.get().wrapping_add(n as u64));
        }
    }
}
