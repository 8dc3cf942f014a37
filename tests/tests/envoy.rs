//! Envoy on one side and the sidecar on the other: plain mTLS, one TLS connection for each
//! connection of the app.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;

use std::sync::atomic::{AtomicUsize, Ordering};

use pillion_testbed::labels::{
    CLIENT, SERVER, STRANGER, TRUST_DOMAIN, direction, field, init, metric, port, reason, refusal,
};
use pillion_testbed::stream::{Outcome, ask, exchange, read_to_end};
use pillion_testbed::{
    Failure, LogLine, MeshOptions, Pod, Process, Sidecar, Testbed, accept, complete, policy, run,
    untouched,
};
use serde_json::{Value, json};

const APP: u16 = 8080;

/// The user that the redirect rules let pass.
const PROXY_USER: u32 = 1337;

/// How Envoy speaks TLS.
#[derive(Clone, Copy)]
struct Style {
    /// What it offers or accepts by ALPN: what Istio's sidecars say, or nothing.
    protocols: &'static [&'static str],
    /// Whether its SPIFFE validator checks the peer, or a bundle and the SAN alone.
    spiffe: bool,
}

const STYLES: [Style; 3] = [
    Style { protocols: &["istio"], spiffe: false },
    Style { protocols: &[], spiffe: false },
    Style { protocols: &["istio"], spiffe: true },
];

fn type_url(message: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.{message}")
}

/// TLS without a certificate, otherwise as [`tls`].
fn without_certificate(bed: &Testbed, peer: &str, style: Style) -> Result<Value, Failure> {
    Ok(with(tls(bed, CLIENT, peer, style)?, "tls_certificates", json!([])))
}

/// mTLS as `own`, with `peer`.
fn tls(bed: &Testbed, own: &str, peer: &str, style: Style) -> Result<Value, Failure> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("envoy-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let files = bed.issue(&bed.ca()?, own, &name)?;
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        chown(files.join(file), Some(PROXY_USER), Some(PROXY_USER))?;
    }
    let file = |name: &str| json!({"filename": files.join(name)});
    let san = json!([{"san_type": "URI", "matcher": {"exact": peer}}]);
    let validation = if style.spiffe {
        let url = type_url("transport_sockets.tls.v3.SPIFFECertValidatorConfig");
        let domains = json!([{"name": TRUST_DOMAIN, "trust_bundle": file("ca.crt")}]);
        json!({
            "match_typed_subject_alt_names": san,
            "custom_validator_config": {
                "name": "envoy.tls.cert_validator.spiffe",
                "typed_config": {"@type": url, "trust_domains": domains},
            },
        })
    } else {
        json!({"match_typed_subject_alt_names": san, "trusted_ca": file("ca.crt")})
    };
    Ok(json!({
        "alpn_protocols": style.protocols,
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3",
                       "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file("tls.crt"), "private_key": file("tls.key")}],
        "validation_context": validation,
    }))
}

/// An object with one more field.
fn with(mut object: Value, name: &str, value: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
    object
}

fn transport(message: &str, context: Value) -> Value {
    let url = type_url(&format!("transport_sockets.tls.v3.{message}"));
    let context = with(context, "@type", url.into());
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

/// One listener that takes what the rules redirect, and passes it on to where it was meant to go.
fn bootstrap(port: u16, downstream: Option<Value>, cluster: Value) -> Value {
    let mut chain = json!({"filters": [{
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": type_url("filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": "app",
            "cluster": "app",
        },
    }]});
    if let Some(downstream) = downstream {
        chain = with(chain, "transport_socket", downstream);
    }
    let mut cluster = cluster;
    for (key, value) in [
        ("name", json!("app")),
        ("type", json!("ORIGINAL_DST")),
        ("lb_policy", json!("CLUSTER_PROVIDED")),
        ("connect_timeout", json!("5s")),
    ] {
        cluster = with(cluster, key, value);
    }
    json!({"static_resources": {
        "listeners": [{
            "name": "redirected",
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
            "listener_filters": [{
                "name": "envoy.filters.listener.original_dst",
                "typed_config": {
                    "@type": type_url("filters.listener.original_dst.v3.OriginalDst"),
                },
            }],
            "filter_chains": [chain],
        }],
        "clusters": [cluster],
    }})
}

