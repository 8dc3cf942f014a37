//! The three small HTTP servers: health, metrics and admin.
//!
//! | port | endpoint | answer |
//! |---|---|---|
//! | health | `GET /healthz/startup`, `GET /healthz/ready` | 200, or 503 with what is pending, a line each |
//! | health | `GET /app-health/{container}/{kind}` | what the app answers to that probe |
//! | metrics | `GET /metrics` | Prometheus text |
//! | admin | `GET /config`, `/connections`, `/certs`, `/policy`, `/logging` | JSON |
//! | admin | `PUT /logging?filter=debug` | changes the log filter, when `PILLION_ADMIN_CHANGES=on` |
//!
//! They run on the control thread, so a stuck scraper can't reach a worker, and a
//! client has five seconds for everything, beside the time that a probe of the app may take.

mod clients;
mod server;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::config::APP_PROBE_PREFIX;

pub use clients::MAX_WAITING;
pub use server::serve;

/// Every endpoint, for the documentation's test: server, method and path.
pub const ENDPOINTS: &[(&str, &str, &str)] = &[
    ("health", "GET", "/healthz/startup"),
    ("health", "GET", "/healthz/ready"),
    ("health", "GET", "/app-health/{container}/{kind}"),
    ("metrics", "GET", "/metrics"),
    ("admin", "GET", "/config"),
    ("admin", "GET", "/connections"),
    ("admin", "GET", "/certs"),
    ("admin", "GET", "/policy"),
    ("admin", "GET", "/logging"),
    ("admin", "PUT", "/logging"),
];

/// A future that an [`Source`] answers with.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A status and one line.
pub type StatusLine = (StatusCode, Arc<str>);

/// What the servers tell about; implemented by whoever knows it.
pub trait Source: Send + Sync {
    /// What is still missing, by name; empty: ready.
    fn pending(&self) -> Vec<&'static str>;
    /// Whether everything has been there once.
    fn started(&self) -> bool;
    /// Runs the app's probe of a path, as it is asked at one of the pod's addresses; none if
    /// there is no such probe.
    fn probe_app<'a>(&'a self, path: &'a str, at: SocketAddr) -> Answer<'a, Option<StatusLine>>;
    /// How long a probe of the app may take at most.
    fn longest_probe(&self) -> Duration;
    /// The metrics' text.
    fn metrics(&self) -> Vec<u8>;
    /// The configuration in force.
    fn config(&self) -> Value;
    /// The connections open now; none where not all of them could be asked for.
    fn connections(&self) -> Answer<'_, Option<Value>>;
    /// The certificates in force.
    fn certificates(&self) -> Value;
    /// The policy in force.
    fn policy(&self) -> Value;
    /// The log filter in force.
    fn log_filter(&self) -> String;
    /// Changes the log filter.
    ///
    /// # Errors
    /// See [`FilterError`].
    fn set_log_filter(&self, filter: &str) -> Result<(), FilterError>;
}

/// Why the log filter stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Changing anything is off.
    #[error("changes are off: set PILLION_ADMIN_CHANGES=on")]
    Off,
    /// The filter has no meaning.
    #[error("{0}")]
    Bad(String),
}

/// Which of the servers a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Health.
    Health,
    /// Metrics.
    Metrics,
    /// Admin.
    Admin,
}

/// Answers one request that has come to the address `at`.
pub async fn answer<B>(
    role: Role,
    source: &Arc<dyn Source>,
    request: &Request<B>,
    at: SocketAddr,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match (role, path) {
        (Role::Health, "/healthz/ready") if get => health(&source.pending()),
        (Role::Health, "/healthz/startup") if get && source.started() => health(&[]),
        (Role::Health, "/healthz/startup") if get => health(&source.pending()),
        (Role::Health, probe) if get && probe.starts_with(APP_PROBE_PREFIX) => {
            match source.probe_app(probe, at).await {
                Some((status, line)) => plain(status, &format!("{line}\n")),
                None => plain(StatusCode::NOT_FOUND, "no such probe in PILLION_APP_PROBES\n"),
            }
        }
        (Role::Metrics, "/metrics") if get => {
            text(StatusCode::OK, "text/plain; version=0.0.4", source.metrics())
        }
        (Role::Admin, "/config") if get => json(&source.config()),
        (Role::Admin, "/connections") if get => match source.connections().await {
            Some(list) => json(&list),
            None => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "a worker has not listed its connections in time; ask again\n",
            ),
        },
        (Role::Admin, "/certs") if get => json(&source.certificates()),
        (Role::Admin, "/policy") if get => json(&source.policy()),
        (Role::Admin, "/logging") if get => json(&json!({ "filter": source.log_filter() })),
        (Role::Admin, "/logging") if *request.method() == Method::PUT => {
            set_filter(source, request.uri().query())
        }
        _ => plain(StatusCode::NOT_FOUND, "no such endpoint\n"),
    }
}

