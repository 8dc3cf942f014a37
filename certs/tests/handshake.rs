//! Handshakes in memory, in both directions, with certificates that keep the rules and with each
//! that breaks one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::result_large_err,
    reason = "a test ends at what it did not expect"
)]

mod common;

use std::sync::Arc;

use common::{DOMAIN, authority, bundles, chain, generation, generation_with, handshake, svid};
use pillion_certs::generation::{ALPN_MESH, KeyExchange, Offer, OwnState, TlsGeneration};
use pillion_certs::issue::{self, CertificateAuthority, Forge};
use pillion_certs::refusal::PeerRefusal;
use pillion_certs::verify::{BundleError, SvidVerifier, TrustBundles, refusal_of};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ProtocolVersion;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

#[test]
fn each_bad_client_is_refused_by_our_server_with_its_own_label() {
    let ca = authority(DOMAIN);
    let server = generation(&ca, "/server");
    for bad in issue::bad_svids(&ca, &DOMAIN.parse().unwrap()).unwrap() {
        let client = common::rude_client(&bad.svid);
        let failure = handshake(client, server.server_config(true)).unwrap_err();
        let refusal = failure.server.as_ref().and_then(refusal_of);
        let label = refusal.as_ref().map(PeerRefusal::label);
        assert_eq!(label, Some(bad.expected_label), "{}: {refusal:?}", bad.name);
    }
}

#[test]
fn each_bad_server_is_refused_by_our_client_with_its_own_label() {
    let ca = authority(DOMAIN);
    let client = generation(&ca, "/client");
    for bad in issue::bad_svids(&ca, &DOMAIN.parse().unwrap()).unwrap() {
        let server = common::rude_server(&bad.svid);
        let failure = handshake(client.client_config(Offer::Single), server).unwrap_err();
        let refusal = failure.client.as_ref().and_then(refusal_of);
        let label = refusal.as_ref().map(PeerRefusal::label);
        assert_eq!(label, Some(bad.expected_label), "{}: {refusal:?}", bad.name);
    }
}

