//! A peer's certificates and revocation lists: nothing is accepted but what the authority signed.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use pillion_certs::inspect::inspect;
use pillion_certs::refusal::PeerRefusal;
use pillion_certs::revocation::RevocationLists;
use pillion_certs::verify::{SvidVerifier, TrustBundles};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

pub(crate) const CA: &str = include_str!("../seeds/ca.crt");
/// An authority of the same domain that lets another issue below it.
const ROOT: &str = include_str!("../seeds/root.crt");
pub(crate) const LEAF: &str = include_str!("../seeds/leaf.crt");
/// Chains that were issued and keep every rule, as the targets' input has them.
const GOOD: [&[u8]; 3] = [
    include_bytes!("../corpus/svid/good"),
    include_bytes!("../corpus/svid/names"),
    include_bytes!("../corpus/svid/through"),
];

/// A list of the authority that names the first of these leaves, in DER.
const REVOKING: &[u8] = include_bytes!("../seeds/revokes.der");

/// A moment within the validity of all seeds, which is that of a day long past.
pub(crate) static NOW: LazyLock<UnixTime> = LazyLock::new(|| {
    let ca = CertificateDer::from_pem_slice(CA.as_bytes()).expect("the seed is PEM");
    let (_, ca) = X509Certificate::from_der(&ca).expect("the seed is a certificate");
    let from = u64::try_from(ca.validity().not_before.timestamp()).expect("after 1970");
    UnixTime::since_unix_epoch(Duration::from_secs(from + 600))
});

fn bundles() -> TrustBundles {
    let mut bundles = TrustBundles::new();
    let authorities = [CA, ROOT]
        .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).expect("the seed is PEM"));
    bundles.add("fuzz.example".parse().expect("a domain"), &authorities).expect("they are CAs");
    bundles
}

static VERIFIER: LazyLock<SvidVerifier> = LazyLock::new(|| SvidVerifier::new(bundles()));

/// What the authority signed of each good leaf.
static SIGNED: LazyLock<HashSet<Vec<u8>>> =
    LazyLock::new(|| GOOD.iter().map(|chain| signed(&split(chain)[0])).collect());

fn signed(leaf: &CertificateDer<'_>) -> Vec<u8> {
    let (_, leaf) = X509Certificate::from_der(leaf).expect("an accepted leaf parses");
    leaf.tbs_certificate.as_ref().to_vec()
}

/// A chain: each certificate has its length, two bytes, before it.
pub fn split(mut input: &[u8]) -> Vec<CertificateDer<'_>> {
    let mut chain = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        chain.push(CertificateDer::from(&rest[..length]));
        input = &rest[length..];
    }
    chain
}

/// A peer's chain. Whoever is accepted shows a leaf that was signed as it is.
pub fn check_chain(input: &[u8]) {
    let chain = split(input);
    let verdict = VERIFIER.verify(&chain, *NOW);
    match &verdict {
        Ok(peer) => {
            assert!(SIGNED.contains(&signed(&chain[0])), "a forged leaf: {peer:?}");
            assert_eq!(peer.id().trust_domain().as_str(), "fuzz.example");
            assert!(peer.is_valid_at(*NOW) && peer.chain() == chain);
        }
        Err(refusal) => {
            assert!(PeerRefusal::ALL_LABELS.contains(&refusal.label()));
            assert!(refusal.to_string().chars().all(|c| !c.is_control()), "{refusal}");
        }
    }
    let again = VERIFIER.verified_peer(Some(&chain), *NOW);
    assert_eq!(again.is_ok(), verdict.is_ok(), "what is remembered is what was found");
}

/// A text for people: PEM is looked at, with an authority to check by or without.
pub fn check_pem(input: &[u8]) {
    let plain = inspect(input, None, None, *NOW);
    let checked = inspect(input, Some(CA.as_bytes()), None, *NOW);
    assert!(!checked.is_good() || plain.is_good(), "an authority mends nothing");
    let mark = b"-----BEGIN CERTIFICATE-----";
    let marks = input.windows(mark.len()).filter(|bytes| bytes == mark).count();
    let read = plain.certificates.len();
    assert!(!plain.broken.is_empty() || marks == read, "{marks} sections, {read} read");
    // As the authorities too, whatever they are.
    let _ = inspect(LEAF.as_bytes(), Some(input), None, *NOW);
}

/// Revocation lists, before them surplus certificates for the chain, as [`lists_and_surplus`] has
/// them. What a list takes away, the authority has signed; and one that it has signed takes away
/// what it names, whatever else is in the chain.
pub fn check_lists(input: &[u8]) {
    let Some((surplus, input)) = lists_and_surplus(input) else { return };
    let Ok(lists) = RevocationLists::from_file(input) else { return };
    let count = lists.len();
    assert!(count >= 1 && lists.lifetimes().count() == count);
    let marks = input.windows(11).filter(|bytes| bytes == b"-----BEGIN ").count();
    let is_der = input.first() == Some(&0x30);
    assert!(is_der || marks == count, "{marks} sections, {count} lists: one is passed over");
    let verifier = SvidVerifier::new(bundles().with_revocation_lists(lists));
    let mut chain = split(GOOD[0]);
    chain.extend(surplus);
    // What is refused without lists is no business of theirs.
    let Ok(peer) = VERIFIER.verify(&chain, *NOW) else {
        assert!(verifier.verify(&chain, *NOW).is_err(), "a list makes a chain good");
        return;
    };
    let verdict = verifier.verify(&chain, *NOW);
    let label = verdict.as_ref().err().map(PeerRefusal::label);
    let ders = || {
        let pems = CertificateRevocationListDer::pem_slice_iter(input).flatten();
        pems.map(|der| der.to_vec()).chain([input.to_vec()])
    };
    match label {
        None => {
            let named = ders().any(|der| der == REVOKING);
            assert!(!named, "a list that names the leaf leaves it alone");
        }
        Some("revoked") => {
            let signed = |der: &[u8]| {
                CertificateRevocationList::from_der(der)
                    .is_ok_and(|(_, list)| list.tbs_cert_list.as_ref() == signed_list(REVOKING))
            };
            assert!(ders().any(|der| signed(&der)), "a forged list revokes");
        }
        Some(other) => assert!(["crl_invalid", "crl_expired"].contains(&other), "{other}"),
    }
    let later = verifier.revocation_of(&peer, *NOW).map(|refusal| refusal.label());
    assert_eq!(later == Some("revoked"), label == Some("revoked"), "{later:?} and {label:?}");
    let _ = inspect(LEAF.as_bytes(), Some(CA.as_bytes()), Some(input), *NOW);
}

/// The first two bytes say how many bytes of certificates follow, each as [`split`] has it; after
/// them is a file of lists.
fn lists_and_surplus(input: &[u8]) -> Option<(Vec<CertificateDer<'_>>, &[u8])> {
    let (length, rest) = input.split_first_chunk::<2>()?;
    let (surplus, lists) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((split(surplus), lists))
}

fn signed_list(der: &[u8]) -> Vec<u8> {
    let (_, list) = CertificateRevocationList::from_der(der).expect("the seed is a list");
    list.tbs_cert_list.as_ref().to_vec()
}
