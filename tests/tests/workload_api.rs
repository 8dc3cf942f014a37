//! Sidecars whose identity comes from the SPIFFE Workload API: no file of certificates is there.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use pillion_testbed::labels::{CLIENT, PARTNER, PARTNER_DOMAIN, SERVER, STRANGER, metric, reason};
use pillion_testbed::stream::{exchange, pass};
use pillion_testbed::workload_api::{Answer, WorkloadApi};
use pillion_testbed::{
    Failure, MeshOptions, Pod, RevocationFile, Sidecar, Testbed, accept, policy, run, wait_until,
};

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(10);

/// The options of a sidecar that asks the agent at `socket`.
fn from_agent(options: MeshOptions, socket: &std::path::Path) -> MeshOptions {
    options
        .without_files()
        .env("PILLION_IDENTITY_SOURCE", "workload-api")
        .env("SPIFFE_ENDPOINT_SOCKET", &format!("unix://{}", socket.display()))
}

fn socket(bed: &Testbed) -> PathBuf {
    bed.directory().join("agent.sock")
}

fn loads(sidecar: &Sidecar, result: &str) -> Result<f64, Failure> {
    sidecar.metric(metric::CERTIFICATE_RELOADS, &[("result", result)])
}

/// Waits until the proxy has logged what is wrong with its certificates.
fn complains(sidecar: &Sidecar, of: &str) -> Result<(), Failure> {
    wait_until(of, LIMIT, || {
        let said = sidecar.messages("certificates can't be used")?;
        Ok(said.iter().any(|line| line.mentions(of)).then_some(()))
    })
}

fn one_exchange(client: &Pod, server: &Pod) -> Result<(), Failure> {
    for address in server.addresses() {
        let listener = server.listen(SocketAddr::new(address, APP))?;
        exchange(client.connect(listener.local_addr()?)?, accept(&listener)?)?;
    }
    Ok(())
}

fn calls(server: &Pod) -> MeshOptions {
    MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT)
}

#[test]
fn an_identity_comes_is_rotated_and_outlives_the_agent() {
    run("workload-api", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let agent = WorkloadApi::start(&socket(bed))?;
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
        let mut callee = server.mesh_unready(bed, from_agent(serve, &socket(bed)))?;
        let _caller = client.mesh(bed, calls(&server))?;

        // Registered too late, as an agent's workload often is.
        complains(&callee, "no identity issued")?;
        assert_eq!(callee.health("/healthz/ready")?.0, 503);
        let first = Answer::of(SERVER, &bed.issue(&bed.ca()?, SERVER, "first")?)?;
        agent.say(first.clone());
        callee.wait_ready()?;
        one_exchange(&client, &server)?;
        assert_eq!(loads(&callee, "ok")?, 1.0);

        // A rotation in the same stream; what is open stays so.
        let listener = server.listen(SocketAddr::new(server.v4(), 9090))?;
        let mut asking = client.connect(listener.local_addr()?)?;
        let mut answering = accept(&listener)?;
        let streams = agent.streams();
        // Of several identities the first is ours, and the client asks for it.
        let other = Answer::of(STRANGER, &bed.issue(&bed.ca()?, STRANGER, "other")?)?;
        let second = Answer::of(SERVER, &bed.issue(&bed.ca()?, SERVER, "second")?)?.then(other);
        agent.say(second.clone());
        wait_until("the rotation", LIMIT, || Ok((loads(&callee, "ok")? == 2.0).then_some(())))?;
        assert_eq!(agent.streams(), streams);
        pass(&mut asking, &mut answering, b"still here")?;
        one_exchange(&client, &server)?;

        // What can't be used changes nothing; it is counted and told, and so is its end: each time.
        let refused = loads(&callee, "workload_api")?;
        for times in [1.0, 2.0] {
            agent.say(first.clone().torn());
            let unusable = [("result", "workload_api")];
            callee.wait_metric(metric::CERTIFICATE_RELOADS, &unusable, refused + times)?;
            complains(&callee, "the X.509-SVID: certificate 1")?;
            assert_eq!(callee.health("/healthz/ready")?.0, 200);
            one_exchange(&client, &server)?;
            agent.say(second.clone());
            callee.wait_metric(metric::CERTIFICATE_RELOADS, &[("result", "ok")], 2.0 + times)?;
            pass(&mut asking, &mut answering, b"undisturbed")?;
        }

        // An agent that restarts is found again, and one that is gone takes nothing away.
        let told = callee.messages("certificates can't be used")?.len();
        drop(agent);
        wait_until("news of its end", LIMIT, || {
            let now = callee.messages("certificates can't be used")?;
            Ok((now.len() > told).then_some(()))
        })?;
        one_exchange(&client, &server)?;
        let agent = WorkloadApi::start(&socket(bed))?;
        agent.say(Answer::of(SERVER, &bed.issue(&bed.ca()?, SERVER, "third")?)?);
        wait_until(
            "the new agent",
            LIMIT * 4,
            || Ok((loads(&callee, "ok")? == 5.0).then_some(())),
        )?;
        pass(&mut answering, &mut asking, b"and still")?;
        one_exchange(&client, &server)
    });
}

