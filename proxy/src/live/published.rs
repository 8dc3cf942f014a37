//! State that the control thread makes and every worker reads: one atomic
//! pointer each, read once a connection.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use pillion_certs::generation::{OwnState, TlsGeneration};
use pillion_policy::{Policy, Shadow};
use rustls::pki_types::UnixTime;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::config::Config;
use crate::net::SourcePorts;
use crate::telemetry::{AccessLog, CloseReason, LogLimiter, Metrics};

use super::hosts::{HostAddresses, RESOLVE_WAIT, ResolveRequest};
use super::{Conn, Dials};

/// What belongs to this pod, and the nameservers: never subject to the outbound policy.
#[derive(Debug, Default)]
pub struct LocalNet {
    /// Addresses of the pod's interfaces.
    pub addresses: HashSet<IpAddr>,
    /// `nameserver` lines of resolv.conf.
    pub nameservers: HashSet<IpAddr>,
}

impl LocalNet {
    /// Whether `ip` leads back into this pod.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || ip.is_unspecified() || self.addresses.contains(&ip)
    }

    /// Whether an outbound connection to `dst` is exempt from the policy: the pod
    /// itself, or DNS over TCP to a nameserver.
    pub fn is_exempt(&self, dst: SocketAddr) -> bool {
        self.is_own(dst.ip()) || (dst.port() == 53 && self.nameservers.contains(&dst.ip()))
    }
}

/// The published pointers.
#[derive(Debug, Default)]
pub struct Published {
    /// The policy in force; none before the first good one.
    pub policy: ArcSwapOption<Policy>,
    /// Our certificate generation; none before the first good one.
    pub tls: ArcSwapOption<TlsGeneration>,
    /// Addresses of the policy's names.
    pub hosts: ArcSwap<HostAddresses>,
    /// This pod's addresses.
    pub local: ArcSwap<LocalNet>,
}

impl Published {
    /// The generation to serve a connection with; none when there is none, or peers
    /// would refuse our own certificate.
    pub fn usable_tls(&self) -> Option<Arc<TlsGeneration>> {
        self.tls.load_full().filter(|tls| tls.own_state(UnixTime::now()) == OwnState::Good)
    }
}

/// Everything that all threads share.
#[derive(Debug)]
pub struct Shared {
    /// The environment's word.
    pub config: Config,
    /// The proxy's own ports.
    pub own_ports: Vec<u16>,
    /// Metrics.
    pub metrics: Metrics,
    /// Access log.
    pub access_log: AccessLog,
    /// What control publishes.
    pub published: Published,
    /// Connections open now, on all workers.
    pub open: AtomicUsize,
    /// Told when there is one again after there was none.
    pub first_open: Notify,
    /// Told when there is a new policy: its names are looked up.
    pub new_policy: Notify,
    /// The connections open now, by worker.
    pub loads: Vec<AtomicUsize>,
    /// The most that may be open.
    pub max_connections: usize,
    /// Whether workers may wait awake: not while the CPU quota holds the process back.
    pub may_busy_poll: AtomicBool,
    /// Large buffers that a worker lends at once.
    pub most_large_buffers: usize,
    /// How many connections the cgroup's memory has room for: while it is about to run out as many
    /// as there were then, and else any number.
    pub memory_room: AtomicUsize,
    /// Keeps errors of accept(2) to one line a second.
    pub log_limiter: LogLimiter,
    /// Our own connections that are being made.
    pub dials: Arc<Dials>,
    /// Where these come from.
    pub source_ports: SourcePorts,
    /// To the control thread's resolver.
    pub resolve: mpsc::Sender<ResolveRequest>,
}

impl Shared {
    /// How many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether there are more connections open than memory has room for.
    pub fn is_short_of_memory(&self) -> bool {
        self.open_connections() > self.memory_room.load(Ordering::Relaxed)
    }

    /// The worker that should take a connection which worker `me` has accepted, if that
    /// is another one. The kernel spreads connections by a hash, and long-lived ones
    /// would stay where it put them.
    pub fn better_placed(&self, me: usize) -> Option<usize> {
        let loads = || self.loads.iter().map(|load| load.load(Ordering::Relaxed));
        let mine = loads().nth(me)?;
        let (other, least) = loads().enumerate().min_by_key(|(_, load)| *load)?;
        // To hand one over costs a wake-up: a small difference is not worth it.
        (mine > least + 1 + mine / 16).then_some(other)
    }

    /// Refuses a connection whose peer has just been recorded, if its certificate was
    /// revoked during the handshake: that was checked with the generation from before. A
    /// change after this finds the peer in the registry.
    ///
    /// # Errors
    /// [`CloseReason::Revoked`].
    pub fn refuse_revoked(
        &self,
        conn: &Conn,
        verified_with: &Arc<TlsGeneration>,
    ) -> Result<(), CloseReason> {
        let published = self.published.tls.load();
        let newer = published.as_ref().filter(|now| !Arc::ptr_eq(now, verified_with));
        match newer.and_then(|generation| conn.revoked_by(generation)) {
            None => Ok(()),
            Some(refusal) => {
                conn.set_detail(refusal.to_string());
                Err(CloseReason::Revoked)
            }
        }
    }

    /// Records a verdict: on the connection, in the metrics, and, where the audit
    /// rules would decide otherwise, in the log.
    pub fn decided(&self, conn: &Conn, allow: bool, rule: &Arc<str>, shadow: Option<Shadow>) {
        self.metrics.decision(conn.direction, allow, "enforce", rule);
        if let Some(shadow) = &shadow {
            self.metrics.decision(conn.direction, shadow.allow, "audit", &shadow.rule);
            tracing::info!(
                direction = %conn.direction, source = %conn.source,
                destination = conn.destination().map(tracing::field::display),
                verdict = allow, rule = %rule,
                audit_verdict = shadow.allow, audit_rule = %shadow.rule,
                "audit rules would decide otherwise"
            );
        }
        conn.judged(allow, rule, shadow);
    }

    /// Has `names` looked up once more, for addresses of `ip`'s family, and returns those of which
    /// nobody can say whether they have one: see [`ResolveRequest::done`]. The control thread keeps
    /// the rate. This waits for [`RESOLVE_WAIT`] at most; after that, nothing can be said of any.
    pub async fn look_up(&self, names: Vec<Arc<str>>, ip: IpAddr) -> Vec<Arc<str>> {
        let (done, wait) = oneshot::channel();
        let names: Arc<[Arc<str>]> = names.into();
        let request = ResolveRequest { names: Arc::clone(&names), ipv6: ip.is_ipv6(), done };
        let asking = async {
            self.resolve.send(request).await.ok()?;
            wait.await.ok()
        };
        match tokio::time::timeout(RESOLVE_WAIT, asking).await {
            Ok(Some(unanswered)) => unanswered,
            Ok(None) | Err(_) => names.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exempt_is_the_pod_itself_and_dns_to_its_nameservers() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let local = LocalNet {
            addresses: HashSet::from([ip("10.0.0.5"), ip("fd00::5")]),
            nameservers: HashSet::from([ip("10.96.0.10")]),
        };
        for exempt in
            ["127.0.0.9:1", "[::1]:1", "0.0.0.0:1", "10.0.0.5:80", "[fd00::5]:80", "10.96.0.10:53"]
        {
            assert!(local.is_exempt(exempt.parse().unwrap()), "{exempt}");
        }
        for judged in ["10.0.0.6:80", "10.96.0.10:80", "10.96.0.11:53", "[fd00::6]:53"] {
            assert!(!local.is_exempt(judged.parse().unwrap()), "{judged}");
        }
    }
}
