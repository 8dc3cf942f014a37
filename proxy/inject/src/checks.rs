//! Pods that must not get a sidecar as they are, and those that can get around theirs.

use pillion_app_probes::is_container_name;

use crate::diagnostic::{Finding, Kind, printable};
use crate::manifest::{Container, Pod, int, ints, is_set};
use crate::options::Settings;
use crate::sidecar::{IDENTITY_VOLUME, POLICY_VOLUME, PROXY_ID, PROXY_PORTS};
use crate::tree::{Entry, Place, Tree};

/// Capabilities that change the rules, send past them, or read the proxy's memory.
const POWERS: [&str; 5] = ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "ALL"];
/// Those that trace a process of another user.
const TRACING: [&str; 3] = ["SYS_PTRACE", "SYS_ADMIN", "ALL"];

const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];

/// Everything that is wrong with a pod, but for its probes.
pub(crate) fn check(tree: &Tree, pod: &Pod, containers: &[Container], found: &mut Vec<Finding>) {
    let spec = pod.spec.value;
    let mut add = |kind, at: usize, message: String| found.push(Finding::new(kind, at, message));
    if let Some(entry) = is_set(tree, spec, "hostNetwork") {
        let message = "the rules would capture the whole node; take hostNetwork off the pod, or \
                       leave the pod alone with the annotation pillion.dev/inject: \"false\"";
        add(Kind::HostNetwork, tree.start(entry.key), message.to_owned());
    }
    if let Some(at) = windows(tree, spec) {
        let message = "the sidecar is for Linux; leave the pod alone with the annotation \
                       pillion.dev/inject: \"false\"";
        add(Kind::Windows, at, message.to_owned());
    }
    let volumes = volumes(tree, pod).into_iter().map(|volume| (volume, Some(volume)));
    let claims = pod.claims.iter().map(|claim| {
        let metadata = tree.get(*claim, "metadata");
        (*claim, metadata.map(|metadata| metadata.value))
    });
    for (place, named) in volumes.chain(claims) {
        let name = named.and_then(|named| tree.text_of(named, "name"));
        if let Some(name) = name.filter(|name| reserved(name)) {
            let message = format!("`{name}` is a volume of the sidecar's; rename it");
            add(Kind::ReservedName, tree.start(place.node), message);
        }
    }
    if let Some(context) = tree.get(spec, "securityContext") {
        identities(tree, context.value, found);
    }
    let sees = ["shareProcessNamespace", "hostPID"];
    let sees = sees.iter().find_map(|key| is_set(tree, spec, key));
    for (index, container) in containers.iter().enumerate() {
        if containers.iter().take(index).any(|other| other.name == container.name) {
            let name = printable(&container.name);
            let message = format!("a second container `{name}`; give each its own name");
            found.push(Finding::new(Kind::ContainerName, container.at, message));
        }
        if !is_container_name(&container.name) {
            let message = format!(
                "Kubernetes takes no container `{}`; write lower-case letters, digits and -, 63 of \
                 them at most",
                printable(&container.name)
            );
            found.push(Finding::new(Kind::ContainerName, container.at, message));
        }
        check_container(tree, container, sees, found);
    }
}

fn reserved(name: &str) -> bool {
    [POLICY_VOLUME, IDENTITY_VOLUME].contains(&name)
}

fn volumes(tree: &Tree, pod: &Pod) -> Vec<Place> {
    let list = tree.get(pod.spec.value, "volumes");
    list.map(|list| tree.items(list.value)).unwrap_or_default()
}

