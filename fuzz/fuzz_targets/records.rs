//! rustls and our record layer, told the same: they must understand the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::tls::compare;

fuzz_target!(|script: &[u8]| compare(script));
