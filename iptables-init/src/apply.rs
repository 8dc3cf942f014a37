//! Installs: one transaction a family, and both families or neither.

use crate::address;
use crate::backend::{Backend, BackendError, Kind};
use crate::config::{Config, Ipv6Mode, Scope};
use crate::host::{Capabilities, Capability, Ipv6State, has_legacy_nat};
use crate::log::Log;
use crate::render::transaction;
use crate::rules::{Family, INBOUND_SOURCE_V6, RuleSet};
use crate::snapshot::Snapshot;

/// Why the rules are not in force as a whole. What was there before is back, except where the
/// message says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A family's transaction failed.
    #[error("{} rules: {source}{}", family.name(), cure(*family))]
    Install {
        /// Whose.
        family: Family,
        /// What the backend said.
        source: BackendError,
    },
    /// The first family's rules could not be put back after the second had failed.
    #[error(
        "{cause}; and the {} rules could not be put back: {source}; run this again with \
         --cleanup", family.name()
    )]
    RollBack {
        /// Whose.
        family: Family,
        /// Why it had to be put back.
        cause: String,
        /// What the backend said.
        source: BackendError,
    },
    /// IPv6 was asked for and is off.
    #[error(
        "IPv6 is off in this namespace; turn it on (net.ipv6.conf.lo.disable_ipv6=0), or say --ipv6=auto"
    )]
    Ipv6Off,
    /// Peers may reach the pod past the rules.
    #[error(
        "{address} is reachable, but IPv6 cannot be captured ({cause}), so it would bypass the \
         proxy; make IPv6 work for lo and ip6tables, remove the address, or accept the bypass \
         with --ipv6=off"
    )]
    Bypass {
        /// The address.
        address: String,
        /// What stands in the way.
        cause: String,
    },
    /// IPv6 was asked for, and the backend does not do it.
    #[error("IPv6 cannot be captured ({0}); make ip6tables work, or say --ipv6=auto")]
    NoIpv6Rules(#[source] BackendError),
    /// Rules of ours in the backend that is not used are still there.
    #[error("stale {} rules in {kind}: {source}; remove them with --cleanup", family.name())]
    Stale {
        /// Whose.
        family: Family,
        /// The backend that is not used.
        kind: Kind,
        /// What it said.
        source: BackendError,
    },
}

fn cure(family: Family) -> &'static str {
    match family {
        Family::V4 => {
            "; check that this kernel has the nat table with owner and multiport matches, and \
             that the proxy's ids are mapped in this user namespace"
        }
        Family::V6 => {
            "; check that this kernel has the IPv6 nat table, or leave IPv6 alone with --ipv6=off"
        }
    }
}

impl ApplyError {
    /// True when another program held the lock.
    #[must_use]
    pub fn is_lock(&self) -> bool {
        match self {
            ApplyError::Install { source, .. }
            | ApplyError::RollBack { source, .. }
            | ApplyError::Stale { source, .. } => matches!(source, BackendError::Locked { .. }),
            _ => false,
        }
    }
}

/// One family's part of a run: what is wanted, and what was there.
#[derive(Debug)]
pub struct Plan {
    /// Whose.
    pub family: Family,
    /// What is wanted.
    pub rules: RuleSet,
    /// What the nat table had before.
    pub before: Snapshot,
}

impl Plan {
    fn new(config: &Config, family: Family, before: Snapshot) -> Self {
        Self { family, rules: RuleSet::new(config, family), before }
    }
}

