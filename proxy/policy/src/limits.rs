//! How much a file may hold. Together with the size of the file, these bound what loading it costs.

use super::diagnostic::{Kind, Sink};
use super::yaml::{Node, Pos};

/// The most rules and destinations of a file.
const MAX_RULES: u32 = 100_000;
/// The most CIDRs of a file, exceptions included.
const MAX_CIDRS: u32 = 100_000;
/// The most identities of a file.
const MAX_IDENTITIES: u32 = 100_000;
/// The most items of all the `ports` lists of rules and destinations.
const MAX_PORTS: u32 = 200_000;
/// The most items of all the `hosts` lists.
const MAX_HOSTS: u32 = 10_000;
/// The most items of `trustDomains`, which each peer is held against.
pub(super) const MAX_TRUST_DOMAINS: u32 = 1_000;
/// The most items of `inbound.probes`, which each probe is held against.
pub(super) const MAX_PROBES: u32 = 1_000;

/// How many of each there are; a count stops one above its limit.
#[derive(Default)]
pub(super) struct Counts {
    rules: u32,
    cidrs: u32,
    ports: u32,
    hosts: u32,
    identities: u32,
}

/// The first error of a limit is noted where it is passed; what comes after isn't read.
fn count(
    counted: &mut u32,
    pos: Option<Pos>,
    more: usize,
    (most, what): (u32, &str),
    sink: &mut Sink<'_>,
) -> Option<()> {
    let sum = u32::try_from(more).unwrap_or(u32::MAX).saturating_add(*counted).min(most + 1);
    if sum > most {
        if *counted <= most {
            too_many(sink, pos?, most, what);
        }
        *counted = sum;
        return None;
    }
    *counted = sum;
    Some(())
}

pub(super) fn too_many(sink: &mut Sink<'_>, pos: Pos, most: impl std::fmt::Display, what: &str) {
    let message = format!("more than {most} {what} in one file; merge or remove some");
    sink.add(Kind::TooMany, pos, message);
}

impl Counts {
    pub(super) fn rules(&mut self, pos: Pos, sink: &mut Sink<'_>) -> Option<()> {
        count(&mut self.rules, Some(pos), 1, (MAX_RULES, "rules and destinations"), sink)
    }

    pub(super) fn cidrs(&mut self, items: &[Node], sink: &mut Sink<'_>) -> Option<()> {
        let limit = (MAX_CIDRS, "CIDRs, exceptions included,");
        count(&mut self.cidrs, first(items), items.len(), limit, sink)
    }

    pub(super) fn identities(&mut self, items: &[Node], sink: &mut Sink<'_>) -> Option<()> {
        let limit = (MAX_IDENTITIES, "identities");
        count(&mut self.identities, first(items), items.len(), limit, sink)
    }

    pub(super) fn ports(&mut self, items: &[Node], sink: &mut Sink<'_>) -> Option<()> {
        let limit = (MAX_PORTS, "ports in the lists of rules and destinations");
        count(&mut self.ports, first(items), items.len(), limit, sink)
    }

    pub(super) fn hosts(&mut self, items: &[Node], sink: &mut Sink<'_>) -> Option<()> {
        count(&mut self.hosts, first(items), items.len(), (MAX_HOSTS, "hosts"), sink)
    }
}

fn first(items: &[Node]) -> Option<Pos> {
    items.first().map(|node| node.pos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Kind;

    #[test]
    fn rules_have_an_end_that_is_told_once() {
        let mut sink = Sink::new("p.yaml", "a: 1\n");
        let mut counts = Counts::default();
        for _ in 0..MAX_RULES {
            assert!(counts.rules(Pos::START, &mut sink).is_some());
        }
        assert!(counts.rules(Pos::START, &mut sink).is_none());
        assert!(counts.rules(Pos::START, &mut sink).is_none());
        let errors = sink.fail();
        let [error] = errors.as_slice() else { panic!("{errors}") };
        assert_eq!(error.kind, Kind::TooMany);
        assert!(error.message.starts_with("more than 100000 rules and destinations"), "{errors}");
    }
}
