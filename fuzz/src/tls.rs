//! The record layer, and the test that compares it with rustls.
#![allow(dead_code, reason = "the other engine and some tests' helpers are not fuzzed")]

#[path = "../../proxy/src/tls/post_handshake.rs"]
mod post_handshake;
#[path = "../../proxy/src/tls/records.rs"]
mod records;
#[path = "../../proxy/src/tls/session.rs"]
mod session;

#[path = "../../proxy/src/tls/tests/differential.rs"]
mod differential;
#[path = "../../proxy/src/tls/tests/twins.rs"]
mod twins;

/// Tells rustls and our record layer what `script` says, and compares.
pub fn compare(script: &[u8]) {
    differential::play(script);
}
