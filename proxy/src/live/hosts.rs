//! What is known of the names that the policy's `hosts` use.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pillion_policy::{HostTable, OutboundAction, Policy};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// How long a connection waits for names to be looked up. A look-up that is asked at once ends
/// before that, with or without an answer.
pub const RESOLVE_WAIT: Duration = Duration::from_millis(2500);

/// What is known of one name's addresses of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Known {
    /// The first look-up has not ended yet.
    #[default]
    Pending,
    /// There was never an answer.
    Unanswered,
    /// The last answer. That there are none is an answer too, an empty set.
    Addresses(HashSet<IpAddr>),
}

impl Known {
    /// The addresses; `None` when there was never an answer.
    pub fn addresses(&self) -> Option<&HashSet<IpAddr>> {
        match self {
            Self::Addresses(addresses) => Some(addresses),
            Self::Pending | Self::Unanswered => None,
        }
    }

    fn has(&self, ip: IpAddr) -> bool {
        self.addresses().is_some_and(|addresses| addresses.contains(&ip))
    }

    fn is_empty_answer(&self) -> bool {
        self.addresses().is_some_and(HashSet::is_empty)
    }
}

/// One name's addresses, as far as nameservers have answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Of A records.
    pub a: Known,
    /// Of AAAA records. An IPv4-mapped one is the IPv4 address that a connection to it goes to.
    pub aaaa: Known,
}

impl Host {
    /// Whether a record of either kind has `ip`, which is never an IPv4-mapped one.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.a.has(ip) || self.aaaa.has(ip)
    }

    /// Whether both questions were answered, and neither answer has an address.
    pub fn has_none(&self) -> bool {
        self.a.is_empty_answer() && self.aaaa.is_empty_answer()
    }

    /// Whether both questions have ended, and no address is known.
    pub fn is_without_address(&self) -> bool {
        let none = |known: &Known| match known {
            Known::Pending => false,
            Known::Unanswered => true,
            Known::Addresses(addresses) => addresses.is_empty(),
        };
        none(&self.a) && none(&self.aaaa)
    }

    fn is_pending(&self, ip: IpAddr) -> bool {
        let known = if ip.is_ipv4() { &self.a } else { &self.aaaa };
        *known == Known::Pending
    }
}

/// Addresses of the names that the policy's `hosts` use.
#[derive(Debug, Default)]
pub struct HostAddresses(pub HashMap<Arc<str>, Host>);

impl HostTable for HostAddresses {
    fn contains(&self, host: &str, ip: IpAddr) -> bool {
        self.0.get(host).is_some_and(|host| host.has(ip))
    }
}

impl HostAddresses {
    /// Whether anything was ever answered for `host`.
    pub fn is_answered(&self, host: &str) -> bool {
        let answered = |known: &Known| known.addresses().is_some();
        self.0.get(host).is_some_and(|host| answered(&host.a) || answered(&host.aaaa))
    }

    /// Whether a destination that lets connections through may yet turn out to have this address
    /// on this port, by a name whose first look-up has not ended.
    pub fn may_yet_allow(&self, policy: &Policy, ip: IpAddr, port: u16) -> bool {
        let pending = |host: &Arc<str>| self.0.get(host).is_none_or(|host| host.is_pending(ip));
        let mut by_name = policy.destinations_by_name(port);
        by_name.any(|one| one.action() != OutboundAction::Deny && one.hosts().iter().any(pending))
    }

    /// For the admin endpoint: of each name the addresses of A and of AAAA records, null where
    /// there was never an answer.
    pub fn to_json(&self) -> Value {
        let of = |host: &Host| json!({"a": host.a.addresses(), "aaaa": host.aaaa.addresses()});
        self.0.iter().map(|(name, host)| (name.to_string(), of(host))).collect()
    }

    /// The names of each address.
    pub fn by_address(&self) -> HashMap<IpAddr, Vec<Arc<str>>> {
        let mut names: HashMap<_, Vec<_>> = HashMap::new();
        for (name, host) in &self.0 {
            let families = [&host.a, &host.aaaa].into_iter().filter_map(Known::addresses);
            let addresses: HashSet<&IpAddr> = families.flatten().collect();
            for address in addresses {
                names.entry(*address).or_default().push(Arc::clone(name));
            }
        }
        names
    }

