//! Certificates and policies that cannot be used: the last good ones stay, the pod stays ready,
//! and each attempt is counted and told once.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pillion_testbed::labels::{CLIENT, SERVER, STRANGER, direction, field, metric, port, reason};
use pillion_testbed::stream::ask;
use pillion_testbed::{
    Failure, LogLine, MeshOptions, Pair, Sidecar, Testbed, http_get, policy, run, untouched,
    wait_until,
};

const APP: u16 = 8080;

/// Files are compared every 10 s, should a watch miss them.
const FILES: Duration = Duration::from_secs(40);

/// A name for what is wrong, what makes a good folder so, and the label that it is counted by.
type Fault = (&'static str, fn(&Path, &Path) -> std::io::Result<()>, &'static str);

/// Each is done to a copy of a good folder; the second path is another good one's.
const FAULTS: &[Fault] = &[
    ("the key of another", |folder, other| copy(other, folder, "tls.key"), "key_mismatch"),
    ("the certificate of another", |folder, other| copy(other, folder, "tls.crt"), "key_mismatch"),
    ("no certificate", |folder, _| fs::write(folder.join("tls.crt"), ""), "empty"),
    ("no key", |folder, _| fs::write(folder.join("tls.key"), ""), "empty"),
    ("no authority", |folder, _| fs::write(folder.join("ca.crt"), ""), "empty"),
    ("half a certificate", |folder, _| halve(&folder.join("tls.crt")), "bad_pem"),
    ("half a key", |folder, _| halve(&folder.join("tls.key")), "bad_pem"),
    ("half an authority", |folder, _| halve(&folder.join("ca.crt")), "bad_pem"),
    ("a certificate of ten megabytes", |folder, _| swell(&folder.join("tls.crt")), "too_large"),
    ("a key of ten megabytes", |folder, _| swell(&folder.join("tls.key")), "too_large"),
    ("authorities of ten megabytes", |folder, _| swell(&folder.join("ca.crt")), "too_large"),
    ("not readable", |folder, _| forbid(&folder.join("tls.key")), "unreadable"),
];

fn copy(from: &Path, to: &Path, name: &str) -> std::io::Result<()> {
    fs::copy(from.join(name), to.join(name)).map(drop)
}

fn halve(file: &Path) -> std::io::Result<()> {
    let whole = fs::read(file)?;
    fs::write(file, whole.get(..whole.len() / 2).unwrap_or_default())
}

/// What was there is still there, and ten megabytes behind it.
fn swell(file: &Path) -> std::io::Result<()> {
    let mut whole = fs::read(file)?;
    whole.resize(10 << 20, b'\n');
    fs::write(file, whole)
}

fn forbid(file: &Path) -> std::io::Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o000))
}

fn by_result(sidecar: &Sidecar) -> Result<std::collections::BTreeMap<String, f64>, Failure> {
    Ok(sidecar.metrics()?.by(metric::CERTIFICATE_RELOADS, "result"))
}

/// As the kubelet swaps folders: one generation at a time, good or not.
#[test]
fn certificates_that_cannot_be_used_leave_the_last_good_ones_in_force() {
    run("bad-certificates", |bed| {
        let mut pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let first = in_force(&pair)?;
        let other = bed.issue(&bed.ca()?, SERVER, "other")?;
        for (number, (name, fault, label)) in FAULTS.iter().enumerate() {
            let folder = bad_copy(bed, number, fault, &other)?;
            refused(&mut pair, name, label, number, |callee| callee.publish(&folder))?;
            assert_eq!(in_force(&pair)?, first, "{name}: the same as before");
            pair.exchange(&listener)?;
        }
        // Good ones in between: what is said already is not said again.
        let (tls, gone) = (pair.server.path("tls"), FAULTS.len());
        let second = renewed(&mut pair, bed)?;
        refused(&mut pair, "a file is removed", "not_found", gone, |_| {
            fs::remove_file(tls.join("..data/tls.crt")).map_err(Failure::from)
        })?;
        assert_eq!(in_force(&pair)?, second, "the last good one");
        let third = renewed(&mut pair, bed)?;
        refused(&mut pair, "a link to nowhere", "not_found", gone + 1, |_| {
            std::os::unix::fs::symlink("..nowhere", tls.join("..data_tmp"))?;
            fs::rename(tls.join("..data_tmp"), tls.join("..data")).map_err(Failure::from)
        })?;
        assert_eq!(in_force(&pair)?, third, "the last good one");
        pair.exchange(&listener)?;
        renewed(&mut pair, bed)?;
        pair.exchange(&listener)
    });
}

