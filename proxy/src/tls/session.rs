//! A TLS connection after its handshake, without its socket.
//!
//! There are two engines: rustls's own, through its unbuffered interface, and the
//! record layer of [`super::records`], which takes rustls's keys over. What is above
//! does not know which of them it has, but for one thing: one opens and seals in
//! place and the other between two buffers.

use std::fmt;
use std::ops::Range;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use rustls::{AlertDescription, Error, InvalidMessage};

use crate::buffers::{MAX_RECORD, RECORD_HEADER, RUN};

use super::records::{Records, Schedule};

/// What came out of an attempt to open a record.
#[derive(Debug)]
pub struct Opened {
    /// Bytes at the front of the input that are dealt with.
    pub consumed: usize,
    /// What they were.
    pub found: Found,
}

impl Opened {
    pub(super) const MORE: Self = Self { consumed: 0, found: Found::More };
}

/// What a record was.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// No whole record is there yet.
    More,
    /// Application data, and where it lies: in the input when the session works in
    /// place, else in the spill.
    Data(Range<usize>),
    /// A record for TLS itself.
    Nothing,
    /// The peer has ended its stream (RFC 8446, 6.1).
    CloseNotify,
}

/// The length of the record at the front, once it is there whole, or at once when it
/// is longer than any record may be.
pub(super) fn record_length(input: &[u8]) -> Option<usize> {
    let [_, _, _, high, low] = *input.first_chunk::<RECORD_HEADER>()?;
    let total = RECORD_HEADER + usize::from(u16::from_be_bytes([high, low]));
    (input.len() >= total || total > MAX_RECORD).then_some(total)
}

/// An established TLS connection.
pub struct Session(Engine);

enum Engine {
    Records(Box<Records>),
    Client(Box<Library<UnbufferedClientConnection>>),
    Server(Box<Library<UnbufferedServerConnection>>),
}

/// rustls's engine and the control records that it wants sent.
struct Library<C> {
    tls: C,
    outgoing: Vec<u8>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("in_place", &self.in_place()).finish_non_exhaustive()
    }
}

impl Session {
    /// Whether records are opened and sealed where they lie.
    pub fn in_place(&self) -> bool {
        matches!(self.0, Engine::Records(_))
    }

    /// Opens the record at the front of `input`. Application data is left where it
    /// lies when this works in place, else copied to the front of `spill`, which has
    /// room for a record.
    ///
    /// # Errors
    /// The peer's alert, or what it did wrong: then our alert is in
    /// [`Session::outgoing`].
    pub fn open(&mut self, input: &mut [u8], spill: &mut [u8]) -> Result<Opened, Error> {
        match &mut self.0 {
            Engine::Records(records) => records.open(input).inspect_err(|e| {
                if !matches!(e, Error::AlertReceived(_)) {
                    // If even this cannot be sealed, the peer learns it from the reset.
                    let _ = records.alert(alert_for(e));
                }
            }),
            Engine::Client(library) => library.open(input, spill),
            Engine::Server(library) => library.open(input, spill),
        }
    }

    /// Gets ready to seal up to a full run of records: where the key is used up, or the
    /// peer has asked for another, a KeyUpdate goes to [`Session::outgoing`].
    ///
    /// # Errors
    /// There is no next key.
    pub fn before_run(&mut self) -> Result<(), Error> {
        match &mut self.0 {
            Engine::Records(records) if records.wants_key_update(RUN as u64) => {
                records.update_key()
            }
            _ => Ok(()),
        }
    }

    /// Seals the `len` bytes that lie in `slot` behind the room for a record's header,
    /// in place. Gives the length of the record, which begins with the slot.
    ///
    /// # Errors
    /// No key is left, or this session does not work in place.
    pub fn seal(&mut self, slot: &mut [u8], len: usize) -> Result<usize, Error> {
        match &mut self.0 {
            Engine::Records(records) => records.seal(slot, len),
            _ => Err(Error::EncryptError),
        }
    }

    /// Seals `plain` into `out`, which has room for a record. Gives its length.
    ///
    /// # Errors
    /// No key is left, or this session works in place.
    pub fn seal_into(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        match &mut self.0 {
            Engine::Records(_) => Err(Error::EncryptError),
            Engine::Client(library) => library.seal_into(plain, out),
            Engine::Server(library) => library.seal_into(plain, out),
        }
    }

    /// Queues a close_notify: nothing may be sealed after it.
    ///
    /// # Errors
    /// No key is left.
    pub fn close(&mut self) -> Result<(), Error> {
        match &mut self.0 {
            Engine::Records(records) => records.alert(AlertDescription::CloseNotify),
            Engine::Client(library) => library.close(),
            Engine::Server(library) => library.close(),
        }
    }

    /// Whether control records wait to go out: see [`Session::outgoing`].
    pub fn has_outgoing(&self) -> bool {
        let outgoing = match &self.0 {
            Engine::Records(records) => &records.outgoing,
            Engine::Client(library) => &library.outgoing,
            Engine::Server(library) => &library.outgoing,
        };
        !outgoing.is_empty()
    }

    /// Control records that have to go out before anything that is sealed later:
    /// taking them empties the queue.
    pub fn outgoing(&mut self) -> &mut Vec<u8> {
        match &mut self.0 {
            Engine::Records(records) => &mut records.outgoing,
            Engine::Client(library) => &mut library.outgoing,
            Engine::Server(library) => &mut library.outgoing,
        }
    }
}

