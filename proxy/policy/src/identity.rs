//! Identity patterns and sets of them.

use std::fmt;
use std::sync::Arc;

use pillion_certs::spiffe::{SpiffeId, TrustDomain};

/// What stands in for a wildcard when a pattern is checked against the SPIFFE ID grammar.
const SAMPLE_SEGMENT: &str = "any";

/// One item of `identities` or `serverIdentities`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Pattern {
    /// `spiffe://domain/...`, wildcards included; as written for a short form with no own domain.
    text: Arc<str>,
    shape: Shape,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Shape {
    Exact,
    /// The bytes before the first wildcard; they end in a slash.
    Wildcard {
        literal: u32,
    },
    /// `ns/sa` while our own trust domain is unknown. It matches nobody: failing open here would
    /// admit a namespace of every federated domain.
    Relative,
}

impl Pattern {
    /// Reads a pattern; `own` completes the short form `ns/sa`.
    ///
    /// # Errors
    /// What is wrong with it and what cures it.
    pub(super) fn parse(text: &str, own: Option<&TrustDomain>) -> Result<Self, String> {
        let full = if text.contains("://") || text.starts_with("spiffe:") {
            text.to_owned()
        } else {
            let Some((ns, sa)) = text.split_once('/').filter(|(_, sa)| !sa.contains('/')) else {
                return Err("write spiffe://<trust domain>/<path>, or <namespace>/<service \
                            account> for one of our own trust domain"
                    .to_owned());
            };
            // Unknown here, the own domain has no part in whether the short form is well formed.
            let domain = own.map_or("own", TrustDomain::as_str);
            format!("spiffe://{domain}/ns/{ns}/sa/{sa}")
        };
        let literal = check(&full)?;
        if own.is_none() && !text.contains("://") {
            return Ok(Self { text: Arc::from(text), shape: Shape::Relative });
        }
        let shape = literal.map_or(Shape::Exact, |literal| Shape::Wildcard { literal });
        Ok(Self { text: Arc::from(full), shape })
    }

    /// Whether `id` is one that the pattern means. Whole segments only (SPIFFE-ID section 2.2).
    pub(super) fn matches(&self, id: &str) -> bool {
        match self.shape {
            Shape::Exact => *self.text == *id,
            Shape::Relative => false,
            Shape::Wildcard { .. } => segments_match(&self.text, id),
        }
    }

    /// What an index may file the pattern under: an identity that matches either equals the key
    /// (exact patterns) or has it among its [`prefixes`].
    pub(super) fn key(&self) -> &str {
        match self.shape {
            Shape::Exact | Shape::Relative => &self.text,
            Shape::Wildcard { literal } => {
                let end = usize::try_from(literal).unwrap_or(usize::MAX);
                self.text.get(..end).unwrap_or(&self.text)
            }
        }
    }

    pub(super) fn is_exact(&self) -> bool {
        self.shape == Shape::Exact
    }

    pub(super) fn is_relative(&self) -> bool {
        self.shape == Shape::Relative
    }

