//! A corpus of SVIDs, good and bad, each with the verdict that it must get.
//!
//! One trust bundle and one set of revocation lists judge them all, so that tests in memory and
//! tests between pods hold the same line. Everything is made anew for each run; nothing here is
//! reachable from the binaries.

mod bytes;
mod chains;
mod der;
mod keys;
mod lists;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::forge::{Forge, bad_svids};
use crate::issue::{self, CertificateAuthority, IssueError, Issued};
use crate::spiffe::TrustDomain;

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

/// What a certificate must be met with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is taken.
    Good,
    /// It is refused, with this [`crate::refusal::PeerRefusal::label`].
    Refused(&'static str),
}

/// A chain, its key, and what it must be met with.
pub struct Entry {
    /// What is special about it, for a test's message.
    pub name: &'static str,
    /// The certificates as they are sent, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key, PEM, PKCS#8.
    pub key_pem: String,
    /// What it must be met with.
    pub verdict: Verdict,
    /// Whether other programs can load it, to present it. Some are too broken for that.
    pub loads_elsewhere: bool,
}

impl Entry {
    fn new(name: &'static str, verdict: Verdict, svid: &Issued) -> Result<Self, IssueError> {
        let chain = vec![der_of(&svid.chain_pem)?];
        let key_pem = svid.key_pem.to_string();
        Ok(Self { name, chain, key_pem, verdict, loads_elsewhere: true })
    }

    /// The same with these authorities' certificates behind the leaf.
    fn through(mut self, authorities: &[&CertificateAuthority]) -> Result<Self, IssueError> {
        for authority in authorities {
            self.chain.push(der_of(&authority.cert_pem)?);
        }
        Ok(self)
    }

    fn only_here(mut self) -> Self {
        self.loads_elsewhere = false;
        self
    }
}

/// The corpus, and what to judge it by.
pub struct Corpus {
    /// The authorities of the trust domain, PEM.
    pub bundle_pem: String,
    /// The revocation lists, PEM.
    pub crl_pem: String,
    /// The certificates.
    pub entries: Vec<Entry>,
}

/// The authorities that the corpus is made with.
struct Authorities {
    domain: TrustDomain,
    /// As the mesh has it: it issues leaves alone.
    plain: CertificateAuthority,
    /// It lets others issue below it.
    root: CertificateAuthority,
}

impl Authorities {
    fn id(&self, path: &str) -> String {
        format!("spiffe://{}{path}", self.domain)
    }

    /// A leaf that keeps every rule, for a client or a server.
    fn good(&self) -> Result<Forge, IssueError> {
        Forge::new(&self.id("/corpus"))
    }
}

impl Corpus {
    /// Makes it for a trust domain whose first authority is `plain`.
    ///
    /// # Errors
    /// An authority that can't be read, or rcgen's.
    pub fn new(plain: CertificateAuthority, domain: &TrustDomain) -> Result<Self, IssueError> {
        let root = authority("corpus root", None, |_| {})?;
        let made = Authorities { domain: domain.clone(), plain, root };
        let mut entries = Vec::new();
        for bad in bad_svids(&made.plain, domain)? {
            let verdict = Verdict::Refused(bad.expected_label);
            entries.push(Entry::new(bad.name, verdict, &bad.svid)?);
        }
        entries.extend(bytes::entries(&made)?);
        entries.extend(keys::entries(&made)?);
        let (chains, more) = chains::entries(&made)?;
        entries.extend(chains);
        let (revoked, crl_pem) = lists::entries(&made)?;
        entries.extend(revoked);
        let bundle_pem = format!("{}{}{more}", made.plain.cert_pem, made.root.cert_pem);
        Ok(Self { bundle_pem, crl_pem, entries })
    }
}

/// An authority of its own, or one below `issuer`; `change` has the last word on it.
fn authority(
    name: &str,
    issuer: Option<&CertificateAuthority>,
    change: impl FnOnce(&mut CertificateParams),
) -> Result<CertificateAuthority, IssueError> {
    let key = KeyPair::generate()?;
    authority_with(name, &key, issuer, change)
}

fn authority_with(
    name: &str,
    key: &KeyPair,
    issuer: Option<&CertificateAuthority>,
    change: impl FnOnce(&mut CertificateParams),
) -> Result<CertificateAuthority, IssueError> {
    let mut params = issue::base_params(30 * DAY)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    let certificate = match issuer {
        Some(issuer) => params.signed_by(key, &issue::issuer(issuer)?)?,
        None => params.self_signed(key)?,
    };
    let key_pem = key.serialize_pem().into();
    Ok(CertificateAuthority { cert_pem: certificate.pem(), key_pem })
}

fn der_of(pem: &str) -> Result<CertificateDer<'static>, IssueError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| IssueError::BadAuthority(error.to_string()))
}