/// New certificates, which are good; returns what is in force then.
fn renewed(pair: &mut Pair, bed: &Testbed) -> Result<(String, f64), Failure> {
    let (last, good) = (in_force(pair)?, pair.callee.loads(true)?);
    pair.callee.issue(bed)?;
    pair.callee.wait_load(true, good)?;
    let now = in_force(pair)?;
    assert_ne!(now.0, last.0);
    Ok(now)
}

/// Brings bad files, and waits until they are counted once by their label, and told once, after
/// `told` others. The pod stays ready.
fn refused(
    pair: &mut Pair,
    name: &str,
    label: &str,
    told: usize,
    bring: impl FnOnce(&mut Sidecar) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut wanted = by_result(&pair.callee)?;
    *wanted.entry(label.to_owned()).or_default() += 1.0;
    bring(&mut pair.callee)?;
    let mut lines = wait_until(name, FILES, || {
        let lines = pair.callee.messages("certificates can't be used")?;
        Ok((lines.len() > told).then_some(lines))
    })?;
    assert_eq!(by_result(&pair.callee)?, wanted, "{name}");
    assert_eq!(lines.len(), told + 1, "{name}: told once: {lines:?}");
    let line = lines.pop().map(|line| line.text("error")).unwrap_or_default();
    println!("{name}: {label}: {line}");
    let file = ["tls.crt", "tls.key", "ca.crt"].iter().any(|file| line.contains(file));
    assert!(file, "{name}: the file is named: {line}");
    assert_eq!(pair.callee.health("/healthz/ready")?.0, 200, "{name}");
    Ok(())
}

/// The serial number of the certificate in force, and when that ends.
fn in_force(pair: &Pair) -> Result<(String, f64), Failure> {
    let admin = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port::ADMIN);
    let (_, body) = http_get(&pair.server, admin, "/certs")?;
    let shown: serde_json::Value = serde_json::from_str(&body)
        .map_err(|error| Failure::Unexpected(format!("/certs: {error}: {body}")))?;
    let kind = [("kind", "svid")];
    let ends = "pillion_certificate_expiration_timestamp_seconds";
    let serial = shown.get("serial").and_then(serde_json::Value::as_str).unwrap_or_default();
    assert_ne!(serial, "", "{body}");
    Ok((serial.to_owned(), pair.callee.metric(ends, &kind)?))
}

/// A folder of good files to which a fault is done.
fn bad_copy(
    bed: &Testbed,
    number: usize,
    fault: &fn(&Path, &Path) -> std::io::Result<()>,
    other: &Path,
) -> Result<PathBuf, Failure> {
    let folder = bed.issue(&bed.ca()?, SERVER, &format!("bad-{number}"))?;
    fault(&folder, other)?;
    Ok(folder)
}

