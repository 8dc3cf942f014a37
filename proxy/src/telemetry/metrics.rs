//! Prometheus metrics. Labels hold words from closed lists and the names of the
//! policy's rules, never an address and never a client's string.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use pillion_certs::expiry::Lifetime;
use pillion_certs::load::LoadError;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::{CloseReason, Direction};

/// Rule names that get a series of their own; those after them share `other`.
const MAX_RULES: usize = 1000;

/// A metric's name, labels and meaning.
#[derive(Debug)]
pub struct MetricInfo {
    /// Name, with the prefix.
    pub name: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
    /// What it counts, with its unit.
    pub help: &'static str,
}

const fn info(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricInfo {
    MetricInfo { name, labels, help }
}

const OPENED: MetricInfo =
    info("pillion_tcp_connections_opened_total", &["direction"], "Connections accepted.");
const CLOSED: MetricInfo = info(
    "pillion_tcp_connections_closed_total",
    &["direction", "reason"],
    "Connections ended, by reason.",
);
const OPEN: MetricInfo =
    info("pillion_tcp_connections_open", &["direction"], "Connections open now.");
const BYTES: MetricInfo = info(
    "pillion_tcp_bytes_total",
    &["direction", "flow"],
    "Application bytes; flow is to_app or from_app.",
);
const HANDSHAKES: MetricInfo = info(
    "pillion_tls_handshakes_total",
    &["direction", "result"],
    "TLS handshakes; result is ok, a certificate's refusal, failed, timeout or shed.",
);
const HANDSHAKE_SECONDS: MetricInfo = info(
    "pillion_tls_handshake_duration_seconds",
    &["direction"],
    "Duration of TLS handshakes that succeeded.",
);
const TUNNEL_STREAMS: MetricInfo = info(
    "pillion_tunnel_streams_total",
    &["reused"],
    "Outbound app connections through a tunnel; reused is true when it was there already.",
);
const TUNNELS_IDLE: MetricInfo = info(
    "pillion_tunnels_idle",
    &[],
    "Tunnels without an app connection, to servers and from clients.",
);
const DECISIONS: MetricInfo = info(
    "pillion_authz_decisions_total",
    &["direction", "decision", "mode", "rule"],
    "Policy verdicts; mode audit: what the audit rules would have decided, where that differs.",
);
const TERMINATED: MetricInfo = info(
    "pillion_authz_terminated_total",
    &["rule"],
    "Open connections ended because a changed policy, or a name's new address, denies them.",
);
const CONNECT_FAILURES: MetricInfo = info(
    "pillion_connect_failures_total",
    &["direction", "reason"],
    "Connections that could not be opened to an app or a server.",
);
const SELF_CALLS: MetricInfo =
    info("pillion_self_call_total", &[], "Connections through the proxy to one of its own ports.");
const ACCEPT_ERRORS: MetricInfo =
    info("pillion_accept_errors_total", &["errno"], "Errors of accept(2).");
const CERT_EXPIRY: MetricInfo = info(
    "pillion_certificate_expiration_timestamp_seconds",
    &["kind"],
    "When what expires, in Unix time; kind is svid, ca, federated_ca or crl, each the first to end.",
);
const CERT_LIFETIME: MetricInfo = info(
    "pillion_certificate_lifetime_seconds",
    &["kind"],
    "From the beginning to the end of what pillion_certificate_expiration_timestamp_seconds tells of.",
);
const CERT_RELOADS: MetricInfo = info(
    "pillion_certificate_reloads_total",
    &["result"],
    "Loads of the certificate files; result is ok or why the last good ones stay.",
);
const POLICY_OK: MetricInfo = info(
    "pillion_policy_last_reload_successful",
    &[],
    "1 when the policy file as it is now is in force, else 0.",
);
const POLICY_INFO: MetricInfo =
    info("pillion_policy_info", &["hash"], "1 for the policy in force.");
const HOSTS_WITHOUT_ADDRESS: MetricInfo = info(
    "pillion_policy_hosts_without_address",
    &[],
    "Names of the policy's hosts of which no address is known.",
);
const PANICS: MetricInfo = info("pillion_panics_total", &[], "Connections ended by a panic.");
const LOG_DROPPED: MetricInfo =
    info("pillion_log_lines_dropped_total", &[], "Log lines that found the queue full.");
const APP_PROBES: MetricInfo = info(
    "pillion_app_probes_total",
    &["result"],
    "Probes of the app that were run for the kubelet.",
);
const BUILD: MetricInfo = info("pillion_build_info", &["version"], "1 for the running version.");

/// Every metric of our own (`process_*` come from the client library).
pub const METRICS: &[MetricInfo] = &[
    OPENED,
    CLOSED,
    OPEN,
    BYTES,
    HANDSHAKES,
    HANDSHAKE_SECONDS,
    TUNNEL_STREAMS,
    TUNNELS_IDLE,
    DECISIONS,
    TERMINATED,
    CONNECT_FAILURES,
    SELF_CALLS,
    ACCEPT_ERRORS,
    CERT_EXPIRY,
    CERT_LIFETIME,
    CERT_RELOADS,
    POLICY_OK,
    POLICY_INFO,
    HOSTS_WITHOUT_ADDRESS,
    PANICS,
    LOG_DROPPED,
    APP_PROBES,
    BUILD,
];

/// All metrics of the process. Cheap to share; every method is lock-free but the
/// one that names a rule for the first time.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    opened: IntCounterVec,
    closed: IntCounterVec,
    open: IntGaugeVec,
    bytes: IntCounterVec,
    handshakes: IntCounterVec,
    handshake_seconds: HistogramVec,
    tunnel_streams: IntCounterVec,
    /// Tunnels without an app connection.
    pub tunnels_idle: IntGauge,
    decisions: IntCounterVec,
    terminated: IntCounterVec,
    connect_failures: IntCounterVec,
    /// Connections to our own ports.
    pub self_calls: IntCounter,
    accept_errors: IntCounterVec,
    certificate_expiry: IntGaugeVec,
    certificate_lifetime: IntGaugeVec,
    certificate_reloads: IntCounterVec,
    /// Whether the policy file as it is now is in force.
    pub policy_ok: IntGauge,
    policy_info: IntGaugeVec,
    /// Names of the policy of which no address is known.
    pub hosts_without_address: IntGauge,
    /// Connections ended by a panic.
    pub panics: IntCounter,
    log_dropped: IntCounter,
    app_probes: IntCounterVec,
    rules: Mutex<BTreeSet<String>>,
}

