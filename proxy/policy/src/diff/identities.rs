//! Identities, cut along the patterns of both files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use pillion_certs::spiffe::SpiffeId;

use super::Identities;
use crate::identity::{Pattern, domain_of};
use crate::index::Work;

/// Every identity of some trust domains, by the patterns that it matches.
pub(super) struct IdentityClasses {
    /// Sorted by text.
    patterns: Vec<Pattern>,
    /// The numbers of those with a wildcard: only they cover others, or meet them in part.
    wildcards: Vec<usize>,
    pub(super) classes: Vec<IdentityClass>,
    /// Of each pattern, and of `spiffe://<domain>/**` for each domain: the classes in it. What has
    /// most of them comes first.
    whole: Vec<(Arc<str>, Vec<usize>)>,
    /// Of each class, those of `whole` that it is in.
    inside: Vec<Vec<usize>>,
}

pub(super) struct IdentityClass {
    pub(super) sample: SpiffeId,
    /// Which patterns it matches, in order.
    matched: Vec<usize>,
    domain: Arc<str>,
}

/// A walk through the tree of paths: the patterns that may still match, segment by segment.
struct Walk<'p> {
    segments: HashMap<usize, Vec<&'p str>>,
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
        let segment = |walk: &Self, n: usize| walk.segments.get(&n)?.get(depth).copied();
        // By what each has here; a literal segment leads to its own patterns and the wildcards.
        let (mut literal, mut any, mut deep) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut ends = Vec::new();
        for number in open.iter().copied() {
            match segment(self, number) {
                None => ends.push(number),
                Some("**") => deep.push(number),
                Some("*") => any.push(number),
                Some(text) => {
                    literal.entry(text.to_owned()).or_insert_with(Vec::new).push(number);
                }
            }
        }
        if depth > 0 {
            let matched: BTreeSet<usize> =
                taken.iter().copied().chain(ends.iter().copied()).collect();
            self.found.entry(matched.into_iter().collect()).or_insert_with(|| path.to_owned());
        }
        if open.is_empty() && depth > 0 {
            return Some(());
        }
        literal.entry(self.fresh.clone()).or_default();
        let taken: BTreeSet<usize> = taken.iter().copied().chain(deep).collect();
        for (option, mut next) in literal {
            if !self.work.spend(any.len().saturating_add(taken.len())) {
                return None;
            }
            next.extend(&any);
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
        let patterns = patterns.iter().filter_map(|text| Pattern::parse(text, None).ok());
        let patterns: Vec<Pattern> = patterns
            .filter(|p| domain_of(p.as_str()).is_some_and(|domain| domains.contains(domain)))
            .collect();
        let mut of_domain: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, pattern) in patterns.iter().enumerate() {
            of_domain.entry(domain_of(pattern.as_str())?).or_default().push(number);
        }
        let mut classes = Vec::new();
        let mut whole = Vec::new();
        for domain in domains {
            let root = format!("spiffe://{domain}");
            let open = of_domain.remove(domain).unwrap_or_default();
            let path = |n: &usize| patterns.get(*n)?.as_str().strip_prefix(&*root)?.get(1..);
            let segments = open.iter().filter_map(|n| Some((*n, path(n)?.split('/').collect())));
            let segments: HashMap<usize, Vec<&str>> = segments.collect();
            let literals: BTreeSet<&str> = segments.values().flatten().copied().collect();
            let fresh =
                (0..).map(|n: u32| format!("other{n}")).find(|s| !literals.contains(&**s))?;
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
        whole.extend(patterns.iter().map(|pattern| pattern.text().clone()).zip(members));
        // What says most comes first; `spiffe://<domain>/**` before a pattern that says no more.
        whole.sort_by_key(|(_, members)| std::cmp::Reverse(members.len()));
        let mut inside: Vec<Vec<usize>> = vec![Vec::new(); classes.len()];
        for (number, (_, members)) in whole.iter().enumerate() {
            for class in members {
                inside.get_mut(*class)?.push(number);
            }
        }
        let wildcards = (0..).zip(&patterns).filter(|(_, p)| !p.is_exact()).map(|(n, _)| n);
        let wildcards = wildcards.collect();
        Some(Self { patterns, wildcards, classes, whole, inside })
    }

    /// Some of the classes, in as few words as are exact; `None` when that is too much work.
    pub(super) fn describe(&self, some: &BTreeSet<usize>, work: &Work) -> Option<Vec<Identities>> {
        let mut left = some.clone();
        let mut out = Vec::new();
        let inside = some.iter().filter_map(|class| self.inside.get(*class)).flatten();
        let candidates: BTreeSet<usize> = inside.copied().collect();
        for (text, members) in candidates.iter().filter_map(|n| self.whole.get(*n)) {
            let held = members.iter().take_while(|class| some.contains(class)).count();
            work.spend(held.saturating_add(1)).then_some(())?;
            if held == members.len() && members.iter().any(|n| left.contains(n)) {
                for class in members {
                    left.remove(class);
                }
                out.push(Identities { matching: vec![Arc::clone(text)], but_not: Vec::new() });
            }
        }
        for class in left.iter().filter_map(|n| self.classes.get(*n)) {
            out.push(self.exactly(class, work)?);
        }
        out.sort();
        Some(out)
    }

    fn exactly(&self, class: &IdentityClass, work: &Work) -> Option<Identities> {
        let get = |n: &usize| self.patterns.get(*n);
        let matched: Vec<&Pattern> = class.matched.iter().filter_map(get).collect();
        work.spend(matched.len().saturating_mul(matched.len())).then_some(())?;
        // Of two patterns the wider one says nothing more.
        let needed =
            |one: &&&Pattern| !matched.iter().any(|other| one.covers(other) && !other.covers(one));
        let mut matching: Vec<Pattern> =
            matched.iter().filter(needed).map(|one| (*one).clone()).collect();
        if matching.is_empty() {
            matching.push(Pattern::parse(&format!("spiffe://{}/**", class.domain), None).ok()?);
        }
        let others = self.not_matched(class, &matching, work)?;
        let wide: Vec<&Pattern> = others.iter().copied().filter(|one| !one.is_exact()).collect();
        work.spend(others.len().saturating_mul(wide.len())).then_some(())?;
        let widest =
            |one: &&&Pattern| !wide.iter().any(|wide| wide.covers(one) && !one.covers(wide));
        let text = |pattern: &Pattern| pattern.text().clone();
        let but_not = others.iter().filter(widest).map(|one| text(one)).collect();
        Some(Identities { matching: matching.iter().map(text).collect(), but_not })
    }

    /// The patterns, sorted, that the class doesn't match, and some identity of `matching` does.
    fn not_matched(
        &self,
        class: &IdentityClass,
        matching: &[Pattern],
        work: &Work,
    ) -> Option<Vec<&Pattern>> {
        // One identity has no parts.
        if matching.iter().any(Pattern::is_exact) {
            return Some(Vec::new());
        }
        // Exact ones that a pattern means begin with what stands before its wildcard.
        let key = matching.iter().map(Pattern::key).max_by_key(|key| key.len())?;
        let from = self.patterns.partition_point(|p| p.as_str() < key);
        let under = (from..).zip(self.patterns.iter().skip(from));
        let under = under.take_while(|(_, p)| p.as_str().starts_with(key));
        let exact = under.filter(|(_, p)| p.is_exact()).map(|(n, _)| n);
        let mut numbers: Vec<usize> = exact.chain(self.wildcards.iter().copied()).collect();
        numbers.sort_unstable();
        work.spend(numbers.len().saturating_mul(matching.len())).then_some(())?;
        let numbers = numbers.iter().filter(|n| class.matched.binary_search(n).is_err());
        let others = numbers.filter_map(|n| self.patterns.get(*n));
        let meets = |one: &&Pattern| matching.iter().all(|m| meet(m.as_str(), one.as_str()));
        Some(others.filter(meets).collect())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps to cut the identities along `count` exact patterns and a few with wildcards,
    /// and to put every second class, and each alone, into words.
    fn steps(count: usize) -> usize {
        const MOST: usize = 100_000_000;
        let exact = (0..count).map(|n| format!("spiffe://d.example/ns/n{}/sa/s{n}", n % 10));
        let wild = (0..20).map(|n| format!("spiffe://d.example/ns/w{n}/sa/*"));
        let all = ["spiffe://d.example/ns/**".to_owned()];
        let patterns: BTreeSet<Arc<str>> = exact.chain(wild).chain(all).map(Arc::from).collect();
        let work = Work::new(MOST);
        let domains = BTreeSet::from(["d.example"]);
        let classes = IdentityClasses::new(&patterns, &domains, &work).unwrap();
        let some = (0..classes.classes.len()).step_by(2).collect();
        assert!(classes.describe(&some, &work).unwrap().len() > count / 3);
        for one in 0..classes.classes.len() {
            classes.describe(&BTreeSet::from([one]), &work).unwrap();
        }
        MOST - work.left()
    }

    /// Four times the identities: sixteen times the work, were each held against each.
    #[test]
    fn work_grows_with_the_identities_and_not_with_their_square() {
        let (few, many) = (steps(1_000), steps(4_000));
        assert!(many < few * 6, "{few} {many}");
        assert!(steps(2_000) < crate::diff::MOST_CLASSES / 2, "{}", steps(2_000));
    }

    #[test]
    fn too_much_to_put_into_words_is_no_answer() {
        let patterns = ["a", "b", "*"].map(|s| Arc::from(format!("spiffe://d/{s}")));
        let patterns = BTreeSet::from(patterns);
        let classes =
            IdentityClasses::new(&patterns, &BTreeSet::from(["d"]), &Work::new(1_000)).unwrap();
        let other = classes.classes.iter().position(|class| class.matched.len() == 1).unwrap();
        let some = BTreeSet::from([other]);
        let told = classes.describe(&some, &Work::new(1_000)).unwrap();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].matching[..], [Arc::from("spiffe://d/*")]);
        assert_eq!(told[0].but_not[..], ["a", "b"].map(|s| Arc::from(format!("spiffe://d/{s}"))));
        assert_eq!(classes.describe(&some, &Work::new(2)), None);
    }

    /// Of two patterns that say the same of a class, the narrower one says nothing more where both
    /// match, and the wider one says all where neither does.
    #[test]
    fn a_class_is_told_by_its_narrowest_pattern_and_the_widest_that_it_leaves_out() {
        let ids = ["**", "ns/**", "ns/a/**", "ns/a/sa/*", "ns/a/sa/x", "ns/b", "ns/b/*"];
        let ids = ids.map(|path| format!("spiffe://d/{path}"));
        let patterns: BTreeSet<Arc<str>> = ids.iter().map(|id| Arc::from(id.as_str())).collect();
        let work = Work::new(1_000_000);
        let classes = IdentityClasses::new(&patterns, &BTreeSet::from(["d"]), &work).unwrap();
        let told = |sample: &str| {
            let sample: SpiffeId = sample.parse().unwrap();
            let matches = |class: &IdentityClass| {
                ids.iter().all(|text| {
                    let pattern = Pattern::parse(text, None).unwrap();
                    pattern.matches(sample.as_str()) == pattern.matches(class.sample.as_str())
                })
            };
            let number = classes.classes.iter().position(matches).unwrap();
            let told = classes.describe(&BTreeSet::from([number]), &work).unwrap();
            let [told] = <[Identities; 1]>::try_from(told).unwrap();
            let short = |list: &[Arc<str>]| {
                list.iter()
                    .map(|id| id.trim_start_matches("spiffe://d/"))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            (short(&told.matching), short(&told.but_not))
        };
        for (sample, matching, but_not) in [
            ("spiffe://d/else", "**", "ns/**"),
            ("spiffe://d/ns/c", "ns/**", "ns/a/** ns/b ns/b/*"),
            ("spiffe://d/ns/a/z", "ns/a/**", "ns/a/sa/*"),
            ("spiffe://d/ns/a/sa/y", "ns/a/sa/*", "ns/a/sa/x"),
            ("spiffe://d/ns/a/sa/x", "ns/a/sa/x", ""),
            ("spiffe://d/ns/b/y", "ns/b/*", ""),
        ] {
            assert_eq!(told(sample), (matching.to_owned(), but_not.to_owned()), "{sample}");
        }
    }
}
