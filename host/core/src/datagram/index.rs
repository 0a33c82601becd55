//! From a hash to the number of an entry that lies elsewhere.
//!
//! Entries that are found by two keys lie in one place and are indexed twice. A group of twelve
//! numbers and their tags is one cache line:
//!
//! ```text
//!   │ 12 tags of 8 bits, 0 = empty │ overflow │ 12 numbers of 32 bits │
//! ```
//!
//! `overflow` counts the numbers that wanted this group and lie in a later one, so that a miss ends
//! at the first group that nobody has overflowed (Folly's F14, Bronson and Shi 2019). Fixed size,
//! nothing is ever moved.

use alloc::vec::Vec;
use core::ops::Range;

use crate::tags::{EMPTY, home, matches, tag_of};

const SLOTS: usize = 12;
const OVERFLOW: usize = SLOTS;
/// The load of a full index, in numbers per group: then one group in eight has been overflowed.
const GROUP_LOAD: u64 = 9;

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Group {
    /// Twelve tags, the overflow, and three bytes of nothing.
    tags: [u8; 16],
    numbers: [u32; SLOTS],
}

const VACANT: Group = Group { tags: [EMPTY; 16], numbers: [0; SLOTS] };

/// A hash index of fixed capacity.
#[derive(Debug)]
pub(super) struct Index {
    groups: Vec<Group>,
}

impl Index {
    pub(super) fn with_capacity(capacity: u32) -> Self {
        let groups = u64::from(capacity).div_ceil(GROUP_LOAD).max(1) as usize;
        Self { groups: alloc::vec![VACANT; groups] }
    }

    /// The number with this hash for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = tag_of(hash);
        let mut at = home(hash, self.groups.len());
        for _ in 0..self.groups.len() {
            let group = &self.groups[at];
            for place in group.matches(tag) {
                if is_it(group.numbers[place]) {
                    return Some(group.numbers[place]);
                }
            }
            if group.tags[OVERFLOW] == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// The first number that may be the one with this hash: most often it is.
    #[inline]
    pub(super) fn guess(&self, hash: u64) -> Option<u32> {
        let group = &self.groups[home(hash, self.groups.len())];
        group.matches(tag_of(hash)).next().map(|place| group.numbers[place])
    }

    /// Adds a number that is not in it. The caller keeps to the capacity.
    pub(super) fn insert(&mut self, hash: u64, number: u32) {
        let mut at = home(hash, self.groups.len());
        loop {
            let group = &mut self.groups[at];
            let free = group.matches(EMPTY).next();
            if let Some(place) = free {
                group.tags[place] = tag_of(hash);
                group.numbers[place] = number;
                return;
            }
            group.tags[OVERFLOW] = group.tags[OVERFLOW].saturating_add(1);
            at = self.after(at);
        }
    }

    /// Removes a number that was added with this hash.
    pub(super) fn remove(&mut self, hash: u64, number: u32) {
        let tag = tag_of(hash);
        let mut at = home(hash, self.groups.len());
        for _ in 0..self.groups.len() {
            let group = &mut self.groups[at];
            let found = group.matches(tag).find(|&place| group.numbers[place] == number);
            if let Some(place) = found {
                group.tags[place] = EMPTY;
                return;
            }
            if group.tags[OVERFLOW] != u8::MAX {
                group.tags[OVERFLOW] -= 1;
            }
            at = self.after(at);
        }
        unreachable!("a number is removed with the hash it was added with");
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.groups.len() * size_of::<Group>()
    }

    pub(super) fn addresses(&self) -> Range<usize> {
        let range = self.groups.as_ptr_range();
        range.start.addr()..range.end.addr()
    }

    #[inline]
    fn after(&self, group: usize) -> usize {
        if group + 1 == self.groups.len() { 0 } else { group + 1 }
    }
}

impl Group {
    /// The places whose tag is `tag`, lowest first.
    #[inline]
    fn matches(&self, tag: u8) -> impl Iterator<Item = usize> + use<> {
        matches::<SLOTS>(self.tags, tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn mix(number: u32) -> u64 {
        u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    }

    #[test]
    fn the_index_agrees_with_a_map_under_random_use_up_to_its_capacity() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: u32| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % u64::from(below)) as u32
        };
        let (mut index, mut model) = (Index::with_capacity(500), HashMap::new());
        for _ in 0..200_000 {
            let number = random(800);
            let found = index.find(mix(number), |found| found == number);
            assert_eq!(found, model.get(&number).copied());
            match found {
                Some(_) if random(2) == 0 => {
                    index.remove(mix(number), number);
                    model.remove(&number);
                }
                None if model.len() < 500 => {
                    index.insert(mix(number), number);
                    model.insert(number, number);
                }
                _ => {}
            }
        }
        model.keys().for_each(|&number| index.remove(mix(number), number));
        assert!(
            index.groups.iter().all(|group| group.tags == [EMPTY; 16]),
            "nothing is left behind"
        );
    }

    #[test]
    fn numbers_with_one_hash_are_told_apart() {
        let mut index = Index::with_capacity(40);
        (0..40).for_each(|number| index.insert(7, number));
        for number in 0..40 {
            assert_eq!(index.find(7, |found| found == number), Some(number));
        }
        index.remove(7, 20);
        assert_eq!(index.find(7, |found| found == 20), None);
        assert_eq!(index.find(7, |found| found == 39), Some(39));
    }
}