/// Installs the rules and starts Envoy behind them.
fn start(pod: &Pod, port: u16, config: &Value) -> Result<Process, Failure> {
    complete(&mut pod.init()?)?;
    let file = pod.path("envoy.json");
    fs::write(&file, config.to_string())?;
    let mut command = pod.daemon_as(&PROXY_USER.to_string(), pod.settings().envoy()?);
    command.arg("-c").arg(file);
    // Hot restart shares memory between all Envoys of a machine.
    command.args(["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]);
    let process = pod.spawn("envoy", &mut command)?;
    pod.wait_for_port(SocketAddr::new(pod.v4(), port))?;
    Ok(process)
}

/// Several connections, each with its own half-closes, and what the sidecar says of them.
fn served(client: &Pod, server: &Pod, sidecar: &Sidecar, way: &str) -> Result<(), Failure> {
    const TIMES: u8 = 5;
    let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
    for _ in 0..TIMES {
        let asking = client.connect(listener.local_addr()?)?;
        exchange(asking, accept(&listener)?)?;
    }
    sidecar.wait_idle()?;
    let ok = [("direction", way), ("result", "ok")];
    assert_eq!(sidecar.metric(metric::HANDSHAKES, &ok)?, f64::from(TIMES));
    assert_eq!(sidecar.metric(metric::STREAMS, &[])?, 0.0, "Envoy knows no tunnel");
    assert_eq!(sidecar.metric(metric::IDLE, &[])?, 0.0);
    let peer = if way == direction::INBOUND { CLIENT } else { SERVER };
    let lines = sidecar.wait_logs("a connection of Envoy's", TIMES.into(), |line| {
        line.text(field::PEER) == peer && line.text(field::TLS) == "mtls"
    })?;
    assert!(lines.iter().all(|line| line.is(way, reason::CLOSED)), "{lines:?}");
    Ok(())
}

/// Envoy before a pod's app, for clients with [`CLIENT`]'s identity.
fn serve(bed: &Testbed, server: &Pod, own: &str, style: Style) -> Result<Process, Failure> {
    let context = json!({
        "require_client_certificate": true,
        "common_tls_context": tls(bed, own, CLIENT, style)?,
    });
    let source = json!({"source_address": {"address": "127.0.0.6", "port_value": 0}});
    let cluster = json!({"upstream_bind_config": source});
    let context = transport("DownstreamTlsContext", context);
    start(server, port::INBOUND, &bootstrap(port::INBOUND, Some(context), cluster))
}

#[test]
fn envoy_serves_a_client_with_a_sidecar() {
    run("envoy-server", |bed| {
        for (number, style) in (0..).zip(STYLES) {
            let (server, client) =
                (bed.pod(&format!("srv{number}"))?, bed.pod(&format!("cli{number}"))?);
            let _envoy = serve(bed, &server, SERVER, style)?;
            let call = MeshOptions::new(policy::call(&[server.v4()], SERVER), CLIENT);
            let caller = client.mesh(bed, call)?;
            served(&client, &server, &caller, direction::OUTBOUND)?;
        }
        Ok(())
    });
}

/// Our sidecar passes nothing on to an Envoy that is somebody else, so the app behind it gets none.
#[test]
fn envoy_that_is_not_the_server_we_expect_gets_nothing() {
    run("envoy-impostor", |bed| {
        for (number, style) in (0..).zip(STYLES) {
            let (server, client) =
                (bed.pod(&format!("srv{number}"))?, bed.pod(&format!("cli{number}"))?);
            let _envoy = serve(bed, &server, STRANGER, style)?;
            let call = MeshOptions::new(policy::call(&[server.v4()], SERVER), CLIENT);
            let caller = client.mesh(bed, call)?;
            let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
            let outcome = ask(&client, listener.local_addr()?, b"a secret\n")?;
            assert!(outcome.is_turned_away(), "{outcome:?}");
            let lines = caller.wait_ended(direction::OUTBOUND, reason::WRONG_IDENTITY, 1)?;
            let nothing = |line: &LogLine| {
                line.text(field::PEER) == STRANGER && line.text(field::BYTES_FROM_APP) == "0"
            };
            assert!(lines.iter().all(nothing), "{lines:?}");
            // Envoy may dial the app before its handshake is done, and has nothing to pass on.
            while let Ok((mut app, _)) = listener.accept() {
                println!("the app was dialled");
                app.set_nonblocking(false)?;
                assert_eq!(read_to_end(&mut app)?.0, b"");
            }
        }
        Ok(())
    });
}

#[test]
fn envoy_calls_a_server_with_a_sidecar() {
    run("envoy-client", |bed| {
        for (number, style) in (0..).zip(STYLES) {
            let (server, client) =
                (bed.pod(&format!("srv{number}"))?, bed.pod(&format!("cli{number}"))?);
            let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
            let context = json!({"common_tls_context": tls(bed, CLIENT, SERVER, style)?});
            let cluster = json!({"transport_socket": transport("UpstreamTlsContext", context)});
            let config = bootstrap(port::OUTBOUND, None, cluster);
            let _envoy = start(&client, port::OUTBOUND, &config)?;
            served(&client, &server, &callee, direction::INBOUND)?;
        }
        Ok(())
    });
}

/// The same Envoys, as somebody whom the other side doesn't want.
#[test]
fn envoy_with_another_identity_is_refused_and_refuses_ours() {
    run("envoy-stranger", |bed| {
        for (number, style) in (0..).zip(STYLES) {
            let (server, client) =
                (bed.pod(&format!("srv{number}"))?, bed.pod(&format!("cli{number}"))?);
            let callee = server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))?;
            let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
            // A stranger calls; one without a certificate; then a client that wants somebody else
            // than our server.
            let cases = [
                (tls(bed, STRANGER, SERVER, style)?, reason::DENIED),
                (without_certificate(bed, SERVER, style)?, reason::CERTIFICATE_REFUSED),
                (tls(bed, CLIENT, STRANGER, style)?, reason::HANDSHAKE_FAILED),
            ];
            for (context, why) in cases {
                let context = json!({"common_tls_context": context});
                let cluster = json!({"transport_socket": transport("UpstreamTlsContext", context)});
                let envoy =
                    start(&client, port::OUTBOUND, &bootstrap(port::OUTBOUND, None, cluster))?;
                let outcome = ask(&client, listener.local_addr()?, b"let me in\n")?;
                println!("{why}: {outcome:?}");
                // Envoy takes its own part of a handshake for the whole: it may end in order.
                assert!(!matches!(outcome, Outcome::Served(_)), "{why}: {outcome:?}");
                callee.wait_ended(direction::INBOUND, why, 1)?;
                untouched(&listener)?;
                drop(envoy);
                complete(client.init()?.arg(init::CLEANUP))?;
            }
            let nobody = [("direction", direction::INBOUND), ("result", refusal::NO_CERTIFICATE)];
            assert_eq!(callee.metric(metric::HANDSHAKES, &nobody)?, 1.0);
        }
        Ok(())
    });
}
