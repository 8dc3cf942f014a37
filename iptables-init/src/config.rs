//! Flags and environment -> [`Config`]. Every bad value is reported at once, each with its cure.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU16;

use clap::ArgMatches;
use ipnet::IpNet;

use crate::flags::{FLAGS, command};
use crate::ports::PortSet;
use crate::values::{interface, is_service_link, net, port_range, unknown_variables};

/// All, or only what is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope<T> {
    /// No limit.
    All,
    /// Only these; never empty.
    Only(T),
}

/// What `--ipv6` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Mode {
    /// IPv6 is captured, unless it is off in this namespace.
    Auto,
    /// IPv6 is captured, and it is a failure when that cannot be.
    On,
    /// IPv6 is left alone, uncaptured.
    Off,
}

/// What `--backend` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// Legacy where its nat table is in use, else netlink, else what works.
    Auto,
    /// nf_tables, without a program.
    Netlink,
    /// nf_tables, by the programs of iptables.
    Nft,
    /// `ip_tables` and `ip6_tables`, by the programs of iptables.
    Legacy,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Install the rules.
    Apply,
    /// Print them and change nothing.
    DryRun,
    /// Remove them.
    Cleanup,
}

/// Everything that a user can say, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What to do.
    pub action: Action,
    /// Where what the app dials goes.
    pub outbound_port: NonZeroU16,
    /// Where what comes from the network goes.
    pub inbound_port: NonZeroU16,
    /// Effective user of the proxy; never 0.
    pub proxy_uid: u32,
    /// Effective group of the proxy; never 0.
    pub proxy_gid: u32,
    /// Ports of the app that are captured.
    pub inbound_ports: Scope<PortSet>,
    /// Ports of the app that are not, besides metrics and health.
    pub inbound_exclude_ports: PortSet,
    /// Sources that are not captured; both families.
    pub inbound_exclude_cidrs: Vec<IpNet>,
    /// Destination ports that are captured.
    pub outbound_ports: Scope<PortSet>,
    /// Destination ports that are not.
    pub outbound_exclude_ports: PortSet,
    /// Destinations that are captured; both families.
    pub outbound_cidrs: Scope<Vec<IpNet>>,
    /// Destinations that are not; both families.
    pub outbound_exclude_cidrs: Vec<IpNet>,
    /// Interfaces that are left alone; may end in `+`.
    pub exclude_interfaces: Vec<String>,
    /// Whether IPv6 is captured.
    pub ipv6: Ipv6Mode,
    /// How the kernel is spoken to.
    pub backend: BackendChoice,
    /// Whether a connection has to prove the rules.
    pub probe: bool,
    /// Whether the host's own namespace may be changed.
    pub allow_host_network: bool,
}

/// A value that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// The flag or the variable that it came from.
    pub place: String,
    /// Cause and cure, divided by `; `.
    pub problem: String,
}

/// Every bad value of one command line and environment; never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads flags and environment; also says which `PILLION_INIT_*` variables mean nothing.
    ///
    /// # Errors
    /// Every value that cannot be used, all at once.
    pub fn new(
        matches: &ArgMatches,
        environment: &BTreeMap<String, String>,
    ) -> Result<(Self, Vec<String>), ConfigErrors> {
        let mut reader = Reader { matches, environment, errors: Vec::new() };
        let config = reader.config();
        if reader.errors.is_empty() {
            Ok((config, unknown_variables(environment)))
        } else {
            Err(ConfigErrors(reader.errors))
        }
    }

    /// Reads a command line without its program, and an environment; for tests of what follows.
    ///
    /// # Errors
    /// As [`Config::new`], and for a flag that does not exist.
    pub fn from_arguments(
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self, ConfigErrors> {
        let words = std::iter::once("pillion-init").chain(arguments.iter().copied());
        let matches = command().try_get_matches_from(words).map_err(|error| {
            let problem = error.to_string();
            ConfigErrors(vec![ConfigError { place: "command line".to_owned(), problem }])
        })?;
        let environment =
            environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self::new(&matches, &environment).map(|(config, _)| config)
    }

    /// True when the rules capture a connection of the app's to this destination, whatever its
    /// interface.
    #[must_use]
    pub fn captures(&self, destination: std::net::SocketAddr) -> bool {
        let (address, port) = (destination.ip(), destination.port());
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        let named = match &self.outbound_cidrs {
            Scope::All => true,
            Scope::Only(nets) => within(nets),
        } && match &self.outbound_ports {
            Scope::All => true,
            Scope::Only(ports) => ports.contains(port),
        };
        named
            && !within(&self.outbound_exclude_cidrs)
            && !self.outbound_exclude_ports.contains(port)
    }
}

