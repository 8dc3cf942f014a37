//! Keeps the addresses of the policy's `hosts`.

mod look_up;
mod questions;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RecordType;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::live::{Host, HostAddresses, Known, LocalNet, RESOLVE_WAIT, ResolveRequest, Shared};
use crate::net;

use super::Workers;
use super::readiness::Readiness;

use look_up::{Found, LOOK_UP_TIMEOUT, MOST_AT_A_TIME, look_up, system_resolver};
use questions::{Question, Questions};

/// How often due names and the pod's own addresses are looked for.
const TICK: Duration = Duration::from_secs(1);

// Who waits for a look-up hears how it ended.
const _: () = assert!(LOOK_UP_TIMEOUT.as_millis() < RESOLVE_WAIT.as_millis());

/// A look-up that has ended.
type Ended = (Question, Result<Found, String>);

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
    /// What is asked when, and for whom.
    questions: Questions,
    /// What is asked now. One that is slow holds back no other.
    looking: JoinSet<Ended>,
    room: Arc<Semaphore>,
}

/// What answers have changed.
#[derive(Default)]
struct Change {
    /// Something.
    any: bool,
    /// An address is new, or a name's first look-up has ended.
    rejudge: bool,
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
        let this = Self {
            shared,
            workers,
            readiness,
            requests,
            resolver,
            nameservers,
            known: HashMap::new(),
            questions: Questions::default(),
            looking: JoinSet::new(),
            room: Arc::new(Semaphore::new(MOST_AT_A_TIME)),
        };
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
                    self.follow_policy();
                }
                Some(ended) = self.looking.join_next() => self.ended(ended.ok()),
                request = self.requests.recv() => match request {
                    None => return,
                    Some(request) => {
                        let ask = self.questions.wait_for(request, Instant::now());
                        self.ask(ask);
                    }
                },
            }
        }
    }

    /// Asks what is due of the policy's names, and forgets all others.
    fn follow_policy(&mut self) {
        let Some(policy) = self.shared.published.policy.load_full() else { return };
        let hosts: HashSet<Arc<str>> = policy.hosts().iter().cloned().collect();
        let before = self.known.len();
        self.known.retain(|host, _| hosts.contains(host));
        if before != self.known.len() {
            self.publish();
        }
        let ask = self.questions.due(&hosts, Instant::now());
        self.ask(ask);
    }

    fn ask(&mut self, questions: Vec<Question>) {
        for question in questions {
            let room = Arc::clone(&self.room);
            self.looking.spawn(look_up(self.resolver.clone(), question, room));
        }
    }

    /// Publishes what a look-up has found, and what those that have ended by now have, and then
    /// tells who waits for them. (A look-up that has panicked found nothing.)
    fn ended(&mut self, first: Option<Ended>) {
        let (mut change, mut told) = (Change::default(), Vec::new());
        let mut next = first;
        loop {
            if let Some((question, answer)) = next {
                told.push(question.clone());
                self.answered(question, answer, &mut change);
            }
            match self.looking.try_join_next() {
                Some(ended) => next = ended.ok(),
                None => break,
            }
        }
        if change.any {
            self.publish();
        }
        // A new address may be one that is talked to already, in a way that the policy forbids for
        // this name. And to some, the default was not applied as long as their name was pending.
        if change.rejudge {
            self.workers.rejudge();
        }
        self.questions.tell(&told, Instant::now());
    }

    fn answered(&mut self, question: Question, answer: Result<Found, String>, change: &mut Change) {
        let ttl = answer.as_ref().ok().map(|found| found.ttl);
        let Some(failed_before) = self.questions.note(&question, ttl, Instant::now()) else {
            return;
        };
        let Question { host, family } = question;
        let entry = self.known.entry(Arc::clone(&host)).or_default();
        let had_none = entry.has_none();
        let known = if family == RecordType::A { &mut entry.a } else { &mut entry.aaaa };
        match answer {
            Err(e) => {
                if !failed_before {
                    tracing::warn!(%host, %family, error = e, "a name of the policy can't be resolved");
                }
                // No answer takes no address away: that would weaken what the policy says of it.
                if *known == Known::Pending {
                    *known = Known::Unanswered;
                    *change = Change { any: true, rejudge: true };
                }
            }
            Ok(found) => {
                if failed_before {
                    tracing::info!(%host, %family, "the name can be resolved again");
                }
                let old = known.addresses();
                if old == Some(&found.addresses) {
                    return;
                }
                change.any = true;
                change.rejudge |= !old.is_some_and(|old| found.addresses.is_subset(old));
                *known = Known::Addresses(found.addresses);
                match (had_none, entry.has_none()) {
                    (false, true) => tracing::warn!(
                        %host,
                        "a name of the policy has no address: its destination matches none by it; \
                         is it a full name, and written right?"
                    ),
                    (true, false) => tracing::info!(%host, "the name has an address now"),
                    (false, false) | (true, true) => {}
                }
            }
        }
    }

    fn publish(&self) {
        let without = self.known.values().filter(|host| host.is_without_address()).count();
        let gauge = &self.shared.metrics.hosts_without_address;
        gauge.set(i64::try_from(without).unwrap_or(i64::MAX));
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

#[cfg(test)]
mod tests;
