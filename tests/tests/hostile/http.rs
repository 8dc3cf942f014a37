//! The three ports that speak HTTP: metrics, health and admin.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use fastrand::Rng;
use pillion_testbed::labels::{CLIENT, SERVER, metric, port};
use pillion_testbed::peer::{TlsPeer, identity};
use pillion_testbed::{Failure, MeshOptions, Pod, http_get, load, policy, run};

use crate::crowd::{Crowd, Tally, at_once};
use crate::mutation::mutated;
use crate::{APP, Round, streams, wear_down};

/// Fewer by far than a listener's 32 clients that have asked for nothing: one more would end one
/// before it is heard.
const OPEN: usize = 12;

/// Who is not answered by then has asked for nothing; a few have time, and of a million those that
/// are late are few.
const PATIENCE: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(60)];

/// Who comes from outside is turned away whatever is asked, however long that takes.
const OUTSIDE: Duration = Duration::from_secs(20);

/// One port, and from where it is reached.
struct Port {
    number: u16,
    paths: &'static [&'static str],
    /// On loopback alone: whoever comes from the network is turned away.
    loopback: bool,
}

#[test]
fn mutated_requests_to_the_metrics_leave_nothing_behind() {
    throw_at(
        "hostile-metrics",
        &Port { number: port::METRICS, paths: &["/metrics"], loopback: false },
    );
}

#[test]
fn mutated_requests_to_health_leave_nothing_behind() {
    let paths = &[
        "/healthz/ready",
        "/healthz/startup",
        "/app-health/web/readinessProbe",
        "/app-health/a/b",
    ];
    throw_at("hostile-health", &Port { number: port::HEALTH, paths, loopback: false });
}

#[test]
fn mutated_requests_to_admin_leave_nothing_behind() {
    let paths = &["/config", "/connections", "/certs", "/policy", "/logging"];
    throw_at("hostile-admin", &Port { number: port::ADMIN, paths, loopback: true });
}

fn throw_at(name: &str, at: &Port) {
    run(name, |bed| {
        let count = streams(bed.settings(), 4_000);
        let (server, liar) = (bed.pod("srv")?, bed.pod("liar")?);
        let probes =
            format!(r#"{{"/app-health/web/readinessProbe": {{"tcpSocket": {{"port": {APP}}}}}}}"#);
        let options = MeshOptions::new(policy::serve(&[CLIENT]), SERVER)
            .env("PILLION_ACCESS_LOG", "denied")
            .env("PILLION_ADMIN_CHANGES", "on")
            .env("PILLION_APP_PROBES", &probes);
        let mut callee = server.mesh(bed, options)?;
        for pod in [&server, &liar] {
            load::recycle_ports(pod)?;
        }
        let svid = identity(&bed.issue(&bed.ca()?, CLIENT, "liar")?)?;
        let mut seeds = requests(at.paths);
        seeds.push(TlsPeer::hello(&svid)?);
        let (near, to) = match at.loopback {
            true => (&server, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), at.number)),
            false => (&liar, SocketAddr::new(server.v4(), at.number)),
        };
        let [few, all] = PATIENCE;
        let patience = bed.settings().few_or(few, all);
        let told = wear_down(&mut callee, count, |round| {
            let streams =
                if at.loopback { round.streams - round.streams / 20 } else { round.streams };
            let mut told = fling(near, to, patience, &seeds, Round { streams, ..round })?;
            if at.loopback {
                let streams = round.streams - streams;
                told.add(&from_outside(
                    &liar,
                    server.v4(),
                    at.number,
                    &seeds,
                    Round { streams, ..round },
                )?);
            }
            Ok(told)
        })?;
        let answered = told.sum_of("HTTP/1.1 ");
        assert!(answered * 4 > told.sum(), "{answered} answers: most were to be parsed, {told}");
        for status in ["200", "400", "404"] {
            let some = told.sum_of(&format!("HTTP/1.1 {status}"));
            assert!(some * 200 > told.sum(), "{some} times {status}, which is too seldom: {told}");
        }
        let outside = if at.loopback { count / 20 + count / 4 / 20 } else { 0 };
        assert_eq!(callee.metric(metric::SELF_CALL, &[])?, f64::from(outside));
        for path in at.paths.iter().filter(|path| !path.starts_with("/app-health/")) {
            assert_eq!(http_get(near, to, path)?.0, 200, "{path}");
        }
        Ok(())
    });
}

/// Throws the streams from a pod.
fn fling(
    from: &Pod,
    to: SocketAddr,
    patience: Duration,
    seeds: &[Vec<u8>],
    round: Round,
) -> Result<Tally, Failure> {
    at_once(from, round.streams, |number, streams| {
        let mut random = Rng::with_seed(round.seed + u64::from(number));
        let mut crowd = Crowd::new(OPEN, patience, status);
        for _ in 0..streams {
            let bytes = mutated(seeds, &mut random);
            crowd.throw(to, &bytes, random.bool())?;
        }
        crowd.end()
    })
}

/// Who comes from the network to a port of loopback is turned away, without an answer.
fn from_outside(
    liar: &Pod,
    server: IpAddr,
    number: u16,
    seeds: &[Vec<u8>],
    round: Round,
) -> Result<Tally, Failure> {
    let told = fling(liar, SocketAddr::new(server, number), OUTSIDE, seeds, round)?;
    assert_eq!(told.sum_of("reset"), told.sum(), "{told}");
    Ok(told)
}

/// The first line of an answer.
fn status(answer: &[u8]) -> String {
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(line).into_owned()
}

/// What one may ask in good faith, in all its forms.
fn requests(paths: &[&str]) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for path in paths {
        let get = format!(
            "GET {path} HTTP/1.1\r\nHost: srv\r\nUser-Agent: kube-probe/1.33\r\nAccept: */*\r\n\r\n"
        );
        seeds.push([get.as_bytes(), get.as_bytes()].concat());
        seeds.push(get.into_bytes());
        seeds.push(
            format!("HEAD {path}?a=b HTTP/1.1\r\nHost: srv\r\nConnection: close\r\n\r\n").into(),
        );
        seeds.push(format!("GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").into());
        seeds.push(
            format!("POST {path} HTTP/1.1\r\nHost: srv\r\nContent-Length: 4\r\n\r\nbody").into(),
        );
        let chunked = "Transfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n4;a=b\r\nbody\r\n0\r\nX-A: b\r\n\r\n";
        seeds.push(format!("GET {path} HTTP/1.1\r\nHost: srv\r\n{chunked}").into());
        let upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n\r\n";
        seeds.push(format!("GET {path} HTTP/1.1\r\nHost: srv\r\n{upgrade}").into());
    }
    for filter in ["info", "warn", "pillion_proxy=info,hyper=warn", "error[a{b=c}]=warn"] {
        seeds.push(format!("PUT /logging?filter={filter} HTTP/1.1\r\nHost: srv\r\n\r\n").into());
    }
    // The preface, and SETTINGS (RFC 9113, 3.4 and 6.5).
    let settings = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64";
    seeds.push([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), settings].concat());
    seeds.push(b"OPTIONS * HTTP/1.1\r\nHost: srv\r\n\r\n".to_vec());
    seeds.push(b"CONNECT srv:80 HTTP/1.1\r\nHost: srv\r\n\r\n".to_vec());
    seeds
}
