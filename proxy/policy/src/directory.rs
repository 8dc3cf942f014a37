//! Where in a sorted list of integers a key belongs, in a handful of steps.
//!
//! Up to a few dozen entries a binary search is best. Beyond, its steps are cache misses, so a
//! table over the bits that differ points at the few neighbours that remain; where many still
//! share a slot, that slot has a table of its own. Memory stays linear in the entries.

use std::fmt::Debug;
use std::hash::Hash;

/// Lists up to this long are searched without a table.
const SMALL: usize = 32;
/// A slot with more entries than this gets its own table.
const LEAF: usize = 16;
/// Marks a slot that holds the number of a table.
const TABLE: u32 = 1 << 31;

/// An address as an integer.
pub(super) trait Word: Copy + Ord + Hash + Debug + Default {
    /// The last address of the family.
    const MAX: Self;
    /// The next address; `None` after the last.
    fn successor(self) -> Option<Self>;
    /// The previous address; the first has itself.
    fn predecessor(self) -> Self;
    /// The number of the highest bit, from 0, in which the two differ; `None` if they are equal.
    fn highest_difference(self, other: Self) -> Option<u32>;
    /// The `width` bits (at most 16) above the lowest `shift`.
    fn bits_at(self, shift: u32, width: u32) -> usize;
}

macro_rules! word {
    ($int:ty) => {
        impl Word for $int {
            const MAX: Self = Self::MAX;

            fn successor(self) -> Option<Self> {
                self.checked_add(1)
            }

            fn predecessor(self) -> Self {
                self.saturating_sub(1)
            }

            fn highest_difference(self, other: Self) -> Option<u32> {
                (self ^ other).checked_ilog2()
            }

            #[inline]
            #[expect(clippy::cast_possible_truncation, reason = "only the low 16 bits are used")]
            fn bits_at(self, shift: u32, width: u32) -> usize {
                usize::from((self >> shift) as u16) & ((1 << width) - 1)
            }
        }
    };
}

word!(u32);
word!(u128);

/// The tables over one sorted list without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Directory<K> {
    tables: Box<[Table<K>]>,
    slots: Box<[u32]>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Table<K> {
    /// The smallest and largest entry; a key outside needs no slot.
    first: K,
    last: K,
    /// The list's part that the table is over.
    from: u32,
    to: u32,
    shift: u32,
    width: u32,
    /// Its slots are `2^width + 1` from here; the last is the end of the part.
    slots: u32,
}

impl<K: Word> Directory<K> {
    /// `None` for a list that needs none (or one so long that positions don't fit 31 bits, which
    /// no file under the size limit has).
    pub(super) fn new(list: &[K]) -> Option<Self> {
        if list.len() <= SMALL || list.len() >= usize::try_from(TABLE).ok()? {
            return None;
        }
        let mut tables = Vec::new();
        let mut slots = Vec::new();
        // Parts that still need a table, and the slot that will name it.
        let mut pending = vec![(0, list.len(), None)];
        while let Some((from, to, named_by)) = pending.pop() {
            let number = u32::try_from(tables.len()).ok()?;
            let table = Self::table(list, from, to, &mut slots, &mut pending)?;
            tables.push(table);
            if let Some(slot) = named_by {
                *slots.get_mut::<usize>(slot)? = TABLE | number;
            }
        }
        Some(Self { tables: tables.into_boxed_slice(), slots: slots.into_boxed_slice() })
    }

    fn table(
        list: &[K],
        from: usize,
        to: usize,
        slots: &mut Vec<u32>,
        pending: &mut Vec<(usize, usize, Option<usize>)>,
    ) -> Option<Table<K>> {
        let part = list.get(from..to)?;
        let (first, last) = (*part.first()?, *part.last()?);
        let top = first.highest_difference(last)? + 1;
        // Two to four entries a slot, if they are spread evenly.
        let width = part.len().ilog2().saturating_sub(1).clamp(1, 16).min(top);
        let shift = top - width;
        let base = slots.len();
        let mut at = from;
        for slot in 0..1_usize << width {
            let start = at;
            slots.push(u32::try_from(start).ok()?);
            while list.get(at).is_some_and(|key| at < to && key.bits_at(shift, width) == slot) {
                at += 1;
            }
            if at - start > LEAF {
                pending.push((start, at, Some(base + slot)));
            }
        }
        slots.push(u32::try_from(to).ok()?);
        let (from, to) = (u32::try_from(from).ok()?, u32::try_from(to).ok()?);
        Some(Table { first, last, from, to, shift, width, slots: u32::try_from(base).ok()? })
    }

