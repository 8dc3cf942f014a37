//! The record layer against rustls, and against a peer that breaks the rules.

use rustls::{Connection, Side, SupportedCipherSuite};

use super::*;
use crate::tls::tests::twins::{Forger, Recorded, SUITES, give, sent, ticket};

const SIDES: [(Side, Side); 2] = [(Side::Client, Side::Server), (Side::Server, Side::Client)];

fn recorded() -> Recorded {
    Recorded::new(SUITES[0])
}

fn records(recorded: &Recorded, side: Side) -> Records {
    let (secrets, schedule) = recorded.secrets(side);
    Records::new(secrets, schedule).unwrap()
}

/// Ours, and rustls on the other side.
fn with_rustls(suite: SupportedCipherSuite, (ours, peers): (Side, Side)) -> (Records, Connection) {
    let recorded = Recorded::new(suite);
    (records(&recorded, ours), recorded.rustls(peers))
}

/// A client's records, and a server that breaks the rules.
fn with_forger() -> (Records, Forger) {
    let recorded = recorded();
    (records(&recorded, Side::Client), recorded.forger(Side::Server))
}

/// Seals one record, as [`super::super::Session`] does, with what goes before it.
fn seal(records: &mut Records, plain: &[u8]) -> Result<Vec<u8>, Error> {
    if records.wants_key_update(1) {
        records.update_key()?;
    }
    let mut slot = vec![0; MAX_RECORD];
    slot[RECORD_HEADER..RECORD_HEADER + plain.len()].copy_from_slice(plain);
    let n = records.seal(&mut slot, plain.len())?;
    Ok([std::mem::take(&mut records.outgoing), slot[..n].to_vec()].concat())
}

/// Opens all of `sealed`: its data, and whether its last record was close_notify.
fn open(records: &mut Records, mut sealed: Vec<u8>) -> Result<(Vec<u8>, bool), Error> {
    let (mut plain, mut at) = (vec![], 0);
    loop {
        let Opened { consumed, found } = records.open(&mut sealed[at..])?;
        match found {
            Found::More => {
                assert_eq!(at, sealed.len(), "a part of a record is left");
                return Ok((plain, false));
            }
            Found::CloseNotify => return Ok((plain, true)),
            Found::Nothing => {}
            Found::Data(range) => plain.extend(&sealed[at..][range]),
        }
        at += consumed;
    }
}

fn data(records: &mut Records, sealed: Vec<u8>) -> Vec<u8> {
    open(records, sealed).unwrap().0
}

fn refresh(peer: &mut Connection) -> Vec<u8> {
    peer.refresh_traffic_keys().unwrap();
    sent(peer)
}

fn say(peer: &mut Connection, plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    peer.writer().write_all(plain).unwrap();
    sent(peer)
}

const TOO_MANY_EMPTY: Error = Error::PeerMisbehaved(PeerMisbehaved::TooManyEmptyFragments);
const TOO_MANY_UPDATES: Error = Error::PeerMisbehaved(PeerMisbehaved::TooManyKeyUpdateRequests);

#[test]
fn every_suite_and_side_understands_rustls() {
    for suite in SUITES {
        for sides in SIDES {
            let (mut ours, mut peer) = with_rustls(suite, sides);
            for len in [0, 1, 100, MAX_PLAINTEXT - 1, MAX_PLAINTEXT] {
                let text = vec![7; len];
                let sealed = seal(&mut ours, &text).unwrap();
                assert_eq!(give(&mut peer, &sealed).unwrap(), text);
                let sealed = say(&mut peer, &text);
                assert_eq!(data(&mut ours, sealed), text);
            }
            ours.alert(AlertDescription::CloseNotify).unwrap();
            give(&mut peer, &ours.outgoing).unwrap();
            assert!(peer.process_new_packets().unwrap().peer_has_closed());
            peer.send_close_notify();
            assert_eq!(open(&mut ours, sent(&mut peer)).unwrap(), (vec![], true));
        }
    }
}

