//! A policy at work and a policy that changes: audit, trust domains, ports and destinations that
//! turn strict under open connections.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use pillion_testbed::labels::{
    CLIENT, PARTNER, PARTNER_DOMAIN, SERVER, STRANGER, TRUST_DOMAIN, direction, field, metric,
    reason, refusal,
};
use pillion_testbed::stream::{End, ask, pass, read_to_end};
use pillion_testbed::{
    Failure, LogLine, MeshOptions, Pair, Pod, Sidecar, Testbed, accept, policy, run, untouched,
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
fn let_through_and_reported(
    sidecar: &Sidecar,
    way: &str,
    rule: &str,
    by: &str,
) -> Result<(), Failure> {
    let shadow = [("direction", way), ("mode", "audit"), ("decision", "deny"), ("rule", by)];
    sidecar.wait_metric(metric::DECISIONS, &shadow, 1.0)?;
    let acted = [("direction", way), ("mode", "enforce"), ("decision", "allow"), ("rule", rule)];
    sidecar.wait_metric(metric::DECISIONS, &acted, 1.0)?;
    let said = sidecar.wait_message("audit rules would decide otherwise")?;
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said.iter().all(|line| line.text("level") == "INFO" && line.text("audit_rule") == by));
    let lines = sidecar.wait_logs("the shadow verdict", 1, |line| {
        line.text(field::SHADOW_VERDICT) == "deny" && line.text(field::SHADOW_RULE) == by
    })?;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines.iter().all(|line| line.is(way, reason::CLOSED)), "{lines:?}");
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
        let_through_and_reported(&pair.callee, direction::INBOUND, "callers", "watched")?;

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
        let_through_and_reported(&pair.callee, direction::INBOUND, "audit", "default")?;

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
fn an_outbound_denial_that_audit_lifts_is_reported_and_mtls_stays() {
    run("audit-outbound", |bed| {
        let pair = Pair::new(bed)?;
        let plain = bed.pod("pln")?;
        let shut = format!(
            "  - {{name: shut, ipBlocks: [\"{}\"], ports: [{APP}], action: deny}}\n",
            plain.v4()
        );
        let enforced = policy::call(&pair.server.addresses(), SERVER)
            .replace("defaultAction: passthrough", "defaultAction: deny");
        let text = enforced.replace("inbound:", "enforcement: audit\ninbound:") + &shut;
        pair.caller.load_policy(&text)?;
        let by_name = plain.listen(SocketAddr::new(plain.v4(), APP))?;
        drop(open(&pair.client, &by_name)?);
        let_through_and_reported(&pair.caller, direction::OUTBOUND, "audit", "shut")?;
        let by_default = plain.listen(SocketAddr::new(plain.v4(), APP + 1))?;
        drop(open(&pair.client, &by_default)?);
        let shadow = |rule| [("mode", "audit"), ("decision", "deny"), ("rule", rule)];
        pair.caller.wait_metric(metric::DECISIONS, &shadow("default"), 1.0)?;

        let meshed = pair.listen(pair.server.v4(), APP)?;
        pair.exchange(&meshed)?;
        let all = [("mode", "audit")];
        assert_eq!(
            pair.caller.metric(metric::DECISIONS, &all)?,
            2.0,
            "nothing lifted, nothing to report"
        );
        pair.check_meshed()?;

        pair.caller.load_policy(&(enforced + &shut))?;
        for listener in [&by_name, &by_default] {
            let outcome = ask(&pair.client, listener.local_addr()?, b"enforced")?;
            assert!(outcome.is_turned_away(), "{outcome:?}");
            untouched(listener)?;
        }
        pair.exchange(&meshed)
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

/// A policy that lets everyone of these trust domains in.
fn accepting(domains: &str) -> String {
    let everyone = "  - {name: everyone, action: allow, from: [{any: true}]}\n";
    inbound(&format!("trustDomains: [{domains}]\n"), "strict", "deny", everyone)
}

/// A pod of the mesh that serves a partner's mesh, too, and a pod of that mesh that calls it.
struct Federation {
    server: Pod,
    callee: Sidecar,
    client: Pod,
    caller: Sidecar,
    /// The bundles that the server's sidecar has of other meshes: none at first.
    bundles: PathBuf,
}

impl Federation {
    /// The partner's pod has its certificate from the authority `partners`.
    fn new(bed: &Testbed, partners: &Path) -> Result<Self, Failure> {
        let (server, client) = (bed.pod("srv")?, bed.pod("prt")?);
        let [bundles, theirs] = ["ours", "theirs"].map(|name| bed.directory().join(name));
        for directory in [&bundles, &theirs] {
            fs::create_dir(directory)?;
        }
        fs::copy(bed.ca()?.join("ca.crt"), theirs.join(format!("{TRUST_DOMAIN}.pem")))?;
        let both = format!("{TRUST_DOMAIN}, {PARTNER_DOMAIN}");
        let serve = MeshOptions::new(accepting(&both), SERVER)
            .env("PILLION_TRUST_BUNDLES_DIR", &bundles.display().to_string());
        let callee = server.mesh(bed, serve)?;
        let call = policy::call(&server.addresses(), SERVER)
            .replace("inbound:", &format!("trustDomains: [{both}]\ninbound:"));
        let call = MeshOptions::new(call, PARTNER)
            .certificates_from(bed.issue(partners, PARTNER, "partner")?)
            .env("PILLION_TRUST_BUNDLES_DIR", &theirs.display().to_string());
        let caller = client.mesh(bed, call)?;
        Ok(Self { server, callee, client, caller, bundles })
    }

    /// Gives the server's sidecar the partner's bundle, of these authorities; of none, takes it
    /// away. Returns once that is loaded.
    fn trust(&self, bed: &Testbed, authorities: &[&Path]) -> Result<(), Failure> {
        let before = self.callee.loads(true)?;
        let bundle = self.bundles.join(format!("{PARTNER_DOMAIN}.pem"));
        if authorities.is_empty() {
            fs::remove_file(bundle)?;
        } else {
            let read = |ca: &&Path| fs::read_to_string(ca.join("ca.crt"));
            let pem = authorities.iter().map(read).collect::<Result<String, _>>()?;
            let fresh = bed.directory().join("partner.pem");
            fs::write(&fresh, pem)?;
            fs::rename(&fresh, bundle)?;
        }
        self.callee.wait_load(true, before)
    }

    /// Gives the partner's pod a certificate by one of its mesh's authorities.
    fn issue(&mut self, bed: &Testbed, ca: &Path, name: &str) -> Result<(), Failure> {
        let before = self.caller.loads(true)?;
        self.caller.publish(&bed.issue(ca, PARTNER, name)?)?;
        self.caller.wait_load(true, before)
    }

    /// One more connection of the partner's is refused, the `count`th of all, for `why`.
    fn refused(&self, app: &TcpListener, why: &str, count: usize) -> Result<(), Failure> {
        let outcome = ask(&self.client, app.local_addr()?, b"let me in")?;
        assert!(outcome.is_turned_away(), "{why}: {outcome:?}");
        let way = direction::INBOUND;
        let lines = self.callee.wait_ended(way, reason::CERTIFICATE_REFUSED, count)?;
        let last = lines.last().map(|line| line.text(field::DETAIL)).unwrap_or_default();
        assert!(last.starts_with(&format!("{why}: ")) && last.contains("serial "), "{why}: {last}");
        assert!(last.contains(&format!("identity {PARTNER}")), "{last}");
        untouched(app)
    }
}

#[test]
fn a_partners_peers_need_a_bundle_and_the_policys_word() {
    run("federation", |bed| {
        let partners = bed.foreign_ca(PARTNER_DOMAIN)?;
        let mesh = Federation::new(bed, &partners)?;
        let listener = mesh.server.listen(SocketAddr::new(mesh.server.v4(), APP))?;
        // Listed, but without a bundle.
        mesh.refused(&listener, refusal::UNTRUSTED_DOMAIN, 1)?;

        mesh.trust(bed, &[&partners])?;
        let (mut asking, mut answering) = open(&mesh.client, &listener)?;

        mesh.callee.load_policy(&accepting(TRUST_DOMAIN))?;
        assert_eq!(read_to_end(&mut asking)?.0, b"");
        assert_eq!(read_to_end(&mut answering)?.0, b"");
        drop((asking, answering));
        ended_by_policy(&mesh.callee, direction::INBOUND, "trustDomains", 1)?;
        let of_partner = |line: &LogLine| line.text(field::PEER) == PARTNER;
        let lines = mesh.callee.wait_logs("the partner", 1, of_partner)?;
        assert_eq!(lines.len(), 1, "{lines:?}");
        // A bundle, but not listed.
        mesh.refused(&listener, refusal::UNTRUSTED_DOMAIN, 2)
    });
}

/// The partner replaces its authority: old, old and new, new. Then it is a partner no more.
#[test]
fn a_partners_bundle_is_replaced_and_taken_away() {
    run("federation-bundles", |bed| {
        let old = bed.directory().join("old-partners");
        fs::rename(bed.foreign_ca(PARTNER_DOMAIN)?, &old)?;
        let new = bed.foreign_ca(PARTNER_DOMAIN)?;
        let mut mesh = Federation::new(bed, &old)?;
        let listener = mesh.server.listen(SocketAddr::new(mesh.server.v4(), APP))?;
        mesh.trust(bed, &[&old])?;
        let (mut asking, mut answering) = open(&mesh.client, &listener)?;

        mesh.trust(bed, &[&old, &new])?;
        drop(open(&mesh.client, &listener)?);
        mesh.issue(bed, &new, "by-new")?;
        drop(open(&mesh.client, &listener)?);
        mesh.trust(bed, &[&new])?;
        drop(open(&mesh.client, &listener)?);
        let refused = [("direction", direction::INBOUND), ("reason", reason::CERTIFICATE_REFUSED)];
        assert_eq!(mesh.callee.metric(metric::CLOSED, &refused)?, 0.0, "none so far");
        mesh.issue(bed, &old, "by-old")?;
        mesh.refused(&listener, refusal::UNKNOWN_ISSUER, 1)?;
        mesh.issue(bed, &new, "by-new-again")?;
        drop(open(&mesh.client, &listener)?);

        mesh.trust(bed, &[])?;
        mesh.refused(&listener, refusal::UNTRUSTED_DOMAIN, 2)?;
        pass(&mut asking, &mut answering, b"what is open stays")?;
        pass(&mut answering, &mut asking, b"through it all")
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
