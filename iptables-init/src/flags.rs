//! Every flag in one table: the parser, `--help` and the documentation's test read it.

use clap::{Arg, Command};

use crate::error::EXIT_CODES;

/// What each flag's environment variable begins with.
pub const ENV_PREFIX: &str = "PILLION_INIT_";

/// One flag; [`Flag::variable`] says the same, and the flag wins.
#[derive(Debug)]
pub struct Flag {
    /// Without the two dashes.
    pub name: &'static str,
    /// What stands for the value in `--help`; `None` for a switch, which may still take
    /// `=true` or `=false`.
    pub value: Option<&'static str>,
    /// In force without the flag, as a user would write it; empty for an empty list.
    pub default: &'static str,
    /// One line of help.
    pub help: &'static str,
}

impl Flag {
    const fn new(
        name: &'static str,
        value: &'static str,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, value: Some(value), default, help }
    }

    const fn switch(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, value: None, default, help }
    }

    /// The environment variable that says the same.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.replace('-', "_").to_uppercase())
    }

    fn arg(&'static self) -> Arg {
        let default = if self.default.is_empty() { "none" } else { self.default };
        let help = format!("{} [default: {default}] [env: {}]", self.help, self.variable());
        let arg = Arg::new(self.name).long(self.name).help(help);
        match self.value {
            Some(value) => arg.value_name(value),
            None => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_name("true|false"),
        }
    }
}

/// Every flag, in the order of `--help`.
pub const FLAGS: &[Flag] = &[
    Flag::new(
        "outbound-port",
        "PORT",
        "15001",
        "Where the proxy listens for connections that the app dials",
    ),
    Flag::new(
        "inbound-port",
        "PORT",
        "15006",
        "Where the proxy listens for connections from the network",
    ),
    Flag::new("proxy-uid", "UID", "1337", "The user that the proxy runs as; it is never captured"),
    Flag::new("proxy-gid", "GID", "1337", "The group that the proxy runs as; it is never captured"),
    Flag::new(
        "inbound-ports",
        "PORTS",
        "all",
        "Capture only these of the app's ports: `all`, or a list of ports and ranges (80,8000-8080)",
    ),
    Flag::new(
        "inbound-exclude-ports",
        "PORTS",
        "",
        "Leave these of the app's ports alone, besides 15020 and 15021, which always are",
    ),
    Flag::new(
        "inbound-exclude-cidrs",
        "CIDRS",
        "",
        "Leave connections from these sources alone; IPv4 and IPv6 in one list",
    ),
    Flag::new(
        "outbound-ports",
        "PORTS",
        "all",
        "Capture only connections to these ports: `all`, or a list of ports and ranges",
    ),
    Flag::new("outbound-exclude-ports", "PORTS", "", "Leave connections to these ports alone"),
    Flag::new(
        "outbound-cidrs",
        "CIDRS",
        "all",
        "Capture only connections to these addresses: `all`, or IPv4 and IPv6 in one list",
    ),
    Flag::new("outbound-exclude-cidrs", "CIDRS", "", "Leave connections to these addresses alone"),
    Flag::new(
        "exclude-interfaces",
        "NAMES",
        "",
        "Leave these interfaces alone, both ways; a last + stands for anything (tap+)",
    ),
    Flag::new(
        "ipv6",
        "auto|on|off",
        "auto",
        "auto: unless IPv6 is off here; on: fail without it; off: leave IPv6 uncaptured",
    ),
    Flag::new(
        "backend",
        "auto|netlink|nft|legacy",
        "auto",
        "How the kernel is spoken to; auto: legacy where its nat table is in use, else netlink",
    ),
    Flag::switch("dry-run", "false", "Print the restore text of both families and change nothing"),
    Flag::switch("cleanup", "false", "Remove every rule and address that this program adds"),
    Flag::switch("verify", "true", "Prove by a connection that the rules redirect"),
    Flag::switch("no-verify", "false", "Only read the rules back; wins over --verify"),
    Flag::switch(
        "allow-host-network",
        "false",
        "Work even in the host's own network namespace, where the rules capture the whole node",
    ),
];

/// The command line.
#[must_use]
pub fn command() -> Command {
    let mut codes = String::from("Exit codes:\n");
    for (code, meaning) in EXIT_CODES {
        codes.push_str(&format!("  {code}  {meaning}\n"));
    }
    Command::new("pillion-init")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Redirects a pod's TCP connections to the Pillion proxy")
        .long_about(
            "Redirects a pod's TCP connections to the Pillion proxy.\n\n\
             Runs once, as the pod's first init container, with the capability NET_ADMIN (and \
             NET_RAW for the legacy backend). A second run changes nothing and breaks no \
             connection. Every flag can be set by its environment variable; a flag wins, and an \
             empty variable counts as unset. Lists are separated by commas.",
        )
        .args(FLAGS.iter().map(Flag::arg))
        .after_help(codes)
}
