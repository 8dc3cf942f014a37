//! The commands on a policy file, from arguments to exit code.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::Path;

use clap::Parser;
use pillion_proxy::cli::{
    Cli, Command, EXIT_BAD_FILE, EXIT_CHANGED, EXIT_DENIED, EXIT_OK, EXIT_USAGE, execute,
};

/// Runs a command line; its exit code, standard output and standard error.
fn run(args: &[&str]) -> (u8, String, String) {
    let cli = Cli::try_parse_from(["pillion-proxy"].iter().chain(args)).unwrap();
    let Some(Command::Tool(tool)) = cli.command else { panic!("{args:?} is no tool") };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = execute(&tool, &mut out, &mut err).unwrap();
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies").join(name);
    path.display().to_string()
}

#[test]
fn check_tells_good_from_bad() {
    let (code, out, err) = run(&["check", "--strict", "-f", &example("1-strict-api.yaml")]);
    assert_eq!((code, err.as_str()), (EXIT_OK, ""));
    assert!(out.contains("ok: policy orders, 2 rules, 1 destinations"), "{out}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    let file = path.display().to_string();
    let good = fs::read_to_string(example("1-strict-api.yaml")).unwrap();
    fs::write(&path, good.replace("10.244.0.0/16", "10.244.0.1/16")).unwrap();
    let (code, out, err) = run(&["check", "-f", &file]);
    assert_eq!((code, out.as_str()), (EXIT_BAD_FILE, ""));
    assert!(err.contains("10.244.0.0/16 is that network"), "{err}");
    let (code, out, _) = run(&["check", "-f", &file, "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["ok"]), (EXIT_BAD_FILE, &serde_json::json!(false)));
    assert_eq!(report["diagnostics"][0]["kind"], "host-bits");

    fs::write(&path, good.replace("10.244.0.0/16", "0.0.0.0/0")).unwrap();
    assert_eq!(run(&["check", "-f", &file]).0, EXIT_OK);
    assert_eq!(run(&["check", "-f", &file, "--strict"]).0, EXIT_BAD_FILE);
    fs::write(&path, b"\xff").unwrap();
    assert_eq!(run(&["check", "-f", &file]).0, EXIT_USAGE);
    assert_eq!(run(&["check", "-f", "/nonexistent/p.yaml"]).0, EXIT_USAGE);
}

#[test]
fn explain_answers_for_both_directions() {
    let file = example("1-strict-api.yaml");
    let common = ["explain", "-f", &file, "--trust-domain", "cluster.local"];
    let ask = |rest: &[&str]| run(&[&common[..], rest].concat());
    let peer = ["--source", "::ffff:10.1.1.1", "--port", "8080", "--identity"];
    let (code, out, _) =
        ask(&[&peer[..], &["spiffe://cluster.local/ns/shop/sa/frontend"]].concat());
    assert_eq!(code, EXIT_OK);
    assert!(out.starts_with("allow  by callers"), "{out}");
    let (code, out, _) = ask(&[&peer[..], &["spiffe://cluster.local/ns/shop/sa/x"]].concat());
    assert_eq!(code, EXIT_DENIED);
    assert!(out.starts_with("deny  by default"), "{out}");
    assert!(out.contains("prometheus") && out.contains("port 8080 is none of its ports"), "{out}");

    let out = ["--direction", "outbound", "--dest", "192.0.2.1", "--port", "8443"];
    let (code, said, _) = ask(&out);
    assert!(code == EXIT_OK && said.starts_with("passthrough  by default"), "{said}");
    let name = ["--host", "payments.shop.svc.cluster.local"];
    let (_, said, _) = ask(&[&out[..], &name].concat());
    assert!(said.starts_with("mtls  by payments"), "{said}");
    let (code, said, err) = ask(&[&out[..], &["--host", "Payments"]].concat());
    assert!(code == EXIT_OK && said.starts_with("passthrough  by default"), "{said}");
    assert_eq!(err, "warning: no destination has the host \"Payments\": it changes nothing\n");

    let without = ["explain", "-f", &file, "--source", "10.0.0.1", "--port", "80"];
    let (code, _, err) = run(&without);
    assert!(code == EXIT_USAGE && err.contains("--trust-domain"), "{err}");
}

#[test]
fn diff_tells_who_gets_in_and_out() {
    let old = example("1-strict-api.yaml");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.yaml");
    let new = path.display().to_string();
    let text = fs::read_to_string(&old).unwrap();
    let edited = text
        .replace("shop/frontend", "shop/*")
        .replace("{9090: {mtls: disable}}", "{9090: {mtls: disable}, 81: {mtls: permissive}}")
        .replace("[8443]", "[8443, 8444]")
        .replace("name: prometheus", "name: metrics");
    assert_ne!(text, edited);
    fs::write(&path, &edited).unwrap();
    let common = ["diff", &old, &new, "--trust-domain", "cluster.local"];
    let (code, out, err) = run(&common);
    assert_eq!((code, err.as_str()), (EXIT_CHANGED, ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines,
        [
            "loosens  mtls of port 81: strict -> permissive: plaintext is now accepted",
            "loosens  deny -> allow  inbound port 8080 from any address, as \
             spiffe://cluster.local/ns/shop/sa/* but not \
             spiffe://cluster.local/ns/shop/sa/frontend (was: deny by default; now: allow by \
             callers)",
            "tightens passthrough -> mtls  outbound port 8444 to any address, named \
             payments.shop.svc.cluster.local (was: passthrough by default; now: mtls by payments)",
            "1 more: the same verdict by another rule or with another report, or what two names share \
             with one (--all)",
        ]
    );
    let (_, out, _) = run(&[&common[..], &["--all"]].concat());
    assert!(
        out.contains(
            "changes  inbound port 9090 from 10.244.0.0/16 (was: allow by prometheus; now: allow \
             by metrics)"
        ),
        "{out}"
    );
    let (code, out, _) = run(&[&common[..], &["-o", "json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, EXIT_CHANGED);
    assert_eq!(report["settings"][0]["ports"], serde_json::json!({"only": [81]}));
    assert_eq!(report["changes"][0]["effect"], "loosens");
    assert_eq!(report["changes"][0]["addresses"], serde_json::json!(["0.0.0.0/0", "::/0"]));
    assert_eq!(report["changes"][0]["was"]["rule"], "default");
    assert_eq!(report["hidden"], 1);

    let (code, out, _) = run(&["diff", &old, &old, "--trust-domain", "cluster.local"]);
    assert_eq!((code, out.as_str()), (EXIT_OK, "nothing changes\n"));
    // A new name alone is no change of what is let through.
    fs::write(&path, text.replace("name: prometheus", "name: metrics")).unwrap();
    let (code, out, _) = run(&common);
    assert!(code == EXIT_OK && out.starts_with("nothing changes\n1 more: the same"), "{out}");

    assert_eq!(run(&["diff", &old, &new]).0, EXIT_USAGE, "no --trust-domain");
    assert_eq!(run(&["diff", &old, "/nonexistent", "--trust-domain", "d"]).0, EXIT_USAGE);
    fs::write(&path, "kind: x\n").unwrap();
    let (code, _, err) = run(&common);
    assert!(code == EXIT_BAD_FILE && err.contains("new.yaml:1:"), "{err}");
}

#[test]
fn diff_says_when_it_has_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, rules: usize| {
        let path = dir.path().join(name);
        // Each rule with an address and an identity of its own: the classes are the product.
        let rule = |n: usize| {
            format!(
                "  - {{name: r{n}, action: allow, from: [{{ipBlocks: [10.{}.{}.0/24], \
                 identities: [n{n}/s]}}]}}\n",
                n / 256,
                n % 256
            )
        };
        let rules: String = (0..rules).map(rule).collect();
        let text = format!(
            "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n\
             inbound:\n  mtls: strict\n  defaultAction: deny\n  rules:\n{rules}\
             outbound: {{defaultAction: deny}}\n"
        );
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (old, new) = (write("old", 2000), write("new", 2001));
    let (code, out, err) = run(&["diff", &old, &new, "--trust-domain", "cluster.local"]);
    assert_eq!((code, out.as_str()), (EXIT_BAD_FILE, ""));
    assert!(err.contains("more than 2000000 classes"), "{err}");
}

#[test]
fn explain_answers_in_json_too() {
    let file = example("1-strict-api.yaml");
    let common = ["explain", "-f", &file, "--trust-domain", "cluster.local", "-o", "json"];
    let ask = ["--source", "10.244.1.7", "--port", "9090"];
    let (code, out, _) = run(&[&common[..], &ask].concat());
    let said: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, EXIT_OK);
    assert_eq!((&said["verdict"], &said["rule"]), (&"allow".into(), &"prometheus".into()));
    assert_eq!(said["reported"], serde_json::Value::Null);
    assert_eq!(said["rules"][1]["decides"], true);
    assert_eq!(said["rules"][0]["why"], "no: port 9090 is none of its ports");
}

#[test]
fn explain_judges_the_connections_that_are_open() {
    let file = example("1-strict-api.yaml");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("connections.json");
    let connections = path.display().to_string();
    let open = |source: &str, peer: &str| {
        serde_json::json!({
            "direction": "inbound", "source": source, "destination": "10.244.1.9:8080",
            "names": [], "peer": format!("spiffe://cluster.local/ns/shop/sa/{peer}"),
            "tls": "mtls", "stage": "allowed", "probe": null, "verdict": "allow", "rule": "old",
            "bytes_to_app": 1, "bytes_from_app": 1, "age_ms": 1,
        })
    };
    let write = |list: &[serde_json::Value]| {
        fs::write(&path, serde_json::to_vec(list).unwrap()).unwrap();
    };
    write(&[open("10.244.1.7:40112", "frontend"), open("10.244.2.8:40113", "cart")]);
    let common =
        ["explain", "-f", &file, "--trust-domain", "cluster.local", "--connections", &connections];
    let (code, out, err) = run(&common);
    assert_eq!(code, EXIT_DENIED, "{err}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(
        lines,
        [
            "stays  inbound  10.244.1.7:40112 -> 10.244.1.9:8080  \
             spiffe://cluster.local/ns/shop/sa/frontend",
            "ends   inbound  10.244.2.8:40113 -> 10.244.1.9:8080  \
             spiffe://cluster.local/ns/shop/sa/cart  by default",
            "2 open: 1 would stay, 1 would end",
        ]
    );
    assert_eq!(err, "");
    let (_, out, _) = run(&[&common[..], &["-o", "json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["stay"], &report["end"]), (&1.into(), &1.into()));
    assert_eq!(report["connections"][1]["rule"], "default");

    write(&[open("10.244.1.7:40112", "frontend")]);
    assert_eq!(run(&common).0, EXIT_OK);
    write(&[]);
    assert_eq!(run(&common).0, EXIT_OK);
    for bad in ["[{}]", "{}", "", "[1]"] {
        fs::write(&path, bad).unwrap();
        let (code, out, err) = run(&common);
        assert_eq!((code, out.as_str()), (EXIT_USAGE, ""), "{bad}");
        assert!(err.contains("GET /connections"), "{err}");
    }
    let nobody = [&common[..5], &["--admin", "127.0.0.1:1"]].concat();
    let (code, _, err) = run(&nobody);
    assert!(code == EXIT_USAGE && err.contains("127.0.0.1:1: the connections can't be read"));
}

/// A new file's name may be one of an address that is connected to: nobody knows yet.
#[test]
fn explain_says_what_a_name_may_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (file, connections) = (path("new.yaml"), path("connections.json"));
    let text = "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {name: t}\n\
                inbound: {mtls: strict, defaultAction: deny}\n\
                outbound:\n  defaultAction: passthrough\n  destinations:\n\
                \x20 - {name: db, hosts: [db.example, db2.example], ports: [5432], action: deny}\n\
                \x20 - {name: web, hosts: [web.example], ports: [80], action: passthrough}\n";
    fs::write(&file, text).unwrap();
    let open = |port: u16, names: &[&str]| {
        serde_json::json!({
            "direction": "outbound", "source": "10.244.1.9:40112", "names": names, "peer": null,
            "destination": format!("10.96.0.7:{port}"), "tls": "passthrough", "stage": "allowed",
            "probe": null,
        })
    };
    let all = [open(5432, &[]), open(80, &[]), open(5432, &["db2.example"])];
    fs::write(&connections, serde_json::to_vec(&all).unwrap()).unwrap();
    let common = ["explain", "-f", &file, "--connections", &connections];
    let (code, out, err) = run(&common);
    assert_eq!(code, EXIT_DENIED, "{err}");
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "may end outbound 10.244.1.9:40112 -> 10.96.0.7:5432  by db if it is db.example",
            "stays  outbound 10.244.1.9:40112 -> 10.96.0.7:80",
            "ends   outbound 10.244.1.9:40112 -> 10.96.0.7:5432  by db",
            "3 open: 1 would stay, 1 would end, 1 may end",
        ]
    );
    assert!(err.starts_with("note: "), "{err}");
    let (_, out, _) = run(&[&common[..], &["-o", "json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["stay"], &report["mayEnd"]), (&1.into(), &1.into()));
    let first = &report["connections"][0];
    assert_eq!((&first["stays"], &first["mayEnd"]), (&false.into(), &"db.example".into()));
    // It alone is reason enough for the exit code.
    fs::write(&connections, serde_json::to_vec(&all[..1]).unwrap()).unwrap();
    assert_eq!(run(&common).0, EXIT_DENIED);
    fs::write(&connections, serde_json::to_vec(&all[1..2]).unwrap()).unwrap();
    let (code, _, err) = run(&common);
    assert_eq!((code, err.as_str()), (EXIT_OK, ""));
}

/// Without a trust domain nothing could be said of an identity.
#[test]
fn explain_needs_the_trust_domain_of_an_identity() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml").display().to_string();
    let text = |mode: &str| {
        format!(
            "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: t}}\n\
             inbound: {{mtls: {mode}, defaultAction: allow}}\n\
             outbound: {{defaultAction: deny}}\n"
        )
    };
    fs::write(&file, text("strict")).unwrap();
    let plain = ["explain", "-f", &file, "--source", "10.0.0.1", "--port", "80"];
    let identified = [&plain[..], &["--identity", "spiffe://d.example/a"]].concat();
    let (code, out, err) = run(&identified);
    assert_eq!((code, out.as_str()), (EXIT_USAGE, ""));
    assert!(err.contains("say which one that is with --trust-domain"), "{err}");
    assert_eq!(run(&plain).0, EXIT_DENIED);
    let known = [&identified[..], &["--trust-domain", "d.example"]].concat();
    assert_eq!(run(&known).0, EXIT_OK);
    // Where TLS is off, nobody has one.
    fs::write(&file, text("disable")).unwrap();
    let (code, out, _) = run(&known);
    assert_eq!(code, EXIT_OK);
    assert!(out.contains("port 80 is mtls: disable") && out.contains("judged without"), "{out}");
}

#[test]
fn the_schema_is_json_and_bad_usage_is_refused() {
    let (code, out, _) = run(&["schema"]);
    assert_eq!(code, EXIT_OK);
    assert!(serde_json::from_str::<serde_json::Value>(&out).unwrap().is_object());
    for args in [
        &["explain", "-f", "p", "--port", "80"][..],
        &["explain", "-f", "p", "--port", "0", "--source", "10.0.0.1"],
        &["explain", "-f", "p", "--port", "80", "--direction", "outbound"],
        &["explain", "-f", "p", "--port", "80", "--source", "x"],
        &["explain", "-f", "p", "--port", "80", "--source", "10.0.0.1", "--identity", "a"],
        &["check"],
    ] {
        let all = ["pillion-proxy"].iter().chain(args);
        let error = Cli::try_parse_from(all).expect_err(&format!("{args:?}"));
        assert_eq!(error.exit_code(), 2);
    }
    assert!(Cli::try_parse_from(["pillion-proxy"]).unwrap().command.is_none());
}

/// `pillion-proxy check | true` in a pipeline must not pass what it refuses.
#[test]
fn a_reader_that_goes_away_changes_no_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.yaml").display().to_string();
    fs::write(&bad, "kind: x\n").unwrap();
    let good = example("1-strict-api.yaml");
    let denied =
        ["explain", "--trust-domain", "cluster.local", "--source", "10.0.0.1", "--port", "1", "-f"];
    for (args, want) in [
        (&["check", "-f", &bad][..], EXIT_BAD_FILE),
        (&["check", "-o", "json", "-f", &bad], EXIT_BAD_FILE),
        (&["explain", "--source", "10.0.0.1", "--port", "1", "-f", &bad], EXIT_BAD_FILE),
        (&[&denied[..], &[&good]].concat(), EXIT_DENIED),
        (&["check", "-f", "/nonexistent/p.yaml"], EXIT_USAGE),
        (&["check", "-f", &good], EXIT_OK),
        (&["schema"], EXIT_OK),
    ] {
        let closed = || std::io::pipe().unwrap().1;
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_pillion-proxy"))
            .args(args)
            .stdout(closed())
            .stderr(closed())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(i32::from(want)), "{args:?}");
    }
}

/// Every flag of every command is in the reference page, and so is every exit code.
#[test]
fn the_reference_page_has_every_flag() {
    use clap::CommandFactory;
    let page = include_str!("../../docs/policy.md");
    let (_, part) = page.split_once("### Flags and exit codes").unwrap();
    let cli = Cli::command();
    for name in ["check", "explain", "diff", "schema"] {
        let row = part.lines().find(|line| line.starts_with(&format!("| `{name}` "))).unwrap();
        let command = cli.find_subcommand(name).unwrap();
        for flag in command.get_arguments().filter(|arg| !arg.is_positional()) {
            let long = flag.get_long().map(|long| format!("`--{long}`"));
            let with_value = flag.get_long().map(|long| format!("`--{long} "));
            let short = flag.get_short().map(|short| format!("`-{short}"));
            let named = [long, with_value, short];
            let found = named.iter().flatten().any(|text| row.contains(text.as_str()));
            assert!(found, "{name}: {:?} is not in docs/policy.md", flag.get_id());
        }
    }
    for code in [EXIT_OK, EXIT_BAD_FILE, EXIT_USAGE, EXIT_DENIED, EXIT_CHANGED] {
        assert!(part.contains(&format!("\n| {code} | ")), "{code}");
    }
}
