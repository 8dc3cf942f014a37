//! Removes all that this program adds, from both backends and both families.

use crate::address;
use crate::apply::{ApplyError, stale};
use crate::backend::{Backend, Kind};
use crate::error::Error;
use crate::host::Capabilities;
use crate::log::Log;
use crate::rules::INBOUND_SOURCE_V6;

/// Removes rules, chains and the address; says what it found. Doing it twice is no error.
///
/// # Errors
/// No backend is installed, or something is there that cannot be removed.
pub fn cleanup(path: &str, capabilities: Capabilities, log: &mut Log<'_>) -> Result<(), Error> {
    // With no backend at all, nobody could say what is left.
    let [nft, legacy] = Kind::ALL.map(|kind| Backend::new(kind, path).installed());
    if legacy.is_err() {
        nft?;
    }
    let mut any = false;
    for kind in Kind::ALL {
        for (family, text) in stale(kind, path, capabilities, log) {
            Backend::new(kind, path)
                .restore(family, &text)
                .map_err(|source| ApplyError::Stale { family, kind, source })?;
            log.say(format_args!("{}: rules removed ({kind})", family.name()));
            any = true;
        }
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
