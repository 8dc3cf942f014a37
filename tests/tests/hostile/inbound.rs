//! Port 15006: what a peer may send to this pod.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fastrand::Rng;
use pillion_certs::generation::{Offer, TlsGeneration};
use pillion_testbed::labels::{CLIENT, SERVER, metric, port, reason};
use pillion_testbed::peer::{TlsPeer, frame, identity};
use pillion_testbed::stream::read_exactly;
use pillion_testbed::{Failure, MeshOptions, Pod, Sidecar, Testbed, accept, load, policy, run};
use rustls::{ClientConfig, ClientConnection};

use crate::crowd::{Crowd, Over, Tally, at_once, sink};
use crate::mutation::{mutate, mutated, with_certificate};
use crate::{APP, Round, streams, wear_down};

/// Where plaintext is taken, too.
const PERMISSIVE: u16 = 8081;

/// Where the app of the tunnels' streams is.
const TUNNELS: u16 = 8082;

const OPEN: usize = 48;

/// Who is not answered by then has not said enough.
const PATIENCE: Duration = Duration::from_millis(50);

/// A server, and a client that has no sidecar but a good certificate.
struct Served {
    liar: Pod,
    callee: Sidecar,
    apps: [TcpListener; 3],
    seeds: Vec<Vec<u8>>,
    svid: TlsGeneration,
}

impl Served {
    fn new(bed: &Testbed) -> Result<Self, Failure> {
        let (server, liar) = (bed.pod("srv")?, bed.pod("liar")?);
        let rules = format!(
            "inbound:\n  mtls: strict\n  defaultAction: deny\n  ports: {{{PERMISSIVE}: {{mtls: permissive}}}}\n  \
             probes: [{{port: {APP}, path: /healthz}}]\n  rules:\n  \
             - {{name: callers, action: allow, from: [{{identities: [\"{CLIENT}\"]}}]}}\n  \
             - {{name: anyone, action: allow, ports: [{PERMISSIVE}], from: [{{any: true}}]}}\n\
             outbound: {{defaultAction: passthrough, destinations: []}}\n"
        );
        let serve = MeshOptions::new(policy::with_body(&rules), SERVER);
        let callee = server.mesh(bed, serve.env("PILLION_ACCESS_LOG", "denied"))?;
        for pod in [&server, &liar] {
            load::recycle_ports(pod)?;
        }
        let listen = |port| server.listen(SocketAddr::new(server.v4(), port));
        let apps = [listen(APP)?, listen(PERMISSIVE)?, listen(TUNNELS)?];
        let svid = identity(&bed.issue(&bed.ca()?, CLIENT, "liar")?)?;
        let seeds = seeds(&svid)?;
        Ok(Self { liar, callee, apps, seeds, svid })
    }
}

/// Hellos, handshakes, certificates, records and frames with bytes changed at random, on a strict
/// port and on a permissive one.
#[test]
fn mutated_hellos_and_frames_leave_nothing_behind() {
    run("hostile-inbound", |bed| {
        let count = streams(bed.settings(), 4_000);
        let Served { liar, mut callee, apps, seeds, svid } = Served::new(bed)?;
        let [app, permissive, tunnels] = &apps;
        let to = [app.local_addr()?, permissive.local_addr()?, tunnels.local_addr()?];
        let done = &AtomicBool::new(false);
        let told = std::thread::scope(|scope| {
            let over = Over(done);
            let listeners = [(app, false), (permissive, false), (tunnels, true)];
            let apps = scope.spawn(move || sink(&listeners, done));
            let told =
                wear_down(&mut callee, count, |round| fling(&liar, to, &seeds, &svid, round));
            drop(over);
            load::joined(apps).and(told)
        })?;
        let metrics = callee.metrics()?;
        let ended = |why| metrics.sum(metric::CLOSED, &[("reason", why)]);
        let shaken = metrics.sum(metric::HANDSHAKES, &[]);
        let all = metrics.sum(metric::OPENED, &[]);
        assert!(shaken > all * 0.4, "{shaken} of {all} came to a handshake's end, {told}");
        for why in [
            reason::PLAINTEXT_REFUSED,
            reason::HANDSHAKE_FAILED,
            reason::CERTIFICATE_REFUSED,
            reason::TLS_ERROR,
            reason::TUNNEL_ERROR,
        ] {
            assert!(ended(why) * 500.0 > all, "{} of {all} ended by {why}", ended(why));
        }
        for other in [port::INBOUND, port::OUTBOUND] {
            let own = SocketAddr::new(to[0].ip(), other);
            assert_eq!(thrown(&liar, own, &seeds)?.sum_of("reset"), 20, "an own port");
        }
        assert_eq!(callee.metric(metric::SELF_CALL, &[])?, 40.0);
        let mut honest = TlsPeer::client(liar.connect(to[0])?, &svid)?;
        honest.send(frame::OPEN)?;
        let mut app = accept(app)?;
        honest.send(&frame::data(b"true"))?;
        assert_eq!(read_exactly(&mut app, 4)?, b"true");
        Ok(())
    });
}

/// Twenty at once to where nobody is to be served.
fn thrown(liar: &Pod, to: SocketAddr, seeds: &[Vec<u8>]) -> Result<Tally, Failure> {
    at_once(liar, 20, |number, streams| {
        let mut random = Rng::with_seed(number.into());
        let mut crowd = Crowd::new(OPEN, Duration::from_secs(20), record);
        for _ in 0..streams {
            crowd.throw(to, &mutated(seeds, &mut random), false)?;
        }
        crowd.end()
    })
}

