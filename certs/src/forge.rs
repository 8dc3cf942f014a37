//! Certificates that break a rule, for tests.
//!
//! A check is worth what it refuses. [`bad_svids`] is one list of certificates, each with one fault
//! and the label that it must be refused with, so that the unit tests, the handshake tests and
//! those with real sockets and real proxies all hold the same line. Nothing here weakens a check,
//! and nothing here is reachable from the binaries.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, IsCa, KeyPair, SanType,
};
pub use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use time::OffsetDateTime;

use crate::issue::{CertificateAuthority, IssueError, Issued, sign, sign_for, svid_params};
use crate::spiffe::TrustDomain;

const HOUR: Duration = Duration::from_secs(3600);

/// Builds a leaf rule by rule; it begins as a good SVID valid for an hour.
#[derive(Debug, Clone)]
pub struct Forge {
    params: CertificateParams,
    sans: Vec<(San, String)>,
}

#[derive(Debug, Clone, Copy)]
enum San {
    Uri,
    Dns,
    Email,
}

impl Forge {
    /// A good SVID with `uri` as its one URI SAN, whatever that string is.
    ///
    /// # Errors
    /// rcgen's, none of them to be expected.
    pub fn new(uri: &str) -> Result<Self, IssueError> {
        Ok(Self { params: svid_params(HOUR)?, sans: vec![(San::Uri, uri.to_owned())] })
    }

    /// Adds a URI SAN after those that are there.
    #[must_use]
    pub fn uri(self, uri: &str) -> Self {
        self.san(San::Uri, uri)
    }

    /// Adds a DNS SAN.
    #[must_use]
    pub fn dns(self, name: &str) -> Self {
        self.san(San::Dns, name)
    }

    /// Adds an e-mail SAN.
    #[must_use]
    pub fn email(self, address: &str) -> Self {
        self.san(San::Email, address)
    }

    /// Removes every SAN so far.
    #[must_use]
    pub fn no_sans(mut self) -> Self {
        self.sans.clear();
        self
    }

    /// Sets `cA`.
    #[must_use]
    pub fn ca(mut self) -> Self {
        self.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        self
    }

    /// Sets the key usage; empty leaves the extension out.
    #[must_use]
    pub fn key_usages(mut self, usages: &[KeyUsagePurpose]) -> Self {
        self.params.key_usages = usages.to_vec();
        self
    }

    /// Sets the extended key usage; empty leaves the extension out.
    #[must_use]
    pub fn extended_key_usages(mut self, usages: &[ExtendedKeyUsagePurpose]) -> Self {
        self.params.extended_key_usages = usages.to_vec();
        self
    }

    /// Makes the key usage (`digitalSignature`) an extension that readers may ignore.
    #[must_use]
    pub fn key_usage_not_critical(mut self) -> Self {
        const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
        self.params.key_usages = Vec::new();
        // A BIT STRING with its first bit set.
        self.params
            .custom_extensions
            .push(CustomExtension::from_oid_content(KEY_USAGE, vec![0x03, 0x02, 0x07, 0x80]));
        self
    }

    /// Leaves the subject empty and puts `uri` (at most 100 bytes of it) into a SAN that readers
    /// may ignore.
    #[must_use]
    pub fn nameless_with_san_not_critical(mut self, uri: &str) -> Self {
        const SUBJECT_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
        let uri: Vec<u8> = uri.bytes().take(100).collect();
        let length = u8::try_from(uri.len()).unwrap_or_default();
        // A SEQUENCE of one [6] uniformResourceIdentifier, both with lengths of one byte.
        let content = [vec![0x30, length + 2, 0x86, length], uri].concat();
        self.sans.clear();
        self.params.distinguished_name = DistinguishedName::new();
        self.params
            .custom_extensions
            .push(CustomExtension::from_oid_content(SUBJECT_ALTERNATIVE_NAME, content));
        self
    }

    /// Sets the validity, in seconds from now; negative is the past.
    #[must_use]
    pub fn valid(mut self, from: i64, until: i64) -> Self {
        let now = OffsetDateTime::now_utc();
        self.params.not_before = now + time::Duration::seconds(from);
        self.params.not_after = now + time::Duration::seconds(until);
        self
    }

    /// Signs it with an authority, without any of the checks of [`crate::issue::issue`].
    ///
    /// # Errors
    /// A SAN that isn't ASCII, or an authority that can't be read.
    pub fn sign(self, authority: &CertificateAuthority) -> Result<Issued, IssueError> {
        sign(self.params()?, authority)
    }

    /// The same for a key of any kind.
    pub(crate) fn sign_for(
        self,
        authority: &CertificateAuthority,
        key: &KeyPair,
    ) -> Result<Issued, IssueError> {
        sign_for(self.params()?, authority, key)
    }

    /// Signs it with its own key.
    pub(crate) fn self_signed(self) -> Result<Issued, IssueError> {
        let key = KeyPair::generate()?;
        let certificate = self.params()?.self_signed(&key)?;
        Ok(Issued { chain_pem: certificate.pem(), key_pem: key.serialize_pem().into() })
    }

    /// Changes whatever there is no word for here.
    #[must_use]
    pub(crate) fn with(mut self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        change(&mut self.params);
        self
    }

