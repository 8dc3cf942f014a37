//! Probes that the kubelet asks of the app, and that the proxy will ask instead.
//!
//! The kubelet has no certificate, so a strict port would refuse it. It asks the proxy's health
//! port, and the proxy asks the app.
//!
//! Hooks of the container's lifecycle are not redirected: anyone can ask the health port, so anyone
//! could trigger them; they have no limit of time; and the kubelet takes any answer for success, so
//! the proxy's 503 would be one.

use pillion_app_probes::{MAX_BYTES, MAX_PROBES, PREFIX, Step, of_own_ports, read, request_target};
use serde_json::{Map, Value as Json, json};

use crate::diagnostic::{Finding, Kind, printable};
use crate::manifest::{Container, int};
use crate::sidecar::{HEALTH_PORT, PROXY_PORTS};
use crate::tree::{Entry, Place, Tree};

/// What the kubelet can ask of a container; `exec` and `sleep` ask nobody over the network.
const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
const PROBES: [&str; 3] = ["startupProbe", "livenessProbe", "readinessProbe"];
const HOOKS: [&str; 2] = ["postStart", "preStop"];

/// A probe that goes over the network.
pub(crate) struct Probe {
    /// What the kubelet will ask the proxy for.
    pub(crate) path: String,
    /// The handler: `httpGet`, `tcpSocket` or `grpc`.
    pub(crate) handler: Entry,
    /// What the proxy has to do then.
    pub(crate) task: Json,
}

/// The handler that stands in the app's place.
pub(crate) fn stand_in(path: &str) -> (&'static str, Json) {
    ("httpGet", json!({"path": path, "port": HEALTH_PORT}))
}

/// The probes that have to be redirected; hooks are warned of.
pub(crate) fn find(tree: &Tree, container: &Container, found: &mut Vec<Finding>) -> Vec<Probe> {
    let mut probes = Vec::new();
    for (kind, place) in places(tree, container.place) {
        let Some(handler) = handler(tree, place, found) else { continue };
        if HOOKS.contains(&kind) {
            found.extend(hook(tree, kind, &handler));
            continue;
        }
        match task(tree, container, place, &handler) {
            Ok(Some(task)) => {
                let path = format!("{PREFIX}{}/{kind}", container.name);
                found.extend(refused(tree, place, &path, &task));
                probes.push(Probe { path, handler, task });
            }
            Ok(None) => {
                let message = "this asks another machine, so it is left alone; take `host` out if \
                               it means this pod";
                found.push(Finding::new(Kind::ProbeHost, tree.start(handler.key), message));
            }
            Err(finding) => found.push(finding),
        }
    }
    probes
}

/// What the proxy would have against a probe, at its places in the manifest.
fn refused(tree: &Tree, probe: Place, path: &str, task: &Json) -> Vec<Finding> {
    let problems =
        match pillion_app_probes::write(&[(path.to_owned(), task.clone())].into_iter().collect()) {
            Ok(text) => read(&text)
                .map_or_else(|problems| problems, |read| of_own_ports(&read, &PROXY_PORTS)),
            Err(problems) => problems,
        };
    let finding = |problem: pillion_app_probes::Problem| {
        // As far as the manifest has the place.
        let mut at = tree.start(probe.node);
        let mut place = probe;
        for step in problem.place.iter().skip(1) {
            let next = match step {
                Step::Key(key) => {
                    tree.get(place, key).map(|entry| (tree.start(entry.key), entry.value))
                }
                Step::Item(item) => {
                    tree.items(place).get(*item).map(|item| (tree.start(item.node), *item))
                }
            };
            let Some(next) = next else { break };
            (at, place) = next;
        }
        let cure = if problem.what.contains("; ") { "" } else { "; mend it, or make it an `exec`" };
        let message = format!("the proxy cannot run this probe: {}{cure}", problem.what);
        Finding::new(Kind::Probe, at, message)
    };
    problems.into_iter().map(finding).collect()
}

