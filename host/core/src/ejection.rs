//! Passive health: an endpoint whose flows fail is ejected, gets nothing new for a time, and returns.
//!
//! It sees what active checks cannot: an endpoint that answers a check and fails its clients. What
//! it cannot see is an endpoint without flows, so an ejection ends by time and not by proof; one
//! that fails again is ejected for longer. The rules and the formula are Envoy's outlier detection.
//!
//! Pure, like [`health`](crate::health): the control thread shows it what workers have counted.

use alloc::vec::Vec;
use core::time::Duration;

use crate::load::Outcomes;
use crate::time::Instant;

/// When an endpoint is ejected, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct EjectionRules {
    /// Failed flows in a row that eject an endpoint; 0 if rows do not matter.
    pub consecutive_failures: u32,
    /// How often success rates are compared, and how long an endpoint must behave until one of its
    /// ejections is forgotten.
    pub interval: Duration,
    /// How long the first ejection lasts; the second lasts twice as long, and so on.
    pub base: Duration,
    /// How long any ejection lasts at most.
    pub longest: Duration,
    /// How much of a cluster may be ejected at a time, in percent; one endpoint always may.
    pub percent_max: u32,
    /// How success rates are compared, if they are.
    pub success_rate: Option<SuccessRateRule>,
}

/// An endpoint is ejected whose share of good flows is far below that of the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SuccessRateRule {
    /// Flows within the interval below which an endpoint's rate says nothing.
    pub flows_min: u64,
    /// Endpoints with as many flows, below which there is nothing to compare with.
    pub endpoints_min: u32,
    /// How many standard deviations below the mean are too far.
    pub deviations: f64,
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EjectionReason {
    /// Its latest flows have failed, one after the other.
    ConsecutiveFailures,
    /// More of its flows fail than of the others'.
    SuccessRate,
}

impl EjectionReason {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::ConsecutiveFailures, Self::SuccessRate];

    /// Its name in metrics, status and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive-failures",
            Self::SuccessRate => "success-rate",
        }
    }
}

/// A change of verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EjectionChange {
    /// The endpoint is to get no new flows for so long.
    Ejected {
        /// Why.
        reason: EjectionReason,
        /// How long.
        lasting: Duration,
    },
    /// Its time is over.
    Returned,
}

/// What is remembered of one endpoint.
///
/// ```text
///            a row of failures, or a success rate far below the others'
///   serving ───────────────────────────────────────────────────────────▶ ejected
///           ◀───────────────────────────────────────────────────────────
///                          base × ejections so far, at most longest
/// ```
#[derive(Debug, Clone, Default)]
pub struct Ejection {
    current: Option<(EjectionReason, Instant)>,
    /// Ejections that are not forgotten.
    times: u32,
    /// When one of them is, if the endpoint is not ejected before.
    forgotten_at: Instant,
    total: u64,
    /// What had been counted when it was last looked at, and when the interval began.
    seen: Outcomes,
    begun: Outcomes,
    /// Failures in a row that had been counted when it returned.
    forgiven: u32,
}

/// What of an [`Ejection`] does not depend on who has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EjectionRecord {
    /// Why it is ejected and until when, if it is.
    pub current: Option<(EjectionReason, Instant)>,
    /// Ejections that are not forgotten.
    pub times: u32,
    /// When one of them is.
    pub forgotten_at: Instant,
    /// How often it has ever been ejected.
    pub total: u64,
}

impl Ejection {
    /// Why the endpoint is ejected, if it is.
    #[must_use]
    pub fn reason(&self) -> Option<EjectionReason> {
        self.current.map(|(reason, _)| reason)
    }

    /// How often it has ever been ejected.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// What whoever judges it from here on needs to know.
    #[must_use]
    pub const fn record(&self) -> EjectionRecord {
        let Self { current, times, forgotten_at, total, .. } = *self;
        EjectionRecord { current, times, forgotten_at, total }
    }

    /// Goes on where somebody else has judged until now.
    #[must_use]
    pub fn resumed(record: EjectionRecord) -> Self {
        let EjectionRecord { current, times, forgotten_at, total } = record;
        Self { current, times, forgotten_at, total, ..Self::default() }
    }

    /// Nobody judges it any more, so it is not ejected. How often it was stays known.
    pub fn end(&mut self) {
        *self = Self { total: self.total, ..Self::default() };
    }

