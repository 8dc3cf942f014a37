//! Takes the sidecar out again, and puts back what was there before.

use serde_json::Value as Json;

use crate::diagnostic::{Finding, Kind};
use crate::edit::{Edited, Editor};
use crate::emit::Layout;
use crate::manifest::{Pod, pods};
use crate::probes::stand_ins;
use crate::record::{RECORD, Record};
use crate::sidecar::{IDENTITY_VOLUME, INIT, POLICY_VOLUME, PROXY};
use crate::tree::{Entry, Place, Tree, Value};

/// The text without any sidecar of ours: the same text where there is none.
pub(crate) fn clean(text: &str) -> Result<Edited, Vec<Finding>> {
    let tree = Tree::parse(text).map_err(|finding| vec![finding])?;
    let mut found = Vec::new();
    let mut editor = Editor::new(text, &tree);
    let pods = pods(&tree, &mut found);
    for pod in &pods {
        let Some((annotations, entry)) = record(&tree, pod) else { continue };
        let result = read(&tree, &entry)
            .and_then(|record| clean_pod(&tree, pod, (&annotations, &entry), &record, &mut editor));
        if let Err(mut finding) = result {
            finding.resource = Some(Box::new(pod.resource.clone()));
            found.push(finding);
        }
    }
    if !found.is_empty() {
        return Err(found);
    }
    editor.apply().map_err(|finding| vec![finding])
}

/// A pod's `annotations`, and the one with the record.
fn record(tree: &Tree, pod: &Pod) -> Option<(Entry, Entry)> {
    let annotations = pod.annotations(tree)?;
    Some((annotations, tree.get(annotations.value, RECORD)?))
}

fn read(tree: &Tree, entry: &Entry) -> Result<Record, Finding> {
    let record = tree.text(entry.value.node).and_then(Record::read);
    record.ok_or_else(|| bad_record(tree.start(entry.key), "is not as pillion-inject writes it"))
}

fn bad_record(at: usize, what: &str) -> Finding {
    let message = format!(
        "the record in the annotation {RECORD} {what}; go back to the manifest as it was before"
    );
    Finding::new(Kind::BadRecord, at, message)
}

fn clean_pod(
    tree: &Tree,
    pod: &Pod,
    (annotations, entry): (&Entry, &Entry),
    record: &Record,
    editor: &mut Editor<'_>,
) -> Result<(), Finding> {
    // What is wrong with the containers themselves is for the next injection to say.
    for container in pod.containers(tree, &mut Vec::new()) {
        for (path, handler) in stand_ins(tree, &container) {
            let Some((text, column)) = record.probes.get(&path) else {
                return Err(bad_record(tree.start(handler.key), "has no original of this probe"));
            };
            put_back(editor, &handler, text, *column)?;
        }
    }
    let spec = pod.spec.value;
    let mut emptied = Vec::new();
    for (key, names) in
        [("initContainers", [INIT, PROXY]), ("volumes", [POLICY_VOLUME, IDENTITY_VOLUME])]
    {
        let Some(list) = tree.get(spec, key) else { continue };
        let items = tree.items(list.value);
        let ours = |item: &Place| tree.text_of(*item, "name").is_some_and(|n| names.contains(&n));
        let gone: Vec<usize> =
            items.iter().enumerate().filter(|(_, item)| ours(item)).map(|(n, _)| n).collect();
        if gone.is_empty() {
            continue;
        }
        if gone.len() < items.len() {
            editor.remove_items(list.value, &gone)?;
        } else if let Some(text) = record.empty.get(key) {
            editor.refill(&list, text)?;
        } else {
            emptied.push(list.index);
        }
    }
    if !emptied.is_empty() {
        editor.remove_entries(spec, &emptied)?;
    }
    clean_metadata(tree, pod, (annotations, entry), record, editor)
}

/// Takes the record out, and the mappings that had nothing else.
fn clean_metadata(
    tree: &Tree,
    pod: &Pod,
    (annotations, entry): (&Entry, &Entry),
    record: &Record,
    editor: &mut Editor<'_>,
) -> Result<(), Finding> {
    let size = |place| match tree.value(place) {
        Some(Value::Map(_, entries)) => entries.len(),
        _ => 0,
    };
    if size(annotations.value) > 1 {
        return editor.remove_entries(annotations.value, &[entry.index]);
    }
    if let Some(text) = record.empty.get("annotations") {
        return editor.refill(annotations, text);
    }
    let Some(metadata) = tree.get(pod.holder, "metadata") else { return Ok(()) };
    if size(metadata.value) > 1 {
        return editor.remove_entries(metadata.value, &[annotations.index]);
    }
    match record.empty.get("metadata") {
        Some(text) => editor.refill(&metadata, text),
        None => editor.remove_entries(pod.holder, &[metadata.index]),
    }
}

/// The bytes themselves; where another program has written the file anew, what they say.
fn put_back(
    editor: &mut Editor<'_>,
    handler: &Entry,
    text: &str,
    column: Option<usize>,
) -> Result<(), Finding> {
    if editor.fits(handler, column) {
        return editor.restore(handler, text);
    }
    let document = match column {
        Some(column) => format!("{:column$}{text}", ""),
        None => format!("{{{text}}}"),
    };
    let tree = Tree::parse(&document).ok();
    let value = tree.as_ref().and_then(|tree| {
        let entry = *tree.entries(tree.place(*tree.documents.first()?)).first()?;
        Some((tree.text(entry.key)?, value(tree, entry.value, &mut 1000)?))
    });
    let Some((key, value)) = value else {
        return Err(bad_record(0, "has a probe that cannot be read without its anchors"));
    };
    editor.exchange(handler, (key, &value), Layout { step: 2, dash: 0 }).map(|_| ())
}

/// A small value; `None` for one of more than `left` parts.
fn value(tree: &Tree, place: Place, left: &mut usize) -> Option<Json> {
    *left = left.checked_sub(1)?;
    Some(match tree.value(place)? {
        Value::Map(..) => {
            let entries = tree.effective(place).into_iter();
            let pair = |entry: Entry| {
                Some((tree.text(entry.key)?.to_owned(), value(tree, entry.value, left)?))
            };
            Json::Object(entries.map(pair).collect::<Option<_>>()?)
        }
        Value::Seq(..) => {
            let items = tree.items(place).into_iter();
            Json::Array(items.map(|item| value(tree, item, left)).collect::<Option<_>>()?)
        }
        Value::Scalar { plain: true, text } => match text.as_str() {
            _ if tree.is_null(place) => Json::Null,
            "true" => true.into(),
            "false" => false.into(),
            text => text.parse::<i64>().map_or_else(|_| text.into(), Json::from),
        },
        Value::Scalar { text, .. } => text.as_str().into(),
        Value::Alias(_) => return None,
    })
}
