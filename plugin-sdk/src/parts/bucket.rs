//! A token bucket, as the generic cell rate algorithm has it (ITU-T I.371, virtual scheduling).
//!
//! Instead of tokens it keeps one time: when the bucket would be full again. That needs no refill,
//! no remainder, and no more than one number.

/// Lets so many through per second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// What one token takes to come back.
    interval_ns: u64,
    /// What a full bucket takes to come back.
    tolerance_ns: u64,
    /// When the bucket is full again.
    full_ns: u64,
}

impl TokenBucket {
    /// A full bucket that holds `burst` tokens and regains `per_second`. Both count as 1 at least.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval_ns = 1_000_000_000 / u64::from(per_second.max(1));
        Self { interval_ns, tolerance_ns: interval_ns * u64::from(burst.max(1)), full_ns: 0 }
    }

    /// Takes this many tokens if they are all there.
    pub fn take(&mut self, now_ms: u64, tokens: u32) -> bool {
        let now_ns = now_ms.saturating_mul(1_000_000);
        let cost_ns = self.interval_ns.saturating_mul(tokens.into());
        let full_ns = self.full_ns.max(now_ns).saturating_add(cost_ns);
        let is_there = full_ns - now_ns <= self.tolerance_ns;
        if is_there {
            self.full_ns = full_ns;
        }
        is_there
    }

    /// How many tokens are there.
    #[must_use]
    pub fn tokens(&self, now_ms: u64) -> u32 {
        let missing_ns = self.full_ns.saturating_sub(now_ms.saturating_mul(1_000_000));
        let left_ns = self.tolerance_ns.saturating_sub(missing_ns);
        u32::try_from(left_ns / self.interval_ns.max(1)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_through_and_then_the_rate() {
        let mut bucket = TokenBucket::new(10, 3);
        let taken: Vec<_> = (0..5).map(|_| bucket.take(1_000, 1)).collect();
        assert_eq!(taken, [true, true, true, false, false]);
        assert!(!bucket.take(1_099, 1));
        assert!(bucket.take(1_100, 1));
        assert!(!bucket.take(1_100, 1));
    }

    #[test]
    fn over_a_long_time_the_rate_holds_exactly() {
        let mut bucket = TokenBucket::new(7, 1);
        let taken = (0..100_000).filter(|&now_ms| bucket.take(now_ms, 1)).count();
        assert!((698..=701).contains(&taken), "{taken}");
    }

    #[test]
    fn several_tokens_are_taken_together_or_not_at_all() {
        let mut bucket = TokenBucket::new(1, 4);
        assert!(bucket.take(0, 3));
        assert!(!bucket.take(0, 2));
        assert_eq!(bucket.tokens(0), 1);
        assert!(bucket.take(0, 1));
        assert!(!bucket.take(0, 5), "more than it ever holds");
    }

    #[test]
    fn a_rest_fills_it_to_the_brim_and_no_further() {
        let mut bucket = TokenBucket::new(1_000, 5);
        assert!(bucket.take(0, 5));
        assert_eq!(bucket.tokens(0), 0);
        assert_eq!(bucket.tokens(2), 2);
        assert_eq!(bucket.tokens(u64::MAX / 2_000_000), 5);
    }
}
