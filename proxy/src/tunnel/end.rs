//! One end of a tunnel: what it may send, and what it may be sent.
//!
//! Frames come in any split and are never gathered: DATA is reported part by part,
//! where it lies in the input. Of a frame's payload only an address or a reason is
//! kept until it is whole. What is sent is held to the same rules, so that a
//! mistake of ours shows here and not at the peer.

use std::net::SocketAddr;
use std::ops::Range;

use super::frame::{HEADER_LEN, Kind, MAX_DATA, MAX_SMALL, Reason, client_of};

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Made the connection; begins each stream.
    Client,
    /// Took the connection; announces its end.
    Server,
}

/// How far one direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// FIN has passed, or no stream has begun.
    Finished,
    /// Frames of a stream may pass.
    Open,
    /// RAW has passed: everything is the stream's, until close_notify.
    Raw,
    /// close_notify has passed.
    Closed,
}

impl Direction {
    const fn carries_stream(self) -> bool {
        matches!(self, Self::Open | Self::Raw)
    }
}

/// What a frame means to who receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stream begins. The address is what the client says of its app: nothing
    /// is decided by it.
    Open(SocketAddr),
    /// Bytes of the stream, where they lie in the input; never none.
    Data(Range<usize>),
    /// The peer's direction has ended. The stream is over when ours has too.
    Fin,
    /// The stream was aborted, or the one before it, if its FINs crossed with this.
    /// Nothing more comes or goes: the TCP connection is to be reset.
    Reset(Reason),
    /// No further OPEN will be served.
    GoAway,
    /// What follows is [`Event::Data`] until the peer's close_notify.
    Raw,
}

/// What came of one call of [`End::receive`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes that are done with. At least one, unless the input was empty.
    pub consumed: usize,
    /// What they said; none while a frame is incomplete.
    pub event: Option<Event>,
}

/// What the end of the TLS stream (close_notify; RFC 8446, section 6.1) means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// No stream was open in the peer's direction: the tunnel has ended as it should.
    Clean,
    /// It ends the peer's raw direction, as FIN would.
    EndOfStream,
    /// Something was missing: a FIN, or the rest of a frame.
    Truncated,
}

/// A rule of the protocol is broken: by the peer, if [`End::receive`] says so, by
/// us, if [`End::sent`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The first byte of a header is no type.
    #[error("frame type {0} is unknown; `pillion/1` has types 1 to 6")]
    UnknownType(u8),
    /// The length does not fit the type.
    #[error("a payload of {length} bytes does not fit {kind}")]
    BadLength {
        /// The frame's type.
        kind: Kind,
        /// Its payload's length, in bytes.
        length: u32,
    },
    /// A client's frame from the server, or the reverse.
    #[error("{0} from the wrong end; the client sends OPEN, the server GOAWAY")]
    WrongRole(Kind),
    /// OPEN while a stream is open.
    #[error("OPEN before the FINs of the stream before it")]
    StreamOpen,
    /// A frame of a stream, and there is none.
    #[error("{0} without a stream; OPEN comes first")]
    NoStream(Kind),
    /// A frame in a direction that has ended.
    #[error("{0} after FIN in the same direction")]
    AfterFin(Kind),
    /// A frame in a raw direction.
    #[error("{0} after RAW; a raw direction ends with close_notify, and the tunnel with it")]
    AfterRaw(Kind),
    /// OPEN although GOAWAY was seen, or a second that crossed it.
    #[error("OPEN after GOAWAY; further streams need a new tunnel")]
    AfterGoAway,
    /// A frame after close_notify.
    #[error("{0} after close_notify")]
    AfterClose(Kind),
    /// close_notify while the sender's FIN is owed.
    #[error("close_notify within a stream; FIN or RESET comes first")]
    EarlyClose,
    /// RESET has passed, or a rule was broken before.
    #[error("a frame after the tunnel's end; RESET and violations are final")]
    Over,
}

