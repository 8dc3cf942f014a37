//! The Kubernetes examples are what the code is: users, ports, probes, files, variables, policies.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "common/manifests.rs"]
mod manifests;
#[path = "common/pods.rs"]
mod pods;
#[path = "../../certs/tests/common/tables.rs"]
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use manifests::{documents, items, manifests, text};
use pillion_certs::spiffe::{SpiffeId, TrustDomain};
use pillion_policy::{Compiled, InboundConn};
use pillion_proxy::admin::ENDPOINTS;
use pillion_proxy::config::Config;
use pods::{EXAMPLES, OURS, PROXY_ID, Pod, pods, port};
use serde_json::{Value, json};
use tables::{read, root};

/// Carries the app's own probes: the path that the kubelet asks for -> what is meant.
const APP_PROBES: &str = "PILLION_APP_PROBES";

/// A value without some of its fields.
fn without(value: &Value, fields: &[&str]) -> Value {
    let mut value = value.clone();
    fields.iter().for_each(|field| drop(value.as_object_mut().unwrap().remove(*field)));
    value
}

#[test]
fn init_comes_first_and_has_net_admin_alone() {
    let wanted = json!({
        "name": "pillion-init",
        "securityContext": {
            "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false,
            "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "privileged": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
    });
    let flags = read("docs/init.md");
    for pod in pods() {
        let init = &items(&pod.spec["initContainers"])[0];
        assert_eq!(without(init, &["image", "env"]), wanted, "{}", pod.place);
        for variable in items(&init["env"]) {
            let name = text(&variable["name"]);
            assert!(flags.contains(&format!("`{name}`")), "{}: {name} is no variable", pod.place);
        }
    }
}

#[test]
fn the_sidecar_comes_second_and_may_do_nothing() {
    let health = port("PILLION_HEALTH_LISTEN");
    for path in ["/healthz/startup", "/healthz/ready"] {
        assert!(ENDPOINTS.contains(&("health", "GET", path)), "{path} is no endpoint");
    }
    let wanted = json!({
        "name": "pillion-proxy",
        "restartPolicy": "Always",
        "ports": [
            {"name": "pln-metrics", "containerPort": port("PILLION_METRICS_LISTEN")},
            {"name": "pln-health", "containerPort": health},
        ],
        "startupProbe": {
            "httpGet": {"path": "/healthz/startup", "port": health},
            "periodSeconds": 1,
            "failureThreshold": 120,
        },
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": health}},
        "securityContext": {
            "runAsUser": PROXY_ID, "runAsGroup": PROXY_ID, "runAsNonRoot": true,
            "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
    });
    for pod in pods() {
        let proxy = &items(&pod.spec["initContainers"])[1];
        assert_eq!(without(proxy, &["image", "env", "volumeMounts"]), wanted, "{}", pod.place);
    }
}

#[test]
fn both_images_are_those_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    for pod in pods() {
        for name in ["pillion-init", "pillion-proxy"] {
            let image = text(&pod.container(name)["image"]);
            // The component's patch names no version: its kustomization does.
            let here = pod.place.contains("/components/");
            let wanted = if here { name.to_owned() } else { format!("{name}:{version}") };
            assert_eq!(image, wanted, "{}", pod.place);
        }
    }
    let component = read(&format!("{EXAMPLES}/kustomize/components/pillion/kustomization.yaml"));
    let tags = &documents("component", &component)[0]["images"];
    let wanted = ["pillion-init", "pillion-proxy"].map(|n| json!({"name": n, "newTag": version}));
    assert_eq!(items(tags), wanted);
}

#[test]
fn the_sidecar_takes_its_variables_without_a_warning() {
    for pod in pods() {
        for variable in items(&pod.proxy()["env"]) {
            assert!(variable["value"].is_string(), "{}: {variable} is no string", pod.place);
        }
        let (_, warnings) = Config::from_env(&pod.environment())
            .unwrap_or_else(|errors| panic!("{}: {errors}", pod.place));
        assert_eq!(warnings, [""; 0], "{}", pod.place);
    }
}

#[test]
fn the_sidecar_finds_its_files_where_they_are_mounted() {
    for pod in pods() {
        let place = &pod.place;
        let at = |volume: &str| pod.mounted_at(volume);
        let policy = pod.setting("PILLION_POLICY_FILE");
        assert_eq!(Path::new(&policy).parent(), Some(at("pillion-policy")), "{place}");

        let identity = at("pillion-identity");
        if pod.setting("PILLION_IDENTITY_SOURCE") == "workload-api" {
            let socket = pod.setting("SPIFFE_ENDPOINT_SOCKET");
            let socket = Path::new(socket.strip_prefix("unix://").unwrap());
            assert_eq!(socket.parent(), Some(identity), "{place}");
            continue;
        }
        let bundle = pod.setting("PILLION_TLS_BUNDLE_FILE");
        let pair = ["PILLION_TLS_CERT_FILE", "PILLION_TLS_KEY_FILE"].map(|name| pod.setting(name));
        let svid = if bundle.is_empty() { pair.to_vec() } else { vec![bundle] };
        for file in svid.iter().chain([&pod.setting("PILLION_TLS_CA_FILE")]) {
            assert_eq!(Path::new(file).parent(), Some(identity), "{place}: {file}");
        }
        let crl = pod.setting("PILLION_TLS_CRL_FILE");
        if !crl.is_empty() {
            assert_eq!(Path::new(&crl).parent(), Some(at("pillion-crl")), "{place}");
        }
        for source in items(&pod.volume("pillion-identity")["projected"]["sources"]) {
            let paths = ["/podCertificate/credentialBundlePath", "/clusterTrustBundle/path"];
            let name = paths.iter().find_map(|path| source.pointer(path)).map(text).unwrap();
            let file = identity.join(name).to_str().unwrap().to_owned();
            assert!(pod.environment().values().any(|v| *v == file), "{place}: who reads {file}?");
        }
    }
}

#[test]
fn volumes_of_ours_are_the_sidecars_alone_and_whole() {
    for pod in pods() {
        let place = &pod.place;
        let mounts = items(&pod.proxy()["volumeMounts"]);
        for mount in mounts {
            assert_eq!(mount["readOnly"], true, "{place}: {mount}");
            // The kubelet doesn't update a file that is mounted by itself.
            assert!(mount.get("subPath").is_none(), "{place}: {mount}");
            pod.volume(text(&mount["name"]));
        }
        let ours = items(&pod.spec["volumes"]).iter().map(|volume| text(&volume["name"]));
        for name in ours.filter(|name| name.starts_with(OURS)) {
            assert!(mounts.iter().any(|mount| mount["name"] == name), "{place}: {name} is unused");
        }
        assert!(pod.container("pillion-init").get("volumeMounts").is_none(), "{place}");
        for app in pod.apps() {
            for mount in items(&app["volumeMounts"]) {
                assert!(!text(&mount["name"]).starts_with(OURS), "{place}: {mount}");
            }
        }
    }
}

/// The mode of a volume's files. There are two that we use; one of decimal digits would be another.
fn mode(source: &Value) -> u64 {
    let mode = source["defaultMode"].as_u64().unwrap_or_else(|| panic!("no mode: {source}"));
    assert!([0o440, 0o444].contains(&mode), "a mode of {mode:o}");
    mode
}

#[test]
fn the_key_can_be_read_by_the_sidecar() {
    for pod in pods() {
        let place = &pod.place;
        let identity = pod.volume("pillion-identity");
        let group = pod.spec["securityContext"].get("fsGroup");
        let readable = |mode: u64| mode & 0o004 != 0 || mode & 0o040 != 0 && group.is_some();
        if let Some(secret) = identity.get("secret").filter(|secret| !secret.is_null()) {
            let mode = mode(secret);
            assert!(readable(mode), "{place}: mode {mode:o}, fsGroup {group:?}");
        } else if let Some(projected) = identity.get("projected") {
            let mode = mode(projected);
            assert!(readable(mode), "{place}: mode {mode:o}, fsGroup {group:?}");
        } else {
            match text(&identity["csi"]["driver"]) {
                "spiffe.csi.cert-manager.io" => assert_eq!(
                    identity["csi"]["volumeAttributes"]["spiffe.csi.cert-manager.io/fs-group"],
                    PROXY_ID.to_string(),
                    "{place}"
                ),
                "csi.spiffe.io" => {}
                driver => panic!("{place}: an unknown driver, {driver}"),
            }
        }
    }
}

#[test]
fn nothing_else_has_the_sidecars_user_or_group() {
    // fsGroup counts: an app in that group may make a program that is run with it (setgid), which the
    // redirect rules then let pass.
    fn ids(value: &Value, found: &mut BTreeSet<u64>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            match key.as_str() {
                "runAsUser" | "runAsGroup" | "fsGroup" => found.extend(value.as_u64()),
                "supplementalGroups" => found.extend(items(value).iter().filter_map(Value::as_u64)),
                _ => ids(value, found),
            }
        }
    }
    for pod in pods() {
        let mut found = BTreeSet::new();
        ids(&pod.spec["securityContext"], &mut found);
        pod.apps().for_each(|app| ids(app, &mut found));
        assert!(!found.contains(&PROXY_ID), "{}: {found:?}", pod.place);
    }
}