/// There are limits on a policy's bytes, its aliases and its rules: what is beyond them is refused
/// before it takes much time or memory.
#[test]
fn a_policy_that_cannot_be_used_leaves_the_last_good_one_in_force() {
    let bomb = {
        let mut text = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (name, of) in ('b'..='i').zip('a'..) {
            text += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(","));
        }
        text
    };
    // The parser has to see the end of what may be a key before it tells of it.
    let bracket = format!("a:\n  - {{{}", "a,".repeat(3_500_000));
    let good = policy::serve(&[CLIENT]);
    let many: String = (0..100_000)
        .map(|n| format!("  - {{name: r{n}, action: allow, from: [{{any: true}}]}}\n"))
        .collect();
    let many = good.replace("  rules:\n", &format!("  rules:\n{many}"));
    let twice = good.replace("kind: SidecarPolicy", "kind: SidecarPolicy\nkind: SidecarPolicy");
    let cidr = policy::serve_from(&[CLIENT], &["10.0.0.0/33"]);
    let unknown = good.replace("  defaultAction: deny", "  defaultActoin: deny");
    let said: &[(&str, &str)] = &[
        ("no YAML", "inbound: {mtls: [\n"),
        ("an unknown key", &unknown),
        ("a key that is there twice", &twice),
        ("a bad CIDR", &cidr),
        ("a hundred thousand rules", &many),
        ("a bomb of aliases", &bomb),
        ("a bracket without an end", &bracket),
        ("nothing", ""),
    ];
    run("bad-policies", |bed| {
        let mut pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let before = peak(&mut pair.callee)?;
        let hash = pair.callee.metrics()?.by(metric::POLICY, "hash");
        for (name, text) in said {
            assert_ne!(*text, good, "{name}");
            let told = pair.callee.messages("the policy can't be used")?.len();
            let cpu = pair.callee.process().cpu()?;
            pair.callee.set_policy(text)?;
            // The thread that reads it answers the metrics, too.
            wait_until("the refusal", 5 * FILES, || {
                Ok((pair.callee.metric(metric::POLICY_LOADED, &[])? == 0.0).then_some(()))
            })?;
            let took = pair.callee.process().cpu()? - cpu;
            println!("{name}: refused after {took:?} of the CPU's time");
            // In a build for tests, which is many times slower than what is shipped.
            assert!(took < Duration::from_secs(10), "{name}: {took:?}");
            let lines = wait_until(name, FILES, || {
                let lines = pair.callee.messages("the policy can't be used")?;
                Ok((lines.len() > told).then_some(lines))
            })?;
            assert_eq!(lines.len(), told + 1, "{name}: told once");
            let line = lines.last().map(|line| line.text(field::MESSAGE)).unwrap_or_default();
            println!("{name}: {}", line.lines().next().unwrap_or_default());
            assert!(has_place(&line), "{name}: file, line and column: {line}");
            let now = pair.callee.metrics()?;
            assert_eq!(now.by(metric::POLICY, "hash"), hash, "{name}: the last good one");
            assert_eq!(pair.callee.health("/healthz/ready")?.0, 200, "{name}");
            pair.exchange(&listener)?;
            pair.callee.set_policy(&good)?;
            pair.callee.wait_metric(metric::POLICY_LOADED, &[], 1.0)?;
        }
        let most = peak(&mut pair.callee)?;
        println!("{before} bytes resident at the most before, {most} with them");
        assert!(most < before + (64 << 20), "{before} and {most}");
        Ok(())
    });
}

