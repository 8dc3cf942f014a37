//! The resolver with a nameserver of the tests' own, which answers for some names and is silent for
//! the rest.

use std::net::Ipv4Addr;

use hickory_resolver::config::ResolverOpts;
use tokio::sync::oneshot;

use crate::live::testing::resolving;
use crate::worker::Command;

use super::stub::{Answer, Answers, Heard, nameserver};
use super::*;

/// After this, a name may be asked for again.
const MISS_FLOOR: Duration = Duration::from_millis(1100);

/// A resolver that runs for a policy with these names, and what it tells the workers.
async fn running(
    answers: &Answers,
    hosts: &str,
) -> (Arc<Shared>, mpsc::UnboundedReceiver<Command>) {
    running_heard(answers, hosts, mpsc::unbounded_channel().0).await
}

async fn running_heard(
    answers: &Answers,
    hosts: &str,
    heard: Heard,
) -> (Arc<Shared>, mpsc::UnboundedReceiver<Command>) {
    let (mut resolver, shared, told) = ready(hosts);
    let servers = [nameserver(answers, heard).await];
    let nameservers = Nameservers::new(&servers, ResolverOpts::default()).unwrap();
    resolver.nameservers = Arc::new(nameservers);
    tokio::spawn(resolver.run());
    (shared, told)
}

/// A resolver that has asked nothing yet.
fn ready(hosts: &str) -> (Resolver, Arc<Shared>, mpsc::UnboundedReceiver<Command>) {
    let (shared, requests) = resolving(&[]);
    let text = format!(
        "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n\
         trustDomains: [x]\ninbound: {{mtls: strict, defaultAction: deny}}\n\
         outbound: {{defaultAction: passthrough, destinations: [\
         {{name: n, action: deny, hosts: [{hosts}]}}]}}\n"
    );
    let policy = pillion_policy::load("t", &text, None).unwrap_or_else(|e| panic!("{e}")).policy;
    shared.published.policy.store(Some(Arc::new(policy)));
    let (tell, told) = mpsc::unbounded_channel();
    let readiness = Readiness::new(Arc::clone(&shared));
    let resolver = Resolver::new(Arc::clone(&shared), Workers(vec![tell]), readiness, requests);
    (resolver, shared, told)
}

/// Waits for what is published to be so.
async fn until(what: &str, so: impl Fn() -> bool) {
    until_within(Duration::from_secs(10), what, so).await;
}

async fn until_within(time: Duration, what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(time, waiting).await.expect(what);
}

fn has(shared: &Shared, name: &str, ip: &str) -> bool {
    shared.published.hosts.load().0.get(name).is_some_and(|host| host.has(ip.parse().unwrap()))
}

#[tokio::test]
async fn a_slow_name_holds_back_no_other() {
    let answers = Answers::default();
    answers.lock().await.insert("fast.test", Answer::records(300, &[Ipv4Addr::new(10, 0, 0, 1)]));
    let (shared, _told) = running(&answers, "fast.test, slow.test").await;
    let unanswered = || {
        let hosts = shared.published.hosts.load();
        hosts.0.get("slow.test").is_some_and(|host| host.a == Known::Unanswered)
    };
    until("the silence", unanswered).await;
    assert!(has(&shared, "fast.test", "10.0.0.1"));
    answers.lock().await.insert("fast.test", Answer::records(300, &[Ipv4Addr::new(10, 0, 0, 2)]));
    tokio::time::sleep(MISS_FLOOR).await;
    let ip = "10.0.0.2".parse().unwrap();
    let slow = shared.look_up(vec![Arc::from("slow.test")], ip);
    tokio::pin!(slow);
    tokio::select! {
        biased;
        _ = &mut slow => panic!("2 s of silence were shorter than an answer"),
        fast = shared.look_up(vec![Arc::from("fast.test")], ip) => assert_eq!(fast, []),
    }
    assert!(has(&shared, "fast.test", "10.0.0.2"));
    assert_eq!(slow.await, [Arc::from("slow.test")]);
}

#[tokio::test]
async fn whoever_has_no_address_is_counted_and_every_first_end_is_judged() {
    let answers = Answers::default();
    answers.lock().await.insert("none.test", Answer::records(300, &[]));
    answers.lock().await.insert("some.test", Answer::records(300, &[Ipv4Addr::new(10, 0, 0, 1)]));
    let (shared, mut told) = running(&answers, "none.test, some.test, silent.test").await;
    let without = &shared.metrics.hosts_without_address;
    until("the answers", || without.get() == 1 && has(&shared, "some.test", "10.0.0.1")).await;
    // By then it is silence, and no answer under way.
    until("the silence", || without.get() == 2).await;
    let known = shared.published.hosts.load().0.get("silent.test").cloned();
    assert_eq!(known, Some(Host { a: Known::Unanswered, aaaa: Known::Unanswered }));
    let mut judged = 0;
    while let Ok(Command::Rejudge) = told.try_recv() {
        judged += 1;
    }
    assert!(judged >= 2, "after the answers, and after the silence: {judged}");
    // A policy without names leaves none to be counted.
    let (done, _wait) = oneshot::channel();
    let names = [Arc::from("silent.test")].into();
    shared.resolve.send(ResolveRequest { names, ipv6: false, done }).await.unwrap();
    shared.published.policy.store(Some(Arc::new(without_names())));
    until("the new policy", || without.get() == 0).await;
    assert!(shared.published.hosts.load().0.is_empty());
}

