//! mtls destinations that meet: there the order of the file says who may answer.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::super::OutboundAction;
use super::super::diagnostic::{Kind, Sink};
use super::super::model::Destination;
use super::{Lint, entry_of};

/// Of each destination that meets an earlier one, the first such.
type Meeting = BTreeMap<u32, u32>;

impl Lint<'_> {
    /// Whether both say alike who may answer.
    pub(super) fn same_servers(&self, one: u32, other: u32) -> bool {
        let servers = |number: u32| {
            let list = self.policy.destinations();
            usize::try_from(number).ok().and_then(|n| list.get(n)).map(|d| d.server_identities())
        };
        servers(one) == servers(other)
    }

    pub(super) fn overlaps(&self, sink: &mut Sink<'_>) {
        let mut meeting = Meeting::new();
        // Out of steps, the rest is taken for good.
        let _ = self.meeting_by_host(&mut meeting);
        let _ = self.meeting_by_address(&mut meeting);
        for (later, first) in meeting {
            let (Some(one), Some(before)) = (self.destination(later), self.destination(first))
            else {
                continue;
            };
            let message = format!(
                "destination \"{}\" meets \"{}\" before it, which has other serverIdentities: an \
                 address in both takes the serverIdentities of the first; leave the address out of \
                 one of them, or give both the same",
                one.name, before.name
            );
            sink.add(Kind::MtlsOverlap, one.pos, message);
        }
    }

    fn destination(&self, number: u32) -> Option<&Destination> {
        self.file.outbound.destinations.get(usize::try_from(number).ok()?)
    }

    fn mtls(&self) -> impl Iterator<Item = (u32, &Destination)> {
        let all = (0..).zip(&self.file.outbound.destinations);
        all.filter(|(_, one)| one.action == OutboundAction::Mtls)
    }

    /// Which addresses two names share isn't known here, but one name in both lists is.
    fn meeting_by_host(&self, meeting: &mut Meeting) -> Option<()> {
        let mut by_host: HashMap<&str, Vec<u32>> = HashMap::new();
        for (number, one) in self.mtls() {
            for host in &one.hosts {
                let earlier = by_host.entry(host).or_default();
                for other in earlier.iter() {
                    self.note(*other, number, meeting)?;
                }
                earlier.push(number);
            }
        }
        Some(())
    }

    fn meeting_by_address(&self, meeting: &mut Meeting) -> Option<()> {
        let mut ranges: Vec<(IpAddr, IpAddr, u32)> = Vec::new();
        for (number, one) in self.mtls() {
            let set = entry_of(self.policy, one.action, number).and_then(|e| e.addresses.as_ref());
            let of_set = set.into_iter().flat_map(|set| set.ranges());
            ranges.extend(of_set.map(|(first, last)| (first, last, number)));
        }
        ranges.sort_unstable();
        // Those that reach the address at hand. Every IPv4 address comes before the IPv6 ones.
        let mut open: Vec<(IpAddr, u32)> = Vec::new();
        for (first, last, number) in ranges {
            open.retain(|(end, _)| *end >= first);
            for (_, other) in &open {
                self.note(*other, number, meeting)?;
            }
            open.push((last, number));
        }
        Some(())
    }

    /// Notes two that share an address, if that is a question of order. A narrower one before the
    /// wider says what it means, and after it, it can't be reached.
    fn note(&self, one: u32, other: u32, meeting: &mut Meeting) -> Option<()> {
        self.work.spend(1).then_some(())?;
        let (first, later) = (one.min(other), one.max(other));
        if first == later || meeting.get(&later).is_some_and(|known| *known <= first) {
            return Some(());
        }
        let (before, after) = (self.destination(first)?, self.destination(later)?);
        let pair = [(first, before), (later, after)];
        let [first_one, later_one] = pair;
        if self.share_a_port(before, after)
            && !self.same_servers(first, later)
            && !self.covers_match(first_one, later_one)
            && !self.covers_match(later_one, first_one)
        {
            meeting.insert(later, first);
        }
        Some(())
    }

    fn share_a_port(&self, one: &Destination, other: &Destination) -> bool {
        let (Some(one), Some(other)) = (&one.ports, &other.ports) else { return true };
        self.work.spend(one.len()) && one.iter().any(|port| other.binary_search(port).is_ok())
    }
}
