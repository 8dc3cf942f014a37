//! Peers whose certificates end while connections are open: those go on, and nothing new begins,
//! though the tunnel is there.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use pillion_certs::generation::TlsGeneration;
use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, reason, refusal};
use pillion_testbed::peer::{TlsPeer, frame, identity};
use pillion_testbed::stream::{End, ask, read_exactly, read_to_end};
use pillion_testbed::{
    Failure, MeshOptions, Sidecar, Testbed, accept, forge, let_pass, policy, run, untouched,
};

const APP: u16 = 8080;

/// A certificate that ends in so many seconds.
const LIFE: u16 = 8;

/// A peer's certificate, and when it was made.
struct Short(TlsGeneration, Instant);

impl Short {
    fn new(bed: &Testbed, id: &str) -> Result<Self, Failure> {
        let (files, made) = (bed.directory().join("short"), Instant::now());
        forge::valid(&bed.ca()?, id, -60, LIFE.into(), &files)?;
        Ok(Self(identity(&files)?, made))
    }

    /// Returns when it has ended.
    fn expires(&self) {
        // Dates are whole seconds, and the last one counts.
        let end = self.1 + Duration::from_secs(u64::from(LIFE) + 2);
        let_pass(end.saturating_duration_since(Instant::now()));
    }
}

/// The one connection that was refused for it.
fn refused(sidecar: &Sidecar, way: &str) -> Result<(), Failure> {
    let lines = sidecar.wait_ended(way, reason::CERTIFICATE_REFUSED, 1)?;
    let expired = format!("{}: ", refusal::EXPIRED);
    assert!(lines.iter().all(|it| it.text(field::DETAIL).starts_with(&expired)), "{lines:?}");
    Ok(())
}

#[test]
fn an_expired_client_keeps_what_is_open_and_begins_nothing_in_its_tunnel() {
    run("expired-client", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let short = Short::new(bed, CLIENT)?;
        let tunnel = || TlsPeer::client(client.connect(app.local_addr()?)?, &short.0);
        let mut open = tunnel()?;
        open.send(&[frame::OPEN, &frame::data(b"ping")].concat())?;
        let mut stream = accept(&app)?;
        assert_eq!(read_exactly(&mut stream, 4)?, b"ping");
        let mut idle = tunnel()?;
        idle.send(&[frame::OPEN, frame::FIN].concat())?;
        drop(accept(&app)?);
        assert_eq!(idle.read_exactly(4)?, frame::FIN);
        callee.wait_metric(metric::IDLE, &[], 1.0)?;

        short.expires();
        stream.write_all(b"pong")?;
        assert_eq!(open.read_exactly(8)?, frame::data(b"pong"));
        open.send(&frame::data(b"more"))?;
        assert_eq!(read_exactly(&mut stream, 4)?, b"more");
        idle.send(&[frame::OPEN, &frame::data(b"once more")].concat())?;
        refused(&callee, direction::INBOUND)?;
        untouched(&app)
    });
}

#[test]
fn a_tunnel_to_an_expired_server_is_used_no_more() {
    run("expired-server", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        // Another worker has a pool of its own, and would not meet the tunnel.
        let call = MeshOptions::new(policy::call(&[server.v4()], SERVER), CLIENT)
            .env("PILLION_WORKERS", "1");
        let caller = client.mesh(bed, call)?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let short = Short::new(bed, SERVER)?;
        let mut app = client.connect(listener.local_addr()?)?;
        let mut peer = TlsPeer::server(accept(&listener)?, &short.0)?;
        assert!(peer.read_exactly(10)?.starts_with(b"\x01\x00\x00\x06"), "OPEN does not wait");
        app.write_all(b"ping")?;
        app.shutdown(Shutdown::Write)?;
        assert_eq!(peer.read_exactly(12)?, [&frame::data(b"ping"), frame::FIN].concat());
        peer.send(frame::FIN)?;
        assert_eq!(read_to_end(&mut app)?, (Vec::new(), End::Fin));
        caller.wait_metric(metric::IDLE, &[], 1.0)?;

        short.expires();
        let (client, to) = (client.clone(), listener.local_addr()?);
        let asking = std::thread::spawn(move || ask(&client, to, b"once more"));
        // Another handshake, with the certificate that has ended.
        let again = TlsPeer::server(accept(&listener)?, &short.0);
        let outcome = asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        assert!(outcome.is_turned_away(), "{outcome:?}");
        drop(again);
        refused(&caller, direction::OUTBOUND)?;
        let (said, _) = peer.read_to_end()?;
        assert!(said.is_empty(), "{said:?}");
        caller.wait_metric(metric::IDLE, &[], 0.0)
    });
}
