//! The reference page and the code name the same keys and the same diagnostics.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;

use pillion_policy::{Kind, keys};

const PAGE: &str = include_str!("../../../docs/policy.md");

/// The first cell of each row of the tables in a section, without its backticks.
fn first_cells(section: &str) -> BTreeSet<String> {
    let (_, rest) = PAGE.split_once(&format!("\n## {section}\n")).expect(section);
    let part = rest.split("\n## ").next().unwrap();
    let rows = part.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
}

#[test]
fn every_key_is_documented_and_no_other() {
    assert_eq!(first_cells("Fields"), keys().into_iter().collect());
}

#[test]
fn every_diagnostic_is_documented_with_its_severity() {
    for severity in ["error", "warning"] {
        let section = if severity == "error" { "Errors" } else { "Warnings" };
        let ours = Kind::ALL.iter().filter(|kind| kind.severity().as_str() == severity);
        let ours: BTreeSet<_> = ours.map(|kind| kind.slug().to_owned()).collect();
        assert_eq!(first_cells(section), ours);
    }
}