/// The state of one end. It holds no buffer: 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct End {
    role: Role,
    receiving: Direction,
    sending: Direction,
    /// The frame whose payload comes next; none while a header does.
    frame: Option<Kind>,
    /// Bytes of its payload that have not come.
    left: u16,
    /// Bytes in `small`.
    filled: u8,
    /// An incomplete header, or the incomplete payload of a frame other than DATA.
    small: [u8; MAX_SMALL],
    /// A stream has been opened.
    used: bool,
    /// GOAWAY has passed.
    goaway: bool,
    /// An OPEN may cross the GOAWAY that we sent.
    crossing: bool,
    /// We sent RESET.
    reset: bool,
    /// The peer sent RESET or broke a rule.
    over: bool,
    /// The peer broke a rule, so a RESET may still tell it.
    broken: bool,
}

impl End {
    /// The end of a tunnel that has just been made.
    pub const fn new(role: Role) -> Self {
        Self {
            role,
            receiving: Direction::Finished,
            sending: Direction::Finished,
            frame: None,
            left: 0,
            filled: 0,
            small: [0; MAX_SMALL],
            used: false,
            goaway: false,
            crossing: false,
            reset: false,
            over: false,
            broken: false,
        }
    }

    /// How far the peer's direction has come.
    pub const fn receiving(&self) -> Direction {
        self.receiving
    }

    /// How far our direction has come.
    pub const fn sending(&self) -> Direction {
        self.sending
    }

    /// Whether no stream is open in either direction.
    pub const fn is_idle(&self) -> bool {
        !self.receiving.carries_stream() && !self.sending.carries_stream()
    }

    /// Whether the tunnel is idle and may carry another stream.
    pub const fn is_reusable(&self) -> bool {
        matches!(self.receiving, Direction::Finished)
            && matches!(self.sending, Direction::Finished)
            && self.at_boundary()
            && !(self.goaway || self.is_over())
    }

    /// Whether a server may be sent an OPEN: also after its GOAWAY, by a client
    /// that has not seen that yet. A server closes an idle tunnel by itself only
    /// when this is false, and else waits for the client to close it.
    pub const fn may_be_opened(&self) -> bool {
        matches!(self.role, Role::Server)
            && matches!(self.receiving, Direction::Finished)
            && matches!(self.sending, Direction::Finished)
            && !self.is_over()
            && (!self.goaway || self.crossing)
    }

    /// Whether RESET has passed, either way, or the peer broke a rule: the TCP
    /// connection is to be reset.
    pub const fn is_over(&self) -> bool {
        self.reset || self.over
    }

    /// Whether no frame has come in part.
    const fn at_boundary(&self) -> bool {
        self.frame.is_none() && self.filled == 0
    }

    /// Takes the next of what the peer sent. Call it again with what was not
    /// consumed. After our RESET nothing that the peer sends means anything: it is
    /// consumed without an event.
    ///
    /// # Errors
    /// The peer broke a rule. Whatever more it sends is one too.
    pub fn receive(&mut self, input: &[u8]) -> Result<Step, Violation> {
        if input.is_empty() {
            return Ok(Step { consumed: 0, event: None });
        }
        if self.reset {
            return Ok(Step { consumed: input.len(), event: None });
        }
        if self.over {
            return Err(Violation::Over);
        }
        if self.receiving == Direction::Raw {
            let all = 0..input.len();
            return Ok(Step { consumed: all.end, event: Some(Event::Data(all)) });
        }
        let result = self.framed(input);
        if result.is_err() {
            (self.over, self.broken) = (true, true);
        }
        result
    }

