//! What can be simulated: a policy of any shape, with what the balancer does around it.

use crate::parts::{SmoothOrder, hash_address};
use crate::{Decision, Endpoints, Feedback, Flow, Host, Instance, Policy, Report};
use crate::{TableInstance, TablePolicy, WeightsInstance, WeightsPolicy};

/// A policy in a simulation.
pub trait Simulated {
    /// There is a new list of endpoints.
    fn endpoints_changed(&mut self, endpoints: &Endpoints, host: &dyn Host);

    /// There is a new flow.
    fn decide(&mut self, flow: &Flow, host: &dyn Host) -> Decision;

    /// Some time has passed.
    fn tick(&mut self, _report: &Report<'_>, _host: &dyn Host) {}
}

impl<P: Policy> Simulated for Instance<P> {
    fn endpoints_changed(&mut self, endpoints: &Endpoints, _: &dyn Host) {
        self.endpoints_changed(endpoints.clone());
    }

    fn decide(&mut self, flow: &Flow, host: &dyn Host) -> Decision {
        self.decide(flow, host)
    }
}

/// A chooser that hears what became of its flows.
#[derive(Debug)]
pub struct Hearing<P>(pub Instance<P>);

impl<P: Feedback> Simulated for Hearing<P> {
    fn endpoints_changed(&mut self, endpoints: &Endpoints, _: &dyn Host) {
        self.0.endpoints_changed(endpoints.clone());
    }

    fn decide(&mut self, flow: &Flow, host: &dyn Host) -> Decision {
        self.0.decide(flow, host)
    }

    fn tick(&mut self, report: &Report<'_>, host: &dyn Host) {
        self.0.tick(report, host);
    }
}

/// A table, and what looks into it.
#[derive(Debug)]
pub struct Tabled<P> {
    policy: TableInstance<P>,
    table: Vec<u32>,
}

impl<P: TablePolicy> From<TableInstance<P>> for Tabled<P> {
    fn from(policy: TableInstance<P>) -> Self {
        Self { policy, table: Vec::new() }
    }
}

impl<P: TablePolicy> Simulated for Tabled<P> {
    fn endpoints_changed(&mut self, endpoints: &Endpoints, host: &dyn Host) {
        self.table = self.policy.build(endpoints, host).expect("the policy makes a table");
    }

    fn decide(&mut self, flow: &Flow, _: &dyn Host) -> Decision {
        let hash = flow.key().unwrap_or_else(|| hash_address(flow.client().ip()));
        let begin = (hash % self.table.len() as u64) as usize;
        let (end, rest) = self.table.split_at(begin);
        let untried = |entry: &&u32| Some(**entry as usize) != flow.avoid();
        let entry = rest.iter().chain(end).find(untried).unwrap_or(&self.table[begin]);
        Decision::forward(*entry as usize)
    }
}

/// Weights, and the smooth weighted round robin that they steer.
#[derive(Debug)]
pub struct Weighed<P> {
    policy: WeightsInstance<P>,
    order: SmoothOrder,
}

impl<P: WeightsPolicy> From<WeightsInstance<P>> for Weighed<P> {
    fn from(policy: WeightsInstance<P>) -> Self {
        Self { policy, order: SmoothOrder::default() }
    }
}

impl<P: WeightsPolicy> Simulated for Weighed<P> {
    fn endpoints_changed(&mut self, endpoints: &Endpoints, _: &dyn Host) {
        self.order.follow(endpoints);
        self.policy.endpoints_changed(endpoints.clone());
    }

    fn decide(&mut self, flow: &Flow, _: &dyn Host) -> Decision {
        let next = self.order.next(|index| flow.avoid() != Some(index));
        next.map_or(Decision::forward(0), Decision::forward)
    }

    fn tick(&mut self, report: &Report<'_>, host: &dyn Host) {
        if let Some(weights) = self.policy.tick(report.now_ms, report.samples, host) {
            self.order.set_weights(&weights);
        }
    }
}
