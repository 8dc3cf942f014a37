//! Which names are asked for when, and who waits for the answers. No I/O, and no clock of its own.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::RecordType;
use tokio::sync::oneshot;

use crate::live::ResolveRequest;

/// A name without an answer is asked for again after this.
const RETRY: Duration = Duration::from_secs(5);
/// On a miss, a name is asked for at most this often.
const MISS_FLOOR: Duration = Duration::from_secs(1);
/// A request is answered after this at the latest: a question that waits for its turn says no more
/// than one that is not answered.
pub(super) const MISS_LIMIT: Duration = Duration::from_millis(2200);
/// For so long a name of which nothing was heard yet may be any address's: that of a policy of
/// thousands has its turn much later when no nameserver answers.
const FIRST_LIMIT: Duration = Duration::from_millis(1500);

/// A and AAAA are two questions: an answer to one says nothing of the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// The name, in lower case and without a final dot.
    pub(super) host: Arc<str>,
    /// A or AAAA.
    pub(super) family: RecordType,
}

/// How it stands with one question. `None` is a time that is over.
#[derive(Debug, Default)]
struct State {
    /// An answer is awaited.
    asking: bool,
    /// It was found to be due, and has its turn to come.
    queued: bool,
    /// When to ask again.
    due: Option<Instant>,
    /// From when on a miss asks again.
    missed: Option<Instant>,
    /// Until when the last answer holds.
    good: Option<Instant>,
    /// Whether the last time there was no answer.
    failed: bool,
    /// Since when it is one of the policy's.
    since: Option<Instant>,
    /// Whether it was told that nothing has been heard of it.
    late: bool,
}

impl State {
    fn is_due(&self, now: Instant) -> bool {
        !self.asking && !is_ahead(self.due, now)
    }

    /// Whether nobody can say what addresses there are now, as far as the last look-up goes.
    fn is_unanswered(&self, now: Instant) -> bool {
        self.failed && !is_ahead(self.good, now)
    }

    /// Whether it has waited for its first look-up for too long. That is told once.
    fn is_late(&mut self, now: Instant) -> bool {
        let unheard = self.good.is_none() && !self.failed && !self.late;
        let late = unheard && self.since.is_some_and(|since| now >= since + FIRST_LIMIT);
        self.late |= late;
        late
    }
}

fn is_ahead(time: Option<Instant>, now: Instant) -> bool {
    time.is_some_and(|time| now < time)
}

/// A request whose questions are under way.
#[derive(Debug)]
struct Waiting {
    left: HashSet<Question>,
    unanswered: Vec<Arc<str>>,
    until: Instant,
    done: oneshot::Sender<Vec<Arc<str>>>,
}

impl Waiting {
    /// Answers the request if none of its questions is left.
    fn tell(self) -> Option<Self> {
        if !self.left.is_empty() {
            return Some(self);
        }
        // The worker may have stopped waiting.
        let _ = self.done.send(self.unanswered);
        None
    }
}

/// All questions, and the requests that wait for some of them.
#[derive(Debug, Default)]
pub(super) struct Questions {
    states: HashMap<Question, State>,
    queue: VecDeque<Question>,
    /// Those that have come first are first.
    waiting: Vec<Waiting>,
}

impl Questions {
    /// Follows the policy: the questions of `hosts` that are due queue up. Those of other names are
    /// forgotten, and so are requests for which nobody waits any more.
    pub(super) fn follow(&mut self, hosts: &HashSet<Arc<str>>, now: Instant) {
        self.waiting.retain(|waiting| !waiting.done.is_closed());
        self.states.retain(|question, _| hosts.contains(&question.host));
        self.queue.retain(|question| hosts.contains(&question.host));
        for host in hosts {
            for family in [RecordType::A, RecordType::AAAA] {
                let question = Question { host: Arc::clone(host), family };
                let state = self.states.entry(question.clone()).or_default();
                state.since.get_or_insert(now);
                if state.is_due(now) && !state.queued {
                    state.queued = true;
                    self.queue.push_back(question);
                }
            }
        }
    }

