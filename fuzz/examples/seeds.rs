//! Makes the seeds of the certificate targets anew: `cargo run --example seeds` in `fuzz/`.
//!
//! They are valid for a day from then on; the targets' clock stands still on that day.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pillion_certs::issue::{CertificateAuthority, Forge, bad_svids, issue, make_ca};
use pillion_certs::revoke::{Serial, revocation_list};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

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
    let partner = make_ca(&"partner.example".parse()?, day)?;
    fs::write(root.join("seeds/partner.crt"), &partner.cert_pem)?;
    let (top, between) = two_levels()?;
    fs::write(root.join("seeds/root.crt"), &top)?;

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
    let through = Forge::new("spiffe://fuzz.example/y")?.sign(&between)?;
    fs::write(svid.join("through"), chain(&[&through.chain_pem, &between.cert_pem])?)?;

    let lists = root.join("corpus/crl");
    fs::create_dir_all(&lists)?;
    let serial = Serial::of_certificate(leaf.chain_pem.as_bytes(), &ca)?;
    let revokes = revocation_list(&ca, None, &[serial], None, day)?;
    let other = make_ca(&domain, day)?;
    let der = CertificateRevocationListDer::from_pem_slice(revokes.as_bytes())?;
    fs::write(root.join("seeds/revokes.der"), &der)?;
    let empty = revocation_list(&ca, None, &[], None, day)?;
    fs::write(root.join("seeds/empty.pem"), &empty)?;
    let brief = revocation_list(&ca, None, &[], None, Duration::from_secs(1))?;
    let foreign = revocation_list(&other, None, &[], None, day)?;
    // A certificate with the authority's name that is out of date, whoever has signed it.
    let stale = chain(&[&stale_namesake(&ca)?])?;
    let both = format!("{empty}{revokes}");
    let cut: String = revokes.split_inclusive('\n').take(3).collect();
    let cut_short = format!("{cut}{}{empty}", ca.cert_pem);
    for (name, surplus, file) in [
        ("revokes.der", &[][..], der.as_ref()),
        ("revokes.pem", &[], revokes.as_bytes()),
        ("empty.pem", &[], empty.as_bytes()),
        ("expired.pem", &[], brief.as_bytes()),
        ("other.pem", &[], foreign.as_bytes()),
        ("two.pem", &[], both.as_bytes()),
        ("cut_short.pem", &[], cut_short.as_bytes()),
        ("surplus_revokes.der", &stale, der.as_ref()),
        ("surplus_two.pem", &stale, both.as_bytes()),
        ("surplus_empty.pem", &stale, empty.as_bytes()),
    ] {
        let length = u16::try_from(surplus.len())?.to_be_bytes();
        fs::write(lists.join(name), [&length, surplus, file].concat())?;
    }

    let pem = root.join("corpus/pem_bundle");
    fs::create_dir_all(&pem)?;
    let both = format!("{}{}", &*leaf.key_pem, leaf.chain_pem);
    for (number, (name, text)) in (0..).zip([
        ("chain", &leaf.chain_pem),
        ("key", &leaf.key_pem),
        ("ca", &ca.cert_pem),
        ("both", &both),
        ("crl", &empty),
        ("partner", &partner.cert_pem),
    ]) {
        fs::write(pem.join(name), [&[number], text.as_bytes()].concat())?;
    }

    let received = root.join("corpus/received");
    fs::create_dir_all(&received)?;
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map(|der| der.to_vec());
    let key = PrivatePkcs8KeyDer::from_pem_slice(leaf.key_pem.as_bytes())?;
    let list = CertificateRevocationListDer::from_pem_slice(empty.as_bytes())?;
    for (number, (name, part)) in (0..).zip([
        ("id", b"spiffe://fuzz.example/ns/shop/sa/cart".to_vec()),
        ("svid", der(&leaf.chain_pem)?),
        ("key", key.secret_pkcs8_der().to_vec()),
        ("bundle", [der(&ca.cert_pem)?, der(&top)?].concat()),
        ("partner_id", b"spiffe://partner.example".to_vec()),
        ("partner", der(&partner.cert_pem)?),
        ("list", list.to_vec()),
    ]) {
        fs::write(received.join(name), [vec![number], part].concat())?;
    }
    Ok(())
}

/// A root, PEM, and an authority below it that issues leaves.
fn two_levels() -> Result<(String, CertificateAuthority), Box<dyn std::error::Error>> {
    let params = |name: &str, depth| -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    };
    let (top_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let top = params("fuzz root", 1);
    let root = top.self_signed(&top_key)?.pem();
    let between = params("fuzz between", 0).signed_by(&key, &Issuer::new(top, top_key))?;
    let between =
        CertificateAuthority { cert_pem: between.pem(), key_pem: key.serialize_pem().into() };
    Ok((root, between))
}

/// A CA certificate with an authority's name and a key of its own that ended long ago.
fn stale_namesake(ca: &CertificateAuthority) -> Result<String, Box<dyn std::error::Error>> {
    let der = CertificateDer::from_pem_slice(ca.cert_pem.as_bytes())?;
    let (_, parsed) = X509Certificate::from_der(&der)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in [
        (DnType::OrganizationName, parsed.subject().iter_organization().next()),
        (DnType::CommonName, parsed.subject().iter_common_name().next()),
    ] {
        if let Some(value) = value {
            params.distinguished_name.push(kind, value.as_str()?);
        }
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2020, 1, 2);
    let stale = params.self_signed(&KeyPair::generate()?)?;
    let (_, named) = X509Certificate::from_der(stale.der())?;
    if named.subject().as_raw() != parsed.subject().as_raw() {
        return Err("the names differ".into());
    }
    Ok(stale.pem())
}
