//! Random workloads, as data.

use fastrand::Rng;
use serde_json::{Map, Value, json};

/// A workload, or something that is none.
pub(crate) fn document(rng: &mut Rng) -> Value {
    match rng.u32(0..8) {
        0 => json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"pod.yaml": text(rng)}}),
        1 => {
            let items: Vec<Value> = (0..rng.usize(0..3)).map(|_| workload(rng)).collect();
            json!({"apiVersion": "v1", "kind": "List", "items": items})
        }
        _ => workload(rng),
    }
}

fn workload(rng: &mut Rng) -> Value {
    let mut pod = Map::new();
    pod.insert("spec".to_owned(), spec(rng));
    if let Some(metadata) = metadata(rng) {
        pod.insert("metadata".to_owned(), metadata);
    }
    let kinds = [
        "Pod",
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "ReplicationController",
        "PodTemplate",
        "Job",
        "CronJob",
    ];
    let kind = kinds[rng.usize(..kinds.len())];
    let mut whole = match kind {
        "Pod" => pod,
        "PodTemplate" => {
            shuffled(rng, vec![("template", Value::Object(pod)), ("metadata", json!({}))])
        }
        "CronJob" => {
            let job = json!({"spec": {"template": pod}});
            shuffled(rng, vec![("spec", json!({"schedule": "* * * * *", "jobTemplate": job}))])
        }
        _ => {
            let inner = vec![("template", Value::Object(pod)), ("replicas", json!(2))];
            let inner = shuffled(rng, inner);
            shuffled(rng, vec![("metadata", json!({"name": "x"})), ("spec", inner.into())])
        }
    };
    let version = match kind {
        "Pod" | "PodTemplate" | "ReplicationController" => "v1",
        "Job" | "CronJob" => "batch/v1",
        _ => "apps/v1",
    };
    whole.insert("apiVersion".to_owned(), version.into());
    whole.insert("kind".to_owned(), kind.into());
    let entries: Vec<(String, Value)> = whole.into_iter().collect();
    shuffled(rng, entries).into()
}

/// None, null, empty, or with or without annotations in every form.
fn metadata(rng: &mut Rng) -> Option<Value> {
    let mut metadata = match rng.u32(0..6) {
        0 => return None,
        1 => return Some(Value::Null),
        2 => return Some(json!({})),
        3 => vec![],
        _ => vec![("name", json!("p")), ("labels", json!({"app": "ü", "n": "1"}))],
    };
    match rng.u32(0..5) {
        0 => metadata.push(("annotations", Value::Null)),
        1 => metadata.push(("annotations", json!({}))),
        2 => metadata.push(("annotations", json!({"a/b": text(rng), "c": "d"}))),
        _ => {}
    }
    Some(shuffled(rng, metadata).into())
}

fn spec(rng: &mut Rng) -> Value {
    let containers: Vec<Value> = (0..rng.usize(1..4)).map(|n| container(rng, n)).collect();
    let mut spec = vec![("containers", Value::Array(containers))];
    if rng.bool() {
        spec.push(("restartPolicy", json!("Always")));
    }
    let lists = [
        ("initContainers", json!({"name": "before", "image": "b", "command": ["a", text(rng)]})),
        ("volumes", json!({"name": "tmp", "emptyDir": {}})),
    ];
    for (key, item) in lists {
        match rng.u32(0..5) {
            0 => spec.push((key, Value::Null)),
            1 => spec.push((key, json!([]))),
            2 => spec.push((key, json!([item]))),
            _ => {}
        }
    }
    shuffled(rng, spec).into()
}

fn container(rng: &mut Rng, number: usize) -> Value {
    let mut container = vec![
        ("name", json!(format!("c{number}"))),
        ("image", json!("registry.example/a:1")),
        ("ports", json!([{"name": "http", "containerPort": 8080}, {"containerPort": 9000}])),
    ];
    if rng.bool() {
        container.push(("args", json!([text(rng), text(rng)])));
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if rng.bool() {
            container.push((kind, probe(rng)));
        }
    }
    if rng.bool() {
        let hook = handler(rng);
        let key = if rng.bool() { "postStart" } else { "preStop" };
        container.push(("lifecycle", json!({key: hook})));
    }
    shuffled(rng, container).into()
}

fn probe(rng: &mut Rng) -> Value {
    let Value::Object(mut probe) = handler(rng) else { return Value::Null };
    if rng.bool() {
        probe.insert("timeoutSeconds".to_owned(), rng.u32(1..9).into());
    }
    if rng.bool() {
        probe.insert("periodSeconds".to_owned(), 3.into());
    }
    shuffled(rng, probe.into_iter().collect()).into()
}

fn handler(rng: &mut Rng) -> Value {
    let port = if rng.bool() { json!("http") } else { json!(8080) };
    match rng.u32(0..6) {
        0 => json!({"exec": {"command": ["true"]}}),
        1 => json!({"tcpSocket": {"port": port}}),
        2 => json!({"grpc": {"port": 9000, "service": "a.B"}}),
        3 => json!({"httpGet": {"port": port}}),
        4 => json!({"httpGet": {"path": "/ü?a=$(B)", "port": port, "scheme": "HTTPS"}}),
        _ => {
            let headers = json!([{"name": "X-A", "value": "it's \"b\": #c"}]);
            json!({"httpGet": {"httpHeaders": headers, "path": "/x", "port": port}})
        }
    }
}

/// What might be taken for something else.
pub(crate) fn text(rng: &mut Rng) -> String {
    const TEXTS: [&str; 10] = [
        "plain",
        "a: b # c",
        "containers:\n- name: x\n",
        "---\nkind: Pod\n...",
        "# no comment\n\n\nlast\n\n",
        "true",
        "it's\ttabbed",
        "  leading",
        "ünï🚀",
        "",
    ];
    TEXTS[rng.usize(..TEXTS.len())].to_owned()
}

fn shuffled<K: Into<String>>(rng: &mut Rng, mut entries: Vec<(K, Value)>) -> Map<String, Value> {
    rng.shuffle(&mut entries);
    entries.into_iter().map(|(key, value)| (key.into(), value)).collect()
}
