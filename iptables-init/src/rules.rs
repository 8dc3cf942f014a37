//! The rule model: what is captured and what is left alone, with the reason for each rule.
//!
//! Pure: a [`Config`] in, a [`RuleSet`] out. [`crate::render`] writes it down.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::config::{Config, Scope};
use crate::ports::{PortRange, PortSet};

/// The address from which the inbound proxy dials an IPv4 app.
pub const INBOUND_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6; [`crate::address`] adds it to `lo`.
pub const INBOUND_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Metrics and health: never captured, because scrapers and kubelets speak plaintext.
pub const PLAINTEXT_PORTS: [u16; 2] = [15020, 15021];

/// An address family; each has tables, programs and a transaction of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which they are applied.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// True when `net` belongs to it.
    #[must_use]
    pub fn has(self, net: &IpNet) -> bool {
        matches!((self, net), (Family::V4, IpNet::V4(_)) | (Family::V6, IpNet::V6(_)))
    }

    /// The name as people write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// The kernel's tables that rules of ours stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableName {
    /// Where connections are redirected; asked for the first packet of each alone.
    Nat,
    /// Where the packets are that come out of it.
    Filter,
}

impl TableName {
    /// Both, in the order in which they are written.
    pub const ALL: [TableName; 2] = [TableName::Nat, TableName::Filter];

    /// The name in the kernel.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            TableName::Nat => "nat",
            TableName::Filter => "filter",
        }
    }
}

/// The chains that a rule of ours stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// The kernel's hook for what comes from the network. It is never consulted for traffic on
    /// `lo`.
    Prerouting,
    /// The kernel's hook for what this pod dials.
    Output,
    /// Decides about connections from the network, and about hairpins.
    Inbound,
    /// Sends to the inbound listener.
    InRedirect,
    /// Decides about connections that this pod dials.
    Outbound,
    /// Sends to the outbound listener.
    Redirect,
    /// The kernel's hook for the packets that this pod sends.
    Sent,
    /// Refuses connections that should have been redirected and were not.
    Guard,
}

/// What every chain of ours begins with; what has this name and is not in the model is stale.
pub const CHAIN_PREFIX: &str = "PILLION_";

impl Chain {
    /// The kernel's own chains in a table that our jumps stand in, and those that are ours to make,
    /// in the order in which `*-save` prints them.
    #[must_use]
    pub fn of(table: TableName) -> (&'static [Chain], &'static [Chain]) {
        match table {
            TableName::Nat => (
                &[Chain::Prerouting, Chain::Output],
                &[Chain::Inbound, Chain::InRedirect, Chain::Outbound, Chain::Redirect],
            ),
            TableName::Filter => (&[Chain::Sent], &[Chain::Guard]),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn table(self) -> TableName {
        match self {
            Chain::Sent | Chain::Guard => TableName::Filter,
            _ => TableName::Nat,
        }
    }

    /// The name in the kernel.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Chain::Prerouting => "PREROUTING",
            Chain::Output | Chain::Sent => "OUTPUT",
            Chain::Inbound => "PILLION_INBOUND",
            Chain::InRedirect => "PILLION_IN_REDIRECT",
            Chain::Outbound => "PILLION_OUTPUT",
            Chain::Redirect => "PILLION_REDIRECT",
            Chain::Guard => "PILLION_GUARD",
        }
    }
}

/// Whose socket a connection is dialled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// By effective user id.
    User(u32),
    /// By effective group id.
    Group(u32),
}

/// A match that needs a kernel module of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// `-m multiport --dports`: at most 15 slots, see [`PortSet::multiports`].
    DestinationPorts(PortSet),
    /// `-m owner`.
    Owner(Owner),
    /// `-m tcp --tcp-flags FIN,SYN,RST,ACK SYN`: the packet that opens a connection.
    Syn,
}

/// What happens to a connection that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Leaves the chain; from a chain that a hook called, that means: not captured.
    Return,
    /// Goes on in a chain of ours.
    Jump(Chain),
    /// Goes to this port of the pod itself.
    RedirectTo(u16),
    /// Is refused: whoever dials sees a reset.
    Reset,
}