    /// The names that have the address `ip` now.
    pub fn names_of(&self, ip: IpAddr) -> Vec<Arc<str>> {
        let having = self.0.iter().filter(|(_, host)| host.has(ip));
        having.map(|(name, _)| Arc::clone(name)).collect()
    }
}

/// Addresses as they are now, and the names that an open connection's address had
/// when it was opened: DNS takes an address out of rotation without meaning that
/// connections to it must end, so a changed policy still judges them by their name.
#[derive(Clone, Copy)]
pub struct AsOpened<'a> {
    /// The addresses of now.
    pub now: &'a dyn HostTable,
    /// The names of then.
    pub names: &'a [Arc<str>],
}

impl HostTable for AsOpened<'_> {
    fn contains(&self, host: &str, ip: IpAddr) -> bool {
        self.now.contains(host, ip) || self.names.iter().any(|name| **name == *host)
    }
}

/// A worker asks the control thread to look names up again.
#[derive(Debug)]
pub struct ResolveRequest {
    /// The names.
    pub names: Arc<[Arc<str>]>,
    /// Of which family an address is sought: AAAA records, or A.
    pub ipv6: bool,
    /// Told when the answers are published: the names of which nobody can say whether they have
    /// an address now. There was no answer this time, and the time to live of the one before is
    /// over, or there was none before.
    pub done: oneshot::Sender<Vec<Arc<str>>>,
}

#[cfg(test)]
mod tests {
    use pillion_policy::load;

    use super::*;
    use crate::live::testing::shared;
    use crate::live::{Guard, Registry, Tls};
    use crate::net::{ClientAddr, OriginalDst};
    use crate::telemetry::{CloseReason, Direction};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn answer(addresses: &[&str]) -> Known {
        Known::Addresses(addresses.iter().map(|text| ip(text)).collect())
    }

    #[test]
    fn an_address_is_a_names_by_a_record_of_either_kind() {
        let host = Host { a: answer(&["10.0.0.1"]), aaaa: answer(&["fd00::1", "10.0.0.2"]) };
        for has in ["10.0.0.1", "10.0.0.2", "fd00::1"] {
            assert!(host.has(ip(has)), "{has}");
        }
        assert!(!host.has(ip("10.0.0.3")));
        let hosts = HostAddresses(HashMap::from([(Arc::from("orders.test"), host)]));
        assert_eq!(hosts.names_of(ip("10.0.0.2")), [Arc::from("orders.test")]);
        assert!(hosts.contains("orders.test", ip("10.0.0.2")));
    }

    #[test]
    fn a_name_has_no_address_only_when_both_answers_say_so() {
        let host = |a: &Known, aaaa: &Known| Host { a: a.clone(), aaaa: aaaa.clone() };
        let (none, some) = (answer(&[]), answer(&["10.0.0.1"]));
        let (pending, unanswered) = (Known::Pending, Known::Unanswered);
        for (a, aaaa, says, without) in [
            (&none, &none, true, true),
            (&none, &unanswered, false, true),
            (&unanswered, &unanswered, false, true),
            (&none, &pending, false, false),
            (&pending, &unanswered, false, false),
            (&some, &none, false, false),
            (&none, &some, false, false),
            (&some, &unanswered, false, false),
        ] {
            assert_eq!(host(a, aaaa).has_none(), says, "{a:?} {aaaa:?}");
            assert_eq!(host(a, aaaa).is_without_address(), without, "{a:?} {aaaa:?}");
        }
    }

