//! `explain --connections`: what a file that isn't live yet would make of the connections that are
//! open.

use std::collections::{BTreeMap, HashMap, HashSet};
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

/// What a running proxy has said.
#[derive(Debug)]
pub(super) struct Answers {
    /// To `GET /connections`.
    connections: Vec<u8>,
    /// To `GET /policy`, if it was asked.
    policy: Option<Vec<u8>>,
}

/// Judges the connections of an answer of `GET /connections`.
pub(super) fn judge(
    policy: &Policy,
    answers: &Answers,
    output: Output,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    let connections = match read(&answers.connections) {
        Ok(connections) => connections,
        Err(why) => {
            writeln!(err, "{why}; what is wanted is the answer of GET /connections")?;
            return Ok(EXIT_USAGE);
        }
    };
    let resolved = match answers.policy.as_deref().map(resolved).transpose() {
        Ok(resolved) => resolved.unwrap_or_default(),
        Err(why) => {
            writeln!(err, "{why}; what is wanted is the answer of GET /policy")?;
            return Ok(EXIT_USAGE);
        }
    };
    let identified = connections.iter().any(|one| one.peer.is_some());
    if identified && policy.trust_domains().is_empty() {
        writeln!(err, "{UNKNOWN_DOMAIN}")?;
        return Ok(EXIT_USAGE);
    }
    let mut hosts = Hosts { policy, resolved, by_port: HashMap::new() };
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

/// Names whose addresses the running proxy knows; of a connection, it tells those that are its own.
#[derive(Debug, Default)]
struct Resolved {
    ipv4: HashSet<String>,
    ipv6: HashSet<String>,
}

impl Resolved {
    fn of(&self, ip: IpAddr) -> &HashSet<String> {
        if ip.is_ipv4() { &self.ipv4 } else { &self.ipv6 }
    }
}

/// The policy, and on each port, for IPv4 or not, one of the names that fare alike.
struct Hosts<'p> {
    policy: &'p Policy,
    resolved: Resolved,
    by_port: HashMap<(u16, bool), Vec<Arc<str>>>,
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
        let (ip, port) = (destination.ip(), destination.port());
        let names = self.by_port.entry((port, ip.is_ipv4()));
        let names = names.or_insert_with(|| distinct(policy, port, self.resolved.of(ip)));
        let ends = |name: &Arc<str>| {
            let rule = one.facts().denied_by(policy, &Also(name))?;
            Some(Fate::MayEnd { rule, name: Arc::clone(name) })
        };
        names.iter().find_map(ends).unwrap_or(Fate::Stays)
    }
}

/// The names that destinations with the port list, but for those that are known: of those in the
/// same destinations, the first.
fn distinct(policy: &Policy, port: u16, known: &HashSet<String>) -> Vec<Arc<str>> {
    let mut listed: BTreeMap<&Arc<str>, Vec<usize>> = BTreeMap::new();
    for (number, one) in policy.destinations().iter().enumerate() {
        if one.ports().is_none_or(|ports| ports.contains(&port)) {
            for host in one.hosts().iter().filter(|host| !known.contains(&***host)) {
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

/// The names that have an answer, from what `GET /policy` says.
fn resolved(answer: &[u8]) -> Result<Resolved, String> {
    let answer: Value = serde_json::from_slice(answer).map_err(|e| format!("not JSON: {e}"))?;
    if answer.is_null() {
        return Ok(Resolved::default());
    }
    let hosts = answer.get("hosts").and_then(Value::as_object);
    let hosts = hosts.ok_or("hosts: is missing; was this written by another version?")?;
    let answered = |records: &str| {
        let answered =
            hosts.iter().filter(|(_, host)| host.get(records).is_some_and(Value::is_array));
        answered.map(|(name, _)| name.clone()).collect()
    };
    Ok(Resolved { ipv4: answered("a"), ipv6: answered("aaaa") })
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
pub(super) fn from_file(path: &Path) -> io::Result<Answers> {
    let connections = if path == Path::new("-") {
        all_of(io::stdin().lock())?
    } else {
        all_of(std::fs::File::open(path)?)?
    };
    Ok(Answers { connections, policy: None })
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
/// It can't be reached, takes too long, or an answer is no 200 or breaks off.
pub(super) fn from_admin(admin: SocketAddr) -> io::Result<Answers> {
    // The names first: one that is resolved in between is among the connections' own then.
    let policy = get(admin, "/policy")?;
    Ok(Answers { connections: get(admin, "/connections")?, policy: Some(policy) })
}

fn get(admin: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // Of HTTP/1.0 the answer comes whole, and ends where the connection does.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {admin}\r\n\r\n")?;
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

    /// A connection out by default, in a policy that has two names of `mtls` destinations; the
    /// running proxy says this of what it has resolved.
    fn judged(resolved: Option<&str>) -> (u8, String) {
        let text = "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {name: t}\n\
                    trustDomains: [x]\ninbound: {mtls: strict, defaultAction: deny}\n\
                    outbound: {defaultAction: passthrough, destinations: [{name: n, action: mtls, \
                    hosts: [one.test, two.test], serverIdentities: [\"spiffe://x/s\"]}]}\n";
        let policy = pillion_policy::load("t", text, None).unwrap_or_else(|e| panic!("{e}")).policy;
        let connections = br#"[{"direction": "outbound", "source": "10.0.0.1:1", "names": [],
            "peer": null, "destination": "10.0.0.2:80", "tls": "passthrough", "stage": "allowed",
            "probe": null}]"#;
        let policy_of = resolved.map(|text| text.as_bytes().to_vec());
        let answers = Answers { connections: connections.to_vec(), policy: policy_of };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = judge(&policy, &answers, Output::Text, &mut out, &mut err).unwrap();
        (code, String::from_utf8([out, err].concat()).unwrap())
    }

    #[test]
    fn a_name_that_is_resolved_is_no_longer_a_may() {
        let one = r#""one.test": {"a": ["10.0.0.9"], "aaaa": null}"#;
        let two = r#""two.test": {"a": [], "aaaa": []}"#;
        let unknown = r#""two.test": {"a": null, "aaaa": ["fd00::1"]}"#;
        for (resolved, may) in [
            (None, Some("one.test")),
            (Some("null".to_owned()), Some("one.test")),
            (Some(format!(r#"{{"hosts": {{{one}}}}}"#)), Some("two.test")),
            (Some(format!(r#"{{"hosts": {{{one}, {unknown}}}}}"#)), Some("two.test")),
            (Some(format!(r#"{{"hosts": {{{one}, {two}}}}}"#)), None),
        ] {
            let (code, said) = judged(resolved.as_deref());
            let expected = if may.is_some() { EXIT_DENIED } else { EXIT_OK };
            assert_eq!(code, expected, "{resolved:?}: {said}");
            let told = may.is_none_or(|name| said.contains(&format!("by n if it is {name}")));
            assert!(told, "{resolved:?}: {said}");
        }
        for bad in ["", "{}", r#"{"hosts": []}"#] {
            let (code, said) = judged(Some(bad));
            assert!(code == EXIT_USAGE && said.contains("GET /policy"), "{said}");
        }
    }
}
