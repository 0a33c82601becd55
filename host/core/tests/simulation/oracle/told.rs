//! What operators are shown and the access log is told, which is what the peers have seen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use pointsman_core::listing::{Entry, EntryKind, FlowState};
use pointsman_core::proxy::Route;
use pointsman_core::{CloseReason, FlowRecord};

use super::{Flow, Oracle, View};
use crate::introduction;
use crate::world::World;

impl Oracle {
    /// What an operator is shown, by slot: every flow there is, and nothing else.
    pub(crate) fn assert_shown(&self, entries: &[Entry]) {
        let flows = entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::Flow(flow) => Some(flow),
            EntryKind::Kept(_) => None,
        });
        let shown: BTreeMap<SocketAddr, FlowState> =
            flows.map(|flow| (flow.client, flow.state)).collect();
        assert_eq!(shown.len(), self.flows.len());
        for flow in self.flows.values() {
            let state = match shown[&flow.client] {
                FlowState::Closing => (false, false, true),
                FlowState::Prereading => (true, false, false),
                FlowState::Queued => (false, true, false),
                _ => (false, false, false),
            };
            let is_queued = flow.queued.is_some() && !flow.closing;
            let waits = (flow.prereading || flow.head.is_some()) && !flow.closing;
            assert_eq!(state, (waits, is_queued, flow.closing), "{flow:?}");
        }
    }

    /// The access log's record of a flow agrees with what its peers saw.
    pub(crate) fn on_record(&mut self, record: &FlowRecord, world: &World, view: &View<'_>) {
        let Some(flow) = self.ended.remove(&record.client) else {
            assert!(record.endpoint.is_none() && record.bytes == [0, 0], "{record:?}");
            return;
        };
        assert_eq!(record.attempts, flow.attempts, "{record:?}");
        assert_eq!(record.peer, flow.peer, "{record:?}");
        let is_failed = record.reason == CloseReason::UpstreamReset;
        if (flow.established || is_failed) && !flow.answered {
            self.fared.on_unanswered(flow.target, record.reason);
        }
        if record.reason == CloseReason::EndpointDown {
            self.fared.assert_was_lost(flow.target, flow.started);
        }
        let client = &world.conns[flow.conns[0].expect("a flow has a client")];
        let endpoint = flow.conns[1].map(|conn| &world.conns[conn]);
        match (record.reason, endpoint) {
            (CloseReason::Finished, Some(endpoint)) => {
                for (from, to) in [(client, endpoint), (endpoint, client)] {
                    assert!(from.fin_written && from.received == from.written, "{record:?}");
                    let stream = from.received - from.head.len() as u64;
                    assert!(to.taken == stream && to.fin_from_us && !to.reset_from_us);
                }
                assert_eq!(record.bytes, [client.taken, endpoint.taken]);
                let outbound = view.snapshot.clusters[flow.cluster].proxy;
                let is_told = outbound.is_some() || flow.method.announce;
                let told = endpoint.announced.as_ref().map(|header| introduction::read(header));
                let route = Route { client: flow.client, local: flow.local };
                assert_eq!(told, is_told.then_some(route), "{record:?}");
                let has_id = outbound.is_some_and(|outbound| outbound.unique_id);
                assert_eq!(record.unique_id.is_some(), has_id, "{record:?}");
            }
            (CloseReason::DownstreamReset, Some(endpoint)) => {
                let told = endpoint.reset_from_us || !flow.established;
                assert!(client.reset_by_peer && told, "{record:?}");
            }
            (CloseReason::UpstreamReset, Some(endpoint)) => {
                assert!(endpoint.reset_by_peer && client.reset_from_us, "{record:?}");
            }
            (CloseReason::QueueTimeout, _) => {
                let timeout = view.snapshot.clusters[flow.cluster].queue.timeout;
                assert!(record.queued >= timeout && client.reset_from_us, "{record:?}");
            }
            (CloseReason::EndpointsFull, _) => assert!(client.reset_from_us, "{record:?}"),
            (
                CloseReason::ConnectFailed | CloseReason::ConnectTimeout | CloseReason::Descriptors,
                _,
            ) => {
                assert!(client.reset_from_us && !flow.established, "{record:?}");
            }
            (CloseReason::IdleTimeout | CloseReason::HalfClosedTimeout, Some(_)) => {
                let due = flow.progressed + self.timeout_of(&flow, view);
                assert!(due <= world.now, "too early: {record:?}");
            }
            (CloseReason::Shed, Some(_)) if record.connected.is_some() => {
                assert!(flow.had_stalled && client.reset_from_us, "{record:?}");
            }
            (CloseReason::ProxyTimeout, _) => {
                let rule = view.listener(&flow).proxy.as_ref().expect("somebody asks for it");
                assert!(flow.head.is_some() && flow.started + rule.timeout <= world.now);
                assert!(client.reset_from_us, "{record:?}");
            }
            (CloseReason::ProxyInvalid, _) => {
                let head = flow.head.expect("the header is not whole");
                let is_wrong = head.left == 0 && head.route.is_none();
                assert!(is_wrong || client.fin_written, "{record:?}");
                assert!(client.reset_from_us && flow.attempts == 0, "{record:?}");
            }
            _ => {}
        }
        assert!(record.bytes[0] <= client.taken, "{record:?}");
    }

    /// How long it may do nothing.
    pub(super) fn timeout_of(&self, flow: &Flow, view: &View<'_>) -> Duration {
        let timeouts = &view.listener(flow).timeouts;
        if flow.half_closed {
            timeouts.half_closed
        } else {
            flow.method.idle_timeout.unwrap_or(timeouts.idle)
        }
    }
}
