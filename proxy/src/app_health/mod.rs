//! The app's own probes, run behind the proxy for the kubelet.
//!
//! The kubelet has no certificate, so a strict port turns its probe away; and a probe that only
//! connects would always succeed, because what it connects to is the proxy. So the kubelet asks the
//! health port for `/app-health/<container>/<kind>`, the proxy asks the app, from where its inbound
//! connections come from, and answers what it has found.
//!
//! Anyone in the network may ask. What is asked of the app is in the configuration alone: nothing
//! of the request but its path, which chooses among those that are configured, and the pod's
//! address that it came to. Of each probe one runs at a time at each of these; whoever asks
//! meanwhile gets its result. So nobody can keep the kubelet from its answer by asking often, and
//! the app sees no more than one connection.

mod failing;
mod grpc;
mod http;
#[cfg(test)]
mod tests;
mod unverified;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use pillion_policy::AppAddress;
use rustls::ClientConfig;
use tokio::sync::watch;

use crate::config::{AppProbe, Handler};
use crate::dial::dial;
use crate::live::Shared;
use crate::net::{self, Leg};
use crate::telemetry::LogLimiter;

use failing::Failing;
pub use failing::{RESULTS, SUCCESS};

/// Apps know the kubelet by the beginning of this, and leave its requests out of their logs.
const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("kube-probe/pillion-", env!("CARGO_PKG_VERSION")));

/// What the kubelet is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200; the app's own status where that is the failure; else 503.
    pub status: StatusCode,
    /// The reason, one line.
    pub line: Arc<str>,
}

/// The app's probes.
#[derive(Debug)]
pub struct AppHealth {
    shared: Arc<Shared>,
    probes: HashMap<Box<str>, Probe>,
    /// For apps that speak TLS on the probe's port.
    tls: Arc<ClientConfig>,
}

#[derive(Debug)]
struct Probe {
    what: AppProbe,
    /// What runs, by the pod's address that it was asked at.
    running: Mutex<HashMap<IpAddr, watch::Receiver<Option<Answer>>>>,
    /// The result that the log has last.
    said: Mutex<Option<&'static str>>,
    limiter: LogLimiter,
}

impl AppHealth {
    /// The probes of the configuration; none runs before it is asked for.
    ///
    /// # Errors
    /// The TLS library refuses what it offers itself.
    pub fn new(shared: Arc<Shared>) -> Result<Arc<Self>, rustls::Error> {
        let configured = &shared.config.app_probes;
        let probe = |what: &AppProbe| Probe {
            what: what.clone(),
            running: Mutex::default(),
            said: Mutex::default(),
            limiter: LogLimiter::default(),
        };
        let probes = configured.iter().map(|what| (what.path.clone(), probe(what))).collect();
        Ok(Arc::new(Self { probes, tls: unverified::client_config()?, shared }))
    }

    /// The longest time that any of the probes may take; 0 where there is none.
    pub fn longest(&self) -> Duration {
        self.probes.values().map(|probe| probe.what.timeout).max().unwrap_or_default()
    }

    /// Runs the probe of a path, or waits for the run that is under way. `at` is where the request
    /// came to: the app is asked at that address. `None`: there is no such probe.
    pub async fn ask(self: &Arc<Self>, path: &str, at: SocketAddr) -> Option<Answer> {
        let mut result = self.begin(self.probes.get(path)?, at);
        let found = result.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        Some(found.unwrap_or_else(|| Answer {
            status: StatusCode::SERVICE_UNAVAILABLE,
            line: "the probe panicked; the log has it, please report it".into(),
        }))
    }

    /// The run that is under way, or a new one. It goes on when whoever asked has gone, because
    /// others may wait for it.
    fn begin(self: &Arc<Self>, probe: &Probe, at: SocketAddr) -> watch::Receiver<Option<Answer>> {
        let mut running = probe.running();
        // A run that has panicked is closed, and is none.
        if let Some(run) = running.get(&at.ip()).filter(|run| run.has_changed().is_ok()) {
            return run.clone();
        }
        let (done, result) = watch::channel(None);
        running.insert(at.ip(), result.clone());
        let (this, path) = (Arc::clone(self), probe.what.path.clone());
        tokio::spawn(async move {
            if let Some(probe) = this.probes.get(&path) {
                let answer = this.run(probe, at).await;
                // Whoever asks from here on gets a run of his own.
                probe.running().remove(&at.ip());
                done.send_replace(Some(answer));
            }
        });
        result
    }

    async fn run(&self, probe: &Probe, at: SocketAddr) -> Answer {
        let limit = probe.what.timeout;
        let app = App { shared: &self.shared, at, limit, tls: &self.tls };
        let done = tokio::time::timeout(limit, app.ask(&probe.what.handler)).await;
        let found = done.unwrap_or(Err(Failing::Timeout(limit)));
        let result = found.as_ref().err().map_or(SUCCESS, Failing::label);
        self.shared.metrics.app_probe(result);
        probe.tell(result, found.as_ref().err());
        match found {
            Ok(()) => Answer { status: StatusCode::OK, line: "ok".into() },
            Err(why) => Answer { status: why.status(), line: why.to_string().into() },
        }
    }
}

impl Probe {
    // Each statement leaves the map whole.
    fn running(&self) -> MutexGuard<'_, HashMap<IpAddr, watch::Receiver<Option<Answer>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a result that is another than the log has. One that comes within a second of the last
    /// line waits for the next run.
    fn tell(&self, result: &'static str, why: Option<&Failing>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said == Some(result) {
            return;
        }
        self.limiter.once_a_second(|_| {
            let detail = why.map(ToString::to_string);
            tracing::info!(probe = &*self.what.path, result, detail, "an app's probe has changed");
            *said = Some(result);
        });
    }
}

/// The app, as one run asks it.
struct App<'a> {
    shared: &'a Shared,
    /// The pod's address that the kubelet has asked.
    at: SocketAddr,
    limit: Duration,
    tls: &'a Arc<ClientConfig>,
}

impl App<'_> {
    async fn ask(&self, handler: &Handler) -> Result<(), Failing> {
        match handler {
            Handler::HttpGet(get) => http::get(self, get).await,
            Handler::TcpSocket { port } => self.dial(*port).await.map(drop),
            Handler::Grpc { port, service } => grpc::check(self, *port, service).await,
        }
    }

    /// Connects as an inbound connection does: from the source that the rules let pass, to where
    /// the policy's `appAddress` says. Without a policy that is the address which was asked.
    async fn dial(&self, port: u16) -> Result<Leg, Failing> {
        if self.shared.own_ports.contains(&port) {
            return Err(Failing::OwnPort(port));
        }
        let mut target = self.at;
        target.set_port(port);
        let policy = self.shared.published.policy.load();
        if policy.as_ref().is_some_and(|p| p.app_address() == AppAddress::Loopback) {
            target = net::on_loopback(target);
        }
        let mut leg = dial(target, Some(net::inbound_source(target)), self.limit)
            .await
            .map_err(Failing::Connect)?;
        // A probe that has seen enough is no error of the app's.
        leg.end_cleanly();
        Ok(leg)
    }
}
