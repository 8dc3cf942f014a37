//! Who is asked when, by a clock of the tests' own.

use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn names(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn question(host: &str) -> Question {
    Question { host: Arc::from(host), family: RecordType::A }
}

/// Who asks for the addresses of these names, of IPv4.
fn request(of: &[&str]) -> (ResolveRequest, Receiver<Vec<Arc<str>>>) {
    let (done, wait) = oneshot::channel();
    (ResolveRequest { names: names(of).into(), ipv6: false, done }, wait)
}

/// The questions that are to be asked now because they are due.
fn due(questions: &mut Questions, hosts: &HashSet<Arc<str>>, now: Instant) -> Vec<Question> {
    questions.follow(hosts, now);
    std::iter::from_fn(|| questions.next_due(now)).collect()
}

/// All names of a policy, asked for and answered, to hold for `ttl`.
fn answered(of: &[&str], ttl: Duration, now: Instant) -> Questions {
    let mut questions = Questions::default();
    let asked = due(&mut questions, &names(of).into_iter().collect(), now);
    assert_eq!(asked.len(), 2 * of.len(), "A and AAAA");
    for question in &asked {
        assert_eq!(questions.note(question, Some(ttl), now), Some(false));
    }
    questions
}

/// The end of a look-up, and whoever hears of it.
fn end(questions: &mut Questions, host: &str, ttl: Option<Duration>, now: Instant) {
    questions.note(&question(host), ttl, now).unwrap();
    questions.tell(&[question(host)], now);
}

#[test]
fn a_request_is_answered_when_its_own_questions_are() {
    let start = Instant::now();
    let mut questions = answered(&["slow.test", "orders.test"], 300 * SECOND, start);
    let now = start + 2 * SECOND;
    let (first, mut both) = request(&["slow.test", "orders.test"]);
    assert_eq!(questions.wait_for(first, now), [question("slow.test"), question("orders.test")]);
    let (second, mut one) = request(&["orders.test"]);
    assert_eq!(questions.wait_for(second, now), [], "it is asked already");
    assert_eq!(one.try_recv(), Err(TryRecvError::Empty));

    end(&mut questions, "orders.test", Some(5 * SECOND), now);
    assert_eq!(one.try_recv(), Ok(Vec::new()), "a slow name holds back no other");
    assert_eq!(both.try_recv(), Err(TryRecvError::Empty));
    // While one is slow, the others can be asked for again.
    let later = now + SECOND + SECOND / 2;
    let (third, mut again) = request(&["orders.test"]);
    assert_eq!(questions.wait_for(third, later), [question("orders.test")]);
    end(&mut questions, "orders.test", Some(5 * SECOND), later);
    assert_eq!(again.try_recv(), Ok(Vec::new()));
    end(&mut questions, "slow.test", Some(5 * SECOND), later);
    assert_eq!(both.try_recv(), Ok(Vec::new()));
}

#[test]
fn on_a_miss_a_name_is_asked_for_once_a_second_with_or_without_an_answer() {
    let start = Instant::now();
    let mut questions = answered(&["orders.test"], 300 * SECOND, start);
    for (number, ttl) in (1..).zip([Some(300 * SECOND), None, Some(300 * SECOND)]) {
        let soon = start + number * SECOND - SECOND / 10;
        let (early, mut told) = request(&["orders.test"]);
        assert_eq!(questions.wait_for(early, soon), []);
        assert_eq!(told.try_recv(), Ok(Vec::new()), "at once");
        let (due, mut told) = request(&["orders.test"]);
        let now = start + number * SECOND;
        assert_eq!(questions.wait_for(due, now), [question("orders.test")]);
        end(&mut questions, "orders.test", ttl, now);
        assert_eq!(told.try_recv(), Ok(Vec::new()), "the answer before holds for minutes");
    }
}

#[test]
fn without_a_new_answer_the_old_one_holds_for_its_time_and_no_longer() {
    let start = Instant::now();
    let mut questions = answered(&["orders.test", "other.test"], 10 * SECOND, start);
    for (seconds, unanswered) in [(5, vec![]), (9, vec![]), (10, names(&["orders.test"]))] {
        let now = start + seconds * SECOND;
        let (miss, mut told) = request(&["orders.test", "other.test"]);
        assert_eq!(questions.wait_for(miss, now).len(), 2);
        end(&mut questions, "other.test", Some(10 * SECOND), now);
        end(&mut questions, "orders.test", None, now);
        assert_eq!(told.try_recv().as_ref(), Ok(&unanswered), "after {seconds} s");
    }
    let now = start + 10 * SECOND + SECOND / 2;
    let (soon, mut told) = request(&["orders.test"]);
    assert_eq!(questions.wait_for(soon, now), []);
    assert_eq!(told.try_recv(), Ok(names(&["orders.test"])), "too soon to ask is no answer");
    let now = start + 12 * SECOND;
    let (last, mut told) = request(&["orders.test"]);
    assert_eq!(questions.wait_for(last, now), [question("orders.test")]);
    end(&mut questions, "orders.test", Some(10 * SECOND), now);
    assert_eq!(told.try_recv(), Ok(Vec::new()));
}

#[test]
fn a_name_of_which_nothing_was_ever_heard_is_unanswered() {
    let now = Instant::now();
    let mut questions = Questions::default();
    let (first, mut told) = request(&["orders.test"]);
    assert_eq!(questions.wait_for(first, now), [question("orders.test")]);
    assert_eq!(questions.note(&question("orders.test"), None, now), Some(false));
    assert_eq!(told.try_recv(), Err(TryRecvError::Empty), "not before all is published");
    questions.tell(&[question("orders.test")], now);
    assert_eq!(told.try_recv(), Ok(names(&["orders.test"])));
    // That the other family was answered says nothing of this one.
    let other = Question { family: RecordType::AAAA, ..question("orders.test") };
    assert_eq!(questions.note(&other, Some(SECOND), now), None, "never asked");
    assert_eq!(questions.note(&question("orders.test"), None, now), Some(true), "once more");
}

#[test]
fn a_request_for_no_name_is_answered_at_once() {
    let (none, mut told) = request(&[]);
    assert_eq!(Questions::default().wait_for(none, Instant::now()), []);
    assert_eq!(told.try_recv(), Ok(Vec::new()));
}

#[test]
fn names_are_asked_for_when_their_time_is_over() {
    let start = Instant::now();
    let hosts: HashSet<_> = names(&["orders.test"]).into_iter().collect();
    let mut questions = answered(&["orders.test"], 10 * SECOND, start);
    assert_eq!(due(&mut questions, &hosts, start + 9 * SECOND), []);
    assert_eq!(due(&mut questions, &hosts, start + 10 * SECOND).len(), 2);
    assert_eq!(due(&mut questions, &hosts, start + 11 * SECOND), [], "both are asked");
    let other = Question { family: RecordType::AAAA, ..question("orders.test") };
    questions.note(&other, Some(300 * SECOND), start + 12 * SECOND).unwrap();
    end(&mut questions, "orders.test", None, start + 12 * SECOND);
    let again = start + 12 * SECOND + RETRY;
    assert_eq!(due(&mut questions, &hosts, again - SECOND / 10), []);
    assert_eq!(due(&mut questions, &hosts, again), [question("orders.test")]);
}

#[test]
fn what_is_due_queues_up_once_and_a_miss_passes_it() {
    let start = Instant::now();
    let hosts: HashSet<_> = names(&["orders.test"]).into_iter().collect();
    let mut questions = answered(&["orders.test"], 10 * SECOND, start);
    let now = start + 10 * SECOND;
    questions.follow(&hosts, now);
    questions.follow(&hosts, now + SECOND);
    assert_eq!(questions.queue.len(), 2, "A and AAAA");
    let (miss, mut told) = request(&["orders.test"]);
    assert_eq!(questions.wait_for(miss, now), [question("orders.test")]);
    let other = Question { family: RecordType::AAAA, ..question("orders.test") };
    assert_eq!(questions.next_due(now), Some(other.clone()));
    assert_eq!(questions.next_due(now), None, "the other is asked already");
    // It queued up again before the answer came, and is not due any more.
    end(&mut questions, "orders.test", Some(10 * SECOND), now);
    assert_eq!(told.try_recv(), Ok(Vec::new()));
    questions.follow(&hosts, now + 10 * SECOND);
    let (miss, _told) = request(&["orders.test"]);
    assert_eq!(questions.wait_for(miss, now + 10 * SECOND), [question("orders.test")]);
    end(&mut questions, "orders.test", Some(10 * SECOND), now + 11 * SECOND);
    assert_eq!(questions.next_due(now + 11 * SECOND), None);
    // A name that has left the policy loses its place.
    questions.note(&other, Some(SECOND), now).unwrap();
    questions.follow(&hosts, now + 30 * SECOND);
    questions.follow(&HashSet::new(), now + 30 * SECOND);
    assert_eq!(questions.next_due(now + 30 * SECOND), None);
}

#[test]
fn a_name_that_leaves_the_policy_is_forgotten_and_nobody_waits_for_it() {
    let start = Instant::now();
    let mut questions = answered(&["orders.test"], 10 * SECOND, start);
    let now = start + 2 * SECOND;
    let (miss, mut told) = request(&["orders.test"]);
    let (gone, wait) = request(&["orders.test"]);
    assert_eq!(questions.wait_for(miss, now).len(), 1);
    assert_eq!(questions.wait_for(gone, now), []);
    drop(wait);
    assert_eq!(due(&mut questions, &HashSet::new(), now), []);
    assert_eq!(questions.waiting.len(), 1, "whoever waits no more is forgotten");
    assert!(questions.states.is_empty());
    assert_eq!(questions.note(&question("orders.test"), Some(SECOND), now), None);
    questions.tell(&[question("orders.test")], now);
    assert_eq!(told.try_recv(), Ok(names(&["orders.test"])), "nothing is known of it");
}

#[test]
fn a_request_is_answered_in_time_by_what_is_known() {
    let start = Instant::now();
    let mut questions = answered(&["holds.test", "over.test", "none.test"], 10 * SECOND, start);
    questions.note(&question("over.test"), Some(3 * SECOND), start).unwrap();
    let now = start + 2 * SECOND;
    let (first, mut told) = request(&["holds.test", "over.test", "none.test", "new.test"]);
    assert_eq!(questions.wait_for(first, now).len(), 4);
    let (second, mut later) = request(&["new.test"]);
    assert_eq!(questions.wait_for(second, now + SECOND), []);
    end(&mut questions, "none.test", Some(10 * SECOND), now);
    assert_eq!(questions.next_limit(), Some(now + MISS_LIMIT));
    questions.give_up(now + MISS_LIMIT - Duration::from_millis(1));
    assert_eq!(told.try_recv(), Err(TryRecvError::Empty));
    questions.give_up(now + MISS_LIMIT);
    let mut unanswered = told.try_recv().unwrap();
    unanswered.sort();
    assert_eq!(unanswered, names(&["new.test", "over.test"]));
    // Who has come later waits on, and hears of the answer.
    assert_eq!(later.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(questions.next_limit(), Some(now + SECOND + MISS_LIMIT));
    end(&mut questions, "new.test", Some(10 * SECOND), now + MISS_LIMIT);
    assert_eq!(later.try_recv(), Ok(Vec::new()));
    assert_eq!(questions.next_limit(), None);
}

#[test]
fn a_name_of_which_nothing_is_heard_is_late_once_and_asked_all_the_same() {
    let start = Instant::now();
    let hosts: HashSet<_> = names(&["orders.test"]).into_iter().collect();
    let mut questions = Questions::default();
    questions.follow(&hosts, start);
    let other = Question { family: RecordType::AAAA, ..question("orders.test") };
    assert!(questions.next_due(start).is_some() && questions.next_due(start).is_some());
    questions.note(&other, Some(SECOND), start).unwrap();
    assert_eq!(questions.late(start + FIRST_LIMIT - Duration::from_millis(1)), []);
    assert_eq!(questions.late(start + FIRST_LIMIT), [question("orders.test")]);
    assert_eq!(questions.late(start + 10 * FIRST_LIMIT), [], "once");
    assert_eq!(questions.note(&question("orders.test"), Some(SECOND), start), Some(false));
    // What has no answer is told as that.
    let mut questions = Questions::default();
    assert_eq!(due(&mut questions, &hosts, start).len(), 2);
    end(&mut questions, "orders.test", None, start);
    assert_eq!(questions.late(start + FIRST_LIMIT), [other]);
}
