//! The app's own probes, which the proxy runs for the kubelet: `PILLION_APP_PROBES`.
//!
//! One JSON object, from the path that the kubelet asks the health port for to the handler as
//! Kubernetes has it (`Probe` of its API, v1), with the number of the port.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Unexpected, Visitor};

/// What the path of each probe begins with.
pub const APP_PROBE_PREFIX: &str = "/app-health/";

/// The kinds of probes, as a container's specification names them. A hook is none: anyone could
/// trigger it here, and the kubelet would take any answer for its success.
const KINDS: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

const MAX_BYTES: usize = 64 * 1024;
const MAX_PROBES: usize = 64;

/// What Kubernetes waits where `timeoutSeconds` is not set.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Headers of a probe that the kubelet does not send either, because they are the connection's
/// and not the request's.
const NOT_SENT: [HeaderName; 4] =
    [header::CONNECTION, header::CONTENT_LENGTH, header::TRAILER, header::TRANSFER_ENCODING];

/// One probe of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppProbe {
    /// What the kubelet asks for: `/app-health/<container>/<kind>`.
    pub path: Box<str>,
    /// What is asked of the app.
    pub handler: Handler,
    /// The whole of it may take so long.
    pub timeout: Duration,
}

/// What a probe asks of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// A GET that has to be answered with a status from 200 to 399.
    HttpGet(HttpGet),
    /// A connection that has to be made.
    TcpSocket {
        /// The app's port.
        port: u16,
    },
    /// A call of `grpc.health.v1.Health/Check` that has to be answered with `SERVING`.
    Grpc {
        /// The app's port.
        port: u16,
        /// The service that is asked about; empty: the server as a whole.
        service: Box<str>,
    },
}

/// A GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGet {
    /// The app's port.
    pub port: u16,
    /// Path and query, from its `/`.
    pub path: PathAndQuery,
    /// Whether the app speaks TLS there.
    pub https: bool,
    /// The Host header, where the probe names one.
    pub host: Option<HeaderValue>,
    /// Further headers, in their order.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl AppProbe {
    /// The app's port.
    pub fn port(&self) -> u16 {
        match &self.handler {
            Handler::HttpGet(get) => get.port,
            Handler::TcpSocket { port } | Handler::Grpc { port, .. } => *port,
        }
    }

    /// The handler's name in Kubernetes.
    pub fn kind(&self) -> &'static str {
        match &self.handler {
            Handler::HttpGet(_) => "httpGet",
            Handler::TcpSocket { .. } => "tcpSocket",
            Handler::Grpc { .. } => "grpc",
        }
    }
}

/// Reads the variable's value.
///
/// # Errors
/// What is wrong, each with its place and its cure.
pub(super) fn read(text: &str) -> Result<Vec<AppProbe>, Vec<String>> {
    if text.len() > MAX_BYTES {
        return Err(vec![format!("{} bytes; the most is {MAX_BYTES}", text.len())]);
    }
    let json = &mut serde_json::Deserializer::from_str(text);
    let written: Written = serde_path_to_error::deserialize(&mut *json)
        .map_err(|e| vec![format!("{}: {}", e.path(), e.inner())])?;
    json.end().map_err(|e| vec![format!("after the object: {e}")])?;
    if written.0.len() > MAX_PROBES {
        return Err(vec![format!("{} probes; the most is {MAX_PROBES}", written.0.len())]);
    }
    let (mut probes, mut problems) = (Vec::new(), Vec::new());
    for (path, probe) in written.0 {
        match probe.checked(&path) {
            Ok(probe) => probes.push(probe),
            Err(problem) => problems.push(format!("{path}: {problem}")),
        }
    }
    if problems.is_empty() { Ok(probes) } else { Err(problems) }
}

/// The probes that would ask the proxy itself.
pub(super) fn of_own_ports(probes: &[AppProbe], own: &[u16]) -> Vec<String> {
    let wrong = probes.iter().filter(|probe| own.contains(&probe.port()));
    let said = |probe: &AppProbe| {
        let (path, kind, port) = (&probe.path, probe.kind(), probe.port());
        format!("{path}.{kind}.port: {port} is the proxy's own; name the app's")
    };
    wrong.map(said).collect()
}

