//! What is counted about a policy.
//!
//! Relaxed atomics, because a scrape reads them while a worker writes. They are meant to have one
//! writer: give each worker its own [`PolicyStats`] and add up the [`PolicyCounts`] when asked, or
//! the workers fight over a cache line for every new flow.
//!
//! Every call is timed. Two readings of the processor's counter cost some 30 ns, under 1 % of what a
//! new flow costs anyhow, and the calls worth knowing about are the rare slow ones that sampling
//! would miss.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::error::FaultKind;

/// The number of buckets of the decision times, the last without a bound.
pub const DECISION_BUCKETS: usize = 16;
/// The first bucket's upper bound is 2 to this power, in nanoseconds; each next is twice as wide.
const FIRST_BOUND_BITS: u32 = 8;

/// Counters that a plugin may use as it likes.
pub const OWN_COUNTERS: usize = 16;

/// The live counters of one policy on one worker.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PolicyStats {
    deferred: AtomicU64,
    throttled: AtomicU64,
    faults: [AtomicU64; FaultKind::ALL.len()],
    remade: AtomicU64,
    remakes_failed: AtomicU64,
    lines_dropped: AtomicU64,
    own: [AtomicU64; OWN_COUNTERS],
    nanos: AtomicU64,
    buckets: [AtomicU64; DECISION_BUCKETS],
}

impl PolicyStats {
    /// Reads all counters, each for itself.
    #[must_use]
    pub fn snapshot(&self) -> PolicyCounts {
        PolicyCounts {
            deferred: self.deferred.load(Relaxed),
            throttled: self.throttled.load(Relaxed),
            faults: self.faults.each_ref().map(|count| count.load(Relaxed)),
            remade: self.remade.load(Relaxed),
            remakes_failed: self.remakes_failed.load(Relaxed),
            lines_dropped: self.lines_dropped.load(Relaxed),
            own: self.own.each_ref().map(|count| count.load(Relaxed)),
            decision_nanos: self.nanos.load(Relaxed),
            decisions: self.buckets.each_ref().map(|count| count.load(Relaxed)),
        }
    }

    pub(crate) fn on_call(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&self.nanos, nanos);
        add(&self.buckets[bucket_of(nanos)], 1);
    }

    pub(crate) fn on_deferred(&self) {
        self.deferred.fetch_add(1, Relaxed);
    }

    pub(crate) fn on_throttled(&self) {
        self.throttled.fetch_add(1, Relaxed);
    }

    pub(crate) fn on_fault(&self, kind: FaultKind) {
        self.faults[kind.index()].fetch_add(1, Relaxed);
    }

    pub(crate) fn on_remade(&self) {
        self.remade.fetch_add(1, Relaxed);
    }

    pub(crate) fn on_remake_failed(&self) {
        self.remakes_failed.fetch_add(1, Relaxed);
    }

    /// Adds to one of the plugin's own counters, if there is such a one.
    pub(crate) fn on_counted(&self, counter: u32, by: u64) {
        if let Some(count) = self.own.get(counter as usize) {
            count.fetch_add(by, Relaxed);
        }
    }

    pub(crate) fn on_line_dropped(&self) {
        self.lines_dropped.fetch_add(1, Relaxed);
    }
}

/// What the counters said at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PolicyCounts {
    /// Answers `defer`: the guest left the decision to the fallback.
    pub deferred: u64,
    /// Flows on which the guest was not asked, because plugins had used up their share of the core.
    pub throttled: u64,
    /// By [`FaultKind::index`]. Faults while an instance is re-made are among them.
    pub faults: [u64; FaultKind::ALL.len()],
    /// Broken instances that were replaced.
    pub remade: u64,
    /// Attempts to do so that failed.
    pub remakes_failed: u64,
    /// Log lines that were over the limit.
    pub lines_dropped: u64,
    /// What the plugin counts for itself.
    pub own: [u64; OWN_COUNTERS],
    /// Nanoseconds in all calls of `decide` together.
    pub decision_nanos: u64,
    /// Calls of `decide` by the time they took, not cumulative.
    pub decisions: [u64; DECISION_BUCKETS],
}

