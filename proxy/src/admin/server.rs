//! Serves HTTP/1.1 with a bound on time and on connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use super::{Role, Source, answer};
use crate::net::Acceptor;

/// A client has so long for its requests and our answers together.
const DEADLINE: Duration = Duration::from_secs(5);

/// Clients served at once; more wait in the kernel's queue.
const MAX_CLIENTS: usize = 32;

/// Serves for ever.
pub async fn serve(role: Role, source: Arc<dyn Source>, listener: std::net::TcpListener) {
    let addr: Option<SocketAddr> = listener.local_addr().ok();
    let mut acceptor = match Acceptor::new(listener) {
        Ok(acceptor) => acceptor,
        Err(e) => return tracing::error!(?role, ?addr, error = %e, "a listener can't be watched"),
    };
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, _) = acceptor.accept(|_| {}).await;
        let source = Arc::clone(&source);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let source = Arc::clone(&source);
                async move { Ok::<_, Infallible>(answer(role, &source, &request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(DEADLINE)
                .serve_connection(TokioIo::new(stream), service);
            // A client that breaks off or runs out of time is its own affair.
            let _ = tokio::time::timeout(DEADLINE, connection).await;
            drop(place);
        });
    }
}
