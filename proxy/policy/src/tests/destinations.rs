//! Destinations that take from each other.

use super::{Kind, PASS, STRICT, errors, file, rules, warnings};

fn two(first: &str, second: &str) -> String {
    let out = format!("{PASS}, destinations: [{{name: a, {first}}}, {{name: b, {second}}}]");
    file("", STRICT, &out)
}

fn mtls(server: &str, rest: &str) -> String {
    format!("action: mtls, serverIdentities: [x/{server}], {rest}")
}

#[test]
fn who_may_answer_is_said_by_the_first_and_so_a_narrower_one_behind_is_dead() {
    let dead = [Kind::UnreachableRule];
    for (wide, narrow) in [
        ("ipBlocks: [10.0.0.0/8]", "ipBlocks: [10.1.0.0/16]"),
        ("ipBlocks: [10.0.0.0/8]", "ipBlocks: [10.1.0.0/16], ports: [80]"),
        ("hosts: [a.b, c.d]", "hosts: [c.d]"),
        ("ipBlocks: [0.0.0.0/0, \"::/1\", \"8000::/1\"]", "hosts: [c.d]"),
    ] {
        assert_eq!(errors(&two(&mtls("s", wide), &mtls("t", narrow))), dead, "{wide} {narrow}");
        // The narrower one first is the way to say it.
        let turned = two(&mtls("t", narrow), &mtls("s", wide));
        assert_eq!((errors(&turned), warnings(&turned)), (vec![], vec![]), "{wide} {narrow}");
        // Alike, the second only says once more what the first does.
        assert_eq!(errors(&two(&mtls("s", wide), &mtls("s", narrow))), [], "{wide} {narrow}");
        let other = format!("{narrow}, tunnelReuse: false");
        assert_eq!(errors(&two(&mtls("s", wide), &mtls("s", &other))), dead, "{wide} {narrow}");
    }
}

#[test]
fn mtls_destinations_that_meet_and_differ_in_who_may_answer() {
    for (first, second, meet) in [
        ("ipBlocks: [10.0.0.0/8, 11.0.0.1]", "ipBlocks: [10.1.0.0/16, 12.0.0.0/8]", true),
        ("ipBlocks: [10.0.0.0/8, 11.0.0.1]", "ipBlocks: [12.0.0.0/8]", false),
        (
            "ipBlocks: [\"fd00::/16\"], ports: [80]",
            "ipBlocks: [\"fd00::/8\"], ports: [80, 81]",
            false,
        ),
        (
            "ipBlocks: [10.0.0.0/8], ports: [80, 81]",
            "ipBlocks: [10.0.0.0/8], ports: [81, 82]",
            true,
        ),
        ("ipBlocks: [10.0.0.0/8], ports: [80, 81]", "ipBlocks: [10.0.0.0/8], ports: [82]", false),
        ("hosts: [a.b, c.d]", "hosts: [C.d, e.f]", true),
        ("hosts: [a.b, c.d], ports: [80]", "hosts: [c.d, e.f], ports: [81]", false),
        // Whether these are one address can't be told.
        ("hosts: [a.b]", "hosts: [c.d]", false),
        ("hosts: [a.b]", "ipBlocks: [10.0.0.0/8]", false),
        ("hosts: [a.b], ipBlocks: [10.0.0.0/8]", "hosts: [c.d], ipBlocks: [10.0.0.0/8]", true),
    ] {
        let want: &[Kind] = if meet { &[Kind::MtlsOverlap] } else { &[] };
        let meeting = two(&mtls("s", first), &mtls("t", second));
        assert_eq!(warnings(&meeting), want, "{first} {second}");
        let same = two(&mtls("s", first), &mtls("s", second));
        assert_eq!(warnings(&same), [], "{first} {second}");
    }
}

#[test]
fn a_host_without_a_dot_is_doubtful() {
    let doubtful = [Kind::HostWithoutDot];
    for (hosts, want) in [
        ("orders", &doubtful[..]),
        ("a.b, Orders", &doubtful),
        ("orders.shop", &[]),
        ("10.in-addr.arpa", &[]),
        ("4.example.a4", &[]),
    ] {
        let one = format!("{{name: a, action: passthrough, hosts: [{hosts}]}}");
        let text = file("", STRICT, &format!("{PASS}, destinations: [{one}]"));
        assert_eq!(warnings(&text), want, "{hosts}");
    }
}

/// In however many CIDRs it is written.
#[test]
fn every_address_is_every_address() {
    let all = "ipBlocks: [0.0.0.0/1, 128.0.0.0/1, \"::/0\"]";
    let dead = [Kind::UnreachableRule];
    for (blocks, want) in [(all, &dead[..]), ("ipBlocks: [0.0.0.0/0]", &[])] {
        let deny = format!("{{name: d, action: deny, from: [{{{blocks}}}]}}");
        for from in ["{any: true}", "{identities: [a/b]}"] {
            let allow = format!("{{name: a, action: allow, from: [{from}]}}");
            assert_eq!(errors(&rules(&format!("{allow}, {deny}"))), want, "{from} {blocks}");
        }
        let host = "action: passthrough, hosts: [a.b]";
        assert_eq!(errors(&two(&format!("action: deny, {blocks}"), host)), want, "{blocks}");
    }
}
