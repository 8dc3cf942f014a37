//! Peers with a certificate that is in order and a tunnel that is not: whatever they say, the
//! connection is reset, nothing of it reaches an app, and the sidecar serves on.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};

use pillion_certs::generation::TlsGeneration;
use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, reason};
use pillion_testbed::peer::{TlsEnd, TlsPeer, frame, identity};
use pillion_testbed::stream::{End, pass, read_exactly, read_to_end};
use pillion_testbed::{
    Failure, MeshOptions, Pair, Pod, Sidecar, Testbed, accept, policy, run, untouched,
};

const APP: u16 = 8080;

/// The header of a frame of 16 MiB less one byte: the most that 3 bytes of length can say.
const ENORMOUS: &[u8] = b"\x02\xff\xff\xff";

/// The header of a DATA frame that is one byte longer than may be.
const TOO_LONG: &[u8] = b"\x02\x00\x3f\xfd";

fn tunnel_errors(sidecar: &Sidecar, way: &str, count: usize) -> Result<(), Failure> {
    let labels = [("direction", way), ("reason", reason::TUNNEL_ERROR)];
    sidecar.wait_metric(metric::CLOSED, &labels, count as f64)?;
    let lines =
        sidecar.wait_logs("a broken rule", count, |line| line.is(way, reason::TUNNEL_ERROR))?;
    assert!(lines.iter().all(|line| !line.text(field::DETAIL).is_empty()), "{lines:?}");
    Ok(())
}

/// A sidecar, a client of the test's own with a good certificate, and an honest pair's client.
fn lying_client(
    bed: &Testbed,
    test: impl FnOnce(&Pair, &Pod, &TlsGeneration, &TcpListener) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let pair = Pair::new(bed)?;
    let liar = bed.pod("liar")?;
    let svid = identity(&bed.issue(&bed.ca()?, CLIENT, "liar")?)?;
    let listener = pair.listen(pair.server.v4(), APP)?;
    test(&pair, &liar, &svid, &listener)?;
    pair.exchange(&listener)
}

#[test]
fn what_a_client_says_before_open() {
    let said: &[(&str, &[u8])] = &[
        ("no such type", b"\x09\x00\x00\x00"),
        ("type 0", b"\x00\x00\x00\x00"),
        ("DATA", b"\x02\x00\x00\x04ping"),
        ("FIN", frame::FIN),
        ("RAW", frame::RAW),
        ("RESET", b"\x04\x00\x00\x01\x00"),
        ("GOAWAY is for servers", frame::GOAWAY),
        ("an OPEN of 7 bytes", b"\x01\x00\x00\x07"),
        ("an enormous OPEN", b"\x01\xff\xff\xff"),
        ("enormous DATA", ENORMOUS),
        ("not a tunnel at all", b"GET / HTTP/1.1\r\n\r\n"),
    ];
    run("lies-before-open", |bed| {
        lying_client(bed, |pair, liar, svid, listener| {
            for (count, (name, lie)) in (1..).zip(said) {
                let mut peer = TlsPeer::client(liar.connect(listener.local_addr()?)?, svid)?;
                assert_eq!(peer.protocol(), b"pillion/1");
                peer.send(lie)?;
                let ended = peer.read_to_end()?;
                assert_eq!(ended, (Vec::new(), TlsEnd::Reset), "{name}: nothing to reset is open");
                tunnel_errors(&pair.callee, direction::INBOUND, count)?;
                untouched(listener)?;
            }
            Ok(())
        })
    });
}

