//! An identity as an agent of the SPIFFE Workload API hands it out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::identity::check_answer;

fuzz_target!(|input: &[u8]| check_answer(input));
