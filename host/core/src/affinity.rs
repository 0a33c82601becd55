//! Kept decisions: the same client, the same answer, without asking again.
//!
//! What is kept names the endpoint by its lasting id, not by its place in the list a policy saw, so
//! that an entry stays true over generations and is given up when its endpoint is. Each worker has
//! a table of its own, which every flow but a client's first is served from; what the workers tell
//! each other stands on the [`Board`].

mod handing;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use core::net::{IpAddr, Ipv6Addr};
use core::ops::Range;
use core::time::Duration;

use twox_hash::XxHash64;

use crate::board::Board;
use crate::kept_table::{Full, KeptTable};
use crate::listing::{Entry, EntryId, EntryKind, KeptEntry};
use crate::policy::{Decision, Method, OnSwap, Scope, Verdict};
use crate::snapshot::{Candidates, ClusterId, Endpoint, EndpointId, PrefixLengths};
use crate::time::Instant;

/// Who a decision is kept for: one cluster's clients of one address prefix, or its flows of one
/// application key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct AffinityKey {
    /// The masked address, IPv4 mapped into IPv6, in two halves; or the key's hash and nothing.
    halves: [u64; 2],
    cluster: u16,
    is_application_key: bool,
}

impl AffinityKey {
    /// For the flows of an application key.
    pub(crate) fn of_key(key: u64, cluster: ClusterId) -> Self {
        Self { halves: [key, 0], cluster: cluster.0, is_application_key: true }
    }

    /// For the flows of a client.
    pub(crate) fn of_client(client: IpAddr, lengths: PrefixLengths, cluster: ClusterId) -> Self {
        let bits = lengths.mask(client).to_bits();
        Self {
            halves: [(bits >> 64) as u64, bits as u64],
            cluster: cluster.0,
            is_application_key: false,
        }
    }
}

impl AffinityKey {
    /// Tells keys of one place apart.
    fn stamp(&self) -> u32 {
        let mut hasher = XxHash64::with_seed(0);
        self.hash(&mut hasher);
        hasher.finish() as u32
    }
}

/// A verdict that names its endpoint for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeptVerdict {
    Forward(EndpointId),
    Reset,
    Drop,
}

/// What is kept of a decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    verdict: KeptVerdict,
    method: CompactMethod,
    /// The generation of the policy that decided.
    policy_generation: u32,
    /// Zero for an entry with a fixed end.
    sliding_ttl_ms: u32,
}

impl Kept {
    /// Whether its endpoint may be given flows.
    fn holds(&self, among: &Candidates) -> bool {
        match self.verdict {
            KeptVerdict::Forward(id) => among.find(id).is_some(),
            KeptVerdict::Reset | KeptVerdict::Drop => true,
        }
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            verdict: KeptVerdict::Drop,
            method: CompactMethod::default(),
            policy_generation: 0,
            sliding_ttl_ms: 0,
        }
    }
}

/// A [`Method`] in 16 bytes, so that an entry fits into one cache line.
#[derive(Debug, Clone, Copy, Default)]
struct CompactMethod {
    idle_timeout_ms: u32,
    throttle_kib_s: u32,
    tag: u32,
    announce: bool,
}

impl From<Method> for CompactMethod {
    fn from(method: Method) -> Self {
        Self {
            idle_timeout_ms: method.idle_timeout.map_or(0, millis),
            throttle_kib_s: method.throttle_kib_s.unwrap_or(0),
            tag: method.tag,
            announce: method.announce,
        }
    }
}

