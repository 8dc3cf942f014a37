//! A gRPC probe: `grpc.health.v1.Health/Check`, in plaintext, as the kubelet calls it.

use std::net::SocketAddr;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::Uri;
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::{BoxFuture, Service};
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::{App, Failing, USER_AGENT};

const METHOD: &str = "/grpc.health.v1.Health/Check";

/// `SERVING` of the protocol's `ServingStatus`.
const SERVING: i32 = 1;

/// An answer is one number.
const MAX_ANSWER_BYTES: usize = 4 * 1024;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks for the health of `service`. The caller keeps the deadline.
pub(super) async fn check(app: &App<'_>, port: u16, service: &str) -> Result<(), Failing> {
    let leg = app.dial(port).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(leg))
        .await
        .map_err(|e| Failing::NoGrpc(e.to_string()))?;
    let origin = Uri::builder()
        .scheme("http")
        .authority(SocketAddr::new(app.at.ip(), port).to_string())
        .path_and_query("/")
        .build()
        .map_err(|e| Failing::NoGrpc(e.to_string()))?;
    let call = call(sender, origin, service);
    let (mut call, mut connection) = (std::pin::pin!(call), Box::pin(connection));
    tokio::select! {
        done = &mut call => done,
        ended = &mut connection => {
            // What has arrived by then can still be read, and nothing more is waited for.
            drop(connection);
            // What broke the connection says more than that it is broken.
            call.await.map_err(|why| match (why, ended) {
                (Failing::NoGrpc(_), Err(cause)) => Failing::NoGrpc(cause.to_string()),
                (why, _) => why,
            })
        }
    }
}

async fn call(sender: SendRequest<Body>, origin: Uri, service: &str) -> Result<(), Failing> {
    let mut client =
        Grpc::with_origin(Sender(sender), origin).max_decoding_message_size(MAX_ANSWER_BYTES);
    client.ready().await.map_err(|e| Failing::NoGrpc(e.to_string()))?;
    let mut request = Request::new(HealthCheckRequest { service: service.to_owned() });
    if let Ok(agent) = MetadataValue::try_from(USER_AGENT.as_bytes()) {
        request.metadata_mut().insert("user-agent", agent);
    }
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client.unary(request, PathAndQuery::from_static(METHOD), codec).await;
    match answer.map_err(failing)?.into_inner().status {
        SERVING => Ok(()),
        other => Err(Failing::NotServing(other)),
    }
}

/// An error of the transport has a cause; without one, the app itself has said so.
fn failing(status: Status) -> Failing {
    match std::error::Error::source(&status) {
        Some(cause) => Failing::NoGrpc(cause.to_string()),
        None => Failing::Grpc(status.code()),
    }
}

/// One HTTP/2 connection as the service that tonic's client calls.
struct Sender(SendRequest<Body>);

impl Service<hyper::Request<Body>> for Sender {
    type Response = hyper::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
