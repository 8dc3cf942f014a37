//! From an address to every entry whose CIDRs hold it, without a scan.
//!
//! CIDRs nest or are disjoint. Their ends cut the address space into segments; each segment names
//! its innermost CIDR, and each CIDR its enclosing one, so a lookup is one search and a walk up.
//! CIDRs with the same entries and the same parent share one node, and an entry that an enclosing
//! CIDR has already isn't repeated: an allow list of 100,000 CIDRs in one rule is a single node,
//! and stays in the cache. Memory is linear in the CIDRs however they nest.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;

use super::directory::{Directory, Word};

/// An entry of a rule that a CIDR belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Posting {
    /// The entry's number; lower ones are named first.
    pub(super) entry: u32,
    /// The CIDR has exceptions, so the entry's whole address set must be asked.
    pub(super) ask_addresses: bool,
    /// The entry has identities as well.
    pub(super) ask_identities: bool,
}

/// Stands for "no node": outside every CIDR.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    parent: u32,
    from: u32,
    to: u32,
}

/// The index of one address family.
#[derive(Debug)]
pub(super) struct PrefixIndex<K> {
    bounds: Box<[K]>,
    /// The node from each bound to the next.
    segments: Box<[u32]>,
    directory: Option<Box<Directory<K>>>,
    nodes: Box<[Node]>,
    postings: Box<[Posting]>,
}

impl<K: Word> PrefixIndex<K> {
    /// `prefixes`: closed ranges that nest or are disjoint. `None` when there are none.
    pub(super) fn new(mut prefixes: Vec<(K, K, Posting)>) -> Option<Self> {
        if prefixes.is_empty() {
            return None;
        }
        // An enclosing range before what it encloses.
        prefixes.sort_unstable_by(|a, b| (a.0, b.1, a.2).cmp(&(b.0, a.1, b.2)));
        let mut build = Builder::default();
        for same in prefixes.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            if let Some((first, last, _)) = same.first() {
                build.close_before(*first);
                build.open(*first, *last, same.iter().map(|(.., posting)| *posting));
            }
        }
        build.close_all();
        let directory = Directory::new(&build.bounds).map(Box::new);
        Some(Self {
            bounds: build.bounds.into_boxed_slice(),
            segments: build.segments.into_boxed_slice(),
            directory,
            nodes: build.nodes.into_boxed_slice(),
            postings: build.postings.into_boxed_slice(),
        })
    }

    /// Shows `visit` the postings of each CIDR that holds `key`, the innermost first, each
    /// CIDR's in the order of their entries.
    #[inline]
    pub(super) fn visit<B>(
        &self,
        key: K,
        mut visit: impl FnMut(&[Posting]) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let below = Directory::count_at_or_below(self.directory.as_deref(), &self.bounds, key);
        let mut number = below.checked_sub(1).and_then(|at| self.segments.get(at)).copied();
        while let Some(node) = number.and_then(|n| self.nodes.get(usize::try_from(n).ok()?)) {
            visit(slice(&self.postings, node))?;
            number = Some(node.parent);
        }
        ControlFlow::Continue(())
    }
}

fn slice<'p>(postings: &'p [Posting], node: &Node) -> &'p [Posting] {
    let at = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    postings.get(at(node.from)..at(node.to)).unwrap_or_default()
}

struct Builder<K> {
    bounds: Vec<K>,
    segments: Vec<u32>,
    nodes: Vec<Node>,
    postings: Vec<Posting>,
    /// Nodes by the hash of their parent and postings; of two with one hash the later is known.
    known: HashMap<u64, u32>,
    hashing: RandomState,
    /// The CIDRs that are open: their last address and node.
    stack: Vec<(K, u32)>,
}

impl<K> Default for Builder<K> {
    fn default() -> Self {
        Self {
            bounds: Vec::new(),
            segments: Vec::new(),
            nodes: Vec::new(),
            postings: Vec::new(),
            known: HashMap::new(),
            hashing: RandomState::new(),
            stack: Vec::new(),
        }
    }
}

impl<K: Word> Builder<K> {
    fn current(&self) -> u32 {
        self.stack.last().map_or(NONE, |(_, node)| *node)
    }

    fn open(&mut self, first: K, last: K, postings: impl Iterator<Item = Posting>) {
        let parent = self.current();
        let mut own: Vec<Posting> = postings.filter(|p| !self.has(parent, p)).collect();
        own.sort_unstable();
        let node = if own.is_empty() { parent } else { self.intern(parent, &own) };
        self.stack.push((last, node));
        self.mark(first, node);
    }