/// The object as it is written, in its order; a key that is there twice is an error.
struct Written(Vec<(String, WrittenProbe)>);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Written;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an object from paths, such as /app-health/web/readinessProbe, to probes",
                )
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Written, M::Error> {
                let (mut seen, mut entries) = (BTreeSet::new(), Vec::new());
                while let Some(path) = map.next_key::<String>()? {
                    if !seen.insert(path.clone()) {
                        let twice = format!("`{path}` is there twice: leave one");
                        return Err(de::Error::custom(twice));
                    }
                    entries.push((path, map.next_value()?));
                }
                Ok(Written(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenProbe {
    http_get: Option<WrittenGet>,
    tcp_socket: Option<WrittenSocket>,
    grpc: Option<WrittenGrpc>,
    timeout_seconds: Option<Seconds>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenGet {
    port: Port,
    path: Option<String>,
    scheme: Option<Scheme>,
    host: Option<String>,
    http_headers: Option<Vec<WrittenHeader>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHeader {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSocket {
    port: Port,
    host: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGrpc {
    port: Port,
    service: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
enum Scheme {
    Http,
    Https,
}

impl WrittenProbe {
    fn checked(self, path: &str) -> Result<AppProbe, String> {
        check_path(path)?;
        let handler = match (self.http_get, self.tcp_socket, self.grpc) {
            (Some(get), None, None) => {
                Handler::HttpGet(get.checked().map_err(|e| format!("httpGet.{e}"))?)
            }
            (None, Some(socket), None) => {
                no_host(socket.host).map_err(|e| format!("tcpSocket.{e}"))?;
                Handler::TcpSocket { port: socket.port.0 }
            }
            (None, None, Some(grpc)) => Handler::Grpc {
                port: grpc.port.0,
                service: grpc.service.unwrap_or_default().into(),
            },
            _ => return Err("wants exactly one of httpGet, tcpSocket and grpc".to_owned()),
        };
        let timeout = self.timeout_seconds.map(|Seconds(seconds)| Duration::from_secs(seconds));
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        Ok(AppProbe { path: path.into(), handler, timeout })
    }
}

/// `/app-health/<container>/<kind>`; a container's name is a DNS label (RFC 1123, 2.1).
fn check_path(path: &str) -> Result<(), String> {
    let words = path.strip_prefix(APP_PROBE_PREFIX).and_then(|rest| rest.split_once('/'));
    let good = words.is_some_and(|(container, kind)| {
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&container.len())
            && container.chars().all(word)
            && !container.starts_with('-')
            && !container.ends_with('-')
            && KINDS.contains(&kind)
    });
    if good {
        return Ok(());
    }
    Err(format!(
        "no path of a probe: write {APP_PROBE_PREFIX}<container>/<kind>, where kind is one of {}",
        KINDS.join(", ")
    ))
}

/// The kubelet asks the machine that `host` names, and not the pod.
fn no_host(host: Option<String>) -> Result<(), String> {
    match host.filter(|host| !host.is_empty()) {
        None => Ok(()),
        Some(host) => Err(format!(
            "host: `{host}` would be asked by the kubelet itself, so leave that probe as it is; \
             for a Host header name it in httpHeaders"
        )),
    }
}

impl WrittenGet {
    fn checked(self) -> Result<HttpGet, String> {
        no_host(self.host)?;
        let mut path = self.path.unwrap_or_default();
        if !path.starts_with('/') {
            path.insert(0, '/');
        }
        let path = PathAndQuery::try_from(path.as_str()).map_err(|e| {
            format!("path: `{path}`: {e}: percent-encode what a URL can't hold (RFC 3986, 2.1)")
        })?;
        let (mut host, mut headers) = (None, Vec::new());
        for (at, written) in self.http_headers.unwrap_or_default().into_iter().enumerate() {
            let name = HeaderName::from_bytes(written.name.as_bytes()).map_err(|_| {
                format!("httpHeaders[{at}].name: `{}` is no name of a header", written.name)
            })?;
            // It may be a password, so it is not repeated.
            let mut value = HeaderValue::from_bytes(written.value.as_bytes())
                .map_err(|_| format!("httpHeaders[{at}].value: control characters in it"))?;
            value.set_sensitive(true);
            if name == header::HOST {
                // The first one counts, as for the kubelet.
                host = host.or(Some(value));
            } else if !NOT_SENT.contains(&name) {
                headers.push((name, value));
            }
        }
        let https = self.scheme == Some(Scheme::Https);
        Ok(HttpGet { port: self.port.0, path, https, host, headers })
    }
}

/// A port's number.
#[derive(Clone, Copy)]
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "the number of a port (a port's name means nothing here)";
        deserializer.deserialize_u64(Number { most: u16::MAX.into(), what }).and_then(|number| {
            // Its bounds are those of a port.
            u16::try_from(number).map(Self).map_err(de::Error::custom)
        })
    }
}

struct Seconds(u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(Number { most: 86_400, what: "whole seconds" }).map(Self)
    }
}

/// A whole number from 1 up.
struct Number {
    most: u64,
    what: &'static str,
}

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from 1 to {}", self.what, self.most)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
        if (1..=self.most).contains(&number) {
            return Ok(number);
        }
        Err(E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_handler_is_read_with_its_defaults() {
        let text = r#"{
            "/app-health/web/readinessProbe": {"httpGet": {"path": "ready?x=1", "port": 8443,
                "scheme": "HTTPS", "host": "", "httpHeaders": [
                    {"name": "X-Probe", "value": "y"}, {"name": "host", "value": "shop.example"},
                    {"name": "Host", "value": "second"}, {"name": "Content-Length", "value": "9"}]},
                "timeoutSeconds": 5},
            "/app-health/web/livenessProbe": {"httpGet": {"port": 80}},
            "/app-health/db-0/livenessProbe": {"tcpSocket": {"port": 5432}},
            "/app-health/web/startupProbe": {"grpc": {"port": 9000, "service": "x"}},
            "/app-health/api/startupProbe": {"grpc": {"port": 1, "service": null}}
        }"#;
        let probes = read(text).unwrap();
        let Handler::HttpGet(get) = &probes[0].handler else { panic!("{probes:?}") };
        assert_eq!((get.port, get.path.as_str(), get.https), (8443, "/ready?x=1", true));
        assert_eq!(get.host.as_ref().unwrap(), "shop.example");
        assert_eq!(get.headers.len(), 1, "what is the connection's is not sent: {get:?}");
        assert!(!format!("{get:?}").contains("shop.example"), "a value may be a password");
        assert_eq!(probes[0].timeout, Duration::from_secs(5));
        let Handler::HttpGet(get) = &probes[1].handler else { panic!("{probes:?}") };
        assert_eq!((get.path.as_str(), get.https, &get.host), ("/", false, &None));
        assert_eq!(probes[1].timeout, Duration::from_secs(1));
        assert_eq!(probes[2].handler, Handler::TcpSocket { port: 5432 });
        assert_eq!(probes[3].handler, Handler::Grpc { port: 9000, service: "x".into() });
        assert_eq!(probes[4].handler, Handler::Grpc { port: 1, service: "".into() });
        assert_eq!(read("{}"), Ok(Vec::new()));
    }

    /// The one problem of a probe of `/app-health/web/livenessProbe`.
    fn problem(probe: &str) -> String {
        let text = format!(r#"{{"/app-health/web/livenessProbe": {probe}}}"#);
        let problems = read(&text).expect_err(probe);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("/app-health/web/livenessProbe"), "{problems:?}");
        problems[0].clone()
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (probe, place, cure) in [
            (r#"{"httpGet": {"port": 0}}"#, "httpGet.port", "from 1 to 65535"),
            (r#"{"httpGet": {"port": 65536}}"#, "httpGet.port", "from 1 to 65535"),
            (r#"{"tcpSocket": {"port": -1}}"#, "tcpSocket.port", "from 1 to 65535"),
            (r#"{"grpc": {"port": "http"}}"#, "grpc.port", "name means nothing here"),
            (r#"{"httpGet": {"path": "/"}}"#, "httpGet", "missing field `port`"),
            (r#"{"httpGet": {"port": 1, "pth": "/"}}"#, "httpGet", "unknown field `pth`"),
            (r#"{"httpGet": {"port": 1, "port": 2}}"#, "httpGet", "duplicate field `port`"),
            (r#"{"httpGet": {"port": 1, "scheme": "http"}}"#, "scheme", "`HTTP`"),
            (r#"{"httpGet": {"port": 1, "path": "/a b"}}"#, "httpGet.path", "percent-encode"),
            (r#"{"httpGet": {"port": 1, "host": "10.0.0.1"}}"#, "httpGet.host", "httpHeaders"),
            (r#"{"tcpSocket": {"port": 1, "host": "a"}}"#, "tcpSocket.host", "leave that probe"),
            (r#"{"grpc": {"port": 1, "host": "a"}}"#, "grpc", "unknown field `host`"),
            (
                r#"{"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}"#,
                "httpHeaders[0].name",
                "`a b`",
            ),
            (
                r#"{"httpGet": {"port": 1, "httpHeaders": [{"name": "a", "value": "s\r\nb"}]}}"#,
                "httpHeaders[0].value",
                "control characters",
            ),
            (r#"{"exec": {"command": ["x"]}}"#, "", "unknown field `exec`"),
            (r#"{}"#, "", "exactly one of"),
            (r#"{"grpc": {"port": 1}, "tcpSocket": {"port": 1}}"#, "", "exactly one of"),
            (r#"{"grpc": {"port": 1}, "timeoutSeconds": 0}"#, "timeoutSeconds", "from 1 to 86400"),
            (r#"{"grpc": {"port": 1}, "timeoutSeconds": 1.5}"#, "timeoutSeconds", "whole seconds"),
            (r#"{"grpc": {"port": 1}, "periodSeconds": 1}"#, "", "unknown field `periodSeconds`"),
        ] {
            let said = problem(probe);
            assert!(said.contains(place) && said.contains(cure), "{probe}: {said}");
        }
    }

    #[test]
    fn a_path_is_the_kubelets_and_is_there_once() {
        let tcp = r#"{"tcpSocket": {"port": 1}}"#;
        for path in [
            "/healthz",
            "/app-health/web",
            "/app-health//livenessProbe",
            "/app-health/web/liveness",
            "/app-health/web/postStart",
            "/app-health/web/preStop",
            "/app-health/Web/livenessProbe",
            "/app-health/-web/livenessProbe",
            "/app-health/web/livenessProbe/",
            "/app-health/a/b/livenessProbe",
        ] {
            let problems = read(&format!(r#"{{"{path}": {tcp}}}"#)).expect_err(path);
            assert!(problems[0].contains("livenessProbe, readinessProbe"), "{problems:?}");
        }
        let path = "/app-health/web/startupProbe";
        let twice = format!(r#"{{"{path}": {tcp}, "{path}": {tcp}}}"#);
        assert!(read(&twice).unwrap_err()[0].contains("there twice"));
    }

    #[test]
    fn no_json_and_too_much_of_it_are_refused() {
        for (text, why) in [
            ("[]", "an object from paths"),
            ("{} {}", "after the object"),
            ("{", "EOF"),
            ("tcpSocket", "expected"),
        ] {
            let problems = read(text).expect_err(text);
            assert!(problems[0].contains(why), "{text}: {problems:?}");
        }
        let many = |count: usize| {
            let one =
                |n| format!(r#""/app-health/c{n}/startupProbe": {{"tcpSocket": {{"port": 1}}}}"#);
            format!("{{{}}}", (0..count).map(one).collect::<Vec<_>>().join(","))
        };
        assert_eq!(read(&many(MAX_PROBES)).unwrap().len(), MAX_PROBES);
        assert!(read(&many(MAX_PROBES + 1)).unwrap_err()[0].contains("the most is 64"));
        assert!(read(&" ".repeat(MAX_BYTES + 1)).unwrap_err()[0].contains("65536"));
    }

    #[test]
    fn the_proxy_is_not_asked_about_itself() {
        let probes =
            read(r#"{"/app-health/a/startupProbe": {"tcpSocket": {"port": 15021}}}"#).unwrap();
        assert_eq!(of_own_ports(&probes, &[15020]), [""; 0]);
        let said = of_own_ports(&probes, &[15021]);
        assert!(said[0].contains("/app-health/a/startupProbe.tcpSocket.port: 15021"), "{said:?}");
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let text = r#"{"/a": {"grpc": {"port": 1}}, "/app-health/web/startupProbe": {}}"#;
        assert_eq!(read(text).unwrap_err().len(), 2);
    }
}