#[test]
fn federated_bundles_and_revocation_lists_come_with_it() {
    run("workload-api-more", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let agent = WorkloadApi::start(&socket(bed))?;
        let own = bed.issue(&bed.ca()?, SERVER, "own")?;
        let partner_ca = bed.foreign_ca(PARTNER_DOMAIN)?;
        agent.say(Answer::of(SERVER, &own)?);
        let text = policy::serve(&[CLIENT, PARTNER])
            .replace("inbound:", "trustDomains: [cluster.local, partner.example.net]\ninbound:");
        let serve = MeshOptions::new(text, SERVER);
        let callee = server.mesh(bed, from_agent(serve, &socket(bed)))?;

        // A peer of the partner's: it trusts us by our bundle, we it by the federated one.
        let partner = bed.issue(&partner_ca, PARTNER, "partner")?;
        std::fs::copy(bed.ca()?.join("ca.crt"), partner.join("mesh.crt"))?;
        let say = |svid: &std::path::Path| -> Result<String, Failure> {
            let line = format!(
                "echo hello | openssl s_client -connect {}:{APP} -tls1_3 -quiet -cert {dir}/tls.crt \
                 -key {dir}/tls.key",
                server.v4(),
                dir = svid.display()
            );
            Ok(pillion_testbed::finish(&mut client.shell(&line))?.stdout)
        };
        let _app = server.spawn(
            "app",
            server
                .daemon("sh")
                .args(["-c", &format!("while echo welcome | nc -N -l -p {APP}; do :; done")]),
        )?;
        server.wait_for_port(SocketAddr::new(server.v4(), APP))?;
        say(&partner)?;
        callee.wait_logs("a stranger", 1, |line| line.reason() == reason::CERTIFICATE_REFUSED)?;
        agent.say(Answer::of(SERVER, &own)?.federated(PARTNER_DOMAIN, &partner_ca.join("ca.crt"))?);
        wait_until("the bundle", LIMIT, || Ok((loads(&callee, "ok")? == 2.0).then_some(())))?;
        assert_eq!(say(&partner)?, "welcome\n");

        // A revocation list of our own authority.
        let peer = bed.issue(&bed.ca()?, CLIENT, "peer")?;
        server.wait_for_port(SocketAddr::new(server.v4(), APP))?;
        assert_eq!(say(&peer)?, "welcome\n");
        let lists = RevocationFile::new(bed)?;
        lists.revoke(&peer)?;
        agent.say(Answer::of(SERVER, &own)?.revoking(lists.path())?);
        wait_until("the list", LIMIT, || Ok((loads(&callee, "ok")? == 3.0).then_some(())))?;
        assert_eq!(say(&peer)?, "");
        callee
            .wait_logs("a revoked peer", 1, |line| line.text("detail").starts_with("revoked:"))
            .map(drop)?;
        Ok(())
    });
}

#[test]
fn an_agent_that_is_silent_is_given_up_and_asked_again() {
    run("workload-api-silent", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        // It accepts, and says nothing.
        let silent = std::os::unix::net::UnixListener::bind(socket(bed))?;
        std::fs::set_permissions(socket(bed), std::fs::Permissions::from_mode(0o777))?;
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
        let mut callee = server.mesh_unready(bed, from_agent(serve, &socket(bed)))?;
        complains(&callee, "no answer")?;
        assert_eq!(callee.health("/healthz/ready")?.0, 503);
        drop(silent);
        std::fs::remove_file(socket(bed))?;
        let agent = WorkloadApi::start(&socket(bed))?;
        agent.say(Answer::of(SERVER, &bed.issue(&bed.ca()?, SERVER, "own")?)?);
        callee.wait_ready()?;
        let _caller = client.mesh(bed, calls(&server))?;
        one_exchange(&client, &server)
    });
}
