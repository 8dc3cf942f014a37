//! Pipes for splice(2): a worker's, lent while bytes are in them.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// Bytes that a pipe holds, if the kernel lets it: the most that an unprivileged
/// process may ask for (pipe(7), `/proc/sys/fs/pipe-max-size`).
pub(super) const PIPE_SIZE: usize = 1 << 20;

/// Pipes lent at once. A user's pipes may have 64 MiB together before the kernel
/// makes new ones small (`pipe-user-pages-soft`), and each takes two descriptors.
const MAX_LENT: usize = 16;
/// Empty pipes that are kept.
const KEPT: usize = 4;

/// The pipes of one worker.
#[derive(Debug, Default)]
pub struct Pipes {
    free: RefCell<Vec<Pipe>>,
    lent: Rc<Cell<usize>>,
}

/// An empty pipe. Dropping it closes it, with whatever is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    /// Write here.
    pub(super) input: OwnedFd,
    /// Read here.
    pub(super) output: OwnedFd,
    lent: Lent,
}

/// Counts a pipe as lent until it is given back or dropped.
#[derive(Debug)]
struct Lent(Option<Rc<Cell<usize>>>);

impl Lent {
    fn begin(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Some(Rc::clone(count)))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(count) = self.0.take() {
            count.set(count.get().saturating_sub(1));
        }
    }
}

impl Pipes {
    /// No pipe yet; they are made when they are wanted.
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// An empty pipe; none when too many are lent, or no descriptor is left: then a
    /// buffer has to do.
    pub(super) fn lend(&self) -> Option<Pipe> {
        if self.lent.get() >= MAX_LENT {
            return None;
        }
        let lent = Lent::begin(&self.lent);
        if let Some(pipe) = self.free.borrow_mut().pop() {
            return Some(Pipe { lent, ..pipe });
        }
        let (output, input) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
        // A smaller one works as well: what does not fit stays in the socket.
        let _ = fcntl(&input, FcntlArg::F_SETPIPE_SZ(i32::try_from(PIPE_SIZE).ok()?));
        Some(Pipe { input, output, lent })
    }

    /// Takes an empty pipe back.
    pub(super) fn give_back(&self, pipe: Pipe) {
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT {
            let Pipe { input, output, lent } = pipe;
            drop(lent);
            free.push(Pipe { input, output, lent: Lent(None) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_limited_kept_and_counted() {
        let pipes = Pipes::new();
        let mut lent: Vec<_> = (0..MAX_LENT).map(|_| pipes.lend().unwrap()).collect();
        assert!(pipes.lend().is_none());
        drop(lent.pop());
        assert!(pipes.lend().is_some(), "one that was dropped makes room");
        for pipe in lent {
            pipes.give_back(pipe);
        }
        assert_eq!(pipes.lent.get(), 0);
        assert_eq!(pipes.free.borrow().len(), KEPT);
    }
}
