//! Plain lines for whoever reads the container's log.

use std::fmt::Display;
use std::io::Write;

/// Where the lines go; each begins with the program's name.
pub struct Log<'a>(&'a mut dyn Write);

impl<'a> Log<'a> {
    /// Lines to `out`, which is standard error outside tests.
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self(out)
    }

    /// Says each line of `what`. A log that is closed is no reason to leave a pod unprotected, so
    /// that error is dropped.
    pub fn say(&mut self, what: impl Display) {
        for line in what.to_string().lines() {
            let _closed = writeln!(self.0, "pillion-init: {line}");
        }
    }
}
