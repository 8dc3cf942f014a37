//! The binary, as a person or a script uses it.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use pillion_certs::generation::KeyExchange;
use pillion_certs::load::{IdentityFiles, SvidSource, load};
use rustls_pki_types::UnixTime;

fn certs(dir: &Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pillion-certs"))
        .current_dir(dir)
        .args(arguments.split_whitespace())
        .output()
        .unwrap()
}

#[track_caller]
fn ends(output: &Output, code: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    out + &err
}

#[test]
fn an_authority_issues_what_the_loader_takes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ends(&certs(dir, "ca --trust-domain example.org --out ca"), 0);
    ends(&certs(dir, "issue --ca ca --id spiffe://example.org/a --out a"), 0);
    ends(&certs(dir, "issue --ca ca --id spiffe://example.org/b --out b --bundle"), 0);
    let files = |svid, ca: &str| IdentityFiles {
        svid,
        ca: dir.join(ca),
        trust_bundles_dir: None,
        crl: None,
        trust_domain: None,
        key_exchange: KeyExchange::Classic,
    };
    let pair = SvidSource::Files { cert: dir.join("a/tls.crt"), key: dir.join("a/tls.key") };
    let bundle = SvidSource::Bundle { file: dir.join("b/credentials.pem") };
    let a = load(&files(pair, "a/ca.crt"), UnixTime::now()).unwrap();
    let b = load(&files(bundle, "b/ca.crt"), UnixTime::now()).unwrap();
    assert_eq!(a.own_id().as_str(), "spiffe://example.org/a");
    assert_eq!(b.own_id().as_str(), "spiffe://example.org/b");
    for key in ["ca/ca.key", "a/tls.key", "b/credentials.pem"] {
        let mode = fs::metadata(dir.join(key)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{key}");
    }
    ends(&certs(dir, "inspect a/tls.crt b/credentials.pem ca/ca.crt --ca ca/ca.crt"), 0);
}

#[test]
fn an_authority_is_replaced_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ends(&certs(dir, "ca --trust-domain example.org --out ca"), 0);
    let before = fs::read(dir.join("ca/ca.key")).unwrap();
    let said = ends(&certs(dir, "ca --trust-domain example.org --out ca"), 1);
    assert!(said.contains("--force"), "{said}");
    assert_eq!(fs::read(dir.join("ca/ca.key")).unwrap(), before);
    ends(&certs(dir, "ca --trust-domain example.org --out ca --force"), 0);
    assert_ne!(fs::read(dir.join("ca/ca.key")).unwrap(), before);
}

#[test]
fn inspect_ends_with_1_when_a_rule_is_broken_and_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ends(&certs(dir, "ca --trust-domain example.org --out ca"), 0);
    ends(&certs(dir, "ca --trust-domain example.org --out other"), 0);
    ends(&certs(dir, "issue --ca ca --id spiffe://example.org/a --out a"), 0);
    let said = ends(&certs(dir, "inspect a/tls.crt --ca other/ca.crt"), 1);
    assert!(said.contains("BROKEN unknown_issuer"), "{said}");
    let json = certs(dir, "inspect a/tls.crt --ca other/ca.crt -o json");
    assert_eq!(json.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report[0]["broken"][0]["rule"], "unknown_issuer");
    assert_eq!(report[0]["certificates"][0]["id"], "spiffe://example.org/a");
    let said = ends(&certs(dir, "inspect missing.pem"), 1);
    assert!(said.contains("missing.pem"), "{said}");
}

