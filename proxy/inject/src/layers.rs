//! Options from a `functionConfig` and from a pod's annotations, over those of flags and variables.

use crate::diagnostic::{Finding, Kind, printable};
use crate::manifest::{Pod, int};
use crate::options::{ANNOTATION_PREFIX, OPTIONS, Opt, Settings, find, nearest};
use crate::resources::of_options;
use crate::tree::{Entry, Place, Tree, Value};

/// The kind of a `functionConfig`.
pub const FUNCTION_KIND: &str = "PillionInject";

/// The one document of a run as a KRM function, if this is one.
pub(crate) fn resource_list(tree: &Tree) -> Option<Place> {
    let root = tree.place(*tree.documents.first()?);
    let group = tree.text_of(root, "apiVersion")?.split('/').next();
    let is_list = tree.text_of(root, "kind") == Some("ResourceList");
    (is_list && group == Some("config.kubernetes.io")).then_some(root)
}

/// With what a `ResourceList`'s `functionConfig` says.
pub(crate) fn configured(tree: &Tree, base: &Settings, found: &mut Vec<Finding>) -> Settings {
    let mut settings = base.clone();
    let config = resource_list(tree).and_then(|root| tree.present(root, "functionConfig"));
    let Some(config) = config else { return settings };
    if tree.text_of(config.value, "kind") != Some(FUNCTION_KIND) {
        let message =
            format!("this function is configured by another kind; write kind: {FUNCTION_KIND}");
        found.push(Finding::new(Kind::FunctionConfig, tree.start(config.key), message));
        return settings;
    }
    let spec = tree.present(config.value, "spec");
    for entry in spec.iter().flat_map(|spec| tree.effective(spec.value)) {
        let at = tree.start(entry.key);
        let name = tree.text(entry.key).unwrap_or_default();
        let Some(option) = OPTIONS.iter().find(|option| option.field() == name) else {
            let near = nearest(name, OPTIONS.iter().map(Opt::field));
            let name = printable(name);
            let message = format!("there is no option `{name}`; did you mean `{near}`?");
            found.push(Finding::new(Kind::FunctionConfig, at, message));
            continue;
        };
        let Some(value) = listed(tree, &entry) else {
            let message = format!("`{name}` is no text or list of texts; write one");
            found.push(Finding::new(Kind::FunctionConfig, at, message));
            continue;
        };
        set(&mut settings, option, &value, at, found);
    }
    settings
}

/// A scalar, or the scalars of a list with commas between them.
fn listed(tree: &Tree, entry: &Entry) -> Option<String> {
    if tree.is_null(entry.value) {
        return Some(String::new());
    }
    match tree.value(entry.value)? {
        Value::Scalar { text, .. } => Some(text.clone()),
        Value::Seq(..) => {
            let texts: Option<Vec<&str>> =
                tree.items(entry.value).iter().map(|item| tree.text(item.node)).collect();
            Some(texts?.join(","))
        }
        Value::Map(..) | Value::Alias(_) => None,
    }
}

/// With what a pod's annotations say.
pub(crate) fn annotated(
    tree: &Tree,
    pod: &Pod,
    base: &Settings,
    found: &mut Vec<Finding>,
) -> Settings {
    let mut settings = base.clone();
    let outer = pod.outer_metadata.and_then(|metadata| tree.get(metadata, "annotations"));
    for entry in outer.iter().flat_map(|outer| ours(tree, outer)) {
        let message = "only the pod template's annotations are read; move it to the template's \
                       metadata";
        found.push(Finding::new(Kind::MisplacedAnnotation, tree.start(entry.key), message));
    }
    let annotations = pod.annotations(tree);
    for entry in annotations.iter().flat_map(|annotations| ours(tree, annotations)) {
        let at = tree.start(entry.key);
        let key = tree.text(entry.key).unwrap_or_default();
        let name = key.strip_prefix(ANNOTATION_PREFIX).unwrap_or_default();
        let Some(option) = find(name) else {
            let near = nearest(key, OPTIONS.iter().map(Opt::annotation));
            let key = printable(key);
            let message = format!("there is no annotation `{key}`; did you mean `{near}`?");
            found.push(Finding::new(Kind::UnknownAnnotation, at, message));
            continue;
        };
        match string(tree, entry.value) {
            Some(value) => set(&mut settings, option, value, at, found),
            None => {
                let message = "an annotation's value is a string; quote it";
                found.push(Finding::new(Kind::BadValue, at, message));
            }
        }
    }
    let needs_signer = settings.get("identity") == "pod-certificate";
    if needs_signer && settings.get("signer-name").is_empty() && settings.get("inject") == "true" {
        let message = "identity pod-certificate needs a signer; say which one with --signer-name, \
                       or the annotation pillion.dev/signer-name";
        found.push(Finding::new(Kind::BadValue, tree.start(pod.spec.key), message));
    }
    if settings.get("inject") == "true" {
        let at = tree.start(pod.spec.key);
        let problems = of_options(&settings).into_iter();
        found.extend(problems.map(|problem| Finding::new(Kind::BadValue, at, problem)));
    }
    settings
}

fn ours(tree: &Tree, annotations: &Entry) -> Vec<Entry> {
    let entries = tree.effective(annotations.value).into_iter();
    let is_ours =
        |entry: &Entry| tree.text(entry.key).is_some_and(|key| key.starts_with(ANNOTATION_PREFIX));
    entries.filter(is_ours).collect()
}

/// What the API server takes for a string.
fn string(tree: &Tree, place: Place) -> Option<&str> {
    const OTHERS: [&str; 8] = ["true", "false", "yes", "no", "on", "off", "y", "n"];
    match tree.value(place)? {
        Value::Scalar { text, plain: false } => Some(text),
        Value::Scalar { text, .. } => {
            let typed = OTHERS.contains(&text.to_lowercase().as_str())
                || int(text).is_some()
                || text.parse::<f64>().is_ok()
                || tree.is_null(place);
            (!typed).then_some(text)
        }
        _ => None,
    }
}

fn set(
    settings: &mut Settings,
    option: &'static Opt,
    value: &str,
    at: usize,
    found: &mut Vec<Finding>,
) {
    if let Err(problem) = settings.set(option, value) {
        found.push(Finding::new(Kind::BadValue, at, problem));
    }
}
