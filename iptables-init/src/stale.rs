//! Rules of ours that a run no longer wants: found, and taken out.

use crate::backend::{Backend, BackendError, Kind};
use crate::config::{Config, Ipv6Mode};
use crate::error::Error;
use crate::host::{Capabilities, has_legacy_nat};
use crate::log::Log;
use crate::rules::Family;

/// Rules of ours that should be gone and are still there.
#[derive(Debug, thiserror::Error)]
pub enum StaleError {
    /// After the new rules had been installed.
    #[error(
        "the new rules are in force, but {} rules of an earlier run in {kind} are still there, and \
         act as well: {source}; remove them with --cleanup and run this again", family.name()
    )]
    Beside {
        /// Whose.
        family: Family,
        /// Where they are.
        kind: Kind,
        /// What the backend said.
        source: BackendError,
    },
    /// In a cleanup.
    #[error(
        "{} rules of this program in {kind} are still there: {source}; remove them with \
         {program} -t nat, or delete the pod", family.name(), program = kind.program(*family)
    )]
    Remaining {
        /// Whose.
        family: Family,
        /// Where they are.
        kind: Kind,
        /// What the backend said.
        source: BackendError,
    },
}

impl StaleError {
    /// What the backend said.
    #[must_use]
    pub fn backend(&self) -> &BackendError {
        match self {
            StaleError::Beside { source, .. } | StaleError::Remaining { source, .. } => source,
        }
    }
}

/// Takes out what an earlier run left and this one does not want: all in the backend that is not
/// used, and IPv6's rules after `--ipv6=off`. Both backends act on each connection, so stale rules
/// would still redirect. Called once the new set is live: with a gap between the two, captured
/// connections would be reset.
///
/// Where it cannot look, that is a warning: the new rules are in force, and most pods never had
/// others.
///
/// # Errors
/// There are such rules and they cannot be removed.
pub fn remove_stale(
    config: &Config,
    live: Kind,
    path: &str,
    capabilities: Capabilities,
    log: &mut Log<'_>,
) -> Result<(), StaleError> {
    let other = Family::ALL.map(|family| (live.other(), family));
    let unwanted = (config.ipv6 == Ipv6Mode::Off).then_some((live, Family::V6));
    for (kind, family) in other.into_iter().chain(unwanted) {
        match leftover(kind, family, path, capabilities) {
            Ok(None) => {}
            Ok(Some(text)) => {
                Backend::new(kind, path)
                    .restore(family, &text)
                    .map_err(|source| StaleError::Beside { family, kind, source })?;
                let family = family.name();
                log.say(format_args!("{family}: rules of an earlier run removed from {kind}"));
            }
            Err(error) => log.say(format_args!(
                "WARNING: {} rules of an earlier run in {kind}, if there are any, stay in force: \
                 {error}",
                family.name()
            )),
        }
    }
    Ok(())
}

/// What is ours in a backend, as the transaction that removes it. Looking creates nothing: where
/// no legacy table is, no legacy program is run.
///
/// # Errors
/// It cannot be looked at, so there may be something.
pub(crate) fn leftover(
    kind: Kind,
    family: Family,
    path: &str,
    capabilities: Capabilities,
) -> Result<Option<String>, Error> {
    if kind == Kind::Legacy {
        if !has_legacy_nat(family)? {
            return Ok(None);
        }
        capabilities.require_raw()?;
    }
    match Backend::new(kind, path).look(family) {
        Ok(snapshot) => Ok(snapshot.removal()),
        // What the kernel does not have, it has no rules in.
        Err(error) if error.is_absent_from_kernel() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
