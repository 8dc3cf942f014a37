//! The alerts and the dashboard ask for metrics, labels and label values that the code has. Whether Prometheus takes the
//! queries, and whether each alert fires when it should, is for `scripts/kubernetes-examples` to see.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "common/manifests.rs"]
mod manifests;
#[path = "../../certs/tests/common/tables.rs"]
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use manifests::{documents, items, text};
use pillion_certs::load::LoadError;
use pillion_certs::refusal::PeerRefusal;
use pillion_proxy::telemetry::{CloseReason, Direction, METRICS, Metrics};
use serde_json::Value;
use tables::read;

const ALERTS: &str = "examples/observability/alerts.yaml";
const DASHBOARD: &str = "examples/observability/dashboard.json";

/// Labels that Prometheus gives a series by where it was scraped.
const TARGET_LABELS: &[&str] = &["namespace", "pod", "job"];

/// Metrics of others, with the labels that queries use.
const OTHERS: &[(&str, &[&str])] = &[
    ("up", &[]),
    // kube-state-metrics
    ("kube_pod_init_container_status_ready", &["container"]),
    ("kube_pod_status_phase", &["phase"]),
];

/// A name of a query, and what the query takes it for.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Metric(String),
    /// Of a selector: the label, and the values that it may have; none where the query has no fixed ones.
    Matcher(String, Vec<String>),
    /// Of `by`, `on` and the like.
    Label(String),
}

/// The names in a query, in their order. Prometheus's parser decides what is a query (see above); here names
/// are only told apart by what stands around them: braces, or the parentheses after a grouping word.
fn names(query: &str) -> Vec<Name> {
    const GROUPING: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];
    const WORDS: &[&str] = &["and", "or", "unless", "offset", "bool"];
    let (mut found, mut rest) = (Vec::new(), query);
    let (mut braces, mut grouping) = (false, false);
    let mut last_grouping = false;
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            rest = after;
            let next = rest.trim_start();
            last_grouping = GROUPING.contains(&word);
            if braces {
                let (values, after) = matcher(next);
                found.push(Name::Matcher(word.to_owned(), values));
                rest = after;
            } else if grouping {
                found.push(Name::Label(word.to_owned()));
            } else if !last_grouping && !WORDS.contains(&word) && !is_call(next) {
                found.push(Name::Metric(word.to_owned()));
            }
            continue;
        }
        // A duration, a number, or one of Grafana's variables: no name.
        if first.is_ascii_digit() || first == '$' {
            rest = rest[1..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
            continue;
        }
        match first {
            '{' => braces = true,
            '}' => braces = false,
            '(' => grouping = last_grouping,
            ')' => grouping = false,
            _ => {}
        }
        last_grouping &= first.is_whitespace();
        rest = &rest[first.len_utf8()..];
    }
    found
}

/// Whether what follows a word makes it a function or an aggregation: `(`, or the labels to aggregate by.
fn is_call(next: &str) -> bool {
    let word = next.split(|c: char| !c.is_ascii_alphabetic()).next();
    next.starts_with('(') || matches!(word, Some("by" | "without"))
}

/// What follows a label in braces: the values it is compared with, and what is behind them.
fn matcher(text: &str) -> (Vec<String>, &str) {
    let (operator, rest) = text.split_once('"').unwrap();
    let operator = operator.trim();
    assert!(["=", "!=", "=~", "!~"].contains(&operator), "no matcher: {text}");
    let (value, rest) = rest.split_once('"').unwrap();
    if value.starts_with('$') {
        return (Vec::new(), rest);
    }
    let parts: Vec<_> =
        if operator.ends_with('~') { value.split('|').collect() } else { vec![value] };
    (parts.into_iter().map(str::to_owned).collect(), rest)
}

