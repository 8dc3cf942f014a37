//! ztunnel in its dedicated mode: mTLS as HBONE to port 15008 of the peer's pod, workloads from
//! a file, certificates of its own test authority (so the binary needs its feature `testing`).

use std::path::Path;

use pillion_testbed::Process;
use serde_json::json;

use super::peer::{Both, Side};
use crate::error::{Error, write};
use crate::wire;

/// Where a ztunnel takes HBONE.
const HBONE: u16 = 15008;

/// Starts ztunnel in both pods.
pub(super) fn start(both: &Both<'_>, program: &Path) -> Result<[Process; 2], Error> {
    let config = both.client.path("workloads.json");
    let workload = |name: &str, address: std::net::IpAddr| {
        json!({
            "uid": format!("bench//v1/Pod/shop/{name}"),
            "name": name,
            "namespace": "shop",
            "serviceAccount": name,
            "workloadIps": [address],
            "protocol": "HBONE",
            "node": "local",
            "network": "",
            "services": {},
        })
    };
    let workloads = [workload("client", both.client.v4()), workload("server", both.server.v4())];
    // YAML is what it reads, and JSON is YAML.
    write(&config, &json!({"workloads": workloads}).to_string())?;
    // It dials the app from the pod's own address, which the rules would take for a hairpin; and
    // it must see who connects to its port itself.
    let mut ports = wire::PORTS.map(|port| port.to_string()).to_vec();
    ports.push(HBONE.to_string());
    let rules = ["--inbound-exclude-ports".to_owned(), ports.join(",")];
    both.start_with(&rules, |side, pod| {
        let own = if side == Side::Client { "client" } else { "server" };
        let mut command = pod.daemon_as(super::PROXY_USER, program);
        command
            .env("LOCAL_XDS_PATH", &config)
            .env("FAKE_CA", "true")
            .env("XDS_ADDRESS", "")
            .env("PROXY_MODE", "dedicated")
            .env("PROXY_WORKLOAD_INFO", format!("shop/{own}/{own}"))
            .env("NODE_NAME", "local")
            .env("ENABLE_ORIG_SRC", "false")
            .env("ZTUNNEL_WORKER_THREADS", "2")
            .env("IPV6_ENABLED", "false")
            .env("RUST_BACKTRACE", "0")
            .env("RUST_LOG", "error");
        Ok(command)
    })
}
