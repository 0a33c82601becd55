//! The native table that every kept decision is served from.
//!
//! A fixed number of entries, allocated once: it never grows, never moves an entry and never stalls
//! on a resize. Entries lie in groups of fifteen, one group's tags in sixteen bytes:
//!
//! ```text
//!   groups   │ 15 tags of 8 bits, 0 = empty │ overflow │     one 16-byte comparison per probe
//!   entries  │ expires │ key │ value │ …15 of them   │     only where a tag agrees
//! ```
//!
//! `overflow` counts the entries that wanted this group and lie in a later one, so that a miss
//! ends at the first group that nobody has overflowed: usually the first of all. (The layout is
//! that of Folly's F14, Bronson and Shi 2019, with the entries apart from the tags.)
//!
//! The hash is SipHash-1-3 under a secret key, because clients choose the keys.

use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use core::ops::Range;

use siphasher::sip::SipHasher13;

use crate::tags::{EMPTY, home, matches, tag_of};
use crate::time::Instant;

const TAGS: usize = 15;
/// The load at which a table is full, in entries per group of fifteen: then one group in twenty
/// has been overflowed.
const GROUP_LOAD: u64 = 10;
/// Entries looked at for expiry by each insertion: more than one, so that expired entries are
/// freed faster than new ones come.
const SWEPT_PER_INSERT: usize = 2;
/// Entries looked at before an insertion into a full table gives up.
const SWEPT_WHEN_FULL: usize = 64;

/// Fifteen tags, and in the last byte how many entries have been turned away. That number
/// saturates, and then stays: such a group is always probed past.
#[derive(Debug, Clone)]
#[repr(align(16))]
struct Group([u8; TAGS + 1]);

/// One entry in its own cache line or lines, so that a hit touches no more of them than it must.
#[derive(Debug, Clone)]
#[repr(align(64))]
struct Entry<K, V> {
    expires: Instant,
    key: K,
    value: V,
}

/// Why an entry was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A fixed-capacity hash table whose entries expire.
#[derive(Debug)]
pub struct KeptTable<K, V> {
    groups: Vec<Group>,
    entries: Vec<Entry<K, V>>,
    hasher: SipHasher13,
    len: usize,
    capacity: usize,
    /// The next entry to look at for expiry.
    sweep: usize,
}

impl<K: Hash + Eq + Copy + Default, V: Copy + Default> KeptTable<K, V> {
    /// Allocates and touches everything the table will ever need: one and a half times `capacity`
    /// entries of a multiple of 64 bytes each. `hash_key` must be secret.
    #[must_use]
    pub fn new(capacity: usize, hash_key: [u64; 2]) -> Self {
        let groups = (capacity as u64).div_ceil(GROUP_LOAD).max(1) as usize;
        let empty = Entry { expires: Instant::ZERO, key: K::default(), value: V::default() };
        Self {
            groups: alloc::vec![Group([0; TAGS + 1]); groups],
            entries: alloc::vec![empty; groups * TAGS],
            hasher: SipHasher13::new_with_keys(hash_key[0], hash_key[1]),
            len: 0,
            capacity,
            sweep: 0,
        }
    }

