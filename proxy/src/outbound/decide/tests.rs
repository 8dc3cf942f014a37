//! Verdicts while the names of the policy change, are slow, or have no answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use pillion_policy::load;
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::lane::Lane;
use crate::live::testing::resolving;
use crate::live::{Guard, Host, HostAddresses, Known, RESOLVE_WAIT, ResolveRequest};
use crate::net::ClientAddr;
use crate::telemetry::Direction;

const ADDRESS: &str = "10.0.0.1";
const ORDERS: &str =
    "name: orders, hosts: [orders.test], action: mtls, serverIdentities: [\"spiffe://x/o\"]";
const OPEN: &str = "name: open, hosts: [open.test], action: passthrough";
const SHUT: &str = "name: shut, hosts: [shut.test], action: deny";

fn policy(top: &str, default: &str, destinations: &[&str]) -> Arc<Policy> {
    let destinations: String = destinations.iter().map(|one| format!("  - {{{one}}}\n")).collect();
    let text = format!(
        "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n{top}\
         trustDomains: [x]\ninbound: {{mtls: strict, defaultAction: deny}}\n\
         outbound:\n  defaultAction: {default}\n  destinations:\n{destinations}"
    );
    Arc::new(load("t", &text, None).unwrap_or_else(|e| panic!("{e}\n{text}")).policy)
}

/// An outbound connection to port 80 of the address.
struct World {
    lane: Rc<Lane>,
    guard: Guard,
    dst: OriginalDst,
}

/// That, and what the resolver is asked.
fn world(policy: &Arc<Policy>) -> (World, Receiver<ResolveRequest>) {
    let (shared, requests) = resolving(&[]);
    let dst = OriginalDst(format!("{ADDRESS}:80").parse().unwrap());
    let lane = Lane::new(shared, 0);
    let guard = lane.registry.register(Direction::Outbound, ClientAddr(dst.0));
    guard.conn.set_destination(dst);
    let world = World { lane, guard, dst };
    world.publish(policy);
    (world, requests)
}

impl World {
    fn publish(&self, policy: &Arc<Policy>) {
        self.lane.shared.published.policy.store(Some(Arc::clone(policy)));
    }

    /// All names are known; these have the address.
    fn have(&self, names: &[&str]) {
        let host = |name: &str| {
            let has = names.contains(&name).then(|| ADDRESS.parse::<IpAddr>().unwrap());
            let known = Known::Addresses(has.into_iter().collect());
            (Arc::from(name), Host { a: known.clone(), aaaa: known })
        };
        let hosts: HashMap<Arc<str>, _> =
            ["orders.test", "open.test", "shut.test", "new.test"].map(host).into();
        self.lane.shared.published.hosts.store(Arc::new(HostAddresses(hosts)));
    }

    /// The verdict as "rule" or "reason", and the names that were looked up. While they are, these
    /// come to have the address, and those have no answer.
    async fn decide(
        &self,
        requests: &mut Receiver<ResolveRequest>,
        have: &[&str],
        unanswered: &[&str],
    ) -> (String, Vec<String>) {
        let deciding = decide(&self.lane.shared, &self.guard.conn, self.dst);
        tokio::pin!(deciding);
        let mut asked = Vec::new();
        let decided = loop {
            tokio::select! {
                decided = &mut deciding => break decided,
                Some(request) = requests.recv() => {
                    asked.extend(request.names.iter().map(ToString::to_string));
                    self.have(have);
                    let unanswered = unanswered.iter().map(|name| Arc::from(*name));
                    request.done.send(unanswered.collect()).unwrap();
                }
            }
        };
        (word(decided), asked)
    }
}

fn word(decided: Result<OutboundDecision, CloseReason>) -> String {
    match decided {
        Err(reason) => reason.label().to_owned(),
        Ok(OutboundDecision::Deny { rule }) => format!("deny {rule}"),
        Ok(OutboundDecision::Mtls { rule, .. }) => format!("mtls {rule}"),
        Ok(OutboundDecision::Passthrough { rule, .. }) => format!("passthrough {rule}"),
    }
}

#[tokio::test]
async fn a_stricter_name_is_looked_up_though_another_has_the_address() {
    let (world, mut requests) = world(&policy("", "passthrough", &[OPEN, ORDERS]));
    world.have(&["open.test"]);
    let (verdict, asked) = world.decide(&mut requests, &["open.test", "orders.test"], &[]).await;
    assert_eq!((&*verdict, &*asked), ("mtls orders", &["orders.test".to_owned()][..]));
}

#[tokio::test]
async fn nothing_is_looked_up_that_could_change_nothing() {
    let orders_81 = format!("{ORDERS}, ports: [81]");
    for (default, destinations, have, verdict) in [
        ("passthrough", &[OPEN, &orders_81][..], "open.test", "passthrough open"),
        ("deny", &[OPEN, &orders_81], "open.test", "passthrough open"),
        ("passthrough", &[OPEN, ORDERS], "orders.test", "mtls orders"),
        ("passthrough", &[OPEN, ORDERS, SHUT], "shut.test", "deny shut"),
        ("passthrough", &[&orders_81], "", "passthrough default"),
        ("deny", &[&orders_81], "", "deny default"),
    ] {
        let (world, mut requests) = world(&policy("", default, destinations));
        world.have(&[have]);
        let (decided, asked) =
            world.decide(&mut requests, &["orders.test"], &["orders.test"]).await;
        assert_eq!((&*decided, asked.len()), (verdict, 0), "{destinations:?}");
    }
}

