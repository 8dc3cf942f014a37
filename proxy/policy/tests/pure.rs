//! The crate does no I/O, reads no clock and knows of no runtime: neither it nor what it names
//! could.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What the sources may take from other crates, with what it is for. `net` is addresses; sockets
/// are refused by their names.
const TAKEN: &[&str] = &[
    "std::cell",
    "std::cmp",
    "std::collections",
    "std::error",
    "std::fmt",
    "std::hash",
    "std::iter",
    "std::mem",
    "std::net",
    "std::ops",
    "std::ptr",
    "std::slice",
    "std::str",
    "std::sync",
    "pillion_certs::spiffe",
];
const SOCKETS: &[&str] = &["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs"];

/// The dependencies: a hash, CIDRs, a YAML parser, JSON, distances of words, SPIFFE IDs.
const DEPENDENCIES: &[&str] =
    &["aws-lc-rs", "ipnet", "pillion-certs", "saphyr-parser", "serde_json", "strsim"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Every `root::module` in a text, grouped imports of modules included.
fn modules(text: &str, root: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in text.split(&format!("{root}::")).skip(1) {
        let names: Vec<_> = match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let word = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_');
            found.insert(format!("{root}::{}", word.collect::<String>()));
        }
    }
    found
}

#[test]
fn the_sources_name_nothing_that_does_io() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 10, "the sources were not found: {files:?}");
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let named = modules(&text, "std").into_iter().chain(modules(&text, "pillion_certs"));
        let bad = named.filter(|name| !TAKEN.contains(&name.as_str()));
        wrong.extend(bad.map(|name| format!("{}: {name}", path.display())));
        let sockets = SOCKETS.iter().filter(|name| text.contains(**name));
        wrong.extend(sockets.map(|name| format!("{}: {name}", path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_dependencies_are_few_and_known() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let table = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let names = table.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    let names: BTreeSet<_> = names.filter(|name| !name.is_empty()).collect();
    assert_eq!(names, DEPENDENCIES.iter().copied().collect());
}

#[test]
fn the_reader_sees_single_and_grouped_modules() {
    let text = "use std::{fs, time::Instant};\nuse std::net::IpAddr;\n";
    let want = ["std::fs", "std::net", "std::time"].map(str::to_owned);
    assert_eq!(modules(text, "std"), BTreeSet::from(want));
}
