//! Templates of pods in kinds that are unknown here: they pass through, and somebody has to be told.

use std::collections::HashSet;

use crate::diagnostic::{Finding, Kind, Resource};
use crate::options::{ANNOTATION_PREFIX, Settings};
use crate::tree::{Place, Tree};

/// A template of pods that gets no sidecar.
pub(crate) struct Unknown {
    resource: Resource,
    /// The `metadata` beside its `spec`, if there is one.
    metadata: Option<Place>,
    /// The key `containers`.
    at: usize,
}

/// The first template of pods below `root`: a list `containers` whose items have images.
pub(crate) fn find(tree: &Tree, root: Place, resource: &Resource) -> Option<Unknown> {
    let mut stack = vec![(root, None)];
    // What is shared is looked into once.
    let mut seen = HashSet::new();
    while let Some((place, metadata)) = stack.pop() {
        if !seen.insert(place.node) {
            continue;
        }
        if let Some(containers) = tree.present(place, "containers") {
            let mut items = tree.items(containers.value).into_iter();
            if items.any(|item| tree.text_of(item, "image").is_some_and(is_image)) {
                let at = tree.start(containers.key);
                return Some(Unknown { resource: resource.clone(), metadata, at });
            }
        }
        let beside = tree.get(place, "metadata").map(|entry| entry.value);
        let entries = tree.effective(place);
        let below = entries.iter().map(|entry| {
            let is_spec = tree.text(entry.key) == Some("spec");
            (entry.value, beside.filter(|_| is_spec))
        });
        // In the file's order.
        stack.extend(below.collect::<Vec<_>>().into_iter().rev());
        stack.extend(tree.items(place).into_iter().rev().map(|item| (item, None)));
    }
    None
}

/// Of a policy's pattern (`*:latest`) no pod comes.
fn is_image(text: &str) -> bool {
    let image = |c: char| c.is_ascii_alphanumeric() || "./:@_-".contains(c);
    !text.is_empty() && text.chars().all(image)
}

/// The warning, unless the template is left alone by choice.
pub(crate) fn warning(tree: &Tree, unknown: &Unknown, settings: &Settings) -> Option<Finding> {
    let annotation = format!("{ANNOTATION_PREFIX}inject");
    let annotations = unknown.metadata.and_then(|metadata| tree.get(metadata, "annotations"));
    let annotated = annotations.and_then(|entry| tree.text_of(entry.value, &annotation));
    if annotated.unwrap_or_else(|| settings.get("inject")) == "false" {
        return None;
    }
    let kind = crate::diagnostic::printable(&unknown.resource.kind);
    let message = format!(
        "pillion-inject does not know the kind `{kind}`, so the pods of this template get no \
         sidecar; put it in by hand, or annotate the template {annotation}: \"false\" if they need \
         none"
    );
    let mut finding = Finding::new(Kind::NotInjected, unknown.at, message);
    finding.resource = Some(Box::new(unknown.resource.clone()));
    Some(finding)
}