fn fling(
    liar: &Pod,
    [strict, permissive, tunnels]: [SocketAddr; 3],
    seeds: &[Vec<u8>],
    svid: &TlsGeneration,
    round: Round,
) -> Result<Tally, Failure> {
    at_once(liar, round.streams, |number, streams| {
        let mut random = Rng::with_seed(round.seed + u64::from(number));
        let mut crowd = Crowd::new(OPEN, PATIENCE, record);
        for _ in 0..streams {
            let said = match random.u8(..100) {
                0..4 => in_a_tunnel(connect(tunnels)?, svid, &mut random).map(|()| "in a tunnel"),
                4..6 => second_flight(connect(strict)?, svid, &mut random).map(|()| "a flight"),
                6..8 => certificate(connect(strict)?, svid, &mut random).map(|()| "a certificate"),
                kind => {
                    let to = if kind % 3 == 0 { permissive } else { strict };
                    let bytes = mutated(seeds, &mut random);
                    crowd.throw(to, &bytes, random.u8(..3) == 0)?;
                    continue;
                }
            };
            // It may be reset while it speaks.
            crowd.count(said.unwrap_or("cut short"));
        }
        crowd.end()
    })
}

fn connect(to: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// A client in order, but for its frames or its records. Its FIN comes behind them, so all are read.
fn in_a_tunnel(socket: TcpStream, svid: &TlsGeneration, random: &mut Rng) -> Result<(), Failure> {
    let mut peer = TlsPeer::client(socket, svid)?;
    let rest =
        [&frame::data(b"some of it"), frame::FIN, frame::OPEN, &frame::data(b"more")].concat();
    let mut frames = [frame::OPEN, &rest].concat();
    match random.u8(..4) {
        // The records themselves.
        0 => {
            peer.send(frame::OPEN)?;
            let mut record = [b"\x17\x03\x03\x00\x30", [0; 48].as_slice()].concat();
            mutate(&mut record, random);
            return peer.inject(&record);
        }
        1 => mutate(&mut frames, random),
        _ => {
            frames = rest;
            mutate(&mut frames, random);
            frames.splice(0..0, frame::OPEN.iter().copied());
        }
    }
    peer.send(&frames)
}

/// A client whose certificate, Finished and what else is in the second flight are changed.
fn second_flight(
    mut socket: TcpStream,
    svid: &TlsGeneration,
    random: &mut Rng,
) -> Result<(), Failure> {
    let mut tls = client(svid.client_config(Offer::Tunnel))?;
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    while !tls.wants_write() {
        tls.read_tls(&mut socket)?;
        tls.process_new_packets().map_err(failed)?;
    }
    let mut flight = Vec::new();
    tls.write_tls(&mut flight)?;
    mutate(&mut flight, random);
    Ok(socket.write_all(&flight)?)
}

/// A client that proves to have the key of a certificate that is not as it was signed.
fn certificate(socket: TcpStream, svid: &TlsGeneration, random: &mut Rng) -> Result<(), Failure> {
    let mut config = ClientConfig::clone(&svid.client_config(Offer::Tunnel));
    config.client_auth_cert_resolver = with_certificate(&config, random)?;
    let mut tls = client(Arc::new(config))?;
    let mut socket = socket;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    Ok(())
}

fn client(config: Arc<ClientConfig>) -> Result<ClientConnection, Failure> {
    ClientConnection::new(config, TlsGeneration::server_name()).map_err(failed)
}

pub(crate) fn failed(error: rustls::Error) -> Failure {
    Failure::Unexpected(error.to_string())
}

/// The type of the first record of an answer.
fn record(answer: &[u8]) -> String {
    match answer.first() {
        Some(21) => "alert".to_owned(),
        Some(22) => "handshake".to_owned(),
        _ => "no TLS".to_owned(),
    }
}

/// Hellos of all kinds, in one record and in many; and what is none.
pub(crate) fn seeds(svid: &TlsGeneration) -> Result<Vec<Vec<u8>>, Failure> {
    let mut seeds = Vec::new();
    for offer in [Offer::Tunnel, Offer::Single, Offer::Nothing] {
        let mut config = ClientConfig::clone(&svid.client_config(offer));
        config.enable_sni = true;
        let name = "srv.shop.svc.cluster.local".try_into();
        let name = name.map_err(|error| Failure::Unexpected(format!("{error}")))?;
        for config in [svid.client_config(offer), Arc::new(config)] {
            let mut tls =
                ClientConnection::new(config, rustls::pki_types::ServerName::clone(&name))
                    .map_err(failed)?;
            let mut hello = Vec::new();
            tls.write_tls(&mut hello)?;
            let records =
                hello[5..].chunks(50).map(|part| [&[22, 3, 1, 0, part.len() as u8], part].concat());
            seeds.push(records.flatten().collect());
            // Those in one record are what is changed most.
            seeds.extend([hello.clone(), hello.clone(), hello]);
        }
    }
    let others: &[&[u8]] = &[
        b"GET /healthz HTTP/1.1\r\nHost: srv\r\nConnection: keep-alive\r\nX-A: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: srv\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80\x02\x00\x80\x03",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x04data",
        b"\x14\x03\x03\x00\x01\x01",
        &[frame::OPEN, b"\x02\x00\x00\x04ping", frame::FIN].concat(),
    ];
    seeds.extend(others.iter().map(|bytes| bytes.to_vec()));
    Ok(seeds)
}
