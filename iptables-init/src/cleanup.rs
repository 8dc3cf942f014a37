//! Removes all that this program adds, from both backends and both families.

use crate::address;
use crate::backend::{Backend, BackendError, Kind};
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
/// No backend is installed, or something of this program is there, or may be there, and cannot be
/// removed.
pub fn cleanup(path: &str, capabilities: Capabilities, log: &mut Log<'_>) -> Result<(), Error> {
    // With no backend at all, nobody could say what is left.
    let [nft, legacy] = Kind::ALL.map(|kind| Backend::new(kind, path).installed());
    let only_legacy = nft.is_err() && legacy.is_ok();
    if legacy.is_err() {
        nft?;
    }
    let (mut any, mut failed) = (false, None);
    for kind in Kind::ALL {
        for family in Family::ALL {
            match clean(kind, family, path, capabilities) {
                Ok(false) => {}
                Ok(true) => {
                    log.say(format_args!("{}: rules removed ({kind})", family.name()));
                    any = true;
                }
                // An image with legacy alone never wrote to nft, and nothing here could look.
                Err(Error::Backend(error @ BackendError::Missing { .. }))
                    if only_legacy && kind == Kind::Nft =>
                {
                    let family = family.name();
                    log.say(format_args!("WARNING: {family} rules in nft not looked for: {error}"));
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
        let place = if only_legacy { " in legacy" } else { "" };
        log.say(format_args!("nothing of this program is here{place}"));
    }
    Ok(())
}

/// Removes what is ours; `false` when nothing is.
fn clean(
    kind: Kind,
    family: Family,
    path: &str,
    capabilities: Capabilities,
) -> Result<bool, Error> {
    let Some(text) = leftover(kind, family, path, capabilities)? else { return Ok(false) };
    Backend::new(kind, path).restore(family, &text).map_err(|source| StaleError::Remaining {
        family,
        kind,
        source,
    })?;
    Ok(true)
}
