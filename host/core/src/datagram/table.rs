//! The flow table of datagrams: every flow of one worker, found from both sides.
//!
//! ```text
//!   client's datagram ── FlowKey ────────▶ index ─┐
//!                                                 ├─▶ entries: 64 bytes each ──▶ details, for few
//!   endpoint's reply ─── port, endpoint ─▶ index ─┘      │
//!                                                        └─ timers: 16 bytes each
//! ```
//!
//! Sized at start: it never grows and never stalls on a resize. Memory that no flow has needed is
//! not touched. When there is no place, flows whose endpoint has not replied give theirs, those
//! first that have sent least; a flow that has been answered and is in use never does. The hash is
//! SipHash-1-3 under a secret key, because clients choose the keys.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::ops::Range;
use core::time::Duration;

use siphasher::sip::SipHasher13;

use super::flow::{Details, Flow, FlowKey, NONE, hash_reply};
use super::index::Index;
use crate::boundary::{ListenerId, PortId};
use crate::slab::Slab;
use crate::time::Instant;
use crate::timers::Timers;

/// Entries looked at for a flow that can give its place.
const LOOKS: u32 = 64;
/// An answered flow that has been silent for so long may give its place if no other can.
const STALE: Duration = Duration::from_secs(10);
/// The share of the table that flows without a reply always have: one in so many.
const PROVISIONAL: u32 = 8;

/// All flows of datagrams of one worker.
#[derive(Debug)]
pub struct FlowTable {
    entries: Vec<Flow>,
    capacity: u32,
    len: u32,
    /// The first free entry among those that have been used.
    free: u32,
    by_client: Index,
    by_reply: Index,
    details: Slab<Details>,
    timers: Timers,
    hasher: SipHasher13,
    /// Flows without a reply, as a list: its length, its oldest and its newest.
    unconfirmed: u32,
    oldest: u32,
    newest: u32,
    /// The next entry to look at for a flow that has gone silent.
    hand: u32,
    stamp: u16,
}

impl FlowTable {
    /// Keys looked up together.
    pub const BATCH: usize = 32;

