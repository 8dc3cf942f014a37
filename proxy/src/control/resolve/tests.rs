//! The resolver with a nameserver of the tests' own, which answers for some names and is silent for
//! the rest.

use std::net::Ipv4Addr;

use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::{RData, Record};
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, oneshot};

use crate::live::testing::resolving;
use crate::worker::Command;

use super::*;

/// What the nameserver says of each name, without a final dot, and for how many seconds that holds;
/// an empty list is an answer, too.
type Answers = Arc<Mutex<HashMap<&'static str, (u32, Vec<Ipv4Addr>)>>>;

/// After this, a name may be asked for again.
const MISS_FLOOR: Duration = Duration::from_millis(1100);

/// Each question that the nameserver has got, and when.
type Heard = mpsc::UnboundedSender<(Instant, String)>;

async fn nameserver(answers: Answers, heard: Heard) -> TokioResolver {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
            let mut message = Message::from_vec(&datagram[..length]).unwrap();
            let question = message.queries[0].clone();
            let name = question.name().to_string();
            // Most tests don't listen.
            let _ = heard.send((Instant::now(), format!("{name} {}", question.query_type())));
            let known = answers.lock().await.get(name.trim_end_matches('.')).cloned();
            let Some((ttl, addresses)) = known else { continue };
            message = message.into_response();
            if question.query_type() == RecordType::A {
                let record = |ip: &Ipv4Addr| {
                    Record::from_rdata(question.name().clone(), ttl, RData::A((*ip).into()))
                };
                message.add_answers(addresses.iter().map(record));
            }
            socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
        }
    });
    let mut config = NameServerConfig::udp(at.ip());
    config.connections[0].port = at.port();
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![config]);
    let mut options = ResolverOpts::default();
    options.cache_size = 0;
    let builder = TokioResolver::builder_with_config(config, Default::default());
    builder.with_options(options).build().unwrap()
}

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
    let mut resolver = Resolver::new(Arc::clone(&shared), Workers(vec![tell]), readiness, requests);
    resolver.resolver = Some(nameserver(Arc::clone(answers), heard).await);
    tokio::spawn(resolver.run());
    (shared, told)
}

/// Waits for what is published to be so.
async fn until(what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect(what);
}

fn has(shared: &Shared, name: &str, ip: &str) -> bool {
    shared.published.hosts.load().0.get(name).is_some_and(|host| host.has(ip.parse().unwrap()))
}

#[tokio::test]
async fn an_answer_holds_for_5_to_300_seconds_whatever_it_says() {
    let answers = Answers::default();
    let resolver = nameserver(Arc::clone(&answers), mpsc::unbounded_channel().0).await;
    let address = vec![Ipv4Addr::new(10, 0, 0, 1)];
    for (says, addresses, holds) in [
        (0, &address, 5..=5),
        (4, &address, 5..=5),
        // What is left of it when it has come.
        (60, &address, 59..=60),
        (301, &address, 300..=300),
        (86_400, &address, 300..=300),
        // That there is none may be mended soon.
        (300, &Vec::new(), 5..=5),
    ] {
        answers.lock().await.insert("orders.test", (says, addresses.clone()));
        let question = Question { host: Arc::from("orders.test"), family: RecordType::A };
        let room = Arc::new(Semaphore::new(1));
        let (_, found) = look_up(Some(resolver.clone()), question, room).await;
        let found = found.unwrap();
        assert_eq!(found.addresses.len(), addresses.len());
        let seconds = found.ttl.as_secs();
        assert!(holds.contains(&seconds), "{says} s: {:?}", found.ttl);
    }
}

#[tokio::test]
async fn a_slow_name_holds_back_no_other() {
    let answers = Answers::default();
    answers.lock().await.insert("fast.test", (300, vec![Ipv4Addr::new(10, 0, 0, 1)]));
    let (shared, _told) = running(&answers, "fast.test, slow.test").await;
    let unanswered = || {
        let hosts = shared.published.hosts.load();
        hosts.0.get("slow.test").is_some_and(|host| host.a == Known::Unanswered)
    };
    until("the silence", unanswered).await;
    assert!(has(&shared, "fast.test", "10.0.0.1"));
    answers.lock().await.insert("fast.test", (300, vec![Ipv4Addr::new(10, 0, 0, 2)]));
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
    answers.lock().await.insert("none.test", (300, Vec::new()));
    answers.lock().await.insert("some.test", (300, vec![Ipv4Addr::new(10, 0, 0, 1)]));
    let (shared, mut told) = running(&answers, "none.test, some.test, silent.test").await;
    let without = &shared.metrics.hosts_without_address;
    until("the answers", || without.get() == 1).await;
    assert!(has(&shared, "some.test", "10.0.0.1"));
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

/// A policy of many names would otherwise take as many descriptors at its start.
#[tokio::test]
async fn so_many_names_are_asked_for_at_a_time_and_no_more() {
    let names: Vec<_> = (0..200).map(|number| format!("silent{number}.test")).collect();
    let (heard, mut hears) = mpsc::unbounded_channel();
    let start = Instant::now();
    let _running = running_heard(&Answers::default(), &names.join(", "), heard).await;
    let mut asked = HashSet::new();
    // Those after the first give their room back when they have been silent for longer than this.
    let until = start + Duration::from_millis(1500);
    while let Ok(Some((at, question))) = tokio::time::timeout_at(until.into(), hears.recv()).await {
        if at < until {
            asked.insert(question);
        }
    }
    assert!((1..=MOST_AT_A_TIME).contains(&asked.len()), "{} questions", asked.len());
}
