//! Revocation lists: what they refuse, in both directions, and what they don't.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::result_large_err,
    reason = "a test ends at what it did not expect"
)]

mod common;

use std::time::Duration;

use common::{DOMAIN, HOUR, authority, bundles, chain, generation_with, handshake, svid};
use pillion_certs::generation::{Offer, OwnState, TlsGeneration};
use pillion_certs::issue::{CertificateAuthority, Forge, Issued};
use pillion_certs::refusal::PeerRefusal;
use pillion_certs::revocation::{CrlError, RevocationLists};
use pillion_certs::revoke::{RevocationReason, Serial, revocation_list};
use pillion_certs::verify::{SvidVerifier, TrustBundles, refusal_of};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};

fn id(path: &str) -> String {
    format!("spiffe://{DOMAIN}{path}")
}

/// A list of an authority that revokes these certificates and ends in an hour.
fn list(ca: &CertificateAuthority, revoked: &[&Issued]) -> String {
    let serials: Vec<_> = revoked
        .iter()
        .map(|svid| Serial::of_certificate(svid.chain_pem.as_bytes(), ca).unwrap())
        .collect();
    let reason = Some(RevocationReason::KeyCompromise);
    revocation_list(ca, None, &serials, reason, HOUR).unwrap()
}

fn lists(pem: &str) -> RevocationLists {
    RevocationLists::from_file(pem.as_bytes()).unwrap()
}

fn verifier(bundles: TrustBundles, pem: &str) -> SvidVerifier {
    SvidVerifier::new(bundles.with_revocation_lists(lists(pem)))
}

#[track_caller]
fn label(verifier: &SvidVerifier, svid: &Issued, now: UnixTime) -> Option<&'static str> {
    verifier.verify(&chain(svid), now).err().map(|refusal| refusal.label())
}

fn later(by: Duration) -> UnixTime {
    let now = Duration::from_secs(UnixTime::now().as_secs());
    UnixTime::since_unix_epoch(now + by)
}

