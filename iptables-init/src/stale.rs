//! Rules of ours that a run no longer wants: found, and taken out.

use crate::backend::{BackendError, Programs, Tables};
use crate::config::{Config, Ipv6Mode};
use crate::error::Error;
use crate::host::{Capabilities, has_legacy_nat};
use crate::log::Log;
use crate::netlink::{self, Change};
use crate::rules::Family;

/// Rules of ours that should be gone and are still there.
#[derive(Debug, thiserror::Error)]
pub enum StaleError {
    /// After the new rules had been installed.
    #[error(
        "the new rules are in force, but {} rules of an earlier run in {tables} are still there, and \
         act as well: {source}; remove them with --cleanup and run this again", family.name()
    )]
    Beside {
        /// Whose.
        family: Family,
        /// Where they are.
        tables: Tables,
        /// What the backend said.
        source: BackendError,
    },
    /// In a cleanup.
    #[error(
        "{} rules of this program in {tables} are still there: {source}; remove them with \
         {program} -t nat, or delete the pod", family.name(), program = tables.program(*family)
    )]
    Remaining {
        /// Whose.
        family: Family,
        /// Where they are.
        tables: Tables,
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

/// Takes out what an earlier run left and this one does not want: all in the tables that are not
/// used, and IPv6's rules after `--ipv6=off`. Both sets of tables act on each connection, so stale
/// rules would still redirect. Called once the new set is live: with a gap between the two,
/// captured connections would be reset.
///
/// Where it cannot look, that is a warning: the new rules are in force, and most pods never had
/// others.
///
/// # Errors
/// There are such rules and they cannot be removed.
pub fn remove_stale(
    config: &Config,
    live: Tables,
    path: &str,
    capabilities: Capabilities,
    log: &mut Log<'_>,
) -> Result<(), StaleError> {
    let other = Family::ALL.map(|family| (live.other(), family));
    let unwanted = (config.ipv6 == Ipv6Mode::Off).then_some((live, Family::V6));
    for (tables, family) in other.into_iter().chain(unwanted) {
        match leftover(tables, family, path, capabilities) {
            Ok(None) => {}
            Ok(Some(leftover)) => {
                leftover.remove(family).map_err(|source| StaleError::Beside {
                    family,
                    tables,
                    source,
                })?;
                let family = family.name();
                log.say(format_args!("{family}: rules of an earlier run removed from {tables}"));
            }
            Err(error) => log.say(format_args!(
                "WARNING: {} rules of an earlier run in {tables}, if there are any, stay in \
                 force: {error}",
                family.name()
            )),
        }
    }
    Ok(())
}

/// What is ours in a family's table, and how it is removed.
#[derive(Debug)]
pub(crate) enum Leftover {
    /// By this process itself, whoever wrote it.
    Netlink,
    /// By a transaction of the programs.
    Programs(Programs, String),
}

impl Leftover {
    /// Removes it.
    ///
    /// # Errors
    /// The kernel or the program refuses; all of it is still there.
    pub(crate) fn remove(&self, family: Family) -> Result<(), BackendError> {
        match self {
            Leftover::Netlink => netlink::commit(&[Change::Remove(family)]),
            Leftover::Programs(programs, text) => programs.restore(family, text),
        }
    }
}

/// What is ours in a family's table; `None` when nothing is. Looking creates nothing: where no
/// legacy table is, no legacy program is run.
///
/// # Errors
/// It cannot be looked at, so there may be something.
pub(crate) fn leftover(
    tables: Tables,
    family: Family,
    path: &str,
    capabilities: Capabilities,
) -> Result<Option<Leftover>, Error> {
    match tables {
        Tables::Nft => match netlink::read(family) {
            Ok(table) => Ok(table.snapshot().has_ours().then_some(Leftover::Netlink)),
            // What the kernel does not have, it has no rules in.
            Err(BackendError::Absent { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        },
        Tables::Legacy => {
            if !has_legacy_nat(family)? {
                return Ok(None);
            }
            capabilities.require_raw()?;
            let programs = Programs::new(tables, path);
            let removal = programs.look(family)?.removal();
            Ok(removal.map(|text| Leftover::Programs(programs, text)))
        }
    }
}
