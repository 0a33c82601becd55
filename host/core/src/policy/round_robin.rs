//! Smooth weighted round robin, as in NGINX (`ngx_http_upstream_round_robin.c`): each choice adds
//! every endpoint's weight to its standing, takes the one that stands highest and takes the sum
//! of all weights off it. Weights 5, 1, 1 give a a b a c a a, not five a in a row.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Choice, Decided, Decision, EndpointIndex, Flow, Policy, Source};
use crate::snapshot::{Candidates, Endpoint, EndpointId, Generation};

/// Standing of one endpoint.
#[derive(Debug, Clone, Copy)]
struct Standing {
    id: EndpointId,
    value: i64,
}

/// The smooth order, shared by the policies that need one.
#[derive(Debug, Default)]
pub(super) struct SmoothOrder {
    generation: Option<Generation>,
    standings: Vec<Standing>,
}

impl SmoothOrder {
    /// Takes over a changed list; endpoints that stay keep their standing.
    pub(super) fn follow(&mut self, among: &Candidates) {
        if self.generation == Some(among.generation) {
            return;
        }
        self.generation = Some(among.generation);
        let old = core::mem::take(&mut self.standings);
        // A new list mostly keeps the order of the old one, so the search for each begins after what
        // was found last: a list of thousands must not hold a worker up.
        let mut begin = 0;
        let standing_of = |endpoint: &Endpoint| {
            let mut places = (begin..old.len()).chain(0..begin);
            let found = places.find(|&place| old[place].id == endpoint.id);
            begin = found.map_or(begin, |place| place + 1);
            found.map_or(Standing { id: endpoint.id, value: 0 }, |place| old[place])
        };
        self.standings = among.endpoints.iter().map(standing_of).collect();
    }

    /// The next in order among the endpoints that `may` be taken; the first on ties.
    pub(super) fn next(
        &mut self,
        among: &Candidates,
        may: impl Fn(&Endpoint) -> bool,
    ) -> Option<EndpointIndex> {
        let mut sum = 0;
        let mut best: Option<usize> = None;
        for (place, endpoint) in among.endpoints.iter().enumerate() {
            if !may(endpoint) {
                continue;
            }
            let weight = i64::from(endpoint.weight);
            sum += weight;
            self.standings[place].value += weight;
            if best.is_none_or(|best| self.standings[place].value > self.standings[best].value) {
                best = Some(place);
            }
        }
        self.standings[best?].value -= sum;
        best.map(|place| EndpointIndex(place as u32))
    }
}

/// Endpoints in turn, by weight.
#[derive(Debug, Default)]
pub struct RoundRobin {
    order: SmoothOrder,
}

impl RoundRobin {
    /// Starts with the first endpoint.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for RoundRobin {
    fn decide(&mut self, flow: &Flow<'_>, among: &Arc<Candidates>) -> Decided {
        self.order.follow(among);
        let choice = Choice::of(flow, among);
        let next = self.order.next(among, |endpoint| choice.holds(flow, endpoint));
        let decision = Decision::forward_related(flow, next.unwrap_or(EndpointIndex(0)));
        Decided { decision, source: Source::Native }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::policy::testing::{candidates, choices, flow};

    #[test]
    fn weights_5_1_1_give_the_order_of_nginx() {
        let among = candidates(1, &[5, 1, 1]);
        let mut policy = RoundRobin::new();
        assert_eq!(choices(&mut policy, &among, 14), [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn a_changed_list_does_not_start_the_order_again() {
        let mut policy = RoundRobin::new();
        assert_eq!(choices(&mut policy, &candidates(1, &[1, 1, 1]), 1), [0]);
        assert_eq!(choices(&mut policy, &candidates(2, &[1, 1, 1]), 2), [1, 2]);
    }

    #[test]
    fn a_retry_goes_to_an_endpoint_that_has_not_failed() {
        let among = candidates(1, &[5, 1]);
        let mut policy = RoundRobin::new();
        let tried = [EndpointId(0)];
        for _ in 0..10 {
            let decided = policy.decide(&flow(1, &tried), &among);
            assert_eq!(decided.decision.verdict, Verdict::Forward(EndpointIndex(1)));
        }
    }

    #[test]
    fn a_full_endpoint_has_no_turn_and_the_others_share_it() {
        let mut among = candidates(1, &[1, 1, 1]);
        Arc::get_mut(&mut among).unwrap().endpoints[1].flows_max = 1;
        among.endpoints[1].load.on_flow_started();
        assert_eq!(choices(&mut RoundRobin::new(), &among, 4), [0, 2, 0, 2]);
    }

    #[test]
    fn an_endpoint_that_failed_is_tried_again_before_one_that_is_full() {
        let mut among = candidates(1, &[1, 1]);
        Arc::get_mut(&mut among).unwrap().endpoints[1].flows_max = 0;
        let decided = RoundRobin::new().decide(&flow(1, &[EndpointId(0)]), &among);
        assert_eq!(decided.decision.verdict, Verdict::Forward(EndpointIndex(0)));
    }

    #[test]
    fn with_every_endpoint_tried_one_is_tried_again() {
        let among = candidates(1, &[1, 1]);
        let tried = [EndpointId(0), EndpointId(1)];
        let decided = RoundRobin::new().decide(&flow(2, &tried), &among);
        assert_eq!(decided.decision.verdict, Verdict::Forward(EndpointIndex(0)));
    }
}
