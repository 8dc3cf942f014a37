//! SPIFFE IDs: the parser against a second reading of the grammar.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::spiffe::check;

fuzz_target!(|input: &[u8]| check(input));
