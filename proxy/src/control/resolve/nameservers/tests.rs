//! Nameservers of the tests' own, which don't agree.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::proto::rr::rdata::AAAA;
use tokio::sync::mpsc;

use super::super::stub::{Answer, Answers, nameserver, unheard};
use super::*;

const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// So late that any other answer is there before.
const LATE: Duration = Duration::from_millis(200);

fn question() -> Question {
    Question { host: Arc::from("orders.test"), family: RecordType::A }
}

/// What is known of the name when its nameservers say this, in their order; `None` is silence.
async fn found(says: &[Option<Answer>]) -> Result<Vec<IpAddr>, String> {
    let mut servers = Vec::new();
    for answer in says {
        let answers = Answers::default();
        answers.lock().await.extend(answer.clone().map(|answer| ("orders.test", answer)));
        servers.push(unheard(&answers).await);
    }
    let nameservers = Nameservers::new(&servers, ResolverOpts::default()).unwrap();
    let found = nameservers.look_up(&question()).await?;
    Ok(found.addresses.into_iter().collect())
}

fn address_of(ip: Ipv4Addr) -> Result<Vec<IpAddr>, String> {
    Ok(vec![ip.into()])
}

#[test]
fn a_mapped_address_is_the_ipv4_one() {
    let of = |text: &str| address(&RData::AAAA(AAAA(text.parse().unwrap())));
    assert_eq!(of("::ffff:10.0.0.1"), Some("10.0.0.1".parse().unwrap()));
    assert_eq!(of("fd00::1"), Some("fd00::1".parse().unwrap()));
}

#[tokio::test]
async fn an_answer_holds_for_5_to_300_seconds_whatever_it_says() {
    let answers = Answers::default();
    let servers = [unheard(&answers).await];
    let nameservers = Nameservers::new(&servers, ResolverOpts::default()).unwrap();
    for (says, addresses, holds) in [
        (0, &[IP][..], 5..=5),
        (4, &[IP], 5..=5),
        // What is left of it when it has come.
        (60, &[IP], 59..=60),
        (301, &[IP], 300..=300),
        (86_400, &[IP], 300..=300),
        // That there is none may be mended soon.
        (300, &[], 5..=5),
    ] {
        answers.lock().await.insert("orders.test", Answer::records(says, addresses));
        let found = nameservers.look_up(&question()).await.unwrap();
        assert_eq!(found.addresses.len(), addresses.len());
        let seconds = found.ttl.as_secs();
        assert!(holds.contains(&seconds), "{says} s: {:?}", found.ttl);
    }
}

#[tokio::test]
async fn the_first_that_answers_counts_and_not_the_fastest() {
    let here = |ip| Some(Answer::records(60, &[ip]));
    let late = |answer: Answer| Some(answer.after(LATE));
    let no = |code| Some(Answer::code(code));
    let none = Ok(Vec::new());
    for (about, says, is) in [
        (
            "no such name",
            vec![late(Answer::records(60, &[IP])), no(ResponseCode::NXDomain)],
            address_of(IP),
        ),
        (
            "no record",
            vec![late(Answer::records(60, &[IP])), Some(Answer::records(60, &[]))],
            address_of(IP),
        ),
        ("another address", vec![late(Answer::records(60, &[IP])), here(OTHER)], address_of(IP)),
        (
            "refused",
            vec![late(Answer::records(60, &[IP])), no(ResponseCode::Refused)],
            address_of(IP),
        ),
        (
            "none before it",
            vec![late(Answer::code(ResponseCode::NXDomain)), here(OTHER)],
            none.clone(),
        ),
        ("no record before it", vec![late(Answer::records(60, &[])), here(OTHER)], none),
    ] {
        assert_eq!(found(&says).await, is, "{about}");
    }
}

#[tokio::test]
async fn one_that_has_no_answer_is_passed_over() {
    let here = || Some(Answer::records(60, &[IP]));
    let no = |code| Some(Answer::code(code));
    for (about, says, is) in [
        ("silent", vec![None, here()], address_of(IP)),
        ("both silent", vec![None, None, here()], address_of(IP)),
        ("it fails", vec![no(ResponseCode::ServFail), here()], address_of(IP)),
        ("it refuses", vec![no(ResponseCode::Refused), here()], address_of(IP)),
        ("it can't", vec![no(ResponseCode::NotImp), here()], address_of(IP)),
        ("it says what nobody asked", vec![no(ResponseCode::YXRRSet), here()], address_of(IP)),
        ("the name is there", vec![None, Some(Answer::records(60, &[]))], Ok(Vec::new())),
        // No more are asked than by the C library.
        (
            "the fourth",
            vec![
                no(ResponseCode::Refused),
                no(ResponseCode::Refused),
                no(ResponseCode::Refused),
                here(),
            ],
            Err("refused".to_owned()),
        ),
    ] {
        let found = found(&says).await.map_err(|why| why.to_lowercase());
        match is {
            Ok(_) => assert_eq!(found, is, "{about}"),
            Err(word) => assert!(found.as_ref().is_err_and(|why| why.contains(&word)), "{found:?}"),
        }
    }
}

#[tokio::test]
async fn no_such_name_is_no_answer_from_one_that_was_asked_instead_of_another() {
    let no = || Some(Answer::code(ResponseCode::NXDomain));
    let fails = || Some(Answer::code(ResponseCode::ServFail));
    let why = found(&[fails(), no()]).await.unwrap_err();
    assert!(why.to_lowercase().contains("server failure"), "of the first: {why}");
    let why = found(&[None, no()]).await.unwrap_err();
    assert!(why.contains("timed out"), "of the first: {why}");
    // The one after that may know it.
    assert_eq!(found(&[fails(), no(), Some(Answer::records(60, &[IP]))]).await, address_of(IP));
    // It is from the first.
    assert_eq!(found(&[no(), fails()]).await, Ok(Vec::new()));
}

#[tokio::test]
async fn the_first_is_asked_again_when_all_were() {
    let fails = Answers::default();
    fails.lock().await.insert("orders.test", Answer::code(ResponseCode::ServFail));
    let first = Answers::default();
    first.lock().await.extend(fails.lock().await.clone());
    let (heard, mut hears) = mpsc::unbounded_channel();
    let servers = [unheard(&first).await, nameserver(&fails, heard).await];
    let nameservers = Nameservers::new(&servers, ResolverOpts::default()).unwrap();
    let mends = async {
        // The second is asked when the first has failed; "no such name" is the first's own word.
        hears.recv().await.unwrap();
        first.lock().await.insert("orders.test", Answer::code(ResponseCode::NXDomain));
    };
    let question = question();
    let (found, ()) = tokio::join!(nameservers.look_up(&question), mends);
    assert_eq!(found.unwrap().addresses.len(), 0);
}

#[tokio::test]
async fn without_nameservers_no_name_is_known() {
    let why = found(&[]).await.unwrap_err();
    assert!(why.contains("no nameserver"), "{why}");
}
