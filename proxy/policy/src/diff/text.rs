//! Changes in words.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::space;
use super::{Change, Effect, Identities, Outcome, Ports, Setting, What, Who};

/// How many networks, identities or ports a line names; JSON has them all.
const MOST_NAMED: usize = 8;

fn list(items: impl Iterator<Item = String>, kind: &str) -> String {
    let mut items: Vec<String> = items.collect();
    let more = items.len().saturating_sub(MOST_NAMED);
    items.truncate(MOST_NAMED);
    let named = items.join(", ");
    if more == 0 { named } else { format!("{named} and {more} more {kind} (all with -o json)") }
}

fn any_of(names: &[Arc<str>]) -> String {
    match names {
        [name] => name.to_string(),
        names => format!("one of ({})", list(names.iter().map(ToString::to_string), "names")),
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |ports: &Vec<u16>| if ports.len() == 1 { "port" } else { "ports" };
        let named = |ports: &Vec<u16>| list(ports.iter().map(ToString::to_string), "ports");
        match self {
            Self::AllBut(but) if but.is_empty() => f.write_str("every port"),
            Self::AllBut(but) => write!(f, "every port but {}", named(but)),
            Self::Only(ports) => write!(f, "{} {}", word(ports), named(ports)),
        }
    }
}

impl fmt::Display for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.matching.join(" and "))?;
        if self.but_not.is_empty() {
            return Ok(());
        }
        write!(f, " but not {}", list(self.but_not.iter().map(ToString::to_string), "identities"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.verdict, self.rule)?;
        match &self.reported {
            Some((allow, rule)) => {
                write!(f, ", reported: would {} by {rule}", if *allow { "allow" } else { "deny" })
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Setting {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { effect, key, ports, was, now, meaning } = self;
        write!(f, "{:9}{key}", effect.as_str())?;
        if let Some(ports) = ports {
            write!(f, " of {ports}")?;
        }
        write!(f, ": {was} -> {now}: {meaning}")
    }
}

impl Change {
    fn addresses(&self) -> String {
        let named = |nets: &[IpNet]| list(nets.iter().map(ToString::to_string), "networks");
        let others = space::others(&self.addresses);
        if others.is_empty() {
            "any address".to_owned()
        } else if others.len() < self.addresses.len() {
            format!("any address but {}", named(&others))
        } else {
            named(&self.addresses)
        }
    }

    fn whom(&self) -> String {
        if self.everyone {
            return String::new();
        }
        let one = |who: &Who| match who {
            Who::Plaintext => "in plaintext".to_owned(),
            Who::Probe(path) => format!("as a health probe of {path}"),
            Who::Identities(ids) => format!("as {ids}"),
            Who::Stranger => "as a peer of a trust domain that neither file accepts".to_owned(),
            Who::NoName => "without a name of the files".to_owned(),
            Who::Name(name) => format!("named {name}"),
            Who::Names(one, other) => format!("named both {} and {}", any_of(one), any_of(other)),
        };
        format!(", {}", list(self.who.iter().map(one), "kinds").replace(", as ", ", or as "))
    }
}

impl fmt::Display for Change {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (way, side) = if self.inbound { ("inbound", "from") } else { ("outbound", "to") };
        let (was, now) = (&self.was, &self.now);
        write!(f, "{:9}", self.effect.as_str())?;
        if self.effect != Effect::Changes && self.what == What::Verdict {
            write!(f, "{} -> {}  ", was.verdict, now.verdict)?;
        }
        write!(f, "{way} {} {side} {}{}", self.ports, self.addresses(), self.whom())?;
        let ids = |ids: &[Identities]| list(ids.iter().map(ToString::to_string), "identities");
        match &self.what {
            What::Verdict => write!(f, " (was: {was}; now: {now})"),
            What::ServersGained(some) => write!(f, ": the server may now be {} ({now})", ids(some)),
            What::ServersLost(some) => {
                write!(f, ": the server may no longer be {} ({now})", ids(some))
            }
            What::TunnelReuse => write!(f, ": tunnelReuse changes ({now})"),
        }
    }
}
