//! How an endpoint that has come back gets its share: a tenth first, and all of it after a time.
//!
//! ```text
//!   tenths   10 ┤                    ┌──────
//!               │                 ┌──┘         Whoever was away has cold caches and no connections,
//!             5 ┤           ┌─…───┘            and would get the most flows of all just then.
//!             1 ┤ ──────────┘
//!               └─┴─────────┴────────┴──────
//!              back        half    the time is over
//! ```
//!
//! Weights are multiplied by ten where this is in use, so that each step is exact.

use core::time::Duration;

use crate::time::Instant;

/// The steps in which a weight grows.
pub const STEPS: u32 = 10;

/// How much of its weight an endpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    tenths: u32,
    /// When it began, once somebody has looked at the clock.
    since: Option<Instant>,
}

impl Default for Growth {
    /// All of it: endpoints that are there from the start are not new to their clients.
    fn default() -> Self {
        Self { tenths: STEPS, since: None }
    }
}

impl Growth {
    /// Begins with a tenth, if growing takes any time.
    pub fn restart(&mut self, lasting: Duration) {
        if !lasting.is_zero() {
            *self = Self { tenths: 1, since: None };
        }
    }

    /// Goes on with so many tenths of a growth that began then.
    #[must_use]
    pub fn resumed(tenths: u32, since: Option<Instant>) -> Self {
        Self { tenths: tenths.clamp(1, STEPS), since }
    }

    /// When it began, once somebody has looked at the clock.
    #[must_use]
    pub const fn since(self) -> Option<Instant> {
        self.since
    }

    /// Takes the steps that are due by now, if growing takes so long; tells whether there were any.
    /// The time counts from the first call.
    pub fn advance(&mut self, now: Instant, lasting: Duration) -> bool {
        if self.is_whole() {
            return false;
        }
        let passed = now.since(*self.since.get_or_insert(now));
        let due = (passed * STEPS).as_nanos().checked_div(lasting.as_nanos());
        let due = due.map_or(STEPS, |due| due.min(STEPS.into()) as u32).max(1);
        core::mem::replace(&mut self.tenths, due) != due
    }

    /// Whether it has all of its weight.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        self.tenths == STEPS
    }

    /// How many tenths of its weight it has, 1 to 10.
    #[must_use]
    pub const fn tenths(self) -> u32 {
        self.tenths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTING: Duration = Duration::from_secs(10);

    fn tenths_after(millis: u64) -> u32 {
        let mut growth = Growth::default();
        growth.restart(LASTING);
        growth.advance(Instant::from_millis(5_000), LASTING);
        growth.advance(Instant::from_millis(5_000 + millis), LASTING);
        growth.tenths()
    }

    #[test]
    fn a_weight_grows_by_tenths_and_is_never_ahead_of_time_but_for_the_first() {
        for (millis, tenths) in
            [(0, 1), (1_999, 1), (2_000, 2), (5_500, 5), (9_999, 9), (10_000, 10), (99_000, 10)]
        {
            assert_eq!(tenths_after(millis), tenths, "{millis}");
        }
    }

    #[test]
    fn only_a_step_is_news() {
        let mut growth = Growth::default();
        assert!(!growth.advance(Instant::from_millis(1), LASTING), "it is whole");
        growth.restart(LASTING);
        assert!(!growth.advance(Instant::from_millis(1), LASTING));
        assert!(!growth.advance(Instant::from_millis(1_500), LASTING));
        assert!(growth.advance(Instant::from_millis(2_100), LASTING));
        assert!(!growth.advance(Instant::from_millis(2_200), LASTING));
        assert!(growth.advance(Instant::from_millis(60_000), LASTING));
        assert!(growth.is_whole());
    }

    #[test]
    fn without_a_time_there_is_no_growing() {
        let mut growth = Growth::default();
        growth.restart(Duration::ZERO);
        assert!(growth.is_whole());
        growth.restart(LASTING);
        assert!(growth.advance(Instant::from_millis(1), Duration::ZERO), "the time was taken away");
        assert!(growth.is_whole());
    }

    #[test]
    fn a_growth_goes_on_where_it_was_resumed() {
        let mut growth = Growth::default();
        growth.restart(LASTING);
        growth.advance(Instant::from_millis(1_000), LASTING);
        growth.advance(Instant::from_millis(6_000), LASTING);
        let mut resumed = Growth::resumed(growth.tenths(), growth.since());
        assert_eq!(resumed, growth);
        assert!(resumed.advance(Instant::from_millis(11_000), LASTING) && resumed.is_whole());
        assert_eq!(Growth::resumed(0, None).tenths(), 1, "nobody says so who is a balancer");
    }
}
