//! Our identity from the SPIFFE Workload API: a stream of answers, each with all that is valid
//! from then on (SPIFFE Workload API §5.2).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pillion_certs::received::Received;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

use crate::config::EndpointSocket;

/// Without it the agent must refuse a call: it keeps a browser that was tricked into one away
/// (SPIFFE Workload Endpoint §6).
const SECURITY_HEADER: (&str, &str) = ("workload.spiffe.io", "true");
const METHOD: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

/// An answer may hold many bundles and lists.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// The agent may be starting still, or restart: tried again, at first soon.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// From dialling to the head of the answer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// An agent that hangs, or whose connection was lost without a word, is noticed by these: on a
/// stream that is silent for days nothing else would (RFC 9113 §6.7).
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, prost::Message)]
struct X509SvidRequest {}

// No Debug: a key is in it.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<X509Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct X509Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

impl fmt::Debug for X509SvidResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509SvidResponse").field("svids", &self.svids).finish_non_exhaustive()
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// How long to wait before it is asked again.
struct Retry(Duration);

impl Retry {
    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(LAST_RETRY);
        now
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self(FIRST_RETRY)
    }
}

/// Follows the agent for ever: sends each answer, and why there is none. An agent that ends the
/// stream or refuses is asked again, after half a second at first, and at last every 30 seconds;
/// soon again only after a stream that has lasted, whose end is no fault until asking again is one.
///
/// `changed` is called after each. It ends when nobody listens any more.
pub(super) async fn follow(
    socket: EndpointSocket,
    answers: mpsc::Sender<Result<Received, String>>,
    changed: Arc<Notify>,
) {
    let mut retry = Retry::default();
    loop {
        let began = Instant::now();
        let opened = tokio::time::timeout(OPEN_TIMEOUT, open(&socket)).await;
        let why = match opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Err(status) => status,
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(answer)) => {
                        if answers.send(received(answer)).await.is_err() {
                            return;
                        }
                        changed.notify_one();
                    }
                    Ok(None) => break Status::unavailable("the agent has ended the stream"),
                    Err(status) => break status,
                }
            },
        };
        let why = format!("{socket}: {}: {}", why.code(), said(&why));
        if began.elapsed() > LAST_RETRY {
            retry = Retry::default();
            tracing::info!(why, "the Workload API's stream has ended; asking again");
        } else {
            if answers.send(Err(why)).await.is_err() {
                return;
            }
            changed.notify_one();
        }
        tokio::time::sleep(retry.next()).await;
    }
}

/// The whole of what went wrong: the transport says only that it did.
fn said(status: &Status) -> String {
    let mut words = status.message().escape_debug().to_string();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

async fn open(socket: &EndpointSocket) -> Result<Streaming<X509SvidResponse>, Status> {
    let failed = |e: tonic::transport::Error| Status::from_error(Box::new(e));
    let endpoint = Endpoint::from_shared(socket.uri()).map_err(failed)?;
    let endpoint = endpoint
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(failed)?;
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    client.ready().await.map_err(failed)?;
    let mut request = Request::new(X509SvidRequest {});
    let (name, value) = SECURITY_HEADER;
    request.metadata_mut().insert(name, MetadataValue::from_static(value));
    let codec = ProstCodec::<X509SvidRequest, X509SvidResponse>::default();
    let answer = client.server_streaming(request, PathAndQuery::from_static(METHOD), codec).await?;
    Ok(answer.into_inner())
}

/// The first of the answer's identities is the workload's default (§5.2.1).
fn received(answer: X509SvidResponse) -> Result<Received, String> {
    let X509SvidResponse { svids, crl, federated_bundles } = answer;
    // The keys of the others are wiped as well.
    let mut svids = svids.into_iter().map(|svid| {
        let key = Zeroizing::new(svid.x509_svid_key);
        (svid.spiffe_id, svid.x509_svid, key, svid.bundle)
    });
    let (id, svid, key, bundle) = svids.next().ok_or("an answer without an X.509-SVID")?;
    svids.for_each(drop);
    Ok(Received {
        id,
        svid,
        key,
        bundle,
        federated: federated_bundles.into_iter().collect(),
        lists: crl,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_asked_again_soon_and_then_every_30_seconds() {
        let mut retry = Retry::default();
        let waits: Vec<_> = (0..9).map(|_| retry.next().as_secs_f32()).collect();
        assert_eq!(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
    }
}
