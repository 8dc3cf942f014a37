//! Each kind of error and warning names the line and the column that it is about.

use std::collections::BTreeSet;

use super::*;

/// Stands before what is wrong.
const MARK: char = '¦';

/// A file of a line for each rule and destination.
fn lines(inbound: &str, rules: &str, destinations: &str) -> String {
    let [rules, destinations] =
        [rules, destinations].map(|it| if it.is_empty() { "    []" } else { it });
    format!(
        "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n\
         inbound:\n{inbound}\n  rules:\n{rules}\n\
         outbound:\n  defaultAction: passthrough\n  destinations:\n{destinations}\n"
    )
}

fn rule(rules: &str) -> String {
    lines("  mtls: strict\n  defaultAction: deny", rules, "")
}

fn inbound(inbound: &str) -> String {
    lines(inbound, "  - {name: a, action: deny, from: [{identities: [a/b]}]}", "")
}

fn destination(destinations: &str) -> String {
    lines("  mtls: strict\n  defaultAction: deny", "", destinations)
}

/// The first place that the file is told to have something of the kind at, and the mark's.
fn places(kind: Kind, marked: &str) -> ((u32, u32), (u32, u32)) {
    let (before, _) = marked.split_once(MARK).unwrap_or_default();
    let count = |n: usize| u32::try_from(n).unwrap();
    let line = count(before.matches('\n').count()) + 1;
    let column = count(before.chars().rev().take_while(|c| *c != '\n').count()) + 1;
    let text = marked.replacen(MARK, "", 1);
    let told = match load("t.yaml", &text, Some(&own())) {
        Ok(compiled) => compiled.warnings,
        Err(errors) => errors.as_slice().to_vec(),
    };
    let found = told.iter().find(|one| one.kind == kind);
    let found = found.unwrap_or_else(|| panic!("no {}: {told:?}\n{text}", kind.slug()));
    assert_eq!(found.caret + 1, usize::try_from(found.column).unwrap(), "{found}");
    ((found.line, found.column), (line, column))
}

#[test]
fn each_kind_has_its_place() {
    let open = "  mtls: permissive\n  defaultAction: allow";
    let deep = format!("a: {}{MARK}[{}", "[".repeat(15), "]".repeat(16));
    let cases = [
        (Kind::FileTooLarge, format!("{MARK}{}", " ".repeat(crate::MAX_FILE_BYTES + 1))),
        (Kind::EmptyFile, format!("{MARK}# only a comment\n")),
        (Kind::YamlSyntax, "a: 1\nb: }¦c\n".replace(MARK, "").replacen('}', "¦}", 1)),
        (Kind::YamlFeature, rule("  - {name: a, action: ¦&x allow, from: [{any: true}]}")),
        (Kind::TooMany, format!("a:\n  {MARK}- {{{}", "a, ".repeat(70_000))),
        (Kind::TooDeep, deep),
        (Kind::SecondDocument, format!("{}¦---\na: 1\n", rule(""))),
        (Kind::UnknownKey, rule("  - {¦nam: a, action: allow, from: [{any: true}]}")),
        (Kind::DuplicateKey, rule("  - {name: a, ¦name: b, action: allow, from: [{any: true}]}")),
        (Kind::MissingKey, rule("  - ¦{action: allow, from: [{any: true}]}")),
        (Kind::WrongType, rule("  - {name: a, action: allow, from: ¦any}")),
        (Kind::BadValue, rule("  - {name: a, action: ¦alow, from: [{any: true}]}")),
        (
            Kind::HostBits,
            rule("  - {name: a, action: deny, from: [{ipBlocks: [::1, ¦10.0.0.1/8]}]}"),
        ),
        (
            Kind::MappedPrefix,
            rule("  - {name: a, action: deny, from: [{ipBlocks: [¦\"::ffff:0:0/95\"]}]}"),
        ),
        (
            Kind::ExceptOutside,
            rule(
                "  - {name: a, action: deny, from: [{ipBlocks: [{cidr: 10.0.0.0/8, except: [¦11.0.0.0/8]}]}]}",
            ),
        ),
        (Kind::MissingServerIdentities, destination("  - {name: d, hosts: [a.b], ¦action: mtls}")),
        (
            Kind::ForeignTrustDomain,
            rule("  - {name: a, action: deny, from: [{identities: [a/b, ¦\"spiffe://other/x\"]}]}"),
        ),
        (
            Kind::DuplicateName,
            destination(
                "  - {name: d, ipBlocks: [10.0.0.1], action: deny}\n  - {ipBlocks: [10.0.0.2], action: deny, name: ¦d}",
            ),
        ),
        (
            Kind::UnreachableRule,
            rule(
                "  - {name: a, action: deny, from: [{any: true}]}\n  - {¦name: b, action: deny, from: [{any: true}]}",
            ),
        ),
        (
            Kind::PermissiveServerFirst,
            inbound(
                "  mtls: strict\n  defaultAction: deny\n  ports: {80: {mtls: disable}, ¦25: {mtls: permissive}}",
            ),
        ),
        (
            Kind::AllowUnderDefaultAllow,
            lines(open, "  - {¦name: a, action: allow, from: [{identities: [a/b]}]}", ""),
        ),
        (
            Kind::DenyIdentityOnPermissive,
            lines(open, "  - {name: a, action: deny, from: [¦{identities: [a/b]}]}", ""),
        ),
        (Kind::OpenToAll, rule("  - {name: a, action: allow, from: [{ipBlocks: [¦0.0.0.0/0]}]}")),
        (
            Kind::MtlsOverlap,
            destination(
                "  - {name: d, ipBlocks: [10.0.0.0/8], action: mtls, serverIdentities: [a/b]}\n  \
                 - {¦name: e, ipBlocks: [10.0.0.1, 11.0.0.1], action: mtls, serverIdentities: [a/c]}",
            ),
        ),
        (Kind::HostWithoutDot, destination("  - {name: d, hosts: [a.b, ¦orders], action: deny}")),
    ];
    let mut wrong = Vec::new();
    for (kind, marked) in &cases {
        let (told, marked) = places(*kind, marked);
        if told != marked {
            wrong.push(format!("{}: told {told:?}, and it is {marked:?}", kind.slug()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let shown: BTreeSet<_> = cases.iter().map(|(kind, _)| kind.slug()).collect();
    assert_eq!(shown, Kind::ALL.iter().map(|kind| kind.slug()).collect());
}
