//! Each rule of an end on its own; what two ends make of each other is in `../tests.rs`.

use super::super::frame::{self, Frame, fin, goaway, header, raw, reset};
use super::*;

fn address() -> SocketAddr {
    "192.0.2.1:8080".parse().unwrap()
}

fn open() -> Frame {
    frame::open(address())
}

/// What an end makes of `bytes`, parts of DATA put together, each part at most
/// `split` bytes.
fn feed(end: &mut End, bytes: &[u8], split: usize) -> Result<Vec<Event>, Violation> {
    let mut events: Vec<Event> = Vec::new();
    let mut seen = 0;
    for mut part in bytes.chunks(split) {
        while !part.is_empty() {
            let step = end.receive(part)?;
            assert!((1..=part.len()).contains(&step.consumed));
            match (step.event, events.last_mut()) {
                (Some(Event::Data(range)), Some(Event::Data(last))) => {
                    assert!(!range.is_empty() && range.end <= step.consumed);
                    last.end += range.len();
                }
                (Some(Event::Data(range)), _) => {
                    events.push(Event::Data(seen + range.start..seen + range.end));
                }
                (event, _) => events.extend(event),
            }
            seen += step.consumed;
            part = &part[step.consumed..];
        }
    }
    Ok(events)
}

fn all(end: &mut End, frames: &[&[u8]]) -> Result<Vec<Event>, Violation> {
    feed(end, &frames.concat(), usize::MAX)
}

/// A server with an open stream.
fn server() -> End {
    let mut end = End::new(Role::Server);
    assert_eq!(all(&mut end, &[&open()]), Ok(vec![Event::Open(address())]));
    end
}

/// A client with an open stream.
fn client() -> End {
    let mut end = End::new(Role::Client);
    end.sent(Kind::Open).unwrap();
    end
}

#[test]
fn an_end_is_small() {
    assert!(size_of::<End>() <= 32, "{}", size_of::<End>());
}

#[test]
fn any_split_says_the_same() {
    let data = [header(Kind::Data, 300).as_slice(), &[7; 300]].concat();
    let stream = [&open()[..], &data, &header(Kind::Data, 1), &[8], &fin(), &open(), &raw()];
    let bytes = [&stream.concat()[..], &[1, 2, 3, 4, 5]].concat();
    let answer = |split| {
        let mut end = End::new(Role::Server);
        let (first, second) = bytes.split_at(10 + 304 + 5 + 4);
        let mut events = feed(&mut end, first, split).unwrap();
        end.sent(Kind::Fin).unwrap();
        events.extend(feed(&mut end, second, split).unwrap());
        events
    };
    let expected = [
        Event::Open(address()),
        Event::Data(14..315),
        Event::Fin,
        Event::Open(address()),
        Event::Raw,
        Event::Data(14..19),
    ];
    for split in 1..=bytes.len() {
        assert_eq!(answer(split), expected, "parts of {split} bytes");
    }
}

#[test]
fn data_is_where_it_lies_and_a_full_record_is_one_step() {
    let mut end = server();
    let record = [header(Kind::Data, MAX_DATA).as_slice(), &[7; MAX_DATA]].concat();
    let step = end.receive(&record).unwrap();
    assert_eq!(step.consumed, record.len());
    assert_eq!(step.event, Some(Event::Data(HEADER_LEN..record.len())));
    assert_eq!(end.receive(&[]), Ok(Step { consumed: 0, event: None }));
}

#[test]
fn bad_types_and_lengths_are_refused_with_the_header() {
    for code in (0..=255).filter(|code| Kind::from_code(*code).is_none()) {
        let result = all(&mut server(), &[&[code, 0, 0, 0]]);
        assert_eq!(result, Err(Violation::UnknownType(code)));
    }
    let good = |kind, length| match kind {
        Kind::Open => length == 6 || length == 18,
        Kind::Data => (1..=16_380).contains(&length),
        Kind::Reset => length == 1,
        _ => length == 0,
    };
    for kind in Kind::ALL {
        for length in (0..20_000).chain([0xff_fffe, 0xff_ffff]) {
            let [_, a, b, c] = u32::to_be_bytes(length);
            let verdict = parse([kind.code(), a, b, c]);
            let bad = Violation::BadLength { kind: *kind, length };
            assert_eq!(verdict.is_ok(), good(*kind, length), "{kind} {length}");
            assert!(verdict.is_ok() || verdict == Err(bad));
        }
    }
}

