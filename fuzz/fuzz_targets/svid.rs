//! A peer's chain of certificates: nobody is accepted whose leaf was not signed as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::certs::check_chain;

fuzz_target!(|input: &[u8]| check_chain(input));
