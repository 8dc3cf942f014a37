//! Handshakes over real sockets, and records between the two engines in every pairing.

mod differential;
pub(super) mod twins;

use std::time::Duration;

use pillion_certs::generation::{KeyExchange, Offer, TlsGeneration};
use pillion_certs::issue::{issue, make_ca};
use pillion_certs::spiffe::SpiffeId;
use pillion_certs::verify::TrustBundles;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::buffers::{MAX_PLAINTEXT, MAX_RECORD, RECORD_HEADER};
use crate::config::TlsEngine;
use crate::net::Leg;

use super::*;

const ENGINES: [TlsEngine; 2] = [TlsEngine::Records, TlsEngine::Rustls];

/// A client's and a server's certificates, of one authority.
pub(crate) fn generations() -> [TlsGeneration; 2] {
    let id = |name: &str| -> SpiffeId {
        format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
    };
    let hour = Duration::from_secs(3600);
    let domain = id("client").trust_domain().clone();
    let ca = make_ca(&domain, hour * 24).unwrap();
    ["client", "server"].map(|name| {
        let issued = issue(&ca, &id(name), hour).unwrap();
        let chain = CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let authority = CertificateDer::pem_slice_iter(ca.cert_pem.as_bytes());
        let mut bundles = TrustBundles::default();
        bundles.add(domain.clone(), &authority.collect::<Result<Vec<_>, _>>().unwrap()).unwrap();
        TlsGeneration::new(chain, &key, bundles, KeyExchange::Classic).unwrap()
    })
}

pub(crate) async fn legs() -> (Leg, Leg) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (Leg::new(client), Leg::new(listener.accept().await.unwrap().0))
}

/// A connection whose ends have these engines.
async fn established(client: TlsEngine, server: TlsEngine) -> (Established, Established) {
    let [ours, theirs] = generations();
    let (mut one, mut other) = legs().await;
    let (client, server) = tokio::join!(
        connect(&mut one, Offer::Tunnel, &ours, client, &|_| ()),
        accept(&mut other, Vec::new(), true, &theirs, server),
    );
    (client.unwrap(), server.unwrap())
}

/// Seals `plain` as one record.
fn seal(session: &mut Session, plain: &[u8]) -> Vec<u8> {
    session.before_run().unwrap();
    let mut sealed = std::mem::take(session.outgoing());
    if session.in_place() {
        let mut slot = vec![0; MAX_RECORD];
        slot[RECORD_HEADER..RECORD_HEADER + plain.len()].copy_from_slice(plain);
        let n = session.seal(&mut slot, plain.len()).unwrap();
        sealed.extend_from_slice(&slot[..n]);
    } else {
        let mut out = vec![0; MAX_RECORD];
        let n = session.seal_into(plain, &mut out).unwrap();
        sealed.extend_from_slice(&out[..n]);
    }
    sealed
}

/// Opens every record of `sealed`; the end is a close_notify or what is there.
fn open(session: &mut Session, mut sealed: Vec<u8>) -> Result<(Vec<u8>, bool), rustls::Error> {
    let mut plain = Vec::new();
    let mut at = 0;
    let mut spill = vec![0; MAX_PLAINTEXT];
    loop {
        let opened = session.open(&mut sealed[at..], &mut spill)?;
        match opened.found {
            Found::More => return Ok((plain, false)),
            Found::CloseNotify => return Ok((plain, true)),
            Found::Nothing => {}
            Found::Data(range) if session.in_place() => {
                plain.extend_from_slice(&sealed[at..][range]);
            }
            Found::Data(range) => plain.extend_from_slice(&spill[range]),
        }
        at += opened.consumed;
    }
}

