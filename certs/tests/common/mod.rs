//! Authorities, generations and handshakes in memory.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::result_large_err, reason = "an error here ends the test")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pillion_certs::generation::{KeyExchange, TlsGeneration};
use pillion_certs::issue::{self, CertificateAuthority, Issued};
use pillion_certs::load::{IdentityFiles, SvidSource};
use pillion_certs::verify::TrustBundles;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, ServerConfig,
    ServerConnection, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

pub(crate) const DOMAIN: &str = "example.org";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn authority(domain: &str) -> CertificateAuthority {
    issue::make_ca(&domain.parse().unwrap(), HOUR * 24).unwrap()
}

pub(crate) fn svid(authority: &CertificateAuthority, id: &str) -> Issued {
    issue::issue(authority, &id.parse().unwrap(), HOUR).unwrap()
}

pub(crate) fn chain(svid: &Issued) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(svid.chain_pem.as_bytes()).map(Result::unwrap).collect()
}

pub(crate) fn key(svid: &Issued) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(svid.key_pem.as_bytes()).unwrap()
}

/// The files of an identity in a folder.
pub(crate) fn files_in(dir: &Path) -> IdentityFiles {
    IdentityFiles {
        svid: SvidSource::Files { cert: dir.join("tls.crt"), key: dir.join("tls.key") },
        ca: dir.join("ca.crt"),
        trust_bundles_dir: None,
        crl: None,
        trust_domain: None,
        key_exchange: KeyExchange::Auto,
    }
}

/// Writes these files.
pub(crate) fn write(dir: &Path, svid: &Issued, ca: &CertificateAuthority) {
    fs::write(dir.join("tls.crt"), &svid.chain_pem).unwrap();
    fs::write(dir.join("tls.key"), svid.key_pem.as_bytes()).unwrap();
    fs::write(dir.join("ca.crt"), &ca.cert_pem).unwrap();
}

pub(crate) fn bundle_from_pem(domain: &str, pem: &str) -> TrustBundles {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
    let mut bundles = TrustBundles::new();
    bundles.add(domain.parse().unwrap(), &certificates).unwrap();
    bundles
}

pub(crate) fn bundles(list: &[(&str, &CertificateAuthority)]) -> TrustBundles {
    let mut bundles = TrustBundles::new();
    for (domain, authority) in list {
        let der = CertificateDer::from_pem_slice(authority.cert_pem.as_bytes()).unwrap();
        bundles.add(domain.parse().unwrap(), &[der]).unwrap();
    }
    bundles
}

pub(crate) fn generation_with(svid: &Issued, bundles: TrustBundles) -> TlsGeneration {
    TlsGeneration::new(chain(svid), &key(svid), bundles, KeyExchange::Auto).unwrap()
}

pub(crate) fn generation(authority: &CertificateAuthority, path: &str) -> TlsGeneration {
    let svid = svid(authority, &format!("spiffe://{DOMAIN}{path}"));
    generation_with(&svid, bundles(&[(DOMAIN, authority)]))
}

/// The error that each side ended with; the other side of a refusal sees an alert.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) client: Option<rustls::Error>,
    pub(crate) server: Option<rustls::Error>,
}

pub(crate) fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), Failure> {
    let mut client = ClientConnection::new(client, TlsGeneration::server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() && server_error.is_none() {
            server.read_tls(&mut bytes).unwrap();
            server_error = server.process_new_packets().err();
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() && client_error.is_none() {
            client.read_tls(&mut bytes).unwrap();
            client_error = client.process_new_packets().err();
        }
    }
    if client_error.is_some() || server_error.is_some() {
        return Err(Failure { client: client_error, server: server_error });
    }
    assert!(!client.is_handshaking() && !server.is_handshaking(), "the handshake got stuck");
    Ok((client, server))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A chain and its key as they are, whether they fit or not.
fn shown(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Arc<SingleCertAndKey> {
    let signing = provider().key_provider.load_private_key(key).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, signing)))
}

/// A client that presents what it is given, whether the key is the certificate's or not, and checks
/// nothing.
pub(crate) fn rude_client(svid: &Issued) -> Arc<ClientConfig> {
    rude_client_of(chain(svid), key(svid))
}

pub(crate) fn rude_client_of(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_client_cert_resolver(shown(chain, key));
    Arc::new(config)
}

