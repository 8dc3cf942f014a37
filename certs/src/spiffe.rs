//! SPIFFE identities, checked byte for byte.
//!
//! The grammar is that of the SPIFFE ID standard (SPIFFE-ID §2): the scheme `spiffe`, a trust
//! domain, a path; nothing else that a URI may carry. An identity is compared as bytes in policies
//! and logs, so exactly one spelling of each may exist: what isn't that spelling is refused here,
//! never normalised.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest SPIFFE ID there may be, in bytes (SPIFFE-ID §2.3).
pub const MAX_ID_BYTES: usize = 2048;
/// The longest trust domain name there may be, in bytes (SPIFFE-ID §2.1).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// The rule of the SPIFFE ID grammar that a string breaks.
///
/// Positions are byte offsets from the start of the string that was parsed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SpiffeIdError {
    /// Not `spiffe://` in lower case at the start; also an empty string.
    #[error("it does not begin with \"spiffe://\" in lower case")]
    Scheme,
    /// Nothing stands between `spiffe://` and the path.
    #[error("the trust domain is empty; write spiffe://<trust domain>/<path>")]
    EmptyTrustDomain,
    /// A trust domain of more than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("the trust domain has {0} bytes; {MAX_TRUST_DOMAIN_BYTES} is the most")]
    TrustDomainTooLong(usize),
    /// An upper-case letter in the trust domain.
    #[error("the trust domain has an upper-case letter at byte {at}; write it in lower case")]
    UpperCaseTrustDomain {
        /// Where the letter stands.
        at: usize,
    },
    /// `user@` before the trust domain.
    #[error("it has a user-info part (\"@\" at byte {at}); a SPIFFE ID has none")]
    UserInfo {
        /// Where the `@` stands.
        at: usize,
    },
    /// `:port` after the trust domain.
    #[error("it has a port (\":\" at byte {at}); a SPIFFE ID has none")]
    Port {
        /// Where the `:` stands.
        at: usize,
    },
    /// A `?query`, also an empty one.
    #[error("it has a query (\"?\" at byte {at}); a SPIFFE ID has none")]
    Query {
        /// Where the `?` stands.
        at: usize,
    },
    /// A `#fragment`, also an empty one.
    #[error("it has a fragment (\"#\" at byte {at}); a SPIFFE ID has none")]
    Fragment {
        /// Where the `#` stands.
        at: usize,
    },
    /// Percent-encoding, in the trust domain or the path.
    #[error("it has a percent-encoded character at byte {at}; a SPIFFE ID has none")]
    Percent {
        /// Where the `%` stands.
        at: usize,
    },
    /// A trust domain without a path: it names the domain, not a workload.
    #[error("it has no path: it names a trust domain, not a workload")]
    NoPath,
    /// Two slashes in a row.
    #[error("a path segment is empty (\"//\" at byte {at})")]
    EmptySegment {
        /// Where the second slash stands.
        at: usize,
    },
    /// A slash at the end of a path.
    #[error("the path ends in \"/\"; leave it out")]
    TrailingSlash,
    /// A path segment `.` or `..`.
    #[error("a path segment is \".\" or \"..\" (at byte {at})")]
    DotSegment {
        /// Where the segment begins.
        at: usize,
    },
    /// Longer than [`MAX_ID_BYTES`].
    #[error("it has {0} bytes; {MAX_ID_BYTES} is the most")]
    TooLong(usize),
    /// A byte that the grammar has no place for, among them every non-ASCII one.
    #[error(
        "byte 0x{byte:02x} at {at} is not allowed; a trust domain has a-z 0-9 . - _, \
         a path segment also A-Z"
    )]
    BadCharacter {
        /// The byte.
        byte: u8,
        /// Where it stands.
        at: usize,
    },
}