/// Whether to go on with IPv6.
#[derive(Debug, PartialEq, Eq)]
enum Ipv6 {
    Capture,
    Skip(&'static str),
}

fn judge_ipv6(mode: Ipv6Mode, state: &Ipv6State) -> Result<Ipv6, ApplyError> {
    match (mode, state.enabled, &state.reachable) {
        (Ipv6Mode::Off, ..) => Ok(Ipv6::Skip("left alone, as --ipv6=off says")),
        (_, true, _) => Ok(Ipv6::Capture),
        (Ipv6Mode::Auto, false, None) => {
            Ok(Ipv6::Skip("off in this namespace, nothing to capture"))
        }
        (Ipv6Mode::On, false, None) => Err(ApplyError::Ipv6Off),
        (_, false, Some(address)) => Err(ApplyError::Bypass {
            address: address.clone(),
            cause: "it is off for lo".to_owned(),
        }),
    }
}

/// Reads what is there, and decides which families are captured.
///
/// # Errors
/// The backend does not answer, or IPv6 would bypass the proxy.
pub fn plan(
    config: &Config,
    backend: &Backend,
    state: &Ipv6State,
    log: &mut Log<'_>,
) -> Result<Vec<Plan>, crate::error::Error> {
    let mut plans = vec![Plan::new(config, Family::V4, backend.save(Family::V4)?)];
    match judge_ipv6(config.ipv6, state)? {
        Ipv6::Skip(why) => {
            log.say(format_args!("IPv6: {why}"));
            if let Some(address) = &state.reachable {
                log.say(format_args!(
                    "WARNING: {address} is reachable, and IPv6 BYPASSES the proxy; \
                     say --ipv6=auto to capture it"
                ));
            }
        }
        Ipv6::Capture => match (backend.save(Family::V6), &state.reachable) {
            (Ok(before), _) => plans.push(Plan::new(config, Family::V6, before)),
            (Err(error @ BackendError::Locked { .. }), _) => return Err(error.into()),
            (Err(error), Some(address)) => {
                let (address, cause) = (address.clone(), error.to_string());
                return Err(ApplyError::Bypass { address, cause }.into());
            }
            (Err(error), None) if config.ipv6 == Ipv6Mode::On => {
                return Err(ApplyError::NoIpv6Rules(error).into());
            }
            (Err(error), None) => {
                log.say(format_args!(
                    "IPv6: not captured, and no address of it is reachable ({error})"
                ));
            }
        },
    }
    if let (Scope::Only(nets), true) = (&config.outbound_cidrs, plans.len() > 1) {
        for family in Family::ALL {
            if !nets.iter().any(|net| family.has(net)) {
                let name = family.name();
                log.say(format_args!(
                    "outbound-cidrs has no {name} range: what the app dials over {name} is not \
                     captured"
                ));
            }
        }
    }
    Ok(plans)
}

/// Makes the transactions in order. When one fails, those before it are put back.
///
/// # Errors
/// A transaction or the address failed.
pub fn install(
    backend: &Backend,
    plans: &[Plan],
    log: &mut Log<'_>,
) -> Result<(), crate::error::Error> {
    let mut address_added = false;
    for (index, plan) in plans.iter().enumerate() {
        if let Err(error) = install_one(backend, plan, &mut address_added) {
            let done = plans.get(..index).unwrap_or_default();
            roll_back(backend, done, address_added, &error)?;
            return Err(error);
        }
        let family = plan.family.name();
        let count = plan.rules.rules().len();
        log.say(format_args!("{family}: {count} rules in force ({})", backend.kind()));
        if plan.family == Family::V6 {
            let done = if address_added { "added to" } else { "already on" };
            log.say(format_args!("IPv6: {INBOUND_SOURCE_V6}/128 {done} lo"));
        }
    }
    Ok(())
}

fn install_one(
    backend: &Backend,
    plan: &Plan,
    address_added: &mut bool,
) -> Result<(), crate::error::Error> {
    if plan.family == Family::V6 {
        *address_added = address::add()?;
    }
    let text = transaction(&plan.rules, &plan.before.jump_deletions());
    let family = plan.family;
    backend.restore(family, &text).map_err(|source| ApplyError::Install { family, source })?;
    Ok(())
}

fn roll_back(
    backend: &Backend,
    done: &[Plan],
    address_added: bool,
    cause: &crate::error::Error,
) -> Result<(), ApplyError> {
    for plan in done {
        let back = backend
            .save(plan.family)
            .and_then(|now| backend.restore(plan.family, &plan.before.return_from(&now)));
        back.map_err(|source| ApplyError::RollBack {
            family: plan.family,
            cause: cause.to_string(),
            source,
        })?;
    }
    if address_added {
        // Harmless when it stays: nothing listens on it, and the next run wants it.
        let _stays = address::remove();
    }
    Ok(())
}

/// Takes rules of ours out of the backend that is not used. Both backends act on each connection,
/// so stale rules would still redirect. Called once the new set is live: with a gap between the
/// two, captured connections would be reset.
///
/// # Errors
/// There are such rules and they cannot be removed.
pub fn remove_stale(
    live: Kind,
    path: &str,
    capabilities: Capabilities,
    log: &mut Log<'_>,
) -> Result<(), ApplyError> {
    let kind = live.other();
    for (family, text) in stale(kind, path, capabilities, log) {
        Backend::new(kind, path).restore(family, &text).map_err(|source| ApplyError::Stale {
            family,
            kind,
            source,
        })?;
        log.say(format_args!("{}: rules of an earlier run removed from {kind}", family.name()));
    }
    Ok(())
}

/// What is ours in a backend, as the transactions that remove it. Looking creates nothing: where
/// no legacy table is, no legacy program is run.
pub(crate) fn stale(
    kind: Kind,
    path: &str,
    capabilities: Capabilities,
    log: &mut Log<'_>,
) -> Vec<(Family, String)> {
    let backend = Backend::new(kind, path);
    let mut found = Vec::new();
    // Legacy is looked for in the kernel, below.
    if let (Kind::Nft, Err(missing)) = (kind, backend.installed()) {
        log.say(format_args!("nft: not searched for stale rules: {missing}"));
        return found;
    }
    for family in Family::ALL {
        if kind == Kind::Legacy {
            match has_legacy_nat(family) {
                Ok(false) => continue,
                Ok(true) if !capabilities.has(Capability::NetRaw) => {
                    log.say(format_args!(
                        "{}: a legacy nat table is there, but without NET_RAW it cannot be \
                         searched for stale rules",
                        family.name()
                    ));
                    continue;
                }
                Ok(true) => {}
                Err(error) => {
                    log.say(error);
                    continue;
                }
            }
        }
        match backend.look(family) {
            Ok(snapshot) => found.extend(snapshot.removal().map(|text| (family, text))),
            // A backend that is not installed, or that the kernel does not serve, has no rules
            // that this program made; a legacy table that cannot be read is worth a line.
            Err(error) if kind == Kind::Legacy => log.say(error),
            Err(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(enabled: bool, reachable: bool) -> Ipv6State {
        Ipv6State { enabled, reachable: reachable.then(|| "fd00::2 on eth0".to_owned()) }
    }

    #[test]
    fn ipv6_is_never_bypassed_in_silence() {
        for mode in [Ipv6Mode::Auto, Ipv6Mode::On] {
            for reachable in [false, true] {
                let judged = judge_ipv6(mode, &state(true, reachable)).unwrap();
                assert_eq!(judged, Ipv6::Capture, "{mode:?} {reachable}");
            }
            let bypass = judge_ipv6(mode, &state(false, true)).unwrap_err().to_string();
            assert!(bypass.contains("fd00::2 on eth0"), "{bypass}");
        }
    }

    #[test]
    fn ipv6_off_is_skipped_unless_it_is_asked_for() {
        let off = state(false, false);
        assert!(matches!(judge_ipv6(Ipv6Mode::Auto, &off), Ok(Ipv6::Skip(_))));
        assert!(matches!(judge_ipv6(Ipv6Mode::On, &off), Err(ApplyError::Ipv6Off)));
        assert!(matches!(judge_ipv6(Ipv6Mode::Off, &state(true, true)), Ok(Ipv6::Skip(_))));
    }
}