    fn params(self) -> Result<CertificateParams, IssueError> {
        let mut params = self.params;
        for (kind, text) in self.sans {
            params.subject_alt_names.push(match kind {
                San::Uri => SanType::URI(text.try_into()?),
                San::Dns => SanType::DnsName(text.try_into()?),
                San::Email => SanType::Rfc822Name(text.try_into()?),
            });
        }
        Ok(params)
    }

    fn san(mut self, kind: San, text: &str) -> Self {
        self.sans.push((kind, text.to_owned()));
        self
    }
}

/// A certificate with one fault.
pub struct BadSvid {
    /// What is wrong with it, for a test's message.
    pub name: &'static str,
    /// The certificate and its key.
    pub svid: Issued,
    /// The [`crate::refusal::PeerRefusal::label`] that it must be refused with, by whoever trusts
    /// `domain` through the authority and no other domain.
    pub expected_label: &'static str,
}

/// One certificate for each rule, issued by the authority of `domain`, which says so itself
/// wherever the fault isn't that it doesn't.
///
/// # Errors
/// An authority that can't be read.
pub fn bad_svids(
    authority: &CertificateAuthority,
    domain: &TrustDomain,
) -> Result<Vec<BadSvid>, IssueError> {
    let mut list = bad_names(domain)?;
    list.extend(bad_usages(domain)?);
    list.into_iter()
        .map(|(name, expected_label, forge)| {
            Ok(BadSvid { name, svid: forge.sign(authority)?, expected_label })
        })
        .collect()
}

type Entry = (&'static str, &'static str, Forge);

fn bad_names(domain: &TrustDomain) -> Result<Vec<Entry>, IssueError> {
    let id = |path: &str| format!("spiffe://{domain}{path}");
    let upper = format!("spiffe://{}/app", domain.as_str().to_ascii_uppercase());
    let with = |uri: String| Forge::new(&uri);
    Ok(vec![
        ("two URI SANs, A then B", "two_uri_sans", with(id("/a"))?.uri(&id("/b"))),
        ("two URI SANs, B then A", "two_uri_sans", with(id("/b"))?.uri(&id("/a"))),
        (
            "a URI SAN that is no SPIFFE ID beside one that is",
            "two_uri_sans",
            with(id("/a"))?.uri("https://example.com/a"),
        ),
        ("no URI SAN", "no_uri_san", with(String::new())?.no_sans().dns("app.example.com")),
        ("no SAN at all", "no_uri_san", with(String::new())?.no_sans()),
        (
            "an e-mail SAN with the identity",
            "no_uri_san",
            with(String::new())?.no_sans().email(&id("/app")),
        ),
        ("query", "spiffe_query", with(id("/app?x=1"))?),
        ("fragment", "spiffe_fragment", with(id("/app#x"))?),
        ("port", "spiffe_port", with(format!("spiffe://{domain}:8443/app"))?),
        ("user-info", "spiffe_userinfo", with(format!("spiffe://root@{domain}/app"))?),
        ("percent-encoding", "spiffe_percent", with(id("/%61pp"))?),
        ("dot segment", "spiffe_dot_segment", with(id("/a/../app"))?),
        ("empty segment", "spiffe_empty_segment", with(id("//app"))?),
        ("trailing slash", "spiffe_empty_segment", with(id("/app/"))?),
        ("upper-case domain", "spiffe_upper_case", with(upper)?),
        ("no path", "spiffe_no_path", with(id(""))?),
        ("root path", "spiffe_no_path", with(id("/"))?),
        ("another scheme", "spiffe_bad", with(format!("https://{domain}/app"))?),
        ("another trust domain", "untrusted_domain", with(format!("spiffe://not-{domain}/app"))?),
    ])
}

fn bad_usages(domain: &TrustDomain) -> Result<Vec<Entry>, IssueError> {
    use ExtendedKeyUsagePurpose as Eku;
    use KeyUsagePurpose as Ku;
    let good = || Forge::new(&format!("spiffe://{domain}/app"));
    Ok(vec![
        ("CA leaf", "leaf_is_ca", good()?.ca()),
        (
            "keyCertSign",
            "key_cert_sign",
            good()?.key_usages(&[Ku::DigitalSignature, Ku::KeyCertSign]),
        ),
        ("cRLSign", "crl_sign", good()?.key_usages(&[Ku::DigitalSignature, Ku::CrlSign])),
        (
            "key usage without digitalSignature",
            "no_digital_signature",
            good()?.key_usages(&[Ku::KeyEncipherment]),
        ),
        ("no key usage", "no_digital_signature", good()?.key_usages(&[])),
        ("key usage not critical", "key_usage_not_critical", good()?.key_usage_not_critical()),
        (
            "an empty subject and a SAN that is not critical",
            "malformed",
            good()?.nameless_with_san_not_critical(&format!("spiffe://{domain}/app")),
        ),
        (
            "serverAuth alone",
            "eku_missing_client_auth",
            good()?.extended_key_usages(&[Eku::ServerAuth]),
        ),
        (
            "clientAuth alone",
            "eku_missing_server_auth",
            good()?.extended_key_usages(&[Eku::ClientAuth]),
        ),
        (
            "emailProtection alone",
            "eku_missing_client_auth",
            good()?.extended_key_usages(&[Eku::EmailProtection]),
        ),
        ("any purpose alone", "eku_missing_client_auth", good()?.extended_key_usages(&[Eku::Any])),
        ("expired", "expired", good()?.valid(-7200, -3600)),
        ("not yet valid", "not_yet_valid", good()?.valid(3600, 7200)),
    ])
}
