//! What the pages say of the proxy is what its code has: no row too many, none too few.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../../certs/tests/common/tables.rs"]
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, iter};

use pillion_proxy::admin::ENDPOINTS;
use pillion_proxy::app_health::RESULTS;
use pillion_proxy::config::{AccessLogMode, VARIABLES};
use pillion_proxy::sandbox::landlock_rights;
use pillion_proxy::telemetry::{AccessLog, CloseReason, Direction, METRICS, Record};
use serde_json::Value;
use tables::{documented, plain, read, root, rows, same};
use tracing_appender::non_blocking::NonBlocking;

const OBSERVABILITY: &str = "docs/observability.md";

/// One row of a table, as [`rows`] gives it.
fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(plain).to_vec()
}

#[test]
fn every_variable_is_documented_with_its_default_and_meaning() {
    let ours: Vec<_> = VARIABLES.iter().map(|v| row([v.name, v.default, v.meaning])).collect();
    same(&documented("README.md", "env", 3), &ours);
}

#[test]
fn every_metric_is_documented_with_its_labels() {
    let ours: Vec<_> = METRICS.iter().map(|m| row([m.name, &m.labels.join(", ")])).collect();
    same(&documented(OBSERVABILITY, "metrics", 2), &ours);
}

#[test]
fn every_close_reason_is_documented_with_its_meaning() {
    let ours: Vec<_> = CloseReason::ALL.iter().map(|r| row([r.label(), r.meaning()])).collect();
    same(&documented(OBSERVABILITY, "reasons", 2), &ours);
}

#[test]
fn every_result_of_an_apps_probe_is_documented_with_its_meaning() {
    let ours: Vec<_> = RESULTS.iter().map(|(result, meaning)| row([result, meaning])).collect();
    same(&documented(OBSERVABILITY, "app-probe-results", 2), &ours);
}

#[test]
fn every_endpoint_is_documented_with_its_server() {
    let ours =
        ENDPOINTS.iter().map(|(server, method, path)| row([&format!("{method} {path}"), server]));
    same(&documented(OBSERVABILITY, "endpoints", 2), &ours.collect::<Vec<_>>());
}

#[test]
fn every_access_log_field_is_documented() {
    same(&documented(OBSERVABILITY, "access-log", 1).concat(), &full_access_log_line());
}

#[test]
fn every_right_that_landlock_takes_is_documented_with_its_kernel() {
    let ours: Vec<_> = landlock_rights().map(|(right, linux)| row([right, linux])).collect();
    same(&documented("docs/hardening.md", "landlock", 2), &ours);
}

/// `suite::test`, in the order of the page.
#[test]
fn every_test_that_the_threat_model_names_exists() {
    let page = read("docs/threat-model.md");
    let named: Vec<_> =
        page.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::")).collect();
    assert!(named.len() > 40, "{named:?}");
    let folders = ["tests/tests", "proxy/tests", "certs/tests", "iptables-init/tests/netns"];
    for (suite, test) in named {
        // A suite is a file, or a folder of files.
        let mut sources = Vec::new();
        for place in folders.map(|folder| root().join(folder).join(suite)) {
            sources.extend(Some(place.with_extension("rs")).filter(|file| file.is_file()));
            if place.is_dir() {
                files(&place, "rs", &mut sources);
            }
        }
        let heading = format!("fn {test}()");
        let found = sources.iter().any(|file| fs::read_to_string(file).unwrap().contains(&heading));
        assert!(found, "{suite}::{test}");
    }
}

