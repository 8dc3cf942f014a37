//! Injection as data, written apart from the engine and without its code: what a manifest has to
//! mean in the end.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What a pod gets besides its probes, from a manifest that is reviewed.
const SIDECAR: &str = include_str!("../golden/nginx.yaml");

/// The documents of a text, merged keys in their places, read by libyaml.
pub(crate) fn read(text: &str) -> Vec<Value> {
    let documents = serde_norway::Deserializer::from_str(text.trim_start_matches('\u{feff}'));
    let read = |document| {
        let mut value = serde_norway::Value::deserialize(document).expect("it is YAML");
        value.apply_merge().expect("merge keys are mappings");
        serde_json::to_value(strip(value)).expect("its keys are strings")
    };
    documents.map(read).collect()
}

/// Without tags, which JSON cannot have.
fn strip(value: serde_norway::Value) -> serde_norway::Value {
    match value {
        serde_norway::Value::Tagged(tagged) => tagged.value,
        other => other,
    }
}

/// Every pod of a document with its sidecar.
pub(crate) fn inject(document: &mut Value) {
    if document["kind"] == "List" {
        document["items"].as_array_mut().into_iter().flatten().for_each(inject);
    }
    let Some(pod) = pod(document) else { return };
    let sidecar = &read(SIDECAR)[0]["spec"]["template"]["spec"];
    let mut tasks = Map::new();
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            redirect(container, &mut tasks);
        }
    }
    let mut containers = sidecar["initContainers"].as_array().expect("a list").clone();
    if !tasks.is_empty() {
        let env = json!([{"name": "PILLION_APP_PROBES", "value": tasks}]);
        containers[1]["env"] = env;
    }
    let volumes = sidecar["volumes"].as_array().expect("a list").clone();
    for (key, mut items) in [("initContainers", containers), ("volumes", volumes)] {
        items.extend(pod["spec"][key].as_array().into_iter().flatten().cloned());
        pod["spec"][key] = items.into();
    }
}

fn pod(document: &mut Value) -> Option<&mut Value> {
    let is = |version| document["apiVersion"] == version;
    match document["kind"].as_str()? {
        "Pod" if is("v1") => Some(document),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" if is("apps/v1") => {
            Some(&mut document["spec"]["template"])
        }
        "ReplicationController" if is("v1") => Some(&mut document["spec"]["template"]),
        "PodTemplate" if is("v1") => Some(&mut document["template"]),
        "Job" if is("batch/v1") => Some(&mut document["spec"]["template"]),
        "CronJob" if is("batch/v1") => {
            Some(&mut document["spec"]["jobTemplate"]["spec"]["template"])
        }
        _ => None,
    }
}

fn redirect(container: &mut Value, tasks: &mut Map<String, Value>) {
    let ports = container["ports"].clone();
    let name = container["name"].as_str().expect("a name").to_owned();
    for field in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let Some(Value::Object(probe)) = container.get_mut(field) else { continue };
        let kinds = ["httpGet", "tcpSocket", "grpc"];
        let Some(kind) = kinds.iter().find(|kind| probe.contains_key(**kind)) else { continue };
        let mut handler = probe.remove(*kind).expect("it is there");
        if let Some(named) = handler["port"].as_str() {
            let port = ports.as_array().into_iter().flatten().find(|port| port["name"] == named);
            handler["port"] = port.expect("it is named")["containerPort"].clone();
        }
        if *kind == "httpGet" {
            let path = handler.get("path").and_then(Value::as_str).unwrap_or_default();
            let path = pillion_app_probes::request_target(path).expect("a path alone");
            handler["path"] = path.into();
            let handler = handler.as_object_mut().expect("a mapping");
            handler.entry("scheme").or_insert("HTTP".into());
        }
        let path = format!("/app-health/{name}/{field}");
        let mut task = json!({*kind: handler});
        if let Some(seconds) = probe.get("timeoutSeconds") {
            task["timeoutSeconds"] = seconds.clone();
        }
        tasks.insert(path.clone(), task);
        probe.insert("httpGet".to_owned(), json!({"path": path, "port": 15021}));
    }
}

/// What both sides of a comparison have to lose: the record, annotations and metadata that are
/// empty, and the spelling of JSON in a string. Also the order of keys.
pub(crate) fn normal(document: &mut Value) {
    if document["kind"] == "List" {
        document["items"].as_array_mut().into_iter().flatten().for_each(normal);
    }
    let Some(pod) = pod(document) else { return };
    let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("pillion.dev/injected");
        }
        if metadata.get("annotations").is_some_and(empty) {
            metadata.remove("annotations");
        }
    }
    if pod.get("metadata").is_some_and(empty) {
        pod.as_object_mut().expect("a mapping").remove("metadata");
    }
    for container in pod["spec"]["initContainers"].as_array_mut().into_iter().flatten() {
        for variable in container["env"].as_array_mut().into_iter().flatten() {
            if variable["name"] == "PILLION_APP_PROBES" && variable["value"].is_string() {
                let text = variable["value"].as_str().expect("a string");
                assert!(!text.contains("$("), "the kubelet would expand it");
                variable["value"] = serde_json::from_str(text).expect("JSON");
            }
        }
        // An index that finds nothing leaves null behind.
        if container["env"].is_null() {
            container.as_object_mut().expect("a mapping").remove("env");
        }
    }
}