/// The name of a trust domain, for example `prod.example.org`.
///
/// 1 to 255 bytes of `a-z 0-9 . - _` (SPIFFE-ID §2.1). It is written without a scheme; see
/// [`TrustDomain::from_id`] for `spiffe://prod.example.org`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name, as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain of a *trust domain id*: `spiffe://<name>`, with no path and no slash. That
    /// is what a certificate authority's own URI SAN holds (X509-SVID §3.2); a leaf's never may.
    ///
    /// # Errors
    /// The first rule that it breaks; a path is [`SpiffeIdError::BadCharacter`] at its slash.
    pub fn from_id(id: &str) -> Result<Self, SpiffeIdError> {
        let name = id.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        parse_trust_domain(name, SCHEME.len())
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(name: &str) -> Result<Self, SpiffeIdError> {
        parse_trust_domain(name, 0)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

/// A workload's identity: `spiffe://<trust domain>/<path>` with at least one path segment.
///
/// Cheap to clone. Equality, order and hash are those of the whole string.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    // `text` decides equality and order alone: it comes first, and `domain` follows from it.
    text: Arc<str>,
    domain: TrustDomain,
}

impl SpiffeId {
    /// The whole identity, `spiffe://domain/path`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain that vouches for this identity.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The path with its leading slash, for example `/ns/shop/sa/cart`. Never empty, never `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        let at = SCHEME.len() + self.domain.as_str().len();
        self.text.get(at..).unwrap_or_default()
    }

    /// The path's segments in order; at least one, none of them empty, `.` or `..`.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path().split('/').skip(1)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeIdError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (name, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let domain = parse_trust_domain(name, SCHEME.len())?;
        check_path(path, SCHEME.len() + name.len())?;
        Ok(Self { text: Arc::from(text), domain })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

/// `offset` is where `name` begins in the text that the caller parses, for the error's position.
fn parse_trust_domain(name: &str, offset: usize) -> Result<TrustDomain, SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::EmptyTrustDomain);
    }
    for (at, byte) in name.bytes().enumerate() {
        let at = at + offset;
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_' => {}
            b'A'..=b'Z' => return Err(SpiffeIdError::UpperCaseTrustDomain { at }),
            // Of `user:password@domain` the user-info is the fault, not a port.
            b':' if name.contains('@') => {
                let at = offset + name.find('@').unwrap_or(0);
                return Err(SpiffeIdError::UserInfo { at });
            }
            _ => return Err(foreign_byte(byte, at)),
        }
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong(name.len()));
    }
    Ok(TrustDomain(Arc::from(name)))
}

/// `path` is all that follows the trust domain, the leading slash (or `?`, `#`) included.
fn check_path(path: &str, offset: usize) -> Result<(), SpiffeIdError> {
    // A byte that belongs to another part of a URI tells more than the segment it makes odd.
    for (at, byte) in path.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'/' => {}
            // In a path these two are only out of place; they name no user and no port there.
            b'@' | b':' => return Err(SpiffeIdError::BadCharacter { byte, at: at + offset }),
            _ => return Err(foreign_byte(byte, at + offset)),
        }
    }
    let Some(segments) = path.strip_prefix('/').filter(|rest| !rest.is_empty()) else {
        return Err(SpiffeIdError::NoPath);
    };
    let mut at = offset + 1;
    for segment in segments.split('/') {
        match segment {
            "" if at == offset + path.len() => return Err(SpiffeIdError::TrailingSlash),
            "" => return Err(SpiffeIdError::EmptySegment { at }),
            "." | ".." => return Err(SpiffeIdError::DotSegment { at }),
            _ => at += segment.len() + 1,
        }
    }
    Ok(())
}

