//! Manifests as a tree whose nodes know their bytes, so that edits can be made in the text itself.
//!
//! Made of the parser's events. Nothing is resolved, typed or copied on the way; aliases are
//! followed when somebody asks, one at a time, so that they cannot grow without bound ("the
//! billion laughs"). The nodes are in one vector: a deep tree needs no deep stack to be dropped.

mod builder;
mod characters;

use std::collections::HashSet;
use std::ops::Range;

use crate::diagnostic::{Finding, Kind};

/// The largest input, in bytes.
pub const MAX_BYTES: usize = 16 << 20;
/// The most mappings that are looked into for one key.
const MAX_MERGED: usize = 1000;

/// A node of a [`Tree`].
pub(crate) type Id = usize;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    /// First byte, with tag and anchor; of a block scalar, its text's.
    pub(crate) start: usize,
    /// After the last byte that is neither white space nor comment.
    pub(crate) end: usize,
    /// An anchor that an alias refers to.
    shared: bool,
}

#[derive(Debug)]
pub(crate) enum Value {
    /// `plain` scalars, those without quotes, may be numbers, booleans or null.
    Scalar {
        text: String,
        plain: bool,
    },
    Seq(Style, Vec<Id>),
    Map(Style, Vec<(Id, Id)>),
    Alias(Id),
}

/// How a list or mapping is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// By indentation.
    Block,
    /// In brackets, as all of JSON is.
    Flow,
    /// `[key: value]`, a mapping of one pair without brackets of its own.
    Pair,
}

#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// The root of each document.
    pub(crate) documents: Vec<Id>,
}

/// A node as it was reached: what is `shared` cannot be changed for this place alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) node: Id,
    /// Where the alias, merge key or anchor is that shares it.
    pub(crate) shared: Option<usize>,
}

/// A key of a mapping and its value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) key: Id,
    /// The mapping that it stands in; another one than was asked, for a merged key.
    pub(crate) map: Id,
    /// Which of the mapping's entries it is.
    pub(crate) index: usize,
    /// As [`Place::shared`], of the mapping.
    pub(crate) shared: Option<usize>,
    /// What stands behind the key; an alias itself, not what it stands for.
    pub(crate) raw: Id,
    pub(crate) value: Place,
}

impl Tree {
    /// Reads every document of `text`.
    pub(crate) fn parse(text: &str) -> Result<Self, Finding> {
        if text.len() > MAX_BYTES {
            let message = format!(
                "the input has {} bytes and {MAX_BYTES} is the most; give its files one by one",
                text.len()
            );
            return Err(Finding::new(Kind::TooLarge, 0, message));
        }
        characters::check(text)?;
        let tree = builder::parse(text)?;
        tree.check_merges()?;
        Ok(tree)
    }

    /// With more merges than are looked into, a key could be overlooked.
    fn check_merges(&self) -> Result<(), Finding> {
        let mut left = MAX_MERGED - 1;
        for node in &self.nodes {
            let Value::Map(_, entries) = &node.value else { continue };
            for &(key, value) in entries.iter().filter(|(key, _)| self.is_merge(*key)) {
                let sources = self.items(self.place(value)).len().max(1);
                left = left.checked_sub(sources).ok_or_else(|| {
                    let message = format!(
                        "more than {MAX_MERGED} mappings are merged with `<<`; write some of them out"
                    );
                    Finding::new(Kind::TooDeep, self.start(key), message)
                })?;
            }
        }
        Ok(())
    }

    pub(crate) fn node(&self, id: Id) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// A node that nothing shares.
    pub(crate) fn place(&self, node: Id) -> Place {
        self.step(Place { node, shared: None }, node)
    }

    /// From a place to a child of its node, and through an alias.
    fn step(&self, from: Place, child: Id) -> Place {
        let Some(node) = self.nodes.get(child) else { return from };
        match node.value {
            Value::Alias(target) => {
                Place { node: target, shared: from.shared.or(Some(node.start)) }
            }
            _ if node.shared => Place { node: child, shared: from.shared.or(Some(node.start)) },
            _ => Place { node: child, shared: from.shared },
        }
    }

