//! The redirect rules that bring a pod's TCP connections to the Pillion proxy.
//!
//! One run goes through these rooms, top to bottom:
//!
//! * [`config`]: flags and environment, every mistake reported at once;
//! * [`rules`]: the configuration as a typed rule model, one [`rules::RuleSet`] a family; pure;
//! * [`render`]: the model as `iptables-restore` text; pure;
//! * [`host`]: what this process may do, and in whose namespace it is;
//! * [`ipv6`]: whether IPv6 is there, or could come;
//! * [`backend`]: what speaks to the kernel, netlink or the programs of iptables, nft or legacy;
//! * [`netlink`]: nf_tables without a program;
//! * [`snapshot`] and [`saved_table`]: what is in the tables, as `iptables-save` prints it;
//! * [`foreign`]: whether a rule of others takes a connection before ours can;
//! * [`apply`]: both families or neither;
//! * [`verify`] and [`probe`]: reads the rules back, then dials to prove that they redirect;
//! * [`stale`] and [`cleanup`]: find what is left, and remove all of it.
//!
//! [`run()`](run::run) strings them together.

pub mod address;
pub mod apply;
pub mod backend;
pub mod cleanup;
pub mod config;
pub mod error;
pub mod flags;
pub mod foreign;
pub mod host;
pub mod ipv6;
pub mod log;
pub mod netlink;
pub mod ports;
pub mod probe;
pub mod render;
pub mod rules;
pub mod run;
pub mod saved_table;
pub mod snapshot;
pub mod stale;
mod values;
pub mod verify;