/// The fields of a line of which everything is known, in their order.
fn full_access_log_line() -> Vec<String> {
    let record = Record {
        direction: Direction::Inbound,
        source: "192.0.2.1:4000".parse().unwrap(),
        destination: Some("192.0.2.2:80".parse().unwrap()),
        peer: Some("spiffe://example.org/peer"),
        tls: Some("mtls"),
        verdict: Some("allow"),
        rule: Some("rule"),
        shadow: Some(("deny", "default")),
        reason: CloseReason::IoError,
        detail: Some("detail"),
        bytes_to_app: 1,
        bytes_from_app: 1,
        duration: Duration::from_millis(1),
    };
    assert!(!format!("{record:?}").contains("None"), "a field left out here would go unseen");
    let (sender, written) = mpsc::channel();
    let (queue, guard) = NonBlocking::new(Sent(sender));
    AccessLog::new(AccessLogMode::All, queue).write(&record);
    // Ends the queue's thread and with it the sender, so that a line that never comes is an error.
    drop(guard);
    let line: Value = serde_json::from_slice(&written.recv().unwrap()).unwrap();
    line.as_object().unwrap().keys().cloned().collect()
}

/// A writer whose other end can be waited for.
struct Sent(mpsc::Sender<Vec<u8>>);

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn every_exit_code_is_documented() {
    let mut sources = Vec::new();
    files(&root().join("proxy/src"), "rs", &mut sources);
    let text: String = sources.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("pub const EXIT_"));
    let ours = named.map(|rest| {
        let value = rest.split_once(": u8 = ").and_then(|(_, value)| value.strip_suffix(';'));
        value.unwrap_or_else(|| panic!("EXIT_{rest}: not a plain u8")).parse::<u8>().unwrap()
    });
    let page: Vec<u8> = documented(OBSERVABILITY, "exit-codes", 1)
        .iter()
        .map(|row| row[0].parse().unwrap())
        .collect();
    same(&page, &ours.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
}

/// All files with an extension in a folder and those below it, in a stable order.
fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

/// Every fault has a number and tests, and every test is there.
#[test]
fn every_fault_has_tests_that_exist() {
    let faults = documented("docs/faults.md", "faults", 4);
    let numbers: Vec<_> = faults.iter().map(|row| row[0].clone()).collect();
    same(&numbers, &(1..=31).map(|number| number.to_string()).collect::<Vec<_>>());
    for row in &faults {
        for name in row[3].split(", ") {
            // A suite is a file; where it is a folder, its tests are named by their file in there.
            let (suite, test) = name.rsplit_once("::").unwrap_or_else(|| panic!("{name}: no test"));
            let text = read(&format!("tests/tests/{}.rs", suite.replace("::", "/")));
            let there = text.contains(&format!("#[test]\nfn {test}() {{"));
            assert!(there, "fault {}: there is no test {name}", row[0]);
        }
    }
}

#[test]
fn every_dependency_is_documented_with_the_crates_that_name_it() {
    // For each name: the folders whose code needs it, and those whose tests do.
    let mut ours: BTreeMap<String, [Vec<String>; 2]> = BTreeMap::new();
    let workspace = workspace();
    for package in workspace["packages"].as_array().unwrap() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let folder = manifest.parent().unwrap().strip_prefix(root()).unwrap().to_str().unwrap();
        let folder = folder.strip_prefix("iptables-").unwrap_or(folder);
        for dependency in package["dependencies"].as_array().unwrap() {
            if dependency["path"].is_null() {
                let name = dependency["rename"].as_str().or(dependency["name"].as_str()).unwrap();
                let dev = usize::from(dependency["kind"] == "dev");
                ours.entry(name.to_owned()).or_default()[dev].push(folder.to_owned());
            }
        }
    }
    let ours = ours.into_iter().map(|(name, [run, dev])| {
        let dev = dev.iter().filter(|folder| !run.contains(folder)).cloned().collect::<Vec<_>>();
        let dev = if dev.is_empty() { dev } else { vec![format!("{} (dev)", dev.join(", "))] };
        let run = if run.is_empty() { run } else { vec![run.join(", ")] };
        row([&name, &[run, dev].concat().join("; ")])
    });
    same(&documented("docs/dependencies.md", "dependencies", 2), &ours.collect::<Vec<_>>());
}

