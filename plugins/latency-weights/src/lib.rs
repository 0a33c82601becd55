//! Weights by what each endpoint takes to answer.
//!
//! An endpoint that answers in half the time gets twice the flows, within bounds, on top of its
//! configured weight. A flow costs no call: the host distributes by the weights, and asks for new
//! ones a few times a second.
//!
//! Weights move towards their aim by a part of the way at a time, because the aim itself moves with
//! them: who gets more flows answers slower. An error counts as a very slow answer, since an
//! endpoint that fails at once would otherwise be the quickest of all.
#![forbid(unsafe_code)]

use pointsman_sdk::{Endpoints, Host, Sample, WeightsPolicy, export_weights};
use serde::Deserialize;

/// Weighs endpoints by their latency.
#[derive(Debug)]
pub struct LatencyWeights {
    config: Config,
    /// By endpoint: the factor on its weight, and whose it is.
    factors: Vec<(String, f64)>,
}

/// The policy's config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How many times the flows of its configured weight an endpoint gets at most; at least it gets
    /// this part of them. 10 by default, so that nobody is starved of the flows that would show it
    /// to be well again.
    factor_max: u32,
    /// What an error counts as. One second by default.
    error_ms: u32,
    /// How much of the way to its aim a weight goes each time, in percent. 20 by default.
    step_percent: u32,
    /// A measurement older than this says nothing any more. Ten seconds by default.
    age_max_ms: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { factor_max: 10, error_ms: 1_000, step_percent: 20, age_max_ms: 10_000 }
    }
}

export_weights!(LatencyWeights);

/// What the host takes.
const WEIGHT_MAX: f64 = 65_535.0;
/// Below this, differences are those of chance and not of endpoints.
const COST_MIN_US: f64 = 100.0;

impl WeightsPolicy for LatencyWeights {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if !(1..=100).contains(&config.step_percent) {
            return Err(format!("step_percent: expected 1 to 100, found {}", config.step_percent));
        }
        if !(1..=1_000).contains(&config.factor_max) {
            return Err(format!("factor_max: expected 1 to 1000, found {}", config.factor_max));
        }
        Ok(Self { config, factors: Vec::new() })
    }

    fn endpoints_changed(&mut self, endpoints: &Endpoints) {
        let known = std::mem::take(&mut self.factors);
        let factors = endpoints.iter().map(|endpoint| {
            let found = known.iter().find(|(address, _)| address == endpoint.address());
            (endpoint.address().to_owned(), found.map_or(1.0, |(_, factor)| *factor))
        });
        self.factors = factors.collect();
    }

    fn tick(
        &mut self,
        _: u64,
        samples: &[Sample],
        endpoints: &Endpoints,
        _: &dyn Host,
    ) -> Option<Vec<u32>> {
        let costs: Vec<_> = samples.iter().map(|sample| self.cost_us(sample)).collect();
        let known: Vec<f64> = costs.iter().copied().flatten().collect();
        let average = known.iter().sum::<f64>() / known.len() as f64;
        let factor_max = f64::from(self.config.factor_max);
        let step = f64::from(self.config.step_percent) / 100.0;
        for ((_, factor), cost) in self.factors.iter_mut().zip(costs) {
            let aim = cost.map_or(1.0, |cost| average / cost);
            // `clamp` would bring the formatting of fractions along, for its panic.
            *factor += (aim.min(factor_max).max(1.0 / factor_max) - *factor) * step;
        }
        Some(self.weights(endpoints))
    }
}

impl LatencyWeights {
    /// What a flow to the endpoint costs; `None` if that is not known.
    fn cost_us(&self, sample: &Sample) -> Option<f64> {
        let is_recent = |age_ms: Option<u32>| age_ms.is_some_and(|it| it <= self.config.age_max_ms);
        let errors = f64::from(sample.errors_ppm) / 1e6;
        let latency_us = f64::from(sample.first_byte.average_us).max(COST_MIN_US);
        if !is_recent(sample.errors_age_ms) && !is_recent(sample.first_byte.age_ms) {
            return None;
        }
        Some(latency_us * (1.0 - errors) + f64::from(self.config.error_ms) * 1_000.0 * errors)
    }

