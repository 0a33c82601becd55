//! What an operator sees of the flows of datagrams, and forgets.

use core::net::SocketAddr;

use super::{Datagrams, Turn};
use crate::listing::{Entry, EntryId, EntryKind, FlowEntry, FlowState};
use crate::snapshot::{Protocol, Snapshot};
use crate::stats::CloseReason;
use crate::time::Instant;

impl Datagrams {
    /// Ends the flow with this name; tells whether there was one.
    pub(crate) fn forget(&mut self, turn: &mut Turn<'_>, number: u32, stamp: u32) -> bool {
        let is_it = self.table.get(number).is_some_and(|flow| u32::from(flow.stamp) == stamp);
        if is_it {
            self.end(turn, number, CloseReason::Forgotten);
        }
        is_it
    }

    /// One more than the highest entry in which there may be a flow.
    pub(crate) fn entries_end(&self) -> u32 {
        self.table.entries_end()
    }

    /// Shows the flow in an entry, if there is one.
    pub(crate) fn entry(&self, now: Instant, number: u32, snapshot: &Snapshot) -> Option<Entry> {
        let flow = self.table.get(number)?;
        let details = self.table.details_of(flow);
        let key = flow.key(details);
        let listener = snapshot.listener(flow.listener);
        let binding = self.bindings.get(flow.binding);
        let endpoint = binding.map(|binding| &binding.endpoint);
        let state = match endpoint {
            None => FlowState::Denied,
            Some(_) if flow.is_confirmed() => FlowState::Established,
            Some(_) => FlowState::Unconfirmed,
        };
        Some(Entry {
            id: EntryId::datagrams(number, flow.stamp.into()),
            cluster: binding.map_or(listener.cluster, |binding| binding.cluster),
            endpoint: endpoint.map(|endpoint| endpoint.id),
            policy_generation: flow.policy_generation.into(),
            kind: EntryKind::Flow(FlowEntry {
                listener: flow.listener,
                protocol: Protocol::Udp,
                client: key.client,
                local: SocketAddr::new(key.local, listener.address.port()),
                endpoint_address: endpoint.map(|endpoint| endpoint.address),
                state,
                source: Some(flow.source),
                tag: details.map_or(0, |details| details.method.tag),
                started: flow.started.to_instant(now),
                last_active: flow.last_active.to_instant(now),
                bytes: flow.bytes(),
                datagrams: flow.datagrams.map(u64::from),
            }),
        })
    }
}
