//! Revocation between pods: who is revoked gets in no more, and what was open ends.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, reason, refusal};
use pillion_testbed::peer::{TlsPeer, frame, identity};
use pillion_testbed::stream::{ask, pass, read_to_end};
use pillion_testbed::{
    Failure, LogLine, MeshOptions, Pod, RevocationFile, Sidecar, Testbed, accept, let_pass, policy,
    run, untouched, wait_until,
};

const APP: u16 = 8080;
/// From the new list to the end of a connection: a fraction of a second, but for machines that do
/// other things, too. Files that nobody watches are compared every 10 s.
const PROMPTLY: Duration = Duration::from_secs(6);

fn serve() -> MeshOptions {
    MeshOptions::new(policy::serve(&[CLIENT]), SERVER)
}

fn call(server: &Pod) -> MeshOptions {
    MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT)
}

/// The first certificate that a pod of the mesh was given.
fn issued(bed: &Testbed, pod: &Pod) -> PathBuf {
    bed.directory().join(format!("{}-issued.0", pod.name()))
}

fn open(client: &Pod, listener: &TcpListener) -> Result<(TcpStream, TcpStream), Failure> {
    let mut asking = client.connect(listener.local_addr()?)?;
    let mut answering = accept(listener)?;
    pass(&mut asking, &mut answering, b"hello")?;
    pass(&mut answering, &mut asking, b"and back")?;
    Ok((asking, answering))
}

/// Changes the lists, and waits until the sidecar has loaded them.
fn load(sidecar: &Sidecar, change: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let ok = [("result", "ok")];
    let before = sidecar.metric(metric::CERTIFICATE_RELOADS, &ok)?;
    change()?;
    sidecar.wait_metric(metric::CERTIFICATE_RELOADS, &ok, before + 1.0)
}

/// Waits for `count` ends by revocation, each logged with the identity and the reason.
fn ended(sidecar: &Sidecar, way: &str, who: &str, count: usize) -> Result<(), Failure> {
    for line in sidecar.wait_ended(way, reason::REVOKED, count)? {
        let detail = line.text(field::DETAIL);
        assert!(detail.contains("serial ") && detail.contains("keyCompromise"), "{detail}");
        assert!(detail.contains("was revoked at 20"), "{detail}");
        assert!(detail.contains(who), "{detail}");
    }
    Ok(())
}

/// A new call is refused for the revocation.
fn refused(client: &Pod, sidecar: &Sidecar, way: &str, app: &TcpListener) -> Result<(), Failure> {
    let result = [("direction", way), ("result", refusal::REVOKED)];
    let before = sidecar.metric(metric::HANDSHAKES, &result)?;
    let outcome = ask(client, app.local_addr()?, b"let me in")?;
    assert!(outcome.is_turned_away(), "{outcome:?}");
    sidecar.wait_metric(metric::HANDSHAKES, &result, before + 1.0)?;
    let lines = sidecar.wait_ended(way, reason::CERTIFICATE_REFUSED, 1)?;
    let prefix = format!("{}:", refusal::REVOKED);
    assert!(lines.iter().all(|it| it.text(field::DETAIL).starts_with(&prefix)), "{lines:?}");
    untouched(app)
}

#[test]
fn a_revoked_client_is_cut_off_and_no_other() {
    run("revoked-client", |bed| {
        let lists = RevocationFile::new(bed)?;
        let (server, bad, good) = (bed.pod("srv")?, bed.pod("bad")?, bed.pod("good")?);
        let callee = server.mesh(bed, lists.given_to(serve()))?;
        let _bad = bad.mesh(bed, call(&server))?;
        let _good = good.mesh(bed, call(&server))?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let (mut kept, mut keeping) = open(&good, &listener)?;
        // One that speaks, one that is idle, and an idle tunnel.
        let (first, second) = (open(&bad, &listener)?, open(&bad, &listener)?);
        drop(open(&bad, &listener)?);
        callee.wait_metric(metric::IDLE, &[], 1.0)?;

        let start = Instant::now();
        lists.revoke(&issued(bed, &bad))?;
        for (mut asking, mut answering) in [first, second] {
            assert!(read_to_end(&mut asking)?.0.is_empty());
            assert!(read_to_end(&mut answering)?.0.is_empty());
        }
        println!("ended {:?} after the list", start.elapsed());
        assert!(start.elapsed() < PROMPTLY, "{:?}", start.elapsed());
        ended(&callee, direction::INBOUND, CLIENT, 2)?;
        refused(&bad, &callee, direction::INBOUND, &listener)?;
        callee.wait_metric(metric::IDLE, &[], 0.0)?;

        pass(&mut kept, &mut keeping, b"another certificate of that identity")?;
        pass(&mut keeping, &mut kept, b"is not revoked")?;
        drop(open(&good, &listener)?);
        Ok(())
    });
}

#[test]
fn a_revoked_server_is_cut_off() {
    run("revoked-server", |bed| {
        let lists = RevocationFile::new(bed)?;
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let _callee = server.mesh(bed, serve())?;
        let caller = client.mesh(bed, lists.given_to(call(&server)))?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let (mut asking, mut answering) = open(&client, &listener)?;
        drop(open(&client, &listener)?);

        let start = Instant::now();
        lists.revoke(&issued(bed, &server))?;
        assert!(read_to_end(&mut asking)?.0.is_empty());
        assert!(start.elapsed() < PROMPTLY, "{:?}", start.elapsed());
        assert!(read_to_end(&mut answering)?.0.is_empty());
        ended(&caller, direction::OUTBOUND, SERVER, 1)?;
        caller.wait_metric(metric::IDLE, &[], 0.0)?;
        refused(&client, &caller, direction::OUTBOUND, &listener)
    });
}