    /// Those of which nothing was heard for [`FIRST_LIMIT`], each once. They are asked all the same
    /// when they have their turn.
    pub(super) fn late(&mut self, now: Instant) -> Vec<Question> {
        let late = self
            .states
            .iter_mut()
            .filter_map(|(question, state)| state.is_late(now).then(|| question.clone()));
        late.collect()
    }

    /// The next of those that are due, which is to be asked now.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Question> {
        while let Some(question) = self.queue.pop_front() {
            let Some(state) = self.states.get_mut(&question) else { continue };
            state.queued = false;
            // On a miss it may have been asked meanwhile.
            if state.is_due(now) {
                state.asking = true;
                return Some(question);
            }
        }
        None
    }

    /// Takes a request, and returns those of its questions that are to be asked now. It is answered
    /// as soon as its own questions are.
    pub(super) fn wait_for(&mut self, request: ResolveRequest, now: Instant) -> Vec<Question> {
        let ResolveRequest { names, ipv6, done } = request;
        let family = if ipv6 { RecordType::AAAA } else { RecordType::A };
        let mut ask = Vec::new();
        let until = now + MISS_LIMIT;
        let mut waiting = Waiting { left: HashSet::new(), unanswered: Vec::new(), until, done };
        for host in names.iter() {
            let question = Question { host: Arc::clone(host), family };
            let state = self.states.entry(question.clone()).or_default();
            if !state.asking && is_ahead(state.missed, now) {
                if state.is_unanswered(now) {
                    waiting.unanswered.push(question.host);
                }
                continue;
            }
            if !state.asking {
                state.asking = true;
                ask.push(question.clone());
            }
            waiting.left.insert(question);
        }
        self.waiting.extend(waiting.tell());
        ask
    }

    /// Notes the end of a look-up: an answer's time to live, or that there was none. Returns whether
    /// there was none the time before, or `None` when the question is the policy's no more.
    pub(super) fn note(
        &mut self,
        question: &Question,
        ttl: Option<Duration>,
        now: Instant,
    ) -> Option<bool> {
        let state = self.states.get_mut(question)?;
        let failed_before = state.failed;
        let good = ttl.map_or(state.good, |ttl| Some(now + ttl));
        let due = Some(now + ttl.unwrap_or(RETRY));
        let missed = Some(now + MISS_FLOOR);
        *state = State { asking: false, due, missed, good, failed: ttl.is_none(), ..*state };
        Some(failed_before)
    }

    /// When the first request has waited for long enough.
    pub(super) fn next_limit(&self) -> Option<Instant> {
        self.waiting.first().map(|waiting| waiting.until)
    }

    /// Answers the requests that have waited for [`MISS_LIMIT`]. Of what was not answered meanwhile
    /// the last answer holds for its time.
    pub(super) fn give_up(&mut self, now: Instant) {
        let Self { states, waiting, .. } = self;
        let holds = |question: &Question| {
            states.get(question).is_some_and(|state| is_ahead(state.good, now))
        };
        let over = waiting.partition_point(|one| one.until <= now);
        for mut one in waiting.drain(..over) {
            let left = one.left.drain().filter(|question| !holds(question));
            one.unanswered.extend(left.map(|question| question.host));
            one.tell();
        }
    }

    /// Answers the requests that waited for these questions and for no other. To be called when
    /// what they have led to is published.
    pub(super) fn tell(&mut self, questions: &[Question], now: Instant) {
        let Self { states, waiting, .. } = self;
        let unanswered =
            |question| states.get(question).is_none_or(|state| state.is_unanswered(now));
        let told = std::mem::take(waiting).into_iter().filter_map(|mut one| {
            for question in questions {
                if one.left.remove(question) && unanswered(question) {
                    one.unanswered.push(Arc::clone(&question.host));
                }
            }
            one.tell()
        });
        *waiting = told.collect();
    }
}

#[cfg(test)]
mod tests;
