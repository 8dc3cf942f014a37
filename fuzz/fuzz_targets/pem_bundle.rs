//! The files of an identity, and what `pillion-certs inspect` is given.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::certs::check_pem;
use pillion_fuzz::identity::check_file;

fuzz_target!(|input: &[u8]| {
    check_file(input);
    check_pem(input.get(1..).unwrap_or_default());
});
