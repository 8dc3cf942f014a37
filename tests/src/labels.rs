//! The names that the proxy shows: metrics, labels, reasons and log fields. One place, so that a
//! renamed one is one edit.

/// The trust domain of the testbed's mesh.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// The identity of the pod that serves.
pub const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
/// The identity of the pod that calls.
pub const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
/// An identity of the mesh that no policy names.
pub const STRANGER: &str = "spiffe://cluster.local/ns/shop/sa/stranger";

/// The trust domain of a partner's mesh.
pub const PARTNER_DOMAIN: &str = "partner.example.net";
/// An identity of the partner's mesh.
pub const PARTNER: &str = "spiffe://partner.example.net/ns/shop/sa/partner";

/// The directions, as the label and the log field `direction` say them.
pub mod direction {
    /// A peer calls this pod.
    pub const INBOUND: &str = "inbound";
    /// This pod calls.
    pub const OUTBOUND: &str = "outbound";
}

/// What the field `log` says of a line of the access log, among the process's other lines.
pub const ACCESS: &str = "access";

/// Fields of the access log.
pub mod field {
    /// Who connected.
    pub const SOURCE: &str = "source";
    /// Which log a line belongs to.
    pub const LOG: &str = "log";
    /// `inbound` or `outbound`.
    pub const DIRECTION: &str = "direction";
    /// Why the connection ended; a value of [`super::reason`].
    pub const REASON: &str = "reason";
    /// More about the reason: why a peer's certificate was refused.
    pub const DETAIL: &str = "detail";
    /// Where the client meant to go.
    pub const DESTINATION: &str = "destination";
    /// The verified identity of the other end.
    pub const PEER: &str = "peer";
    /// `mtls`, `plaintext` or `passthrough`.
    pub const TLS: &str = "tls";
    /// The rule that decided.
    pub const RULE: &str = "rule";
    /// What the audit rules would have decided, where that differs.
    pub const SHADOW_VERDICT: &str = "shadow_verdict";
    /// The rule that would have decided.
    pub const SHADOW_RULE: &str = "shadow_rule";
    /// What a line that is not of the access log says.
    pub const MESSAGE: &str = "message";
    /// Bytes that the app got.
    pub const BYTES_TO_APP: &str = "bytes_to_app";
    /// Bytes that the app gave.
    pub const BYTES_FROM_APP: &str = "bytes_from_app";
}

/// Metrics.
pub mod metric {
    /// Connections that were accepted, by `direction`.
    pub const OPENED: &str = "pillion_tcp_connections_opened_total";
    /// Connections that have ended, by `direction` and `reason`.
    pub const CLOSED: &str = "pillion_tcp_connections_closed_total";
    /// Connections that are open, by `direction`.
    pub const OPEN: &str = "pillion_tcp_connections_open";
    /// Verdicts, by `direction`, `decision`, `mode` and `rule`.
    pub const DECISIONS: &str = "pillion_authz_decisions_total";
    /// Errors of accept(2), by `errno`.
    pub const ACCEPT_ERRORS: &str = "pillion_accept_errors_total";
    /// Open connections that a new policy has ended, by `rule`.
    pub const TERMINATED: &str = "pillion_authz_terminated_total";
    /// Handshakes, by `direction` and `result`.
    pub const HANDSHAKES: &str = "pillion_tls_handshakes_total";
    /// App connections that went out through a tunnel, by `reused`.
    pub const STREAMS: &str = "pillion_tunnel_streams_total";
    /// Tunnels without an app connection, to servers and from clients.
    pub const IDLE: &str = "pillion_tunnels_idle";
    /// Bytes of apps, by `direction` and `flow`.
    pub const BYTES: &str = "pillion_tcp_bytes_total";
    /// Attempts of a pod to dial its own sidecar's ports.
    pub const SELF_CALL: &str = "pillion_self_call_total";
    /// Certificate reloads, by `result`.
    pub const CERTIFICATE_RELOADS: &str = "pillion_certificate_reloads_total";
    /// 1 when the policy file as it is now is in force, else 0.
    pub const POLICY_LOADED: &str = "pillion_policy_last_reload_successful";
    /// Attempts to connect that failed, by `direction` and `reason`.
    pub const CONNECT_FAILURES: &str = "pillion_connect_failures_total";
    /// Names of the policy of which no address is known.
    pub const HOSTS_WITHOUT_ADDRESS: &str = "pillion_policy_hosts_without_address";
    /// Connections that a panic has ended.
    pub const PANICS: &str = "pillion_panics_total";
    /// Lines that the log had no room for.
    pub const LINES_DROPPED: &str = "pillion_log_lines_dropped_total";
    /// Runs of the app's probes, by `result`.
    pub const APP_PROBES: &str = "pillion_app_probes_total";
    /// Which policy is live: 1 with its `hash`.
    pub const POLICY: &str = "pillion_policy_info";
}

