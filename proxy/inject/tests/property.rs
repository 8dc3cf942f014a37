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

use common::{pods, reference, writer};
use fastrand::Rng;
use pillion_inject::{Settings, inject, uninject};

fn normal(documents: Vec<serde_json::Value>) -> Vec<serde_json::Value> {
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