    /// Whether an enclosing CIDR has the posting.
    fn has(&self, mut node: u32, posting: &Posting) -> bool {
        while let Some(found) = usize::try_from(node).ok().and_then(|n| self.nodes.get(n)) {
            if slice(&self.postings, found).binary_search(posting).is_ok() {
                return true;
            }
            node = found.parent;
        }
        false
    }

    /// The node of a parent and of postings that are in order.
    fn intern(&mut self, parent: u32, own: &[Posting]) -> u32 {
        let number = |n: usize| u32::try_from(n).unwrap_or(NONE);
        let (from, next) = (number(self.postings.len()), number(self.nodes.len()));
        let key = self.hashing.hash_one((parent, own));
        if let Some(number) = self.known.get(&key).copied()
            && let Some(node) = usize::try_from(number).ok().and_then(|n| self.nodes.get(n))
            && node.parent == parent
            && slice(&self.postings, node) == own
        {
            return number;
        }
        self.postings.extend_from_slice(own);
        self.nodes.push(Node { parent, from, to: number(self.postings.len()) });
        self.known.insert(key, next);
        next
    }

    /// Closes the CIDRs that end before `first`.
    fn close_before(&mut self, first: K) {
        while let Some((last, _)) = self.stack.last().copied().filter(|(last, _)| *last < first) {
            self.stack.pop();
            if let Some(after) = last.successor() {
                self.mark(after, self.current());
            }
        }
    }

    fn close_all(&mut self) {
        while let Some((last, _)) = self.stack.pop() {
            if let Some(after) = last.successor() {
                self.mark(after, self.current());
            }
        }
    }

    /// From `at` on, addresses are in `node`. A later mark for one place replaces an earlier.
    fn mark(&mut self, at: K, node: u32) {
        if self.bounds.last() == Some(&at) {
            self.bounds.pop();
            self.segments.pop();
        }
        if self.segments.last().copied().unwrap_or(NONE) != node {
            self.bounds.push(at);
            self.segments.push(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posting(entry: u32) -> Posting {
        Posting { entry, ask_addresses: false, ask_identities: false }
    }

    fn at(index: &PrefixIndex<u32>, key: u32) -> Vec<u32> {
        let mut out = Vec::new();
        let _ = index.visit(key, |postings| {
            out.extend(postings.iter().map(|p| p.entry));
            ControlFlow::<()>::Continue(())
        });
        out.sort_unstable();
        out
    }

    #[test]
    fn nested_ranges_name_all_that_hold_a_key() {
        let index = PrefixIndex::new(vec![
            (0, u32::MAX, posting(0)),
            (16, 31, posting(1)),
            (16, 23, posting(2)),
            (24, 31, posting(2)),
            (20, 20, posting(1)),
            (32, 47, posting(3)),
            (u32::MAX, u32::MAX, posting(4)),
        ])
        .unwrap();
        assert_eq!(at(&index, 0), [0]);
        assert_eq!(at(&index, 15), [0]);
        assert_eq!(at(&index, 16), [0, 1, 2]);
        assert_eq!(at(&index, 20), [0, 1, 2]);
        assert_eq!(at(&index, 31), [0, 1, 2]);
        assert_eq!(at(&index, 32), [0, 3]);
        assert_eq!(at(&index, 48), [0]);
        assert_eq!(at(&index, u32::MAX), [0, 4]);
    }

    #[test]
    fn one_rule_of_many_ranges_is_one_node() {
        let ranges = (0..10_000).map(|i| (i * 64, i * 64 + 15, posting(7))).collect();
        let index = PrefixIndex::new(ranges).unwrap();
        assert_eq!((index.nodes.len(), index.postings.len()), (1, 1));
        assert_eq!(at(&index, 64 * 9_999 + 15), [7]);
        assert_eq!(at(&index, 64 * 9_999 + 16), [0; 0]);
    }

    #[test]
    fn deep_nesting_keeps_each_posting_once() {
        let ranges = (0..32).map(|bits| (0, u32::MAX >> bits, posting(bits))).collect();
        let index = PrefixIndex::new(ranges).unwrap();
        assert_eq!(index.postings.len(), 32);
        assert_eq!(at(&index, 0).len(), 32);
        assert_eq!(at(&index, u32::MAX), [0]);
    }
}
