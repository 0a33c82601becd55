//! The application keys of flows that go on: the allocator is to know them for as long.

use super::flow::Flow;
use super::{Datagrams, Turn};
use crate::stats::DropReason;

impl Datagrams {
    /// The endpoint has told the client another key to come back with.
    pub(super) fn learn(&mut self, turn: &mut Turn<'_>, number: u32, key: u64) {
        let flow = *self.table.flow(number);
        let Some(details) = self.table.details(number) else { return };
        if details.keys.contains(&Some(key)) {
            return;
        }
        details.keys[1] = Some(key);
        self.keep_keys(turn, &flow);
    }

    /// The endpoint has answered a flow whose key was not worth keeping before.
    pub(super) fn keep_answered(&mut self, turn: &mut Turn<'_>, number: u32) {
        let flow = *self.table.flow(number);
        let Some(binding) = self.bindings.get(flow.binding) else { return };
        let Some(details) = self.table.details_of(&flow) else { return };
        let Some(key) = details.keys[0] else { return };
        let listener = turn.listener(flow.listener);
        let lasting = (turn.now, listener.timeouts.idle, true);
        let known = (binding.endpoint.id, flow.policy_generation.into());
        if !turn.allocator.keep_key(lasting, binding.cluster, (key, details.method), known) {
            turn.stats.listener(flow.listener).on_drops(DropReason::FlowTableFull, 1);
        }
    }

    /// Has the allocator know a flow's keys for longer than its timer takes to come by again: the one
    /// it came with if a decision that slides is kept for it, and the one its endpoint gave it in any case.
    pub(super) fn keep_keys(&mut self, turn: &mut Turn<'_>, flow: &Flow) {
        let listener = turn.listener(flow.listener);
        let Some(binding) = self.bindings.get(flow.binding) else { return };
        let Some(details) = self.table.details_of(flow) else { return };
        let ttl = 2 * details.method.idle_timeout.unwrap_or(listener.timeouts.idle);
        let [came_with, given] = details.keys;
        if let Some(key) = came_with {
            turn.allocator.use_key((turn.now, ttl), binding.cluster, key);
        }
        let known = (binding.endpoint.id, flow.policy_generation.into());
        if let Some(key) = given
            && !turn.allocator.keep_key(
                (turn.now, ttl, false),
                binding.cluster,
                (key, details.method),
                known,
            )
        {
            turn.stats.listener(flow.listener).on_drops(DropReason::FlowTableFull, 1);
        }
    }
}
