//! Manifests: errors with a place, or a sidecar that can be undone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::inject::check;

fuzz_target!(|text: &str| check(text));
