//! Where the pods are in a file of manifests, and what their scalars mean.

use std::collections::HashSet;

use crate::diagnostic::{Finding, Kind, Resource};
use crate::tree::{Entry, Id, Place, Tree, Value};
use crate::unknown::{self, Unknown};

/// Kind, group of its `apiVersion`, and the keys that lead to the pod's `metadata` and `spec`.
const WORKLOADS: &[(&str, &str, &[&str])] = &[
    ("Pod", "", &[]),
    ("Deployment", "apps", &["spec", "template"]),
    ("StatefulSet", "apps", &["spec", "template"]),
    ("DaemonSet", "apps", &["spec", "template"]),
    ("ReplicaSet", "apps", &["spec", "template"]),
    ("ReplicationController", "", &["spec", "template"]),
    ("PodTemplate", "", &["template"]),
    ("Job", "batch", &["spec", "template"]),
    ("CronJob", "batch", &["spec", "jobTemplate", "spec", "template"]),
];
/// Lists in lists.
const MAX_LISTS: usize = 8;

/// The kinds that get a sidecar, as the documentation lists them.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    WORKLOADS.iter().map(|(kind, ..)| *kind)
}

/// A pod, or a template of pods.
pub(crate) struct Pod {
    pub(crate) resource: Resource,
    /// What has its `metadata` and `spec`.
    pub(crate) holder: Place,
    pub(crate) spec: Entry,
    /// The resource's own metadata, where that is not the pod's.
    pub(crate) outer_metadata: Option<Place>,
    /// A StatefulSet's `volumeClaimTemplates`, which are volumes of the pod, too.
    pub(crate) claims: Vec<Place>,
}

/// A container of a pod.
pub(crate) struct Container {
    pub(crate) place: Place,
    pub(crate) name: String,
    /// The key of the pod's `spec` that it stands under.
    pub(crate) list: &'static str,
    pub(crate) at: usize,
}

impl Container {
    /// One of `containers`, without which there is no pod.
    pub(crate) fn is_app(&self) -> bool {
        self.list == "containers"
    }
}

/// Every pod of the documents, in their order.
pub(crate) fn pods(tree: &Tree, found: &mut Vec<Finding>) -> Vec<Pod> {
    resources(tree, found).0
}

/// The same, and the templates of pods in kinds that are unknown.
pub(crate) fn resources(tree: &Tree, found: &mut Vec<Finding>) -> (Vec<Pod>, Vec<Unknown>) {
    let (pods, unknown) = (Vec::new(), Vec::new());
    let mut visitor = Visitor { tree, seen: HashSet::new(), pods, unknown, found };
    for &root in &tree.documents {
        visitor.visit(tree.place(root), None, MAX_LISTS);
    }
    (visitor.pods, visitor.unknown)
}

struct Visitor<'t> {
    tree: &'t Tree,
    /// Lists whose items are aliases of lists must not grow without bound. What an alias shares
    /// cannot be changed anyway, and once is enough to say so.
    seen: HashSet<Id>,
    pods: Vec<Pod>,
    unknown: Vec<Unknown>,
    found: &'t mut Vec<Finding>,
}

