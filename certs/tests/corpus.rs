//! The whole corpus, judged alone and in handshakes in both directions.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::result_large_err,
    reason = "a test ends at what it did not expect"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use common::{DOMAIN, authority, bundle_from_pem, generation_with, handshake, svid};
use pillion_certs::corpus::{Corpus, Entry, Verdict};
use pillion_certs::generation::{Offer, TlsGeneration};
use pillion_certs::issue::CertificateAuthority;
use pillion_certs::refusal::PeerRefusal;
use pillion_certs::revocation::RevocationLists;
use pillion_certs::verify::refusal_of;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

/// The corpus, who judges it, and the authority of both.
fn made() -> &'static (Corpus, TlsGeneration, CertificateAuthority) {
    static MADE: OnceLock<(Corpus, TlsGeneration, CertificateAuthority)> = OnceLock::new();
    MADE.get_or_init(|| {
        let ca = authority(DOMAIN);
        let copy =
            CertificateAuthority { cert_pem: ca.cert_pem.clone(), key_pem: ca.key_pem.clone() };
        let corpus = Corpus::new(copy, &DOMAIN.parse().unwrap()).unwrap();
        let lists = RevocationLists::from_file(corpus.crl_pem.as_bytes()).unwrap();
        let bundles = bundle_from_pem(DOMAIN, &corpus.bundle_pem).with_revocation_lists(lists);
        let judge = generation_with(&svid(&ca, &format!("spiffe://{DOMAIN}/judge")), bundles);
        (corpus, judge, ca)
    })
}

fn key(entry: &Entry) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(entry.key_pem.as_bytes()).unwrap()
}

/// Judges every entry in one way, and fails with all that were judged wrongly.
fn judge_all(judge: impl Fn(&Entry) -> Option<PeerRefusal>) {
    let wrong: Vec<String> = made()
        .0
        .entries
        .iter()
        .filter_map(|entry| {
            let refusal = judge(entry);
            let verdict = refusal.as_ref().map_or(Verdict::Good, |r| Verdict::Refused(r.label()));
            (verdict != entry.verdict)
                .then(|| format!("{}: wanted {:?}, got {refusal:?}", entry.name, entry.verdict))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_chain_gets_its_verdict() {
    judge_all(|entry| made().1.verified_peer(Some(&entry.chain)).err());
}

#[test]
fn each_client_gets_its_verdict() {
    judge_all(|entry| {
        let client = common::rude_client_of(entry.chain.clone(), key(entry));
        let failure = handshake(client, made().1.server_config(true)).err()?;
        Some(failure.server.as_ref().and_then(refusal_of).unwrap_or_else(|| panic!("{failure:?}")))
    });
}

#[test]
fn each_server_gets_its_verdict() {
    judge_all(|entry| {
        let server = common::rude_server_of(entry.chain.clone(), key(entry));
        let failure = handshake(made().1.client_config(Offer::Single), server).err()?;
        Some(failure.client.as_ref().and_then(refusal_of).unwrap_or_else(|| panic!("{failure:?}")))
    });
}

#[test]
fn the_corpus_is_large_and_its_names_are_distinct() {
    let (corpus, ..) = made();
    let names: BTreeSet<_> = corpus.entries.iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), corpus.entries.len());
    let good = corpus.entries.iter().filter(|entry| entry.verdict == Verdict::Good).count();
    println!("{good} good and {} bad", corpus.entries.len() - good);
    assert!(good >= 20 && corpus.entries.len() - good >= 60, "{good} of {}", names.len());
}

/// A label that nothing raises is a rule that nothing holds.
#[test]
fn every_label_of_a_refusal_is_raised() {
    let (corpus, judge, ca) = made();
    let mut raised: BTreeSet<_> = corpus
        .entries
        .iter()
        .filter_map(|entry| judge.verified_peer(Some(&entry.chain)).err())
        .map(|refusal| refusal.label())
        .collect();
    // Two are no certificate's fault.
    let [stolen, own] =
        ["/bank", "/thief"].map(|path| svid(ca, &format!("spiffe://{DOMAIN}{path}")));
    let thief = common::rude_client_of(common::chain(&stolen), common::key(&own));
    for client in [common::nameless_client(), thief] {
        let failure = handshake(client, judge.server_config(true)).unwrap_err();
        raised.insert(failure.server.as_ref().and_then(refusal_of).unwrap().label());
    }
    assert_eq!(raised, PeerRefusal::ALL_LABELS.iter().copied().collect());
}