#[test]
fn frames_out_of_place_are_refused() {
    type Case<'a> = (&'a dyn Fn() -> End, &'a [u8], Violation);
    let fresh = |role| move || End::new(role);
    let both_fins = || {
        let mut end = server();
        all(&mut end, &[&fin()]).unwrap();
        end
    };
    let data: &[u8] = &[2, 0, 0, 1, 0];
    let cases: &[Case<'_>] = &[
        (&fresh(Role::Client), &open(), Violation::WrongRole(Kind::Open)),
        (&fresh(Role::Server), &goaway(), Violation::WrongRole(Kind::GoAway)),
        (&server, &goaway(), Violation::WrongRole(Kind::GoAway)),
        (&server, &open(), Violation::StreamOpen),
        (&both_fins, &open(), Violation::StreamOpen),
        (&both_fins, data, Violation::AfterFin(Kind::Data)),
        (&both_fins, &fin(), Violation::AfterFin(Kind::Fin)),
        (&both_fins, &raw(), Violation::AfterFin(Kind::Raw)),
    ];
    for (end, frame, violation) in cases {
        assert_eq!(all(&mut end(), &[frame]), Err(*violation));
    }
    for role in [Role::Client, Role::Server] {
        for (kind, frame) in [
            (Kind::Data, data),
            (Kind::Fin, &fin()),
            (Kind::Raw, &raw()),
            (Kind::Reset, &reset(Reason::Other)),
        ] {
            let result = all(&mut End::new(role), &[frame]);
            assert_eq!(result, Err(Violation::NoStream(kind)), "{role:?}");
            assert_eq!(End::new(role).sent(kind), Err(Violation::NoStream(kind)));
        }
    }
}

#[test]
fn a_violation_is_final_but_may_be_told() {
    let mut end = server();
    assert_eq!(all(&mut end, &[&open()]), Err(Violation::StreamOpen));
    assert_eq!(all(&mut end, &[&fin()]), Err(Violation::Over));
    assert_eq!(end.sent(Kind::Fin), Err(Violation::Over));
    assert_eq!(end.sent(Kind::Reset), Ok(()));
    assert_eq!(end.sent(Kind::Reset), Err(Violation::Over));
    assert!(!end.is_reusable());
}

#[test]
fn a_reset_is_the_last_word_of_either() {
    let mut end = client();
    let events = all(&mut end, &[&reset(Reason::ConnectRefused)]);
    assert_eq!(events, Ok(vec![Event::Reset(Reason::ConnectRefused)]));
    assert_eq!(end.sent(Kind::Data), Err(Violation::Over));
    assert_eq!(all(&mut end, &[&fin()]), Err(Violation::Over));

    let mut end = client();
    end.sent(Kind::Reset).unwrap();
    assert_eq!(end.sent(Kind::Fin), Err(Violation::Over));
    // What the peer sends until it sees that is neither heard nor a fault.
    assert_eq!(all(&mut end, &[&fin(), &[9; 9]]), Ok(vec![]));
    assert!(end.is_over() && !end.is_reusable());
}

#[test]
fn an_unknown_reason_is_other() {
    for code in [15, 16, 255] {
        let events = all(&mut client(), &[&[4, 0, 0, 1, code]]);
        assert_eq!(events, Ok(vec![Event::Reset(Reason::Other)]));
    }
}

#[test]
fn a_reset_that_crossed_the_fins_is_no_violation() {
    for (mut end, role) in [(client(), Role::Client), (server(), Role::Server)] {
        all(&mut end, &[&fin()]).unwrap();
        end.sent(Kind::Fin).unwrap();
        assert!(end.is_reusable(), "{role:?}");
        let events = all(&mut end, &[&reset(Reason::PeerReset)]);
        assert_eq!(events, Ok(vec![Event::Reset(Reason::PeerReset)]));
        assert!(!end.is_reusable(), "{role:?}");
    }
}

#[test]
fn after_the_peers_fin_our_direction_goes_on() {
    let mut end = server();
    all(&mut end, &[&fin()]).unwrap();
    assert_eq!((end.receiving(), end.sending()), (Direction::Finished, Direction::Open));
    assert!(!end.is_idle());
    end.sent(Kind::Data).unwrap();
    let aborted = all(&mut end.clone(), &[&reset(Reason::PeerReset)]);
    assert_eq!(aborted, Ok(vec![Event::Reset(Reason::PeerReset)]));
    end.sent(Kind::Fin).unwrap();
    assert_eq!(end.sent(Kind::Data), Err(Violation::NoStream(Kind::Data)));
    assert!(end.is_idle() && end.is_reusable());
}

