//! The images, in pods made of containers: one keeps the network namespace, `pillion-init` runs to
//! its end, `pillion-proxy` stays, and the app comes last; each with the rights that production
//! gives it. `make test-image` builds the images and runs this.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pillion_testbed::labels::{CLIENT, SERVER, direction, metric, port, reason};
use pillion_testbed::{
    CONFINED, Container, Failure, Finished, MeshOptions, Metrics, Pod, Testbed, accept, complete,
    http_get, policy, run, wait_until,
};

/// The images: what is tested, and what is tested with.
const PROXY: &str = "pillion-proxy";
const INIT: &str = "pillion-init";
const INIT_IPTABLES: &str = "pillion-init:iptables";
const APPS: &str = "pillion-base/app";

const LIMIT: Duration = Duration::from_secs(20);

/// A pod of containers with its sidecar.
struct Meshed {
    proxy: Container,
    pod: Pod,
    _keeper: Container,
}

/// Runs `pillion-init` to its end.
fn init(pod: &Pod, image: &str, backend: &str) -> Result<(), Failure> {
    // The legacy kernel interface wants one more.
    let raw: &[&str] = if backend == "legacy" { &["--cap-add=NET_RAW"] } else { &[] };
    let backend = format!("--env=PILLION_INIT_BACKEND={backend}");
    let options = [&CONFINED[..], &["--cap-add=NET_ADMIN", &backend], raw].concat();
    let init = pod.container("init", image, &options, &[])?;
    let code = init.wait(LIMIT)?;
    if code == 0 {
        Ok(())
    } else {
        Err(Failure::Unexpected(format!("{code}: {}", init.printed()?)))
    }
}

fn sidecar(
    pod: &Pod,
    folders: &(impl AsRef<Path>, impl AsRef<Path>),
    extra: &[&str],
) -> Result<Container, Failure> {
    let policy = format!("--volume={}:/etc/pillion:ro", folders.0.as_ref().display());
    let tls = format!("--volume={}:/var/run/secrets/spiffe.io:ro", folders.1.as_ref().display());
    let options =
        [&CONFINED[..], &[policy.as_str(), tls.as_str(), "--memory=256m"], extra].concat();
    pod.container("proxy", PROXY, &options, &[])
}

fn healthy(pod: &Pod) -> bool {
    http_get(pod, ([127, 0, 0, 1], port::HEALTH).into(), "/healthz/ready")
        .is_ok_and(|(status, _)| status == 200)
}

fn wait_ready(pod: &Pod) -> Result<(), Failure> {
    wait_until("a ready sidecar", LIMIT, || Ok(healthy(pod).then_some(())))
}

fn metrics(pod: &Pod) -> Result<Metrics, Failure> {
    Metrics::parse(&http_get(pod, ([127, 0, 0, 1], port::METRICS).into(), "/metrics")?.1)
}

fn mesh(
    bed: &Testbed,
    name: &str,
    options: &MeshOptions,
    (image, backend): (&str, &str),
    extra: &[&str],
) -> Result<Meshed, Failure> {
    let (pod, keeper) = bed.container_pod(name, APPS)?;
    let folders = pod.lay_out(bed, options)?;
    init(&pod, image, backend)?;
    let proxy = sidecar(&pod, &folders, extra)?;
    wait_ready(&pod)?;
    Ok(Meshed { proxy, pod, _keeper: keeper })
}

/// A pod that serves what is in `root` by nginx, and one that calls it, each with its sidecar.
fn pair(bed: &Testbed, root: &Path) -> Result<(Meshed, Container, Meshed, Container), Failure> {
    let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
    let server = mesh(bed, "srv", &serve, (INIT, "auto"), &["--restart=always"])?;
    let files = format!("--volume={}:/var/www/html:ro", root.display());
    let nginx = server.pod.container(
        "nginx",
        APPS,
        &[files.as_str()],
        &["nginx", "-g", "daemon off; worker_shutdown_timeout 60s;"],
    )?;
    let call = MeshOptions::new(policy::call(&server.pod.addresses(), SERVER), CLIENT);
    let client = mesh(bed, "cli", &call, (INIT, "auto"), &[])?;
    let shell = client.pod.container("app", APPS, &["--init"], &["sleep", "infinity"])?;
    server.pod.wait_for_port((server.pod.v4(), 80).into())?;
    Ok((server, nginx, client, shell))
}

/// A folder of the web server's, with a small file and a large one.
fn site(bed: &Testbed, large: usize) -> Result<std::path::PathBuf, Failure> {
    let root = bed.directory().join("site");
    fs::create_dir(&root)?;
    fs::write(root.join("small"), "served by nginx\n")?;
    let bytes: Vec<u8> = (0..=250).cycle().take(large).collect();
    fs::write(root.join("large"), bytes)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    Ok(root)
}

