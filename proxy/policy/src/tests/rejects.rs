//! Every error and every warning, and what only looks like one.

use super::*;
use crate::diagnostic::Sink;
use crate::{compile, index, lint, parse};

fn destination(text: &str) -> String {
    file("", STRICT, &format!("{PASS}, destinations: [{{{text}}}]"))
}

#[test]
fn keys() {
    let head = "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {name: t}\n";
    assert_eq!(errors(&file("", STRICT, PASS)), []);
    assert_eq!(errors(&file("extra: 1", STRICT, PASS)), [Kind::UnknownKey]);
    assert_eq!(errors(&file("", "mtsl: strict, defaultAction: deny", PASS)).len(), 2);
    assert_eq!(errors(&file("kind: SidecarPolicy", STRICT, PASS)), [Kind::DuplicateKey]);
    let twice = file(
        "",
        &format!("{STRICT}, ports: {{80: {{mtls: strict}}, \"80\": {{mtls: disable}}}}"),
        PASS,
    );
    assert_eq!(errors(&twice), [Kind::DuplicateKey]);
    for inbound in ["mtls: strict", "defaultAction: deny"] {
        assert_eq!(errors(&file("", inbound, PASS)), [Kind::MissingKey], "{inbound}");
    }
    assert_eq!(errors(&file("", STRICT, "")), [Kind::MissingKey]);
    assert_eq!(errors(head), [Kind::MissingKey, Kind::MissingKey]);
    let second = format!("{}---\n{}", file("", STRICT, PASS), file("", STRICT, PASS));
    assert_eq!(errors(&second), [Kind::SecondDocument]);
    assert_eq!(errors("[]"), [Kind::WrongType]);
    assert_eq!(errors(&file("", STRICT, PASS).replace("v1alpha1", "v2")), [Kind::BadValue]);
    for name in ["Web", "a_b", "-a", "a."] {
        let named = file("", STRICT, PASS).replace("{name: t}", &format!("{{name: {name}}}"));
        assert_eq!(errors(&named), [Kind::BadValue], "{name}");
    }
}

#[test]
fn all_errors_come_at_once_with_place_and_cure() {
    let text = file(
        "enforcement: audti",
        "mtls: strict, defaultAction: deny, rules: [{name: A, action: allow, from: [{}]}]",
        "defaultAction: mtls",
    );
    let all = load("p.yaml", &text, Some(&own())).unwrap_err();
    let kinds: Vec<_> = all.as_slice().iter().map(|d| d.kind).collect();
    assert_eq!(kinds, [Kind::BadValue; 4]);
    let shown = all.to_string();
    let first = "p.yaml:4:14: error: \"audti\" is not enforce or audit; did you mean \"audit\"?\n \
                 4 | enforcement: audti\n   |              ^\n";
    assert!(shown.starts_with(first), "{shown}");
}

