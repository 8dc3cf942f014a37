//! A diff says of every connection what becomes of it, and of no other: held to the second reading
//! of both files. And what it says, in words.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::net::IpAddr;

use common::reference::{Reference, Verdict, domain, is_meant};
use common::written::{Mode, Way};
use common::{Loaded, OWN, for_each_seed, loaded, pairs, random};
use fastrand::Rng;
use pillion_certs::spiffe::TrustDomain;
use pillion_policy::diff::{
    Change, Diff, Effect, Identities, MOST_CLASSES, Outcome, TooLarge, What, Who, diff,
};
use pillion_policy::load;

/// Connections that each pair of files is asked about, each way.
const EACH: u64 = 50;

fn own() -> TrustDomain {
    OWN.parse().unwrap()
}

#[derive(Debug)]
enum Peer {
    Plaintext,
    Probe(&'static str),
    Identity(String),
}

fn peer(random: &mut Rng) -> Peer {
    if random.u32(..6) == 0 {
        return Peer::Probe(random::PATHS[random.usize(..random::PATHS.len())]);
    }
    random::identity(random).map_or(Peer::Plaintext, Peer::Identity)
}

/// What the proxy does, by docs/policy.md.
fn admission(file: &Reference<'_>, ip: IpAddr, port: u16, peer: &Peer) -> Verdict {
    let by = |allow, rule: &str| Verdict { allow, rule: rule.to_owned(), shadow: None };
    if let Some(rule) = file.by_address(ip, port) {
        return by(false, &rule);
    }
    let mode = file.mode(port);
    let listed = |path: &str| file.file.probes.iter().any(|(on, p)| *on == port && p == path);
    match peer {
        _ if mode == Mode::Disable => file.inbound(ip, port, None),
        Peer::Probe(path) if listed(path) => file.probe(ip, port),
        Peer::Plaintext | Peer::Probe(_) if mode == Mode::Strict => by(false, "mtls"),
        Peer::Plaintext | Peer::Probe(_) => file.inbound(ip, port, None),
        Peer::Identity(id) if !file.accepts(domain(id)) => by(false, "trustDomains"),
        Peer::Identity(id) => file.inbound(ip, port, Some(id)),
    }
}

fn is_one_of(ids: &Identities, id: &str) -> bool {
    ids.matching.iter().all(|pattern| is_meant(pattern, id, false))
        && !ids.but_not.iter().any(|pattern| is_meant(pattern, id, false))
}

/// A verdict, what decides, and what is reported.
type Side<'s> = (&'s str, String, Option<(bool, String)>);

fn told(outcome: &Outcome) -> Side<'_> {
    let reported = outcome.reported.as_ref().map(|(allow, rule)| (*allow, rule.to_string()));
    (outcome.verdict, outcome.rule.to_string(), reported)
}

fn place(change: &Change, ip: IpAddr, port: u16) -> bool {
    change.ports.has(port) && change.addresses.iter().any(|net| net.contains(&ip))
}

/// The one change of verdicts that a connection is in must be the difference between the files.
fn agrees<'c, T: Ord>(
    found: impl Iterator<Item = &'c Change>,
    (was, now): (T, T),
    sides: [Side<'_>; 2],
    place: &str,
) {
    let found: Vec<_> = found.filter(|change| change.what == What::Verdict).collect();
    if sides[0] == sides[1] {
        assert!(found.is_empty(), "{found:?}, and nothing changes: {place}");
        return;
    }
    assert_eq!(found.len(), 1, "{found:?} {sides:?} {place}");
    assert_eq!([told(&found[0].was), told(&found[0].now)], sides, "{place}");
    let effect = match was.cmp(&now) {
        std::cmp::Ordering::Less => Effect::Loosens,
        std::cmp::Ordering::Greater => Effect::Tightens,
        std::cmp::Ordering::Equal => Effect::Changes,
    };
    assert_eq!(found[0].effect, effect, "{place}");
}

