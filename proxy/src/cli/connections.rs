//! `explain --connections`: what a file that isn't live yet would make of the connections that are
//! open.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pillion_policy::{NoHosts, Policy};
use serde_json::{Value, json};

use super::{EXIT_DENIED, EXIT_OK, EXIT_USAGE, Output};
use crate::live::Told;

/// The longest answer that is read, in bytes: some hundred for each connection.
const MOST_BYTES: u64 = 1 << 30;
/// How long the running proxy may take over each step of its answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Judges the connections of an answer of `GET /connections`.
pub(super) fn judge(
    policy: &Policy,
    answer: &[u8],
    output: Output,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    let connections = match read(answer) {
        Ok(connections) => connections,
        Err(why) => {
            writeln!(err, "{why}; what is wanted is the answer of GET /connections")?;
            return Ok(EXIT_USAGE);
        }
    };
    let identified = connections.iter().any(|one| one.peer.is_some());
    if identified && policy.trust_domains().is_empty() {
        let why = "a file without trustDomains accepts peers of our own trust domain; say which \
                   one that is with --trust-domain";
        writeln!(err, "{why}")?;
        return Ok(EXIT_USAGE);
    }
    if !policy.hosts().is_empty() {
        let names = policy.hosts().join(", ");
        writeln!(
            err,
            "note: names are those that the running proxy knew; a name that only this file has \
             ({names}) may match more once it is resolved"
        )?;
    }
    let judged: Vec<(&Told, Option<Arc<str>>)> =
        connections.iter().map(|one| (one, one.facts().denied_by(policy, &NoHosts))).collect();
    let ends = judged.iter().filter(|(_, rule)| rule.is_some()).count();
    let stays = judged.len().saturating_sub(ends);
    match output {
        Output::Json => {
            let list: Vec<_> =
                judged.iter().map(|(one, rule)| as_json(one, rule.as_deref())).collect();
            let report = json!({"connections": list, "stay": stays, "end": ends});
            writeln!(out, "{report:#}")?;
        }
        Output::Text => {
            for (one, rule) in &judged {
                line(one, rule.as_deref(), out)?;
            }
            writeln!(out, "{} open: {stays} would stay, {ends} would end", judged.len())?;
        }
    }
    Ok(if ends == 0 { EXIT_OK } else { EXIT_DENIED })
}

fn read(answer: &[u8]) -> Result<Vec<Told>, String> {
    let answer: Value = serde_json::from_slice(answer).map_err(|e| format!("not JSON: {e}"))?;
    let list = answer.as_array().ok_or("not a list")?;
    let one =
        |(number, item)| Told::from_json(item).map_err(|why| format!("connection {number}: {why}"));
    (1..).zip(list).map(|(number, item): (usize, &Value)| one((number, item))).collect()
}

fn line(one: &Told, rule: Option<&str>, out: &mut dyn Write) -> io::Result<()> {
    let (way, source) = (one.direction.label(), one.source);
    let to = one.destination.map_or_else(|| "?".to_owned(), |to| to.to_string());
    let peer = one.peer.as_ref().map(|id| format!("  {id}")).unwrap_or_default();
    match rule {
        None => writeln!(out, "stays  {way:8} {source} -> {to}{peer}"),
        Some(rule) => writeln!(out, "ends   {way:8} {source} -> {to}{peer}  by {rule}"),
    }
}

fn as_json(one: &Told, rule: Option<&str>) -> Value {
    json!({
        "direction": one.direction.label(), "source": one.source,
        "destination": one.destination, "peer": one.peer.as_ref().map(|id| id.as_str()),
        "stays": rule.is_none(), "rule": rule,
    })
}

/// What a file holds; `-` is standard input.
///
/// # Errors
/// It can't be read, or is longer than an answer gets.
pub(super) fn from_file(path: &Path) -> io::Result<Vec<u8>> {
    if path == Path::new("-") {
        return all_of(io::stdin().lock());
    }
    all_of(std::fs::File::open(path)?)
}

fn all_of(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = from.take(MOST_BYTES.saturating_add(1)).read_to_end(&mut bytes)?;
    match u64::try_from(read) {
        Ok(read) if read <= MOST_BYTES => Ok(bytes),
        _ => Err(io::Error::other(format!("longer than {MOST_BYTES} bytes"))),
    }
}

/// Asks the admin server of a running proxy.
///
/// # Errors
/// It can't be reached, takes too long, or its answer is no 200 or breaks off.
pub(super) fn from_admin(admin: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // Of HTTP/1.0 the answer comes whole, and ends where the connection does.
    write!(stream, "GET /connections HTTP/1.0\r\nHost: {admin}\r\n\r\n")?;
    body(&all_of(stream)?)
}

fn body(answer: &[u8]) -> io::Result<Vec<u8>> {
    let other = |why: &str| io::Error::other(why.to_owned());
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(answer).map_err(|e| other(&format!("no HTTP answer: {e}")))?;
    let httparse::Status::Complete(length) = parsed else {
        return Err(other("the answer breaks off"));
    };
    if response.code != Some(200) {
        return Err(other(&format!("status {}, where 200 is wanted", response.code.unwrap_or(0))));
    }
    let header = |h: &&httparse::Header<'_>| h.name.eq_ignore_ascii_case("content-length");
    let announced = response.headers.iter().find(header).map(|h| String::from_utf8_lossy(h.value));
    let body = answer.get(length..).unwrap_or_default();
    match announced.and_then(|text| text.parse::<usize>().ok()) {
        Some(length) if length == body.len() => Ok(body.to_vec()),
        _ => Err(other("the answer breaks off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_200_is_an_answer() {
        let ok = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n[]";
        assert_eq!(body(ok.as_bytes()).unwrap(), b"[]");
        for (bad, why) in [
            (&ok[..ok.len() - 1], "breaks off"),
            ("HTTP/1.0 200 OK\r\n\r\n[]", "breaks off"),
            ("HTTP/1.0 200 OK\r\nConte", "breaks off"),
            ("HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
            ("SSH-2.0\r\n\r\n", "no HTTP"),
        ] {
            let error = body(bad.as_bytes()).expect_err(bad).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
