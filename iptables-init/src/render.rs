//! The rule model as `iptables-restore` text, in the words that `*-save` prints back.

use std::fmt;

use ipnet::IpNet;

use crate::rules::{Chain, Extension, Owner, Rule, RuleSet, TableName, Target};

impl fmt::Display for Rule {
    /// `-A <chain> <matches> -j <target>`, as `*-save` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-A {}", self.chain.name())?;
        // A range with everything in it is no match to the kernel, and `*-save` prints none.
        if let Some(net) = self.source.filter(is_limit) {
            write!(f, " -s {net}")?;
        }
        if let Some((not, net)) = self.destination.filter(|(_, net)| is_limit(net)) {
            write!(f, "{} -d {net}", if not { " !" } else { "" })?;
        }
        if let Some(interface) = &self.in_interface {
            write!(f, " -i {interface}")?;
        }
        if let Some(interface) = &self.out_interface {
            write!(f, " -o {interface}")?;
        }
        if self.tcp {
            f.write_str(" -p tcp")?;
        }
        match &self.extension {
            None => {}
            Some(Extension::DestinationPorts(ports)) => {
                write!(f, " -m multiport --dports {ports}")?;
            }
            Some(Extension::Owner(Owner::User(id))) => write!(f, " -m owner --uid-owner {id}")?,
            Some(Extension::Owner(Owner::Group(id))) => write!(f, " -m owner --gid-owner {id}")?,
            Some(Extension::Syn) => f.write_str(" -m tcp --tcp-flags FIN,SYN,RST,ACK SYN")?,
        }
        match self.target {
            Target::Return => f.write_str(" -j RETURN"),
            Target::Jump(chain) => write!(f, " -j {}", chain.name()),
            Target::RedirectTo(port) => write!(f, " -j REDIRECT --to-ports {port}"),
            Target::Reset => f.write_str(" -j REJECT --reject-with tcp-reset"),
        }
    }
}

/// True when some address is outside of it.
pub(crate) fn is_limit(net: &IpNet) -> bool {
    net.prefix_len() > 0
}

/// The text for tables without anything of ours. Where something is,
/// [`crate::snapshot::Snapshot::replacement`] is what to use.
#[must_use]
pub fn transaction(rules: &RuleSet) -> String {
    let text = |table| {
        let (_, ours) = Chain::of(table);
        let chains = ours.iter().map(|chain| chain_line(chain.name()));
        table_text(table, chains.chain(rules.of(table).map(ToString::to_string)))
    };
    TableName::ALL.map(text).concat()
}

/// The line that makes a chain, or empties it: with `--noflush`, nothing else is touched.
#[must_use]
pub fn chain_line(name: &str) -> String {
    format!(":{name} - [0:0]")
}

/// Lines as one transaction of a table.
#[must_use]
pub fn table_text(table: TableName, lines: impl IntoIterator<Item = String>) -> String {
    let mut text = format!("*{}\n", table.name());
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str("COMMIT\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::rules::Family;

    fn dry_run(args: &[&str], family: Family) -> String {
        let config = Config::from_arguments(args, &[]).unwrap();
        transaction(&RuleSet::new(&config, family))
    }

    #[test]
    fn the_default_is_canonical() {
        assert_eq!(dry_run(&[], Family::V4), include_str!("../canonical/v4.rules"));
        assert_eq!(dry_run(&[], Family::V6), include_str!("../canonical/v6.rules"));
    }

    /// Every flag that shapes a rule, as in `tests/golden/all-flags.*.rules`.
    const ALL_FLAGS: &[&str] = &[
        "--outbound-port=25001",
        "--inbound-port=25006",
        "--proxy-uid=2000",
        "--proxy-gid=3000",
        "--inbound-ports=80,8000-8080",
        "--inbound-exclude-ports=22,9000-9010",
        "--inbound-exclude-cidrs=10.9.0.0/16,2001:db8:9::/48",
        "--outbound-ports=1-2,11,12,13,14,15,16,17,18,19,20,21,22,23,443",
        "--outbound-exclude-ports=25",
        "--outbound-cidrs=10.0.0.0/8,192.168.0.0/16,fd00::/8",
        "--outbound-exclude-cidrs=169.254.169.254,fd00:ec2::254",
        "--exclude-interfaces=net1,tap+",
    ];

    #[test]
    fn all_flags_are_golden() {
        let v4 = include_str!("../tests/golden/all-flags.v4.rules");
        let v6 = include_str!("../tests/golden/all-flags.v6.rules");
        assert_eq!(dry_run(ALL_FLAGS, Family::V4), v4);
        assert_eq!(dry_run(ALL_FLAGS, Family::V6), v6);
    }

    #[test]
    fn a_range_with_everything_in_it_is_no_match() {
        let text = dry_run(&["--outbound-cidrs=0.0.0.0/0,::/0"], Family::V4);
        assert_eq!(text, include_str!("../canonical/v4.rules"));
    }
}
