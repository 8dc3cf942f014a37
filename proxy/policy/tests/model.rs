//! The engine against a second reading of the rules, over a million random connections to random
//! policies each way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::reference::{Outcome, Reference, Verdict, in_cidr, is_meant};
use common::written::{File, Mode, Way};
use common::{Loaded, OWN, for_each_seed, loaded, pairs, random};
use fastrand::Rng;
use pillion_certs::spiffe::{SpiffeId, TrustDomain};
use pillion_policy::{
    AppAddress, Decision, HostTable, InboundConn, OutboundDecision, Policy, Shadow,
};

/// Connections that each policy is asked about.
const EACH: u64 = 50;

struct Case {
    seed: u64,
    own: Option<TrustDomain>,
    /// As it was made up; rules that decide nothing are among these.
    whole: File,
    /// What the policy was made of.
    file: File,
    text: String,
    policy: Policy,
    /// The names of rules, then of destinations, that the check found to decide nothing.
    dead: [BTreeSet<String>; 2],
}

/// Without the rules that the check refuses, the others' verdicts must be what they are with them.
fn case(seed: u64, random: &mut Rng) -> Case {
    // Now and then as on a command line that doesn't say which domain is ours.
    let own: Option<TrustDomain> = (random.u32(..8) > 0).then(|| OWN.parse().unwrap());
    let whole = random::file(random);
    let Loaded { file, text, policy, dead } =
        loaded(whole.clone(), own.as_ref(), &format!("seed {seed}"));
    Case { seed, own, whole, file, text, policy, dead }
}

impl Case {
    fn reference<'f>(&self, file: &'f File) -> Reference<'f> {
        Reference { file, own_known: self.own.is_some() }
    }
}

fn reported(shadow: Option<&Shadow>) -> Option<(bool, String)> {
    shadow.map(|shadow| (shadow.allow, shadow.rule.to_string()))
}

/// Half of the ports are listed by most files.
fn port(random: &mut Rng) -> u16 {
    random::PORTS[random.usize(..random::PORTS.len())]
}

fn verdict(decision: &Decision) -> Verdict {
    let (allow, rule) = (decision.allow, decision.rule.to_string());
    Verdict { allow, rule, shadow: reported(decision.shadow.as_ref()) }
}

fn inbound_agrees(case: &Case, random: &mut Rng) {
    let (reference, policy) = (case.reference(&case.whole), &case.policy);
    let (ip, port) = (random::address(random), port(random));
    // Where TLS is off, no peer has an identity.
    let id = random::identity(random).filter(|_| reference.mode(port) != Mode::Disable);
    let place =
        || format!("seed {}: {ip} port {port} {id:?} own {:?}\n{}", case.seed, case.own, case.text);
    let spiffe: Option<SpiffeId> = id.as_deref().map(|id| id.parse().unwrap());
    let conn = InboundConn { source: ip, port, identity: spiffe.as_ref() };

    let want = reference.inbound(ip, port, id.as_deref());
    assert_eq!(verdict(&policy.inbound(&conn)), want, "{}", place());
    let named = want.shadow.iter().map(|(_, rule)| rule).chain([&want.rule]);
    for name in named {
        assert!(!case.dead[0].contains(name), "dead {name} decides: {}", place());
    }

    let probe = policy.inbound_probe(ip, port);
    assert_eq!(verdict(&probe), reference.probe(ip, port), "a probe: {}", place());

    let early = policy.inbound_by_address(ip, port);
    assert!(early.iter().all(|d| !d.allow && d.shadow.is_none()), "{}", place());
    let early = early.map(|d| d.rule.to_string());
    assert_eq!(early, case.reference(&case.file).by_address(ip, port), "{}", place());
    // Refused early, it would have been refused, and nothing would have been reported.
    assert!(early.is_none() || (!want.allow && want.shadow.is_none()), "{}", place());

    assert_eq!(policy.inbound_mode(port).as_str(), reference.mode(port).word(), "{}", place());
    if let Some(id) = &spiffe {
        let domain = id.trust_domain();
        let accepted = policy.accepts_trust_domain(domain);
        assert_eq!(accepted, reference.accepts(domain.as_str()), "{}", place());
    }
}

fn outbound_agrees(case: &Case, random: &mut Rng) {
    let (reference, policy) = (case.reference(&case.whole), &case.policy);
    let (ip, port) = (random::address(random), port(random));
    let table = Table(random::names(random, ip));
    let names = table.names_of(ip);
    let place = || format!("seed {}: {ip} port {port} {names:?}\n{}", case.seed, case.text);

    let (want, by) = reference.outbound(ip, port, &names);
    let decision = policy.outbound(ip, port, &table);
    assert_eq!(outcome(&decision), want, "{}", place());
    let named = want.shadow.iter().map(|(_, rule)| rule).chain([&want.rule]);
    for name in named {
        assert!(!case.dead[1].contains(name), "dead {name} decides: {}", place());
    }
    if let OutboundDecision::Mtls { destination, .. } = &decision {
        let by = by.unwrap();
        assert_eq!(destination.tunnel_reuse(), by.reuse, "{}", place());
        if let Some(id) = random::identity(random) {
            let meant = by.servers.iter().any(|p| is_meant(p, &id, case.own.is_some()));
            let got = destination.server_identities().matches(&id.parse().unwrap());
            assert_eq!(got, meant, "{id} {}", place());
        }
    }
}

