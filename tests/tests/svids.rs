//! The corpus of SVIDs between pods: `openssl` presents each to a sidecar, as a client and as a
//! server. What is good is served; of what is bad no byte and no connection reaches the app.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use pillion_testbed::forge::{self, CorpusFiles, Presented, Svid};
use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, reason, refusal};
use pillion_testbed::stream::{Outcome, ask};
use pillion_testbed::{
    Failure, MeshOptions, Pod, Process, Sidecar, Testbed, accept, finish, policy, run, untouched,
};

const APP: u16 = 8080;

/// So many SVIDs are presented in each direction, or the corpus has lost some.
const LEAST: usize = 60;

/// The corpus, and a sidecar's options with what judges it.
fn judged_by(
    bed: &Testbed,
    policy: String,
    identity: &str,
) -> Result<(CorpusFiles, MeshOptions), Failure> {
    let corpus = forge::corpus(&bed.ca()?, &bed.directory().join("corpus"))?;
    let count = corpus.presented.len();
    println!("{count} SVIDs");
    assert!(count >= LEAST, "{count} SVIDs, of {LEAST} at least");
    let own = bed.issue(&bed.ca()?, identity, "judge")?;
    std::fs::copy(&corpus.bundle, own.join("ca.crt"))?;
    let options = MeshOptions::new(policy, identity)
        .certificates_from(own)
        .env("PILLION_TLS_CRL_FILE", &corpus.crl.display().to_string());
    Ok((corpus, options))
}

/// Keys and signatures that openssl itself finds too weak are presented all the same.
const WEAK_TOO: &str = "-cipher DEFAULT:@SECLEVEL=0";

fn shown(svid: &Svid) -> String {
    let chain = std::fs::metadata(&svid.chain).is_ok_and(|file| file.len() > 0);
    let chain = if chain { format!("-cert_chain {}", svid.chain) } else { String::new() };
    format!("-cert {} -key {} {chain}", svid.cert, svid.key)
}

/// `openssl s_client` with a certificate, or none, that sends a line and prints what it gets.
fn s_client(client: &Pod, to: SocketAddr, svid: Option<&Svid>) -> Result<String, Failure> {
    let shown = svid.map(shown).unwrap_or_default();
    // `-quiet` keeps it reading after the end of its input, until the other side closes.
    let line = format!(
        "echo let me in | openssl s_client -connect {to} -tls1_3 -quiet {WEAK_TOO} {shown}"
    );
    let finished = finish(&mut client.shell(&line))?;
    if finished.stdout.is_empty() {
        println!("{}", finished.stderr.lines().last().unwrap_or_default());
    }
    Ok(finished.stdout)
}

/// Checks that the last handshake in a direction was the only one since `before`, with a label.
fn counted(
    sidecar: &Sidecar,
    way: &str,
    label: &str,
    before: f64,
    all: f64,
) -> Result<(), Failure> {
    let result = [("direction", way), ("result", label)];
    sidecar.wait_metric(metric::HANDSHAKES, &result, before + 1.0)?;
    let after = sidecar.metric(metric::HANDSHAKES, &[("direction", way)])?;
    assert_eq!(after - all, 1.0, "{label}: one handshake alone");
    Ok(())
}

/// A good client is answered by the app.
fn served(client: &Pod, app: &TcpListener, svid: &Svid) -> Result<(), Failure> {
    let to = app.local_addr()?;
    let answered = std::thread::scope(|scope| {
        let serving = scope.spawn(|| -> Result<(), Failure> {
            let mut stream = accept(app)?;
            stream.write_all(b"welcome\n").map_err(Failure::from)
        });
        let answer = s_client(client, to, Some(svid));
        serving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(answer)
    })?;
    assert_eq!(answered, "welcome\n");
    Ok(())
}

/// Each refusal is counted as one, and in the log with its label as often as it was provoked.
fn logged(sidecar: &Sidecar, way: &str, refused: &BTreeMap<&str, usize>) -> Result<(), Failure> {
    let all = refused.values().sum();
    let details: Vec<String> = sidecar
        .wait_ended(way, reason::CERTIFICATE_REFUSED, all)?
        .iter()
        .map(|line| line.text(field::DETAIL))
        .collect();
    for (label, count) in refused {
        let prefix = format!("{label}:");
        let of_it: Vec<_> = details.iter().filter(|it| it.starts_with(&prefix)).collect();
        assert_eq!(of_it.len(), *count, "{label}: one line a refusal: {of_it:?}");
        if DATED.contains(label) {
            assert!(of_it.iter().all(|it| names_the_leaf(it)), "{of_it:?}");
        }
    }
    println!("{all} refused");
    Ok(())
}

