//! The page on certificates has the labels of the code, in the same order.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "common/tables.rs"]
mod tables;

use pillion_certs::load::LoadError;
use pillion_certs::refusal::PeerRefusal;
use tables::{documented, same};

fn labels(table: &str) -> Vec<String> {
    documented("docs/certificates.md", table, 1).concat()
}

fn owned(labels: &[&str]) -> Vec<String> {
    labels.iter().map(|label| (*label).to_owned()).collect()
}

#[test]
fn every_refusal_is_documented_and_no_other() {
    same(&labels("refusals"), &owned(PeerRefusal::ALL_LABELS));
}

#[test]
fn every_load_error_is_documented_and_no_other() {
    same(&labels("load-errors"), &owned(LoadError::ALL_LABELS));
}
