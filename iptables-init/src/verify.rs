//! Reads the rules back, and has a connection prove them.

use std::io;
use std::net::SocketAddr;

use crate::apply::Plan;
use crate::backend::{Backend, BackendError, Tables};
use crate::config::Config;
use crate::log::Log;
use crate::netlink;
use crate::probe::{self, Outcome};
use crate::saved_table::Ahead;

/// The rules are not what they should be, or do not redirect. They stay, so that nothing passes
/// in plaintext.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// They could not be read.
    #[error("the rules cannot be read back: {0}")]
    Read(#[source] BackendError),
    /// Something changed them.
    #[error(
        "{family} rules read back otherwise than they were written: {difference}; find what else \
         changes the tables of this pod"
    )]
    Different {
        /// IPv4 or IPv6.
        family: &'static str,
        /// The first difference.
        difference: String,
    },
    /// A rule of others comes first.
    #[error(
        "{family}: the rule `{rule}` stands ahead of this program's and can take TCP connections \
         past the proxy; remove it ({removal}), or have it added after this program has run"
    )]
    Ahead {
        /// IPv4 or IPv6.
        family: &'static str,
        /// The rule, as the program prints it.
        rule: String,
        /// The command that deletes it.
        removal: String,
    },
    /// The proof could not listen.
    #[error("the proof cannot listen on {address}: {source}; bring lo up, or say --no-verify")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The connection failed.
    #[error(
        "a connection to {target} was not redirected to {listener}: {source}; look for other \
         rules that match it first (iptables-save, iptables-legacy-save, nft list ruleset)"
    )]
    Dial {
        /// What was dialled.
        target: SocketAddr,
        /// Where it should have come.
        listener: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The connection went elsewhere.
    #[error(
        "a connection to {target} was accepted, but not by {listener}; look for other rules that \
         match it first (iptables-save, iptables-legacy-save, nft list ruleset)"
    )]
    Stolen {
        /// What was dialled.
        target: SocketAddr,
        /// Where it should have come.
        listener: SocketAddr,
    },
    /// The kernel forgot where the connection was going.
    #[error(
        "a connection to {target} has the original destination {found}; check that connection \
         tracking is on (nf_conntrack)"
    )]
    Destination {
        /// What was dialled.
        target: SocketAddr,
        /// What the kernel says.
        found: String,
    },
}

/// Compares what the kernel has with what was written, and looks for rules of others that take
/// connections before ours can.
///
/// # Errors
/// It cannot be read, or differs, or there is such a rule.
pub fn read_back(backend: &Backend, plans: &[Plan]) -> Result<(), VerifyError> {
    for plan in plans {
        let now = backend.read(plan.family).map_err(VerifyError::Read)?;
        if let Some(difference) = now.difference(&plan.rules) {
            return Err(VerifyError::Different { family: plan.family.name(), difference });
        }
        if let Some(Ahead { rule, hook, number }) = now.ahead(&plan.rules, plan.family) {
            let program = backend.tables().program(plan.family);
            let removal = match backend {
                // By its place: what is not understood of it has no words.
                Backend::Netlink => format!("{program} -t nat -D {hook} {number}"),
                Backend::Programs(_) => {
                    format!("{program} -t nat {}", rule.replacen("-A", "-D", 1))
                }
            };
            return Err(VerifyError::Ahead { family: plan.family.name(), rule, removal });
        }
    }
    Ok(())
}

/// Warns of native nft chains that are asked before ours. What they do is not judged: their rules
/// may be about anything.
pub fn warn_of_earlier_chains(backend: &Backend, plans: &[Plan], log: &mut Log<'_>) {
    let chains = match netlink::earlier_chains() {
        Ok(chains) => chains,
        Err(BackendError::Absent { .. }) => return,
        Err(error) => {
            log.say(format_args!("WARNING: tables of nft are not looked at: {error}"));
            return;
        }
    };
    for chain in chains {
        let ours = backend.tables() == Tables::Nft && chain.is_of_iptables();
        if !ours && plans.iter().any(|plan| chain.sees(plan.family)) {
            log.say(format_args!(
                "WARNING: the nat chain {chain} has rules, and may take connections past the \
                 proxy before this program's rules see them; look at it ({}), and give it a \
                 priority above -100 if it does",
                chain.command()
            ));
        }
    }
}

/// Dials through the rules of each family, and requires the connection to come to the outbound
/// port with its original destination.
///
/// # Errors
/// It does not, within [`probe::DEADLINE`].
pub fn prove(config: &Config, plans: &[Plan], log: &mut Log<'_>) -> Result<(), VerifyError> {
    for plan in plans {
        let family = plan.family.name();
        match probe::probe(config, plan.family)? {
            Outcome::Proved { target, listener } => {
                log.say(format_args!("{family}: proved, {target} comes to {listener}"));
            }
            Outcome::Skipped(why) => log.say(format_args!("{family}: not dialled, {why}")),
        }
    }
    Ok(())
}
