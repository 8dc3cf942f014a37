//! The pods of `examples/kubernetes`, as their sidecars see them.

use std::collections::BTreeMap;
use std::path::Path;

use pillion_proxy::config::VARIABLES;
use serde_json::Value;

use crate::manifests::{Manifest, items, manifests, named, text};
use crate::tables::root;

/// Where the examples are, relative to the top folder.
pub(crate) const EXAMPLES: &str = "examples/kubernetes";
/// Volumes and containers of ours begin so.
pub(crate) const OURS: &str = "pillion-";
/// The proxy's user and group, which the redirect rules let pass.
pub(crate) const PROXY_ID: u64 = 1337;

/// A pod of the examples that has the sidecar.
pub(crate) struct Pod {
    /// File, kind and name.
    pub(crate) place: String,
    /// The folder of its file.
    pub(crate) folder: String,
    /// The template's metadata; null for a patch.
    pub(crate) metadata: Value,
    /// The pod's specification.
    pub(crate) spec: Value,
}

impl Pod {
    /// One of the init containers.
    pub(crate) fn container(&self, name: &str) -> &Value {
        let found = named(&self.spec["initContainers"], name);
        found.unwrap_or_else(|| panic!("{}: no init container {name}", self.place))
    }

    /// The sidecar.
    pub(crate) fn proxy(&self) -> &Value {
        self.container("pillion-proxy")
    }

    /// Containers that are not ours.
    pub(crate) fn apps(&self) -> impl Iterator<Item = &Value> {
        let all = items(&self.spec["initContainers"]).iter().chain(items(&self.spec["containers"]));
        all.filter(|container| !text(&container["name"]).starts_with(OURS))
    }

    /// The sidecar's variables as the kubelet sets them.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let variables = items(&self.proxy()["env"]).iter();
        let pair = |v: &Value| (text(&v["name"]).to_owned(), text(&v["value"]).to_owned());
        variables.map(pair).collect()
    }

    /// What the sidecar sees in a variable: its value or its default.
    pub(crate) fn setting(&self, name: &str) -> String {
        self.environment().remove(name).unwrap_or_else(|| default(name).to_owned())
    }

    /// A volume of the pod.
    pub(crate) fn volume(&self, name: &str) -> &Value {
        named(&self.spec["volumes"], name).unwrap_or_else(|| panic!("{}: no {name}", self.place))
    }

    /// The folder that a volume is mounted at in the sidecar.
    pub(crate) fn mounted_at(&self, volume: &str) -> &Path {
        let mounts = items(&self.proxy()["volumeMounts"]);
        let mount = mounts.iter().find(|mount| mount["name"] == volume);
        let mount = mount.unwrap_or_else(|| panic!("{}: {volume} is not mounted", self.place));
        Path::new(text(&mount["mountPath"]))
    }
}

/// A variable's default.
pub(crate) fn default(name: &str) -> &'static str {
    VARIABLES.iter().find(|v| v.name == name).unwrap_or_else(|| panic!("no {name}")).default
}

/// The port of the first address in a list of them.
pub(crate) fn port(variable: &str) -> u64 {
    let first = default(variable).split(',').next().unwrap();
    first.rsplit(':').next().unwrap().parse().unwrap()
}

/// Every pod of the examples with the sidecar, the component's patch with them. The base of the Kustomize
/// example is the app without it.
pub(crate) fn pods() -> Vec<Pod> {
    let found = manifests(&root(), EXAMPLES).into_iter();
    let with_pods = found.filter(|m| !m.file.contains("/base/"));
    let pods: Vec<_> = with_pods.filter_map(|manifest| pod(&manifest)).collect();
    assert!(pods.len() > 10, "only {} pods", pods.len());
    pods
}

fn pod(manifest: &Manifest) -> Option<Pod> {
    let template = manifest.pod_template()?;
    Some(Pod {
        place: manifest.place(),
        folder: manifest.file.rsplit_once('/').unwrap().0.to_owned(),
        metadata: template["metadata"].clone(),
        spec: template["spec"].clone(),
    })
}
