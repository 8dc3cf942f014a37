//! The clients of one server: so many at once, and nobody's at the cost of others.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

/// Clients served at once, a listener, of those that have asked for nothing yet.
pub(super) const MAX_IDLE: usize = 32;
/// Those that wait for an answer besides. They cost little but a descriptor: whoever asks for the
/// same probe waits for the same run.
pub const MAX_WAITING: usize = 256;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing that was asked is to be answered.
    Idle,
    /// It waits for an answer.
    Waiting,
    /// Its connection has ended.
    Gone,
}

/// The clients that are served, the oldest first.
#[derive(Debug)]
pub(super) struct Clients<C>(VecDeque<(IpAddr, C)>);

impl<C> Default for Clients<C> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<C> Clients<C> {
    /// Takes a client in, and gives back who has to go for it: idle clients must not keep the
    /// kubelet waiting, and whoever opens many connections must not end the kubelet's, which may
    /// wait for a probe of the app.
    pub(super) fn take_in(
        &mut self,
        from: IpAddr,
        client: C,
        doing: impl Fn(&C) -> Doing,
    ) -> Option<C> {
        self.0.retain(|(_, client)| doing(client) != Doing::Gone);
        let (mut waiting, mut idle) = (Vec::new(), Vec::new());
        for (at, (from, client)) in self.0.iter().enumerate() {
            let alike = if doing(client) == Doing::Waiting { &mut waiting } else { &mut idle };
            alike.push((at, *from));
        }
        let ended = if waiting.len() >= MAX_WAITING {
            most_of_one(&waiting)
        } else if idle.len() >= MAX_IDLE {
            most_of_one(&idle)
        } else {
            None
        };
        let ended = ended.and_then(|at| self.0.remove(at)).map(|(_, client)| client);
        self.0.push_back((from, client));
        ended
    }
}

/// The oldest of the address that has the most, within the network that has the most; of several
/// such, of all of them.
fn most_of_one(clients: &[(usize, IpAddr)]) -> Option<usize> {
    let networks = counted(clients.iter().map(|(_, from)| network(*from)));
    let addresses = counted(clients.iter().map(|(_, from)| *from));
    let rank = |from: IpAddr| (networks.get(&network(from)), addresses.get(&from));
    let most = clients.iter().map(|(_, from)| rank(*from)).max()?;
    clients.iter().find(|(_, from)| rank(*from) == most).map(|(at, _)| *at)
}

fn counted(items: impl Iterator<Item = IpAddr>) -> HashMap<IpAddr, usize> {
    let mut counts = HashMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts
}

/// A machine may have all addresses of an IPv6 /64 (RFC 4291, 2.5.4).
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: usize) -> IpAddr {
        [10, 0, 0, u8::try_from(last).unwrap()].into()
    }

    fn idle(_: &usize) -> Doing {
        Doing::Idle
    }

    #[test]
    fn a_flood_ends_its_own_connections_alone() {
        let mut clients = Clients::default();
        assert_eq!(clients.take_in(ip(1), 1000, idle), None);
        let ended: Vec<_> = (0..500).filter_map(|n| clients.take_in(ip(2), n, idle)).collect();
        assert_eq!(ended, (0..500 - (MAX_IDLE - 1)).collect::<Vec<_>>(), "the oldest first");
        assert_eq!(clients.take_in(ip(1), 1001, idle), Some(ended.len()), "another's goes");
    }

    #[test]
    fn of_many_with_one_each_the_oldest_goes() {
        let mut clients = Clients::default();
        for n in 0..MAX_IDLE {
            assert_eq!(clients.take_in(ip(n), n, idle), None);
        }
        assert_eq!(clients.take_in(ip(200), 200, idle), Some(0));
    }

    #[test]
    fn who_has_gone_makes_room() {
        let mut clients = Clients::default();
        for n in 0..MAX_IDLE {
            clients.take_in(ip(1), n, idle);
        }
        let seventh_gone = |n: &usize| if *n == 7 { Doing::Gone } else { Doing::Idle };
        assert_eq!(clients.take_in(ip(2), 99, seventh_gone), None);
    }

    /// The kubelet waits with four probes, and others with one or three each from ever so many
    /// addresses.
    #[test]
    fn who_waits_for_an_answer_is_not_ended_by_who_does_not() {
        const KUBELET: usize = 4;
        let doing = |n: &usize| if *n < KUBELET { Doing::Waiting } else { Doing::Idle };
        let mut clients = Clients::default();
        for n in 0..KUBELET {
            assert_eq!(clients.take_in(ip(1), n, doing), None);
        }
        for n in KUBELET..1000 {
            let ended = clients.take_in(ip(2 + n % 200), n, doing);
            assert!(ended.is_none_or(|ended| ended >= KUBELET), "{ended:?}");
        }
        assert_eq!(clients.0.len(), KUBELET + MAX_IDLE);
    }

    #[test]
    fn of_too_many_that_wait_those_of_one_network_go() {
        let in_network =
            |n: usize| -> IpAddr { Ipv6Addr::from_bits((0xfd00 << 112) | n as u128).into() };
        let mut clients = Clients::default();
        clients.take_in("fd01::1".parse().unwrap(), 5000, |_| Doing::Waiting);
        for n in 0..1000 {
            let ended = clients.take_in(in_network(n), n, |_| Doing::Waiting);
            assert_eq!(ended, n.checked_sub(MAX_WAITING - 1), "the oldest of the many");
        }
    }
}