    /// The rest of a header, then of its payload.
    fn framed(&mut self, input: &[u8]) -> Result<Step, Violation> {
        let mut consumed = 0;
        if self.frame.is_none() {
            let (header, n) = self.header(input);
            consumed = n;
            let Some(header) = header else {
                return Ok(Step { consumed, event: None });
            };
            let (kind, length) = parse(header)?;
            self.admit(kind)?;
            if length == 0 {
                return Ok(Step { consumed, event: self.complete(kind) });
            }
            (self.frame, self.left) = (Some(kind), length);
        }
        let rest = input.get(consumed..).unwrap_or_default();
        let n = rest.len().min(usize::from(self.left));
        let part = consumed..consumed + n;
        let event = match self.frame {
            Some(Kind::Data) => (n > 0).then(|| Event::Data(part.clone())),
            _ => {
                self.keep(rest.get(..n).unwrap_or_default());
                None
            }
        };
        // `n` is at most `left`.
        self.left = self.left.saturating_sub(u16::try_from(n).unwrap_or(u16::MAX));
        if self.left > 0 {
            return Ok(Step { consumed: part.end, event });
        }
        let Some(kind) = self.frame.take() else { return Ok(Step { consumed, event }) };
        // What we sent since the header came may have changed the answer.
        if kind == Kind::Open {
            self.admit(kind)?;
        }
        let whole = self.complete(kind);
        self.filled = 0;
        Ok(Step { consumed: part.end, event: event.or(whole) })
    }

    /// The header, once it is whole, and how many bytes of the input went into it.
    fn header(&mut self, input: &[u8]) -> (Option<[u8; HEADER_LEN]>, usize) {
        if self.filled == 0
            && let Some(header) = input.first_chunk()
        {
            return (Some(*header), HEADER_LEN);
        }
        let missing = HEADER_LEN.saturating_sub(usize::from(self.filled));
        let n = missing.min(input.len());
        self.keep(input.get(..n).unwrap_or_default());
        if n < missing {
            return (None, n);
        }
        self.filled = 0;
        (self.small.first_chunk().copied(), n)
    }

    /// Keeps bytes of what is incomplete. They fit: a header is shorter, and no
    /// payload that is longer gets here.
    fn keep(&mut self, bytes: &[u8]) {
        let free = self.small.iter_mut().skip(usize::from(self.filled));
        for (place, byte) in free.zip(bytes) {
            *place = *byte;
            self.filled += 1;
        }
    }

    /// Whether the peer may send a frame of `kind` now.
    fn admit(&self, kind: Kind) -> Result<(), Violation> {
        match kind {
            Kind::Open if self.role == Role::Client => Err(Violation::WrongRole(kind)),
            Kind::Open if !self.is_idle() => Err(Violation::StreamOpen),
            Kind::Open if self.sending == Direction::Closed => Err(Violation::AfterClose(kind)),
            Kind::Open if self.goaway && !self.crossing => Err(Violation::AfterGoAway),
            Kind::GoAway if self.role == Role::Server => Err(Violation::WrongRole(kind)),
            Kind::Open | Kind::GoAway => Ok(()),
            // A peer that has not seen our FIN may reset a stream that is over for us.
            Kind::Reset if self.used => Ok(()),
            Kind::Data | Kind::Fin | Kind::Raw | Kind::Reset => {
                within_stream(kind, self.receiving, self.is_idle())
            }
        }
    }

    /// Applies a frame whose payload, if it has one, is whole.
    fn complete(&mut self, kind: Kind) -> Option<Event> {
        match kind {
            Kind::Open => {
                let client = client_of(self.small.get(..usize::from(self.filled))?)?;
                self.begin();
                self.crossing = false;
                Some(Event::Open(client))
            }
            Kind::Data => None,
            Kind::Fin => {
                self.receiving = Direction::Finished;
                Some(Event::Fin)
            }
            Kind::Reset => {
                self.over = true;
                let [code, ..] = self.small;
                Some(Event::Reset(Reason::from_code(code).unwrap_or(Reason::Other)))
            }
            Kind::GoAway => {
                self.goaway = true;
                Some(Event::GoAway)
            }
            Kind::Raw => {
                self.receiving = Direction::Raw;
                Some(Event::Raw)
            }
        }
    }

    fn begin(&mut self) {
        (self.receiving, self.sending) = (Direction::Open, Direction::Open);
        self.used = true;
    }

