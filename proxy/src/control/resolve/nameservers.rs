//! One question to the nameservers of resolv.conf.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RData;

use super::questions::Question;

/// A name is not asked for more often than this because its TTL says so.
const TTL_FLOOR: Duration = Duration::from_secs(5);
/// A name whose TTL is longer is asked for again all the same.
const TTL_CEILING: Duration = Duration::from_secs(300);
/// One question and all its repetitions together.
pub(super) const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// A question is sent so often, to one nameserver after the other and then to the first again.
const TRIES: usize = 3;
const TRY_TIMEOUT: Duration = Duration::from_millis(600);
/// No more than so many nameservers are asked, as by the C library (MAXNS in resolv.conf(5)).
const MOST_NAMESERVERS: usize = 3;

/// An answer.
#[derive(Debug)]
pub(super) struct Found {
    /// None of them IPv4-mapped: connections to such a one are to the IPv4 address.
    pub(super) addresses: HashSet<IpAddr>,
    /// For how long they hold: 5 s to 300 s, whatever the records say.
    pub(super) ttl: Duration,
}

impl Found {
    fn new(answer: &Lookup) -> Self {
        let ttl = answer.valid_until().saturating_duration_since(Instant::now());
        let addresses = answer.answers().iter().filter_map(|record| address(&record.data));
        Self { addresses: addresses.collect(), ttl: ttl.clamp(TTL_FLOOR, TTL_CEILING) }
    }

    /// That there are none is an answer too.
    fn none() -> Self {
        Self { addresses: HashSet::new(), ttl: TTL_FLOOR }
    }
}

/// Whether an error is an answer: no such name, or no record of this kind.
fn says_that_there_is_none(error: &NetError) -> bool {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
        }
        _ => false,
    }
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0).to_canonical()),
        _ => None,
    }
}

/// Nameservers, each asked when those before it have no answer, as the C library does it
/// (resolv.conf(5)): what another than the app's own would say is not what the app connects to.
/// By default they know no name.
#[derive(Debug, Default)]
pub(super) struct Nameservers(Vec<TokioResolver>);

impl Nameservers {
    /// The nameservers of resolv.conf, and all addresses that are listed there.
    pub(super) fn of_system() -> Result<(Self, HashSet<IpAddr>), NetError> {
        let (config, options) = hickory_resolver::system_conf::read_system_conf()?;
        let addresses = config.name_servers().iter().map(|s| s.ip.to_canonical()).collect();
        Ok((Self::new(config.name_servers(), options)?, addresses))
    }

    /// The first of these.
    pub(super) fn new(
        servers: &[NameServerConfig],
        mut options: ResolverOpts,
    ) -> Result<Self, NetError> {
        // A miss wants to hear what the nameserver says now; TTLs are kept here.
        options.cache_size = 0;
        // Who is asked next is decided here: it would ask several at once, and take whatever any
        // of them says first.
        options.timeout = TRY_TIMEOUT;
        options.attempts = 0;
        let resolver = |server: &NameServerConfig| {
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server.clone()]);
            TokioResolver::builder_with_config(config, Default::default())
                .with_options(options.clone())
                .build()
        };
        servers.iter().take(MOST_NAMESERVERS).map(resolver).collect::<Result<_, _>>().map(Self)
    }

    /// The answer to a question; or why there is none, within [`LOOK_UP_TIMEOUT`].
    pub(super) async fn look_up(&self, question: &Question) -> Result<Found, String> {
        let asking = tokio::time::timeout(LOOK_UP_TIMEOUT, self.ask(question));
        asking.await.unwrap_or_else(|_| Err(format!("no answer within {LOOK_UP_TIMEOUT:?}")))
    }

    async fn ask(&self, question: &Question) -> Result<Found, String> {
        // With its final dot a name is taken as it is: search domains are for people.
        let name = format!("{}.", question.host);
        let (mut first_without, mut why) = (usize::MAX, "there is no nameserver".to_owned());
        for (number, server) in self.0.iter().enumerate().cycle().take(TRIES) {
            match server.lookup(name.as_str(), question.family).await {
                Ok(answer) => return Ok(Found::new(&answer)),
                // One that is there for other names says so of ours, too: that would take the
                // addresses away because the one that knows them is silent.
                Err(e) if e.is_nx_domain() && first_without < number => {}
                Err(e) if says_that_there_is_none(&e) => return Ok(Found::none()),
                Err(e) => {
                    first_without = first_without.min(number);
                    why = e.to_string();
                }
            }
        }
        Err(why)
    }
}

#[cfg(test)]
mod tests;