#[test]
fn each_good_certificate_is_taken_and_gives_its_identity() {
    let ca = authority(DOMAIN);
    let server = generation(&ca, "/server");
    let id = format!("spiffe://{DOMAIN}/ns/shop/sa/cart");
    let good = || Forge::new(&id).unwrap();
    for (name, forge) in [
        ("plain", good()),
        ("DNS and e-mail SANs around it", good().dns("cart.shop").email("a@example.com")),
        ("no extended key usage", good().extended_key_usages(&[])),
        ("DNS SAN first", good().no_sans().dns("cart.shop").uri(&id)),
    ] {
        let client = generation_with(&forge.sign(&ca).unwrap(), bundles(&[(DOMAIN, &ca)]));
        for alpn in [true, false] {
            let (at_client, at_server) =
                handshake(client.client_config(Offer::Single), server.server_config(alpn))
                    .unwrap_or_else(|failure| panic!("{name}: {failure:?}"));
            let peer = server.verified_peer(at_server.peer_certificates()).unwrap();
            assert_eq!(peer.id().as_str(), id, "{name}");
            assert_eq!(peer.serial(), client.serial());
            assert_eq!(peer.not_after(), client.not_after());
            let peer = client.verified_peer(at_client.peer_certificates()).unwrap();
            assert_eq!(peer.id(), server.own_id());
            assert_eq!(at_client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
            assert_eq!(at_server.alpn_protocol(), alpn.then_some(ALPN_MESH));
            assert_eq!(at_server.server_name(), None, "no SNI is sent");
        }
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let ca = authority(DOMAIN);
    let server = generation(&ca, "/server");
    let failure = handshake(common::nameless_client(), server.server_config(true)).unwrap_err();
    let refusal = failure.server.as_ref().and_then(refusal_of);
    assert_eq!(refusal, Some(PeerRefusal::NoCertificate));
    assert_eq!(server.verified_peer(None), Err(PeerRefusal::NoCertificate));
    assert_eq!(server.verified_peer(Some(&[])), Err(PeerRefusal::NoCertificate));
}

#[test]
fn an_authority_vouches_for_its_own_domain_alone() {
    let (a, b) = (authority("a.example"), authority("b.example"));
    let thief = Forge::new("spiffe://b.example/bank").unwrap().sign(&a).unwrap();
    for (trusted, label) in [
        (bundles(&[("a.example", &a)]), "untrusted_domain"),
        (bundles(&[("a.example", &a), ("b.example", &b)]), "unknown_issuer"),
    ] {
        let server = generation_with(&svid(&a, "spiffe://a.example/server"), trusted);
        let failure = handshake(common::rude_client(&thief), server.server_config(true));
        let refusal = failure.unwrap_err().server.as_ref().and_then(refusal_of);
        assert_eq!(refusal.map(|r| r.label()), Some(label));
        assert_eq!(server.verified_peer(Some(&chain(&thief))).unwrap_err().label(), label);
    }
}

#[test]
fn a_federated_domain_is_verified_by_its_own_bundle() {
    let (a, b) = (authority("a.example"), authority("b.example"));
    let both = || bundles(&[("a.example", &a), ("b.example", &b)]);
    let server = generation_with(&svid(&a, "spiffe://a.example/server"), both());
    let client = generation_with(&svid(&b, "spiffe://b.example/client"), both());
    let (_, at_server) =
        handshake(client.client_config(Offer::Single), server.server_config(true)).unwrap();
    let peer = server.verified_peer(at_server.peer_certificates()).unwrap();
    assert_eq!(peer.id().trust_domain().as_str(), "b.example");
}

#[test]
fn an_authority_of_the_same_domain_or_even_name_with_another_key_signs_nothing() {
    let ours = authority(DOMAIN);
    let server = generation(&ours, "/server");
    let refusal = |theirs| {
        let peer = svid(&theirs, &format!("spiffe://{DOMAIN}/a"));
        server.verified_peer(Some(&chain(&peer))).unwrap_err().label()
    };
    assert_eq!(refusal(authority(DOMAIN)), "unknown_issuer");
    assert_eq!(refusal(common::namesake(&ours, DOMAIN, false)), "bad_signature");
}

#[test]
fn an_authority_between_names_its_trust_domain_at_most() {
    let root = common::root_of_intermediates(DOMAIN);
    let server = generation_with(
        &svid(&authority(DOMAIN), &format!("spiffe://{DOMAIN}/server")),
        bundles(&[(DOMAIN, &root)]),
    );
    let domain = format!("spiffe://{DOMAIN}");
    let workload = format!("spiffe://{DOMAIN}/ca");
    for (uris, fault) in [
        (vec![], None),
        (vec![domain.as_str()], None),
        (vec![workload.as_str()], Some("its URI SAN is no trust domain's")),
        (vec![domain.as_str(), "spiffe://other.example"], Some("it has more than one URI SAN")),
    ] {
        let between = common::intermediate(&root, &uris);
        let leaf = Forge::new(&format!("spiffe://{DOMAIN}/a")).unwrap().sign(&between).unwrap();
        let mut chain = chain(&leaf);
        chain.push(CertificateDer::from_pem_slice(between.cert_pem.as_bytes()).unwrap());
        let refused = server.verified_peer(Some(&chain)).err().map(|refusal| match refusal {
            PeerRefusal::IssuerConstraint { what, .. } => what,
            other => panic!("{uris:?}: {other}"),
        });
        assert_eq!(refused.as_deref(), fault, "{uris:?}");
    }
}

#[test]
fn a_rotation_with_both_authorities_in_the_bundle_takes_both() {
    let (old, new) = (authority(DOMAIN), authority(DOMAIN));
    let mut pem = old.cert_pem.clone();
    pem.push_str(&new.cert_pem);
    let trusted = common::bundle_from_pem(DOMAIN, &pem);
    let server = generation_with(&svid(&new, &format!("spiffe://{DOMAIN}/server")), trusted);
    for authority in [&old, &new] {
        let peer = svid(authority, &format!("spiffe://{DOMAIN}/client"));
        assert!(server.verified_peer(Some(&chain(&peer))).is_ok());
    }
}

#[test]
fn a_chain_is_bounded_before_it_is_parsed() {
    let ca = authority(DOMAIN);
    let server = generation(&ca, "/server");
    let svid = svid(&ca, &format!("spiffe://{DOMAIN}/a"));
    let leaf = chain(&svid);
    let refusal = |chain: &[CertificateDer<'_>]| server.verified_peer(Some(chain)).unwrap_err();
    let many: Vec<_> = leaf.iter().cycle().take(5).cloned().collect();
    let bytes = 5 * leaf[0].len();
    assert_eq!(refusal(&many), PeerRefusal::ChainTooLong { certificates: 5, bytes });
    let client = common::rude_client_of(many.clone(), common::key(&svid));
    let failure = handshake(client, server.server_config(true)).unwrap_err();
    let in_handshake = failure.server.as_ref().and_then(refusal_of);
    assert_eq!(in_handshake, Some(PeerRefusal::ChainTooLong { certificates: 5, bytes }));
    let of_bytes =
        |bytes| [leaf[0].clone(), CertificateDer::from(vec![0x30; bytes - leaf[0].len()])];
    assert_eq!(
        refusal(&of_bytes(16 * 1024 + 1)),
        PeerRefusal::ChainTooLong { certificates: 2, bytes: 16 * 1024 + 1 }
    );
    assert_eq!(refusal(&of_bytes(16 * 1024)).label(), "malformed");
    assert!(server.verified_peer(Some(&many[..4])).is_ok(), "four are taken, surplus or not");
}

#[test]
fn a_leaf_with_one_byte_changed_is_refused() {
    let ca = authority(DOMAIN);
    let server = generation(&ca, "/server");
    let good = chain(&svid(&ca, &format!("spiffe://{DOMAIN}/a")))[0].to_vec();
    for at in 0..good.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= mask;
            let verdict = server.verified_peer(Some(&[CertificateDer::from(bad)]));
            assert!(verdict.is_err(), "byte {at} ^ {mask:#x}: {verdict:?}");
        }
        let cut = CertificateDer::from(good[..at].to_vec());
        assert_eq!(server.verified_peer(Some(&[cut])).unwrap_err().label(), "malformed");
    }
    let longer = CertificateDer::from([&good[..], &[0]].concat());
    assert_eq!(server.verified_peer(Some(&[longer])).unwrap_err().label(), "malformed");
}

#[test]
fn algorithms_are_ours_and_in_our_order() {
    use rustls::CipherSuite::{
        TLS13_AES_128_GCM_SHA256 as AES_128, TLS13_AES_256_GCM_SHA384 as AES_256,
        TLS13_CHACHA20_POLY1305_SHA256 as CHACHA,
    };
    use rustls::NamedGroup::{X25519, X25519MLKEM768, secp256r1};
    let ca = authority(DOMAIN);
    let own = svid(&ca, &format!("spiffe://{DOMAIN}/a"));
    for (exchange, wanted) in [
        (KeyExchange::Auto, &[X25519MLKEM768, X25519, secp256r1][..]),
        (KeyExchange::Classic, &[X25519, secp256r1]),
    ] {
        let trusted = bundles(&[(DOMAIN, &ca)]);
        let made = TlsGeneration::new(chain(&own), &common::key(&own), trusted, exchange).unwrap();
        for provider in [
            Arc::clone(made.client_config(Offer::Single).crypto_provider()),
            Arc::clone(made.server_config(true).crypto_provider()),
        ] {
            let groups: Vec<_> = provider.kx_groups.iter().map(|group| group.name()).collect();
            assert_eq!(groups, wanted, "{exchange:?}");
            let suites: Vec<_> = provider.cipher_suites.iter().map(|s| s.suite()).collect();
            // Which is faster depends on the CPU (RFC 8446 has no order).
            assert!(
                [[AES_128, AES_256, CHACHA], [CHACHA, AES_128, AES_256]]
                    .contains(&suites.clone().try_into().unwrap()),
                "{suites:?}"
            );
        }
    }
}

#[test]
fn what_the_library_finds_itself_has_a_label_too() {
    use rustls::CertificateError::{BadEncoding, BadSignature};
    let label = |error| refusal_of(&error).map(|refusal| refusal.label());
    let invalid = rustls::Error::InvalidCertificate;
    assert_eq!(label(invalid(BadEncoding)), Some("malformed"));
    assert_eq!(label(invalid(BadSignature)), Some("bad_handshake_signature"));
    assert_eq!(label(rustls::Error::NoCertificatesPresented), Some("no_certificate"));
    assert_eq!(label(rustls::Error::DecryptError), None, "no fault of the certificate");
}

#[test]
fn a_peer_is_its_chain_whoever_has_verified_it() {
    let ca = authority(DOMAIN);
    let [one, other] = ["a", "b"].map(|name| svid(&ca, &format!("spiffe://{DOMAIN}/{name}")));
    let verified = |svid| {
        let verifier = SvidVerifier::new(bundles(&[(DOMAIN, &ca)]));
        verifier.verify(&chain(svid), UnixTime::now()).unwrap()
    };
    assert_eq!(verified(&one), verified(&one));
    assert_ne!(verified(&one), verified(&other));
    assert_eq!(verified(&one).chain(), chain(&one));
}

#[test]
fn two_connections_are_two_full_handshakes() {
    let ca = authority(DOMAIN);
    let (server, client) = (generation(&ca, "/server"), generation(&ca, "/client"));
    let (server, client) = (server.server_config(true), client.client_config(Offer::Single));
    for _ in 0..2 {
        let (at_client, at_server) = handshake(client.clone(), server.clone()).unwrap();
        assert_eq!(at_client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(at_server.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[test]
fn a_certificate_of_our_own_that_is_out_of_its_time_loads_and_says_so() {
    let ca = authority(DOMAIN);
    let id = format!("spiffe://{DOMAIN}/late");
    let expired = Forge::new(&id).unwrap().valid(-7200, -3600).sign(&ca).unwrap();
    let generation: TlsGeneration = generation_with(&expired, bundles(&[(DOMAIN, &ca)]));
    assert_eq!(generation.own_state(UnixTime::now()), OwnState::Expired);
    let early = Forge::new(&id).unwrap().valid(3600, 7200).sign(&ca).unwrap();
    let early = generation_with(&early, bundles(&[(DOMAIN, &ca)]));
    assert_eq!(early.own_state(UnixTime::now()), OwnState::NotYetValid);
    let good = common::generation(&ca, "/a");
    assert_eq!(good.own_state(UnixTime::now()), OwnState::Good);
}

/// A root, an intermediate and a leaf, made by hand: the authorities of [`issue`] issue leaves only.
fn three_levels(
    root: impl FnOnce(&mut CertificateParams),
    intermediate: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, Vec<CertificateDer<'static>>) {
    let ca_params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root_params = ca_params("root");
    root(&mut root_params);
    let root = root_params.self_signed(&root_key).unwrap();
    let mut params = ca_params("intermediate");
    intermediate(&mut params);
    let issuer = Issuer::new(root_params, root_key);
    let intermediate = params.signed_by(&key, &issuer).unwrap();
    let authority =
        CertificateAuthority { cert_pem: intermediate.pem(), key_pem: key.serialize_pem().into() };
    let leaf = Forge::new(&format!("spiffe://{DOMAIN}/a")).unwrap().sign(&authority).unwrap();
    let chain = chain(&leaf).into_iter().chain([intermediate.der().clone()]).collect();
    (root.der().clone(), chain)
}

#[test]
fn the_issuers_on_the_path_are_judged_too() {
    let yesterday = || rcgen::date_time_ymd(2001, 1, 1);
    let keep = |_: &mut CertificateParams| {};
    for (name, label, (root, chain)) in [
        ("good", None, three_levels(keep, keep)),
        (
            "intermediate without keyCertSign",
            Some("issuer_constraint"),
            three_levels(keep, |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        ),
        (
            "intermediate without key usage",
            Some("issuer_constraint"),
            three_levels(keep, |p| p.key_usages.clear()),
        ),
        (
            "intermediate that is no CA",
            Some("issuer_constraint"),
            three_levels(keep, |p| p.is_ca = IsCa::ExplicitNoCa),
        ),
        (
            "intermediate for servers only",
            Some("issuer_constraint"),
            three_levels(keep, |p| {
                p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
        (
            "intermediate for clients only",
            Some("issuer_constraint"),
            three_levels(keep, |p| {
                p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            }),
        ),
        (
            "intermediate beyond the root's path length",
            Some("issuer_constraint"),
            three_levels(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), keep),
        ),
        ("expired root", Some("expired"), three_levels(|p| p.not_after = yesterday(), keep)),
        (
            "expired intermediate",
            Some("expired"),
            three_levels(keep, |p| p.not_after = yesterday()),
        ),
    ] {
        let mut bundles = TrustBundles::new();
        bundles.add(DOMAIN.parse().unwrap(), &[root]).unwrap();
        let verifier = SvidVerifier::new(bundles);
        let verdict = verifier.verify(&chain, UnixTime::now());
        assert_eq!(verdict.as_ref().err().map(PeerRefusal::label), label, "{name}: {verdict:?}");
        let alone = verifier.verify(&chain[..1], UnixTime::now()).unwrap_err();
        assert_eq!(alone.label(), "unknown_issuer", "{name}: without its intermediate");
    }
}

#[test]
fn a_bundle_takes_authorities_alone_and_each_domain_once() {
    let ca = authority(DOMAIN);
    let leaf = chain(&svid(&ca, &format!("spiffe://{DOMAIN}/a")));
    let mut bundles = bundles(&[(DOMAIN, &ca)]);
    let mut add = |domain: &str, list: &[_]| bundles.add(domain.parse().unwrap(), list);
    assert_eq!(add("other.example", &[]), Err(BundleError::Empty));
    assert_eq!(add("other.example", &leaf), Err(BundleError::NotAnAuthority(1)));
    let garbage = CertificateDer::from(vec![0x30, 0x00]);
    assert!(matches!(add("other.example", &[garbage]), Err(BundleError::Malformed(1, _))));
    let (useless, _) = three_levels(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign], |_| {});
    assert_eq!(add("other.example", &[useless]), Err(BundleError::NotAnAuthority(1)));
    let again = CertificateDer::from_pem_slice(ca.cert_pem.as_bytes()).unwrap();
    assert_eq!(add(DOMAIN, &[again]), Err(BundleError::Twice(DOMAIN.parse().unwrap())));
    assert_eq!(bundles.domains().count(), 1);
}

#[test]
fn a_stolen_certificate_without_its_key_is_refused() {
    let ca = authority(DOMAIN);
    let ours = generation(&ca, "/ours");
    let stolen = svid(&ca, &format!("spiffe://{DOMAIN}/bank"));
    // Also keys of another kind than the certificate's.
    for kind in
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
    {
        let own = KeyPair::generate_for(kind).unwrap().serialize_pem();
        let own = || PrivateKeyDer::from_pem_slice(own.as_bytes()).unwrap();
        let thief = common::rude_client_of(chain(&stolen), own());
        let failure = handshake(thief, ours.server_config(true)).unwrap_err();
        let refusal = failure.server.as_ref().and_then(refusal_of);
        assert_eq!(refusal, Some(PeerRefusal::BadHandshakeSignature), "{kind:?}");
        let thief = common::rude_server_of(chain(&stolen), own());
        let failure = handshake(ours.client_config(Offer::Single), thief).unwrap_err();
        let refusal = failure.client.as_ref().and_then(refusal_of);
        assert_eq!(refusal, Some(PeerRefusal::BadHandshakeSignature), "{kind:?}");
    }
}
