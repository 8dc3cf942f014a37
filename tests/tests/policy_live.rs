//! A policy at work and a policy that changes: audit, trust domains, ports and destinations that
//! turn strict under open connections.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};

use pillion_testbed::labels::{
    CLIENT, PARTNER, PARTNER_DOMAIN, SERVER, STRANGER, TRUST_DOMAIN, direction, field, metric,
    reason, refusal,
};
use pillion_testbed::stream::{End, ask, pass, read_to_end};
use pillion_testbed::{
    Failure, MeshOptions, Pair, Pod, Sidecar, Testbed, accept, policy, run, untouched,
};

const APP: u16 = 8080;

/// Outbound of the pods that only serve.
const NO_OUTBOUND: &str = "outbound: {defaultAction: passthrough, destinations: []}\n";

/// A connection that is up: the caller's end, then the app's.
fn open(client: &Pod, listener: &TcpListener) -> Result<(TcpStream, TcpStream), Failure> {
    let mut asking = client.connect(listener.local_addr()?)?;
    // A permissive port waits for the client's first bytes before it dials the app.
    std::io::Write::write_all(&mut asking, b"first")?;
    let mut answering = accept(listener)?;
    assert_eq!(pillion_testbed::stream::read_exactly(&mut answering, 5)?, b"first");
    pass(&mut answering, &mut asking, b"and back")?;
    Ok((asking, answering))
}

/// Closes the app's end and waits for the sidecar to have seen the end of `count` connections
/// that a new policy ended, in a direction, by a rule.
fn ended_by_policy(sidecar: &Sidecar, way: &str, rule: &str, count: usize) -> Result<(), Failure> {
    let labels = [("direction", way), ("reason", reason::POLICY_CHANGED)];
    sidecar.wait_metric(metric::CLOSED, &labels, count as f64)?;
    sidecar.wait_metric(metric::TERMINATED, &[("rule", rule)], 1.0)?;
    let lines = sidecar
        .wait_logs("an end by policy", count, |line| line.is(way, reason::POLICY_CHANGED))?;
    assert!(lines.iter().any(|line| line.text(field::DETAIL).contains(rule)), "{lines:?}");
    Ok(())
}

/// Inbound in a mode with `rules`, each a line of YAML.
fn inbound(head: &str, mode: &str, default: &str, rules: &str) -> String {
    policy::with_body(&format!(
        "{head}inbound:\n  mtls: {mode}\n  defaultAction: {default}\n  rules:\n{rules}{NO_OUTBOUND}"
    ))
}

/// What audit lets through and reports: the verdict, the counter, one INFO line, the access log.
fn let_through_and_reported(callee: &Sidecar, rule: &str, by: &str) -> Result<(), Failure> {
    let shadow = [("mode", "audit"), ("decision", "deny"), ("rule", by)];
    callee.wait_metric(metric::DECISIONS, &shadow, 1.0)?;
    let acted = [("mode", "enforce"), ("decision", "allow"), ("rule", rule)];
    callee.wait_metric(metric::DECISIONS, &acted, 1.0)?;
    let said = callee.wait_message("audit rules would decide otherwise")?;
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said.iter().all(|line| line.text("level") == "INFO" && line.text("audit_rule") == by));
    let lines = callee.wait_logs("the shadow verdict", 1, |line| {
        line.text(field::SHADOW_VERDICT) == "deny" && line.text(field::SHADOW_RULE) == by
    })?;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines.iter().all(|line| line.is(direction::INBOUND, reason::CLOSED)), "{lines:?}");
    Ok(())
}

#[test]
fn an_audit_rule_reports_and_lets_through() {
    run("audit-rule", |bed| {
        let pair = Pair::new(bed)?;
        let rules = format!(
            "  - {{name: callers, action: allow, from: [{{identities: [\"{CLIENT}\", \"{STRANGER}\"]}}]}}\n\
             \x20 - {{name: watched, action: deny, mode: audit, from: [{{identities: [\"{CLIENT}\"]}}]}}\n"
        );
        pair.callee.load_policy(&inbound("", "strict", "deny", &rules))?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        drop(open(&pair.client, &listener)?);
        let_through_and_reported(&pair.callee, "callers", "watched")?;

        // Where audit would decide no other way there is nothing to report.
        let other = rules.replace(
            &format!("mode: audit, from: [{{identities: [\"{CLIENT}\"]}}]"),
            &format!("mode: audit, from: [{{identities: [\"{STRANGER}\"]}}]"),
        );
        assert_ne!(other, rules);
        pair.callee.load_policy(&inbound("", "strict", "deny", &other))?;
        drop(open(&pair.client, &listener)?);
        let acted = [("mode", "enforce"), ("decision", "allow"), ("rule", "callers")];
        pair.callee.wait_metric(metric::DECISIONS, &acted, 2.0)?;
        assert_eq!(pair.callee.metric(metric::DECISIONS, &[("mode", "audit")])?, 1.0);
        Ok(())
    });
}