#[test]
fn types_and_values_of_rules() {
    let rule = |text: &str| rules(&format!("{{name: a, action: allow, {text}}}"));
    assert_eq!(errors(&rule("from: [{any: true}]")), []);
    assert_eq!(errors(&rule("ports: [1, 65535], from: [{any: true}]")), []);
    for (text, kind) in [
        ("from: []", Kind::BadValue),
        ("from: [{}]", Kind::BadValue),
        ("from: [{any: false}]", Kind::BadValue),
        ("from: [{any: \"true\"}]", Kind::WrongType),
        ("from: [{any: true, ipBlocks: [10.0.0.1]}]", Kind::BadValue),
        ("from: [{ipBlocks: []}]", Kind::BadValue),
        ("from: [{identities: []}]", Kind::BadValue),
        ("from: [{ipBlocks: 10.0.0.0/8}]", Kind::WrongType),
        ("from: [{any: true}], ports: []", Kind::BadValue),
        ("from: [{any: true}], ports: [0]", Kind::BadValue),
        ("from: [{any: true}], ports: [65536]", Kind::BadValue),
        ("from: [{any: true}], ports: [08]", Kind::BadValue),
        ("from: [{any: true}], ports: [\"80\"]", Kind::WrongType),
        ("from: [{any: true}], ports: 80", Kind::WrongType),
        ("from: [{any: true}], mode: off", Kind::BadValue),
        ("from:", Kind::WrongType),
        ("from: [{ipBlocks: [10.0.0.1/8]}]", Kind::HostBits),
        ("from: [{ipBlocks: [\"::ffff:10.0.0.0/40\"]}]", Kind::MappedPrefix),
        ("from: [{ipBlocks: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}]", Kind::ExceptOutside),
        ("from: [{ipBlocks: [{cidr: 10.0.0.0/16, except: [10.0.0.0/8]}]}]", Kind::ExceptOutside),
        ("from: [{ipBlocks: [{cidr: 10.0.0.0/16, except: [\"fd00::/8\"]}]}]", Kind::ExceptOutside),
        ("from: [{ipBlocks: [{except: []}]}]", Kind::MissingKey),
        ("from: [{identities: [\"spiffe://other.org/a\"]}]", Kind::ForeignTrustDomain),
        ("from: [{identities: [\"spiffe://other.org/**\"]}]", Kind::ForeignTrustDomain),
        ("from: [{identities: [a]}]", Kind::BadValue),
    ] {
        assert_eq!(errors(&rule(text)), [kind], "{text}");
    }
}

#[test]
fn a_probe_asks_for_a_path_as_a_request_line_has_it() {
    let probe =
        |path: &str| file("", &format!("{STRICT}, probes: [{{port: 80, path: {path}}}]"), PASS);
    for good in ["/", "/healthz", "/a/b.c~d", "/%20"] {
        assert_eq!(errors(&probe(good)), [], "{good}");
    }
    for bad in ["healthz", "/a?b", "\"/a#b\"", "\"/a b\"", "/\u{e4}", "\"\""] {
        assert_eq!(errors(&probe(bad)), [Kind::BadValue], "{bad}");
    }
}

#[test]
fn names() {
    let named =
        |name: &str| rules(&format!("{{name: {name}, action: allow, from: [{{any: true}}]}}"));
    let reserved = ["default", "audit", "mtls", "probes", "tls", "other"];
    for name in reserved.into_iter().chain(["trustDomains"]).chain([
        "A",
        "a_b",
        "-a",
        "a-",
        "a.b",
        &"a".repeat(64),
    ]) {
        assert_eq!(errors(&named(name)), [Kind::BadValue], "{name}");
    }
    assert_eq!(errors(&named("7")), [Kind::WrongType]);
    let two = "{name: a, action: allow, from: [{any: true}]}, {name: a, action: deny, from: [{identities: [x/y]}]}";
    assert_eq!(errors(&rules(two)), [Kind::DuplicateName]);
    let both = file(
        "",
        &format!("{STRICT}, rules: [{{name: a, action: allow, from: [{{any: true}}]}}]"),
        &format!("{PASS}, destinations: [{{name: a, action: deny, ipBlocks: [10.0.0.1]}}]"),
    );
    assert_eq!(errors(&both), [], "a rule and a destination are told apart by direction");
}

#[test]
fn trust_domains() {
    let of = |top: &str, id: &str| {
        file(
            top,
            &format!(
                "{STRICT}, rules: [{{name: a, action: allow, from: [{{identities: [\"{id}\"]}}]}}]"
            ),
            PASS,
        )
    };
    assert_eq!(errors(&of("trustDomains: [other.org]", "spiffe://other.org/a")), []);
    assert_eq!(errors(&of("trustDomains: [other.org]", "a/b")), [Kind::ForeignTrustDomain]);
    assert_eq!(errors(&of("trustDomains: []", "a/b")), [Kind::BadValue]);
    assert_eq!(errors(&of("trustDomains: [Other.org]", "a/b")), [Kind::BadValue]);
    // Without an own domain there is nothing to hold an identity against.
    assert!(load("t", &of("", "spiffe://other.org/a"), None).is_ok());
    assert!(load("t", &of("trustDomains: [a.org]", "spiffe://other.org/a"), None).is_err());
    let policy = load("t", &of("", "a/b"), None).unwrap().policy;
    assert!(policy.needs_own_trust_domain() && !policy.accepts_trust_domain(&own()));
}

