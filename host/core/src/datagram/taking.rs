//! Flows of datagrams that another process had go on here.
//!
//! They are established, so limits do not keep them out: they are counted, and who is new waits. But
//! nothing is believed of what is told of them. Whatever cannot be true, or has no place here, is left
//! out for a named reason; its client starts anew with its next datagram.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use super::bindings::Place;
use super::flow::{Details, Flow, FlowKey};
use super::{Datagrams, TRIM_INTERVAL, Turn};
use crate::boundary::{ListenerId, PortId, PortKind, Side};
use crate::handover::{HandedFlow, HandedPort, HandedTarget, TakenOver, TakenPort};
use crate::policy::Method;
use crate::snapshot::{ClusterId, Endpoint, EndpointsByAddress, OnEndpointDown};
use crate::stats::Untaken;

/// More than any flow has moved, and so few that it can go on for ever.
const BYTES_MAX: u64 = u64::MAX / 2;

/// What flows may name.
struct Known<'a> {
    /// The ports that have come, by their numbers before.
    ports: BTreeMap<PortId, ComingPort>,
    /// Endpoints that are configured.
    endpoints: &'a EndpointsByAddress<'a>,
    /// Endpoints that have had flows, with their bindings.
    bound: BTreeMap<Place, u32>,
}

/// A port that has come.
struct ComingPort {
    place: usize,
    listener: ListenerId,
    connected: bool,
    /// What it is here, once a flow has needed it.
    taken: Option<TakenPort>,
}

/// A flow's way to an endpoint.
struct Way {
    cluster: ClusterId,
    endpoint: Endpoint,
    port: PortId,
}

impl Datagrams {
    /// Takes in all flows that have a place here, with the ports that they need; `endpoints` are those of
    /// the turn's snapshot.
    pub(crate) fn take_over(
        &mut self,
        turn: &mut Turn<'_>,
        (flows, ports): (&[HandedFlow], &[HandedPort]),
        endpoints: &EndpointsByAddress<'_>,
        taken: &mut TakenOver,
    ) -> Vec<TakenPort> {
        let mut known =
            Known { ports: coming(ports), endpoints, bound: self.bindings.by_address() };
        for flow in flows {
            match self.take_in(turn, flow, &mut known) {
                Ok(()) => taken.flows += 1,
                Err(reason) => {
                    taken.untaken[reason.index()] += 1;
                    turn.stats.untaken_total[reason.index()] += 1;
                }
            }
        }
        self.bindings.settle_lanes();
        if self.trim_at.is_none() {
            self.trim_at = Some(turn.now + TRIM_INTERVAL);
        }
        known.ports.into_values().filter_map(|port| port.taken).collect()
    }

    fn take_in(
        &mut self,
        turn: &mut Turn<'_>,
        handed: &HandedFlow,
        known: &mut Known<'_>,
    ) -> Result<(), Untaken> {
        let HandedFlow { listener, client, local, .. } = *handed;
        let handed = &within_bounds(handed);
        if !self.receives(listener) {
            return Err(Untaken::Listener);
        }
        if !self.table.has_place() {
            return Err(Untaken::FlowTableFull);
        }
        let key = FlowKey { listener, client, local };
        if !handed.hidden && self.table.find_by_client(&key).is_some() {
            return Err(Untaken::Duplicate);
        }
        let way = match handed.target {
            HandedTarget::Denied { .. } => None,
            HandedTarget::Endpoint { cluster, address, port } => {
                let endpoint = self.endpoint_for(turn, (listener, cluster, address), known)?;
                let coming = known.ports.get_mut(&port).filter(|port| port.listener == listener);
                let coming = coming.ok_or(Untaken::Port)?;
                let port = self.port_for(turn, address, coming).ok_or(Untaken::Port)?;
                Some(Way { cluster, endpoint, port })
            }
        };
        let number = self.restore(turn, &key, handed);
        turn.listener(listener).take_in(client.ip());
        turn.stats.listener(listener).on_flow_taken_over();
        if let Some(way) = way {
            self.lead(turn, (listener, number), &way);
        }
        Ok(())
    }

    /// The endpoint at an address, if the flow may stay there or be given another. One that is no longer
    /// configured is known where it has had flows.
    fn endpoint_for(
        &self,
        turn: &Turn<'_>,
        place: Place,
        known: &Known<'_>,
    ) -> Result<Endpoint, Untaken> {
        let (listener, cluster, address) = place;
        let configured = known.endpoints.get(&(cluster, address)).copied();
        let bound = || Some(&self.bindings.of_flow(*known.bound.get(&place)?).endpoint);
        let found = configured.or_else(bound).ok_or(Untaken::Endpoint)?;
        let serves = turn.snapshot.clusters[cluster.index()].serves(found.id);
        match turn.listener(listener).on_endpoint_down {
            OnEndpointDown::Drop | OnEndpointDown::Reset if !serves => Err(Untaken::EndpointDown),
            _ => Ok(found.clone()),
        }
    }

