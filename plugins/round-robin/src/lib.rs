//! Smooth weighted round robin.
//!
//! nginx's construction: at each pick every endpoint is owed its weight more, the one that is owed
//! most (the first of several) takes the turn, and pays the sum of the weights for it. Weights
//! 5, 1, 1 give `a a b a c a a`: as even as the weights allow, where counting down would give
//! `a a a a a b c`.
//!
//! Turns belong to addresses, so a new list of endpoints changes nothing for those that stay. Each
//! worker counts for itself.
#![forbid(unsafe_code)]

use pointsman_sdk::{Decision, Endpoint, Endpoints, Flow, Host, NoConfig, Policy, export};

/// Takes turns, in proportion to the weights.
#[derive(Debug, Default)]
pub struct RoundRobin {
    /// One per endpoint, in the order of the list.
    turns: Vec<Turn>,
}

#[derive(Debug)]
struct Turn {
    address: String,
    /// Over all endpoints the sum changes only with the list, and none is further from zero than
    /// the weights' sum.
    owed: i64,
}

export!(RoundRobin);

impl Policy for RoundRobin {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self::default())
    }

    fn endpoints_changed(&mut self, endpoints: &Endpoints) {
        let mut begin = 0;
        let turns = endpoints.iter().map(|endpoint| {
            let found = self.position(endpoint, begin);
            begin = found.map_or(begin, |index| index + 1);
            let owed = found.map_or(0, |index| self.turns[index].owed);
            Turn { address: endpoint.address().to_owned(), owed }
        });
        self.turns = turns.collect();
    }

    fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, _: &dyn Host) -> Decision {
        let avoid = flow.avoid().filter(|_| endpoints.len() > 1);
        let mut sum = 0;
        let mut next: Option<(usize, &mut Turn)> = None;
        for (index, (turn, endpoint)) in self.turns.iter_mut().zip(endpoints.iter()).enumerate() {
            if avoid == Some(index) {
                continue;
            }
            let weight = i64::from(endpoint.weight());
            turn.owed += weight;
            sum += weight;
            if next.as_ref().is_none_or(|(_, other)| turn.owed > other.owed) {
                next = Some((index, turn));
            }
        }
        let Some((index, turn)) = next else { return Decision::defer() };
        turn.owed -= sum;
        Decision::forward(index)
    }
}

impl RoundRobin {
    /// Where an endpoint was in the last list. A new list mostly keeps the order of the old one, so
    /// the search begins after what was found last.
    fn position(&self, endpoint: &Endpoint, begin: usize) -> Option<usize> {
        let mut indices = (begin..self.turns.len()).chain(0..begin);
        indices.find(|&index| self.turns[index].address == endpoint.address())
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
        let picks: Vec<_> = (0..4).map(|_| policy.decide(&retry, &host).endpoint()).collect();
        assert_eq!(picks, [Some(1), Some(2), Some(1), Some(2)]);
        assert_eq!(policy.policy().turns[0].owed, 0);
    }

    #[test]
    fn a_lone_endpoint_is_tried_again() {
        let mut policy = round_robin([(A, 1)]);
        let decision = policy.decide(&flow().retried_after(0), &MockHost::new());
        assert_eq!(decision, Decision::forward(0));
    }

    #[test]
    fn what_is_owed_stays_bounded_under_the_largest_weights() {
        let mut policy = round_robin([(A, u32::MAX), (B, u32::MAX), (C, 1)]);
        picks(&mut policy, 10_000);
        let owed = policy.policy().turns.iter().map(|turn| turn.owed);
        assert_eq!(owed.clone().sum::<i64>(), 0);
        assert!(owed.map(i64::abs).all(|owed| owed <= 2 * i64::from(u32::MAX) + 1));
    }
}
