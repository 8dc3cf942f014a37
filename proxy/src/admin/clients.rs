//! The clients of one server: so many at once, and nobody's at the cost of others.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Clients served at once, a listener.
pub(super) const MAX_CLIENTS: usize = 32;

/// The clients that are served, the oldest first.
#[derive(Debug)]
pub(super) struct Clients<C>(VecDeque<(IpAddr, C)>);

impl<C> Default for Clients<C> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<C> Clients<C> {
    /// Takes a client in, and gives back who has to go for it. It is the oldest of the address that
    /// has the most: idle clients must not keep the kubelet waiting, and whoever opens many
    /// connections must not end the kubelet's, which may wait for a probe of the app.
    pub(super) fn take_in(
        &mut self,
        from: IpAddr,
        client: C,
        has_gone: impl Fn(&C) -> bool,
    ) -> Option<C> {
        self.0.retain(|(_, client)| !has_gone(client));
        let ended = if self.0.len() < MAX_CLIENTS { None } else { self.most_of_one() };
        let ended = ended.and_then(|at| self.0.remove(at)).map(|(_, client)| client);
        self.0.push_back((from, client));
        ended
    }

    /// Where the oldest is of the address that has the most; of several such, of all of them.
    fn most_of_one(&self) -> Option<usize> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (from, _) in &self.0 {
            *counts.entry(*from).or_default() += 1;
        }
        let most = counts.values().max()?;
        self.0.iter().position(|(from, _)| counts.get(from) == Some(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: usize) -> IpAddr {
        [10, 0, 0, u8::try_from(last).unwrap()].into()
    }

    #[test]
    fn a_flood_ends_its_own_connections_alone() {
        let mut clients = Clients::default();
        assert_eq!(clients.take_in(ip(1), 1000, |_| false), None);
        let ended: Vec<_> = (0..500).filter_map(|n| clients.take_in(ip(2), n, |_| false)).collect();
        assert_eq!(ended, (0..500 - (MAX_CLIENTS - 1)).collect::<Vec<_>>(), "the oldest first");
        assert_eq!(clients.take_in(ip(1), 1001, |_| false), Some(ended.len()), "another's goes");
    }

    #[test]
    fn of_many_with_one_each_the_oldest_goes() {
        let mut clients = Clients::default();
        for n in 0..MAX_CLIENTS {
            assert_eq!(clients.take_in(ip(n), n, |_| false), None);
        }
        assert_eq!(clients.take_in(ip(200), 200, |_| false), Some(0));
    }

    #[test]
    fn who_has_gone_makes_room() {
        let mut clients = Clients::default();
        for n in 0..MAX_CLIENTS {
            clients.take_in(ip(1), n, |_| false);
        }
        assert_eq!(clients.take_in(ip(2), 99, |n| *n == 7), None);
    }
}