/// The counters of one direction's bytes, resolved once a connection.
#[derive(Clone, Debug)]
pub struct ByteCounters {
    /// Bytes to the app.
    pub to_app: IntCounter,
    /// Bytes from the app.
    pub from_app: IntCounter,
}

impl Metrics {
    /// Creates and registers every metric.
    ///
    /// # Errors
    /// Only when two metrics share a name, which a test excludes.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            opened: counters(r, &OPENED)?,
            closed: counters(r, &CLOSED)?,
            open: gauges(r, &OPEN)?,
            bytes: counters(r, &BYTES)?,
            handshakes: counters(r, &HANDSHAKES)?,
            handshake_seconds: histogram(r, &HANDSHAKE_SECONDS)?,
            decisions: counters(r, &DECISIONS)?,
            terminated: counters(r, &TERMINATED)?,
            connect_failures: counters(r, &CONNECT_FAILURES)?,
            tunnel_streams: counters(r, &TUNNEL_STREAMS)?,
            tunnels_idle: gauge(r, &TUNNELS_IDLE)?,
            self_calls: counter(r, &SELF_CALLS)?,
            accept_errors: counters(r, &ACCEPT_ERRORS)?,
            certificate_expiry: gauges(r, &CERT_EXPIRY)?,
            certificate_lifetime: gauges(r, &CERT_LIFETIME)?,
            certificate_reloads: counters(r, &CERT_RELOADS)?,
            policy_ok: gauge(r, &POLICY_OK)?,
            policy_info: gauges(r, &POLICY_INFO)?,
            hosts_without_address: gauge(r, &HOSTS_WITHOUT_ADDRESS)?,
            panics: counter(r, &PANICS)?,
            log_dropped: counter(r, &LOG_DROPPED)?,
            app_probes: counters(r, &APP_PROBES)?,
            rules: Mutex::new(BTreeSet::new()),
            registry: registry.clone(),
        };
        // There from the start, at nought: a rise from nothing to one is none to Prometheus's increase().
        for result in ["ok"].iter().chain(LoadError::ALL_LABELS) {
            metrics.certificate_reloads.with_label_values(&[result]);
        }
        gauges(r, &BUILD)?.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// A connection was accepted.
    pub fn connection_opened(&self, direction: Direction) {
        self.opened.with_label_values(&[direction.label()]).inc();
        self.open.with_label_values(&[direction.label()]).inc();
    }

    /// A connection ended.
    pub fn connection_closed(&self, direction: Direction, reason: CloseReason) {
        self.closed.with_label_values(&[direction.label(), reason.label()]).inc();
        self.open.with_label_values(&[direction.label()]).dec();
    }

    /// The byte counters of a direction.
    pub fn byte_counters(&self, direction: Direction) -> ByteCounters {
        ByteCounters {
            to_app: self.bytes.with_label_values(&[direction.label(), "to_app"]),
            from_app: self.bytes.with_label_values(&[direction.label(), "from_app"]),
        }
    }

    /// A handshake ended; `result` is `ok` or a word from a closed list.
    pub fn handshake(&self, direction: Direction, result: &'static str) {
        self.handshakes.with_label_values(&[direction.label(), result]).inc();
    }

    /// How long a successful handshake took, in seconds.
    pub fn handshake_seconds(&self, direction: Direction, seconds: f64) {
        self.handshake_seconds.with_label_values(&[direction.label()]).observe(seconds);
    }

    /// Counts an app connection that goes through a tunnel.
    pub fn tunnel_stream(&self, reused: bool) {
        let reused = if reused { "true" } else { "false" };
        self.tunnel_streams.with_label_values(&[reused]).inc();
    }

    /// A verdict; `mode` is `enforce` or `audit`.
    pub fn decision(&self, direction: Direction, allow: bool, mode: &'static str, rule: &str) {
        let decision = if allow { "allow" } else { "deny" };
        let rule = self.rule_label(rule);
        self.decisions.with_label_values(&[direction.label(), decision, mode, rule]).inc();
    }

    /// An open connection was ended by a changed policy.
    pub fn terminated(&self, rule: &str) {
        self.terminated.with_label_values(&[self.rule_label(rule)]).inc();
    }

    /// A dial failed.
    pub fn connect_failure(&self, direction: Direction, reason: CloseReason) {
        self.connect_failures.with_label_values(&[direction.label(), reason.label()]).inc();
    }

    /// accept(2) failed.
    pub fn accept_error(&self, errno: &'static str) {
        self.accept_errors.with_label_values(&[errno]).inc();
    }

    /// When the first of a kind ends, in Unix seconds, and how long it lives; none takes both series
    /// away.
    pub fn certificate_expires(&self, kind: &'static str, first: Option<&Lifetime>) {
        let (expiry, lifetime) = (&self.certificate_expiry, &self.certificate_lifetime);
        if let Some(first) = first {
            expiry.with_label_values(&[kind]).set(first.until);
            let seconds = first.until.saturating_sub(first.from);
            lifetime.with_label_values(&[kind]).set(seconds);
        } else {
            // They may never have been there.
            let _ = expiry.remove_label_values(&[kind]);
            let _ = lifetime.remove_label_values(&[kind]);
        }
    }

    /// The certificate files were read; `result` is `ok` or a load error's label.
    pub fn certificate_reload(&self, result: &'static str) {
        self.certificate_reloads.with_label_values(&[result]).inc();
    }

    /// A probe of the app has run; `result` is a word from a closed list.
    pub fn app_probe(&self, result: &'static str) {
        self.app_probes.with_label_values(&[result]).inc();
    }

    /// A policy is in force now.
    pub fn policy_in_force(&self, hash: &str) {
        self.policy_info.reset();
        self.policy_info.with_label_values(&[hash]).set(1);
        self.policy_ok.set(1);
    }

    /// The text that a scrape gets. `dropped` is the log queue's count so far.
    ///
    /// # Errors
    /// When a collector fails, which none of ours does.
    pub fn render(&self, dropped: usize) -> Result<Vec<u8>, prometheus::Error> {
        let dropped = u64::try_from(dropped).unwrap_or(u64::MAX);
        self.log_dropped.inc_by(dropped.saturating_sub(self.log_dropped.get()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// The first rules keep their names, the rest share one: a policy with a
    /// hundred thousand rules must not become a hundred thousand series.
    fn rule_label<'a>(&self, rule: &'a str) -> &'a str {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if rules.contains(rule) {
            rule
        } else if rules.len() < MAX_RULES {
            rules.insert(rule.to_owned());
            rule
        } else {
            "other"
        }
    }
}

