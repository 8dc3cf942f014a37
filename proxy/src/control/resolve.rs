//! Keeps the addresses of the policy's `hosts`.

mod nameservers;
mod questions;
#[cfg(test)]
mod stub;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::RecordType;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{Id, JoinError, JoinSet};

use crate::live::{Host, HostAddresses, Known, LocalNet, RESOLVE_WAIT, ResolveRequest, Shared};
use crate::net;

use super::Workers;
use super::readiness::Readiness;

use nameservers::{Found, LOOK_UP_TIMEOUT, Nameservers};
use questions::{MISS_LIMIT, Question, Questions};

/// How often due names and the pod's own addresses are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How many questions are asked at a time because they are due, and how many on a miss: each has a
/// socket, and a policy may have 10,000 names.
const MOST_AT_A_TIME: usize = 100;

// Who waits for a look-up that is asked at once hears how it ended, and else which names are known.
const _: () = assert!(LOOK_UP_TIMEOUT.as_millis() < MISS_LIMIT.as_millis());
const _: () = assert!(MISS_LIMIT.as_millis() < RESOLVE_WAIT.as_millis());

/// A look-up that has ended, or panicked.
type Ended = Result<(Id, Result<Found, String>), JoinError>;

/// Resolves names on the control thread and publishes their addresses.
pub struct Resolver {
    shared: Arc<Shared>,
    workers: Workers,
    readiness: Arc<Readiness>,
    requests: mpsc::Receiver<ResolveRequest>,
    nameservers: Arc<Nameservers>,
    nameserver_addresses: HashSet<IpAddr>,
    /// What was answered.
    known: HashMap<Arc<str>, Host>,
    /// What is asked when, and for whom.
    questions: Questions,
    /// What is asked now. One that is slow holds back no other.
    looking: JoinSet<Result<Found, String>>,
    asked: HashMap<Id, Question>,
    room_for_due: Arc<Semaphore>,
    /// A connection waits for these: they don't queue behind the others.
    room_for_missed: Arc<Semaphore>,
}

/// What answers have changed.
#[derive(Default)]
struct Change {
    /// Something.
    any: bool,
    /// An address is new, or a name's first look-up has ended.
    rejudge: bool,
}

/// For ever, where there is no end.
async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

impl Resolver {
    /// Reads resolv.conf and publishes the pod's own addresses.
    pub fn new(
        shared: Arc<Shared>,
        workers: Workers,
        readiness: Arc<Readiness>,
        requests: mpsc::Receiver<ResolveRequest>,
    ) -> Self {
        let (nameservers, nameserver_addresses) = Nameservers::of_system().unwrap_or_else(|e| {
            tracing::warn!(error = %e, "no resolver: names in the policy match no address");
            Default::default()
        });
        let this = Self {
            shared,
            workers,
            readiness,
            requests,
            nameservers: Arc::new(nameservers),
            nameserver_addresses,
            known: HashMap::new(),
            questions: Questions::default(),
            looking: JoinSet::new(),
            asked: HashMap::new(),
            room_for_due: Arc::new(Semaphore::new(MOST_AT_A_TIME)),
            room_for_missed: Arc::new(Semaphore::new(MOST_AT_A_TIME)),
        };
        this.publish_local();
        this
    }

    /// Follows TTLs and answers workers for ever.
    pub async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut tick = tokio::time::interval(TICK);
        loop {
            let limit = self.questions.next_limit();
            tokio::select! {
                _ = tick.tick() => {
                    self.publish_local();
                    self.follow_policy();
                }
                () = shared.new_policy.notified() => self.follow_policy(),
                () = until(limit) => self.questions.give_up(Instant::now()),
                Some(ended) = self.looking.join_next_with_id() => {
                    self.ended(ended);
                    self.ask_due();
                }
                request = self.requests.recv() => match request {
                    None => return,
                    Some(request) => self.ask_missed(request),
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
        self.questions.follow(&hosts, Instant::now());
        self.ask_due();
        self.note_late();
    }

    /// A name that waits for its turn is no longer taken for one that may have any address: what
    /// the default denies would live on for as long as thousands of names have no answer.
    fn note_late(&mut self) {
        let late = self.questions.late(Instant::now());
        let mut change = false;
        for question in late {
            let known = self.known_of(&question);
            if *known == Known::Pending {
                *known = Known::Unanswered;
                change = true;
            }
        }
        if change {
            self.publish();
            self.workers.rejudge();
        }
    }

    fn known_of(&mut self, question: &Question) -> &mut Known {
        let host = self.known.entry(Arc::clone(&question.host)).or_default();
        match question.family {
            RecordType::A => &mut host.a,
            _ => &mut host.aaaa,
        }
    }

    /// Asks as many of the questions that are due as there is room for: the rest has its turn when
    /// some of these have ended.
    fn ask_due(&mut self) {
        while let Ok(permit) = Arc::clone(&self.room_for_due).try_acquire_owned() {
            let Some(question) = self.questions.next_due(Instant::now()) else { return };
            self.ask(question, async move { permit });
        }
    }

    fn ask_missed(&mut self, request: ResolveRequest) {
        for question in self.questions.wait_for(request, Instant::now()) {
            let room = Arc::clone(&self.room_for_missed);
            // It is never closed.
            self.ask(question, async move { room.acquire_owned().await.ok() });
        }
    }

    /// Asks once there is room.
    fn ask<P, R>(&mut self, question: Question, room: R)
    where
        P: Send,
        R: Future<Output = P> + Send + 'static,
    {
        let (nameservers, asked) = (Arc::clone(&self.nameservers), question.clone());
        let look_up = self.looking.spawn(async move {
            let _permit = room.await;
            nameservers.look_up(&asked).await
        });
        self.asked.insert(look_up.id(), question);
    }

    /// Publishes what a look-up has found, and what those that have ended by now have, and then
    /// tells who waits for them.
    fn ended(&mut self, first: Ended) {
        let (mut change, mut told) = (Change::default(), Vec::new());
        let mut next = Some(first);
        while let Some(ended) = next {
            let (id, answer) = ended.unwrap_or_else(|e| {
                (e.id(), Err("asking has panicked; please report it".to_owned()))
            });
            if let Some(question) = self.asked.remove(&id) {
                told.push(question.clone());
                self.answered(question, answer, &mut change);
            }
            next = self.looking.try_join_next_with_id();
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
            nameservers: self.nameserver_addresses.clone(),
        };
        self.shared.published.local.store(Arc::new(local));
    }
}

#[cfg(test)]
mod tests;