/// A client that has no certificate.
pub(crate) fn nameless_client() -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    Arc::new(config)
}

/// A server that presents what it is given and checks nothing.
pub(crate) fn rude_server(svid: &Issued) -> Arc<ServerConfig> {
    rude_server_of(chain(svid), key(svid))
}

pub(crate) fn rude_server_of(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Credulous))
        .with_cert_resolver(shown(chain, key));
    config.alpn_protocols = vec![b"istio".to_vec()];
    Arc::new(config)
}

#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Credulous {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// An authority that lets others issue below it.
pub(crate) fn root_of_intermediates(domain: &str) -> CertificateAuthority {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("root of {domain}"));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    CertificateAuthority { cert_pem: certificate.pem(), key_pem: key.serialize_pem().into() }
}

/// What an authority is certified as that has another's name.
pub(crate) fn params_named_as(of: &CertificateAuthority, domain: &str) -> rcgen::CertificateParams {
    let der = CertificateDer::from_pem_slice(of.cert_pem.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = parsed.subject().iter_organization().next() {
        let organization = organization.as_str().unwrap();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    }
    let common_name = parsed.subject().iter_common_name().next().unwrap().as_str().unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    let id = format!("spiffe://{domain}").try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(id)];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params
}

/// An authority that has taken another's name, with a key of its own.
pub(crate) fn namesake(
    of: &CertificateAuthority,
    domain: &str,
    crl_sign: bool,
) -> CertificateAuthority {
    let mut params = params_named_as(of, domain);
    if !crl_sign {
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    assert_same_name(of, &certificate);
    CertificateAuthority { cert_pem: certificate.pem(), key_pem: key.serialize_pem().into() }
}

/// An authority's next key, in a certificate of the same name that the key before has signed.
pub(crate) fn signed_namesake(of: &CertificateAuthority) -> CertificateAuthority {
    let issuer_key = rcgen::KeyPair::from_pem(&of.key_pem).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&of.cert_pem, issuer_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params_named_as(of, DOMAIN).signed_by(&key, &issuer).unwrap();
    assert_same_name(of, &certificate);
    CertificateAuthority { cert_pem: certificate.pem(), key_pem: key.serialize_pem().into() }
}

#[track_caller]
fn assert_same_name(of: &CertificateAuthority, certificate: &rcgen::Certificate) {
    let der = CertificateDer::from_pem_slice(of.cert_pem.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(
        x509_parser::parse_x509_certificate(certificate.der()).unwrap().1.subject().as_raw(),
        parsed.subject().as_raw(),
        "the names are equal to the byte"
    );
}

/// An authority between the bundle's and the leaf, with these URI SANs.
pub(crate) fn intermediate(root: &CertificateAuthority, uris: &[&str]) -> CertificateAuthority {
    intermediate_of(&rcgen::KeyPair::generate().unwrap(), root, uris)
}

/// The same for a key that other roots may certify too.
pub(crate) fn intermediate_of(
    key: &rcgen::KeyPair,
    root: &CertificateAuthority,
    uris: &[&str],
) -> CertificateAuthority {
    let root_key = rcgen::KeyPair::from_pem(&root.key_pem).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root.cert_pem, root_key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Between");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.subject_alt_names =
        uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap())).collect();
    let certificate = params.signed_by(key, &issuer).unwrap();
    CertificateAuthority { cert_pem: certificate.pem(), key_pem: key.serialize_pem().into() }
}

/// An authority between whose key usage has no cRLSign, and a list that it has signed all the same.
pub(crate) fn intermediate_without_crl_sign(
    root: &CertificateAuthority,
) -> (CertificateAuthority, String) {
    let root_key = rcgen::KeyPair::from_pem(&root.key_pem).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root.cert_pem, root_key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Between");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    // rcgen signs lists for those alone who may, so the list is made under another certificate of
    // the same name and key.
    params.key_usages.push(rcgen::KeyUsagePurpose::CrlSign);
    let other = params.signed_by(&key, &issuer).unwrap().pem();
    let authority =
        |cert_pem| CertificateAuthority { cert_pem, key_pem: key.serialize_pem().into() };
    let list =
        pillion_certs::revoke::revocation_list(&authority(other), None, &[], None, HOUR).unwrap();
    (authority(certificate.pem()), list)
}