#[test]
fn a_file_in_audit_denies_nobody_and_checks_certificates_still() {
    run("audit-file", |bed| {
        let pair = Pair::new(bed)?;
        let rules = format!(
            "  - {{name: callers, action: allow, from: [{{identities: [\"{STRANGER}\"]}}]}}\n"
        );
        let text = inbound("enforcement: audit\n", "strict", "deny", &rules);
        pair.callee.load_policy(&text)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        drop(open(&pair.client, &listener)?);
        let_through_and_reported(&pair.callee, "audit", "default")?;

        let to = listener.local_addr()?;
        let plain = bed.pod("pln")?;
        // What comes back is a TLS alert, if anything.
        println!("in plaintext: {:?}", ask(&plain, to, b"without any certificate")?);
        let refused = [("direction", direction::INBOUND), ("reason", reason::PLAINTEXT_REFUSED)];
        pair.callee.wait_metric(metric::CLOSED, &refused, 1.0)?;
        untouched(&listener)?;

        let foreign = bed.issue(&bed.foreign_ca(TRUST_DOMAIN)?, CLIENT, "foreign")?;
        let stranger = bed.pod("str")?;
        let call = MeshOptions::new(policy::call(&pair.server.addresses(), SERVER), CLIENT);
        // Its own side trusts the mesh, so that it is the server who refuses.
        fs::copy(bed.ca()?.join("ca.crt"), foreign.join("ca.crt"))?;
        let _caller = stranger.mesh(bed, call.certificates_from(foreign))?;
        let outcome = ask(&stranger, to, b"with a certificate of nobody's")?;
        assert!(outcome.is_turned_away(), "{outcome:?}");
        let refused = [("direction", direction::INBOUND), ("reason", reason::CERTIFICATE_REFUSED)];
        pair.callee.wait_metric(metric::CLOSED, &refused, 1.0)?;
        pair.callee
            .wait_logs("the certificate", 1, |line| {
                line.text(field::DETAIL).contains(refusal::UNKNOWN_ISSUER)
            })
            .map(drop)
    });
}

#[test]
fn the_app_may_listen_on_loopback_alone() {
    run("loopback", |bed| {
        let pair = Pair::new(bed)?;
        let rules = format!(
            "  - {{name: callers, action: allow, from: [{{identities: [\"{CLIENT}\"]}}]}}\n"
        );
        let text = inbound("", "strict", "deny", &rules)
            .replace("  rules:", "  appAddress: 127.0.0.1\n  rules:");
        pair.callee.load_policy(&text)?;
        let loopbacks = ["127.0.0.1", "::1"].iter().zip(["127.0.0.6", "::6"]);
        for (address, (app, source)) in pair.server.addresses().into_iter().zip(loopbacks) {
            let listener =
                pair.server.listen(format!("{}:{APP}", bracketed(app)).parse().unwrap())?;
            let mut asking = pair.client.connect(SocketAddr::new(address, APP))?;
            let mut answering = accept(&listener)?;
            pass(&mut asking, &mut answering, b"to loopback")?;
            pass(&mut answering, &mut asking, b"and back")?;
            assert_eq!(answering.peer_addr()?.ip().to_string(), source);
        }
        pair.check_meshed()
    });
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// The bundles that a pod has of other meshes.
fn bundles(bed: &Testbed, name: &str) -> Result<std::path::PathBuf, Failure> {
    let directory = bed.directory().join(name);
    fs::create_dir(&directory)?;
    Ok(directory)
}

#[test]
fn a_partners_peers_need_a_bundle_and_the_policys_word() {
    run("federation", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("prt")?);
        let (ours, theirs) = (bundles(bed, "ours")?, bundles(bed, "theirs")?);
        let partners = bed.foreign_ca(PARTNER_DOMAIN)?;
        fs::copy(bed.ca()?.join("ca.crt"), theirs.join(format!("{TRUST_DOMAIN}.pem")))?;
        let everyone = "  - {name: everyone, action: allow, from: [{any: true}]}\n";
        let accepting = |domains: &str| {
            inbound(&format!("trustDomains: [{domains}]\n"), "strict", "deny", everyone)
        };
        let both = format!("{TRUST_DOMAIN}, {PARTNER_DOMAIN}");
        let serve = MeshOptions::new(accepting(&both), SERVER)
            .env("PILLION_TRUST_BUNDLES_DIR", &ours.display().to_string());
        let callee = server.mesh(bed, serve)?;
        let call = policy::call(&server.addresses(), SERVER)
            .replace("inbound:", &format!("trustDomains: [{both}]\ninbound:"));
        let call = MeshOptions::new(call, PARTNER)
            .certificates_from(bed.issue(&partners, PARTNER, "partner")?)
            .env("PILLION_TRUST_BUNDLES_DIR", &theirs.display().to_string());
        let _caller = client.mesh(bed, call)?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let to = listener.local_addr()?;
        let refused = [("direction", direction::INBOUND), ("reason", reason::CERTIFICATE_REFUSED)];
        let named = |line: &pillion_testbed::LogLine| {
            line.is(direction::INBOUND, reason::CERTIFICATE_REFUSED)
                && line.text(field::DETAIL).contains(refusal::UNTRUSTED_DOMAIN)
        };

        assert!(ask(&client, to, b"no bundle")?.is_turned_away(), "listed, but without a bundle");
        callee.wait_metric(metric::CLOSED, &refused, 1.0)?;
        callee.wait_logs("the domain without a bundle", 1, named)?;

        let loads = callee.metric(metric::CERTIFICATE_RELOADS, &[("result", "ok")])?;
        let fresh = bed.directory().join("partner.pem");
        fs::copy(partners.join("ca.crt"), &fresh)?;
        fs::rename(&fresh, ours.join(format!("{PARTNER_DOMAIN}.pem")))?;
        callee.wait_metric(metric::CERTIFICATE_RELOADS, &[("result", "ok")], loads + 1.0)?;
        let (mut asking, mut answering) = open(&client, &listener)?;

        callee.load_policy(&accepting(TRUST_DOMAIN))?;
        assert_eq!(read_to_end(&mut asking)?.0, b"");
        assert_eq!(read_to_end(&mut answering)?.0, b"");
        drop((asking, answering));
        ended_by_policy(&callee, direction::INBOUND, "trustDomains", 1)?;
        let lines = callee.wait_logs("the partner", 1, |line| line.text(field::PEER) == PARTNER)?;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(ask(&client, to, b"not listed")?.is_turned_away(), "a bundle, but not listed");
        callee.wait_metric(metric::CLOSED, &refused, 2.0)?;
        callee.wait_logs("the domain that is not listed", 2, named).map(drop)
    });
}

