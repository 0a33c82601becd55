//! What an operator asks of a worker: what it keeps, how much memory that takes, and to forget
//! some of it.

use core::ops::Range;

use crate::Balancer;
use crate::boundary::Ops;
use crate::listing::{Cursor, Entry, EntryId};
use crate::stats::CloseReason;
use crate::time::Instant;

impl Balancer {
    /// Shows what is kept in the next `steps` places, beginning at `from`, to `visit`. Says where to
    /// go on, or `None` at the end. What comes and goes meanwhile may be missed.
    pub fn survey(
        &self,
        now: Instant,
        from: Cursor,
        steps: u32,
        visit: &mut dyn FnMut(Entry),
    ) -> Option<Cursor> {
        let (sort, first) = from.parts();
        let places = match sort {
            EntryId::SESSION => self.sessions.slots_end(),
            EntryId::DATAGRAMS => self.datagrams.entries_end(),
            _ => self.allocator.kept().places() as u32,
        };
        let end = places.min(first.saturating_add(steps.max(1)));
        for place in first..end {
            let entry = match sort {
                EntryId::SESSION => self.session_entry(place),
                EntryId::DATAGRAMS => self.datagrams.entry(now, place, &self.snapshot),
                _ => self.allocator.kept().entry(now, place as usize),
            };
            entry.into_iter().for_each(&mut *visit);
        }
        match sort {
            _ if end < places => Some(Cursor::new(sort, end)),
            EntryId::SESSION | EntryId::DATAGRAMS => Some(Cursor::new(sort + 1, 0)),
            _ => None,
        }
    }

    /// Ends a flow, or gives up a kept decision; tells whether it was there.
    pub fn forget(&mut self, now: Instant, id: EntryId, ops: &mut Ops) -> bool {
        let (sort, place, stamp) = id.parts();
        match sort {
            EntryId::SESSION => {
                let entry = self.session_entry(place);
                let is_it = entry.is_some_and(|entry| entry.id == id && entry.is_live_flow());
                if is_it {
                    self.close(now, place, CloseReason::Forgotten, ops);
                }
                is_it
            }
            EntryId::DATAGRAMS => {
                let (datagrams, mut turn) = self.datagrams(now, ops);
                datagrams.forget(&mut turn, place, stamp)
            }
            _ => self.allocator.forget(now, place as usize, stamp),
        }
    }

    /// Bytes that the tables take when they are full: of the flows of datagrams, and of the kept
    /// decisions.
    #[must_use]
    pub fn tables_bytes(&self) -> [usize; 2] {
        [self.datagrams.memory_bytes(), self.allocator.kept().memory_bytes()]
    }

    /// Where this worker's large tables lie, as ranges of addresses: memory that is accessed all
    /// over, which large pages make faster.
    pub fn tables(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let kept = self.allocator.kept().addresses();
        self.datagrams.addresses().chain(core::iter::once(kept))
    }

    fn session_entry(&self, slot: u32) -> Option<Entry> {
        let session = self.sessions.get(slot)?;
        Some(session.entry(slot, self.snapshot.listener(session.listener)))
    }
}