fn outcome(decision: &OutboundDecision) -> Outcome {
    let (way, rule, shadow) = match decision {
        OutboundDecision::Deny { rule } => (Way::Deny, rule, None),
        OutboundDecision::Mtls { rule, shadow, .. } => (Way::Mtls, rule, shadow.as_ref()),
        OutboundDecision::Passthrough { rule, shadow } => (Way::Passthrough, rule, shadow.as_ref()),
    };
    Outcome { way, rule: rule.to_string(), shadow: reported(shadow) }
}

struct Table(Vec<(String, IpAddr)>);

impl Table {
    fn names_of(&self, ip: IpAddr) -> Vec<&str> {
        self.0.iter().filter(|(_, at)| *at == ip).map(|(name, _)| &**name).collect()
    }
}

impl HostTable for Table {
    fn contains(&self, host: &str, ip: IpAddr) -> bool {
        self.names_of(ip).contains(&host)
    }
}

/// What a file says once, and not for each connection.
fn file_agrees(case: &Case) {
    let (file, policy, place) =
        (&case.file, &case.policy, format!("seed {}\n{}", case.seed, case.text));
    let loopback = policy.app_address() == AppAddress::Loopback;
    assert_eq!(loopback, file.loopback, "{place}");
    for port in random::PORTS {
        let listed = file.probes.iter().filter(|(on, _)| *on == port).map(|(_, path)| &**path);
        assert_eq!(policy.probe(port).collect::<Vec<_>>(), listed.collect::<Vec<_>>(), "{place}");
    }
    // The line that names a rule, as an editor counts them.
    let line = |name: &str| {
        let found = case.text.lines().position(|l| l.contains(&format!("{{name: {name},")));
        u32::try_from(found.unwrap() + 1).unwrap()
    };
    let sorted = |ports: &Option<Vec<u16>>| {
        ports.as_ref().map(|list| list.iter().copied().collect::<BTreeSet<_>>())
    };
    let listed = |ports: Option<&[u16]>| ports.map(|list| list.iter().copied().collect());
    assert_eq!(policy.rules().len(), file.rules.len(), "{place}");
    for (got, want) in policy.rules().iter().zip(&file.rules) {
        let action = if want.deny { "deny" } else { "allow" };
        let mode = if want.audit { "audit" } else { "enforce" };
        let said = (got.action().as_str(), got.enforcement().as_str(), got.line());
        assert_eq!(&**got.name(), want.name, "{place}");
        assert_eq!(said, (action, mode, line(&want.name)), "{place}");
        assert_eq!(listed(got.ports()), sorted(&want.ports), "{place}");
    }
    assert_eq!(policy.destinations().len(), file.destinations.len(), "{place}");
    for (got, want) in policy.destinations().iter().zip(&file.destinations) {
        let said = (&**got.name(), got.action().as_str(), got.line());
        assert_eq!(said, (&*want.name, want.way.word(), line(&want.name)), "{place}");
        assert_eq!(listed(got.ports()), sorted(&want.ports), "{place}");
        let servers = got.server_identities().patterns().all(|p| p.contains('/'));
        assert!(servers, "{place}");
    }
    let audit = policy.enforcement().as_str() == "audit";
    assert_eq!(audit, file.audit, "{place}");
    let hosts: BTreeSet<_> = file
        .destinations
        .iter()
        .flat_map(|d| d.hosts.iter().map(|host| host.to_ascii_lowercase()))
        .collect();
    let listed: Vec<_> = policy.hosts().iter().map(ToString::to_string).collect();
    assert_eq!(listed.len(), hosts.len(), "a name twice: {place}");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), hosts, "{place}");
}

#[test]
fn a_million_verdicts_each_way_are_those_of_the_naive_reading() {
    let files = pairs().div_ceil(EACH);
    let asked = for_each_seed(files, |seed, random| {
        let case = case(seed, random);
        file_agrees(&case);
        for _ in 0..EACH {
            inbound_agrees(&case, random);
            outbound_agrees(&case, random);
        }
        EACH
    });
    assert_eq!(asked, files * EACH);
}

