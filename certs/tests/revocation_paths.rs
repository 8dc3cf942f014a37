//! Revocation lists where a chain or the lists leave more than one way to look: nothing that a
//! peer adds to its chain, and no list beside another, hides that it is revoked.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at what it did not expect"
)]

mod common;

use std::time::Duration;

use common::{DOMAIN, HOUR, authority, bundle_from_pem, bundles, chain, generation_with, svid};
use pillion_certs::generation::OwnState;
use pillion_certs::inspect::inspect;
use pillion_certs::issue::{CertificateAuthority, Forge, Issued};
use pillion_certs::refusal::PeerRefusal;
use pillion_certs::revocation::RevocationLists;
use pillion_certs::verify::{SvidVerifier, TrustBundles};
use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope,
    KeyIdMethod, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

fn id(path: &str) -> String {
    format!("spiffe://{DOMAIN}{path}")
}

/// A list that ends in `ends` seconds, with or without a scope.
fn list(
    ca: &CertificateAuthority,
    revoked: Option<&Issued>,
    scope: Option<CrlIssuingDistributionPoint>,
    ends: i64,
) -> String {
    let entry = |svid: &Issued| {
        let chain = chain(svid);
        let (_, leaf) = x509_parser::parse_x509_certificate(chain.first().unwrap()).unwrap();
        RevokedCertParams {
            serial_number: SerialNumber::from_slice(leaf.raw_serial()),
            revocation_time: OffsetDateTime::now_utc(),
            reason_code: None,
            invalidity_date: None,
        }
    };
    let now = OffsetDateTime::now_utc();
    let params = CertificateRevocationListParams {
        this_update: now - time::Duration::days(1),
        next_update: now + time::Duration::seconds(ends),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: scope,
        revoked_certs: revoked.map(entry).into_iter().collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let key = rcgen::KeyPair::from_pem(&ca.key_pem).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca.cert_pem, key).unwrap();
    params.signed_by(&issuer).unwrap().pem().unwrap()
}

fn full(ca: &CertificateAuthority, revoked: Option<&Issued>) -> String {
    list(ca, revoked, None, 3600)
}

fn scoped(
    ca: &CertificateAuthority,
    revoked: Option<&Issued>,
    uri: &str,
    scope: Option<CrlScope>,
) -> String {
    let distribution_point = CrlDistributionPoint { uris: vec![uri.to_owned()] };
    let scope = CrlIssuingDistributionPoint { distribution_point, scope };
    list(ca, revoked, Some(scope), 3600)
}

/// A CA certificate that has the name of `of`, a key of its own, and this validity in days from
/// now. Anyone can make one.
fn surplus(of: &CertificateAuthority, days: (i64, i64)) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = common::params_named_as(of, DOMAIN);
    params.not_before = OffsetDateTime::now_utc() + time::Duration::days(days.0);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days.1);
    params.self_signed(&key).unwrap().pem()
}

fn with(svid: &Issued, surplus: &str) -> Issued {
    Issued { chain_pem: format!("{}{surplus}", svid.chain_pem), key_pem: svid.key_pem.clone() }
}

fn verifier(bundles: TrustBundles, pem: &str) -> SvidVerifier {
    let lists = RevocationLists::from_file(pem.as_bytes()).unwrap();
    SvidVerifier::new(bundles.with_revocation_lists(lists))
}

fn label(verifier: &SvidVerifier, svid: &Issued) -> Option<&'static str> {
    verifier.verify(&chain(svid), UnixTime::now()).err().map(|refusal| refusal.label())
}

fn in_seconds(seconds: u64) -> UnixTime {
    let now = Duration::from_secs(UnixTime::now().as_secs());
    UnixTime::since_unix_epoch(now + Duration::from_secs(seconds))
}

