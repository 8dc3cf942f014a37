//! Other implementations of TLS as the peer without a sidecar: each is served with the right
//! identity, and refused with another one, with none, and by another version of TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use pillion_testbed::forge::Svid;
use pillion_testbed::labels::{CLIENT, SERVER, STRANGER, direction, field, metric, reason};
use pillion_testbed::{Failure, MeshOptions, Pod, Process, Sidecar, Testbed, finish, policy, run};

const APP: u16 = 8080;
const TLS: u16 = 8443;
/// Where a client that is a proxy itself takes plaintext.
const FORWARDER: u16 = 8081;
const HELLO: &str = "hello from the app";

fn svid(bed: &Testbed, identity: &str, name: &str) -> Result<Svid, Failure> {
    let directory = bed.issue(&bed.ca()?, identity, name)?;
    // HAProxy wants the chain and the key in one file.
    let read = |file: &str| fs::read_to_string(directory.join(file));
    fs::write(directory.join("both.pem"), read("tls.crt")? + &read("tls.key")?)?;
    Ok(Svid::in_directory(&directory))
}

fn both(svid: &Svid) -> String {
    svid.cert.replace("tls.crt", "both.pem")
}

/// nginx with one server block.
fn nginx(pod: &Pod, port: u16, server: &str) -> Result<Process, Failure> {
    let root = pod.path(&format!("nginx-{port}"));
    fs::create_dir_all(&root)?;
    let at = root.display();
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
        .collect();
    let config = format!(
        "user root;\nworker_processes 1;\ndaemon off;\npid {at}/pid;\nerror_log {at}/error.log;\n\
         events {{ worker_connections 64; }}\nhttp {{\n{scratch}access_log off;\n\
         server {{ listen {port}{server} }}\n}}\n"
    );
    spawn(pod, "nginx", &["-e", &format!("{at}/error.log"), "-c"], &root, &config, port)
}

/// HAProxy with one frontend and what follows it.
fn haproxy(pod: &Pod, port: u16, rest: &str) -> Result<Process, Failure> {
    let root = pod.path(&format!("haproxy-{port}"));
    fs::create_dir_all(&root)?;
    let config = format!(
        "global\n  maxconn 64\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 10s\n  \
         timeout server 10s\nfrontend f\n  bind 0.0.0.0:{port}{rest}"
    );
    spawn(pod, "haproxy", &["-db", "-f"], &root, &config, port)
}

/// Starts a program whose arguments end with its configuration file.
fn spawn(
    pod: &Pod,
    program: &str,
    arguments: &[&str],
    root: &std::path::Path,
    config: &str,
    port: u16,
) -> Result<Process, Failure> {
    let file: PathBuf = root.join("config");
    fs::write(&file, config)?;
    let mut command = pod.daemon(program);
    let process = pod.spawn(program, command.args(arguments).arg(file))?;
    pod.wait_for_port(SocketAddr::new(pod.v4(), port))?;
    Ok(process)
}

