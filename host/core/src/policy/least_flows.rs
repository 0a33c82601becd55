//! Weighted least flows: the endpoint with the smallest (active + 1) / weight over all workers;
//! ties go to the smooth weighted order, so that idle endpoints take turns.

use alloc::sync::Arc;

use super::round_robin::SmoothOrder;
use super::{Choice, Decided, Decision, EndpointIndex, Flow, Policy, Source};
use crate::snapshot::{Candidates, Endpoint};

/// The endpoint with the fewest flows for its weight.
#[derive(Debug, Default)]
pub struct LeastFlows {
    order: SmoothOrder,
}

impl LeastFlows {
    /// Starts with the first endpoint where all are idle.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for LeastFlows {
    fn decide(&mut self, flow: &Flow<'_>, among: &Arc<Candidates>) -> Decided {
        self.order.follow(among);
        let choice = Choice::of(flow, among);
        let may = |endpoint: &Endpoint| choice.holds(flow, endpoint);
        let least = among
            .endpoints
            .iter()
            .filter(|endpoint| may(endpoint))
            .map(Cost::of)
            .reduce(|least, cost| if cost.is_below(least) { cost } else { least });
        let next = least.and_then(|least| {
            self.order.next(among, |endpoint| may(endpoint) && !least.is_below(Cost::of(endpoint)))
        });
        let decision = Decision::forward_related(flow, next.unwrap_or(EndpointIndex(0)));
        Decided { decision, source: Source::Native }
    }
}

/// Flows per weight, compared without dividing.
#[derive(Clone, Copy)]
struct Cost {
    flows: u64,
    weight: u64,
}

impl Cost {
    fn of(endpoint: &Endpoint) -> Self {
        let flows = u64::from(endpoint.load.flows_active()) + 1;
        Self { flows, weight: u64::from(endpoint.weight) }
    }

    fn is_below(self, other: Self) -> bool {
        self.flows * other.weight < other.flows * self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::policy::testing::{candidates, choices, flow};
    use crate::snapshot::EndpointId;

    #[test]
    fn the_endpoint_with_the_fewest_flows_for_its_weight_is_chosen() {
        let among = candidates(1, &[1, 4, 1]);
        for _ in 0..2 {
            among.endpoints[1].load.on_flow_started();
        }
        among.endpoints[0].load.on_flow_started();
        among.endpoints[2].load.on_flow_started();
        assert_eq!(choices(&mut LeastFlows::new(), &among, 1), [1]);
    }

    #[test]
    fn idle_endpoints_take_turns() {
        let among = candidates(1, &[1, 1, 1]);
        assert_eq!(choices(&mut LeastFlows::new(), &among, 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_full_endpoint_is_avoided_although_it_has_the_fewest_flows() {
        let mut among = candidates(1, &[1, 1]);
        Arc::get_mut(&mut among).unwrap().endpoints[0].flows_max = 1;
        among.endpoints[0].load.on_flow_started();
        (0..5).for_each(|_| among.endpoints[1].load.on_flow_started());
        assert_eq!(choices(&mut LeastFlows::new(), &among, 1), [1]);
    }

    #[test]
    fn an_endpoint_that_failed_is_avoided_however_idle() {
        let among = candidates(1, &[1, 1]);
        among.endpoints[1].load.on_flow_started();
        let decided = LeastFlows::new().decide(&flow(1, &[EndpointId(0)]), &among);
        assert_eq!(decided.decision.verdict, Verdict::Forward(EndpointIndex(1)));
    }
}
