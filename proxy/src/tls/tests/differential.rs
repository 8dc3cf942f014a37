//! rustls and our record layer hear the same: both must understand the same.
//!
//! A script, of arbitrary bytes, says what a peer sends and what happens to it on the
//! way. It ends with a record of data, so that whatever one of the two took and the
//! other did not shows in the plaintext.
//!
//! What differs by design, and is allowed for in [`Outcome::is_by_design`]:
//!
//! | What comes | rustls | ours | RFC 8446 |
//! |---|---|---|---|
//! | a good record under a header with another type or version | taken | refused | 5.2: the header is what is authenticated, as it came |
//! | an empty handshake record | counted | refused | 5.4: must be refused |
//! | user_canceled or close_notify of an odd level, or more than four of the first | refused | taken for what it says | 6: the level can be ignored |
//! | 33 records in a row with nothing for the app | 33 of a kind | 33 of any kind | - |
//! | the rest of what was refused | not waited for | waited for, or the other way | - |

use std::io::Write;
use std::sync::OnceLock;

use rustls::{AlertDescription, Connection, Error, InvalidMessage, PeerMisbehaved, Side};

use crate::buffers::{MAX_PLAINTEXT, MAX_RECORD, RECORD_HEADER};
use crate::tls::session::{Found, Session};

use super::twins::{Forger, Recorded, SUITES, give, sent, ticket};

/// Plays a script.
pub(crate) fn play(script: &[u8]) {
    static RECORDED: OnceLock<[Recorded; 3]> = OnceLock::new();
    let recorded = RECORDED.get_or_init(|| SUITES.map(Recorded::new));
    let mut script = Script(script);
    let choice = usize::from(script.byte());
    let recorded = &recorded[choice % 3];
    let (ours, peer) =
        if choice & 4 == 0 { (Side::Server, Side::Client) } else { (Side::Client, Side::Server) };
    let seed = script.byte();
    let mut stream = Stream { forger: recorded.forger(peer), records: vec![], forged: false };
    for _ in 0..48 {
        let Some(step) = script.next() else { break };
        stream.step(step, &mut script);
    }
    let probe = stream.forger.record(23, b"probe", 0);
    stream.records.push(probe);
    let mut other = Heard::<Connection>::new(recorded.rustls(ours));
    let mut own = Heard::<Session>::new(recorded.session(ours));
    let bytes = stream.records.concat();
    for part in split(&bytes, seed) {
        other.hear(part);
        own.hear(part);
    }
    if other.error.is_some() != own.error.is_some() {
        // One of them may be waiting for the rest of a record.
        other.hear(&[0xff; MAX_RECORD + 4096]);
        own.hear(&[0xff; MAX_RECORD + 4096]);
    }
    let outcome = Outcome { own: &own, other: &other, forged: stream.forged };
    outcome.check();
    answer(own, other, seed);
}

/// Both send the same bytes now: the answer to a KeyUpdate, and data.
fn answer(mut own: Heard<Session>, mut other: Heard<Connection>, seed: u8) {
    let plain = vec![seed; usize::from(seed) * 64];
    if own.error.is_some() {
        let ended = !matches!(own.error, Some(Error::AlertReceived(_)));
        assert_eq!(!own.tls.outgoing().is_empty(), ended, "an alert answers an error");
        assert_eq!(seal(&mut own.tls, &plain).is_err(), ended, "an alert is the last word");
        return;
    }
    if other.error.is_some() || plain.is_empty() {
        return;
    }
    other.tls.writer().write_all(&plain).unwrap();
    assert_eq!(seal(&mut own.tls, &plain).unwrap(), sent(&mut other.tls), "what is sent");
    other.tls.send_close_notify();
    own.tls.close().unwrap();
    assert_eq!(*own.tls.outgoing(), sent(&mut other.tls), "close_notify");
}

fn seal(session: &mut Session, plain: &[u8]) -> Result<Vec<u8>, Error> {
    session.before_run()?;
    let mut sealed = std::mem::take(session.outgoing());
    let mut slot = vec![0; MAX_RECORD];
    slot[RECORD_HEADER..RECORD_HEADER + plain.len()].copy_from_slice(plain);
    let n = session.seal(&mut slot, plain.len())?;
    sealed.extend(&slot[..n]);
    Ok(sealed)
}

/// Parts of random sizes, small ones and large ones.
fn split(bytes: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut random = fastrand::Rng::with_seed(seed.into());
    let mut left = bytes;
    std::iter::from_fn(move || {
        let most = if random.bool() { 64 } else { 40_000 };
        let (part, rest) = left.split_at(random.usize(1..=most).min(left.len()));
        left = rest;
        (!part.is_empty()).then_some(part)
    })
}

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn number(&mut self) -> usize {
        usize::from(u16::from_be_bytes([self.byte(), self.byte()]))
    }

    fn some(&mut self) -> Vec<u8> {
        let n = usize::from(self.byte() % 12);
        (0..n).map(|_| self.byte()).collect()
    }
}

/// What the peer sends, and what becomes of it.
struct Stream {
    forger: Forger,
    records: Vec<Vec<u8>>,
    /// Whether a header's type or version was touched.
    forged: bool,
}

