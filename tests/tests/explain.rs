//! `explain` says what the proxy does: over many random policies and connections, the verdict and
//! the rule that it names are those of the access log.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pillion_certs::generation::{Offer, TlsGeneration};
use pillion_testbed::labels::{SERVER, TRUST_DOMAIN, field, reason};
use pillion_testbed::peer::{TlsPeer, identity};
use pillion_testbed::{Failure, LogLine, MeshOptions, Pod, Sidecar, complete, finish, policy, run};
use socket2::{Domain, Socket, Type};

/// Policies, and connections under each: in either direction, 500 cases.
const POLICIES: usize = 20;
const CONNECTIONS: usize = 25;
const PORTS: [u16; 4] = [8080, 8081, 8082, 8083];
/// Addresses of the pod that differs: 10.77.0.64 to 10.77.0.79.
const ADDRESSES: u8 = 16;
const FIRST: u8 = 64;
const WHO: [&str; 4] = ["a/x", "a/y", "b/x", "b/y"];

/// Draws policies and connections. The seed is all that a failure needs to be seen again.
struct Random(fastrand::Rng);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0.usize(..n)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        self.0.choice(from).copied().unwrap_or_else(|| unreachable!("the list is not empty"))
    }

    fn some<T: Copy>(&mut self, from: &[T]) -> Vec<T> {
        let count = 1 + self.below(2);
        (0..count).map(|_| self.pick(from)).collect()
    }

    fn address(&mut self) -> Ipv4Addr {
        let host = FIRST + u8::try_from(self.below(ADDRESSES.into())).unwrap_or(0);
        Ipv4Addr::new(10, 77, 0, host)
    }

    /// A CIDR around one of the addresses, at times with an exception.
    fn block(&mut self) -> String {
        let prefix = 28 + self.below(5);
        let low = u32::from(self.address()) & (u32::MAX << (32 - prefix));
        let cidr = format!("{}/{prefix}", Ipv4Addr::from(low));
        if prefix < 32 && self.below(4) == 0 {
            return format!("{{cidr: {cidr}, except: [{}]}}", Ipv4Addr::from(low + 1));
        }
        cidr
    }

    fn ports(&mut self) -> String {
        if self.below(2) == 0 { String::new() } else { format!("ports: {:?}, ", self.some(&PORTS)) }
    }

    fn blocks(&mut self) -> String {
        let count = 1 + self.below(2);
        let blocks: Vec<_> = (0..count).map(|_| self.block()).collect();
        format!("ipBlocks: [{}]", blocks.join(", "))
    }

    fn from(&mut self) -> String {
        let patterns =
            ["a/x", "b/y", "spiffe://cluster.local/ns/*/sa/x", "spiffe://cluster.local/ns/b/**"];
        let identities = |this: &mut Self| format!("identities: {:?}", this.some(&patterns));
        match self.below(5) {
            0 => "{any: true}".to_owned(),
            1 => format!("{{{}}}", self.blocks()),
            2 => format!("{{{}}}", identities(self)),
            _ => format!("{{{}, {}}}", self.blocks(), identities(self)),
        }
    }

    fn inbound(&mut self) -> String {
        let mut rules = String::new();
        for number in 0..=self.below(6) {
            let action = self.pick(&["allow", "allow", "deny"]);
            let mode = self.pick(&["enforce", "enforce", "audit"]);
            let (ports, from) = (self.ports(), self.from());
            rules += &format!(
                "  - {{name: r{number}, action: {action}, mode: {mode}, {ports}from: [{from}]}}\n"
            );
        }
        let enforcement = self.pick(&["enforce", "enforce", "enforce", "audit"]);
        let (mtls, default) = (self.pick(&["strict", "permissive"]), self.pick(&["deny", "allow"]));
        policy::with_body(&format!(
            "enforcement: {enforcement}\ninbound:\n  mtls: {mtls}\n  defaultAction: {default}\n  \
             ports: {{8081: {{mtls: strict}}, 8082: {{mtls: permissive}}, 8083: {{mtls: disable}}}}\n  \
             rules:\n{rules}outbound: {{defaultAction: passthrough}}\n"
        ))
    }

    fn outbound(&mut self) -> String {
        let mut destinations = String::new();
        for number in 0..=self.below(5) {
            let action = self.pick(&["deny", "passthrough", "mtls, serverIdentities: [a/x]"]);
            let (ports, blocks) = (self.ports(), self.blocks());
            destinations +=
                &format!("  - {{name: d{number}, {ports}{blocks}, action: {action}}}\n");
        }
        let enforcement = self.pick(&["enforce", "enforce", "audit"]);
        let default = self.pick(&["deny", "passthrough"]);
        policy::with_body(&format!(
            "enforcement: {enforcement}\ninbound: {{mtls: strict, defaultAction: deny}}\n\
             outbound:\n  defaultAction: {default}\n  destinations:\n{destinations}"
        ))
    }
}

