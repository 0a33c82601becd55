//! Decisions kept for a client, told to the other workers.
//!
//! A client's connections land on any worker, and all of them must meet the same endpoint. So a
//! worker that finds nothing in its own table looks here before it asks a policy, and puts up what
//! it was answered. Only a client's first flow on each worker comes here, and no flow ever waits: a
//! worker that finds a shard taken by another goes on as if there were nothing in it. (Besides, each
//! use of a decision that slides is noted here.)

use alloc::boxed::Box;
use core::hash::{Hash, Hasher};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use siphasher::sip::SipHasher13;
use spin::Mutex;

use crate::affinity::{AffinityKey, Kept};
use crate::kept_table::KeptTable;
use crate::time::Instant;

/// Enough that two workers seldom want the same one.
const SHARDS: usize = 64;
const FORGET_TRIES: u32 = 1_000;

/// The kept decisions of all workers.
#[derive(Debug)]
pub struct Board {
    shards: Box<[Mutex<KeptTable<AffinityKey, Kept>>]>,
    hasher: SipHasher13,
    /// Whether anything was ever put up: most policies keep nothing, and then nobody needs to look.
    used: AtomicBool,
}

impl Board {
    /// Allocates room for about twice `entries_max` decisions, since keys do not spread evenly.
    /// `hash_key` must be secret.
    #[must_use]
    pub fn new(entries_max: u32, hash_key: [u64; 2]) -> Self {
        let in_shard = (entries_max as usize * 2).div_ceil(SHARDS);
        let shard = |_| Mutex::new(KeptTable::new(in_shard, [hash_key[1], hash_key[0]]));
        Self {
            shards: (0..SHARDS).map(shard).collect(),
            hasher: SipHasher13::new_with_keys(hash_key[0], hash_key[1]),
            used: AtomicBool::new(false),
        }
    }

    /// What some worker keeps for this client, and until when.
    pub(crate) fn find(&self, now: Instant, key: &AffinityKey) -> Option<(Kept, Instant)> {
        if !self.used.load(Relaxed) {
            return None;
        }
        let mut shard = self.shard(key).try_lock()?;
        let kept = *shard.get(now, key)?;
        Some((kept, shard.expires(key)?))
    }

    /// Tells the other workers. If there is no room they will ask their own policies.
    pub(crate) fn put(&self, now: Instant, key: AffinityKey, kept: Kept, expires: Instant) {
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
        if let Some(mut shard) = self.shard(&key).try_lock() {
            let _ = shard.insert(now, key, kept, expires);
        }
    }

    /// A worker has used a decision whose life begins anew with each use.
    pub(crate) fn extend(&self, now: Instant, key: &AffinityKey, expires: Instant) {
        if let Some(mut shard) = self.shard(key).try_lock()
            && shard.get(now, key).is_some()
        {
            shard.extend(key, expires);
        }
    }

    /// A decision is no longer to be kept.
    pub(crate) fn remove(&self, key: &AffinityKey) {
        // An operator's wish is worth some tries; nobody holds a shard for longer than a look-up.
        if let Some(mut shard) = (0..FORGET_TRIES).find_map(|_| self.shard(key).try_lock()) {
            shard.remove(key);
        }
    }

    #[cfg(test)]
    pub(crate) fn lock(&self, key: &AffinityKey) -> impl Sized + '_ {
        self.shard(key).lock()
    }

    fn shard(&self, key: &AffinityKey) -> &Mutex<KeptTable<AffinityKey, Kept>> {
        let mut hasher = self.hasher;
        key.hash(&mut hasher);
        &self.shards[hasher.finish() as usize % SHARDS]
    }
}
