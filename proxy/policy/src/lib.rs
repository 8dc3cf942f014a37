//! The policy file: from its text to a verdict on each connection.
//!
//! This crate is pure, which `tests/pure.rs` checks. It does no I/O, reads no clock and knows of
//! no runtime: text goes in through [`load`], and a compiled [`Policy`] answers questions about
//! connections. Names of hosts are resolved elsewhere and asked for through [`HostTable`].
//!
//! `yaml` makes a tree with places, `reader` and `parse` the model, `lint` looks at the whole,
//! `compile` builds the indexes (`index`, `prefixes`, `address`, `directory`) that `verdict` asks.
//! `explain` says why a verdict is what it is, [`diff`] what another file would change.

mod address;
mod characters;
mod cidr;
mod compile;
mod diagnostic;
pub mod diff;
mod directory;
mod explain;
mod identity;
mod index;
mod limits;
mod lint;
mod model;
mod parse;
mod prefixes;
mod reader;
mod schema;
#[cfg(test)]
mod tests;
mod verdict;
mod yaml;

use pillion_certs::spiffe::TrustDomain;

pub use compile::{Destination, Policy, Rule};
pub use diagnostic::{Diagnostic, Diagnostics, Kind, Severity};
pub use explain::{Explained, Line};
pub use identity::IdentitySet;
pub use model::keys;
pub use schema::json_schema;
pub use verdict::{Decision, HostTable, InboundConn, NoHosts, OutboundDecision, Shadow};
pub use yaml::MAX_FILE_BYTES;

/// What a verdict names when no rule matched and `defaultAction` decided.
pub const DEFAULT_RULE: &str = "default";
/// What a verdict names when `enforcement: audit` lifted a denial.
pub const AUDIT_RULE: &str = "audit";
/// What a verdict names when a health probe needed no rule.
pub const PROBES_RULE: &str = "probes";

/// How a port takes TLS from its peers, the strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// mTLS with a valid SVID, or nothing.
    Strict,
    /// mTLS where the peer offers it; plaintext, and TLS of the application's own, as they are.
    Permissive,
    /// Bytes as they are.
    Disable,
}

impl Mode {
    /// The word of the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
            Self::Disable => "disable",
        }
    }
}

/// What a rule, or a default, does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets it through. As an outbound default: `passthrough`.
    Allow,
    /// Closes it.
    Deny,
}

impl Action {
    /// `allow` or `deny`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Whether authorization acts or only reports. TLS is never relaxed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Enforcement {
    /// Verdicts are obeyed.
    #[default]
    Enforce,
    /// Verdicts are reported.
    Audit,
}

impl Enforcement {
    /// The word of the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
}

/// Where the proxy reaches the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AppAddress {
    /// At the original destination, the pod's own address.
    #[default]
    PodIp,
    /// At 127.0.0.1, for an application that listens there alone.
    Loopback,
}

/// What a destination does with connections to it, the strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutboundAction {
    /// Refuses them.
    Deny,
    /// Speaks mTLS to the same address and port.
    Mtls,
    /// Passes bytes on as they are.
    Passthrough,
}

impl OutboundAction {
    /// The word of the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Mtls => "mtls",
            Self::Passthrough => "passthrough",
        }
    }
}

/// A policy that may be used, and what its author should look at again.
#[derive(Debug)]
pub struct Compiled {
    /// The policy.
    pub policy: Policy,
    /// In the order of the file; `check --strict` takes them for errors. At most 100.
    pub warnings: Vec<Diagnostic>,
    /// How many there are beyond those.
    pub warnings_left_out: usize,
}

/// The text of a policy file.
///
/// # Errors
/// Where it stops being UTF-8.
pub fn text(file_name: &str, bytes: Vec<u8>) -> Result<String, Diagnostics> {
    String::from_utf8(bytes).map_err(|error| {
        let (text, end) = (String::from_utf8_lossy(error.as_bytes()), error.utf8_error());
        let mut sink = diagnostic::Sink::new(file_name, &text);
        let message = "this is not UTF-8, as a policy file is; save it as UTF-8";
        sink.only(Kind::YamlSyntax, diagnostic::end_of(&text, end.valid_up_to()), message);
        sink.fail()
    })
}

/// Reads, checks and compiles a policy file.
///
/// `file_name` is used in messages alone. `own` is the trust domain of our own SVID: it completes
/// the short form `ns/sa` and is the default of `trustDomains`. Without it (on a command line)
/// short forms match nobody, and identities are checked only against a `trustDomains` that the
/// file has.
///
/// # Errors
/// Every error of the file at once, up to 100; after one that leaves no document to read (not
/// YAML, too large, a second document) that one alone.
pub fn load(
    file_name: &str,
    text: &str,
    own: Option<&TrustDomain>,
) -> Result<Compiled, Diagnostics> {
    let mut sink = diagnostic::Sink::new(file_name, text);
    let Some(mut file) = parse::file(text, own, &mut sink) else { return Err(sink.fail()) };
    let policy = compile::compile(&mut file, text, own);
    lint::check(&file, &policy, lint::MOST_STEPS, &mut sink);
    let warnings_left_out = sink.warnings_left_out();
    let warnings = sink.finish()?;
    Ok(Compiled { policy, warnings, warnings_left_out })
}