#[test]
fn one_open_may_cross_a_goaway_and_no_more() {
    let mut end = End::new(Role::Server);
    end.sent(Kind::GoAway).unwrap();
    assert!(end.may_be_opened() && !end.is_reusable());
    all(&mut end, &[&open(), &fin()]).unwrap();
    end.sent(Kind::Fin).unwrap();
    // A second GOAWAY says nothing new.
    end.sent(Kind::GoAway).unwrap();
    assert!(!end.may_be_opened());
    assert_eq!(all(&mut end, &[&open()]), Err(Violation::AfterGoAway));
}

#[test]
fn no_open_can_cross_a_goaway_that_comes_before_the_servers_fin() {
    let mut end = server();
    end.sent(Kind::GoAway).unwrap();
    end.sent(Kind::Fin).unwrap();
    all(&mut end, &[&fin()]).unwrap();
    assert!(!end.may_be_opened());
    assert_eq!(all(&mut end, &[&open()]), Err(Violation::AfterGoAway));
}

#[test]
fn a_client_that_was_told_to_go_ends_its_stream_and_begins_none() {
    let mut end = client();
    assert_eq!(all(&mut end, &[&goaway(), &goaway()]), Ok(vec![Event::GoAway; 2]));
    end.sent(Kind::Data).unwrap();
    end.sent(Kind::Fin).unwrap();
    all(&mut end, &[&[2, 0, 0, 1, 0], &fin()]).unwrap();
    assert!(end.is_idle() && !end.is_reusable());
    assert_eq!(end.sent(Kind::Open), Err(Violation::AfterGoAway));
}

#[test]
fn a_raw_direction_is_bytes_until_close_notify() {
    let mut end = server();
    assert_eq!(
        all(&mut end, &[&raw(), &fin(), &[9]]),
        Ok(vec![Event::Raw, Event::Data(4..9)]),
        "what looks like a frame is none"
    );
    assert_eq!(end.receiving(), Direction::Raw);
    end.sent(Kind::Data).unwrap();
    end.sent(Kind::Fin).unwrap();
    assert!(!end.is_idle());
    assert_eq!(end.closed(), Closed::EndOfStream);
    assert!(end.is_idle() && !end.is_reusable() && !end.may_be_opened());
    assert_eq!(end.sent_close(), Ok(()));
}

#[test]
fn what_is_sent_raw_is_no_frame() {
    let mut end = client();
    end.sent(Kind::Raw).unwrap();
    for kind in Kind::ALL {
        assert_eq!(end.sent(*kind), Err(Violation::AfterRaw(*kind)));
    }
    end.sent_close().unwrap();
    assert_eq!(end.sent(Kind::Fin), Err(Violation::AfterClose(Kind::Fin)));
    all(&mut end, &[&fin()]).unwrap();
    assert!(end.is_idle() && !end.is_reusable());
    assert_eq!(end.closed(), Closed::Clean);
}

#[test]
fn close_notify_is_clean_when_idle_and_a_truncation_in_a_stream() {
    assert_eq!(End::new(Role::Client).closed(), Closed::Clean);
    assert_eq!(client().closed(), Closed::Truncated);
    assert_eq!(client().sent_close(), Err(Violation::EarlyClose));
    let mut end = server();
    all(&mut end, &[&fin()]).unwrap();
    assert_eq!(end.clone().closed(), Closed::Truncated, "our direction lost its reader");
    end.sent(Kind::Fin).unwrap();
    assert_eq!(end.closed(), Closed::Clean);
    for partial in [&open()[..1], &open()[..4], &open()[..9]] {
        let mut end = End::new(Role::Server);
        all(&mut end, &[partial]).unwrap();
        assert!(!end.is_reusable());
        assert_eq!(end.closed(), Closed::Truncated);
    }
}

#[test]
fn a_client_opens_nothing_on_a_closed_tunnel() {
    let mut end = End::new(Role::Client);
    end.closed();
    assert_eq!(end.sent(Kind::Open), Err(Violation::AfterClose(Kind::Open)));
    let mut end = End::new(Role::Client);
    end.sent_close().unwrap();
    assert_eq!(end.sent(Kind::Open), Err(Violation::AfterClose(Kind::Open)));
    assert!(!end.is_reusable());
}

#[test]
fn an_open_that_comes_after_our_close_is_not_served() {
    for before in [0, 1, 4, 9] {
        let frame = open();
        let mut end = End::new(Role::Server);
        all(&mut end, &[&frame[..before]]).unwrap();
        end.sent_close().unwrap();
        let result = all(&mut end, &[&frame[before..]]);
        assert_eq!(result, Err(Violation::AfterClose(Kind::Open)), "{before} bytes before");
    }
}
