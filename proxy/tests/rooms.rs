//! The rooms of the proxy, top to bottom: a room imports only rooms below it.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One line is one floor; rooms on one floor do not import each other.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["run"],
    &["control"],
    &["worker"],
    &["inbound", "outbound"],
    &["lane"],
    &["app_health", "probe", "relay"],
    &["wire"],
    &["tls"],
    &["detect", "dial"],
    &["live"],
    &["admin", "telemetry"],
    &["net", "sandbox"],
    &["config", "buffers", "tunnel"],
];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&room))
}

/// Every `crate::room` in a file outside of its tests and comments.
fn imports(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String = code
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
        .collect::<Vec<_>>()
        .join(" ");
    let mut rooms = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let names = match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let is_name = |c: &char| c.is_alphanumeric() || *c == '_';
            rooms.insert(name.trim().chars().take_while(is_name).collect());
        }
    }
    rooms.remove("");
    rooms
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_import_runs_upward_or_across() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in all {
        let relative = path.strip_prefix(&src).unwrap();
        let first = relative.iter().next().unwrap().to_str().unwrap();
        let room = first.trim_end_matches(".rs");
        if room == "lib" {
            continue;
        }
        let here = floor(room).unwrap_or_else(|| panic!("{room} is on no floor"));
        seen.insert(room.to_owned());
        for import in imports(&fs::read_to_string(&path).unwrap()) {
            let there = floor(&import)
                .unwrap_or_else(|| panic!("{}: crate::{import} is no room", relative.display()));
            if import != room && there <= here {
                wrong.push(format!("{}: imports {import}, not below {room}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed = FLOORS.iter().flat_map(|f| f.iter()).map(|r| (*r).to_owned()).collect();
    assert_eq!(seen, listed, "the rooms and the floors differ");
}

#[test]
fn the_reader_sees_single_and_grouped_imports() {
    let source = "use crate::net::{Leg};\nuse crate::{inbound,\n outbound};\n\
                  let x = crate::config::x();\n// crate::main\n";
    let expected = ["config", "inbound", "net", "outbound"].map(str::to_owned);
    assert_eq!(imports(source), BTreeSet::from(expected));
}