fn without_names() -> pillion_policy::Policy {
    let text = "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {name: t}\n\
                trustDomains: [x]\ninbound: {mtls: strict, defaultAction: deny}\n\
                outbound: {defaultAction: passthrough}\n";
    pillion_policy::load("t", text, None).unwrap_or_else(|e| panic!("{e}")).policy
}

/// Names that the nameserver is silent for, and who hears what it is asked.
async fn running_silent(
    number: usize,
    answers: &Answers,
    other: &str,
) -> (Arc<Shared>, mpsc::UnboundedReceiver<(Instant, String)>) {
    let names: String = (0..number).map(|number| format!("silent{number}.test, ")).collect();
    let (heard, hears) = mpsc::unbounded_channel();
    let (shared, _told) = running_heard(answers, &format!("{names}{other}"), heard).await;
    (shared, hears)
}

/// A policy of many names would otherwise take as many descriptors at its start.
#[tokio::test]
async fn so_many_names_are_asked_for_at_a_time_and_no_more() {
    let start = Instant::now();
    let (_shared, mut hears) = running_silent(199, &Answers::default(), "silent.test").await;
    let mut asked = HashSet::new();
    // Those after the first have their turn when these have been silent for longer than this.
    let until = start + Duration::from_millis(1500);
    while let Ok(Some((at, question))) = tokio::time::timeout_at(until.into(), hears.recv()).await {
        if at < until {
            asked.insert(question);
        }
    }
    assert!((1..=MOST_AT_A_TIME).contains(&asked.len()), "{} questions", asked.len());
}

#[tokio::test]
async fn a_name_has_its_turn_though_many_others_are_unanswered() {
    let answers = Answers::default();
    answers.lock().await.insert("some.test", Answer::records(0, &[Ipv4Addr::new(10, 0, 0, 1)]));
    let (shared, mut hears) = running_silent(150, &answers, "some.test").await;
    // Until then it may be any address's, and what the default denies lives on: not for that long.
    until_within(Duration::from_secs(8), "that nothing is pending", || {
        let hosts = shared.published.hosts.load();
        hosts.0.len() == 151 && hosts.0.values().all(|host| host.a != Known::Pending)
    })
    .await;
    until_within(Duration::from_secs(20), "the answer", || has(&shared, "some.test", "10.0.0.1"))
        .await;
    // All others are due again: more than have room. Who waits for an answer has one all the same.
    while hears.try_recv().is_ok() {}
    for _ in 0..MOST_AT_A_TIME {
        hears.recv().await.unwrap();
    }
    let ip = "10.0.0.2".parse().unwrap();
    assert_eq!(shared.look_up(vec![Arc::from("some.test")], ip).await, []);
}

/// More than can be asked at a time, so some wait for longer than a connection does.
#[tokio::test]
async fn an_answer_that_still_holds_is_not_lost_behind_many_misses() {
    let answers = Answers::default();
    answers.lock().await.insert("some.test", Answer::records(300, &[Ipv4Addr::new(10, 0, 0, 1)]));
    let (shared, _hears) = running_silent(2 * MOST_AT_A_TIME, &answers, "some.test").await;
    until_within(Duration::from_secs(20), "the answer", || has(&shared, "some.test", "10.0.0.1"))
        .await;
    answers.lock().await.clear();
    // No room is left for the last of these.
    let silent = (0..2 * MOST_AT_A_TIME).map(|number| Arc::from(format!("silent{number}.test")));
    let names = silent.chain([Arc::from("some.test")]).collect();
    let start = Instant::now();
    let unanswered = shared.look_up(names, "10.0.0.2".parse().unwrap()).await;
    let unanswered: HashSet<_> = unanswered.iter().map(|name| &**name).collect();
    assert_eq!(unanswered.len(), 2 * MOST_AT_A_TIME, "after {:?}", start.elapsed());
    assert!(!unanswered.contains("some.test"));
}

#[tokio::test]
async fn a_question_whose_look_up_panics_has_no_answer_and_is_asked_again() {
    let (mut resolver, shared, mut told) = ready("orders.test");
    let hosts = HashSet::from([Arc::from("orders.test")]);
    let start = Instant::now();
    resolver.questions.follow(&hosts, start);
    while let Some(question) = resolver.questions.next_due(start) {
        resolver.ask(question, async { panic!("as a bug in a parser would") });
    }
    while let Some(ended) = resolver.looking.join_next_with_id().await {
        resolver.ended(ended);
    }
    let known = shared.published.hosts.load().0.get("orders.test").cloned();
    assert_eq!(known, Some(Host { a: Known::Unanswered, aaaa: Known::Unanswered }));
    assert!(matches!(told.try_recv(), Ok(Command::Rejudge)));
    assert!(resolver.asked.is_empty());
    resolver.questions.follow(&hosts, start + Duration::from_secs(10));
    assert!(resolver.questions.next_due(start + Duration::from_secs(10)).is_some());
}
