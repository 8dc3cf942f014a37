//! What is made of the app's answers.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::live::testing::shared;

use super::*;

const PATH: &str = "/app-health/web/livenessProbe";

/// Where the kubelet has asked.
fn at() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 15021).into()
}

fn health(handler: &str) -> Arc<AppHealth> {
    let probes = format!(r#"{{"{PATH}": {{{handler}, "timeoutSeconds": 60}}}}"#);
    AppHealth::new(shared(&[("PILLION_APP_PROBES", &probes)])).unwrap()
}

async fn app() -> (TcpListener, u16) {
    let app = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = app.local_addr().unwrap().port();
    (app, port)
}

fn count(health: &AppHealth, result: &str) -> bool {
    let text = String::from_utf8(health.shared.metrics.render(0).unwrap()).unwrap();
    text.contains(&format!("pillion_app_probes_total{{result=\"{result}\"}} 1\n"))
}

/// Waits until the last result is too old for who asks next.
async fn stale(health: &AppHealth) {
    while health.probes[PATH].runs().values().any(is_fresh) {
        tokio::time::sleep(FRESH / 50).await;
    }
}

/// Reads a request's head, which it returns, and answers.
async fn answer(stream: &mut TcpStream, with: &[u8]) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0);
    }
    // Who has seen enough may have gone.
    let _ = stream.write_all(with).await;
    String::from_utf8(head).unwrap()
}

/// What becomes of a GET that the app answers so: status, line, and result.
async fn http(with: &[u8]) -> (u16, String, &'static str) {
    let (app, port) = app().await;
    let health = health(&format!(r#""httpGet": {{"port": {port}, "path": "/ready"}}"#));
    let asking = health.ask(PATH, at());
    let answering = async {
        let (mut stream, from) = app.accept().await.unwrap();
        assert_eq!(from.ip(), net::INBOUND_SOURCE_V4);
        let head = answer(&mut stream, with).await;
        assert!(head.starts_with("GET /ready HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nHost: 127.0.0.1:{port}\r\n")), "{head}");
    };
    let (found, ()) = tokio::join!(asking, answering);
    let found = found.unwrap();
    let results = RESULTS.iter().map(|(result, _)| *result);
    let result = results.filter(|result| count(&health, result)).collect::<Vec<_>>();
    assert_eq!(result.len(), 1, "{result:?}");
    (found.status.as_u16(), found.line.to_string(), result[0])
}

#[tokio::test]
async fn an_http_status_is_judged_as_the_kubelet_does() {
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n{}", "x".repeat(20_000));
    let broken = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx";
    let many_headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a:\r\n".repeat(10_000));
    let huge_head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(500_000));
    for (with, status, result) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "success"),
        ("HTTP/1.0 204 No Content\r\n\r\n", 200, "success"),
        ("HTTP/1.0 200 OK\r\n\r\nto the end", 200, "success"),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            200,
            "success",
        ),
        ("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n", 200, "success"),
        ("HTTP/1.1 304 Not Modified\r\nLocation: /x\r\n\r\n", 200, "success"),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
            200,
            "success",
        ),
        (long.as_str(), 200, "success"),
        (many_headers.as_str(), 200, "success"),
        ("HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 0\r\n\r\n", 200, "success"),
        ("HTTP/1.1 400 Bad\r\nContent-Length: 6\r\n\r\nsecret", 400, "unhealthy"),
        ("HTTP/1.1 503 Busy\r\nContent-Length: 6\r\n\r\nsecret", 503, "unhealthy"),
        ("HTTP/1.1 500 secret\r\n\r\n", 500, "unhealthy"),
        ("HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 503, "unhealthy"),
        ("HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/\r\n\r\n", 503, "bad_answer"),
        ("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:15021/\r\n\r\n", 503, "bad_answer"),
        ("SSH-2.0-secret\r\n\r\n", 503, "bad_answer"),
        (broken, 503, "bad_answer"),
        (huge_head.as_str(), 503, "bad_answer"),
        ("", 503, "bad_answer"),
    ] {
        let (got, line, counted) = http(with.as_bytes()).await;
        assert_eq!((got, counted), (status, result), "{with:.60}: {line}");
        assert!(!line.contains("secret") && !line.contains('\n'), "{line}");
    }
}

