//! Every environment variable, in one table, read once at the start.
//!
//! The environment is *wiring*: addresses, files, timeouts and limits that are
//! fixed for the life of the process. What may talk to what is *policy* and
//! lives in the policy file. All bad variables are reported at once, by name,
//! before anything is bound.

mod endpoint;
mod parse;
mod vars;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

pub use pillion_app_probes::{AppProbe, Handler, HttpGet, PREFIX as APP_PROBE_PREFIX};
use pillion_certs::generation::KeyExchange;
use pillion_certs::load::{IdentityFiles, SvidSource};
use pillion_certs::spiffe::TrustDomain;

pub use endpoint::EndpointSocket;
use parse::Reader;
pub use parse::parse_duration;
pub use vars::{VARIABLES, Variable};

/// The process exits with this code when a variable is wrong (`EX_USAGE`, sysexits.h).
pub const EXIT_CONFIG: u8 = 64;

/// Where variables come from: the process's environment, or a map in a test.
pub trait Env {
    /// All variables, as name and value.
    fn all(&self) -> BTreeMap<String, String>;
}

/// The real environment of this process. Values that are not UTF-8 are replaced
/// lossily, so that they fail their own check instead of vanishing.
#[derive(Debug)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    fn all(&self) -> BTreeMap<String, String> {
        std::env::vars_os()
            .map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()))
            .collect()
    }
}

impl Env for BTreeMap<String, String> {
    fn all(&self) -> BTreeMap<String, String> {
        self.clone()
    }
}

/// Which connections get an access-log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogMode {
    /// None.
    Off,
    /// Those that were refused or broke.
    Denied,
    /// All.
    All,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person at a terminal.
    Text,
}

/// What protects records after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsEngine {
    /// rustls, through its unbuffered interface.
    Rustls,
    /// The record layer of this proxy.
    Records,
}

impl TlsEngine {
    /// The variable's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Rustls => "rustls",
            Self::Records => "records",
        }
    }
}

/// Whether the process gives up what it does not need while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxMode {
    /// As far as the kernel can; what it can't is warned of.
    On,
    /// All of it, or the proxy does not start.
    Required,
    /// Nothing.
    Off,
}

impl SandboxMode {
    /// The variable's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Required => "required",
            Self::Off => "off",
        }
    }
}

/// One total deadline for each stage of a connection. A peer that sends a byte
/// now and then does not extend it.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From SYN to established, of a connection that the proxy dials.
    pub connect: Duration,
    /// From accept (or connect) to a verified peer.
    pub handshake: Duration,
    /// From accept to knowing whether a permissive port's client speaks TLS.
    pub detect: Duration,
    /// How long a half-closed connection may be silent.
    pub half_close: Duration,
    /// From SIGTERM to the end of what is still open.
    pub drain: Duration,
}

/// Everything the environment decides.
#[derive(Clone, Debug)]
pub struct Config {
    /// The policy file.
    pub policy_file: PathBuf,
    /// Certificate, key and bundles.
    pub identity: IdentityFiles,
    /// Where our identity comes from, when it is not files.
    pub workload_api: Option<EndpointSocket>,
    /// What protects records after the handshake.
    pub tls_engine: TlsEngine,
    /// Where redirected inbound connections arrive.
    pub inbound_listen: Vec<SocketAddr>,
    /// Where redirected outbound connections arrive; loopback.
    pub outbound_listen: Vec<SocketAddr>,
    /// Health endpoint.
    pub health_listen: Vec<SocketAddr>,
    /// Metrics endpoint.
    pub metrics_listen: Vec<SocketAddr>,
    /// Admin endpoint; loopback.
    pub admin_listen: Vec<SocketAddr>,
    /// Whether admin calls may change anything.
    pub admin_changes: bool,
    /// The app's probes, which are run for the kubelet.
    pub app_probes: Vec<AppProbe>,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Connections open at once, both directions; `None`: half of the descriptors.
    pub max_connections: Option<usize>,
    /// TLS handshakes under way at once.
    pub max_pending_handshakes: usize,
    /// Ports that servers are dialled from; `None`: the kernel picks them all.
    pub source_ports: Option<RangeInclusive<u16>>,
    /// Worker threads.
    pub workers: usize,
    /// Whether workers may poll before they sleep.
    pub busy_poll: bool,
    /// Whether the process confines itself.
    pub sandbox: SandboxMode,
    /// `tracing` filter directives.
    pub log: String,
    /// Shape of the log.
    pub log_format: LogFormat,
    /// Which connections are logged.
    pub access_log: AccessLogMode,
}

