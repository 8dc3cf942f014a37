//! The app's probes, which the kubelet asks of the proxy: it has no certificate, and no sidecar.

mod flood;

use std::fmt::Write as _;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pillion_testbed::health_service::HealthService;
use pillion_testbed::labels::{CLIENT, SERVER, STRANGER, metric, port};
use pillion_testbed::stream::{End, Outcome, ask, read_exactly, read_to_end};
use pillion_testbed::{
    Failure, MeshOptions, Pair, Pod, Process, Sidecar, accept, complete, finish, http_get,
    let_pass, policy, run, untouched, wait_until,
};

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(10);

/// So long the proxy gives who asks for the same probe the result that it has.
const FRESH: Duration = Duration::from_millis(250);

/// Where the inbound side of the proxy connects from.
const SOURCES: [&str; 2] = ["127.0.0.6", "::6"];

/// `PILLION_APP_PROBES` of `container: handler`, each as its liveness probe.
fn probes(handlers: &[(&str, String)]) -> String {
    let mut text = String::from("{");
    for (container, handler) in handlers {
        let comma = if text.len() > 1 { "," } else { "" };
        let _ = write!(text, r#"{comma}"/app-health/{container}/livenessProbe":{handler}"#);
    }
    text + "}"
}

fn http(path: &str) -> String {
    format!(r#"{{"httpGet":{{"port":{APP},"path":"{path}"}}}}"#)
}

fn strict(handlers: &[(&str, String)]) -> MeshOptions {
    MeshOptions::new(policy::serve(&[CLIENT]), SERVER).env("PILLION_APP_PROBES", &probes(handlers))
}

/// The kubelet's question: status and body. The app is asked anew.
fn kubelet(from: &Pod, at: IpAddr, container: &str) -> Result<(u16, String), Failure> {
    // The kubelet asks once a second at most.
    let_pass(FRESH);
    question(from, at, container)
}

/// The same at once.
fn question(from: &Pod, at: IpAddr, container: &str) -> Result<(u16, String), Failure> {
    let path = format!("/app-health/{container}/livenessProbe");
    http_get(from, SocketAddr::new(at, port::HEALTH), &path)
}

/// The same, while the app answers.
fn answered<T>(
    from: &Pod,
    at: IpAddr,
    container: &str,
    app: impl FnOnce() -> Result<T, Failure>,
) -> Result<((u16, String), T), Failure> {
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| kubelet(from, at, container));
        let done = app()?;
        let answer = asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((answer, done))
    })
}

/// The app's next connection, which comes from the proxy's inbound side, and what it is asked.
fn asked(app: &TcpListener) -> Result<(TcpStream, String), Failure> {
    let mut stream = accept(app)?;
    let from = stream.peer_addr()?.ip();
    assert!(SOURCES.map(|ip| ip.parse::<IpAddr>().ok()).contains(&Some(from)), "{from}");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_exactly(&mut stream, 1)?);
    }
    Ok((stream, String::from_utf8_lossy(&head).into_owned()))
}

/// Waits for the number of runs with a result.
fn runs(callee: &Sidecar, result: &str, count: usize) -> Result<(), Failure> {
    callee.wait_metric(metric::APP_PROBES, &[("result", result)], count as f64)
}

#[test]
fn what_the_app_answers_is_what_the_kubelet_gets() {
    run("app-http", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let ready = format!(
            r#"{{"httpGet":{{"port":{APP},"path":"/ready?a=b","scheme":"HTTP","httpHeaders":[{{"name":"X-Probe","value":"y"}}]}}}}"#
        );
        let callee = server.mesh(bed, strict(&[("web", ready)]))?;
        for address in server.addresses() {
            // Bound to the pod's own address alone.
            let app = server.listen(SocketAddr::new(address, APP))?;
            let outcome = ask(&node, app.local_addr()?, b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n")?;
            let alert = matches!(&outcome, Outcome::Served(bytes) if bytes.first() == Some(&21));
            assert!(alert || outcome.is_turned_away(), "the port is strict: {outcome:?}");
            untouched(&app)?;

            for (answer, status, line) in [
                ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret", 200, "ok\n"),
                ("HTTP/1.0 200 OK\r\n\r\nsecret", 200, "ok\n"),
                ("HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", 200, "ok\n"),
                ("HTTP/1.1 500 secret\r\n\r\nsecret", 500, "the app answers with status 500\n"),
                ("HTTP/1.1 404 secret\r\n\r\nsecret", 404, "the app answers with status 404\n"),
            ] {
                let (told, head) = answered(&node, address, "web", || {
                    let (mut stream, head) = asked(&app)?;
                    stream.write_all(answer.as_bytes())?;
                    Ok(head)
                })?;
                assert_eq!(told, (status, line.to_owned()), "{answer}");
                let host = SocketAddr::new(address, APP);
                assert!(head.starts_with("GET /ready?a=b HTTP/1.1\r\n"), "{head}");
                assert!(head.contains("X-Probe: y\r\n"), "{head}");
                assert!(head.contains(&format!("Host: {host}\r\n")), "{head}");
                assert!(head.contains("User-Agent: kube-probe/"), "{head}");
            }
            drop(app);
            let (status, line) = kubelet(&node, address, "web")?;
            assert!(status == 503 && line.contains("refused"), "{status} {line}");
        }
        let at = server.v4();
        assert_eq!(kubelet(&node, at, "wab")?.0, 404);
        let families = server.addresses().len();
        runs(&callee, "success", 3 * families)?;
        runs(&callee, "unhealthy", 2 * families)?;
        runs(&callee, "connect_failed", families)?;
        let said = callee.wait_message("an app's probe has changed")?;
        assert!(said.iter().all(|line| !line.mentions("secret")), "{said:?}");
        Ok(())
    });
}