    /// Takes in what has been counted; tells how many flows in a row have failed, if the last ones
    /// are new.
    fn look(&mut self, outcomes: Outcomes) -> Option<u32> {
        let before = core::mem::replace(&mut self.seen, outcomes);
        // A good flow has begun a new row, however long that is by now.
        if before.successes != outcomes.successes {
            self.forgiven = 0;
        }
        let row = outcomes.in_a_row.saturating_sub(self.forgiven);
        (before.failures != outcomes.failures).then_some(row)
    }

    /// The share of good flows in this interval, if there were enough.
    fn success_rate(&self, flows_min: u64) -> Option<f64> {
        let successes = self.seen.successes - self.begun.successes;
        let flows = successes + self.seen.failures - self.begun.failures;
        let counts = flows >= flows_min.max(1) && self.current.is_none();
        counts.then(|| successes as f64 / flows as f64)
    }

    fn returns(&mut self, now: Instant, interval: Duration) -> bool {
        let is_over = self.current.is_some_and(|(_, until)| until <= now);
        if is_over {
            self.current = None;
            self.forgiven = self.seen.in_a_row;
            self.begun = self.seen;
            self.forgotten_at = now + interval;
        }
        is_over
    }

    /// An endpoint that has behaved for an interval has one ejection fewer to answer for.
    fn forget(&mut self, now: Instant, interval: Duration) {
        if self.current.is_none() && self.times > 0 && self.forgotten_at <= now {
            self.times -= 1;
            self.forgotten_at = now + interval;
        }
    }
}

/// One endpoint, as it is judged.
#[derive(Debug)]
pub struct Subject<'a> {
    /// What is remembered of it.
    pub ejection: &'a mut Ejection,
    /// What workers have counted.
    pub outcomes: Outcomes,
    /// Whether it could be given flows if it is not ejected.
    pub could_serve: bool,
}

/// Judges the endpoints of one cluster.
#[derive(Debug, Clone)]
pub struct Ejector {
    rules: EjectionRules,
    /// When success rates are compared next.
    interval_ends: Instant,
}

impl Ejector {
    /// Nobody is ejected. The first interval begins with the first look.
    #[must_use]
    pub const fn new(rules: EjectionRules) -> Self {
        Self { interval_ends: Instant::ZERO, rules }
    }

