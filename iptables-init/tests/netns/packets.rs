//! Where each connection goes: every backend, both families, each kind of rule.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::{Domain, SockRef, Socket, Type};

use crate::BACKENDS;
use crate::namespace::Namespace;

const PROXY: u32 = 1337;
const FLAGS: &[&str] = &[
    "--inbound-exclude-ports=22,3000-3010",
    "--inbound-exclude-cidrs=10.98.0.3,fd98::3",
    "--outbound-exclude-ports=25,3000-3010",
    "--outbound-exclude-cidrs=10.98.0.4,fd98::4",
    "--exclude-interfaces=tap+",
];

/// One connection, and the listener that it comes to.
struct Case {
    from: From,
    /// The address of the source, where it matters.
    source: &'static str,
    to: &'static str,
    port: u16,
    comes_to: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    App,
    ProxyUser,
    ProxyGroup,
    Peer,
}

const fn case(
    from: From,
    source: &'static str,
    to: &'static str,
    port: u16,
    comes_to: &'static str,
) -> Case {
    Case { from, source, to, port, comes_to }
}

const CASES: &[Case] = &[
    case(From::App, "", "peer", 80, "outbound"),
    case(From::App, "", "peer", 25, "peer 25"),
    case(From::App, "", "peer", 3000, "peer 3000"),
    case(From::App, "", "peer", 3010, "peer 3010"),
    case(From::App, "", "peer", 3011, "outbound"),
    case(From::App, "", "excluded", 80, "peer 80"),
    case(From::App, "", "over tap", 80, "peer 80"),
    case(From::ProxyUser, "", "peer", 80, "peer 80"),
    case(From::ProxyGroup, "", "peer", 80, "peer 80"),
    // The app talking to itself.
    case(From::App, "", "loopback", 80, "app 80"),
    case(From::App, "", "pod", 80, "app 80"),
    case(From::ProxyUser, "", "loopback", 80, "app 80"),
    // Hairpins.
    case(From::ProxyUser, "", "pod", 80, "inbound"),
    case(From::ProxyGroup, "", "pod", 80, "inbound"),
    case(From::ProxyUser, "", "pod", 22, "app 22"),
    case(From::ProxyUser, "", "pod", 15020, "app 15020"),
    // The inbound proxy dials the app.
    case(From::ProxyUser, "inbound source", "loopback", 80, "app 80"),
    case(From::ProxyUser, "inbound source", "pod", 80, "app 80"),
    case(From::Peer, "", "pod", 80, "inbound"),
    case(From::Peer, "", "pod", 22, "app 22"),
    case(From::Peer, "", "pod", 3005, "app 3005"),
    case(From::Peer, "", "pod", 15020, "app 15020"),
    case(From::Peer, "", "pod", 15021, "app 15021"),
    case(From::Peer, "excluded source", "pod", 80, "app 80"),
    case(From::Peer, "", "pod over tap", 80, "app 80"),
];

/// What the words of a case are in a family.
fn address(word: &str, v6: bool) -> IpAddr {
    let (v4, six) = match word {
        "pod" => ("10.98.0.1", "fd98::1"),
        "peer" => ("10.98.0.2", "fd98::2"),
        "excluded source" => ("10.98.0.3", "fd98::3"),
        "excluded" => ("10.98.0.4", "fd98::4"),
        "pod over tap" => ("10.97.0.1", "fd97::1"),
        "over tap" => ("10.97.0.2", "fd97::2"),
        "loopback" => ("127.0.0.1", "::1"),
        "inbound source" => ("127.0.0.6", "::6"),
        other => panic!("{other} is no address"),
    };
    if v6 { six } else { v4 }.parse().unwrap()
}

/// A pod and its peer, on two links.
fn pair() -> (Namespace, Namespace) {
    let (pod, peer) = Namespace::joined();
    peer.shell(
        "for it in 3 4; do ip addr add 10.98.0.$it/24 dev up0 \
         && ip -6 addr add fd98::$it/64 dev up0 nodad || exit 1; done",
    )
    .exits(0);
    pod.join(&peer, "tap0", ["10.97.0", "fd97:"]);
    (pod, peer)
}

fn listeners(pod: &Namespace, peer: &Namespace, v6: bool) -> Vec<(String, TcpListener)> {
    let (any, loopback) = if v6 { ("[::]", "[::1]") } else { ("0.0.0.0", "127.0.0.1") };
    let mut all = vec![
        ("outbound".to_owned(), pod.listen(&format!("{loopback}:15001"))),
        ("inbound".to_owned(), pod.listen(&format!("{any}:15006"))),
    ];
    for port in [22, 80, 3005, 15020, 15021] {
        all.push((format!("app {port}"), pod.listen(&format!("{any}:{port}"))));
    }
    for port in [25, 80, 3000, 3010] {
        all.push((format!("peer {port}"), peer.listen(&format!("{any}:{port}"))));
    }
    for (_, listener) in &all {
        listener.set_nonblocking(true).unwrap();
    }
    all
}

