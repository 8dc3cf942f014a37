//! The record layer of TLS 1.3 (RFC 8446, 5), in place, for after the handshake.
//!
//! rustls makes the handshake and keeps the key schedule; aws-lc-rs does the
//! cryptography. What is here is what lies between: record headers, sequence
//! numbers, inner content types and padding, KeyUpdate, alerts, and the limits of
//! the AEADs. rustls's own record layer copies and allocates for each record; this
//! one opens and seals where the bytes lie.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305};
use aws_lc_rs::aead::{LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, Error, ExtractedSecrets, InvalidMessage,
    PeerMisbehaved,
};

use crate::buffers::{MAX_PLAINTEXT, MAX_RECORD, RECORD_HEADER, RECORD_TRAILER};

use super::post_handshake::{KEY_UPDATE, KeyUpdate, Message};
use super::session::{Found, Opened, record_length};

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Records under one AES-GCM key: RFC 8446, 5.5 allows 2^24.5 full ones. ChaCha20 has
/// no limit that a sequence number could reach; it is held to the same.
const RECORDS_PER_KEY: u64 = 1 << 24;
/// Records in a row without a byte for the app that a peer may send: work for nothing.
pub(super) const MAX_FRUITLESS: u8 = 32;

/// rustls's side of an established connection: the key schedule.
pub(super) enum Schedule {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

impl Schedule {
    pub(super) fn next_tx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        }
    }

    fn next_rx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        }
    }
}

