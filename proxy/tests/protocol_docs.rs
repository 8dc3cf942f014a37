//! What `docs/protocol.md` says of frames, states and limits is what the code does.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../../certs/tests/common/tables.rs"]
mod tables;

use std::net::SocketAddr;

use pillion_proxy::tunnel::{
    ALPN, Direction, End, Event, GOAWAY_GRACE, HEADER_LEN, Kind, Limits, MAX_DATA, MAX_RECORD,
    Reason, Role, SERVER_IDLE, Violation, fin, goaway, header, open, raw, reset,
};
use tables::{documented, plain, read, same};

const PAGE: &str = "docs/protocol.md";

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(plain).to_vec()
}

fn address() -> SocketAddr {
    "192.0.2.1:8080".parse().unwrap()
}

#[test]
fn every_constant_has_its_value() {
    let limits = Limits::default();
    let (least, most) = limits.retirement.clone().into_inner();
    let ours = [
        ("ALPN", String::from_utf8(ALPN.to_vec()).unwrap()),
        ("Header", format!("{HEADER_LEN} bytes")),
        ("Longest payload of DATA", format!("{MAX_DATA} bytes")),
        ("Plaintext of one TLS record", format!("{MAX_RECORD} bytes")),
        ("Idle at the client, at most", format!("{} s", limits.idle.as_secs())),
        ("Idle at the server, at most", format!("{} s", SERVER_IDLE.as_secs())),
        ("Wait for the client after GOAWAY", format!("{} s", GOAWAY_GRACE.as_secs())),
        ("Age of a tunnel that is given a stream, below", format!("{} s", limits.age.as_secs())),
        ("Streams of one tunnel, at most", limits.uses.to_string()),
        ("Streams before a tunnel retires", format!("{least} to {most}")),
        ("Idle tunnels of one worker, at most", limits.tunnels.to_string()),
    ];
    same(&documented(PAGE, "constants", 2), &ours.map(|(what, value)| row([what, &value])));
}

/// The payload lengths that a receiver takes for `kind`, as the page writes them.
fn lengths(kind: Kind) -> String {
    let taken = |length: &usize| {
        let [.., a, b, c] = length.to_be_bytes();
        let result = End::new(Role::Server).receive(&[kind.code(), a, b, c]);
        !matches!(result, Err(Violation::BadLength { .. }))
    };
    let mut taken = (0..1 << 17).filter(taken);
    let (first, rest) = (taken.next().unwrap(), taken.collect::<Vec<_>>());
    match (rest.len(), rest.last()) {
        (0, _) => first.to_string(),
        (1, Some(last)) => format!("{first} or {last}"),
        (n, Some(last)) => {
            assert_eq!(first + n, *last, "{kind}: a gap");
            format!("{first} to {last}")
        }
        (_, None) => unreachable!(),
    }
}

/// Who may send `kind`: a wrong role is refused as such.
fn senders(kind: Kind) -> &'static str {
    let may = |role| End::new(role).sent(kind) != Err(Violation::WrongRole(kind));
    match (may(Role::Client), may(Role::Server)) {
        (true, true) => "both",
        (true, false) => "client",
        (false, true) => "server",
        (false, false) => "nobody",
    }
}

#[test]
fn every_frame_is_documented_with_its_payload_and_sender() {
    let ours: Vec<_> = Kind::ALL
        .iter()
        .map(|kind| {
            let code = kind.code().to_string();
            row([&code, kind.label(), &lengths(*kind), senders(*kind), kind.meaning()])
        })
        .collect();
    same(&documented(PAGE, "frames", 5), &ours);
}

#[test]
fn every_reason_is_documented_with_its_meaning() {
    let ours: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| row([&reason.code().to_string(), reason.label(), reason.meaning()]))
        .collect();
    same(&documented(PAGE, "reset-reasons", 3), &ours);
}

fn bytes(kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Open => open(address()).to_vec(),
        Kind::Data => [&header(Kind::Data, 1)[..], &[0]].concat(),
        Kind::Fin => fin().to_vec(),
        Kind::Reset => reset(Reason::Other).to_vec(),
        Kind::GoAway => goaway().to_vec(),
        Kind::Raw => raw().to_vec(),
    }
}

