//! Flows of datagrams go over to another process, with their ports.
//!
//! They end here without having ended: no record, no word to a policy. What they took of limits and
//! loads is given back, since it is counted where they go on.

use super::flow::{Flow, NONE};
use super::table::Walk;
use super::{Datagrams, Turn};
use crate::handover::{Handed, HandedFlow, HandedTarget};
use crate::policy::Method;
use crate::snapshot::Snapshot;
use crate::stats::CloseReason;

impl Datagrams {
    /// Names the ports that will go, with the flows of all listeners that are open. Ports without a flow
    /// stay, as do the flows of listeners that are on their way out.
    pub(crate) fn begin_handing_over(&mut self, snapshot: &Snapshot, handed: &mut Handed) {
        let is_open = |listener| snapshot.listener(listener).is_open();
        handed.ports = self.ports.begin_handing_over(is_open);
        self.bindings.forget_lanes(is_open);
        handed.flows.reserve(self.table.len() as usize);
    }

    /// Gives away some flows. There is none left if any of `steps` are.
    pub(crate) fn hand_over(
        &mut self,
        turn: &mut Turn<'_>,
        (walk, steps): (&mut Walk, &mut u32),
        handed: &mut Handed,
    ) {
        let snapshot = turn.snapshot;
        let is_open = |listener| snapshot.listener(listener).is_open();
        while let Some(number) = self.table.next_to_leave(walk, is_open, steps) {
            let flow = *self.table.flow(number);
            if flow.port.0 != NONE && self.ports.has_failed(flow.port) {
                self.end(turn, number, CloseReason::Descriptors);
                continue;
            }
            handed.flows.push(self.describe(turn, number, &flow));
            self.give_away(turn, number);
        }
    }

    fn describe(&self, turn: &Turn<'_>, number: u32, flow: &Flow) -> HandedFlow {
        let now = turn.now;
        let details = self.table.details_of(flow);
        let key = flow.key(details);
        let target = match self.bindings.get(flow.binding) {
            Some(binding) => HandedTarget::Endpoint {
                cluster: binding.cluster,
                address: binding.endpoint.address,
                port: flow.port,
            },
            None => HandedTarget::Denied {
                reset: flow.denial() == Some(CloseReason::DeniedReset),
                remaining: self.table.due(number).since(now),
            },
        };
        HandedFlow {
            listener: flow.listener,
            client: key.client,
            local: key.local,
            target,
            method: details.map_or(Method::DEFAULT, |details| details.method),
            keys: details.map_or([None; 2], |details| details.keys),
            policy_generation: flow.policy_generation,
            source: flow.source,
            age: now.since(flow.started.to_instant(now)),
            silent: now.since(flow.last_active.to_instant(now)),
            bytes: flow.bytes(),
            datagrams: flow.datagrams,
            hidden: flow.is_hidden(),
            resent: flow.is_referenced(),
            keeps_when_answered: flow.keeps_when_answered(),
        }
    }

    fn give_away(&mut self, turn: &mut Turn<'_>, number: u32) {
        let Flow { binding, port, .. } = *self.table.flow(number);
        if let Some(bound) = self.bindings.get(binding) {
            self.table.unbind(number, bound.endpoint.address);
            turn.leave((bound.cluster, &bound.endpoint));
            self.ports.on_flow_handed_over(port);
            self.bindings.on_unbound(binding);
        }
        let (flow, details) = self.table.remove(number);
        turn.listener(flow.listener).give_back(flow.key(details.as_ref()).client.ip());
        turn.stats.listener(flow.listener).on_flow_handed_over();
    }
}
