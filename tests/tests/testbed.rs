//! The testbed itself: what the other suites take for granted.

use std::io::Write;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pillion_testbed::stream::{End, Outcome, ask, pass, read_to_end, reset};
use pillion_testbed::{Failure, accept, complete, run, run_with};

#[test]
fn three_pods_reach_each_other_and_nothing_of_the_host() {
    run("pods", |bed| {
        let pods = [bed.pod("a")?, bed.pod("b")?, bed.pod("c")?];
        for from in &pods {
            for to in &pods {
                for address in to.addresses() {
                    let listener = to.listen(SocketAddr::new(address, 8080))?;
                    let mut asking = from.connect(listener.local_addr()?)?;
                    let mut answering = accept(&listener)?;
                    pass(&mut asking, &mut answering, b"hello")?;
                }
            }
            let interfaces = complete(from.command("ip").args(["-br", "link"]))?;
            assert_eq!(interfaces.lines().count(), 2, "lo and eth0: {interfaces}");
        }
        Ok(())
    });
}

#[test]
fn without_ipv6_a_pod_has_none() {
    run_with("no-ipv6", Some(false), |bed| {
        let pod = bed.pod("a")?;
        assert_eq!(pod.addresses(), [pod.v4()]);
        let addresses = complete(pod.command("ip").args(["-6", "addr"]))?;
        assert_eq!(addresses.trim(), "");
        Ok(())
    });
}

#[test]
fn a_fin_and_a_rst_are_told_apart() {
    run("ends", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let to = SocketAddr::new(server.v4(), 8080);
        assert_eq!(ask(&client, to, b"anyone?")?, Outcome::Refused);
        let listener = server.listen(to)?;
        for end in [End::Fin, End::Reset] {
            let mut asking = client.connect(to)?;
            let mut answering = accept(&listener)?;
            answering.write_all(b"bye")?;
            pillion_testbed::stream::read_exactly(&mut asking, 3)?;
            match end {
                End::Fin => drop(answering),
                End::Reset => reset(answering)?,
            }
            assert_eq!(read_to_end(&mut asking)?, (Vec::new(), end));
        }
        Ok(())
    });
}

#[test]
fn a_panic_leaves_no_namespace_no_process_and_no_file() {
    let left = Mutex::new((String::new(), None, 0));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        run("panic", |bed| {
            let pod = bed.pod("a")?;
            // One that forks into a session of its own, out of reach of its process group.
            let daemon = pod.spawn("daemon", &mut pod.shell("setsid sleep 600 & sleep 600"))?;
            pillion_testbed::wait_until("the daemon", Duration::from_secs(5), || {
                let pids = complete(std::process::Command::new("ip").args([
                    "netns",
                    "pids",
                    pod.namespace(),
                ]))?;
                Ok((pids.lines().count() >= 3).then_some(()))
            })?;
            *left.lock().unwrap() =
                (pod.namespace().to_owned(), Some(bed.directory().to_owned()), daemon.pid());
            panic!("on purpose");
        });
    }));
    assert!(panicked.is_err());
    let (namespace, directory, pid) = left.into_inner().unwrap();
    assert!(!namespace.is_empty(), "the test came to its panic");
    assert!(!Path::new("/run/netns").join(&namespace).exists(), "{namespace} is left");
    assert!(!directory.unwrap().exists(), "the directory is left");
    assert!(!Path::new("/proc").join(pid.to_string()).exists(), "the process is left");
}

#[test]
fn a_process_is_ended_by_a_signal_and_says_how() {
    run("process", |bed| {
        let pod = bed.pod("a")?;
        let mut process = pod.spawn("sleep", pod.daemon("sleep").arg("600"))?;
        let start = Instant::now();
        process.signal(Signal::SIGTERM)?;
        assert_eq!(process.wait(Duration::from_secs(5))?, 128 + 15);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(pod.spawn("false", &mut pod.daemon("false"))?.wait(Duration::from_secs(5))?, 1);
        Ok(())
    });
}

#[test]
fn an_error_of_a_test_fails_it_with_its_message() {
    let failed = catch_unwind(|| {
        run("error", |_| Err(Failure::Unexpected("the very message".to_owned())));
    });
    let message = failed.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("the very message"), "{message}");
}
