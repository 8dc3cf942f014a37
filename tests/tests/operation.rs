//! A proxy in operation: not ready yet, wrongly set up, asked by its operator.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{
    CLIENT, SERVER, TRUST_DOMAIN, direction, field, metric, port, reason,
};
use pillion_testbed::stream::{End, ask, pass, read_to_end};
use pillion_testbed::{
    Context, Failure, Finished, LogLine, MeshOptions, Pair, Pod, Settings, Sidecar, Testbed,
    accept, complete, finish, forge, http_get, http_request, let_pass, policy, run, run_with,
    untouched, wait_until,
};
use serde_json::Value;

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(10);

/// Files are compared every 10 s, should a watch miss them.
const FILES: Duration = Duration::from_secs(12);

fn serve() -> MeshOptions {
    MeshOptions::new(policy::serve(&[CLIENT]), SERVER)
}

/// Waits until the health endpoints say that they wait for `pending` alone.
fn waits_for(sidecar: &mut Sidecar, pending: &[&str]) -> Result<(), Failure> {
    let wanted: String = pending.iter().map(|what| format!("pending: {what}\n")).collect();
    for path in ["/healthz/ready", "/healthz/startup"] {
        wait_until(&format!("{path} to wait for {pending:?}"), LIMIT, || {
            if let Some(status) = sidecar.process().ended()? {
                return Err(Failure::Unexpected(format!("the proxy ended with {status}")));
            }
            // Refused until it listens.
            let Ok(answer) = sidecar.health(path) else { return Ok(None) };
            Ok((answer == (503, wanted.clone())).then_some(()))
        })?;
    }
    Ok(())
}

/// Calls in and out, each refused for `why`, and nothing reaches the listener.
fn refused_both_ways(
    sidecar: &Sidecar,
    (pod, peer): (&Pod, &Pod),
    why: &str,
) -> Result<(), Failure> {
    for (from, to, way) in [(peer, pod, direction::INBOUND), (pod, peer, direction::OUTBOUND)] {
        let labels = [("direction", way), ("reason", why)];
        let before = sidecar.count(metric::CLOSED, &labels)?;
        let app = to.listen(SocketAddr::new(to.v4(), APP))?;
        let outcome = ask(from, app.local_addr()?, b"too early")?;
        assert!(outcome.is_turned_away(), "{way}: {outcome:?}");
        untouched(&app)?;
        sidecar.wait_ended(way, why, before + 1)?;
    }
    Ok(())
}

/// Waits until it is ready, within the time that a poll of the files takes.
fn becomes_ready(sidecar: &Sidecar) -> Result<(), Failure> {
    wait_until("a ready proxy", FILES, || {
        Ok((sidecar.health("/healthz/ready")?.0 == 200).then_some(()))
    })?;
    assert_eq!(sidecar.health("/healthz/startup")?.0, 200);
    Ok(())
}

/// One exchange from a meshed client to the pod.
fn served(bed: &Testbed, client: &Pod, server: &Pod) -> Result<(), Failure> {
    let call = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
    let _caller = client.mesh(bed, call)?;
    let app = server.listen(SocketAddr::new(server.v4(), APP))?;
    let mut asking = client.connect(app.local_addr()?)?;
    let mut answering = accept(&app)?;
    pass(&mut asking, &mut answering, b"served")
}

#[test]
fn without_a_policy_nothing_is_served_until_it_comes() {
    run("no-policy", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let mut callee = server.mesh_unready(bed, serve().without_policy())?;
        waits_for(&mut callee, &["policy"])?;
        refused_both_ways(&callee, (&server, &client), reason::NO_POLICY)?;

        callee.set_policy("inbound: {mtls: perhaps}\n")?;
        callee.wait_message("the policy can't be used")?;
        waits_for(&mut callee, &["policy"])?;
        refused_both_ways(&callee, (&server, &client), reason::NO_POLICY)?;

        callee.set_policy(&policy::serve(&[CLIENT]))?;
        becomes_ready(&callee)?;
        served(bed, &client, &server)
    });
}

