//! What a PEM file holds, and every rule that it breaks, for people and for scripts.

use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use x509_parser::certificate::X509Certificate;
use x509_parser::public_key::PublicKey;

use crate::dates::{rfc3339, seconds};
use crate::leaf;
use crate::list_report::lists;
pub use crate::list_report::{EntryReport, ListReport};
use crate::pem;
use crate::refusal::{LeafSummary, PeerRefusal};
use crate::revocation::RevocationLists;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::verify::{SvidVerifier, TrustBundles};

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The stable word for it: a [`PeerRefusal::label`], or `bad_crl`.
    pub rule: &'static str,
    /// The whole sentence.
    pub message: String,
}

impl From<PeerRefusal> for Broken {
    fn from(refusal: PeerRefusal) -> Self {
        Self { rule: refusal.label(), message: refusal.to_string() }
    }
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateReport {
    /// `leaf` for the first of a chain, `authority` for a CA certificate.
    pub role: &'static str,
    /// The SPIFFE identity (a leaf) or trust domain id (an authority), where it has a valid one.
    pub id: Option<String>,
    /// The serial number in lower-case hex.
    pub serial: String,
    /// The subject's distinguished name.
    pub subject: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// The beginning of its validity, RFC 3339.
    pub not_before: String,
    /// The end of its validity, RFC 3339.
    pub not_after: String,
    /// Whole days until `not_after`; negative when it is past.
    pub days_left: i64,
    /// The kind and size of its public key, for example `ECDSA 256`.
    pub key: String,
    /// Every rule that it breaks; empty when it is good.
    pub broken: Vec<Broken>,
}

/// What a PEM file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The certificates in the file's order. A file of authorities alone is a trust bundle, and
    /// isn't verified against the given authorities; in any other, the first certificate is held to a leaf's rules.
    pub certificates: Vec<CertificateReport>,
    /// The revocation lists in the file.
    pub lists: Vec<ListReport>,
    /// What is wrong with the file as a whole: its PEM, or its path to the given authority.
    pub broken: Vec<Broken>,
}

impl Report {
    /// Whether nothing at all is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.broken.is_empty()
            && self.certificates.iter().all(|c| c.broken.is_empty())
            && self.lists.iter().all(|list| list.broken.is_empty())
    }
}

/// Judges a PEM file at the time `now`. With `ca_pem`, the chain is also verified as a peer's would
/// be, with those authorities as the bundle of the leaf's own trust domain, and with `crl`, if
/// given, as revocation lists; a list in the file must be signed by one of them.
///
/// Never fails: what can't be read is in the report.
#[must_use]
pub fn inspect(pem: &[u8], ca_pem: Option<&[u8]>, crl: Option<&[u8]>, now: UnixTime) -> Report {
    let mut broken: Vec<Broken> = Vec::new();
    let authorities = ca_pem.and_then(|pem| certificates(pem).ok());
    let lists = lists(pem, authorities.as_deref(), now).unwrap_or_default();
    let chain = certificates(pem).unwrap_or_else(|refusal| {
        if lists.is_empty() || refusal != PeerRefusal::NoCertificate {
            broken.push(refusal.into());
        }
        Vec::new()
    });
    let is_bundle = chain.iter().all(|der| leaf::parse(der).is_ok_and(|c| is_authority(&c)));
    let mut reports = Vec::new();
    for (number, der) in chain.iter().enumerate() {
        match leaf::parse(der) {
            Ok(certificate) if number == 0 && !is_bundle => {
                reports.push(leaf_report(&certificate, now));
            }
            Ok(certificate) => reports.push(authority_report(&certificate, is_bundle, now)),
            Err(refusal) => broken.push(refusal.into()),
        }
    }
    if let Some(ca_pem) = ca_pem
        && !is_bundle
        && let Err(refusal) = verify(&chain, ca_pem, crl, now)
    {
        let refusal = Broken::from(refusal);
        let known = |c: &CertificateReport| c.broken.iter().any(|b| b.rule == refusal.rule);
        if !reports.iter().any(known) && !broken.iter().any(|b| b.rule == refusal.rule) {
            broken.push(refusal);
        }
    }
    Report { certificates: reports, lists, broken }
}

