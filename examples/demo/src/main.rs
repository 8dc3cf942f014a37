//! Placeholder until the first real entry point lands.
fn main() {}