    /// The factors on the configured weights, so that the largest uses the range to the full.
    fn weights(&self, endpoints: &Endpoints) -> Vec<u32> {
        let exact = self.factors.iter().zip(endpoints.iter());
        let exact = exact.map(|((_, factor), endpoint)| factor * f64::from(endpoint.weight()));
        let largest = exact.clone().fold(1.0, f64::max);
        exact.map(|weight| (weight / largest * WEIGHT_MAX).max(1.0) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::sim::{Change, Distribution, Sim, Weighed};
    use pointsman_sdk::{Latency, MockHost, WeightsInstance};

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:80";

    fn instance(config: &str) -> WeightsInstance<LatencyWeights> {
        let mut policy = WeightsInstance::configure(config).unwrap();
        policy.endpoints_changed(Endpoints::from([(A, 1), (B, 1)]));
        policy
    }

    fn answers_in(us: u32) -> Sample {
        let first_byte = Latency { average_us: us, peak_us: us, age_ms: Some(0) };
        Sample { first_byte, errors_age_ms: Some(0), ..Sample::default() }
    }

    /// The weights after a minute of the same.
    fn settled(config: &str, samples: [Sample; 2]) -> f64 {
        let mut policy = instance(config);
        let weights: Vec<_> =
            (0..240).map(|tick| policy.tick(tick * 250, &samples, &MockHost::new())).collect();
        let weights = weights.last().unwrap().clone().unwrap();
        f64::from(weights[0]) / f64::from(weights[1])
    }

    #[test]
    fn who_answers_in_half_the_time_weighs_twice_as_much() {
        let ratio = settled("null", [answers_in(5_000), answers_in(10_000)]);
        assert!((ratio - 2.0).abs() < 0.01, "{ratio}");
    }

    #[test]
    fn a_quick_failure_attracts_nothing() {
        let failing = Sample { errors_ppm: 500_000, ..answers_in(100) };
        let ratio = settled("null", [answers_in(5_000), failing]);
        assert!(ratio > 5.0, "{ratio}");
    }

    #[test]
    fn nobody_is_starved_beyond_the_bound() {
        let ratio = settled(r#"{ "factor_max": 3 }"#, [answers_in(1_000), answers_in(1_000_000)]);
        assert!(ratio <= 9.01, "{ratio}");
    }

    #[test]
    fn what_is_not_known_or_no_longer_weighs_as_configured() {
        let mut old = answers_in(900_000);
        old.first_byte.age_ms = Some(10_001);
        old.errors_age_ms = None;
        for unknown in [Sample::default(), old] {
            let ratio = settled("null", [unknown, answers_in(1_000)]);
            assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
        }
    }

    #[test]
    fn weights_come_step_by_step_and_stay_with_the_address() {
        let mut policy = instance("null");
        let samples = [answers_in(1_000), answers_in(9_000)];
        let first = policy.tick(0, &samples, &MockHost::new()).unwrap();
        assert!(first[0] < 2 * first[1], "{first:?}");
        policy.endpoints_changed(Endpoints::from([(B, 1), (A, 1)]));
        let swapped = policy.tick(250, &[samples[1], samples[0]], &MockHost::new()).unwrap();
        assert!(swapped[1] > swapped[0], "{swapped:?}");
    }

    #[test]
    fn an_endpoint_that_gets_slow_loses_flows_and_wins_them_back() {
        let service = Distribution::Exponential { mean: 500.0 };
        let sim = || Sim::new(3).endpoint(A, 1, service).endpoint(B, 1, service);
        let share = |sim: Sim, flows| sim.run(&mut Weighed::from(instance("null")), flows).share(B);
        let slow = share(sim().at(0, Change::Slows(B, 8.0)), 30_000);
        assert!(slow < 0.4, "{slow}");
        let well =
            share(sim().at(0, Change::Slows(B, 8.0)).at(5_000, Change::Slows(B, 1.0)), 90_000);
        assert!(well > slow + 0.05, "{well}");
    }

    #[test]
    fn a_config_out_of_range_is_refused() {
        for (config, message) in [
            (r#"{ "step_percent": 0 }"#, "step_percent: expected 1 to 100, found 0"),
            (r#"{ "factor_max": 0 }"#, "factor_max: expected 1 to 1000, found 0"),
        ] {
            let error = WeightsInstance::<LatencyWeights>::configure(config).unwrap_err();
            assert_eq!(error, message);
        }
    }
}
