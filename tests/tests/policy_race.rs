//! A policy that changes while connections come up: none slips between the old one and the new.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, STRANGER, direction, field, metric, reason};
use pillion_testbed::peer::{TlsPeer, frame, identity};
use pillion_testbed::stream::{pass, read_to_end};
use pillion_testbed::{Failure, MeshOptions, Pod, accept, policy, run, untouched};

const APP: u16 = 8080;

/// What a change denies ends within this time of the file's change: a second, but for machines that
/// do other things, too. Files that nobody watches are compared every 10 s.
const PROMPTLY: Duration = Duration::from_secs(6);

/// Of so many changes in turn, one acts within the second.
const TIMES: usize = 3;

/// A connection that is up, and the app's end of it.
fn open(client: &Pod, listener: &TcpListener) -> Result<(TcpStream, TcpStream), Failure> {
    let mut asking = client.connect(listener.local_addr()?)?;
    let mut answering = accept(listener)?;
    pass(&mut asking, &mut answering, b"a question")?;
    pass(&mut answering, &mut asking, b"its answer")?;
    Ok((asking, answering))
}

#[test]
fn a_client_denied_during_its_handshake_reaches_no_app() {
    run("denied-in-handshake", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        let files = bed.issue(&bed.ca()?, CLIENT, "client")?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let socket = client.connect(app.local_addr()?)?;
        let mut peer = TlsPeer::hesitant_client(socket, &identity(&files)?, || {
            callee.load_policy(&policy::serve(&[STRANGER]))
        })?;
        // It may be refused before it has said anything.
        let said = peer.send(&[frame::OPEN, &frame::data(b"let me in")].concat());
        println!("sent: {said:?}");
        callee.wait_ended(direction::INBOUND, reason::DENIED, 1)?;
        let ok = [("direction", direction::INBOUND), ("result", "ok")];
        assert_eq!(callee.metric(metric::HANDSHAKES, &ok)?, 1.0, "its certificate is good");
        untouched(&app)
    });
}

#[test]
fn a_server_unwanted_since_the_handshake_began_hears_nothing() {
    run("unwanted-in-handshake", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let call = |identity| policy::call(&[server.v4()], identity);
        let caller = client.mesh(bed, MeshOptions::new(call(SERVER), CLIENT))?;
        let files = bed.issue(&bed.ca()?, SERVER, "server")?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let mut asking = client.connect(listener.local_addr()?)?;
        std::io::Write::write_all(&mut asking, b"a secret")?;
        let socket = accept(&listener)?;
        let peer = TlsPeer::hesitant_server(socket, &identity(&files)?, || {
            caller.load_policy(&call(STRANGER))
        });
        caller.wait_ended(direction::OUTBOUND, reason::WRONG_IDENTITY, 1)?;
        if let Ok(mut peer) = peer {
            let (bytes, _) = peer.read_to_end()?;
            assert!(bytes.is_empty(), "{bytes:?}");
        }
        assert!(read_to_end(&mut asking)?.0.is_empty());
        Ok(())
    });
}

