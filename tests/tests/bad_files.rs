//! Certificates and policies that cannot be used: the last good ones stay, the pod stays ready,
//! and each attempt is counted and told once.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pillion_testbed::labels::{CLIENT, SERVER, metric};
use pillion_testbed::{Failure, MeshOptions, Pair, Sidecar, Testbed, policy, run, wait_until};

const APP: u16 = 8080;

/// Files are compared every 10 s, should a watch miss them.
const FILES: Duration = Duration::from_secs(40);

/// A name for what is wrong, what makes a good folder so, and the label that it is counted by.
type Fault = (&'static str, fn(&Path, &Path) -> std::io::Result<()>, &'static str);

/// Each is done to a copy of a good folder; the second path is another good one's.
const FAULTS: &[Fault] = &[
    ("the key of another", |folder, other| copy(other, folder, "tls.key"), "key_mismatch"),
    ("no certificate", |folder, _| fs::write(folder.join("tls.crt"), ""), "empty"),
    ("half a certificate", |folder, _| halve(&folder.join("tls.crt")), "bad_pem"),
    ("half a key", |folder, _| halve(&folder.join("tls.key")), "bad_pem"),
    (
        "ten megabytes",
        |folder, _| fs::write(folder.join("tls.crt"), vec![b'x'; 10 << 20]),
        "too_large",
    ),
    ("not readable", |folder, _| forbid(&folder.join("tls.key")), "unreadable"),
];

fn copy(from: &Path, to: &Path, name: &str) -> std::io::Result<()> {
    fs::copy(from.join(name), to.join(name)).map(drop)
}

fn halve(file: &Path) -> std::io::Result<()> {
    let whole = fs::read(file)?;
    fs::write(file, whole.get(..whole.len() / 2).unwrap_or_default())
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
        let serial = |pair: &Pair| ends(&pair.callee);
        let first = serial(&pair)?;
        let other = bed.issue(&bed.ca()?, SERVER, "other")?;
        for (number, (name, fault, label)) in FAULTS.iter().enumerate() {
            let folder = bad_copy(bed, number, fault, &other)?;
            let before = by_result(&pair.callee)?;
            pair.callee.publish(&folder)?;
            let after = wait_until(name, FILES, || {
                let now = by_result(&pair.callee)?;
                Ok((now != before).then_some(now))
            })?;
            println!("{name}: {after:?}");
            let count = |loads: &std::collections::BTreeMap<String, f64>, label: &str| {
                loads.get(label).copied().unwrap_or_default()
            };
            assert_eq!(count(&after, label), count(&before, label) + 1.0, "{name}: {after:?}");
            assert_eq!(count(&after, "ok"), count(&before, "ok"), "{name}");
            assert_eq!(pair.callee.health("/healthz/ready")?.0, 200, "{name}");
            assert_eq!(serial(&pair)?, first, "{name}: the same end as before");
            pair.exchange(&listener)?;
        }
        let good = pair.callee.loads(true)?;
        pair.callee.issue(bed)?;
        pair.callee.wait_load(true, good)?;
        let bad = pair.callee.loads(false)?;
        fs::remove_file(pair.server.path("tls").join("..data/tls.crt"))?;
        wait_until("the load without a file", FILES, || {
            Ok((pair.callee.loads(false)? > bad).then_some(()))
        })?;
        assert_eq!(by_result(&pair.callee)?.get("not_found"), Some(&1.0), "gone");
        let told = pair.callee.messages("certificates can't be used")?;
        assert_eq!(told.len(), FAULTS.len() + 1, "each is told once: {told:?}");
        pair.exchange(&listener)?;
        let ok = pair.callee.loads(true)?;
        pair.callee.issue(bed)?;
        pair.callee.wait_load(true, ok)?;
        pair.exchange(&listener)
    });
}

/// When the certificate in force ends.
fn ends(sidecar: &Sidecar) -> Result<f64, Failure> {
    let kind = [("kind", "svid")];
    sidecar.metric("pillion_certificate_expiration_timestamp_seconds", &kind)
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
        ("nothing", ""),
    ];
    run("bad-policies", |bed| {
        let mut pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let resident = pair.callee.process().resident()?;
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
            let last = lines.last().map(|line| line.mentions("policy.yaml")).unwrap_or_default();
            assert!(last, "{name}: the file is named: {lines:?}");
            let now = pair.callee.metrics()?;
            assert_eq!(now.by(metric::POLICY, "hash"), hash, "{name}: the last good one");
            assert_eq!(pair.callee.health("/healthz/ready")?.0, 200, "{name}");
            pair.exchange(&listener)?;
            pair.callee.set_policy(&good)?;
            pair.callee.wait_metric(metric::POLICY_LOADED, &[], 1.0)?;
        }
        let now = pair.callee.process().resident()?;
        println!("{resident} bytes resident before, {now} after");
        assert!(now < resident + (64 << 20), "{resident} and {now}");
        Ok(())
    });
}

/// At the start there is no last good one: the pod is not ready, and says at which line and column.
#[test]
fn at_the_start_a_bad_policy_is_not_ready_and_is_told_by_line_and_column() {
    run("bad-start", |bed| {
        let server = bed.pod("srv")?;
        let bad = policy::serve(&[CLIENT]).replace("mtls: strict", "mtls: perhaps");
        let callee = server.mesh_unready(bed, MeshOptions::new(bad.clone(), SERVER))?;
        let lines = callee.wait_message("the policy can't be used")?;
        let line = 1 + bad.lines().position(|line| line.contains("perhaps")).unwrap_or_default();
        let place = format!("policy.yaml:{line}:");
        assert!(lines.iter().all(|said| said.mentions(&place)), "{place} in {lines:?}");
        let (status, pending) = callee.health("/healthz/ready")?;
        assert_eq!((status, pending.as_str()), (503, "pending: policy\n"));
        assert_eq!(callee.metric(metric::POLICY_LOADED, &[])?, 0.0);
        let listener: TcpListener = server.listen(SocketAddr::new(server.v4(), APP))?;
        drop(listener);
        Ok(())
    });
}