    /// How many entries of `list`, the list that the directory was made of, are at or below `key`.
    #[inline]
    pub(super) fn count_at_or_below(directory: Option<&Self>, list: &[K], key: K) -> usize {
        match directory {
            None => list.partition_point(|entry| *entry <= key),
            Some(directory) => directory.count(list, key).unwrap_or(0),
        }
    }

    #[inline]
    fn count(&self, list: &[K], key: K) -> Option<usize> {
        let mut table = self.tables.first()?;
        loop {
            if key < table.first {
                return usize::try_from(table.from).ok();
            }
            if key >= table.last {
                return usize::try_from(table.to).ok();
            }
            let slot = usize::try_from(table.slots).ok()? + key.bits_at(table.shift, table.width);
            let start = *self.slots.get(slot)?;
            if start & TABLE != 0 {
                table = self.tables.get(usize::try_from(start ^ TABLE).ok()?)?;
                continue;
            }
            let start = usize::try_from(start).ok()?;
            let end = self.position(*self.slots.get(slot + 1)?)?;
            let neighbours = list.get(start..end)?;
            return Some(start + neighbours.iter().filter(|entry| **entry <= key).count());
        }
    }

    /// Where the part of a slot begins in the list.
    #[inline]
    fn position(&self, slot: u32) -> Option<usize> {
        let start = match slot & TABLE {
            0 => slot,
            _ => self.tables.get(usize::try_from(slot ^ TABLE).ok()?)?.from,
        };
        usize::try_from(start).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees<K: Word>(list: &[K], keys: impl Iterator<Item = K>) {
        let directory = Directory::new(list);
        for key in keys {
            let got = Directory::count_at_or_below(directory.as_ref(), list, key);
            assert_eq!(got, list.partition_point(|e| *e <= key), "{key:?}");
        }
    }

    fn around<K: Word>(list: &[K]) -> Vec<K> {
        let near = |k: &K| [k.predecessor(), *k, k.successor().unwrap_or(*k)];
        list.iter().flat_map(near).chain([K::default(), K::MAX]).collect()
    }

    #[test]
    fn agrees_with_a_binary_search_on_even_and_clustered_lists() {
        for n in [0_u32, 1, 32, 33, 100, 5000] {
            let even: Vec<u32> = (0..n).map(|i| i * 800_000 + 7).collect();
            agrees(&even, around(&even).into_iter());
            // One far away, the rest in two clusters: the first table tells them hardly apart.
            let mut clustered: Vec<u32> = (0..n).map(|i| 0x0a00_0000 + i).collect();
            clustered.extend((0..n).map(|i| 0x0a80_0000 + 3 * i));
            clustered.push(u32::MAX);
            agrees(&clustered, around(&clustered).into_iter());
            // Only the last part needs a table of its own; the first slots have theirs at hand.
            let late: Vec<u32> = (0..4).chain((0..n).map(|i| (1 << 31) + i)).collect();
            agrees(&late, around(&late).into_iter());
        }
        let mut v6: Vec<u128> = (0..3000_u128).map(|i| (0xfd00 << 112) | (i << 64)).collect();
        v6.splice(0..0, (0..300).map(|i| (0x2001_0db8 << 96) | i));
        v6.insert(0, 1);
        agrees(&v6, around(&v6).into_iter());
    }

    #[test]
    fn memory_is_linear() {
        for step in [1_u32, 7, 40_000] {
            let list: Vec<u32> = (0..100_000).map(|i| i * step).collect();
            let directory = Directory::new(&list).unwrap();
            assert!(directory.slots.len() < 2 * list.len(), "{step}: {}", directory.slots.len());
        }
    }
}
