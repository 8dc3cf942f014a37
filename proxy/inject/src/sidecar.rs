//! What is added to a pod: two containers, two volumes and a record.

use serde_json::{Map, Value, json};

use crate::options::Settings;

/// The init container that installs the redirect rules.
pub(crate) const INIT: &str = "pillion-init";
/// The native sidecar.
pub(crate) const PROXY: &str = "pillion-proxy";
/// The volume with `policy.yaml`.
pub(crate) const POLICY_VOLUME: &str = "pillion-policy";
/// The volume with certificate and key, or with the socket that they come from.
pub(crate) const IDENTITY_VOLUME: &str = "pillion-identity";

/// The user and group of the proxy, whose connections are not captured.
pub(crate) const PROXY_ID: i64 = 1337;
/// Admin, outbound, inbound, metrics, health.
pub(crate) const PROXY_PORTS: [u16; 5] = [15000, 15001, 15006, 15020, HEALTH_PORT];
/// Where the kubelet asks instead of the app.
pub(crate) const HEALTH_PORT: u16 = 15021;

const CERTIFICATES: &str = "/var/run/secrets/spiffe.io";
const SOCKETS: &str = "/spiffe-workload-api";
/// Of pillion-init, which runs for a moment.
pub(crate) const INIT_CPU: &str = "10m";
const INIT_MEMORY: &str = "16Mi";
const INIT_MEMORY_LIMIT: &str = "64Mi";
/// 0444: the proxy runs as a user of its own. The volume is in memory and only in its container.
const READABLE: i64 = 0o444;

/// What the pod gets, as values.
pub(crate) struct Sidecar {
    pub(crate) containers: Vec<Value>,
    pub(crate) volumes: Vec<Value>,
}

impl Sidecar {
    /// `probes` is the value of `PILLION_APP_PROBES`.
    pub(crate) fn new(settings: &Settings, probes: Option<String>) -> Self {
        let identity = Identity::new(settings);
        let policy = json!({"name": settings.get("policy")});
        Self {
            containers: vec![init(settings), proxy(settings, &identity, probes)],
            volumes: vec![json!({"name": POLICY_VOLUME, "configMap": policy}), identity.volume],
        }
    }
}

