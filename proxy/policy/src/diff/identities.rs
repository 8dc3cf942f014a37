//! Identities, cut along the patterns of both files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pillion_certs::spiffe::SpiffeId;

use super::Identities;
use crate::identity::{Pattern, domain_of};
use crate::index::Work;

/// Every identity of some trust domains, by the patterns that it matches.
pub(super) struct IdentityClasses {
    patterns: Vec<Arc<str>>,
    pub(super) classes: Vec<IdentityClass>,
    /// Of each pattern, and then of `spiffe://<domain>/**` for each domain: the classes in it.
    whole: Vec<(Arc<str>, Vec<usize>)>,
}

pub(super) struct IdentityClass {
    pub(super) sample: SpiffeId,
    /// Which patterns it matches, in order.
    matched: Vec<usize>,
    domain: Arc<str>,
}

/// A walk through the tree of paths: the patterns that may still match, segment by segment.
struct Walk<'p> {
    segments: Vec<Vec<&'p str>>,
    fresh: String,
    found: BTreeMap<Vec<usize>, String>,
    work: &'p Work,
}

impl Walk<'_> {
    /// `path` has `depth` segments, which `open` match so far and `taken` will match however it
    /// goes on.
    fn step(
        &mut self,
        path: &str,
        depth: usize,
        open: &[usize],
        taken: &BTreeSet<usize>,
    ) -> Option<()> {
        if !self.work.spend(open.len().saturating_add(1)) {
            return None;
        }
        let segment = |walk: &Self, n: usize| walk.segments.get(n)?.get(depth).copied();
        let (goes_on, ends): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|n| segment(self, **n).is_some());
        if depth > 0 {
            let matched: BTreeSet<usize> =
                taken.iter().copied().chain(ends.iter().copied()).collect();
            self.found.entry(matched.into_iter().collect()).or_insert_with(|| path.to_owned());
        }
        if goes_on.is_empty() && ends.is_empty() && depth > 0 {
            return Some(());
        }
        let mut options: BTreeSet<String> = goes_on
            .iter()
            .filter_map(|n| segment(self, *n))
            .filter(|text| !matches!(*text, "*" | "**"))
            .map(str::to_owned)
            .collect();
        options.insert(self.fresh.clone());
        for option in options {
            let of = |text: &str| text == "*" || text == option;
            let next: Vec<usize> =
                goes_on.iter().copied().filter(|n| segment(self, *n).is_some_and(of)).collect();
            let deep = goes_on.iter().copied().filter(|n| segment(self, *n) == Some("**"));
            let taken: BTreeSet<usize> = taken.iter().copied().chain(deep).collect();
            self.step(&format!("{path}/{option}"), depth.saturating_add(1), &next, &taken)?;
        }
        Some(())
    }
}

impl IdentityClasses {
    /// Cuts the identities of `domains` along `patterns`; `None` when that is too much work.
    pub(super) fn new(
        patterns: &BTreeSet<Arc<str>>,
        domains: &BTreeSet<&str>,
        work: &Work,
    ) -> Option<Self> {
        let patterns: Vec<Arc<str>> = patterns
            .iter()
            .filter(|text| domain_of(text).is_some_and(|domain| domains.contains(domain)))
            .cloned()
            .collect();
        let mut classes = Vec::new();
        let mut whole = Vec::new();
        for domain in domains {
            let root = format!("spiffe://{domain}");
            let path =
                |text: &Arc<str>| text.strip_prefix(&*root)?.strip_prefix('/').map(str::to_owned);
            let paths: Vec<Option<String>> = patterns.iter().map(path).collect();
            let segments = paths.iter().map(|path| match path {
                Some(path) => path.split('/').collect(),
                None => Vec::new(),
            });
            let segments: Vec<Vec<&str>> = segments.collect();
            let literals: BTreeSet<&str> = segments.iter().flatten().copied().collect();
            let fresh =
                (0..).map(|n: u32| format!("other{n}")).find(|s| !literals.contains(&**s))?;
            let open: Vec<usize> =
                paths.iter().enumerate().filter_map(|(n, path)| path.as_ref().map(|_| n)).collect();
            let mut walk = Walk { segments, fresh, found: BTreeMap::new(), work };
            walk.step(&root, 0, &open, &BTreeSet::new())?;
            let from = classes.len();
            for (matched, sample) in walk.found {
                let sample = sample.parse().ok()?;
                classes.push(IdentityClass { sample, matched, domain: Arc::from(*domain) });
            }
            whole.push((Arc::from(format!("{root}/**")), (from..classes.len()).collect()));
        }
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); patterns.len()];
        for (number, class) in classes.iter().enumerate() {
            for pattern in &class.matched {
                members.get_mut(*pattern)?.push(number);
            }
        }
        whole.extend(patterns.iter().cloned().zip(members));
        // What says most comes first; `spiffe://<domain>/**` before a pattern that says no more.
        whole.sort_by_key(|(_, members)| std::cmp::Reverse(members.len()));
        Some(Self { patterns, classes, whole })
    }

    /// Some of the classes, in as few words as are exact.
    pub(super) fn describe(&self, some: &BTreeSet<usize>) -> Vec<Identities> {
        let mut left = some.clone();
        let mut out = Vec::new();
        for (text, members) in &self.whole {
            if members.iter().any(|n| left.contains(n)) && members.iter().all(|n| some.contains(n))
            {
                left = left.difference(&members.iter().copied().collect()).copied().collect();
                out.push(Identities { matching: vec![Arc::clone(text)], but_not: Vec::new() });
            }
        }
        out.extend(
            left.iter().filter_map(|n| self.classes.get(*n)).map(|class| self.exactly(class)),
        );
        out.sort();
        out
    }

    fn exactly(&self, class: &IdentityClass) -> Identities {
        let text = |n: &usize| self.patterns.get(*n);
        let matched: Vec<_> = class.matched.iter().filter_map(text).collect();
        // Of two patterns the wider one says nothing more.
        let needed = |one: &&&Arc<str>| {
            !matched.iter().any(|other| other != *one && covers(one, other) && !covers(other, one))
        };
        let mut matching: Vec<Arc<str>> =
            matched.iter().filter(needed).map(|text| Arc::clone(text)).collect();
        if matching.is_empty() {
            matching.push(Arc::from(format!("spiffe://{}/**", class.domain)));
        }
        let numbers = (0..self.patterns.len()).filter(|n| class.matched.binary_search(n).is_err());
        let others: Vec<_> = numbers.filter_map(|n| self.patterns.get(n)).collect();
        let others = others.into_iter().filter(|other| matching.iter().all(|m| meet(m, other)));
        let others: Vec<_> = others.collect();
        let widest = |one: &&&Arc<str>| {
            !others.iter().any(|wide| wide != *one && covers(wide, one) && !covers(one, wide))
        };
        let but_not = others.iter().filter(widest).map(|text| Arc::clone(text)).collect();
        Identities { matching, but_not }
    }
}

fn covers(wide: &str, narrow: &str) -> bool {
    let parse = |text| Pattern::parse(text, None).ok();
    parse(wide).zip(parse(narrow)).is_some_and(|(wide, narrow)| wide.covers(&narrow))
}

/// Whether some identity matches both.
fn meet(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some("**"), Some(_)) | (Some(_), Some("**")) => return true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}