#[test]
fn what_a_client_says_within_a_stream() {
    let twice = [frame::FIN, frame::FIN].concat();
    let after_fin = [frame::FIN, &frame::data(b"late")].concat();
    let said: &[(&str, &[u8])] = &[
        ("no such type", b"\xff\x00\x00\x00"),
        ("a second OPEN", frame::OPEN),
        ("GOAWAY is for servers", frame::GOAWAY),
        ("empty DATA", b"\x02\x00\x00\x00"),
        ("DATA that is too long", TOO_LONG),
        ("enormous DATA", ENORMOUS),
        ("a FIN of 1 byte", b"\x03\x00\x00\x01\x00"),
        ("a RESET of 2 bytes", b"\x04\x00\x00\x02\x00\x00"),
        ("two FINs", &twice),
        ("DATA after FIN", &after_fin),
    ];
    run("lies-in-a-stream", |bed| {
        lying_client(bed, |pair, liar, svid, listener| {
            for (count, (name, lie)) in (1..).zip(said) {
                let mut peer = TlsPeer::client(liar.connect(listener.local_addr()?)?, svid)?;
                peer.send(frame::OPEN)?;
                let mut app = accept(listener)?;
                peer.send(&frame::data(b"true"))?;
                assert_eq!(read_exactly(&mut app, 4)?, b"true");
                peer.send(lie)?;
                // A FIN was true, and what is behind it is looked at after the stream.
                let finished = lie.starts_with(frame::FIN);
                let wanted = if finished { End::Fin } else { End::Reset };
                assert_eq!(read_to_end(&mut app)?, (Vec::new(), wanted), "{name}");
                drop(app);
                let (said, end) = peer.read_to_end()?;
                assert_eq!(end, TlsEnd::Reset, "{name}");
                // The RST may overtake what was said before it.
                let last = if finished { frame::FIN.to_vec() } else { frame::reset(13) };
                assert!(said.is_empty() || said == last, "{name}: {said:?}");
                tunnel_errors(&pair.callee, direction::INBOUND, count)?;
            }
            Ok(())
        })
    });
}

/// A client with a sidecar, and a server that is the test itself.
struct Called {
    client: Pod,
    caller: Sidecar,
    listener: TcpListener,
    svid: TlsGeneration,
}

impl Called {
    fn new(bed: &Testbed) -> Result<Self, Failure> {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let call = MeshOptions::new(policy::call(&[server.v4()], SERVER), CLIENT);
        let caller = client.mesh(bed, call.env("PILLION_WORKERS", "1"))?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let svid = identity(&bed.issue(&bed.ca()?, SERVER, "server")?)?;
        Ok(Self { client, caller, listener, svid })
    }

    /// An app that has called and said `ping` over a new tunnel: its end, and the tunnel's.
    fn called(&self) -> Result<(TcpStream, TlsPeer), Failure> {
        let mut app = self.client.connect(self.listener.local_addr()?)?;
        let mut peer = TlsPeer::server(accept(&self.listener)?, &self.svid)?;
        assert_eq!(peer.protocol(), b"pillion/1");
        assert!(peer.read_exactly(10)?.starts_with(b"\x01\x00\x00\x06"), "OPEN does not wait");
        app.write_all(b"ping")?;
        assert_eq!(peer.read_exactly(8)?, frame::data(b"ping"));
        Ok((app, peer))
    }

    /// The same, and served to its end; the tunnel is idle then.
    fn served(&self) -> Result<TlsPeer, Failure> {
        let (mut app, mut peer) = self.called()?;
        app.shutdown(std::net::Shutdown::Write)?;
        assert_eq!(peer.read_exactly(4)?, frame::FIN);
        peer.send(&[&frame::data(b"pong"), frame::FIN].concat())?;
        assert_eq!(read_to_end(&mut app)?, (b"pong".to_vec(), End::Fin));
        self.caller.wait_metric(metric::IDLE, &[], 1.0)?;
        Ok(peer)
    }
}

#[test]
fn what_a_server_says_within_a_stream() {
    let said: &[(&str, &[u8])] = &[
        ("no such type", b"\x07\x00\x00\x00"),
        ("OPEN is for clients", frame::OPEN),
        ("empty DATA", b"\x02\x00\x00\x00"),
        ("DATA that is too long", TOO_LONG),
        ("enormous DATA", ENORMOUS),
        ("a GOAWAY of 1 byte", b"\x05\x00\x00\x01\x00"),
    ];
    run("lying-server", |bed| {
        let called = Called::new(bed)?;
        for (count, (name, lie)) in (1..).zip(said) {
            let (mut app, mut peer) = called.called()?;
            peer.send(lie)?;
            assert_eq!(read_to_end(&mut app)?, (Vec::new(), End::Reset), "{name}");
            let (said, end) = peer.read_to_end()?;
            assert_eq!(end, TlsEnd::Reset, "{name}");
            assert!(said.is_empty() || said == frame::reset(13), "{name}: {said:?}");
            tunnel_errors(&called.caller, direction::OUTBOUND, count)?;
        }
        drop(called.served()?);
        Ok(())
    });
}

