//! A policy that is asked about every new flow.
//!
//! Fills the first endpoint before it touches the second, which keeps caches warm and lets the rest
//! sleep. Make it your own: what you change here is what decides.
#![forbid(unsafe_code)]

use pointsman_sdk::{Decision, Endpoints, Flow, Host, Policy, export};
use serde::Deserialize;

/// Fills one endpoint after the other.
pub struct FillFirst {
    flows_max: u32,
}

/// What the operator may set; `config = { flows_max = 50 }` in the balancer's configuration.
#[derive(Deserialize)]
#[serde(default)]
pub struct Config {
    /// How many flows an endpoint gets per unit of its weight before the next one gets any.
    flows_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { flows_max: 100 }
    }
}

export!(FillFirst);

impl Policy for FillFirst {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.flows_max == 0 {
            return Err("flows_max: expected at least 1, found 0".into());
        }
        Ok(Self { flows_max: config.flows_max })
    }

    fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, host: &dyn Host) -> Decision {
        // Whoever has just failed this flow is not asked again.
        let others = (0..endpoints.len()).filter(|&index| flow.avoid() != Some(index));
        let has_room = |index: &usize| {
            let room = u64::from(self.flows_max) * u64::from(endpoints[*index].weight());
            u64::from(host.load(*index)) < room
        };
        // With all of them full, the cluster's fallback decides.
        others.into_iter().find(has_room).map_or(Decision::defer(), Decision::forward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::sim::{Change, Distribution, Sim};
    use pointsman_sdk::{Instance, MockHost};

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:80";

    #[test]
    fn the_second_endpoint_gets_flows_when_the_first_is_full() {
        let mut policy = Instance::<FillFirst>::configure(r#"{ "flows_max": 2 }"#).unwrap();
        policy.endpoints_changed(Endpoints::from([(A, 1), (B, 1)]));
        let flow = Flow::new("192.0.2.1:5000".parse().unwrap());
        let host = MockHost::with_loads(&[1, 0]);
        assert_eq!(policy.decide(&flow, &host), Decision::forward(0));
        host.set_load(0, 2);
        assert_eq!(policy.decide(&flow, &host), Decision::forward(1));
    }

    #[test]
    fn nobody_notices_when_the_first_endpoint_fails() {
        let service = Distribution::Exponential { mean: 500.0 };
        let outcome = Sim::new(1)
            .endpoint(A, 1, service)
            .endpoint(B, 1, service)
            .at(1_000, Change::Fails(A))
            .run(&mut Instance::<FillFirst>::configure("null").unwrap(), 5_000);
        assert_eq!(outcome.failed(), 0);
        assert!(outcome.share(B) > 0.7);
    }
}
