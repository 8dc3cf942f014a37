//! The order of evaluation, audit, wildcards, probes, hosts.

use std::net::IpAddr;

use super::*;
use crate::{
    AppAddress, Decision, HostTable, InboundConn, Mode, NoHosts, OutboundDecision, Policy,
};

fn ask(policy: &Policy, source: &str, port: u16, id: Option<&str>) -> Decision {
    let id = id.map(|id| id.parse().unwrap());
    policy.inbound(&InboundConn { source: source.parse().unwrap(), port, identity: id.as_ref() })
}

/// `allow:rule` or `deny:rule`, and `!allow:rule` after it for a shadow.
fn said(policy: &Policy, source: &str, port: u16, id: Option<&str>) -> String {
    let word = |allow| if allow { "allow" } else { "deny" };
    let decision = ask(policy, source, port, id);
    let shadow = decision.shadow.map(|s| format!("!{}:{}", word(s.allow), s.rule));
    format!("{}:{}{}", word(decision.allow), decision.rule, shadow.unwrap_or_default())
}

const CART: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/cart");

#[test]
fn deny_before_allow_before_default_whatever_the_order() {
    let allow = "{name: a, action: allow, from: [{ipBlocks: [10.0.0.0/8]}]}";
    let deny = "{name: d, action: deny, from: [{ipBlocks: [10.1.0.0/16]}]}";
    for text in [format!("{allow}, {deny}"), format!("{deny}, {allow}")] {
        let policy = good(&rules(&text)).policy;
        assert_eq!(said(&policy, "10.1.0.1", 1, None), "deny:d");
        assert_eq!(said(&policy, "10.2.0.1", 1, None), "allow:a");
        assert_eq!(said(&policy, "11.0.0.1", 1, None), "deny:default");
    }
}

#[test]
fn lists_are_or_and_an_entry_is_and() {
    let policy = good(&rules(
        "{name: a, action: allow, ports: [80, 81], from: [{ipBlocks: [10.0.0.0/8, \"fd00::/8\"], \
         identities: [shop/cart, shop/web]}, {ipBlocks: [192.0.2.1]}]}",
    ))
    .policy;
    assert_eq!(said(&policy, "10.0.0.1", 80, CART), "allow:a");
    assert_eq!(said(&policy, "fd00::1", 81, CART), "allow:a");
    assert_eq!(said(&policy, "10.0.0.1", 82, CART), "deny:default");
    assert_eq!(said(&policy, "11.0.0.1", 80, CART), "deny:default");
    assert_eq!(
        said(&policy, "10.0.0.1", 80, Some("spiffe://cluster.local/ns/shop/sa/x")),
        "deny:default"
    );
    assert_eq!(said(&policy, "10.0.0.1", 80, None), "deny:default", "no identity matches none");
    assert_eq!(said(&policy, "192.0.2.1", 80, None), "allow:a");
}

#[test]
fn any_matches_everyone_and_a_wildcard_no_plaintext() {
    let policy = good(&rules("{name: a, action: allow, ports: [1], from: [{any: true}]}, \
        {name: b, action: allow, ports: [2], from: [{identities: [\"spiffe://cluster.local/**\"]}]}")).policy;
    assert_eq!(said(&policy, "10.0.0.1", 1, None), "allow:a");
    assert_eq!(said(&policy, "::1", 1, CART), "allow:a");
    assert_eq!(said(&policy, "10.0.0.1", 2, None), "deny:default");
    assert_eq!(said(&policy, "10.0.0.1", 2, CART), "allow:b");
}

#[test]
fn audit_rules_report_where_they_would_differ() {
    let policy = good(&rules(
        "{name: a, action: allow, from: [{ipBlocks: [10.0.0.0/8]}]}, \
         {name: ad, action: deny, mode: audit, from: [{ipBlocks: [10.1.0.0/16, 11.1.0.0/16]}]}, \
         {name: aa, action: allow, mode: audit, from: [{ipBlocks: [11.0.0.0/8, 10.2.0.0/16]}]}",
    ))
    .policy;
    assert_eq!(said(&policy, "10.0.0.1", 1, None), "allow:a");
    assert_eq!(said(&policy, "10.1.0.1", 1, None), "allow:a!deny:ad");
    assert_eq!(said(&policy, "10.2.0.1", 1, None), "allow:a", "the same verdict by another rule");
    assert_eq!(said(&policy, "11.0.0.1", 1, None), "deny:default!allow:aa");
    assert_eq!(said(&policy, "11.1.0.1", 1, None), "deny:default");
}

