//! Keeps the addresses of the policy's `hosts`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::live::{HostAddresses, LocalNet, ResolveRequest, Shared};
use crate::net;

/// A name is not asked for more often than this because its TTL says so.
const TTL_FLOOR: Duration = Duration::from_secs(5);
/// A name that could not be resolved, or whose TTL is very long, is asked for again.
const TTL_CEILING: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(5);
/// All of one name's questions and repetitions together.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// On a miss, a name is asked for at most this often.
const MISS_FLOOR: Duration = Duration::from_secs(1);
/// How often due names and the pod's own addresses are looked for.
const TICK: Duration = Duration::from_secs(1);

/// Resolves names on the control thread and publishes their addresses.
pub struct Resolver {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<ResolveRequest>,
    resolver: Option<TokioResolver>,
    nameservers: HashSet<IpAddr>,
    known: HashMap<Arc<str>, Known>,
}

struct Known {
    addresses: HashSet<IpAddr>,
    /// When the TTL ends.
    due: Instant,
    /// From when on a miss asks again.
    missed: Instant,
}

impl Resolver {
    /// Reads resolv.conf and publishes the pod's own addresses.
    pub fn new(shared: Arc<Shared>, requests: mpsc::Receiver<ResolveRequest>) -> Self {
        let (resolver, nameservers) = match system_resolver() {
            Ok((resolver, servers)) => (Some(resolver), servers),
            Err(e) => {
                tracing::warn!(error = %e, "no resolver: names in the policy match no address");
                (None, HashSet::new())
            }
        };
        let this = Self { shared, requests, resolver, nameservers, known: HashMap::new() };
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
                        // Whoever asks at the same time is answered by the same look-up.
                        let mut asking = vec![request];
                        while let Ok(request) = self.requests.try_recv() {
                            asking.push(request);
                        }
                        self.resolve(|known, now| now >= known.missed).await;
                        for request in asking {
                            // The worker may have stopped waiting.
                            let _ = request.done.send(());
                        }
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
        let now = Instant::now();
        let mut looking = JoinSet::new();
        for host in hosts {
            if self.known.get(&host).is_none_or(|known| due(known, now)) {
                looking.spawn(look_up(self.resolver.clone(), host));
            }
        }
        while let Some(done) = looking.join_next().await {
            let Ok((host, found)) = done else { continue };
            let now = Instant::now();
            let old = self.known.remove(&host).map(|k| k.addresses);
            let known = match found {
                Some((addresses, ttl)) => {
                    Known { addresses, due: now + ttl, missed: now + MISS_FLOOR }
                }
                // A nameserver that does not answer takes no address away: that would
                // weaken what the policy says of it. Nor is it asked at every miss.
                None => Known {
                    addresses: old.clone().unwrap_or_default(),
                    due: now + RETRY,
                    missed: now + RETRY,
                },
            };
            changed |= old.as_ref() != Some(&known.addresses);
            self.known.insert(host, known);
        }
        if changed {
            self.publish();
        }
    }

    fn publish(&self) {
        let addresses =
            self.known.iter().map(|(host, k)| (Arc::clone(host), k.addresses.clone())).collect();
        self.shared.published.hosts.store(Arc::new(HostAddresses(addresses)));
    }

    fn publish_local(&self) {
        let local = LocalNet {
            addresses: net::local_addresses().into_iter().collect(),
            nameservers: self.nameservers.clone(),
        };
        self.shared.published.local.store(Arc::new(local));
    }
}

/// A and AAAA, and for how long they hold; `None` when there is no answer.
async fn look_up(
    resolver: Option<TokioResolver>,
    host: Arc<str>,
) -> (Arc<str>, Option<(HashSet<IpAddr>, Duration)>) {
    let Some(resolver) = resolver else { return (host, None) };
    // With its final dot a name is taken as it is: search domains are for people.
    let answer =
        tokio::time::timeout(LOOK_UP_TIMEOUT, resolver.lookup_ip(format!("{host}."))).await;
    let why = match answer {
        Ok(Ok(answer)) => {
            let ttl = answer.valid_until().saturating_duration_since(Instant::now());
            let addresses = answer.iter().map(|ip| ip.to_canonical()).collect();
            return (host, Some((addresses, ttl.clamp(TTL_FLOOR, TTL_CEILING))));
        }
        Ok(Err(e)) => e.to_string(),
        Err(_) => format!("no answer within {LOOK_UP_TIMEOUT:?}"),
    };
    tracing::warn!(%host, error = why, "a name of the policy can't be resolved");
    (host, None)
}

fn system_resolver() -> Result<(TokioResolver, HashSet<IpAddr>), hickory_resolver::net::NetError> {
    let (config, mut options) = hickory_resolver::system_conf::read_system_conf()?;
    // A miss wants to hear what the nameserver says now; TTLs are kept here.
    options.cache_size = 0;
    let servers = config.name_servers().iter().map(|s| s.ip.to_canonical()).collect();
    let resolver = TokioResolver::builder_with_config(config, Default::default())
        .with_options(options)
        .build()?;
    Ok((resolver, servers))
}
