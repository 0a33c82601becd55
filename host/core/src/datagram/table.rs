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
/// A flow without a reply for so long is not likely to get one.
const HOPELESS: Duration = Duration::from_secs(1);
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
    unconfirmed: u32,
    /// Flows without a reply, by listener.
    lists: Vec<List>,
    /// The next entry to look at for a flow that has gone silent.
    hand: u32,
    /// When the last look was in vain, and for whom.
    in_vain: Option<(Instant, Option<ListenerId>)>,
    stamp: u16,
}

/// Flows without a reply, oldest first.
#[derive(Debug, Clone, Copy)]
struct List {
    first: u32,
    last: u32,
    len: u32,
    /// The next to look at for a flow whose end would make room at an endpoint; the first if none.
    hand: u32,
    /// When the last look for one was in vain.
    in_vain: Option<Instant>,
}

impl List {
    const EMPTY: Self = Self { first: NONE, last: NONE, len: 0, hand: NONE, in_vain: None };
}

/// How far a walk over all flows has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Walk {
    /// The next entry that may have a flow with a reply.
    entry: u32,
    /// The next listener that may have flows without one, once there are no more entries.
    list: u16,
}

impl FlowTable {
    /// Keys looked up together.
    pub const BATCH: usize = 32;

    /// Allocates everything the table will ever need, for flows of so many listeners. `hash_key` must
    /// be secret.
    #[must_use]
    pub fn new(capacity: u32, listeners: usize, hash_key: [u64; 2]) -> Self {
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
            lists: alloc::vec![List::EMPTY; listeners],
            hand: 0,
            in_vain: None,
            stamp: 0,
        }
    }

    /// There may be flows of so many listeners, and others of them may be wanted than before.
    pub(super) fn apply_listeners(&mut self, count: usize) {
        self.lists.resize(count.max(self.lists.len()), List::EMPTY);
        self.lists.iter_mut().for_each(|list| list.in_vain = None);
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

    /// Whether there is a place for another.
    pub(super) fn has_place(&self) -> bool {
        self.len < self.capacity
    }

    /// The next flow of a walk over those of the listeners that are wanted: first those with a reply,
    /// then the others of each listener, oldest first. Each has to be removed before the next is asked
    /// for. Every look spends one of `steps`: there is none left if `None` comes before they are used up.
    pub(super) fn next_to_leave(
        &self,
        walk: &mut Walk,
        is_wanted: impl Fn(ListenerId) -> bool,
        steps: &mut u32,
    ) -> Option<u32> {
        while walk.entry < self.entries_end() && *steps > 0 {
            *steps -= 1;
            let number = walk.entry;
            walk.entry += 1;
            let flow = &self.entries[number as usize];
            if flow.is_live() && flow.is_confirmed() && is_wanted(flow.listener) {
                return Some(number);
            }
        }
        while let Some(list) = self.lists.get(usize::from(walk.list))
            && *steps > 0
        {
            *steps -= 1;
            if list.first != NONE && is_wanted(ListenerId(walk.list)) {
                return Some(list.first);
            }
            walk.list += 1;
        }
        None
    }

    /// When a flow's timer is due, at the earliest.
    pub(super) fn due(&self, number: u32) -> Instant {
        self.timers.due(number)
    }

    /// Whether a new flow needs another's place: flows without a reply may have what others do not
    /// need of half the table, and beyond that their own share.
    pub(super) fn is_full(&self) -> bool {
        let is_half_full = self.len >= self.capacity.div_ceil(2);
        let share = (self.capacity / PROVISIONAL).max(1);
        self.len == self.capacity || (is_half_full && self.unconfirmed >= share)
    }

    /// A flow that can give its place to another, of this listener if one is named, else of the one
    /// that has most without a reply: the oldest of these, or the oldest whose client has not sent
    /// again (CLOCK, as a list). Where there is none, one that has long been silent.
    pub(super) fn victim(&mut self, now: Instant, of: Option<ListenerId>) -> Option<u32> {
        let listed = (0..).map(ListenerId).zip(&self.lists).max_by_key(|(_, list)| list.len);
        let listener = of.or_else(|| listed.map(|(listener, _)| listener))?;
        let found = self.oldest(listener, |_| true);
        let may_be_stale = of.is_some() || self.len == self.capacity;
        found.or_else(|| may_be_stale.then(|| self.stale(now, of)).flatten())
    }

    /// The oldest flow whose port is of help and who will hardly have a reply through it any more.
    pub(super) fn silent(
        &mut self,
        now: Instant,
        listener: ListenerId,
        helps: impl Fn(&Flow) -> bool,
    ) -> Option<u32> {
        let is_silent = |flow: &Flow| now.since(flow.last_active.to_instant(now)) >= HOPELESS;
        self.oldest(listener, |flow| is_silent(flow) && helps(flow))
    }

    /// A flow without a reply that is wanted, among the next few after those that were looked at before:
    /// many that are not may be older. Once a turn that is sought in vain, until another flow gets an
    /// endpoint.
    pub(super) fn victim_among(
        &mut self,
        now: Instant,
        listener: ListenerId,
        wanted: impl Fn(&Flow) -> bool,
    ) -> Option<u32> {
        let List { hand, in_vain, .. } = self.lists[listener.index()];
        if in_vain == Some(now) {
            return None;
        }
        let (found, hand) = self.look_from(listener, hand, wanted);
        let list = &mut self.lists[listener.index()];
        list.hand = hand;
        if found.is_none() {
            list.in_vain = Some(now);
        }
        found
    }

    /// The oldest flow without a reply that is wanted, among the first few.
    fn oldest(&mut self, listener: ListenerId, wanted: impl Fn(&Flow) -> bool) -> Option<u32> {
        self.look_from(listener, NONE, wanted).0
    }

    /// The first flow without a reply that is wanted, among a few from `next` on, or from the oldest,
    /// and the one after those that were looked at. One whose client has sent again is passed over once.
    fn look_from(
        &mut self,
        listener: ListenerId,
        mut next: u32,
        wanted: impl Fn(&Flow) -> bool,
    ) -> (Option<u32>, u32) {
        let len = self.lists[listener.index()].len;
        for _ in 0..LOOKS.min(2 * len) {
            let number = if next == NONE { self.lists[listener.index()].first } else { next };
            let flow = &mut self.entries[number as usize];
            [_, next] = flow.neighbours();
            if !wanted(flow) {
                continue;
            }
            if !flow.is_referenced() {
                return (Some(number), next);
            }
            flow.set_referenced(false);
            self.take_out(number);
            self.append(number);
        }
        (None, next)
    }

    /// A flow that has long been silent, among the next few. Once a turn that is sought in vain:
    /// a newcomer that is turned away should not cost more than one that is taken in.
    fn stale(&mut self, now: Instant, of: Option<ListenerId>) -> Option<u32> {
        if self.in_vain == Some((now, of)) {
            return None;
        }
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
        self.in_vain = Some((now, of));
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
        self.lists[flow.listener.index()].in_vain = None;
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

    /// Makes a flow its listener's newest without a reply.
    fn append(&mut self, number: u32) {
        let list = &mut self.lists[self.entries[number as usize].listener.index()];
        let before = core::mem::replace(&mut list.last, number);
        if before == NONE {
            list.first = number;
        }
        list.len += 1;
        self.unconfirmed += 1;
        self.entries[number as usize].set_neighbours([before, NONE]);
        if let Some(flow) = self.entries.get_mut(before as usize) {
            let [first, _] = flow.neighbours();
            flow.set_neighbours([first, number]);
        }
    }

    /// Takes a flow out from among those without a reply.
    fn take_out(&mut self, number: u32) {
        let flow = &self.entries[number as usize];
        let [before, after] = flow.neighbours();
        let list = &mut self.lists[flow.listener.index()];
        list.len -= 1;
        if list.hand == number {
            list.hand = after;
        }
        self.unconfirmed -= 1;
        match self.entries.get_mut(before as usize) {
            None => list.first = after,
            Some(flow) => {
                let [first, _] = flow.neighbours();
                flow.set_neighbours([first, after]);
            }
        }
        match self.entries.get_mut(after as usize) {
            None => list.last = before,
            Some(flow) => {
                let [_, last] = flow.neighbours();
                flow.set_neighbours([before, last]);
            }
        }
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
        for list in &self.lists {
            let listed = core::iter::successors(self.entries.get(list.first as usize), after);
            assert_eq!(listed.take(1 + unconfirmed).count() as u32, list.len, "and listed");
            let next = self.entries.get(list.hand as usize);
            assert!(next.is_none_or(|it| it.is_live() && !it.is_confirmed()), "so is the next");
        }
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

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use core::net::{IpAddr, Ipv4Addr};

    use super::*;

    const LISTENER: ListenerId = ListenerId(0);

    #[test]
    fn flows_that_are_not_wanted_hide_none_behind_them_and_cost_few_looks_a_turn() {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let now = Instant::from_millis(1_000);
        let mut table = FlowTable::new(256, 1, [1, 2]);
        for port in 1..=100 {
            let key = FlowKey { listener: LISTENER, client: (local, port).into(), local };
            table.insert(Flow::new(now, &key, false), None, now);
        }
        let looks = Cell::new(0);
        let is_late = |flow: &Flow| {
            looks.set(looks.get() + 1);
            flow.stamp > 80
        };
        for _ in 0..9 {
            assert_eq!(table.victim_among(now, LISTENER, is_late), None);
            assert_eq!(looks.get(), LOOKS);
        }
        let later = now + Duration::from_millis(1);
        for number in 80..100 {
            assert_eq!(table.victim_among(later, LISTENER, is_late), Some(number));
            table.remove(number);
            table.check_invariants(|_| (local, 1).into());
        }
        assert_eq!(looks.get(), 100, "each was looked at once");
        assert_eq!(table.victim(later, None), Some(0), "others are sought from the oldest");
    }
}
