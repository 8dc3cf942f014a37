//! Reads the YAML and JSON of `examples/` as values.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// One document of a file.
pub(crate) struct Manifest {
    /// The file, relative to the top folder of the repository.
    pub(crate) file: String,
    /// What it says.
    pub(crate) value: Value,
}

impl Manifest {
    /// What it is, for a failure's message: file, kind and name.
    pub(crate) fn place(&self) -> String {
        format!("{} {}/{}", self.file, self.kind(), text(&self.value["metadata"]["name"]))
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> &str {
        text(&self.value["kind"])
    }

    /// What its pods are made of: the pod's metadata and spec. `None` for what makes no pods.
    pub(crate) fn pod_template(&self) -> Option<&Value> {
        match self.kind() {
            "CronJob" => Some(&self.value["spec"]["jobTemplate"]["spec"]["template"]),
            _ => self.value["spec"].get("template"),
        }
    }
}

/// Every document of every YAML file below a folder, in a stable order; both paths are relative to `root`.
pub(crate) fn manifests(root: &Path, folder: &str) -> Vec<Manifest> {
    let mut files = Vec::new();
    yaml_files(&root.join(folder), &mut files);
    let mut found = Vec::new();
    for path in files {
        let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let values = documents(&file, &fs::read_to_string(&path).unwrap());
        found.extend(values.into_iter().map(|value| Manifest { file: file.clone(), value }));
    }
    assert!(!found.is_empty(), "{folder} has no manifest");
    found
}

/// The documents of a YAML text. `name` stands in the message of a failure.
#[track_caller]
pub(crate) fn documents(name: &str, text: &str) -> Vec<Value> {
    let read = |document| {
        // A key that comes twice is an error here, and to JSON's values it is not.
        let mut value = serde_norway::Value::deserialize(document)?;
        value.apply_merge()?;
        serde_norway::from_value(value)
    };
    let text = text.trim_start_matches('\u{feff}');
    let read: Result<Vec<Value>, _> =
        serde_norway::Deserializer::from_str(text).map(read).collect();
    let mut documents = read.unwrap_or_else(|error| panic!("{name}: {error}"));
    documents.retain(|document| !document.is_null());
    documents.iter_mut().for_each(octal_modes);
    documents
}

/// A file's mode is octal: `0440` is a number to Kubernetes, which reads YAML 1.1, and words to YAML 1.2. That it is not
/// in quotes, the schemas see (`make kubernetes`).
fn octal_modes(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(octal_modes),
        Value::Object(entries) => {
            for (key, value) in entries {
                let mode = value.as_str().filter(|_| key == "defaultMode" || key == "mode");
                match mode.and_then(|mode| u32::from_str_radix(mode.strip_prefix('0')?, 8).ok()) {
                    Some(mode) => *value = mode.into(),
                    None => octal_modes(value),
                }
            }
        }
        _ => {}
    }
}

/// A string, or nothing.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A list's items; none where there is no list.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The item of a list that has this name.
pub(crate) fn named<'v>(list: &'v Value, name: &str) -> Option<&'v Value> {
    items(list).iter().find(|item| item["name"] == name)
}

fn yaml_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
}