/// The value of `PILLION_APP_PROBES`, if there has to be one; every probe of it is taken alone.
pub(crate) fn variable(tree: &Tree, probes: &[Probe]) -> Result<Option<String>, Finding> {
    if probes.is_empty() {
        return Ok(None);
    }
    if let Some(probe) = probes.get(MAX_PROBES) {
        let message = format!(
            "the pod has {} probes and {MAX_PROBES} is the most that the proxy runs; make some an \
             `exec`",
            probes.len()
        );
        return Err(Finding::new(Kind::Probe, tree.start(probe.handler.key), message));
    }
    let tasks: Map<String, Json> =
        probes.iter().map(|probe| (probe.path.clone(), probe.task.clone())).collect();
    pillion_app_probes::write(&tasks).map(Some).map_err(|problems| {
        let longest = probes.iter().max_by_key(|probe| probe.task.to_string().len());
        let why: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let message = format!(
            "the pod's probes are too much for the proxy ({MAX_BYTES} bytes is the most): {}; \
             shorten this one, the longest",
            why.join(", ")
        );
        Finding::new(Kind::Probe, longest.map_or(0, |probe| tree.start(probe.handler.key)), message)
    })
}

/// What is wrong with a hook that the kubelet makes over the network; none for one of another
/// machine, which our rules do not see.
fn hook(tree: &Tree, kind: &str, handler: &Entry) -> Option<Finding> {
    if tree.text_of(handler.value, "host").is_some_and(|host| !host.is_empty()) {
        return None;
    }
    let message = match tree.text(handler.key)? {
        "httpGet" => format!(
            "the kubelet makes this {kind} without a certificate, so a port in strict mode turns it \
             away; make it an `exec`, or list its port and path in the policy's `inbound.probes`"
        ),
        _ => format!("the kubelet carries out no such {kind}; make it an `exec`"),
    };
    Some(Finding::new(Kind::Hook, tree.start(handler.key), message))
}

/// Handlers of ours, with the path that they ask for; in hooks, too, where 0.1.0 once put them.
pub(crate) fn stand_ins(tree: &Tree, container: &Container) -> Vec<(String, Entry)> {
    let ours = |place: Place| {
        let handler = tree.present(place, "httpGet")?;
        let path = tree.text_of(handler.value, "path")?;
        let port = tree.text_of(handler.value, "port").and_then(int)?;
        (path.starts_with(PREFIX) && port == i64::from(HEALTH_PORT))
            .then(|| (path.to_owned(), handler))
    };
    let places = places(tree, container.place).into_iter();
    places.filter_map(|(_, place)| ours(place)).collect()
}

/// Probes and hooks of a container.
fn places(tree: &Tree, container: Place) -> Vec<(&'static str, Place)> {
    let probes = PROBES.iter().filter_map(|kind| Some((*kind, tree.get(container, kind)?.value)));
    let lifecycle = tree.get(container, "lifecycle").map(|entry| entry.value);
    let hooks = HOOKS.iter().filter_map(|kind| Some((*kind, tree.get(lifecycle?, kind)?.value)));
    probes.chain(hooks).collect()
}

fn handler(tree: &Tree, probe: Place, found: &mut Vec<Finding>) -> Option<Entry> {
    let handlers: Vec<Entry> =
        HANDLERS.iter().filter_map(|name| tree.present(probe, name)).collect();
    if let [_, second, ..] = handlers.as_slice() {
        let message = "a probe has one handler; leave one of them out";
        found.push(Finding::new(Kind::Probe, tree.start(second.key), message));
        return None;
    }
    let name = |entry: &Entry| tree.text(entry.key).unwrap_or_default();
    let handler = handlers.into_iter().find(|entry| !["exec", "sleep"].contains(&name(entry)))?;
    let empty = tree.get(probe, "httpGet").filter(|entry| tree.is_null(entry.value));
    if let Some(empty) = empty {
        let message = "an `httpGet` without anything stands beside the probe's handler, where the \
                       sidecar's has to go; leave it out";
        found.push(Finding::new(Kind::Probe, tree.start(empty.key), message));
        return None;
    }
    Some(handler)
}