#[test]
fn destinations() {
    for (text, kind) in [
        ("name: d, action: mtls, ipBlocks: [10.0.0.1]", Kind::MissingServerIdentities),
        ("name: d, action: mtls, ipBlocks: [10.0.0.1], serverIdentities: []", Kind::BadValue),
        ("name: d, action: deny", Kind::MissingKey),
        ("name: d, action: deny, hosts: [10.0.0.1]", Kind::BadValue),
        ("name: d, action: deny, hosts: [\"*.example.com\"]", Kind::BadValue),
        ("name: d, action: deny, hosts: [\"a b\"]", Kind::BadValue),
        ("name: d, action: deny, hosts: [169.254.169.2544]", Kind::BadValue),
        ("name: d, action: deny, hosts: [10.0.0]", Kind::BadValue),
        ("name: d, action: deny, hosts: [\"80\"]", Kind::BadValue),
        ("name: d, action: deny, hosts: [a.b.]", Kind::BadValue),
        ("name: d, action: deny, hosts: [a], serverIdentities: [a/b]", Kind::BadValue),
        ("name: d, action: deny, hosts: [a], tunnelReuse: true", Kind::BadValue),
        ("name: d, action: allow, hosts: [a]", Kind::BadValue),
        (
            "name: d, action: mtls, hosts: [a], serverIdentities: [\"spiffe://x/a\"]",
            Kind::ForeignTrustDomain,
        ),
    ] {
        assert_eq!(errors(&destination(text)), [kind], "{text}");
    }
    let mtls =
        "name: d, action: mtls, hosts: [A.b, a.B], serverIdentities: [a/b], tunnelReuse: false";
    let policy = good(&destination(mtls)).policy;
    assert_eq!(policy.hosts().iter().map(|h| &**h).collect::<Vec<_>>(), ["a.b"]);
    assert!(!policy.destinations()[0].tunnel_reuse());
}

#[test]
fn unreachable_rules() {
    let deny = "{name: d, action: deny, from: [{ipBlocks: [10.0.0.0/8]}]}";
    let case = |deny: &str, rule: &str| errors(&rules(&format!("{deny}, {{name: a, {rule}}}")));
    let dead = [Kind::UnreachableRule];
    for rule in [
        "action: allow, from: [{ipBlocks: [10.1.0.0/16]}]",
        "action: allow, ports: [80], from: [{ipBlocks: [10.1.0.0/16], identities: [a/b]}]",
        "action: allow, mode: audit, from: [{ipBlocks: [10.1.0.0/16]}, {ipBlocks: [10.2.0.1]}]",
        "action: deny, from: [{ipBlocks: [10.0.0.0/9, 10.128.0.0/9]}]",
        "action: allow, from: [{ipBlocks: [{cidr: 192.0.2.0/24, except: [192.0.2.0/24]}]}]",
    ] {
        assert_eq!(case(deny, rule), dead, "{rule}");
    }
    for rule in [
        "action: allow, from: [{ipBlocks: [10.0.0.0/7]}]",
        "action: allow, from: [{ipBlocks: [10.1.0.0/16, 11.0.0.1]}]",
        "action: allow, from: [{ipBlocks: [10.1.0.0/16]}, {identities: [a/b]}]",
        "action: deny, from: [{ipBlocks: [10.1.0.0/16]}]",
    ] {
        assert_eq!(case(deny, rule), [], "{rule}");
    }
    // Its first identity is denied, and its second one not.
    for (denied, allowed, want) in [
        ("a/b", "a/b, c/d", &[][..]),
        ("\"*/b\"", "a/b, a/c", &[]),
        ("a/b, c/d", "c/d, a/b", &dead[..]),
        ("\"*/b\", c/d", "a/b, c/d", &dead[..]),
    ] {
        let denial = format!("{{name: d, action: deny, from: [{{identities: [{denied}]}}]}}");
        let rule = format!("action: allow, from: [{{identities: [{allowed}]}}]");
        assert_eq!(case(&denial, &rule), want, "{denied} {allowed}");
    }
    let inner = "action: allow, ports: [80], from: [{ipBlocks: [10.1.0.0/16], identities: [a/b]}]";
    for deny in [
        "{name: d, action: deny, mode: audit, from: [{ipBlocks: [10.0.0.0/8]}]}",
        "{name: d, action: deny, ports: [81], from: [{ipBlocks: [10.0.0.0/8]}]}",
        "{name: d, action: deny, from: [{ipBlocks: [{cidr: 10.0.0.0/8, except: [10.1.9.0/24]}]}]}",
        "{name: d, action: deny, from: [{identities: [a/c]}]}",
    ] {
        assert_eq!(case(deny, inner), [], "{deny}");
    }
    assert_eq!(case("{name: d, action: deny, from: [{identities: [\"*/b\"]}]}", inner), dead);
    assert_eq!(case("{name: d, action: deny, ports: [80, 81], from: [{any: true}]}", inner), dead);
}

