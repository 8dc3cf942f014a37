//! Runs as a KRM function: `ResourceList` in, `ResourceList` out (KRM Functions Specification, v1).

use serde_json::{Map, Value, json};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::layers::resource_list;
use crate::tree::Tree;

/// True for the input of a KRM function; false also for what cannot be read.
#[must_use]
pub fn is_resource_list(text: &str) -> bool {
    Tree::parse(text).is_ok_and(|tree| resource_list(&tree).is_some())
}

/// What a KRM function prints when it fails: the errors as `results`, and no items, so that nobody
/// who overlooks the exit code can apply pods without their sidecar.
#[must_use]
pub fn refusal(errors: &Diagnostics) -> String {
    let results: Vec<Value> = errors.as_slice().iter().map(result).collect();
    let list = json!({
        "apiVersion": "config.kubernetes.io/v1",
        "kind": "ResourceList",
        "items": [],
        "results": results,
    });
    format!("{list:#}\n")
}

fn result(diagnostic: &Diagnostic) -> Value {
    let Diagnostic { kind, line, column, resource, message, .. } = diagnostic;
    let mut result = Map::new();
    result.insert("message".to_owned(), message.as_str().into());
    result.insert("severity".to_owned(), kind.severity().as_str().into());
    let place = (line.to_string(), column.to_string());
    let tags = json!({"kind": kind.slug(), "line": place.0, "column": place.1});
    result.insert("tags".to_owned(), tags);
    if let Some(resource) = resource {
        let mut reference = Map::new();
        for (key, text) in [
            ("apiVersion", &resource.api_version),
            ("kind", &resource.kind),
            ("name", &resource.name),
            ("namespace", &resource.namespace),
        ] {
            if !text.is_empty() {
                reference.insert(key.to_owned(), text.as_str().into());
            }
        }
        result.insert("resourceRef".to_owned(), reference.into());
    }
    result.into()
}
