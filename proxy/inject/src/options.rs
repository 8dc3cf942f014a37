//! Every option in one table: flags, variables, annotations, the fields of a `functionConfig` and
//! the documentation's test read it.

use std::collections::BTreeMap;

use crate::syntax::Syntax;

/// What each option's environment variable begins with.
pub const ENV_PREFIX: &str = "PILLION_INJECT_";
/// What each option's annotation begins with.
pub const ANNOTATION_PREFIX: &str = "pillion.dev/";

/// One option, in its four spellings.
#[derive(Debug)]
pub struct Opt {
    /// The flag without its dashes, and the annotation without its prefix.
    pub name: &'static str,
    /// In force when nobody says anything; empty for nothing.
    pub default: &'static str,
    /// What a value has to be.
    pub(crate) syntax: Syntax,
    /// One line of help.
    pub help: &'static str,
}

impl Opt {
    const fn new(
        name: &'static str,
        default: &'static str,
        syntax: Syntax,
        help: &'static str,
    ) -> Self {
        Self { name, default, syntax, help }
    }

    /// The environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.replace('-', "_").to_uppercase())
    }

    /// The annotation of a pod.
    #[must_use]
    pub fn annotation(&self) -> String {
        format!("{ANNOTATION_PREFIX}{}", self.name)
    }

    /// The field of a `functionConfig`'s `spec`, in camel case.
    #[must_use]
    pub fn field(&self) -> String {
        let mut words = self.name.split('-');
        let first = words.next().unwrap_or_default().to_owned();
        words.fold(first, |mut field, word| {
            let (head, tail) = word.split_at(word.len().min(1));
            field.push_str(&head.to_uppercase());
            field.push_str(tail);
            field
        })
    }

    /// The values that there are, where they are few; else empty.
    #[must_use]
    pub fn words(&self) -> &'static [&'static str] {
        self.syntax.words()
    }
}

/// Every option, in the order of `--help`.
pub const OPTIONS: &[Opt] = &[
    Opt::new(
        "inject",
        "true",
        Syntax::Words(&["true", "false"]),
        "Whether a pod gets the sidecar; false with single pods annotated true is opting in",
    ),
    Opt::new(
        "proxy-image",
        concat!("pillion-proxy:", env!("CARGO_PKG_VERSION")),
        Syntax::Image,
        "The image of pillion-proxy",
    ),
    Opt::new(
        "init-image",
        concat!("pillion-init:", env!("CARGO_PKG_VERSION")),
        Syntax::Image,
        "The image of pillion-init",
    ),
    Opt::new(
        "image-pull-policy",
        "",
        Syntax::Words(&["Always", "IfNotPresent", "Never"]),
        "When both images are pulled; without it Kubernetes decides by the tag",
    ),
    Opt::new(
        "policy",
        "pillion-policy",
        Syntax::Name,
        "The ConfigMap in the pod's namespace that has policy.yaml",
    ),
    Opt::new(
        "identity",
        "secret",
        Syntax::Words(&["secret", "csi-driver-spiffe", "spire", "pod-certificate"]),
        "Where the pod's certificate comes from",
    ),
    Opt::new(
        "identity-secret",
        "pillion-identity",
        Syntax::Name,
        "identity=secret: the Secret that has tls.crt, tls.key and ca.crt",
    ),
    Opt::new(
        "spire-socket",
        "spire-agent.sock",
        Syntax::File,
        "identity=spire: the socket's file name in the driver's volume",
    ),
    Opt::new(
        "signer-name",
        "",
        Syntax::Signer,
        "identity=pod-certificate: the signer, such as example.com/spiffe; there is no default",
    ),
    Opt::new(
        "key-type",
        "ECDSAP256",
        Syntax::Words(&["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072", "RSA4096"]),
        "identity=pod-certificate: the key that is made",
    ),
    Opt::new(
        "trust-bundle",
        "",
        Syntax::Bundle,
        "identity=pod-certificate: a ClusterTrustBundle by name; without it all of the signer's",
    ),
    Opt::new(
        "inbound-ports",
        "",
        Syntax::PortsOrAll,
        "Capture only these of the app's ports: ports and ranges (80,8000-8080)",
    ),
    Opt::new("inbound-exclude-ports", "", Syntax::Ports, "Leave these of the app's ports alone"),
    Opt::new(
        "inbound-exclude-cidrs",
        "",
        Syntax::Cidrs,
        "Leave connections from these sources alone",
    ),
    Opt::new(
        "outbound-ports",
        "",
        Syntax::PortsOrAll,
        "Capture only connections to these ports: ports and ranges",
    ),
    Opt::new("outbound-exclude-ports", "", Syntax::Ports, "Leave connections to these ports alone"),
    Opt::new(
        "outbound-cidrs",
        "",
        Syntax::CidrsOrAll,
        "Capture only connections to these addresses",
    ),
    Opt::new(
        "outbound-exclude-cidrs",
        "",
        Syntax::Cidrs,
        "Leave connections to these addresses alone",
    ),
    Opt::new("cpu-request", "10m", Syntax::Quantity, "The CPU that the proxy requests"),
    Opt::new(
        "cpu-limit",
        "",
        Syntax::Quantity,
        "The most CPU that each of both containers may have; one throttles the app's connections",
    ),
    Opt::new("memory-request", "32Mi", Syntax::Quantity, "The memory that the proxy requests"),
    Opt::new("memory-limit", "256Mi", Syntax::Quantity, "The most memory that the proxy may have"),
    Opt::new("log", "", Syntax::Text, "The proxy's log filter, PILLION_LOG"),
    Opt::new(
        "access-log",
        "",
        Syntax::Words(&["off", "denied", "all"]),
        "The proxy's access log, PILLION_ACCESS_LOG",
    ),
];