#[test]
fn a_key_update_of_rustls_is_answered_before_the_next_data() {
    for suite in SUITES {
        for sides in SIDES {
            let (mut ours, mut peer) = with_rustls(suite, sides);
            for round in 0..3 {
                let update = refresh(&mut peer);
                assert_eq!(data(&mut ours, update), b"");
                let after = say(&mut peer, b"with the next key");
                assert_eq!(data(&mut ours, after), b"with the next key", "round {round}");
                assert!(ours.outgoing.is_empty(), "it waits for data");
                let sealed = seal(&mut ours, b"and ours").unwrap();
                assert_eq!(sealed.len(), 5 + 5 + 17 + 5 + 8 + 17, "a KeyUpdate, and data");
                assert_eq!(give(&mut peer, &sealed).unwrap(), b"and ours");
                let sealed = seal(&mut ours, b"once").unwrap();
                assert_eq!(sealed.len(), 5 + 4 + 17);
                assert_eq!(give(&mut peer, &sealed).unwrap(), b"once");
            }
        }
    }
}

#[test]
fn one_answer_is_for_all_that_was_asked_and_none_for_what_was_not() {
    let (mut ours, mut peer) = with_forger();
    let update = peer.key_update(0);
    data(&mut ours, update);
    assert!(!ours.wants_key_update(1));
    for _ in 0..5 {
        let update = peer.key_update(1);
        data(&mut ours, update);
    }
    assert_eq!(seal(&mut ours, b"x").unwrap().len(), 27 + 23);
    assert_eq!(seal(&mut ours, b"x").unwrap().len(), 23);
}

#[test]
fn a_record_that_is_no_run_carries_the_answer_too() {
    let (mut ours, mut peer) = with_rustls(SUITES[0], SIDES[0]);
    let update = refresh(&mut peer);
    data(&mut ours, update);
    // Without having asked whether the key has to be changed.
    let mut slot = [0; 64];
    let n = ours.seal(&mut slot, 3).unwrap();
    let sealed = [&ours.outgoing[..], &slot[..n]].concat();
    assert_eq!(sealed.len(), 27 + 25);
    assert_eq!(give(&mut peer, &sealed).unwrap(), [0; 3]);
}

#[test]
fn nothing_is_said_after_an_alert() {
    for last in [AlertDescription::CloseNotify, AlertDescription::BadRecordMac] {
        let (mut ours, mut peer) = with_forger();
        ours.alert(last).unwrap();
        assert_eq!(ours.outgoing.len(), 24);
        let update = peer.key_update(1);
        let text = peer.record(23, b"the other direction goes on", 0);
        let update = [update, text].concat();
        assert_eq!(data(&mut ours, update), b"the other direction goes on");
        assert!(!ours.wants_key_update(u64::MAX));
        ours.alert(AlertDescription::InternalError).unwrap();
        assert_eq!(ours.outgoing.len(), 24, "one alert is enough");
        assert_eq!(ours.seal(&mut [0; 64], 1).unwrap_err(), Error::EncryptError);
    }
}

#[test]
fn the_key_is_changed_before_it_is_used_up() {
    for suite in SUITES {
        let (mut ours, mut peer) = with_rustls(suite, SIDES[0]);
        ours.records_per_key = 40;
        let mut updates = 0;
        for n in 0..200_u8 {
            let sealed = seal(&mut ours, &[n]).unwrap();
            updates += usize::from(sealed.len() > 23);
            assert_eq!(give(&mut peer, &sealed).unwrap(), [n]);
        }
        // The KeyUpdate itself is the last of the 40.
        assert_eq!(updates, 5);
        assert_eq!(RECORDS_PER_KEY, 1 << 24, "RFC 8446, 5.5: fewer than 2^24.5");
    }
}

#[test]
fn who_does_not_ask_gets_no_record_beyond_the_limit() {
    let (mut ours, _) = with_forger();
    ours.records_per_key = 2;
    ours.seal(&mut [0; 64], 1).unwrap();
    ours.seal(&mut [0; 64], 1).unwrap();
    assert_eq!(ours.seal(&mut [0; 64], 1).unwrap_err(), Error::EncryptError);
}

