//! Sockets, and protected connections over them, for tests and benchmarks of the relay.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use pillion_certs::generation::{KeyExchange, Offer, TlsGeneration};
use pillion_certs::issue::{issue, make_ca};
use pillion_certs::spiffe::SpiffeId;
use pillion_certs::verify::TrustBundles;
use pillion_proxy::config::TlsEngine;
use pillion_proxy::net::Leg;
use pillion_proxy::tls::{self, Established};
use pillion_proxy::tunnel::Role;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const HOUR: Duration = Duration::from_secs(3600);

/// Two connected sockets.
pub(crate) fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// A socket as the relay wants it, on the runtime that is entered.
pub(crate) fn leg(stream: TcpStream) -> Leg {
    stream.set_nonblocking(true).unwrap();
    Leg::new(tokio::net::TcpStream::from_std(stream).unwrap())
}

/// A worker's runtime.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// An app that sends so many bytes, a multiple of a MiB, and ends.
pub(crate) fn source(mut stream: TcpStream, bytes: u64) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let from = vec![7; 1 << 20];
        for _ in 0..bytes >> 20 {
            stream.write_all(&from).unwrap();
        }
    })
}

/// An app that reads to the end, and says how much there was.
pub(crate) fn sink(mut stream: TcpStream) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let (mut read, mut into) = (0, vec![0; 1 << 18]);
        loop {
            match stream.read(&mut into).unwrap() {
                0 => return read,
                n => read += n as u64,
            }
        }
    })
}

/// A client's and a server's certificates, of one authority.
pub(crate) fn generations() -> [TlsGeneration; 2] {
    let id = |name: &str| -> SpiffeId { format!("spiffe://cluster.local/{name}").parse().unwrap() };
    let domain = id("client").trust_domain().clone();
    let ca = make_ca(&domain, HOUR * 24).unwrap();
    ["client", "server"].map(|name| {
        let issued = issue(&ca, &id(name), HOUR).unwrap();
        let chain = CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let authority = CertificateDer::pem_slice_iter(ca.cert_pem.as_bytes());
        let mut bundles = TrustBundles::default();
        bundles.add(domain.clone(), &authority.collect::<Result<Vec<_>, _>>().unwrap()).unwrap();
        TlsGeneration::new(chain, &key, bundles, KeyExchange::Classic).unwrap()
    })
}

/// Makes the handshake of one end.
pub(crate) async fn shake_hands(
    role: Role,
    leg: &mut Leg,
    tunnel: bool,
    generation: &TlsGeneration,
    engine: TlsEngine,
) -> Established {
    let made = match role {
        Role::Client => {
            let offer = if tunnel { Offer::Tunnel } else { Offer::Single };
            tls::connect(leg, offer, generation, engine, &|_| ()).await
        }
        Role::Server => tls::accept(leg, vec![], true, generation, engine).await,
    };
    let made = made.unwrap();
    assert_eq!(made.tunnel, tunnel);
    made
}