/// What stands between a caller and a callee: how to start it, and its name.
type Start<T> = (&'static str, fn(&Pod, &Svid) -> Result<T, Failure>);

/// TLS servers that ask for a client certificate of the mesh.
const SERVERS: [Start<Process>; 4] = [
    ("openssl s_server", |pod, svid| {
        let mut command = pod.daemon("openssl");
        command.args(["s_server", "-4", "-www", "-quiet", "-Verify", "2", "-verify_return_error"]);
        command.args(["-accept", &TLS.to_string(), "-CAfile", &svid.ca]);
        let process =
            pod.spawn("s_server", command.args(["-cert", &svid.cert, "-key", &svid.key]))?;
        pod.wait_for_port(SocketAddr::new(pod.v4(), TLS))?;
        Ok(process)
    }),
    ("gnutls-serv", |pod, svid| {
        let mut command = pod.daemon("gnutls-serv");
        command.args(["--http", "--quiet", "--require-client-cert", "--verify-client-cert"]);
        command.args(["--port", &TLS.to_string(), "--x509cafile", &svid.ca]);
        command.args(["--x509certfile", &svid.cert, "--x509keyfile", &svid.key]);
        let process = pod.spawn("gnutls-serv", &mut command)?;
        pod.wait_for_port(SocketAddr::new(pod.v4(), TLS))?;
        Ok(process)
    }),
    ("nginx", |pod, svid| {
        let Svid { cert, key, ca, .. } = svid;
        let server = format!(
            " ssl; ssl_protocols TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key};\n\
             ssl_client_certificate {ca}; ssl_verify_client on;\n\
             location / {{ return 200 \"verified: $ssl_client_verify\\n\"; }}"
        );
        nginx(pod, TLS, &server)
    }),
    ("HAProxy", |pod, svid| {
        let rest = format!(
            " ssl crt {} ca-file {} verify required ssl-min-ver TLSv1.3\n  http-request return \
             status 200 content-type text/plain lf-string \"verified: %[ssl_c_verify]\\n\"\n",
            both(svid),
            svid.ca
        );
        haproxy(pod, TLS, &rest)
    }),
];

/// `curl` over plaintext, as an app that knows of no TLS; empty where it got no answer.
fn curl(pod: &Pod, to: SocketAddr) -> Result<String, Failure> {
    let url = format!("http://{to}/");
    Ok(finish(pod.command("curl").args(["-sS", "--max-time", "10", &url]))?.stdout)
}

#[test]
fn servers_are_called_with_our_certificate_and_held_to_theirs() {
    run("interop-servers", |bed| {
        let good = svid(bed, SERVER, "good")?;
        let stranger = svid(bed, STRANGER, "other")?;
        for (number, (name, start)) in SERVERS.into_iter().enumerate() {
            let (server, client) =
                (bed.pod(&format!("srv{number}"))?, bed.pod(&format!("cli{number}"))?);
            let to = SocketAddr::new(server.v4(), TLS);
            let call = policy::call(&[server.v4()], SERVER);
            // Each worker learns for itself which servers refuse the protocols that we offer.
            let call = MeshOptions::new(call, CLIENT).env("PILLION_WORKERS", "1");
            let caller = client.mesh(bed, call)?;
            let serving = start(&server, &good)?;
            let answer = curl(&client, to)?;
            println!("{name}: {answer:.200}");
            // Each says in its own way that the client's certificate was verified; gnutls-serv
            // by answering at all.
            let verified = ["verified: SUCCESS", "verified: 0", "CN=workload", "This is <a href"];
            assert!(verified.iter().any(|word| answer.contains(word)), "{name}: {answer}");
            // After curl has gone, nginx ends without a close_notify.
            caller.wait_logs(name, 1, |line| {
                [reason::CLOSED, reason::TRUNCATED]
                    .iter()
                    .any(|why| line.is(direction::OUTBOUND, why))
                    && line.text(field::PEER) == SERVER
                    && line.text(field::TLS) == "mtls"
            })?;
            drop(serving);
            let _other = start(&server, &stranger)?;
            assert_eq!(curl(&client, to)?, "", "{name}: with another identity");
            let lines = caller.wait_logs(name, 1, |line| {
                line.is(direction::OUTBOUND, reason::WRONG_IDENTITY)
                    && line.text(field::PEER) == STRANGER
            })?;
            assert!(lines.iter().all(|it| it.text(field::BYTES_FROM_APP) == "0"), "{lines:?}");
            // The first time alone, of two.
            let refused = [("direction", direction::OUTBOUND), ("result", "no_protocol")];
            let wanted = if name == "nginx" { 1.0 } else { 0.0 };
            assert_eq!(caller.metric(metric::HANDSHAKES, &refused)?, wanted, "{name}");
        }
        Ok(())
    });
}

/// What a client got from the app, through whatever it is made of.
type Ask = fn(&Pod, SocketAddr, Option<&Svid>) -> Result<String, Failure>;

/// TLS clients, with a certificate of the mesh or none.
const CLIENTS: [(&str, Ask); 5] = [
    ("openssl s_client", |pod, to, svid| {
        let with = svid.map(|svid| format!("-cert {} -key {}", svid.cert, svid.key));
        let ca = svid.map(|svid| format!("-CAfile {} -verify_return_error", svid.ca));
        let (with, ca) = (with.unwrap_or_default(), ca.unwrap_or_default());
        let line = format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client -connect {to} -quiet {with} {ca}"
        );
        Ok(finish(&mut pod.shell(&line))?.stdout)
    }),
    ("curl", |pod, to, svid| {
        let mut command = pod.command("curl");
        // It knows servers by their DNS names, which an SVID needn't have.
        command.args(["-sS", "--insecure", "--max-time", "10"]);
        if let Some(svid) = svid {
            command.args(["--cert", &svid.cert, "--key", &svid.key]);
        }
        Ok(finish(command.arg(format!("https://{to}/")))?.stdout)
    }),
    ("gnutls-cli", |pod, to, svid| {
        let with =
            svid.map(|svid| format!("--x509certfile {} --x509keyfile {}", svid.cert, svid.key));
        let line = format!(
            "(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1) | \
             gnutls-cli --insecure --port {} {} {}",
            to.port(),
            with.unwrap_or_default(),
            to.ip()
        );
        Ok(finish(&mut pod.shell(&line))?.stdout)
    }),
    ("nginx", |pod, to, svid| {
        let with = svid.map(|svid| {
            let Svid { cert, key, .. } = svid;
            format!("proxy_ssl_certificate {cert}; proxy_ssl_certificate_key {key};")
        });
        let server = format!(
            "; location / {{ proxy_pass https://{to}; proxy_ssl_protocols TLSv1.3; {} }}",
            with.unwrap_or_default()
        );
        let _forwarding = nginx(pod, FORWARDER, &server)?;
        curl(pod, SocketAddr::new(pod.v4(), FORWARDER))
    }),
    ("HAProxy", |pod, to, svid| {
        let with =
            svid.map(|svid| format!("crt {} ca-file {} verify required", both(svid), svid.ca));
        let with = with.unwrap_or_else(|| "verify none".to_owned());
        let rest = format!(
            "\n  default_backend b\nbackend b\n  server s {to} ssl {with} ssl-min-ver TLSv1.3\n"
        );
        let _forwarding = haproxy(pod, FORWARDER, &rest)?;
        curl(pod, SocketAddr::new(pod.v4(), FORWARDER))
    }),
];

