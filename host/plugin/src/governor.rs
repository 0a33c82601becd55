//! How much of a worker's core its plugins may have together.
//!
//! A plugin within its deadlines can still be slow, and a flood of new flows then makes a worker do
//! nothing but ask. The governor is a token bucket of time: so many hundredths of the time that
//! passes flow in, what calls take is taken out, and while it is in debt nobody is asked and the
//! fallbacks decide. Established flows thus keep at least the rest of the core.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use pointsman_core::Instant;

/// How much may be saved up: a burst of new flows after a quiet time is not held against anybody.
const BURST_NANOS: i64 = 10_000_000;
/// From here on there is nothing to govern.
const PERCENT_ALL: u32 = 100;

/// One worker's bucket, which all its plugins share.
///
/// Atomic only because it goes from thread to thread with the policies that share it: it has one
/// writer, the worker.
#[derive(Debug)]
pub struct Governor {
    percent: u32,
    /// What is left, in nanoseconds; a debt below 0.
    left: AtomicI64,
    /// When it was last filled up, in nanoseconds.
    filled: AtomicU64,
    /// Whose bucket it is, if it is another's.
    of: Option<Arc<Governor>>,
}

impl Governor {
    /// A full bucket that gains `percent` of the time that passes. From 100 on there is no limit.
    #[must_use]
    pub fn new(percent: u32) -> Self {
        let (left, filled) = (AtomicI64::new(BURST_NANOS), AtomicU64::new(0));
        Self { percent, left, filled, of: None }
    }

    /// For a policy on trial: it takes from the same bucket, and only while that is more than half
    /// full, so that those that decide never want for what it has taken.
    #[must_use]
    pub fn yielding(of: &Arc<Self>) -> Self {
        Self { of: Some(Arc::clone(of)), ..Self::new(of.percent) }
    }

    /// Whether a plugin may be asked at this time.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        match &self.of {
            Some(of) => of.has_left(now, BURST_NANOS / 2),
            None => self.has_left(now, 0),
        }
    }

    fn has_left(&self, now: Instant, reserve: i64) -> bool {
        if self.percent >= PERCENT_ALL {
            return true;
        }
        self.fill(now.as_nanos());
        self.left.load(Relaxed) > reserve
    }

    /// Takes out what a call has taken.
    pub(crate) fn charge(&self, took: Duration) {
        if let Some(of) = &self.of {
            return of.charge(took);
        }
        if self.percent < PERCENT_ALL {
            let took = i64::try_from(took.as_nanos()).unwrap_or(i64::MAX);
            self.left.store(self.left.load(Relaxed).saturating_sub(took), Relaxed);
        }
    }

    /// Makes a call and takes out what it has taken.
    pub(crate) fn charge_for<T>(&self, call: impl FnOnce() -> T) -> T {
        let begun = quanta::Instant::now();
        let answer = call();
        self.charge(begun.elapsed());
        answer
    }

    fn fill(&self, now: u64) {
        let filled = self.filled.load(Relaxed);
        if now <= filled {
            return;
        }
        self.filled.store(now, Relaxed);
        let gained = u128::from(now - filled) * u128::from(self.percent) / u128::from(PERCENT_ALL);
        let gained = i64::try_from(gained).unwrap_or(i64::MAX);
        self.left.store(self.left.load(Relaxed).saturating_add(gained).min(BURST_NANOS), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_is_allowed_and_then_only_the_share() {
        let governor = Governor::new(10);
        assert!(governor.allows(at(1_000)));
        governor.charge(millis(9));
        assert!(governor.allows(at(1_000)), "a millisecond of the burst is left");
        governor.charge(millis(3));
        assert!(!governor.allows(at(1_000)));
        assert!(!governor.allows(at(1_020)), "two milliseconds of debt are 20 at a tenth");
        assert!(governor.allows(at(1_021)));
    }

    #[test]
    fn what_is_saved_up_has_a_bound() {
        let governor = Governor::new(50);
        assert!(governor.allows(at(1_000_000)));
        governor.charge(millis(10));
        assert!(!governor.allows(at(1_000_000)));
    }

    #[test]
    fn plugins_get_their_share_over_any_time() {
        let governor = Governor::new(10);
        let asked = (0..10_000).filter(|&now| {
            let is_allowed = governor.allows(at(now));
            if is_allowed {
                governor.charge(Duration::from_micros(500));
            }
            is_allowed
        });
        // A tenth of ten seconds and the burst, in calls of half a millisecond.
        assert_eq!(asked.count(), 2_000 + 20);
    }

    #[test]
    fn a_policy_on_trial_leaves_half_of_the_burst_to_those_that_decide() {
        let governor = Arc::new(Governor::new(10));
        let trial = Governor::yielding(&governor);
        assert!(trial.allows(at(1_000)));
        trial.charge(millis(6));
        assert!(!trial.allows(at(1_000)));
        assert!(governor.allows(at(1_000)), "what is left is for others");
        assert!(trial.allows(at(1_011)), "a millisecond and more has flown in");
    }

    #[test]
    fn from_a_hundred_percent_on_nothing_is_held_back() {
        let governor = Governor::new(100);
        governor.charge(Duration::from_secs(3_600));
        assert!(governor.allows(at(1)));
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing() {
        let governor = Governor::new(99);
        governor.charge(millis(10));
        assert!(governor.allows(at(5)));
        governor.charge(millis(10));
        assert!(!governor.allows(at(5)));
        assert!(!governor.allows(at(5)));
    }
}
