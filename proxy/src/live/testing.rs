//! What threads share, for unit tests: of an environment, with nothing published.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use tokio::sync::{Notify, mpsc};

use crate::config::Config;
use crate::net::SourcePorts;
use crate::telemetry::{AccessLog, LogLimiter, Metrics};

use super::{Published, ResolveRequest, Shared};

/// Nobody resolves names.
pub(crate) fn shared(env: &[(&str, &str)]) -> Arc<Shared> {
    resolving(env).0
}

/// The same, with what the resolver is asked.
pub(crate) fn resolving(env: &[(&str, &str)]) -> (Arc<Shared>, mpsc::Receiver<ResolveRequest>) {
    let env: BTreeMap<_, _> =
        env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (config, _) = Config::from_env(&env).unwrap();
    let (writer, _) = tracing_appender::non_blocking(std::io::sink());
    let (resolve, requests) = mpsc::channel(1);
    let shared = Arc::new(Shared {
        own_ports: config.own_ports(),
        metrics: Metrics::new().unwrap(),
        access_log: AccessLog::new(config.access_log, writer),
        published: Published::default(),
        open: AtomicUsize::new(0),
        first_open: Notify::new(),
        new_policy: Notify::new(),
        loads: vec![AtomicUsize::new(0), AtomicUsize::new(0)],
        max_connections: 1,
        may_busy_poll: AtomicBool::new(false),
        most_large_buffers: 1,
        memory_room: AtomicUsize::new(usize::MAX),
        log_limiter: LogLimiter::default(),
        dials: Arc::default(),
        source_ports: SourcePorts::new(None, &(32_768..=60_999)),
        resolve,
        config,
    });
    (shared, requests)
}
