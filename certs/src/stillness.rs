//! Whether files stand still, or are being written.

use std::time::{Duration, Instant};

/// What is new counts once it has not changed for so long: a file that is written in place may be
/// good PEM, or a good policy, in the middle of it.
pub const STILL_FOR: Duration = Duration::from_millis(50);

/// How often in a row something new may be yet another thing, before that is an error.
const MOST_CHANGES: usize = 40;

/// Tells what stands still from what is being written.
#[derive(Debug)]
pub struct Stillness<T> {
    last: Option<(T, Instant)>,
    changes: usize,
}

/// What [`Stillness::look`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It has not changed for [`STILL_FOR`].
    Still,
    /// It is to be looked at again after that.
    Again,
    /// It has changed so often, one look after the other, that it is time to say so.
    Restless,
}

impl<T: PartialEq> Stillness<T> {
    /// Looks at what is new, at the time `now`.
    pub fn look(&mut self, seen: T, now: Instant) -> Look {
        match &self.last {
            Some((last, since)) if *last == seen => {
                if now.duration_since(*since) < STILL_FOR {
                    return Look::Again;
                }
                *self = Self::default();
                Look::Still
            }
            _ => {
                self.last = Some((seen, now));
                self.changes = self.changes.saturating_add(1);
                if self.changes < MOST_CHANGES {
                    return Look::Again;
                }
                self.changes = 0;
                Look::Restless
            }
        }
    }

    /// There is nothing new.
    pub fn rest(&mut self) {
        *self = Self::default();
    }
}

impl<T> Default for Stillness<T> {
    fn default() -> Self {
        Self { last: None, changes: 0 }
    }
}