/// What the code exposes: each name that a query may use, with its labels.
fn exposed() -> BTreeMap<String, BTreeSet<&'static str>> {
    let metrics = Metrics::new().unwrap();
    metrics.handshake_seconds(Direction::Inbound, 0.1);
    let text = String::from_utf8(metrics.render(0).unwrap()).unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let types: BTreeMap<_, _> = types.filter_map(|line| line.split_once(' ')).collect();

    let mut found = BTreeMap::new();
    for metric in METRICS {
        let labels: BTreeSet<_> = metric.labels.iter().copied().collect();
        if types.get(metric.name) == Some(&"histogram") {
            let bucket = labels.iter().copied().chain(["le"]).collect();
            found.insert(format!("{}_bucket", metric.name), bucket);
            for suffix in ["sum", "count"] {
                found.insert(format!("{}_{suffix}", metric.name), labels.clone());
            }
        } else {
            found.insert(metric.name.to_owned(), labels);
        }
    }
    let process = types.keys().filter(|name| name.starts_with("process_"));
    found.extend(process.map(|name| ((*name).to_owned(), BTreeSet::new())));
    found.extend(
        OTHERS.iter().map(|(name, labels)| ((*name).to_owned(), labels.iter().copied().collect())),
    );
    found
}

/// Every value of a label whose values are a closed list.
fn values(label: &str) -> Option<Vec<&'static str>> {
    let results = ["ok", "no_protocol", "failed", "timeout", "shed"].into_iter();
    let refusals = PeerRefusal::ALL_LABELS.iter().chain(LoadError::ALL_LABELS).copied();
    Some(match label {
        "direction" => [Direction::Inbound, Direction::Outbound].map(Direction::label).to_vec(),
        "reason" => CloseReason::ALL.iter().map(|reason| reason.label()).collect(),
        "result" => results.chain(refusals).collect(),
        "decision" => vec!["allow", "deny"],
        "mode" => vec!["enforce", "audit"],
        "flow" => vec!["to_app", "from_app"],
        "kind" => vec!["svid", "ca", "federated_ca", "crl"],
        "reused" => vec!["true", "false"],
        _ => return None,
    })
}

/// What is wrong with a query.
fn faults(query: &str, exposed: &BTreeMap<String, BTreeSet<&'static str>>) -> Vec<String> {
    let (mut faults, mut labels) = (Vec::new(), BTreeSet::new());
    let mut of_metric = BTreeSet::new();
    let names = names(query);
    for name in &names {
        match name {
            Name::Metric(metric) => match exposed.get(metric) {
                Some(own) => {
                    of_metric = own.iter().chain(TARGET_LABELS).copied().collect();
                    labels.extend(of_metric.iter().copied());
                }
                None => faults.push(format!("no metric {metric}")),
            },
            Name::Matcher(label, compared) => {
                if !of_metric.contains(label.as_str()) {
                    faults.push(format!("the metric has no label {label}"));
                }
                let known = values(label);
                let stray = |v: &&String| known.as_ref().is_some_and(|k| !k.contains(&v.as_str()));
                faults
                    .extend(compared.iter().filter(stray).map(|v| format!("{label} is never {v}")));
            }
            Name::Label(_) => {}
        }
    }
    for name in &names {
        if let Name::Label(label) = name
            && !labels.contains(label.as_str())
        {
            faults.push(format!("no metric here has the label {label}"));
        }
    }
    if !names.iter().any(|name| matches!(name, Name::Metric(_))) {
        faults.push("no metric at all".to_owned());
    }
    faults
}

fn alerts() -> Vec<Value> {
    let rule = &documents(ALERTS, &read(ALERTS))[0];
    let groups = items(&rule["spec"]["groups"]).iter();
    groups.flat_map(|group| items(&group["rules"])).cloned().collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).unwrap()
}

/// Every query of the alerts and the dashboard, with its place.
fn queries() -> Vec<(String, String)> {
    let alerts = alerts();
    let alerts = alerts.iter().map(|a| (text(&a["alert"]).to_owned(), text(&a["expr"]).to_owned()));
    let dashboard = dashboard();
    let panels = items(&dashboard["panels"]).iter().flat_map(|panel| {
        let title = text(&panel["title"]);
        let targets = items(&panel["targets"]).iter();
        targets.map(move |target| (format!("panel {title}"), text(&target["expr"]).to_owned()))
    });
    alerts.chain(panels).collect()
}

