//! Pillion's data plane: a transparent mTLS sidecar.
//!
//! Each line is one room; a room imports only rooms below it, which
//! `tests/rooms.rs` checks.

pub mod cli;
pub mod run;
pub mod control;
pub mod worker;
pub mod inbound;
pub mod outbound;
pub mod probe;
pub mod relay;
pub mod tls;
pub mod detect;
pub mod dial;
pub mod live;
pub mod policy;
pub mod admin;
pub mod telemetry;
pub mod net;
pub mod config;
