//! Manifests in the style of those in use, and what becomes of them, byte for byte.
//!
//! `NAME.in.yaml` is the input and `NAME.yaml` the output, which `pillion-inject NAME.in.yaml`
//! prints.

#![allow(clippy::unwrap_used, clippy::tests_outside_test_module, reason = "a test panics")]

use std::fs;
use std::path::{Path, PathBuf};

use pillion_inject::{Settings, find, inject, uninject};

/// Input and output of each, and their name.
fn golden() -> Vec<(String, String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut inputs: Vec<PathBuf> =
        files.filter(|path| path.to_str().unwrap().contains(".in.")).collect();
    inputs.sort();
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let pair = |path: PathBuf| {
        let output = path.to_str().unwrap().replace(".in.", ".");
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, read(&path), read(Path::new(&output)))
    };
    inputs.into_iter().map(pair).collect()
}

#[test]
fn each_manifest_becomes_what_it_should() {
    let golden = golden();
    assert!(golden.len() >= 25, "{}", golden.len());
    for (name, input, output) in golden {
        let injected = inject(&name, &input, &Settings::default());
        let text = injected.unwrap_or_else(|errors| panic!("{errors}")).text;
        assert!(
            text == output,
            "{name}: the output is another; compare it by pillion-inject {name}"
        );
    }
}

#[test]
fn a_second_run_changes_nothing_and_uninject_gives_the_input_back() {
    for (name, input, output) in golden() {
        assert_eq!(inject(&name, &output, &Settings::default()).unwrap().text, output, "{name}");
        assert_eq!(uninject(&name, &output).unwrap(), input, "{name}");
        assert_eq!(uninject(&name, &input).unwrap(), input, "{name}");
    }
}

#[test]
fn other_options_replace_what_was_injected_before() {
    let mut other = Settings::default();
    for (name, value) in [
        ("proxy-image", "registry.example/other:2"),
        ("identity", "spire"),
        ("inbound-exclude-ports", "1-3"),
    ] {
        other.set(find(name).unwrap(), value).unwrap();
    }
    for (name, input, output) in golden() {
        let fresh = inject(&name, &input, &other).unwrap().text;
        let again = inject(&name, &output, &other).unwrap().text;
        assert_eq!(fresh, again, "{name}");
        assert_eq!(uninject(&name, &again).unwrap(), input, "{name}");
        let back = inject(&name, &again, &Settings::default()).unwrap().text;
        assert_eq!(back, output, "{name}");
    }
}

#[test]
fn json_stays_json() {
    let json = golden().into_iter().filter(|(name, ..)| name.ends_with(".json"));
    let mut seen = 0;
    for (name, input, output) in json {
        for text in [input, output] {
            serde_json::from_str::<serde_json::Value>(&text)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            seen += 1;
        }
    }
    assert!(seen >= 4);
}

#[test]
fn what_has_no_pod_is_not_touched() {
    let (name, input, output) =
        golden().into_iter().find(|(name, ..)| name.starts_with("passed-through")).unwrap();
    assert_eq!(input, output, "{name}");
}
