//! The meaning of a policy file, sentence by sentence.

mod destinations;
mod places;
mod rejects;
mod told;
mod verdicts;
mod words;

use pillion_certs::spiffe::TrustDomain;

use super::{Compiled, Kind, load};

pub(super) const OWN: &str = "cluster.local";

pub(super) fn own() -> TrustDomain {
    OWN.parse().unwrap()
}

/// A file whose inbound and outbound parts are given, in YAML flow style.
pub(super) fn file(top: &str, inbound: &str, outbound: &str) -> String {
    format!(
        "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n{top}\n\
         inbound: {{{inbound}}}\noutbound: {{{outbound}}}\n"
    )
}

/// A file with these rules, strict and denying by default.
pub(super) fn rules(rules: &str) -> String {
    file("", &format!("mtls: strict, defaultAction: deny, rules: [{rules}]"), PASS)
}

pub(super) const STRICT: &str = "mtls: strict, defaultAction: deny";
pub(super) const PASS: &str = "defaultAction: passthrough";

pub(super) fn good(text: &str) -> Compiled {
    load("t.yaml", text, Some(&own())).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The kinds of all errors, in the file's order.
pub(super) fn errors(text: &str) -> Vec<Kind> {
    match load("t.yaml", text, Some(&own())) {
        Ok(_) => Vec::new(),
        Err(all) => all.as_slice().iter().map(|d| d.kind).collect(),
    }
}

pub(super) fn warnings(text: &str) -> Vec<Kind> {
    good(text).warnings.iter().map(|d| d.kind).collect()
}

#[test]
fn the_examples_load_without_warnings() {
    for (file, text, own) in [
        ("1", include_str!("../../../examples/policies/1-strict-api.yaml"), OWN),
        ("2", include_str!("../../../examples/policies/2-database-allow-list.yaml"), OWN),
        ("3", include_str!("../../../examples/policies/3-rollout-audit.yaml"), OWN),
        (
            "4",
            include_str!("../../../examples/policies/4-egress-federated.yaml"),
            "prod.example.com",
        ),
    ] {
        let own = own.parse().unwrap();
        for own in [Some(&own), None] {
            let compiled = load(file, text, own).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(compiled.warnings, []);
            assert_eq!(compiled.policy.hash().len(), 16);
        }
    }
}

/// Half a gigabyte of nested aliases, and a rule for every line of a large file.
#[test]
fn hostile_and_large_files_end() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n";
    assert_eq!(errors(bomb), [Kind::YamlFeature]);
    let one = |n: u32| {
        format!("{{name: r{n}, action: allow, ports: [8080], from: [{{identities: [a/s{n}]}}]}},\n")
    };
    let large = good(&rules(&(0..20_000).map(one).collect::<String>()));
    assert_eq!(large.policy.rules().len(), 20_000);
}