#[tokio::test]
async fn every_pairing_of_engines_understands_itself() {
    for client in ENGINES {
        for server in ENGINES {
            let (mut c, mut s) = established(client, server).await;
            assert!(c.tunnel && s.tunnel);
            assert_eq!(s.peer.id().as_str(), "spiffe://cluster.local/ns/shop/sa/client");
            assert_eq!(c.peer.id().as_str(), "spiffe://cluster.local/ns/shop/sa/server");
            for len in [0, 1, 100, MAX_PLAINTEXT - 1, MAX_PLAINTEXT] {
                let text = vec![7; len];
                let sealed = seal(&mut c.session, &text);
                assert_eq!(open(&mut s.session, sealed).unwrap(), (text.clone(), false));
                let sealed = seal(&mut s.session, &text);
                assert_eq!(open(&mut c.session, sealed).unwrap(), (text, false));
            }
            c.session.close().unwrap();
            let sealed = std::mem::take(c.session.outgoing());
            assert_eq!(open(&mut s.session, sealed).unwrap(), (vec![], true));
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_is_refused_with_an_alert() {
    for engine in ENGINES {
        let (mut c, mut s) = established(TlsEngine::Rustls, engine).await;
        let mut sealed = seal(&mut c.session, b"transfer 100");
        *sealed.last_mut().unwrap() ^= 1;
        assert_eq!(open(&mut s.session, sealed).unwrap_err(), rustls::Error::DecryptError);
        let alert = std::mem::take(s.session.outgoing());
        assert_eq!(
            open(&mut c.session, alert).unwrap_err(),
            rustls::Error::AlertReceived(AlertDescription::BadRecordMac)
        );
    }
}

#[tokio::test]
async fn plaintext_gets_an_alert_and_an_end() {
    let [_, generation] = generations();
    for engine in ENGINES {
        for text in [&b"without any certificate"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03", b""] {
            let (mut client, mut server) = legs().await;
            let handshake = async {
                let seen = text.to_vec();
                let refused = accept(&mut server, seen, false, &generation, engine).await;
                drop(server);
                refused.unwrap_err()
            };
            let answer = async {
                if text.len() < 5 {
                    client.finish().unwrap();
                }
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            };
            let (refused, answer) = tokio::join!(handshake, answer);
            assert_eq!(refused.label(), "failed");
            if text.len() >= 5 {
                assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
            }
        }
    }
}

/// RFC 8446, 6.2.
#[test]
fn each_error_has_its_alert() {
    use rustls::AlertDescription as Alert;
    type Bad = fn(&mut twins::Forger) -> Vec<u8>;
    let cases: [(Bad, Alert); 7] = [
        (|peer| peer.record(22, &[24, 0, 0, 1, 2], 0), Alert::IllegalParameter),
        (|peer| peer.record(22, &[], 0), Alert::UnexpectedMessage),
        (|peer| peer.record(21, &[2], 0), Alert::DecodeError),
        (|peer| peer.seal(vec![0; 3]), Alert::UnexpectedMessage),
        (|peer| peer.record(23, &[1; MAX_PLAINTEXT + 1], 0), Alert::RecordOverflow),
        (|_| vec![21, 3, 3, 0, 2, 2, 20], Alert::UnexpectedMessage),
        (
            |_| vec![23, 3, 3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            Alert::BadRecordMac,
        ),
    ];
    let recorded = twins::Recorded::new(twins::SUITES[0]);
    for (bad, alert) in cases {
        let mut ours = recorded.session(rustls::Side::Server);
        let record = bad(&mut recorded.forger(rustls::Side::Client));
        open(&mut ours, record).unwrap_err();
        let mut peer = recorded.rustls(rustls::Side::Client);
        let (_, e) = twins::give(&mut peer, ours.outgoing()).unwrap_err();
        assert_eq!(e, rustls::Error::AlertReceived(alert));
    }
    // An alert of the peer's has no answer.
    let mut ours = recorded.session(rustls::Side::Server);
    let record = recorded.forger(rustls::Side::Client).record(21, &[2, 80], 0);
    open(&mut ours, record).unwrap_err();
    assert!(ours.outgoing().is_empty());
}

/// Scripts of arbitrary bytes, most of them long enough to come to something.
#[test]
fn rustls_and_our_record_layer_understand_the_same() {
    struct Shown<'a>(u64, &'a [u8]);
    impl Drop for Shown<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("seed {}, script {:?}", self.0, self.1);
            }
        }
    }
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..3000 {
        let len = random.usize(2..80);
        let script: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
        let _shown = Shown(seed, &script);
        differential::play(&script);
    }
}
