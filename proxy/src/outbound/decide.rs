//! The verdict on an outbound connection, whatever the policy's names turn out to be.

use std::collections::BTreeSet;
use std::sync::Arc;

use pillion_policy::{
    AUDIT_RULE, DEFAULT_RULE, Destination, Enforcement, HostTable, OutboundAction,
    OutboundDecision, Policy,
};

use crate::live::{Conn, HostAddresses, Shared};
use crate::net::OriginalDst;
use crate::telemetry::CloseReason;

/// How often the names are looked up for one connection, when each time the policy is replaced
/// meanwhile.
const MOST_LOOK_UPS: usize = 3;

/// The verdict. An address that a name is not known to have may have become its own a moment ago.
/// So the names by which something else would be decided are looked up once more first. What can't
/// be said of a name is not taken for a no.
///
/// # Errors
/// [`CloseReason::NameUnresolved`] when a name has no answer and its destination would decide more
/// strictly; [`CloseReason::NoPolicy`].
pub(super) async fn decide(
    shared: &Shared,
    conn: &Conn,
    dst: OriginalDst,
) -> Result<OutboundDecision, CloseReason> {
    for _ in 0..MOST_LOOK_UPS {
        let policy = shared.published.policy.load_full().ok_or(CloseReason::NoPolicy)?;
        let names = {
            let hosts = shared.published.hosts.load();
            let decision = policy.outbound(dst.0.ip(), dst.0.port(), &**hosts);
            let names = other_names(&policy, &decision, dst, &**hosts);
            if names.is_empty() {
                // By the addresses that no other name mattered by.
                return settle(shared, conn, dst, (&policy, &hosts), &[]);
            }
            names
        };
        let unanswered = shared.look_up(names, dst.0.ip()).await;
        let newest = shared.published.policy.load();
        if newest.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, &policy)) {
            let hosts = shared.published.hosts.load();
            return settle(shared, conn, dst, (&policy, &hosts), &unanswered);
        }
    }
    conn.set_detail("the policy was replaced each time that its names had been looked up");
    Err(CloseReason::NameUnresolved)
}

/// Judges by what was just published, and records the verdict. Nothing is awaited in between: who
/// changes the policy or the addresses has all connections judged again after this.
fn settle(
    shared: &Shared,
    conn: &Conn,
    dst: OriginalDst,
    (policy, hosts): (&Policy, &HostAddresses),
    unanswered: &[Arc<str>],
) -> Result<OutboundDecision, CloseReason> {
    let decision = policy.outbound(dst.0.ip(), dst.0.port(), hosts);
    if let Some(name) = undecided(policy, &decision, dst, unanswered) {
        conn.set_detail(format!("{name} can't be resolved now, and may be what {dst} is"));
        return Err(CloseReason::NameUnresolved);
    }
    conn.set_names(hosts.names_of(dst.0.ip()));
    let (allow, rule, shadow) = match &decision {
        OutboundDecision::Deny { rule } => (false, rule, None),
        OutboundDecision::Mtls { rule, shadow, .. }
        | OutboundDecision::Passthrough { rule, shadow } => (true, rule, shadow.clone()),
    };
    shared.decided(conn, allow, rule, shadow);
    Ok(decision)
}

/// What the policy of this moment says of a connection that is judged already.
///
/// # Errors
/// [`CloseReason::NoPolicy`].
pub(super) fn decide_again(
    shared: &Shared,
    conn: &Conn,
    dst: OriginalDst,
) -> Result<OutboundDecision, CloseReason> {
    let policy = shared.published.policy.load();
    let policy = policy.as_deref().ok_or(CloseReason::NoPolicy)?;
    let now = shared.published.hosts.load();
    Ok(conn.with_hosts(&now, |hosts| policy.outbound(dst.0.ip(), dst.0.port(), hosts)))
}

/// The names on this port that don't have the address, where one of them would change the
/// decision: each destination's after a decision by default, else a stricter one's.
fn other_names(
    policy: &Policy,
    decision: &OutboundDecision,
    dst: OriginalDst,
    hosts: &dyn HostTable,
) -> Vec<Arc<str>> {
    let (OutboundDecision::Deny { rule }
    | OutboundDecision::Mtls { rule, .. }
    | OutboundDecision::Passthrough { rule, .. }) = decision;
    let by_default = [DEFAULT_RULE, AUDIT_RULE].contains(&&**rule);
    let other = |host: &&Arc<str>| !hosts.contains(host, dst.0.ip());
    let by_name = || policy.destinations_by_name(dst.0.port());
    let matters = |one: &Arc<Destination>| {
        (by_default || is_stricter(one.action(), decision)) && one.hosts().iter().any(|h| other(&h))
    };
    if !by_name().any(matters) {
        return Vec::new();
    }
    // Meanwhile the name that decides now may lose the address, and then any other counts.
    let names = by_name().flat_map(|one| one.hosts()).filter(other);
    let names: BTreeSet<_> = names.collect();
    names.into_iter().cloned().collect()
}

/// One of the names without an answer, of a destination that would decide more strictly if the
/// address were its own.
fn undecided<'n>(
    policy: &Policy,
    decision: &OutboundDecision,
    dst: OriginalDst,
    unanswered: &'n [Arc<str>],
) -> Option<&'n Arc<str>> {
    if unanswered.is_empty() {
        return None;
    }
    // Under audit a denial is lifted, and so is one that may be.
    let audit = policy.enforcement() == Enforcement::Audit;
    let stricter = |one: &&Arc<Destination>| {
        let lifted = audit && one.action() == OutboundAction::Deny;
        is_stricter(one.action(), decision) && !lifted
    };
    let names: BTreeSet<_> = policy
        .destinations_by_name(dst.0.port())
        .filter(stricter)
        .flat_map(|one| one.hosts())
        .collect();
    unanswered.iter().find(|name| names.contains(name))
}

fn is_stricter(action: OutboundAction, decision: &OutboundDecision) -> bool {
    match decision {
        OutboundDecision::Deny { .. } => false,
        OutboundDecision::Mtls { .. } => action == OutboundAction::Deny,
        OutboundDecision::Passthrough { .. } => action != OutboundAction::Passthrough,
    }
}

#[cfg(test)]
mod tests;