/// webpki reports the gravest of what it meets on all ways to an authority, and holds an expired
/// certificate for graver than a revoked one.
#[test]
fn a_surplus_certificate_that_is_out_of_date_hides_no_revocation() {
    let ca = authority(DOMAIN);
    let peer = svid(&ca, &id("/a"));
    let before = SvidVerifier::new(bundles(&[(DOMAIN, &ca)]));
    let (entry, none) = (full(&ca, Some(&peer)), full(&ca, None));
    let ended = list(&ca, None, None, -60);
    for days in [(-2, -1), (1, 2), (-1, 1)] {
        let peer = with(&peer, &surplus(&ca, days));
        let verified = before.verify(&chain(&peer), UnixTime::now()).unwrap();
        for (pem, refused) in [
            (entry.clone(), Some("revoked")),
            (format!("{none}{entry}"), Some("revoked")),
            (format!("{entry}{none}"), Some("revoked")),
            (format!("{ended}{entry}"), Some("revoked")),
            (ended.clone(), Some("crl_expired")),
            (format!("{none}{ended}"), Some("crl_expired")),
            (none.clone(), None),
        ] {
            let what = format!("{days:?}: {refused:?}");
            let after = verifier(bundles(&[(DOMAIN, &ca)]), &pem);
            assert_eq!(label(&after, &peer), refused, "{what}");
            let open = after.revocation_of(&verified, UnixTime::now());
            let revoked = refused.filter(|label| *label == "revoked");
            assert_eq!(open.as_ref().map(PeerRefusal::label), revoked, "{what}, open");
            let lists = RevocationLists::from_file(pem.as_bytes()).unwrap();
            let own = bundles(&[(DOMAIN, &ca)]).with_revocation_lists(lists);
            let state = generation_with(&peer, own).own_state(UnixTime::now());
            assert_eq!(state == OwnState::Revoked, revoked.is_some(), "{what}, our own");
        }
    }
}

/// Two roots certify one authority: a way that stands is enough, and of two that don't the graver
/// fault is told, whichever way is tried first.
#[test]
fn of_two_ways_to_an_authority_the_graver_fault_is_told() {
    let roots = ["one", "two"].map(common::root_of_intermediates);
    let key = rcgen::KeyPair::generate().unwrap();
    let between = roots.each_ref().map(|root| common::intermediate_of(&key, root, &[]));
    let leaf = Forge::new(&id("/a")).unwrap().sign(&between[0]).unwrap();
    let trusted = format!("{}{}", roots[0].cert_pem, roots[1].cert_pem);
    let good = |way: usize| full(&roots[way], None);
    let revoked = |way: usize| {
        let chain_pem = between[way].cert_pem.clone();
        full(&roots[way], Some(&Issued { chain_pem, key_pem: leaf.key_pem.clone() }))
    };
    let ended = |way: usize| list(&roots[way], None, None, -60);
    let forged = |way: usize| full(&common::namesake(&roots[way], DOMAIN, true), None);
    type List<'a> = &'a dyn Fn(usize) -> String;
    let cases: [(List<'_>, List<'_>, Option<&str>); 6] = [
        (&revoked, &ended, Some("revoked")),
        (&revoked, &forged, Some("revoked")),
        (&ended, &forged, Some("crl_expired")),
        (&revoked, &good, None),
        (&ended, &good, None),
        (&forged, &good, None),
    ];
    for (case, (graver, other, refused)) in cases.into_iter().enumerate() {
        for (first, second) in [(graver, other), (other, graver)] {
            let verifier = verifier(bundle_from_pem(DOMAIN, &trusted), &(first(0) + &second(1)));
            for chain in [[0, 1], [1, 0]] {
                let issuers = chain.map(|way| between[way].cert_pem.as_str()).concat();
                let peer = with(&leaf, &issuers);
                assert_eq!(label(&verifier, &peer), refused, "case {case}, chain {chain:?}");
            }
        }
    }
}