/// The app's ways to the Secret with the proxy's key: volumes and variables.
pub(crate) fn secret_readers(
    tree: &Tree,
    pod: &Pod,
    containers: &[Container],
    settings: &Settings,
) -> Vec<Finding> {
    let secret = settings.get("identity-secret");
    if settings.get("identity") != "secret" {
        return Vec::new();
    }
    let names = |place: Place, key: &str, name: &str| {
        tree.get(place, key).is_some_and(|it| tree.text_of(it.value, name) == Some(secret))
    };
    let has_it = |volume: &Place| {
        let projected = tree.get(*volume, "projected").and_then(|it| tree.get(it.value, "sources"));
        let mut sources = projected.iter().flat_map(|sources| tree.items(sources.value));
        names(*volume, "secret", "secretName") || sources.any(|it| names(it, "secret", "name"))
    };
    let volumes = volumes(tree, pod).into_iter().filter(has_it);
    let volumes: Vec<&str> = volumes.filter_map(|it| tree.text_of(it, "name")).collect();
    let items = |container: &Container, key| {
        tree.get(container.place, key).map(|list| tree.items(list.value)).unwrap_or_default()
    };
    let mut found = Vec::new();
    for container in containers {
        let mounts = items(container, "volumeMounts").into_iter();
        let mounts = mounts.filter(|mount| {
            tree.text_of(*mount, "name").is_some_and(|name| volumes.contains(&name))
        });
        let env = items(container, "env").into_iter().filter(|variable| {
            let from = tree.get(*variable, "valueFrom");
            from.is_some_and(|from| names(from.value, "secretKeyRef", "name"))
        });
        let env_from = items(container, "envFrom").into_iter();
        let env_from = env_from.filter(|from| names(*from, "secretRef", "name"));
        for place in mounts.chain(env).chain(env_from) {
            let message = format!(
                "container `{}` gets the Secret `{}`, so it can read the proxy's private key; give \
                 the app a Secret of its own",
                printable(&container.name),
                printable(secret)
            );
            found.push(Finding::new(Kind::SharedKey, tree.start(place.node), message));
        }
    }
    found
}

/// Where the pod says that it is for Windows.
fn windows(tree: &Tree, spec: Place) -> Option<usize> {
    let host_process = tree
        .get(spec, "securityContext")
        .and_then(|context| tree.get(context.value, "windowsOptions"))
        .and_then(|options| is_set(tree, options.value, "hostProcess"));
    let labelled = windows_label(tree, spec);
    labelled
        .or_else(|| host_process.map(|entry| tree.start(entry.key)))
        .or_else(|| windows_affinity(tree, spec))
}

/// A required affinity whose every term wants Windows.
fn windows_affinity(tree: &Tree, spec: Place) -> Option<usize> {
    let mut place = spec;
    for key in [
        "affinity",
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
        "nodeSelectorTerms",
    ] {
        place = tree.get(place, key)?.value;
    }
    let wants = |expression: &Place| {
        let values = tree.get(*expression, "values").map(|values| tree.items(values.value));
        let values = values.unwrap_or_default();
        tree.text_of(*expression, "key").is_some_and(|key| OS_LABELS.contains(&key))
            && tree.text_of(*expression, "operator") == Some("In")
            && !values.is_empty()
            && values.iter().all(|value| tree.text(value.node) == Some("windows"))
    };
    let term = |term: Place| {
        let expressions = tree.get(term, "matchExpressions")?;
        tree.items(expressions.value).into_iter().find(wants)
    };
    let terms: Option<Vec<Place>> = tree.items(place).into_iter().map(term).collect();
    terms?.first().map(|expression| tree.start(expression.node))
}

fn windows_label(tree: &Tree, spec: Place) -> Option<usize> {
    let os = tree.get(spec, "os").map(|os| os.value).and_then(|os| tree.get(os, "name"));
    let node = |label| tree.get(tree.get(spec, "nodeSelector")?.value, label);
    os.into_iter()
        .chain(OS_LABELS.into_iter().filter_map(node))
        .find(|entry| tree.text(entry.value.node) == Some("windows"))
        .map(|entry| tree.start(entry.key))
}