fn inbound_agrees(found: &Diff, files: [&Reference<'_>; 2], text: &str, random: &mut Rng) {
    let (ip, port, peer) = (random::address(random), port(random), peer(random));
    let place_text = format!("{ip} port {port} {peer:?}\n{text}");
    let listed = |path: &str| {
        files.iter().any(|f| f.file.probes.iter().any(|(on, p)| *on == port && p == path))
    };
    let is_meant = |who: &Who| match (who, &peer) {
        (Who::Plaintext, Peer::Plaintext) => true,
        // A path that neither lists is plaintext like any other.
        (Who::Plaintext, Peer::Probe(path)) => !listed(path),
        (Who::Probe(path), Peer::Probe(asked)) => **path == **asked,
        (Who::Identities(ids), Peer::Identity(id)) => is_one_of(ids, id),
        (Who::Stranger, Peer::Identity(id)) => files.iter().all(|f| !f.accepts(domain(id))),
        _ => false,
    };
    let here = found.changes.iter().filter(|change| change.inbound && place(change, ip, port));
    let [was, now] = files.map(|file| admission(file, ip, port, &peer));
    let side =
        |v: &Verdict| (if v.allow { "allow" } else { "deny" }, v.rule.clone(), v.shadow.clone());
    let sides = [side(&was), side(&now)];
    agrees(
        here.filter(|change| change.who.iter().any(is_meant)),
        (was.allow, now.allow),
        sides,
        &place_text,
    );
}

fn outbound_agrees(found: &Diff, files: [&Reference<'_>; 2], text: &str, random: &mut Rng) {
    let (ip, port) = (random::address(random), port(random));
    let names: Vec<&str> = random::HOSTS.iter().copied().filter(|_| random.u32(..3) == 0).collect();
    let text = format!("{ip} port {port} {names:?}\n{text}");
    let here = found.changes.iter().filter(|change| !change.inbound && place(change, ip, port));
    let here: Vec<&Change> = here.collect();
    let [(was, from), (now, to)] = files.map(|file| file.outbound(ip, port, &names));
    let side = |o: &common::reference::Outcome| (o.way.word(), o.rule.clone(), o.shadow.clone());
    let sides = [side(&was), side(&now)];
    // A name that no destination of this port has is none, whatever it was called above.
    let known = |name: &&&str| {
        files.iter().any(|f| {
            f.file.destinations.iter().any(|d| {
                d.ports.as_ref().is_none_or(|p| p.contains(&port))
                    && d.hosts.iter().any(|h| h.eq_ignore_ascii_case(name))
            })
        })
    };
    let known: Vec<&str> = names.iter().filter(known).copied().collect();
    let of = |one: &dyn Fn(&Who) -> bool| -> Vec<&Change> {
        here.iter().filter(|c| c.who.iter().any(one)).copied().collect()
    };
    let ours: Vec<&Change> = match &*known {
        [] => of(&|who| *who == Who::NoName),
        [name] => of(&|who| is_name(who, name)),
        [one, other] => {
            let both = of(&|who| is_both(who, one, other));
            let alone = of(&|who| is_name(who, one) || is_name(who, other));
            // What two have in common with one of them is told there.
            let alone = alone.into_iter().filter(|c| [told(&c.was), told(&c.now)] == sides);
            let of_one: Vec<&Change> = alone.collect();
            for change in &both {
                assert!(!of_one.contains(change), "{change:?} twice: {text}");
                let loosens = |c: &&Change| c.effect == change.effect;
                let told = of(&|who| is_name(who, one) || is_name(who, other));
                assert!(!change.told || told.iter().any(loosens), "{change:?} {text}");
            }
            let mut all = of_one;
            all.extend(both);
            all
        }
        more => {
            // With more names a verdict changes as one or two of them tell.
            let whose = |who: &Who| match who {
                Who::Name(name) => more.contains(&&**name),
                Who::Names(one, other) => [one, other]
                    .iter()
                    .all(|names| names.iter().any(|name| more.contains(&&**name))),
                _ => false,
            };
            let way = |v: &str| v.to_owned();
            let told = of(&whose).into_iter().any(|c| {
                c.what == What::Verdict
                    && [way(c.was.verdict), way(c.now.verdict)]
                        == [way(sides[0].0), way(sides[1].0)]
            });
            assert!(was.way == now.way || told, "{text}");
            return;
        }
    };
    agrees(ours.iter().copied(), (was.way, now.way), sides, &text);

    let (Some(from), Some(to), Some(id)) = (from, to, random::identity(random)) else { return };
    if was.way != Way::Mtls || now.way != Way::Mtls {
        return;
    }
    let may = |file: &Reference<'_>, servers: &[String]| {
        file.accepts(domain(&id)) && servers.iter().any(|p| is_meant(p, &id, true))
    };
    let (may_was, may_now) = (may(files[0], &from.servers), may(files[1], &to.servers));
    let has = |ids: &[Identities]| ids.iter().any(|ids| is_one_of(ids, &id));
    let gained = ours.iter().any(|c| matches!(&c.what, What::ServersGained(ids) if has(ids)));
    let lost = ours.iter().any(|c| matches!(&c.what, What::ServersLost(ids) if has(ids)));
    assert_eq!((gained, lost), (!may_was && may_now, may_was && !may_now), "{id} {text}");
    let reuse = ours.iter().any(|c| c.what == What::TunnelReuse);
    assert_eq!(reuse, from.reuse != to.reuse, "{text}");
}

fn is_name(who: &Who, name: &str) -> bool {
    matches!(who, Who::Name(one) if **one == *name)
}

fn is_both(who: &Who, one: &str, other: &str) -> bool {
    let has = |names: &[std::sync::Arc<str>], name: &str| names.iter().any(|n| **n == *name);
    matches!(who, Who::Names(a, b) if (has(a, one) && has(b, other)) || (has(a, other) && has(b, one)))
}

fn port(random: &mut Rng) -> u16 {
    random::PORTS[random.usize(..random::PORTS.len())]
}

#[test]
fn a_verdict_differs_where_the_diff_says_so_and_nowhere_else() {
    let files = pairs().div_ceil(EACH * 10);
    let asked = for_each_seed(files, |seed, random| {
        let old = random::file(random);
        let new =
            if random.u32(..4) == 0 { random::file(random) } else { random::edited(random, &old) };
        let place = format!("seed {seed}");
        let [old, new]: [Loaded; 2] = [old, new].map(|f| loaded(f, Some(&own()), &place));
        let found = match diff(&old.policy, &new.policy, MOST_CLASSES) {
            Ok(found) => found,
            Err(_) => return 0,
        };
        let text = format!("{place}\n{}\n{}", old.text, new.text);
        let files = [&old, &new].map(|l| Reference { file: &l.file, own_known: true });
        let files = [&files[0], &files[1]];
        for _ in 0..EACH {
            inbound_agrees(&found, files, &text, random);
            outbound_agrees(&found, files, &text, random);
        }
        EACH
    });
    assert!(asked > files * EACH * 9 / 10, "{asked}: too many pairs were too large");
}

/// The lines of a diff between two files that differ in `outbound`.
fn told_of(old: &str, new: &str) -> Vec<String> {
    let [old, new] = [old, new].map(|outbound| {
        let text = format!(
            "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n\
             inbound: {{mtls: strict, defaultAction: deny}}\noutbound: {{{outbound}}}\n"
        );
        load("t", &text, Some(&own())).unwrap_or_else(|e| panic!("{e}\n{text}")).policy
    });
    let found = diff(&old, &new, MOST_CLASSES).unwrap();
    found.changes.iter().filter(|c| !c.is_detail()).map(ToString::to_string).collect()
}

#[test]
fn destinations_on_one_line_are_compared_each_for_itself() {
    let both = |second: &str| {
        format!(
            "defaultAction: deny, destinations: [{{name: a, ipBlocks: [10.0.0.1], action: mtls, \
             serverIdentities: [x/a]}}, {{name: b, ipBlocks: [10.0.0.2], action: mtls, \
             serverIdentities: [{second}]}}]"
        )
    };
    let id = |sa| format!("spiffe://cluster.local/ns/x/sa/{sa}");
    let place = "outbound every port to 10.0.0.2/32";
    assert_eq!(
        told_of(&both("x/b"), &both("x/c")),
        [
            format!("loosens  {place}: the server may now be {} (mtls by b)", id("c")),
            format!("tightens {place}: the server may no longer be {} (mtls by b)", id("b")),
        ]
    );
}

/// An address of both names was carried over mTLS, by the stricter of the two.
#[test]
fn two_names_have_a_line_where_neither_alone_has_it() {
    let mtls = |name: &str, server: &str| {
        format!("{{name: {name}, hosts: [{name}], action: mtls, serverIdentities: [x/{server}]}}")
    };
    let pass = "{name: b, hosts: [b, bb], action: passthrough}";
    let file = |list: &[&str]| format!("defaultAction: deny, destinations: [{}]", list.join(", "));
    let place = "outbound every port to any address, named";
    assert_eq!(
        told_of(&file(&[&mtls("a", "a"), pass]), &file(&[pass])),
        [
            format!(
                "loosens  mtls -> passthrough  {place} both a and one of (b, bb) (was: mtls by a; \
                 now: passthrough by b)"
            ),
            format!("tightens mtls -> deny  {place} a (was: mtls by a; now: deny by default)"),
        ]
    );
    // The order says who may answer where two match: turned, each alone fares as before.
    let (a, c) = (mtls("a", "a"), mtls("c", "c"));
    let id = |sa| format!("spiffe://cluster.local/ns/x/sa/{sa} (mtls by c)");
    assert_eq!(
        told_of(&file(&[&a, &c]), &file(&[&c, &a])),
        [
            format!("loosens  {place} both a and c: the server may now be {}", id("c")),
            format!("tightens {place} both a and c: the server may no longer be {}", id("a")),
        ]
    );
    // A line of one of the two says as much already.
    let listed = [&*a, &*c];
    assert_eq!(told_of(&file(&listed), &file(&listed[..1])).len(), 1);
}

#[test]
fn one_name_alone_is_no_everybody() {
    let pass = "defaultAction: passthrough";
    let shut = format!("{pass}, destinations: [{{name: a, hosts: [a], action: deny}}]");
    assert_eq!(
        told_of(&shut, pass),
        ["loosens  deny -> passthrough  outbound every port to any address, named a \
          (was: deny by a; now: passthrough by default)"]
    );
}

#[test]
fn what_a_file_says_once_is_told_both_ways() {
    let file = |head: &str| {
        let text = format!(
            "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n{head}\n\
             inbound: {{mtls: strict, defaultAction: deny}}\n\
             outbound: {{defaultAction: passthrough}}\n"
        );
        load("t", &text, Some(&own())).unwrap_or_else(|e| panic!("{e}\n{text}")).policy
    };
    let one = file("enforcement: enforce\ntrustDomains: [a.org, b.org]");
    let other = file("enforcement: audit\ntrustDomains: [b.org, c.org]");
    let told = |old, new| {
        let found = diff(old, new, MOST_CLASSES).unwrap();
        found.settings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let domains = "trustDomains: a.org, b.org -> b.org, c.org: peers of";
    assert_eq!(
        told(&one, &other),
        [
            "loosens  enforcement: enforce -> audit: denials are only reported".to_owned(),
            format!("loosens  {domains} c.org are now accepted"),
            format!("tightens {domains} a.org are no longer accepted"),
        ]
    );
    let domains = "trustDomains: b.org, c.org -> a.org, b.org: peers of";
    assert_eq!(
        told(&other, &one),
        [
            format!("loosens  {domains} a.org are now accepted"),
            "tightens enforcement: audit -> enforce: denials act".to_owned(),
            format!("tightens {domains} c.org are no longer accepted"),
        ]
    );
    assert_eq!(told(&one, &one), [""; 0]);
}

/// Every line of a diff between two files, word by word: `pillion-proxy diff --all` prints the same.
#[test]
fn what_changes_is_told_in_words() {
    let [before, after] = ["before", "after"].map(|name| {
        let path = format!("{}/tests/diff/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        load(&path, &text, Some(&own())).unwrap_or_else(|e| panic!("{e}")).policy
    });
    let found = diff(&before, &after, MOST_CLASSES).unwrap();
    let settings = found.settings.iter().map(ToString::to_string);
    let told: Vec<_> = settings.chain(found.changes.iter().map(ToString::to_string)).collect();
    assert_eq!(told, include_str!("diff/told.txt").lines().collect::<Vec<_>>());
    // By name only: an effect that is none, of what becomes of the connection.
    for change in &found.changes {
        let by_name = change.to_string().starts_with("changes");
        assert_eq!((change.is_by_name_only(), change.is_detail()), (by_name, by_name), "{change}");
    }
}

/// A line for each of many identities, each with the addresses of another rule: few judgements, and
/// many networks.
#[test]
fn the_networks_of_the_lines_have_an_end_too() {
    let file = |networks: u32, identities: u32, named: &str| {
        let of = |n: u32| format!("{}.{}.0/24", n / 128, n % 128 * 2);
        let networks: Vec<_> = (0..networks).map(|n| format!("10.{}", of(n))).collect();
        let rule = |n| {
            format!("  - {{name: r{n}-{named}, action: allow, from: [{{identities: [a/s{n}]}}]}}\n")
        };
        let rules: String = (0..identities).map(rule).collect();
        let text = format!(
            "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n\
             inbound:\n  mtls: strict\n  defaultAction: deny\n  rules:\n\
             \x20 - {{name: net, action: deny, from: [{{ipBlocks: [{}]}}]}}\n{rules}\
             outbound: {{defaultAction: passthrough}}\n",
            networks.join(", ")
        );
        load("t", &text, Some(&own())).unwrap_or_else(|e| panic!("{e}")).policy
    };
    let changes = |networks, identities| {
        let (old, new) = (file(networks, identities, "old"), file(networks, identities, "new"));
        diff(&old, &new, MOST_CLASSES).map(|found| found.changes.len())
    };
    assert_eq!(changes(5_000, 20), Ok(20));
    assert_eq!(changes(5, 400), Ok(400));
    assert_eq!(changes(5_000, 400), Err(TooLarge { limit: MOST_CLASSES }));
}
