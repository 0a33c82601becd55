//! When to ask again: when the ttl ends, and more and more slowly while there is no answer.

use std::time::Duration;

use crate::plan::DnsPlan;
use crate::random;

/// How often one name is asked for.
#[derive(Debug)]
pub(super) struct Pace {
    refresh_min: Duration,
    refresh_max: Duration,
    retry_max: Duration,
    /// Since the last answer.
    failures: u32,
}

impl Pace {
    pub(super) fn new(plan: &DnsPlan) -> Self {
        let DnsPlan { refresh_min, refresh_max, retry_max, .. } = *plan;
        Self { refresh_min, refresh_max, retry_max, failures: 0 }
    }

    /// How long an answer with this ttl is waited upon.
    pub(super) fn after_answer(&mut self, ttl: Duration) -> Duration {
        self.failures = 0;
        jittered(ttl.clamp(self.refresh_min, self.refresh_max))
    }

    /// How long after a failure.
    pub(super) fn after_failure(&mut self) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failures);
        self.failures = self.failures.saturating_add(1);
        jittered(self.refresh_min.saturating_mul(doubled).min(self.retry_max))
    }
}

/// Up to a tenth more, never less: before the ttl has ended a resolver says the same again. Names that
/// were once asked for together drift apart.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + 0.1 * random::fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn pace() -> Pace {
        let (refresh_min, refresh_max, retry_max) = (seconds(2), seconds(60), seconds(10));
        Pace { refresh_min, refresh_max, retry_max, failures: 0 }
    }

    fn assert_about(wait: Duration, expected: u64) {
        let expected = seconds(expected);
        assert!((expected..=expected.mul_f64(1.1)).contains(&wait), "{wait:?} for {expected:?}");
    }

    #[test]
    fn the_ttl_counts_between_floor_and_ceiling() {
        for (ttl, expected) in [(0, 2), (1, 2), (30, 30), (86_400, 60), (u64::MAX / 4, 60)] {
            assert_about(pace().after_answer(seconds(ttl)), expected);
        }
    }

    #[test]
    fn failures_are_followed_more_and_more_slowly_until_there_is_an_answer() {
        let mut pace = pace();
        for expected in [2, 4, 8, 10, 10] {
            assert_about(pace.after_failure(), expected);
        }
        for _ in 0..100 {
            assert_about(pace.after_failure(), 10);
        }
        assert_about(pace.after_answer(seconds(5)), 5);
        assert_about(pace.after_failure(), 2);
    }
}
