//! Certificates and authorities that are replaced under load: each new connection is a handshake
//! of its own, and none may fail.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, direction, metric, reason};
use pillion_testbed::load::{recycle_ports, under_load};
use pillion_testbed::stream::pass;
use pillion_testbed::{
    Failure, MeshOptions, Pair, Pod, Sidecar, Testbed, forge, let_pass, policy, run, wait_until,
};

const APP: u16 = 8080;
/// For the stream that stays open through it all.
const LONG: u16 = 8081;
const A_SECOND: u32 = 200;

/// The user that the proxy runs as.
const PROXY_USER: u32 = 1337;

/// A pair in which each connection has a handshake of its own.
fn pair(bed: &Testbed) -> Result<Pair, Failure> {
    let pair = Pair::with_env(bed, &[("PILLION_ACCESS_LOG", "denied")])?;
    recycle_ports(&pair.client)?;
    recycle_ports(&pair.server)?;
    let call = policy::call_without_reuse(&pair.server.addresses(), SERVER);
    pair.caller.load_policy(&call)?;
    Ok(pair)
}

/// No handshake has failed, and no connection has ended but as its apps wanted.
fn all_went_well(pair: &Pair) -> Result<f64, Failure> {
    let mut handshakes = 0.0;
    for (sidecar, way) in [(&pair.caller, direction::OUTBOUND), (&pair.callee, direction::INBOUND)]
    {
        sidecar.wait_idle()?;
        let metrics = sidecar.metrics()?;
        let results = metrics.by(metric::HANDSHAKES, "result");
        assert_eq!(results.keys().collect::<Vec<_>>(), ["ok"], "{way}: {results:?}");
        let reasons = metrics.by(metric::CLOSED, "reason");
        assert_eq!(reasons.keys().collect::<Vec<_>>(), [reason::CLOSED], "{way}: {reasons:?}");
        handshakes = metrics.sum(metric::HANDSHAKES, &[]);
        // The access log has those alone that have not gone well.
        let lines = sidecar.log_lines()?;
        assert!(lines.is_empty(), "{way}: {lines:?}");
    }
    Ok(handshakes)
}

/// A tenth of the load, which a machine that does other things reaches too, and a handshake for each
/// connection: reloads without a load would show nothing.
fn were_many(served: u64, handshakes: f64, took: Duration) {
    let least = took.as_secs_f64() * f64::from(A_SECOND) / 10.0;
    assert!(served as f64 >= least, "{served} connections in {took:.1?}");
    assert!(handshakes >= served as f64, "{served} connections, {handshakes} handshakes");
}

/// So many loads were counted at a sidecar, the first one among them, and so many failed; each has
/// its line.
fn loaded(sidecar: &Sidecar, good: usize, bad: usize) -> Result<(), Failure> {
    assert_eq!([sidecar.loads(true)?, sidecar.loads(false)?], [good as f64, bad as f64]);
    for (said, count) in [("certificates loaded", good), ("certificates can't be used", bad)] {
        wait_until(&format!("{count} times \"{said}\""), Duration::from_secs(10), || {
            Ok((sidecar.messages(said)?.len() == count).then_some(()))
        })?;
    }
    Ok(())
}

/// New files in a sidecar, and loaded.
fn publish(sidecar: &mut Sidecar, files: &Path) -> Result<(), Failure> {
    let before = sidecar.loads(true)?;
    sidecar.publish(files)?;
    sidecar.wait_load(true, before)
}

/// An SVID of an identity by an authority, with a bundle of several.
fn files(
    bed: &Testbed,
    name: &str,
    id: &str,
    issuer: &Path,
    bundle: &[&PathBuf],
) -> Result<PathBuf, Failure> {
    let out = bed.directory().join(name);
    forge::valid(issuer, id, -60, 3600, &out)?;
    let mut pem = String::new();
    for ca in bundle {
        pem += &fs::read_to_string(ca.join("ca.crt"))?;
    }
    fs::write(out.join("ca.crt"), pem)?;
    Ok(out)
}

/// Old, old and new, new: bundles first, then certificates, then bundles again.
#[test]
fn an_authority_is_replaced_under_load() {
    run("new-authority", |bed| {
        let mut pair = pair(bed)?;
        let (old, new) = (bed.ca()?, bed.foreign_ca("cluster.local")?);
        let listener = pair.listen(pair.server.v4(), APP)?;
        let long = pair.listen(pair.server.v4(), LONG)?;
        let (mut asking, mut answering) = pair.open(&long)?;
        pass(&mut asking, &mut answering, b"before")?;
        let client = pair.client.clone();
        let served = under_load(&client, &listener, A_SECOND, |well| {
            let steps: [(&str, &PathBuf, &[&PathBuf]); 3] = [
                ("both", &old, &[&old, &new]),
                ("issued", &new, &[&old, &new]),
                ("done", &new, &[&new]),
            ];
            for (step, issuer, bundle) in steps {
                for (id, sidecar) in [(SERVER, &mut pair.callee), (CLIENT, &mut pair.caller)] {
                    let name = format!("{step}-{}", id.len());
                    publish(sidecar, &files(bed, &name, id, issuer, bundle)?)?;
                    let_pass(Duration::from_millis(700));
                }
                assert!(well(), "a connection has failed at the step {step}");
                pass(&mut asking, &mut answering, step.as_bytes())?;
                pass(&mut answering, &mut asking, step.as_bytes())?;
            }
            Ok(())
        })?;
        drop((asking, answering));
        let handshakes = all_went_well(&pair)?;
        for sidecar in [&pair.caller, &pair.callee] {
            loaded(sidecar, 4, 0)?;
        }
        println!("{served} connections, {handshakes} handshakes");
        assert!(served > 400, "{served}");
        Ok(())
    });
}

