//! Serves HTTP/1.1 with a bound on time and on connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::clients::Clients;
use super::{Role, Source, answer};
use crate::net::{Acceptor, canonical};

/// A client has so long for its requests and our answers together.
const DEADLINE: Duration = Duration::from_secs(5);

/// Serves for ever.
pub async fn serve(role: Role, source: Arc<dyn Source>, listener: std::net::TcpListener) {
    let addr: Option<SocketAddr> = listener.local_addr().ok();
    let mut acceptor = match Acceptor::new(listener) {
        Ok(acceptor) => acceptor,
        Err(e) => return tracing::error!(?role, ?addr, error = %e, "a listener can't be watched"),
    };
    // An answer of the app's may take its time.
    let waiting = if role == Role::Health { source.longest_probe() } else { Duration::ZERO };
    let mut clients = Clients::default();
    loop {
        let (stream, from) = acceptor.accept(|_| {}).await;
        let source = Arc::clone(&source);
        let client = tokio::spawn(async move {
            // A client that breaks off or runs out of time is its own affair.
            let _ = tokio::time::timeout(DEADLINE + waiting, one(role, source, stream)).await;
        });
        let ended = clients.take_in(from.0.ip(), client.abort_handle(), AbortHandle::is_finished);
        if let Some(ended) = ended {
            ended.abort();
        }
    }
}

/// Serves one client until it has gone.
async fn one(role: Role, source: Arc<dyn Source>, stream: TcpStream) {
    let Ok(at) = stream.local_addr().map(canonical) else { return };
    let service = service_fn(|request| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(answer(role, &source, &request, at).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    let _ = connection.await;
}