    /// Says that a frame of `kind` is about to be sent. Bytes of a raw direction
    /// need not be told.
    ///
    /// # Errors
    /// The frame must not be sent; nothing has changed.
    pub fn sent(&mut self, kind: Kind) -> Result<(), Violation> {
        let last_word = self.broken && kind == Kind::Reset;
        if self.reset || (self.over && !last_word) {
            return Err(Violation::Over);
        }
        match self.sending {
            Direction::Raw => return Err(Violation::AfterRaw(kind)),
            Direction::Closed => return Err(Violation::AfterClose(kind)),
            Direction::Open | Direction::Finished => {}
        }
        match kind {
            Kind::Open if self.role == Role::Server => return Err(Violation::WrongRole(kind)),
            Kind::Open if !self.is_idle() => return Err(Violation::StreamOpen),
            Kind::Open if self.goaway => return Err(Violation::AfterGoAway),
            Kind::Open if self.receiving == Direction::Closed => {
                return Err(Violation::AfterClose(kind));
            }
            Kind::Open => self.begin(),
            Kind::GoAway if self.role == Role::Client => return Err(Violation::WrongRole(kind)),
            Kind::GoAway => {
                // The client sees this before a FIN that is yet to be sent, and so
                // opens no further stream after that FIN.
                if !self.goaway {
                    self.crossing = self.sending == Direction::Finished;
                }
                self.goaway = true;
            }
            Kind::Reset if self.is_idle() => return Err(Violation::NoStream(kind)),
            Kind::Reset => self.reset = true,
            Kind::Data | Kind::Fin | Kind::Raw => {
                within_stream(kind, self.sending, self.is_idle())?;
                match kind {
                    Kind::Fin => self.sending = Direction::Finished,
                    Kind::Raw => self.sending = Direction::Raw,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Takes the peer's close_notify. An end of the TCP stream without one is
    /// always a truncation and does not belong here; nor does anything once the
    /// tunnel [is over](Self::is_over).
    pub fn closed(&mut self) -> Closed {
        let meaning = match self.receiving {
            _ if !self.at_boundary() => Closed::Truncated,
            Direction::Raw => Closed::EndOfStream,
            Direction::Open => Closed::Truncated,
            // The peer owes a reader to a direction of ours that has frames.
            Direction::Finished if self.sending == Direction::Open => Closed::Truncated,
            Direction::Finished | Direction::Closed => Closed::Clean,
        };
        self.receiving = Direction::Closed;
        meaning
    }

    /// Says that our close_notify is about to be sent: to end a raw direction, or
    /// the tunnel.
    ///
    /// # Errors
    /// The peer would take it for a truncation, or the tunnel is to be reset; nothing
    /// has changed.
    pub fn sent_close(&mut self) -> Result<(), Violation> {
        if self.is_over() {
            return Err(Violation::Over);
        }
        let early = match self.sending {
            Direction::Open => true,
            Direction::Finished => self.receiving == Direction::Open,
            Direction::Raw | Direction::Closed => false,
        };
        if early {
            return Err(Violation::EarlyClose);
        }
        self.sending = Direction::Closed;
        Ok(())
    }
}

/// The type and length of a header, if they fit each other.
fn parse([code, a, b, c]: [u8; HEADER_LEN]) -> Result<(Kind, u16), Violation> {
    let kind = Kind::from_code(code).ok_or(Violation::UnknownType(code))?;
    let long = u32::from_be_bytes([0, a, b, c]);
    let bad = Violation::BadLength { kind, length: long };
    let length = u16::try_from(long).map_err(|_| bad)?;
    let fits = match kind {
        Kind::Open => matches!(length, 6 | 18),
        Kind::Data => (1..=MAX_DATA).contains(&usize::from(length)),
        Kind::Reset => length == 1,
        Kind::Fin | Kind::GoAway | Kind::Raw => length == 0,
    };
    if fits { Ok((kind, length)) } else { Err(bad) }
}

/// Whether a frame of a stream may pass in a direction that is in `state`.
fn within_stream(kind: Kind, state: Direction, idle: bool) -> Result<(), Violation> {
    match state {
        Direction::Open => Ok(()),
        Direction::Raw => Err(Violation::AfterRaw(kind)),
        Direction::Closed => Err(Violation::AfterClose(kind)),
        Direction::Finished if idle => Err(Violation::NoStream(kind)),
        Direction::Finished => Err(Violation::AfterFin(kind)),
    }
}

#[cfg(test)]
mod tests;
