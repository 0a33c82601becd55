//! The power of two choices.
//!
//! Of two endpoints drawn at random, the one with fewer flows per weight. That is nearly as even as
//! asking all of them (Mitzenmacher 2001), costs two questions however many there are, and does not
//! herd: those who see the same loads draw different endpoints.
#![forbid(unsafe_code)]

use pointsman_sdk::{Decision, Endpoints, Flow, Host, Policy, export};
use serde::Deserialize;

/// More choices than this are a scan, which a least-flows policy does better.
const CHOICES_MAX: usize = 16;

/// Takes the less loaded of a few endpoints drawn at random.
#[derive(Debug)]
pub struct PowerOfChoices {
    choices: usize,
    /// What cannot be drawn any more, in ascending order. Kept for its memory alone.
    taken: Vec<usize>,
}

/// The policy's config.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How many endpoints are drawn. 2 by default: the second is worth much, the third little.
    choices: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { choices: 2 }
    }
}

export!(PowerOfChoices);

impl Policy for PowerOfChoices {
    type Config = Config;

    fn new(Config { choices }: Config) -> Result<Self, String> {
        if !(1..=CHOICES_MAX).contains(&choices) {
            return Err(format!("choices: expected 1 to {CHOICES_MAX}, found {choices}"));
        }
        Ok(Self { choices, taken: Vec::with_capacity(CHOICES_MAX + 1) })
    }

    fn decide(&mut self, flow: &Flow, endpoints: &Endpoints, host: &dyn Host) -> Decision {
        self.taken.clear();
        self.taken.extend(flow.avoid().filter(|&avoid| avoid < endpoints.len()));
        if self.taken.len() == endpoints.len() {
            // Nothing else is left than what has just failed.
            self.taken.clear();
        }
        let mut rng = flow.rng();
        let mut best: Option<Candidate> = None;
        for _ in 0..self.choices.min(endpoints.len() - self.taken.len()) {
            let index = self.take(rng.below(endpoints.len() - self.taken.len()));
            let candidate = Candidate {
                index,
                flows: u64::from(host.load(index)) + 1,
                weight: endpoints[index].weight().into(),
            };
            if best.as_ref().is_none_or(|best| candidate.is_less_loaded_than(best)) {
                best = Some(candidate);
            }
        }
        best.map_or(Decision::defer(), |best| Decision::forward(best.index))
    }
}

impl PowerOfChoices {
    /// Takes the nth of the indices that are not taken.
    fn take(&mut self, nth: usize) -> usize {
        let mut index = nth;
        let mut place = 0;
        while self.taken.get(place).is_some_and(|&taken| taken <= index) {
            index += 1;
            place += 1;
        }
        self.taken.insert(place, index);
        index
    }
}

/// An endpoint that has been drawn.
struct Candidate {
    index: usize,
    /// What it would have with the new flow, so that idle endpoints are told apart by weight.
    flows: u64,
    weight: u64,
}