/// Each time both sidecars in turn get a new certificate; every tenth time its file is cut off first.
#[test]
fn certificates_are_replaced_under_load() {
    run("reloads", |bed| {
        let mut pair = pair(bed)?;
        let ca = bed.ca()?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        let reloads = bed.settings().reloads();
        let (client, start) = (pair.client.clone(), Instant::now());
        let mut torn = 0;
        let out = bed.directory().join("next");
        let served = under_load(&client, &listener, A_SECOND, |well| {
            for number in 0..reloads {
                let (id, sidecar) = if number % 2 == 0 {
                    (SERVER, &mut pair.callee)
                } else {
                    (CLIENT, &mut pair.caller)
                };
                forge::valid(&ca, id, -60, 3600, &out)?;
                if number % 10 == 9 {
                    let before = sidecar.loads(false)?;
                    let whole = fs::read(out.join("tls.crt"))?;
                    fs::write(out.join("tls.crt"), whole.get(..whole.len() / 2).unwrap_or(&[]))?;
                    sidecar.publish(&out)?;
                    sidecar.wait_load(false, before)?;
                    fs::write(out.join("tls.crt"), whole)?;
                    torn += 1;
                }
                publish(sidecar, &out)?;
                assert!(well(), "a connection has failed at reload {number}");
            }
            Ok(())
        })?;
        let took = start.elapsed();
        let handshakes = all_went_well(&pair)?;
        for sidecar in [&pair.caller, &pair.callee] {
            assert_eq!(sidecar.health("/healthz/ready")?.0, 200);
        }
        // Half of them are the server's, and the client's are those that were torn.
        let each = usize::try_from(reloads).unwrap_or(usize::MAX);
        loaded(&pair.callee, 1 + each.div_ceil(2), 0)?;
        loaded(&pair.caller, 1 + each / 2, torn)?;
        were_many(served, handshakes, took);
        println!(
            "{reloads} reloads, {torn} torn writes, {served} connections, {handshakes} handshakes, \
             {:.0} a second, none failed, in {took:.1?}",
            served as f64 / took.as_secs_f64()
        );
        Ok(())
    });
}

/// Files of the plainest kind, for a sidecar that is told of each by a variable.
fn in_place(
    bed: &Testbed,
    pod: &Pod,
    id: &str,
    policy: String,
) -> Result<(Sidecar, PathBuf), Failure> {
    let directory = bed.issue(&bed.ca()?, id, &format!("{}-plain", pod.name()))?;
    let mut options =
        MeshOptions::new(policy, id).without_files().env("PILLION_ACCESS_LOG", "denied");
    for (name, file) in [("CERT", "tls.crt"), ("KEY", "tls.key"), ("CA", "ca.crt")] {
        let path = directory.join(file);
        chown(&path, Some(PROXY_USER), Some(PROXY_USER))?;
        options = options.env(&format!("PILLION_TLS_{name}_FILE"), &path.display().to_string());
    }
    Ok((pod.mesh(bed, options)?, directory))
}

/// Nobody swaps a folder here: the next certificate is written over the one in use, with a pause in
/// the middle of it, and its key after it. In between there is nothing that could be loaded.
#[test]
fn files_are_written_over_in_place_under_load() {
    const TIMES: usize = 10;
    run("reloads-in-place", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let (callee, at_server) = in_place(bed, &server, SERVER, policy::serve(&[CLIENT]))?;
        let call = policy::call_without_reuse(&server.addresses(), SERVER);
        let (caller, at_client) = in_place(bed, &client, CLIENT, call)?;
        let pair = Pair { client, caller, server, callee };
        let listener = pair.listen(pair.server.v4(), APP)?;
        let (ca, next, start) = (bed.ca()?, bed.directory().join("next"), Instant::now());
        let served = under_load(&pair.client, &listener, A_SECOND, |well| {
            let sides = [(&pair.callee, &at_server, SERVER), (&pair.caller, &at_client, CLIENT)];
            for (number, (sidecar, files, id)) in sides.into_iter().cycle().take(TIMES).enumerate()
            {
                forge::valid(&ca, id, -60, 3600, &next)?;
                let (good, bad) = (sidecar.loads(true)?, sidecar.loads(false)?);
                let whole = fs::read(next.join("tls.crt"))?;
                let (half, rest) = whole.split_at(whole.len() / 2);
                let mut file = File::create(files.join("tls.crt"))?;
                file.write_all(half)?;
                file.flush()?;
                sidecar.wait_load(false, bad)?;
                assert_eq!(sidecar.loads(true)?, good, "half a certificate is none");
                file.write_all(rest)?;
                drop(file);
                // It may be seen with the key of the one before.
                fs::write(files.join("tls.key"), fs::read(next.join("tls.key"))?)?;
                sidecar.wait_load(true, good)?;
                assert!(well(), "a connection has failed at reload {number}");
            }
            Ok(())
        })?;
        let took = start.elapsed();
        let handshakes = all_went_well(&pair)?;
        for sidecar in [&pair.caller, &pair.callee] {
            assert_eq!(sidecar.loads(true)?, 1.0 + (TIMES / 2) as f64);
            assert!(sidecar.loads(false)? >= (TIMES / 2) as f64);
        }
        were_many(served, handshakes, took);
        println!("{TIMES} reloads, {served} connections, {handshakes} handshakes, none failed");
        Ok(())
    });
}