    /// The pattern, shared.
    pub(super) fn text(&self) -> &Arc<str> {
        &self.text
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether every identity that `other` means is one that this pattern means.
    pub(super) fn covers(&self, other: &Self) -> bool {
        if self.is_relative() || other.is_relative() {
            return self == other;
        }
        // Taken as an identity, a pattern's `*` is a segment that only a wildcard matches. Its
        // final `**` stands for one or more: only our own `**`, at that place or before, has all.
        let deep = |p: &Self| p.text.ends_with("/**");
        if deep(other) && !deep(self) {
            return false;
        }
        segments_match(&self.text, &other.text)
    }

    /// One identity that the pattern means.
    pub(super) fn sample(&self) -> String {
        sample(&self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The name of a pattern's trust domain; `None` while it is unknown.
pub(super) fn domain_of(pattern: &str) -> Option<&str> {
    pattern.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next())
}

/// The keys under which wildcard patterns that match `id` may be filed, the longest last.
pub(super) fn prefixes(id: &str) -> impl Iterator<Item = &str> {
    // The first two slashes belong to the scheme, the third ends the trust domain.
    id.match_indices('/').skip(2).filter_map(|(at, _)| id.get(..=at))
}

fn sample(pattern: &str) -> String {
    let segment = |s| if s == "*" || s == "**" { SAMPLE_SEGMENT } else { s };
    pattern.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// The length of the text before the first wildcard; `None` without one.
fn check(pattern: &str) -> Result<Option<u32>, String> {
    let mut literal = None;
    let mut at = 0;
    let mut segments = pattern.split('/').enumerate().peekable();
    while let Some((number, segment)) = segments.next() {
        if segment.contains('*') {
            if number < 3 {
                return Err("the trust domain can't hold a wildcard; write one item for each \
                            domain"
                    .to_owned());
            }
            match segment {
                "*" => {}
                "**" if segments.peek().is_none() => {}
                "**" => return Err("\"**\" stands only at the end".to_owned()),
                _ => {
                    return Err("a wildcard is a whole segment: \"*\" for one, a final \"**\" \
                                for one or more"
                        .to_owned());
                }
            }
            literal = literal.or(u32::try_from(at).ok());
        }
        at += segment.len() + 1;
    }
    sample(pattern).parse::<SpiffeId>().map_err(|error| error.to_string())?;
    Ok(literal)
}

fn segments_match(pattern: &str, id: &str) -> bool {
    let mut have = id.split('/');
    let mut want = pattern.split('/');
    loop {
        match (want.next(), have.next()) {
            (None, None) | (Some("**"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(want), Some(have)) if want == have => {}
            _ => return false,
        }
    }
}

/// A set of identities, as written in `identities` or `serverIdentities`.
///
/// Sorted by key, so that a list of many thousand is searched and not scanned.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct IdentitySet {
    exact: Box<[Pattern]>,
    wildcards: Box<[Pattern]>,
}

impl IdentitySet {
    pub(super) fn new(patterns: Box<[Pattern]>) -> Self {
        let by_key = |a: &Pattern, b: &Pattern| a.key().cmp(b.key()).then_with(|| a.cmp(b));
        let (mut exact, mut wildcards): (Vec<_>, Vec<_>) =
            patterns.into_iter().partition(|p| p.is_exact() || p.is_relative());
        for list in [&mut exact, &mut wildcards] {
            list.sort_by(by_key);
            list.dedup();
        }
        Self { exact: exact.into_boxed_slice(), wildcards: wildcards.into_boxed_slice() }
    }

    /// Whether `id` is one of the set.
    #[must_use]
    pub fn matches(&self, id: &SpiffeId) -> bool {
        let id = id.as_str();
        self.exact
            .binary_search_by(|p| p.key().cmp(id))
            .is_ok_and(|at| self.exact.get(at).is_some_and(|p| p.matches(id)))
            || (!self.wildcards.is_empty()
                && prefixes(id).any(|prefix| {
                    let from = self.wildcards.partition_point(|p| p.key() < prefix);
                    let same = self.wildcards.iter().skip(from).take_while(|p| p.key() == prefix);
                    same.into_iter().any(|p| p.matches(id))
                }))
    }

    /// The patterns, as they compiled: short forms are expanded.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.iter().map(Pattern::as_str)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.exact.iter().chain(&self.wildcards)
    }

    /// The patterns that match somebody.
    pub(super) fn texts(&self) -> impl Iterator<Item = Arc<str>> {
        self.iter().filter(|pattern| !pattern.is_relative()).map(|pattern| pattern.text().clone())
    }

    pub(super) fn has_relative(&self) -> bool {
        self.exact.iter().any(Pattern::is_relative)
    }

    pub(super) fn len(&self) -> usize {
        self.exact.len().saturating_add(self.wildcards.len())
    }

    /// Whether every identity of `other` is provably in this set; `false` may also mean that it
    /// takes more than one pattern to cover one of the other's.
    pub(super) fn covers(&self, other: &Self) -> bool {
        // Bounds a quadratic check that only ever finds mistakes in files written by hand.
        let small = |set: &Self| set.len() <= 64;
        self == other
            || (small(self)
                && small(other)
                && other.iter().all(|theirs| self.iter().any(|ours| ours.covers(theirs))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> TrustDomain {
        "own.org".parse().unwrap()
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text, Some(&own())).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn a_star_is_one_segment_and_two_are_one_or_more() {
        for (text, id, want) in [
            ("spiffe://d/a/b", "spiffe://d/a/b", true),
            ("spiffe://d/a/b", "spiffe://d/a/B", false),
            ("spiffe://d/a/*", "spiffe://d/a/b", true),
            ("spiffe://d/a/*", "spiffe://d/a", false),
            ("spiffe://d/a/*", "spiffe://d/a/b/c", false),
            ("spiffe://d/*/b", "spiffe://d/a/b", true),
            ("spiffe://d/*/b", "spiffe://e/a/b", false),
            ("spiffe://d/a/**", "spiffe://d/a/b", true),
            ("spiffe://d/a/**", "spiffe://d/a/b/c", true),
            ("spiffe://d/a/**", "spiffe://d/a", false),
            ("spiffe://d/a/**", "spiffe://d/ab/c", false),
            ("spiffe://d/**", "spiffe://d/x", true),
            ("spiffe://d/*/x/**", "spiffe://d/q/x/y", true),
            ("shop/cart", "spiffe://own.org/ns/shop/sa/cart", true),
            ("shop/cart", "spiffe://other.org/ns/shop/sa/cart", false),
            ("shop/*", "spiffe://own.org/ns/shop/sa/cart", true),
            ("*/cart", "spiffe://own.org/ns/shop/sa/cart", true),
        ] {
            assert_eq!(pattern(text).matches(id), want, "{text} {id}");
            let set = IdentitySet::new(Box::new([pattern(text), pattern("spiffe://z/z")]));
            assert_eq!(set.matches(&id.parse().unwrap()), want, "{text} {id}");
        }
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        for (text, word) in [
            ("spiffe://*/a", "trust domain"),
            ("spiffe://d*/a", "trust domain"),
            ("spiffe://d/a*", "whole segment"),
            ("spiffe://d/***", "whole segment"),
            ("spiffe://d/**/a", "only at the end"),
            ("**/a", "only at the end"),
            ("spiffe://d", "path"),
            ("spiffe://d/a/", "/"),
            ("spiffe://D/a", "upper-case"),
            ("https://d/a", "spiffe://"),
            ("shop", "namespace"),
            ("a/b/c", "namespace"),
            ("", "namespace"),
            ("/a", "empty"),
            ("a/..", "\"..\""),
        ] {
            let error = Pattern::parse(text, Some(&own())).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_short_form_without_own_domain_matches_nobody() {
        for text in ["shop/cart", "*/*", "*/**"] {
            let pattern = Pattern::parse(text, None).unwrap();
            assert!(pattern.is_relative());
            assert!(!pattern.matches("spiffe://own/ns/shop/sa/cart"), "{text}");
            assert!(
                !IdentitySet::new(Box::new([pattern])).matches(&"spiffe://d/a".parse().unwrap())
            );
        }
        assert!(Pattern::parse("a/b*", None).is_err());
    }

    #[test]
    fn a_set_tells_its_patterns_with_short_forms_written_out() {
        let set = IdentitySet::new(Box::new([pattern("shop/*"), pattern("spiffe://d/a")]));
        let patterns: Vec<_> = set.patterns().collect();
        assert_eq!(patterns, ["spiffe://d/a", "spiffe://own.org/ns/shop/sa/*"]);
    }

    #[test]
    fn covering_is_never_claimed_wrongly() {
        for (wide, narrow, want) in [
            ("spiffe://d/**", "spiffe://d/a/b", true),
            ("spiffe://d/**", "spiffe://d/a/**", true),
            ("spiffe://d/**", "spiffe://d/*", true),
            ("spiffe://d/*", "spiffe://d/**", false),
            ("spiffe://d/*/**", "spiffe://d/**", false),
            ("spiffe://d/a/*", "spiffe://d/a/b", true),
            ("spiffe://d/a/b", "spiffe://d/a/*", false),
            ("spiffe://d/a/**", "spiffe://d/a/**", true),
            ("spiffe://d/**", "spiffe://e/**", false),
        ] {
            assert_eq!(pattern(wide).covers(&pattern(narrow)), want, "{wide} {narrow}");
        }
        // Without a trust domain of our own a short pattern is known to be itself, and no more.
        let short = |text| Pattern::parse(text, None).unwrap();
        assert!(short("shop/*").covers(&short("shop/*")));
        assert!(!short("shop/*").covers(&short("shop/cart")));
        assert!(!short("*/*").covers(&pattern("spiffe://own.org/ns/shop/sa/cart")));
    }

    #[test]
    fn a_large_set_agrees_with_a_scan() {
        let patterns: Vec<_> = (0..300)
            .map(|n| match n % 3 {
                0 => format!("spiffe://d/ns/n{n}/sa/a"),
                1 => format!("spiffe://d/ns/n{n}/sa/*"),
                _ => format!("spiffe://d/ns/n{n}/**"),
            })
            .map(|text| pattern(&text))
            .collect();
        let set = IdentitySet::new(patterns.clone().into());
        for n in 0..310 {
            for tail in ["sa/a", "sa/b", "sa/a/b"] {
                let id = format!("spiffe://d/ns/n{n}/{tail}");
                let scan = patterns.iter().any(|p| p.matches(&id));
                assert_eq!(set.matches(&id.parse().unwrap()), scan, "{id}");
            }
        }
    }
}