impl From<CompactMethod> for Method {
    fn from(compact: CompactMethod) -> Self {
        let idle = Duration::from_millis(compact.idle_timeout_ms.into());
        Self {
            idle_timeout: (!idle.is_zero()).then_some(idle),
            throttle_kib_s: (compact.throttle_kib_s != 0).then_some(compact.throttle_kib_s),
            announce: compact.announce,
            tag: compact.tag,
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// A kept decision that still holds.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    pub(crate) target: Option<&'a Endpoint>,
    pub(crate) verdict: KeptVerdict,
    pub(crate) method: Method,
    pub(crate) policy_generation: u64,
    pub(crate) expires: Instant,
    /// Whether the policy that made it is gone and its successor is to be asked once more.
    pub(crate) is_stale: bool,
}

/// The kept decisions of one worker.
#[derive(Debug)]
pub(crate) struct Affinity {
    table: KeptTable<AffinityKey, Kept>,
    board: Option<Arc<Board>>,
    /// By cluster.
    floors: Vec<Floor>,
}

/// What decisions of earlier policies are worth.
#[derive(Debug, Clone, Copy)]
struct Floor {
    /// Flushed are those below this generation,
    flushed: u32,
    /// stale those below this one.
    stale: u32,
}

/// What a kept decision is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    Valid,
    Stale,
    Nothing,
}

impl Affinity {
    /// `board` is what joins this worker to the others, if there are others.
    pub(crate) fn new(entries_max: u32, hash_key: [u64; 2], board: Option<Arc<Board>>) -> Self {
        let table = KeptTable::new(entries_max as usize, hash_key);
        Self { table, board, floors: Vec::new() }
    }

    /// A policy of this generation takes the place of another.
    pub(crate) fn on_swap(&mut self, cluster: ClusterId, generation: u64, on_swap: OnSwap) {
        let generation = u32::try_from(generation).unwrap_or(u32::MAX);
        if self.floors.len() <= cluster.index() {
            self.floors.resize(cluster.index() + 1, Floor { flushed: 0, stale: 0 });
        }
        let floor = &mut self.floors[cluster.index()];
        match on_swap {
            OnSwap::Keep => {}
            OnSwap::Revalidate => floor.stale = generation,
            OnSwap::Flush => floor.flushed = generation,
        }
    }

    fn worth(&self, key: &AffinityKey, kept: &Kept, among: &Candidates) -> Worth {
        let floor = self.floors.get(usize::from(key.cluster));
        let generation = kept.policy_generation;
        match floor {
            Some(floor) if generation < floor.flushed => Worth::Nothing,
            _ if !kept.holds(among) => Worth::Nothing,
            Some(floor) if generation < floor.stale => Worth::Stale,
            _ => Worth::Valid,
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
    }

    /// Where the table lies in memory.
    pub(crate) fn addresses(&self) -> Range<usize> {
        self.table.addresses()
    }

    pub(crate) fn len(&self) -> u32 {
        self.table.len() as u32
    }

    /// Whether room has become scarce.
    pub(crate) fn is_half_full(&self) -> bool {
        2 * self.table.len() >= self.table.capacity()
    }

    /// Whether there is certainly nothing to be found.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty() && self.board.is_none()
    }

