//! A policy that steers the balancer's own weighted one, several times a second.
//!
//! Endpoints get flows in proportion to how few they have: one with half the flows per weight of
//! another gets twice as many new ones. Make it your own: whatever weights you return are in force.
#![forbid(unsafe_code)]

use pointsman_sdk::{Endpoints, Host, Sample, WeightsPolicy, export_weights};
use serde::Deserialize;

/// Weighs by flows.
pub struct ByFlows {
    strength: u32,
}

/// What the operator may set; `config = { strength = 20 }` in the balancer's configuration.
#[derive(Deserialize)]
#[serde(default)]
pub struct Config {
    /// Up to so many flows make no difference.
    strength: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { strength: 10 }
    }
}

export_weights!(ByFlows);

/// The most that an endpoint may weigh.
const WEIGHT_MAX: u64 = 65_535;

impl WeightsPolicy for ByFlows {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self { strength: config.strength })
    }

    fn tick(
        &mut self,
        _now_ms: u64,
        samples: &[Sample],
        endpoints: &Endpoints,
        _: &dyn Host,
    ) -> Option<Vec<u32>> {
        let weights = samples.iter().zip(endpoints.iter()).map(|(sample, endpoint)| {
            let flows = u64::from(sample.flows_active) + u64::from(self.strength) + 1;
            let weight = u64::from(endpoint.weight()).min(64) * 1_000 / flows;
            u32::try_from(weight.clamp(1, WEIGHT_MAX)).unwrap_or(1)
        });
        Some(weights.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::sim::{Change, Distribution, Sim, Weighed};
    use pointsman_sdk::{MockHost, WeightsInstance};

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:80";

    fn policy() -> WeightsInstance<ByFlows> {
        WeightsInstance::configure("null").unwrap()
    }

    #[test]
    fn whoever_has_more_flows_gets_fewer() {
        let mut policy = policy();
        policy.endpoints_changed(Endpoints::from([(A, 1), (B, 1)]));
        let busy = Sample { flows_active: 100, ..Sample::default() };
        let weights = policy.tick(0, &[busy, Sample::default()], &MockHost::new()).unwrap();
        assert!(weights[0] < weights[1] / 5);
    }

    #[test]
    fn an_endpoint_that_gets_slow_loses_flows() {
        let service = Distribution::Exponential { mean: 500.0 };
        let sim = Sim::new(1).endpoint(A, 1, service).endpoint(B, 1, service);
        let outcome = sim.at(0, Change::Slows(B, 4.0)).run(&mut Weighed::from(policy()), 20_000);
        assert!(outcome.share(B) < 0.4, "{}", outcome.share(B));
    }
}
