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
//! meanwhile, or within 250 ms after its end, gets its result. So nobody can keep the kubelet from its
//! answer by asking often, and the app sees one connection at a time, and at most four a second.

mod failing;
mod grpc;
mod http;
#[cfg(test)]
mod tests;
mod unverified;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::HeaderValue;
use pillion_policy::AppAddress;
use rustls::ClientConfig;
use tokio::sync::watch;

use crate::config::{AppProbe, Handler};
use crate::dial::{Source, dial};
use crate::live::Shared;
use crate::net::{self, Leg};
use crate::telemetry::LogLimiter;

use failing::Failing;
pub use failing::{RESULTS, SUCCESS};

/// Apps know the kubelet by the beginning of this, and leave its requests out of their logs.
const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("kube-probe/pillion-", env!("CARGO_PKG_VERSION")));

/// A result is as good as a new one for so long. The kubelet asks once a second at most. Without it,
/// asking all the time would leave a closed connection in TIME_WAIT for each question, and to look
/// for a free port among thousands of them holds up every connection to the app.
const FRESH: Duration = Duration::from_millis(250);

/// What a run has found, and when it ended; nothing while it is under way.
type Run = watch::Receiver<Option<(Answer, Instant)>>;

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
    /// What runs or has just ended, by the pod's address that it was asked at.
    runs: Mutex<HashMap<IpAddr, Run>>,
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
            runs: Mutex::default(),
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
        let found = result.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        let panicked = || Answer {
            status: StatusCode::SERVICE_UNAVAILABLE,
            line: "the probe panicked; the log has it, please report it".into(),
        };
        Some(found.map_or_else(panicked, |(answer, _)| answer))
    }

    /// The run that is under way or has just ended, or a new one. It goes on when whoever asked has
    /// gone, because others may wait for it.
    fn begin(self: &Arc<Self>, probe: &Probe, at: SocketAddr) -> Run {
        let mut runs = probe.runs();
        // The pod has few addresses, but a process in it has all of 127.0.0.0/8.
        runs.retain(|_, run| is_fresh(run));
        if let Some(run) = runs.get(&at.ip()) {
            return run.clone();
        }
        let (done, result) = watch::channel(None);
        runs.insert(at.ip(), result.clone());
        let (this, path) = (Arc::clone(self), probe.what.path.clone());
        tokio::spawn(async move {
            if let Some(probe) = this.probes.get(&path) {
                let answer = this.run(probe, at).await;
                done.send_replace(Some((answer, Instant::now())));
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

/// Whether a run's result is still to come or good enough. One that has panicked ends without.
fn is_fresh(run: &Run) -> bool {
    match &*run.borrow() {
        Some((_, ended)) => ended.elapsed() < FRESH,
        None => run.has_changed().is_ok(),
    }
}

impl Probe {
    // Each statement leaves the map whole.
    fn runs(&self) -> MutexGuard<'_, HashMap<IpAddr, Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut leg = dial(target, Source::Address(net::inbound_source(target)), self.limit)
            .await
            .map_err(Failing::Connect)?;
        // A probe that has seen enough is no error of the app's.
        leg.end_cleanly();
        Ok(leg)
    }
}