    /// Looks at all endpoints of the cluster. Tells what has changed, by place.
    pub fn judge(
        &mut self,
        now: Instant,
        subjects: &mut [Subject<'_>],
    ) -> Vec<(usize, EjectionChange)> {
        let mut changes = Vec::new();
        for place in 0..subjects.len() {
            let Subject { ejection, outcomes, .. } = &mut subjects[place];
            let row = ejection.look(*outcomes);
            if ejection.returns(now, self.rules.interval) {
                changes.push((place, EjectionChange::Returned));
                continue;
            }
            let limit = self.rules.consecutive_failures;
            if limit > 0 && row.is_some_and(|row| row >= limit) {
                let ejected =
                    self.eject(now, subjects, (place, EjectionReason::ConsecutiveFailures));
                changes.extend(ejected.map(|change| (place, change)));
            }
            subjects[place].ejection.forget(now, self.rules.interval);
        }
        if self.interval_ends <= now {
            self.interval_ends = now + self.rules.interval;
            self.compare(now, subjects, &mut changes);
        }
        changes
    }

    /// The end of an interval: success rates are compared.
    fn compare(
        &self,
        now: Instant,
        subjects: &mut [Subject<'_>],
        changes: &mut Vec<(usize, EjectionChange)>,
    ) {
        let outliers = self.rules.success_rate.map(|rule| outliers(rule, subjects));
        for Subject { ejection, .. } in &mut *subjects {
            ejection.begun = ejection.seen;
        }
        for place in outliers.unwrap_or_default() {
            let ejected = self.eject(now, subjects, (place, EjectionReason::SuccessRate));
            changes.extend(ejected.map(|change| (place, change)));
        }
    }

    /// Ejects an endpoint, if it is not and the cluster can do without it.
    fn eject(
        &self,
        now: Instant,
        subjects: &mut [Subject<'_>],
        (place, reason): (usize, EjectionReason),
    ) -> Option<EjectionChange> {
        let is_ejected = |subject: &Subject<'_>| subject.ejection.current.is_some();
        let ejected = subjects.iter().filter(|subject| is_ejected(subject)).count();
        let allowed = (subjects.len() * self.rules.percent_max as usize / 100).max(1);
        let mut others = subjects.iter().enumerate().filter(|(other, _)| *other != place);
        let someone_is_left = others.any(|(_, other)| other.could_serve && !is_ejected(other));
        if is_ejected(&subjects[place]) || ejected >= allowed || !someone_is_left {
            return None;
        }
        let ejection = &mut *subjects[place].ejection;
        ejection.times = ejection.times.saturating_add(1);
        ejection.total += 1;
        let lasting = self.rules.base.saturating_mul(ejection.times).min(self.rules.longest);
        ejection.current = Some((reason, now + lasting));
        Some(EjectionChange::Ejected { reason, lasting })
    }
}

/// The endpoints whose success rate lies more standard deviations below the mean than it may.
fn outliers(rule: SuccessRateRule, subjects: &[Subject<'_>]) -> Vec<usize> {
    let rate = |subject: &Subject<'_>| subject.ejection.success_rate(rule.flows_min);
    let rates: Vec<_> = subjects.iter().map(rate).collect();
    let counted = || rates.iter().copied().flatten();
    let count = counted().count();
    if count == 0 || count < rule.endpoints_min as usize {
        return Vec::new();
    }
    let mean = counted().sum::<f64>() / count as f64;
    let variance = counted().map(|rate| (rate - mean) * (rate - mean)).sum::<f64>() / count as f64;
    // Compared in squares: there is no square root without `std`.
    let is_far = |rate: f64| {
        let below = mean - rate;
        below > 0.0 && below * below > rule.deviations * rule.deviations * variance
    };
    let far = |(place, rate): (usize, &Option<f64>)| rate.is_some_and(is_far).then_some(place);
    rates.iter().enumerate().filter_map(far).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: EjectionRules = EjectionRules {
        consecutive_failures: 3,
        interval: Duration::from_secs(10),
        base: Duration::from_secs(30),
        longest: Duration::from_secs(70),
        percent_max: 50,
        success_rate: None,
    };

    /// A cluster, its endpoints and what has been counted of them.
    struct Case {
        ejector: Ejector,
        ejections: Vec<Ejection>,
        outcomes: Vec<Outcomes>,
        could_serve: bool,
    }

    impl Case {
        fn new(endpoints: usize, rules: EjectionRules) -> Self {
            let mut case = Self {
                ejector: Ejector::new(rules),
                ejections: alloc::vec![Ejection::default(); endpoints],
                outcomes: alloc::vec![Outcomes::default(); endpoints],
                could_serve: true,
            };
            case.judge(0);
            case
        }

        fn fail(&mut self, place: usize, flows: u32) {
            self.outcomes[place].failures += u64::from(flows);
            self.outcomes[place].in_a_row += flows;
        }

        fn serve(&mut self, place: usize, flows: u64) {
            self.outcomes[place].successes += flows;
            self.outcomes[place].in_a_row = 0;
        }

        fn judge(&mut self, seconds: u64) -> Vec<(usize, EjectionChange)> {
            let could_serve = self.could_serve;
            let pairs = self.ejections.iter_mut().zip(&self.outcomes);
            let subject = |(ejection, outcomes): (_, &Outcomes)| Subject {
                ejection,
                outcomes: *outcomes,
                could_serve,
            };
            let mut subjects: Vec<_> = pairs.map(subject).collect();
            self.ejector.judge(Instant::from_millis(seconds * 1_000), &mut subjects)
        }

        fn ejected(&self) -> Vec<usize> {
            let ejected = |place: &usize| self.ejections[*place].reason().is_some();
            (0..self.ejections.len()).filter(ejected).collect()
        }
    }

    fn for_seconds(seconds: u64) -> EjectionChange {
        let reason = EjectionReason::ConsecutiveFailures;
        EjectionChange::Ejected { reason, lasting: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_row_of_failures_ejects_and_time_brings_back() {
        let mut case = Case::new(4, RULES);
        case.fail(1, 2);
        assert_eq!(case.judge(1), []);
        case.fail(1, 1);
        assert_eq!(case.judge(1), [(1, for_seconds(30))]);
        assert_eq!(case.judge(30), []);
        assert_eq!(case.judge(31), [(1, EjectionChange::Returned)]);
        assert_eq!(case.ejections[1].total(), 1);
    }

    #[test]
    fn a_good_flow_ends_a_row() {
        let mut case = Case::new(4, RULES);
        for second in 0..9 {
            case.fail(1, 2);
            assert_eq!(case.judge(second), []);
            case.serve(1, 1);
        }
    }

    #[test]
    fn what_failed_before_the_return_is_forgiven() {
        let mut case = Case::new(4, RULES);
        case.fail(1, 3);
        case.judge(0);
        case.fail(1, 5);
        assert_eq!(case.judge(30), [(1, EjectionChange::Returned)]);
        assert_eq!(case.judge(31), []);
        case.fail(1, 2);
        assert_eq!(case.judge(32), [], "two new ones are fewer than three");
        case.fail(1, 1);
        assert_eq!(case.judge(33).len(), 1);
    }

    #[test]
    fn a_row_that_began_after_a_good_flow_counts_whole() {
        let mut case = Case::new(4, RULES);
        case.fail(1, 3);
        case.judge(0);
        assert_eq!(case.judge(30), [(1, EjectionChange::Returned)]);
        case.serve(1, 1);
        case.fail(1, 3);
        assert_eq!(case.judge(31), [(1, for_seconds(60))]);
    }

    #[test]
    fn each_ejection_lasts_longer_up_to_the_longest() {
        let mut case = Case::new(4, RULES);
        let mut now = 0;
        for lasting in [30, 60, 70, 70] {
            case.fail(1, 3);
            assert_eq!(case.judge(now), [(1, for_seconds(lasting))]);
            now += lasting;
            assert_eq!(case.judge(now), [(1, EjectionChange::Returned)]);
        }
    }

    #[test]
    fn ejections_are_forgotten_one_per_interval() {
        let mut case = Case::new(4, RULES);
        case.fail(1, 3);
        case.judge(0);
        case.judge(30);
        for second in [40, 50, 60] {
            case.judge(second);
        }
        case.fail(1, 3);
        assert_eq!(case.judge(61), [(1, for_seconds(30))]);
    }

    #[test]
    fn no_more_than_their_share_is_ejected_and_one_always_may_be() {
        let mut case = Case::new(4, RULES);
        (0..4).for_each(|place| case.fail(place, 9));
        case.judge(0);
        assert_eq!(case.ejected(), [0, 1]);
        let mut case = Case::new(4, EjectionRules { percent_max: 1, ..RULES });
        (0..4).for_each(|place| case.fail(place, 9));
        case.judge(0);
        assert_eq!(case.ejected(), [0]);
    }

    #[test]
    fn the_last_that_could_serve_is_not_ejected() {
        let mut case = Case::new(2, EjectionRules { percent_max: 100, ..RULES });
        case.fail(0, 9);
        case.fail(1, 9);
        case.judge(0);
        assert_eq!(case.ejected(), [0]);
        let mut case = Case::new(2, RULES);
        case.could_serve = false;
        case.fail(0, 9);
        assert_eq!(case.judge(0), []);
    }

    #[test]
    fn a_success_rate_far_below_the_others_ejects() {
        let rule = SuccessRateRule { flows_min: 100, endpoints_min: 5, deviations: 1.9 };
        let rules =
            EjectionRules { consecutive_failures: 0, success_rate: Some(rule), ..RULES.clone() };
        let mut case = Case::new(6, rules);
        (0..6).for_each(|place| case.serve(place, 200));
        case.fail(2, 40);
        assert_eq!(case.judge(9), [], "the interval is not over");
        let changes = case.judge(10);
        let ejected = EjectionChange::Ejected {
            reason: EjectionReason::SuccessRate,
            lasting: Duration::from_secs(30),
        };
        assert_eq!(changes, [(2, ejected)]);
        case.fail(3, 99);
        assert_eq!(case.judge(20), [], "too few flows to tell");
    }

    #[test]
    fn equals_are_no_outliers_and_few_are_not_compared() {
        let rule = SuccessRateRule { flows_min: 10, endpoints_min: 5, deviations: 1.9 };
        let rules =
            EjectionRules { consecutive_failures: 0, success_rate: Some(rule), ..RULES.clone() };
        let mut case = Case::new(5, rules.clone());
        for place in 0..5 {
            case.serve(place, 50);
            case.fail(place, 50);
        }
        assert_eq!(case.judge(10), []);
        let mut case = Case::new(4, rules);
        (0..4).for_each(|place| case.serve(place, 100));
        case.fail(0, 1_000);
        assert_eq!(case.judge(10), []);
    }

    #[test]
    fn who_judges_on_remembers_who_is_ejected_and_for_how_long() {
        let mut case = Case::new(4, RULES);
        case.fail(1, 9);
        case.judge(0);
        let mut next = Case::new(4, RULES);
        let resumed = |before: &Ejection| Ejection::resumed(before.record());
        next.ejections = case.ejections.iter().map(resumed).collect();
        assert_eq!(next.ejected(), [1]);
        assert_eq!(next.judge(29), [], "not before its time");
        assert_eq!(next.judge(30), [(1, EjectionChange::Returned)]);
    }
}
