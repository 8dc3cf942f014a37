//! Port 15001: what this pod's app may send, and what a server may answer.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use pillion_certs::generation::{Offer, TlsGeneration};
use pillion_testbed::labels::{CLIENT, SERVER, metric, port, reason};
use pillion_testbed::load::recycle_ports;
use pillion_testbed::peer::{TlsPeer, frame, identity};
use pillion_testbed::{Failure, MeshOptions, Pod, Sidecar, Testbed, accept, policy, run};
use rustls::{ClientConnection, ServerConfig, ServerConnection};

use crate::crowd::{Crowd, Over, Tally, at_once, ready};
use crate::inbound::{failed, seeds};
use crate::mutation::{mutate, mutated, with_certificate};
use crate::{Round, streams, wear_down};

/// Served through tunnels.
const TUNNELS: u16 = 9001;
/// Served by a TLS connection for each of the app's.
const SINGLE: u16 = 9002;
/// Passed on as it comes.
const PLAIN: u16 = 9003;
/// Where the server is honest.
const HONEST: u16 = 9004;

/// Connections of each thread of the app's, and of the server's.
const OPEN: usize = 24;

/// How long the server waits for what is said to its answer.
const SERVERS_PATIENCE: Duration = Duration::from_millis(20);

/// The app waits until the server has given up.
const APPS_PATIENCE: Duration = Duration::from_millis(500);

/// The random bytes that make a ServerHello a HelloRetryRequest (RFC 8446, 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// A client with a sidecar, and a server that has none and lies.
struct Called {
    client: Pod,
    caller: Sidecar,
    server: Pod,
    listeners: [TcpListener; 3],
    liar: Liar,
}

impl Called {
    fn new(bed: &Testbed) -> Result<Self, Failure> {
        let (client, server) = (bed.pod("cli")?, bed.pod("srv")?);
        let mesh = |name: &str, ports: &str, more: &str| {
            format!(
                "  - {{name: {name}, ipBlocks: [\"{}\"], ports: [{ports}], action: mtls, \
                 serverIdentities: [\"{SERVER}\"]{more}}}\n",
                server.v4()
            )
        };
        let body = format!(
            "inbound: {{mtls: strict, defaultAction: deny}}\n\
             outbound:\n  defaultAction: passthrough\n  destinations:\n{}{}",
            mesh("tunnels", &format!("{TUNNELS}, {HONEST}"), ""),
            mesh("single", &SINGLE.to_string(), ", tunnelReuse: false")
        );
        let call = MeshOptions::new(policy::with_body(&body), CLIENT);
        let caller = client.mesh(bed, call.env("PILLION_ACCESS_LOG", "denied"))?;
        for pod in [&client, &server] {
            recycle_ports(pod)?;
        }
        let listen = |port| server.listen(SocketAddr::new(server.v4(), port));
        let listeners = [listen(TUNNELS)?, listen(SINGLE)?, listen(PLAIN)?];
        let svid = identity(&bed.issue(&bed.ca()?, SERVER, "server")?)?;
        let liar = Liar { answers: answers(&svid)?, svid };
        Ok(Self { client, caller, server, listeners, liar })
    }
}

/// What an app sends, and what a server answers in the handshake and after it, with bytes changed
/// at random.
#[test]
fn mutated_answers_of_a_server_leave_nothing_behind() {
    run("hostile-outbound", |bed| {
        let count = streams(bed.settings(), 3_000);
        let Called { client, mut caller, server, listeners, liar } = Called::new(bed)?;
        let seeds = seeds(&liar.svid)?;
        let done = &AtomicBool::new(false);
        let (told, answered) = std::thread::scope(|scope| {
            let over = Over(done);
            let serving = scope.spawn(|| liar.serve(&server, &listeners, done));
            let told =
                wear_down(&mut caller, count, |round| fling(&client, server.v4(), &seeds, round));
            drop(over);
            let answered = serving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Failure>((told?, answered?))
        })?;
        println!("what came back to the server: {answered}");
        let metrics = caller.metrics()?;
        let all = metrics.sum(metric::OPENED, &[]);
        let shaken = metrics.sum(metric::HANDSHAKES, &[]);
        assert!(shaken > all * 0.6, "{shaken} handshakes of {all} connections, {told}");
        for why in [
            reason::HANDSHAKE_FAILED,
            reason::CERTIFICATE_REFUSED,
            reason::TLS_ERROR,
            reason::TUNNEL_ERROR,
            reason::SELF_CALL,
        ] {
            let ended = metrics.sum(metric::CLOSED, &[("reason", why)]);
            assert!(ended * 500.0 > all, "{ended} of {all} ended by {why}");
        }
        let honest = server.listen(SocketAddr::new(server.v4(), HONEST))?;
        let mut app = client.connect(honest.local_addr()?)?;
        app.write_all(b"true")?;
        let mut peer = TlsPeer::server(accept(&honest)?, &liar.svid)?;
        assert_eq!(peer.read_exactly(18)?[10..], frame::data(b"true"));
        Ok(())
    });
}

/// The app's connections: most to the server, some to the proxy's own port.
fn fling(
    client: &Pod,
    server: std::net::IpAddr,
    seeds: &[Vec<u8>],
    round: Round,
) -> Result<Tally, Failure> {
    at_once(client, round.streams, |number, streams| {
        let mut random = Rng::with_seed(round.seed + u64::from(number));
        let mut crowd = Crowd::new(OPEN, APPS_PATIENCE, |_| "an answer".to_owned());
        for _ in 0..streams {
            let to = match random.u8(..100) {
                0..3 => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port::OUTBOUND),
                3..10 => SocketAddr::new(server, PLAIN),
                10..30 => SocketAddr::new(server, SINGLE),
                _ => SocketAddr::new(server, TUNNELS),
            };
            crowd.throw(to, &mutated(seeds, &mut random), random.u8(..3) == 0)?;
        }
        crowd.end()
    })
}

