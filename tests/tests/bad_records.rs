//! What is no TLS, or bad TLS, on a port that wants mTLS: an alert or a reset at once, no byte to
//! the app, and no more work than for an honest handshake.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pillion_certs::generation::TlsGeneration;
use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, reason};
use pillion_testbed::peer::{TlsPeer, frame, identity};
use pillion_testbed::stream::{End, read_exactly, read_to_end};
use pillion_testbed::{
    Failure, MeshOptions, Pod, Sidecar, Testbed, accept, policy, run, untouched,
};

const APP: u16 = 8080;

/// It takes a thousandth of a second; a machine that does other things, too, takes longer. What
/// would be waited for is the handshake's deadline, of 10 s.
const AT_ONCE: Duration = Duration::from_secs(8);

/// A strict server, and a client that has no sidecar but a good certificate.
struct Strict {
    liar: Pod,
    callee: Sidecar,
    app: TcpListener,
    svid: TlsGeneration,
}

impl Strict {
    fn new(bed: &Testbed) -> Result<Self, Failure> {
        let (server, liar) = (bed.pod("srv")?, bed.pod("liar")?);
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
        let callee = server.mesh(bed, serve.env("PILLION_WORKERS", "1"))?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let svid = identity(&bed.issue(&bed.ca()?, CLIENT, "liar")?)?;
        Ok(Self { liar, callee, app, svid })
    }

    fn connect(&self) -> Result<TcpStream, Failure> {
        self.liar.connect(self.app.local_addr()?)
    }

    /// A client in order, whose app connection is open: its end and the app's.
    fn stream(&self) -> Result<(TlsPeer, TcpStream), Failure> {
        let mut peer = TlsPeer::client(self.connect()?, &self.svid)?;
        peer.send(frame::OPEN)?;
        let mut app = accept(&self.app)?;
        peer.send(&frame::data(b"true"))?;
        assert_eq!(read_exactly(&mut app, 4)?, b"true");
        Ok((peer, app))
    }

    /// So many have ended for a reason, each with its line.
    fn ended(&self, why: &str, count: usize) -> Result<(), Failure> {
        let labels = [("direction", direction::INBOUND), ("reason", why)];
        self.callee.wait_metric(metric::CLOSED, &labels, count as f64)?;
        let is = |line: &pillion_testbed::LogLine| line.is(direction::INBOUND, why);
        let lines = self.callee.wait_logs(why, count, is)?;
        assert_eq!(lines.len(), count, "one line each");
        assert!(lines.iter().all(|line| !line.text(field::DETAIL).is_empty()), "{lines:?}");
        Ok(())
    }
}

/// One plaintext TLS alert record, and a fatal one: type 21, version, length 2, level and
/// description.
fn is_fatal_alert(bytes: &[u8]) -> bool {
    matches!(bytes, [21, 3, _, 0, 2, 2, _])
}