fn init(settings: &Settings) -> Value {
    const LIMITS: [&str; 7] = [
        "inbound-ports",
        "inbound-exclude-ports",
        "inbound-exclude-cidrs",
        "outbound-ports",
        "outbound-exclude-ports",
        "outbound-cidrs",
        "outbound-exclude-cidrs",
    ];
    let mut container = container(INIT, settings.get("init-image"), settings);
    let set = LIMITS.iter().filter(|name| !settings.get(name).is_empty());
    let env: Vec<Value> = set
        .map(|name| {
            let variable = format!("PILLION_INIT_{}", name.replace('-', "_").to_uppercase());
            json!({"name": variable, "value": settings.get(name)})
        })
        .collect();
    put(&mut container, "env", env.into());
    let resources = resources((INIT_CPU, INIT_MEMORY), INIT_MEMORY_LIMIT, settings);
    put(&mut container, "resources", resources);
    let privileges = json!({
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": false,
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "privileged": false,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    put(&mut container, "securityContext", privileges);
    container.into()
}

fn proxy(settings: &Settings, identity: &Identity, probes: Option<String>) -> Value {
    let mut container = container(PROXY, settings.get("proxy-image"), settings);
    put(&mut container, "restartPolicy", "Always".into());
    let mut env = identity.env.clone();
    for (name, option) in [("PILLION_LOG", "log"), ("PILLION_ACCESS_LOG", "access-log")] {
        if !settings.get(option).is_empty() {
            env.push(json!({"name": name, "value": settings.get(option)}));
        }
    }
    if let Some(probes) = probes {
        env.push(json!({"name": "PILLION_APP_PROBES", "value": probes}));
    }
    put(&mut container, "env", env.into());
    let health = |path: &str| json!({"path": path, "port": HEALTH_PORT});
    for (key, value) in [
        (
            "ports",
            json!([
                {"name": "pln-metrics", "containerPort": 15020, "protocol": "TCP"},
                {"name": "pln-health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
            ]),
        ),
        // It waits inside the process, so asking often costs little and starts the pod sooner.
        (
            "startupProbe",
            json!({"httpGet": health("/healthz/startup"), "periodSeconds": 1, "failureThreshold": 120}),
        ),
        ("readinessProbe", json!({"httpGet": health("/healthz/ready")})),
        (
            "resources",
            resources(
                (settings.get("cpu-request"), settings.get("memory-request")),
                settings.get("memory-limit"),
                settings,
            ),
        ),
        (
            "securityContext",
            json!({
                "runAsUser": PROXY_ID,
                "runAsGroup": PROXY_ID,
                "runAsNonRoot": true,
                "readOnlyRootFilesystem": true,
                "allowPrivilegeEscalation": false,
                "privileged": false,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }),
        ),
        (
            "volumeMounts",
            // Whole folders: a subPath would never see new files.
            json!([
                {"name": POLICY_VOLUME, "mountPath": "/etc/pillion", "readOnly": true},
                {"name": IDENTITY_VOLUME, "mountPath": identity.mount, "readOnly": true},
            ]),
        ),
    ] {
        put(&mut container, key, value);
    }
    container.into()
}

fn resources((cpu, memory): (&str, &str), limit: &str, settings: &Settings) -> Value {
    let mut limits = Map::new();
    if !settings.get("cpu-limit").is_empty() {
        put(&mut limits, "cpu", settings.get("cpu-limit").into());
    }
    put(&mut limits, "memory", limit.into());
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": limits})
}

fn container(name: &str, image: &str, settings: &Settings) -> Map<String, Value> {
    let mut container = Map::new();
    put(&mut container, "name", name.into());
    put(&mut container, "image", image.into());
    if !settings.get("image-pull-policy").is_empty() {
        put(&mut container, "imagePullPolicy", settings.get("image-pull-policy").into());
    }
    container
}

/// Sets a key, unless its value is an empty list.
fn put(map: &mut Map<String, Value>, key: &str, value: Value) {
    if value.as_array().is_none_or(|items| !items.is_empty()) {
        map.insert(key.to_owned(), value);
    }
}

/// Where certificate and key come from.
struct Identity {
    env: Vec<Value>,
    volume: Value,
    mount: &'static str,
}

impl Identity {
    fn new(settings: &Settings) -> Self {
        let volume = |source: &str, value: Value| {
            let mut volume = Map::new();
            put(&mut volume, "name", IDENTITY_VOLUME.into());
            put(&mut volume, source, value);
            Value::Object(volume)
        };
        match settings.get("identity") {
            "csi-driver-spiffe" => {
                let group = PROXY_ID.to_string();
                let csi = json!({
                    "driver": "spiffe.csi.cert-manager.io",
                    "readOnly": true,
                    "volumeAttributes": {"spiffe.csi.cert-manager.io/fs-group": group},
                });
                Self { env: Vec::new(), volume: volume("csi", csi), mount: CERTIFICATES }
            }
            "spire" => {
                let socket = format!("unix://{SOCKETS}/{}", settings.get("spire-socket"));
                let csi = json!({"driver": "csi.spiffe.io", "readOnly": true});
                let env = vec![
                    json!({"name": "PILLION_IDENTITY_SOURCE", "value": "workload-api"}),
                    json!({"name": "SPIFFE_ENDPOINT_SOCKET", "value": socket}),
                ];
                Self { env, volume: volume("csi", csi), mount: SOCKETS }
            }
            "pod-certificate" => {
                let variable = |name: &str, file: &str| json!({"name": name, "value": format!("{CERTIFICATES}/{file}")});
                let env = vec![
                    variable("PILLION_TLS_BUNDLE_FILE", "credentials.pem"),
                    variable("PILLION_TLS_CA_FILE", "ca.crt"),
                ];
                let projected = json!({
                    "defaultMode": READABLE,
                    "sources": [
                        {"podCertificate": {
                            "signerName": settings.get("signer-name"),
                            "keyType": settings.get("key-type"),
                            "credentialBundlePath": "credentials.pem",
                        }},
                        {"clusterTrustBundle": trust_bundle(settings)},
                    ],
                });
                Self { env, volume: volume("projected", projected), mount: CERTIFICATES }
            }
            _ => {
                let name = settings.get("identity-secret");
                let secret = json!({"secretName": name, "defaultMode": READABLE});
                Self { env: Vec::new(), volume: volume("secret", secret), mount: CERTIFICATES }
            }
        }
    }
}

fn trust_bundle(settings: &Settings) -> Value {
    match settings.get("trust-bundle") {
        // An empty selector matches all of the signer's bundles, a missing one none.
        "" => json!({
            "signerName": settings.get("signer-name"),
            "labelSelector": {},
            "path": "ca.crt",
        }),
        name => json!({"name": name, "path": "ca.crt"}),
    }
}