/// What has to do with a time, which is told.
const DATED: [&str; 3] = [refusal::EXPIRED, "not_yet_valid", refusal::REVOKED];

/// Whether it has a serial number, an identity and a date (RFC 3339).
fn names_the_leaf(detail: &str) -> bool {
    let date = detail.split(' ').any(|word| {
        let parts: Vec<_> = word.split(['-', 'T']).take(3).map(str::parse::<u32>).collect();
        parts.len() == 3 && parts.iter().all(Result::is_ok)
    });
    date && detail.contains("serial ") && detail.contains("identity spiffe://")
}

#[test]
fn each_client_of_the_corpus() {
    run("svids-clients", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let policy = policy::serve_in_mode("strict");
        let (corpus, options) = judged_by(bed, policy, SERVER)?;
        let callee = server.mesh(bed, options)?;
        let app = server.listen(SocketAddr::new(server.v4(), APP))?;
        let way = direction::INBOUND;
        let mut refused = BTreeMap::<&str, usize>::new();
        let nobody = (refusal::NO_CERTIFICATE, "no certificate", None);
        let all = corpus.presented.iter().map(|one| (&*one.label, &*one.name, Some(&one.svid)));
        for (label, name, svid) in all.chain([nobody]) {
            println!("{name}: {label}");
            let before =
                callee.metric(metric::HANDSHAKES, &[("direction", way), ("result", label)])?;
            let total = callee.metric(metric::HANDSHAKES, &[("direction", way)])?;
            match svid.filter(|_| label == "ok") {
                Some(svid) => served(&client, &app, svid)?,
                None => {
                    assert_eq!(s_client(&client, app.local_addr()?, svid)?, "", "{name}");
                    untouched(&app)?;
                    *refused.entry(label).or_default() += 1;
                }
            }
            counted(&callee, way, label, before, total)?;
        }
        for label in DATED {
            assert!(refused.contains_key(label), "{label}: nothing of it in the corpus");
        }
        logged(&callee, way, &refused)
    });
}

/// Starts `openssl s_server`, which sends each line back reversed, with a certificate.
fn s_server(server: &Pod, port: u16, svid: &Svid) -> Result<Process, Failure> {
    let line = format!(
        "exec openssl s_server -4 -accept {port} -tls1_3 -rev -quiet {WEAK_TOO} {} -verify 2 -CAfile {}",
        shown(svid),
        svid.ca
    );
    let process = server.spawn("s_server", server.daemon("bash").args(["-c", &line]))?;
    server.wait_for_port(SocketAddr::new(server.v4(), port))?;
    Ok(process)
}

#[test]
fn each_server_of_the_corpus() {
    run("svids-servers", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let anybody = policy::call(&[server.v4()], "spiffe://cluster.local/**");
        let (corpus, options) = judged_by(bed, anybody, CLIENT)?;
        let caller = client.mesh(bed, options)?;
        let way = direction::OUTBOUND;
        let mut refused = BTreeMap::<&str, usize>::new();
        for (port, Presented { name, svid, label }) in (9000..).zip(&corpus.presented) {
            println!("{name}: {label}");
            let _serving = s_server(&server, port, svid)?;
            let before =
                caller.metric(metric::HANDSHAKES, &[("direction", way), ("result", label)])?;
            let total = caller.metric(metric::HANDSHAKES, &[("direction", way)])?;
            let outcome = ask(&client, SocketAddr::new(server.v4(), port), b"abc\n")?;
            if label == "ok" {
                assert_eq!(outcome, Outcome::Served(b"cba\n".to_vec()), "{name}");
            } else {
                assert!(outcome.is_turned_away(), "{name}: {outcome:?}");
                let prefix = format!("{label}:");
                let to = format!(":{port}");
                caller.wait_logs(label, 1, |line| {
                    line.is(way, reason::CERTIFICATE_REFUSED)
                        && line.text(field::DETAIL).starts_with(&prefix)
                        && line.text(field::DESTINATION).ends_with(&to)
                })?;
                *refused.entry(label).or_default() += 1;
            }
            counted(&caller, way, label, before, total)?;
        }
        logged(&caller, way, &refused)
    });
}