// A CA certificate that names a workload is a leaf that breaks a rule, not an authority: an
// authority has the trust domain's id, or none (X509-SVID §3.2).
fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let names_no_workload = |uris: Vec<&str>| uris.iter().all(|u| TrustDomain::from_id(u).is_ok());
    certificate.is_ca() && leaf::uri_sans(certificate).is_ok_and(names_no_workload)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PeerRefusal> {
    match pem::certificates(pem) {
        Ok(list) if list.is_empty() => Err(PeerRefusal::NoCertificate),
        Ok(list) => Ok(list),
        Err(fault) => Err(PeerRefusal::Malformed(fault.to_string())),
    }
}

fn verify(
    chain: &[CertificateDer<'_>],
    ca_pem: &[u8],
    crl: Option<&[u8]>,
    now: UnixTime,
) -> Result<(), PeerRefusal> {
    let Some(end_entity) = chain.first() else { return Ok(()) };
    let domain = leaf::check(end_entity)?.id.trust_domain().clone();
    let mut bundles = TrustBundles::new();
    bundles
        .add(domain, &certificates(ca_pem)?)
        .map_err(|error| PeerRefusal::Malformed(format!("the authority's file: {error}")))?;
    let lists = crl.map(RevocationLists::from_file).transpose().map_err(|error| {
        PeerRefusal::Malformed(format!("the file of revocation lists: {error}"))
    })?;
    let bundles = bundles.with_revocation_lists(lists.unwrap_or_default());
    SvidVerifier::new(bundles).verify(chain, now).map(|_| ())
}

fn leaf_report(certificate: &X509Certificate<'_>, now: UnixTime) -> CertificateReport {
    let mut broken = Vec::new();
    let id = leaf::faults(certificate, &mut broken);
    let id = id.as_ref().map(SpiffeId::as_str);
    date_faults(certificate, LeafSummary::new(&leaf::serial(certificate), id), now, &mut broken);
    report("leaf", id.map(str::to_owned), certificate, broken, now)
}

fn authority_report(
    certificate: &X509Certificate<'_>,
    in_bundle: bool,
    now: UnixTime,
) -> CertificateReport {
    let uris = leaf::uri_sans(certificate).unwrap_or_default();
    let id = uris.first().filter(|uri| TrustDomain::from_id(uri).is_ok()).map(|s| (*s).to_owned());
    let summary = LeafSummary::new(&leaf::serial(certificate), id.as_deref());
    let mut broken = Vec::new();
    // In a bundle, an authority without any key usage is taken; on the way to one it is not.
    let may_sign = (certificate.key_usage())
        .is_ok_and(|usage| usage.map_or(in_bundle, |e| e.value.key_cert_sign()));
    if !certificate.is_ca() || !may_sign {
        let what = "it is no CA with keyCertSign".to_owned();
        broken.push(PeerRefusal::IssuerConstraint { leaf: summary.clone(), what });
    }
    date_faults(certificate, summary, now, &mut broken);
    report("authority", id, certificate, broken, now)
}

fn date_faults(
    certificate: &X509Certificate<'_>,
    leaf: LeafSummary,
    now: UnixTime,
    broken: &mut Vec<PeerRefusal>,
) {
    let now = seconds(now);
    let not_before = certificate.validity().not_before.timestamp();
    let not_after = certificate.validity().not_after.timestamp();
    if now > not_after {
        broken.push(PeerRefusal::Expired { leaf, not_after, now });
    } else if now < not_before {
        broken.push(PeerRefusal::NotYetValid { leaf, not_before, now });
    }
}

fn report(
    role: &'static str,
    id: Option<String>,
    certificate: &X509Certificate<'_>,
    broken: Vec<PeerRefusal>,
    now: UnixTime,
) -> CertificateReport {
    let not_after = certificate.validity().not_after.timestamp();
    CertificateReport {
        role,
        id,
        serial: leaf::serial(certificate),
        subject: certificate.subject().to_string().escape_debug().to_string(),
        issuer: certificate.issuer().to_string().escape_debug().to_string(),
        not_before: rfc3339(certificate.validity().not_before.timestamp()),
        not_after: rfc3339(not_after),
        days_left: not_after.saturating_sub(seconds(now)).div_euclid(86_400),
        key: key_kind(certificate),
        broken: broken.into_iter().map(Broken::from).collect(),
    }
}

fn key_kind(certificate: &X509Certificate<'_>) -> String {
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
        Ok(PublicKey::EC(point)) => format!("ECDSA {}", point.key_size()),
        _ => format!("algorithm {}", certificate.public_key().algorithm.algorithm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue::{self, Forge};
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn every_bad_certificate_is_reported_with_its_rule() {
        let domain: TrustDomain = "example.org".parse().unwrap();
        let ca = issue::make_ca(&domain, DAY * 30).unwrap();
        for bad in issue::bad_svids(&ca, &domain).unwrap() {
            let report = inspect(bad.svid.chain_pem.as_bytes(), None, None, UnixTime::now());
            let rules: Vec<_> =
                report.certificates.iter().flat_map(|c| &c.broken).map(|b| b.rule).collect();
            match bad.expected_label {
                // Without a bundle nobody can say whose domain it is.
                "untrusted_domain" => assert!(rules.is_empty(), "{rules:?}"),
                label => assert!(rules.contains(&label), "{}: {rules:?}", bad.name),
            }
        }
    }

    #[test]
    fn an_authority_without_key_usage_is_good_in_a_bundle_alone() {
        let authority = |usages: Vec<rcgen::KeyUsagePurpose>| {
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = usages;
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        let now = UnixTime::now();
        let is_good = |pem: &str| inspect(pem.as_bytes(), None, None, now).is_good();
        let without = authority(Vec::new());
        assert!(is_good(&without));
        assert!(!is_good(&authority(vec![rcgen::KeyUsagePurpose::CrlSign])));
        let domain: TrustDomain = "example.org".parse().unwrap();
        let ca = issue::make_ca(&domain, DAY).unwrap();
        let id = "spiffe://example.org/a".parse().unwrap();
        let leaf = issue::issue(&ca, &id, DAY / 2).unwrap().chain_pem;
        assert!(is_good(&format!("{leaf}{}", ca.cert_pem)));
        assert!(!is_good(&format!("{leaf}{without}")), "between leaf and bundle it may not sign");
    }

    #[test]
    fn all_rules_are_named_at_once() {
        let domain: TrustDomain = "example.org".parse().unwrap();
        let ca = issue::make_ca(&domain, DAY * 30).unwrap();
        let forge = Forge::new("spiffe://example.org/a?q").unwrap();
        let svid = forge.key_usages(&[]).valid(-20, -10).sign(&ca).unwrap();
        let report = inspect(svid.chain_pem.as_bytes(), None, None, UnixTime::now());
        let rules: Vec<_> = report.certificates[0].broken.iter().map(|b| b.rule).collect();
        assert_eq!(rules, ["spiffe_query", "no_digital_signature", "expired"]);
        assert!(!report.is_good());
    }

    #[test]
    fn a_good_chain_and_its_authority_are_good_and_a_strangers_is_not() {
        let domain: TrustDomain = "example.org".parse().unwrap();
        let ca = issue::make_ca(&domain, DAY * 30).unwrap();
        let stranger = issue::make_ca(&"other.org".parse().unwrap(), DAY).unwrap();
        let id = "spiffe://example.org/a".parse().unwrap();
        let svid = issue::issue(&ca, &id, DAY * 3).unwrap();
        let now = UnixTime::now();
        let judge =
            |ca_pem: &str| inspect(svid.chain_pem.as_bytes(), Some(ca_pem.as_bytes()), None, now);
        let good = judge(&ca.cert_pem);
        assert!(good.is_good(), "{good:?}");
        assert_eq!(good.certificates[0].id.as_deref(), Some("spiffe://example.org/a"));
        assert!((2..=3).contains(&good.certificates[0].days_left), "{good:?}");
        assert_eq!(good.certificates[0].key, "ECDSA 256");
        assert_eq!(judge(&stranger.cert_pem).broken[0].rule, "unknown_issuer");
        let bundle = inspect(ca.cert_pem.as_bytes(), None, None, now);
        assert!(bundle.is_good(), "{bundle:?}");
        assert_eq!(bundle.certificates[0].id.as_deref(), Some("spiffe://example.org"));
        assert_eq!(inspect(b"hello", None, None, now).broken[0].rule, "no_certificate");
        let torn = &svid.chain_pem.as_bytes()[..100];
        assert_eq!(inspect(torn, None, None, now).broken[0].rule, "malformed");
    }

    #[test]
    fn what_a_certificate_is_told_of_is_not_told_of_the_file_again() {
        let domain: TrustDomain = "example.org".parse().unwrap();
        let ca = issue::make_ca(&domain, DAY).unwrap();
        let expired = Forge::new("spiffe://example.org/a").unwrap().valid(-20, -10);
        let expired = expired.sign(&ca).unwrap().chain_pem;
        let stranger = issue::make_ca(&domain, DAY).unwrap();
        let id = "spiffe://example.org/a".parse().unwrap();
        let theirs = issue::issue(&stranger, &id, DAY / 2).unwrap().chain_pem;
        let garbage = ::pem::encode(&::pem::Pem::new("CERTIFICATE", b"x".to_vec()));
        let now = UnixTime::now();
        for (pem, of_certificates, of_the_file) in [
            (expired, &["expired"][..], &[][..]),
            (theirs.clone(), &[], &["unknown_issuer"]),
            (format!("{theirs}{garbage}"), &[], &["malformed"]),
            (format!("{garbage}{theirs}"), &["issuer_constraint"], &["malformed"]),
        ] {
            let report = inspect(pem.as_bytes(), Some(ca.cert_pem.as_bytes()), None, now);
            let rules = |broken: &[Broken]| broken.iter().map(|b| b.rule).collect::<Vec<_>>();
            let told: Vec<_> = report.certificates.iter().flat_map(|c| rules(&c.broken)).collect();
            assert_eq!((&*told, &*rules(&report.broken)), (of_certificates, of_the_file), "{pem}");
        }
    }

    #[test]
    fn a_certificate_is_good_from_its_first_second_to_its_last() {
        let domain: TrustDomain = "example.org".parse().unwrap();
        let ca = issue::make_ca(&domain, DAY).unwrap();
        let leaf = Forge::new("spiffe://example.org/a").unwrap().valid(100, 200);
        let leaf = leaf.sign(&ca).unwrap().chain_pem;
        let (_, der) = ::x509_parser::pem::parse_x509_pem(leaf.as_bytes()).unwrap();
        let from = der.parse_x509().unwrap().validity().not_before.timestamp().unsigned_abs();
        for (second, rule) in
            [(-1, Some("not_yet_valid")), (0, None), (100, None), (101, Some("expired"))]
        {
            let at = Duration::from_secs(from.checked_add_signed(second).unwrap());
            let report = inspect(leaf.as_bytes(), None, None, UnixTime::since_unix_epoch(at));
            let told = report.certificates[0].broken.first().map(|b| b.rule);
            assert_eq!(told, rule, "second {second}");
        }
    }

    #[test]
    fn every_kind_of_key_is_named_with_its_size() {
        let of = |algorithm| rcgen::KeyPair::generate_for(algorithm).unwrap();
        let rsa = |size| rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
        for (key, named) in [
            (of(&rcgen::PKCS_ECDSA_P256_SHA256), "ECDSA 256"),
            (of(&rcgen::PKCS_ECDSA_P384_SHA384), "ECDSA 384"),
            (rsa(rcgen::RsaKeySize::_2048), "RSA 2048"),
            (of(&rcgen::PKCS_ED25519), "algorithm 1.3.101.112"),
        ] {
            let made = rcgen::CertificateParams::default().self_signed(&key).unwrap();
            let report = inspect(made.pem().as_bytes(), None, None, UnixTime::now());
            assert_eq!(report.certificates[0].key, named);
        }
    }
}
