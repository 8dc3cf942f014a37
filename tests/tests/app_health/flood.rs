//! Many who ask, or only connect, beside the kubelet.

use socket2::{Domain, Socket, Type};

use super::*;

/// Questions at once, far more than are served.
const MANY: usize = 1000;

const QUESTION: &[u8] = b"GET /app-health/web/livenessProbe HTTP/1.0\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// An app that answers when the test does.
fn slow() -> MeshOptions {
    let slow = format!(r#"{{"httpGet":{{"port":{APP}}},"timeoutSeconds":60}}"#);
    strict(&[("web", slow)])
}

/// Somebody asks a thousand times at once while the kubelet waits for a slow app.
#[test]
fn a_flood_of_questions_neither_reaches_the_app_nor_ends_the_kubelets() {
    run("app-flood", |bed| {
        let (server, node, crowd) = (bed.pod("srv")?, bed.pod("kub")?, bed.pod("all")?);
        let mut callee = server.mesh(bed, slow())?;
        let at = server.v4();
        let app = server.listen((at, APP).into())?;
        let (told, held) = answered(&node, at, "web", || {
            let (mut stream, _) = asked(&app)?;
            let mut asking = Vec::new();
            for _ in 0..MANY {
                let mut one = crowd.connect(SocketAddr::new(at, port::HEALTH))?;
                // It may be ended before it has spoken.
                let _ = one.write_all(QUESTION);
                asking.push(one);
            }
            // The last has been seen when somebody else is served.
            assert_eq!(callee.health("/healthz/ready")?.0, 200);
            let held = callee.process().descriptors()?;
            untouched(&app)?;
            stream.write_all(OK)?;
            Ok(held)
        })?;
        assert_eq!(told, (200, "ok\n".to_owned()));
        // 256 that wait, 32 that do not, and what the proxy has anyway.
        assert!(held < 400, "{held} descriptors");
        untouched(&app)?;
        runs(&callee, "success", 1)
    });
}

/// From each of many addresses one connection, which asks nothing.
#[test]
fn a_crowd_that_asks_nothing_does_not_end_the_kubelets_questions() {
    const ADDRESSES: u8 = 40;
    const IDLE: u8 = 32;
    run("app-crowd", |bed| {
        let (server, node, crowd) = (bed.pod("srv")?, bed.pod("kub")?, bed.pod("all")?);
        let callee = server.mesh(bed, slow())?;
        let at = server.v4();
        let health = SocketAddr::new(at, port::HEALTH);
        let app = server.listen((at, APP).into())?;
        // More from one address than anybody else has.
        let mut questions = Vec::new();
        for _ in 0..2 {
            let mut one = node.connect(health)?;
            one.write_all(QUESTION)?;
            questions.push(one);
        }
        let (mut stream, _) = asked(&app)?;
        let mut idle = Vec::new();
        for host in 1..=ADDRESSES {
            idle.push(connect_from(&crowd, Ipv4Addr::new(10, 77, 1, host), health)?);
        }
        // Once the last of them is served, there is no room for this one.
        assert_eq!(
            read_to_end(&mut idle[usize::from(ADDRESSES - IDLE) - 1])?,
            (Vec::new(), End::Fin)
        );
        stream.write_all(OK)?;
        for mut one in questions {
            let (answer, _) = read_to_end(&mut one)?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        }
        runs(&callee, "success", 1)
    });
}

/// A connection from an address that the pod gets for it.
fn connect_from(pod: &Pod, source: Ipv4Addr, to: SocketAddr) -> Result<TcpStream, Failure> {
    let add = format!("addr add {source}/32 dev eth0");
    complete(pod.command("ip").args(add.split(' ')))?;
    pod.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        socket.connect_timeout(&to.into(), LIMIT)?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket.into())
    })
}

/// Each run but the first begins when the result before it is no longer fresh, however long this
/// takes. The app sees no connection that is no run.
#[test]
fn who_asks_all_the_time_has_the_app_asked_four_times_a_second() {
    const QUESTIONS: usize = 500;
    run("app-often", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let socket = format!(r#"{{"tcpSocket":{{"port":{APP}}}}}"#);
        let callee = server.mesh(bed, strict(&[("db", socket)]))?;
        let at = server.v4();
        let app = server.listen((at, APP).into())?;
        let start = Instant::now();
        for n in 0..QUESTIONS {
            assert_eq!(question(&node, at, "db")?, (200, "ok\n".to_owned()), "question {n}");
        }
        let most = 1 + start.elapsed().as_millis() / FRESH.as_millis();
        // They wait in the listener's queue.
        let seen = std::iter::from_fn(|| app.accept().ok()).count();
        assert!((1..=most).contains(&(seen as u128)), "{seen} connections, of at most {most}");
        runs(&callee, "success", seen)
    });
}
