//! Pillion's data plane: a transparent mTLS sidecar.
//!
//! Each line is one room; a room imports only rooms below it, which
//! `tests/rooms.rs` checks.

pub mod admin;
pub mod app_health;
pub mod buffers;
pub mod cli;
pub mod config;
pub mod control;
pub mod detect;
pub mod dial;
pub mod inbound;
pub mod lane;
pub mod live;
pub mod net;
pub mod outbound;
pub mod probe;
pub mod relay;
pub mod run;
pub mod sandbox;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod wire;
pub mod worker;
