//! Envoy: `tcp_proxy` behind the `original_dst` listener filter, mTLS on the original port.

use std::path::Path;

use pillion_testbed::Process;
use pillion_testbed::labels::{CLIENT, SERVER, port};
use serde_json::{Value, json};

use super::peer::{Both, Certificates, Side};
use crate::error::{Error, write};

/// Starts Envoy in both pods.
pub(super) fn start(both: &Both<'_>, program: &Path) -> Result<[Process; 2], Error> {
    both.start(|side, pod| {
        let config = pod.path("envoy.json");
        let certificates = both.certificates(side, pod)?;
        write(&config, &bootstrap(side, &certificates).to_string())?;
        let mut command = pod.daemon_as(super::PROXY_USER, program);
        command.arg("-c").arg(&config);
        // Hot restart shares memory between all Envoys of a machine.
        command.args(["--concurrency", "2", "--log-level", "error", "--disable-hot-restart"]);
        Ok(command)
    })
}

fn bootstrap(side: Side, certificates: &Certificates) -> Value {
    let peer = if side == Side::Client { SERVER } else { CLIENT };
    let tls = tls_context(peer, certificates);
    // The client's outbound leg and the server's inbound leg carry mTLS, the other two don't:
    // each pod has both listeners, as a sidecar has.
    let (outbound_tls, inbound_tls) = match side {
        Side::Client => (Some(&tls), None),
        Side::Server => (None, Some(&tls)),
    };
    json!({
        "static_resources": {
            "listeners": [
                listener("outbound", port::OUTBOUND, None),
                listener("inbound", port::INBOUND, inbound_tls),
            ],
            "clusters": [
                cluster("outbound", None, outbound_tls),
                cluster("inbound", Some("127.0.0.6"), None),
            ],
        },
    })
}

fn tls_context(peer: &str, certificates: &Certificates) -> Value {
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": {"filename": certificates.chain},
            "private_key": {"filename": certificates.key},
        }],
        "validation_context": {
            "trusted_ca": {"filename": certificates.ca},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    })
}

fn listener(name: &str, port: u16, tls: Option<&Value>) -> Value {
    let mut chain = json!({
        "filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": type_url("filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": name,
                "cluster": name,
            },
        }],
    });
    if let (Some(tls), Some(chain)) = (tls, chain.as_object_mut()) {
        let context = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": type_url("transport_sockets.tls.v3.DownstreamTlsContext"),
                "require_client_certificate": true,
                "common_tls_context": tls,
            },
        });
        chain.insert("transport_socket".to_owned(), context);
    }
    json!({
        "name": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "listener_filters": [{
            "name": "envoy.filters.listener.original_dst",
            "typed_config": {
                "@type": type_url("filters.listener.original_dst.v3.OriginalDst"),
            },
        }],
        "filter_chains": [chain],
        "tcp_backlog_size": 16384,
    })
}

fn cluster(name: &str, source: Option<&str>, tls: Option<&Value>) -> Value {
    const MANY: u32 = 1_000_000;
    let mut cluster = json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": MANY,
            "max_pending_requests": MANY,
            "max_requests": MANY,
        }]},
    });
    let Some(fields) = cluster.as_object_mut() else { return cluster };
    if let Some(source) = source {
        let bind = json!({"source_address": {"address": source, "port_value": 0}});
        fields.insert("upstream_bind_config".to_owned(), bind);
    }
    if let Some(tls) = tls {
        let context = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": type_url("transport_sockets.tls.v3.UpstreamTlsContext"),
                "common_tls_context": tls,
            },
        });
        fields.insert("transport_socket".to_owned(), context);
    }
    cluster
}

fn type_url(message: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.{message}")
}
