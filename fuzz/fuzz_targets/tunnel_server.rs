//! The server's end of a tunnel, against arbitrary bytes and in any order of its own doings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::{play, tunnel::Role};

fuzz_target!(|script: &[u8]| play(Role::Server, script));