#[test]
fn a_revoked_peer_is_refused_in_both_directions_and_named() {
    let ca = authority(DOMAIN);
    let (good, stolen) = (svid(&ca, &id("/good")), svid(&ca, &id("/stolen")));
    let trusted = || bundles(&[(DOMAIN, &ca)]).with_revocation_lists(lists(&list(&ca, &[&stolen])));
    let ours: TlsGeneration = generation_with(&svid(&ca, &id("/ours")), trusted());
    let theirs = |svid: &Issued| generation_with(svid, bundles(&[(DOMAIN, &ca)]));
    let refused = [
        handshake(theirs(&stolen).client_config(Offer::Single), ours.server_config(true))
            .unwrap_err()
            .server,
        handshake(ours.client_config(Offer::Single), theirs(&stolen).server_config(true))
            .unwrap_err()
            .client,
    ];
    for error in refused {
        let refusal = error.as_ref().and_then(refusal_of).unwrap();
        assert_eq!(refusal.label(), "revoked");
        let text = refusal.to_string();
        for part in [theirs(&stolen).serial(), id("/stolen").as_str(), "keyCompromise", "20"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    handshake(theirs(&good).client_config(Offer::Single), ours.server_config(true)).unwrap();
    handshake(ours.client_config(Offer::Single), theirs(&good).server_config(true)).unwrap();
}

#[test]
fn a_list_past_its_end_refuses_its_issuers_peers_alone() {
    let (ca, other) = (authority(DOMAIN), authority("other.example"));
    let both = || bundles(&[(DOMAIN, &ca), ("other.example", &other)]);
    let verifier = verifier(both(), &list(&ca, &[]));
    let (ours, theirs) = (svid(&ca, &id("/a")), svid(&other, "spiffe://other.example/a"));
    assert_eq!(label(&verifier, &ours, later(HOUR - Duration::from_secs(60))), None);
    let forge = Forge::new(&id("/a")).unwrap().valid(-60, 36_000).sign(&ca).unwrap();
    assert_eq!(label(&verifier, &forge, later(HOUR)), Some("crl_expired"));
    assert_eq!(label(&verifier, &theirs, later(HOUR / 2)), None, "no list of theirs: not checked");
    let peer = verifier.verified_peer(Some(&chain(&forge)), UnixTime::now()).unwrap();
    assert!(peer.is_valid_at(UnixTime::now()) && !peer.is_valid_at(later(HOUR)));
    let again = verifier.verified_peer(Some(&chain(&forge)), later(HOUR));
    assert_eq!(again.unwrap_err().label(), "crl_expired", "the memory of chains is no way around");
}

#[test]
fn a_list_by_a_wrong_key_or_a_signer_of_no_lists_refuses() {
    let ca = authority(DOMAIN);
    let peer = svid(&ca, &id("/a"));
    let forged = common::namesake(&ca, DOMAIN, true);
    let of_namesake = verifier(bundles(&[(DOMAIN, &ca)]), &list(&forged, &[]));
    assert_eq!(label(&of_namesake, &peer, UnixTime::now()), Some("crl_invalid"));
}

/// Two authorities of one name, as one that was made anew: each has a list, and either order in
/// the file is fine.
#[test]
fn authorities_of_one_name_have_a_list_each() {
    let old = authority(DOMAIN);
    let new = common::namesake(&old, DOMAIN, true);
    let pem = format!("{}{}", old.cert_pem, new.cert_pem);
    let both = || common::bundle_from_pem(DOMAIN, &pem);
    let (a, b) = (svid(&old, &id("/a")), svid(&new, &id("/b")));
    let (bad_a, bad_b) = (svid(&old, &id("/bad")), svid(&new, &id("/bad")));
    let (of_old, of_new) = (list(&old, &[&bad_a]), list(&new, &[&bad_b]));
    for pem in [format!("{of_old}{of_new}"), format!("{of_new}{of_old}")] {
        let verifier = verifier(both(), &pem);
        let now = UnixTime::now();
        for good in [&a, &b] {
            assert_eq!(label(&verifier, good, now), None);
        }
        for bad in [&bad_a, &bad_b] {
            assert_eq!(label(&verifier, bad, now), Some("revoked"));
        }
    }
    let alone = verifier(both(), &of_old);
    assert_eq!(label(&alone, &b, UnixTime::now()), Some("crl_invalid"), "b's issuer has none");
}

/// An old list left beside the new one takes nothing back.
#[test]
fn of_two_lists_of_one_authority_each_revokes() {
    let ca = authority(DOMAIN);
    let peer = svid(&ca, &id("/a"));
    let (without, with) = (list(&ca, &[]), list(&ca, &[&peer]));
    for pem in [format!("{without}{with}"), format!("{with}{without}")] {
        let verifier = verifier(bundles(&[(DOMAIN, &ca)]), &pem);
        assert_eq!(label(&verifier, &peer, UnixTime::now()), Some("revoked"));
    }
}

#[test]
fn an_intermediate_is_revoked_by_its_own_issuers_list() {
    let root = common::root_of_intermediates(DOMAIN);
    let between = common::intermediate(&root, &[]);
    let leaf = Forge::new(&id("/a")).unwrap().sign(&between).unwrap();
    let issued = Issued {
        chain_pem: format!("{}{}", leaf.chain_pem, between.cert_pem),
        key_pem: leaf.key_pem.clone(),
    };
    let as_issued =
        Issued { chain_pem: between.cert_pem.clone(), key_pem: between.key_pem.clone() };
    let trusted = || bundles(&[(DOMAIN, &root)]);
    let now = UnixTime::now();
    let by_root = verifier(trusted(), &list(&root, &[&as_issued]));
    assert_eq!(label(&by_root, &issued, now), Some("revoked"));
    let by_between = verifier(trusted(), &list(&between, &[&leaf]));
    assert_eq!(label(&by_between, &issued, now), Some("revoked"));
    // The same serial number in another issuer's list says nothing.
    let serial = Serial::of_certificate(leaf.chain_pem.as_bytes(), &between).unwrap();
    let elsewhere = revocation_list(&root, None, &[serial], None, HOUR).unwrap();
    assert_eq!(label(&verifier(trusted(), &elsewhere), &issued, now), None);
}

#[test]
fn an_issuer_that_may_not_sign_lists_has_none() {
    let root = common::root_of_intermediates(DOMAIN);
    let between = common::intermediate_without_crl_sign(&root);
    let leaf = Forge::new(&id("/a")).unwrap().sign(&between.0).unwrap();
    let issued = Issued {
        chain_pem: format!("{}{}", leaf.chain_pem, between.0.cert_pem),
        key_pem: leaf.key_pem,
    };
    let verifier = verifier(bundles(&[(DOMAIN, &root)]), &between.1);
    assert_eq!(label(&verifier, &issued, UnixTime::now()), Some("crl_invalid"));
}

/// The question that is asked of open connections.
#[test]
fn a_verified_peer_is_found_revoked_whatever_else_has_changed() {
    let (ca, new) = (authority(DOMAIN), authority(DOMAIN));
    let (good, bad) = (svid(&ca, &id("/good")), svid(&ca, &id("/bad")));
    let before = SvidVerifier::new(bundles(&[(DOMAIN, &ca)]));
    let verified = |svid| before.verify(&chain(svid), UnixTime::now()).unwrap();
    let (good, bad_peer) = (verified(&good), verified(&bad));
    let stale = revocation_list(
        &ca,
        None,
        &[Serial::of_certificate(bad.chain_pem.as_bytes(), &ca).unwrap()],
        None,
        Duration::from_secs(1),
    )
    .unwrap();
    let forged = common::namesake(&ca, DOMAIN, true);
    let by_wrong_key = list(&forged, &[&bad]);
    for (name, authority, pem, revoked) in [
        ("plain", &ca, list(&ca, &[&bad]), true),
        ("the authority has left the bundle", &new, list(&ca, &[&bad]), true),
        ("the list has ended", &ca, stale, true),
        ("an empty list", &ca, list(&ca, &[]), false),
        ("the authority has left, and nothing is revoked", &new, list(&new, &[]), false),
        ("a list by a wrong key", &ca, by_wrong_key.clone(), false),
        ("a list by a wrong key first", &ca, by_wrong_key + &list(&ca, &[&bad]), true),
    ] {
        let trusted = bundles(&[(DOMAIN, authority)]).with_revocation_lists(lists(&pem));
        let after = generation_with(&svid(authority, &id("/own")), trusted);
        let found = after.revocation_of(&bad_peer);
        assert_eq!(found.as_ref().map(PeerRefusal::label), revoked.then_some("revoked"), "{name}");
        assert_eq!(after.revocation_of(&good), None, "{name}");
    }
    assert_eq!(before.revocation_of(&bad_peer, UnixTime::now()), None, "no lists");
}

#[test]
fn our_own_certificate_in_a_list_is_known() {
    let ca = authority(DOMAIN);
    let own = svid(&ca, &id("/own"));
    let with = |pem: &str| {
        generation_with(&own, bundles(&[(DOMAIN, &ca)]).with_revocation_lists(lists(pem)))
    };
    let revoked = with(&list(&ca, &[&own]));
    assert_eq!(revoked.own_state(UnixTime::now()), OwnState::Revoked);
    let entry = revoked.own_revocation().unwrap();
    assert_eq!(entry.serial, revoked.serial());
    let other = with(&list(&ca, &[&svid(&ca, &id("/other"))]));
    assert_eq!(other.own_state(UnixTime::now()), OwnState::Good);
    // An expired one of ours is still found.
    let expired = Forge::new(&id("/own")).unwrap().valid(-60, -30).sign(&ca).unwrap();
    let lists = lists(&list(&ca, &[&expired]));
    let late = generation_with(&expired, bundles(&[(DOMAIN, &ca)]).with_revocation_lists(lists));
    assert_eq!(late.own_state(UnixTime::now()), OwnState::Revoked);
}

#[test]
fn a_file_of_lists_is_taken_whole_or_not_at_all() {
    let ca = authority(DOMAIN);
    let good = list(&ca, &[]);
    let der = CertificateRevocationListDer::from_pem_slice(good.as_bytes()).unwrap();
    assert_eq!(RevocationLists::from_file(&der).unwrap().len(), 1, "DER");
    let error = |content: &[u8]| RevocationLists::from_file(content).unwrap_err();
    assert!(matches!(error(b"hello"), CrlError::NoList(_)));
    assert!(matches!(error(ca.cert_pem.as_bytes()), CrlError::NoList(_)));
    assert!(matches!(error(&der[..der.len() - 1]), CrlError::Malformed(1, _)));
    let with_garbage = pem::encode(&pem::Pem::new("X509 CRL", vec![0x30, 0]));
    assert!(matches!(error((good.clone() + &with_garbage).as_bytes()), CrlError::Malformed(2, _)));
    let twice = [&der[..], &der[..]].concat();
    assert!(matches!(error(&twice), CrlError::Malformed(1, _)), "of DER, one");
    assert!(RevocationLists::from_file(good.repeat(4).as_bytes()).is_ok());
    assert_eq!(error(good.repeat(5).as_bytes()), CrlError::TooMany);
    let many: Vec<String> =
        std::iter::repeat_with(|| list(&authority(DOMAIN), &[])).take(257).collect();
    assert_eq!(lists(&many[..256].concat()).len(), 256);
    assert_eq!(error(many.concat().as_bytes()), CrlError::TooMany);
    let ders: Vec<_> = many
        .iter()
        .map(|pem| CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap())
        .collect();
    assert_eq!(RevocationLists::from_ders(&ders).unwrap_err(), CrlError::TooMany);
    assert!(RevocationLists::from_ders(&[]).unwrap().is_empty());
    assert!(!RevocationLists::from_ders(&ders[..1]).unwrap().is_empty());
}

#[test]
fn a_list_goes_on_from_one_of_the_same_name_and_key_alone() {
    let ca = authority(DOMAIN);
    let key = rcgen::KeyPair::from_pem(&ca.key_pem).unwrap();
    let mut params = common::params_named_as(&ca, DOMAIN);
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "renamed");
    let renamed = params.self_signed(&key).unwrap().pem();
    let renamed = CertificateAuthority { cert_pem: renamed, key_pem: ca.key_pem.clone() };
    let forged = common::namesake(&ca, DOMAIN, true);
    for (name, previous, goes_on) in
        [("own", &ca, true), ("another key's", &forged, false), ("another name's", &renamed, false)]
    {
        let previous = list(previous, &[]);
        let next = revocation_list(&ca, Some(previous.as_bytes()), &[], None, HOUR);
        assert_eq!(next.is_ok(), goes_on, "{name}");
    }
}

/// What the common reader of PEM passes over would revoke nothing.
#[test]
fn a_list_that_would_be_passed_over_spoils_the_file() {
    let ca = authority(DOMAIN);
    let good = list(&ca, &[]);
    let revoking = list(&ca, &[&svid(&ca, &id("/stolen"))]);
    let cut = |pem: &str| pem.split_inclusive('\n').take(3).collect::<String>();
    for spoilt in [
        format!("{}{revoking}", good.trim_end()),
        format!("{good} {revoking}"),
        format!("{good}\u{feff}{revoking}"),
        format!("{good}{}", revoking.replace("-----BEGIN", "----BEGIN")),
        format!("{good}{}", revoking.replace("X509 CRL", "CRL")),
        format!("{good}{}", ca.cert_pem),
        // Cut short: the next section took its place, and without a word where nobody reads that one.
        format!("{}{good}", cut(&revoking)),
        format!("{good}{}{}", cut(&revoking), ca.cert_pem),
        format!("{}{}{good}", cut(&revoking), ca.cert_pem),
        format!("{}{}{good}", cut(&revoking), ca.cert_pem.replace("CERTIFICATE", "NOTE")),
    ] {
        let error = RevocationLists::from_file(spoilt.as_bytes()).unwrap_err();
        assert!(matches!(&error, CrlError::NoList(_)), "{spoilt}: {error}");
        assert!(error.to_string().contains("line "), "{error}");
    }
    let both = format!("# two lists\n\n{good}\n{revoking}");
    assert_eq!(RevocationLists::from_file(both.as_bytes()).unwrap().len(), 2);
}

/// A list that is damaged anywhere revokes or refuses; it never lets the revoked in.
#[test]
fn a_list_with_one_byte_changed_never_lets_the_revoked_in() {
    let ca = authority(DOMAIN);
    let peer = svid(&ca, &id("/a"));
    let pem = list(&ca, &[&peer]);
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let issuer = {
        let ca = CertificateDer::from_pem_slice(ca.cert_pem.as_bytes()).unwrap();
        x509_parser::parse_x509_certificate(&ca).unwrap().1.subject().as_raw().to_vec()
    };
    let name = der.windows(issuer.len()).position(|w| w == issuer).unwrap();
    for at in (0..der.len()).filter(|at| !(name..name + issuer.len()).contains(at)) {
        let mut bad = der.clone();
        bad[at] ^= 0xff;
        let Ok(lists) = RevocationLists::from_file(&bad) else { continue };
        let trusted = bundles(&[(DOMAIN, &ca)]).with_revocation_lists(lists);
        assert!(label(&SvidVerifier::new(trusted), &peer, UnixTime::now()).is_some(), "byte {at}");
    }
}