/// A random policy that the proxy takes, in a file. One with a rule that decides nothing is an
/// error, and another is drawn.
fn good_policy(pod: &Pod, draw: &mut dyn FnMut() -> String) -> Result<(String, String), Failure> {
    let file = pod.path("explained.yaml").display().to_string();
    loop {
        let text = draw();
        fs::write(&file, &text)?;
        let mut check = Command::new(pod.settings().binary("pillion-proxy")?);
        check.args(["check", "-f", &file, "--trust-domain", TRUST_DOMAIN]);
        if finish(&mut check)?.code == Some(0) {
            return Ok((text, file));
        }
    }
}

/// The verdict and the rule that `explain` names.
fn explained(pod: &Pod, file: &str, about: &[String]) -> Result<(String, String), Failure> {
    let mut explain = Command::new(pod.settings().binary("pillion-proxy")?);
    explain.args(["explain", "-f", file, "--trust-domain", TRUST_DOMAIN]).args(about);
    let said = finish(&mut explain)?.stdout;
    let (verdict, rest) = said.split_once("  by ").unwrap_or_default();
    let (rule, _) = rest.split_once(": ").unwrap_or_default();
    Ok((verdict.to_owned(), rule.to_owned()))
}

/// Gives a pod the addresses that policies tell apart.
fn add_addresses(pod: &Pod) -> Result<(), Failure> {
    for host in FIRST..FIRST + ADDRESSES {
        let address = format!("10.77.0.{host}/24");
        complete(pod.command("ip").args(["addr", "add", &address, "dev", "eth0"]))?;
    }
    Ok(())
}

/// Runs `cases` while an app accepts on all ports, and ends every connection at once.
fn serving(
    app: &[TcpListener],
    cases: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A failed assertion ends the app, too.
        let _over = Over(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let accepted = app.iter().filter_map(|listener| listener.accept().ok()).count();
                if accepted == 0 {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
        });
        cases()
    })
}

/// One connection from `source`, as `who`.
fn call(
    client: &Pod,
    source: Ipv4Addr,
    to: SocketAddr,
    who: Option<&TlsGeneration>,
) -> Result<(), Failure> {
    client.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source.into(), 0).into())?;
        socket.connect(&to.into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        match who {
            // A refusal ends the handshake, or what comes after it.
            Some(identity) => {
                drop(TlsPeer::client_that_offers(stream, identity, Offer::Single).and_then(
                    |mut peer| {
                        peer.close()?;
                        peer.read_to_end()
                    },
                ))
            }
            None => {
                // Refused early, it may be gone already.
                let _ = stream.write_all(b"hello\n");
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
        Ok(())
    })
}

/// The log line of the connection that was the last of `count`, from `source` to `to`. Ports are
/// not compared: where two connections differ by their destinations alone, the redirect makes
/// them the same, and so conntrack gives one of them another source port.
fn logged(
    sidecar: &Sidecar,
    count: usize,
    source: Ipv4Addr,
    to: SocketAddr,
) -> Result<LogLine, Failure> {
    let line = sidecar.wait_logs(&format!("{source} to {to}"), count, |_| true)?.into_iter().last();
    let ours = line.filter(|line| {
        line.text(field::DESTINATION) == to.to_string()
            && line.text("source").starts_with(&format!("{source}:"))
    });
    ours.ok_or_else(|| Failure::Unexpected(format!("another connection than {source} to {to}")))
}

#[test]
fn inbound_verdicts_are_explained_as_they_are_given() {
    run("explain-inbound", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        add_addresses(&client)?;
        let mut identities = BTreeMap::new();
        for who in WHO {
            let (namespace, account) = who.split_once('/').unwrap_or_default();
            let id = format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}");
            let files = bed.issue(&bed.ca()?, &id, &who.replace('/', "-"))?;
            identities.insert(id, identity(&files)?);
        }
        let callee = server.mesh(bed, MeshOptions::new(policy::serve(&["a/x"]), SERVER))?;
        let listen = |port| server.listen(SocketAddr::new(server.v4(), port));
        let app: Vec<_> = PORTS.into_iter().map(listen).collect::<Result<_, _>>()?;
        serving(&app, || inbound_cases(&server, &client, &callee, &identities))
    });
}