fn dial(namespace: &Namespace, from: From, source: Option<IpAddr>, to: SocketAddr) -> TcpStream {
    let source = source.map(|ip| SocketAddr::new(ip, 0));
    try_dial(namespace, from, source, to, Duration::from_secs(5)).unwrap()
}

fn try_dial(
    namespace: &Namespace,
    from: From,
    source: Option<SocketAddr>,
    to: SocketAddr,
    limit: Duration,
) -> std::io::Result<TcpStream> {
    namespace.inside(move || {
        // The owner match asks for the ids with which the socket was made.
        let (user, group) = match from {
            From::ProxyUser => (PROXY, 0),
            From::ProxyGroup => (0, PROXY),
            From::App | From::Peer => (0, 0),
        };
        setfsgid(Gid::from_raw(group));
        setfsuid(Uid::from_raw(user));
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        if let Some(source) = source {
            socket.set_reuse_address(true).unwrap();
            socket.bind(&source.into()).unwrap();
        }
        socket.connect_timeout(&to.into(), limit)?;
        Ok(socket.into())
    })
}

/// The listeners that have a connection waiting: it is there when the dialler has its answer.
fn reached(listeners: &[(String, TcpListener)]) -> Vec<&str> {
    let waiting = listeners.iter().filter(|(_, listener)| match listener.accept() {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    });
    waiting.map(|(name, _)| name.as_str()).collect()
}

#[test]
fn every_connection_comes_where_the_rules_say() {
    for backend in BACKENDS {
        let (pod, peer) = pair();
        pod.init(&[FLAGS, &["--backend", backend, "--no-verify"]].concat()).exits(0);
        for v6 in [false, true] {
            let listeners = listeners(&pod, &peer, v6);
            for case in CASES {
                let to = SocketAddr::new(address(case.to, v6), case.port);
                let source = (!case.source.is_empty()).then(|| address(case.source, v6));
                let dialler = if case.from == From::Peer { &peer } else { &pod };
                let connection = dial(dialler, case.from, source, to);
                let what = format!("{backend}, {to} from {source:?}");
                assert_eq!(reached(&listeners), [case.comes_to], "{what}");
                drop(connection);
            }
        }
    }
}

/// The kernel's list of connections still has one of the proxy's that its server has reset, or never
/// answered, when the app gets its port for the same server. The kernel asks nat about it no more.
#[test]
fn what_the_kernel_takes_for_an_old_connection_of_the_proxys_does_not_leave() {
    const LIMIT: Duration = Duration::from_secs(5);
    for backend in BACKENDS {
        let (pod, peer) = pair();
        pod.init(&["--backend", backend, "--no-verify"]).exits(0);
        for v6 in [false, true] {
            let listeners = listeners(&pod, &peer, v6);
            let server = &listeners.iter().find(|(name, _)| name == "peer 80").unwrap().1;
            let to = SocketAddr::new(address("peer", v6), 80);
            let from = |port| Some(SocketAddr::new(address("pod", v6), port));
            let dial = |who, port, limit| try_dial(&pod, who, from(port), to, limit);

            let reset = dial(From::ProxyUser, 40_001, LIMIT).unwrap();
            let (accepted, _) = server.accept().unwrap();
            SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
            drop(accepted);
            assert_eq!((&reset).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            drop(reset);

            let program = if v6 { "ip6tables" } else { "iptables" };
            let silence = format!("{program} -I INPUT -p tcp --dport 80 -j DROP");
            peer.shell(&silence).exits(0);
            let silent = dial(From::ProxyUser, 40_002, Duration::from_millis(200));
            assert_eq!(silent.unwrap_err().kind(), ErrorKind::TimedOut);
            peer.shell(&silence.replace("-I", "-D")).exits(0);

            for port in [40_001, 40_002] {
                let refused = dial(From::App, port, LIMIT).map(|_| ());
                let what = format!("{backend}, {to} from port {port}");
                assert_eq!(reached(&listeners), [""; 0], "{what}: {refused:?}");
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{what}");
            }
            // Any other port is a connection of its own.
            let _captured = dial(From::App, 40_003, LIMIT).unwrap();
            assert_eq!(reached(&listeners), ["outbound"], "{backend}");
        }
    }
}