/// One variable that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The variable's name.
    pub name: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// All variables that can't be used.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            writeln!(f, "pillion-proxy: {}: {}", error.name, error.problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads the whole environment.
    ///
    /// The second value holds warnings: names that begin with `PILLION_` and
    /// mean nothing, each with the nearest name that does. A value that begins
    /// with `tcp://` is skipped in silence: Kubernetes injects such variables
    /// for a Service whose name is `pillion`.
    ///
    /// # Errors
    /// Every variable that can't be used, all at once.
    pub fn from_env(env: &impl Env) -> Result<(Self, Vec<String>), ConfigErrors> {
        let mut r = Reader::new(env.all());
        let config = Self {
            policy_file: r.path("PILLION_POLICY_FILE"),
            identity: identity(&mut r),
            workload_api: workload_api(&mut r),
            tls_engine: r.choice(
                "PILLION_TLS_ENGINE",
                &[("records", TlsEngine::Records), ("rustls", TlsEngine::Rustls)],
            ),
            inbound_listen: r.addresses("PILLION_INBOUND_LISTEN", false),
            outbound_listen: r.addresses("PILLION_OUTBOUND_LISTEN", true),
            health_listen: r.addresses("PILLION_HEALTH_LISTEN", false),
            metrics_listen: r.addresses("PILLION_METRICS_LISTEN", false),
            admin_listen: r.addresses("PILLION_ADMIN_LISTEN", true),
            admin_changes: r.choice("PILLION_ADMIN_CHANGES", &[("off", false), ("on", true)]),
            app_probes: r.app_probes(APP_PROBES),
            timeouts: Timeouts {
                connect: r.duration("PILLION_CONNECT_TIMEOUT"),
                handshake: r.duration("PILLION_HANDSHAKE_TIMEOUT"),
                detect: r.duration("PILLION_DETECT_TIMEOUT"),
                half_close: r.duration("PILLION_HALF_CLOSE_TIMEOUT"),
                drain: r.duration("PILLION_DRAIN_TIMEOUT"),
            },
            max_connections: r.optional_number("PILLION_MAX_CONNECTIONS", 1..=10_000_000),
            max_pending_handshakes: r
                .number("PILLION_MAX_PENDING_HANDSHAKES", 1..=1_000_000)
                .unwrap_or(1),
            source_ports: r.ports("PILLION_SOURCE_PORTS"),
            workers: r
                .optional_number("PILLION_WORKERS", 1..=256)
                .unwrap_or_else(parse::default_workers),
            busy_poll: r.choice("PILLION_BUSY_POLL", &[("auto", true), ("off", false)]),
            sandbox: r.choice(
                "PILLION_SANDBOX",
                &[
                    ("on", SandboxMode::On),
                    ("required", SandboxMode::Required),
                    ("off", SandboxMode::Off),
                ],
            ),
            log: r.log_filter("PILLION_LOG"),
            log_format: r.choice(
                "PILLION_LOG_FORMAT",
                &[("json", LogFormat::Json), ("text", LogFormat::Text)],
            ),
            access_log: r.choice(
                "PILLION_ACCESS_LOG",
                &[
                    ("off", AccessLogMode::Off),
                    ("denied", AccessLogMode::Denied),
                    ("all", AccessLogMode::All),
                ],
            ),
        };
        for problem in pillion_app_probes::of_own_ports(&config.app_probes, &config.own_ports()) {
            r.error(APP_PROBES, problem.to_string());
        }
        r.finish(config)
    }

    /// The ports that the proxy itself listens on.
    pub fn own_ports(&self) -> Vec<u16> {
        [
            &self.inbound_listen,
            &self.outbound_listen,
            &self.health_listen,
            &self.metrics_listen,
            &self.admin_listen,
        ]
        .into_iter()
        .flatten()
        .map(SocketAddr::port)
        .collect()
    }
}

