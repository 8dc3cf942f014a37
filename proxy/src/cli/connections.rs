//! `explain --connections`: what a file that isn't live yet would make of the connections that are
//! open.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pillion_policy::{HostTable, NoHosts, Policy};
use serde_json::{Value, json};

use super::{EXIT_DENIED, EXIT_OK, EXIT_USAGE, Output, UNKNOWN_DOMAIN};
use crate::live::Told;
use crate::telemetry::Direction;

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
        writeln!(err, "{UNKNOWN_DOMAIN}")?;
        return Ok(EXIT_USAGE);
    }
    let mut hosts = Hosts { policy, by_port: HashMap::new() };
    let judged: Vec<(&Told, Fate)> = connections.iter().map(|one| (one, hosts.fate(one))).collect();
    let count = |like: fn(&Fate) -> bool| judged.iter().filter(|(_, fate)| like(fate)).count();
    let stays = count(|fate| *fate == Fate::Stays);
    let ends = count(|fate| matches!(fate, Fate::Ends(_)));
    let may_end = count(|fate| matches!(fate, Fate::MayEnd { .. }));
    if may_end > 0 {
        writeln!(
            err,
            "note: the names of a connection are those that the running proxy knew when it was \
             opened; whether its address has another name of this file is only known once that is \
             resolved"
        )?;
    }
    match output {
        Output::Json => {
            let list: Vec<_> = judged.iter().map(|(one, fate)| as_json(one, fate)).collect();
            let report =
                json!({"connections": list, "stay": stays, "end": ends, "mayEnd": may_end});
            writeln!(out, "{report:#}")?;
        }
        Output::Text => {
            for (one, fate) in &judged {
                line(one, fate, out)?;
            }
            write!(out, "{} open: {stays} would stay, {ends} would end", judged.len())?;
            if may_end > 0 {
                write!(out, ", {may_end} may end")?;
            }
            writeln!(out)?;
        }
    }
    Ok(if ends == 0 && may_end == 0 { EXIT_OK } else { EXIT_DENIED })
}

/// What becomes of a connection, with the rule that ends it.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Ends(Arc<str>),
    /// If its address has a name that the running proxy didn't know it by.
    MayEnd {
        rule: Arc<str>,
        name: Arc<str>,
    },
}

/// The policy, and on each port one of the names that fare alike.
struct Hosts<'p> {
    policy: &'p Policy,
    by_port: HashMap<u16, Vec<Arc<str>>>,
}

/// One name more than the address had.
struct Also<'n>(&'n str);

impl HostTable for Also<'_> {
    fn contains(&self, host: &str, _: IpAddr) -> bool {
        host == self.0
    }
}

impl Hosts<'_> {
    fn fate(&mut self, one: &Told) -> Fate {
        let policy = self.policy;
        if let Some(rule) = one.facts().denied_by(policy, &NoHosts) {
            return Fate::Ends(rule);
        }
        let (Direction::Outbound, Some(destination)) = (one.direction, one.destination) else {
            return Fate::Stays;
        };
        // One name is enough: of several, the strictest verdict is that of one of them.
        let names = self.by_port.entry(destination.port());
        let names = names.or_insert_with(|| distinct(policy, destination.port()));
        let ends = |name: &Arc<str>| {
            let rule = one.facts().denied_by(policy, &Also(name))?;
            Some(Fate::MayEnd { rule, name: Arc::clone(name) })
        };
        names.iter().find_map(ends).unwrap_or(Fate::Stays)
    }
}

/// The names that destinations with the port list: of those in the same destinations, the first.
fn distinct(policy: &Policy, port: u16) -> Vec<Arc<str>> {
    let mut listed: BTreeMap<&Arc<str>, Vec<usize>> = BTreeMap::new();
    for (number, one) in policy.destinations().iter().enumerate() {
        if one.ports().is_none_or(|ports| ports.contains(&port)) {
            for host in one.hosts() {
                listed.entry(host).or_default().push(number);
            }
        }
    }
    let mut classes: BTreeMap<Vec<usize>, &Arc<str>> = BTreeMap::new();
    for (name, by) in listed {
        classes.entry(by).or_insert(name);
    }
    classes.into_values().map(Arc::clone).collect()
}

fn read(answer: &[u8]) -> Result<Vec<Told>, String> {
    let answer: Value = serde_json::from_slice(answer).map_err(|e| format!("not JSON: {e}"))?;
    let list = answer.as_array().ok_or("not a list")?;
    let one =
        |(number, item)| Told::from_json(item).map_err(|why| format!("connection {number}: {why}"));
    (1..).zip(list).map(|(number, item): (usize, &Value)| one((number, item))).collect()
}

fn line(one: &Told, fate: &Fate, out: &mut dyn Write) -> io::Result<()> {
    let (way, source) = (one.direction.label(), one.source);
    let to = one.destination.map_or_else(|| "?".to_owned(), |to| to.to_string());
    let peer = one.peer.as_ref().map(|id| format!("  {id}")).unwrap_or_default();
    let what = format!("{way:8} {source} -> {to}{peer}");
    match fate {
        Fate::Stays => writeln!(out, "stays  {what}"),
        Fate::Ends(rule) => writeln!(out, "ends   {what}  by {rule}"),
        Fate::MayEnd { rule, name } => writeln!(out, "may end {what}  by {rule} if it is {name}"),
    }
}

fn as_json(one: &Told, fate: &Fate) -> Value {
    let (rule, name) = match fate {
        Fate::Stays => (None, None),
        Fate::Ends(rule) => (Some(&**rule), None),
        Fate::MayEnd { rule, name } => (Some(&**rule), Some(&**name)),
    };
    json!({
        "direction": one.direction.label(), "source": one.source,
        "destination": one.destination, "peer": one.peer.as_ref().map(|id| id.as_str()),
        "stays": *fate == Fate::Stays, "rule": rule, "mayEnd": name,
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