/// A path that is really out of date is still called so.
#[test]
fn an_expired_chain_is_expired_with_lists_and_without() {
    let root = common::root_of_intermediates(DOMAIN);
    let between = common::intermediate(&root, &[]);
    let good = Forge::new(&id("/a")).unwrap().sign(&between).unwrap();
    let expired = Forge::new(&id("/a")).unwrap().valid(-7200, -3600).sign(&between).unwrap();
    let (good, expired) = (with(&good, &between.cert_pem), with(&expired, &between.cert_pem));
    let lists = full(&between, None) + &full(&root, None);
    let verifier = verifier(bundles(&[(DOMAIN, &root)]), &lists);
    assert_eq!(label(&verifier, &good), None);
    assert_eq!(label(&verifier, &expired), Some("expired"));
    let late = verifier.verify(&chain(&good), in_seconds(2 * 3600));
    assert_eq!(late.unwrap_err().label(), "expired");
}

/// The entry that is reported is that of the list which revokes, for the certificate on the path.
#[test]
fn the_entry_is_of_the_issuers_own_list() {
    let ca = authority(DOMAIN);
    let peer = svid(&ca, &id("/a"));
    let forged = common::namesake(&ca, DOMAIN, true);
    let by_other = {
        let serial = pillion_certs::revoke::Serial::of_certificate(peer.chain_pem.as_bytes(), &ca);
        let reason = Some(pillion_certs::revoke::RevocationReason::CaCompromise);
        pillion_certs::revoke::revocation_list(&forged, None, &[serial.unwrap()], reason, HOUR)
    };
    let pem = by_other.unwrap() + &full(&ca, Some(&peer));
    let refusal = verifier(bundles(&[(DOMAIN, &ca)]), &pem);
    let refusal = refusal.verify(&chain(&peer), UnixTime::now()).unwrap_err();
    let PeerRefusal::Revoked { entry, .. } = refusal else { panic!("{refusal}") };
    assert_eq!(entry.reason, None, "the forged list gave one");
}

/// webpki looks into the first list whose scope has the certificate, and into no other.
#[test]
fn lists_of_different_scopes_each_revoke() {
    let ca = authority(DOMAIN);
    let peer = svid(&ca, &id("/a"));
    let (users, cas) = (Some(CrlScope::UserCertsOnly), Some(CrlScope::CaCertsOnly));
    let (one, two) = ("http://crl.example/1", "http://crl.example/2");
    for (name, quiet, telling) in [
        ("two partitions", scoped(&ca, None, one, None), scoped(&ca, Some(&peer), two, None)),
        ("two partitions of users", scoped(&ca, None, one, users), {
            scoped(&ca, Some(&peer), two, Some(CrlScope::UserCertsOnly))
        }),
        ("a full one beside a scoped", full(&ca, None), {
            scoped(&ca, Some(&peer), one, Some(CrlScope::UserCertsOnly))
        }),
        ("a scoped one beside a full", scoped(&ca, None, one, None), full(&ca, Some(&peer))),
    ] {
        for pem in [format!("{quiet}{telling}"), format!("{telling}{quiet}")] {
            let after = verifier(bundles(&[(DOMAIN, &ca)]), &pem);
            assert_eq!(label(&after, &peer), Some("revoked"), "{name}");
        }
        let quiet = verifier(bundles(&[(DOMAIN, &ca)]), &quiet);
        assert_eq!(label(&quiet, &peer), None, "{name}");
    }
    // A list whose scope has no leaf says nothing of one.
    let of_cas = scoped(&ca, Some(&peer), one, cas);
    let of_cas = verifier(bundles(&[(DOMAIN, &ca)]), &of_cas);
    assert_eq!(label(&of_cas, &peer), None);
}