#[test]
fn a_reader_that_has_seen_enough_is_not_told_and_a_full_disk_is() {
    let dir = tempfile::tempdir().unwrap();
    ends(&certs(dir.path(), "ca --trust-domain example.org --out ca"), 0);
    let to = |out: Stdio| {
        let mut inspect = Command::new(env!("CARGO_BIN_EXE_pillion-certs"));
        inspect.current_dir(dir.path()).args(["inspect", "ca/ca.crt"]).stdout(out);
        ends(&inspect.output().unwrap(), 1)
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(to(writer.into()), "");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let said = to(full.into());
    assert!(said.contains("No space left on device"), "{said}");
}

#[test]
fn revoke_writes_a_list_that_inspect_holds_a_chain_against() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (domain, ca) in [("example.org", "ca"), ("example.org", "other")] {
        ends(&certs(dir, &format!("ca --trust-domain {domain} --out {ca}")), 0);
    }
    for name in ["a", "b"] {
        let id = format!("spiffe://example.org/{name}");
        ends(&certs(dir, &format!("issue --ca ca --id {id} --out {name}")), 0);
    }
    let against =
        |name: &str| certs(dir, &format!("inspect {name}/tls.crt --ca ca/ca.crt --crl crl.pem"));
    ends(&certs(dir, "revoke --ca ca --out crl.pem"), 0);
    ends(&against("a"), 0);
    ends(&certs(dir, "revoke --ca ca --out crl.pem --cert a/tls.crt --reason superseded"), 0);
    let said = ends(&against("a"), 1);
    assert!(said.contains("BROKEN revoked") && said.contains("superseded"), "{said}");
    ends(&against("b"), 0);
    let json = certs(dir, "inspect b/tls.crt -o json");
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let serial = report[0]["certificates"][0]["serial"].as_str().unwrap().to_owned();
    ends(&certs(dir, &format!("revoke --ca ca --out crl.pem --serial {serial}")), 0);
    ends(&against("b"), 1);
    ends(&against("a"), 1);
    let shown = ends(&certs(dir, "inspect crl.pem --ca ca/ca.crt"), 0);
    assert!(shown.contains("revokes  2") && shown.contains(&serial), "{shown}");
    let said = ends(&certs(dir, "inspect crl.pem --ca other/ca.crt"), 1);
    assert!(said.contains("BROKEN crl_invalid"), "{said}");
    let der = pem::parse(fs::read(dir.join("crl.pem")).unwrap()).unwrap().into_contents();
    fs::write(dir.join("crl.der"), der).unwrap();
    assert_eq!(
        ends(&certs(dir, "inspect crl.der --ca ca/ca.crt"), 0).replace(".der", ".pem"),
        shown
    );
    fs::write(dir.join("broken.pem"), pem::encode(&pem::Pem::new("X509 CRL", vec![0x30, 0])))
        .unwrap();
    let said = ends(&certs(dir, "inspect broken.pem"), 1);
    assert!(said.contains("BROKEN bad_crl"), "{said}");

    let before = fs::read(dir.join("crl.pem")).unwrap();
    for refused in ["--ca other", "--ca ca --cert ca/missing.crt", "--ca other --cert a/tls.crt"] {
        ends(&certs(dir, &format!("revoke {refused} --out crl.pem")), 1);
    }
    ends(&certs(dir, "revoke --ca ca --out crl.pem --serial xyz"), 2);
    assert_eq!(fs::read(dir.join("crl.pem")).unwrap(), before, "the old list stays");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_help_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ends(&certs(dir, ""), 2);
    ends(&certs(dir, "ca --trust-domain Example.org --out ca"), 2);
    ends(&certs(dir, "issue --ca ca --id spiffe://example.org --out a"), 2);
    ends(&certs(dir, "ca --trust-domain example.org --out ca --ttl 24"), 2);
    assert!(fs::read_dir(dir).unwrap().next().is_none(), "nothing was written");
    let help = ends(&certs(dir, "--help"), 0);
    assert!(help.contains("Exit codes:") && help.contains("inspect"), "{help}");
    assert!(ends(&certs(dir, "--version"), 0).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_commands_of_the_kubernetes_walk_through_work() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kubernetes/README.md");
    let page = fs::read_to_string(page).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let commands: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("pillion-certs ")).collect();
    assert!(commands.len() > 5, "only {} commands", commands.len());
    for command in commands {
        ends(&certs(dir.path(), command), 0);
    }
    // What `create secret --from-file` puts into the cluster: the names that the sidecar looks for, and no other.
    let files = fs::read_dir(dir.path().join("orders")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ca.crt", "tls.crt", "tls.key"]);
}