/// The alert that answers an error of the peer's (RFC 8446, 6.2).
fn alert_for(e: &Error) -> AlertDescription {
    match e {
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        // RFC 8446, 4.6.3.
        Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate) => {
            AlertDescription::IllegalParameter
        }
        Error::InvalidMessage(InvalidMessage::MessageTooShort) => AlertDescription::DecodeError,
        Error::InvalidMessage(_) | Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
        _ => AlertDescription::InternalError,
    }
}

/// What the two kinds of an unbuffered connection have in common and rustls has no
/// trait for.
pub(super) trait Unbuffered: Sized {
    /// Client's or server's.
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Hands the established connection to an engine.
    fn into_session(self, in_place: bool) -> Result<Session, Error>;
}

macro_rules! unbuffered {
    ($connection:ident, $data:ident, $side:ident) => {
        impl Unbuffered for $connection {
            type Data = rustls::$data::$side;

            fn process<'c, 'i>(
                &'c mut self,
                incoming: &'i mut [u8],
            ) -> UnbufferedStatus<'c, 'i, Self::Data> {
                self.process_tls_records(incoming)
            }

            fn into_session(self, in_place: bool) -> Result<Session, Error> {
                Ok(Session(if in_place {
                    let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
                    let schedule = unbuffered!(@schedule $data, kernel);
                    Engine::Records(Box::new(Records::new(secrets, schedule)?))
                } else {
                    let library = Box::new(Library { tls: self, outgoing: Vec::new() });
                    unbuffered!(@engine $data, library)
                }))
            }
        }
    };
    (@schedule client, $kernel:ident) => { Schedule::Client(Box::new($kernel)) };
    (@schedule server, $kernel:ident) => { Schedule::Server(Box::new($kernel)) };
    (@engine client, $library:ident) => { Engine::Client($library) };
    (@engine server, $library:ident) => { Engine::Server($library) };
}

unbuffered!(UnbufferedClientConnection, client, ClientConnectionData);
unbuffered!(UnbufferedServerConnection, server, ServerConnectionData);

impl<C: Unbuffered> Library<C> {
    fn open(&mut self, input: &mut [u8], spill: &mut [u8]) -> Result<Opened, Error> {
        // One record at a time: rustls hands out one payload a call in any case.
        let Some(total) = record_length(input) else { return Ok(Opened::MORE) };
        let total = total.min(input.len());
        let mut consumed = 0;
        loop {
            let rest = input.get_mut(consumed..total).unwrap_or_default();
            let UnbufferedStatus { discard, state, .. } = self.tls.process(rest);
            consumed += discard;
            match state {
                Err(e) => {
                    self.take_alert(input.get_mut(consumed..total).unwrap_or_default());
                    return Err(e);
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let Some(record) = traffic.next_record() else { continue };
                    let payload = record?.payload;
                    let len = payload.len();
                    spill.get_mut(..len).ok_or(Error::DecryptError)?.copy_from_slice(payload);
                    return Ok(Opened { consumed, found: Found::Data(0..len) });
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, &mut data)?;
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    return Ok(Opened { consumed, found: Found::CloseNotify });
                }
                Ok(_) if consumed > 0 => return Ok(Opened { consumed, found: Found::Nothing }),
                // Allowed, but nobody sends it, and rustls wants to be shown both records.
                Ok(_) => return Err(Error::General("a handshake message in two records".into())),
            }
        }
    }

    /// The alert that rustls has ready after an error, if it has one.
    fn take_alert(&mut self, rest: &mut [u8]) {
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = self.tls.process(rest).state {
            // Without room for it, the peer learns it from the reset.
            let _ = encode(&mut self.outgoing, &mut data);
        }
    }

    fn with_traffic<R>(
        &mut self,
        mut f: impl FnMut(&mut dyn Traffic) -> Result<R, EncryptError>,
    ) -> Result<R, Error> {
        loop {
            match self.tls.process(&mut []).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    return f(&mut traffic).map_err(|_| Error::EncryptError);
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(&mut self.outgoing, &mut data)?;
                }
                ConnectionState::TransmitTlsData(mut data) => match data.may_encrypt_app_data() {
                    None => data.done(),
                    Some(_) => data.done(),
                },
                // Reported once; the other direction goes on.
                ConnectionState::PeerClosed => {}
                _ => return Err(Error::EncryptError),
            }
        }
    }

    fn seal_into(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        self.with_traffic(|traffic| traffic.encrypt(plain, out))
    }

    fn close(&mut self) -> Result<(), Error> {
        let mut record = [0; 64];
        let n = self.with_traffic(|traffic| traffic.close(&mut record))?;
        self.outgoing.extend_from_slice(record.get(..n).unwrap_or_default());
        Ok(())
    }
}

/// [`rustls::unbuffered::WriteTraffic`] of either side.
trait Traffic {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError>;
    fn close(&mut self, out: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<D> Traffic for rustls::unbuffered::WriteTraffic<'_, D> {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError> {
        self.encrypt(plain, out)
    }

    fn close(&mut self, out: &mut [u8]) -> Result<usize, EncryptError> {
        self.queue_close_notify(out)
    }
}

/// Appends what `data` holds to `out`, in exactly the room that it takes.
pub(super) fn encode<D>(out: &mut Vec<u8>, data: &mut EncodeTlsData<'_, D>) -> Result<(), Error> {
    let start = out.len();
    let room = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(e)) => e.required_size,
        Ok(_) => return Ok(()),
        Err(EncodeError::AlreadyEncoded) => return Err(Error::EncryptError),
    };
    out.reserve_exact(room);
    out.resize(start + room, 0);
    let slot = out.get_mut(start..).unwrap_or_default();
    data.encode(slot).map_err(|_| Error::EncryptError).map(drop)
}
