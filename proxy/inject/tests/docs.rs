//! docs/inject.md has every option, switch, kind, diagnostic and exit code, and no other.

#![allow(clippy::unwrap_used, clippy::tests_outside_test_module, reason = "a test panics")]

use std::fs;
use std::path::Path;

use pillion_inject::cli::{EXIT_CODES, SWITCHES};
use pillion_inject::{FUNCTION_KIND, Kind, OPTIONS, RECORD, find, kinds};

fn document() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/inject.md")).unwrap()
}

/// The rows of the table between `<!-- name -->` and its end, each as its cells.
fn table(name: &str) -> Vec<Vec<String>> {
    let document = document();
    let (_, rest) = document.split_once(&format!("<!-- {name} -->")).unwrap();
    let (table, _) = rest.split_once(&format!("<!-- /{name} -->")).unwrap();
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
    table.trim().lines().skip(2).map(cells).collect()
}

#[test]
fn the_options_are_those_of_the_program() {
    let rows = table("options");
    assert_eq!(rows.len(), OPTIONS.len());
    for (row, option) in rows.iter().zip(OPTIONS) {
        let default = if option.default.is_empty() { "none" } else { option.default };
        let want = [&format!("--{}", option.name), &option.variable(), default];
        assert_eq!(row[1..4], want);
        for word in option.words().iter().filter(|_| option.name != "inject") {
            assert!(row[4].contains(word), "{}: {word}", option.name);
        }
    }
}

#[test]
fn the_other_tables_are_those_of_the_program() {
    let first = |rows: Vec<Vec<String>>| rows.into_iter().map(|row| row[1].clone());
    assert!(first(table("kinds")).eq(kinds().map(str::to_owned)));
    let switches = SWITCHES.iter().map(|(name, _)| format!("--{name}"));
    assert!(first(table("switches")).eq(switches));
    let rows = table("diagnostics");
    let found = rows.iter().map(|row| (row[1].as_str(), row[2].as_str()));
    let want = Kind::ALL.iter().map(|kind| (kind.slug(), kind.severity().as_str()));
    assert_eq!(found.collect::<Vec<_>>(), want.collect::<Vec<_>>());
}

#[test]
fn the_exit_codes_are_those_of_the_program() {
    let document = document();
    let codes = document.lines().filter(|line| {
        let cell = line.strip_prefix("| ").and_then(|rest| rest.split_once(' '));
        cell.is_some_and(|(cell, _)| cell.parse::<u8>().is_ok())
    });
    let want = EXIT_CODES.iter().map(|(code, meaning)| format!("| {code} | {meaning} |"));
    assert_eq!(codes.collect::<Vec<_>>(), want.collect::<Vec<_>>());
}

#[test]
fn every_annotation_that_is_named_exists() {
    for word in document().split(|c: char| c.is_whitespace() || "`\":,()".contains(c)) {
        let Some(name) = word.strip_prefix("pillion.dev/").filter(|name| !name.is_empty()) else {
            continue;
        };
        assert!(find(name).is_some() || word == RECORD || name == "v1alpha1", "{word}");
    }
    assert!(document().contains(&format!("kind: {FUNCTION_KIND}\n")));
}

/// What it says of the example with `functionConfig` is tried.
#[test]
fn the_function_that_is_shown_works() {
    let document = document();
    let (_, rest) = document.split_once("# pillion.yaml\n").unwrap();
    let (config, _) = rest.split_once("```").unwrap();
    let config: String = config.lines().map(|line| format!("  {line}\n")).collect();
    let list = format!(
        "apiVersion: config.kubernetes.io/v1\nkind: ResourceList\nfunctionConfig:\n{config}items:\n\
         - {{apiVersion: v1, kind: Pod, spec: {{containers: [{{name: a}}]}}}}\n"
    );
    let text = pillion_inject::inject("f", &list, &pillion_inject::Settings::default());
    let text = text.unwrap_or_else(|errors| panic!("{errors}")).text;
    for part in ["\"3306\"", "\"PILLION_ACCESS_LOG\", \"value\": \"all\"", "\"name\": \"shop\""] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