#[test]
fn no_sequence_number_comes_twice() {
    let (mut ours, mut peer) = with_forger();
    ours.records_per_key = u64::MAX;
    ours.seal.sequence = u64::MAX - 1;
    ours.seal(&mut [0; 64], 1).unwrap();
    assert_eq!(ours.seal(&mut [0; 64], 1).unwrap_err(), Error::EncryptError);
    assert!(ours.alert(AlertDescription::CloseNotify).is_err());
    ours.open.sequence = u64::MAX;
    let mut record = peer.record(23, b"x", 0);
    assert!(ours.open(&mut record).is_err());
}

#[test]
fn records_with_nothing_for_the_app_are_counted() {
    type Empty = fn(&mut Forger) -> Vec<u8>;
    let kinds: [(Empty, Error); 4] = [
        (|peer| peer.key_update(0), TOO_MANY_UPDATES),
        (|peer| peer.key_update(1), TOO_MANY_UPDATES),
        (|peer| peer.record(23, &[], 9), TOO_MANY_EMPTY),
        (|peer| peer.record(21, &[1, 90], 0), TOO_MANY_EMPTY),
    ];
    for (make, error) in kinds {
        let (mut ours, mut peer) = with_forger();
        for _ in 0..3 {
            for _ in 0..MAX_FRUITLESS {
                let record = make(&mut peer);
                assert_eq!(data(&mut ours, record), b"");
            }
            let record = peer.record(23, b"a byte makes up for them", 0);
            data(&mut ours, record);
        }
        for _ in 0..MAX_FRUITLESS {
            let record = make(&mut peer);
            data(&mut ours, record);
        }
        let record = make(&mut peer);
        assert_eq!(open(&mut ours, record).unwrap_err(), error);
    }
    // The end may come at any time.
    let (mut ours, mut peer) = with_forger();
    let empty = (0..MAX_FRUITLESS).flat_map(|_| peer.record(23, &[], 0)).collect();
    data(&mut ours, empty);
    let end = peer.record(21, &[1, 0], 0);
    assert_eq!(open(&mut ours, end).unwrap(), (vec![], true));
}

#[test]
fn tickets_are_skipped_by_a_client_and_refused_by_a_server() {
    let recorded = Recorded::with_tickets(SUITES[0], 4);
    let mut ours = records(&recorded, Side::Client);
    assert!(recorded.tickets.len() > 4 * 40, "rustls sends tickets");
    assert_eq!(data(&mut ours, recorded.tickets.clone()), b"");

    for size in [1, 3, 4, 5, 100, 3000] {
        let (mut ours, mut peer) = with_forger();
        let tickets = [ticket(25), ticket(1), ticket(2000), vec![4, 0, 0, 0]].concat();
        for part in tickets.chunks(size) {
            let record = peer.record(22, part, 0);
            data(&mut ours, record);
            // Very small parts are too many: another test's matter.
            ours.fruitless = 0;
        }
        let text = peer.record(23, b"data", 0);
        assert_eq!(data(&mut ours, text), b"data");
    }

    let recorded = self::recorded();
    let mut ours = records(&recorded, Side::Server);
    let record = recorded.forger(Side::Client).record(22, &ticket(25), 0);
    assert_eq!(
        open(&mut ours, record).unwrap_err(),
        Error::InvalidMessage(InvalidMessage::UnexpectedMessage("post-handshake"))
    );
}

#[test]
fn alerts_mean_what_their_description_says() {
    let alert = |content: &[u8]| {
        let (mut ours, mut peer) = with_forger();
        let record = peer.record(21, content, 3);
        open(&mut ours, record)
    };
    for level in [0, 1, 2, 255] {
        assert_eq!(alert(&[level, 0]).unwrap(), (vec![], true), "close_notify");
        assert_eq!(alert(&[level, 90]).unwrap(), (vec![], false), "user_canceled");
        for fatal in [10, 20, 80, 100, 200] {
            assert_eq!(
                alert(&[level, fatal]).unwrap_err(),
                Error::AlertReceived(AlertDescription::from(fatal))
            );
        }
    }
    // Not cut, not two in one, not empty (RFC 8446, 5.1 and 5.4).
    for content in [&[1][..], &[1, 0, 1], &[1, 90, 1, 90], &[]] {
        let e = Error::InvalidMessage(InvalidMessage::MessageTooShort);
        assert_eq!(alert(content).unwrap_err(), e);
    }
}