/// Whatever a server says on an idle tunnel, the tunnel is not used again, and the next app
/// connection is served by a new one.
#[test]
fn what_a_server_says_on_an_idle_tunnel() {
    let said: &[(&str, &[u8])] = &[
        ("GOAWAY", frame::GOAWAY),
        ("DATA after FIN", b"\x02\x00\x00\x04late"),
        ("a second FIN", frame::FIN),
        ("no such type", b"\x09\x00\x00\x00"),
        ("RESET", b"\x04\x00\x00\x01\x00"),
    ];
    run("idle-tunnel", |bed| {
        let called = Called::new(bed)?;
        for (name, lie) in said {
            let mut peer = called.served()?;
            peer.send(lie)?;
            let (bytes, end) = peer.read_to_end()?;
            println!("{name}: the sidecar ends the tunnel with {bytes:?} and {end:?}");
            called.caller.wait_metric(metric::IDLE, &[], 0.0)?;
        }
        let mut peer = called.served()?;
        peer.close()?;
        called.caller.wait_metric(metric::IDLE, &[], 0.0)?;
        let fresh = [("reused", "false")];
        let tunnels = called.caller.metric(metric::STREAMS, &fresh)?;
        assert_eq!(tunnels, said.len() as f64 + 1.0);
        drop(called.served()?);
        let reasons = called.caller.metrics()?.by(metric::CLOSED, "reason");
        assert_eq!(reasons.keys().collect::<Vec<_>>(), [reason::CLOSED], "{reasons:?}");
        Ok(())
    });
}

/// What a server may say although ours does not: RAW, codes that were added later, and DATA in any
/// split over records.
#[test]
fn what_a_server_may_say() {
    run("other-servers", |bed| {
        let called = Called::new(bed)?;
        let (mut app, mut peer) = called.called()?;
        for byte in frame::data(b"in single bytes") {
            peer.send(&[byte])?;
        }
        assert_eq!(read_exactly(&mut app, 15)?, b"in single bytes");
        peer.send(frame::GOAWAY)?;
        pass_down(&mut peer, &mut app)?;
        peer.send(&[frame::RAW, b"no more frames"].concat())?;
        peer.close()?;
        assert_eq!(read_to_end(&mut app)?, (b"no more frames".to_vec(), End::Fin));
        app.write_all(b"still here")?;
        assert_eq!(peer.read_exactly(14)?, frame::data(b"still here"));
        drop(app);
        assert_eq!(peer.read_to_end()?, (frame::FIN.to_vec(), TlsEnd::CloseNotify));

        let resets =
            [(1, reason::REFUSED_BY_PEER), (3, reason::PEER_RESET), (99, reason::PEER_RESET)];
        for (code, why) in resets {
            let (mut app, mut peer) = called.called()?;
            peer.send(&frame::reset(code))?;
            assert_eq!(read_to_end(&mut app)?, (Vec::new(), End::Reset), "{code}");
            called.caller.wait_logs(why, 1, |line| line.is(direction::OUTBOUND, why))?;
        }
        let refused = [("reason", reason::REFUSED_BY_PEER)];
        called.caller.wait_metric(metric::CLOSED, &refused, 1.0)?;
        called.caller.wait_metric(metric::CLOSED, &[("reason", reason::PEER_RESET)], 2.0)
    });
}

/// A GOAWAY within a stream does not disturb it.
fn pass_down(peer: &mut TlsPeer, app: &mut TcpStream) -> Result<(), Failure> {
    peer.send(&frame::data(b"after GOAWAY"))?;
    assert_eq!(read_exactly(app, 12)?, b"after GOAWAY");
    Ok(())
}

/// A client that is not ours and keeps the rules: one stream after another, each in one record.
#[test]
fn several_streams_of_another_client() {
    run("other-clients", |bed| {
        lying_client(bed, |pair, liar, svid, listener| {
            let mut peer = TlsPeer::client(liar.connect(listener.local_addr()?)?, svid)?;
            for _ in 0..3 {
                let whole = [frame::OPEN, &frame::data(b"ping"), frame::FIN].concat();
                peer.send(&whole)?;
                let mut app = accept(listener)?;
                assert_eq!(read_to_end(&mut app)?, (b"ping".to_vec(), End::Fin));
                app.write_all(b"pong")?;
                drop(app);
                assert_eq!(peer.read_exactly(12)?, [&frame::data(b"pong"), frame::FIN].concat());
            }
            let ok = [("direction", direction::INBOUND), ("result", "ok")];
            assert_eq!(pair.callee.metric(metric::HANDSHAKES, &ok)?, 1.0);
            peer.close()?;
            assert_eq!(peer.read_to_end()?, (Vec::new(), TlsEnd::CloseNotify));
            let (mut client, mut server) = pair.open(listener)?;
            pass(&mut client, &mut server, b"the honest one")
        })
    });
}
