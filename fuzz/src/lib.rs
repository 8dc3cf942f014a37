//! What the fuzz targets share.
//!
//! The rooms that parse a peer's bytes import no other room, so they are compiled
//! here alone, instrumented; the rest of the proxy is not needed.

#[allow(dead_code, reason = "the record layer takes the sizes alone")]
#[path = "../../proxy/src/buffers.rs"]
mod buffers;
pub mod certs;
#[path = "../../proxy/src/detect.rs"]
pub mod detect;
pub mod identity;
pub mod inject;
pub mod nat_table;
pub mod policy;
pub mod sockaddr;
pub mod spiffe;
pub mod tls;
#[path = "../../proxy/src/tunnel/mod.rs"]
pub mod tunnel;

use tunnel::{Closed, Direction, End, Event, Kind, Role, Violation};

/// What an end said of some input: its events, DATA put together and by its
/// bytes, and what broke off.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    pub events: Vec<Event>,
    pub bytes: Vec<u8>,
    pub violation: Option<Violation>,
}

/// Feeds `input` in parts of the given sizes, over and over, to an end of `role`
/// that has an open stream if it is the client's, and that answers FIN with FIN
/// and opens the next stream, so that many are seen.
pub fn hear(role: Role, input: &[u8], sizes: &[u8]) -> Heard {
    let mut end = End::new(role);
    if role == Role::Client {
        end.sent(Kind::Open).expect("the first OPEN is free");
    }
    let mut heard = Heard::default();
    let mut sizes = sizes.iter().cycle();
    let mut left = input;
    while !left.is_empty() {
        let size = sizes.next().map_or(left.len(), |size| usize::from(*size) + 1);
        let (part, rest) = left.split_at(size.min(left.len()));
        left = rest;
        if let Err(violation) = hear_part(&mut end, part, &mut heard) {
            heard.violation = Some(violation);
            break;
        }
    }
    heard
}

fn hear_part(end: &mut End, mut part: &[u8], heard: &mut Heard) -> Result<(), Violation> {
    while !part.is_empty() {
        let step = end.receive(part)?;
        assert!((1..=part.len()).contains(&step.consumed), "{step:?}");
        match step.event {
            Some(Event::Data(range)) => {
                assert!(!range.is_empty() && range.end <= step.consumed);
                heard.bytes.extend(&part[range]);
                // How many parts there are is the split's business.
                let data = Event::Data(0..0);
                if heard.events.last() != Some(&data) {
                    heard.events.push(data);
                }
            }
            Some(Event::Fin) => {
                heard.events.push(Event::Fin);
                // Where our direction is open still, it ends; the client goes on if
                // it may.
                let _ = end.sent(Kind::Fin);
                let _ = end.sent(Kind::Open);
            }
            event => heard.events.extend(event),
        }
        part = &part[step.consumed..];
    }
    Ok(())
}

/// Plays a script at one end: each byte below 8 is something that we do, any other
/// is followed by what the peer sends, so many bytes less 7. After each step, what
/// must always be true is checked.
pub fn play(role: Role, script: &[u8]) {
    let mut end = End::new(role);
    let mut rest = script;
    while let Some((op, tail)) = rest.split_first() {
        rest = tail;
        let before = end.clone();
        match op {
            0 => {
                let meaning = end.closed();
                assert!(meaning != Closed::EndOfStream || before.receiving() == Direction::Raw);
                assert_eq!(end.receiving(), Direction::Closed);
                // TLS delivers nothing after it.
                return check(&end);
            }
            7 => match end.sent_close() {
                Ok(()) => assert_eq!(end.sending(), Direction::Closed),
                Err(_) => assert_eq!(end, before, "a refusal changes nothing"),
            },
            1..=6 => {
                let kind = Kind::from_code(*op).expect("1 to 6 are types");
                match end.sent(kind) {
                    Ok(()) => check_sent(&before, &end, kind, role),
                    Err(_) => assert_eq!(end, before, "a refusal changes nothing"),
                }
            }
            _ => {
                let (part, tail) = rest.split_at(usize::from(op - 7).min(rest.len()));
                rest = tail;
                receive(&mut end, part, role);
            }
        }
        check(&end);
    }
}

fn check(end: &End) {
    if end.is_reusable() {
        assert!(end.is_idle() && !end.is_over());
        assert_eq!((end.receiving(), end.sending()), (Direction::Finished, Direction::Finished));
    }
    if end.is_over() {
        assert!(end.clone().sent_close().is_err() && !end.may_be_opened());
        for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::Reset) {
            assert!(end.clone().sent(*kind).is_err(), "{kind} after the end");
        }
    }
}

fn check_sent(before: &End, after: &End, kind: Kind, role: Role) {
    assert!(!before.is_over() || kind == Kind::Reset);
    match kind {
        Kind::Open => {
            // Part of a frame that ends the tunnel may have come, and the rest not yet.
            assert!(role == Role::Client && before.is_idle());
            assert_eq!(
                (before.receiving(), before.sending()),
                (Direction::Finished, Direction::Finished)
            );
            assert_eq!((after.receiving(), after.sending()), (Direction::Open, Direction::Open));
        }
        Kind::Data => assert_eq!((before, before.sending()), (after, Direction::Open)),
        Kind::Fin => {
            assert_eq!((before.sending(), after.sending()), (Direction::Open, Direction::Finished))
        }
        Kind::Raw => {
            assert_eq!((before.sending(), after.sending()), (Direction::Open, Direction::Raw));
        }
        Kind::Reset => assert!(!before.is_idle() && after.is_over()),
        Kind::GoAway => assert!(role == Role::Server && !after.is_reusable()),
    }
}

fn receive(end: &mut End, mut part: &[u8], role: Role) {
    while !part.is_empty() {
        let before = end.clone();
        let Ok(step) = end.receive(part) else {
            assert_eq!(end.receive(part), Err(Violation::Over), "a violation is final");
            assert!(end.is_over());
            return;
        };
        assert!(!before.is_over() || step.event.is_none(), "{step:?} after the end");
        assert!((1..=part.len()).contains(&step.consumed), "{step:?}");
        match step.event {
            None => assert_eq!(before.receiving(), end.receiving()),
            Some(Event::Data(range)) => {
                assert!(matches!(before.receiving(), Direction::Open | Direction::Raw));
                assert!(!range.is_empty() && range.end <= step.consumed);
            }
            Some(Event::Open(_)) => assert!(role == Role::Server && before.may_be_opened()),
            Some(Event::GoAway) => assert!(role == Role::Client && !end.is_reusable()),
            Some(Event::Fin) => assert_eq!(
                (before.receiving(), end.receiving()),
                (Direction::Open, Direction::Finished)
            ),
            Some(Event::Raw) => {
                assert_eq!((before.receiving(), end.receiving()), (Direction::Open, Direction::Raw))
            }
            Some(Event::Reset(_)) => assert!(end.is_over()),
        }
        part = &part[step.consumed..];
    }
}
