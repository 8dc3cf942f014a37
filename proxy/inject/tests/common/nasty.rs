//! Probes that nobody should write, and what they mean.

use std::time::Duration;

use fastrand::Rng;
use pillion_app_probes::{AppProbe, Handler, KINDS, request_target};
use serde_json::{Map, Value, json};

/// What stands in paths, names and values.
const PARTS: [&str; 22] = [
    "/",
    "a",
    "Z9",
    "-",
    " ",
    "%",
    "%2f",
    "%zz",
    "?",
    "#",
    ":",
    "//",
    "$(HOME)",
    "\u{fc}",
    "\u{1f680}",
    "\"",
    "\\",
    "'",
    "{",
    "=&",
    "\t",
    "~",
];

fn text(rng: &mut Rng) -> String {
    (0..rng.usize(0..5)).map(|_| PARTS[rng.usize(..PARTS.len())]).collect()
}

/// Mostly of the app.
fn port(rng: &mut Rng) -> Value {
    const PORTS: [i64; 8] = [1, 80, 65535, 0, 65536, -1, 15020, 15021];
    if rng.bool() { 8080.into() } else { PORTS[rng.usize(..PORTS.len())].into() }
}

pub(crate) fn container(rng: &mut Rng, number: usize) -> Value {
    let mut container = Map::new();
    container.insert("name".to_owned(), format!("c{number}").into());
    for kind in KINDS {
        if rng.bool() {
            continue;
        }
        let port = port(rng);
        let mut probe = match rng.u32(0..4) {
            0 => json!({"tcpSocket": {"port": port}}),
            1 => json!({"grpc": {"port": port, "service": text(rng)}}),
            _ => {
                let header = |rng: &mut Rng| {
                    let name = if rng.u32(0..4) > 0 { "X-A".to_owned() } else { text(rng) };
                    let newline = if rng.u32(0..9) == 0 { "\n" } else { "" };
                    json!({"name": name, "value": text(rng) + newline})
                };
                let headers: Vec<Value> = (0..rng.usize(0..3)).map(|_| header(rng)).collect();
                json!({"httpGet": {"path": text(rng), "port": port, "httpHeaders": headers}})
            }
        };
        if rng.bool() {
            const SECONDS: [u32; 5] = [1, 2, 30, 86_400, 86_401];
            probe["timeoutSeconds"] = SECONDS[rng.usize(..SECONDS.len())].into();
        }
        container.insert(kind.to_owned(), probe);
    }
    container.into()
}

/// The probes that the proxy has to know, in the order in which they are written.
pub(crate) fn meant(pod: &Value) -> Vec<AppProbe> {
    let mut probes = Vec::new();
    for container in pod["spec"]["containers"].as_array().expect("a list") {
        for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let Some(probe) = container.get(kind) else { continue };
            let path = format!("/app-health/{}/{kind}", container["name"].as_str().expect("text"));
            let number = |value: &Value| value.as_u64().expect("a number");
            let port = |handler: &Value| u16::try_from(number(&handler["port"])).expect("a port");
            let handler = if let Some(tcp) = probe.get("tcpSocket") {
                Handler::TcpSocket { port: port(tcp) }
            } else if let Some(grpc) = probe.get("grpc") {
                let service = grpc["service"].as_str().expect("text").into();
                Handler::Grpc { port: port(grpc), service }
            } else {
                http(&probe["httpGet"], port(&probe["httpGet"]))
            };
            let seconds = probe.get("timeoutSeconds").map_or(1, number);
            let timeout = Duration::from_secs(seconds);
            probes.push(AppProbe { path: path.into(), handler, timeout });
        }
    }
    probes
}

fn http(get: &Value, port: u16) -> Handler {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let target = request_target(&text(&get["path"])).expect("it was taken");
    let headers = get["httpHeaders"].as_array().expect("a list").iter().map(|header| {
        let name = text(&header["name"]).parse().expect("a name");
        (name, text(&header["value"]).parse().expect("a value"))
    });
    let path = target.parse().expect("path and query");
    Handler::HttpGet(pillion_app_probes::HttpGet {
        port,
        path,
        https: false,
        host: None,
        headers: headers.collect(),
    })
}
