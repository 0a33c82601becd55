//! Whose place a new flow may have where there is none.
//!
//! A flow whose endpoint has never replied gives its own, whatever it is that is full: the listener, all
//! listeners, the table, the ports or the endpoints. So whoever sends without ever being answered keeps
//! no client out that would be.

use core::net::SocketAddr;

use super::flow::Flow;
use super::{Datagrams, Turn};
use crate::boundary::{ListenerId, PortId};
use crate::stats::CloseReason;

impl Datagrams {
    /// Takes the place of a flow, of this listener if one is named. Tells whether there was one to be
    /// had.
    pub(super) fn evict(&mut self, turn: &mut Turn<'_>, of: Option<ListenerId>) -> bool {
        let victim = self.table.victim(turn.now, of);
        self.has_made_room(turn, victim)
    }

    /// Where every port serves the endpoint: the port of a flow without a reply, which has to give
    /// its place, if its reply is hardly to be expected any more: that would reach the other. Where
    /// flows have ports of their own, the listener's endpoints vie for one number of them, so the flow
    /// may be any endpoint's; its port is closed first, and makes room for the next flow.
    pub(super) fn take_over_port(
        &mut self,
        turn: &mut Turn<'_>,
        (binding, client): (u32, SocketAddr),
    ) -> Option<PortId> {
        let wish = turn.wish_of(client, self.bindings.of_flow(binding));
        let (owns, ports) = (wish.wants_its_own(), &self.ports);
        let helps = |flow: &Flow| match owns {
            true => ports.owner(flow.port).is_some(),
            false => flow.binding == binding,
        };
        let number = self.table.silent(turn.now, wish.listener, helps)?;
        self.end(turn, number, CloseReason::Evicted);
        self.take_port(turn, (binding, client))
    }

    /// Where every endpoint of the listener's cluster is full: has a flow without a reply give its
    /// place at one of them. Tells whether there was one. None does while others wait in the cluster:
    /// the place would be theirs.
    pub(super) fn evict_from_endpoint(&mut self, turn: &mut Turn<'_>, of: ListenerId) -> bool {
        let id = turn.listener(of).cluster;
        let cluster = &turn.snapshot.clusters[id.index()];
        if cluster.queue.is_awaited() {
            return false;
        }
        let (bindings, among) = (&self.bindings, &cluster.candidates);
        let helps = |flow: &Flow| {
            let bound = bindings.get(flow.binding).filter(|bound| bound.cluster == id);
            bound.is_some_and(|bound| among.find(bound.endpoint.id).is_some())
        };
        let victim = self.table.victim_among(turn.now, of, helps);
        self.has_made_room(turn, victim)
    }

    /// Ends the flow that gives its place, if there is one, and tells whether there is.
    fn has_made_room(&mut self, turn: &mut Turn<'_>, victim: Option<u32>) -> bool {
        if let Some(number) = victim {
            self.end(turn, number, CloseReason::Evicted);
        }
        victim.is_some()
    }
}