fn opened(role: Role) -> End {
    let mut end = End::new(role);
    match role {
        Role::Client => end.sent(Kind::Open).unwrap(),
        Role::Server => drop(end.receive(&bytes(Kind::Open)).unwrap()),
    }
    end
}

const STATES: [&str; 5] = ["new", "idle", "open", "receiving", "sending"];

fn in_state(role: Role, state: &str) -> End {
    let mut end = opened(role);
    match state {
        "new" => return End::new(role),
        "open" => {}
        "receiving" => end.sent(Kind::Fin).unwrap(),
        "sending" => drop(end.receive(&bytes(Kind::Fin)).unwrap()),
        "idle" => {
            end.sent(Kind::Fin).unwrap();
            end.receive(&bytes(Kind::Fin)).unwrap();
        }
        _ => panic!("{state}"),
    }
    end
}

fn state(end: &End, before: &str) -> &'static str {
    match (end.receiving(), end.sending()) {
        _ if end.is_over() => "over",
        (Direction::Raw, _) | (_, Direction::Raw) => "raw",
        (Direction::Open, Direction::Open) => "open",
        (Direction::Open, _) => "receiving",
        (_, Direction::Open) => "sending",
        _ if before == "new" => "new",
        _ => "idle",
    }
}

/// A table of states: what `apply` makes of each, for the roles that `may` do it.
fn table(
    may: impl Fn(Role, Kind) -> bool,
    apply: impl Fn(&mut End, Kind) -> bool,
) -> Vec<Vec<String>> {
    let cell = |before: &str, kind: Kind| {
        let roles = [Role::Client, Role::Server].into_iter().filter(|role| may(*role, kind));
        let results = roles.map(|role| {
            let mut end = in_state(role, before);
            if apply(&mut end, kind) { state(&end, before) } else { "-" }
        });
        let results: Vec<_> = results.collect();
        assert!(results.iter().all(|r| *r == results[0]), "{before} {kind}: {results:?}");
        results[0].to_owned()
    };
    let row = |before: &&str| {
        let cells = Kind::ALL.iter().map(|kind| cell(before, *kind));
        std::iter::once((*before).to_owned()).chain(cells).collect()
    };
    STATES.iter().map(row).collect()
}

fn may_send(role: Role, kind: Kind) -> bool {
    match kind {
        Kind::Open => role == Role::Client,
        Kind::GoAway => role == Role::Server,
        _ => true,
    }
}

#[test]
fn every_state_may_send_what_the_page_says() {
    let ours = table(may_send, |end, kind| end.sent(kind).is_ok());
    same(&documented(PAGE, "sent", 7), &ours);
}

#[test]
fn every_state_may_receive_what_the_page_says() {
    let ours = table(
        |role, kind| !matches!(kind, Kind::Open | Kind::GoAway) || !may_send(role, kind),
        |end, kind| end.receive(&bytes(kind)).is_ok(),
    );
    same(&documented(PAGE, "received", 7), &ours);
}

#[test]
fn the_example_is_what_two_ends_say() {
    let text = read(PAGE);
    let example = text.split("<!-- example -->").nth(1).unwrap();
    let example = example.split("<!-- /example -->").next().unwrap();
    let mut ends = [End::new(Role::Client), End::new(Role::Server)];
    let mut said = Vec::new();
    for line in example.lines().filter(|line| line.contains("  ")) {
        let (who, rest) = line.split_once("  ").unwrap();
        let (hex, meaning) = rest.split_once("  ").unwrap();
        let frame: Vec<u8> =
            hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let from = usize::from(who == "server");
        ends[from].sent(Kind::from_code(frame[0]).unwrap()).unwrap();
        let step = ends[1 - from].receive(&frame).unwrap();
        assert_eq!(step.consumed, frame.len());
        let ours = match step.event.unwrap() {
            Event::Open(client) => format!("OPEN {client}"),
            Event::Data(range) => format!("DATA {}", str::from_utf8(&frame[range]).unwrap()),
            Event::Fin => "FIN".to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(meaning.trim(), ours);
        said.push(who.to_owned());
    }
    assert_eq!(said, ["client", "client", "client", "server", "server"]);
    assert!(ends.iter().all(End::is_reusable));
}