#[tokio::test]
async fn by_default_every_name_of_the_port_is_looked_up() {
    for (top, default, verdict) in [
        ("", "passthrough", "passthrough default"),
        ("", "deny", "deny default"),
        ("enforcement: audit\n", "deny", "passthrough audit"),
    ] {
        let (world, mut requests) = world(&policy(top, default, &[OPEN, ORDERS, SHUT]));
        world.have(&[]);
        let (decided, asked) = world.decide(&mut requests, &[], &[]).await;
        assert_eq!(decided, verdict);
        assert_eq!(asked, ["open.test", "orders.test", "shut.test"]);
        // Found to be the name's own: the default was not the last word.
        let (decided, _) = world.decide(&mut requests, &["open.test"], &[]).await;
        assert_eq!(decided, "passthrough open");
    }
}

#[tokio::test]
async fn a_name_without_an_answer_is_no_name_without_the_address() {
    let audit = "enforcement: audit\n";
    for (top, default, have, unanswered, verdict) in [
        ("", "passthrough", "", "orders.test", "name_unresolved"),
        ("", "passthrough", "", "shut.test", "name_unresolved"),
        ("", "passthrough", "open.test", "orders.test", "name_unresolved"),
        ("", "passthrough", "orders.test", "shut.test", "name_unresolved"),
        ("", "passthrough", "", "open.test", "passthrough default"),
        ("", "passthrough", "orders.test", "open.test", "mtls orders"),
        ("", "passthrough", "orders.test", "orders.test", "mtls orders"),
        ("", "deny", "", "orders.test", "deny default"),
        (audit, "passthrough", "", "shut.test", "passthrough default"),
        (audit, "deny", "", "orders.test", "name_unresolved"),
    ] {
        let (world, mut requests) = world(&policy(top, default, &[OPEN, ORDERS, SHUT]));
        world.have(&[have]);
        let (decided, _) = world.decide(&mut requests, &[have], &[unanswered]).await;
        assert_eq!(decided, verdict, "{top}{default}: {have:?} has it, {unanswered} has no answer");
    }
}

#[tokio::test]
async fn where_nobody_looks_names_up_a_stricter_one_may_have_the_address() {
    let (world, mut requests) = world(&policy("", "passthrough", &[ORDERS]));
    world.have(&[]);
    requests.close();
    let decided = decide(&world.lane.shared, &world.guard.conn, world.dst).await;
    assert_eq!(word(decided), "name_unresolved");
}

#[tokio::test]
async fn a_resolver_that_is_silent_is_waited_for_and_then_no_answer() {
    let (world, _requests) = world(&policy("", "passthrough", &[ORDERS]));
    world.have(&[]);
    let start = Instant::now();
    let decided = decide(&world.lane.shared, &world.guard.conn, world.dst).await;
    assert_eq!(word(decided), "name_unresolved");
    assert!(start.elapsed() >= RESOLVE_WAIT);
}

#[tokio::test]
async fn names_of_a_policy_that_comes_meanwhile_are_looked_up_too() {
    let (world, mut requests) = world(&policy("", "passthrough", &[ORDERS]));
    world.have(&[]);
    let new = "name: new, hosts: [new.test], action: deny";
    let newer = policy("", "passthrough", &[ORDERS, new]);
    let deciding = decide(&world.lane.shared, &world.guard.conn, world.dst);
    let resolving = async {
        let first = requests.recv().await.unwrap();
        assert_eq!(*first.names, [Arc::from("orders.test")]);
        world.publish(&newer);
        first.done.send(Vec::new()).unwrap();
        let second = requests.recv().await.unwrap();
        assert_eq!(*second.names, [Arc::from("new.test"), Arc::from("orders.test")]);
        world.have(&["new.test"]);
        second.done.send(Vec::new()).unwrap();
    };
    let (decided, ()) = tokio::join!(deciding, resolving);
    assert_eq!(word(decided), "deny new");
}

#[tokio::test]
async fn a_policy_that_never_stands_still_lets_nothing_through() {
    let (world, mut requests) = world(&policy("", "passthrough", &[ORDERS]));
    world.have(&[]);
    let deciding = decide(&world.lane.shared, &world.guard.conn, world.dst);
    let resolving = async {
        for _ in 0..MOST_LOOK_UPS {
            let request = requests.recv().await.unwrap();
            world.publish(&policy("", "passthrough", &[ORDERS]));
            request.done.send(Vec::new()).unwrap();
        }
    };
    let (decided, ()) = tokio::join!(deciding, resolving);
    assert_eq!(word(decided), "name_unresolved");
}

/// As in the middle of a handshake.
#[tokio::test]
async fn what_is_judged_keeps_its_name_though_an_answer_leaves_the_address_out() {
    for default in ["deny", "passthrough"] {
        let (world, mut requests) = world(&policy("", default, &[ORDERS]));
        world.have(&["orders.test"]);
        assert_eq!(world.decide(&mut requests, &[], &[]).await.0, "mtls orders");
        world.have(&[]);
        let again = || word(decide_again(&world.lane.shared, &world.guard.conn, world.dst));
        assert_eq!(again(), "mtls orders");
        world.publish(&policy("", default, &[&format!("{ORDERS}, ports: [81]")]));
        assert_eq!(again(), format!("{default} default"), "the policy of now");
    }
}
