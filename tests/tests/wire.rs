//! What crosses the wire: nothing but TLS where there are sidecars.

use std::net::SocketAddr;

use pillion_testbed::stream::pass;
use pillion_testbed::{Failure, Pair, Pod, Wire, accept, run};

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