impl PolicyCounts {
    /// How often the guest was asked.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.decisions.iter().sum()
    }

    /// How often it failed in this way.
    #[must_use]
    pub fn faults_of(&self, kind: FaultKind) -> u64 {
        self.faults[kind.index()]
    }

    /// How often it failed.
    #[must_use]
    pub fn faults_total(&self) -> u64 {
        self.faults.iter().sum()
    }

    /// The histogram as Prometheus wants it: each bucket's upper bound in seconds (the last is
    /// infinite) and how many calls took that long or less.
    pub fn decision_seconds(&self) -> impl Iterator<Item = (f64, u64)> {
        self.decisions.into_iter().enumerate().scan(0, |sum, (bucket, count)| {
            *sum += count;
            Some((bound_seconds(bucket), *sum))
        })
    }

    /// What half of the calls of `decide` took at most; `None` if there were none.
    #[must_use]
    pub fn p50(&self) -> Option<Duration> {
        self.quantile(50)
    }

    /// What 99 of 100 calls of `decide` took at most; `None` if there were none.
    #[must_use]
    pub fn p99(&self) -> Option<Duration> {
        self.quantile(99)
    }

    /// What so many of 100 calls took at most. Inside a bucket calls are taken to be spread evenly;
    /// of the last, which has no end, its beginning is told.
    fn quantile(&self, percent: u64) -> Option<Duration> {
        let calls = self.calls();
        let rank = (calls * percent).div_ceil(100).max(1);
        let mut before = 0;
        for (bucket, &count) in self.decisions.iter().enumerate() {
            if before + count >= rank {
                let [from, to] = [lower_bound(bucket), upper_bound(bucket)];
                return Some(from + (to - from).mul_f64((rank - before) as f64 / count as f64));
            }
            before += count;
        }
        None
    }

    /// Adds another worker's counts to these.
    pub fn add(&mut self, other: &Self) {
        self.deferred += other.deferred;
        self.throttled += other.throttled;
        self.remade += other.remade;
        self.remakes_failed += other.remakes_failed;
        self.lines_dropped += other.lines_dropped;
        self.decision_nanos += other.decision_nanos;
        add_each(&mut self.faults, &other.faults);
        add_each(&mut self.own, &other.own);
        add_each(&mut self.decisions, &other.decisions);
    }
}

fn add_each(to: &mut [u64], from: &[u64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// Adds for the one writer that there is: cheaper than an addition that others could interrupt.
fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
}

/// The first bucket whose bound is not below `nanos`.
fn bucket_of(nanos: u64) -> usize {
    let bits = u64::BITS - nanos.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(FIRST_BOUND_BITS) as usize).min(DECISION_BUCKETS - 1)
}

fn bound_seconds(bucket: usize) -> f64 {
    if bucket == DECISION_BUCKETS - 1 {
        return f64::INFINITY;
    }
    bound(bucket).as_secs_f64()
}

fn bound(bucket: usize) -> Duration {
    Duration::from_nanos(1 << (FIRST_BOUND_BITS as usize + bucket))
}

fn lower_bound(bucket: usize) -> Duration {
    bucket.checked_sub(1).map_or(Duration::ZERO, bound)
}

/// The last bucket ends nowhere; as far as anybody knows, where it begins.
fn upper_bound(bucket: usize) -> Duration {
    bound(bucket.min(DECISION_BUCKETS - 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_not_above_its_bound() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(256), 0);
        assert_eq!(bucket_of(257), 1);
        assert_eq!(bucket_of(512), 1);
        assert_eq!(bucket_of(513), 2);
        assert_eq!(bucket_of(u64::MAX), DECISION_BUCKETS - 1);
    }

    #[test]
    fn the_histogram_is_cumulative_and_ends_with_everything() {
        let stats = PolicyStats::default();
        for nanos in [100, 300, 300, 10_000_000_000] {
            stats.on_call(Duration::from_nanos(nanos));
        }
        let buckets: Vec<_> = stats.snapshot().decision_seconds().collect();
        assert_eq!(buckets[0], (256e-9, 1));
        assert_eq!(buckets[1], (512e-9, 3));
        assert_eq!(buckets[DECISION_BUCKETS - 2].1, 3);
        assert_eq!(buckets[DECISION_BUCKETS - 1], (f64::INFINITY, 4));
    }

    #[test]
    fn quantiles_lie_where_their_calls_do() {
        let stats = PolicyStats::default();
        assert_eq!(stats.snapshot().p50(), None);
        for _ in 0..98 {
            stats.on_call(Duration::from_nanos(300));
        }
        stats.on_call(Duration::from_nanos(1_000));
        stats.on_call(Duration::from_secs(10));
        let counts = stats.snapshot();
        let p50 = counts.p50().unwrap();
        assert!(p50 > Duration::from_nanos(256) && p50 < Duration::from_nanos(512), "{p50:?}");
        assert_eq!(counts.p99(), Some(Duration::from_nanos(1_024)));
        assert_eq!(counts.quantile(100), Some(bound(DECISION_BUCKETS - 2)));
    }

    #[test]
    fn counts_of_several_workers_add_up() {
        let stats = PolicyStats::default();
        stats.on_fault(FaultKind::Memory);
        stats.on_call(Duration::from_nanos(5));
        let mut sum = stats.snapshot();
        sum.add(&stats.snapshot());
        assert_eq!(sum.faults_of(FaultKind::Memory), 2);
        assert_eq!((sum.calls(), sum.decision_nanos), (2, 10));
    }
}
