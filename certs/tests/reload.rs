//! Reloading from files: what is good is taken, what is broken leaves the last good generation.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at what it did not expect"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{DOMAIN, HOUR, authority, files_in, svid, write};
use pillion_certs::generation::{OwnState, TlsGeneration};
use pillion_certs::issue::{CertificateAuthority, Forge, Issued};
use pillion_certs::load::{IdentityFiles, LoadError, SvidSource, load};
use pillion_certs::reload::{Outcome, Reloader};
use pillion_certs::revoke::{Serial, revocation_list};
use pillion_certs::stillness::{Look, STILL_FOR, Stillness};
use rustls_pki_types::UnixTime;

fn id(path: &str) -> String {
    format!("spiffe://{DOMAIN}{path}")
}

/// Polls until what is there stands still.
#[allow(clippy::disallowed_methods, reason = "the pause is what whoever polls is asked for")]
fn poll(reloader: &mut Reloader) -> Outcome {
    loop {
        match reloader.poll(UnixTime::now()) {
            Outcome::Unsettled => std::thread::sleep(STILL_FOR),
            outcome => return outcome,
        }
    }
}

#[track_caller]
fn loaded(outcome: Outcome) -> Arc<TlsGeneration> {
    match outcome {
        Outcome::Loaded(generation) => generation,
        other => panic!("not loaded: {other:?}"),
    }
}

/// A generation, and the fault of the one part that it does without.
#[track_caller]
fn partly(outcome: Outcome) -> (Arc<TlsGeneration>, LoadError) {
    match outcome {
        Outcome::Partly(generation, faults) => match <[LoadError; 1]>::try_from(faults) {
            Ok([fault]) => (generation, fault),
            Err(faults) => panic!("{faults:?}"),
        },
        other => panic!("not a part: {other:?}"),
    }
}

#[track_caller]
fn failed(outcome: Outcome) -> LoadError {
    match outcome {
        Outcome::Failed(faults) => match <[LoadError; 1]>::try_from(faults) {
            Ok([fault]) => fault,
            Err(faults) => panic!("{faults:?}"),
        },
        other => panic!("not failed: {other:?}"),
    }
}

#[track_caller]
fn unchanged(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Unchanged), "{outcome:?}");
}

#[test]
fn whatever_breaks_is_reported_once_and_the_last_good_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(DOMAIN);
    let (good, other) = (svid(&ca, &id("/a")), svid(&ca, &id("/a")));
    write(dir.path(), &good, &ca);
    let mut reloader = Reloader::new(files_in(dir.path()));
    let first = loaded(poll(&mut reloader));
    unchanged(&poll(&mut reloader));

    let torn = good.chain_pem[..good.chain_pem.len() / 2].to_owned();
    let huge = "x".repeat(10 * 1024 * 1024);
    let ca_as_leaf = ca.cert_pem.clone();
    for (file, content, label) in [
        ("tls.crt", Some(torn.as_str()), "bad_pem"),
        ("tls.crt", Some(&other.chain_pem), "key_mismatch"),
        ("tls.key", Some(other.key_pem.as_str()), "key_mismatch"),
        ("tls.key", Some(&good.chain_pem), "bad_pem"),
        ("tls.key", None, "not_found"),
        ("tls.crt", Some(""), "empty"),
        ("tls.crt", Some(&huge), "too_large"),
        ("tls.crt", Some("hello\n"), "bad_pem"),
        ("tls.crt", Some(&ca_as_leaf), "own_svid_invalid"),
        ("ca.crt", Some(&good.chain_pem), "bundle"),
        ("ca.crt", Some("hello\n"), "bad_pem"),
        ("ca.crt", None, "not_found"),
    ] {
        let path = dir.path().join(file);
        let before = fs::read(&path).unwrap();
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = failed(poll(&mut reloader));
        assert_eq!(error.label(), label, "{file}: {error}");
        assert!(LoadError::ALL_LABELS.contains(&label));
        assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}: which file?");
        unchanged(&poll(&mut reloader));
        assert!(Arc::ptr_eq(reloader.current().unwrap(), &first));

        fs::write(&path, before).unwrap();
        assert!(Arc::ptr_eq(&loaded(poll(&mut reloader)), &first), "the same content is back");
    }

    write(dir.path(), &other, &ca);
    let second = loaded(poll(&mut reloader));
    assert_ne!(second.serial(), first.serial());
}

