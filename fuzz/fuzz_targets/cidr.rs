//! One CIDR of a policy, and an address, against the bits of both. The first 16 bytes are the
//! address.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::policy::check_cidr;

fuzz_target!(|input: &[u8]| {
    if let Some((address, item)) = input.split_first_chunk::<16>()
        && let Ok(item) = std::str::from_utf8(item)
    {
        check_cidr(item, *address);
    }
});