#[test]
fn without_certificates_nothing_is_served_until_they_come() {
    run("no-certificates", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let mut callee = server.mesh_unready(bed, serve().without_certificates())?;
        // Whose short names the policy means is not known either without a trust domain.
        waits_for(&mut callee, &["certificates", "policy"])?;
        refused_both_ways(&callee, (&server, &client), reason::NO_POLICY)?;
        callee.issue(bed)?;
        becomes_ready(&callee)?;
        served(bed, &client, &server)
    });
}

/// The client may call, and is called by mTLS.
fn both_ways(client: &Pod) -> String {
    policy::serve(&[CLIENT]).replace(
        "destinations: []",
        &format!(
            "destinations: [{{name: mesh, ipBlocks: [\"{}\"], action: mtls, \
             serverIdentities: [\"{CLIENT}\"]}}]",
            client.v4()
        ),
    )
}

/// With the trust domain from the environment the policy is in force without a certificate.
#[test]
fn what_needs_a_certificate_waits_for_one() {
    run("no-svid", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let options = MeshOptions::new(both_ways(&client), SERVER)
            .without_certificates()
            .env("PILLION_TRUST_DOMAIN", "cluster.local");
        let mut callee = server.mesh_unready(bed, options)?;
        waits_for(&mut callee, &["certificates"])?;

        no_mtls_either_way(&callee, &server, &client)?;
        callee.issue(bed)?;
        becomes_ready(&callee)?;
        served(bed, &client, &server)
    });
}

/// Without a certificate that peers would take, mTLS is refused at once, in and out.
fn no_mtls_either_way(callee: &Sidecar, server: &Pod, client: &Pod) -> Result<(), Failure> {
    let app = client.listen(SocketAddr::new(client.v4(), APP))?;
    let outcome = ask(server, app.local_addr()?, b"in the clear?")?;
    assert!(outcome.is_turned_away(), "{outcome:?}");
    callee.wait_ended(direction::OUTBOUND, reason::NO_CERTIFICATE, 1)?;
    // Without a certificate the server is not even dialled.
    untouched(&app)?;

    let to = SocketAddr::new(server.v4(), APP);
    let line = format!("openssl s_client -connect {to} < /dev/null");
    assert_ne!(finish(&mut client.shell(&line))?.code, Some(0));
    callee.wait_ended(direction::INBOUND, reason::NO_CERTIFICATE, 1).map(drop)
}

#[test]
fn a_certificate_out_of_its_time_is_as_none() {
    run("out-of-time", |bed| {
        for (name, peer, (from, until), pending, said) in [
            ("late", "c1", (-7200, -3600), "certificates (ours is expired)", "has ended at"),
            (
                "early",
                "c2",
                (3600, 7200),
                "certificates (ours is not valid yet)",
                "is valid only from",
            ),
        ] {
            let (server, client) = (bed.pod(name)?, bed.pod(peer)?);
            let files = bed.directory().join(name);
            forge::valid(&bed.ca()?, SERVER, from, until, &files)?;
            let options = MeshOptions::new(both_ways(&client), SERVER).certificates_from(files);
            let mut callee = server.mesh_unready(bed, options)?;
            waits_for(&mut callee, &[pending])?;
            let lines = callee.wait_message(said)?;
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines.iter().all(|line| line.text("level") == "ERROR"), "{lines:?}");
            no_mtls_either_way(&callee, &server, &client)?;
            callee.issue(bed)?;
            becomes_ready(&callee)?;
            served(bed, &client, &server)?;
        }
        Ok(())
    });
}