#[test]
fn a_redirect_is_followed_to_another_port_of_the_app() {
    run("app-redirect", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let _callee = server.mesh(bed, strict(&[("web", http("/"))]))?;
        let at = server.v4();
        let (first, second) =
            (server.listen((at, APP).into())?, server.listen((at, APP + 1).into())?);
        for (to, status, reached) in [
            (format!("http://{at}:{}/next", APP + 1), 200, true),
            (format!("http://{at}:{}/metrics", port::METRICS), 503, false),
        ] {
            let (told, ()) = answered(&node, at, "web", || {
                let (mut stream, _) = asked(&first)?;
                write!(stream, "HTTP/1.1 307 There\r\nLocation: {to}\r\n\r\n")?;
                if reached {
                    let (mut stream, head) = asked(&second)?;
                    assert!(head.starts_with("GET /next "), "{head}");
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
                }
                Ok(())
            })?;
            assert_eq!(told.0, status, "{to}: {}", told.1);
        }
        untouched(&second)
    });
}

/// Silent from the beginning, in the middle of the head, and in the middle of the body.
#[test]
fn an_app_that_hangs_or_drips_fails_within_the_probes_time() {
    run("app-hang", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let callee = server.mesh(bed, strict(&[("web", http("/"))]))?;
        let at = server.v4();
        let app = server.listen((at, APP).into())?;
        let beginnings =
            ["", "HTTP/1.1 200 OK\r\nX-Slow: ", "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"];
        for beginning in beginnings {
            let start = Instant::now();
            let (told, ()) = answered(&node, at, "web", || {
                let (mut stream, _) = asked(&app)?;
                stream.write_all(beginning.as_bytes())?;
                if beginning.is_empty() {
                    return read_to_end(&mut stream).map(drop);
                }
                // A byte now and then, until nobody listens.
                wait_until("the end of the probe", LIMIT, || {
                    Ok(stream.write_all(b"x").is_err().then_some(()))
                })
            })?;
            assert_eq!(told, (503, "not done within 1s\n".to_owned()), "{beginning:?}");
            assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        }
        runs(&callee, "timeout", beginnings.len())
    });
}

/// Longer than the five seconds that other clients of the health port have.
#[test]
fn a_probe_may_take_the_time_that_it_was_given() {
    run("app-patient", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let slow = format!(r#"{{"httpGet":{{"port":{APP}}},"timeoutSeconds":15}}"#);
        let _callee = server.mesh(bed, strict(&[("web", slow)]))?;
        let at = server.v4();
        let app = server.listen((at, APP).into())?;
        let (told, ()) = answered(&node, at, "web", || {
            let (mut stream, _) = asked(&app)?;
            let_pass(Duration::from_secs(6));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
            Ok(())
        })?;
        assert_eq!(told, (200, "ok\n".to_owned()));
        Ok(())
    });
}

/// `openssl s_server` with a certificate of its own making, for nobody, and expired tomorrow.
fn https(server: &Pod, at: IpAddr, on: u16, options: &str) -> Result<Process, Failure> {
    let (key, certificate) = (server.path("self.key"), server.path("self.crt"));
    let make = format!(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=nobody -keyout {} -out {}",
        key.display(),
        certificate.display()
    );
    complete(&mut server.shell(&make))?;
    let to = SocketAddr::new(at, on);
    let line = format!(
        "exec openssl s_server -accept {to} -www -quiet {options} -key {} -cert {}",
        key.display(),
        certificate.display()
    );
    let process = server.spawn("https", server.daemon("bash").args(["-c", &line]))?;
    server.wait_for_port(to)?;
    Ok(process)
}

