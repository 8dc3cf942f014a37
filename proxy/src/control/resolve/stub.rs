//! A nameserver of the tests' own, which answers for some names and is silent for the rest.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::NameServerConfig;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, mpsc};

/// What the nameserver says of each name, which is without a final dot.
pub(super) type Answers = Arc<Mutex<HashMap<&'static str, Answer>>>;

/// Each question that the nameserver has got, and when.
pub(super) type Heard = mpsc::UnboundedSender<(Instant, String)>;

/// What the nameserver says of one name; of its AAAA records, that there are none.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    code: ResponseCode,
    /// Of each record, in seconds.
    ttl: u32,
    addresses: Vec<Ipv4Addr>,
    after: Duration,
}

impl Answer {
    /// The A records; there may be none.
    pub(super) fn records(ttl: u32, addresses: &[Ipv4Addr]) -> Self {
        let addresses = addresses.to_vec();
        Self { code: ResponseCode::NoError, ttl, addresses, after: Duration::ZERO }
    }

    /// No records, and a code that says why.
    pub(super) fn code(code: ResponseCode) -> Self {
        Self { code, ..Self::records(0, &[]) }
    }

    /// The same, later.
    pub(super) fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }

    fn to(&self, question: &Message) -> Message {
        let mut message = question.clone().into_response();
        message.metadata.response_code = self.code;
        let asked = &question.queries[0];
        if asked.query_type() == RecordType::A {
            let record = |ip: &Ipv4Addr| {
                Record::from_rdata(asked.name().clone(), self.ttl, RData::A((*ip).into()))
            };
            message.add_answers(self.addresses.iter().map(record));
        }
        message
    }
}

/// Runs a nameserver, and says where.
pub(super) async fn nameserver(answers: &Answers, heard: Heard) -> NameServerConfig {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let at = socket.local_addr().unwrap();
    let answers = Arc::clone(answers);
    tokio::spawn(async move {
        let mut datagram = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
            let question = Message::from_vec(&datagram[..length]).unwrap();
            let name = question.queries[0].name().to_string();
            // Most tests don't listen.
            let asked = format!("{name} {}", question.queries[0].query_type());
            let _ = heard.send((Instant::now(), asked));
            let known = answers.lock().await.get(name.trim_end_matches('.')).cloned();
            let Some(answer) = known else { continue };
            let socket = Arc::clone(&socket);
            tokio::spawn(async move {
                tokio::time::sleep(answer.after).await;
                socket.send_to(&answer.to(&question).to_vec().unwrap(), from).await.unwrap();
            });
        }
    });
    let mut config = NameServerConfig::udp(at.ip());
    config.connections[0].port = at.port();
    config
}

/// The same, where nobody listens to what it is asked.
pub(super) async fn unheard(answers: &Answers) -> NameServerConfig {
    nameserver(answers, mpsc::unbounded_channel().0).await
}