#[test]
fn what_is_no_tls_is_told_so_at_once() {
    let said: &[(&str, &[u8])] = &[
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: srv\r\n\r\n"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("SSLv2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80\x02\x00\x80\x03"),
        ("zeros", &[0; 64]),
        ("garbage", b"\xde\xad\xbe\xef\x16\x03\x01\x00\x05"),
        ("an alert", b"\x15\x03\x03\x00\x02\x02\x28"),
        ("data before a hello", b"\x17\x03\x03\x00\x04data"),
        ("change_cipher_spec before a hello", b"\x14\x03\x03\x00\x01\x01"),
        ("an empty record", b"\x16\x03\x01\x00\x00"),
        ("an oversize record", b"\x16\x03\x01\xff\xff\x01\x00\xff\xfa"),
        ("a hello of 16 MiB", b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"),
        ("another message than a hello", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"),
    ];
    run("no-tls", |bed| {
        let strict = Strict::new(bed)?;
        for (count, (name, bytes)) in (1..).zip(said) {
            let mut stream = strict.connect()?;
            let start = Instant::now();
            stream.write_all(bytes)?;
            let (answer, end) = read_to_end(&mut stream)?;
            let took = start.elapsed();
            println!("{name}: {answer:02x?} and {end:?} after {took:?}");
            assert!(took < AT_ONCE, "{name}: {took:?}");
            // An alert is not answered by one, and rustls has none for a message that is too long.
            let silent = matches!(*name, "an alert" | "a hello of 16 MiB") && answer.is_empty();
            assert!(silent || is_fatal_alert(&answer), "{name}: {answer:02x?}");
            strict.ended(reason::PLAINTEXT_REFUSED, count)?;
            untouched(&strict.app)?;
        }
        Ok(())
    });
}

/// After a good `ClientHello`, and before the client's Finished.
#[test]
fn what_may_not_come_within_a_handshake_ends_it() {
    let said: &[(&str, &[u8])] = &[
        ("data in the clear", b"\x17\x03\x03\x00\x04data"),
        ("an oversize record", &[0x17, 3, 3, 0xff, 0xff]),
        ("an empty record", b"\x17\x03\x03\x00\x00"),
        ("another hello", b"\x16\x03\x03\x00\x04\x01\x00\x00\x00"),
        ("no such type", b"\x63\x03\x03\x00\x01\x00"),
        ("a bad change_cipher_spec", b"\x14\x03\x03\x00\x01\x02"),
    ];
    run("bad-handshake", |bed| {
        let strict = Strict::new(bed)?;
        let hello = TlsPeer::hello(&strict.svid)?;
        for (count, (name, bytes)) in (1..).zip(said) {
            let mut stream = strict.connect()?;
            stream.write_all(&hello)?;
            // The server's first flight has begun.
            assert_eq!(read_exactly(&mut stream, 1)?, [22], "{name}");
            let start = Instant::now();
            stream.write_all(bytes)?;
            let (_, end) = read_to_end(&mut stream)?;
            println!("{name}: {end:?} after {:?}", start.elapsed());
            assert!(start.elapsed() < AT_ONCE, "{name}: {:?}", start.elapsed());
            strict.ended(reason::HANDSHAKE_FAILED, count)?;
            untouched(&strict.app)?;
        }
        Ok(())
    });
}

/// After the handshake nothing is believed that is not sealed with its key.
#[test]
fn what_may_not_come_after_a_handshake_ends_the_stream() {
    let said: &[(&str, &[u8])] = &[
        ("data that is not sealed", b"\x17\x03\x03\x00\x20not sealed with any key whatsoever"),
        ("an oversize record", &[0x17, 3, 3, 0x41, 0x02]),
        ("an empty record", b"\x17\x03\x03\x00\x00"),
        ("a handshake in the clear", b"\x16\x03\x03\x00\x04\x01\x00\x00\x00"),
        ("an alert in the clear", b"\x15\x03\x03\x00\x02\x01\x00"),
    ];
    run("bad-records", |bed| {
        let strict = Strict::new(bed)?;
        for (count, (name, bytes)) in (1..).zip(said) {
            let (mut peer, mut app) = strict.stream()?;
            peer.inject(bytes)?;
            let start = Instant::now();
            assert_eq!(read_to_end(&mut app)?, (Vec::new(), End::Reset), "{name}");
            assert!(start.elapsed() < AT_ONCE, "{name}: {:?}", start.elapsed());
            strict.ended(reason::TLS_ERROR, count)?;
        }
        Ok(())
    });
}

/// Floods that cost the sender nothing: they end, or they cost us little.
#[test]
fn floods_of_empty_messages_cost_no_more_than_handshakes() {
    run("floods", |bed| {
        let mut strict = Strict::new(bed)?;
        let before = strict.callee.process().cpu()?;
        let honest = 20;
        for _ in 0..honest {
            drop(strict.stream()?);
        }
        strict.callee.wait_idle()?;
        let a_handshake = (strict.callee.process().cpu()? - before) / honest;
        println!("an honest connection takes {a_handshake:?}");

        let hello = TlsPeer::hello(&strict.svid)?;
        let change_cipher_specs = b"\x14\x03\x03\x00\x01\x01".repeat(10_000);
        for round in 1..=5 {
            let mut stream = strict.connect()?;
            stream.write_all(&hello)?;
            assert_eq!(read_exactly(&mut stream, 1)?, [22]);
            let before = strict.callee.process().cpu()?;
            // It is reset before the end of it.
            let _ = stream.write_all(&change_cipher_specs);
            let _ = read_to_end(&mut stream)?;
            strict.ended(reason::HANDSHAKE_FAILED, round)?;
            let cost = strict.callee.process().cpu()? - before;
            println!("change_cipher_spec 10,000 times: {cost:?}");
            assert!(cost < 4 * a_handshake + Duration::from_millis(20), "{cost:?}");
        }

        let (mut peer, mut app) = strict.stream()?;
        let before = strict.callee.process().cpu()?;
        let updates = 5_000;
        let updated = peer.update_keys(updates);
        let alive = updated.is_ok() && peer.send(&frame::data(b"still")).is_ok();
        if alive {
            assert_eq!(read_exactly(&mut app, 5)?, b"still");
        }
        let cost = strict.callee.process().cpu()? - before;
        println!("{updates} key updates: {cost:?}, and the connection lives: {alive}");
        assert!(cost < updates * Duration::from_micros(400), "{cost:?}");
        drop((peer, app));
        strict.callee.wait_idle()
    });
}
