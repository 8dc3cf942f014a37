//! Keeps the addresses of the policy's `hosts`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use tokio::sync::mpsc;

use crate::live::{HostAddresses, LocalNet, ResolveRequest, Shared};
use crate::net;

use super::Workers;

/// A name is not asked for more often than this because its TTL says so.
const TTL_FLOOR: Duration = Duration::from_secs(5);
/// A name that could not be resolved, or whose TTL is very long, is asked for again.
const TTL_CEILING: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(5);
/// On a miss, a name is asked for at most this often.
const MISS_FLOOR: Duration = Duration::from_secs(1);
/// How often due names and the pod's own addresses are looked for.
const TICK: Duration = Duration::from_secs(1);

/// Resolves names on the control thread and publishes their addresses.
pub struct Resolver {
    shared: Arc<Shared>,
    workers: Workers,
    requests: mpsc::Receiver<ResolveRequest>,
    resolver: Option<TokioResolver>,
    nameservers: HashSet<IpAddr>,
    known: HashMap<Arc<str>, Known>,
}

struct Known {
    addresses: HashSet<IpAddr>,
    asked: Instant,
    due: Instant,
}

impl Resolver {
    /// Reads resolv.conf and publishes the pod's own addresses.
    pub fn new(
        shared: Arc<Shared>,
        workers: Workers,
        requests: mpsc::Receiver<ResolveRequest>,
    ) -> Self {
        let (resolver, nameservers) = match system_resolver() {
            Ok((resolver, servers)) => (Some(resolver), servers),
            Err(e) => {
                tracing::warn!(error = %e, "no resolver: names in the policy match no address");
                (None, HashSet::new())
            }
        };
        let this = Self { shared, workers, requests, resolver, nameservers, known: HashMap::new() };
        this.publish_local();
        this
    }

    /// Follows TTLs and answers workers for ever.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    self.publish_local();
                    self.resolve(|known, now| now >= known.due).await;
                }
                request = self.requests.recv() => match request {
                    None => return,
                    Some(request) => {
                        self.resolve(|known, now| now >= known.asked + MISS_FLOOR).await;
                        // The worker may have stopped waiting.
                        let _ = request.done.send(());
                    }
                },
            }
        }
    }

    /// Asks for every name that is new or for which `due` says so.
    async fn resolve(&mut self, due: impl Fn(&Known, Instant) -> bool) {
        let Some(policy) = self.shared.published.policy.load_full() else { return };
        let hosts: HashSet<Arc<str>> = policy.hosts().iter().cloned().collect();
        let before = self.known.len();
        self.known.retain(|host, _| hosts.contains(host));
        let mut changed = before != self.known.len();
        for host in hosts {
            let now = Instant::now();
            if self.known.get(&host).is_some_and(|known| !due(known, now)) {
                continue;
            }
            let (found, ttl) = self.look_up(&host).await;
            let old = self.known.remove(&host).map(|k| k.addresses);
            // A nameserver that does not answer takes no address away: that would
            // weaken what the policy says of it.
            let addresses = found.or_else(|| old.clone()).unwrap_or_default();
            changed |= old.as_ref() != Some(&addresses);
            self.known.insert(host, Known { addresses, asked: now, due: now + ttl });
        }
        if changed {
            self.publish();
        }
    }

    /// A and AAAA; `None` when there is no answer.
    async fn look_up(&self, host: &str) -> (Option<HashSet<IpAddr>>, Duration) {
        let Some(resolver) = &self.resolver else { return (None, RETRY) };
        // With its final dot a name is taken as it is: search domains are for people.
        match resolver.lookup_ip(format!("{host}.")).await {
            Ok(answer) => {
                let ttl = answer.valid_until().saturating_duration_since(Instant::now());
                let addresses = answer.iter().map(|ip| ip.to_canonical()).collect();
                (Some(addresses), ttl.clamp(TTL_FLOOR, TTL_CEILING))
            }
            Err(e) => {
                tracing::warn!(host, error = %e, "a name of the policy can't be resolved");
                (None, RETRY)
            }
        }
    }

    fn publish(&self) {
        let addresses =
            self.known.iter().map(|(host, k)| (Arc::clone(host), k.addresses.clone())).collect();
        self.shared.published.hosts.store(Arc::new(HostAddresses(addresses)));
        self.workers.rejudge();
    }

    fn publish_local(&self) {
        let local = LocalNet {
            addresses: net::local_addresses().into_iter().collect(),
            nameservers: self.nameservers.clone(),
        };
        self.shared.published.local.store(Arc::new(local));
    }
}

fn system_resolver() -> Result<(TokioResolver, HashSet<IpAddr>), hickory_resolver::net::NetError> {
    let (config, options) = hickory_resolver::system_conf::read_system_conf()?;
    let servers = config.name_servers().iter().map(|s| s.ip.to_canonical()).collect();
    let resolver = TokioResolver::builder_with_config(config, Default::default())
        .with_options(options)
        .build()?;
    Ok((resolver, servers))
}
