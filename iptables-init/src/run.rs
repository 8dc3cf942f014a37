//! One run, top to bottom.

use std::io::Write;

use crate::apply;
use crate::backend::{Backend, BackendError, Programs, Tables};
use crate::cleanup::cleanup;
use crate::config::{Action, BackendChoice, Config, Ipv6Mode};
use crate::error::Error;
use crate::host::{self, Capabilities, Capability};
use crate::ipv6::Ipv6State;
use crate::log::Log;
use crate::netlink;
use crate::render::transaction;
use crate::rules::{Family, RuleSet};
use crate::stale::remove_stale;
use crate::verify;

/// Does what the configuration says. `path` is the variable `PATH`; the text of a dry run goes
/// to `out`.
///
/// # Errors
/// See [`Error`]; its exit code says which.
pub fn run(
    config: &Config,
    path: &str,
    out: &mut dyn Write,
    log: &mut Log<'_>,
) -> Result<(), Error> {
    if config.action == Action::DryRun {
        return out.write_all(dry_run(config).as_bytes()).map_err(Error::Output);
    }
    host::refuse_host_network(config.allow_host_network)?;
    let capabilities = Capabilities::read()?;
    capabilities.require_admin()?;
    if config.action == Action::Cleanup {
        return cleanup(path, capabilities, log);
    }

    let usable = || netlink::usable(Family::V4);
    let backend = choose(config.backend, path, capabilities, &usable, log)?;
    let plans = apply::plan(config, &backend, &ipv6_state(config.ipv6, log)?, log)?;
    apply::install(&backend, &plans, log)?;
    remove_stale(config, backend.tables(), path, capabilities, log)?;
    verify::read_back(&backend, &plans)?;
    verify::warn_of_earlier_chains(&backend, &plans, log);
    if config.probe {
        verify::prove(config, &plans, log)?;
    }
    Ok(())
}

/// Where IPv6 is left alone, what it is only makes a warning.
fn ipv6_state(mode: Ipv6Mode, log: &mut Log<'_>) -> Result<Ipv6State, Error> {
    match Ipv6State::read() {
        Err(error) if mode == Ipv6Mode::Off => {
            log.say(format_args!("WARNING: IPv6 may BYPASS the proxy: {error}"));
            Ok(Ipv6State::default())
        }
        read => Ok(read?),
    }
}

/// The text of both families, as it would be in a pod where nothing of ours is yet. It depends on
/// the configuration alone.
#[must_use]
pub fn dry_run(config: &Config) -> String {
    let programs = ["iptables-restore --noflush", "ip6tables-restore --noflush"];
    let mut text = String::new();
    for (family, program) in Family::ALL.into_iter().zip(programs) {
        if family == Family::V6 && config.ipv6 == Ipv6Mode::Off {
            continue;
        }
        text.push_str(&format!("# {}: {program}\n", family.name()));
        text.push_str(&transaction(&RuleSet::new(config, family)));
    }
    text
}

/// auto: legacy where its nat table has rules already, ours or a network plugin's, so that one
/// interface decides about all of them in one order; else netlink, if the kernel says that our
/// rules can be there; else what works.
fn choose(
    choice: BackendChoice,
    path: &str,
    capabilities: Capabilities,
    netlink: &dyn Fn() -> Result<(), BackendError>,
    log: &mut Log<'_>,
) -> Result<Backend, Error> {
    let nft = Programs::new(Tables::Nft, path);
    let legacy = Programs::new(Tables::Legacy, path);
    match choice {
        BackendChoice::Netlink => return Ok(Backend::Netlink),
        BackendChoice::Nft => return Ok(Backend::Programs(nft)),
        BackendChoice::Legacy => {
            capabilities.require_raw()?;
            return Ok(Backend::Programs(legacy));
        }
        BackendChoice::Auto => {}
    }
    // Where no legacy table is, its program is not run: that would create one.
    let in_use = capabilities.has(Capability::NetRaw)
        && Family::ALL.into_iter().any(|family| {
            matches!(host::has_legacy_nat(family), Ok(true))
                && legacy.look(family).is_ok_and(|tables| tables.has_nat_rules())
        });
    if in_use {
        log.say("backend: legacy, whose nat table is in use here");
        return Ok(Backend::Programs(legacy));
    }
    let Err(reason) = netlink() else { return Ok(Backend::Netlink) };
    match nft.save(Family::V4) {
        Ok(_) => {
            log.say(format_args!("backend: nft, because of {reason}"));
            return Ok(Backend::Programs(nft));
        }
        Err(other) => log.say(other),
    }
    capabilities.require_raw()?;
    match legacy.save(Family::V4) {
        Ok(_) => {
            log.say(format_args!("backend: legacy, because of {reason}"));
            Ok(Backend::Programs(legacy))
        }
        Err(other) => {
            log.say(other);
            Err(reason.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    /// What `auto` chooses, and says, where programs of these names work and netlink does not.
    fn chosen(working: &[&str]) -> (Result<String, u8>, String) {
        let directory = TempDir::new().unwrap();
        for name in ["iptables-nft-save", "iptables-legacy-save"] {
            let verdict = if working.contains(&name) { "true" } else { "echo broken >&2; false" };
            let place = directory.path().join(name);
            fs::write(&place, format!("#!/bin/sh\n{verdict}\n")).unwrap();
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let lacks = || {
            Err(BackendError::Unusable {
                program: "netlink".to_owned(),
                message: "owner: No such file".to_owned(),
                modules: "xt_owner",
            })
        };
        let mut said = Vec::new();
        let path = directory.path().to_string_lossy().into_owned();
        let all = Capabilities::of_bits(u64::MAX);
        let chosen = choose(BackendChoice::Auto, &path, all, &lacks, &mut Log::new(&mut said));
        let chosen = chosen.map(|backend| backend.to_string()).map_err(|error| error.exit_code());
        (chosen, String::from_utf8(said).unwrap())
    }

    #[test]
    fn where_netlink_does_not_do_a_program_that_works_is_taken_and_the_reason_said() {
        let (backend, said) = chosen(&["iptables-nft-save", "iptables-legacy-save"]);
        assert_eq!(backend, Ok("nft".to_owned()));
        assert!(said.contains("backend: nft, because of netlink: owner"), "{said}");
        assert!(said.contains("load the kernel's xt_owner module"), "{said}");

        let (backend, said) = chosen(&["iptables-legacy-save"]);
        assert_eq!(backend, Ok("legacy".to_owned()));
        assert!(said.contains("backend: legacy, because of netlink: owner"), "{said}");

        let (backend, said) = chosen(&[]);
        assert_eq!(backend, Err(4));
        assert_eq!(said.matches("broken").count(), 2, "{said}");
    }
}
