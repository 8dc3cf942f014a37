//! Makes the seeds of the certificate targets anew: `cargo run --example seeds` in `fuzz/`.
//!
//! They are valid for a day from then on; the targets' clock stands still on that day.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pillion_certs::issue::{Forge, bad_svids, issue, make_ca};
use pillion_certs::revoke::{Serial, revocation_list};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let domain = "fuzz.example".parse()?;
    let day = Duration::from_secs(86_400);
    let ca = make_ca(&domain, day)?;
    let leaf = issue(&ca, &"spiffe://fuzz.example/ns/shop/sa/cart".parse()?, day / 2)?;
    fs::create_dir_all(root.join("seeds"))?;
    fs::write(root.join("seeds/ca.crt"), &ca.cert_pem)?;
    fs::write(root.join("seeds/leaf.crt"), &leaf.chain_pem)?;
    fs::write(root.join("seeds/leaf.key"), leaf.key_pem.as_bytes())?;

    let svid = root.join("corpus/svid");
    fs::create_dir_all(&svid)?;
    let chain = |pems: &[&str]| -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let mut out = Vec::new();
        for pem in pems {
            for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let der = der?;
                out.extend(u16::try_from(der.len())?.to_be_bytes());
                out.extend(der.as_ref());
            }
        }
        Ok(out)
    };
    fs::write(svid.join("good"), chain(&[&leaf.chain_pem])?)?;
    for (number, bad) in bad_svids(&ca, &domain)?.into_iter().enumerate() {
        let name = format!("{number:02}_{}", bad.expected_label);
        fs::write(svid.join(name), chain(&[&bad.svid.chain_pem])?)?;
    }
    let names = Forge::new("spiffe://fuzz.example/x")?.dns("a.example").email("a@example.com");
    fs::write(svid.join("names"), chain(&[&names.sign(&ca)?.chain_pem])?)?;

    let lists = root.join("corpus/crl");
    fs::create_dir_all(&lists)?;
    let serial = Serial::of_certificate(leaf.chain_pem.as_bytes(), &ca)?;
    let revokes = revocation_list(&ca, None, &[serial], None, day)?;
    let other = make_ca(&domain, day)?;
    fs::write(
        lists.join("revokes.der"),
        CertificateRevocationListDer::from_pem_slice(revokes.as_bytes())?,
    )?;
    fs::write(lists.join("revokes.pem"), &revokes)?;
    let empty = revocation_list(&ca, None, &[], None, day)?;
    fs::write(lists.join("empty.pem"), &empty)?;
    let brief = revocation_list(&ca, None, &[], None, Duration::from_secs(1))?;
    fs::write(lists.join("expired.pem"), &brief)?;
    fs::write(lists.join("other.pem"), revocation_list(&other, None, &[], None, day)?)?;
    fs::write(lists.join("two.pem"), format!("{empty}{revokes}"))?;

    let pem = root.join("corpus/pem_bundle");
    fs::create_dir_all(&pem)?;
    let both = format!("{}{}", &*leaf.key_pem, leaf.chain_pem);
    for (number, (name, text)) in (0..).zip([
        ("chain", &leaf.chain_pem),
        ("key", &leaf.key_pem),
        ("ca", &ca.cert_pem),
        ("both", &both),
    ]) {
        fs::write(pem.join(name), [&[number], text.as_bytes()].concat())?;
    }
    Ok(())
}