    /// The decision kept for this key, if it is alive and its endpoint may be given flows.
    #[inline]
    pub(crate) fn find<'a>(
        &mut self,
        now: Instant,
        key: AffinityKey,
        among: &'a Candidates,
    ) -> Option<Found<'a>> {
        let known = self.known(now, &key);
        let worth = known.map_or(Worth::Nothing, |(kept, _)| self.worth(&key, &kept, among));
        let learned = if worth == Worth::Valid { None } else { self.learn(now, key, among, worth) };
        let (kept, mut expires) = learned.or_else(|| known.filter(|_| worth != Worth::Nothing))?;
        let is_stale = self.worth(&key, &kept, among) == Worth::Stale;
        let target = match kept.verdict {
            KeptVerdict::Forward(id) => among.find(id),
            KeptVerdict::Reset | KeptVerdict::Drop => None,
        };
        if kept.sliding_ttl_ms != 0 {
            // What stands on the board may be another worker's decision: it has been used now, and is
            // not to live as long as this one for that.
            let lasting = now + Duration::from_millis(kept.sliding_ttl_ms.into());
            expires = expires.max(lasting);
            self.prolong(now, &key, lasting);
        }
        Some(Found {
            target,
            verdict: kept.verdict,
            method: kept.method.into(),
            policy_generation: kept.policy_generation.into(),
            expires,
            is_stale,
        })
    }

    /// Takes over what another worker keeps for this client, if it is worth more than what this one
    /// has.
    #[cold]
    fn learn(
        &mut self,
        now: Instant,
        key: AffinityKey,
        among: &Candidates,
        than: Worth,
    ) -> Option<(Kept, Instant)> {
        let (kept, expires) = self.board.as_ref()?.find(now, &key)?;
        let worth = self.worth(&key, &kept, among);
        if worth == Worth::Nothing || worth == than {
            return None;
        }
        // Without room of its own the worker learns it again for the client's next flow.
        let _ = self.table.insert(now, key, kept, expires);
        Some((kept, expires))
    }

    /// What the worker has in its own table, and until when.
    #[inline]
    fn known(&mut self, now: Instant, key: &AffinityKey) -> Option<(Kept, Instant)> {
        let kept = *self.table.get(now, key)?;
        Some((kept, self.table.expires(key)?))
    }

    /// Keeps a decision for this key, in place of an earlier one.
    pub(crate) fn keep(
        &mut self,
        now: Instant,
        key: AffinityKey,
        entry: &NewEntry<'_>,
    ) -> Result<(), Full> {
        let NewEntry { decision, target, ttl, policy_generation } = *entry;
        let verdict = match (decision.verdict, target) {
            (Verdict::Forward(_), Some(endpoint)) => KeptVerdict::Forward(endpoint),
            (Verdict::Reset, _) => KeptVerdict::Reset,
            (Verdict::Drop, _) => KeptVerdict::Drop,
            (Verdict::Forward(_), None) => return Ok(()),
        };
        let kept = Kept {
            verdict,
            method: decision.method.into(),
            policy_generation: u32::try_from(policy_generation).unwrap_or(u32::MAX),
            sliding_ttl_ms: if decision.sliding { millis(ttl).max(1) } else { 0 },
        };
        self.table.insert(now, key, kept, now + ttl)?;
        if let Some(board) = &self.board {
            board.put(now, key, kept, now + ttl);
        }
        Ok(())
    }

    /// Gives up what is kept for this key, here and on the board.
    pub(crate) fn give_up(&mut self, key: &AffinityKey) {
        if let Some(board) = &self.board {
            board.remove(key);
        }
        self.table.remove(key);
    }

    /// A flow uses what is kept for its key: a decision that slides lives until then at least.
    pub(crate) fn on_used(&mut self, now: Instant, key: &AffinityKey, expires: Instant) {
        if self.known(now, key).is_some_and(|(kept, _)| kept.sliding_ttl_ms != 0) {
            self.prolong(now, key, expires);
        }
    }

    fn prolong(&mut self, now: Instant, key: &AffinityKey, expires: Instant) {
        self.table.extend(key, expires);
        if let Some(board) = &self.board {
            board.extend(now, key, expires);
        }
    }

    /// One more than the highest place in which something may be kept.
    pub(crate) fn places(&self) -> usize {
        self.table.places()
    }

    /// Shows what is kept in a place, if anything lives there.
    pub(crate) fn entry(&self, now: Instant, place: usize) -> Option<Entry> {
        let (key, kept, expires) = self.table.at(now, place)?;
        let (scope, client, hash) = if key.is_application_key {
            (Scope::Key, None, Some(key.halves[0]))
        } else {
            let bits = u128::from(key.halves[0]) << 64 | u128::from(key.halves[1]);
            (Scope::Client, Some(Ipv6Addr::from_bits(bits).to_canonical()), None)
        };
        let endpoint = match kept.verdict {
            KeptVerdict::Forward(id) => Some(id),
            KeptVerdict::Reset | KeptVerdict::Drop => None,
        };
        Some(Entry {
            id: EntryId::kept(place, key.stamp()),
            cluster: ClusterId(key.cluster),
            endpoint,
            policy_generation: kept.policy_generation.into(),
            kind: EntryKind::Kept(KeptEntry {
                scope,
                client,
                key: hash,
                denies: endpoint.is_none(),
                expires,
                sliding: kept.sliding_ttl_ms != 0,
                tag: kept.method.tag,
            }),
        })
    }

    /// Gives up what is kept in a place, here and on the board, if it is still what was meant.
    pub(crate) fn forget(&mut self, now: Instant, place: usize, stamp: u32) -> bool {
        let key = self.table.at(now, place).map(|(key, ..)| *key);
        let Some(key) = key.filter(|key| key.stamp() == stamp) else { return false };
        self.give_up(&key);
        true
    }
}