/// Why a connection ended: the values of the label and the field `reason`.
pub mod reason {
    /// Both sides ended their streams.
    pub const CLOSED: &str = "closed";
    /// One side sent a RST.
    pub const PEER_RESET: &str = "peer_reset";
    /// A peer does not answer any more.
    pub const PEER_TIMEOUT: &str = "peer_timeout";
    /// The system has another error for a socket.
    pub const IO_ERROR: &str = "io_error";
    /// FIN without `close_notify`.
    pub const TRUNCATED: &str = "truncated";
    /// A peer breaks a rule of the tunnel's protocol.
    pub const TUNNEL_ERROR: &str = "tunnel_error";
    /// The peer's proxy has refused the stream.
    pub const REFUSED_BY_PEER: &str = "refused_by_peer";
    /// The policy says no.
    pub const DENIED: &str = "denied";
    /// A new policy denies a connection that was open.
    pub const POLICY_CHANGED: &str = "policy_changed";
    /// A port that wants mTLS got something else.
    pub const PLAINTEXT_REFUSED: &str = "plaintext_refused";
    /// The peer's certificate breaks a rule; the detail says which.
    pub const CERTIFICATE_REFUSED: &str = "certificate_refused";
    /// The peer's certificate was revoked while the connection was open.
    pub const REVOKED: &str = "revoked";
    /// The server is somebody else.
    pub const WRONG_IDENTITY: &str = "wrong_identity";
    /// TLS failed otherwise.
    pub const HANDSHAKE_FAILED: &str = "handshake_failed";
    /// The peer was silent until the handshake's deadline.
    pub const HANDSHAKE_TIMEOUT: &str = "handshake_timeout";
    /// A client of a permissive port did not show in time what it speaks.
    pub const DETECT_TIMEOUT: &str = "detect_timeout";
    /// The kernel refused a connection to it for another reason.
    pub const CONNECT_FAILED: &str = "connect_failed";
    /// The server or the app refused the connection.
    pub const CONNECT_REFUSED: &str = "connect_refused";
    /// The pod dialled its own sidecar.
    pub const SELF_CALL: &str = "self_call";
    /// No certificate is loaded yet.
    pub const NO_CERTIFICATE: &str = "no_certificate";
    /// No policy is loaded yet.
    pub const NO_POLICY: &str = "no_policy";
    /// A name of the policy has never been resolved, and could be the destination's.
    pub const NAME_UNRESOLVED: &str = "name_unresolved";
    /// As many connections are open as may be.
    pub const CONNECTION_LIMIT: &str = "connection_limit";
    /// Too many handshakes were under way, and this was the oldest.
    pub const HANDSHAKE_SHED: &str = "handshake_shed";
    /// The container's memory was about to run out.
    pub const MEMORY_LIMIT: &str = "memory_limit";
    /// Half-closed, and silent for too long.
    pub const HALF_CLOSE_TIMEOUT: &str = "half_close_timeout";
    /// A record after the handshake was bad.
    pub const TLS_ERROR: &str = "tls_error";
    /// No answer to the SYN in time.
    pub const CONNECT_TIMEOUT: &str = "connect_timeout";
    /// No route to the server or the app.
    pub const CONNECT_UNREACHABLE: &str = "connect_unreachable";
    /// No port was left to connect from.
    pub const NO_LOCAL_PORT: &str = "no_local_port";
    /// The kernel did not know where the client meant to go.
    pub const NO_ORIGINAL_DST: &str = "no_original_dst";
    /// The connection's task panicked.
    pub const PANIC: &str = "panic";
    /// The drain's deadline passed.
    pub const SHUTDOWN: &str = "shutdown";
}

/// Why a peer's certificate is refused: values of the handshakes' label `result`.
pub mod refusal {
    /// The peer showed no certificate.
    pub const NO_CERTIFICATE: &str = "no_certificate";
    /// Nobody that is trusted has signed it.
    pub const UNKNOWN_ISSUER: &str = "unknown_issuer";
    /// There is no bundle for its trust domain.
    pub const UNTRUSTED_DOMAIN: &str = "untrusted_domain";
    /// Its time is over.
    pub const EXPIRED: &str = "expired";
    /// It is in its issuer's revocation list.
    pub const REVOKED: &str = "revoked";
    /// Its issuer's revocation list has ended.
    pub const CRL_EXPIRED: &str = "crl_expired";
}

/// Ports of the sidecar.
pub mod port {
    /// Where the redirect sends what the app dials.
    pub const OUTBOUND: u16 = 15001;
    /// Where the redirect sends what peers dial.
    pub const INBOUND: u16 = 15006;
    /// Prometheus scrapes here.
    pub const METRICS: u16 = 15020;
    /// The kubelet probes here.
    pub const HEALTH: u16 = 15021;
    /// Admin, on loopback.
    pub const ADMIN: u16 = 15000;
}

/// What `pillion-init` is told by.
pub mod init {
    /// Removes every rule and address that it has added.
    pub const CLEANUP: &str = "--cleanup";
    /// Chooses how the kernel is spoken to; `netlink`, `nft` or `legacy` follows.
    pub const BACKEND: &str = "--backend";
}
