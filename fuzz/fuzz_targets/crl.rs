//! Revocation lists: none is obeyed that the authority did not sign, and one that it did is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::certs::check_lists;

fuzz_target!(|input: &[u8]| check_lists(input));
