//! The authorities of each trust domain.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::dates::seconds;
use crate::expiry::{Lifetime, Subject};
use crate::revocation::RevocationLists;
use crate::spiffe::TrustDomain;

/// A certificate that can't stand in a trust bundle, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Nothing to trust.
    #[error("it holds no certificate")]
    Empty,
    /// Not a certificate; the number counts from 1.
    #[error("certificate {0} is malformed: {1}")]
    Malformed(usize, String),
    /// Not an authority's certificate (X509-SVID §4.1, §4.3); the number counts from 1. One without
    /// any key usage is taken, as tools make them by default.
    #[error("certificate {0} may not issue: an authority has cA true and keyCertSign")]
    NotAnAuthority(usize),
    /// The domain has a bundle already. Bundles are never merged.
    #[error("trust domain {0} has a bundle already; keep all its certificates in one file")]
    Twice(TrustDomain),
}

#[derive(Debug, Clone)]
pub(crate) struct Authority {
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) path_len: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Bundle {
    // Parallel to `authorities`: webpki wants the anchors as one slice.
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    pub(crate) authorities: Vec<Authority>,
}

impl Bundle {
    /// The same authorities, as if they were valid for ever.
    pub(crate) fn without_dates(&self) -> Self {
        let mut authorities = self.authorities.clone();
        for authority in &mut authorities {
            (authority.not_before, authority.not_after) = (i64::MIN, i64::MAX);
        }
        Self { anchors: self.anchors.clone(), authorities }
    }
}

/// The authorities of each trust domain. A chain is validated against the bundle of its own
/// identity's trust domain and no other, so one domain's authority can't vouch for another's
/// workloads (SPIFFE Trust Domain and Bundle). Revocation lists need no domain: each speaks for
/// the certificates of the key that has signed it.
#[derive(Debug, Clone, Default)]
pub struct TrustBundles {
    domains: HashMap<TrustDomain, Arc<Bundle>>,
    lists: Arc<RevocationLists>,
}

impl TrustBundles {
    /// No domain at all: everything is refused.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a domain's authorities. An expired one is taken (a bundle keeps the old through a
    /// rotation), but nothing is verified by it.
    ///
    /// # Errors
    /// [`BundleError`] when there is no certificate, one that isn't an authority's, or the domain
    /// is there already; nothing is added then.
    pub fn add(
        &mut self,
        domain: TrustDomain,
        certificates: &[CertificateDer<'_>],
    ) -> Result<(), BundleError> {
        if certificates.is_empty() {
            return Err(BundleError::Empty);
        }
        let mut bundle = Bundle { anchors: Vec::new(), authorities: Vec::new() };
        for (number, der) in (1..).zip(certificates) {
            let malformed = |e: &dyn fmt::Display| BundleError::Malformed(number, e.to_string());
            let (_, parsed) = X509Certificate::from_der(der).map_err(|e| malformed(&e))?;
            let constraints = parsed.basic_constraints().map_err(|e| malformed(&e))?;
            let usage = parsed.key_usage().map_err(|e| malformed(&e))?;
            if !parsed.is_ca() || usage.is_some_and(|e| !e.value.key_cert_sign()) {
                return Err(BundleError::NotAnAuthority(number));
            }
            let anchor = webpki::anchor_from_trusted_cert(der).map_err(|e| malformed(&e))?;
            bundle.anchors.push(anchor.to_owned());
            bundle.authorities.push(Authority {
                not_before: parsed.validity().not_before.timestamp(),
                not_after: parsed.validity().not_after.timestamp(),
                path_len: constraints.and_then(|e| e.value.path_len_constraint),
            });
        }
        if self.domains.contains_key(&domain) {
            return Err(BundleError::Twice(domain));
        }
        self.domains.insert(domain, Arc::new(bundle));
        Ok(())
    }

    /// Takes the bundle of a domain that has none over from those of `before`, if they have one.
    pub(crate) fn keep(&mut self, domain: &TrustDomain, before: Option<&Self>) {
        if let Some(bundle) = before.and_then(|before| before.domains.get(domain)) {
            self.domains.entry(domain.clone()).or_insert_with(|| Arc::clone(bundle));
        }
    }

    /// The same authorities, with the revocation lists of others.
    pub(crate) fn with_the_lists_of(mut self, before: &Self) -> Self {
        self.lists = Arc::clone(&before.lists);
        self
    }

    /// The same authorities with these revocation lists, which are in memory once where those of
    /// `before` are the same: an open connection keeps what it was verified by.
    pub(crate) fn with_lists_or_those_of(
        self,
        lists: RevocationLists,
        before: Option<&Self>,
    ) -> Self {
        match before.filter(|before| before.lists.are(&lists)) {
            Some(before) => self.with_the_lists_of(before),
            None => self.with_revocation_lists(lists),
        }
    }

    /// The same authorities, with these revocation lists in place of those before.
    #[must_use]
    pub fn with_revocation_lists(mut self, lists: RevocationLists) -> Self {
        self.lists = Arc::new(lists);
        self
    }

    /// The revocation lists.
    #[must_use]
    pub fn revocation_lists(&self) -> &RevocationLists {
        &self.lists
    }

    pub(crate) fn of(&self, domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        self.domains.get(domain)
    }

    /// For each domain, the lifetime of the longest-lived authority of those that are valid or over
    /// at the time `now`: after that, nobody of that domain can be verified until another begins.
    /// One that is published ahead counts from its beginning on; where there are no others, that is
    /// the first of them to begin.
    pub fn lifetimes(&self, now: UnixTime) -> impl Iterator<Item = Lifetime> {
        let now = seconds(now);
        self.domains.iter().filter_map(move |(domain, bundle)| {
            let authorities = || bundle.authorities.iter();
            let begun = authorities().filter(|a| a.not_before <= now).max_by_key(|a| a.not_after);
            let counts = begun.or_else(|| authorities().min_by_key(|a| a.not_before))?;
            let subject = Subject::Authority(domain.clone());
            Some(Lifetime { subject, from: counts.not_before, until: counts.not_after })
        })
    }

    /// The domains, in no order.
    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use time::OffsetDateTime;

    /// An authority's certificate that is valid between these seconds since the Unix epoch.
    fn authority(from: i64, until: i64) -> CertificateDer<'static> {
        let at = |second| OffsetDateTime::from_unix_timestamp(second).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (at(from), at(until));
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn an_authority_published_ahead_hides_no_end_before_it_begins() {
        let (old, used, next, last) = ((100, 200), (150, 300), (250, 900), (280, 800));
        for (authorities, now, counts) in [
            (&[used, next][..], 200, used),
            (&[next, used], 200, used),
            (&[used, next], 249, used),
            (&[used, next], 250, next),
            (&[old, used], 180, used),
            (&[old, used], 140, old),
            // Over, and the next has not begun.
            (&[old, next], 240, old),
            // None has begun: the first to do so.
            (&[last, next], 90, next),
            (&[next, last], 90, next),
            (&[next], 90, next),
        ] {
            let certificates: Vec<_> =
                authorities.iter().map(|(from, until)| authority(*from, *until)).collect();
            let mut bundles = TrustBundles::new();
            bundles.add("example.org".parse().unwrap(), &certificates).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
            let found: Vec<_> = bundles.lifetimes(now).map(|l| (l.from, l.until)).collect();
            assert_eq!(found, [counts], "{authorities:?} at {now:?}");
        }
    }
}
