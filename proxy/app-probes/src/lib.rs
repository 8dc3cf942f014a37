//! The app's own probes, which the proxy runs for the kubelet: `PILLION_APP_PROBES`.
//!
//! One JSON object, from the path that the kubelet asks the health port for to the handler as
//! Kubernetes has it (`Probe` of its API, v1), with the number of the port. `pillion-inject` writes
//! it and `pillion-proxy` reads it; the format and its limits are here, once for both, so that
//! nothing is written that would stop the proxy at its start.
//!
//! * [`read`] is the proxy's side, and [`write()`] the other: it gives out what `read` takes;
//! * `written` is the object as it stands there, and what is checked of it;
//! * [`request_target`] is what the kubelet would make of a probe's `path`;
//! * [`Problem`] says what is wrong, and where.

mod problem;
mod target;
#[cfg(test)]
mod tests;
mod written;

use std::io;
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Map, Value};

pub use problem::{Problem, Step};
pub use target::request_target;
use written::Written;

/// What the path of each probe begins with.
pub const PREFIX: &str = "/app-health/";

/// The kinds of probes, as a container's specification names them. A hook is none: anyone could
/// trigger it here, and the kubelet would take any answer for its success.
pub const KINDS: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// The longest text, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;
/// The most probes.
pub const MAX_PROBES: usize = 64;
/// The longest `timeoutSeconds`: a day.
pub const MAX_TIMEOUT_SECONDS: u64 = 86_400;

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
    /// Path and query, from its `/`, as the kubelet would send it: see [`request_target`].
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
    #[must_use]
    pub fn port(&self) -> u16 {
        match &self.handler {
            Handler::HttpGet(get) => get.port,
            Handler::TcpSocket { port } | Handler::Grpc { port, .. } => *port,
        }
    }

    /// The handler's name in Kubernetes.
    #[must_use]
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
pub fn read(text: &str) -> Result<Vec<AppProbe>, Vec<Problem>> {
    let whole = |what: String| vec![Problem::new([], what)];
    if text.len() > MAX_BYTES {
        return Err(whole(format!("{} bytes; the most is {MAX_BYTES}", text.len())));
    }
    let json = &mut serde_json::Deserializer::from_str(text);
    let written: Written = serde_path_to_error::deserialize(&mut *json)
        .map_err(|e| vec![Problem::of_path(e.path(), e.inner().to_string())])?;
    json.end().map_err(|e| whole(format!("after the object: {e}")))?;
    if written.0.len() > MAX_PROBES {
        return Err(whole(format!("{} probes; the most is {MAX_PROBES}", written.0.len())));
    }
    let (mut probes, mut problems) = (Vec::new(), Vec::new());
    for (path, probe) in written.0 {
        match probe.checked(&path) {
            Ok(probe) => probes.push(probe),
            Err(problem) => problems.push(problem.below(path)),
        }
    }
    if problems.is_empty() { Ok(probes) } else { Err(problems) }
}

/// The variable's value for these probes, from path to handler as [`read`] wants them: JSON on one
/// line, in ASCII. `$` is escaped, too: the kubelet expands `$(NAME)` in a container's environment.
///
/// # Errors
/// What [`read`] would say of it.
pub fn write(probes: &Map<String, Value>) -> Result<String, Vec<Problem>> {
    let mut bytes = Vec::new();
    let unwritten = |why: String| vec![Problem::new([], why)];
    let mut serializer = Serializer::with_formatter(&mut bytes, OneLine);
    probes.serialize(&mut serializer).map_err(|e| unwritten(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|e| unwritten(e.to_string()))?;
    read(&text).map(|_| text)
}

/// The probes that would ask the proxy itself, which listens on the ports `own`.
#[must_use]
pub fn of_own_ports(probes: &[AppProbe], own: &[u16]) -> Vec<Problem> {
    let wrong = probes.iter().filter(|probe| own.contains(&probe.port()));
    let said = |probe: &AppProbe| {
        let what = format!("{} is the proxy's own; name the app's", probe.port());
        Problem::new([Step::key(&probe.path), Step::key(probe.kind()), Step::key("port")], what)
    };
    wrong.map(said).collect()
}

/// True for the name of a container, a DNS label (RFC 1123, 2.1): part of each probe's path.
#[must_use]
pub fn is_container_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(word)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// With a space behind each colon and comma, as people write it.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin_array_value(w, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        part: &str,
    ) -> io::Result<()> {
        let mut units = [0; 2];
        part.chars().try_for_each(|c| match c {
            ' '..='~' if c != '$' => write!(w, "{c}"),
            c => c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(w, "\\u{unit:04x}")),
        })
    }
}
