//! The policy file: errors with a place, or a policy whose explanations are its verdicts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::policy::check;

fuzz_target!(|text: &str| check(text));
