//! docs/init.md has every flag, variable, default and exit code of the program, and no other.

#![allow(clippy::expect_used, clippy::tests_outside_test_module, reason = "a test panics")]

use std::fs;
use std::path::Path;

use pillion_init::error::EXIT_CODES;
use pillion_init::flags::FLAGS;

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/init.md");
    fs::read_to_string(&path).expect("docs/init.md is there")
}

/// The first cells of a table's rows that begin with `prefix`, as whole rows.
fn rows<'a>(document: &'a str, prefix: &str) -> Vec<&'a str> {
    document.lines().filter(|line| line.starts_with(prefix)).collect()
}

#[test]
fn the_flags_are_those_of_the_program() {
    let document = document();
    let rows = rows(&document, "| `--");
    assert_eq!(rows.len(), FLAGS.len(), "{rows:#?}");
    for (row, flag) in rows.iter().zip(FLAGS) {
        let default = if flag.default.is_empty() { "none" } else { flag.default };
        let start = format!("| `--{}` | `{}` | {default} | ", flag.name, flag.variable());
        assert!(row.starts_with(&start), "{row}\nshould begin with\n{start}");
    }
}

#[test]
fn the_exit_codes_are_those_of_the_program() {
    let document = document();
    let found: Vec<String> = document
        .lines()
        .filter(|line| {
            let cell = line.strip_prefix("| ").and_then(|rest| rest.split_once(' '));
            cell.is_some_and(|(cell, _)| cell.parse::<u8>().is_ok())
        })
        .map(|line| line.split('|').take(3).collect::<Vec<_>>().join("|"))
        .collect();
    let wanted: Vec<String> =
        EXIT_CODES.iter().map(|(code, meaning)| format!("| {code} | {meaning} ")).collect();
    assert_eq!(found, wanted);
}

#[test]
fn the_backends_are_those_of_the_program() {
    let document = document();
    let begin = document.find("## Backends").expect("the section is there");
    let rows = rows(&document[begin..], "| `");
    let named: Vec<&str> = rows.iter().filter_map(|row| row.split('`').nth(1)).collect();
    let flag = FLAGS.iter().find(|flag| flag.name == "backend").expect("the flag is there");
    let words = flag.value.and_then(|value| value.strip_prefix("auto|")).expect("it has words");
    assert_eq!(named, words.split('|').collect::<Vec<_>>());
}

#[test]
fn the_rules_shown_are_the_canonical_ones() {
    let document = document();
    for rules in [include_str!("../canonical/v4.rules"), include_str!("../canonical/v6.rules")] {
        for rule in rules.lines().filter(|line| line.starts_with("-A")) {
            assert!(document.contains(rule.trim_start_matches("-A ")), "{rule}");
        }
    }
}
