//! Serves HTTP/1.1 with a bound on time and on connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::clients::{Clients, Doing};
use super::{Role, Source, answer};
use crate::net::{Acceptor, canonical};

/// A client has so long for its requests and our answers together.
const DEADLINE: Duration = Duration::from_secs(5);

/// A client that is served.
struct Client {
    task: AbortHandle,
    /// Whether it waits for an answer.
    waits: Arc<AtomicBool>,
}

impl Client {
    fn doing(&self) -> Doing {
        match (self.task.is_finished(), self.waits.load(Ordering::Relaxed)) {
            (true, _) => Doing::Gone,
            (false, true) => Doing::Waiting,
            (false, false) => Doing::Idle,
        }
    }
}

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
        let (source, waits) = (Arc::clone(&source), Arc::new(AtomicBool::new(false)));
        let serving = one(role, source, stream, Arc::clone(&waits));
        let task = tokio::spawn(async move {
            // A client that breaks off or runs out of time is its own affair.
            let _ = tokio::time::timeout(DEADLINE + waiting, serving).await;
        });
        let client = Client { task: task.abort_handle(), waits };
        if let Some(ended) = clients.take_in(from.0.ip(), client, Client::doing) {
            ended.task.abort();
        }
        // Whoever has spoken already is known to wait before the next one comes.
        tokio::task::yield_now().await;
    }
}

/// Serves one client until it has gone.
async fn one(role: Role, source: Arc<dyn Source>, stream: TcpStream, waits: Arc<AtomicBool>) {
    let Ok(at) = stream.local_addr().map(canonical) else { return };
    let service = service_fn(|request| {
        let (source, waits) = (Arc::clone(&source), Arc::clone(&waits));
        async move {
            waits.store(true, Ordering::Relaxed);
            let answer = answer(role, &source, &request, at).await;
            waits.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    let _ = connection.await;
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use hyper::StatusCode;
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;
    use tokio::sync::Notify;

    use crate::net;

    use super::super::clients::MAX_IDLE;
    use super::super::{Answer, FilterError, StatusLine};
    use super::*;

    /// An app that answers its probes when it is told to.
    struct Slow(Arc<Notify>);

    impl Source for Slow {
        fn probe_app<'a>(&'a self, _: &'a str, _: SocketAddr) -> Answer<'a, Option<StatusLine>> {
            Box::pin(async {
                self.0.notified().await;
                Some((StatusCode::OK, "ok".into()))
            })
        }
        fn longest_probe(&self) -> Duration {
            Duration::from_secs(600)
        }
        fn pending(&self) -> Vec<&'static str> {
            Vec::new()
        }
        fn started(&self) -> bool {
            true
        }
        fn metrics(&self) -> Vec<u8> {
            Vec::new()
        }
        fn config(&self) -> Value {
            Value::Null
        }
        fn connections(&self) -> Answer<'_, Option<Value>> {
            Box::pin(async { None })
        }
        fn certificates(&self) -> Value {
            Value::Null
        }
        fn policy(&self) -> Value {
            Value::Null
        }
        fn log_filter(&self) -> String {
            String::new()
        }
        fn set_log_filter(&self, _: &str) -> Result<(), FilterError> {
            Err(FilterError::Off)
        }
    }

    async fn connect(from: u8, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        let source = IpAddr::from(Ipv4Addr::new(127, 0, 1, from));
        socket.bind((source, 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    /// All of them are in the listener's queue before the first is taken.
    #[tokio::test]
    async fn a_question_is_answered_though_ever_so_many_come_at_once_who_ask_nothing() {
        let listener = net::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let to = listener.local_addr().unwrap();
        let mut kubelet = connect(1, to).await;
        let question = b"GET /app-health/web/livenessProbe HTTP/1.0\r\n\r\n";
        kubelet.write_all(question).await.unwrap();
        let mut others = Vec::new();
        for from in 2..=100 + MAX_IDLE {
            others.push(connect(u8::try_from(from).unwrap(), to).await);
        }
        let app = Arc::new(Notify::new());
        let serving = tokio::spawn(serve(Role::Health, Arc::new(Slow(Arc::clone(&app))), listener));
        // Once the last of them is served, there is no room for this one.
        assert_eq!(others[98].read(&mut [0]).await.unwrap_or(0), 0);
        app.notify_one();
        let mut answer = String::new();
        kubelet.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        serving.abort();
    }
}
