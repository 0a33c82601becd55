//! How long the turns of a worker's loop take.
//!
//! A turn begins when the kernel has something to tell and ends when the worker waits again: whatever
//! comes meanwhile waits for so long. So this is the first thing to look at when flows are slow.

use std::array;
use std::time::Duration;

/// The first bucket's upper bound is 2 to this power, in nanoseconds (16 µs); each next is twice as
/// wide.
const FIRST_BOUND_BITS: u32 = 14;
/// The number of buckets, the last (over 16.8 ms) without a bound.
const BUCKETS: usize = 12;

/// A worker's turns since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turns {
    /// By the time they took, not cumulative.
    buckets: [u64; BUCKETS],
    nanos: u64,
    completions: u64,
}

impl Turns {
    /// A turn is over that took so long and had so many completions.
    #[inline]
    pub fn on_turn(&mut self, took: Duration, completions: usize) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bits = u64::BITS - nanos.saturating_sub(1).leading_zeros();
        let bucket = bits.saturating_sub(FIRST_BOUND_BITS) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.nanos = self.nanos.saturating_add(nanos);
        self.completions += completions as u64;
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How long they took, all together.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }

    /// What the kernel told in them, all together.
    pub fn completions(&self) -> u64 {
        self.completions
    }

    /// The histogram as Prometheus wants it: each bucket's upper bound in seconds (the last is
    /// infinite), and how many turns took that long or less.
    pub fn seconds(&self) -> [(f64, u64); BUCKETS] {
        let mut sum = 0;
        array::from_fn(|bucket| {
            sum += self.buckets[bucket];
            let is_last = bucket == BUCKETS - 1;
            let bound = Duration::from_nanos(1 << (FIRST_BOUND_BITS + bucket as u32));
            (if is_last { f64::INFINITY } else { bound.as_secs_f64() }, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_in_the_first_bucket_that_it_does_not_exceed() {
        let mut turns = Turns::default();
        for nanos in [0, 1, 1 << 14, (1 << 14) + 1, 1 << 24, (1 << 24) + 1, u64::MAX] {
            turns.on_turn(Duration::from_nanos(nanos), 2);
        }
        let seconds = turns.seconds();
        assert_eq!(seconds[0], (16_384e-9, 3));
        assert_eq!(seconds[1], (32_768e-9, 4));
        assert_eq!(seconds[9], (8_388_608e-9, 4));
        assert_eq!(seconds[10], (16_777_216e-9, 5));
        assert_eq!(seconds[11], (f64::INFINITY, 7));
        assert_eq!((turns.count(), turns.completions()), (7, 14));
        assert_eq!(turns.total(), Duration::from_nanos(u64::MAX), "it stays at what it can say");
    }
}
