//! Limits that hold over all workers together.
//!
//! Written once or twice per flow, never per packet, with relaxed atomics: a limit that several
//! workers reach in the same microsecond may let through one flow more per worker, and never loses
//! count.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::hash::Hasher;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use siphasher::sip::SipHasher13;

use crate::snapshot::{PrefixLengths, SharedCount};
use crate::time::Instant;

/// Flows of all listeners together.
#[derive(Debug, Clone)]
pub struct AllFlows {
    /// How many there may be; [`u32::MAX`] if nobody says.
    pub max: u32,
    /// How many there are. It is counted even where it is not limited, so that a limit can be set
    /// while there are flows.
    pub active: Arc<SharedCount>,
}

impl AllFlows {
    /// As many as there may be without a limit.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { max: u32::MAX, active: Arc::default() }
    }

    pub(crate) fn try_add(&self) -> bool {
        self.active.try_increment(self.max)
    }

    pub(crate) fn remove(&self) {
        self.active.decrement();
    }
}

/// How many things may happen per second.
///
/// The generic cell rate algorithm (ITU-T I.371, virtual scheduling) in one word: the time at which
/// everything admitted so far is on schedule. It may lie ahead by the length of the burst.
#[derive(Debug)]
#[repr(align(64))]
pub struct SharedRate {
    on_schedule: AtomicU64,
    steps: Steps,
}

impl SharedRate {
    /// Admits `per_second` things a second, and up to as many at once after a second without any.
    /// 0 is taken for 1.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self { on_schedule: AtomicU64::new(0), steps: Steps::new(per_second) }
    }

    /// Admits one more if the rate allows it; tells whether it did.
    pub fn try_take(&self, now: Instant) -> bool {
        let admit = |on_schedule| self.steps.next(now, on_schedule);
        self.on_schedule.fetch_update(Relaxed, Relaxed, admit).is_ok()
    }
}

/// How far each thing that is admitted puts off the time at which all of them are on schedule, and
/// how far that may lie ahead.
#[derive(Debug)]
struct Steps {
    interval_nanos: u64,
    burst: Duration,
}

impl Steps {
    fn new(per_second: u32) -> Self {
        let interval_nanos = 1_000_000_000 / u64::from(per_second.max(1));
        Self { interval_nanos, burst: Duration::from_secs(1) }
    }

    /// The time on schedule after one more, if that is admitted.
    fn next(&self, now: Instant, on_schedule: u64) -> Option<u64> {
        let next = on_schedule.max(now.as_nanos()) + self.interval_nanos;
        (Instant::from_nanos(next) <= now + self.burst).then_some(next)
    }
}

/// How often each client may do something per second, for as many clients as there are.
///
/// A [`SharedRate`] for each place of a count-min sketch like that of [`SourceCounts`], and with the
/// same promise: the rate is never exceeded, and a client is refused too early only if others share
/// both of its places.
#[derive(Debug)]
pub struct SourceRates {
    rows: [Box<[AtomicU64]>; 2],
    places: Places,
    steps: Steps,
}

impl SourceRates {
    /// Admits `per_second` things a second of each client, and as many at once after a second
    /// without any, for some `clients` clients at a time: two words of eight bytes for each.
    /// `hash_key` must be secret. 0 is taken for 1.
    #[must_use]
    pub fn new(per_second: u32, clients: u32, prefix: PrefixLengths, hash_key: [u64; 2]) -> Self {
        let places = Places::new(clients, prefix, hash_key);
        let row = || (0..places.width).map(|_| AtomicU64::new(0)).collect();
        Self { rows: [row(), row()], places, steps: Steps::new(per_second) }
    }

    /// Admits one more of this client if its rate allows it; tells whether it did.
    pub fn try_take(&self, now: Instant, client: IpAddr) -> bool {
        let [first, second] = self.places.of(client);
        let places = [&self.rows[0][first], &self.rows[1][second]];
        let on_schedule = places.iter().map(|place| place.load(Relaxed)).min().unwrap_or(0);
        let next = self.steps.next(now, on_schedule);
        if let Some(next) = next {
            places.iter().for_each(|place| _ = place.fetch_max(next, Relaxed));
        }
        next.is_some()
    }
}

/// How many flows each client has, for as many clients as there are.
///
/// A count-min sketch (Cormode and Muthukrishnan 2005) of two rows: a fixed amount of memory, one
/// count in each row for every client, the smaller of which is its number or, where clients fall on
/// the same counts, more. So the limit is never exceeded, and a client is refused too early only if
/// others share both of its counts.
#[derive(Debug)]
pub struct SourceCounts {
    rows: [Box<[AtomicU32]>; 2],
    places: Places,
    /// It may change while there are flows.
    max: AtomicU32,
}

