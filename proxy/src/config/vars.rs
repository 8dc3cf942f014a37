//! The table of environment variables: the only list of their names, defaults
//! and meanings. `--help`, the documentation's test and the reader all use it.

/// One environment variable.
#[derive(Debug)]
pub struct Variable {
    /// Its whole name.
    pub name: &'static str,
    /// The value that holds when it is not set; empty: none.
    pub default: &'static str,
    /// What it means, in one line.
    pub meaning: &'static str,
}

const fn var(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default, meaning }
}

/// Every variable that `pillion-proxy` reads.
pub const VARIABLES: &[Variable] = &[
    var(
        "PILLION_POLICY_FILE",
        "/etc/pillion/policy.yaml",
        "The policy file; reloaded when it changes.",
    ),
    var(
        "PILLION_IDENTITY_SOURCE",
        "files",
        "files: those below. workload-api: the SPIFFE Workload API, and no file of certificates.",
    ),
    var(
        "SPIFFE_ENDPOINT_SOCKET",
        "",
        "Where the Workload API is: unix:///path or tcp://address:port.",
    ),
    var(
        "PILLION_TLS_CERT_FILE",
        "/var/run/secrets/spiffe.io/tls.crt",
        "Our SVID and its chain, PEM.",
    ),
    var("PILLION_TLS_KEY_FILE", "/var/run/secrets/spiffe.io/tls.key", "Our private key, PEM."),
    var(
        "PILLION_TLS_CA_FILE",
        "/var/run/secrets/spiffe.io/ca.crt",
        "Trust bundle of our own trust domain, PEM.",
    ),
    var(
        "PILLION_TLS_BUNDLE_FILE",
        "",
        "Key and chain in one PEM file (Kubernetes PodCertificate), instead of the two files above.",
    ),
    var(
        "PILLION_TRUST_BUNDLES_DIR",
        "",
        "Folder of <trust domain>.pem: bundles of other trust domains.",
    ),
    var(
        "PILLION_TLS_CRL_FILE",
        "",
        "Certificate revocation lists, PEM or DER. Without it nothing is revoked.",
    ),
    var(
        "PILLION_TRUST_DOMAIN",
        "",
        "Our trust domain; must be the SVID's. Default: taken from the SVID.",
    ),
    var(
        "PILLION_KEY_EXCHANGE",
        "auto",
        "auto: X25519MLKEM768, X25519, P-256. classic: without ML-KEM.",
    ),
    var(
        "PILLION_TLS_ENGINE",
        "records",
        "records: our record layer, in place. rustls: the library's. The handshake is rustls's.",
    ),
    var(
        "PILLION_INBOUND_LISTEN",
        "0.0.0.0:15006,[::]:15006",
        "Where redirected inbound connections arrive.",
    ),
    var(
        "PILLION_OUTBOUND_LISTEN",
        "127.0.0.1:15001,[::1]:15001",
        "Where redirected outbound connections arrive; loopback only.",
    ),
    var(
        "PILLION_HEALTH_LISTEN",
        "0.0.0.0:15021,[::]:15021",
        "Health: /healthz/startup, /healthz/ready, /app-health/.",
    ),
    var("PILLION_METRICS_LISTEN", "0.0.0.0:15020,[::]:15020", "Metrics: /metrics."),
    var(
        "PILLION_ADMIN_LISTEN",
        "127.0.0.1:15000,[::1]:15000",
        "Admin: /config, /connections, /certs, /policy, /logging; loopback only.",
    ),
    var(
        "PILLION_ADMIN_CHANGES",
        "off",
        "on: admin calls may change the log level. The app shares localhost, hence off.",
    ),
    var(
        "PILLION_APP_PROBES",
        "",
        "The app's probes, run behind the proxy for the kubelet: JSON, from /app-health/<container>/<kind> to the handler.",
    ),
    var("PILLION_CONNECT_TIMEOUT", "5s", "Deadline to connect to the app or to a server."),
    var("PILLION_HANDSHAKE_TIMEOUT", "10s", "Total deadline of a TLS handshake."),
    var(
        "PILLION_DETECT_TIMEOUT",
        "5s",
        "Total deadline to tell TLS from plaintext on a permissive port.",
    ),
    var(
        "PILLION_HALF_CLOSE_TIMEOUT",
        "1h",
        "A half-closed connection that is silent for so long is reset.",
    ),
    var("PILLION_DRAIN_TIMEOUT", "10s", "After SIGTERM, open connections may finish for so long."),
    var(
        "PILLION_MAX_CONNECTIONS",
        "",
        "Connections open at once. Default: half of the file descriptors, less a reserve.",
    ),
    var(
        "PILLION_MAX_PENDING_HANDSHAKES",
        "1024",
        "TLS handshakes under way at once, a worker and direction; the oldest is shed first.",
    ),
    var(
        "PILLION_SOURCE_PORTS",
        "61000-65535",
        "Ports that servers are dialled from, less those that the kernel gives to apps; off: all are the kernel's choice.",
    ),
    var("PILLION_WORKERS", "", "Worker threads. Default: the cgroup's CPUs, at most 2."),
    var(
        "PILLION_BUSY_POLL",
        "auto",
        "auto: a worker polls for a moment before it sleeps, while that pays. off: it never does.",
    ),
    var(
        "PILLION_SANDBOX",
        "on",
        "on: the process gives up what it does not need, as far as the kernel can. required: or does not start. off: it keeps it.",
    ),
    var(
        "PILLION_LOG",
        "info",
        "Log filter: error, warn, info, debug, trace, or tracing directives.",
    ),
    var("PILLION_LOG_FORMAT", "json", "json or text."),
    var("PILLION_ACCESS_LOG", "denied", "off, denied (refused or broken connections) or all."),
];

/// Looks a variable up by its whole name.
pub(super) fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|v| v.name == name)
}