#[test]
fn every_query_asks_for_what_there_is() {
    let exposed = exposed();
    let found = queries();
    assert!(found.len() > 40, "only {} queries", found.len());
    let wrong: Vec<_> = found
        .iter()
        .flat_map(|(place, query)| {
            faults(query, &exposed).into_iter().map(move |fault| format!("{place}: {fault}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_queries_sees_each_name() {
    let metric = |name: &str| Name::Metric(name.to_owned());
    let matcher = |label: &str, values: &[&str]| {
        Name::Matcher(label.to_owned(), values.iter().map(|v| (*v).to_owned()).collect())
    };
    let label = |name: &str| Name::Label(name.to_owned());
    assert_eq!(
        names(
            r#"sum by (a, b) (rate(x_total{c="d", e=~"f|g", h=~"$i"}[$__rate_interval])) / 2 > 1e3"#
        ),
        [
            label("a"),
            label("b"),
            metric("x_total"),
            matcher("c", &["d"]),
            matcher("e", &["f", "g"]),
            matcher("h", &[]),
        ]
    );
    assert_eq!(
        names("x unless on (a) (y and on (b) (z > time())) or sum(u) by (c) offset 5m"),
        ["x"]
            .map(metric)
            .into_iter()
            .chain([label("a"), metric("y"), label("b"), metric("z"), metric("u"), label("c")])
            .collect::<Vec<_>>()
    );
    let exposed = exposed();
    let faults = |query| faults(query, &exposed);
    assert_eq!(faults("pillion_panics_totl"), ["no metric pillion_panics_totl"]);
    assert_eq!(faults(r#"pillion_panics_total{rule="x"}"#), ["the metric has no label rule"]);
    assert_eq!(
        faults(r#"pillion_tcp_connections_closed_total{reason=~"closed|close"}"#),
        ["reason is never close"]
    );
    assert_eq!(
        faults("sum by (rule) (pillion_tunnels_idle)"),
        ["no metric here has the label rule"]
    );
    assert_eq!(faults("vector(0)"), ["no metric at all"]);
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let dashboard = read(DASHBOARD);
    let missing = METRICS.iter().filter(|metric| !dashboard.contains(metric.name));
    let missing: Vec<_> = missing.map(|metric| metric.name).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn the_dashboard_chooses_by_what_every_sidecar_has() {
    let dashboard = dashboard();
    let variables = items(&dashboard["templating"]["list"]);
    let names: Vec<_> = variables.iter().map(|variable| text(&variable["name"])).collect();
    assert_eq!(names, ["datasource", "namespace", "pod"]);
    for variable in &variables[1..] {
        let query = text(&variable["query"]["query"]);
        assert_eq!(variable["definition"], *query);
        let inner = query.strip_prefix("label_values(").and_then(|q| q.strip_suffix(')')).unwrap();
        let (series, label) = inner.rsplit_once(", ").unwrap();
        assert_eq!(faults(series, &exposed()), [""; 0]);
        assert!(TARGET_LABELS.contains(&label), "{query}");
    }
    let mut ids = BTreeSet::new();
    for panel in items(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{} twice", panel["id"]);
        for target in items(&panel["targets"]) {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}

#[test]
fn every_alert_is_tried_and_documented() {
    let tests = read("tests/prometheus/alerts-test.yaml");
    let page = read("docs/observability.md");
    let alerts = alerts();
    let names: Vec<_> = alerts.iter().map(|alert| text(&alert["alert"])).collect();
    for name in &names {
        assert!(
            tests.contains(&format!("alertname=\"{name}\", pod=")),
            "{name} never fires in a test"
        );
        assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/observability.md");
    }
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a name twice");
}

#[test]
fn the_pod_monitor_scrapes_the_port_that_the_sidecar_names() {
    let monitor = &documents("PodMonitor", &read("examples/observability/podmonitor.yaml"))[0];
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((text(&endpoint["port"]), text(&endpoint["path"])), ("pln-metrics", "/metrics"));
    assert!(read("examples/kubernetes/secrets/orders.yaml").contains("name: pln-metrics"));
    // The alerts' and the dashboard's job.
    let job = items(&endpoint["relabelings"]).iter().find(|rule| rule["targetLabel"] == "job");
    assert_eq!(job.unwrap()["replacement"], "pillion");
}