/// A server whose certificate is in order, and little else.
struct Liar {
    svid: TlsGeneration,
    /// What a server may answer, without a look at what it was asked.
    answers: Vec<Vec<u8>>,
}

impl Liar {
    /// Serves until it is done.
    fn serve(
        &self,
        pod: &Pod,
        listeners: &[TcpListener],
        done: &AtomicBool,
    ) -> Result<Tally, Failure> {
        at_once(pod, 2, |number, _| {
            let mut random = Rng::with_seed(number.into());
            let mut crowd = Crowd::new(OPEN, SERVERS_PATIENCE, |_| "an answer".to_owned());
            while !done.load(Ordering::Relaxed) {
                let limit = Duration::from_millis(10);
                let came = ready(listeners.iter(), limit)?;
                for (listener, _) in listeners.iter().zip(came).filter(|(_, came)| *came) {
                    // Another thread may have taken it.
                    let Ok((stream, _)) = listener.accept() else { continue };
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    let plain = listener.local_addr()?.port() == PLAIN;
                    self.answer(stream, plain, &mut crowd, &mut random)?;
                }
                crowd.look(Duration::ZERO)?;
            }
            crowd.end()
        })
    }

    fn answer(
        &self,
        stream: TcpStream,
        plain: bool,
        crowd: &mut Crowd,
        random: &mut Rng,
    ) -> Result<(), Failure> {
        let all = random.u8(..3) == 0;
        let said = match random.u8(..100) {
            _ if plain => return crowd.hold(stream, &mutated(&self.answers, random), all),
            0..50 => return crowd.hold(stream, &mutated(&self.answers, random), all),
            50..90 => match self.flight(stream, random) {
                Ok((stream, flight)) => return crowd.hold(stream, &flight, all),
                Err(failure) => Err(failure),
            },
            90..94 => self.certificate(stream, random).map(|()| "a certificate"),
            _ => self.in_a_stream(stream, random).map(|()| "in a stream"),
        };
        // It may be reset while it speaks.
        crowd.count(said.unwrap_or("cut short"));
        Ok(())
    }

    /// The server's first flight for this very client, with something changed: its hello, which is
    /// in the clear, as often as what is encrypted.
    fn flight(
        &self,
        mut stream: TcpStream,
        random: &mut Rng,
    ) -> Result<(TcpStream, Vec<u8>), Failure> {
        let mut tls = ServerConnection::new(self.svid.server_config(true)).map_err(failed)?;
        while !tls.wants_write() {
            if tls.read_tls(&mut stream)? == 0 {
                return Err(Failure::Unexpected("no hello".to_owned()));
            }
            tls.process_new_packets().map_err(failed)?;
        }
        let mut flight = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut flight)?;
        }
        if random.bool() {
            mutate(&mut flight, random);
            return Ok((stream, flight));
        }
        let record = 5 + usize::from(u16::from_be_bytes([flight[3], flight[4]]));
        let rest = flight.split_off(record);
        if random.u8(..20) == 0 {
            // The random bytes are behind the headers of record and message, and the version.
            flight[11..43].copy_from_slice(&RETRY);
        }
        mutate(&mut flight, random);
        flight.extend(rest);
        Ok((stream, flight))
    }

    /// A handshake with a certificate that is not as it was signed, and its true key.
    fn certificate(&self, mut stream: TcpStream, random: &mut Rng) -> Result<(), Failure> {
        let mut config = ServerConfig::clone(&self.svid.server_config(true));
        config.cert_resolver = with_certificate(&self.svid.client_config(Offer::Nothing), random)?;
        let mut tls = ServerConnection::new(Arc::new(config)).map_err(failed)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        Ok(())
    }

    /// A server in order, but for its frames or its records. Its FIN comes behind them.
    fn in_a_stream(&self, stream: TcpStream, random: &mut Rng) -> Result<(), Failure> {
        let mut peer = TlsPeer::server(stream, &self.svid)?;
        if random.u8(..4) == 0 {
            let mut record = [b"\x17\x03\x03\x00\x30", [0; 48].as_slice()].concat();
            mutate(&mut record, random);
            return peer.inject(&record);
        }
        let frames = [&frame::data(b"some of it"), frame::FIN, frame::GOAWAY, &frame::reset(1)];
        let mut frames = frames.concat();
        mutate(&mut frames, random);
        peer.send(&frames)
    }
}

/// A whole first flight, to another client; alerts; and what is no TLS.
fn answers(svid: &TlsGeneration) -> Result<Vec<Vec<u8>>, Failure> {
    let config = svid.client_config(Offer::Tunnel);
    let mut client = ClientConnection::new(config, TlsGeneration::server_name()).map_err(failed)?;
    let mut server = ServerConnection::new(svid.server_config(true)).map_err(failed)?;
    let (mut hello, mut flight) = (Vec::new(), Vec::new());
    client.write_tls(&mut hello)?;
    server.read_tls(&mut hello.as_slice())?;
    server.process_new_packets().map_err(failed)?;
    while server.wants_write() {
        server.write_tls(&mut flight)?;
    }
    let mut retry = flight.clone();
    retry[11..43].copy_from_slice(&RETRY);
    let others: [&[u8]; 7] = [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
        // no_application_protocol, upon which the server is dialled again.
        b"\x15\x03\x03\x00\x02\x02\x78",
        b"\x14\x03\x03\x00\x01\x01",
        b"\x17\x03\x03\x00\x04data",
        &hello,
    ];
    let others = others.iter().map(|bytes| bytes.to_vec());
    Ok([flight.clone(), flight.clone(), flight, retry].into_iter().chain(others).collect())
}