fn url(address: IpAddr, path: &str) -> String {
    format!("http://{}/{path}", std::net::SocketAddr::new(address, 80))
}

fn curl(shell: &Container, address: IpAddr) -> Result<Finished, Failure> {
    shell.exec(&["curl", "-sS", "--max-time", "10", &url(address, "small")])
}

fn fetch(shell: &Container, address: IpAddr) -> Result<String, Failure> {
    let said = curl(shell, address)?;
    if said.code == Some(0) { Ok(said.stdout) } else { Err(Failure::Unexpected(said.stderr)) }
}

/// curl's exit codes (curl(1), EXIT CODES) where nobody listens, which a connection that is reset at
/// once looks like, too.
const REFUSED: i32 = 7;
/// Where the connection was reset.
const RESET: i32 = 56;
/// Where an answer came that is no HTTP: a TLS alert (RFC 8446, 6).
const ALERT: i32 = 1;

/// Bytes all the way from the client's app to the server's, until it is told to stop. Returns how
/// many were sent and how many came.
fn stream(
    mut from: TcpStream,
    mut to: TcpStream,
    stop: &AtomicBool,
) -> Result<(u64, u64), Failure> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let (mut sent, piece) = (0, [7; 4096]);
            while !stop.load(Ordering::Relaxed) {
                from.write_all(&piece)?;
                sent += piece.len() as u64;
                std::thread::park_timeout(Duration::from_millis(2));
            }
            from.shutdown(Shutdown::Write)?;
            Ok::<_, Failure>(sent)
        });
        let came = std::io::copy(&mut to, &mut std::io::sink())?;
        let sent = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((sent?, came))
    })
}

fn sum_of(file: &Path) -> Result<String, Failure> {
    let said = complete(std::process::Command::new("sha256sum").arg(file))?;
    Ok(said.split(' ').next().unwrap_or_default().to_owned())
}

#[test]
fn two_pods_talk_mtls_and_the_programs_may_nothing_else() {
    run("img-traffic", |bed| {
        let root = site(bed, 1 << 20)?;
        let (server, _nginx, client, shell) = pair(bed, &root)?;
        let wire = server.pod.capture("wire")?;
        for address in server.pod.addresses() {
            assert_eq!(fetch(&shell, address)?, "served by nginx\n");
        }
        let wire = wire.finish(&client.pod)?;
        assert!(!wire.contains(b"served by nginx"), "the wire has no plaintext");
        let ok = [("direction", "inbound"), ("result", "ok")];
        assert!(metrics(&server.pod)?.sum(metric::HANDSHAKES, &ok) >= 1.0);

        // A pod without a sidecar is turned away.
        let (stranger, _keeper) = bed.container_pod("out", APPS)?;
        let outside = stranger.container("app", APPS, &["--init"], &["sleep", "infinity"])?;
        let plaintext = [("direction", direction::INBOUND), ("reason", reason::PLAINTEXT_REFUSED)];
        for (turned_away, address) in (1..).zip(server.pod.addresses()) {
            let said = curl(&outside, address)?;
            let ends = [Some(ALERT), Some(RESET)];
            assert!(ends.contains(&said.code), "a strict port takes no plaintext: {said:?}");
            wait_until("the count of what was turned away for that", LIMIT, || {
                let count = metrics(&server.pod)?.sum(metric::CLOSED, &plaintext);
                Ok((count == f64::from(turned_away)).then_some(()))
            })?;
        }

        for meshed in [&server, &client] {
            let proxy = &meshed.proxy;
            for sets in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(proxy.status(sets)?, "0000000000000000", "{sets}");
            }
            assert_eq!(proxy.status("NoNewPrivs")?, "1");
            assert_eq!(proxy.status("Seccomp")?, "2", "a filter");
            assert_eq!(proxy.status("Uid")?, "1337\t1337\t1337\t1337");
            assert_eq!(proxy.status("Gid")?, "1337\t1337\t1337\t1337");
            let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", proxy.pid()?))?;
            let at_root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/"));
            let options = at_root.and_then(|line| line.split(' ').nth(5)).unwrap_or_default();
            assert!(options.split(',').any(|option| option == "ro"), "{options}");
        }
        Ok(())
    });
}