/// A certificate that the common reader of PEM passes over would be missed much later.
#[test]
fn no_certificate_of_a_file_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (old, new) = (authority(DOMAIN), authority(DOMAIN));
    let own = svid(&old, &id("/a"));
    write(dir, &own, &old);
    let load = |name: &str, content: &str| {
        fs::write(dir.join(name), content).unwrap();
        load(&files_in(dir), UnixTime::now()).map(|_| ())
    };
    for spoilt in [
        format!("{}{}", old.cert_pem.trim_end(), new.cert_pem),
        format!("{}  {}", old.cert_pem, new.cert_pem),
        format!("{}{}", old.cert_pem, new.cert_pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE")),
        format!("{}{}", old.cert_pem, revocation_list(&old, None, &[], None, HOUR).unwrap()),
    ] {
        for name in ["ca.crt", "tls.crt"] {
            write(dir, &own, &old);
            let error = load(name, &spoilt).unwrap_err();
            assert_eq!(error.label(), "bad_pem", "{name}: {spoilt}");
            assert!(error.to_string().contains(": line "), "{error}");
        }
    }
    write(dir, &own, &old);
    assert_eq!(load("ca.crt", &format!("old\n{}new\n{}", old.cert_pem, new.cert_pem)), Ok(()));
    let glued = format!("{}{}", own.chain_pem.trim_end(), *own.key_pem);
    let error = load("tls.key", &glued).unwrap_err().to_string();
    assert!(error.contains("a newline missing between two files"), "{error}");
    let parameters = "-----BEGIN EC PARAMETERS-----\nAAAA\n-----END EC PARAMETERS-----\n";
    assert_eq!(load("tls.key", &format!("{parameters}{}", *own.key_pem)), Ok(()));
}

/// Half of a file of authorities is a good one, and half of a file of lists is, too.
#[test]
fn what_is_being_written_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (old, new) = (authority(DOMAIN), authority(DOMAIN));
    write(dir, &svid(&old, &id("/a")), &old);
    let mut reloader = Reloader::new(files_in(dir));
    let first = loaded(reloader.poll(UnixTime::now()));
    fs::write(dir.join("ca.crt"), &new.cert_pem).unwrap();
    assert!(matches!(reloader.poll(UnixTime::now()), Outcome::Unsettled));
    fs::write(dir.join("ca.crt"), format!("{}{}", new.cert_pem, old.cert_pem)).unwrap();
    assert!(matches!(reloader.poll(UnixTime::now()), Outcome::Unsettled), "it is another thing");
    assert!(Arc::ptr_eq(reloader.current().unwrap(), &first));
    let next = loaded(poll(&mut reloader));
    assert!(
        next.verified_peer(Some(&common::chain(&svid(&old, &id("/b"))))).is_ok(),
        "it is whole"
    );
    // What is there again before it counted was never gone.
    fs::write(dir.join("ca.crt"), &new.cert_pem).unwrap();
    assert!(matches!(reloader.poll(UnixTime::now()), Outcome::Unsettled));
    fs::write(dir.join("ca.crt"), format!("{}{}", new.cert_pem, old.cert_pem)).unwrap();
    unchanged(&reloader.poll(UnixTime::now()));
}

