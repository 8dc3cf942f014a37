//! Removes all that this program adds, from both sets of tables and both families.

use crate::address;
use crate::backend::Tables;
use crate::error::Error;
use crate::host::Capabilities;
use crate::log::Log;
use crate::rules::{Family, INBOUND_SOURCE_V6};
use crate::stale::{StaleError, leftover};

/// Removes rules, chains and the address; says what it found. Doing it twice is no error. What
/// cannot be looked at does not keep it from removing the rest; the address then stays, because
/// rules that are still there may want it.
///
/// # Errors
/// Something of this program is there, or may be there, and cannot be removed.
pub fn cleanup(path: &str, capabilities: Capabilities, log: &mut Log<'_>) -> Result<(), Error> {
    let (mut any, mut failed) = (false, None);
    for tables in Tables::ALL {
        for family in Family::ALL {
            match clean(tables, family, path, capabilities) {
                Ok(false) => {}
                Ok(true) => {
                    log.say(format_args!("{}: rules removed ({tables})", family.name()));
                    any = true;
                }
                Err(error) => {
                    if let Some(earlier) = failed.replace(error) {
                        log.say(earlier);
                    }
                }
            }
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if address::remove()? {
        log.say(format_args!("IPv6: {INBOUND_SOURCE_V6}/128 removed from lo"));
        any = true;
    }
    if !any {
        log.say("nothing of this program is here");
    }
    Ok(())
}

/// Removes what is ours; `false` when nothing is.
fn clean(
    tables: Tables,
    family: Family,
    path: &str,
    capabilities: Capabilities,
) -> Result<bool, Error> {
    let Some(leftover) = leftover(tables, family, path, capabilities)? else { return Ok(false) };
    leftover.remove(family).map_err(|source| StaleError::Remaining { family, tables, source })?;
    Ok(true)
}
