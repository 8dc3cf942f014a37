//! What crosses the wire: nothing but TLS where there are sidecars.

use std::net::SocketAddr;

use pillion_testbed::labels::{CLIENT, SERVER};
use pillion_testbed::stream::{Outcome, ask, pass, reset};
use pillion_testbed::{
    Failure, MeshOptions, Pair, Pod, Testbed, Wire, accept, complete, policy, run, untouched,
};

const APP: u16 = 8080;
const QUESTION: &[u8] = b"the marker of the question, which must not be read on the wire";
const ANSWER: &[u8] = b"the marker of the answer, which must not be read on the wire";

/// Connections a run makes on each address.
const CONNECTIONS: usize = 3;

/// Sends both markers over every address, and returns what was on the server's cable.
fn exchange(client: &Pod, server: &Pod, name: &str) -> Result<Wire, Failure> {
    let capture = server.capture(name)?;
    for address in server.addresses() {
        let listener = server.listen(SocketAddr::new(address, APP))?;
        for _ in 0..CONNECTIONS {
            let mut asking = client.connect(listener.local_addr()?)?;
            let mut answering = accept(&listener)?;
            pass(&mut asking, &mut answering, QUESTION)?;
            pass(&mut answering, &mut asking, ANSWER)?;
        }
    }
    capture.finish(client)
}

#[test]
fn no_plaintext_crosses_between_two_sidecars() {
    run("wire", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let flows = 2 * CONNECTIONS * server.addresses().len();

        // Without sidecars both markers are seen: the capture and its reader work.
        let wire = exchange(&client, &server, "direct")?;
        assert!(wire.contains(QUESTION) && wire.contains(ANSWER), "the capture sees plaintext");
        assert_eq!(wire.summary(APP), (0, flows), "(TLS, other) flows without sidecars");

        let pair = Pair::mesh(bed, client, server, &[])?;
        let wire = exchange(&pair.client, &pair.server, "meshed")?;
        assert!(!wire.contains(QUESTION), "the question crossed in plaintext");
        assert!(!wire.contains(ANSWER), "the answer crossed in plaintext");
        let (tls, other) = wire.summary(APP);
        println!("meshed: {tls} flows of TLS, {other} of anything else");
        assert_eq!(other, 0, "only TLS records");
        // A TLS connection may be used again for the next application connection.
        assert!(tls >= 2 * pair.server.addresses().len() && tls <= flows, "{tls} flows");
        pair.check_meshed()
    });
}

/// The identity is no secret to the peer, but it is to the wire: TLS 1.3 encrypts certificates.
#[test]
fn no_identity_crosses_in_plaintext() {
    run("wire-identity", |bed| {
        let pair = Pair::new(bed)?;
        let wire = exchange(&pair.client, &pair.server, "identity")?;
        assert!(wire.flows(APP).next().is_some(), "something was captured");
        assert!(!wire.contains(b"spiffe://"), "a certificate crossed in plaintext");
        pair.check_meshed()
    });
}

/// Each connection of the proxy's that the server resets stays in the kernel's list for a while. An
/// app that gets its port for the same server is one of its own, and not redirected.
#[test]
fn no_plaintext_crosses_to_a_server_that_resets() {
    run("wire-resets", |bed| {
        let refused = dials_of_a_server_that_resets(bed, "off")?;
        let shown = refused.iter().all(|refused| *refused > 0);
        assert!(shown, "no connection was taken for an old one: this shows nothing: {refused:?}");
        Ok(())
    });
}

/// As long as both have ports of their own, no connection is taken for another's.
#[test]
fn an_app_gets_none_of_the_ports_that_its_proxy_has_had() {
    run("wire-ports", |bed| {
        let refused = dials_of_a_server_that_resets(bed, "61000-65535")?;
        assert!(refused.iter().all(|refused| *refused == 0), "not redirected: {refused:?}");
        Ok(())
    });
}

/// An app dials a server that resets its connections, from so few ports that each is soon one that
/// the proxy has had, if these are its ports too. Returns how many were not redirected, and
/// therefore refused, for each of the server's addresses.
fn dials_of_a_server_that_resets(bed: &Testbed, source_ports: &str) -> Result<Vec<usize>, Failure> {
    const DIALS: usize = 200;
    const PORTS: usize = 32;
    let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
    let last = 40_000 + PORTS - 1;
    complete(&mut client.shell(&format!("sysctl -w net.ipv4.ip_local_port_range='40000 {last}'")))?;
    let options = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
    let _caller = client.mesh(bed, options.env("PILLION_SOURCE_PORTS", source_ports))?;
    let mut all_refused = Vec::new();
    for address in server.addresses() {
        let listener = server.listen(SocketAddr::new(address, APP))?;
        let to = listener.local_addr()?;
        let capture = server.capture("resets")?;
        let outcomes = std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                loop {
                    let stream = accept(&listener)?;
                    // Its own pod says that all is over.
                    if stream.peer_addr().is_ok_and(|peer| peer.ip() == address) {
                        return Ok::<_, Failure>(());
                    }
                    reset(stream)?;
                }
            });
            let outcomes: Result<Vec<Outcome>, Failure> =
                (0..DIALS).map(|_| ask(&client, to, QUESTION)).collect();
            drop(server.connect(to)?);
            serving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            outcomes
        })?;
        assert!(outcomes.iter().all(Outcome::is_turned_away), "{outcomes:?}");
        let refused = outcomes.iter().filter(|it| **it == Outcome::Refused).count();
        println!("{refused} of {DIALS} were not redirected, and were refused");
        all_refused.push(refused);
        let wire = capture.finish(&client)?;
        assert!(wire.flows(APP).next().is_some(), "something was captured");
        assert!(!wire.contains(QUESTION), "the app's bytes crossed in plaintext");
        untouched(&listener)?;
    }
    Ok(all_refused)
}
