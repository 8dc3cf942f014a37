//! The redirect rules: what is installed, that a second run changes nothing, and how it goes away.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pillion_testbed::labels::init;
use pillion_testbed::stream::{Outcome, ask, pass};
use pillion_testbed::{
    Context, Failure, Pair, Pod, accept, complete, finish, run, run_with, wait_until,
};

const APP: u16 = 8080;

/// The lines of an `iptables-save` that are ours to decide: without comments, counters and the
/// chains that are always there.
fn rules(saved: &str) -> Vec<String> {
    saved
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .filter(|line| !BUILT_IN.iter().any(|chain| line.starts_with(chain)))
        .map(|line| match (line.starts_with(':'), line.split_once(" [")) {
            (true, Some((chain, _counters))) => chain.to_owned(),
            _ => line.to_owned(),
        })
        .collect()
}

const BUILT_IN: [&str; 5] = [":PREROUTING ", ":INPUT ", ":FORWARD ", ":OUTPUT ", ":POSTROUTING "];

/// What the project says that the rules are, for `v4` or `v6`.
fn canonical(family: &str) -> Result<Vec<String>, Failure> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../iptables-init/canonical")
        .join(format!("{family}.rules"));
    Ok(rules(&fs::read_to_string(&path).context(|| path.display().to_string())?))
}

/// What is in the tables of a pod, by one of the `save` programs.
fn saved(pod: &Pod, program: &str) -> Result<Vec<String>, Failure> {
    let table = |name| complete(pod.command(program).args(["-t", name]));
    Ok([rules(&table("nat")?), rules(&table("filter")?)].concat())
}

/// The save programs of a backend (empty: the system's default), with the family of each.
fn savers(pod: &Pod, backend: &str) -> Vec<(&'static str, String)> {
    let infix = match backend {
        "" => String::new(),
        // It has no programs, and writes what nft's write.
        "netlink" => "-nft".to_owned(),
        _ => format!("-{backend}"),
    };
    let families = [("v4", "iptables"), ("v6", "ip6tables")];
    families
        .into_iter()
        .take(pod.addresses().len())
        .map(|(family, program)| (family, format!("{program}{infix}-save")))
        .collect()
}

fn check_canonical(pod: &Pod, backend: &str) -> Result<(), Failure> {
    for (family, program) in savers(pod, backend) {
        assert_eq!(saved(pod, &program)?, canonical(family)?, "{program}");
    }
    Ok(())
}

fn check_nothing(pod: &Pod, backend: &str) -> Result<(), Failure> {
    for (_, program) in savers(pod, backend) {
        let left = saved(pod, &program)?;
        assert!(!left.iter().any(|line| line.contains("PILLION")), "{program}: {left:?}");
    }
    Ok(())
}

#[test]
fn the_rules_are_the_canonical_ones_and_a_second_run_changes_nothing() {
    run("init", |bed| {
        let pod = bed.pod("pod")?;
        check_nothing(&pod, "")?;
        for _ in 0..3 {
            complete(&mut pod.init()?)?;
            check_canonical(&pod, "")?;
        }
        Ok(())
    });
}

#[test]
fn every_backend_gets_the_same_rules() {
    run("init-backends", |bed| {
        for backend in ["netlink", "nft", "legacy"] {
            let pod = bed.pod(backend)?;
            complete(pod.init()?.args([init::BACKEND, backend]))?;
            check_canonical(&pod, backend)?;
            // Reading legacy tables with its own program would make them: the kernel's list is
            // read instead.
            // The file is absent where nobody has ever asked for a legacy table.
            let list = "cat /proc/net/ip_tables_names 2> /dev/null || true";
            let tables = complete(&mut pod.shell(list))?;
            let is_legacy = tables.lines().any(|table| table == "nat");
            assert_eq!(is_legacy, backend == "legacy", "legacy tables: {tables:?}");
        }
        Ok(())
    });
}

#[test]
fn a_change_of_backend_leaves_no_stale_rules() {
    run("init-switch", |bed| {
        let pod = bed.pod("pod")?;
        for (new, old) in [("legacy", "nft"), ("netlink", "legacy"), ("legacy", "netlink")] {
            complete(pod.init()?.args([init::BACKEND, old]))?;
            complete(pod.init()?.args([init::BACKEND, new]))?;
            check_canonical(&pod, new)?;
            check_nothing(&pod, old)?;
        }
        Ok(())
    });
}