#[test]
fn an_app_with_a_certificate_of_its_own_is_asked_over_tls() {
    run("app-https", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let tls = |port: u16| format!(r#"{{"httpGet":{{"port":{port},"scheme":"HTTPS"}}}}"#);
        let ports = [
            (8443, "-tls1_3"),
            (8444, "-tls1_2"),
            (8445, "-alpn h2,http/1.1"),
            // What only the kubelet could speak.
            (8446, "-alpn h2"),
        ];
        let handlers = [
            ("new", tls(8443)),
            ("old", tls(8444)),
            ("both", tls(8445)),
            ("newest", tls(8446)),
            ("none", tls(APP)),
        ];
        let callee = server.mesh(bed, strict(&handlers))?;
        for address in server.addresses() {
            let mut serving = Vec::new();
            for (port, options) in ports {
                serving.push(https(&server, address, port, options)?);
            }
            for container in ["new", "old", "both"] {
                let told = kubelet(&node, address, container)?;
                assert_eq!(told, (200, "ok\n".to_owned()), "{container} at {address}");
            }
            let (status, line) = kubelet(&node, address, "newest")?;
            assert!(status == 503 && line.starts_with("TLS with the app: "), "{status} {line}");
        }
        let app = server.listen((server.v4(), APP).into())?;
        let (told, ()) = answered(&node, server.v4(), "none", || {
            accept(&app)?.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").map_err(Failure::from)
        })?;
        assert!(told.0 == 503 && told.1.starts_with("TLS with the app: "), "{told:?}");
        runs(&callee, "tls_failed", 1 + server.addresses().len())
    });
}

#[test]
fn a_socket_that_nobody_listens_on_fails_though_the_proxy_takes_connections() {
    run("app-socket", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let socket = format!(r#"{{"tcpSocket":{{"port":{APP}}}}}"#);
        let _callee = server.mesh(bed, strict(&[("db", socket)]))?;
        for address in server.addresses() {
            // What a probe by the kubelet itself would take for success.
            drop(node.connect(SocketAddr::new(address, APP))?);
            assert_eq!(kubelet(&node, address, "db")?.0, 503);
            let app = server.listen(SocketAddr::new(address, APP))?;
            let (told, ()) = answered(&node, address, "db", || {
                let mut stream = accept(&app)?;
                assert_eq!(read_to_end(&mut stream)?, (Vec::new(), End::Fin));
                Ok(())
            })?;
            assert_eq!(told, (200, "ok\n".to_owned()));
        }
        Ok(())
    });
}