    pub(crate) fn value(&self, place: Place) -> Option<&Value> {
        self.nodes.get(place.node).map(|node| &node.value)
    }

    pub(crate) fn start(&self, id: Id) -> usize {
        self.nodes.get(id).map_or(0, |node| node.start)
    }

    /// The value of a key; of a merged one (`<<`, YAML 1.1's merge type) where it has none itself.
    pub(crate) fn get(&self, map: Place, key: &str) -> Option<Entry> {
        let mut stack = vec![map];
        // Each mapping is looked into once, however often it is merged.
        let mut seen = HashSet::new();
        while let Some(map) = stack.pop().filter(|map| {
            seen.len() < MAX_MERGED && {
                seen.insert(map.node);
                true
            }
        }) {
            let own = self.entries(map).into_iter().find(|entry| self.text(entry.key) == Some(key));
            if own.is_some() {
                return own;
            }
            // The first of several merged mappings wins, so it has to be on top.
            let merged = self.merged(map).into_iter().rev();
            stack.extend(merged.filter(|source| !seen.contains(&source.node)));
        }
        None
    }

    /// Its entries and those that are merged into it, without those that another one hides.
    pub(crate) fn effective(&self, map: Place) -> Vec<Entry> {
        let mut stack = vec![map];
        let mut seen = HashSet::new();
        let mut keys = HashSet::new();
        let mut found = Vec::new();
        while let Some(map) = stack.pop() {
            if seen.len() == MAX_MERGED || !seen.insert(map.node) {
                continue;
            }
            let own = self.entries(map).into_iter();
            found.extend(own.filter(|entry| {
                !self.is_merge(entry.key)
                    && self.text(entry.key).is_some_and(|key| keys.insert(key))
            }));
            stack.extend(self.merged(map).into_iter().rev());
        }
        found
    }

    fn merged(&self, map: Place) -> Vec<Place> {
        let mut sources = Vec::new();
        for entry in self.entries(map).into_iter().filter(|entry| self.is_merge(entry.key)) {
            let shared = entry.value.shared.or(Some(self.start(entry.key)));
            let source = Place { shared, ..entry.value };
            match self.value(source) {
                Some(Value::Seq(..)) => sources.extend(self.items(source)),
                _ => sources.push(source),
            }
        }
        sources
    }

    fn is_merge(&self, key: Id) -> bool {
        let value = self.nodes.get(key).map(|node| &node.value);
        matches!(value, Some(Value::Scalar { text, plain: true }) if text == "<<")
    }

    /// The items of a list; none for anything else.
    pub(crate) fn items(&self, list: Place) -> Vec<Place> {
        match self.value(list) {
            Some(Value::Seq(_, items)) => items.iter().map(|&item| self.step(list, item)).collect(),
            _ => Vec::new(),
        }
    }

    /// The entries of a mapping itself, without merged ones; none for anything else.
    pub(crate) fn entries(&self, map: Place) -> Vec<Entry> {
        let Some(Value::Map(_, entries)) = self.value(map) else { return Vec::new() };
        let entry = |(index, &(key, raw)): (usize, &(Id, Id))| Entry {
            key,
            map: map.node,
            index,
            shared: map.shared,
            raw,
            value: self.step(map, raw),
        };
        entries.iter().enumerate().map(entry).collect()
    }