impl Visitor<'_> {
    fn visit(&mut self, place: Place, of_list: Option<(&str, &str)>, lists: usize) {
        let tree = self.tree;
        if !self.seen.insert(place.node) {
            return;
        }
        let text = |key| tree.text_of(place, key);
        let kind = text("kind").or(of_list.map(|(kind, _)| kind)).unwrap_or_default();
        let version =
            text("apiVersion").or(of_list.map(|(_, version)| version)).unwrap_or_default();
        if let Some(item) = kind.strip_suffix("List") {
            if lists == 0 {
                let message = "lists in lists in lists; write the resources as documents";
                self.found.push(Finding::new(Kind::TooDeep, tree.start(place.node), message));
                return;
            }
            let items = tree.get(place, "items").map(|items| tree.items(items.value));
            for item_place in items.into_iter().flatten() {
                self.visit(item_place, Some((item, version)), lists - 1);
            }
        }
        let (group, _) = version.split_once('/').unwrap_or(("", version));
        // These kinds were in `extensions` before they were in `apps`.
        let group = if group == "extensions" { "apps" } else { group };
        let workload = WORKLOADS.iter().find(|(name, of, _)| *name == kind && *of == group);
        // In a workload every key counts, elsewhere those that say what it is.
        let mut problems = tree.duplicate_keys(place.node, workload.is_some());
        let metadata = tree.get(place, "metadata").map(|entry| entry.value);
        let named =
            |key| metadata.and_then(|m| tree.text_of(m, key)).unwrap_or_default().to_owned();
        let resource = Resource {
            api_version: version.to_owned(),
            kind: kind.to_owned(),
            name: named("name"),
            namespace: named("namespace"),
        };
        let Some((.., path)) = workload else {
            self.found.extend(problems);
            if !kind.is_empty() && !kind.ends_with("List") {
                self.unknown.extend(unknown::find(tree, place, &resource));
            }
            return;
        };
        match pod(tree, place, path) {
            Ok((holder, spec)) => {
                let outer_metadata = metadata.filter(|_| !path.is_empty());
                let claims = tree.get(place, "spec").filter(|_| kind == "StatefulSet");
                let claims = claims.and_then(|spec| tree.get(spec.value, "volumeClaimTemplates"));
                let claims = claims.map(|list| tree.items(list.value)).unwrap_or_default();
                let resource = resource.clone();
                self.pods.push(Pod { resource, holder, spec, outer_metadata, claims });
            }
            Err(problem) => problems.push(problem),
        }
        for problem in &mut problems {
            problem.resource = Some(Box::new(resource.clone()));
        }
        self.found.extend(problems);
    }
}

fn pod(tree: &Tree, mut holder: Place, path: &[&str]) -> Result<(Place, Entry), Finding> {
    let below = |place: Place, key: &str| {
        let entry = tree.present(place, key);
        let map = entry.filter(|entry| matches!(tree.value(entry.value), Some(Value::Map(..))));
        map.ok_or_else(|| {
            let at = entry.map_or(tree.start(place.node), |entry| tree.start(entry.key));
            let message = format!("`{key}` is no mapping here; write the pod's template out");
            Finding::new(Kind::WrongType, at, message)
        })
    };
    for key in path {
        holder = below(holder, key)?.value;
    }
    Ok((holder, below(holder, "spec")?))
}

impl Pod {
    pub(crate) fn annotations(&self, tree: &Tree) -> Option<Entry> {
        tree.get(tree.get(self.holder, "metadata")?.value, "annotations")
    }

    /// Every container, of the app as of others; those of init first.
    pub(crate) fn containers(&self, tree: &Tree, found: &mut Vec<Finding>) -> Vec<Container> {
        let mut containers = Vec::new();
        for list in ["initContainers", "containers", "ephemeralContainers"] {
            let Some(entry) = tree.present(self.spec.value, list) else { continue };
            let at = tree.start(entry.key);
            if !matches!(tree.value(entry.value), Some(Value::Seq(..))) {
                let message = format!("`{list}` is no list; write one item for each container");
                found.push(Finding::new(Kind::WrongType, at, message));
            }
            for place in tree.items(entry.value) {
                let name = tree.get(place, "name").filter(|name| !tree.is_null(name.value));
                let at = name.map_or(tree.start(place.node), |name| tree.start(name.raw));
                match tree.text_of(place, "name") {
                    Some(name) => {
                        containers.push(Container { place, name: name.to_owned(), list, at });
                    }
                    None => {
                        let message = "this container has no name; give it one";
                        found.push(Finding::new(Kind::ContainerName, at, message));
                    }
                }
            }
        }
        containers
    }
}

/// False for what Kubernetes takes for false, in any version of YAML, and for absence. What it
/// would refuse counts as true: these are questions of what is forbidden.
pub(crate) fn is_set(tree: &Tree, map: Place, key: &str) -> Option<Entry> {
    const FALSE: [&str; 11] =
        ["false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N"];
    let entry = tree.present(map, key)?;
    let text = tree.text(entry.value.node);
    text.is_none_or(|text| !FALSE.contains(&text)).then_some(entry)
}

/// An integer in any version of YAML; quoted ones, too.
pub(crate) fn int(text: &str) -> Option<i64> {
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if !digits.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let radix = |prefixes: [&str; 2], radix| {
        let digits = prefixes.iter().find_map(|prefix| digits.strip_prefix(prefix))?;
        i64::from_str_radix(digits, radix).ok()
    };
    let number = radix(["0x", "0X"], 16)
        .or_else(|| radix(["0o", "0O"], 8))
        .or_else(|| radix(["0b", "0B"], 2))
        .or_else(|| digits.strip_prefix('0').and_then(|rest| i64::from_str_radix(rest, 8).ok()))
        .or_else(|| digits.parse().ok())
        .or_else(|| whole(digits))
        .or_else(|| sexagesimal(digits))?;
    Some(if negative { -number } else { number })
}

