//! Serves HTTP/1.1 with a bound on time and on connections.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::AbortHandle;

use super::{Role, Source, answer};
use crate::net::Acceptor;

/// A client has so long for its requests and our answers together.
const DEADLINE: Duration = Duration::from_secs(5);

/// Clients served at once, a listener. One more ends the oldest: idle clients must
/// not keep the kubelet's probe waiting.
const MAX_CLIENTS: usize = 32;

/// Serves for ever.
pub async fn serve(role: Role, source: Arc<dyn Source>, listener: std::net::TcpListener) {
    let addr: Option<SocketAddr> = listener.local_addr().ok();
    let mut acceptor = match Acceptor::new(listener) {
        Ok(acceptor) => acceptor,
        Err(e) => return tracing::error!(?role, ?addr, error = %e, "a listener can't be watched"),
    };
    let mut clients = VecDeque::new();
    loop {
        let (stream, _) = acceptor.accept(|_| {}).await;
        clients.retain(|client: &AbortHandle| !client.is_finished());
        if clients.len() >= MAX_CLIENTS
            && let Some(oldest) = clients.pop_front()
        {
            oldest.abort();
        }
        let source = Arc::clone(&source);
        let client = tokio::spawn(async move {
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
        });
        clients.push_back(client.abort_handle());
    }
}