/// A list that does not speak of the certificate makes no wrong key's list good, and a wrong key's
/// list, whatever its scope, does no harm beside a good one.
#[test]
fn a_wrong_keys_list_needs_a_good_one_of_the_same_certificate() {
    let ca = authority(DOMAIN);
    let other = common::namesake(&ca, DOMAIN, true);
    let peer = svid(&ca, &id("/a"));
    let uri = "http://crl.example/1";
    let wrong = full(&other, None);
    let of_cas = || scoped(&ca, None, uri, Some(CrlScope::CaCertsOnly));
    let of_users = || scoped(&ca, None, uri, Some(CrlScope::UserCertsOnly));
    for (name, beside, refused) in [
        ("alone", String::new(), Some("crl_invalid")),
        ("beside one of authorities", of_cas(), Some("crl_invalid")),
        ("beside one of users", of_users(), None),
        ("beside both", of_cas() + &of_users(), None),
        ("beside a full one", full(&ca, None), None),
    ] {
        for pem in [format!("{wrong}{beside}"), format!("{beside}{wrong}")] {
            let after = verifier(bundles(&[(DOMAIN, &ca)]), &pem);
            assert_eq!(label(&after, &peer), refused, "{name}");
        }
    }
}

/// A name alone signs nothing: `inspect` holds a list against the authority's key.
#[test]
fn inspect_tells_a_namesakes_list_from_the_authoritys_own() {
    let ca = authority(DOMAIN);
    let namesake = common::namesake(&ca, DOMAIN, true);
    for (by, broken) in
        [(&ca, &[][..]), (&namesake, &["crl_invalid"]), (&authority(DOMAIN), &["crl_invalid"])]
    {
        let authorities = Some(ca.cert_pem.as_bytes());
        let report = inspect(full(by, None).as_bytes(), authorities, None, UnixTime::now());
        let rules: Vec<_> = report.lists[0].broken.iter().map(|broken| broken.rule).collect();
        assert_eq!(rules, broken, "{}", report.lists[0].issuer);
    }
}

/// An authority that has a new key and certifies it with the old one: both have one name, and the
/// list of the first key is no list of the leaf's issuer.
#[test]
fn a_leaf_below_two_keys_of_one_name_is_found_revoked() {
    let old = common::root_of_intermediates(DOMAIN);
    let new = common::signed_namesake(&old);
    let leaf = Forge::new(&id("/a")).unwrap().sign(&new).unwrap();
    let leaf = with(&leaf, &new.cert_pem);
    let before = SvidVerifier::new(bundles(&[(DOMAIN, &old)]));
    let peer = before.verify(&chain(&leaf), UnixTime::now()).unwrap();
    let telling = full(&new, Some(&leaf));
    for pem in [telling.clone(), format!("{telling}{}", full(&old, None))] {
        let after = verifier(bundles(&[(DOMAIN, &old)]), &pem);
        assert_eq!(label(&after, &leaf), Some("revoked"));
        assert_eq!(
            after.revocation_of(&peer, UnixTime::now()).map(|refusal| refusal.label()),
            Some("revoked")
        );
    }
}

/// A peer stands for as long as the lists that it was held against, and no list of an old key or
/// of another scope shortens that.
#[test]
fn only_lists_that_count_end_a_peers_validity() {
    let ca = authority(DOMAIN);
    let other = common::namesake(&ca, DOMAIN, true);
    let pem = format!("{}{}", ca.cert_pem, other.cert_pem);
    let peer = svid(&ca, &id("/a"));
    let of_cas = |ends| {
        let uris = vec!["http://crl.example/1".to_owned()];
        let distribution_point = CrlDistributionPoint { uris };
        let scope = Some(CrlScope::CaCertsOnly);
        list(&ca, None, Some(CrlIssuingDistributionPoint { distribution_point, scope }), ends)
    };
    let good = || list(&ca, None, None, 1800);
    for (name, lists) in [
        ("of an old key, ended", good() + &list(&other, None, None, -60)),
        ("of an old key, first to end", good() + &list(&other, None, None, 600)),
        ("of another scope, ended", good() + &of_cas(-60)),
    ] {
        let verifier = verifier(bundle_from_pem(DOMAIN, &pem), &lists);
        let peer = verifier.verify(&chain(&peer), UnixTime::now()).unwrap();
        assert!(peer.is_valid_at(UnixTime::now()), "{name}");
        assert!(peer.is_valid_at(in_seconds(1700)), "{name}");
        assert!(!peer.is_valid_at(in_seconds(1900)), "{name}: the good list ends it");
    }
}