/// A strict sidecar before an app that answers with [`HELLO`]; only [`CLIENT`] may call it.
fn serve(bed: &Testbed, server: &Pod) -> Result<(Process, Sidecar), Failure> {
    let app = nginx(server, APP, &format!("; location / {{ return 200 \"{HELLO}\\n\"; }}"))?;
    let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
    Ok((app, callee))
}

#[test]
fn clients_are_served_by_their_identity() {
    run("interop-clients", |bed| {
        let good = svid(bed, CLIENT, "good")?;
        let stranger = svid(bed, STRANGER, "other")?;
        let server = bed.pod("srv")?;
        let to = SocketAddr::new(server.v4(), APP);
        let (_app, callee) = serve(bed, &server)?;
        for (number, (name, ask)) in CLIENTS.into_iter().enumerate() {
            let client = bed.pod(&format!("cli{number}"))?;
            let source = client.v4().to_string();
            let logged = |whys: &[&str], peer: &str| {
                callee.wait_logs(name, 1, |line| {
                    whys.iter().any(|why| line.is(direction::INBOUND, why))
                        && line.text(field::PEER) == peer
                        && line.text("source").starts_with(&source)
                })
            };
            let served = ask(&client, to, Some(&good))?;
            assert!(served.contains(HELLO), "{name}: {served}");
            // gnutls-cli ends without a close_notify once it has its answer.
            logged(&[reason::CLOSED, reason::TRUNCATED], CLIENT)?;
            for (who, svid, why, peer) in [
                ("a stranger", Some(&stranger), reason::DENIED, STRANGER),
                ("nobody", None, reason::CERTIFICATE_REFUSED, ""),
            ] {
                let got = ask(&client, to, svid)?;
                assert!(!got.contains(HELLO), "{name} as {who}: {got}");
                logged(&[why], peer)?;
            }
        }
        Ok(())
    });
}

#[test]
fn older_tls_is_refused() {
    run("interop-old-tls", |bed| {
        let good = svid(bed, CLIENT, "good")?;
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let to = SocketAddr::new(server.v4(), APP);
        let (_app, callee) = serve(bed, &server)?;
        let line = format!(
            "echo | openssl s_client -connect {to} -tls1_2 -cert {} -key {} 2>&1",
            good.cert, good.key
        );
        let said = finish(&mut client.shell(&line))?.stdout;
        assert!(said.contains("alert protocol version"), "{said}");
        callee.wait_logs("TLS 1.2", 1, |line| {
            line.is(direction::INBOUND, reason::HANDSHAKE_FAILED)
        })?;
        let failed = [("direction", direction::INBOUND), ("result", "ok")];
        assert_eq!(callee.metric(metric::HANDSHAKES, &failed)?, 0.0);
        Ok(())
    });
}

/// A client that checks the server's DNS name finds none: an SVID is known by its SPIFFE ID.
#[test]
fn a_client_that_asks_for_a_dns_name_refuses_us() {
    run("interop-dns-name", |bed| {
        let good = svid(bed, CLIENT, "good")?;
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let to = SocketAddr::new(server.v4(), APP);
        let (_app, _callee) = serve(bed, &server)?;
        let Svid { cert, key, ca, .. } = &good;
        let line = format!(
            "curl -sS --max-time 10 --cert {cert} --key {key} --cacert {ca} https://{to}/ 2>&1"
        );
        let said = finish(&mut client.shell(&line))?.stdout;
        assert!(
            !said.contains(HELLO) && said.contains("does not match target host name"),
            "{said}"
        );
        Ok(())
    });
}