#[test]
fn files_that_never_stand_still_are_told_of_once() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(DOMAIN);
    write(dir.path(), &svid(&ca, &id("/a")), &ca);
    let mut reloader = Reloader::new(files_in(dir.path()));
    let first = loaded(reloader.poll(UnixTime::now()));
    let mut told = 0;
    for number in 0..200 {
        fs::write(dir.path().join("ca.crt"), format!("{number}\n{}", ca.cert_pem)).unwrap();
        match reloader.poll(UnixTime::now()) {
            Outcome::Unsettled => {}
            Outcome::Failed(faults) if faults == [LoadError::Changing] => told += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, 1);
    assert!(Arc::ptr_eq(reloader.current().unwrap(), &first));
    assert!(!Arc::ptr_eq(&loaded(poll(&mut reloader)), &first), "and then they do");
}

#[test]
fn still_is_what_has_not_changed_for_a_while() {
    let start = Instant::now();
    let mut stillness = Stillness::default();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    assert_eq!(stillness.look('a', at(0)), Look::Again);
    assert_eq!(stillness.look('a', at(49)), Look::Again);
    assert_eq!(stillness.look('b', at(60)), Look::Again);
    assert_eq!(stillness.look('b', at(109)), Look::Again);
    assert_eq!(stillness.look('b', at(110)), Look::Still);
    assert_eq!(stillness.look('b', at(111)), Look::Again, "the next one is looked at anew");
    stillness.rest();
    let looks: Vec<_> = (0..80).map(|n| stillness.look(char::from(n), at(200))).collect();
    let restless: Vec<_> = (0..80).filter(|n| looks[*n] == Look::Restless).collect();
    assert_eq!(restless, [39, 79]);
}

#[test]
fn a_swapped_data_symlink_is_a_new_generation() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(DOMAIN);
    for (version, path) in [("..v1", "/one"), ("..v2", "/two")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        write(&dir.path().join(version), &svid(&ca, &id(path)), &ca);
    }
    symlink("..v1", dir.path().join("..data")).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
    }
    let mut reloader = Reloader::new(files_in(dir.path()));
    assert_eq!(loaded(reloader.poll(UnixTime::now())).own_id().as_str(), id("/one"));
    symlink("..v2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    assert_eq!(loaded(poll(&mut reloader)).own_id().as_str(), id("/two"));
    fs::remove_dir_all(dir.path().join("..v1")).unwrap();
    unchanged(&reloader.poll(UnixTime::now()));
}

/// As the kubelet lays it out and changes it, and with a file that somebody has put beside it.
#[test]
fn bundles_of_a_volume_come_and_go_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (ca, one, two) = (authority(DOMAIN), authority("one.example"), authority("two.example"));
    write(dir, &svid(&ca, &id("/a")), &ca);
    let bundles = dir.join("bundles");
    let version = |name: &str, partners: &[(&str, &CertificateAuthority)]| {
        fs::create_dir_all(bundles.join(name)).unwrap();
        for (partner, authority) in partners {
            fs::write(bundles.join(name).join(partner), &authority.cert_pem).unwrap();
        }
        symlink(name, bundles.join("..data_tmp")).unwrap();
        fs::rename(bundles.join("..data_tmp"), bundles.join("..data")).unwrap();
    };
    let link = |name: &str| symlink(Path::new("..data").join(name), bundles.join(name)).unwrap();
    let files = IdentityFiles { trust_bundles_dir: Some(bundles.clone()), ..files_in(dir) };
    let trusted = || {
        let generation = load(&files, UnixTime::now()).unwrap();
        let domains = generation.verifier().bundles().domains();
        domains.map(ToString::to_string).filter(|d| d != DOMAIN).collect::<BTreeSet<_>>()
    };
    version("..v1", &[("one.example.pem", &one)]);
    link("one.example.pem");
    assert_eq!(trusted(), ["one.example".to_owned()].into());
    version("..v2", &[("two.example.pem", &two)]);
    assert_eq!(trusted(), [].into(), "a link to what the volume no longer has is no fault");
    link("two.example.pem");
    fs::remove_file(bundles.join("one.example.pem")).unwrap();
    assert_eq!(trusted(), ["two.example".to_owned()].into());
    fs::write(bundles.join("one.example.pem"), &one.cert_pem).unwrap();
    assert_eq!(trusted().len(), 2, "a file beside those of the volume");
    fs::write(bundles.join("new"), &one.cert_pem).unwrap();
    fs::rename(bundles.join("new"), bundles.join("two.example.pem")).unwrap();
    let generation = load(&files, UnixTime::now()).unwrap();
    let stranger = Forge::new("spiffe://two.example/a").unwrap().sign(&one).unwrap();
    let now_of_one = generation.verified_peer(Some(&common::chain(&stranger)));
    assert!(now_of_one.is_ok(), "what stands in the place of the volume's link counts");
    link("four.example.pem");
    symlink("one.example.pem", bundles.join("..data_tmp")).unwrap();
    fs::rename(bundles.join("..data_tmp"), bundles.join("..data")).unwrap();
    let fault = load(&files, UnixTime::now()).unwrap_err();
    assert_eq!(fault.label(), "unreadable", "a volume that cannot be looked into: {fault}");
    fs::remove_file(bundles.join("four.example.pem")).unwrap();
    symlink("nowhere", bundles.join("three.example.pem")).unwrap();
    let fault = load(&files, UnixTime::now()).unwrap_err();
    assert_eq!(fault.label(), "not_found", "somebody's own link to nothing is told: {fault}");
}