/// `None` for a handler with a host of its own.
fn task(
    tree: &Tree,
    container: &Container,
    probe: Place,
    handler: &Entry,
) -> Result<Option<Json>, Finding> {
    let place = handler.value;
    if tree.text_of(place, "host").is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    let name = tree.text(handler.key).unwrap_or_default();
    let port = port(tree, container, handler)?;
    let body = match name {
        "httpGet" => http(tree, place, port)?,
        "grpc" => {
            let service = tree.text_of(place, "service");
            service.map_or(json!({"port": port}), |s| json!({"port": port, "service": s}))
        }
        _ => json!({"port": port}),
    };
    let mut task = Map::new();
    task.insert(name.to_owned(), body);
    if let Some(entry) = tree.present(probe, "timeoutSeconds") {
        let seconds = tree.text(entry.value.node).and_then(int).filter(|seconds| *seconds > 0);
        let Some(seconds) = seconds else {
            let message = "timeoutSeconds is no number of seconds; write one from 1 on";
            return Err(Finding::new(Kind::Probe, tree.start(entry.key), message));
        };
        task.insert("timeoutSeconds".to_owned(), seconds.into());
    }
    Ok(Some(task.into()))
}

fn http(tree: &Tree, place: Place, port: i64) -> Result<Json, Finding> {
    let path = tree.text_of(place, "path").unwrap_or_default();
    // What has no target is refused with the proxy's words.
    let path = request_target(path).unwrap_or_else(|_| path.to_owned());
    let scheme = tree.text_of(place, "scheme").filter(|scheme| !scheme.is_empty());
    let scheme = scheme.unwrap_or("HTTP");
    let mut body = json!({"path": path, "port": port, "scheme": scheme});
    if !["HTTP", "HTTPS"].contains(&scheme) {
        let at = tree.get(place, "scheme").map_or(0, |entry| tree.start(entry.key));
        let message = format!("the scheme `{}` is unknown; write HTTP or HTTPS", printable(scheme));
        return Err(Finding::new(Kind::Probe, at, message));
    }
    let mut headers = Vec::new();
    for header in tree.get(place, "httpHeaders").iter().flat_map(|list| tree.items(list.value)) {
        let Some(name) = tree.text_of(header, "name") else {
            let message = "a header without a name; give it one";
            return Err(Finding::new(Kind::Probe, tree.start(header.node), message));
        };
        headers.push(json!({"name": name, "value": tree.text_of(header, "value").unwrap_or("")}));
    }
    if let Some(body) = body.as_object_mut().filter(|_| !headers.is_empty()) {
        body.insert("httpHeaders".to_owned(), headers.into());
    }
    Ok(body)
}

/// A number, or the name of one of this container's ports, as the kubelet resolves it.
fn port(tree: &Tree, container: &Container, handler: &Entry) -> Result<i64, Finding> {
    let Some(entry) = tree.present(handler.value, "port") else {
        let message = "this probe has no port; name one";
        return Err(Finding::new(Kind::Probe, tree.start(handler.key), message));
    };
    let text = tree.text(entry.value.node).unwrap_or_default();
    let ports = tree.get(container.place, "ports").map(|ports| tree.items(ports.value));
    let named = ports.into_iter().flatten().find(|port| tree.text_of(*port, "name") == Some(text));
    let number = match named {
        Some(port) => tree.text_of(port, "containerPort").and_then(int),
        // In quotes it is a string, which the kubelet takes for decimal digits.
        None if tree.is_quoted(entry.value) => text.parse().ok(),
        None => int(text),
    };
    number.filter(|port| (1..=65535).contains(port)).ok_or_else(|| {
        let message = format!(
            "container `{}` has no port `{}`; name one of its `ports`, or write a number",
            printable(&container.name),
            printable(text)
        );
        Finding::new(Kind::Probe, tree.start(entry.key), message)
    })
}
