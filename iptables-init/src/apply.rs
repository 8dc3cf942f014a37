//! Installs both families or neither: by netlink in one transaction, by programs in one a family.

use crate::address;
use crate::backend::{Backend, BackendError, Programs};
use crate::config::{Config, ConfigError, ConfigErrors, Ipv6Mode, Scope};
use crate::error::Error;
use crate::ipv6::Ipv6State;
use crate::log::Log;
use crate::netlink::{self, Change};
use crate::rules::{Family, INBOUND_SOURCE_V6, RuleSet};
use crate::snapshot::Snapshot;

/// Why the rules are not in force as a whole. What was there before is there, except where the
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
    /// The transaction of both families failed.
    #[error("{source}{}", cure(Family::V4))]
    Together {
        /// What the kernel said.
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
    /// Peers may reach the pod past the rules, now or later: `lo` has no IPv6.
    #[error(
        "{exposure}, but IPv6 cannot be captured (it is off for lo), so it would bypass the proxy; \
         turn it on for lo (net.ipv6.conf.lo.disable_ipv6=0), turn it off for all interfaces \
         (net.ipv6.conf.all.disable_ipv6=1), or accept the bypass with --ipv6=off"
    )]
    LoOff {
        /// The address or the interface.
        exposure: String,
    },
    /// The same, because the backend does not do IPv6.
    #[error(
        "{exposure}, but IPv6 cannot be captured ({source}), so it would bypass the proxy; make \
         ip6tables work, turn IPv6 off for all interfaces (net.ipv6.conf.all.disable_ipv6=1), or \
         accept the bypass with --ipv6=off"
    )]
    Bypass {
        /// The address or the interface.
        exposure: String,
        /// What the backend said.
        source: BackendError,
    },
    /// IPv6 was asked for, and the backend does not do it.
    #[error("IPv6 cannot be captured ({0}); make ip6tables work, or say --ipv6=auto")]
    NoIpv6Rules(#[source] BackendError),
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
    /// What the backend said, when it was the backend.
    #[must_use]
    pub fn backend(&self) -> Option<&BackendError> {
        match self {
            ApplyError::Install { source, .. }
            | ApplyError::RollBack { source, .. }
            | ApplyError::Bypass { source, .. }
            | ApplyError::Together { source }
            | ApplyError::NoIpv6Rules(source) => Some(source),
            ApplyError::Ipv6Off | ApplyError::LoOff { .. } => None,
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

/// `auto` skips IPv6 only where no connection can come over it, now or later. What can be reached
/// at this instant alone would not do: an address may come after this program has ended.
fn judge_ipv6(mode: Ipv6Mode, state: &Ipv6State) -> Result<Ipv6, ApplyError> {
    match (mode, state.enabled, state.exposure()) {
        (Ipv6Mode::Off, ..) => Ok(Ipv6::Skip("left alone, as --ipv6=off says")),
        (Ipv6Mode::Auto, _, None) => Ok(Ipv6::Skip("off in this namespace, nothing to capture")),
        (_, true, _) => Ok(Ipv6::Capture),
        (Ipv6Mode::On, false, None) => Err(ApplyError::Ipv6Off),
        (_, false, Some(exposure)) => Err(ApplyError::LoOff { exposure }),
    }
}

/// Reads what is there, and decides which families are captured.
///
/// # Errors
/// The backend does not answer, IPv6 would bypass the proxy, or the limits leave nothing captured.
pub fn plan(
    config: &Config,
    backend: &Backend,
    state: &Ipv6State,
    log: &mut Log<'_>,
) -> Result<Vec<Plan>, Error> {
    let mut plans = vec![Plan::new(config, Family::V4, backend.save(Family::V4)?)];
    match judge_ipv6(config.ipv6, state)? {
        Ipv6::Skip(why) => {
            log.say(format_args!("IPv6: {why}"));
            if let Some(exposure) = state.exposure() {
                log.say(format_args!(
                    "WARNING: {exposure}, and IPv6 BYPASSES the proxy; say --ipv6=auto to capture \
                     it"
                ));
            }
        }
        Ipv6::Capture => match (backend.save(Family::V6), state.exposure()) {
            (Ok(before), _) => plans.push(Plan::new(config, Family::V6, before)),
            (Err(error @ (BackendError::Locked { .. } | BackendError::Busy { .. })), _) => {
                return Err(error.into());
            }
            (Err(source), Some(exposure)) => {
                return Err(ApplyError::Bypass { exposure, source }.into());
            }
            (Err(source), None) => return Err(ApplyError::NoIpv6Rules(source).into()),
        },
    }
    for warning in limits(config, &plans)? {
        log.say(warning);
    }
    Ok(plans)
}

/// What `--outbound-cidrs` leaves uncaptured, in words.
///
/// # Errors
/// That is everything.
fn limits(config: &Config, plans: &[Plan]) -> Result<Vec<String>, Error> {
    let Scope::Only(nets) = &config.outbound_cidrs else { return Ok(Vec::new()) };
    let named = |family: Family| nets.iter().any(|net| family.has(net));
    let planned = |family: Family| plans.iter().any(|plan| plan.family == family);
    if !plans.iter().any(|plan| named(plan.family)) {
        let names: Vec<&str> = plans.iter().map(|plan| plan.family.name()).collect();
        let names = names.join(" or ");
        return Err(Error::Config(ConfigErrors(vec![ConfigError {
            place: "outbound-cidrs".to_owned(),
            problem: format!(
                "there is no {names} range, and nothing else is captured here, so all that the \
                 app dials would bypass the proxy; add such a range, or write `all`"
            ),
        }])));
    }
    let words = Family::ALL.into_iter().filter_map(|family| {
        let name = family.name();
        match (named(family), planned(family)) {
            (false, true) => Some(format!(
                "WARNING: outbound-cidrs has no {name} range: what the app dials over {name} is \
                 not captured"
            )),
            (true, false) => Some(format!(
                "WARNING: outbound-cidrs has a range of {name}, and {name} is not captured here"
            )),
            _ => None,
        }
    });
    Ok(words.collect())
}

/// Puts the rules in force.
///
/// # Errors
/// A transaction or the address failed.
pub fn install(backend: &Backend, plans: &[Plan], log: &mut Log<'_>) -> Result<(), Error> {
    match backend {
        Backend::Netlink => install_together(plans, log),
        Backend::Programs(programs) => install_in_order(programs, plans, log),
    }
}

/// One transaction, so there is nothing to put back but the address.
fn install_together(plans: &[Plan], log: &mut Log<'_>) -> Result<(), Error> {
    let with_ipv6 = plans.iter().any(|plan| plan.family == Family::V6);
    let address_added = with_ipv6 && address::add()?;
    let changes: Vec<Change<'_>> =
        plans.iter().map(|plan| Change::Replace(plan.family, &plan.rules)).collect();
    if let Err(source) = netlink::commit(&changes) {
        take_back_address(address_added);
        return Err(ApplyError::Together { source }.into());
    }
    for plan in plans {
        say_installed(plan, &Backend::Netlink, address_added, log);
    }
    Ok(())
}

/// Makes the transactions in order. When one fails, those before it are put back.
fn install_in_order(programs: &Programs, plans: &[Plan], log: &mut Log<'_>) -> Result<(), Error> {
    let backend = Backend::Programs(programs.clone());
    let mut address_added = false;
    for (index, plan) in plans.iter().enumerate() {
        if let Err(error) = install_one(programs, plan, &mut address_added) {
            let done = plans.get(..=index).unwrap_or_default();
            roll_back(programs, done, address_added, &error, log)?;
            return Err(error);
        }
        say_installed(plan, &backend, address_added, log);
    }
    Ok(())
}

fn say_installed(plan: &Plan, backend: &Backend, address_added: bool, log: &mut Log<'_>) {
    let family = plan.family.name();
    let count = plan.rules.rules().len();
    log.say(format_args!("{family}: {count} rules in force ({backend})"));
    if plan.family == Family::V6 {
        let done = if address_added { "added to" } else { "already on" };
        log.say(format_args!("IPv6: {INBOUND_SOURCE_V6}/128 {done} lo"));
    }
}

fn take_back_address(added: bool) {
    if added {
        // Harmless when it stays: nothing listens on it, and the next run wants it.
        let _stays = address::remove();
    }
}

fn install_one(programs: &Programs, plan: &Plan, address_added: &mut bool) -> Result<(), Error> {
    if plan.family == Family::V6 {
        *address_added = address::add()?;
    }
    let text = plan.before.replacement(&plan.rules);
    let family = plan.family;
    programs.restore(family, &text).map_err(|source| ApplyError::Install { family, source })?;
    Ok(())
}

fn roll_back(
    programs: &Programs,
    done: &[Plan],
    address_added: bool,
    cause: &Error,
    log: &mut Log<'_>,
) -> Result<(), ApplyError> {
    for plan in done {
        let failed =
            |source| ApplyError::RollBack { family: plan.family, cause: cause.to_string(), source };
        let now = programs.save(plan.family).map_err(failed)?;
        if now == plan.before {
            continue;
        }
        let back = plan.before.return_from(&now);
        programs.restore(plan.family, &back).map_err(failed)?;
        log.say(format_args!("{}: what was there before is back", plan.family.name()));
    }
    take_back_address(address_added);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(enabled: bool, reachable: bool, possible: bool) -> Ipv6State {
        Ipv6State {
            enabled,
            reachable: reachable.then(|| "fd00::2 on eth0".to_owned()),
            possible: possible.then(|| "eth0".to_owned()),
        }
    }

    #[test]
    fn ipv6_is_never_bypassed_in_silence() {
        for mode in [Ipv6Mode::Auto, Ipv6Mode::On] {
            for (reachable, possible) in [(true, true), (true, false), (false, true)] {
                let judged = judge_ipv6(mode, &state(true, reachable, possible)).unwrap();
                assert_eq!(judged, Ipv6::Capture, "{mode:?} {reachable} {possible}");
                let off = state(false, reachable, possible);
                let bypass = judge_ipv6(mode, &off).unwrap_err().to_string();
                let names = if reachable { "fd00::2 on eth0" } else { "IPv6 is on for eth0" };
                assert!(bypass.contains(names), "{bypass}");
            }
        }
    }

    #[test]
    fn ipv6_off_is_skipped_unless_it_is_asked_for() {
        for lo in [true, false] {
            let off = state(lo, false, false);
            assert!(matches!(judge_ipv6(Ipv6Mode::Auto, &off), Ok(Ipv6::Skip(_))), "{lo}");
        }
        assert_eq!(judge_ipv6(Ipv6Mode::On, &state(true, false, false)).unwrap(), Ipv6::Capture);
        let off = judge_ipv6(Ipv6Mode::On, &state(false, false, false));
        assert!(matches!(off, Err(ApplyError::Ipv6Off)));
        assert!(matches!(judge_ipv6(Ipv6Mode::Off, &state(true, true, true)), Ok(Ipv6::Skip(_))));
    }

    #[test]
    fn a_limit_that_leaves_nothing_captured_is_refused() {
        let judge = |cidrs: &str, families: &[Family]| {
            let config =
                Config::from_arguments(&[&format!("--outbound-cidrs={cidrs}")], &[]).unwrap();
            let plans: Vec<Plan> = families
                .iter()
                .map(|family| Plan::new(&config, *family, Snapshot::parse("")))
                .collect();
            limits(&config, &plans)
        };
        let [both, v4] = [&Family::ALL[..], &[Family::V4]];
        let refused = judge("fd00::/8", v4).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().contains("no IPv4 range"), "{refused}");

        let said = judge("fd00::/8", both).unwrap();
        assert!(said.len() == 1 && said[0].contains("no IPv4 range"), "{said:?}");
        let said = judge("fd00::/8,10.0.0.0/8", v4).unwrap();
        assert!(said.len() == 1 && said[0].contains("IPv6 is not captured here"), "{said:?}");
        assert!(judge("10.0.0.0/8,fd00::/8", both).unwrap().is_empty());
        assert!(judge("all", v4).unwrap().is_empty());
        assert!(judge("10.0.0.0/8", v4).unwrap().is_empty());
    }
}
