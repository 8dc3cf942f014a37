//! The file as it was written: read and checked item by item, not yet compiled.

use std::collections::BTreeMap;
use std::sync::Arc;

use pillion_certs::spiffe::TrustDomain;

use super::cidr::Block;
use super::identity::IdentitySet;
use super::reader::Section;
use super::yaml::Pos;
use super::{Action, AppAddress, Enforcement, Mode, OutboundAction};

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) pos: Pos,
    pub(super) value: T,
}

/// Parts that couldn't be read are left out; the errors tell.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) enforcement: Enforcement,
    /// `None`: our own domain.
    pub(super) trust_domains: Option<Vec<TrustDomain>>,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
}

#[derive(Debug, Default)]
pub(super) struct Inbound {
    pub(super) mtls: Option<At<Mode>>,
    pub(super) ports: BTreeMap<u16, At<Mode>>,
    pub(super) app_address: AppAddress,
    pub(super) probes: Vec<(u16, Box<str>)>,
    pub(super) default: Option<Action>,
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug, Default)]
pub(super) struct Outbound {
    pub(super) default: Option<Action>,
    pub(super) destinations: Vec<Destination>,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) pos: Pos,
    pub(super) name: Arc<str>,
    pub(super) action: Action,
    pub(super) mode: Enforcement,
    /// Sorted, without duplicates.
    pub(super) ports: Option<Arc<[u16]>>,
    /// The first port of the list as it was written, for an error about it.
    pub(super) ports_pos: Pos,
    pub(super) from: Box<[From]>,
}

/// `any: true` has neither list.
#[derive(Debug)]
pub(super) struct From {
    pub(super) pos: Pos,
    pub(super) blocks: Option<Box<[Block]>>,
    pub(super) identities: Option<IdentitySet>,
}

#[derive(Debug)]
pub(super) struct Destination {
    pub(super) pos: Pos,
    pub(super) name: Arc<str>,
    pub(super) hosts: Box<[Arc<str>]>,
    pub(super) blocks: Box<[Block]>,
    pub(super) ports: Option<Arc<[u16]>>,
    pub(super) action: OutboundAction,
    pub(super) server_identities: IdentitySet,
    pub(super) tunnel_reuse: bool,
}

impl Inbound {
    /// The mode of a port; `None` only of a file with errors.
    pub(super) fn mode(&self, port: u16) -> Option<Mode> {
        self.ports.get(&port).or(self.mtls.as_ref()).map(|mode| mode.value)
    }

    /// The modes that some port has.
    pub(super) fn modes(&self) -> impl Iterator<Item = Mode> {
        self.ports.values().chain(&self.mtls).map(|mode| mode.value)
    }
}

/// The keys of every mapping in the format: the reader, the JSON Schema and the reference page
/// are held to this one list.
pub(super) static DOCUMENT: Section = Section {
    path: "",
    keys: &[
        ("apiVersion", true),
        ("kind", true),
        ("metadata", true),
        ("enforcement", false),
        ("trustDomains", false),
        ("inbound", true),
        ("outbound", true),
    ],
};
pub(super) static METADATA: Section = Section { path: "metadata", keys: &[("name", true)] };
pub(super) static INBOUND: Section = Section {
    path: "inbound",
    keys: &[
        ("mtls", true),
        ("defaultAction", true),
        ("ports", false),
        ("appAddress", false),
        ("probes", false),
        ("rules", false),
    ],
};
pub(super) static PORT: Section = Section { path: "inbound.ports.<port>", keys: &[("mtls", true)] };
pub(super) static PROBE: Section =
    Section { path: "inbound.probes[]", keys: &[("port", true), ("path", true)] };
pub(super) static RULE: Section = Section {
    path: "inbound.rules[]",
    keys: &[("name", true), ("action", true), ("mode", false), ("ports", false), ("from", true)],
};
pub(super) static FROM: Section = Section {
    path: "inbound.rules[].from[]",
    keys: &[("any", false), ("ipBlocks", false), ("identities", false)],
};
pub(super) static BLOCK: Section =
    Section { path: "ipBlocks[]", keys: &[("cidr", true), ("except", false)] };
pub(super) static OUTBOUND: Section =
    Section { path: "outbound", keys: &[("defaultAction", true), ("destinations", false)] };
pub(super) static DESTINATION: Section = Section {
    path: "outbound.destinations[]",
    keys: &[
        ("name", true),
        ("hosts", false),
        ("ipBlocks", false),
        ("ports", false),
        ("action", true),
        ("serverIdentities", false),
        ("tunnelReuse", false),
    ],
};

pub(super) static SECTIONS: &[&Section] =
    &[&DOCUMENT, &METADATA, &INBOUND, &PORT, &PROBE, &RULE, &FROM, &BLOCK, &OUTBOUND, &DESTINATION];

/// Every key of the format with the path of its mapping, `inbound.rules[].action` for example.
/// The two mappings that hold `ipBlocks` share its item's keys, `ipBlocks[].cidr`.
#[must_use]
pub fn keys() -> Vec<String> {
    let dotted = |section: &Section, key: &str| match section.path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    let all = SECTIONS.iter().flat_map(|s| s.keys.iter().map(move |(key, _)| dotted(s, key)));
    all.collect()
}