#[test]
fn enforcement_audit_blocks_nothing_and_reports() {
    let text = rules(
        "{name: a, action: allow, from: [{ipBlocks: [10.0.0.0/8]}]}, \
         {name: d, action: deny, from: [{ipBlocks: [10.1.0.0/16]}]}, \
         {name: ad, action: deny, mode: audit, from: [{ipBlocks: [10.2.0.0/16]}]}, \
         {name: aa, action: allow, mode: audit, from: [{ipBlocks: [11.0.0.1]}]}",
    );
    let policy = good(&text.replace("inbound:", "enforcement: audit\ninbound:")).policy;
    assert_eq!(said(&policy, "10.0.0.1", 1, None), "allow:a");
    assert_eq!(said(&policy, "10.1.0.1", 1, None), "allow:audit!deny:d");
    assert_eq!(said(&policy, "10.2.0.1", 1, None), "allow:a!deny:ad");
    // What an audit rule would allow, the file denies once it is enforced.
    assert_eq!(said(&policy, "11.0.0.1", 1, None), "allow:audit!deny:default");
    assert_eq!(said(&policy, "12.0.0.1", 1, None), "allow:audit!deny:default");
    assert_eq!(policy.inbound_by_address("10.1.0.1".parse().unwrap(), 1), None);
    assert_eq!(policy.inbound_mode(1), Mode::Strict, "TLS is never relaxed");
}

#[test]
fn refusal_by_address_alone() {
    let policy = good(&rules(
        "{name: d, action: deny, from: [{ipBlocks: [10.66.0.0/16]}, {identities: [a/bad]}]}, \
         {name: a, action: allow, ports: [80], from: [{ipBlocks: [10.0.0.0/8], identities: [a/b]}]}, \
         {name: e, action: allow, ports: [81], from: [{identities: [a/b]}]}, \
         {name: f, action: allow, mode: audit, ports: [82], from: [{ipBlocks: [12.0.0.0/8]}]}",
    ))
    .policy;
    let by = |source: &str, port| {
        policy.inbound_by_address(source.parse().unwrap(), port).map(|d| d.rule.to_string())
    };
    assert_eq!(by("10.66.0.1", 80).as_deref(), Some("d"));
    assert_eq!(by("10.66.0.1", 81).as_deref(), Some("d"));
    assert_eq!(by("10.0.0.1", 80), None, "an identity could be allowed");
    assert_eq!(by("11.0.0.1", 80).as_deref(), Some("default"));
    assert_eq!(by("11.0.0.1", 81), None, "an identity could be allowed");
    assert_eq!(by("11.0.0.1", 82).as_deref(), Some("default"));
    assert_eq!(by("12.0.0.1", 82), None, "an audit rule has something to report");
}

#[test]
fn modes_probes_and_the_app() {
    let policy = good(&file(
        "trustDomains: [a.org, b.org]",
        "mtls: permissive, defaultAction: allow, appAddress: 127.0.0.1, ports: {1: {mtls: strict}, \
         2: {mtls: disable}}, probes: [{port: 1, path: /z}, {port: 1, path: /y}, {port: 3, path: /x}]",
        PASS,
    ))
    .policy;
    assert_eq!(policy.inbound_mode(1), Mode::Strict);
    assert_eq!(policy.inbound_mode(2), Mode::Disable);
    assert_eq!(policy.inbound_mode(3), Mode::Permissive);
    assert_eq!(policy.probe(1).collect::<Vec<_>>(), ["/z", "/y"]);
    assert_eq!(policy.probe(2).count(), 0);
    assert_eq!(policy.app_address(), AppAddress::Loopback);
    assert!(policy.accepts_trust_domain(&"a.org".parse().unwrap()));
    assert!(!policy.accepts_trust_domain(&own()), "a list replaces the default");
    assert_eq!(good(&file("", STRICT, PASS)).policy.app_address(), AppAddress::PodIp);
}