/// Finds an option by its flag's name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|option| option.name == name)
}

/// The likeliest of `known` that a misspelt `name` means.
pub(crate) fn nearest(name: &str, known: impl Iterator<Item = String>) -> String {
    known
        .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)))
        .unwrap_or_default()
}

/// Options that somebody set; what is not in it has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<&'static str, String>);

impl Settings {
    /// Sets an option.
    ///
    /// # Errors
    /// What is wrong with the value, and what cures it: `cause; cure`.
    pub fn set(&mut self, option: &'static Opt, value: &str) -> Result<(), String> {
        let value = value.trim();
        if value.is_empty() {
            // As if nobody had set it: so an annotation takes back what a flag says.
            self.0.insert(option.name, option.default.to_owned());
            return Ok(());
        }
        option.syntax.check(value)?;
        self.0.insert(option.name, value.to_owned());
        Ok(())
    }

    /// An option's value; empty for one without default that nobody set.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        let default = || find(name).map_or("", |option| option.default);
        self.0.get(name).map_or_else(default, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_that_is_taken() {
        for option in OPTIONS.iter().filter(|option| !option.default.is_empty()) {
            assert_eq!(option.syntax.check(option.default), Ok(()), "{}", option.name);
        }
    }

    #[test]
    fn an_option_has_four_spellings() {
        let option = find("inbound-exclude-ports").unwrap();
        assert_eq!(option.variable(), "PILLION_INJECT_INBOUND_EXCLUDE_PORTS");
        assert_eq!(option.annotation(), "pillion.dev/inbound-exclude-ports");
        assert_eq!(option.field(), "inboundExcludePorts");
    }

    #[test]
    fn an_empty_value_takes_back_what_was_set() {
        let option = find("log").unwrap();
        let mut settings = Settings::default();
        settings.set(option, "debug").unwrap();
        assert_eq!(settings.get("log"), "debug");
        settings.set(option, " ").unwrap();
        assert_eq!(settings.get("log"), "");
        assert_eq!(settings.get("policy"), "pillion-policy");
    }
}
