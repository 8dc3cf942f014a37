//! One question to the nameservers of resolv.conf.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::RData;
use tokio::sync::Semaphore;

use super::questions::Question;

/// A name is not asked for more often than this because its TTL says so.
const TTL_FLOOR: Duration = Duration::from_secs(5);
/// A name whose TTL is longer is asked for again all the same.
const TTL_CEILING: Duration = Duration::from_secs(300);
/// One question and all its repetitions together.
pub(super) const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(600);
/// How many questions are asked at a time: each has a socket, and a policy may have 10,000 names.
pub(super) const MOST_AT_A_TIME: usize = 100;

/// A nameserver's answer.
#[derive(Debug)]
pub(super) struct Found {
    /// None of them IPv4-mapped: connections to such a one are to the IPv4 address.
    pub(super) addresses: HashSet<IpAddr>,
    /// For how long they hold: 5 s to 300 s, whatever the records say.
    pub(super) ttl: Duration,
}

/// Asks one question, once there is room for it. That there is no such name is an answer too.
pub(super) async fn look_up(
    resolver: Option<TokioResolver>,
    question: Question,
    room: Arc<Semaphore>,
) -> (Question, Result<Found, String>) {
    let Some(resolver) = resolver else { return (question, Err("no resolver".to_owned())) };
    let asking = async {
        // It is never closed.
        let _permit = room.acquire().await;
        // With its final dot a name is taken as it is: search domains are for people.
        resolver.lookup(format!("{}.", question.host), question.family).await
    };
    let found = match tokio::time::timeout(LOOK_UP_TIMEOUT, asking).await {
        Ok(Ok(answer)) => {
            let ttl = answer.valid_until().saturating_duration_since(Instant::now());
            let records = answer.answers().iter();
            let addresses = records.filter_map(|record| address(&record.data)).collect();
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

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0).to_canonical()),
        _ => None,
    }
}

/// Asks the nameservers of resolv.conf; and their addresses.
pub(super) fn system_resolver() -> Result<(TokioResolver, HashSet<IpAddr>), NetError> {
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

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::AAAA;

    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_one() {
        let of = |text: &str| address(&RData::AAAA(AAAA(text.parse().unwrap())));
        assert_eq!(of("::ffff:10.0.0.1"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(of("fd00::1"), Some("fd00::1".parse().unwrap()));
    }
}
