//! Random manifests in any style: injection means what it should, and can be undone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::tests_outside_test_module,
    reason = "a test panics"
)]

mod common;

use common::{nasty, pods, reference, writer};
use fastrand::Rng;
use pillion_inject::{Kind, Settings, inject, uninject};
use serde_json::{Value, json};

fn normal(documents: Vec<Value>) -> Vec<Value> {
    let mut documents = documents;
    documents.iter_mut().for_each(reference::normal);
    documents
}

/// What has to hold of any text that is taken.
fn check(text: &str, context: &str) {
    let injected = inject("f.yaml", text, &Settings::default());
    let injected = injected.unwrap_or_else(|errors| panic!("{context}: {errors}\n{text}")).text;
    let again = inject("f.yaml", &injected, &Settings::default()).unwrap().text;
    assert!(again == injected, "{context}: a second run changed this:\n{injected}");
    let back = uninject("f.yaml", &injected).unwrap();
    assert!(back == text, "{context}: this came back:\n{back}\ninstead of\n{text}");
    let mut want = reference::read(text);
    want.iter_mut().for_each(reference::inject);
    let found = reference::read(&injected);
    assert_eq!(normal(found), normal(want), "{context}:\n{text}\nbecame\n{injected}");
}

#[test]
fn manifests_in_any_style() {
    for seed in 0..600 {
        let mut rng = Rng::with_seed(seed);
        let count = rng.usize(1..4);
        let documents: Vec<_> = (0..count).map(|_| pods::document(&mut rng)).collect();
        let text = writer::stream(&mut rng, &documents);
        assert_eq!(reference::read(&text), documents, "seed {seed}: the writer is wrong:\n{text}");
        check(&text, &format!("seed {seed}"));
    }
}

/// Probes that nobody should write: what is taken, the proxy takes, for the same probe; and what is
/// refused has its place.
#[test]
fn what_is_written_for_the_proxy_is_what_it_reads() {
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..3000 {
        let mut rng = Rng::with_seed(seed);
        let containers: Vec<Value> =
            (0..rng.usize(1..4)).map(|n| nasty::container(&mut rng, n)).collect();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": containers}});
        let text = writer::stream(&mut rng, std::slice::from_ref(&pod));
        let injected = match inject("f.yaml", &text, &Settings::default()) {
            Ok(injected) => injected.text,
            Err(errors) => {
                refused += 1;
                let lines = text.lines().count();
                for error in errors.as_slice() {
                    assert!(error.kind == Kind::Probe && error.line <= lines, "{error}\n{text}");
                }
                continue;
            }
        };
        let read = &reference::read(&injected)[0];
        let env = read["spec"]["initContainers"][1]["env"].as_array().into_iter().flatten();
        let written =
            env.filter(|it| it["name"] == "PILLION_APP_PROBES").map(|it| it["value"].as_str());
        let written = written.map(Option::unwrap).next().unwrap_or("{}");
        assert!(!written.contains("$("), "the kubelet would expand it: {written}");
        let probes =
            pillion_app_probes::read(written).unwrap_or_else(|why| panic!("{why:?}\n{text}"));
        assert_eq!(
            pillion_app_probes::of_own_ports(&probes, &[15000, 15001, 15006, 15020, 15021]),
            []
        );
        assert_eq!(probes, nasty::meant(&pod), "{text}");
        taken += usize::from(!probes.is_empty());
    }
    assert!(taken > 500 && refused > 500, "{taken} taken, {refused} refused");
}

/// The manifests of the golden tests, with comments and blank lines put in between their lines.
#[test]
fn comments_anywhere_between_the_lines() {
    let nginx = include_str!("golden/nginx.in.yaml");
    let redis = include_str!("golden/redis-statefulset.in.yaml");
    let wordpress = include_str!("golden/wordpress.in.yaml");
    for seed in 0..200 {
        let mut rng = Rng::with_seed(seed);
        let original = [nginx, redis, wordpress][rng.usize(..3)];
        let mut text = String::new();
        for line in original.lines() {
            if rng.u32(0..3) == 0 {
                let column = rng.usize(0..20);
                let added = ["# a: b", "", "#- c", "#"][rng.usize(..4)];
                text.push_str(&format!("{:column$}{added}\n", ""));
            }
            text.push_str(line);
            text.push('\n');
        }
        let injected = inject("f.yaml", &text, &Settings::default()).unwrap().text;
        assert_eq!(uninject("f.yaml", &injected).unwrap(), text, "seed {seed}");
        let plain = inject("f.yaml", original, &Settings::default()).unwrap().text;
        let (found, want) = (reference::read(&injected), reference::read(&plain));
        // The record has the comments in it.
        assert_eq!(normal(found), normal(want), "seed {seed}:\n{injected}");
    }
}