/// Every handler of a container that the kubelet calls over the network, and the field it stands in.
fn network_handlers(container: &Value) -> Vec<(&'static str, &Value)> {
    let probes = ["livenessProbe", "readinessProbe", "startupProbe"];
    let probes = probes.map(|kind| (kind, &container[kind]));
    let hooks = ["postStart", "preStop"].map(|kind| (kind, &container["lifecycle"][kind]));
    let both = probes.into_iter().chain(hooks);
    let by_network = |handler: &Value| {
        ["httpGet", "tcpSocket", "grpc"].iter().any(|way| handler.get(way).is_some())
    };
    both.filter(|(_, handler)| by_network(handler)).collect()
}

#[test]
fn every_probe_of_an_app_gets_through_strict_mtls() {
    let mut rewritten = 0;
    for pod in pods() {
        let place = &pod.place;
        let carried = pod.environment().remove(APP_PROBES).unwrap_or_else(|| "{}".to_owned());
        let carried: Value = serde_json::from_str(&carried).unwrap();
        let mut carried = carried.as_object().unwrap().clone();
        for app in pod.apps() {
            for (kind, handler) in network_handlers(app) {
                let get = &handler["httpGet"];
                let path = format!("/app-health/{}/{kind}", text(&app["name"]));
                if get["port"] != port("PILLION_HEALTH_LISTEN") {
                    let policy = policy_of(&pod);
                    let number = u16::try_from(get["port"].as_u64().unwrap()).unwrap();
                    let mut listed = policy.policy.probe(number);
                    assert!(listed.any(|path| path == get["path"]), "{place}: {kind} is refused");
                    continue;
                }
                assert_eq!(*get, json!({"path": path, "port": get["port"]}), "{place}");
                let meant = carried.remove(&path).unwrap_or_else(|| panic!("{place}: no {path}"));
                let seconds = |value: &Value| value["timeoutSeconds"].as_u64().unwrap_or(1);
                assert_eq!(seconds(&meant), seconds(handler), "{place}: {path}");
                let port = meant.as_object().unwrap().values().find_map(|way| way.get("port"));
                let ports = items(&app["ports"]).iter().map(|port| &port["containerPort"]);
                assert!(ports.into_iter().any(|p| Some(p) == port), "{place}: {path} to {port:?}");
                rewritten += 1;
            }
        }
        assert!(carried.is_empty(), "{place}: nobody asks for {carried:?}");
    }
    assert!(rewritten > 0);
}