/// A decision to be kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewEntry<'a> {
    pub(crate) decision: &'a Decision,
    pub(crate) target: Option<EndpointId>,
    pub(crate) ttl: Duration,
    pub(crate) policy_generation: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::EndpointIndex;
    use crate::snapshot::Generation;

    fn key(address: &str, v4: u8, v6: u8) -> AffinityKey {
        AffinityKey::of_client(address.parse().unwrap(), PrefixLengths { v4, v6 }, ClusterId(0))
    }

    #[test]
    fn an_entry_fits_into_a_cache_line() {
        let affinity = Affinity::new(100_000, [0, 0], None);
        assert!(affinity.table.memory_bytes() <= 100_000 * 100);
    }

    #[test]
    fn clients_of_one_prefix_are_one_client() {
        assert_eq!(key("10.1.2.3", 24, 64), key("10.1.2.200", 24, 64));
        assert_ne!(key("10.1.2.3", 24, 64), key("10.1.3.3", 24, 64));
        assert_ne!(key("10.1.2.3", 32, 64), key("10.1.2.4", 32, 64));
        assert_eq!(key("2001:db8::1", 32, 64), key("2001:db8::ffff:1", 32, 64));
        assert_ne!(key("2001:db8::1", 32, 128), key("2001:db8::2", 32, 128));
        assert_eq!(key("1.2.3.4", 0, 0), key("9.9.9.9", 0, 0));
        assert_eq!(key("::1", 0, 0), key("ffff::", 0, 0));
    }

    #[test]
    fn neighbours_of_two_clusters_are_told_apart() {
        let stamps = (0..4).flat_map(|cluster| (0..=255).map(move |host| (cluster, host)));
        let stamp = |(cluster, host)| {
            let client = IpAddr::from([192, 0, 2, host]);
            AffinityKey::of_client(client, PrefixLengths { v4: 32, v6: 64 }, ClusterId(cluster))
                .stamp()
        };
        let all: Vec<u32> = stamps.map(stamp).collect();
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn an_ipv4_client_is_never_taken_for_an_ipv6_one() {
        assert_ne!(key("1.2.3.4", 0, 96), key("::", 0, 96));
    }

    #[test]
    fn a_method_survives_being_kept() {
        let method = Method {
            idle_timeout: Some(Duration::from_millis(1_500)),
            throttle_kib_s: Some(64),
            announce: true,
            tag: 9,
        };
        assert_eq!(Method::from(CompactMethod::from(method)), method);
        assert_eq!(Method::from(CompactMethod::from(Method::DEFAULT)), Method::DEFAULT);
    }

    fn candidates() -> Candidates {
        let endpoint = |n: u32| Endpoint {
            id: EndpointId(n),
            address: "10.0.0.1:80".parse().unwrap(),
            weight: 1,
            flows_max: u32::MAX,
            load: Arc::default(),
        };
        let endpoints = (0..3).map(endpoint).collect();
        Candidates { generation: Generation(1), endpoints, table: None }
    }

    /// Two workers that share a board, and a decision for the third endpoint kept by the first.
    fn two_workers(sliding: bool) -> (Affinity, Affinity) {
        let board = Arc::new(Board::new(100, [3, 4]));
        let [mut one, other] = [(); 2].map(|()| Affinity::new(100, [1, 2], Some(board.clone())));
        let decision = Decision {
            ttl: Duration::from_secs(10),
            sliding,
            ..Decision::forward(EndpointIndex(2))
        };
        let among = candidates();
        let target = among.get(EndpointIndex(2));
        let target = target.map(|endpoint| endpoint.id);
        let entry =
            NewEntry { decision: &decision, target, ttl: decision.ttl, policy_generation: 1 };
        one.keep(Instant::ZERO, client_key(), &entry).unwrap();
        (one, other)
    }

    fn client_key() -> AffinityKey {
        AffinityKey::of_client(CLIENT, PrefixLengths { v4: 32, v6: 64 }, ClusterId(0))
    }

    const CLIENT: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 1));

    fn found(worker: &mut Affinity, seconds: u64) -> Option<KeptVerdict> {
        found_among(worker, seconds, &candidates())
    }

    fn found_among(worker: &mut Affinity, seconds: u64, among: &Candidates) -> Option<KeptVerdict> {
        let now = Instant::from_millis(seconds * 1_000);
        worker.find(now, client_key(), among).map(|found| found.verdict)
    }

    #[test]
    fn after_an_endpoint_is_gone_the_workers_agree_on_the_next() {
        let (mut one, mut other) = two_workers(false);
        assert!(found(&mut one, 1).is_some() && found(&mut other, 1).is_some());
        let mut fewer = candidates();
        fewer.endpoints = fewer.endpoints[..2].into();
        assert_eq!(found_among(&mut other, 2, &fewer), None);
        let decision =
            Decision { ttl: Duration::from_secs(10), ..Decision::forward(EndpointIndex(0)) };
        let target = fewer.get(EndpointIndex(0));
        let target = target.map(|endpoint| endpoint.id);
        let entry =
            NewEntry { decision: &decision, target, ttl: decision.ttl, policy_generation: 1 };
        other.keep(Instant::from_millis(2_000), client_key(), &entry).unwrap();
        let agreed = Some(KeptVerdict::Forward(EndpointId(0)));
        assert_eq!(found_among(&mut one, 3, &fewer), agreed);
        assert_eq!(found(&mut one, 4), agreed, "and stay with it when the first is back");
    }

    #[test]
    fn what_one_worker_keeps_the_other_knows_until_it_expires() {
        let (_, mut other) = two_workers(false);
        assert_eq!(found(&mut other, 9), Some(KeptVerdict::Forward(EndpointId(2))));
        assert_eq!(found(&mut other, 10), None);
    }

    #[test]
    fn a_sliding_decision_used_by_one_worker_lives_on_for_the_other() {
        let (mut one, mut other) = two_workers(true);
        assert!(found(&mut one, 9).is_some());
        assert!(found(&mut other, 18).is_some());
        assert!(found(&mut one, 18).is_some(), "its own copy has not expired");
        assert!(found(&mut other, 27).is_some());
    }

    #[test]
    fn another_worker_s_decision_is_used_no_longer_for_the_long_life_of_one_s_own() {
        let (mut one, mut other) = two_workers(true);
        let second = |n: u64| Instant::from_millis(n * 1_000);
        one.on_used(second(1), &client_key(), second(30));
        let ttl = Duration::from_secs(10);
        let decision = Decision { ttl, sliding: true, ..Decision::forward(EndpointIndex(0)) };
        let target = Some(EndpointId(0));
        let entry = NewEntry { decision: &decision, target, ttl, policy_generation: 1 };
        other.keep(second(2), client_key(), &entry).unwrap();
        assert!(found(&mut one, 3).is_some());
        let mut third = Affinity::new(100, [1, 2], other.board.clone());
        assert_eq!(found(&mut third, 14), None);
    }

    #[test]
    fn a_worker_that_finds_a_shard_taken_does_not_wait() {
        let (_, mut other) = two_workers(false);
        let board = other.board.clone().unwrap();
        let key = client_key();
        let guard = board.lock(&key);
        assert_eq!(found(&mut other, 1), None);
        drop(guard);
        assert!(found(&mut other, 1).is_some());
    }
}
