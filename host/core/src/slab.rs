//! Slots for things that live a while, sized at start.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

/// A fixed number of slots. The slot freed last is used first, so that memory which was never
/// needed is never touched.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    capacity: u32,
}

impl<T> Slab<T> {
    pub(crate) fn with_capacity(capacity: u32) -> Self {
        Self {
            slots: Vec::with_capacity(capacity as usize),
            free: Vec::with_capacity(capacity as usize),
            capacity,
        }
    }

    /// The slot that the next [`insert`](Self::insert) uses, unless all are taken.
    pub(crate) fn next_free(&self) -> Option<u32> {
        let unused = self.slots.len() as u32;
        self.free.last().copied().or((unused < self.capacity).then_some(unused))
    }

    /// Fills the slot that [`next_free`](Self::next_free) names.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(value);
            return slot;
        }
        assert!(self.slots.len() < self.capacity as usize, "the slab is full");
        self.slots.push(Some(value));
        (self.slots.len() - 1) as u32
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let value = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(value)
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Slots in use.
    pub(crate) fn len(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    /// One more than the highest slot that was ever used.
    pub(crate) fn slots_end(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.slots).filter_map(|(slot, value)| Some((slot, value.as_ref()?)))
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        self.get(slot).expect("the slot is in use")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        self.get_mut(slot).expect("the slot is in use")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_slab_names_no_free_slot() {
        let mut slab = Slab::with_capacity(2);
        assert_eq!(slab.next_free(), Some(0));
        assert_eq!((slab.insert('a'), slab.insert('b')), (0, 1));
        assert_eq!(slab.next_free(), None);
    }

    #[test]
    fn the_slot_freed_last_is_used_first() {
        let mut slab = Slab::with_capacity(3);
        (0..3).for_each(|n| assert_eq!(slab.insert(n), n));
        assert_eq!(slab.remove(0), Some(0));
        assert_eq!(slab.remove(2), Some(2));
        assert_eq!(slab.remove(2), None);
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.next_free(), Some(2));
        assert_eq!(slab.insert(7), 2);
        assert_eq!(slab.iter().map(|(slot, _)| slot).collect::<Vec<_>>(), [1, 2]);
    }
}