/// One rule: all of its matches hold, then its target. The fields stand in the order in which
/// `*-save` prints them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands.
    pub chain: Chain,
    /// `-s`.
    pub source: Option<IpNet>,
    /// `-d`; with `true`, everything but this range.
    pub destination: Option<(bool, IpNet)>,
    /// `-i`; may end in `+`, a wildcard.
    pub in_interface: Option<String>,
    /// `-o`; may end in `+`, a wildcard.
    pub out_interface: Option<String>,
    /// `-p tcp`. Only TCP is captured: DNS, UDP and QUIC are left alone.
    pub tcp: bool,
    /// A match of a kernel module.
    pub extension: Option<Extension>,
    /// What happens.
    pub target: Target,
}

impl Rule {
    fn new(chain: Chain, target: Target) -> Self {
        Self {
            chain,
            source: None,
            destination: None,
            in_interface: None,
            out_interface: None,
            tcp: false,
            extension: None,
            target,
        }
    }

    fn from(self, source: IpNet) -> Self {
        Self { source: Some(source), ..self }
    }

    fn to(self, destination: IpNet) -> Self {
        Self { destination: Some((false, destination)), ..self }
    }

    fn not_to(self, destination: IpNet) -> Self {
        Self { destination: Some((true, destination)), ..self }
    }

    fn arriving_on(self, interface: &str) -> Self {
        Self { in_interface: Some(interface.to_owned()), ..self }
    }

    fn leaving_on(self, interface: &str) -> Self {
        Self { out_interface: Some(interface.to_owned()), ..self }
    }

    fn tcp(self) -> Self {
        Self { tcp: true, ..self }
    }

    fn owned_by(self, owner: Owner) -> Self {
        Self { extension: Some(Extension::Owner(owner)), ..self }
    }

    fn opening(self) -> Self {
        Self { tcp: true, extension: Some(Extension::Syn), ..self }
    }

    fn ports(self, ports: PortSet) -> Self {
        Self { tcp: true, extension: Some(Extension::DestinationPorts(ports)), ..self }
    }
}

/// All rules of one family, in the canonical order: the jumps from the kernel's hooks, then our
/// chains by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet(Vec<Rule>);

impl RuleSet {
    /// The rules that a configuration asks for.
    #[must_use]
    pub fn new(config: &Config, family: Family) -> Self {
        let mut rules = vec![
            Rule::new(Chain::Prerouting, Target::Jump(Chain::Inbound)).tcp(),
            Rule::new(Chain::Output, Target::Jump(Chain::Outbound)).tcp(),
        ];
        rules.extend(inbound(config, family));
        rules.push(
            Rule::new(Chain::InRedirect, Target::RedirectTo(config.inbound_port.get())).tcp(),
        );
        rules.extend(never_outbound(config, family));
        let captured = Rule::new(Chain::Outbound, Target::Jump(Chain::Redirect)).tcp();
        rules.extend(outbound(config, family, &captured));
        rules
            .push(Rule::new(Chain::Redirect, Target::RedirectTo(config.outbound_port.get())).tcp());
        rules.push(Rule::new(Chain::Sent, Target::Jump(Chain::Guard)).opening());
        rules.extend(guard(config, family));
        Self(rules)
    }

    /// The rules in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }

    /// Those of one table.
    pub fn of(&self, table: TableName) -> impl Iterator<Item = &Rule> {
        self.0.iter().filter(move |rule| rule.chain.table() == table)
    }
}

/// The exclusions come first, and hold for hairpins as well: these enter by the same chain.
fn inbound(config: &Config, family: Family) -> Vec<Rule> {
    let left_alone = || Rule::new(Chain::Inbound, Target::Return);
    let captured = || Rule::new(Chain::Inbound, Target::Jump(Chain::InRedirect));
    let plaintext: PortSet =
        PLAINTEXT_PORTS.into_iter().filter_map(|port| PortRange::new(port, port)).collect();

    let mut rules = Vec::new();
    rules.extend(config.exclude_interfaces.iter().map(|name| left_alone().arriving_on(name)));
    rules.extend(of(family, &config.inbound_exclude_cidrs).map(|net| left_alone().from(net)));
    let excluded = plaintext.with(&config.inbound_exclude_ports);
    rules.extend(excluded.multiports().into_iter().map(|ports| left_alone().ports(ports)));
    match &config.inbound_ports {
        Scope::All => rules.push(captured().tcp()),
        Scope::Only(ports) => {
            rules.extend(ports.multiports().into_iter().map(|ports| captured().ports(ports)));
        }
    }
    rules
}