#[test]
fn a_grpc_health_service_is_asked() {
    run("app-grpc", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let grpc = |port: u16, service: &str| {
            format!(r#"{{"grpc":{{"port":{port},"service":"{service}"}}}}"#)
        };
        let handlers = [
            ("server", format!(r#"{{"grpc":{{"port":{APP}}}}}"#)),
            ("well", grpc(APP, "well")),
            ("ill", grpc(APP, "ill")),
            ("unknown", grpc(APP, "unknown")),
            ("without", grpc(APP + 1, "")),
            ("absent", grpc(APP + 2, "")),
        ];
        let callee = server.mesh(bed, strict(&handlers))?;
        for address in server.addresses() {
            let on = |port: u16| server.listen(SocketAddr::new(address, port));
            let _with = HealthService::start(on(APP)?, true)?;
            let _without = HealthService::start(on(APP + 1)?, false)?;
            for (container, status, part) in [
                ("server", 200, "ok\n"),
                ("well", 200, "ok\n"),
                ("ill", 503, "status 2"),
                ("unknown", 503, "not found"),
                ("without", 503, "not implemented"),
                ("absent", 503, "refused"),
            ] {
                let (told, line) = kubelet(&node, address, container)?;
                assert_eq!(told, status, "{container}: {line}");
                assert!(line.contains(part) && !line.contains("secret"), "{container}: {line}");
            }
        }
        let families = server.addresses().len();
        runs(&callee, "success", 2 * families)?;
        runs(&callee, "unhealthy", 3 * families)?;
        runs(&callee, "connect_failed", families)
    });
}

#[test]
fn an_app_on_loopback_is_asked_there_when_the_policy_says_so() {
    run("app-loopback", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let callee = server.mesh(bed, strict(&[("web", http("/"))]))?;
        let app = server.listen((Ipv4Addr::LOCALHOST, APP).into())?;
        assert_eq!(kubelet(&node, server.v4(), "web")?.0, 503, "by default it is asked at its IP");
        let text =
            policy::serve(&[CLIENT]).replace("inbound:\n", "inbound:\n  appAddress: 127.0.0.1\n");
        callee.load_policy(&text)?;
        let (told, _) = answered(&node, server.v4(), "web", || {
            let (mut stream, head) = asked(&app)?;
            assert!(head.contains(&format!("Host: {}:{APP}\r\n", server.v4())), "{head}");
            Ok(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?)
        })?;
        assert_eq!(told, (200, "ok\n".to_owned()));
        Ok(())
    });
}

/// A developer's question on loopback is passed on to loopback.
#[test]
fn the_app_is_asked_where_the_proxy_was_asked() {
    run("app-own-pod", |bed| {
        let server = bed.pod("srv")?;
        let _callee = server.mesh(bed, strict(&[("web", http("/"))]))?;
        let app = server.listen((Ipv4Addr::LOCALHOST, APP).into())?;
        let (told, _) = answered(&server, Ipv4Addr::LOCALHOST.into(), "web", || {
            let (mut stream, _) = asked(&app)?;
            Ok(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?)
        })?;
        assert_eq!(told.0, 200);
        Ok(())
    });
}

#[test]
fn the_apps_health_depends_on_no_policy_and_no_certificate() {
    run("app-unready", |bed| {
        let (server, node) = (bed.pod("srv")?, bed.pod("kub")?);
        let options = strict(&[("web", http("/"))]).without_policy().without_certificates();
        let mut callee = server.mesh_unready(bed, options)?;
        let at = server.v4();
        // The app is not started yet either.
        wait_until("an answer", LIMIT, || {
            if let Some(status) = callee.process().ended()? {
                return Err(Failure::Unexpected(format!("the proxy ended with {status}")));
            }
            let Ok(told) = kubelet(&node, at, "web") else { return Ok(None) };
            Ok((told.0 == 503 && told.1.contains("refused")).then_some(()))
        })?;
        let app = server.listen((at, APP).into())?;
        let (told, _) = answered(&node, at, "web", || {
            let (mut stream, _) = asked(&app)?;
            Ok(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?)
        })?;
        assert_eq!(told.0, 200);
        assert_eq!(callee.health("/healthz/ready")?.0, 503, "the proxy itself is not ready");
        Ok(())
    });
}

#[test]
fn a_draining_proxy_still_asks_the_app() {
    run("app-drain", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let env = probes(&[("web", http("/"))]);
        let mut pair = Pair::mesh(
            bed,
            client,
            server,
            &[("PILLION_DRAIN_TIMEOUT", "60s"), ("PILLION_APP_PROBES", env.as_str())],
        )?;
        let node = bed.pod("kub")?;
        let app = pair.listen(pair.server.v4(), APP)?;
        let open = pair.open(&app)?;
        pair.callee.process().signal(Signal::SIGTERM)?;
        pair.callee.wait_message("told to stop")?;
        let (told, _) = answered(&node, pair.server.v4(), "web", || {
            let (mut stream, _) = asked(&app)?;
            Ok(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?)
        })?;
        assert_eq!(told.0, 200);
        drop(open);
        assert_eq!(pair.callee.process().wait(LIMIT)?, 0);
        Ok(())
    });
}

#[test]
fn the_log_says_once_that_it_is_ready_and_the_command_says_it_too() {
    run("ready", |bed| {
        let server = bed.pod("srv")?;
        let start = Instant::now();
        let options = MeshOptions::new(policy::serve(&[CLIENT]), SERVER).without_certificates();
        let mut callee = server.mesh_unready(bed, options)?;
        let program = bed.settings().binary("pillion-proxy")?;
        let asking = || finish(server.command(&program).arg("ready"));
        wait_until("what is pending", LIMIT, || {
            let answer = asking()?;
            assert_eq!(answer.code, Some(1));
            Ok(answer.stderr.contains("pending: certificates").then_some(()))
        })?;
        callee.issue(bed)?;
        callee.wait_ready()?;
        let most = start.elapsed();
        let answer = asking()?;
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), "ready\n"));
        // New certificates and a new policy make it no more ready than it is.
        callee.issue(bed)?;
        callee.wait_load(true, 1.0)?;
        callee.load_policy(&policy::serve(&[CLIENT, STRANGER]))?;
        let said = callee.messages("ready")?;
        let said: Vec<_> = said.iter().filter(|line| line.text("message") == "ready").collect();
        assert_eq!(said.len(), 1, "{said:?}");
        let after: u128 = said[0].text("after_ms").parse().unwrap();
        // The kernel counts starts by ticks of 10 ms.
        assert!(after <= most.as_millis() + 10, "{after} of {most:?}");
        Ok(())
    });
}
