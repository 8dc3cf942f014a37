//! The kernel's lists of chains and rules, and what is made of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::nat_table::check;

fuzz_target!(|answer: &[u8]| check(answer));
