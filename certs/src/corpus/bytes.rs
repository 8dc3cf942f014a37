//! Faults and oddities of one certificate: names, extensions, encodings.

use rcgen::{CustomExtension, SerialNumber};
use rustls_pki_types::CertificateDer;

use super::der::{SEQUENCE, element, mangled, rewritten};
use super::{Authorities, Entry, Verdict};
use crate::forge::{ExtendedKeyUsagePurpose, Forge, KeyUsagePurpose};
use crate::issue::IssueError;

use Verdict::{Good, Refused};

const SUBJECT_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
/// Of an arc for private enterprises that nobody has.
const UNKNOWN: &[u64] = &[1, 3, 6, 1, 4, 1, 99_999, 1];

pub(super) fn entries(made: &Authorities) -> Result<Vec<Entry>, IssueError> {
    let mut entries = Vec::new();
    for (name, verdict, forge) in
        good(made)?.into_iter().chain(names(made)?).chain(extensions(made)?)
    {
        entries.push(Entry::new(name, verdict, &forge.sign(&made.plain)?)?);
    }
    entries.extend(encodings(made)?);
    Ok(entries)
}

type Listed = (&'static str, Verdict, Forge);

fn good(made: &Authorities) -> Result<Vec<Listed>, IssueError> {
    use ExtendedKeyUsagePurpose as Eku;
    use KeyUsagePurpose as Ku;
    let good = || made.good();
    let id = made.id("/corpus");
    let longest = made.id(&format!("/{}", "a".repeat(2047 - made.id("").len())));
    let both = [Eku::ServerAuth, Eku::ClientAuth];
    Ok(vec![
        ("plain", Good, good()?),
        ("DNS and e-mail SANs beside the ID", Good, good()?.dns("a.shop").email("a@example.com")),
        ("a DNS SAN before the ID", Good, good()?.no_sans().dns("a.shop").uri(&id)),
        ("a wildcard DNS SAN", Good, good()?.dns("*.shop")),
        ("no extended key usage", Good, good()?.extended_key_usages(&[])),
        (
            "a third purpose",
            Good,
            good()?.extended_key_usages(&[&both[..], &[Eku::CodeSigning]].concat()),
        ),
        (
            "more key usages",
            Good,
            good()?.key_usages(&[Ku::DigitalSignature, Ku::KeyEncipherment, Ku::KeyAgreement]),
        ),
        ("an ID of 2048 bytes", Good, Forge::new(&longest)?),
        ("dots, dashes and upper case in the path", Good, Forge::new(&made.id("/.../A-z_.9"))?),
        ("a serial number of 20 bytes", Good, serial(good()?, 20)),
        (
            "an unknown extension that may be ignored",
            Good,
            extension(good()?, UNKNOWN, false, &[5, 0]),
        ),
        ("an unknown extension of 8 KiB", Good, extension(good()?, UNKNOWN, false, &[0; 8192])),
        ("an empty subject and a SAN that is critical", Good, nameless(&id)?),
    ])
}

fn names(made: &Authorities) -> Result<Vec<Listed>, IssueError> {
    let too_long = made.id(&format!("/{}", "a".repeat(2048 - made.id("").len())));
    let of_domain = |bytes: usize| format!("spiffe://{}/app", "d".repeat(bytes));
    let raw = |names: &[u8]| {
        let content = element(SEQUENCE, names);
        Ok::<_, IssueError>(extension(
            made.good()?.no_sans(),
            SUBJECT_ALTERNATIVE_NAME,
            true,
            &content,
        ))
    };
    let uri = |uri: &[u8]| element(0x86, uri);
    let id = |path: &str| made.id(path).into_bytes();
    Ok(vec![
        ("an ID of 2049 bytes", Refused("spiffe_bad"), Forge::new(&too_long)?),
        ("a domain of 255 bytes", Refused("untrusted_domain"), Forge::new(&of_domain(255))?),
        ("a domain of 256 bytes", Refused("spiffe_bad"), Forge::new(&of_domain(256))?),
        ("a wildcard", Refused("spiffe_bad"), Forge::new(&made.id("/*"))?),
        ("a space", Refused("spiffe_bad"), Forge::new(&made.id("/a b"))?),
        ("a backslash", Refused("spiffe_bad"), Forge::new(&made.id("\\a"))?),
        (
            "an upper-case scheme",
            Refused("spiffe_bad"),
            Forge::new(&made.id("/a").replace("spiffe", "SPIFFE"))?,
        ),
        ("no domain", Refused("spiffe_bad"), Forge::new("spiffe:///app")?),
        ("a port without a number", Refused("spiffe_port"), Forge::new(&made.id(":/a"))?),
        (
            "a subdomain of ours",
            Refused("untrusted_domain"),
            Forge::new(&format!("spiffe://a.{}/a", made.domain))?,
        ),
        ("a dot after the domain", Refused("untrusted_domain"), Forge::new(&made.id("./a"))?),
        ("a NUL in the ID", Refused("spiffe_bad"), raw(&uri(&id("/a\0b")))?),
        (
            "a byte that is not ASCII",
            Refused("malformed"),
            raw(&uri(&[&id("/a")[..], &[0xe9]].concat()))?,
        ),
        ("UTF-8 in the ID", Refused("spiffe_bad"), raw(&uri(&id("/\u{e9}")))?),
        (
            "a name of a type that there is not",
            Refused("malformed"),
            raw(&[uri(&id("/a")), element(0x8f, b"x")].concat())?,
        ),
        (
            "an IP SAN of three bytes beside the ID",
            Good,
            raw(&[uri(&id("/a")), element(0x87, &[1, 2, 3])].concat())?,
        ),
        ("no name at all in the SAN", Refused("no_uri_san"), raw(&[])?),
        ("an empty URI", Refused("spiffe_bad"), raw(&uri(b""))?),
    ])
}

fn extensions(made: &Authorities) -> Result<Vec<Listed>, IssueError> {
    let good = || made.good();
    let second = element(SEQUENCE, &element(0x86, made.id("/other").as_bytes()));
    Ok(vec![
        (
            "an unknown critical extension",
            Refused("malformed"),
            extension(good()?, UNKNOWN, true, &[5, 0]),
        ),
        (
            "two SAN extensions",
            Refused("malformed"),
            extension(good()?, SUBJECT_ALTERNATIVE_NAME, false, &second),
        ),
        (
            "two key usages",
            Refused("malformed"),
            extension(good()?, KEY_USAGE, true, &[3, 2, 7, 0x80]),
        ),
        (
            "a key usage that does not parse",
            Refused("malformed"),
            extension(good()?.key_usages(&[]), KEY_USAGE, true, &[4, 1, 0]),
        ),
        ("a validity that is upside down", Refused("malformed"), good()?.valid(3600, -3600)),
        ("a serial number of 21 bytes", Good, serial(good()?, 21)),
        ("a serial number of 200 bytes", Good, serial(good()?, 200)),
    ])
}

fn encodings(made: &Authorities) -> Result<Vec<Entry>, IssueError> {
    let plain = |name, verdict| Entry::new(name, verdict, &made.good()?.sign(&made.plain)?);
    let mut entries = Vec::new();
    let mut with = |name, verdict, elsewhere, change: &dyn Fn(&CertificateDer<'_>) -> _| {
        let mut entry: Entry = plain(name, verdict)?;
        let changed: Result<CertificateDer<'static>, IssueError> =
            entry.chain.first().map_or_else(|| Err(IssueError::BadTtl(super::DAY)), change);
        entry.chain = vec![changed?];
        entries.push(if elsewhere { entry } else { entry.only_here() });
        Ok::<_, IssueError>(())
    };
    let rewrite = |der: &CertificateDer<'_>, change: fn(&mut Vec<Vec<u8>>)| {
        rewritten(der, &made.plain, change)
    };
    with("version 1", Refused("no_uri_san"), true, &|der| {
        rewrite(der, |inside| inside.retain(|part| !matches!(part.first(), Some(0xa0 | 0xa3))))
    })?;
    with("version 3 without extensions", Refused("no_uri_san"), true, &|der| {
        rewrite(der, |inside| inside.retain(|part| part.first() != Some(&0xa3)))
    })?;
    with("bytes behind the certificate", Refused("malformed"), false, &|der| {
        Ok([der.as_ref(), &[0]].concat().into())
    })?;
    with("half a certificate", Refused("malformed"), false, &|der| {
        Ok(der.get(..der.len() / 2).unwrap_or_default().to_vec().into())
    })?;
    with(
        "no certificate but a number",
        Refused("malformed"),
        false,
        &|_| Ok(vec![2, 1, 1].into()),
    )?;
    with("a signature with one bit changed", Refused("bad_signature"), true, &|der| {
        mangled(der, |[_, _, signature]| {
            if let Some(last) = signature.last_mut() {
                *last ^= 1;
            }
        })
    })?;
    with("content changed after it was signed", Refused("bad_signature"), true, &|der| {
        mangled(der, |[tbs, ..]| {
            let from = tbs.windows(7).position(|part| part == b"/corpus");
            let letter = from.and_then(|from| tbs.get_mut(from + 1));
            if let Some(letter) = letter {
                *letter = b'C';
            }
        })
    })?;
    // ecdsa-with-SHA1 (RFC 3279 §2.2.3), outside and inside.
    let sha1 = || element(SEQUENCE, &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]);
    with("two signature algorithms that differ", Refused("bad_signature"), true, &|der| {
        mangled(der, |[_, algorithm, _]| *algorithm = sha1())
    })?;
    with("signed with ECDSA and SHA-1", Refused("unsupported_algorithm"), true, &|der| {
        let der = rewritten(der, &made.plain, |inside| {
            if let Some(algorithm) = inside.get_mut(2) {
                *algorithm = sha1();
            }
        })?;
        mangled(&der, |[_, algorithm, _]| *algorithm = sha1())
    })?;
    Ok(entries)
}

fn serial(forge: Forge, bytes: usize) -> Forge {
    // Of two certificates, no two have the same length.
    let serial = vec![0x5a; bytes];
    forge.with(|params| params.serial_number = Some(SerialNumber::from_slice(&serial)))
}

fn extension(forge: Forge, oid: &[u64], critical: bool, content: &[u8]) -> Forge {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    forge.with(|params| params.custom_extensions.push(extension))
}

fn nameless(id: &str) -> Result<Forge, IssueError> {
    let content = element(SEQUENCE, &element(0x86, id.as_bytes()));
    let forge = Forge::new(id)?.no_sans();
    let forge = forge.with(|params| params.distinguished_name = rcgen::DistinguishedName::new());
    Ok(extension(forge, SUBJECT_ALTERNATIVE_NAME, true, &content))
}