#[test]
fn one_file_may_hold_key_and_chain_in_either_order() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(DOMAIN);
    let good = svid(&ca, &id("/a"));
    let file = dir.path().join("credentials.pem");
    fs::write(dir.path().join("ca.crt"), &ca.cert_pem).unwrap();
    let svid = SvidSource::Bundle { file: file.clone() };
    let files = IdentityFiles { svid, ..files_in(dir.path()) };
    for content in
        [good.bundle_pem().to_string(), format!("{}{}", good.chain_pem, good.key_pem.as_str())]
    {
        fs::write(&file, content).unwrap();
        assert_eq!(load(&files, UnixTime::now()).unwrap().own_id().as_str(), id("/a"));
    }
}

#[test]
fn a_key_in_sec1_form_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(DOMAIN);
    let good = svid(&ca, &id("/a"));
    write(dir.path(), &good, &ca);
    // PKCS#8 wraps the SEC1 structure (RFC 5915 §3): version 1, then 32 bytes of key.
    let pkcs8 = common::key(&good);
    let pkcs8 = pkcs8.secret_der();
    let version = [0x02, 0x01, 0x01, 0x04, 0x20];
    let at = pkcs8.windows(version.len()).position(|w| w == version).unwrap() - 2;
    let sec1 = pem::encode(&pem::Pem::new("EC PRIVATE KEY", &pkcs8[at..]));
    fs::write(dir.path().join("tls.key"), sec1).unwrap();
    assert_eq!(load(&files_in(dir.path()), UnixTime::now()).unwrap().own_id().as_str(), id("/a"));
}

#[test]
fn federated_bundles_come_from_a_directory_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (authority(DOMAIN), authority("other.example"));
    write(dir.path(), &svid(&ca, &id("/a")), &ca);
    let bundles = dir.path().join("bundles");
    fs::create_dir(&bundles).unwrap();
    fs::write(bundles.join("other.example.pem"), &other.cert_pem).unwrap();
    fs::write(bundles.join("README"), "not a bundle").unwrap();
    fs::write(bundles.join(".hidden.pem"), "not a bundle").unwrap();
    let files = IdentityFiles { trust_bundles_dir: Some(bundles.clone()), ..files_in(dir.path()) };
    let generation = load(&files, UnixTime::now()).unwrap();
    let mut domains: Vec<_> =
        generation.verifier().bundles().domains().map(ToString::to_string).collect();
    domains.sort();
    assert_eq!(domains, [DOMAIN, "other.example"]);

    let own = bundles.join(format!("{DOMAIN}.pem"));
    fs::write(&own, &other.cert_pem).unwrap();
    let error = load(&files, UnixTime::now()).unwrap_err();
    assert_eq!(error.label(), "bundle", "our own domain's bundle is ca.crt alone: {error}");
    fs::remove_file(&own).unwrap();
    fs::write(bundles.join("Bad Name.pem"), &other.cert_pem).unwrap();
    assert_eq!(load(&files, UnixTime::now()).unwrap_err().label(), "bundle");
}

