//! Our own identity, from files and as an agent hands it out: what is bad of others' part takes
//! nothing of ours away, and no input breaks the loader.

use std::path::PathBuf;
use std::sync::LazyLock;

use pillion_certs::generation::TlsGeneration;
use pillion_certs::load::{IdentityFiles, KeyExchange, LoadError, SvidSource, load};
use pillion_certs::received::Received;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::certs::{CA, LEAF, NOW};

const KEY: &str = include_str!("../seeds/leaf.key");
const PARTNER: &str = include_str!("../seeds/partner.crt");
/// A list of our authority's that names none of the leaves.
const LIST: &str = include_str!("../seeds/empty.pem");

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let directory = base.join(format!("pillion-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("bundles")).expect("a directory for the files");
    directory
});

/// A file of an identity; the others are good. The first byte says which it is.
pub fn check_file(input: &[u8]) {
    let Some((which, content)) = input.split_first() else { return };
    let files = [
        ("tls.crt", LEAF),
        ("tls.key", KEY),
        ("ca.crt", CA),
        ("both.pem", ""),
        ("crl.pem", LIST),
        ("bundles/partner.example.pem", PARTNER),
    ];
    let which = usize::from(*which) % files.len();
    for (number, (name, good)) in files.iter().enumerate() {
        let content = if number == which { content } else { good.as_bytes() };
        std::fs::write(DIRECTORY.join(name), content).expect("a file is written");
    }
    let file = |name: &str| DIRECTORY.join(name);
    let svid = if which == 3 {
        SvidSource::Bundle { file: file("both.pem") }
    } else {
        SvidSource::Files { cert: file("tls.crt"), key: file("tls.key") }
    };
    let files = IdentityFiles {
        svid,
        ca: file("ca.crt"),
        crl: Some(file("crl.pem")),
        trust_bundles_dir: Some(file("bundles")),
        trust_domain: None,
        key_exchange: KeyExchange::Auto,
    };
    match load(&files, *NOW) {
        // Our own leaf is taken as the file has it, signed or not: peers judge it.
        Ok(generation) => {
            let own = generation.trust_domain().as_str();
            assert!(own == "fuzz.example" || matches!(which, 0 | 3), "{own}");
            assert_eq!(generation.verifier().bundles().domains().count(), 2);
            assert!(which == 4 || generation.revocation_lists().len() == 1);
        }
        Err(error) => {
            assert!(LoadError::ALL_LABELS.contains(&error.label()));
            assert!(!error.to_string().contains("PRIVATE KEY-----\n"), "a key in a message");
        }
    }
}

/// An answer of an agent's that keeps every rule.
fn answer() -> Received {
    let ders = |pem: &str| -> Vec<u8> {
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes());
        certificates.flat_map(|der| der.expect("the seed is PEM").to_vec()).collect()
    };
    let key = PrivatePkcs8KeyDer::from_pem_slice(KEY.as_bytes()).expect("the seed is PEM");
    let list = pem_list(LIST);
    Received {
        id: "spiffe://fuzz.example/ns/shop/sa/cart".to_owned(),
        svid: ders(LEAF),
        key: key.secret_pkcs8_der().to_vec().into(),
        bundle: ders(CA),
        federated: vec![("spiffe://partner.example".to_owned(), ders(PARTNER))],
        lists: vec![list],
    }
}

fn pem_list(pem: &str) -> Vec<u8> {
    rustls::pki_types::CertificateRevocationListDer::from_pem_slice(pem.as_bytes())
        .expect("the seed is PEM")
        .to_vec()
}

static BEFORE: LazyLock<TlsGeneration> = LazyLock::new(|| {
    let built = answer().generation(None, KeyExchange::Auto, None);
    let (generation, faults) = built.expect("the seeds are good");
    assert_eq!(faults, []);
    generation
});

/// An agent's answer of which one part is the input's; its first byte says which.
pub fn check_answer(input: &[u8]) {
    let Some((which, content)) = input.split_first() else { return };
    let which = which % 7;
    let mut answer = answer();
    let good = answer.content_hash();
    let text = || String::from_utf8_lossy(content).into_owned();
    match which {
        0 => answer.id = text(),
        1 => answer.svid = content.to_vec(),
        2 => answer.key = content.to_vec().into(),
        3 => answer.bundle = content.to_vec(),
        4 => answer.federated[0].0 = text(),
        5 => answer.federated[0].1 = content.to_vec(),
        _ => answer.lists = vec![content.to_vec()],
    }
    let is_good = answer.content_hash() == good;
    let first = answer.generation(None, KeyExchange::Auto, None);
    let next = answer.generation(None, KeyExchange::Auto, Some(&BEFORE));
    assert!(!is_good || first.as_ref().is_ok_and(|(_, faults)| faults.is_empty()));
    for error in
        first.iter().chain(&next).flat_map(|(_, faults)| faults).chain(first.as_ref().err())
    {
        assert_eq!(error.label(), "workload_api");
        assert!(error.to_string().chars().all(|c| !c.is_control()), "{error}");
    }
    for (generation, _) in first.iter().chain(&next) {
        assert_eq!(generation.own_id().as_str(), answer.id, "announced as what it is");
        assert!(
            generation.verifier().bundles().domains().any(|it| it == generation.trust_domain())
        );
    }
    let of_others = matches!(which, 4..=6);
    if let Ok((generation, faults)) = &next {
        assert!(of_others || faults.is_empty());
        assert_eq!(generation.revocation_lists().len(), 1, "no list is lost");
        assert_eq!(first.is_err(), which == 6 && !faults.is_empty());
    } else {
        assert!(!of_others && first.is_err(), "others' part holds ours up");
    }
    // A broken bundle leaves the one of before, and without one of before it is missing.
    if which == 5 {
        let domains = |built: &Result<(TlsGeneration, Vec<_>), _>| {
            built.as_ref().map_or(0, |(it, _)| it.verifier().bundles().domains().count())
        };
        let (_, faults) = first.as_ref().expect("ours is good");
        assert_eq!((domains(&first), domains(&next)), (2 - faults.len(), 2));
    }
}