#[test]
fn cleanup_removes_all() {
    run("init-cleanup", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        complete(&mut client.init()?)?;
        check_canonical(&client, "")?;
        let to = SocketAddr::new(server.v4(), APP);
        let listener = server.listen(to)?;
        // No proxy runs behind the rules: what the app dials is refused.
        let outcome = ask(&client, to, b"captured?")?;
        assert_eq!(outcome, Outcome::Refused, "the rules are in force");

        for _ in 0..2 {
            complete(client.init()?.arg(init::CLEANUP))?;
            check_nothing(&client, "")?;
            let lo = complete(client.command("ip").args(["addr", "show", "dev", "lo"]))?;
            assert!(!lo.contains("::6/128"), "{lo}");
        }
        let mut asking = client.connect(to)?;
        let mut answering = accept(&listener)?;
        pass(&mut asking, &mut answering, b"not captured")
    });
}

/// The proxy dials its app from this address; without it every IPv6 call would hang.
#[test]
fn the_inbound_source_address_is_there() {
    run("init-source", |bed| {
        let pod = bed.pod("pod")?;
        complete(&mut pod.init()?)?;
        if pod.addresses().len() > 1 {
            let lo = complete(pod.command("ip").args(["-6", "addr", "show", "dev", "lo"]))?;
            assert!(lo.contains("::6/128"), "{lo}");
        }
        Ok(())
    });
}

#[test]
fn ipv6_off_is_a_clean_skip() {
    run_with("init-ipv6-off", Some(false), |bed| {
        let pod = bed.pod("pod")?;
        complete(&mut pod.init()?)?;
        check_canonical(&pod, "")?;
        complete(pod.init()?.arg(init::CLEANUP))?;
        check_nothing(&pod, "")
    });
}

/// Counts a live download while the rules are installed ten times more.
#[test]
fn a_live_download_survives_re_runs() {
    const STEP: u64 = 1 << 20;
    run("init-live", |bed| {
        let pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (mut client, mut server) = pair.open(&listener)?;
        let (stop, read) = (AtomicBool::new(false), AtomicU64::new(0));
        let (sent, received) = std::thread::scope(|scope| {
            let sending = scope.spawn(|| -> Result<u64, Failure> {
                let chunk = vec![7; 64 << 10];
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    server.write_all(&chunk).context(|| "the server's write")?;
                    sent += 64 << 10;
                }
                server.shutdown(Shutdown::Write)?;
                Ok(sent)
            });
            let receiving = scope.spawn(|| count(&mut client, &read));
            let reruns = (0..10).try_for_each(|_| {
                for pod in [&pair.client, &pair.server] {
                    complete(&mut pod.init()?)?;
                }
                let before = read.load(Ordering::Relaxed);
                wait_until("more of the download", Duration::from_secs(10), || {
                    Ok((read.load(Ordering::Relaxed) > before + STEP).then_some(()))
                })
            });
            stop.store(true, Ordering::Relaxed);
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<u64, Failure>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let (sent, received) = (join(sending), join(receiving));
            reruns.and(Ok((sent?, received?)))
        })?;
        println!("{sent} bytes went through ten re-runs");
        assert_eq!(received, sent);
        check_canonical(&pair.client, "")?;
        // New connections are captured as before, too.
        let (mut client, mut server) = pair.open(&listener)?;
        pass(&mut client, &mut server, b"still in the mesh")?;
        drop((client, server));
        pair.check_meshed()
    });
}

/// Reads to the FIN, counting into `read` on the way.
fn count(stream: &mut std::net::TcpStream, read: &AtomicU64) -> Result<u64, Failure> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(read.load(Ordering::Relaxed)),
            Ok(bytes) => {
                read.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(|| "the client's read"),
        }
    }
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    run("init-errors", |bed| {
        let pod = bed.pod("pod")?;
        let binary = pod.settings().binary("pillion-init")?;

        let unknown = finish(pod.init()?.arg("--no-such-flag"))?;
        assert!(unknown.code.is_some_and(|code| code != 0), "{unknown:?}");
        assert!(unknown.stderr.contains("--no-such-flag"), "{unknown:?}");
        check_nothing(&pod, "")?;

        // Without NET_ADMIN nothing can be installed.
        let powerless = finish(&mut pod.daemon_as("1337", binary))?;
        assert!(powerless.code.is_some_and(|code| code != 0), "{powerless:?}");
        assert!(powerless.stderr.contains("NET_ADMIN"), "the cure is named: {powerless:?}");
        check_nothing(&pod, "")
    });
}