#[test]
fn every_backend_captures_and_a_stream_survives_ten_more_runs() {
    for (image, backend) in [(INIT, "netlink"), (INIT_IPTABLES, "nft"), (INIT_IPTABLES, "legacy")] {
        run(&format!("img-{backend}"), |bed| {
            let serve = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
            let server = mesh(bed, "srv", &serve, (image, backend), &[])?;
            let call = MeshOptions::new(policy::call(&server.pod.addresses(), SERVER), CLIENT);
            let client = mesh(bed, "cli", &call, (image, backend), &[])?;
            let streams = server.pod.addresses().into_iter().map(|address| {
                let app = server.pod.listen((address, 8080).into())?;
                let from = client.pod.connect(app.local_addr()?)?;
                Ok((from, accept(&app)?))
            });
            let streams: Vec<_> = streams.collect::<Result<_, Failure>>()?;
            let ok = [("direction", "inbound"), ("result", "ok")];
            let shaken = metrics(&server.pod)?.sum(metric::HANDSHAKES, &ok);
            assert_eq!(shaken, streams.len() as f64, "captured, each of them");
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let running: Vec<_> = streams
                    .into_iter()
                    .map(|(from, to)| scope.spawn(|| stream(from, to, &stop)))
                    .collect();
                let runs = (0..10).try_for_each(|_| {
                    init(&server.pod, image, backend)?;
                    init(&client.pod, image, backend)
                });
                stop.store(true, Ordering::Relaxed);
                for stream in running {
                    let (sent, came) = stream.join().expect("no panic")?;
                    assert!(sent > 0 && sent == came, "{sent} sent, {came} came");
                }
                runs
            })
        });
    }
}

#[test]
fn killed_it_is_restarted_and_nothing_leaves_in_between() {
    run("img-kill", |bed| {
        let root = site(bed, 1 << 10)?;
        let (server, _nginx, client, shell) = pair(bed, &root)?;
        assert_eq!(fetch(&shell, server.pod.v4())?, "served by nginx\n");
        let (stranger, _keeper) = bed.container_pod("out", APPS)?;
        let outside = stranger.container("app", APPS, &["--init"], &["sleep", "infinity"])?;
        let wire = server.pod.capture("wire")?;

        // By itself: the engine starts it again at once.
        let first = server.proxy.pid()?;
        server.proxy.signal(Signal::SIGKILL)?;
        let killed = Instant::now();
        wait_until("an answer after the restart", LIMIT, || {
            Ok(fetch(&shell, server.pod.v4()).ok())
        })?;
        println!("serves again {:?} after SIGKILL", killed.elapsed());
        assert_ne!(server.proxy.pid()?, first, "another process");
        assert_eq!(server.proxy.inspect("{{.RestartCount}}")?, "1");

        // And for as long as it is down, which is now until the test says otherwise.
        server.proxy.update(&["--restart=no"])?;
        server.proxy.signal(Signal::SIGKILL)?;
        assert_eq!(server.proxy.wait(LIMIT)?, 128 + Signal::SIGKILL as i32);
        for address in server.pod.addresses() {
            let said = curl(&shell, address)?;
            let ends = [Some(RESET), Some(REFUSED)];
            assert!(ends.contains(&said.code), "its own sidecar reaches none: {said:?}");
            let said = curl(&outside, address)?;
            assert_eq!(said.code, Some(REFUSED), "nobody listens where the rules lead: {said:?}");
        }
        server.proxy.start_again()?;
        wait_ready(&server.pod)?;
        assert_eq!(fetch(&shell, server.pod.v4())?, "served by nginx\n");
        assert!(!wire.finish(&client.pod)?.contains(b"served by nginx"), "no plaintext in between");
        Ok(())
    });
}

#[test]
fn stopped_after_its_app_it_ends_with_the_last_connection() {
    run("img-stop", |bed| {
        let root = site(bed, 8 << 20)?;
        let (server, nginx, client, shell) = pair(bed, &root)?;
        // The kubelet's order: a sidecar is told last. A connection may still be there then.
        let large = url(server.pod.v4(), "large");
        let got = "/tmp/large";
        let words = ["curl", "-sS", "--fail", "--limit-rate", "2M", "--output", got, &large];
        std::thread::scope(|scope| {
            let running = scope.spawn(|| shell.exec(&words));
            // nginx has it, and not just the queue of its listener.
            wait_until("the beginning of the download", LIMIT, || {
                let size = format!("stat --format=%s {got} 2>/dev/null || echo 0");
                let said = shell.exec(&["sh", "-c", &size])?.stdout;
                Ok((said.trim() != "0").then_some(()))
            })?;
            // nginx finishes what it has and takes nothing more.
            nginx.signal(Signal::SIGQUIT)?;
            server.proxy.signal(Signal::SIGTERM)?;
            let told = wait_until("its word that it was told", LIMIT, || {
                let printed = server.proxy.printed()?;
                Ok(printed.lines().find(|line| line.contains("told to stop")).map(str::to_owned))
            })?;
            assert!(told.contains("\"open\":1"), "the download is what it stays for: {told}");
            let said = running.join().expect("no panic")?;
            assert_eq!(said.code, Some(0), "{}", said.stderr);
            let done = Instant::now();
            // Docker would start it again: its end shows in the count.
            wait_until("the end of the proxy", LIMIT, || {
                Ok((server.proxy.inspect("{{.RestartCount}}")? == "1").then_some(()))
            })?;
            println!("the proxy had ended {:?} after the last connection", done.elapsed());
            assert!(done.elapsed() < Duration::from_secs(2), "{:?}", done.elapsed());
            let sum = shell.exec(&["sha256sum", got])?.stdout;
            assert_eq!(sum.split(' ').next(), Some(sum_of(&root.join("large"))?.as_str()));
            Ok::<_, Failure>(())
        })?;
        assert_eq!(nginx.wait(LIMIT)?, 0);
        // And without a connection, at once: a Job's pod completes.
        client.proxy.signal(Signal::SIGTERM)?;
        assert_eq!(client.proxy.wait(Duration::from_secs(2))?, 0);
        Ok(())
    });
}

