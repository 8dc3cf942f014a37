//! Health probes of the kubelet, which has no certificate: one listed GET, and nothing else.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};

use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, reason};
use pillion_testbed::stream::{End, Outcome, ask, read_exactly, read_to_end};
use pillion_testbed::{Failure, MeshOptions, Pod, Sidecar, accept, policy, run, untouched};

const APP: u16 = 8080;
const PROBE: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: app\r\nX-Probe: kubelet\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Strict; only the client's identity is let in, from anywhere but `denied`; one path is probed.
fn policy(denied: &[IpAddr]) -> String {
    let list: Vec<String> = denied.iter().map(|ip| format!("\"{ip}\"")).collect();
    let deny = if denied.is_empty() {
        String::new()
    } else {
        format!(
            "  - {{name: quarantine, action: deny, from: [{{ipBlocks: [{}]}}]}}\n",
            list.join(", ")
        )
    };
    policy::with_body(&format!(
        "inbound:\n  mtls: strict\n  defaultAction: deny\n\
         \x20 probes: [{{port: {APP}, path: /healthz}}]\n  rules:\n{deny}\
         \x20 - {{name: callers, action: allow, from: [{{identities: [\"{CLIENT}\"]}}]}}\n\
         outbound: {{defaultAction: passthrough, destinations: []}}\n"
    ))
}

/// A probe that the app answers; what it was asked comes back.
fn probe(kubelet: &Pod, app: &TcpListener) -> Result<String, Failure> {
    let mut asking = kubelet.connect(app.local_addr()?)?;
    asking.write_all(PROBE)?;
    let mut answering = accept(app)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_exactly(&mut answering, 1)?);
    }
    answering.write_all(ANSWER)?;
    drop(answering);
    assert_eq!(read_to_end(&mut asking)?, (ANSWER.to_vec(), End::Fin));
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Waits until `count` connections have ended for a reason.
fn ended(callee: &Sidecar, why: &str, count: f64) -> Result<(), Failure> {
    callee.wait_metric(metric::CLOSED, &[("direction", direction::INBOUND), ("reason", why)], count)
}

#[test]
fn a_listed_probe_is_answered_by_the_app_and_nothing_else_is() {
    run("probes", |bed| {
        let (server, kubelet) = (bed.pod("srv")?, bed.pod("kub")?);
        let callee = server.mesh(bed, MeshOptions::new(policy(&[]), SERVER))?;
        for address in server.addresses() {
            let app = server.listen(SocketAddr::new(address, APP))?;
            let asked = probe(&kubelet, &app)?;
            assert!(asked.starts_with("GET /healthz HTTP/1.1\r\n"), "{asked}");
            assert!(asked.contains("X-Probe: kubelet") && asked.contains("Connection: close"));
        }
        let answered = server.addresses().len();
        ended(&callee, reason::CLOSED, answered as f64)?;
        callee.wait_logs("probes", answered, |line| {
            line.is(direction::INBOUND, reason::CLOSED) && line.text(field::TLS) == "plaintext"
        })?;

        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let mut refused = 0;
        for request in [
            "GET /admin HTTP/1.1\r\nHost: app\r\n\r\n",
            "GET /healthz/ HTTP/1.1\r\nHost: app\r\n\r\n",
            "GET /healthz?all HTTP/1.1\r\nHost: app\r\n\r\n",
            "GET /healthz/../admin HTTP/1.1\r\nHost: app\r\n\r\n",
            "HEAD /healthz HTTP/1.1\r\nHost: app\r\n\r\n",
            "POST /healthz HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: app\r\nContent-Length: 1\r\n\r\nx",
            "GET /healthz HTTP/1.1\r\nHost: app\r\n\r\nGET /admin HTTP/1.1\r\nHost: app\r\n\r\n",
        ] {
            let outcome = ask(&kubelet, app.local_addr()?, request.as_bytes())?;
            println!("{request:?}: {outcome:?}");
            // A TLS alert may come back; no word of HTTP does.
            if let Outcome::Served(bytes) = &outcome {
                assert_eq!(bytes.first(), Some(&21), "{outcome:?}");
            }
            refused += 1;
        }
        ended(&callee, reason::PLAINTEXT_REFUSED, f64::from(refused))?;
        untouched(&app)
    });
}

/// A second request that comes after the first was taken for a probe.
#[test]
fn a_probe_is_one_request_a_connection() {
    run("probe-twice", |bed| {
        let (server, kubelet) = (bed.pod("srv")?, bed.pod("kub")?);
        let callee = server.mesh(bed, MeshOptions::new(policy(&[]), SERVER))?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let mut asking = kubelet.connect(app.local_addr()?)?;
        asking.write_all(PROBE)?;
        let mut answering = accept(&app)?;
        asking.write_all(b"GET /admin HTTP/1.1\r\nHost: app\r\n\r\n")?;
        answering.write_all(ANSWER)?;
        std::net::TcpStream::shutdown(&answering, std::net::Shutdown::Write)?;
        let (answer, _) = read_to_end(&mut asking)?;
        assert!(ANSWER.starts_with(&answer), "{:?}", String::from_utf8_lossy(&answer));
        let (asked, _) = read_to_end(&mut answering)?;
        assert!(!asked.windows(6).any(|word| word == b"/admin"), "one request, and no more");
        callee.wait_idle()?;
        untouched(&app)
    });
}