/// The variables of this process. A value that is not UTF-8 is replaced lossily, so that it fails
/// its own check instead of vanishing.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn environment() -> BTreeMap<String, String> {
    let text = |bytes: OsString| bytes.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

struct Reader<'a> {
    matches: &'a ArgMatches,
    environment: &'a BTreeMap<String, String>,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn config(&mut self) -> Config {
        let config = Config {
            action: self.action(),
            outbound_port: self.port("outbound-port"),
            inbound_port: self.port("inbound-port"),
            proxy_uid: self.id("proxy-uid"),
            proxy_gid: self.id("proxy-gid"),
            inbound_ports: self.port_scope("inbound-ports"),
            inbound_exclude_ports: self.port_list("inbound-exclude-ports"),
            inbound_exclude_cidrs: self.nets("inbound-exclude-cidrs"),
            outbound_ports: self.port_scope("outbound-ports"),
            outbound_exclude_ports: self.port_list("outbound-exclude-ports"),
            outbound_cidrs: self.net_scope("outbound-cidrs"),
            outbound_exclude_cidrs: self.nets("outbound-exclude-cidrs"),
            exclude_interfaces: self.list("exclude-interfaces", interface),
            ipv6: self.word(
                "ipv6",
                &[("auto", Ipv6Mode::Auto), ("on", Ipv6Mode::On), ("off", Ipv6Mode::Off)],
                Ipv6Mode::Auto,
            ),
            backend: self.word(
                "backend",
                &[
                    ("auto", BackendChoice::Auto),
                    ("netlink", BackendChoice::Netlink),
                    ("nft", BackendChoice::Nft),
                    ("legacy", BackendChoice::Legacy),
                ],
                BackendChoice::Auto,
            ),
            probe: self.switch("verify") && !self.switch("no-verify"),
            allow_host_network: self.switch("allow-host-network"),
        };
        if self.errors.is_empty() && config.outbound_port == config.inbound_port {
            let port = config.inbound_port;
            self.error(
                "inbound-port",
                format!("{port} is the outbound port as well; give each listener its own"),
            );
        }
        config
    }

    fn action(&mut self) -> Action {
        match (self.switch("dry-run"), self.switch("cleanup")) {
            (true, true) => {
                let problem = "--dry-run cannot show a --cleanup, which has no fixed text; \
                               leave one of them out";
                self.error("dry-run", problem.to_owned());
                Action::DryRun
            }
            (true, false) => Action::DryRun,
            (false, true) => Action::Cleanup,
            (false, false) => Action::Apply,
        }
    }

    /// The value of a flag and where it came from; empty variables and those that Kubernetes
    /// injects for a Service of that name count as unset.
    fn raw(&self, name: &str) -> (String, String) {
        if let Some(value) = self.matches.get_one::<String>(name) {
            return (format!("--{name}"), value.trim().to_owned());
        }
        let flag = FLAGS.iter().find(|flag| flag.name == name);
        let variable = flag.map(crate::flags::Flag::variable).unwrap_or_default();
        let default = flag.map(|flag| flag.default).unwrap_or_default();
        match self.environment.get(&variable).map(|value| value.trim()) {
            None | Some("") => (variable, default.to_owned()),
            Some(value) if is_service_link(value) => (variable, default.to_owned()),
            Some(value) => (variable, value.to_owned()),
        }
    }

    fn error(&mut self, name: &str, problem: String) {
        let (place, _) = self.raw(name);
        self.errors.push(ConfigError { place, problem });
    }

    fn switch(&mut self, name: &str) -> bool {
        self.word(name, &[("true", true), ("false", false)], false)
    }

    fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)], otherwise: T) -> T {
        let (_, value) = self.raw(name);
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == value) {
            return *meaning;
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.error(name, format!("`{value}` is unknown; write {}", known.join(" or ")));
        otherwise
    }

    fn port(&mut self, name: &str) -> NonZeroU16 {
        let (_, value) = self.raw(name);
        value.parse().unwrap_or_else(|_| {
            self.error(name, format!("`{value}` is no port; write a number from 1 to 65535"));
            NonZeroU16::MIN
        })
    }

    fn id(&mut self, name: &str) -> u32 {
        let (_, value) = self.raw(name);
        match value.parse() {
            Ok(0) => {
                let problem = "0 is root, whose connections would all escape; \
                               run the proxy as an id of its own";
                self.error(name, problem.to_owned());
            }
            // The last id is the kernel's word for "no change" (credentials(7)).
            Ok(id) if id < u32::MAX => return id,
            _ => {
                let problem = format!("`{value}` is no id; write a number from 1 to 4294967294");
                self.error(name, problem);
            }
        }
        u32::MAX
    }

    fn list<T>(&mut self, name: &str, parse: fn(&str) -> Result<T, String>) -> Vec<T> {
        let (_, value) = self.raw(name);
        let mut items = Vec::new();
        for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match parse(item) {
                Ok(item) => items.push(item),
                Err(problem) => self.error(name, problem),
            }
        }
        items
    }

    fn port_list(&mut self, name: &str) -> PortSet {
        self.list(name, port_range).into_iter().collect()
    }

    fn nets(&mut self, name: &str) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for net in self.list(name, net) {
            if !nets.contains(&net) {
                nets.push(net);
            }
        }
        nets
    }

    fn port_scope(&mut self, name: &str) -> Scope<PortSet> {
        if self.is_all(name) { Scope::All } else { Scope::Only(self.port_list(name)) }
    }

    fn net_scope(&mut self, name: &str) -> Scope<Vec<IpNet>> {
        if self.is_all(name) { Scope::All } else { Scope::Only(self.nets(name)) }
    }

    /// A list of nothing but commas would capture nothing, which nobody writes on purpose.
    fn is_all(&mut self, name: &str) -> bool {
        let (_, value) = self.raw(name);
        if value.split(',').all(|item| item.trim().is_empty()) {
            self.error(name, "the list is empty; name something, or write `all`".to_owned());
        }
        value == "all"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(arguments: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
        let errors = Config::from_arguments(arguments, environment).unwrap_err();
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_flag_wins_over_its_variable_and_an_empty_variable_is_unset() {
        let environment = [
            ("PILLION_INIT_PROXY_UID", "7"),
            ("PILLION_INIT_PROXY_GID", "8"),
            ("PILLION_INIT_INBOUND_PORTS", ""),
            ("PILLION_INIT_VERIFY", "false"),
        ];
        let config = Config::from_arguments(&["--proxy-uid=9"], &environment).unwrap();
        assert_eq!((config.proxy_uid, config.proxy_gid), (9, 8));
        assert_eq!(config.inbound_ports, Scope::All);
        assert!(!config.probe);
    }

    #[test]
    fn every_flag_has_a_variable_that_is_read() {
        for flag in FLAGS {
            let variable = flag.variable();
            let bad = problems(&[], &[(&variable, "%")]);
            assert!(bad.iter().any(|problem| problem.starts_with(&variable)), "{bad:?}");
        }
    }

    #[test]
    fn every_bad_value_is_named_at_once() {
        let found = problems(
            &[
                "--outbound-port=0",
                "--proxy-uid=0",
                "--proxy-gid=4294967295",
                "--inbound-ports=80,9-8,x",
                "--outbound-cidrs=10.1.2.3/8,nonsense",
                "--exclude-interfaces=-j,a/b,averylongname0123,+",
                "--ipv6=maybe",
            ],
            &[("PILLION_INIT_BACKEND", "ebtables")],
        );
        assert_eq!(found.len(), 13, "{found:#?}");
        for cure in
            ["write 10.0.0.0/8", "write auto or netlink or nft or legacy", "`9-8` is no port"]
        {
            assert!(found.iter().any(|problem| problem.contains(cure)), "{cure}: {found:#?}");
        }
    }

    #[test]
    fn lists_take_both_families_spaces_and_hosts() {
        let config =
            Config::from_arguments(&["--outbound-exclude-cidrs=10.0.0.1, fd00::/8,10.0.0.1"], &[])
                .unwrap();
        let nets: Vec<String> =
            config.outbound_exclude_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.0.0.1/32", "fd00::/8"]);
    }

    #[test]
    fn an_ipv4_range_in_ipv6_spelling_is_refused_with_its_own() {
        for (written, cure) in [
            ("::ffff:10.0.0.0/104", "write 10.0.0.0/8"),
            ("::ffff:10.1.2.3/104", "write 10.0.0.0/8"),
            ("::ffff:10.1.2.3", "write 10.1.2.3/32"),
            ("::ffff:0:0/96", "write 0.0.0.0/0"),
        ] {
            let found = problems(&[&format!("--outbound-exclude-cidrs={written}")], &[]);
            assert!(found[0].ends_with(cure), "{found:?}");
        }
        assert!(Config::from_arguments(&["--outbound-cidrs=::/0,::/80"], &[]).is_ok());
    }

    #[test]
    fn an_empty_limit_is_refused() {
        for flag in ["--inbound-ports=", "--outbound-ports=,", "--outbound-cidrs= , "] {
            assert!(problems(&[flag], &[])[0].contains("the list is empty"), "{flag}");
        }
    }

    #[test]
    fn what_kubernetes_injects_for_a_service_is_no_value() {
        let environment = [("PILLION_INIT_INBOUND_PORT", "tcp://10.0.0.1:80")];
        let config = Config::from_arguments(&[], &environment).unwrap();
        assert_eq!(config.inbound_port.get(), 15006);
    }

    #[test]
    fn an_unknown_variable_names_the_nearest() {
        let environment = [
            ("PILLION_INIT_INBOUND_PROTS", "80"),
            ("PILLION_INIT_SERVICE_HOST", "10.0.0.1"),
            ("PILLION_INIT_PORT", "tcp://10.0.0.1:80"),
            ("PILLION_LOG", "info"),
        ];
        let environment =
            environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(
            unknown_variables(&environment),
            [
                "PILLION_INIT_INBOUND_PROTS means nothing here; did you mean PILLION_INIT_INBOUND_PORTS?"
            ]
        );
    }

    #[test]
    fn one_port_cannot_be_both() {
        assert!(problems(&["--inbound-port=15001"], &[])[0].contains("give each listener its own"));
    }

    #[test]
    fn a_dry_run_of_a_cleanup_is_refused() {
        assert_eq!(problems(&["--dry-run", "--cleanup"], &[]).len(), 1);
        let config = Config::from_arguments(&["--dry-run=false", "--cleanup"], &[]).unwrap();
        assert_eq!(config.action, Action::Cleanup);
    }

    #[test]
    fn the_limits_and_the_exclusions_say_what_is_captured() {
        let config = Config::from_arguments(
            &[
                "--outbound-cidrs=10.0.0.0/8",
                "--outbound-ports=80-90",
                "--outbound-exclude-ports=85",
            ],
            &[],
        )
        .unwrap();
        let captures = |text: &str| config.captures(text.parse().unwrap());
        assert!(captures("10.1.1.1:80"));
        assert!(!captures("10.1.1.1:85") && !captures("10.1.1.1:91") && !captures("11.1.1.1:80"));
    }
}