#[test]
fn a_port_that_turns_strict_ends_plaintext_and_keeps_mtls() {
    run("turn-strict", |bed| {
        let (server, plain, meshed) = (bed.pod("srv")?, bed.pod("pln")?, bed.pod("cli")?);
        let serve = MeshOptions::new(policy::serve_in_mode("permissive"), SERVER);
        let callee = server.mesh(bed, serve)?;
        let call = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
        let _caller = meshed.mesh(bed, call)?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let (mut plain_asks, mut plain_answers) = open(&plain, &listener)?;
        let (mut asking, mut answering) = open(&meshed, &listener)?;

        callee.load_policy(&policy::serve_in_mode("strict"))?;
        assert_eq!(read_to_end(&mut plain_asks)?.0, b"");
        assert_eq!(read_to_end(&mut plain_answers)?.0, b"");
        drop((plain_asks, plain_answers));
        ended_by_policy(&callee, direction::INBOUND, "mtls", 1)?;
        pass(&mut asking, &mut answering, b"mTLS was good enough before")?;
        pass(&mut answering, &mut asking, b"and is now")?;
        println!("in plaintext: {:?}", ask(&plain, listener.local_addr()?, b"in the clear")?);
        let refused = [("direction", direction::INBOUND), ("reason", reason::PLAINTEXT_REFUSED)];
        callee.wait_metric(metric::CLOSED, &refused, 1.0)?;
        untouched(&listener)
    });
}

/// Outbound: a destination turns to mtls, then expects somebody else, then is not mtls any more.
#[test]
fn a_destination_that_asks_for_more_ends_what_gives_less() {
    run("turn-mtls", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let serve = MeshOptions::new(policy::serve_in_mode("permissive"), SERVER);
        let callee = server.mesh(bed, serve)?;
        let caller = client.mesh(bed, MeshOptions::new(policy::pass(), CLIENT))?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let (mut plain_asks, mut plain_answers) = open(&client, &listener)?;

        caller.load_policy(&policy::call(&server.addresses(), SERVER))?;
        assert_eq!(read_to_end(&mut plain_asks)?.0, b"", "the plaintext one ends");
        assert_eq!(read_to_end(&mut plain_answers)?.0, b"");
        drop((plain_asks, plain_answers));
        ended_by_policy(&caller, direction::OUTBOUND, "mesh", 1)?;
        let (mut asking, mut answering) = open(&client, &listener)?;
        callee.wait_metric(metric::HANDSHAKES, &[("result", "ok")], 1.0)?;

        caller.load_policy(&policy::call(&server.addresses(), STRANGER))?;
        let (bytes, end) = read_to_end(&mut asking)?;
        assert_eq!((bytes.as_slice(), end), (b"".as_slice(), End::Fin), "a goodbye, then an end");
        drop((asking, answering));
        caller.wait_metric(metric::TERMINATED, &[("rule", "mesh")], 2.0)?;
        assert!(ask(&client, listener.local_addr()?, b"again")?.is_turned_away());
        let wrong = [("direction", direction::OUTBOUND), ("reason", reason::WRONG_IDENTITY)];
        caller.wait_metric(metric::CLOSED, &wrong, 1.0)?;
        // The server's side may have been let as far as its app, which then saw a reset.
        callee.wait_idle()?;
        while listener.accept().is_ok() {}

        caller.load_policy(&policy::call(&server.addresses(), SERVER))?;
        (asking, answering) = open(&client, &listener)?;
        caller.load_policy(&policy::pass())?;
        pass(&mut asking, &mut answering, b"more protection than asked for")?;
        pass(&mut answering, &mut asking, b"is no contradiction")
    });
}
