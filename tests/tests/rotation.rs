//! Certificates and authorities that are replaced under load: each new connection is a handshake
//! of its own, and none may fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pillion_testbed::labels::{CLIENT, SERVER, direction, metric, reason};
use pillion_testbed::load::{recycle_ports, under_load};
use pillion_testbed::stream::pass;
use pillion_testbed::{Failure, Pair, Sidecar, Testbed, forge, let_pass, policy, run, wait_until};

const APP: u16 = 8080;
/// For the stream that stays open through it all.
const LONG: u16 = 8081;
const A_SECOND: u32 = 200;

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
        println!(
            "{reloads} reloads, {torn} torn writes, {served} connections, {handshakes} handshakes, \
             {:.0} a second, none failed, in {took:.1?}",
            served as f64 / took.as_secs_f64()
        );
        Ok(())
    });
}