/// What may never reach the outbound listener: the proxy's own connections, and the app's to
/// itself.
fn never_outbound(config: &Config, family: Family) -> Vec<Rule> {
    let left_alone = || Rule::new(Chain::Outbound, Target::Return);
    let proxy = [Owner::User(config.proxy_uid), Owner::Group(config.proxy_gid)];
    let (sources, loopback) = own_addresses(family);

    let mut rules = Vec::new();
    // The inbound proxy dials the app from this source. Captured again, it would loop.
    rules.extend(sources.into_iter().map(|source| left_alone().from(source).leaving_on("lo")));
    // A hairpin: the app calls its own Service or pod address, and the proxy's outbound leg
    // comes back in over `lo`, which PREROUTING never sees. Through the inbound chain, not
    // straight to the listener, so that the exclusions hold and the inbound policy judges it.
    rules.extend(proxy.map(|owner| {
        Rule::new(Chain::Outbound, Target::Jump(Chain::Inbound))
            .not_to(loopback)
            .leaving_on("lo")
            .tcp()
            .owned_by(owner)
    }));
    // What the proxy dials goes out as it is.
    rules.extend(proxy.map(|owner| left_alone().owned_by(owner)));
    // The app talking to itself.
    rules.push(left_alone().leaving_on("lo"));
    rules.push(left_alone().to(loopback));
    rules
}

/// What the app dials: the exclusions, then all or what the user limits it to, which ends as
/// `captured` says.
fn outbound(config: &Config, family: Family, captured: &Rule) -> Vec<Rule> {
    let left_alone = || Rule::new(captured.chain, Target::Return);

    let mut rules = Vec::new();
    rules.extend(config.exclude_interfaces.iter().map(|name| left_alone().leaving_on(name)));
    rules.extend(of(family, &config.outbound_exclude_cidrs).map(|net| left_alone().to(net)));
    let excluded = config.outbound_exclude_ports.multiports();
    rules.extend(excluded.into_iter().map(|ports| left_alone().ports(ports)));

    let destinations = match &config.outbound_cidrs {
        Scope::All => vec![captured.clone()],
        Scope::Only(nets) => of(family, nets).map(|net| captured.clone().to(net)).collect(),
    };
    // Two limits are one: a connection is captured when both its address and its port are named.
    for rule in destinations {
        match &config.outbound_ports {
            Scope::All => rules.push(rule),
            Scope::Only(ports) => {
                rules.extend(ports.multiports().into_iter().map(|piece| rule.clone().ports(piece)));
            }
        }
    }
    rules
}

/// What the app dials and nat did not redirect, once it is about to leave.
///
/// nat is asked for the first packet of a connection alone, and the kernel's list of connections
/// (conntrack) takes a packet for one of those that it has when addresses and ports are the same.
/// A connection of the proxy's that was reset by its server stays in that list for 10 s, and one
/// that was never answered for 120 s (nf_conntrack-sysctl.rst). When the app gets its port for the
/// same server meanwhile, its connection would go out as the proxy's did: past the proxy.
fn guard(config: &Config, family: Family) -> Vec<Rule> {
    let left_alone = || Rule::new(Chain::Guard, Target::Return);
    // What was redirected has a new destination, and still the old interface.
    let mut rules = vec![left_alone().leaving_on("lo"), left_alone().to(loopback(family))];
    let proxy = [Owner::User(config.proxy_uid), Owner::Group(config.proxy_gid)];
    rules.extend(proxy.map(|owner| left_alone().owned_by(owner)));
    rules.extend(outbound(config, family, &Rule::new(Chain::Guard, Target::Reset).tcp()));
    rules
}

fn of(family: Family, nets: &[IpNet]) -> impl Iterator<Item = IpNet> {
    nets.iter().filter(move |net| family.has(net)).copied()
}

const LOOPBACK_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// The sources from which the proxy dials the app, and the family's loopback range.
fn own_addresses(family: Family) -> (Vec<IpNet>, IpNet) {
    let loopback = loopback(family);
    match family {
        Family::V4 => (vec![host(INBOUND_SOURCE_V4.into())], loopback),
        Family::V6 => (vec![host(INBOUND_SOURCE_V6.into()), loopback], loopback),
    }
}

/// What is the app's own business, and never captured.
///
/// IPv4: all of 127.0.0.0/8, because TCP DNS to Docker's 127.0.0.11 is as well.
pub(crate) fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => LOOPBACK_V4.into(),
        Family::V6 => host(Ipv6Addr::LOCALHOST.into()),
    }
}

fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
