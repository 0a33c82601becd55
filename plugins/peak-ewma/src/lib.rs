//! The quicker of two endpoints drawn at random.
//!
//! Finagle's Peak EWMA (`PeakEwma.scala`): what an endpoint costs is a moving average of its latency
//! that believes a slower answer at once and a faster one only with time, times the flows that it
//! has, and one more. That steers around an endpoint within one slow answer, where a count of flows
//! has to wait until they pile up.
//!
//! The host measures over all workers; this only compares. An error counts as a very slow answer: a
//! fast failure must not attract traffic.
#![forbid(unsafe_code)]

use pointsman_sdk::{Decision, Endpoints, Flow, Host, Policy, Sample, export};
use serde::Deserialize;

/// Takes the cheaper of two.
#[derive(Debug)]
pub struct PeakEwma {
    config: Config,
}

/// The policy's config.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How fast an endpoint that gets no flows is forgiven: after this time its latency counts for a
    /// third. Ten seconds by default, as in Finagle.
    decay_ms: u32,
    /// What an error counts as, and an endpoint that has flows but has never answered. One second
    /// by default.
    penalty_ms: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { decay_ms: 10_000, penalty_ms: 1_000 }
    }
}

export!(PeakEwma);

impl Policy for PeakEwma {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.decay_ms == 0 {
            return Err("decay_ms: expected at least 1, found 0".into());
        }
        Ok(Self { config })
    }

    fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, host: &dyn Host) -> Decision {
        let avoid = flow.avoid().filter(|&avoid| avoid < endpoints.len() && endpoints.len() > 1);
        let count = endpoints.len() - usize::from(avoid.is_some());
        if count == 0 {
            return Decision::defer();
        }
        let mut rng = flow.rng();
        let first = rng.below(count);
        // Of the others, by the distance from the first.
        let second = (first + 1 + rng.below(count - 1)) % count;
        // What is to be avoided has no place among those that can be drawn.
        let [first, second] =
            [first, second].map(|it| it + usize::from(avoid.is_some_and(|avoid| avoid <= it)));
        let cost =
            |index: usize| self.cost(&host.sample(index)) / f64::from(endpoints[index].weight());
        Decision::forward(if cost(second) < cost(first) { second } else { first })
    }
}

impl PeakEwma {
    /// What a flow to the endpoint costs.
    fn cost(&self, sample: &Sample) -> f64 {
        let flows = f64::from(sample.flows_active);
        let penalty_us = f64::from(self.config.penalty_ms) * 1_000.0;
        let errors = f64::from(sample.errors_ppm) / 1e6 * self.fade(sample.errors_age_ms);
        let latency_us = f64::from(sample.first_byte.peak_us) * self.fade(sample.first_byte.age_ms);
        let expected_us = latency_us * (1.0 - errors) + penalty_us * errors;
        if sample.first_byte.age_ms.is_none() && sample.flows_active > 0 {
            return penalty_us + flows;
        }
        expected_us.max(1.0) * (flows + 1.0)
    }

    /// How much something still counts that was measured so long ago.
    fn fade(&self, age_ms: Option<u32>) -> f64 {
        age_ms.map_or(0.0, |age_ms| (-f64::from(age_ms) / f64::from(self.config.decay_ms)).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::sim::{Change, Distribution, Sim};
    use pointsman_sdk::{Instance, Latency, MockHost, Rng};

    const A: (&str, u32) = ("10.0.0.1:80", 1);
    const B: (&str, u32) = ("10.0.0.2:80", 1);
    const C: (&str, u32) = ("10.0.0.3:80", 1);

    fn instance<const N: usize>(list: [(&str, u32); N]) -> Instance<PeakEwma> {
        let mut policy = Instance::configure("null").unwrap();
        policy.endpoints_changed(Endpoints::from(list));
        policy
    }

    fn answers_in(peak_us: u32, flows_active: u32) -> Sample {
        let first_byte = Latency { average_us: 0, peak_us, age_ms: Some(0) };
        Sample { flows_active, first_byte, ..Sample::default() }
    }

    fn flows(count: usize) -> impl Iterator<Item = Flow> {
        let mut rng = Rng::new(1);
        let flow = Flow::new("192.0.2.1:5000".parse().unwrap());
        (0..count).map(move |_| flow.with_random(rng.bits()))
    }

    /// Which of two is always taken.
    fn taken(samples: [Sample; 2]) -> usize {
        let (mut policy, host) = (instance([A, B]), MockHost::with_samples(samples.into()));
        let first = policy.decide(&flows(1).next().unwrap(), &host);
        assert!(flows(100).all(|flow| policy.decide(&flow, &host) == first));
        first.endpoint().unwrap()
    }

    #[test]
    fn latency_times_flows_decides() {
        assert_eq!(taken([answers_in(1_000, 0), answers_in(2_000, 0)]), 0);
        assert_eq!(taken([answers_in(1_000, 2), answers_in(2_000, 0)]), 1, "3,000 against 2,000");
    }

    #[test]
    fn a_fast_failure_does_not_attract_flows() {
        let failing = Sample { errors_ppm: 900_000, errors_age_ms: Some(0), ..answers_in(10, 0) };
        assert_eq!(taken([failing, answers_in(50_000, 0)]), 1);
    }

    #[test]
    fn who_has_never_answered_is_tried_once_and_then_waited_for() {
        assert_eq!(taken([Sample::default(), answers_in(1_000, 0)]), 0);
        let waiting = Sample { flows_active: 1, ..Sample::default() };
        assert_eq!(taken([waiting, answers_in(1_000, 0)]), 1);
    }

    #[test]
    fn a_slow_answer_is_forgiven_with_time() {
        let mut long_ago = answers_in(100_000, 0);
        long_ago.first_byte.age_ms = Some(60_000);
        assert_eq!(taken([long_ago, answers_in(1_000, 0)]), 0);
    }

    #[test]
    fn idle_endpoints_come_up_equally_often() {
        let (mut policy, host) = (instance([A, B, C]), MockHost::new());
        let mut counts = [0_u32; 3];
        for flow in flows(9_000) {
            counts[policy.decide(&flow, &host).endpoint().unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(3_000) < 200), "{counts:?}");
    }

    #[test]
    fn a_retry_goes_elsewhere_if_there_is_an_elsewhere() {
        let (mut policy, host) = (instance([A, B, C]), MockHost::new());
        for avoid in 0..3 {
            let mut retries = flows(300).map(|flow| flow.retried_after(avoid));
            assert!(retries.all(|flow| policy.decide(&flow, &host).endpoint() != Some(avoid)));
        }
        let lone = instance([A]).decide(&flows(1).next().unwrap().retried_after(0), &host);
        assert_eq!(lone, Decision::forward(0));
    }

    #[test]
    fn flows_go_around_an_endpoint_that_has_become_slow() {
        let service = Distribution::Exponential { mean: 1_000.0 };
        let sim = [A, B, C].iter().fold(Sim::new(1), |sim, it| sim.endpoint(it.0, 1, service));
        let outcome = sim.at(0, Change::Slows(C.0, 20.0)).run(&mut instance([A, B, C]), 50_000);
        assert!(outcome.share(C.0) < 0.03, "{}", outcome.share(C.0));
    }
}