/// Its handshake began with the lists from before, and ends after the new ones are in force.
#[test]
fn a_client_that_is_revoked_during_its_handshake_does_not_slip_through() {
    run("revoked-in-handshake", |bed| {
        let lists = RevocationFile::new(bed)?;
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, lists.given_to(serve()))?;
        let files = bed.issue(&bed.ca()?, CLIENT, "thief")?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let socket = client.connect(app.local_addr()?)?;
        let mut peer = TlsPeer::hesitant_client(socket, &identity(&files)?, || {
            load(&callee, || lists.revoke(&files))
        })?;
        // The client has done its part; what it says is not heard.
        let said = peer.send(&[frame::OPEN, &frame::data(b"let me in")].concat());
        println!("sent: {said:?}");
        ended(&callee, direction::INBOUND, CLIENT, 1)?;
        let ok = [("direction", direction::INBOUND), ("result", "ok")];
        assert_eq!(callee.metric(metric::HANDSHAKES, &ok)?, 1.0, "as it began, it was good");
        untouched(&app)
    });
}

#[test]
fn a_server_that_is_revoked_during_the_handshake_gets_nothing() {
    run("revoked-server-late", |bed| {
        let lists = RevocationFile::new(bed)?;
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let caller = client.mesh(bed, lists.given_to(call(&server)))?;
        let files = bed.issue(&bed.ca()?, SERVER, "thief")?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let mut asking = client.connect(listener.local_addr()?)?;
        std::io::Write::write_all(&mut asking, b"a secret")?;
        let socket = accept(&listener)?;
        let peer = TlsPeer::hesitant_server(socket, &identity(&files)?, || {
            load(&caller, || lists.revoke(&files))
        });
        ended(&caller, direction::OUTBOUND, SERVER, 1)?;
        if let Ok(mut peer) = peer {
            let (bytes, _) = peer.read_to_end()?;
            assert!(bytes.is_empty(), "{bytes:?}");
        }
        assert!(read_to_end(&mut asking)?.0.is_empty());
        Ok(())
    });
}

/// A client that does not heed GOAWAY asks for one more stream.
#[test]
fn a_revoked_client_opens_no_further_stream_in_its_tunnel() {
    run("revoked-tunnel", |bed| {
        let lists = RevocationFile::new(bed)?;
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, lists.given_to(serve()))?;
        let files = bed.issue(&bed.ca()?, CLIENT, "thief")?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let mut peer = TlsPeer::client(client.connect(app.local_addr()?)?, &identity(&files)?)?;
        peer.send(&[frame::OPEN, &frame::data(b"ping"), frame::FIN].concat())?;
        let mut stream = accept(&app)?;
        assert_eq!(read_to_end(&mut stream)?.0, b"ping");
        drop(stream);
        assert_eq!(peer.read_exactly(4)?, frame::FIN);
        callee.wait_metric(metric::IDLE, &[], 1.0)?;

        load(&callee, || lists.revoke(&files))?;
        assert_eq!(peer.read_exactly(4)?, frame::GOAWAY);
        let said = peer.send(&[frame::OPEN, &frame::data(b"once more")].concat());
        println!("sent: {said:?}");
        let lines = callee.wait_ended(direction::INBOUND, reason::CERTIFICATE_REFUSED, 1)?;
        assert!(lines.iter().all(|it| it.text(field::DETAIL).starts_with("revoked:")), "{lines:?}");
        untouched(&app)
    });
}

#[test]
fn with_a_revoked_certificate_of_its_own_a_pod_is_not_ready() {
    run("revoked-self", |bed| {
        let lists = RevocationFile::new(bed)?;
        let server = bed.pod("srv")?;
        let mut callee = server.mesh(bed, lists.given_to(serve()))?;
        lists.revoke(&issued(bed, &server))?;
        let said = callee.wait_message("our own certificate is revoked")?;
        assert!(said.iter().all(|line| line.text("level") == "ERROR"), "{said:?}");
        let limit = Duration::from_secs(10);
        wait_until("an unready proxy", limit, || {
            let answer = callee.health("/healthz/ready")?;
            let wanted = (503, "pending: certificates (ours is revoked)\n".to_owned());
            Ok((answer == wanted).then_some(()))
        })?;
        callee.issue(bed)?;
        wait_until("a ready proxy", limit, || {
            Ok((callee.health("/healthz/ready")?.0 == 200).then_some(()))
        })
    });
}

/// What has been revoked since a list's end is not known.
#[test]
fn a_list_that_has_ended_refuses_and_a_new_one_mends_it() {
    run("stale-list", |bed| {
        let lists = RevocationFile::new(bed)?;
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, lists.given_to(serve()))?;
        let _caller = client.mesh(bed, call(&server))?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let (mut kept, mut keeping) = open(&client, &listener)?;
        load(&callee, || lists.renew("1s"))?;
        let result = [("direction", direction::INBOUND), ("result", refusal::CRL_EXPIRED)];
        let_pass(Duration::from_millis(1100));
        assert!(ask(&client, listener.local_addr()?, b"too late")?.is_turned_away());
        callee.wait_metric(metric::HANDSHAKES, &result, 1.0)?;
        let lines = callee.wait_ended(direction::INBOUND, reason::CERTIFICATE_REFUSED, 1)?;
        let ended = |line: &LogLine| line.text(field::DETAIL).starts_with(refusal::CRL_EXPIRED);
        assert!(lines.iter().all(ended), "{lines:?}");
        untouched(&listener)?;
        pass(&mut kept, &mut keeping, b"what is open stays")?;
        load(&callee, || lists.renew("1d"))?;
        drop(open(&client, &listener)?);
        Ok(())
    });
}
