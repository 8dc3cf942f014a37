//! The look at a connection's first bytes: what was said of the beginning stands
//! when more has come.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::detect::{Hello, peek};

const MESH: &[&[u8]] = &[b"istio", b"pillion/1"];

fuzz_target!(|bytes: &[u8]| {
    let whole = peek(bytes, MESH);
    // All beginnings of a long input would take too long: some, and the last ones.
    let step = bytes.len() / 64 + 1;
    for n in (0..bytes.len()).step_by(step).chain(bytes.len().saturating_sub(8)..bytes.len()) {
        let beginning = peek(&bytes[..n], MESH);
        assert!(beginning == Hello::Incomplete || beginning == whole, "{n}: {beginning:?}");
    }
});