/// Connections come up all the time, at every moment of a change. Whatever the proxy let in by
/// the old policy ends.
#[test]
fn whatever_comes_up_around_a_change_is_gone_after_it() {
    const ROUNDS: u32 = 10;
    const CALLERS: u32 = 4;
    run("around-a-change", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        // A burst from one address also leaves connections behind whose RST conntrack has taken for
        // another's: the handshake's deadline ends them, and nothing else that is let in.
        let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
        let callee = server.mesh(bed, serve.env("PILLION_HANDSHAKE_TIMEOUT", "2s"))?;
        let call = policy::call_without_reuse(&[server.v4()], SERVER);
        let _caller = client.mesh(bed, MeshOptions::new(call, CLIENT))?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let to = app.local_addr()?;
        let mut let_in = 0;
        for round in 0..ROUNDS {
            let (over, changed) = (Instant::now() + Duration::from_millis(300), 50 + 10 * round);
            let came_up = std::thread::scope(|scope| {
                let callers: Vec<_> = (0..CALLERS)
                    .map(|_| {
                        scope.spawn(|| {
                            let mut open = Vec::new();
                            while Instant::now() < over {
                                open.extend(client.connect(to));
                                std::thread::park_timeout(Duration::from_millis(3));
                            }
                            open
                        })
                    })
                    .collect();
                std::thread::park_timeout(Duration::from_millis(changed.into()));
                callee.load_policy(&policy::serve(&[STRANGER]))?;
                let open = callers.into_iter().flat_map(|caller| {
                    caller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                });
                Ok::<Vec<TcpStream>, Failure>(open.collect())
            })?;
            // Neither end has closed anything: what has slipped through would stay.
            callee.wait_idle()?;
            // Those that reached the app got their end; the rest got theirs without it.
            while let Ok((mut stream, from)) = app.accept() {
                let_in += 1;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PROMPTLY))?;
                let (bytes, _) = read_to_end(&mut stream)?;
                assert!(bytes.is_empty(), "{from}: {bytes:?}");
            }
            for mut stream in came_up {
                let (bytes, _) = read_to_end(&mut stream)?;
                assert!(bytes.is_empty(), "{bytes:?}");
            }
            callee.load_policy(&policy::serve(&[CLIENT]))?;
        }
        let ended = [("direction", direction::INBOUND), ("reason", reason::POLICY_CHANGED)];
        let denied = [("direction", direction::INBOUND), ("reason", reason::DENIED)];
        let (ended, denied) =
            (callee.count(metric::CLOSED, &ended)?, callee.count(metric::CLOSED, &denied)?);
        println!("{let_in} reached the app, {ended} were ended, {denied} were denied");
        callee.wait_ended(direction::INBOUND, reason::POLICY_CHANGED, ended)?;
        callee.wait_ended(direction::INBOUND, reason::DENIED, denied)?;
        assert!(let_in > 0 && ended > 0 && denied > 0, "the race was none");
        Ok(())
    });
}

#[test]
fn loosening_ends_nothing_and_tightening_what_it_denies_at_once() {
    run("loosen-and-tighten", |bed| {
        let (server, client, other) = (bed.pod("srv")?, bed.pod("cli")?, bed.pod("oth")?);
        let both = policy::serve(&[CLIENT, STRANGER]);
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
        let call = |who| MeshOptions::new(policy::call(&server.addresses(), SERVER), who);
        let _client = client.mesh(bed, call(CLIENT))?;
        let _other = other.mesh(bed, call(STRANGER))?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let (mut asking, mut answering) = open(&client, &app)?;
        callee.load_policy(&both)?;
        let (mut kept, mut keeping) = open(&other, &app)?;
        pass(&mut asking, &mut answering, b"still here")?;
        assert_eq!(callee.metric(metric::TERMINATED, &[])?, 0.0);

        let mut fastest = Duration::MAX;
        for _ in 0..TIMES {
            let start = Instant::now();
            callee.set_policy(&policy::serve(&[STRANGER]))?;
            for stream in [&mut asking, &mut answering] {
                assert!(read_to_end(stream)?.0.is_empty());
            }
            let took = start.elapsed();
            println!("ended {took:?} after the file's change");
            assert!(took < PROMPTLY, "{took:?}");
            fastest = fastest.min(took);
            callee.load_policy(&both)?;
            (asking, answering) = open(&client, &app)?;
        }
        assert!(fastest < Duration::from_secs(1), "{fastest:?}");
        callee.wait_metric(metric::TERMINATED, &[("rule", "default")], TIMES as f64)?;
        let lines = callee.wait_ended(direction::INBOUND, reason::POLICY_CHANGED, TIMES)?;
        assert!(lines.iter().all(|line| line.text(field::PEER) == CLIENT), "{lines:?}");
        pass(&mut kept, &mut keeping, b"another's is")?;
        pass(&mut keeping, &mut kept, b"left alone")
    });
}