/// `8080.0` and `8.08e3`.
fn whole(text: &str) -> Option<i64> {
    let number: f64 = text.parse().ok()?;
    // Every whole number up to here is exact, and has no more digits than an integer's.
    let exact = number.fract() == 0.0 && number.abs() < 9e15;
    exact.then(|| format!("{number:.0}").parse().ok()).flatten()
}

/// `22:17`, in base 60 (YAML 1.1's integers).
fn sexagesimal(text: &str) -> Option<i64> {
    let (first, rest) = text.split_once(':')?;
    rest.split(':').try_fold(first.parse::<i64>().ok()?, |sum, digits| {
        let digits = digits.parse::<u8>().ok().filter(|digits| *digits < 60)?;
        sum.checked_mul(60)?.checked_add(digits.into())
    })
}

/// The integers of a list.
pub(crate) fn ints(tree: &Tree, list: Place) -> Vec<(i64, Id)> {
    let items = tree.items(list).into_iter();
    items.filter_map(|item| Some((int(tree.text(item.node)?)?, item.node))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_in_every_spelling() {
        for text in [
            "1337",
            "0x539",
            "02471",
            "0o2471",
            "1_337",
            "1337.0",
            "1.337e3",
            "+1337",
            "0b10100111001",
            ".1337e+4",
            "13370e-1",
            "22:17",
        ] {
            assert_eq!(int(text), Some(1337), "{text}");
        }
        assert_eq!(int("-5"), Some(-5));
        assert_eq!(int("0"), Some(0));
        assert_eq!(int("08"), Some(8), "no octal, so decimal");
        for text in
            ["", "http", "1.5", "1e300", "0x", "nan", "inf", "--5", "..5", "1:60", "10.0.0.1:80"]
        {
            assert_eq!(int(text), None, "{text}");
        }
    }

    fn found(text: &str) -> Vec<String> {
        let tree = Tree::parse(text).unwrap();
        let mut findings = Vec::new();
        let pods = pods(&tree, &mut findings);
        let pods =
            pods.into_iter().map(|pod| format!("{} {}", pod.resource.kind, pod.resource.name));
        pods.chain(findings.into_iter().map(|finding| finding.message)).collect()
    }

    #[test]
    fn pods_are_found_in_lists_and_templates_alone() {
        let pod = "{kind: Pod, apiVersion: v1, metadata: {name: a}, spec: {}}";
        assert_eq!(found(pod), ["Pod a"]);
        assert_eq!(found(&format!("kind: List\napiVersion: v1\nitems: [{pod}, {pod}]")).len(), 2);
        assert_eq!(
            found("{kind: PodList, apiVersion: v1, items: [{metadata: {name: b}, spec: {}}]}"),
            ["Pod b"]
        );
        assert_eq!(found("{kind: Pod, apiVersion: example.com/v1, spec: {}}"), [""; 0]);
        assert_eq!(found("{kind: Deployment, apiVersion: v1, spec: {}}"), [""; 0]);
        let cron = "{kind: CronJob, apiVersion: batch/v1, metadata: {name: c}, \
                    spec: {jobTemplate: {spec: {template: {spec: {}}}}}}";
        assert_eq!(found(cron), ["CronJob c"]);
        assert_eq!(found("- a\n- b\n---\nx\n---\n"), [""; 0]);
    }

    #[test]
    fn lists_of_aliases_of_lists_do_not_grow() {
        let list = "apiVersion: v1, kind: List, items:";
        let level = |n: usize| {
            let items = vec![format!("*x{}", n - 1); 20].join(", ");
            format!("x{n}: &x{n} {{{list} [{items}]}}\n")
        };
        let levels: String = (1..7).map(level).collect();
        let pod = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {}}";
        let text = format!("x0: &x0 {{{list} [{pod}]}}\n{levels}kind: List\nitems: [*x6, *x6]\n");
        assert_eq!(found(&text), ["Pod a"]);
    }

    #[test]
    fn a_workload_without_a_template_is_refused() {
        let text = "kind: Deployment\napiVersion: apps/v1\nspec: {template: }\n";
        assert_eq!(found(text), ["`template` is no mapping here; write the pod's template out"]);
    }
}