    /// The number here of a port that has come, if a flow to this endpoint may go through it.
    fn port_for(
        &mut self,
        turn: &Turn<'_>,
        towards: SocketAddr,
        coming: &mut ComingPort,
    ) -> Option<PortId> {
        let ComingPort { place, listener, connected, .. } = *coming;
        if let Some(TakenPort { port, kind, .. }) = coming.taken {
            let endpoint_of = |binding| self.bindings.of_flow(binding).endpoint.address;
            let is_free = self.table.find_by_reply(port, towards, endpoint_of).is_none();
            let suits = !connected && kind.towards.is_ipv4() == towards.is_ipv4();
            return (suits && is_free).then_some(port);
        }
        let port = self.ports.take_in(listener, towards, connected)?;
        let offload = turn.listener(listener).datagrams.offload;
        let kind = PortKind { towards, connected, from: None, makes_way: false, offload };
        coming.taken = Some(TakenPort { place, port, kind });
        Some(port)
    }

    /// Makes a flow anew, as it was.
    fn restore(&mut self, turn: &Turn<'_>, key: &FlowKey, handed: &HandedFlow) -> u32 {
        let (now, listener) = (turn.now, turn.listener(key.listener));
        let mut flow = Flow::new(now, key, handed.hidden);
        flow.set_ages(now, handed.age, handed.silent);
        flow.set_referenced(handed.resent);
        flow.set_keeps_when_answered(handed.keeps_when_answered);
        flow.source = handed.source;
        let (cluster, due) = match handed.target {
            HandedTarget::Denied { reset, remaining } => {
                flow.set_denied(reset);
                (listener.cluster, now + remaining)
            }
            HandedTarget::Endpoint { cluster, .. } => {
                let timeout = handed.method.idle_timeout.unwrap_or(listener.timeouts.idle);
                (cluster, flow.last_active.to_instant(now) + timeout)
            }
        };
        let newest = turn.allocator.generation(cluster);
        flow.policy_generation = u64::from(handed.policy_generation).min(newest) as u32;
        let mut details = Details::of(now, key, handed.method, handed.keys[0]);
        if let Some(details) = &mut details {
            details.keys = handed.keys;
        }
        let number = self.table.insert(flow, details, due);
        if matches!(handed.target, HandedTarget::Endpoint { .. }) {
            if handed.datagrams[Side::Downstream.index()] > 0 {
                self.table.on_confirmed(number);
            }
            self.table.flow(number).set_counts(handed.bytes, handed.datagrams);
        }
        number
    }

    /// Gives a flow its way, and its place at the endpoint.
    fn lead(&mut self, turn: &mut Turn<'_>, (listener, number): (ListenerId, u32), way: &Way) {
        let Way { cluster, endpoint, port } = way;
        endpoint.load.on_flow_taken_over();
        let binding = self.bindings.number_in(turn.snapshot, listener, (*cluster, endpoint));
        self.bind(number, binding, *port);
        self.ports.on_flow_taken_over(*port, self.bindings.lane(binding));
        if !self.bindings.of_flow(binding).serves {
            self.sweep_all();
        }
        let flow = *self.table.flow(number);
        self.keep_keys(turn, &flow);
    }
}

/// Of several with one number the first.
fn coming(ports: &[HandedPort]) -> BTreeMap<PortId, ComingPort> {
    let numbered = ports.iter().enumerate().rev().map(|(place, handed)| {
        let HandedPort { port, listener, connected } = *handed;
        (port, ComingPort { place, listener, connected, taken: None })
    });
    numbered.collect()
}

/// A flow of which nothing lasts longer, or is more, than it can be.
fn within_bounds(handed: &HandedFlow) -> HandedFlow {
    let longest = Duration::from_millis(u32::MAX.into());
    let idle_timeout = handed.method.idle_timeout.map(|timeout| timeout.min(longest));
    let target = match handed.target {
        HandedTarget::Denied { reset, remaining } => {
            HandedTarget::Denied { reset, remaining: remaining.min(longest) }
        }
        endpoint @ HandedTarget::Endpoint { .. } => endpoint,
    };
    HandedFlow {
        target,
        method: Method { idle_timeout, ..handed.method },
        bytes: handed.bytes.map(|bytes| bytes.min(BYTES_MAX)),
        ..*handed
    }
}
