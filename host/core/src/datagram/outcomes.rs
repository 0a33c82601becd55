//! What flows of datagrams tell of their endpoints: that there is no way to them, or no answer.

use super::flow::Flow;
use super::{Datagrams, Turn};
use crate::boundary::PortId;
use crate::stats::CloseReason;

impl Datagrams {
    /// The endpoint of a flow that has a port of its own cannot be reached. If it has never
    /// replied, the client's next try is given to another.
    pub(crate) fn on_port_unreachable(&mut self, turn: &mut Turn<'_>, port: PortId) {
        let Some(number) = self.ports.owner(port) else { return };
        let flow = *self.table.flow(number);
        self.bindings.of_flow(flow.binding).endpoint.load.on_connect_failed(turn.now);
        if !flow.is_confirmed() {
            self.end(turn, number, CloseReason::ConnectFailed);
        }
    }

    /// The endpoint has replied to a flow for the first time.
    pub(super) fn on_first_reply(&self, turn: &Turn<'_>, flow: &Flow) {
        let load = &self.bindings.of_flow(flow.binding).endpoint.load;
        load.on_answered();
        load.on_served(turn.now);
    }

    /// A flow ends in idleness. Where the client is owed a reply and never got one, the endpoint is
    /// to blame; elsewhere silence says nothing.
    pub(super) fn on_idle(&self, turn: &Turn<'_>, flow: &Flow) {
        let replies_expected = turn.listener(flow.listener).datagrams.replies_expected;
        if replies_expected > 0
            && !flow.is_confirmed()
            && let Some(binding) = self.bindings.get(flow.binding)
        {
            binding.endpoint.load.on_broken(turn.now);
        }
    }
}
