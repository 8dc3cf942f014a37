//! Pods made of network namespaces, and what the suites need to drive them.
//!
//! A [`Testbed`] is one virtual switch and the pods plugged into it. A [`Pod`] is a network
//! namespace with an IPv4 and an IPv6 address; programs start in it, and sockets of the test
//! itself are opened in it. [`Pod::mesh`] installs the real redirect rules and starts the real
//! proxy, exactly as an init container and a sidecar would. A [`Capture`] records what crosses
//! the wire between pods.
//!
//! Everything runs as root and cleans up after itself: a test's namespaces, processes and files
//! go when its [`Testbed`] is dropped, also by a panic; those of a killed run are swept by the
//! next one.

mod capture;
mod cgroup;
mod container;
mod crl;
mod ended;
mod error;
mod exec;
mod fault_proxy;
pub mod forge;
pub mod health_service;
mod http;
#[cfg(target_arch = "x86_64")]
mod intruder;
pub mod labels;
pub mod load;
mod logs;
mod metrics;
mod namespace;
pub mod pace;
mod pair;
mod pcap;
pub mod peer;
mod pod;
pub mod policy;
mod script;
mod settings;
mod sidecar;
pub mod stream;
mod testbed;
mod volume;
mod wait;
pub mod wear;
pub mod workload_api;

pub use capture::Capture;
pub use cgroup::MemoryGroup;
pub use container::{CONFINED, Container};
pub use crl::RevocationFile;
pub use error::{Context, Failure};
pub use exec::{Finished, Process, complete, finish};
pub use fault_proxy::{Carried, FaultProxy, Plan};
pub use http::{get as http_get, request as http_request};
#[cfg(target_arch = "x86_64")]
pub use intruder::{Came, Intruder};
pub use logs::LogLine;
pub use metrics::Metrics;
pub use pair::Pair;
pub use pcap::{Flow, Wire};
pub use pod::{Pod, accept, untouched};
pub use script::Fault;
pub use settings::{Settings, more_descriptors, require_root};
pub use sidecar::{CertificateSource, MeshOptions, Sidecar, Stdout};
pub use testbed::{Testbed, run, run_with};
pub use wait::{let_pass, wait_until};