#[test]
fn a_length_that_no_record_may_have_is_refused_at_once() {
    let (mut ours, _) = with_forger();
    let longest = u16::try_from(MAX_PLAINTEXT + 256).unwrap();
    let header = |len: u16| [&[23, 3, 3][..], &len.to_be_bytes()].concat();
    assert_eq!(ours.open(&mut header(longest)).unwrap().found, Found::More);
    for len in [longest + 1, u16::MAX] {
        assert_eq!(
            ours.open(&mut header(len)).unwrap_err(),
            Error::PeerSentOversizedRecord,
            "without its content"
        );
    }
    for len in 0..RECORD_HEADER {
        assert_eq!(ours.open(&mut header(9)[..len]).unwrap().found, Found::More);
    }
}

#[test]
fn padding_is_taken_off_and_counts_as_length() {
    let (mut ours, mut peer) = with_forger();
    for (len, padding) in [(0, 0), (0, MAX_PLAINTEXT), (9, 1), (9, 9000), (MAX_PLAINTEXT, 0)] {
        let record = peer.record(23, &vec![7; len], padding);
        assert_eq!(data(&mut ours, record), vec![7; len]);
    }
    // Zeros of the app's own stay.
    let record = peer.record(23, &[0; 5], 5);
    assert_eq!(data(&mut ours, record), [0; 5]);
    for (len, padding) in [(MAX_PLAINTEXT + 1, 0), (MAX_PLAINTEXT, 1), (0, MAX_PLAINTEXT + 1)] {
        let (mut ours, mut peer) = with_forger();
        let record = peer.record(23, &vec![7; len], padding);
        assert_eq!(open(&mut ours, record).unwrap_err(), Error::PeerSentOversizedRecord);
    }
}

#[test]
fn a_record_without_a_type_is_refused() {
    for len in [0, 1, 500] {
        let (mut ours, mut peer) = with_forger();
        let record = peer.seal(vec![0; len]);
        assert_eq!(
            open(&mut ours, record).unwrap_err(),
            Error::PeerMisbehaved(PeerMisbehaved::IllegalTlsInnerPlaintext)
        );
    }
}

#[test]
fn unknown_types_are_refused_within_and_without_protection() {
    let invalid = Error::InvalidMessage(InvalidMessage::InvalidContentType);
    for kind in [1, 20, 24, 255] {
        let (mut ours, mut peer) = with_forger();
        let record = peer.record(kind, &[1], 0);
        assert_eq!(open(&mut ours, record).unwrap_err(), invalid);
    }
    for record in [
        &[20, 3, 3, 0, 1, 1][..],
        &[21, 3, 3, 0, 2, 1, 0],
        &[22, 3, 3, 0, 5, 24, 0, 0, 1, 0],
        &[0, 3, 3, 0, 0],
    ] {
        let (mut ours, _) = with_forger();
        assert_eq!(open(&mut ours, record.to_vec()).unwrap_err(), invalid, "{record:?}");
    }
    let (mut ours, _) = with_forger();
    let too_short = vec![23, 3, 3, 0, 0];
    assert_eq!(open(&mut ours, too_short).unwrap_err(), Error::DecryptError);
}

#[test]
fn the_header_is_authenticated() {
    for (at, bit) in [(1, 1), (2, 2)] {
        let (mut ours, mut peer) = with_forger();
        let mut record = peer.record(23, b"x", 0);
        record[at] ^= bit;
        assert_eq!(open(&mut ours, record).unwrap_err(), Error::DecryptError);
    }
}