#[tokio::test]
async fn redirects_are_followed_so_far_and_no_farther() {
    let (app, port) = app().await;
    let health = health(&format!(r#""httpGet": {{"port": {port}, "path": "/0"}}"#));
    for (redirects, status) in [(9, 200), (10, 503)] {
        stale(&health).await;
        let answering = async {
            for n in 0..=redirects.min(9) {
                let (mut stream, _) = app.accept().await.unwrap();
                let last = format!("HTTP/1.1 302 Found\r\nLocation: /{}\r\n\r\n", n + 1);
                let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                let with = if n == redirects { ok } else { &last };
                let head = answer(&mut stream, with.as_bytes()).await;
                assert!(head.starts_with(&format!("GET /{n} ")), "{head}");
            }
        };
        let (found, ()) = tokio::join!(health.ask(PATH, at()), answering);
        let found = found.unwrap();
        assert_eq!(found.status.as_u16(), status, "{}", found.line);
    }
}

#[tokio::test]
async fn who_asks_meanwhile_gets_the_same_answer_and_who_asks_later_another() {
    let (app, port) = app().await;
    let health = health(&format!(r#""httpGet": {{"port": {port}}}"#));
    // One gives up at once; the run goes on for the others.
    let first = tokio::spawn({
        let health = Arc::clone(&health);
        async move { health.ask(PATH, at()).await }
    });
    let (mut stream, _) = app.accept().await.unwrap();
    first.abort();
    let mut others = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let health = Arc::clone(&health);
        others.spawn(async move { health.ask(PATH, at()).await.unwrap() });
    }
    tokio::task::yield_now().await;
    answer(&mut stream, b"HTTP/1.1 418 No\r\n\r\n").await;
    drop(stream);
    while let Some(other) = others.join_next().await {
        assert_eq!(other.unwrap().status, StatusCode::IM_A_TEAPOT);
    }
    assert!(count(&health, "unhealthy"), "it has run once");
    stale(&health).await;
    let answering = async {
        let (mut stream, _) = app.accept().await.unwrap();
        answer(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n").await;
    };
    let (found, ()) = tokio::join!(health.ask(PATH, at()), answering);
    assert_eq!(found.unwrap().status, StatusCode::OK);
}

/// However long it takes: each run but the first begins when the result before it is no longer fresh.
#[tokio::test]
async fn who_asks_all_the_time_has_the_app_asked_four_times_a_second() {
    let (app, port) = app().await;
    let health = health(&format!(r#""tcpSocket": {{"port": {port}}}"#));
    let start = Instant::now();
    for _ in 0..10_000 {
        assert_eq!(health.ask(PATH, at()).await.unwrap().status, StatusCode::OK);
    }
    let most = 1 + start.elapsed().as_millis() / FRESH.as_millis();
    let app = app.into_std().unwrap();
    let runs = std::iter::from_fn(|| app.accept().ok()).count() as u128;
    assert!((1..=most).contains(&runs), "{runs} of at most {most}");
}

#[tokio::test]
async fn each_address_that_was_asked_has_its_own_result_and_none_is_kept_for_ever() {
    let (_app, port) = app().await;
    let health = health(&format!(r#""tcpSocket": {{"port": {port}}}"#));
    let elsewhere = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 15021));
    assert_eq!(health.ask(PATH, at()).await.unwrap().status, StatusCode::OK);
    // Nobody listens there.
    let found = health.ask(PATH, elsewhere).await.unwrap();
    assert_eq!(found.status, StatusCode::SERVICE_UNAVAILABLE);
    stale(&health).await;
    health.ask(PATH, elsewhere).await.unwrap();
    assert_eq!(health.probes[PATH].runs().len(), 1);
}

#[tokio::test]
async fn a_connection_is_enough_for_a_socket_and_no_listener_is_not() {
    let (app, port) = app().await;
    let health = health(&format!(r#""tcpSocket": {{"port": {port}}}"#));
    assert_eq!(health.ask(PATH, at()).await.unwrap().status, StatusCode::OK);
    let (mut stream, _) = app.accept().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "a FIN, and not a byte");
    drop(app);
    stale(&health).await;
    let found = health.ask(PATH, at()).await.unwrap();
    assert_eq!(found.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(found.line.contains("refused") && count(&health, "connect_failed"), "{}", found.line);
    assert_eq!(health.ask("/app-health/web/readinessProbe", at()).await, None);
}

#[tokio::test]
async fn what_speaks_no_grpc_and_no_tls_is_told_so() {
    for (handler, result) in [("grpc", "bad_answer"), ("httpGet", "tls_failed")] {
        let (app, port) = app().await;
        let scheme = if handler == "grpc" { "" } else { r#", "scheme": "HTTPS""# };
        let health = health(&format!(r#""{handler}": {{"port": {port}{scheme}}}"#));
        let answering = async {
            let (mut stream, _) = app.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        };
        let (found, ()) = tokio::join!(health.ask(PATH, at()), answering);
        let found = found.unwrap();
        assert_eq!(found.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(count(&health, result), "{handler}: {}", found.line);
    }
}