/// A probe that was let through and would not be: the verdict, the counters, one INFO line, the
/// access log.
fn let_through_and_reported(callee: &Sidecar, by: &str, count: f64) -> Result<(), Failure> {
    let shadow = [("mode", "audit"), ("decision", "deny"), ("rule", "quarantine")];
    callee.wait_metric(metric::DECISIONS, &shadow, count)?;
    let enforced = [("mode", "enforce"), ("decision", "allow"), ("rule", by)];
    callee.wait_metric(metric::DECISIONS, &enforced, 1.0)?;
    let said = callee.wait_message("audit rules would decide otherwise")?;
    assert!(said.iter().all(|line| line.text("level") == "INFO"), "{said:?}");
    let lines = callee.wait_logs("the report", 1, |line| line.text(field::RULE) == by)?;
    for (name, value) in
        [("verdict", "allow"), ("shadow_verdict", "deny"), ("shadow_rule", "quarantine")]
    {
        assert!(lines.iter().all(|line| line.text(name) == value), "{name}: {lines:?}");
    }
    Ok(())
}

#[test]
fn a_probe_that_would_be_denied_is_reported() {
    run("probe-audit", |bed| {
        let (server, kubelet) = (bed.pod("srv")?, bed.pod("kub")?);
        let enforced = policy(&kubelet.addresses());
        let watched = enforced.replace("action: deny, from", "action: deny, mode: audit, from");
        let callee = server.mesh(bed, MeshOptions::new(watched, SERVER))?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        probe(&kubelet, &app)?;
        let_through_and_reported(&callee, "probes", 1.0)?;
        callee.load_policy(&enforced.replace("inbound:", "enforcement: audit\ninbound:"))?;
        probe(&kubelet, &app)?;
        let_through_and_reported(&callee, "audit", 2.0)?;
        // And with nothing to say of it.
        callee.load_policy(&policy(&[]))?;
        probe(&kubelet, &app)?;
        let by_probes = [("mode", "enforce"), ("decision", "allow"), ("rule", "probes")];
        callee.wait_metric(metric::DECISIONS, &by_probes, 2.0)?;
        assert_eq!(callee.metric(metric::DECISIONS, &[("mode", "audit")])?, 2.0);
        Ok(())
    });
}

/// Nobody's address is let in: on a permissive port the probe is, and where TLS is off none is
/// looked for.
#[test]
fn a_permissive_port_takes_a_listed_probe_and_a_disabled_one_looks_for_none() {
    run("probe-modes", |bed| {
        let (server, kubelet) = (bed.pod("srv")?, bed.pod("kub")?);
        let in_mode = |mode: &str| policy(&[]).replace("mtls: strict", &format!("mtls: {mode}"));
        let callee = server.mesh(bed, MeshOptions::new(in_mode("permissive"), SERVER))?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let asked = probe(&kubelet, &app)?;
        assert!(asked.contains("Connection: close"), "{asked}");
        let refused = |request: &str| {
            let outcome = ask(&kubelet, app.local_addr()?, request.as_bytes())?;
            assert!(outcome.is_turned_away(), "{outcome:?}");
            untouched(&app)
        };
        refused("GET /admin HTTP/1.1\r\nHost: app\r\n\r\n")?;
        ended(&callee, reason::DENIED, 1.0)?;
        let nobody = "ipBlocks: [\"192.0.2.1\"]";
        let disabled = in_mode("disable").replace(&format!("identities: [\"{CLIENT}\"]"), nobody);
        callee.load_policy(&disabled)?;
        refused(&String::from_utf8_lossy(PROBE))?;
        ended(&callee, reason::DENIED, 2.0)
    });
}

#[test]
fn a_deny_rule_by_address_denies_probes_too() {
    run("probe-denied", |bed| {
        let (server, kubelet, near) = (bed.pod("srv")?, bed.pod("kub")?, bed.pod("nea")?);
        let callee = server.mesh(bed, MeshOptions::new(policy(&kubelet.addresses()), SERVER))?;
        for address in server.addresses() {
            let app = server.listen(SocketAddr::new(address, APP))?;
            let outcome = ask(&kubelet, app.local_addr()?, PROBE)?;
            assert!(outcome.is_turned_away(), "{outcome:?}");
            untouched(&app)?;
            probe(&near, &app)?;
        }
        let denied = server.addresses().len();
        ended(&callee, reason::DENIED, denied as f64)?;
        let labels = [("decision", "deny"), ("mode", "enforce"), ("rule", "quarantine")];
        callee.wait_metric(metric::DECISIONS, &labels, denied as f64)?;
        callee
            .wait_logs("the denials", denied, |line| line.text(field::RULE) == "quarantine")
            .map(drop)
    });
}