const APP_PROBES: &str = "PILLION_APP_PROBES";

/// Where the health server of this environment listens; nothing else of it is read.
///
/// # Errors
/// The one variable can't be used.
pub fn health_listen(env: &impl Env) -> Result<Vec<SocketAddr>, ConfigErrors> {
    let mut r = Reader::new(env.all());
    let addresses = r.addresses("PILLION_HEALTH_LISTEN", false);
    r.into_errors().map(|()| addresses)
}

/// Where our SVID and the bundles are. A bundle file (Kubernetes
/// `PodCertificate`) takes the place of the two separate files.
fn identity(r: &mut Reader) -> IdentityFiles {
    let svid = match r.optional_path("PILLION_TLS_BUNDLE_FILE") {
        Some(file) => {
            r.refuse_both("PILLION_TLS_BUNDLE_FILE", "PILLION_TLS_CERT_FILE");
            r.refuse_both("PILLION_TLS_BUNDLE_FILE", "PILLION_TLS_KEY_FILE");
            SvidSource::Bundle { file }
        }
        None => SvidSource::Files {
            cert: r.path("PILLION_TLS_CERT_FILE"),
            key: r.path("PILLION_TLS_KEY_FILE"),
        },
    };
    // An empty value would quietly revoke nobody, as a template that lacks its file writes it.
    r.refuse_blank("PILLION_TLS_CRL_FILE");
    IdentityFiles {
        svid,
        ca: r.path("PILLION_TLS_CA_FILE"),
        trust_bundles_dir: r.optional_path("PILLION_TRUST_BUNDLES_DIR"),
        crl: r.optional_path("PILLION_TLS_CRL_FILE"),
        trust_domain: r.parsed::<TrustDomain>("PILLION_TRUST_DOMAIN"),
        key_exchange: r.choice(
            "PILLION_KEY_EXCHANGE",
            &[("auto", KeyExchange::Auto), ("classic", KeyExchange::Classic)],
        ),
    }
}

/// The Workload API, where that is the source of our identity: it brings all that files would.
fn workload_api(r: &mut Reader) -> Option<EndpointSocket> {
    const CHOICE: &str = "PILLION_IDENTITY_SOURCE=workload-api";
    let chosen = r.choice("PILLION_IDENTITY_SOURCE", &[("files", false), ("workload-api", true)]);
    if !chosen {
        return None;
    }
    if !cfg!(feature = "workload-api") {
        r.error(
            "PILLION_IDENTITY_SOURCE",
            "this binary was built without the Workload API: build it with --features workload-api",
        );
    }
    for file in FILE_VARIABLES {
        r.refuse_beside(file, CHOICE);
    }
    r.required("SPIFFE_ENDPOINT_SOCKET", CHOICE)
}