fn set_filter(source: &Arc<dyn Source>, query: Option<&str>) -> Response<Full<Bytes>> {
    let Some(filter) = query.and_then(|q| q.strip_prefix("filter=")) else {
        return plain(StatusCode::BAD_REQUEST, "say which: /logging?filter=debug\n");
    };
    match source.set_log_filter(filter) {
        Ok(()) => json(&json!({ "filter": source.log_filter() })),
        Err(why @ FilterError::Off) => plain(StatusCode::FORBIDDEN, &format!("{why}\n")),
        Err(why @ FilterError::Bad(_)) => plain(StatusCode::BAD_REQUEST, &format!("{why}\n")),
    }
}

fn health(pending: &[&'static str]) -> Response<Full<Bytes>> {
    if pending.is_empty() {
        return plain(StatusCode::OK, "ok\n");
    }
    let lines: String = pending.iter().map(|p| format!("pending: {p}\n")).collect();
    plain(StatusCode::SERVICE_UNAVAILABLE, &lines)
}

fn json(value: &Value) -> Response<Full<Bytes>> {
    let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
    body.push(b'\n');
    text(StatusCode::OK, "application/json", body)
}

fn plain(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    text(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

fn text(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    struct Fake {
        pending: Vec<&'static str>,
    }

    impl Source for Fake {
        fn pending(&self) -> Vec<&'static str> {
            self.pending.clone()
        }
        fn started(&self) -> bool {
            false
        }
        fn probe_app<'a>(
            &'a self,
            path: &'a str,
            at: SocketAddr,
        ) -> Answer<'a, Option<StatusLine>> {
            let line = Arc::from(format!("asked at {at}"));
            let known = path == "/app-health/{container}/{kind}";
            Box::pin(async move { known.then_some((StatusCode::IM_A_TEAPOT, line)) })
        }
        fn longest_probe(&self) -> Duration {
            Duration::ZERO
        }
        fn metrics(&self) -> Vec<u8> {
            b"m 1\n".to_vec()
        }
        fn config(&self) -> Value {
            json!({})
        }
        fn connections(&self) -> Answer<'_, Option<Value>> {
            let busy = self.pending.contains(&"worker");
            Box::pin(async move { (!busy).then(|| json!([])) })
        }
        fn certificates(&self) -> Value {
            json!({})
        }
        fn policy(&self) -> Value {
            json!({})
        }
        fn log_filter(&self) -> String {
            "info".into()
        }
        fn set_log_filter(&self, filter: &str) -> Result<(), FilterError> {
            if filter == "bad" {
                Err(FilterError::Bad("bad".into()))
            } else {
                Err(FilterError::Off)
            }
        }
    }

    async fn ask(role: Role, pending: &[&'static str], method: &str, path: &str) -> (u16, String) {
        let source: Arc<dyn Source> = Arc::new(Fake { pending: pending.to_vec() });
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        let at = "192.0.2.1:15021".parse().unwrap();
        let response = answer(role, &source, &request, at).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_names_what_is_pending() {
        assert_eq!(ask(Role::Health, &[], "GET", "/healthz/ready").await, (200, "ok\n".into()));
        let (status, body) =
            ask(Role::Health, &["policy", "certificates"], "GET", "/healthz/ready").await;
        assert_eq!((status, body.as_str()), (503, "pending: policy\npending: certificates\n"));
    }

    #[tokio::test]
    async fn a_probe_of_the_app_is_answered_with_what_came_of_it() {
        let path = "/app-health/{container}/{kind}";
        for pending in [&[][..], &["policy"]] {
            let (status, body) = ask(Role::Health, pending, "GET", path).await;
            assert_eq!((status, body.as_str()), (418, "asked at 192.0.2.1:15021\n"));
        }
        assert_eq!(ask(Role::Health, &[], "GET", &format!("{path}?a=b")).await.0, 418);
        let (status, body) = ask(Role::Health, &[], "GET", "/app-health/web/livenessProbe").await;
        assert!(status == 404 && body.contains("PILLION_APP_PROBES"), "{body}");
        assert_eq!(ask(Role::Health, &[], "POST", path).await.0, 404);
    }

    /// Half of a list would say of the other half that it is not there.
    #[tokio::test]
    async fn connections_are_all_there_or_none() {
        assert_eq!(ask(Role::Admin, &[], "GET", "/connections").await, (200, "[]\n".into()));
        let (status, body) = ask(Role::Admin, &["worker"], "GET", "/connections").await;
        assert!(status == 503 && body.contains("ask again"), "{status} {body}");
    }

    #[tokio::test]
    async fn every_listed_endpoint_answers_on_its_own_server_and_no_other() {
        for (server, method, path) in ENDPOINTS {
            for (role, name) in
                [(Role::Health, "health"), (Role::Metrics, "metrics"), (Role::Admin, "admin")]
            {
                let (status, _) = ask(role, &[], method, path).await;
                assert_eq!(status != 404, name == *server, "{method} {path} on {name}: {status}");
            }
        }
        assert_eq!(ask(Role::Admin, &[], "PUT", "/logging?filter=debug").await.0, 403);
        assert_eq!(ask(Role::Admin, &[], "PUT", "/logging?filter=bad").await.0, 400);
        assert_eq!(ask(Role::Admin, &[], "PUT", "/logging").await.0, 400);
        assert_eq!(ask(Role::Admin, &[], "POST", "/config").await.0, 404);
    }
}
