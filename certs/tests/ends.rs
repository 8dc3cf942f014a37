//! A path is as good as the first of its certificates to end, for peers and for our own chain.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at what it did not expect"
)]

mod common;

use std::time::{Duration, SystemTime};

use common::{DOMAIN, HOUR, authority, bundles, chain, generation_with, key, svid};
use pillion_certs::expiry::Subject;
use pillion_certs::generation::{GenerationError, KeyExchange, OwnState, TlsGeneration};
use pillion_certs::issue::{CertificateAuthority, Forge, Issued};
use pillion_certs::refusal::PeerRefusal;
use pillion_certs::revocation::RevocationLists;
use pillion_certs::verify::{SvidVerifier, TrustBundles};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// Seconds from now, on a whole second.
fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now() + seconds))
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// A root and an intermediate, certified as often as it has ends, and a leaf of an hour.
struct Made {
    root: CertificateDer<'static>,
    authority: CertificateAuthority,
    leaf: Issued,
    intermediates: Vec<CertificateDer<'static>>,
    /// The second from which all ends are counted.
    from: u64,
}

fn made(root_end: i64, intermediate_ends: &[i64]) -> Made {
    let from = now();
    let params = |name: &str, end: i64| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // By default it is the key's, and these have one key.
        params.serial_number = Some(SerialNumber::from(1_000_000_u64.saturating_add_signed(end)));
        let from = i64::try_from(from).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(from + end).unwrap();
        params
    };
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = params("root", root_end).self_signed(&root_key).unwrap();
    let authority =
        CertificateAuthority { cert_pem: root.pem(), key_pem: root_key.serialize_pem().into() };
    let root = root.der().clone();
    let issuer = Issuer::new(params("root", root_end), root_key);
    let intermediates: Vec<_> = intermediate_ends
        .iter()
        .map(|end| params("between", *end).signed_by(&key, &issuer).unwrap())
        .collect();
    let issuing = CertificateAuthority {
        cert_pem: intermediates[0].pem(),
        key_pem: key.serialize_pem().into(),
    };
    let forge = Forge::new(&format!("spiffe://{DOMAIN}/a")).unwrap().valid(-60, 3600);
    let leaf = forge.sign(&issuing).unwrap();
    let intermediates = intermediates.iter().map(|c| c.der().clone()).collect();
    Made { root, authority, leaf, intermediates, from }
}

impl Made {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        [chain(&self.leaf), self.intermediates.clone()].concat()
    }

    fn bundles(&self) -> TrustBundles {
        let mut bundles = TrustBundles::new();
        bundles.add(DOMAIN.parse().unwrap(), std::slice::from_ref(&self.root)).unwrap();
        bundles
    }

    /// The same, and a list of the root's that names an intermediate.
    fn revoking(&self, intermediate: usize) -> TrustBundles {
        let (_, parsed) = X509Certificate::from_der(&self.intermediates[intermediate]).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::from_pem(&self.authority.key_pem).unwrap();
        let time = |seconds: u64| {
            OffsetDateTime::from_unix_timestamp((self.from + seconds).try_into().unwrap()).unwrap()
        };
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from_slice(parsed.raw_serial()),
            revocation_time: time(0),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: time(0),
            next_update: time(7200),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&Issuer::new(params, key)).unwrap().pem().unwrap();
        let lists = RevocationLists::from_file(list.as_bytes()).unwrap();
        self.bundles().with_revocation_lists(lists)
    }

    fn at(&self, seconds: i64) -> UnixTime {
        let at = self.from.checked_add_signed(seconds).unwrap();
        UnixTime::since_unix_epoch(Duration::from_secs(at))
    }

    fn generation(&self, bundles: TrustBundles) -> TlsGeneration {
        TlsGeneration::new(self.chain(), &key(&self.leaf), bundles, KeyExchange::Auto).unwrap()
    }
}

#[test]
fn a_peer_ends_with_the_first_certificate_of_its_path() {
    for (root_end, intermediate_ends, end) in [
        (7200, &[1200][..], 1200),
        (900, &[1200], 900),
        (7200, &[1200, 1800], 1200),
        // A surplus one that has ended is no part of the path.
        (7200, &[1800, -600], 1800),
    ] {
        let made = made(root_end, intermediate_ends);
        let verifier = SvidVerifier::new(made.bundles());
        let peer = verifier.verified_peer(Some(&made.chain()), at(0)).unwrap();
        assert!(peer.is_valid_at(made.at(end)), "{root_end} {intermediate_ends:?}");
        assert!(!peer.is_valid_at(made.at(end + 1)), "{root_end} {intermediate_ends:?}");
        let again = verifier.verified_peer(Some(&made.chain()), made.at(end + 1));
        let stands = intermediate_ends.iter().any(|other| *other > end) && root_end > end;
        assert_eq!(again.is_ok(), stands, "the memory of chains is no way around: {again:?}");
        assert!(
            again.is_ok_and(|peer| peer.is_valid_at(made.at(end + 1))) == stands,
            "nor a brake"
        );
    }
}

#[test]
fn an_authority_counts_from_its_first_second_to_its_last() {
    let from = i64::try_from(now()).unwrap();
    let second = |second| OffsetDateTime::from_unix_timestamp(from + second).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (second(600), second(1200));
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().pem();
    let root = CertificateAuthority { cert_pem: root, key_pem: key.serialize_pem().into() };
    let leaf = Forge::new(&format!("spiffe://{DOMAIN}/a")).unwrap().sign(&root).unwrap();
    let verifier = SvidVerifier::new(bundles(&[(DOMAIN, &root)]));
    for (second, refused) in
        [(599, Some("not_yet_valid")), (600, None), (1200, None), (1201, Some("expired"))]
    {
        let time = u64::try_from(from + second).unwrap();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(time));
        let refusal = verifier.verify(&chain(&leaf), time).err();
        assert_eq!(refusal.as_ref().map(PeerRefusal::label), refused, "second {second}");
    }
}

