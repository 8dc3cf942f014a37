//! `pillion/1`: one app connection after another over one TLS connection.
//!
//! Everything here is without I/O and without a clock, and imports no other room,
//! so that it can be fuzzed and tested alone. `docs/protocol.md` is the
//! specification; `tests/protocol_docs.rs` holds the two together.

mod end;
mod frame;
mod pool;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use end::{Closed, Direction, End, Event, Role, Step, Violation};
pub use frame::{
    Frame, HEADER_LEN, Kind, MAX_DATA, MAX_RECORD, Reason, fin, goaway, header, open, raw, reset,
};
pub use pool::{Idle, Life, Limits, Pool};

/// How long a server keeps an idle tunnel before it says GOAWAY: longer than any
/// client does, so that closing is the client's business.
pub const SERVER_IDLE: Duration = Duration::from_secs(60);

/// Age after which the server says GOAWAY at the next idle moment, should the client not
/// have ended the tunnel by then: twice what a client of ours lets one live.
pub const SERVER_AGE: Duration = Duration::from_secs(600);

/// How long a server waits after GOAWAY for an OPEN that crossed it, or for the
/// client to close.
pub const GOAWAY_GRACE: Duration = Duration::from_secs(5);

/// The protocol's name in ALPN (RFC 7301).
pub const ALPN: &[u8] = b"pillion/1";
