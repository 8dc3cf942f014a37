//! Handshake messages after the handshake (RFC 8446, 4.6), in whatever records they come.

use rustls::{Error, InvalidMessage, PeerMisbehaved};

use super::records::Schedule;

const NEW_SESSION_TICKET: u8 = 4;
pub(super) const KEY_UPDATE: u8 = 24;

/// Whether the peer, which has changed its key, wants ours changed too (RFC 8446, 4.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUpdate {
    NotRequested,
    Requested,
}

/// A handshake message after the handshake, in whatever records it comes. A ticket is
/// skipped: sessions are never resumed.
#[derive(Default)]
pub(super) struct Message {
    /// Type, length, and the body of a KeyUpdate.
    head: [u8; 5],
    have: u8,
    /// What is left of a ticket.
    skip: u32,
}

impl Message {
    /// Whether no message has begun and not ended.
    pub(super) fn is_whole(&self) -> bool {
        self.have == 0 && self.skip == 0
    }

    /// Reads a record's worth. A KeyUpdate must end its record (RFC 8446, 5.1).
    ///
    /// # Errors
    /// An empty record (RFC 8446, 5.4), or a message that may not come now.
    pub(super) fn read(
        &mut self,
        mut content: &[u8],
        role: &Schedule,
    ) -> Result<Option<KeyUpdate>, Error> {
        if content.is_empty() {
            return Err(Error::InvalidMessage(InvalidMessage::InvalidEmptyPayload));
        }
        loop {
            let skipped = content.len().min(self.skip as usize);
            self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
            content = content.get(skipped..).unwrap_or_default();
            let Some((byte, rest)) = content.split_first() else { return Ok(None) };
            content = rest;
            if let Some(place) = self.head.get_mut(usize::from(self.have)) {
                *place = *byte;
            }
            self.have = self.have.saturating_add(1);
            match (self.have, self.head) {
                (4, [NEW_SESSION_TICKET, high, middle, low, _])
                    if matches!(role, Schedule::Client(_)) =>
                {
                    self.skip = u32::from_be_bytes([0, high, middle, low]);
                    self.have = 0;
                }
                (4, [KEY_UPDATE, 0, 0, 1, _]) | (0..=3, _) => {}
                (5, [KEY_UPDATE, 0, 0, 1, request @ (0 | 1)]) if content.is_empty() => {
                    self.have = 0;
                    let requested = [KeyUpdate::NotRequested, KeyUpdate::Requested];
                    return Ok(requested.get(usize::from(request)).copied());
                }
                (5, [KEY_UPDATE, 0, 0, 1, 0 | 1]) => {
                    return Err(Error::PeerMisbehaved(PeerMisbehaved::KeyEpochWithPendingFragment));
                }
                (5, _) => return Err(Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate)),
                _ => {
                    return Err(Error::InvalidMessage(InvalidMessage::UnexpectedMessage(
                        "post-handshake",
                    )));
                }
            }
        }
    }
}