#[test]
fn our_own_chain_ends_with_the_last_path_that_it_has() {
    for (root_end, intermediate_ends, end) in [
        (7200, &[1200][..], 1200),
        (7200, &[7200], 3600),
        (7200, &[1200, 1800], 1800),
        (7200, &[1800, 1200], 1800),
        (7200, &[1200, 7200], 3600),
        (7200, &[1200, -600], 1200),
        (7200, &[-600], -600),
        // Peers may have a newer certificate of the root.
        (-600, &[1200], 1200),
    ] {
        let case = format!("{root_end} {intermediate_ends:?}");
        let made = made(root_end, intermediate_ends);
        let generation = made.generation(made.bundles());
        let good = |seconds| generation.own_state(made.at(seconds)) == OwnState::Good;
        assert!(end < 0 || (good(0) && good(end)), "{case}");
        assert_eq!(generation.own_state(made.at(end + 1)), OwnState::Expired, "{case}");
        let until = i64::try_from(made.at(end).as_secs()).unwrap();
        let own = generation.lifetimes(at(0)).into_iter().find(|l| l.subject == Subject::OwnSvid);
        assert_eq!(own.unwrap().until, until, "{case}");
        let first = generation.not_before().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let before = first.saturating_sub(Duration::from_secs(1));
        let state = |at| generation.own_state(UnixTime::since_unix_epoch(at));
        assert_eq!(state(before), if end < 0 { state(first) } else { OwnState::NotYetValid });
        assert!(end < 0 || state(first) == OwnState::Good, "{case}");
        let not_after = generation.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(not_after.as_secs(), made.at(end).as_secs(), "{case}");
    }
}

#[test]
fn where_our_bundle_has_no_path_our_own_chain_ends_with_the_leaf() {
    let made = made(7200, &[1200]);
    let generation = made.generation(bundles(&[(DOMAIN, &authority(DOMAIN))]));
    assert_eq!(generation.own_state(made.at(3600)), OwnState::Good);
    assert_eq!(generation.own_state(made.at(3601)), OwnState::Expired);
    let other = made.generation(bundles(&[("other.example", &authority("other.example"))]));
    assert_eq!(other.own_state(made.at(3600)), OwnState::Good);
}

#[test]
fn everything_that_ends_is_named() {
    let (ca, partner) = (authority(DOMAIN), authority("partner.example"));
    let list = pillion_certs::revoke::revocation_list(&partner, None, &[], None, HOUR).unwrap();
    let lists = RevocationLists::from_file(list.as_bytes()).unwrap();
    let trusted =
        bundles(&[(DOMAIN, &ca), ("partner.example", &partner)]).with_revocation_lists(lists);
    let generation = generation_with(&svid(&ca, &format!("spiffe://{DOMAIN}/a")), trusted);
    let lifetimes = generation.lifetimes(UnixTime::now());
    let count = |is: fn(&Subject) -> bool| lifetimes.iter().filter(|l| is(&l.subject)).count();
    assert_eq!(lifetimes.len(), 4);
    assert_eq!(count(|s| matches!(s, Subject::OwnSvid)), 1);
    assert_eq!(count(|s| matches!(s, Subject::Authority(_))), 2);
    assert_eq!(count(|s| matches!(s, Subject::RevocationList(_))), 1);
}

#[test]
fn a_chain_of_our_own_that_every_peer_would_refuse_for_its_size_is_refused() {
    let ca = authority(DOMAIN);
    let own = svid(&ca, &format!("spiffe://{DOMAIN}/a"));
    let five: Vec<_> = chain(&own).into_iter().cycle().take(5).collect();
    let bytes = five.iter().map(|c| c.len()).sum();
    let made = |chain| {
        TlsGeneration::new(chain, &key(&own), bundles(&[(DOMAIN, &ca)]), KeyExchange::Auto)
            .map(|_| ())
    };
    let too_long = PeerRefusal::ChainTooLong { certificates: 5, bytes };
    assert_eq!(made(five.clone()), Err(GenerationError::OwnSvid(too_long)));
    assert_eq!(made(five[..4].to_vec()), Ok(()));
}

/// An open connection is judged by a path that stands now, where there is one.
#[test]
fn an_intermediate_that_is_revoked_ends_who_has_no_other_any_more() {
    let made = made(7200, &[1200, 1800]);
    let peer = SvidVerifier::new(made.bundles()).verify(&made.chain(), made.at(0)).unwrap();
    let after = SvidVerifier::new(made.revoking(1));
    for (seconds, opens, stays) in [
        (600, true, true),
        // The other intermediate has ended.
        (1300, false, false),
        // Both have: nothing opens, and what is open is no business of dates.
        (1900, false, true),
    ] {
        let now = made.at(seconds);
        assert_eq!(after.verify(&made.chain(), now).is_ok(), opens, "{seconds} s");
        assert_eq!(after.revocation_of(&peer, now).is_none(), stays, "{seconds} s, open");
    }
}

/// Peers may have a newer certificate of the authority, and they have its list.
#[test]
fn our_own_chain_is_found_revoked_below_an_authority_that_has_ended() {
    for root_end in [-600, 7200] {
        let made = made(root_end, &[1800]);
        assert_eq!(made.generation(made.bundles()).own_state(at(0)), OwnState::Good);
        assert_eq!(made.generation(made.revoking(0)).own_state(at(0)), OwnState::Revoked);
    }
}