/// What cargo knows of the workspace; it reads the manifests and nothing else.
fn workspace() -> Value {
    let arguments = ["metadata", "--no-deps", "--format-version=1", "--offline"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut value: Value = serde_json::from_slice(&output.stdout).unwrap();
    // In the order in which the workspace lists its members, which is the documentation's too.
    let members = value["workspace_members"].as_array().unwrap().clone();
    let packages = value["packages"].as_array_mut().unwrap();
    packages.sort_by_key(|package| members.iter().position(|member| *member == package["id"]));
    value
}

/// README.md and every page of docs and examples, relative to the root.
fn pages() -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["docs", "examples"] {
        files(&root().join(folder), "md", &mut found);
    }
    let docs =
        found.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
    iter::once("README.md".to_owned()).chain(docs).collect()
}

/// What a path in a page means, unless it leads nowhere or out of the repository.
fn target(page: &str, path: &str) -> Option<PathBuf> {
    let found = root().join(page).parent()?.join(path).canonicalize().ok()?;
    found.starts_with(root()).then_some(found)
}

/// The names under which a browser finds a page's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let name = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            name.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
        })
        .collect()
}

#[test]
fn every_link_within_the_repository_leads_somewhere() {
    let mut broken = Vec::new();
    let mut followed = 0;
    for page in pages() {
        let text = read(&page);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let own = page.rsplit('/').next().unwrap();
            let found = target(&page, if path.is_empty() { own } else { path });
            let leads = found.is_some_and(|file| {
                anchor.is_empty() || anchors(&fs::read_to_string(file).unwrap()).contains(anchor)
            });
            followed += 1;
            if !leads {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    assert!(followed > 0, "the reader sees no link");
}

#[test]
fn no_page_names_a_path_outside_of_the_repository() {
    let checkout = root().to_str().unwrap().to_owned();
    let mut wrong = Vec::new();
    for page in pages() {
        let text = read(&page);
        let words = text.split(|c: char| c.is_whitespace() || "`'\"()[]<>|=,;".contains(c));
        for word in words {
            let home =
                ["/home/", "/root/", "/Users/", &checkout].iter().any(|p| word.starts_with(p));
            let astray = word.contains("../") && target(&page, word).is_none();
            if home || astray {
                wrong.push(format!("{page}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "paths that a reader does not have:\n{}", wrong.join("\n"));
}

#[test]
fn every_example_policy_loads_without_warnings() {
    let mut examples = Vec::new();
    files(&root().join("examples/policies"), "yaml", &mut examples);
    assert!(!examples.is_empty());
    for path in examples {
        let name = path.display().to_string();
        let loaded = pillion_policy::load(&name, &fs::read_to_string(&path).unwrap(), None);
        assert_eq!(loaded.unwrap_or_else(|errors| panic!("{errors}")).warnings, [], "{name}");
    }
}

#[test]
fn the_reader_takes_the_marked_table_alone() {
    let text = "| `x` | 0 |\n<!-- t -->\n| Name | Value |\n|---|---|\n| `a` |  |\n| b | `c` d |\n\
                <!-- /t -->\n| `y` | 0 |\n";
    assert_eq!(rows(text, "t"), [row(["a", ""]), row(["b", "c d"])]);
    assert_eq!(anchors("# A `b-c` d?\ntext\n"), BTreeSet::from(["a-b-c-d".to_owned()]));
}

/// The stages of the Dockerfile that something is built from last.
#[test]
fn the_images_are_the_dockerfile_s() {
    let dockerfile = read("Dockerfile");
    let stages = dockerfile.lines().filter_map(|line| {
        let (base, name) = line.strip_prefix("FROM ")?.split_once(" AS ")?;
        (!base.contains("RUST_IMAGE")).then(|| vec![name.replace("init-iptables", "init:iptables")])
    });
    let (mut stages, mut told): (Vec<_>, Vec<_>) =
        (stages.collect(), documented("docs/image.md", "images", 1));
    stages.sort();
    told.sort();
    same(&told, &stages);
}
