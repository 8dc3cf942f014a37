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
