//! An app that has gRPC's health service, written out from its proto file; the tests share no code
//! with what they test.

use std::net::TcpListener;
use std::thread::JoinHandle;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::oneshot;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::Failure;

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

/// The service: the server as a whole and `well` are serving, `ill` is not, of no other is
/// anything known. It ends when it is dropped.
#[derive(Debug)]
pub struct HealthService {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HealthService {
    /// Serves on a listener; `implemented`: else the server has no such service.
    ///
    /// # Errors
    /// The runtime can't be made.
    pub fn start(listener: TcpListener, implemented: bool) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, implemented) => {}
                    _ = ended => {}
                }
            });
        });
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for HealthService {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            println!("the health service has panicked");
        }
    }
}

async fn serve(listener: tokio::net::TcpListener, implemented: bool) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let service = service_fn(move |request: hyper::Request<Incoming>| async move {
            let mut grpc =
                Grpc::new(ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default());
            let known = implemented && request.uri().path() == "/grpc.health.v1.Health/Check";
            Ok::<_, std::convert::Infallible>(grpc.unary(Check { known }, request).await)
        });
        tokio::spawn(
            http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

/// One call of Check.
struct Check {
    known: bool,
}

impl UnaryService<HealthCheckRequest> for Check {
    type Response = HealthCheckResponse;
    type Future = std::future::Ready<Result<Response<HealthCheckResponse>, Status>>;

    fn call(&mut self, request: Request<HealthCheckRequest>) -> Self::Future {
        let status = match request.get_ref().service.as_str() {
            _ if !self.known => Err(Status::unimplemented("a secret of the app's")),
            "" | "well" => Ok(1),
            "ill" => Ok(2),
            _ => Err(Status::not_found("a secret of the app's")),
        };
        std::future::ready(status.map(|status| Response::new(HealthCheckResponse { status })))
    }
}
