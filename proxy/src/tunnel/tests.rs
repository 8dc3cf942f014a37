//! Two correct ends, and everything that can happen between them.
//!
//! Every state is visited that a client, a server and two FIFO links of at most
//! four items can come to: each step either sends whatever an end's own rules
//! allow, or delivers the next item of a link.

use std::collections::{HashSet, VecDeque};

use super::{
    Closed, Direction, End, Event, Frame, HEADER_LEN, Kind, Reason, Role, fin, goaway, header,
    open, raw, reset,
};

/// What is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    Frame(Kind),
    RawByte,
    Close,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    ends: [End; 2],
    /// To the end of the same index.
    links: [VecDeque<Item>; 2],
}

const ON_A_LINK: usize = 4;

fn bytes(kind: Kind) -> Vec<u8> {
    let small = |frame: Frame| frame.to_vec();
    match kind {
        Kind::Open => small(open("192.0.2.1:80".parse().unwrap())),
        Kind::Data => [&header(Kind::Data, 1)[..], &[0]].concat(),
        Kind::Fin => small(fin()),
        Kind::Reset => small(reset(Reason::PeerReset)),
        Kind::GoAway => small(goaway()),
        Kind::Raw => small(raw()),
    }
}

impl World {
    fn new() -> Self {
        Self { ends: [Role::Client, Role::Server].map(End::new), links: Default::default() }
    }

    /// Sends an item, if the sender's rules let it.
    fn send(&self, from: usize, item: Item) -> Option<Self> {
        let mut next = self.clone();
        let end = &mut next.ends[from];
        match item {
            Item::Frame(kind) => end.sent(kind).ok()?,
            Item::RawByte => (end.sending() == Direction::Raw).then_some(())?,
            // A server may lose a stream by closing a tunnel that the client may open.
            Item::Close if end.may_be_opened() => return None,
            Item::Close if end.sending() == Direction::Closed => return None,
            Item::Close => end.sent_close().ok()?,
        }
        next.links[1 - from].push_back(item);
        Some(next)
    }

    /// Delivers the next item, and fails if a correct peer is found at fault.
    fn deliver(&self, to: usize) -> Option<Self> {
        let mut next = self.clone();
        let item = next.links[to].pop_front()?;
        let end = &mut next.ends[to];
        if end.is_over() {
            // It has ended the TCP connection, and hears nothing.
            return Some(next);
        }
        match item {
            Item::Frame(kind) => {
                let bytes = bytes(kind);
                let step = end.receive(&bytes).unwrap_or_else(|e| panic!("{e}: {item:?} {self:?}"));
                assert_eq!(step.consumed, bytes.len());
                let event = step.event.unwrap();
                let expected = match kind {
                    Kind::Open => matches!(event, Event::Open(_)),
                    Kind::Data => event == Event::Data(HEADER_LEN..HEADER_LEN + 1),
                    Kind::Fin => event == Event::Fin,
                    Kind::Reset => event == Event::Reset(Reason::PeerReset),
                    Kind::GoAway => event == Event::GoAway,
                    Kind::Raw => event == Event::Raw,
                };
                assert!(expected, "{item:?} became {event:?}: {self:?}");
            }
            Item::RawByte => {
                let step = end.receive(&[0]).unwrap();
                assert_eq!(step.event, Some(Event::Data(0..1)), "{self:?}");
            }
            Item::Close => assert_ne!(end.closed(), Closed::Truncated, "{self:?}"),
        }
        // RST: what a peer sends after its RESET has been read is not even received.
        if item == Item::Frame(Kind::Reset) {
            next.links[to].clear();
        }
        Some(next)
    }

    fn steps(&self) -> Vec<Self> {
        let frames = Kind::ALL.iter().map(|kind| Item::Frame(*kind));
        let items: Vec<_> = frames.chain([Item::RawByte, Item::Close]).collect();
        let mut next = Vec::new();
        for end in 0..2 {
            next.extend(self.deliver(end));
            if self.links[1 - end].len() < ON_A_LINK {
                next.extend(items.iter().filter_map(|item| self.send(end, *item)));
            }
        }
        next
    }

    /// Both apps end their streams and everything arrives.
    fn finish(mut self) -> Self {
        loop {
            let mut moved = false;
            for end in 0..2 {
                while let Some(next) = self.deliver(end) {
                    (self, moved) = (next, true);
                }
                let last = match self.ends[end].sending() {
                    Direction::Open => Item::Frame(Kind::Fin),
                    Direction::Raw => Item::Close,
                    Direction::Finished | Direction::Closed => continue,
                };
                if let Some(next) = self.send(end, last) {
                    (self, moved) = (next, true);
                }
            }
            if !moved {
                return self;
            }
        }
    }
}

/// Every state that can be come to.
fn reachable() -> HashSet<World> {
    let mut seen = HashSet::from([World::new()]);
    let mut queue = VecDeque::from([World::new()]);
    while let Some(world) = queue.pop_front() {
        for next in world.steps() {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    seen
}

#[test]
fn correct_ends_never_find_fault_and_always_come_to_rest() {
    let worlds = reachable();
    println!("{} states", worlds.len());
    // A check that visits nothing finds nothing.
    assert!(worlds.len() > 5_000, "{}", worlds.len());
    for world in &worlds {
        let [client, server] = world.clone().finish().ends;
        if client.is_over() || server.is_over() {
            assert!(client.is_over() && server.is_over(), "one end does not know: {world:?}");
            assert!(!client.is_reusable() && !server.is_reusable(), "{world:?}");
            continue;
        }
        assert!(client.is_idle() && server.is_idle(), "{world:?}");
        assert_eq!(client.is_reusable(), server.is_reusable(), "{world:?}");
        // What the client may open, the server takes.
        assert!(!client.is_reusable() || server.may_be_opened(), "{world:?}");
    }
}