#[test]
fn a_configured_trust_domain_must_be_the_certificates_own() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(DOMAIN);
    write(dir.path(), &svid(&ca, &id("/a")), &ca);
    let with = |domain: &str| IdentityFiles {
        trust_domain: Some(domain.parse().unwrap()),
        ..files_in(dir.path())
    };
    assert!(load(&with(DOMAIN), UnixTime::now()).is_ok());
    let error = load(&with("other.example"), UnixTime::now()).unwrap_err();
    assert_eq!(error.label(), "trust_domain");
}

#[test]
fn our_own_certificate_is_held_to_the_rules_but_for_its_date() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(DOMAIN);
    for bad in pillion_certs::issue::bad_svids(&ca, &DOMAIN.parse().unwrap()).unwrap() {
        write(dir.path(), &bad.svid, &ca);
        let result = load(&files_in(dir.path()), UnixTime::now());
        // These three are faults only in the eyes of somebody else: a clock, another bundle.
        if ["expired", "not_yet_valid", "untrusted_domain"].contains(&bad.expected_label) {
            assert!(result.is_ok(), "{}: {:?}", bad.name, result.err());
            continue;
        }
        match result {
            Err(LoadError::OwnSvidInvalid { refusal, .. }) => {
                assert_eq!(refusal.label(), bad.expected_label, "{}", bad.name);
            }
            other => panic!("{}: {other:?}", bad.name),
        }
    }
    let expired = Forge::new(&id("/a")).unwrap().valid(-20, -10).sign(&ca).unwrap();
    write(dir.path(), &expired, &ca);
    let generation = load(&files_in(dir.path()), UnixTime::now()).unwrap();
    assert_eq!(generation.own_state(UnixTime::now()), OwnState::Expired);
}

#[test]
fn revocation_lists_are_loaded_with_the_rest_and_as_carefully() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(DOMAIN);
    write(dir.path(), &svid(&ca, &id("/a")), &ca);
    let path = dir.path().join("crl.pem");
    let files = IdentityFiles { crl: Some(path.clone()), ..files_in(dir.path()) };
    assert!(files.paths().contains(&path), "watched");
    let mut reloader = Reloader::new(files);
    assert_eq!(failed(poll(&mut reloader)).label(), "not_found", "no file is no empty list");
    let list = || revocation_list(&ca, None, &[], None, HOUR).unwrap();
    let good = list();
    fs::write(&path, &good).unwrap();
    let first = loaded(poll(&mut reloader));
    assert_eq!(first.revocation_lists().len(), 1);
    let huge = "x".repeat(8 * 1024 * 1024 + 1);
    let torn = &good[..good.len() / 2];
    for (content, label) in [
        (torn, "bad_crl"),
        ("hello\n", "bad_crl"),
        (&ca.cert_pem, "bad_crl"),
        ("", "empty"),
        (&huge, "too_large"),
    ] {
        fs::write(&path, content).unwrap();
        let (kept, error) = partly(poll(&mut reloader));
        assert_eq!(error.label(), label, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}: which file?");
        assert_eq!(kept.revocation_lists().len(), 1, "the lists of before stay");
        unchanged(&poll(&mut reloader));
    }
    // More than a certificate may have, and still a list.
    let padded = format!("{}{good}", "# padding\n".repeat(200_000));
    fs::write(&path, padded).unwrap();
    assert!(!Arc::ptr_eq(&loaded(poll(&mut reloader)), &first), "a change of the lists alone");
    fs::write(&path, &good).unwrap();
    loaded(poll(&mut reloader));
    fs::remove_file(&path).unwrap();
    let (kept, error) = partly(poll(&mut reloader));
    assert_eq!((error.label(), kept.revocation_lists().len()), ("not_found", 1));
}

