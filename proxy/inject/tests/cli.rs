//! The program: files and standard input, exit codes, and what is written where.

#![allow(clippy::unwrap_used, clippy::tests_outside_test_module, reason = "a test panics")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

const POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n";
const BAD: &str =
    "apiVersion: v1\nkind: Pod\nspec:\n  hostNetwork: true\n  containers:\n  - name: a\n";

fn run(arguments: &[&str], variables: &[(&str, &str)], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pillion-inject"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without having read: that is its right.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn standard_input_goes_to_standard_output_and_back() {
    let injected = run(&[], &[], POD);
    assert_eq!((injected.status.code(), err(&injected)), (Some(0), ""));
    assert!(out(&injected).contains("pillion-proxy:0.1.0"));
    let back = run(&["--uninject", "-"], &[], out(&injected));
    assert_eq!((back.status.code(), out(&back)), (Some(0), POD));
}

#[test]
fn files_are_joined_and_one_bad_one_silences_all() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain.yaml", "a: 1");
    let marked = file("marked.yaml", "---\nb: 2\n");
    let bad = file("bad.yaml", BAD);
    let joined = run(&[&plain, &marked, &plain], &[], "");
    assert_eq!(out(&joined), "a: 1\n---\nb: 2\n---\na: 1");
    let marked_pod = file("bom.yaml", &format!("\u{feff}{POD}"));
    let directive = file("directive.yaml", &format!("# a\n\n%YAML 1.2\n---\n{POD}"));
    let joined = run(&[&plain, &marked_pod, &directive, &marked_pod], &[], "");
    assert_eq!(joined.status.code(), Some(0), "{}", err(&joined));
    let back = run(&["--uninject"], &[], out(&joined));
    let want = format!("a: 1\n---\n{POD}...\n# a\n\n%YAML 1.2\n---\n{POD}---\n{POD}");
    assert_eq!((back.status.code(), out(&back)), (Some(0), &*want), "{}", err(&back));
    assert_eq!(out(&joined).matches("name: pillion-proxy\n").count(), 3);
    let refused = run(&[&plain, &bad], &[], "");
    assert_eq!((refused.status.code(), out(&refused)), (Some(1), ""));
    assert!(
        err(&refused).starts_with(&format!("pillion-inject: {bad}:4:3: error: Pod")),
        "{}",
        err(&refused)
    );
    let missing = run(&["/nowhere.yaml"], &[], "");
    assert_eq!((missing.status.code(), out(&missing)), (Some(2), ""));
    let folder = run(&[folder.path().to_str().unwrap()], &[], "");
    assert_eq!(folder.status.code(), Some(2));
    assert!(err(&folder).contains("is a directory"), "{}", err(&folder));
}

#[test]
fn an_annotation_wins_over_a_flag_and_a_flag_over_a_variable() {
    let variables = [("PILLION_INJECT_LOG", "trace"), ("PILLION_INJECT_POLICY", "of-variable")];
    let text = POD.replace("{name: p}", "{name: p, annotations: {pillion.dev/log: error}}");
    let output = run(&["--log=warn", "--access-log=all"], &variables, &text);
    for part in ["value: error\n", "value: all\n", "name: of-variable\n"] {
        assert!(out(&output).contains(part), "{part}: {}", out(&output));
    }
}

#[test]
fn every_bad_flag_and_variable_is_named_and_none_is_code_2() {
    let variables = [
        ("PILLION_INJECT_MEMORY_LIMIT", "much"),
        ("PILLION_INJECT_POLICY", "tcp://10.0.0.1:80"),
        ("PILLION_INJECT_KEY_TYPE", ""),
    ];
    let output = run(&["--inbound-ports=0", "--identity=vault"], &variables, POD);
    assert_eq!((output.status.code(), out(&output)), (Some(2), ""));
    let lines: Vec<&str> = err(&output).lines().collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("; ")), "{lines:#?}");
    assert_eq!(run(&["--no-such-flag"], &[], POD).status.code(), Some(2));
}

#[test]
fn an_unknown_variable_is_warned_of() {
    let output = run(&[], &[("PILLION_INJECT_POLICIES", "x"), ("PILLION_LOG", "x")], POD);
    let want = "pillion-inject: PILLION_INJECT_POLICIES means nothing here; did you mean \
                PILLION_INJECT_POLICY?\n";
    assert_eq!((output.status.code(), err(&output)), (Some(0), want));
}

#[test]
fn strict_refuses_for_a_warning() {
    let text = format!("{POD}    securityContext: {{privileged: true}}\n");
    let warned = run(&[], &[], &text);
    assert_eq!(warned.status.code(), Some(0));
    assert!(err(&warned).contains("warning: Pod p: container `a` is privileged"));
    let refused = run(&["--strict"], &[], &text);
    assert_eq!((refused.status.code(), out(&refused)), (Some(1), ""));
}

#[test]
fn a_function_that_fails_reports_results_and_no_items() {
    let item: String = BAD.lines().map(|line| format!("  {line}\n")).collect();
    let list = format!(
        "apiVersion: config.kubernetes.io/v1\nkind: ResourceList\nitems:\n- {}",
        item.trim_start()
    );
    let output = run(&[], &[], &list);
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_str(out(&output)).unwrap();
    assert_eq!(answer["kind"], "ResourceList");
    assert_eq!(answer["items"], serde_json::json!([]));
    let result = &answer["results"][0];
    assert_eq!(result["severity"], "error");
    assert_eq!(result["resourceRef"]["kind"], "Pod");
    assert_eq!(result["tags"]["kind"], "host-network");
}

#[test]
fn help_and_version_are_like_those_of_the_other_programs() {
    let version = run(&["--version"], &[], "");
    assert_eq!(out(&version), concat!("pillion-inject ", env!("CARGO_PKG_VERSION"), "\n"));
    let help = run(&["--help"], &[], "");
    for part in ["PILLION_INJECT_PROXY_IMAGE]", "Exit codes:", "--uninject", "[FILE]..."] {
        assert!(out(&help).contains(part), "{part}: {}", out(&help));
    }
}
