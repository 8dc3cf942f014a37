//! What kube-proxy spreads stays spread: tunnels that are used again do not pin a client to one of
//! a Service's endpoints.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, metric};
use pillion_testbed::{Context, Failure, MeshOptions, Pod, complete, let_pass, policy, run};

const APP: u16 = 8080;

/// The address of the Service; nobody has it.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

const CLIENTS: usize = 16;

/// Enough for the bound below to be a fifth.
const MOST: u64 = 60_000;

/// A slow machine makes fewer connections in this time, and is held to a wider bound.
const TIME: Duration = Duration::from_secs(40);

/// What kube-proxy does for a Service (iptables mode): each new connection of the sidecar's goes to
/// one of the endpoints at random.
fn kube_proxy(client: &Pod, endpoints: &[IpAddr]) -> Result<(), Failure> {
    for (number, endpoint) in endpoints.iter().enumerate() {
        let probability = format!("{:.6}", 1.0 / (endpoints.len() - number) as f64);
        let mut rule = client.command("iptables");
        rule.args(["-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", &SERVICE.to_string()]);
        rule.args(["-m", "owner", "--uid-owner", "1337"]);
        rule.args(["-m", "statistic", "--mode", "random", "--probability", &probability]);
        rule.args(["-j", "DNAT", "--to-destination", &endpoint.to_string()]);
        complete(&mut rule)?;
    }
    Ok(())
}

/// An app that answers one byte with one byte, and counts.
fn answer(listener: &TcpListener, done: &AtomicBool, count: &AtomicU64) -> Result<(), Failure> {
    while !done.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                let mut byte = [0];
                stream.read_exact(&mut byte).context(|| "the app reads")?;
                stream.write_all(&byte).context(|| "the app writes")?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let_pass(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A client: one connection after another, each with one byte, until there have been enough.
fn churn(to: SocketAddr, made: &AtomicU64, start: Instant) -> Result<(), Failure> {
    while made.fetch_add(1, Ordering::Relaxed) < MOST && start.elapsed() < TIME {
        let mut stream = TcpStream::connect(to).context(|| "the client connects")?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"?").context(|| "the client asks")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context(|| "the client reads")?;
        assert_eq!(answer, b"?");
    }
    Ok(())
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, Result<(), Failure>>) -> Result<(), Failure> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// With n connections and about 64 streams a tunnel there are n/64 draws among the endpoints, so
/// the relative standard deviation of one of three shares is sqrt(2 * 64 / n): 4.6% with 60,000.
/// The bound is 4.3 of them, a fifth, which chance alone exceeds about once in 20,000 runs.
#[test]
fn the_endpoints_of_a_service_have_even_shares() {
    run("balance", |bed| {
        let client = bed.pod("cli")?;
        let names = ["sv1", "sv2", "sv3"];
        let servers: Vec<Pod> =
            names.into_iter().map(|name| bed.pod(name)).collect::<Result<_, _>>()?;
        let serve = || MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
        let callees: Vec<_> =
            servers.iter().map(|pod| pod.mesh(bed, serve())).collect::<Result<_, _>>()?;
        let call = MeshOptions::new(policy::call(&[SERVICE.into()], SERVER), CLIENT);
        let caller = client.mesh(bed, call.env("PILLION_ACCESS_LOG", "denied"))?;
        kube_proxy(&client, &servers.iter().map(Pod::v4).collect::<Vec<_>>())?;
        let listeners: Vec<_> = servers
            .iter()
            .map(|pod| pod.listen(SocketAddr::new(pod.v4(), APP)))
            .collect::<Result<_, _>>()?;
        let counts: Vec<AtomicU64> = servers.iter().map(|_| AtomicU64::default()).collect();
        let to = SocketAddr::new(SERVICE.into(), APP);
        let (done, made, start) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
        std::thread::scope(|scope| {
            let (client, done, made) = (&client, &done, &made);
            let apps: Vec<_> = listeners
                .iter()
                .zip(&counts)
                .map(|(listener, count)| scope.spawn(move || answer(listener, done, count)))
                .collect();
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| scope.spawn(move || client.enter(|| churn(to, made, start))))
                .collect();
            let ended = clients.into_iter().try_for_each(joined);
            done.store(true, Ordering::Relaxed);
            let served = apps.into_iter().try_for_each(joined);
            ended.and(served)
        })?;
        let counts: Vec<f64> =
            counts.iter().map(|count| count.load(Ordering::Relaxed) as f64).collect();
        let all: f64 = counts.iter().sum();
        let even = all / counts.len() as f64;
        let bound = 4.3 * (2.0 * 64.0 / all).sqrt();
        let tunnels = caller.metric(metric::STREAMS, &[("reused", "false")])?;
        println!(
            "{all} connections in {:?} over {tunnels} tunnels: {counts:?}, bound {bound:.3}",
            start.elapsed()
        );
        assert!(all > 5_000.0, "too few to tell anything: {all}");
        for count in &counts {
            assert!((count / even - 1.0).abs() < bound, "{counts:?}: not within {bound:.3}");
        }
        assert!(tunnels < all / 25.0, "most were reused");
        drop(callees);
        Ok(())
    });
}