/// Also that each rule's own line tells whether that rule matches.
#[test]
fn an_explanation_names_what_the_proxy_names() {
    let files = pairs().div_ceil(250).min(4_000);
    let told = for_each_seed(files, |seed, random| {
        let case = case(seed, random);
        let (reference, policy) = (case.reference(&case.file), &case.policy);
        let mut told = 0;
        for _ in 0..5 {
            let (ip, port, id) = (random::address(random), port(random), random::identity(random));
            let place = format!("seed {seed}: {ip} port {port} {id:?}\n{}", case.text);
            let spiffe: Option<SpiffeId> = id.as_deref().map(|id| id.parse().unwrap());
            let conn = InboundConn { source: ip, port, identity: spiffe.as_ref() };
            let got = policy.explain_inbound(&conn);
            let want = reference.admission(ip, port, id.as_deref());
            let said = (got.verdict, &*got.rule, reported(got.shadow.as_ref()));
            let word = if want.allow { "allow" } else { "deny" };
            assert_eq!(said, (word, &*want.rule, want.shadow), "{place}");
            // Where TLS is off, no peer has an identity, and the answer says so first.
            let off = reference.mode(port) == Mode::Disable && id.is_some();
            let why = match got.why.split_once("judged without; ") {
                Some((_, why)) if off => why,
                _ => {
                    assert!(!off, "{} {place}", got.why);
                    &got.why
                }
            };
            match &*want.rule {
                "default" => assert!(why.contains("defaultAction"), "{why} {place}"),
                "audit" => assert!(why.contains("lifts the denial"), "{why} {place}"),
                _ => {}
            }
            if want.rule.starts_with('r') {
                let does = if want.allow { "allows" } else { "denies" };
                assert_eq!(why, format!("rule \"{}\" {does} it", want.rule), "{place}");
            }
            let decides = got.lines.iter().find(|line| line.decides).map(|line| &*line.name);
            let is_rule = want.rule.starts_with('r');
            assert_eq!(decides, is_rule.then_some(&*want.rule), "{place}");
            for line in &got.lines {
                let rule = case.file.rules.iter().find(|r| r.name == *line.name).unwrap();
                let id = id.as_deref().filter(|_| !off);
                let matches = reference.rule(rule, ip, port, id);
                assert_eq!(!line.why.starts_with("no:"), matches, "{line:?} {place}");
            }

            let table = Table(random::names(random, ip));
            let names = table.names_of(ip);
            let got = policy.explain_outbound(ip, port, &table);
            let (want, _) = reference.outbound(ip, port, &names);
            let said = (got.verdict, &*got.rule, reported(got.shadow.as_ref()));
            let meant = if ip.is_loopback() || ip.is_unspecified() {
                ("exempt", "loopback", None)
            } else {
                (want.way.word(), &*want.rule, want.shadow)
            };
            assert_eq!(said, meant, "{names:?} {place}");
            for line in &got.lines {
                let one = case.file.destinations.iter().find(|d| d.name == *line.name).unwrap();
                let matches = reference.destination(one, ip, port, &names);
                assert_eq!(!line.why.starts_with("no:"), matches, "{line:?} {names:?} {place}");
            }
            told += 1;
        }
        told
    });
    assert_eq!(told, files * 5);
}

/// The second reading is itself read: a few sentences of the documentation, by hand.
#[test]
fn the_reference_reads_cidrs_and_patterns_as_documented() {
    for (cidr, ip, want) in [
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.0", false),
        ("10.0.0.7", "10.0.0.7", true),
        ("::ffff:10.0.0.0/104", "10.9.9.9", true),
        ("::ffff:10.0.0.0/104", "11.9.9.9", false),
        ("::ffff:10.0.0.7", "10.0.0.7", true),
        ("0.0.0.0/0", "255.255.255.255", true),
        ("0.0.0.0/0", "::", false),
        ("::/0", "ffff::", true),
        ("::/0", "10.0.0.1", false),
        ("fd00::/127", "fd00::1", true),
        ("fd00::/127", "fd00::2", false),
    ] {
        assert_eq!(in_cidr(cidr, ip.parse().unwrap()), want, "{cidr} {ip}");
    }
    for (pattern, id, known, want) in [
        ("a/b", "spiffe://cluster.local/ns/a/sa/b", true, true),
        ("a/b", "spiffe://cluster.local/ns/a/sa/b", false, false),
        ("a/b", "spiffe://partner.example/ns/a/sa/b", true, false),
        ("a/**", "spiffe://cluster.local/ns/a/sa/b/c", true, true),
        ("a/**", "spiffe://cluster.local/ns/a/sa", true, false),
        ("spiffe://d/*", "spiffe://d/a", true, true),
        ("spiffe://d/*", "spiffe://d/a/b", true, false),
        ("spiffe://d/**", "spiffe://d/a/b", true, true),
    ] {
        assert_eq!(is_meant(pattern, id, known), want, "{pattern} {id}");
    }
}