/// Whoever keeps a partner's bundle holds up neither our rotation nor a revocation.
#[test]
fn a_broken_bundle_of_another_domain_is_its_own_business() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (ca, partner) = (authority(DOMAIN), authority("partner.example"));
    let (peer, theirs) = (svid(&ca, &id("/peer")), svid(&partner, "spiffe://partner.example/a"));
    let bundles = dir.join("bundles");
    let (bundle, list) = (bundles.join("partner.example.pem"), dir.join("crl.pem"));
    fs::create_dir(&bundles).unwrap();
    write(dir, &svid(&ca, &id("/a")), &ca);
    fs::write(&bundle, "").unwrap();
    let revoking = |serials: &[_]| revocation_list(&ca, None, serials, None, HOUR).unwrap();
    fs::write(&list, revoking(&[])).unwrap();
    let trust_bundles_dir = Some(bundles.clone());
    let mut reloader = Reloader::new(IdentityFiles {
        trust_bundles_dir,
        crl: Some(list.clone()),
        ..files_in(dir)
    });
    let mut poll = || poll(&mut reloader);
    let verdict = |generation: &TlsGeneration, svid: &Issued| {
        let verdict = generation.verified_peer(Some(&common::chain(svid)));
        verdict.err().map(|refusal| refusal.label())
    };

    let (start, fault) = partly(poll());
    assert_eq!(fault.label(), "empty");
    assert_eq!(verdict(&start, &peer), None, "ours are served");
    assert_eq!(verdict(&start, &theirs), Some("untrusted_domain"));
    fs::write(&bundle, &partner.cert_pem).unwrap();
    assert_eq!(verdict(&loaded(poll()), &theirs), None);

    for (broken, label) in [("hello", "bad_pem"), (peer.chain_pem.as_str(), "bundle")] {
        fs::write(&bundle, broken).unwrap();
        let (kept, fault) = partly(poll());
        assert_eq!(fault.label(), label, "{fault}");
        assert_eq!(verdict(&kept, &theirs), None, "what was good stays");
    }
    unchanged(&poll());
    let ours = svid(&ca, &id("/a"));
    write(dir, &ours, &ca);
    let serial = Serial::of_certificate(peer.chain_pem.as_bytes(), &ca).unwrap();
    fs::write(&list, revoking(&[serial])).unwrap();
    let (next, _) = partly(poll());
    assert_eq!(verdict(&next, &peer), Some("revoked"));
    assert_eq!(next.own_id().as_str(), id("/a"));
    let (next_serial, chain) = (next.serial().to_owned(), common::chain(&ours));
    let shown = next.verified_peer(Some(&chain)).unwrap();
    assert_eq!(shown.serial(), next_serial, "the next certificate is in use");

    // What is wrong of a content is told again when it comes back after something worse.
    fs::write(dir.join("tls.crt"), "hello").unwrap();
    failed(poll());
    write(dir, &ours, &ca);
    let (again, fault) = partly(poll());
    assert!(Arc::ptr_eq(&again, &next) && fault.label() == "bundle", "{fault}");

    fs::write(bundles.join("Bad Name.pem"), &partner.cert_pem).unwrap();
    let Outcome::Partly(_, faults) = poll() else { panic!("a name that is no domain's") };
    assert_eq!(faults.len(), 2);
    fs::remove_file(&bundle).unwrap();
    let (without, fault) = partly(poll());
    assert!(fault.to_string().contains("Bad Name.pem"), "{fault}");
    assert_eq!(
        verdict(&without, &theirs),
        Some("untrusted_domain"),
        "a file that has gone is gone"
    );
}

