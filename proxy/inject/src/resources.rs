//! Amounts of CPU and memory that the API server would refuse.

use crate::diagnostic::{Finding, Kind};
use crate::manifest::{Container, Pod};
use crate::options::Settings;
use crate::sidecar::INIT_CPU;
use crate::tree::Tree;

/// Sums of decimal fractions are not exact.
const ROUNDING: f64 = 1.0 + 1e-9;

/// A quantity of Kubernetes, `500m` or `32Mi` or `1e3`; `None` for what is none.
fn amount(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let split =
        SUFFIXES.iter().find_map(|(name, factor)| Some((text.strip_suffix(name)?, *factor)));
    let (number, factor) = split.unwrap_or((text, 1.0));
    let number: f64 = number.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number * factor)
}

fn exceeds(text: &str, limit: &str) -> bool {
    amount(text).zip(amount(limit)).is_some_and(|(amount, limit)| amount > limit * ROUNDING)
}

/// Requests of ours that are above their limits.
pub(crate) fn of_options(settings: &Settings) -> Vec<String> {
    let option = |name| (settings.get(name), name);
    let pairs = [
        (option("cpu-request"), "cpu-limit"),
        ((INIT_CPU, "pillion-init's request"), "cpu-limit"),
        (option("memory-request"), "memory-limit"),
    ];
    let wrong =
        pairs.into_iter().filter(|((request, _), limit)| exceeds(request, settings.get(limit)));
    let said = |((request, name), limit): ((&str, &str), &str)| {
        let value = settings.get(limit);
        format!("{limit} {value} is less than {name}, {request}; raise it, or leave it out")
    };
    wrong.map(said).collect()
}

/// A pod whose own `resources` are less than what its containers request with the sidecar: the API
/// server refuses that. (A container's limit above the pod's is no error: the pod's counts.)
pub(crate) fn of_pod(
    tree: &Tree,
    pod: &Pod,
    containers: &[Container],
    settings: &Settings,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(resources) = tree.present(pod.spec.value, "resources") else { return found };
    for (key, option) in [("cpu", "cpu-request"), ("memory", "memory-request")] {
        let of_container = |container: &Container| {
            let runs_on = tree.text_of(container.place, "restartPolicy") == Some("Always");
            let all =
                tree.get(container.place, "resources").filter(|_| container.is_app() || runs_on);
            all.and_then(|all| tree.get(all.value, "requests"))
                .and_then(|requests| tree.text_of(requests.value, key))
                .and_then(amount)
        };
        let sum: f64 = containers.iter().filter_map(of_container).sum();
        let sum = sum + amount(settings.get(option)).unwrap_or_default();
        for part in ["requests", "limits"] {
            let entry = tree.get(resources.value, part).and_then(|part| tree.get(part.value, key));
            let Some(entry) = entry else { continue };
            let has = tree.text(entry.value.node).and_then(amount);
            if has.is_some_and(|has| sum > has * ROUNDING) {
                let message = format!(
                    "with the sidecar the pod's containers request more {key} than the pod's own \
                     {part}, which the API server refuses; raise this by the sidecar's {option}, {}",
                    settings.get(option)
                );
                found.push(Finding::new(Kind::PodResources, tree.start(entry.key), message));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_as_kubernetes_counts_them() {
        for (text, want) in [
            ("1", 1.0),
            ("0.5", 0.5),
            ("500m", 0.5),
            ("1k", 1000.0),
            ("1Ki", 1024.0),
            ("1e3", 1000.0),
            ("2E", 2e18),
        ] {
            assert_eq!(amount(text), Some(want), "{text}");
        }
        for text in ["", "m", "1x", "-1", "nan", "inf"] {
            assert_eq!(amount(text), None, "{text}");
        }
        assert!(exceeds("1Gi", "1G") && !exceeds("10m", "0.01") && !exceeds("1", ""));
    }
}
