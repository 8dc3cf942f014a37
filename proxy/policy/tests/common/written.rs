//! A policy file as a person wrote it, and its text.

use std::fmt::Write;

/// One `ipBlocks` item: the CIDR's text, and that of its exceptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub cidr: String,
    pub except: Vec<String>,
}

/// One `from` entry; `any: true` has neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub blocks: Option<Vec<Block>>,
    pub identities: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub name: String,
    pub deny: bool,
    pub audit: bool,
    pub ports: Option<Vec<u16>>,
    pub from: Vec<Entry>,
}

/// The strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Deny,
    Mtls,
    Passthrough,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub name: String,
    pub hosts: Vec<String>,
    pub blocks: Vec<Block>,
    pub ports: Option<Vec<u16>>,
    pub way: Way,
    pub servers: Vec<String>,
    pub reuse: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Strict,
    Permissive,
    Disable,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Whether each list of rules and destinations is one line.
    pub one_line: bool,
    pub audit: bool,
    pub domains: Option<Vec<String>>,
    pub mode: Mode,
    pub modes: Vec<(u16, Mode)>,
    pub loopback: bool,
    pub probes: Vec<(u16, String)>,
    pub allow: bool,
    pub rules: Vec<Rule>,
    pub passthrough: bool,
    pub destinations: Vec<Destination>,
}

impl Mode {
    pub fn word(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
            Self::Disable => "disable",
        }
    }
}

impl Way {
    pub fn word(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Mtls => "mtls",
            Self::Passthrough => "passthrough",
        }
    }
}

fn blocks(blocks: &[Block]) -> String {
    let one = |block: &Block| match &*block.except {
        [] => format!("\"{}\"", block.cidr),
        except => format!("{{cidr: \"{}\", except: {except:?}}}", block.cidr),
    };
    format!("[{}]", blocks.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn ports(ports: Option<&Vec<u16>>) -> String {
    ports.map(|list| format!("ports: {list:?}, ")).unwrap_or_default()
}

impl Rule {
    fn text(&self) -> String {
        let entry = |entry: &Entry| {
            let mut parts = Vec::new();
            parts.extend(entry.blocks.as_ref().map(|b| format!("ipBlocks: {}", blocks(b))));
            parts.extend(entry.identities.as_ref().map(|ids| format!("identities: {ids:?}")));
            if parts.is_empty() {
                parts.push("any: true".to_owned());
            }
            format!("{{{}}}", parts.join(", "))
        };
        format!(
            "{{name: {}, action: {}, mode: {}, {}from: [{}]}}",
            self.name,
            if self.deny { "deny" } else { "allow" },
            if self.audit { "audit" } else { "enforce" },
            ports(self.ports.as_ref()),
            self.from.iter().map(entry).collect::<Vec<_>>().join(", ")
        )
    }
}

impl Destination {
    fn text(&self) -> String {
        let mut out = format!("{{name: {}, {}", self.name, ports(self.ports.as_ref()));
        if !self.hosts.is_empty() {
            write!(out, "hosts: {:?}, ", self.hosts).unwrap();
        }
        if !self.blocks.is_empty() {
            write!(out, "ipBlocks: {}, ", blocks(&self.blocks)).unwrap();
        }
        if self.way == Way::Mtls {
            write!(out, "serverIdentities: {:?}, ", self.servers).unwrap();
            if !self.reuse {
                out.push_str("tunnelReuse: false, ");
            }
        }
        write!(out, "action: {}}}", self.way.word()).unwrap();
        out
    }
}

impl File {
    /// Each rule and destination has a line of its own, or each list is one.
    pub fn text(&self) -> String {
        let list = |items: Vec<String>| match &*items {
            items if items.is_empty() || self.one_line => format!(" [{}]\n", items.join(", ")),
            items => {
                format!("\n{}", items.iter().map(|i| format!("  - {i}\n")).collect::<String>())
            }
        };
        let modes: String = self
            .modes
            .iter()
            .map(|(port, mode)| format!("{port}: {{mtls: {}}}, ", mode.word()))
            .collect();
        let probes: String = self
            .probes
            .iter()
            .map(|(port, path)| format!("{{port: {port}, path: {path}}}, "))
            .collect();
        let domains = self.domains.as_ref().map(|d| format!("trustDomains: {d:?}\n"));
        format!(
            "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n{}{}inbound:\n  \
             mtls: {}\n  defaultAction: {}\n{}{}{}  rules:{}outbound:\n  defaultAction: {}\n  \
             destinations:{}",
            if self.audit { "enforcement: audit\n" } else { "" },
            domains.unwrap_or_default(),
            self.mode.word(),
            if self.allow { "allow" } else { "deny" },
            if self.loopback { "  appAddress: 127.0.0.1\n" } else { "" },
            if modes.is_empty() { String::new() } else { format!("  ports: {{{modes}}}\n") },
            if probes.is_empty() { String::new() } else { format!("  probes: [{probes}]\n") },
            list(self.rules.iter().map(Rule::text).collect()),
            if self.passthrough { "passthrough" } else { "deny" },
            list(self.destinations.iter().map(Destination::text).collect()),
        )
    }
}