#[test]
fn a_certificate_that_expires_is_warned_of_and_then_refused() {
    run("expires", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let files = bed.directory().join("short");
        forge::valid(&bed.ca()?, SERVER, -60, 3, &files)?;
        let options = MeshOptions::new(both_ways(&client), SERVER).certificates_from(files);
        let callee = server.mesh(bed, options)?;
        let warned = callee.wait_message("our own certificate ends at")?;
        assert!(warned.iter().all(|line| line.text("level") == "WARN"), "{warned:?}");
        let wanted = (503, "pending: certificates (ours is expired)\n".to_owned());
        wait_until("an unready proxy", LIMIT, || {
            Ok((callee.health("/healthz/ready")? == wanted).then_some(()))
        })?;
        assert_eq!(callee.health("/healthz/startup")?.0, 200, "it has been there");
        no_mtls_either_way(&callee, &server, &client)?;
        wait_until("the error", FILES, || {
            let said = callee.messages("our own certificate has ended at")?;
            Ok((!said.is_empty()).then_some(()))
        })?;
        assert_eq!(callee.messages("our own certificate ends at")?.len(), 1, "said once");
        Ok(())
    });
}

/// Of another authority of our own trust domain: our bundle is that of peers who would refuse us.
#[test]
fn a_certificate_that_our_own_bundle_does_not_verify_is_warned_of() {
    run("foreign-self", |bed| {
        let server = bed.pod("srv")?;
        let files = bed.issue(&bed.ca()?, SERVER, "own")?;
        fs::copy(bed.foreign_ca(TRUST_DOMAIN)?.join("ca.crt"), files.join("ca.crt"))?;
        let options = MeshOptions::new(policy::serve(&[SERVER]), SERVER).certificates_from(files);
        let callee = server.mesh_unready(bed, options)?;
        let warned =
            callee.wait_message("peers with our trust bundle would refuse our certificate")?;
        assert!(warned.iter().all(|line| line.text("level") == "WARN"), "{warned:?}");
        assert!(
            warned.iter().all(|line| line.mentions("not issued by an authority")),
            "{warned:?}"
        );
        Ok(())
    });
}

/// Runs the proxy in a pod, with nothing but `env`, to its end.
fn run_proxy(pod: &Pod, env: &[(&str, &str)]) -> Result<Finished, Failure> {
    let mut command = pod.command(pod.settings().binary("pillion-proxy")?);
    Settings::hide(&mut command).envs(env.iter().copied());
    finish(&mut command)
}

#[test]
fn a_bad_environment_is_told_at_once_and_whole() {
    run("environment", |bed| {
        let pod = bed.pod("a")?;
        // Its port is taken, but the environment is looked at first.
        let _taken = pod.listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port::INBOUND))?;
        let bad = [
            ("PILLION_CONNECT_TIMEOUT", "5"),
            ("PILLION_WORKERS", "many"),
            ("PILLION_OUTBOUND_LISTEN", "0.0.0.0:15001"),
            ("PILLION_ACCESS_LOG", "some"),
            ("PILLION_TRUST_DOMAIN", "Cluster.Local"),
        ];
        let ended = run_proxy(&pod, &bad)?;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert_eq!(ended.stdout, "", "nothing was begun");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert_eq!(lines.len(), bad.len(), "{lines:?}");
        for (name, _) in bad {
            assert!(lines.iter().any(|line| line.contains(name)), "{name}: {lines:?}");
        }
        Ok(())
    });
}

#[test]
fn a_taken_port_is_named() {
    run("taken", |bed| {
        let pod = bed.pod("a")?;
        for (taken, variable) in [
            (port::INBOUND, "PILLION_INBOUND_LISTEN"),
            (port::METRICS, "PILLION_METRICS_LISTEN"),
            (port::ADMIN, "PILLION_ADMIN_LISTEN"),
        ] {
            let on = if taken == port::ADMIN { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
            let _holder: TcpListener = pod.listen(SocketAddr::new(on.into(), taken))?;
            let ended = run_proxy(&pod, &[])?;
            assert_eq!(ended.code, Some(71), "{ended:?}");
            assert!(ended.stderr.contains(variable), "{ended:?}");
            assert!(ended.stderr.contains(&taken.to_string()), "{ended:?}");
        }
        Ok(())
    });
}

/// Without IPv6 the default addresses of it are passed over; alone, they are not enough.
#[test]
fn a_proxy_that_can_listen_nowhere_does_not_start() {
    run_with("nowhere", Some(false), |bed| {
        let pod = bed.pod("pod")?;
        let ended = run_proxy(&pod, &[("PILLION_OUTBOUND_LISTEN", "[::1]:15001")])?;
        assert_eq!(ended.code, Some(71), "{ended:?}");
        assert!(ended.stderr.contains("PILLION_OUTBOUND_LISTEN"), "{ended:?}");
        Ok(())
    });
}

fn admin() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port::ADMIN)
}