struct One(&'static str, IpAddr);

impl HostTable for One {
    fn contains(&self, host: &str, ip: IpAddr) -> bool {
        self.0 == host && self.1 == ip
    }
}

fn out(policy: &Policy, dst: &str, port: u16, hosts: &dyn HostTable) -> String {
    match policy.outbound(dst.parse().unwrap(), port, hosts) {
        OutboundDecision::Deny { rule } => format!("deny:{rule}"),
        OutboundDecision::Mtls { rule, destination, shadow } => {
            assert_eq!(destination.name(), &rule);
            format!("mtls:{rule}{}", shadow.map(|s| format!("!{}", s.rule)).unwrap_or_default())
        }
        OutboundDecision::Passthrough { rule, shadow } => {
            format!("pass:{rule}{}", shadow.map(|s| format!("!{}", s.rule)).unwrap_or_default())
        }
    }
}

#[test]
fn the_strictest_destination_wins() {
    let text = file(
        "",
        STRICT,
        "defaultAction: deny, destinations: [\
        {name: p, action: passthrough, ipBlocks: [10.0.0.0/8], hosts: [x.y]}, \
        {name: m, action: mtls, ports: [443], ipBlocks: [{cidr: 10.0.0.0/8, except: [10.9.0.0/16]}], serverIdentities: [a/*]}, \
        {name: d, action: deny, ipBlocks: [10.1.0.0/16]}]",
    );
    let policy = good(&text).policy;
    assert_eq!(out(&policy, "10.1.0.1", 443, &NoHosts), "deny:d");
    assert_eq!(out(&policy, "10.2.0.1", 443, &NoHosts), "mtls:m");
    assert_eq!(out(&policy, "10.2.0.1", 80, &NoHosts), "pass:p");
    assert_eq!(out(&policy, "10.9.0.1", 443, &NoHosts), "pass:p");
    assert_eq!(out(&policy, "11.0.0.1", 80, &NoHosts), "deny:default");
    let forged = One("x.y", "10.2.0.1".parse().unwrap());
    assert_eq!(out(&policy, "10.2.0.1", 443, &forged), "mtls:m", "DNS can't move it");
    let named = One("x.y", "192.0.2.1".parse().unwrap());
    assert_eq!(out(&policy, "192.0.2.1", 80, &named), "pass:p");
    let m = &policy.destinations()[1];
    assert!(m.server_identities().matches(&"spiffe://cluster.local/ns/a/sa/b".parse().unwrap()));
    assert!(!m.server_identities().matches(&"spiffe://cluster.local/ns/b/sa/b".parse().unwrap()));

    let policy = good(&text.replace("inbound:", "enforcement: audit\ninbound:")).policy;
    assert_eq!(out(&policy, "10.1.0.1", 443, &NoHosts), "mtls:m!d");
    assert_eq!(out(&policy, "10.1.0.1", 80, &NoHosts), "pass:p!d");
    assert_eq!(out(&policy, "11.0.0.1", 80, &NoHosts), "pass:audit!default");
}

#[test]
fn the_explanation_is_the_verdict() {
    let policy = good(&rules(
        "{name: a, action: allow, ports: [80], from: [{ipBlocks: [10.0.0.0/8], identities: [shop/cart]}]}, \
         {name: d, action: deny, from: [{ipBlocks: [10.66.0.0/16]}]}, \
         {name: n, action: allow, ports: [81], from: [{any: true}]}, \
         {name: s, action: deny, mode: audit, from: [{identities: [shop/cart]}]}",
    ))
    .policy;
    let why = |source: &str, id: Option<&str>| {
        let id = id.map(|id| id.parse().unwrap());
        let conn = InboundConn { source: source.parse().unwrap(), port: 80, identity: id.as_ref() };
        policy.explain_inbound(&conn)
    };
    let starts = |lines: &[super::super::Line]| -> Vec<String> {
        lines
            .iter()
            .map(|l| l.why.split([' ', ':', ',', ';']).take(3).collect::<Vec<_>>().join(" "))
            .collect()
    };
    let allowed = why("10.0.0.1", CART);
    assert_eq!((allowed.verdict, &*allowed.rule), ("allow", "a"));
    assert_eq!(
        starts(&allowed.lines),
        ["matches and decides", "no  the", "no  port", "matches  it"]
    );
    assert_eq!(&*allowed.shadow.unwrap().rule, "s");
    let denied = why("10.66.0.1", CART);
    assert_eq!((denied.verdict, &*denied.rule), ("deny", "d"));
    assert!(denied.lines[0].why.contains("shadowed"), "{:?}", denied.lines);
    let plain = why("10.0.0.1", None);
    assert_eq!((plain.verdict, &*plain.rule), ("deny", "tls"));
}

#[test]
fn a_lifted_denial_is_explained_by_what_denied() {
    let text = rules(
        "{name: a, action: allow, from: [{ipBlocks: [10.0.0.0/8]}]}, \
         {name: d, action: deny, from: [{ipBlocks: [10.1.0.0/16]}]}, \
         {name: e, action: deny, from: [{ipBlocks: [10.1.2.0/24]}]}, \
         {name: aa, action: allow, mode: audit, from: [{ipBlocks: [10.1.0.0/16]}]}",
    );
    let audit = "enforcement: audit\ninbound:";
    let policy = good(&text.replace("inbound:", audit).replace("strict", "permissive")).policy;
    let source = "10.1.2.3".parse().unwrap();
    let told = policy.explain_inbound(&InboundConn { source, port: 1, identity: None });
    assert_eq!((told.verdict, &*told.rule), ("allow", "audit"));
    let why: Vec<_> = told.lines.iter().map(|line| line.why.as_str()).collect();
    let shadowed = "matches, but is shadowed: \"d\" decides";
    assert_eq!(why[0], shadowed);
    assert!(why[1].starts_with("matches; it would decide"), "{why:?}");
    assert_eq!(why[2], shadowed);
    assert!(why[3].ends_with("the denial by \"d\" is reported"), "{why:?}");

    let destinations = "defaultAction: deny, destinations: [\
        {name: d, action: deny, ipBlocks: [10.0.0.0/8]}, \
        {name: e, action: deny, ipBlocks: [10.1.0.0/16]}, \
        {name: m, action: mtls, ports: [443], ipBlocks: [10.1.0.0/16], serverIdentities: [a/b]}]";
    let policy = good(&file("enforcement: audit", STRICT, destinations)).policy;
    for (port, rule) in [(443, "m"), (80, "audit")] {
        let told = policy.explain_outbound(source, port, &NoHosts);
        assert_eq!(&*told.rule, rule);
        assert_eq!(told.lines[1].why, shadowed, "{port}");
    }
}

#[test]
fn destinations_with_hosts_are_listed_by_port_the_strictest_first() {
    let destinations = "defaultAction: deny, destinations: [\
        {name: p, action: passthrough, hosts: [a.b], ports: [80, 443]}, \
        {name: i, action: deny, ipBlocks: [10.0.0.0/8]}, \
        {name: m, action: mtls, hosts: [c.d], ports: [443], serverIdentities: [a/b]}, \
        {name: d, action: deny, hosts: [e.f]}]";
    let policy = good(&file("", STRICT, destinations)).policy;
    for (port, want) in [(80, &["d", "p"][..]), (443, &["d", "m", "p"]), (81, &["d"])] {
        let names = policy.destinations_by_name(port).map(|one| one.name().to_string());
        assert_eq!(names.collect::<Vec<_>>(), want, "{port}");
    }
}

#[test]
fn the_explanation_knows_what_no_outbound_policy_applies_to() {
    let policy = good(&file("", STRICT, "defaultAction: deny")).policy;
    for (dst, port, verdict, rule, dns) in [
        ("127.0.0.1", 80, "exempt", "loopback", false),
        ("127.9.9.9", 53, "exempt", "loopback", false),
        ("::1", 80, "exempt", "loopback", false),
        ("0.0.0.0", 80, "exempt", "loopback", false),
        ("::", 80, "exempt", "loopback", false),
        ("128.0.0.1", 80, "deny", "default", false),
        ("10.96.0.10", 53, "deny", "default", true),
        ("10.96.0.10", 54, "deny", "default", false),
    ] {
        let told = policy.explain_outbound(dst.parse().unwrap(), port, &NoHosts);
        assert_eq!((told.verdict, &*told.rule), (verdict, rule), "{dst} {port}");
        assert_eq!(told.why.contains("resolv.conf is exempt"), dns, "{dst} {port}");
    }
}

#[test]
fn the_explanation_names_what_the_proxy_asks_first() {
    let policy = good(&rules(
        "{name: i, action: deny, from: [{identities: [shop/cart]}]}, \
         {name: d, action: deny, from: [{ipBlocks: [10.66.0.0/16]}]}, \
         {name: a, action: allow, from: [{identities: [\"shop/*\"]}]}",
    ))
    .policy;
    let identity = CART.map(|id| id.parse().unwrap());
    for identity in [identity.as_ref(), None] {
        let source = "10.66.0.1".parse().unwrap();
        let told = policy.explain_inbound(&InboundConn { source, port: 1, identity });
        assert_eq!((told.verdict, &*told.rule), ("deny", "d"), "{identity:?}");
    }
    let probed = "mtls: strict, defaultAction: deny, probes: [{port: 1, path: /z}]";
    let policy = good(&file("", probed, PASS)).policy;
    for (port, rule) in [(1, "tls"), (2, "default")] {
        let source = "10.66.0.1".parse().unwrap();
        let told = policy.explain_inbound(&InboundConn { source, port, identity: None });
        assert_eq!((told.verdict, &*told.rule), ("deny", rule), "{port}");
    }
}