impl Stream {
    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        let record = match step % 20 {
            0..=3 => self.forger.record(23, &vec![step; script.byte().into()], 0),
            4 => self.forger.record(23, &vec![step; script.number() % (MAX_PLAINTEXT + 1)], 0),
            5 => self.forger.record(23, &vec![step; MAX_PLAINTEXT], script.number() % 3),
            6 => {
                let len = script.byte().into();
                self.forger.record(23, &vec![step; len], script.number() % (MAX_PLAINTEXT + 8))
            }
            7 => self.forger.record(23, &[], script.number() % 2),
            8 | 9 => self.forger.key_update(step % 2),
            10 => {
                // In two records.
                let message = [24, 0, 0, 1, script.byte() % 3];
                let (one, other) = message.split_at(usize::from(script.byte() % 6));
                let records = [one, other].map(|part| self.forger.record(22, part, 0));
                self.forger.next_key();
                return self.records.extend(records);
            }
            11 => {
                let message = ticket(u16::from_be_bytes([script.byte() % 64, script.byte()]));
                let size = script.number().clamp(message.len() / 8 + 1, MAX_PLAINTEXT);
                let records = message.chunks(size).map(|part| self.forger.record(22, part, 0));
                return self.records.extend(records);
            }
            12 => self.forger.record(21, &[script.byte() % 4, script.byte()], 0),
            13 => {
                let content = [script.some(), vec![script.byte()]].concat();
                self.forger.record(script.byte(), &content, 0)
            }
            14 => {
                // A ticket's content is nothing that we look at, so none is made up.
                let mut content = script.some();
                if let Some(kind @ 4) = content.first_mut() {
                    *kind = 5;
                }
                self.forger.record(22, &content, 0)
            }
            15 => self.forger.seal(script.some()),
            _ => return self.spoil(step, script),
        };
        self.records.push(record);
    }

    /// Does something to the last record.
    fn spoil(&mut self, step: u8, script: &mut Script<'_>) {
        let at = script.number();
        let n = self.records.len();
        let Some(last) = self.records.last_mut() else { return };
        match step % 20 {
            16 => {
                let at = at % last.len();
                last[at] ^= 1 << (script.byte() % 8);
                self.forged |= at < 3;
            }
            17 => last.truncate(at % (last.len() + 1)),
            18 if at.is_multiple_of(2) => {
                let again = last.clone();
                self.records.push(again);
            }
            18 if n > 1 => self.records.swap(n - 1, n - 2),
            18 => {}
            // Without protection.
            _ => {
                let content = script.some();
                let len = u8::try_from(content.len()).unwrap();
                let record = [&[20 + script.byte() % 4, 3, 3, 0, len][..], &content].concat();
                self.records.push(record);
            }
        }
        self.records.retain(|record| !record.is_empty());
    }
}

/// What one of the two has made of the stream.
struct Heard<T> {
    tls: T,
    plain: Vec<u8>,
    closed: bool,
    error: Option<Error>,
    waiting: Vec<u8>,
}

impl<T> Heard<T> {
    fn new(tls: T) -> Self {
        Self { tls, plain: vec![], closed: false, error: None, waiting: vec![] }
    }
}

impl Heard<Connection> {
    fn hear(&mut self, part: &[u8]) {
        if self.error.is_some() {
            return;
        }
        match give(&mut self.tls, part) {
            Ok(plain) => self.plain.extend(plain),
            Err((plain, e)) => {
                self.plain.extend(plain);
                self.error = Some(e);
            }
        }
        // All is read, so nothing but the end keeps it from wanting more.
        self.closed = self.error.is_none() && !self.tls.wants_read();
    }
}

impl Heard<Session> {
    fn hear(&mut self, part: &[u8]) {
        self.waiting.extend_from_slice(part);
        while self.error.is_none() && !self.closed {
            let opened = match self.tls.open(&mut self.waiting, &mut []) {
                Ok(opened) => opened,
                Err(e) => {
                    self.error = Some(e);
                    return;
                }
            };
            match opened.found {
                Found::More => return,
                Found::Nothing => {}
                Found::CloseNotify => self.closed = true,
                Found::Data(range) => self.plain.extend(&self.waiting[range]),
            }
            assert!(opened.consumed > RECORD_HEADER, "progress");
            self.waiting.drain(..opened.consumed);
        }
    }
}

struct Outcome<'a> {
    own: &'a Heard<Session>,
    other: &'a Heard<Connection>,
    forged: bool,
}

impl Outcome<'_> {
    fn check(&self) {
        let (own, other) = (self.own, self.other);
        let same = own.plain == other.plain
            && own.closed == other.closed
            && own.error.is_some() == other.error.is_some();
        assert!(
            same || self.is_by_design(),
            "ours: {} bytes, closed {}, {:?}; rustls: {} bytes, closed {}, {:?}",
            own.plain.len(),
            own.closed,
            own.error,
            other.plain.len(),
            other.closed,
            other.error,
        );
    }

    /// One of the two may stop earlier, for a reason that is in the table above.
    fn is_by_design(&self) -> bool {
        let ours_is_stricter = match &self.own.error {
            Some(Error::InvalidMessage(InvalidMessage::InvalidEmptyPayload)) => true,
            Some(Error::PeerMisbehaved(
                PeerMisbehaved::TooManyEmptyFragments | PeerMisbehaved::TooManyKeyUpdateRequests,
            )) => true,
            Some(_) => self.forged,
            None => false,
        };
        let rustls_is_stricter = matches!(
            &self.other.error,
            Some(
                Error::AlertReceived(
                    AlertDescription::UserCanceled | AlertDescription::CloseNotify
                ) | Error::PeerMisbehaved(
                    PeerMisbehaved::TooManyWarningAlertsReceived
                        | PeerMisbehaved::TooManyEmptyFragments
                        | PeerMisbehaved::TooManyKeyUpdateRequests
                )
            )
        );
        ours_is_stricter && self.other.plain.starts_with(&self.own.plain)
            || rustls_is_stricter && self.own.plain.starts_with(&self.other.plain)
    }
}
