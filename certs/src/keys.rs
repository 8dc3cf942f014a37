//! Private keys out of PEM, with no copy left behind.
//!
//! The PEM reader that certificates are read with keeps what it decodes in buffers that it frees as
//! they are. So a key is cut out before that reader sees the file, and decoded here into memory
//! that is wiped.

use base64ct::{Base64, Encoding};
use rustls_pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

use crate::pem::{self, Section};

/// PKCS#8, PKCS#1 and SEC1, as OpenSSL labels them (RFC 7468 §10, RFC 5915 §4).
const LABELS: &[&[u8]] = &[b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY"];

/// Why there is no key in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyFault {
    #[error("no unencrypted \"BEGIN ... PRIVATE KEY\" in it")]
    Absent,
    #[error("the private key has no \"END\" line")]
    NoEnd,
    #[error("the private key is not in base64")]
    NotBase64,
    #[error("the private key is neither PKCS#8 nor SEC1 nor PKCS#1")]
    UnknownForm,
}

/// The DER of a private key; wiped when dropped, and never shown.
pub(crate) struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// The first private key in a PEM file.
    pub(crate) fn from_pem(content: &[u8]) -> Result<Self, KeyFault> {
        let section = pem::sections(content).find(is_key).ok_or(KeyFault::Absent)?;
        let body = section.body.ok_or(KeyFault::NoEnd)?;
        let mut text = Zeroizing::new(Vec::with_capacity(body.len()));
        text.extend(body.iter().filter(|byte| !byte.is_ascii_whitespace()));
        let length = Base64::decode_in_place(&mut text).map_err(|_| KeyFault::NotBase64)?.len();
        text.truncate(length);
        PrivateKeyDer::try_from(text.as_slice()).map_err(|_| KeyFault::UnknownForm)?;
        Ok(Self(text))
    }

    /// The key in its form.
    pub(crate) fn der(&self) -> Result<PrivateKeyDer<'_>, KeyFault> {
        PrivateKeyDer::try_from(self.0.as_slice()).map_err(|_| KeyFault::UnknownForm)
    }
}

/// A PEM file without its private keys, and without what follows one that has no end.
pub(crate) fn without_keys(content: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut rest = Zeroizing::new(Vec::with_capacity(content.len()));
    let mut from = 0;
    for section in pem::sections(content).filter(is_key) {
        rest.extend(content.get(from..section.from).unwrap_or_default());
        from = section.until;
    }
    rest.extend(content.get(from..).unwrap_or_default());
    rest
}

fn is_key(section: &Section<'_>) -> bool {
    LABELS.contains(&section.label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue;
    use rustls_pki_types::pem::PemObject;

    fn issued() -> issue::Issued {
        let hour = std::time::Duration::from_secs(3600);
        let ca = issue::make_ca(&"d".parse().unwrap(), hour * 2).unwrap();
        issue::issue(&ca, &"spiffe://d/a".parse().unwrap(), hour).unwrap()
    }

    #[test]
    fn a_key_is_read_as_the_common_reader_reads_it() {
        let svid = issued();
        let pem = svid.key_pem.as_str();
        let theirs = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        let wide: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
        for text in [
            pem.to_owned(),
            pem.replace('\n', "\r\n"),
            format!("subject=nobody\n{pem}trailer"),
            format!("{}{pem}", svid.chain_pem),
            format!("{pem}{}", svid.chain_pem),
            format!("-----BEGIN PRIVATE KEY-----\n{wide}\n-----END PRIVATE KEY-----"),
        ] {
            let ours = Key::from_pem(text.as_bytes()).unwrap();
            assert_eq!(ours.der().unwrap(), theirs, "{text}");
        }
    }

    #[test]
    fn what_is_no_key_has_its_reason() {
        let svid = issued();
        let pem = svid.key_pem.as_str();
        let half = &pem[..pem.len() / 2];
        let fault = |text: &str| Key::from_pem(text.as_bytes()).map(|_| ()).unwrap_err();
        assert_eq!(fault(""), KeyFault::Absent);
        assert_eq!(fault(&svid.chain_pem), KeyFault::Absent);
        assert_eq!(fault(&pem.replace("PRIVATE", "ENCRYPTED PRIVATE")), KeyFault::Absent);
        assert_eq!(fault(half), KeyFault::NoEnd);
        assert_eq!(fault(&pem.replace("M", "!")), KeyFault::NotBase64);
        let other = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(fault(other), KeyFault::UnknownForm);
    }

    #[test]
    fn without_keys_the_rest_is_as_it_was() {
        let svid = issued();
        let (key, chain) = (svid.key_pem.as_str(), svid.chain_pem.as_str());
        let rest = |text: &str| String::from_utf8(without_keys(text.as_bytes()).to_vec()).unwrap();
        assert_eq!(rest(chain), chain);
        assert_eq!(rest(&format!("{key}{chain}")), chain);
        assert_eq!(rest(&format!("{chain}{key}")), chain);
        assert_eq!(rest(&format!("a\n{key}b\n{key}c")), "a\nb\nc");
        assert_eq!(rest(&format!("a\n{}", &key[..key.len() / 2])), "a\n", "a torn one goes too");
        assert_eq!(rest(&key.replace('\n', "\r\n")).trim(), "");
    }
}