    /// Connections out to port 80 of 10.0.0.1, and a policy that denies by default and knows one
    /// name.
    fn judged_again(known: Known, name: &str) -> (Option<CloseReason>, Option<CloseReason>) {
        let shared = shared(&[]);
        let text = format!(
            "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n\
             trustDomains: [x]\ninbound: {{mtls: strict, defaultAction: deny}}\n\
             outbound: {{defaultAction: deny, destinations: [{{name: n, hosts: [n.test], {name}}}]}}\n"
        );
        let policy = load("t", &text, None).unwrap_or_else(|e| panic!("{e}\n{text}")).policy;
        shared.published.policy.store(Some(Arc::new(policy)));
        let host = Host { a: known, aaaa: Known::Pending };
        let hosts = HostAddresses(HashMap::from([(Arc::from("n.test"), host)]));
        shared.published.hosts.store(Arc::new(hosts));
        let registry = Registry::new(shared, 0);
        let to = "10.0.0.1:80".parse().unwrap();
        let register = || registry.register(Direction::Outbound, ClientAddr(to));
        let (opening, open) = (register(), register());
        for guard in [&opening, &open] {
            guard.conn.set_destination(OriginalDst(to));
        }
        open.conn.judged(true, &Arc::from("default"), None);
        open.conn.set_tls(Tls::Passthrough);
        registry.rejudge();
        let ended = |guard: &Guard| guard.conn.stop_reason();
        (ended(&opening), ended(&open))
    }

    #[test]
    fn the_default_ends_no_connection_that_a_name_may_yet_allow() {
        let changed = Some(CloseReason::PolicyChanged);
        let (here, elsewhere) = (answer(&["10.0.0.1"]), answer(&["10.0.0.2"]));
        for (known, name, ended) in [
            (Known::Pending, "action: passthrough", None),
            (Known::Pending, "action: passthrough, ports: [80]", None),
            (Known::Pending, "action: passthrough, ports: [81]", changed),
            (Known::Pending, "action: deny", changed),
            (Known::Unanswered, "action: passthrough", changed),
            (elsewhere, "action: passthrough", changed),
            (here, "action: passthrough", None),
        ] {
            let about = format!("{known:?} {name}");
            // What isn't judged yet waits for its name, or is denied by the default in the end.
            assert_eq!(judged_again(known, name), (None, ended), "{about}");
        }
        // But for what a destination denies.
        assert_eq!(judged_again(answer(&["10.0.0.1"]), "action: deny"), (changed, changed));
    }

    /// It is let through by default, and then by a name, which then has another address. One that
    /// is opened meanwhile stays as well.
    #[test]
    fn an_answer_that_leaves_an_address_out_ends_no_connection_that_had_the_name() {
        let shared = shared(&[]);
        let publish = |addresses: &[&str]| {
            let host = Host { a: answer(addresses), aaaa: answer(&[]) };
            let hosts = HostAddresses(HashMap::from([(Arc::from("n.test"), host)]));
            shared.published.hosts.store(Arc::new(hosts));
        };
        let live = |default: &str| {
            let text = format!(
                "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n\
                 trustDomains: [x]\ninbound: {{mtls: strict, defaultAction: deny}}\n\
                 outbound: {{defaultAction: {default}, destinations: \
                 [{{name: n, hosts: [n.test], action: passthrough}}]}}\n"
            );
            let policy = load("t", &text, None).unwrap_or_else(|e| panic!("{e}\n{text}")).policy;
            shared.published.policy.store(Some(Arc::new(policy)));
        };
        let registry = Registry::new(Arc::clone(&shared), 0);
        let to = "10.0.0.1:80".parse().unwrap();
        let open = |names: Vec<Arc<str>>| {
            let guard = registry.register(Direction::Outbound, ClientAddr(to));
            guard.conn.set_destination(OriginalDst(to));
            guard.conn.set_names(names);
            guard.conn.judged(true, &Arc::from("n"), None);
            guard.conn.set_tls(Tls::Passthrough);
            guard
        };
        live("passthrough");
        publish(&["10.0.0.9"]);
        let (before, other) = (open(Vec::new()), open(Vec::new()));
        other.conn.set_destination(OriginalDst("10.0.0.2:80".parse().unwrap()));
        publish(&["10.0.0.1"]);
        registry.rejudge();
        let after = open(vec![Arc::from("n.test")]);
        live("deny");
        registry.rejudge();
        publish(&["10.0.0.3"]);
        registry.rejudge();
        let reasons = [&before, &after, &other].map(|guard| guard.conn.stop_reason());
        assert_eq!(reasons, [None, None, Some(CloseReason::PolicyChanged)]);
    }
}
