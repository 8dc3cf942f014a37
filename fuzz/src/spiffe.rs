//! A second reading of the SPIFFE ID grammar, byte by byte (SPIFFE-ID, 2).

use pillion_certs::spiffe::{SpiffeId, TrustDomain};

/// Whether the grammar has `id`, and where its path begins.
fn path_of(id: &[u8]) -> Option<usize> {
    let rest = id.strip_prefix(b"spiffe://")?;
    let slash = rest.iter().position(|byte| *byte == b'/')?;
    let (domain, path) = rest.split_at(slash);
    let in_domain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(b);
    let in_path = |b: &u8| b.is_ascii_alphanumeric() || b".-_".contains(b);
    let segments = path[1..].split(|byte| *byte == b'/');
    let good = !domain.is_empty()
        && domain.len() <= 255
        && id.len() <= 2048
        && domain.iter().all(in_domain)
        && segments.clone().count() >= 1
        && segments
            .clone()
            .all(|s| !s.is_empty() && s != b"." && s != b".." && s.iter().all(in_path));
    good.then_some(9 + slash)
}

/// Both readings agree, and what was parsed is what was written.
pub fn check(input: &[u8]) {
    let expected = path_of(input);
    let Ok(text) = std::str::from_utf8(input) else {
        return assert_eq!(expected, None, "not UTF-8");
    };
    let parsed = text.parse::<SpiffeId>();
    assert_eq!(parsed.is_ok(), expected.is_some(), "{text:?}: {parsed:?}");
    if let (Ok(id), Some(path)) = (&parsed, expected) {
        assert_eq!((id.as_str(), id.path()), (text, &text[path..]));
        assert_eq!(id.trust_domain().as_str(), &text[9..path]);
        assert_eq!(id.segments().map(|s| format!("/{s}")).collect::<String>(), id.path());
        let domain: TrustDomain = text[9..path].parse().expect("the domain of an id is one");
        assert_eq!(TrustDomain::from_id(&text[..path]), Ok(domain));
    }
    if let Err(error) = parsed {
        assert!(error.to_string().len() < 300, "{error}");
    }
}