/// The keys of one direction, and how far they are used.
struct Keys {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv): (&Algorithm, AeadKey, Iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher suite without a record layer".into())),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Error::EncryptError)?;
        let iv = iv.as_ref().try_into().map_err(|_| Error::EncryptError)?;
        Ok(Self { aead: LessSafeKey::new(key), iv, sequence })
    }

    /// The nonce of the next record (RFC 8446, 5.3). A sequence number never comes twice.
    fn next_nonce(&mut self) -> Result<Nonce, Error> {
        let sequence = self.sequence;
        self.sequence = sequence.checked_add(1).ok_or(Error::EncryptError)?;
        let mut nonce = self.iv;
        for (byte, sequence) in nonce.iter_mut().skip(4).zip(sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Both directions of an established connection.
pub(super) struct Records {
    seal: Keys,
    open: Keys,
    schedule: Schedule,
    /// A handshake message that goes over several records.
    message: Message,
    /// Records in a row that had nothing for the app.
    fruitless: u8,
    /// The peer has asked for another key of ours. The answer waits for the next data, as
    /// RFC 8446, 4.6.3 allows: whatever is asked meanwhile, it is one, and a stream that
    /// has ended gets none.
    answer_due: bool,
    /// An alert of ours has ended what we send.
    ended: bool,
    /// After how many records the key is changed.
    pub(super) records_per_key: u64,
    /// Control records that go out before any further data.
    pub(super) outgoing: Vec<u8>,
}

impl Records {
    pub(super) fn new(secrets: ExtractedSecrets, schedule: Schedule) -> Result<Self, Error> {
        Ok(Self {
            seal: Keys::new(secrets.tx)?,
            open: Keys::new(secrets.rx)?,
            schedule,
            message: Message::default(),
            fruitless: 0,
            answer_due: false,
            ended: false,
            records_per_key: RECORDS_PER_KEY,
            outgoing: Vec::new(),
        })
    }

    /// Seals `len` bytes of application data in place: they lie behind the room for the
    /// header, with room for the trailer behind them. Gives the record's length.
    ///
    /// # Errors
    /// No key is left to seal with, or an alert was the last record.
    pub(super) fn seal(&mut self, slot: &mut [u8], len: usize) -> Result<usize, Error> {
        if self.ended || self.seal.sequence >= self.records_per_key {
            // The caller has asked `wants_key_update` before each run of records.
            return Err(Error::EncryptError);
        }
        if self.answer_due {
            // A record by itself, not of a run: it goes behind what is queued.
            self.update_key()?;
        }
        self.seal_as(APPLICATION_DATA, slot, len)
    }

    /// Whether the key has to be changed before `records` more are sealed.
    pub(super) fn wants_key_update(&self, records: u64) -> bool {
        let used_up = self.seal.sequence.saturating_add(records) >= self.records_per_key;
        !self.ended && (used_up || self.answer_due)
    }

    /// Queues a KeyUpdate, and seals with the next key from here on (RFC 8446, 4.6.3).
    pub(super) fn update_key(&mut self) -> Result<(), Error> {
        self.control(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0])?;
        self.seal = Keys::new(self.schedule.next_tx()?)?;
        self.answer_due = false;
        Ok(())
    }

    /// Queues an alert: close_notify as a warning, anything else as fatal. It is the last
    /// thing that is sent: after one there is no other.
    pub(super) fn alert(&mut self, description: AlertDescription) -> Result<(), Error> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let level = if description == AlertDescription::CloseNotify { 1 } else { 2 };
        self.control(ALERT, &[level, description.into()])
    }

    fn control(&mut self, kind: u8, content: &[u8]) -> Result<(), Error> {
        let mut slot = [0; 64];
        let len = content.len();
        if let Some(plain) = slot.get_mut(RECORD_HEADER..RECORD_HEADER + len) {
            plain.copy_from_slice(content);
        }
        let n = self.seal_as(kind, &mut slot, len)?;
        self.outgoing.extend_from_slice(slot.get(..n).unwrap_or_default());
        Ok(())
    }

    fn seal_as(&mut self, kind: u8, slot: &mut [u8], len: usize) -> Result<usize, Error> {
        let total = RECORD_HEADER + len + RECORD_TRAILER;
        let record = slot.get_mut(..total).filter(|_| len <= MAX_PLAINTEXT);
        let (header, inner) = record
            .and_then(|r| r.split_at_mut_checked(RECORD_HEADER))
            .ok_or(Error::EncryptError)?;
        let length = u16::try_from(len + RECORD_TRAILER).map_err(|_| Error::EncryptError)?;
        let [high, low] = length.to_be_bytes();
        let written = [APPLICATION_DATA, 3, 3, high, low];
        header.copy_from_slice(&written);
        let (plain, tag) = inner.split_at_mut_checked(len + 1).ok_or(Error::EncryptError)?;
        if let Some(last) = plain.last_mut() {
            *last = kind;
        }
        let nonce = self.seal.next_nonce()?;
        let sealed = self.seal.aead.seal_in_place_separate_tag(nonce, Aad::from(written), plain);
        tag.copy_from_slice(sealed.map_err(|_| Error::EncryptError)?.as_ref());
        Ok(total)
    }

    /// Opens the record at the front of `input` in place.
    ///
    /// # Errors
    /// The peer's fatal alert, or what it did wrong.
    pub(super) fn open(&mut self, input: &mut [u8]) -> Result<Opened, Error> {
        let Some(total) = record_length(input) else { return Ok(Opened::MORE) };
        if total > MAX_RECORD {
            return Err(Error::PeerSentOversizedRecord);
        }
        let Some((header, sealed)) =
            input.get_mut(..total).and_then(|record| record.split_at_mut_checked(RECORD_HEADER))
        else {
            return Ok(Opened::MORE);
        };
        let header: [u8; RECORD_HEADER] = (&*header).try_into().map_err(|_| Error::DecryptError)?;
        // Nothing but protected records comes after the handshake (RFC 8446, 5 and D.4).
        if header.first() != Some(&APPLICATION_DATA) {
            return Err(Error::InvalidMessage(InvalidMessage::InvalidContentType));
        }
        let nonce = self.open.next_nonce()?;
        let inner = self.open.aead.open_in_place(nonce, Aad::from(header), sealed);
        let inner = inner.map_err(|_| Error::DecryptError)?;
        // Type and padding: the last byte that is not zero is the type (RFC 8446, 5.4).
        let len = inner.iter().rposition(|byte| *byte != 0);
        let (content, kind) = len
            .and_then(|len| Some((inner.get(..len)?, *inner.get(len)?)))
            .ok_or(Error::PeerMisbehaved(PeerMisbehaved::IllegalTlsInnerPlaintext))?;
        if inner.len() > MAX_PLAINTEXT + 1 {
            return Err(Error::PeerSentOversizedRecord);
        }
        let found = match kind {
            APPLICATION_DATA if self.message.is_whole() => {
                Found::Data(RECORD_HEADER..RECORD_HEADER + content.len())
            }
            ALERT if self.message.is_whole() => alert(content)?,
            HANDSHAKE => {
                let updates = self.message.read(content, &self.schedule)?;
                if let Some(update) = updates {
                    self.open = Keys::new(self.schedule.next_rx()?)?;
                    self.answer_due |= update == KeyUpdate::Requested;
                }
                Found::Nothing
            }
            _ => return Err(Error::InvalidMessage(InvalidMessage::InvalidContentType)),
        };
        self.count_fruitless(kind, &found)?;
        Ok(Opened { consumed: total, found })
    }

    /// A record is work, whether it has something for the app or not.
    fn count_fruitless(&mut self, kind: u8, found: &Found) -> Result<(), Error> {
        self.fruitless = match found {
            Found::Data(range) if !range.is_empty() => 0,
            Found::CloseNotify => 0,
            _ => self.fruitless.saturating_add(1),
        };
        match kind {
            _ if self.fruitless <= MAX_FRUITLESS => Ok(()),
            HANDSHAKE => Err(PeerMisbehaved::TooManyKeyUpdateRequests.into()),
            _ => Err(PeerMisbehaved::TooManyEmptyFragments.into()),
        }
    }
}

/// What an alert says (RFC 8446, 6): all but close_notify and user_canceled are fatal.
fn alert(content: &[u8]) -> Result<Found, Error> {
    let [_, description] = *content else {
        return Err(Error::InvalidMessage(InvalidMessage::MessageTooShort));
    };
    match AlertDescription::from(description) {
        AlertDescription::CloseNotify => Ok(Found::CloseNotify),
        AlertDescription::UserCanceled => Ok(Found::Nothing),
        fatal => Err(Error::AlertReceived(fatal)),
    }
}

#[cfg(test)]
mod tests;
