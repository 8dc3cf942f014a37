//! The parser: any split of the same bytes says the same. The first byte has the
//! role and how many bytes after it are the sizes of the split's parts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_fuzz::{hear, tunnel::Role};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let role = if first & 1 == 0 { Role::Client } else { Role::Server };
    let (sizes, input) = rest.split_at(usize::from(first >> 5).min(rest.len()));
    let whole = hear(role, input, &[]);
    assert_eq!(hear(role, input, sizes), whole, "in parts of {sizes:?}, each less one");
    assert_eq!(hear(role, input, &[0]), whole, "byte by byte");
});