#[test]
fn equal_rules_and_rules_without_a_peer() {
    let two = |first: &str, second: &str| {
        errors(&rules(&format!(
            "{{name: a, action: allow, mode: {first}, from: [{{identities: [a/b, c/d]}}]}}, \
             {{name: b, action: allow, mode: {second}, from: [{{identities: [c/d, a/b]}}]}}"
        )))
    };
    assert_eq!(two("enforce", "enforce"), [Kind::UnreachableRule]);
    assert_eq!(two("enforce", "audit"), [Kind::UnreachableRule]);
    assert_eq!(two("audit", "enforce"), [Kind::UnreachableRule]);
    assert_eq!(two("audit", "audit"), [Kind::UnreachableRule]);
    let plain = |ports: &str| {
        errors(&file(
            "",
            &format!(
                "{STRICT}, ports: {{9090: {{mtls: disable}}}}, rules: [{{name: a, \
            action: allow, ports: [{ports}], from: [{{identities: [a/b]}}]}}]"
            ),
            PASS,
        ))
    };
    assert_eq!(plain("9090"), [Kind::UnreachableRule]);
    assert_eq!(plain("9090, 80"), []);
}

#[test]
fn unreachable_destinations() {
    let two = |first: &str, second: &str| {
        errors(&file(
            "",
            STRICT,
            &format!("{PASS}, destinations: [{{name: a, {first}}}, {{name: b, {second}}}]"),
        ))
    };
    let dead = [Kind::UnreachableRule];
    let mtls = "action: mtls, serverIdentities: [a/b]";
    assert_eq!(
        two("action: deny, ipBlocks: [10.0.0.0/8]", "action: passthrough, ipBlocks: [10.1.0.0/16]"),
        dead
    );
    assert_eq!(
        two("action: passthrough, ipBlocks: [10.1.0.0/16]", "action: deny, ipBlocks: [10.0.0.0/8]"),
        dead
    );
    assert_eq!(
        two("action: passthrough, ipBlocks: [10.0.0.0/8]", "action: deny, ipBlocks: [10.1.0.0/16]"),
        []
    );
    let passed = |block: &str| format!("action: passthrough, ipBlocks: [{block}]");
    assert_eq!(two(&passed("10.1.0.0/16"), &passed("10.0.0.0/8")), [], "the narrower one first");
    assert_eq!(two(&format!("{mtls}, hosts: [x.y]"), &format!("{mtls}, hosts: [X.y]")), dead);
    assert_eq!(two(&format!("{mtls}, hosts: [x.y]"), &format!("{mtls}, hosts: [x.z]")), []);
    assert_eq!(
        two(&format!("{mtls}, ports: [1], hosts: [x.y]"), "action: passthrough, hosts: [x.y]"),
        []
    );
    assert_eq!(
        two(
            "action: deny, ipBlocks: [10.0.0.0/8]",
            "action: passthrough, ipBlocks: [10.1.0.0/16], hosts: [x]"
        ),
        []
    );
}

