//! Every way in which files can't be loaded.

use super::*;
use crate::issue::{self, CertificateAuthority, Issued};
use crate::received::Received;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use std::collections::BTreeSet;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

struct Made {
    dir: tempfile::TempDir,
    ca: CertificateAuthority,
    svid: Issued,
}

impl Made {
    fn new() -> Self {
        let ca = issue::make_ca(&"d".parse().unwrap(), HOUR * 2).unwrap();
        let svid = issue::issue(&ca, &"spiffe://d/a".parse().unwrap(), HOUR).unwrap();
        let made = Self { dir: tempfile::tempdir().unwrap(), ca, svid };
        made.write("tls.crt", made.svid.chain_pem.as_bytes());
        made.write("tls.key", made.svid.key_pem.as_bytes());
        made.write("ca.crt", made.ca.cert_pem.as_bytes());
        made
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.dir.path().join(name), content).unwrap();
    }

    fn files(&self) -> IdentityFiles {
        let path = |name: &str| self.dir.path().join(name);
        IdentityFiles {
            svid: SvidSource::Files { cert: path("tls.crt"), key: path("tls.key") },
            ca: path("ca.crt"),
            trust_bundles_dir: None,
            crl: None,
            trust_domain: None,
            key_exchange: KeyExchange::Auto,
        }
    }
}

fn label(files: &IdentityFiles) -> &'static str {
    load(files, UnixTime::now()).unwrap_err().label()
}

#[test]
fn every_label_is_raised() {
    let made = Made::new();
    assert!(load(&made.files(), UnixTime::now()).is_ok());
    let mut raised = BTreeSet::new();
    let mut with = |name: &str, content: &[u8]| {
        let made = Made::new();
        made.write(name, content);
        raised.insert(label(&made.files()));
    };
    with("tls.crt", b"");
    with("tls.crt", b"hello");
    with("tls.crt", &vec![b'x'; 2 << 20]);
    with("tls.crt", made.ca.cert_pem.as_bytes());
    with("tls.key", made.svid.key_pem.as_bytes());
    with("ca.crt", made.svid.chain_pem.as_bytes());
    // A PKCS#8 key of an algorithm that nobody knows, made of a good one.
    let der = PrivateKeyDer::from_pem_slice(made.svid.key_pem.as_bytes()).unwrap();
    let mut der = der.secret_der().to_vec();
    let oid = der.windows(2).position(|pair| pair == [0x2a, 0x86]).unwrap();
    der[oid + 1] = 0x87;
    with("tls.key", ::pem::encode(&::pem::Pem::new("PRIVATE KEY", der)).as_bytes());

    let list = made.dir.path().join("list.pem");
    fs::write(&list, "hello").unwrap();
    raised.insert(label(&IdentityFiles { crl: Some(list), ..made.files() }));
    let other = Some("other".parse().unwrap());
    raised.insert(label(&IdentityFiles { trust_domain: other, ..made.files() }));
    raised.insert(label(&IdentityFiles { ca: made.dir.path().to_owned(), ..made.files() }));
    raised.insert(label(&IdentityFiles { ca: "/nonexistent".into(), ..made.files() }));

    let nothing = Received::default().generation(None, KeyExchange::Auto, None);
    raised.insert(nothing.unwrap_err().label());

    // Two that no file can be made to raise at will.
    raised.insert(changing().err().unwrap().label());
    let tls = GenerationError::Tls("no such cipher".to_owned());
    raised.insert(LoadError::building(Path::new("c"), Path::new("k"), tls).label());
    assert_eq!(raised, LoadError::ALL_LABELS.iter().copied().collect());
}

#[test]
fn what_is_trusted_or_obeyed_is_not_passed_over_where_certificates_belong() {
    let made = Made::new();
    let with = |name: &str, good: &str, label: &str| {
        let section = format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n");
        made.write(name, format!("{good}{section}").as_bytes());
        let refused = load(&made.files(), UnixTime::now()).err().map(|error| error.label());
        made.write(name, good.as_bytes());
        refused
    };
    for (name, good) in [("ca.crt", &made.ca.cert_pem), ("tls.crt", &made.svid.chain_pem)] {
        for label in ["X509 CRL", "CRL", "TRUSTED CERTIFICATE", "X509 CERTIFICATE"] {
            assert_eq!(with(name, good, label), Some("bad_pem"), "{label} in {name}");
        }
        assert_eq!(with(name, good, "DH PARAMETERS"), None, "{name}");
    }
}

#[test]
fn a_file_may_have_a_mebibyte_and_no_more() {
    let made = Made::new();
    let padded = |bytes: usize| {
        let mut content = made.ca.cert_pem.clone().into_bytes();
        content.resize(bytes, b'\n');
        made.write("ca.crt", &content);
        load(&made.files(), UnixTime::now()).err().map(|error| error.label())
    };
    assert_eq!(padded(1 << 20), None);
    assert_eq!(padded((1 << 20) + 1), Some("too_large"));
}

#[test]
fn a_folder_may_have_256_bundles_and_no_more() {
    let made = Made::new();
    let bundles = made.dir.path().join("bundles");
    let files = IdentityFiles { trust_bundles_dir: Some(bundles.clone()), ..made.files() };
    let missing = load(&files, UnixTime::now()).unwrap_err();
    assert_eq!(missing.label(), "not_found");
    assert!(missing.to_string().contains("bundles"), "{missing}");
    fs::create_dir(&bundles).unwrap();
    let authority = issue::make_ca(&"partner".parse().unwrap(), HOUR).unwrap().cert_pem;
    let add = |number: usize| {
        fs::write(bundles.join(format!("partner{number}.pem")), &authority).unwrap();
    };
    (0..MAX_TRUST_BUNDLES).for_each(add);
    let trusted = load(&files, UnixTime::now()).unwrap();
    assert_eq!(trusted.verifier().bundles().domains().count(), MAX_TRUST_BUNDLES + 1);
    add(MAX_TRUST_BUNDLES);
    assert_eq!(label(&files), "bundle");
}

/// Each reading finds something else.
fn changing() -> Result<Snapshot, LoadError> {
    let made = Made::new();
    let mut reading = 0;
    let result = settled(|| {
        reading += 1;
        made.write("ca.crt", format!("# {reading}\n{}", made.ca.cert_pem).as_bytes());
        read_once(&made.files())
    });
    assert_eq!(reading, MAX_READINGS);
    result
}

#[test]
fn a_reading_counts_when_the_next_one_agrees() {
    let made = Made::new();
    let mut readings = 0;
    let settles_after = |wild: usize, readings: &mut usize| {
        *readings = 0;
        settled(|| {
            *readings += 1;
            let number = (*readings).min(wild);
            made.write("ca.crt", format!("# {number}\n{}", made.ca.cert_pem).as_bytes());
            read_once(&made.files())
        })
    };
    assert!(settles_after(1, &mut readings).is_ok());
    assert_eq!(readings, 2);
    assert!(settles_after(4, &mut readings).is_ok());
    assert_eq!(readings, 5);
    assert!(matches!(settles_after(5, &mut readings), Err(LoadError::Changing)));
}