/// What the Workload API takes the place of.
const FILE_VARIABLES: [&str; 6] = [
    "PILLION_TLS_CERT_FILE",
    "PILLION_TLS_KEY_FILE",
    "PILLION_TLS_CA_FILE",
    "PILLION_TLS_BUNDLE_FILE",
    "PILLION_TRUST_BUNDLES_DIR",
    "PILLION_TLS_CRL_FILE",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn an_empty_environment_gives_the_documented_defaults() {
        let (c, warnings) = Config::from_env(&env(&[])).unwrap();
        assert!(warnings.is_empty());
        assert_eq!(c.inbound_listen, ["0.0.0.0:15006", "[::]:15006"].map(|a| a.parse().unwrap()));
        assert_eq!(
            c.outbound_listen,
            ["127.0.0.1:15001", "[::1]:15001"].map(|a| a.parse().unwrap())
        );
        assert_eq!(c.timeouts.handshake, Duration::from_secs(10));
        assert_eq!(c.timeouts.half_close, Duration::from_secs(3600));
        assert!((1..=2).contains(&c.workers));
        assert_eq!(c.access_log, AccessLogMode::Denied);
        assert_eq!(c.source_ports, Some(61_000..=65_535));
    }

    #[test]
    fn source_ports_are_a_range_or_none() {
        let read = |value| Config::from_env(&env(&[("PILLION_SOURCE_PORTS", value)]));
        assert_eq!(read("off").unwrap().0.source_ports, None);
        assert_eq!(read(" 1024-1024 ").unwrap().0.source_ports, Some(1024..=1024));
        for bad in ["1023-2000", "2000-1999", "2000", "-", "1-", "60000-65536", "a-b", "2000 3000"]
        {
            let ConfigErrors(errors) = read(bad).unwrap_err();
            assert!(errors[0].problem.contains("range of ports"), "{bad}: {errors:?}");
        }
    }

    #[test]
    fn all_bad_variables_are_named_at_once() {
        let bad = env(&[
            ("PILLION_CONNECT_TIMEOUT", "5"),
            ("PILLION_WORKERS", "0"),
            ("PILLION_SOURCE_PORTS", "0-65535"),
            ("PILLION_INBOUND_LISTEN", "15006"),
            ("PILLION_OUTBOUND_LISTEN", "0.0.0.0:15001"),
            ("PILLION_HEALTH_LISTEN", ", "),
            ("PILLION_ACCESS_LOG", "some"),
            ("PILLION_TRUST_DOMAIN", "Example.com"),
            ("PILLION_LOG", "a=b=c"),
        ]);
        let errors = Config::from_env(&bad).unwrap_err();
        let mut names: Vec<_> = errors.0.iter().map(|e| e.name.as_str()).collect();
        names.sort_unstable();
        let mut expected: Vec<_> = bad.keys().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(names, expected, "{errors}");
    }

    #[test]
    fn an_unknown_name_warns_with_the_nearest_and_a_service_variable_is_skipped() {
        let (_, warnings) = Config::from_env(&env(&[
            ("PILLION_CONECT_TIMEOUT", "5s"),
            ("PILLION_PORT", "tcp://10.0.0.1:80"),
            ("PILLION_ADMIN_LISTEN", "tcp://10.0.0.1:80"),
        ]))
        .unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("PILLION_CONNECT_TIMEOUT"), "{warnings:?}");
    }

    #[test]
    fn revocation_lists_are_read_where_there_is_a_file_of_them() {
        let (c, _) = Config::from_env(&env(&[("PILLION_TLS_CRL_FILE", "/crl.pem")])).unwrap();
        assert!(c.identity.paths().contains(&"/crl.pem".into()), "and watched");
        let (c, _) = Config::from_env(&env(&[])).unwrap();
        assert_eq!(c.identity.crl, None);
        let ConfigErrors(blank) =
            Config::from_env(&env(&[("PILLION_TLS_CRL_FILE", " ")])).unwrap_err();
        assert_eq!(blank[0].name, "PILLION_TLS_CRL_FILE", "it would revoke nobody");
    }

    #[test]
    fn the_apps_probes_are_not_of_our_own_ports_whichever_these_are() {
        let probes = r#"{"/app-health/web/livenessProbe": {"tcpSocket": {"port": 15021}}}"#;
        let probes = ("PILLION_APP_PROBES", probes);
        let ConfigErrors(errors) = Config::from_env(&env(&[probes])).unwrap_err();
        assert!(errors[0].name == probes.0 && errors[0].problem.contains("15021"), "{errors:?}");
        let elsewhere = ("PILLION_HEALTH_LISTEN", "0.0.0.0:9021");
        let (c, _) = Config::from_env(&env(&[probes, elsewhere])).unwrap();
        assert_eq!(c.app_probes[0].port(), 15021);
        assert_eq!(Config::from_env(&env(&[])).unwrap().0.app_probes, []);
        let ConfigErrors(errors) =
            Config::from_env(&env(&[("PILLION_APP_PROBES", "{")])).unwrap_err();
        assert_eq!(errors[0].name, "PILLION_APP_PROBES");
    }

    #[test]
    fn of_the_health_server_alone_no_other_variable_is_read() {
        let other = ("PILLION_WORKERS", "none");
        let listen = health_listen(&env(&[other])).unwrap();
        assert_eq!(listen, ["0.0.0.0:15021", "[::]:15021"].map(|a| a.parse().unwrap()));
        let one = health_listen(&env(&[("PILLION_HEALTH_LISTEN", "127.0.0.1:1")])).unwrap();
        assert_eq!(one, ["127.0.0.1:1".parse().unwrap()]);
        let ConfigErrors(errors) =
            health_listen(&env(&[other, ("PILLION_HEALTH_LISTEN", "1")])).unwrap_err();
        assert_eq!(errors.len(), 1);
    }

    #[test]
    fn a_bundle_file_excludes_the_separate_files() {
        let both = env(&[("PILLION_TLS_BUNDLE_FILE", "/b"), ("PILLION_TLS_KEY_FILE", "/k")]);
        assert_eq!(Config::from_env(&both).unwrap_err().0.len(), 1);
        let (c, _) = Config::from_env(&env(&[("PILLION_TLS_BUNDLE_FILE", "/b")])).unwrap();
        assert!(matches!(c.identity.svid, SvidSource::Bundle { .. }));
    }

    #[test]
    #[cfg(feature = "workload-api")]
    fn the_workload_api_takes_the_place_of_files() {
        let chosen = ("PILLION_IDENTITY_SOURCE", "workload-api");
        let socket = ("SPIFFE_ENDPOINT_SOCKET", "unix:///run/agent.sock");
        let (c, warnings) = Config::from_env(&env(&[chosen, socket])).unwrap();
        assert_eq!(c.workload_api, Some(EndpointSocket::Unix("/run/agent.sock".into())));
        assert_eq!(warnings, [""; 0]);
        // Elsewhere on the machine it may be set for others.
        assert_eq!(Config::from_env(&env(&[socket])).unwrap().0.workload_api, None);
        let tcp = ("SPIFFE_ENDPOINT_SOCKET", "tcp://127.0.0.1:80");
        assert!(Config::from_env(&env(&[chosen, tcp])).unwrap().0.workload_api.is_some());
        let names = |pairs: &[(&str, &str)]| -> Vec<String> {
            let ConfigErrors(errors) = Config::from_env(&env(pairs)).unwrap_err();
            errors.into_iter().map(|e| e.name).collect()
        };
        assert_eq!(names(&[chosen]), ["SPIFFE_ENDPOINT_SOCKET"]);
        assert_eq!(names(&[chosen, ("SPIFFE_ENDPOINT_SOCKET", "x")]), ["SPIFFE_ENDPOINT_SOCKET"]);
        let files: Vec<_> = FILE_VARIABLES.iter().map(|name| (*name, "/x")).collect();
        let mut found = names(&[&[chosen, socket], &files[..]].concat());
        found.dedup();
        assert!(FILE_VARIABLES.iter().all(|name| found.iter().any(|f| f == name)), "{found:?}");
    }

    #[test]
    #[cfg(not(feature = "workload-api"))]
    fn without_the_workload_api_who_asks_for_it_is_told_what_to_build() {
        let chosen = ("PILLION_IDENTITY_SOURCE", "workload-api");
        let socket = ("SPIFFE_ENDPOINT_SOCKET", "unix:///run/agent.sock");
        let ConfigErrors(errors) = Config::from_env(&env(&[chosen, socket])).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].name, "PILLION_IDENTITY_SOURCE");
        assert!(errors[0].problem.contains("--features workload-api"), "{errors:?}");
    }
}