impl SourceCounts {
    /// Allows `max` flows per client, for some `clients` clients at a time: two counts of four bytes
    /// for each. `hash_key` must be secret.
    #[must_use]
    pub fn new(max: u32, clients: u32, prefix: PrefixLengths, hash_key: [u64; 2]) -> Self {
        let places = Places::new(clients, prefix, hash_key);
        let row = || (0..places.width).map(|_| AtomicU32::new(0)).collect();
        Self { rows: [row(), row()], places, max: AtomicU32::new(max) }
    }

    /// From here on a client may have so many. Those that have more keep them.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Relaxed);
    }

    /// Counts one more flow of this client if it may have one; tells whether it may.
    pub fn try_add(&self, client: IpAddr) -> bool {
        let counts = self.counts(client);
        let fewest = counts.map(|count| count.fetch_add(1, Relaxed)).into_iter().min();
        let admitted = fewest.is_some_and(|fewest| fewest < self.max.load(Relaxed));
        if !admitted {
            self.remove(client);
        }
        admitted
    }

    /// Counts one more flow of this client, which may be more than it may have.
    pub(crate) fn add(&self, client: IpAddr) {
        for count in self.counts(client) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// One of this client's flows has ended.
    pub fn remove(&self, client: IpAddr) {
        for count in self.counts(client) {
            // A flow that is older than the limit was never counted.
            let _ = count.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
        }
    }

    fn counts(&self, client: IpAddr) -> [&AtomicU32; 2] {
        let [first, second] = self.places.of(client);
        [&self.rows[0][first], &self.rows[1][second]]
    }
}

/// Where a client stands in each of two rows.
#[derive(Debug)]
struct Places {
    hasher: SipHasher13,
    prefix: PrefixLengths,
    width: usize,
}

impl Places {
    fn new(clients: u32, prefix: PrefixLengths, hash_key: [u64; 2]) -> Self {
        let width = clients.max(1_024).next_power_of_two() as usize;
        let hasher = SipHasher13::new_with_keys(hash_key[0], hash_key[1]);
        Self { hasher, prefix, width }
    }

    fn of(&self, client: IpAddr) -> [usize; 2] {
        let mut hasher = self.hasher;
        hasher.write_u128(self.prefix.mask(client).to_bits());
        let (hash, mask) = (hasher.finish(), self.width - 1);
        [hash as usize & mask, (hash >> 32) as usize & mask]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    #[test]
    fn a_rate_admits_its_burst_and_then_one_per_interval() {
        let rate = SharedRate::new(10);
        let now = Instant::from_millis(5_000);
        let admitted = |now| (0..100).filter(|_| rate.try_take(now)).count();
        assert_eq!(admitted(now), 10);
        assert_eq!(admitted(now + Duration::from_millis(99)), 0);
        assert_eq!(admitted(now + Duration::from_millis(300)), 3);
        assert_eq!(
            admitted(now + Duration::from_secs(60)),
            10,
            "what was not used is not saved up"
        );
    }

    fn counts(max: u32) -> SourceCounts {
        SourceCounts::new(max, 1_000, PrefixLengths { v4: 32, v6: 64 }, [1, 2])
    }

    #[test]
    fn a_client_has_no_more_flows_than_it_may() {
        let counts = counts(3);
        let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!((0..5).filter(|_| counts.try_add(client)).count(), 3);
        counts.remove(client);
        assert!(counts.try_add(client));
        assert!(!counts.try_add(client));
    }

    #[test]
    fn addresses_of_one_ipv6_prefix_are_one_client() {
        let counts = counts(1);
        assert!(counts.try_add("2001:db8::1".parse().unwrap()));
        assert!(!counts.try_add("2001:db8::2".parse().unwrap()));
        assert!(counts.try_add("2001:db8:0:1::1".parse().unwrap()));
    }

    #[test]
    fn one_client_at_its_limit_is_no_obstacle_to_others() {
        let counts = counts(4);
        let greedy = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        while counts.try_add(greedy) {}
        let others = (0..200).map(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)));
        assert_eq!(others.filter(|client| counts.try_add(*client)).count(), 200);
    }

    #[test]
    fn each_client_has_a_rate_of_its_own() {
        let prefix = PrefixLengths { v4: 32, v6: 64 };
        let rates = SourceRates::new(5, 1_000, prefix, [1, 2]);
        let client = |last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
        let now = Instant::from_millis(5_000);
        let admitted = |now, last| (0..9).filter(|_| rates.try_take(now, client(last))).count();
        assert_eq!(admitted(now, 1), 5);
        assert_eq!(admitted(now, 1), 0);
        assert_eq!(admitted(now, 2), 5, "another client has not used anything");
        assert_eq!(admitted(now + Duration::from_millis(400), 1), 2);
        assert_eq!(admitted(now + Duration::from_secs(60), 1), 5);
    }
}