#[test]
fn records_come_once_and_in_order() {
    let (mut ours, mut peer) = with_forger();
    let [one, other] = [b"a", b"b"].map(|text| peer.record(23, text, 0));
    assert_eq!(open(&mut ours, other).unwrap_err(), Error::DecryptError);
    let (mut ours, _) = with_forger();
    assert_eq!(data(&mut ours, one.clone()), b"a");
    assert_eq!(open(&mut ours, one).unwrap_err(), Error::DecryptError);
}

#[test]
fn a_key_update_ends_its_record() {
    // Over two records it may go.
    for at in 1..5 {
        let (mut ours, mut peer) = with_forger();
        let (one, other) = [24, 0, 0, 1, 1].split_at(at);
        let mut records = peer.record(22, one, 0);
        records.extend(peer.record(22, other, 0));
        peer.next_key();
        records.extend(peer.record(23, b"x", 0));
        assert_eq!(data(&mut ours, records), b"x");
    }
    // Nothing else of the old key's comes behind it.
    for behind in [&[24][..], &[24, 0, 0, 1, 0], &[4, 0, 0, 0]] {
        let (mut ours, mut peer) = with_forger();
        let record = peer.record(22, &[&[24, 0, 0, 1, 0], behind].concat(), 0);
        assert_eq!(
            open(&mut ours, record).unwrap_err(),
            Error::PeerMisbehaved(PeerMisbehaved::KeyEpochWithPendingFragment)
        );
    }
    let (mut ours, mut peer) = with_forger();
    let record = peer.record(22, &[ticket(9), vec![24, 0, 0, 1, 0]].concat(), 0);
    assert_eq!(data(&mut ours, record), b"", "behind a ticket it may come");
}

#[test]
fn the_old_key_is_no_good_after_an_update() {
    let (mut ours, mut peer) = with_forger();
    let update = peer.record(22, &[24, 0, 0, 1, 0], 0);
    data(&mut ours, update);
    let record = peer.record(23, b"x", 0);
    assert_eq!(open(&mut ours, record).unwrap_err(), Error::DecryptError);
}

#[test]
fn other_handshake_messages_are_refused() {
    let unexpected = Error::InvalidMessage(InvalidMessage::UnexpectedMessage("post-handshake"));
    let bad_update = Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate);
    let empty = Error::InvalidMessage(InvalidMessage::InvalidEmptyPayload);
    let cases = [
        (&[1, 0, 0, 2, 3, 3][..], &unexpected),
        (&[13, 0, 0, 9, 0], &unexpected),
        (&[24, 0, 0, 2, 0, 0], &unexpected),
        (&[24, 1, 0, 1, 0], &unexpected),
        (&[24, 0, 0, 1, 2], &bad_update),
        (&[24, 0, 0, 1, 255], &bad_update),
        (&[], &empty),
    ];
    for (content, error) in cases {
        let (mut ours, mut peer) = with_forger();
        let record = peer.record(22, content, 0);
        assert_eq!(open(&mut ours, record).unwrap_err(), *error, "{content:?}");
    }
}

#[test]
fn nothing_comes_between_the_parts_of_a_message() {
    for (kind, content) in [(23, &b"x"[..]), (23, b""), (21, &[1, 0])] {
        for beginning in [&[24, 0][..], &[4, 0, 0, 9, 1]] {
            let (mut ours, mut peer) = with_forger();
            let one = peer.record(22, beginning, 0);
            data(&mut ours, one);
            let record = peer.record(kind, content, 0);
            assert_eq!(
                open(&mut ours, record).unwrap_err(),
                Error::InvalidMessage(InvalidMessage::InvalidContentType)
            );
        }
    }
}

#[test]
fn too_much_plaintext_and_too_little_room_are_not_sealed() {
    let (mut ours, _) = with_forger();
    let mut slot = vec![0; MAX_RECORD + 100];
    assert_eq!(ours.seal(&mut slot, MAX_PLAINTEXT + 1).unwrap_err(), Error::EncryptError);
    assert_eq!(ours.seal(&mut slot[..26], 5).unwrap_err(), Error::EncryptError);
    assert_eq!(ours.seal(&mut slot[..27], 5).unwrap(), 27);
}