fn json(pod: &Pod, path: &str) -> Result<Value, Failure> {
    let (status, body) = http_get(pod, admin(), path)?;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).map_err(|e| Failure::Unexpected(format!("{path}: {e}: {body}")))
}

#[test]
fn the_admin_endpoint_tells_its_own_pod_what_is_open() {
    run("admin", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"fourteen bytes")?;
        pass(&mut server, &mut client, b"three")?;

        for path in ["/config", "/certs", "/policy", "/logging"] {
            assert!(json(&pair.server, path)?.is_object(), "{path}");
        }
        assert_eq!(json(&pair.server, "/certs")?["id"], SERVER);
        // A run that is meant for the one engine must not test the other.
        let engine = bed.settings().tls_engine().unwrap_or("records");
        assert_eq!(json(&pair.server, "/config")?["tls_engine"], engine);
        let open = json(&pair.server, "/connections")?;
        let [one] = open.as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err(Failure::Unexpected(format!("one is open: {open}")));
        };
        assert_eq!(one["direction"], direction::INBOUND);
        assert_eq!(one["peer"], CLIENT);
        assert_eq!(one["tls"], "mtls");
        assert_eq!((&one["bytes_to_app"], &one["bytes_from_app"]), (&14.into(), &5.into()));
        let shown = json(&pair.client, "/connections")?;
        assert_eq!(
            (&shown[0]["peer"], &shown[0]["direction"]),
            (&SERVER.into(), &"outbound".into())
        );

        // Nobody else's business: not by the pod's address, from inside or from a peer.
        let other = bed.pod("oth")?;
        for from in [&pair.server, &other] {
            for address in pair.server.addresses() {
                let to = SocketAddr::new(address, port::ADMIN);
                let outcome = ask(from, to, b"GET /config HTTP/1.0\r\n\r\n")?;
                assert!(outcome.is_turned_away(), "{to}: {outcome:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn the_admin_endpoint_changes_nothing_unless_it_may() {
    run("admin-changes", |bed| {
        let (closed, open) = (bed.pod("a")?, bed.pod("b")?);
        let _closed = closed.mesh(bed, serve())?;
        let _open = open.mesh(bed, serve().env("PILLION_ADMIN_CHANGES", "on"))?;
        let put = |pod: &Pod, path: &str| http_request(pod, admin(), "PUT", path);

        assert_eq!(put(&closed, "/logging?filter=debug")?.0, 403);
        assert_eq!(json(&closed, "/logging")?["filter"], "info");

        assert_eq!(put(&open, "/logging?filter=debug")?.0, 200);
        assert_eq!(json(&open, "/logging")?["filter"], "debug");
        let (status, why) = put(&open, "/logging?filter=a=b=c")?;
        assert!((400..500).contains(&status), "{status} {why}");
        assert_eq!(json(&open, "/logging")?["filter"], "debug", "a bad filter changes nothing");
        Ok(())
    });
}

/// The keepalive timers of the proxy's legs in a pod: one text a leg, empty where none runs.
fn timers(pod: &Pod) -> Result<Vec<String>, Failure> {
    let listed = complete(pod.command("ss").args(["-Htnop", "state", "established"]))?;
    let of_proxy = listed.lines().filter(|line| line.contains("pillion-proxy"));
    // An answer of health or metrics may not be closed yet when this is looked at.
    let others = [port::HEALTH, port::METRICS].map(|port| format!(":{port} "));
    let legs = of_proxy.filter(|line| !others.iter().any(|other| line.contains(other)));
    Ok(legs.map(|line| line.split("timer:(").nth(1).unwrap_or_default().to_owned()).collect())
}

/// Two legs a proxy, towards the app and towards the peer; conntrack forgets a half-closed
/// connection after 60 s of silence, so none of the legs may be silent for so long.
#[test]
fn every_leg_is_kept_alive() {
    run("keepalive", |bed| {
        let pair = Pair::new(bed)?;
        for address in pair.server.addresses() {
            let listener = pair.listen(address, APP)?;
            let (mut client, mut server) = pair.open(&listener)?;
            pass(&mut client, &mut server, b"hello")?;
            for pod in [&pair.client, &pair.server] {
                // While a segment is on its way its own timer is shown instead.
                let legs = wait_until("a keepalive timer on both legs", LIMIT, || {
                    let legs = timers(pod)?;
                    let kept = legs.iter().filter(|leg| leg.starts_with("keepalive,"));
                    Ok((kept.count() >= 2).then_some(legs))
                })?;
                println!("{address}, pod {}: {legs:?}", pod.name());
                // There may be more: a tunnel that is idle or on its way out.
                for leg in legs.iter().filter(|leg| leg.starts_with("keepalive,")) {
                    let left = leg.split(',').nth(1).unwrap_or_default();
                    let seconds = left.split(['s', 'm', '.']).next().and_then(|n| n.parse().ok());
                    assert!(seconds.is_some_and(|n: u32| n <= 15), "{leg}");
                }
            }
        }
        Ok(())
    });
}

/// A server that has gone without a word, as a node does whose power fails: who waits for it is
/// told after a minute, by keepalive, and so is the app of the server's side.
#[test]
fn a_peer_that_has_gone_without_a_word_is_found_by_keepalive() {
    /// The first question after 15 s, and two more that are not answered, each for 15 s.
    const GONE: Duration = Duration::from_secs(60);
    run("gone", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"are you there?")?;
        pass(&mut server, &mut client, b"I am")?;
        // Where something is on its way, no question goes out: TCP sends that again and again.
        let_pass(Duration::from_secs(2));
        complete(&mut pair.client.shell("ip link set eth0 down"))?;
        let start = Instant::now();
        for stream in [&mut client, &mut server] {
            stream.set_read_timeout(Some(2 * GONE))?;
            assert_eq!(read_to_end(stream)?, (Vec::new(), End::Reset));
            println!("reset after {:?}", start.elapsed());
        }
        assert!(start.elapsed() >= GONE / 2, "not for the silence: {:?}", start.elapsed());
        pair.caller.wait_ended(direction::OUTBOUND, reason::PEER_TIMEOUT, 1)?;
        pair.callee.wait_ended(direction::INBOUND, reason::PEER_TIMEOUT, 1).map(drop)
    });
}

/// A network that goes away under bytes which nobody has acknowledged: once TCP gives up sending
/// them again, the connection ends with what the system has said of it, and the app is told.
#[test]
fn what_the_system_says_of_a_network_that_has_gone_is_told() {
    /// Sent again so often, which takes six seconds.
    const RETRIES: &str = "4";
    run("network-gone", |bed| {
        let pair = Pair::new(bed)?;
        pair.server.enter(|| {
            let name = "/proc/sys/net/ipv4/tcp_retries2";
            fs::write(name, RETRIES).context(|| name)
        })?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"a question")?;
        pass(&mut server, &mut client, b"an answer")?;
        // The bytes are lost on the way; then there is no way any more.
        complete(&mut pair.client.shell("ip link set eth0 down"))?;
        std::io::Write::write_all(&mut server, b"another one")?;
        complete(&mut pair.server.shell("ip link set eth0 down"))?;
        assert_eq!(read_to_end(&mut server)?, (Vec::new(), End::Reset));
        let lines = pair.callee.wait_ended(direction::INBOUND, reason::IO_ERROR, 1)?;
        let told = |line: &LogLine| line.text(field::DETAIL).contains("unreachable");
        assert!(lines.iter().all(told), "{lines:?}");
        Ok(())
    });
}