/// A policy's file that goes away leaves the last good policy, as one that cannot be read does;
/// and it is taken again however it comes back: beside its place and renamed, or written over.
#[test]
fn a_policy_that_is_taken_away_leaves_the_last_good_one_in_force() {
    run("policy-away", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let hash = || Ok::<_, Failure>(pair.callee.metrics()?.by(metric::POLICY, "hash"));
        let folder = pair.server.path("policy");
        let file = folder.join("policy.yaml");
        let nobody = policy::serve(&[STRANGER]);
        let everybody = policy::serve(&[CLIENT]);
        let first = hash()?;
        for (number, (name, take)) in AWAY.iter().enumerate() {
            take(&folder)?;
            pair.callee.wait_metric(metric::POLICY_LOADED, &[], 0.0)?;
            let told = wait_until(name, FILES, || {
                let told = pair.callee.messages("the policy can't be used")?;
                Ok((told.len() > number).then_some(told))
            })?;
            let last = told.last().map(|line| line.text(field::MESSAGE)).unwrap_or_default();
            assert!(last.contains("policy.yaml"), "{name}: {last}");
            assert_eq!((told.len(), hash()?), (number + 1, first.clone()), "{name}: {told:?}");
            assert_eq!(pair.callee.health("/healthz/ready")?.0, 200, "{name}");
            pair.exchange(&listener)?;
            pair.callee.set_policy(&everybody)?;
            pair.callee.wait_metric(metric::POLICY_LOADED, &[], 1.0)?;
            assert_eq!(hash()?, first, "{name}");
        }
        fs::write(&file, &nobody)?;
        wait_until("what is written over", FILES, || Ok((hash()? != first).then_some(())))?;
        let refused = ask(&pair.client, listener.local_addr()?, b"not any more")?;
        assert!(refused.is_turned_away(), "{refused:?}");
        untouched(&listener)?;
        fs::write(folder.join("new"), &everybody)?;
        fs::rename(folder.join("new"), &file)?;
        wait_until("what is renamed", FILES, || Ok((hash()? == first).then_some(())))?;
        pair.exchange(&listener)
    });
}

type Taken = fn(&Path) -> std::io::Result<()>;

/// How a policy's file goes away: its volume's link, the file behind it, the folder's leave to it.
const AWAY: &[(&str, Taken)] = &[
    ("the volume's link is removed", |folder| fs::remove_file(folder.join("..data"))),
    ("the file is removed", |folder| fs::remove_file(folder.join("..data/policy.yaml"))),
    ("the file may not be read", |folder| forbid(&folder.join("..data/policy.yaml"))),
];

/// The most memory that it has ever had resident, in bytes (proc_pid_status(5), VmHWM).
fn peak(sidecar: &mut Sidecar) -> Result<u64, Failure> {
    let status = fs::read_to_string(sidecar.process().proc("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.map(|kib| kib << 10).ok_or_else(|| Failure::Unexpected("no VmHWM".to_owned()))
}

/// Whether a text names the policy's file, a line and a column.
fn has_place(text: &str) -> bool {
    let place = text.split("policy.yaml:").nth(1).unwrap_or_default();
    let numbers = place.split(':').take(2).filter(|number| number.parse::<u32>().is_ok());
    numbers.count() == 2
}

/// At the start there is no last good one: the pod is not ready, and says at which line and column.
#[test]
fn at_the_start_a_bad_policy_is_not_ready_and_is_told_by_line_and_column() {
    run("bad-start", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let bad = policy::serve(&[CLIENT]).replace("mtls: strict", "mtls: perhaps");
        let callee = server.mesh_unready(bed, MeshOptions::new(bad.clone(), SERVER))?;
        let lines = callee.wait_message("the policy can't be used")?;
        let line = 1 + bad.lines().position(|line| line.contains("perhaps")).unwrap_or_default();
        let place = format!("policy.yaml:{line}:");
        let placed = |said: &LogLine| {
            let text = said.text(field::MESSAGE);
            text.contains(&place) && has_place(&text)
        };
        assert!(lines.iter().all(placed), "{place} and a column in {lines:?}");
        let (status, pending) = callee.health("/healthz/ready")?;
        assert_eq!((status, pending.as_str()), (503, "pending: policy\n"));
        assert_eq!(callee.metric(metric::POLICY_LOADED, &[])?, 0.0);
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        for _ in 0..3 {
            let outcome = ask(&client, app.local_addr()?, b"too early")?;
            assert!(outcome.is_turned_away(), "{outcome:?}");
        }
        callee.wait_ended(direction::INBOUND, reason::NO_POLICY, 3)?;
        untouched(&app)
    });
}
