//! What a policy tells of itself, which of two rules is named, and why.

use std::net::IpAddr;

use super::*;
use crate::{Action, Enforcement, InboundConn, Mode, OutboundAction};

const TEXT: &str = "\
apiVersion: pillion/v1alpha1
kind: SidecarPolicy
metadata: {name: t}
enforcement: audit
trustDomains: [cluster.local, other.example]
inbound:
  mtls: strict
  defaultAction: deny
  ports: {9090: {mtls: disable}}
  rules:
    - {name: near, action: allow, ports: [80, 443], from: [{ipBlocks: [10.0.0.0/8]}]}
    - {name: far, action: deny, mode: audit, from: [{ipBlocks: [192.0.2.0/24]}]}
outbound:
  defaultAction: passthrough
  destinations:
    - {name: db, action: mtls, ports: [5432], hosts: [db.example, b.example], serverIdentities: [a/b]}
    - {name: none, action: deny, ipBlocks: [192.0.2.0/24]}
";

#[test]
fn its_parts_are_what_the_file_says() {
    let policy = good(TEXT).policy;
    assert_eq!(policy.enforcement(), Enforcement::Audit);
    let domains: Vec<_> = policy.trust_domains().iter().map(ToString::to_string).collect();
    assert_eq!(domains, ["cluster.local", "other.example"]);
    let [near, far] = policy.rules() else { panic!("two rules") };
    assert_eq!(
        (near.line(), near.ports(), near.action()),
        (11, Some(&[80, 443][..]), Action::Allow)
    );
    assert_eq!((far.line(), far.ports(), far.enforcement()), (12, None, Enforcement::Audit));
    let [db, none] = policy.destinations() else { panic!("two destinations") };
    assert_eq!((db.line(), db.ports()), (16, Some(&[5432][..])));
    assert_eq!(
        db.hosts().iter().map(|host| &**host).collect::<Vec<_>>(),
        ["db.example", "b.example"]
    );
    assert_eq!((none.line(), none.ports(), none.hosts().len()), (17, None, 0));
}

#[test]
fn words_are_those_of_the_file() {
    assert_eq!(
        [Mode::Strict, Mode::Permissive, Mode::Disable].map(Mode::as_str),
        ["strict", "permissive", "disable"]
    );
    assert_eq!([Action::Allow, Action::Deny].map(Action::as_str), ["allow", "deny"]);
    assert_eq!(
        [Enforcement::Enforce, Enforcement::Audit].map(Enforcement::as_str),
        ["enforce", "audit"]
    );
    assert_eq!(
        [OutboundAction::Deny, OutboundAction::Mtls, OutboundAction::Passthrough]
            .map(OutboundAction::as_str),
        ["deny", "mtls", "passthrough"]
    );
}

#[test]
fn an_explanation_says_why() {
    let policy = good(&TEXT.replace("enforcement: audit\n", "")).policy;
    let why = |source: &str, port, identity: Option<&str>| {
        let identity = identity.map(|id| id.parse().unwrap());
        let source: IpAddr = source.parse().unwrap();
        policy.explain_inbound(&InboundConn { source, port, identity: identity.as_ref() }).why
    };
    let peer = Some("spiffe://cluster.local/a");
    assert_eq!(why("10.0.0.1", 80, peer), "rule \"near\" allows it");
    assert_eq!(why("192.0.2.1", 80, peer), "no rule matches, so defaultAction decides");
    let stranger = Some("spiffe://stranger.example/a");
    assert_eq!(
        why("10.0.0.1", 80, stranger),
        "the trust domain stranger.example isn't accepted, and the handshake fails before any rule"
    );
    let plain = why("10.0.0.1", 9090, peer);
    assert!(plain.starts_with("port 9090 is mtls: disable, where no peer has"), "{plain}");
    assert!(plain.ends_with("no rule matches, so defaultAction decides"), "{plain}");
    let lifted = good(TEXT).policy;
    let source = "192.0.2.1".parse().unwrap();
    let told = lifted.explain_inbound(&InboundConn { source, port: 9090, identity: None });
    assert_eq!(told.why, "enforcement: audit lifts the denial and reports it");
}

/// Of two equal rules the audit rule says nothing, and of two of one mode the later one.
#[test]
fn of_two_equal_rules_the_useless_one_is_named() {
    let named = |first: &str, second: &str| {
        let text = rules(&format!(
            "{{name: a, action: allow, mode: {first}, from: [{{identities: [a/b]}}]}}, \
             {{name: b, action: allow, mode: {second}, from: [{{identities: [a/b]}}]}}"
        ));
        let errors = load("t.yaml", &text, Some(&own())).unwrap_err();
        let [error] = errors.as_slice() else { panic!("{errors}") };
        (error.message.starts_with("\"a\" can never"), error.message.clone())
    };
    for (first, second, useless_is_first) in [
        ("enforce", "enforce", false),
        ("audit", "audit", false),
        ("enforce", "audit", false),
        ("audit", "enforce", true),
    ] {
        let (is_first, message) = named(first, second);
        assert_eq!(is_first, useless_is_first, "{first} {second}: {message}");
    }
}

#[test]
fn a_file_in_another_encoding_is_told_where_it_stops_being_text() {
    let place = |bytes: &[u8]| {
        let errors = crate::text("t.yaml", bytes.to_vec()).unwrap_err();
        let [error] = errors.as_slice() else { panic!("{errors}") };
        (error.kind, error.line, error.column)
    };
    assert_eq!(place(b"\xff"), (Kind::YamlSyntax, 1, 1));
    assert_eq!(place(b"a: \xc3\xa9\r\nb: ok \xe9t\xe9\n"), (Kind::YamlSyntax, 2, 7));
    assert_eq!(place(b"a: \xc3\xa9\xe9\n"), (Kind::YamlSyntax, 1, 5));
    assert_eq!(crate::text("t.yaml", b"a: \xc3\xa9".to_vec()).as_deref(), Ok("a: \u{e9}"));
}

#[test]
fn warnings_beyond_a_hundred_are_counted() {
    let rule = |n: usize| {
        format!("{{name: r{n}, action: allow, ports: [{n}], from: [{{ipBlocks: [0.0.0.0/0]}}]}}")
    };
    for (count, left_out) in [(100, 0), (101, 1), (250, 150)] {
        let text = rules(&(1..=count).map(rule).collect::<Vec<_>>().join(", "));
        let compiled = good(&text);
        assert_eq!((compiled.warnings.len(), compiled.warnings_left_out), (100, left_out));
    }
}
