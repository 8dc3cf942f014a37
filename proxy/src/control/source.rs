//! What the health, metrics and admin servers tell.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use pillion_certs::generation::OwnState;
use rustls::pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::admin::{Answer, FilterError, Source, StatusLine};
use crate::app_health::AppHealth;
use crate::live::Shared;
use crate::sandbox::Sandbox;
use crate::telemetry::LogHandle;
use crate::worker::Command;

use super::Workers;
use super::readiness::Readiness;

/// How long a worker may take to list its connections.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers from the published state.
pub struct Report {
    shared: Arc<Shared>,
    workers: Workers,
    log: LogHandle,
    readiness: Arc<Readiness>,
    app_health: Arc<AppHealth>,
    sandbox: Sandbox,
}

impl Report {
    /// Ready to answer; the listeners are bound by now.
    pub fn new(
        shared: Arc<Shared>,
        workers: Workers,
        log: LogHandle,
        readiness: Arc<Readiness>,
        app_health: Arc<AppHealth>,
        sandbox: Sandbox,
    ) -> Self {
        Self { shared, workers, log, readiness, app_health, sandbox }
    }
}

impl Source for Report {
    fn pending(&self) -> Vec<&'static str> {
        self.readiness.pending()
    }

    fn started(&self) -> bool {
        self.readiness.started()
    }

    fn probe_app<'a>(&'a self, path: &'a str, at: SocketAddr) -> Answer<'a, Option<StatusLine>> {
        Box::pin(async move {
            let answer = self.app_health.ask(path, at).await?;
            Some((answer.status, answer.line))
        })
    }

    fn longest_probe(&self) -> Duration {
        self.app_health.longest()
    }

    fn metrics(&self) -> Vec<u8> {
        self.shared.metrics.render(self.log.dropped().dropped_lines()).unwrap_or_else(|e| {
            tracing::error!(error = %e, "metrics can't be rendered");
            Vec::new()
        })
    }

    fn config(&self) -> Value {
        let c = &self.shared.config;
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "policy_file": c.policy_file,
            "inbound_listen": c.inbound_listen,
            "outbound_listen": c.outbound_listen,
            "health_listen": c.health_listen,
            "metrics_listen": c.metrics_listen,
            "admin_listen": c.admin_listen,
            "admin_changes": c.admin_changes,
            "app_probes": c.app_probes.iter().map(|probe| json!({
                "path": &*probe.path, "handler": probe.kind(), "port": probe.port(),
                "timeout_ms": ms(probe.timeout),
            })).collect::<Vec<_>>(),
            "connect_timeout_ms": ms(c.timeouts.connect),
            "handshake_timeout_ms": ms(c.timeouts.handshake),
            "detect_timeout_ms": ms(c.timeouts.detect),
            "half_close_timeout_ms": ms(c.timeouts.half_close),
            "drain_timeout_ms": ms(c.timeouts.drain),
            "max_connections": self.shared.max_connections,
            "max_pending_handshakes": c.max_pending_handshakes,
            "workers": c.workers,
            "tls_engine": c.tls_engine.label(),
            "busy_poll": if c.busy_poll { "auto" } else { "off" },
            "sandbox": self.sandbox.tell(),
        })
    }

    fn connections(&self) -> Answer<'_, Option<Value>> {
        Box::pin(async {
            let mut all = Vec::new();
            for worker in &self.workers.0 {
                let (reply, answer) = oneshot::channel();
                // A worker that has gone, or goes meanwhile, has none.
                if worker.send(Command::Connections(reply)).is_ok()
                    && let Ok(list) = tokio::time::timeout(LIST_TIMEOUT, answer).await.ok()?
                {
                    all.extend(list);
                }
            }
            Some(Value::Array(all))
        })
    }

    fn certificates(&self) -> Value {
        let Some(tls) = self.shared.published.tls.load_full() else { return Value::Null };
        let not_after = tls.not_after().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        json!({
            "id": tls.own_id().as_str(),
            "serial": tls.serial(),
            "not_after_unix": not_after,
            "state": match tls.own_state(UnixTime::now()) {
                OwnState::Good => "good",
                OwnState::Expired => "expired",
                OwnState::NotYetValid => "not_yet_valid",
                OwnState::Revoked => "revoked",
            },
            "revocation_lists": tls.revocation_lists().len(),
        })
    }

    fn policy(&self) -> Value {
        let Some(policy) = self.shared.published.policy.load_full() else { return Value::Null };
        let rules = policy.rules().iter().map(|r| {
            json!({
                "name": &**r.name(), "action": r.action().as_str(),
                "mode": r.enforcement().as_str(), "ports": r.ports(), "line": r.line(),
            })
        });
        let destinations = policy.destinations().iter().map(|d| {
            json!({
                "name": &**d.name(), "action": d.action().as_str(), "ports": d.ports(),
                "hosts": d.hosts().iter().map(|h| &**h).collect::<Vec<_>>(), "line": d.line(),
            })
        });
        json!({
            "name": policy.name(),
            "hash": policy.hash(),
            "enforcement": policy.enforcement().as_str(),
            "rules": rules.collect::<Vec<_>>(),
            "destinations": destinations.collect::<Vec<_>>(),
            "hosts": self.shared.published.hosts.load().to_json(),
        })
    }

    fn log_filter(&self) -> String {
        self.log.filter().with_current(ToString::to_string).unwrap_or_default()
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), FilterError> {
        if !self.shared.config.admin_changes {
            return Err(FilterError::Off);
        }
        let filter = filter.parse::<EnvFilter>().map_err(|e| FilterError::Bad(e.to_string()))?;
        self.log.filter().reload(filter).map_err(|e| FilterError::Bad(e.to_string()))
    }
}
