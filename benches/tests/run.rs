//! The benchmark itself, in small: pods, two stacks, two loads, the report. Needs root.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs `pillion-bench run`; it finds the proxy beside itself.
fn bench(out: &Path, words: &[&str]) -> std::io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pillion-bench"));
    command.arg("run").args(words).arg("--out").arg(out).output()
}

#[test]
fn a_small_run_measures_and_reports() {
    let out = tempfile::tempdir().unwrap();
    let words = ["--stacks", "direct,pillion", "--loads", "idle,bulk-up-1,http-1", "--rounds", "1"];
    let ended =
        bench(out.path(), &[&words[..], &["--seconds", "0.2", "--idle", "20"]].concat()).unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");

    let text = std::fs::read_to_string(out.path().join("bench.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let samples = report["samples"].as_array().unwrap();
    // The idle load tells nothing of a stack without a proxy.
    assert_eq!(samples.len(), 5, "{text}");
    for sample in samples {
        let outcome = &sample["outcome"];
        assert_eq!(outcome["failures"], 0, "{sample}");
        assert!(outcome["units"].as_u64().unwrap() > 0, "{sample}");
        let proxied = sample["stack"] == "pillion";
        let busy = proxied && sample["load"] != "idle";
        assert_eq!(outcome["rss_kb"].as_u64().unwrap() > 0, proxied, "{sample}");
        assert!(!busy || outcome["cpu_ns"].as_u64().unwrap() > 0, "{sample}");
    }
    let http = &report["medians"]["http-1"];
    for stack in ["direct", "pillion"] {
        assert!(http[stack]["p50_ns"].as_f64().unwrap() > 0.0, "{http}");
        assert!(http[stack]["units_per_second"].as_f64().unwrap() > 0.0, "{http}");
    }

    let printed = String::from_utf8_lossy(&ended.stdout);
    assert!(printed.contains("| pillion |"), "{printed}");
    assert!(std::fs::read_to_string(out.path().join("bench.svg")).unwrap().ends_with("</svg>\n"));
}

#[test]
fn starts_and_ends_are_measured() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pillion-bench"));
    let ended = command.args(["startup", "--runs", "2"]).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    let printed = String::from_utf8_lossy(&ended.stdout);
    assert!(printed.contains("2 runs.") && printed.contains("| from fork to 200"), "{printed}");
}

#[test]
fn a_wrong_name_ends_the_run_before_it_begins() {
    let out = tempfile::tempdir().unwrap();
    for words in [["--stacks", "nginx"], ["--loads", "carrots"]] {
        let ended = bench(out.path(), &words).unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains(words[1]) && said.contains("there is"), "{said}");
    }
}