    /// Allocates everything the table will ever need. `hash_key` must be secret.
    #[must_use]
    pub fn new(capacity: u32, hash_key: [u64; 2]) -> Self {
        Self {
            entries: Vec::with_capacity(capacity as usize),
            capacity,
            len: 0,
            free: NONE,
            by_client: Index::with_capacity(capacity),
            by_reply: Index::with_capacity(capacity),
            details: Slab::with_capacity(capacity),
            timers: Timers::with_capacity(capacity),
            hasher: SipHasher13::new_with_keys(hash_key[0], hash_key[1]),
            unconfirmed: 0,
            oldest: NONE,
            newest: NONE,
            hand: 0,
            stamp: 0,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// One more than the highest entry that was ever used.
    pub(super) fn entries_end(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Bytes that are taken when every entry is an IPv4 flow with the default method.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let entry = size_of::<Flow>() + Timers::BYTES_PER_TIMER;
        self.capacity as usize * entry
            + self.by_client.memory_bytes()
            + self.by_reply.memory_bytes()
    }

    /// Where it lies in memory.
    pub fn addresses(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let start = self.entries.as_ptr().addr();
        let entries = start..start + self.capacity as usize * size_of::<Flow>();
        [entries, self.by_client.addresses(), self.by_reply.addresses()].into_iter()
    }

    /// The flow that a client's datagram belongs to.
    #[must_use]
    #[inline]
    pub fn find_by_client(&self, key: &FlowKey) -> Option<u32> {
        self.by_client.find(key.hash(self.hasher), |number| self.has_key(number, key))
    }

    /// The flows that clients' datagrams belong to, [`FlowTable::BATCH`] at a time: as
    /// [`find_by_client`](Self::find_by_client), with the waits for memory overlapping.
    #[inline]
    pub fn find_batch(&self, keys: &[FlowKey], found: &mut [Option<u32>; Self::BATCH]) {
        let mut hashes = [0; Self::BATCH];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = key.hash(self.hasher);
        }
        for (found, hash) in found.iter_mut().zip(&hashes).take(keys.len()) {
            *found = self.by_client.guess(*hash);
        }
        for ((found, key), hash) in found.iter_mut().zip(keys).zip(hashes) {
            if !found.is_some_and(|number| self.has_key(number, key)) {
                *found = self.by_client.find(hash, |number| self.has_key(number, key));
            }
        }
    }

    /// The flow that a client's datagram most likely belongs to, without a look at the flow.
    pub(super) fn guess_by_client(&self, key: &FlowKey) -> Option<u32> {
        self.by_client.guess(key.hash(self.hasher))
    }

    /// The flow that a reply most likely belongs to, without a look at the flow.
    pub(super) fn guess_by_reply(&self, port: PortId, endpoint: SocketAddr) -> Option<u32> {
        self.by_reply.guess(hash_reply(port, endpoint, self.hasher))
    }

    /// The flow that a reply belongs to; `endpoint_of` tells a binding's address.
    #[inline]
    pub(super) fn find_by_reply(
        &self,
        port: PortId,
        endpoint: SocketAddr,
        endpoint_of: impl Fn(u32) -> SocketAddr,
    ) -> Option<u32> {
        self.by_reply.find(hash_reply(port, endpoint, self.hasher), |number| {
            let flow = &self.entries[number as usize];
            flow.port == port && endpoint_of(flow.binding) == endpoint
        })
    }

    #[inline]
    pub(super) fn get(&self, number: u32) -> Option<&Flow> {
        self.entries.get(number as usize).filter(|flow| flow.is_live())
    }

    #[inline]
    pub(super) fn flow(&mut self, number: u32) -> &mut Flow {
        &mut self.entries[number as usize]
    }

    /// What the flow has beside its entry.
    #[inline]
    pub(super) fn details(&mut self, number: u32) -> Option<&mut Details> {
        match self.entries[number as usize].details {
            NONE => None,
            details => self.details.get_mut(details),
        }
    }

    pub(super) fn details_of(&self, flow: &Flow) -> Option<&Details> {
        self.details.get(flow.details)
    }

    /// Whether a new flow needs another's place: flows without a reply may have what others do not
    /// need of half the table, and beyond that their own share.
    pub(super) fn is_full(&self) -> bool {
        let is_half_full = self.len >= self.capacity.div_ceil(2);
        let share = (self.capacity / PROVISIONAL).max(1);
        self.len == self.capacity || (is_half_full && self.unconfirmed >= share)
    }

    /// A flow that can give its place to another, of this listener if one is named: the oldest
    /// without a reply, but one whose client has sent again only at the second look (CLOCK, as a
    /// list); where the table is full, else one that has long been silent.
    pub(super) fn victim(&mut self, now: Instant, of: Option<ListenerId>) -> Option<u32> {
        let mut number = self.oldest;
        for _ in 0..LOOKS.min(self.unconfirmed) {
            let flow = &mut self.entries[number as usize];
            let [_, next] = flow.neighbours();
            let is_wanted = of.is_none_or(|of| of == flow.listener);
            if is_wanted && !flow.is_referenced() {
                return Some(number);
            }
            if is_wanted {
                flow.set_referenced(false);
                self.take_out(number);
                self.append(number);
            }
            number = if next == NONE { self.oldest } else { next };
        }
        let is_full = of.is_some() || self.len == self.capacity;
        is_full.then(|| self.stale(now, of)).flatten()
    }

    /// A flow of this binding that can give its port to another: among the oldest without a reply,
    /// the first whose client has not sent again.
    pub(super) fn victim_of(&self, binding: u32) -> Option<u32> {
        let mut number = self.oldest;
        for _ in 0..LOOKS.min(self.unconfirmed) {
            let flow = &self.entries[number as usize];
            if flow.binding == binding && !flow.is_referenced() {
                return Some(number);
            }
            [_, number] = flow.neighbours();
        }
        None
    }

    /// A flow that has long been silent, among the next few.
    fn stale(&mut self, now: Instant, of: Option<ListenerId>) -> Option<u32> {
        for _ in 0..LOOKS.min(self.entries_end()) {
            let number = self.hand;
            self.hand = if number + 1 == self.entries_end() { 0 } else { number + 1 };
            let flow = &self.entries[number as usize];
            let is_wanted = of.is_none_or(|of| of == flow.listener);
            let silent = now.since(flow.last_active.to_instant(now));
            if flow.is_live() && is_wanted && flow.is_confirmed() && silent >= STALE {
                return Some(number);
            }
        }
        None
    }

    /// Adds a flow that has no port, and starts its timer. The caller has made room.
    ///
    /// # Panics
    /// If there is no room.
    pub fn insert(&mut self, mut flow: Flow, details: Option<Details>, due: Instant) -> u32 {
        assert!(self.len < self.capacity, "the caller has made room");
        self.stamp = self.stamp.wrapping_add(1);
        flow.stamp = self.stamp;
        flow.details = details.map_or(NONE, |details| self.details.insert(details));
        let number = match self.free {
            NONE => {
                self.entries.push(flow);
                self.entries_end() - 1
            }
            number => {
                let entry = &mut self.entries[number as usize];
                self.free = core::mem::replace(entry, flow).details;
                number
            }
        };
        self.len += 1;
        self.append(number);
        if !flow.is_hidden() {
            self.by_client.insert(self.hash_of(number), number);
        }
        self.timers.set(number, due);
        number
    }

    /// Gives a flow its way to an endpoint, in place of an earlier one.
    pub(super) fn bind(&mut self, number: u32, binding: u32, port: PortId, endpoint: SocketAddr) {
        let flow = &mut self.entries[number as usize];
        flow.binding = binding;
        flow.port = port;
        self.by_reply.insert(hash_reply(port, endpoint, self.hasher), number);
    }

    /// Takes its way to its endpoint from a flow.
    pub(super) fn unbind(&mut self, number: u32, endpoint: SocketAddr) {
        let flow = &mut self.entries[number as usize];
        let port = core::mem::replace(&mut flow.port, PortId(NONE));
        flow.binding = NONE;
        self.by_reply.remove(hash_reply(port, endpoint, self.hasher), number);
    }

    /// The first reply has come, and is not counted yet.
    pub(super) fn on_confirmed(&mut self, number: u32) {
        self.take_out(number);
    }

    /// Removes a flow that has no port any more.
    ///
    /// # Panics
    /// If it has one.
    pub fn remove(&mut self, number: u32) -> (Flow, Option<Details>) {
        let flow = self.entries[number as usize];
        assert!(flow.is_live() && flow.port.0 == NONE, "a flow is unbound before it is removed");
        if !flow.is_hidden() {
            self.by_client.remove(self.hash_of(number), number);
        }
        if !flow.is_confirmed() {
            self.take_out(number);
        }
        self.timers.cancel(number);
        self.entries[number as usize] = Flow::free(self.free);
        self.free = number;
        self.len -= 1;
        (flow, self.details.remove(flow.details))
    }

    /// When the first timer is due.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// A flow whose timer is due; see [`Timers::pop_due`].
    pub(super) fn pop_due(&mut self, now: Instant, steps: &mut u32) -> Option<u32> {
        self.timers.pop_due(now, steps)
    }

    pub(super) fn set_timer(&mut self, number: u32, due: Instant) {
        self.timers.set(number, due);
    }

    /// Makes a flow the newest without a reply.
    fn append(&mut self, number: u32) {
        let last = core::mem::replace(&mut self.newest, number);
        self.entries[number as usize].set_neighbours([last, NONE]);
        match self.entries.get_mut(last as usize) {
            None => self.oldest = number,
            Some(flow) => {
                let [before, _] = flow.neighbours();
                flow.set_neighbours([before, number]);
            }
        }
        self.unconfirmed += 1;
    }

    /// Takes a flow out from among those without a reply.
    fn take_out(&mut self, number: u32) {
        let [before, after] = self.entries[number as usize].neighbours();
        match self.entries.get_mut(before as usize) {
            None => self.oldest = after,
            Some(flow) => {
                let [first, _] = flow.neighbours();
                flow.set_neighbours([first, after]);
            }
        }
        match self.entries.get_mut(after as usize) {
            None => self.newest = before,
            Some(flow) => {
                let [_, last] = flow.neighbours();
                flow.set_neighbours([before, last]);
            }
        }
        self.unconfirmed -= 1;
    }

    fn hash_of(&self, number: u32) -> u64 {
        let flow = &self.entries[number as usize];
        flow.key(self.details_of(flow)).hash(self.hasher)
    }

    #[inline]
    fn has_key(&self, number: u32, key: &FlowKey) -> bool {
        let flow = &self.entries[number as usize];
        flow.has_short(key)
            && (!flow.is_long() || self.details_of(flow).is_some_and(|details| details.has(key)))
    }

    /// Asserts what must hold between any two calls; `endpoint_of` tells a binding's address.
    pub(super) fn check_invariants(&self, endpoint_of: impl Fn(u32) -> SocketAddr) {
        let live = || (0..).zip(&self.entries).filter(|(_, flow)| flow.is_live());
        assert_eq!(live().count() as u32, self.len, "each flow has an entry");
        let unconfirmed = live().filter(|(_, flow)| !flow.is_confirmed()).count();
        assert_eq!(unconfirmed as u32, self.unconfirmed, "flows without a reply are counted");
        let after = |flow: &&Flow| self.entries.get(flow.neighbours()[1] as usize);
        let listed = core::iter::successors(self.entries.get(self.oldest as usize), after);
        assert_eq!(listed.take(1 + unconfirmed).count(), unconfirmed, "and listed");
        for (number, flow) in live() {
            assert!(self.timers.is_set(number), "what can last for ever has a deadline");
            if !flow.is_hidden() {
                let key = flow.key(self.details_of(flow));
                assert_eq!(self.find_by_client(&key), Some(number), "its client finds it");
            }
            if flow.port.0 != NONE {
                let endpoint = endpoint_of(flow.binding);
                let found = self.find_by_reply(flow.port, endpoint, &endpoint_of);
                assert_eq!(found, Some(number), "its endpoint finds it");
            }
        }
    }
}
