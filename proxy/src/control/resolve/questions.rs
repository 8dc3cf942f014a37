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
}

impl State {
    fn is_due(&self, now: Instant) -> bool {
        !self.asking && !is_ahead(self.due, now)
    }

    /// Whether nobody can say what addresses there are now.
    fn is_unanswered(&self, now: Instant) -> bool {
        self.failed && !is_ahead(self.good, now)
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
                if state.is_due(now) && !state.queued {
                    state.queued = true;
                    self.queue.push_back(question);
                }
            }
        }
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
        let mut waiting = Waiting { left: HashSet::new(), unanswered: Vec::new(), done };
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