#[test]
fn it_waits_for_its_files_and_does_not_crash() {
    run("img-wait", |bed| {
        let options = MeshOptions::new(policy::serve(&[CLIENT]), SERVER);
        let (pod, _keeper) = bed.container_pod("srv", APPS)?;
        let nothing = options.clone().without_policy().without_certificates();
        let folders = pod.lay_out(bed, &nothing)?;
        init(&pod, INIT, "auto")?;
        let proxy = sidecar(&pod, &folders, &[])?;
        let health = ([127, 0, 0, 1], port::HEALTH).into();
        let pending =
            wait_until("an answer", LIMIT, || Ok(http_get(&pod, health, "/healthz/startup").ok()))?;
        assert_eq!(pending.0, 503, "{pending:?}");
        assert!(pending.1.contains("policy") && pending.1.contains("certificate"), "{pending:?}");
        let process = proxy.pid()?;
        pod.lay_out(bed, &options)?;
        wait_ready(&pod)?;
        assert_eq!(proxy.pid()?, process, "the same process");
        Ok(())
    });
}

#[test]
fn the_images_hold_what_they_say() {
    for (image, user, files) in [
        (PROXY, "1337:1337", ["LICENSE", "pillion-proxy", "pillion-proxy.cdx.json"]),
        (INIT, "0:0", ["LICENSE", "pillion-init", "pillion-init.cdx.json"]),
    ] {
        let ask = |format: &str| {
            let words = ["image", "inspect", "--format", format, image];
            complete(std::process::Command::new("docker").args(words)).expect("an image")
        };
        assert_eq!(ask("{{.Config.User}}").trim(), user);
        let label = ask("{{index .Config.Labels \"org.opencontainers.image.version\"}}");
        assert_eq!(label.trim(), env!("CARGO_PKG_VERSION"));
        let size: u64 = ask("{{.Size}}").trim().parse().expect("a number");
        assert!(size <= 12_000_000, "{image} has {size} bytes");
        // scripts/image unpacks them.
        let folder = image.strip_prefix("pillion-").unwrap_or(image);
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/image").join(folder);
        let mut names: Vec<_> = fs::read_dir(&unpacked)
            .expect("scripts/image has run")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        assert_eq!(names, files, "nothing else is in {image}");
        let bill = fs::read_to_string(unpacked.join(files[2])).expect("a list");
        let bill: serde_json::Value = serde_json::from_str(&bill).expect("JSON");
        assert_eq!(bill["bomFormat"], "CycloneDX");
        let parts = bill["components"].as_array().expect("components");
        assert!(parts.iter().any(|part| part["name"] == "nix" && part["licenses"].is_array()));
    }
}

/// The example for a person without a cluster, as it is.
#[test]
fn the_compose_example_does_what_it_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/compose.yaml");
    let compose = |words: &[&str]| {
        let mut command = std::process::Command::new("docker-compose");
        command.arg("--project-name").arg("pillion-test").arg("--file").arg(&file);
        command.args(words).env("APP_IMAGE", APPS).env("COMPOSE_HTTP_TIMEOUT", "120");
        complete(&mut command)
    };
    let result = (|| {
        compose(&["up", "--detach"])?;
        wait_until("two answers and two refusals", 3 * LIMIT, || {
            let said = compose(&["logs", "--no-color", "frontend", "stranger"])?;
            let count = |who: &str, what: &str| {
                said.lines().filter(|line| line.starts_with(who) && line.contains(what)).count()
            };
            if count("stranger", "answered") > 0 {
                return Err(Failure::Unexpected(format!("the stranger was answered:\n{said}")));
            }
            let ends = [ALERT, RESET].map(|code| format!("curl: ({code})"));
            let refused: usize = ends.iter().map(|end| count("stranger", end)).sum();
            Ok((count("frontend", "orders answered 200") >= 2 && refused >= 2).then_some(()))
        })
    })();
    if result.is_err() {
        println!("{}", compose(&["logs", "--no-color"]).unwrap_or_default());
    }
    compose(&["down", "--volumes"]).expect("it ends");
    result.expect("the example");
}
