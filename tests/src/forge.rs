//! Certificates that break a rule, as files that `openssl` can present.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pillion_certs::corpus::{Corpus, Verdict};
use pillion_certs::issue::{CertificateAuthority, Forge, Issued};
use pillion_certs::spiffe::TrustDomain;

use crate::labels::TRUST_DOMAIN;
use crate::{Context, Failure, complete};

/// The files of an SVID, as words of a command line.
#[derive(Debug, Clone)]
pub struct Svid {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// The certificates behind it, as they are sent.
    pub chain: String,
    /// The authority of the mesh, to check the other side by.
    pub ca: String,
}

impl Svid {
    /// Those in a directory that has `tls.crt`, `tls.key`, `ca.crt` and, for a chain,
    /// `chain.crt`.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        let file = |name: &str| directory.join(name).display().to_string();
        Self {
            cert: file("tls.crt"),
            key: file("tls.key"),
            chain: file("chain.crt"),
            ca: file("ca.crt"),
        }
    }
}

/// A certificate of the corpus, and what it must be met with.
#[derive(Debug, Clone)]
pub struct Presented {
    /// What is special about it.
    pub name: String,
    /// Its files.
    pub svid: Svid,
    /// The label of the handshake: why it is refused, or `ok`.
    pub label: String,
}

/// The corpus as files: what to present, and what to judge by.
#[derive(Debug)]
pub struct CorpusFiles {
    /// The certificates that other programs can load.
    pub presented: Vec<Presented>,
    /// The bundle that judges them, `ca.crt`.
    pub bundle: PathBuf,
    /// The revocation lists that judge them.
    pub crl: PathBuf,
}

/// The authority in a directory that has `ca.crt` and `ca.key`.
fn authority(ca: &Path) -> Result<CertificateAuthority, Failure> {
    let read =
        |name: &str| fs::read_to_string(ca.join(name)).context(|| format!("the CA's {name}"));
    Ok(CertificateAuthority { cert_pem: read("ca.crt")?, key_pem: read("ca.key")?.into() })
}

/// Writes an SVID that is valid from and until so many seconds from now into a new directory, as
/// `tls.crt`, `tls.key` and `ca.crt`.
///
/// # Errors
/// The authority cannot be read, or a file not be written.
pub fn valid(ca: &Path, id: &str, from: i64, until: i64, out: &Path) -> Result<(), Failure> {
    let authority = authority(ca)?;
    let svid = Forge::new(id).and_then(|forge| forge.valid(from, until).sign(&authority));
    let svid = svid.map_err(|error| Failure::Unexpected(format!("forging an SVID: {error}")))?;
    write(&svid, &authority, out)
}

fn write(svid: &Issued, authority: &CertificateAuthority, out: &Path) -> Result<(), Failure> {
    fs::create_dir_all(out)?;
    fs::write(out.join("tls.crt"), &svid.chain_pem)?;
    fs::write(out.join("tls.key"), svid.key_pem.as_bytes())?;
    fs::write(out.join("ca.crt"), &authority.cert_pem).map_err(Failure::from)
}

/// Writes the corpus, made with the mesh's authority in `ca`, into directories below `out`.
///
/// # Errors
/// The authority cannot be read, or a file not be written, or `openssl` fails.
pub fn corpus(ca: &Path, out: &Path) -> Result<CorpusFiles, Failure> {
    let domain: TrustDomain =
        TRUST_DOMAIN.parse().map_err(|error| Failure::Unexpected(format!("{error}")))?;
    let corpus = Corpus::new(authority(ca)?, &domain)
        .map_err(|error| Failure::Unexpected(format!("forging the corpus: {error}")))?;
    fs::create_dir_all(out)?;
    let (bundle, crl) = (out.join("ca.crt"), out.join("crl.pem"));
    fs::write(&bundle, &corpus.bundle_pem)?;
    fs::write(&crl, &corpus.crl_pem)?;
    let mut presented = Vec::new();
    for (number, entry) in corpus.entries.iter().filter(|e| e.loads_elsewhere).enumerate() {
        let directory = out.join(number.to_string());
        fs::create_dir_all(&directory)?;
        let mut chain = entry.chain.iter().map(|der| pem("CERTIFICATE", der));
        fs::write(directory.join("tls.crt"), chain.next().unwrap_or_default())?;
        fs::write(directory.join("chain.crt"), chain.collect::<String>())?;
        fs::write(directory.join("tls.key"), &entry.key_pem)?;
        fs::copy(&bundle, directory.join("ca.crt"))?;
        presented.push(Presented {
            name: entry.name.to_owned(),
            svid: Svid::in_directory(&directory),
            label: match entry.verdict {
                Verdict::Good => "ok".to_owned(),
                Verdict::Refused(label) => label.to_owned(),
            },
        });
    }
    // What our own tools make no keys and no signatures for.
    for (name, key, digest, label) in [
        ("an RSA key of 1024 bits", "rsa:1024", "-sha256", "bad_handshake_signature"),
        ("really signed with SHA-1", "rsa:2048", "-sha1", "unsupported_algorithm"),
    ] {
        let directory = out.join(digest);
        by_openssl(ca, &directory, key, digest)?;
        fs::write(directory.join("chain.crt"), "")?;
        let svid = Svid::in_directory(&directory);
        presented.push(Presented { name: name.to_owned(), svid, label: label.to_owned() });
    }
    Ok(CorpusFiles { presented, bundle, crl })
}

/// An SVID that `openssl` makes.
fn by_openssl(ca: &Path, out: &Path, key: &str, digest: &str) -> Result<(), Failure> {
    fs::create_dir_all(out)?;
    let script = format!(
        "openssl req -newkey {key} -nodes -subj /CN=workload -keyout tls.key -out csr.pem &&
         printf 'keyUsage=critical,digitalSignature\nsubjectAltName=URI:spiffe://{TRUST_DOMAIN}/openssl\n' > ext &&
         openssl x509 -req -in csr.pem -CA \"$0/ca.crt\" -CAkey \"$0/ca.key\" -days 1 -set_serial 1 \
             {digest} -extfile ext -out tls.crt"
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]).arg(ca).current_dir(out);
    complete(&mut command)?;
    fs::copy(ca.join("ca.crt"), out.join("ca.crt")).map(drop).map_err(Failure::from)
}

fn pem(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}
