//! One request: enough for health, metrics and admin.

use std::io::{Read, Write};
use std::net::SocketAddr;

use crate::{Context, Failure, Pod};

/// The status and the body of `GET path`. HTTP/1.0, so that the body ends with the connection.
///
/// # Errors
/// No connection, or no HTTP answer within 20 s.
pub fn get(pod: &Pod, to: SocketAddr, path: &str) -> Result<(u16, String), Failure> {
    request(pod, to, "GET", path)
}

/// The same with any method, and without a body.
///
/// # Errors
/// As [`get`].
pub fn request(
    pod: &Pod,
    to: SocketAddr,
    method: &str,
    path: &str,
) -> Result<(u16, String), Failure> {
    let mut stream = pod.connect(to)?;
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {to}\r\n\r\n");
    stream.write_all(request.as_bytes()).context(|| format!("asking {to} for {path}"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context(|| format!("the answer of {to}{path}"))?;
    let answer = String::from_utf8_lossy(&answer);
    parse(&answer)
        .ok_or_else(|| Failure::Unexpected(format!("{to}{path} is not HTTP: {answer:.80}")))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\ncontent-length: 6\r\n\r\npolicy";
        assert_eq!(parse(answer), Some((503, "policy".to_owned())));
        assert_eq!(parse("SSH-2.0-OpenSSH_9.2\r\n\r\n"), None);
        assert_eq!(parse("HTTP/1.1 200 OK\r\n"), None, "no end of the head");
    }
}