#[test]
fn permissive_where_the_server_speaks_first() {
    let with = |ports: &str, rule: &str| {
        errors(&file(
            "",
            &format!(
                "mtls: permissive, defaultAction: deny, ports: {{{ports}}}, rules: [{{name: a, \
            action: allow, ports: [{rule}], from: [{{any: true}}]}}]"
            ),
            PASS,
        ))
    };
    let no = [Kind::PermissiveServerFirst];
    for port in [25, 110, 143, 3306, 587] {
        assert_eq!(with(&format!("{port}: {{mtls: permissive}}"), "80"), no, "{port}");
        assert_eq!(with("", &format!("80, {port}")), no, "{port}");
        assert_eq!(with(&format!("{port}: {{mtls: strict}}"), &port.to_string()), []);
    }
    assert_eq!(with("", "80"), []);
    // What is wrong of a port's own mode is not told as a fault of the others'.
    assert_eq!(with("3306: {mtls: strcit}", "3306"), [Kind::BadValue]);
    let plain = "mtls: disable, defaultAction: deny, ports: {80: {mtls: strcit}}";
    let rule = "rules: [{name: a, action: allow, ports: [80], from: [{identities: [a/b]}]}]";
    assert_eq!(errors(&file("", &format!("{plain}, {rule}"), PASS)), [Kind::BadValue]);
}

#[test]
fn what_is_only_warned_of() {
    let open = |action: &str, entry: &str| {
        warnings(&rules(&format!("{{name: a, action: {action}, from: [{entry}]}}")))
    };
    assert_eq!(open("allow", "{ipBlocks: [0.0.0.0/0]}"), [Kind::OpenToAll]);
    assert_eq!(open("allow", "{ipBlocks: [\"::/0\"]}"), [Kind::OpenToAll]);
    let halves = "ipBlocks: [0.0.0.0/1, 128.0.0.0/1]";
    assert_eq!(open("allow", &format!("{{{halves}}}")), [Kind::OpenToAll]);
    assert_eq!(open("allow", &format!("{{{halves}, identities: [a/b]}}")), []);
    assert_eq!(open("allow", "{ipBlocks: [0.0.0.0/1, 128.0.0.0/2]}"), []);
    assert_eq!(open("allow", "{ipBlocks: [0.0.0.0/0], identities: [a/b]}"), []);
    assert_eq!(open("deny", "{ipBlocks: [0.0.0.0/0]}"), []);
    assert_eq!(open("allow", "{any: true}"), []);
    let inbound = |mtls: &str, default: &str, action: &str| {
        warnings(&file(
            "",
            &format!(
                "mtls: {mtls}, defaultAction: {default}, rules: [{{name: a, \
            action: {action}, from: [{{identities: [a/b]}}]}}]"
            ),
            PASS,
        ))
    };
    assert_eq!(inbound("strict", "allow", "allow"), [Kind::AllowUnderDefaultAllow]);
    assert_eq!(inbound("strict", "deny", "allow"), []);
    assert_eq!(inbound("permissive", "allow", "deny"), [Kind::DenyIdentityOnPermissive]);
    assert_eq!(inbound("strict", "allow", "deny"), []);
    let on_ports = |ports: &str| {
        warnings(&file(
            "",
            &format!(
                "mtls: strict, defaultAction: allow, ports: {{81: {{mtls: permissive}}}}, rules: \
                 [{{name: a, action: deny, ports: [{ports}], from: [{{identities: [a/b]}}]}}]"
            ),
            PASS,
        ))
    };
    assert_eq!(on_ports("80, 81"), [Kind::DenyIdentityOnPermissive]);
    assert_eq!(on_ports("80"), []);
}

