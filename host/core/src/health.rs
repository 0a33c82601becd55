//! Whether an endpoint is up, from what probes and flows saw of it.
//!
//! Pure: the control thread feeds it observations from wherever they come, and acts on the
//! transitions. Two signals are combined because each is blind alone: an active check sees an
//! endpoint that gets no traffic, a failed connect sees one that died since its last check.

/// How many observations in a row change a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Passed checks in a row that bring an endpoint up, at least 1.
    pub rise: u32,
    /// Failures in a row that take an endpoint down, at least 1.
    pub fall: u32,
}

/// One thing that was seen of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// An active check passed.
    CheckPassed,
    /// An active check failed.
    CheckFailed,
    /// This many flows in a row, the latest ones, failed to connect.
    ConnectsFailed {
        /// How many, with no connect in between that succeeded.
        in_a_row: u32,
    },
}

/// A change of verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// The endpoint may get flows again.
    WentUp,
    /// The endpoint is to get no new flows.
    WentDown,
}

/// What is believed of one endpoint.
///
/// ```text
///        fall failed checks in a row, or fall failed connects in a row
///   up ────────────────────────────────────────────────────────────────▶ down
///      ◀────────────────────────────────────────────────────────────────
///                      rise passed checks in a row
/// ```
#[derive(Debug, Clone)]
pub struct Health {
    thresholds: Thresholds,
    up: bool,
    /// Whether a verdict has been given, or none was waited for.
    proven: bool,
    /// Checks in a row that contradict `up`.
    contradictions: u32,
}

impl Health {
    /// Starts up: an endpoint serves until something speaks against it.
    #[must_use]
    pub const fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, up: true, proven: true, contradictions: 0 }
    }

    /// Starts down, and the first check brings it up if it passes: who is added while there is
    /// traffic gets none before it is known to serve.
    #[must_use]
    pub const fn unproven(thresholds: Thresholds) -> Self {
        let contradictions = thresholds.rise.saturating_sub(1);
        Self { thresholds, up: false, proven: false, contradictions }
    }

    /// Whether it is not known yet if the endpoint serves: its first check is waited for.
    #[must_use]
    pub const fn is_unproven(&self) -> bool {
        !self.proven
    }

    /// By what it is judged.
    #[must_use]
    pub const fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// Judges by these thresholds from here on; what is believed stays.
    pub const fn go_by(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// Whether the endpoint is believed to serve.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.up
    }

    /// Takes in one observation; tells if it changed the verdict.
    pub fn observe(&mut self, observation: Observation) -> Option<Transition> {
        self.proven |= !matches!(observation, Observation::ConnectsFailed { .. });
        match (observation, self.up) {
            (Observation::CheckPassed, true) | (Observation::CheckFailed, false) => {
                self.contradictions = 0;
                None
            }
            (Observation::CheckPassed, false) => self.contradict(self.thresholds.rise),
            (Observation::CheckFailed, true) => self.contradict(self.thresholds.fall),
            (Observation::ConnectsFailed { in_a_row }, true) => {
                (in_a_row >= self.thresholds.fall).then(|| self.turn())
            }
            (Observation::ConnectsFailed { .. }, false) => None,
        }
    }

    fn contradict(&mut self, threshold: u32) -> Option<Transition> {
        self.contradictions += 1;
        (self.contradictions >= threshold).then(|| self.turn())
    }

    fn turn(&mut self) -> Transition {
        self.up = !self.up;
        self.contradictions = 0;
        if self.up { Transition::WentUp } else { Transition::WentDown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rise: 2, fall: 3 };

    fn down() -> Health {
        let mut health = Health::new(THRESHOLDS);
        assert_eq!(
            health.observe(Observation::ConnectsFailed { in_a_row: 3 }),
            Some(Transition::WentDown)
        );
        health
    }

    #[test]
    fn an_endpoint_goes_down_after_fall_failed_checks_in_a_row() {
        let mut health = Health::new(THRESHOLDS);
        for observation in [Observation::CheckFailed, Observation::CheckFailed] {
            assert_eq!(health.observe(observation), None);
        }
        assert_eq!(health.observe(Observation::CheckFailed), Some(Transition::WentDown));
        assert!(!health.is_up());
    }

    #[test]
    fn the_first_check_brings_an_unproven_endpoint_up_and_a_later_one_does_not() {
        let mut passes = Health::unproven(THRESHOLDS);
        assert!(!passes.is_up() && passes.is_unproven());
        assert_eq!(passes.observe(Observation::CheckPassed), Some(Transition::WentUp));
        assert!(!passes.is_unproven());
        let mut fails = Health::unproven(THRESHOLDS);
        assert_eq!(fails.observe(Observation::CheckFailed), None);
        assert!(!fails.is_up() && !fails.is_unproven(), "it is down");
        assert_eq!(fails.observe(Observation::CheckPassed), None);
        assert_eq!(fails.observe(Observation::CheckPassed), Some(Transition::WentUp));
    }

    #[test]
    fn a_passed_check_forgives_earlier_failures() {
        let mut health = Health::new(THRESHOLDS);
        for _ in 0..10 {
            health.observe(Observation::CheckFailed);
            health.observe(Observation::CheckFailed);
            assert_eq!(health.observe(Observation::CheckPassed), None);
        }
        assert!(health.is_up());
    }

    #[test]
    fn an_endpoint_comes_up_after_rise_passed_checks_in_a_row() {
        let mut health = down();
        assert_eq!(health.observe(Observation::CheckPassed), None);
        assert_eq!(health.observe(Observation::CheckFailed), None);
        assert_eq!(health.observe(Observation::CheckPassed), None);
        assert_eq!(health.observe(Observation::CheckPassed), Some(Transition::WentUp));
    }

    #[test]
    fn fewer_failed_connects_than_fall_change_nothing() {
        let mut health = Health::new(THRESHOLDS);
        assert_eq!(health.observe(Observation::ConnectsFailed { in_a_row: 2 }), None);
        assert!(health.is_up());
    }

    #[test]
    fn failed_connects_do_not_hold_down_what_checks_bring_up() {
        let mut health = down();
        assert_eq!(health.observe(Observation::CheckPassed), None);
        assert_eq!(health.observe(Observation::ConnectsFailed { in_a_row: 9 }), None);
        assert_eq!(health.observe(Observation::CheckPassed), Some(Transition::WentUp));
    }
}