/// A policy, held to what `check --strict --trust-domain cluster.local` holds it to.
#[track_caller]
fn strictly_loaded(name: &str, policy: &str) -> Compiled {
    let loaded = pillion_policy::load(name, policy, Some(&domain()));
    let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.warnings, [], "{name}");
    loaded
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

/// What a service account of the examples is called.
fn identity(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// The ConfigMaps of policies, by their names. Those of one name are the same.
fn policies() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for manifest in manifests(&root(), EXAMPLES).iter().filter(|m| m.kind() == "ConfigMap") {
        let data = manifest.value["data"].as_object().unwrap();
        assert_eq!(data.keys().collect::<Vec<_>>(), ["policy.yaml"], "{}", manifest.place());
        let name = text(&manifest.value["metadata"]["name"]).to_owned();
        found.insert(name, text(&data["policy.yaml"]).to_owned());
    }
    found
}

/// The policy that a pod's sidecar reads.
fn policy_of(pod: &Pod) -> Compiled {
    let map = text(&pod.volume("pillion-policy")["configMap"]["name"]);
    let policies = policies();
    let found = policies.get(map).unwrap_or_else(|| panic!("{}: no ConfigMap {map}", pod.place));
    strictly_loaded(map, found)
}

#[test]
fn every_policy_passes_the_strict_check() {
    for pod in pods() {
        policy_of(&pod);
    }
    for (name, policy) in policies() {
        strictly_loaded(&name, &policy);
    }
}

