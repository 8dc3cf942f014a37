//! The kernel's socket addresses, and the plain form of mapped ones.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::sockaddr::check;

fuzz_target!(|input: [u8; 26]| check(&input));
