//! Health probes of the kubelet, which has no certificate: a plaintext GET of a
//! path that the policy lists is forwarded once, and nothing else is.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::live::Conn;
use crate::net::Leg;
use crate::telemetry::CloseReason;
use crate::tls;

/// The largest request head that a probe may have.
const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;

/// From the request to the end of the app's answer. The kubelet's own timeout is
/// a second unless a pod's author says otherwise.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Headers that speak of the connection and not of the request (RFC 9110, 7.6.1).
const HOP_BY_HOP: &[&str] =
    &["connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"];

/// The one request, rewritten to ask for one answer.
#[derive(Debug)]
pub struct Request {
    /// What it asks for.
    pub path: Box<str>,
    bytes: Vec<u8>,
}

/// Reads a request head into `seen` (which has the first bytes already). `None`
/// when it is no GET of a path that `allowed` takes, has a body, or brings more
/// than one request: then `seen` is what was read, and nothing was answered. The
/// caller keeps the deadline.
pub async fn read(
    leg: &mut Leg,
    seen: &mut Vec<u8>,
    allowed: impl Fn(&str) -> bool,
) -> Option<Request> {
    loop {
        if !could_be_get(seen) {
            return None;
        }
        if let Some(verdict) = parse(seen, &allowed) {
            return verdict;
        }
        if seen.len() >= MAX_HEAD || leg.read_buf(seen).await.ok()? == 0 {
            return None;
        }
    }
}

fn could_be_get(seen: &[u8]) -> bool {
    const METHOD: &[u8] = b"GET ";
    seen.iter().zip(METHOD).all(|(a, b)| a == b)
}

/// `None`: the head is not whole yet.
fn parse(seen: &[u8], allowed: impl Fn(&str) -> bool) -> Option<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let length = match head.parse(seen) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(length)) => length,
        Err(_) => return Some(None),
    };
    let body = head.headers.iter().any(|h| {
        h.name.eq_ignore_ascii_case("content-length")
            || h.name.eq_ignore_ascii_case("transfer-encoding")
    });
    let Some(path) = head.path else { return Some(None) };
    if body || length != seen.len() || head.method != Some("GET") || !allowed(path) {
        return Some(None);
    }
    let mut request = format!("GET {path} HTTP/1.1\r\n").into_bytes();
    for header in head.headers.iter() {
        if HOP_BY_HOP.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
            continue;
        }
        request.extend_from_slice(header.name.as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(header.value);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    Some(Some(Request { path: path.into(), bytes: request }))
}

/// Sends the request to the app and its whole answer to the client.
///
/// # Errors
/// The reason of whatever broke or stalled.
pub async fn forward(
    client: &mut Leg,
    request: &Request,
    app: &mut Leg,
    conn: &Conn,
) -> Result<CloseReason, CloseReason> {
    let exchange = async {
        app.write_all(&request.bytes).await?;
        conn.to_app.set(request.bytes.len() as u64);
        conn.from_app.set(tokio::io::copy(app, client).await?);
        client.shutdown().await
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, exchange).await {
        Err(_) => Err(CloseReason::PeerTimeout),
        Ok(Err(e)) => Err(tls::classify(&e).0),
        Ok(Ok(())) => {
            client.end_cleanly();
            app.end_cleanly();
            Ok(CloseReason::Closed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Option<Option<String>> {
        parse(text.as_bytes(), |p| p == "/healthz")
            .map(|r| r.map(|r| String::from_utf8(r.bytes).unwrap()))
    }

    #[test]
    fn a_listed_get_is_rewritten_to_one_answer() {
        let text =
            "GET /healthz HTTP/1.1\r\nHost: a:8080\r\nconnection: keep-alive\r\nX-A: b\r\n\r\n";
        assert_eq!(
            outcome(text).unwrap().unwrap(),
            "GET /healthz HTTP/1.1\r\nHost: a:8080\r\nX-A: b\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn anything_else_is_no_probe() {
        for bad in [
            "GET /healthz?x=1 HTTP/1.1\r\n\r\n",
            "GET /healthz/ HTTP/1.1\r\n\r\n",
            "GET http://a/healthz HTTP/1.1\r\n\r\n",
            "POST /healthz HTTP/1.1\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /healthz HTTP/1.1\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
            "GET /healthz\r\n\r\n",
        ] {
            assert_eq!(outcome(bad), Some(None), "{bad:?}");
        }
        assert_eq!(outcome("GET /healthz HT"), None);
        assert!(could_be_get(b"") && could_be_get(b"GE") && !could_be_get(b"SSH-2.0"));
    }
}