impl Candidate {
    /// Compares flows per weight, by products that fit: neither factor exceeds 2³². Of equals, the
    /// one drawn first wins: a matter of chance, as it should be.
    const fn is_less_loaded_than(&self, other: &Self) -> bool {
        self.flows * other.weight < other.flows * self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::{Instance, MockHost, Rng};

    const FOUR: [(&str, u32); 4] =
        [("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("10.0.0.3:80", 1), ("10.0.0.4:80", 1)];

    fn p2c<const N: usize>(config: &str, list: [(&str, u32); N]) -> Instance<PowerOfChoices> {
        let mut policy = Instance::configure(config).unwrap();
        policy.endpoints_changed(Endpoints::from(list));
        policy
    }

    fn flows(count: usize) -> impl Iterator<Item = Flow> {
        let flow = Flow::new("192.0.2.1:5000".parse().unwrap());
        let mut rng = Rng::new(1);
        (0..count).map(move |_| flow.with_random(rng.bits()))
    }

    /// Each flow stays, so loads build up.
    fn filled<const N: usize>(policy: &mut Instance<PowerOfChoices>, count: usize) -> [u32; N] {
        let host = MockHost::new();
        for flow in flows(count) {
            let index = policy.decide(&flow, &host).endpoint().unwrap();
            host.set_load(index, host.load(index) + 1);
        }
        std::array::from_fn(|index| host.load(index))
    }

    #[test]
    fn of_two_the_less_loaded_is_taken() {
        let mut policy = p2c("null", [FOUR[0], FOUR[1]]);
        let host = MockHost::with_loads(&[5, 4]);
        assert!(flows(100).all(|flow| policy.decide(&flow, &host) == Decision::forward(1)));
    }

    #[test]
    fn loads_stay_within_a_few_flows_of_each_other() {
        let loads: [u32; 4] = filled(&mut p2c("null", FOUR), 10_000);
        assert!(loads.iter().all(|load| load.abs_diff(2_500) < 10), "{loads:?}");
    }

    #[test]
    fn loads_follow_the_weights() {
        let weighted = [("10.0.0.1:80", 3), ("10.0.0.2:80", 1)];
        let loads: [u32; 2] = filled(&mut p2c("null", weighted), 4_000);
        assert_eq!(loads, [3_000, 1_000]);
    }

    #[test]
    fn idle_endpoints_come_up_equally_often() {
        let mut policy = p2c("null", FOUR);
        let mut counts = [0_u32; 4];
        for flow in flows(10_000) {
            counts[policy.decide(&flow, &MockHost::new()).endpoint().unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(2_500) < 200), "{counts:?}");
    }

    #[test]
    fn the_most_loaded_endpoint_is_never_taken_and_the_least_loaded_half_the_time() {
        let mut policy = p2c("null", FOUR);
        let host = MockHost::with_loads(&[9, 3, 1, 2]);
        let mut counts = [0_u32; 4];
        for flow in flows(12_000) {
            counts[policy.decide(&flow, &host).endpoint().unwrap()] += 1;
        }
        // Of the six pairs, index 2 wins three, index 3 two and index 1 one.
        assert_eq!(counts[0], 0);
        let expected = [0, 2_000, 6_000, 4_000];
        assert!(std::iter::zip(counts, expected).all(|(c, e)| c.abs_diff(e) < 250), "{counts:?}");
    }

    #[test]
    fn as_many_choices_as_endpoints_find_the_least_loaded() {
        let mut policy = p2c(r#"{ "choices": 4 }"#, FOUR);
        let host = MockHost::with_loads(&[9, 3, 1, 2]);
        assert!(flows(100).all(|flow| policy.decide(&flow, &host) == Decision::forward(2)));
    }

    #[test]
    fn a_retry_never_takes_the_endpoint_that_failed_however_idle_it_is() {
        let mut policy = p2c("null", FOUR);
        let host = MockHost::with_loads(&[7, 0, 7, 7]);
        let retries = flows(1_000).map(|flow| flow.retried_after(1));
        let picks: Vec<_> = retries.map(|flow| policy.decide(&flow, &host).endpoint()).collect();
        assert!(!picks.contains(&Some(1)));
        assert!([0, 2, 3].iter().all(|&other| picks.contains(&Some(other))));
    }

    #[test]
    fn a_lone_endpoint_is_tried_again() {
        let mut policy = p2c("null", [FOUR[0]]);
        let flow = flows(1).next().unwrap().retried_after(0);
        assert_eq!(policy.decide(&flow, &MockHost::new()), Decision::forward(0));
    }

    #[test]
    fn an_index_to_avoid_from_a_longer_list_takes_nothing_away() {
        let mut policy = p2c("null", [FOUR[0], FOUR[1]]);
        let host = MockHost::with_loads(&[1, 0]);
        let mut retries = flows(100).map(|flow| flow.retried_after(7));
        assert!(retries.all(|flow| policy.decide(&flow, &host) == Decision::forward(1)));
    }

    #[test]
    fn a_config_without_a_choice_is_refused() {
        for (config, message) in [
            (r#"{ "choices": 0 }"#, "choices: expected 1 to 16, found 0"),
            (r#"{ "choises": 2 }"#, "unknown key `choises`, expected `choices`"),
        ] {
            assert_eq!(Instance::<PowerOfChoices>::configure(config).unwrap_err(), message);
        }
    }
}
