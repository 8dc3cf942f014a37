//! Keeps the addresses of the policy's `hosts`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::live::{Host, HostAddresses, LocalNet, ResolveRequest, Shared};
use crate::net;

use super::Workers;
use super::readiness::Readiness;

/// A name is not asked for more often than this because its TTL says so.
const TTL_FLOOR: Duration = Duration::from_secs(5);
/// A name that could not be resolved, or whose TTL is very long, is asked for again.
const TTL_CEILING: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(5);
/// All of one name's questions and repetitions together.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(600);
/// On a miss, a name is asked for at most this often.
const MISS_FLOOR: Duration = Duration::from_secs(1);
/// How often due names and the pod's own addresses are looked for.
const TICK: Duration = Duration::from_secs(1);

/// Resolves names on the control thread and publishes their addresses.
pub struct Resolver {
    shared: Arc<Shared>,
    workers: Workers,
    readiness: Arc<Readiness>,
    requests: mpsc::Receiver<ResolveRequest>,
    resolver: Option<TokioResolver>,
    nameservers: HashSet<IpAddr>,
    /// What was answered.
    known: HashMap<Arc<str>, Host>,
    /// When to ask again.
    next: HashMap<Question, Next>,
}

/// A and AAAA are two questions: an answer to one says nothing of the other.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    host: Arc<str>,
    family: RecordType,
}

struct Next {
    /// When the TTL ends.
    due: Instant,
    /// From when on a miss asks.
    missed: Instant,
    /// Whether the last question had no answer.
    failed: bool,
}

impl Resolver {
    /// Reads resolv.conf and publishes the pod's own addresses.
    pub fn new(
        shared: Arc<Shared>,
        workers: Workers,
        readiness: Arc<Readiness>,
        requests: mpsc::Receiver<ResolveRequest>,
    ) -> Self {
        let (resolver, nameservers) = match system_resolver() {
            Ok((resolver, servers)) => (Some(resolver), servers),
            Err(e) => {
                tracing::warn!(error = %e, "no resolver: names in the policy match no address");
                (None, HashSet::new())
            }
        };
        let (known, next) = (HashMap::new(), HashMap::new());
        let this =
            Self { shared, workers, readiness, requests, resolver, nameservers, known, next };
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
                    self.resolve(|next, now| now >= next.due).await;
                }
                request = self.requests.recv() => match request {
                    None => return,
                    Some(request) => {
                        // Whoever asks at the same time is answered by the same look-up.
                        let mut asking = vec![request];
                        while let Ok(request) = self.requests.try_recv() {
                            asking.push(request);
                        }
                        self.resolve(|next, now| now >= next.missed).await;
                        for request in asking {
                            // The worker may have stopped waiting.
                            let _ = request.done.send(());
                        }
                    }
                },
            }
        }
    }

    /// Asks every question that is new or for which `due` says so, and publishes each
    /// answer as it comes: one that is slow holds back no other.
    async fn resolve(&mut self, due: impl Fn(&Next, Instant) -> bool) {
        let Some(policy) = self.shared.published.policy.load_full() else { return };
        let hosts: HashSet<Arc<str>> = policy.hosts().iter().cloned().collect();
        self.next.retain(|question, _| hosts.contains(&question.host));
        let before = self.known.len();
        self.known.retain(|host, _| hosts.contains(host));
        if before != self.known.len() {
            self.publish();
        }
        let now = Instant::now();
        let mut looking = JoinSet::new();
        for host in hosts {
            for family in [RecordType::A, RecordType::AAAA] {
                let question = Question { host: Arc::clone(&host), family };
                if self.next.get(&question).is_none_or(|next| due(next, now)) {
                    looking.spawn(look_up(self.resolver.clone(), question));
                }
            }
        }
        while let Some(done) = looking.join_next().await {
            if let Ok((question, answer)) = done {
                self.answered(question, answer);
            }
        }
    }

    fn answered(&mut self, question: Question, answer: Result<Found, String>) {
        let now = Instant::now();
        let failed_before = self.next.get(&question).is_some_and(|next| next.failed);
        let next = match &answer {
            Ok(found) => Next { due: now + found.ttl, missed: now + MISS_FLOOR, failed: false },
            Err(_) => Next { due: now + RETRY, missed: now + RETRY, failed: true },
        };
        self.next.insert(question.clone(), next);
        let Question { host, family } = question;
        match answer {
            // No answer takes no address away: that would weaken what the policy says
            // of it. What was never answered stays unknown.
            Err(e) if !failed_before => {
                tracing::warn!(%host, %family, error = e, "a name of the policy can't be resolved");
            }
            Err(_) => {}
            Ok(found) => {
                if failed_before {
                    tracing::info!(%host, %family, "the name can be resolved again");
                }
                self.learn(host, family, found.addresses);
            }
        }
    }

    fn learn(&mut self, host: Arc<str>, family: RecordType, addresses: HashSet<IpAddr>) {
        let entry = self.known.entry(host).or_default();
        let known = if family == RecordType::A { &mut entry.v4 } else { &mut entry.v6 };
        if known.as_ref() == Some(&addresses) {
            return;
        }
        let added = !known.as_ref().is_some_and(|old| addresses.is_subset(old));
        *known = Some(addresses);
        self.publish();
        // A new address may be one that is talked to already, in a way that the
        // policy forbids for this name.
        if added {
            self.workers.rejudge();
        }
    }

    fn publish(&self) {
        self.shared.published.hosts.store(Arc::new(HostAddresses(self.known.clone())));
        self.readiness.look();
    }

    fn publish_local(&self) {
        // Without a descriptor to ask with, the addresses of before still hold.
        let Ok(addresses) = net::local_addresses() else { return };
        let local = LocalNet {
            addresses: addresses.into_iter().collect(),
            nameservers: self.nameservers.clone(),
        };
        self.shared.published.local.store(Arc::new(local));
    }
}

