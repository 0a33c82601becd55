//! The flow table agrees with a map, whatever is done to it and however time passes.
#![no_main]

use std::collections::HashMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pointsman_core::Instant;
use pointsman_core::kept_table::{KeptTable, Full};

/// So few that the table looks at every entry before it gives up, which makes its answers exact.
const CAPACITY_MAX: u8 = 40;

#[derive(Debug, Arbitrary)]
enum Step {
    Insert { key: u8, value: u32, life_ms: u8 },
    Get { key: u8 },
    Extend { key: u8, life_ms: u8 },
    Remove { key: u8 },
    Pass { ms: u8 },
}

/// The table, and what it should hold. Entries that have expired stay in the map until their key is
/// used again, because the table may still have them too.
struct Pair {
    table: KeptTable<u8, u32>,
    map: HashMap<u8, (u32, Instant)>,
    now_ms: u64,
}

fuzz_target!(|input: (u8, [u64; 2], Vec<Step>)| {
    let (capacity, hash_key, steps) = input;
    let capacity = usize::from(capacity % CAPACITY_MAX) + 1;
    let table = KeptTable::new(capacity, hash_key);
    let mut pair = Pair { table, map: HashMap::new(), now_ms: 1 };
    for step in steps {
        pair.take(step);
        assert!(pair.table.len() >= pair.live_count(), "a live entry is gone");
        assert!(pair.table.len() <= capacity, "the table has grown");
    }
    for key in 0..=u8::MAX {
        pair.take(Step::Get { key });
    }
    assert_eq!(pair.table.len(), pair.live_count(), "what expired is gone once it was asked for");
});

impl Pair {
    fn take(&mut self, step: Step) {
        let now = self.now();
        match step {
            Step::Insert { key, value, life_ms } => self.insert(key, value, self.after(life_ms)),
            Step::Get { key } => {
                assert_eq!(self.table.get(now, &key).copied(), self.live(key));
            }
            // An end is never moved to an earlier time. To extend what has expired brings it back if nothing has come across it yet.
            Step::Extend { key, life_ms } if self.live(key).is_some() => {
                let expires = self.after(life_ms);
                self.table.extend(&key, expires);
                self.map.entry(key).and_modify(|entry| entry.1 = entry.1.max(expires));
            }
            Step::Extend { .. } => {}
            Step::Remove { key } => {
                let live = self.live(key);
                let removed = self.table.remove(&key);
                assert!(live.is_none() || removed == live);
                assert!(removed.is_none() || removed == self.map.get(&key).map(|entry| entry.0));
                self.map.remove(&key);
            }
            Step::Pass { ms } => self.now_ms += u64::from(ms),
        }
    }

    fn insert(&mut self, key: u8, value: u32, expires: Instant) {
        match self.table.insert(self.now(), key, value, expires) {
            Ok(()) => drop(self.map.insert(key, (value, expires))),
            Err(Full) => {
                assert_eq!(self.live_count(), self.table.capacity(), "there was room");
                assert_eq!(self.live(key), None, "replacing needs no room");
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::from_millis(self.now_ms)
    }

    fn after(&self, life_ms: u8) -> Instant {
        Instant::from_millis(self.now_ms + u64::from(life_ms))
    }

    fn live(&self, key: u8) -> Option<u32> {
        let now = self.now();
        self.map.get(&key).filter(|(_, expires)| *expires > now).map(|(value, _)| *value)
    }

    fn live_count(&self) -> usize {
        let now = self.now();
        self.map.values().filter(|(_, expires)| *expires > now).count()
    }
}
