//! Smooth weighted round robin.
//!
//! Weights 5, 1, 1 give `a a b a c a a`: as even as the weights allow. Turns belong to addresses, so
//! a new list of endpoints changes nothing for those that stay. Each worker counts for itself.
#![forbid(unsafe_code)]

use pointsman_sdk::parts::SmoothOrder;
use pointsman_sdk::{Decision, Endpoints, Flow, Host, NoConfig, Policy, export};

/// Takes turns, in proportion to the weights.
#[derive(Debug, Default)]
pub struct RoundRobin {
    order: SmoothOrder,
}

export!(RoundRobin);

impl Policy for RoundRobin {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self::default())
    }

    fn endpoints_changed(&mut self, endpoints: &Endpoints) {
        self.order.follow(endpoints);
    }

    fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, _: &dyn Host) -> Decision {
        let avoid = flow.avoid().filter(|_| endpoints.len() > 1);
        let next = self.order.next(|index| avoid != Some(index));
        next.map_or_else(Decision::defer, Decision::forward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::{Instance, MockHost};

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:80";
    const C: &str = "[2001:db8::3]:80";

    fn round_robin<const N: usize>(endpoints: [(&str, u32); N]) -> Instance<RoundRobin> {
        let mut policy = Instance::configure("null").unwrap();
        policy.endpoints_changed(Endpoints::from(endpoints));
        policy
    }

    fn flow() -> Flow {
        Flow::new("192.0.2.1:5000".parse().unwrap())
    }

    fn picks(policy: &mut Instance<RoundRobin>, count: usize) -> Vec<usize> {
        let host = MockHost::new();
        let mut pick = || policy.decide(&flow(), &host).endpoint().unwrap();
        (0..count).map(|_| pick()).collect()
    }

    #[test]
    fn weights_five_one_one_give_the_published_sequence() {
        let mut policy = round_robin([(A, 5), (B, 1), (C, 1)]);
        assert_eq!(picks(&mut policy, 14), [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn equal_weights_take_turns() {
        let mut policy = round_robin([(A, 3), (B, 3), (C, 3)]);
        assert_eq!(picks(&mut policy, 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_refresh_of_the_same_list_goes_on_where_it_was() {
        let mut policy = round_robin([(A, 5), (B, 1), (C, 1)]);
        let mut sequence = picks(&mut policy, 3);
        policy.endpoints_changed(Endpoints::from([(A, 5), (B, 1), (C, 1)]));
        sequence.extend(picks(&mut policy, 4));
        assert_eq!(sequence, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn turns_follow_the_address_and_not_the_index() {
        let mut policy = round_robin([(A, 1), (B, 1), (C, 1)]);
        assert_eq!(picks(&mut policy, 1), [0]);
        policy.endpoints_changed(Endpoints::from([(C, 1), (B, 1), (A, 1)]));
        assert_eq!(picks(&mut policy, 2), [0, 1], "A has had its turn");
    }

    #[test]
    fn an_endpoint_that_joins_starts_even_and_one_that_leaves_is_forgotten() {
        let mut policy = round_robin([(A, 1), (B, 1)]);
        picks(&mut policy, 1);
        policy.endpoints_changed(Endpoints::from([(A, 1), (C, 1)]));
        let picks = picks(&mut policy, 100);
        assert_eq!(picks.iter().filter(|&&pick| pick == 0).count(), 50);
    }

    #[test]
    fn a_retry_goes_elsewhere_and_takes_nothing_from_the_failed_endpoints_share() {
        let mut policy = round_robin([(A, 5), (B, 1), (C, 1)]);
        let host = MockHost::new();
        let retry = flow().retried_after(0);
        let retries: Vec<_> = (0..4).map(|_| policy.decide(&retry, &host).endpoint()).collect();
        assert_eq!(retries, [Some(1), Some(2), Some(1), Some(2)]);
        assert_eq!(picks(&mut policy, 7), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn a_lone_endpoint_is_tried_again() {
        let mut policy = round_robin([(A, 1)]);
        let decision = policy.decide(&flow().retried_after(0), &MockHost::new());
        assert_eq!(decision, Decision::forward(0));
    }
}