/// What a denial takes is only its to take where it denies.
#[test]
fn a_lifted_denial_shadows_nothing() {
    let audit = |text: &str| errors(&text.replace("inbound:", "enforcement: audit\ninbound:"));
    let out = "defaultAction: deny, destinations: [\
        {name: d, action: deny, ipBlocks: [10.0.0.0/8]}, \
        {name: m, action: mtls, ipBlocks: [10.1.0.0/16], serverIdentities: [a/b]}]";
    let outbound = file("", STRICT, out);
    assert_eq!(errors(&outbound), [Kind::UnreachableRule]);
    assert_eq!(audit(&outbound), []);
    let inbound = rules(
        "{name: d, action: deny, from: [{ipBlocks: [10.0.0.0/8]}]}, \
         {name: a, action: allow, from: [{ipBlocks: [10.1.0.0/16]}]}",
    );
    assert_eq!(errors(&inbound), [Kind::UnreachableRule]);
    assert_eq!(audit(&inbound), []);
    // What is no denial takes as much as ever.
    let out =
        out.replace("action: deny", "action: passthrough").replace("10.1.0.0/16", "10.0.0.0/7");
    assert_eq!(audit(&file("", STRICT, &out)), [Kind::UnreachableRule]);
}

#[test]
fn lists_have_an_end() {
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let entry = "action: allow, from: [{any: true}], ports";
    for (most, text) in [
        (1_000, &|n| file(&format!("trustDomains: [{}]", many(OWN, n)), STRICT, PASS)),
        (1_000, &|n| {
            let probes = many("{port: 1, path: /z}", n);
            file("", &format!("{STRICT}, probes: [{probes}]"), PASS)
        }),
        (10_000, &|n| destination(&format!("name: d, action: deny, hosts: [{}]", many("a", n)))),
        // More is in one bracket than one rule may have there.
        (200_000, &|n| {
            let rule =
                |at: usize, n| format!("{{name: a{at}, {entry}: [{}]}}", many(&at.to_string(), n));
            rules(
                &[1, 2, 3, 4]
                    .map(|at| rule(at, n / 4 + if at == 4 { n % 4 } else { 0 }))
                    .join(", "),
            )
        }),
        (100_000, &|n| {
            let items = |ip, n| format!("action: deny, ipBlocks: [{}]", many(ip, n));
            let (one, two) = (items("::1", n / 2), items("::2", n - n / 2));
            destination(&format!("name: d, {one}}}, {{name: e, {two}"))
        }),
    ] as [(usize, &dyn Fn(usize) -> String); 5]
    {
        assert_eq!(errors(&text(most)), [], "{most}");
        assert_eq!(errors(&text(most + 1)), [Kind::TooMany], "{most}");
    }
}

/// Each deny is tried once, however many of its entries match; and no file takes for ever.
#[test]
fn comparing_rules_has_an_end() {
    let entries = |count: usize| vec!["{ipBlocks: [10.0.0.0/8]}"; count].join(", ");
    let text = rules(&format!(
        "{{name: d, action: deny, from: [{}]}}, {{name: a, action: allow, from: [{}]}}",
        entries(50),
        "{ipBlocks: [10.1.0.0/16]}"
    ));
    let mut sink = Sink::new("t", &text);
    let mut model = parse::file(&text, Some(&own()), &mut sink).unwrap();
    let policy = compile::compile(&mut model, &text, Some(&own()));
    let source = "10.1.0.1".parse().unwrap();
    let query = index::Query { address: source, port: 1, identity: None };
    let work = index::Work::new(1_000);
    assert_eq!(policy.inbound.deny.some(&query, false, 64, &work), [0]);
    assert!(work.left() >= 1_000 - 60, "{}", work.left());
    for (steps, want) in [(lint::MOST_STEPS, 1), (100, 1), (3, 0)] {
        let mut sink = Sink::new("t", &text);
        lint::check(&model, &policy, steps, &mut sink);
        assert_eq!(sink.finish().err().map_or(0, |all| all.as_slice().len()), want, "{steps}");
    }
}