/// The proxy's user or group: its connections are not captured, and its memory can be read. A
/// supplementary group is as bad: a program that is setgid to it has the group.
fn identities(tree: &Tree, context: Place, found: &mut Vec<Finding>) {
    let mut add = |at: usize, key: &str| {
        let message = format!(
            "{key} {PROXY_ID} is the proxy's, whose connections are not captured; \
             take another number"
        );
        found.push(Finding::new(Kind::ProxyId, at, message));
    };
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        if tree.text_of(context, key).and_then(int) == Some(PROXY_ID) {
            add(tree.get(context, key).map_or(0, |entry| tree.start(entry.key)), key);
        }
    }
    let groups = tree.get(context, "supplementalGroups").map(|entry| ints(tree, entry.value));
    for (_, node) in groups.into_iter().flatten().filter(|(group, _)| *group == PROXY_ID) {
        add(tree.start(node), "supplementalGroups");
    }
}

fn check_container(
    tree: &Tree,
    container: &Container,
    sees: Option<Entry>,
    found: &mut Vec<Finding>,
) {
    let name = printable(&container.name);
    if container.name.starts_with("pillion-") {
        let message = format!(
            "`{name}` is no container's name but the sidecar's, and this one was not added by \
             pillion-inject; rename it, or take it out"
        );
        found.push(Finding::new(Kind::ReservedName, container.at, message));
    }
    for port in tree.get(container.place, "ports").iter().flat_map(|p| tree.items(p.value)) {
        let number = tree.text_of(port, "containerPort").and_then(int).unwrap_or(0);
        let tcp = tree.text_of(port, "protocol").is_none_or(|protocol| protocol == "TCP");
        if tcp && PROXY_PORTS.iter().any(|port| i64::from(*port) == number) {
            let at = tree.get(port, "containerPort").map_or(0, |entry| tree.start(entry.key));
            let message = format!("the proxy listens on port {number}; give the app another one");
            found.push(Finding::new(Kind::PortClash, at, message));
        }
    }
    for mount in tree.get(container.place, "volumeMounts").iter().flat_map(|m| tree.items(m.value))
    {
        if let Some(volume) = tree.text_of(mount, "name").filter(|volume| reserved(volume)) {
            let message = format!("`{volume}` is the sidecar's own volume; do not mount it");
            found.push(Finding::new(Kind::ReservedName, tree.start(mount.node), message));
        }
    }
    let Some(context) = tree.get(container.place, "securityContext").map(|entry| entry.value)
    else {
        return;
    };
    identities(tree, context, found);
    powers(tree, &name, context, sees, found);
}

fn powers(tree: &Tree, name: &str, context: Place, sees: Option<Entry>, found: &mut Vec<Finding>) {
    let mut powers = Vec::new();
    if let Some(entry) = is_set(tree, context, "privileged") {
        powers.push(("ALL".to_owned(), "is privileged".to_owned(), tree.start(entry.key)));
    }
    let added = tree.get(context, "capabilities").and_then(|entry| tree.get(entry.value, "add"));
    for item in added.iter().flat_map(|added| tree.items(added.value)) {
        let capability = tree.text(item.node).unwrap_or_default().to_uppercase();
        let capability = capability.strip_prefix("CAP_").unwrap_or(&capability).to_owned();
        if POWERS.contains(&capability.as_str()) {
            let has = format!("has {capability}");
            powers.push((capability, has, tree.start(item.node)));
        }
    }
    for (capability, has, at) in powers {
        if sees.is_some() && TRACING.contains(&capability.as_str()) {
            let message = format!(
                "container `{name}` sees the proxy's process and {has}, so it can read the private \
                 key; give up one of the two"
            );
            found.push(Finding::new(Kind::ProcessNamespace, at, message));
        } else {
            let message = format!(
                "container `{name}` {has}: it can get around the proxy; drop it if the app can do \
                 without"
            );
            found.push(Finding::new(Kind::Bypass, at, message));
        }
    }
}