    /// Entries in the table, expired ones that nothing has come across included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the table has no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most entries it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes the table occupies, from start to end of its life.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.groups.len() * size_of::<Group>() + self.entries.len() * size_of::<Entry<K, V>>()
    }

    /// The live value of a key. An entry found expired is removed.
    #[inline]
    pub fn get(&mut self, now: Instant, key: &K) -> Option<&mut V> {
        let hash = self.hash(key);
        let place = self.find(hash, key)?;
        if self.entries[place].expires <= now {
            self.remove_at(hash, place);
            return None;
        }
        Some(&mut self.entries[place].value)
    }

    /// Takes in or replaces an entry; it lives until `expires`.
    ///
    /// # Errors
    /// [`Full`] if the table holds [`capacity`](Self::capacity) entries and none of those looked at
    /// has expired. Live entries are never pushed out.
    pub fn insert(&mut self, now: Instant, key: K, value: V, expires: Instant) -> Result<(), Full> {
        let hash = self.hash(&key);
        self.sweep(now, SWEPT_PER_INSERT);
        let place = match self.find(hash, &key) {
            Some(place) => place,
            None => self.take_place(now, hash)?,
        };
        self.entries[place] = Entry { expires, key, value };
        Ok(())
    }

    /// When an entry's life ends.
    #[must_use]
    pub fn expires(&self, key: &K) -> Option<Instant> {
        self.find(self.hash(key), key).map(|place| self.entries[place].expires)
    }

    /// Moves the end of an entry's life, never to an earlier time.
    pub fn extend(&mut self, key: &K, expires: Instant) {
        if let Some(place) = self.find(self.hash(key), key) {
            let entry = &mut self.entries[place];
            entry.expires = entry.expires.max(expires);
        }
    }

    /// One more than the highest place of an entry.
    #[must_use]
    pub fn places(&self) -> usize {
        self.entries.len()
    }

    /// The entry in a place, if one lives there.
    #[must_use]
    pub fn at(&self, now: Instant, place: usize) -> Option<(&K, &V, Instant)> {
        let taken = self.groups.get(place / TAGS)?.0[place % TAGS] != EMPTY;
        let Entry { expires, key, value } = &self.entries[place];
        (taken && *expires > now).then_some((key, value, *expires))
    }

    /// Where it lies in memory.
    #[must_use]
    pub fn addresses(&self) -> Range<usize> {
        let range = self.entries.as_ptr_range();
        range.start.addr()..range.end.addr()
    }

    /// Removes an entry, if it is there.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let hash = self.hash(key);
        let place = self.find(hash, key)?;
        self.remove_at(hash, place);
        Some(self.entries[place].value)
    }

    #[inline]
    fn hash(&self, key: &K) -> u64 {
        let mut hasher = self.hasher;
        key.hash(&mut hasher);
        hasher.finish()
    }

    #[inline]
    fn after(&self, group: usize) -> usize {
        if group + 1 == self.groups.len() { 0 } else { group + 1 }
    }

    #[inline]
    fn find(&self, hash: u64, key: &K) -> Option<usize> {
        let tag = tag_of(hash);
        let mut at = home(hash, self.groups.len());
        for _ in 0..self.groups.len() {
            let group = &self.groups[at];
            for slot in group.matches(tag) {
                if self.entries[at * TAGS + slot].key == *key {
                    return Some(at * TAGS + slot);
                }
            }
            if group.overflow() == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    fn take_place(&mut self, now: Instant, hash: u64) -> Result<usize, Full> {
        if self.len == self.capacity {
            self.sweep(now, SWEPT_WHEN_FULL);
        }
        if self.len == self.capacity {
            return Err(Full);
        }
        let mut at = home(hash, self.groups.len());
        loop {
            let free = self.groups[at].matches(EMPTY).next();
            if let Some(slot) = free {
                self.groups[at].0[slot] = tag_of(hash);
                self.len += 1;
                return Ok(at * TAGS + slot);
            }
            self.groups[at].turn_away();
            at = self.after(at);
        }
    }

    fn remove_at(&mut self, hash: u64, place: usize) {
        let mut at = home(hash, self.groups.len());
        while at != place / TAGS {
            self.groups[at].take_back();
            at = self.after(at);
        }
        self.groups[at].0[place % TAGS] = EMPTY;
        self.len -= 1;
    }

    /// Frees the expired among the next `count` entries.
    fn sweep(&mut self, now: Instant, count: usize) {
        for _ in 0..count.min(self.entries.len()) {
            let place = self.sweep;
            self.sweep = if place + 1 == self.entries.len() { 0 } else { place + 1 };
            let taken = self.groups[place / TAGS].0[place % TAGS] != EMPTY;
            if taken && self.entries[place].expires <= now {
                self.remove_at(self.hash(&self.entries[place].key), place);
            }
        }
    }
}

impl Group {
    /// The slots whose tag is `tag`, lowest first.
    #[inline]
    fn matches(&self, tag: u8) -> impl Iterator<Item = usize> + use<> {
        matches::<TAGS>(self.0, tag)
    }

    /// How many entries that wanted this group lie in a later one.
    #[inline]
    fn overflow(&self) -> u8 {
        self.0[TAGS]
    }

    fn turn_away(&mut self) {
        self.0[TAGS] = self.0[TAGS].saturating_add(1);
    }

    fn take_back(&mut self) {
        if self.0[TAGS] != u8::MAX {
            self.0[TAGS] -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const KEY: [u64; 2] = [1, 2];
    const NOW: Instant = Instant::from_millis(1_000);

    fn table(capacity: usize) -> KeptTable<u64, u32> {
        KeptTable::new(capacity, KEY)
    }

    fn later(millis: u64) -> Instant {
        Instant::from_millis(1_000 + millis)
    }

    #[test]
    fn an_entry_is_found_until_it_expires() {
        let mut table = table(10);
        table.insert(NOW, 7, 70, later(5)).unwrap();
        assert_eq!(table.get(later(4), &7), Some(&mut 70));
        assert_eq!(table.get(later(5), &7), None);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn an_extended_entry_lives_on() {
        let mut table = table(10);
        table.insert(NOW, 7, 70, later(5)).unwrap();
        table.extend(&7, later(10));
        assert_eq!(table.get(later(9), &7), Some(&mut 70));
    }

    #[test]
    fn a_full_table_refuses_the_new_and_keeps_the_old() {
        let mut table = table(100);
        for key in 0..100 {
            table.insert(NOW, key, key as u32, later(1_000)).unwrap();
        }
        assert_eq!(table.insert(NOW, 100, 100, later(1_000)), Err(Full));
        assert_eq!(table.insert(NOW, 50, 5, later(1_000)), Ok(()), "replacing needs no room");
        for key in (0..100).filter(|&key| key != 50) {
            assert_eq!(table.get(NOW, &key), Some(&mut (key as u32)));
        }
    }

    #[test]
    fn a_full_table_takes_the_room_of_expired_entries() {
        let mut table = table(100);
        for key in 0..100 {
            table.insert(NOW, key, 0, later(10)).unwrap();
        }
        for key in 100..200 {
            assert_eq!(table.insert(later(10), key, 0, later(1_000)), Ok(()), "key {key}");
        }
        assert!(table.len() <= 100);
    }

    #[test]
    fn the_table_agrees_with_a_map_under_random_use() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut table, mut model) = (table(500), HashMap::new());
        for step in 0..200_000_u32 {
            let key = random(700);
            match random(4) {
                0 => assert_eq!(table.remove(&key), model.remove(&key)),
                1 | 2 => {
                    assert_eq!(table.get(NOW, &key).copied(), model.get(&key).copied());
                }
                _ => match table.insert(NOW, key, step, later(1)) {
                    Ok(()) => drop(model.insert(key, step)),
                    Err(Full) => assert!(model.len() == 500 && !model.contains_key(&key)),
                },
            }
            assert_eq!(table.len(), model.len());
        }
        model
            .iter()
            .for_each(|(key, value)| assert_eq!(table.get(NOW, key).copied(), Some(*value)));
        for key in model.keys() {
            table.remove(key);
        }
        assert!(table.groups.iter().all(|group| group.overflow() == 0), "nothing is left behind");
    }

    #[test]
    fn memory_is_stated_exactly_for_an_entry_of_one_line() {
        let table = table(1_000_000);
        let per_entry = table.memory_bytes() as f64 / 1e6;
        assert!((97.0..98.0).contains(&per_entry), "{per_entry} bytes per entry");
    }
}