/// A nameserver's answer.
struct Found {
    addresses: HashSet<IpAddr>,
    ttl: Duration,
}

/// Asks one question. That there is no such name is an answer too.
async fn look_up(
    resolver: Option<TokioResolver>,
    question: Question,
) -> (Question, Result<Found, String>) {
    let Some(resolver) = resolver else { return (question, Err("no resolver".to_owned())) };
    // With its final dot a name is taken as it is: search domains are for people.
    let asking = resolver.lookup(format!("{}.", question.host), question.family);
    let found = match tokio::time::timeout(LOOK_UP_TIMEOUT, asking).await {
        Ok(Ok(answer)) => {
            let ttl = answer.valid_until().saturating_duration_since(Instant::now());
            let address = |record: &Record| match &record.data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                RData::AAAA(a) => Some(IpAddr::V6(a.0).to_canonical()),
                _ => None,
            };
            let addresses = answer.answers().iter().filter_map(address).collect();
            Ok(Found { addresses, ttl: ttl.clamp(TTL_FLOOR, TTL_CEILING) })
        }
        Ok(Err(e)) if e.is_nx_domain() || e.is_no_records_found() => {
            Ok(Found { addresses: HashSet::new(), ttl: TTL_FLOOR })
        }
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no answer within {LOOK_UP_TIMEOUT:?}")),
    };
    (question, found)
}

fn system_resolver() -> Result<(TokioResolver, HashSet<IpAddr>), hickory_resolver::net::NetError> {
    let (config, mut options) = hickory_resolver::system_conf::read_system_conf()?;
    // A miss wants to hear what the nameserver says now; TTLs are kept here.
    options.cache_size = 0;
    // A lost datagram is sent again well within the time of the whole look-up.
    options.timeout = ATTEMPT_TIMEOUT;
    options.attempts = 2;
    let servers = config.name_servers().iter().map(|s| s.ip.to_canonical()).collect();
    let resolver = TokioResolver::builder_with_config(config, Default::default())
        .with_options(options)
        .build()?;
    Ok((resolver, servers))
}