fn opts(m: &MetricInfo) -> Opts {
    Opts::new(m.name, m.help)
}

fn counters(r: &Registry, m: &MetricInfo) -> Result<IntCounterVec, prometheus::Error> {
    let metric = IntCounterVec::new(opts(m), m.labels)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauges(r: &Registry, m: &MetricInfo) -> Result<IntGaugeVec, prometheus::Error> {
    let metric = IntGaugeVec::new(opts(m), m.labels)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counter(r: &Registry, m: &MetricInfo) -> Result<IntCounter, prometheus::Error> {
    let metric = IntCounter::with_opts(opts(m))?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(r: &Registry, m: &MetricInfo) -> Result<IntGauge, prometheus::Error> {
    let metric = IntGauge::with_opts(opts(m))?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(r: &Registry, m: &MetricInfo) -> Result<HistogramVec, prometheus::Error> {
    let buckets = vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];
    let opts = HistogramOpts::new(m.name, m.help).buckets(buckets);
    let metric = HistogramVec::new(opts, m.labels)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use pillion_certs::expiry::Subject;

    use super::*;

    #[test]
    fn every_listed_metric_is_registered_and_no_other() {
        let m = Metrics::new().unwrap();
        m.connection_opened(Direction::Inbound);
        m.connection_closed(Direction::Inbound, CloseReason::Closed);
        m.byte_counters(Direction::Outbound).to_app.inc();
        m.handshake(Direction::Inbound, "ok");
        m.handshake_seconds(Direction::Inbound, 0.001);
        m.tunnel_stream(true);
        m.decision(Direction::Inbound, true, "enforce", "default");
        m.terminated("default");
        m.connect_failure(Direction::Outbound, CloseReason::ConnectRefused);
        m.accept_error("EMFILE");
        let own = Lifetime { subject: Subject::OwnSvid, from: 1, until: 3601 };
        m.certificate_expires("svid", Some(&own));
        m.certificate_reload("ok");
        m.policy_in_force("abc");
        m.app_probe("success");
        let text = String::from_utf8(m.render(3).unwrap()).unwrap();
        let exposed: BTreeSet<_> = text
            .lines()
            .filter_map(|l| l.strip_prefix("# TYPE "))
            .filter_map(|l| l.split(' ').next())
            .filter(|n| n.starts_with("pillion_"))
            .collect();
        assert_eq!(exposed, METRICS.iter().map(|m| m.name).collect());
        assert!(text.contains("pillion_log_lines_dropped_total 3"));
        assert!(text.contains("pillion_certificate_lifetime_seconds{kind=\"svid\"} 3600\n"));
        assert!(text.contains("process_resident_memory_bytes"));
    }

    #[test]
    fn loads_of_certificates_are_counted_from_nought() {
        let m = Metrics::new().unwrap();
        m.certificate_reload("bad_pem");
        let text = String::from_utf8(m.render(0).unwrap()).unwrap();
        for (result, count) in [("ok", 0), ("bad_pem", 1), ("key_mismatch", 0)] {
            let line =
                format!("pillion_certificate_reloads_total{{result=\"{result}\"}} {count}\n");
            assert!(text.contains(&line), "{line}");
        }
    }

    #[test]
    fn what_is_no_longer_there_has_no_end_and_no_lifetime() {
        let m = Metrics::new().unwrap();
        let list = Lifetime { subject: Subject::OwnSvid, from: 1, until: 3601 };
        for first in [None, Some(&list), None] {
            m.certificate_expires("crl", first);
            let text = String::from_utf8(m.render(0).unwrap()).unwrap();
            assert_eq!(text.matches("{kind=\"crl\"}").count(), first.map_or(0, |_| 2), "{text}");
        }
    }

    #[test]
    fn rule_series_are_capped() {
        let m = Metrics::new().unwrap();
        for n in 0..MAX_RULES + 5 {
            m.decision(Direction::Inbound, true, "enforce", &format!("r{n}"));
        }
        let text = String::from_utf8(m.render(0).unwrap()).unwrap();
        assert_eq!(text.matches("pillion_authz_decisions_total{").count(), MAX_RULES + 1);
        assert!(text.contains("rule=\"other\"} 5"));
    }
}