/// What is wrong of our own certificate, key or authorities must not hold up a revocation.
#[test]
fn a_fault_of_ours_holds_up_no_revocation() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ca = authority(DOMAIN);
    let (ours, peers) = (svid(&ca, &id("/a")), [svid(&ca, &id("/b")), svid(&ca, &id("/c"))]);
    let list = dir.join("crl.pem");
    let revoke = |peers: &[Issued]| {
        let serial =
            |peer: &Issued| Serial::of_certificate(peer.chain_pem.as_bytes(), &ca).unwrap();
        let serials: Vec<_> = peers.iter().map(serial).collect();
        fs::write(&list, revocation_list(&ca, None, &serials, None, HOUR).unwrap()).unwrap();
    };
    let revoked = |generation: &TlsGeneration| {
        let verdict = |peer| generation.verified_peer(Some(&common::chain(peer)));
        peers
            .each_ref()
            .map(|peer| verdict(peer).is_err_and(|refusal| refusal.label() == "revoked"))
    };
    let other = svid(&ca, &id("/a"));
    type Spoil<'a> = (&'a str, &'a dyn Fn(), &'a str);
    let spoilt: [Spoil<'_>; 6] = [
        (
            "a half-written chain",
            &|| fs::write(dir.join("tls.crt"), &ours.chain_pem[..200]).unwrap(),
            "bad_pem",
        ),
        (
            "the key of another",
            &|| fs::write(dir.join("tls.key"), &*other.key_pem).unwrap(),
            "key_mismatch",
        ),
        ("no key", &|| fs::remove_file(dir.join("tls.key")).unwrap(), "not_found"),
        ("no authority", &|| fs::write(dir.join("ca.crt"), "").unwrap(), "empty"),
        (
            "no authority's certificate",
            &|| fs::write(dir.join("ca.crt"), &ours.chain_pem).unwrap(),
            "bundle",
        ),
        ("no folder of bundles", &|| fs::remove_dir(dir.join("bundles")).unwrap(), "not_found"),
    ];
    for (what, spoil, label) in spoilt {
        write(dir, &ours, &ca);
        let bundles = dir.join("bundles");
        fs::create_dir_all(&bundles).unwrap();
        revoke(&[]);
        let files = IdentityFiles {
            crl: Some(list.clone()),
            trust_bundles_dir: Some(bundles),
            ..files_in(dir)
        };
        let mut reloader = Reloader::new(files);
        let start = loaded(poll(&mut reloader));
        assert_eq!(revoked(&start), [false, false], "{what}");

        spoil();
        assert_eq!(
            failed(poll(&mut reloader)).label(),
            label,
            "{what}: there is nothing new to use"
        );
        revoke(&peers[..1]);
        let (next, fault) = partly(poll(&mut reloader));
        assert_eq!(fault.label(), label, "{what}");
        assert_eq!(revoked(&next), [true, false], "{what}");
        assert_eq!(
            (next.serial(), next.own_state(UnixTime::now())),
            (start.serial(), OwnState::Good)
        );
        unchanged(&poll(&mut reloader));

        fs::write(&list, "torn").unwrap();
        let Outcome::Failed(faults) = poll(&mut reloader) else {
            panic!("{what}: nothing is good")
        };
        assert_eq!(faults.iter().map(LoadError::label).collect::<Vec<_>>(), [label, "bad_crl"]);
        assert_eq!(revoked(reloader.current().unwrap()), [true, false], "{what}: it stays");
        revoke(&peers);
        assert_eq!(revoked(&partly(poll(&mut reloader)).0), [true, true], "{what}: once more");
        write(dir, &other, &ca);
        fs::create_dir_all(dir.join("bundles")).unwrap();
        let mended = loaded(poll(&mut reloader));
        assert_eq!(revoked(&mended), [true, true], "{what}: mended");
        assert_ne!(mended.serial(), start.serial(), "{what}: our part is the new one");
    }
}
