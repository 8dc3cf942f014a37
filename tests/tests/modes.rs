//! Ports that take more than mTLS: permissive and disabled.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;

use pillion_testbed::forge::Svid;
use pillion_testbed::labels::{CLIENT, SERVER, direction, field};
use pillion_testbed::stream::{pass, read_exactly};
use pillion_testbed::{Failure, MeshOptions, Pod, Process, Testbed, accept, complete, policy, run};

const APP: u16 = 8080;
const APP_TLS: u16 = 8443;

/// A line goes in and comes back over a new connection from `client`, which speaks first: a
/// permissive port waits for a client's first bytes before it dials the app.
fn echo(client: &Pod, server: &Pod, port: u16) -> Result<(), Failure> {
    for address in server.addresses() {
        let listener = server.listen(SocketAddr::new(address, port))?;
        let mut asking = client.connect(listener.local_addr()?)?;
        asking.write_all(b"over this port")?;
        let mut answering = accept(&listener)?;
        assert_eq!(read_exactly(&mut answering, 14)?, b"over this port");
        pass(&mut answering, &mut asking, b"and back")?;
    }
    Ok(())
}

/// The app's own TLS server, with a certificate that the mesh knows nothing of.
fn app_with_tls(bed: &Testbed, server: &Pod) -> Result<(Process, String), Failure> {
    let (cert, key) = (bed.directory().join("app.crt"), bed.directory().join("app.key"));
    let mut make = Command::new("openssl");
    make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    make.args(["-days", "2", "-subj", "/CN=the app itself"]);
    complete(make.arg("-keyout").arg(&key).arg("-out").arg(&cert))?;
    let mut serve = server.command("openssl");
    serve.args(["s_server", "-4", "-accept", &APP_TLS.to_string(), "-rev", "-quiet"]);
    let process = server.spawn("app-tls", serve.arg("-cert").arg(&cert).arg("-key").arg(&key))?;
    server.wait_for_port(SocketAddr::new(server.v4(), APP_TLS))?;
    Ok((process, cert.display().to_string()))
}

/// One line to the app's own TLS server and back (`CLOSE` ends it there), end to end: the app's certificate is checked.
fn talk_to_app(client: &Pod, server: &Pod, cert: &str) -> Result<String, Failure> {
    let to = SocketAddr::new(server.v4(), APP_TLS);
    let line = format!(
        "printf 'stressed\\nCLOSE\\n' | openssl s_client -connect {to} -quiet -CAfile {cert} \
         -verify_return_error"
    );
    complete(&mut client.shell(&line))
}

#[test]
fn a_permissive_port_takes_plaintext_foreign_tls_and_the_mesh() {
    run("permissive", |bed| {
        let (server, plain, meshed) = (bed.pod("srv")?, bed.pod("pln")?, bed.pod("cli")?);
        let (_app, cert) = app_with_tls(bed, &server)?;
        assert_eq!(talk_to_app(&plain, &server, &cert)?, "desserts\n", "without a sidecar");
        let serve = MeshOptions::new(policy::serve_in_mode("permissive"), SERVER);
        let callee = server.mesh(bed, serve)?;

        echo(&plain, &server, APP)?;
        callee.wait_logs("plaintext", 1, |line| line.text(field::TLS) == "plaintext")?;

        assert_eq!(talk_to_app(&plain, &server, &cert)?, "desserts\n", "the app's own TLS");

        let call = MeshOptions::new(policy::call(&server.addresses(), SERVER), CLIENT);
        let _caller = meshed.mesh(bed, call)?;
        echo(&meshed, &server, APP)?;
        callee
            .wait_logs("mTLS", 1, |line| {
                line.text(field::TLS) == "mtls" && line.text(field::PEER) == CLIENT
            })
            .map(drop)
    });
}

/// A client that shows an SVID but offers none of the mesh's protocols speaks the app's own TLS.
#[test]
fn a_permissive_port_leaves_other_tls_to_the_app() {
    run("permissive-tls", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let (_app, _) = app_with_tls(bed, &server)?;
        let serve = MeshOptions::new(policy::serve_in_mode("permissive"), SERVER);
        let callee = server.mesh(bed, serve)?;
        let svid = Svid::in_directory(&bed.issue(&bed.ca()?, CLIENT, "client")?);
        let line = format!(
            "openssl s_client -connect {} -cert {} -key {} < /dev/null",
            SocketAddr::new(server.v4(), APP_TLS),
            svid.cert,
            svid.key
        );
        let shown = complete(&mut client.shell(&line))?;
        assert!(shown.contains("CN = the app itself"), "the app answered, not the proxy: {shown}");
        callee
            .wait_logs("passed on", 1, |line| {
                line.text(field::DIRECTION) == direction::INBOUND
                    && line.text(field::TLS) == "plaintext"
                    && line.text(field::PEER).is_empty()
            })
            .map(drop)
    });
}

#[test]
fn a_disabled_port_takes_plaintext() {
    run("disabled", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let serve = MeshOptions::new(policy::serve_in_mode("disable"), SERVER);
        let callee = server.mesh(bed, serve)?;
        // Server-first as well: nothing is looked at, so nothing is waited for.
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let mut asking = client.connect(listener.local_addr()?)?;
        let mut answering = accept(&listener)?;
        pass(&mut answering, &mut asking, b"220 the server speaks first\r\n")?;
        drop((asking, answering, listener));
        echo(&client, &server, APP)?;
        callee.wait_logs("plaintext", 2, |line| line.text(field::TLS) == "plaintext").map(drop)
    });
}

/// Outbound to a destination that no rule names: passed on as it is.
#[test]
fn what_is_not_in_the_mesh_passes_through() {
    run("passthrough", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let caller = client.mesh(bed, MeshOptions::new(policy::pass(), CLIENT))?;
        echo(&client, &server, APP)?;
        let passed = |line: &pillion_testbed::LogLine| line.text(field::TLS) == "passthrough";
        caller.wait_logs("passthrough", 1, passed)?;
        assert!(caller.log_lines()?.iter().all(passed));
        Ok(())
    });
}