fn inbound_cases(
    server: &Pod,
    client: &Pod,
    callee: &Sidecar,
    identities: &BTreeMap<String, TlsGeneration>,
) -> Result<(), Failure> {
    let mut random = Random(fastrand::Rng::with_seed(1));
    let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut count = 0;
    for _ in 0..POLICIES {
        let (text, file) = good_policy(server, &mut || random.inbound())?;
        callee.load_policy(&text)?;
        for _ in 0..CONNECTIONS {
            let (source, port) = (random.address(), random.pick(&PORTS));
            // TLS to a disabled port is the app's own: no peer has an identity there.
            let plain = port == 8083 || random.below(4) == 0;
            let who = identities.iter().nth(random.below(identities.len())).filter(|_| !plain);
            let to = SocketAddr::new(server.v4(), port);
            call(client, source, to, who.map(|(_, identity)| identity))?;
            let mut about = vec![format!("--source={source}"), format!("--port={port}")];
            about.extend(who.map(|(id, _)| format!("--identity={id}")));
            let (verdict, rule) = explained(server, &file, &about)?;
            count += 1;
            let line = logged(callee, count, source, to)?;
            let place =
                format!("{about:?}: explained {verdict} by {rule}, logged {line:?}\n{text}");
            if rule == "tls" {
                assert_eq!(line.reason(), reason::PLAINTEXT_REFUSED, "{place}");
            } else {
                assert_eq!(
                    (line.text("verdict"), line.text(field::RULE)),
                    (verdict.clone(), rule.clone()),
                    "{place}"
                );
            }
            *seen.entry((verdict, rule)).or_default() += 1;
        }
    }
    varied(&seen, POLICIES * CONNECTIONS)
}

/// That the cases were not all of one kind.
fn varied(seen: &BTreeMap<(String, String), usize>, cases: usize) -> Result<(), Failure> {
    println!("{seen:?}");
    let most = seen.values().max().copied().unwrap_or_default();
    if seen.values().sum::<usize>() == cases && seen.len() >= 8 && most < cases / 2 {
        return Ok(());
    }
    Err(Failure::Unexpected(format!("the cases are too much alike: {seen:?}")))
}

#[test]
fn outbound_verdicts_are_explained_as_they_are_given() {
    run("explain-outbound", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        add_addresses(&server)?;
        let caller = client.mesh(bed, MeshOptions::new(policy::pass(), SERVER))?;
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let listen = |port| server.listen(SocketAddr::new(any, port));
        let app: Vec<_> = PORTS.into_iter().map(listen).collect::<Result<_, _>>()?;
        serving(&app, || outbound_cases(&client, &caller))
    });
}

fn outbound_cases(client: &Pod, caller: &Sidecar) -> Result<(), Failure> {
    let mut random = Random(fastrand::Rng::with_seed(2));
    let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut count = 0;
    let IpAddr::V4(own) = client.v4() else { return Err(Failure::Unexpected("IPv4".to_owned())) };
    for _ in 0..POLICIES {
        let (text, file) = good_policy(client, &mut || random.outbound())?;
        caller.load_policy(&text)?;
        for _ in 0..CONNECTIONS {
            let (dest, port) = (random.address(), random.pick(&PORTS));
            let to = SocketAddr::new(dest.into(), port);
            call(client, own, to, None)?;
            let about = [
                "--direction=outbound".to_owned(),
                format!("--dest={dest}"),
                format!("--port={port}"),
            ];
            let (verdict, rule) = explained(client, &file, &about)?;
            count += 1;
            let line = logged(caller, count, own, to)?;
            let way = if verdict == "deny" { "" } else { verdict.as_str() };
            let allowed = if verdict == "deny" { "deny" } else { "allow" };
            assert_eq!(
                (
                    line.text("verdict").as_str(),
                    line.text(field::TLS).as_str(),
                    line.text(field::RULE)
                ),
                (allowed, way, rule.clone()),
                "{about:?}: {line:?}\n{text}"
            );
            *seen.entry((verdict, rule)).or_default() += 1;
        }
    }
    varied(&seen, POLICIES * CONNECTIONS)
}