    /// A scalar's text, whatever its type.
    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match &self.nodes.get(id)?.value {
            Value::Scalar { text, .. } => Some(text),
            Value::Alias(target) => match &self.nodes.get(*target)?.value {
                Value::Scalar { text, .. } => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// The text of a key's scalar value; none for null.
    pub(crate) fn text_of(&self, map: Place, key: &str) -> Option<&str> {
        let entry = self.get(map, key)?;
        if self.is_null(entry.value) { None } else { self.text(entry.value.node) }
    }

    /// A key's value, unless it is null: Kubernetes takes null for absent.
    pub(crate) fn present(&self, map: Place, key: &str) -> Option<Entry> {
        self.get(map, key).filter(|entry| !self.is_null(entry.value))
    }

    /// Nothing, `~` or `null`.
    pub(crate) fn is_null(&self, place: Place) -> bool {
        matches!(self.value(place), Some(Value::Scalar { text, plain: true })
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// A scalar in quotes, or a block scalar: a string.
    pub(crate) fn is_quoted(&self, place: Place) -> bool {
        matches!(self.value(place), Some(Value::Scalar { plain: false, .. }))
    }

    /// Null, or a list or mapping without anything in it.
    pub(crate) fn is_empty(&self, place: Place) -> bool {
        match self.value(place) {
            Some(Value::Seq(_, items)) => items.is_empty(),
            Some(Value::Map(_, entries)) => entries.is_empty(),
            _ => self.is_null(place),
        }
    }

    /// The second of two equal keys, anywhere below `root` or in it alone; also where the second
    /// one is merged, because then readers differ as well: YAML's merge type says that the
    /// mapping's own key wins, and go-yaml 2, which kubectl has, takes the last one.
    pub(crate) fn duplicate_keys(&self, root: Id, deep: bool) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut stack = vec![root];
        while let Some(id) = stack.pop() {
            match self.nodes.get(id).map(|node| &node.value) {
                Some(Value::Map(_, entries)) => {
                    let mut seen = HashSet::new();
                    for &(key, value) in entries {
                        found.extend(self.merged_over(key, value, &seen));
                        if let Some(text) = self.text(key).filter(|text| !seen.insert(*text)) {
                            let message = format!(
                                "the key `{}` stands here a second time; leave one of them out",
                                crate::diagnostic::printable(text)
                            );
                            let at = self.start(key);
                            found.push(Finding::new(Kind::DuplicateKey, at, message));
                        }
                        stack.extend(deep.then_some([key, value]).into_iter().flatten());
                    }
                }
                Some(Value::Seq(_, items)) if deep => stack.extend(items),
                _ => {}
            }
        }
        found
    }

    /// A merge key whose mapping has one of the keys before it.
    fn merged_over(&self, key: Id, value: Id, before: &HashSet<&str>) -> Option<Finding> {
        let place = self.place(value);
        let sources = match self.value(place) {
            _ if !self.is_merge(key) => Vec::new(),
            Some(Value::Seq(..)) => self.items(place),
            _ => vec![place],
        };
        let entries = sources.into_iter().flat_map(|source| self.effective(source));
        let twice =
            entries.filter_map(|entry| self.text(entry.key)).find(|key| before.contains(key))?;
        let message = format!(
            "what is merged here has the key `{}`, too, which stands before it, and readers differ in \
             which one they take; write `<<` first",
            crate::diagnostic::printable(twice)
        );
        Some(Finding::new(Kind::DuplicateKey, self.start(key), message))
    }

    /// An anchor inside one of the ranges that is used outside of all of them; the ranges are in
    /// order and apart.
    pub(crate) fn anchor_used_outside(&self, ranges: &[Range<usize>]) -> Option<(usize, usize)> {
        let inside = |at: usize| {
            let before = ranges.partition_point(|range| range.start <= at);
            before
                .checked_sub(1)
                .and_then(|n| ranges.get(n))
                .is_some_and(|range| range.contains(&at))
        };
        self.nodes.iter().find_map(|node| match node.value {
            Value::Alias(target) if !inside(node.start) && inside(self.start(target)) => {
                Some((self.start(target), node.start))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::builder::MAX_DEPTH;
    use super::*;

    fn at<'t>(text: &'t str, tree: &Tree, path: &[&str]) -> &'t str {
        let mut place = tree.place(tree.documents[0]);
        for key in path {
            place = match key.parse::<usize>() {
                Ok(index) => tree.items(place)[index],
                Err(_) => tree.get(place, key).unwrap().value,
            };
        }
        let node = tree.node(place.node).unwrap();
        &text[node.start..node.end]
    }

    #[test]
    fn nodes_know_their_bytes() {
        let text = "\u{feff}a: 1 # c\nü:  # x\n  - p: |+\n      te: xt\n\n\n    q: 'r' \n  # z\n  - [s, {\"t\" : u} ] # v\n";
        let tree = Tree::parse(text).unwrap();
        assert_eq!(at(text, &tree, &["a"]), "1");
        assert_eq!(at(text, &tree, &["ü", "0", "p"]), "te: xt");
        assert_eq!(at(text, &tree, &["ü", "0"]), "p: |+\n      te: xt\n\n\n    q: 'r'");
        assert_eq!(at(text, &tree, &["ü", "1"]), "[s, {\"t\" : u} ]");
        assert_eq!(at(text, &tree, &["ü", "1", "1"]), "{\"t\" : u}");
        let style = |path: &[&str]| {
            let text = at(text, &tree, path);
            tree.nodes.iter().find_map(|node| match &node.value {
                Value::Map(style, _) if node.end - node.start == text.len() => Some(*style),
                _ => None,
            })
        };
        assert_eq!(style(&["ü", "0"]), Some(Style::Block));
        assert_eq!(style(&["ü", "1", "1"]), Some(Style::Flow));
    }

    #[test]
    fn a_comment_behind_a_bracket_is_not_what_it_holds() {
        let text = "a: &x { # ', {\n b: c # [\n } # }\nd: [ # q\n  1 ]\n";
        let tree = Tree::parse(text).unwrap();
        assert_eq!(at(text, &tree, &["a"]), "&x { # ', {\n b: c # [\n }");
        assert_eq!(at(text, &tree, &["d"]), "[ # q\n  1 ]");
    }

    #[test]
    fn quoted_scalars_end_with_their_quote() {
        let text = "a: &it's 'x''\\' # 'c'\nb: [\"\\\"\\\\\" # d\n  , !t 'é' ]\n";
        let tree = Tree::parse(text).unwrap();
        assert_eq!(at(text, &tree, &["a"]), "&it's 'x''\\'");
        assert_eq!(at(text, &tree, &["b", "0"]), "\"\\\"\\\\\"");
        assert_eq!(at(text, &tree, &["b", "1"]), "!t 'é'");
    }

    #[test]
    fn what_an_alias_or_a_merge_brings_is_shared() {
        let text =
            "base: &b\n  x: 1\n  y: {z: 2}\nown:\n  <<: *b\n  x: 3\nsame: *b\nlone: &l {q: 1}\n";
        let tree = Tree::parse(text).unwrap();
        let root = tree.place(tree.documents[0]);
        let own = tree.get(root, "own").unwrap().value;
        assert!(own.shared.is_none());
        let x = tree.get(own, "x").unwrap();
        assert_eq!((tree.text(x.value.node), x.value.shared), (Some("3"), None));
        let y = tree.get(own, "y").unwrap().value;
        assert_eq!(y.shared, text.find("*b"));
        assert_eq!(tree.text_of(y, "z"), Some("2"));
        let same = tree.get(root, "same").unwrap().value;
        assert_eq!(same.shared, Some(text.rfind("*b").unwrap()));
        assert_eq!(tree.get(root, "base").unwrap().value.shared, Some(6));
        assert_eq!(tree.get(root, "lone").unwrap().value.shared, None);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        let refused = |text: &str| {
            let finding = Tree::parse(text).unwrap_err();
            (finding.kind, finding.at)
        };
        assert_eq!(refused("a: &x [*x]"), (Kind::YamlSyntax, 7));
        assert_eq!(refused("ü: {\n").0, Kind::YamlSyntax);
        assert_eq!(refused("a: *x").0, Kind::YamlSyntax);
        for c in ['\u{85}', '\u{2028}', '\u{2029}', '\u{feff}', '\0', '\u{1}', '\u{7f}', '\u{ffff}']
        {
            assert_eq!(refused(&format!("a: 1 # y{c}  b: 2")), (Kind::YamlSyntax, 8), "{c:?}");
        }
        assert_eq!(refused("\u{feff}\u{feff}a: 1"), (Kind::YamlSyntax, 3));
        assert!(Tree::parse("\u{feff}a: \"\\u2028\\u0085\"\t# \u{a0}\u{1f600}\r\n").is_ok());
        for tag in ["!!binary", "!!merge", "!<tag:yaml.org,2002:binary>", "!!bin%61ry"] {
            assert_eq!(refused(&format!("a: {tag} eA==")), (Kind::YamlSyntax, 3), "{tag}");
            assert_eq!(refused(&format!("{tag} eA==: a")), (Kind::YamlSyntax, 0), "{tag}");
        }
        let handle = "%TAG !e! tag:yaml.org,2002:\n--- !e!binary eA==\n";
        assert_eq!(refused(handle).0, Kind::YamlSyntax);
        assert!(Tree::parse("a: !!str b\n!local c: !!int \"1\"\nd: !!map {e: !!seq []}\n").is_ok());
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert_eq!(refused(&nested(MAX_DEPTH + 1)), (Kind::TooDeep, MAX_DEPTH));
        assert!(Tree::parse(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(refused(&" ".repeat(MAX_BYTES + 1)).0, Kind::TooLarge);
    }

    #[test]
    fn a_merge_that_readers_take_differently_is_found() {
        let at = |text: &str| -> Vec<usize> {
            let tree = Tree::parse(text).unwrap();
            tree.duplicate_keys(tree.documents[0], true).iter().map(|f| f.at).collect()
        };
        assert_eq!(at("x: &x {a: 1}\ny: {a: 2, <<: *x}\n"), [23]);
        assert_eq!(at("x: &x {a: 1}\ny: {a: 2, <<: [{b: 1}, *x]}\n"), [23]);
        assert_eq!(at("x: &x {a: 1}\ny: {b: 2, <<: *x, a: 3}\n"), [0; 0]);
        assert_eq!(at("x: &x {a: 1}\ny: {a: 2, \"<<\": *x}\n"), [0; 0]);
    }

    #[test]
    fn more_merges_than_are_looked_into_are_refused() {
        let text = |n: usize| format!("x: &x {{a: 1}}\ny:\n{}", "- {<<: [*x, *x]}\n".repeat(n));
        assert!(Tree::parse(&text(499)).is_ok());
        assert_eq!(Tree::parse(&text(500)).unwrap_err().kind, Kind::TooDeep);
    }

    #[test]
    fn merges_of_merges_end() {
        let level = |n: usize| format!("k{n}: &a{n} {{<<: [*a{0}, *a{0}]}}\n", n - 1);
        let levels: String = (1..100).map(level).collect();
        let tree = Tree::parse(&format!("k0: &a0 {{x: 1}}\n{levels}")).unwrap();
        let last = tree.get(tree.place(tree.documents[0]), "k99").unwrap().value;
        assert!(tree.get(last, "y").is_none());
        assert_eq!(tree.text_of(last, "x"), Some("1"));
    }

    #[test]
    fn duplicate_keys_are_found_at_their_second_place() {
        let tree = Tree::parse("a: 1\nb: {c: 1, \"c\": 2}\na: 3\n").unwrap();
        let root = tree.documents[0];
        let mut deep: Vec<usize> = tree.duplicate_keys(root, true).iter().map(|f| f.at).collect();
        deep.sort_unstable();
        assert_eq!(deep, [15, 23]);
        assert_eq!(tree.duplicate_keys(root, false).len(), 1);
    }

    #[test]
    fn an_anchor_that_is_used_outside_of_its_range_is_found() {
        let text = "a: &x 1\nb: *x\n";
        let tree = Tree::parse(text).unwrap();
        assert_eq!(tree.anchor_used_outside(&[0..7, 20..21]), Some((3, 11)));
        assert_eq!(tree.anchor_used_outside(&[0..7, 8..13]), None);
        assert_eq!(tree.anchor_used_outside(&[8..13, 20..21]), None);
    }
}