fn foreign_byte(byte: u8, at: usize) -> SpiffeIdError {
    match byte {
        b'?' => SpiffeIdError::Query { at },
        b'#' => SpiffeIdError::Fragment { at },
        b'%' => SpiffeIdError::Percent { at },
        b'@' => SpiffeIdError::UserInfo { at },
        b':' => SpiffeIdError::Port { at },
        _ => SpiffeIdError::BadCharacter { byte, at },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> SpiffeIdError {
        match text.parse::<SpiffeId>() {
            Ok(id) => panic!("{text:?} was taken as {id:?}"),
            Err(error) => error,
        }
    }

    #[test]
    fn takes_what_the_standard_shows() {
        for (text, domain, segments) in [
            (
                "spiffe://staging.example.com/payments/mysql",
                "staging.example.com",
                vec!["payments", "mysql"],
            ),
            (
                "spiffe://k8s-west.example.com/ns/staging/sa/default",
                "k8s-west.example.com",
                vec!["ns", "staging", "sa", "default"],
            ),
            ("spiffe://d/9eebccd2-12bf-40a6", "d", vec!["9eebccd2-12bf-40a6"]),
            ("spiffe://d_1/A.Z/...", "d_1", vec!["A.Z", "..."]),
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(id.as_str(), text);
            assert_eq!(id.to_string(), text);
            assert_eq!(id.trust_domain().as_str(), domain);
            assert_eq!(id.segments().collect::<Vec<_>>(), segments);
            assert_eq!(id.path(), format!("/{}", segments.join("/")));
        }
    }

    #[test]
    fn names_the_rule_that_is_broken() {
        use SpiffeIdError as E;
        for (text, error) in [
            ("", E::Scheme),
            ("SPIFFE://d/a", E::Scheme),
            ("https://d/a", E::Scheme),
            ("spiffe:/d/a", E::Scheme),
            ("spiffe:///a", E::EmptyTrustDomain),
            ("spiffe://", E::EmptyTrustDomain),
            ("spiffe://D/a", E::UpperCaseTrustDomain { at: 9 }),
            ("spiffe://u@d/a", E::UserInfo { at: 10 }),
            ("spiffe://u:p@d/a", E::UserInfo { at: 12 }),
            ("spiffe://d:80/a", E::Port { at: 10 }),
            ("spiffe://d:/a", E::Port { at: 10 }),
            ("spiffe://d/a?", E::Query { at: 12 }),
            ("spiffe://d?q", E::Query { at: 10 }),
            ("spiffe://d/a#", E::Fragment { at: 12 }),
            ("spiffe://d#f", E::Fragment { at: 10 }),
            ("spiffe://d%41/a", E::Percent { at: 10 }),
            ("spiffe://d/a%2fb", E::Percent { at: 12 }),
            ("spiffe://d", E::NoPath),
            ("spiffe://d/", E::NoPath),
            ("spiffe://d//a", E::EmptySegment { at: 11 }),
            ("spiffe://d/a//b", E::EmptySegment { at: 13 }),
            ("spiffe://d/a/", E::TrailingSlash),
            ("spiffe://d//", E::EmptySegment { at: 11 }),
            ("spiffe://d/./a", E::DotSegment { at: 11 }),
            ("spiffe://d/a/..", E::DotSegment { at: 13 }),
            ("spiffe://d/a b", E::BadCharacter { byte: b' ', at: 12 }),
            ("spiffe://d/a:b", E::BadCharacter { byte: b':', at: 12 }),
            ("spiffe://d/\u{e9}", E::BadCharacter { byte: 0xc3, at: 11 }),
            ("spiffe://d/a\0", E::BadCharacter { byte: 0, at: 12 }),
            ("spiffe://d\\a/b", E::BadCharacter { byte: b'\\', at: 10 }),
        ] {
            assert_eq!(refused(text), error, "{text:?}");
        }
    }

    #[test]
    fn lengths_are_held_to_the_byte() {
        let id = |bytes: usize| format!("spiffe://d/{}", "a".repeat(bytes - 11));
        assert!(id(MAX_ID_BYTES).parse::<SpiffeId>().is_ok());
        assert_eq!(refused(&id(MAX_ID_BYTES + 1)), SpiffeIdError::TooLong(MAX_ID_BYTES + 1));
        let domain = "d".repeat(MAX_TRUST_DOMAIN_BYTES);
        assert!(domain.parse::<TrustDomain>().is_ok());
        assert_eq!(
            format!("{domain}d").parse::<TrustDomain>(),
            Err(SpiffeIdError::TrustDomainTooLong(256))
        );
    }

    #[test]
    fn a_trust_domain_has_two_spellings_and_each_its_parser() {
        let bare: TrustDomain = "example.org".parse().unwrap();
        assert_eq!(TrustDomain::from_id("spiffe://example.org"), Ok(bare));
        assert!("spiffe://example.org".parse::<TrustDomain>().is_err());
        assert_eq!(TrustDomain::from_id("example.org"), Err(SpiffeIdError::Scheme));
        assert!(TrustDomain::from_id("spiffe://example.org/").is_err());
        assert_eq!("".parse::<TrustDomain>(), Err(SpiffeIdError::EmptyTrustDomain));
    }

    /// Every string that differs from a good id in one byte (replaced, inserted or removed) is
    /// judged as an independent reading of the grammar judges it.
    #[test]
    fn every_single_byte_mutation_is_judged_by_the_grammar() {
        fn by_the_book(bytes: &[u8]) -> bool {
            let Ok(text) = std::str::from_utf8(bytes) else { return false };
            let Some(("spiffe:", rest)) = text.split_once("//") else { return false };
            let mut parts = rest.split('/');
            let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
            let name = parts.next().unwrap_or_default();
            let segments: Vec<&str> = parts.collect();
            !name.is_empty()
                && name.chars().all(lower)
                && !segments.is_empty()
                && segments.iter().all(|s| {
                    !["", ".", ".."].contains(s)
                        && s.chars().all(|c| lower(c) || c.is_ascii_uppercase())
                })
        }
        let good = b"spiffe://ex.org/ns/a-1/S_a";
        let mut taken = 0_u32;
        let mut judge = |bytes: &[u8]| {
            let ours = std::str::from_utf8(bytes).is_ok_and(|t| t.parse::<SpiffeId>().is_ok());
            assert_eq!(ours, by_the_book(bytes), "{:?}", String::from_utf8_lossy(bytes));
            taken += u32::from(ours);
        };
        for at in 0..=good.len() {
            for byte in 0..=u8::MAX {
                let mut inserted = good.to_vec();
                inserted.insert(at, byte);
                judge(&inserted);
                if at < good.len() {
                    let mut replaced = good.to_vec();
                    replaced[at] = byte;
                    judge(&replaced);
                }
            }
            if at < good.len() {
                let mut removed = good.to_vec();
                removed.remove(at);
                judge(&removed);
            }
        }
        assert!(taken > 1000, "the good mutations were judged too: {taken}");
    }
}
