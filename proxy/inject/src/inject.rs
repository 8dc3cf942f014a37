//! Puts the sidecar into every pod of a text.

use serde_json::{Value as Json, json};

use crate::checks::{check, secret_readers};
use crate::diagnostic::{Finding, Kind, Severity};
use crate::edit::{Editor, shared};
use crate::emit::Layout;
use crate::layers::{annotated, configured};
use crate::manifest::{Container, Pod, resources};
use crate::options::Settings;
use crate::probes::{self, Probe, stand_in};
use crate::record::{RECORD, Record};
use crate::resources;
use crate::sidecar::Sidecar;
use crate::tree::{Entry, Tree};
use crate::uninject::clean;
use crate::unknown;

/// The new text, and warnings; or what refuses it.
pub(crate) fn inject(
    text: &str,
    settings: &Settings,
) -> Result<(String, Vec<Finding>), Vec<Finding>> {
    // One way to do it: what was injected before, by whatever version, is taken out first.
    let before = clean(text)?;
    let mut found = Vec::new();
    let after = plan(&before.text, settings, &mut found);
    for finding in &mut found {
        finding.at = before.origin(finding.at);
    }
    let Some(after) = after.filter(|_| !has_errors(&found)) else { return Err(found) };
    // What this promises is worth nothing if it cannot be undone, so it is tried.
    if clean(&after).ok().is_none_or(|again| again.text != before.text) {
        let message = "the sidecar could not be taken out of this again; write the pods in \
                       ordinary block style";
        return Err(vec![Finding::new(Kind::NotReversible, 0, message)]);
    }
    Ok((after, found))
}

fn has_errors(found: &[Finding]) -> bool {
    found.iter().any(|finding| finding.kind.severity() == Severity::Error)
}

fn plan(text: &str, settings: &Settings, found: &mut Vec<Finding>) -> Option<String> {
    let tree = match Tree::parse(text) {
        Ok(tree) => tree,
        Err(finding) => {
            found.push(finding);
            return None;
        }
    };
    let settings = configured(&tree, settings, found);
    let mut editor = Editor::new(text, &tree);
    let (pods, unknown) = resources(&tree, found);
    found.extend(unknown.iter().filter_map(|it| unknown::warning(&tree, it, &settings)));
    for pod in pods {
        let mut own = Vec::new();
        if let Err(finding) = plan_pod(&tree, &pod, &settings, &mut editor, &mut own) {
            own.push(finding);
        }
        for finding in &mut own {
            finding.resource = Some(Box::new(pod.resource.clone()));
        }
        found.append(&mut own);
    }
    if let Some((anchor, _)) = tree.anchor_used_outside(&editor.replaced()) {
        found.push(shared(anchor));
    }
    match editor.apply() {
        Ok(edited) => Some(edited.text),
        Err(finding) => {
            found.push(finding);
            None
        }
    }
}

fn plan_pod(
    tree: &Tree,
    pod: &Pod,
    settings: &Settings,
    editor: &mut Editor<'_>,
    found: &mut Vec<Finding>,
) -> Result<(), Finding> {
    let settings = annotated(tree, pod, settings, found);
    if settings.get("inject") == "false" {
        return Ok(());
    }
    let containers = pod.containers(tree, found);
    check(tree, pod, &containers, found);
    found.extend(secret_readers(tree, pod, &containers, &settings));
    found.extend(resources::of_pod(tree, pod, &containers, &settings));
    let probes: Vec<Probe> =
        containers.iter().flat_map(|container| probes::find(tree, container, found)).collect();
    // What is wrong already would be found wrong again.
    if has_errors(found) {
        return Ok(());
    }
    let list = tree.get(pod.spec.value, "containers");
    let Some(list) = list.filter(|_| containers.iter().any(Container::is_app)) else {
        let message = "this pod has no containers; name one";
        return Err(Finding::new(Kind::WrongType, tree.start(pod.spec.key), message));
    };
    let layout = editor.layout(&pod.spec, Some(&list));

    let sidecar = Sidecar::new(&settings, probes::variable(tree, &probes)?);
    let mut record = Record::default();
    for Probe { path, handler, .. } in probes {
        let (name, asks) = stand_in(&path);
        let was = editor.exchange(&handler, (name, &asks), layout)?;
        record.probes.insert(path, was);
    }
    for (key, items) in [("initContainers", sidecar.containers), ("volumes", sidecar.volumes)] {
        match tree.get(pod.spec.value, key) {
            None => {
                let entry = (key, &Json::Array(items));
                editor.insert_entry(pod.spec.value, Some(&list), entry, layout)?;
            }
            Some(entry) if tree.is_empty(entry.value) => {
                let was = editor.fill(&entry, &Json::Array(items), layout)?;
                record.empty.insert(key.to_owned(), was);
            }
            Some(entry) => editor.insert_items(entry.value, &items, layout)?,
        }
    }
    annotate(tree, pod, record, editor, layout)
}

/// Puts the record where it belongs, with the mappings around it that are not there.
fn annotate(
    tree: &Tree,
    pod: &Pod,
    mut record: Record,
    editor: &mut Editor<'_>,
    layout: Layout,
) -> Result<(), Finding> {
    let filled = |entry: &Entry| !tree.is_empty(entry.value);
    let metadata = tree.get(pod.holder, "metadata");
    let annotations = metadata.and_then(|entry| tree.get(entry.value, "annotations"));
    let wrap = |record: &Record| json!({RECORD: record.write()});

    if let Some(entry) = annotations.filter(filled) {
        let entry_of_ours = (RECORD, &Json::from(record.write()));
        return editor.insert_entry(entry.value, None, entry_of_ours, layout);
    }
    if let Some(entry) = annotations {
        record.empty.insert("annotations".to_owned(), editor.behind_colon(&entry)?);
        return editor.fill(&entry, &wrap(&record), layout).map(|_| ());
    }
    if let Some(entry) = metadata.filter(filled) {
        return editor.insert_entry(entry.value, None, ("annotations", &wrap(&record)), layout);
    }
    if let Some(entry) = metadata {
        record.empty.insert("metadata".to_owned(), editor.behind_colon(&entry)?);
        let value = json!({"annotations": wrap(&record)});
        return editor.fill(&entry, &value, layout).map(|_| ());
    }
    let value = json!({"annotations": wrap(&record)});
    editor.insert_entry(pod.holder, Some(&pod.spec), ("metadata", &value), layout)
}