#[test]
fn who_is_called_lets_its_callers_in() {
    let all = manifests(&root(), EXAMPLES);
    let pods = pods();
    let mut judged = 0;
    for caller in pods.iter().filter(|pod| pod.metadata["labels"].is_object()) {
        let account = text(&caller.spec["serviceAccountName"]);
        let id = identity(account);
        for destination in policy_of(caller).policy.destinations() {
            let host = destination.hosts()[0].strip_suffix(".shop.svc.cluster.local").unwrap();
            let service =
                all.iter().find(|m| m.kind() == "Service" && m.value["metadata"]["name"] == host);
            let service = &service.unwrap_or_else(|| panic!("no Service {host}")).value["spec"];
            let app = &service["selector"]["app"];
            let way = |pod: &&Pod| pod.metadata["labels"]["app"] == *app;
            let callee = pods.iter().find(way).unwrap_or_else(|| panic!("no pod of {host}"));
            for &number in destination.ports().unwrap() {
                let ports = items(&service["ports"]).iter();
                let port = ports.clone().find(|p| p["port"] == number);
                let port = port.unwrap_or_else(|| panic!("{host} has no port {number}"));
                let target = port.get("targetPort").unwrap_or(&port["port"]).as_u64().unwrap();
                let decision = policy_of(callee).policy.inbound(&InboundConn {
                    source: IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)),
                    port: u16::try_from(target).unwrap(),
                    identity: Some(&id),
                });
                assert!(decision.allow, "{}: {id} is denied by {host}", caller.place);
            }
            let answers = identity(text(&callee.spec["serviceAccountName"]));
            assert!(destination.server_identities().matches(&answers), "{}", caller.place);
            judged += 1;
        }
    }
    assert!(judged > 0);
}

#[test]
fn every_way_has_the_same_workloads() {
    // Where the ways differ is what a reader looks for; so nothing else may.
    let ways: Vec<_> = pods().into_iter().filter(|pod| pod.place.contains("Deployment/")).collect();
    let mut compared = BTreeMap::<String, Vec<&Pod>>::new();
    for pod in ways.iter().filter(|pod| !pod.folder.contains("kustomize")) {
        compared.entry(text(&pod.metadata["labels"]["app"]).to_owned()).or_default().push(pod);
    }
    assert_eq!(compared.keys().collect::<Vec<_>>(), ["frontend", "orders"]);
    for (app, pods) in compared {
        assert_eq!(pods.len(), 4, "{app}");
        for pod in &pods {
            let [this, first] = [pod, &pods[0]].map(|pod| &pod.spec["containers"]);
            assert_eq!(this, first, "{}", pod.place);
        }
    }
}

#[test]
fn what_kustomize_builds_is_the_base_with_the_component() {
    let folder = format!("{EXAMPLES}/kustomize");
    let built = documents("built.yaml", &read(&format!("{folder}/built.yaml")));
    let base = documents("base", &read(&format!("{folder}/base/orders.yaml")));
    for (kind, wanted) in base.iter().map(|doc| (text(&doc["kind"]), doc)) {
        let found = built.iter().find(|doc| doc["kind"] == kind).unwrap();
        let mut found = found.clone();
        assert_eq!(found["metadata"].as_object_mut().unwrap().remove("namespace").unwrap(), "shop");
        if kind == "Deployment" {
            let spec = found["spec"]["template"]["spec"].as_object_mut().unwrap();
            for list in ["initContainers", "volumes"] {
                let list = spec[list].as_array_mut().unwrap();
                list.retain(|item| !text(&item["name"]).starts_with(OURS));
            }
        }
        assert_eq!(found, *wanted, "{kind}");
    }
    let policy = fs::read_to_string(root().join(format!("{folder}/overlay/policy.yaml"))).unwrap();
    let map = built.iter().find(|doc| doc["kind"] == "ConfigMap").unwrap();
    assert_eq!(text(&map["data"]["policy.yaml"]), policy);
    assert_eq!(built.len(), base.len() + 1);
}

/// Every container of that name in a value, however deep.
fn sidecars<'v>(value: &'v Value, found: &mut Vec<&'v Value>) {
    if value["name"] == "pillion-proxy" && value["env"].is_array() {
        found.push(value);
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| sidecars(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| sidecars(field, found)),
        _ => {}
    }
}

/// What pillion-inject writes into a pod is what the proxy reads there.
#[test]
fn an_injected_sidecar_takes_its_variables_without_a_warning() {
    let mut probes = 0;
    for manifest in manifests(&root(), "proxy/inject/tests/golden") {
        let mut found = Vec::new();
        sidecars(&manifest.value, &mut found);
        for sidecar in found {
            let variables = items(&sidecar["env"]).iter();
            let environment: BTreeMap<String, String> = variables
                .map(|it| (text(&it["name"]).to_owned(), text(&it["value"]).to_owned()))
                .collect();
            probes += usize::from(environment.contains_key(APP_PROBES));
            let (_, warnings) = Config::from_env(&environment)
                .unwrap_or_else(|errors| panic!("{}: {errors}", manifest.file));
            assert_eq!(warnings, [""; 0], "{}", manifest.file);
        }
    }
    assert!(probes >= 10, "{probes} with probes");
}
