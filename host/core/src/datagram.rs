//! Flows of datagrams: from the first to the last, both ways.
//!
//! ```text
//!   client ──▶ listener ── hit ───────────────────────▶ port ──▶ endpoint
//!                  │ miss: admitted? ─▶ decided ─▶ port taken ─▶ flow kept
//!                  └── no ─▶ shed, or forwarded without a flow where the policy is stateless
//!   client ◀── listener ◀── hit ── port ◀── endpoint        (from anybody else: dropped)
//! ```
//!
//! A flow is confirmed by its first reply; until then it may have to give its place to a newer one,
//! so a flood of senders that never get an answer cannot push out those that do. Nothing here waits:
//! a datagram is forwarded, dropped for a named reason, or shed, before the next one is looked at.

mod ahead;
mod announcing;
mod bindings;
mod eviction;
mod flow;
mod handing;
mod index;
mod keys;
mod lane;
mod listeners;
mod outcomes;
mod ports;
mod sources;
mod strangers;
mod survey;
mod table;
mod taking;

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::ops::Range;
use core::time::Duration;

use crate::BalancerConfig;
use crate::allocation::{Allocator, Denied, Request};
use crate::boundary::{
    DatagramSocket, ListenerId, LossCause, Memory, Op, Ops, Path, PortId, Side, Train,
};
use crate::policy::{EndedFlow, Method, Scope};
use crate::session::{Allocation, Tried};
use crate::snapshot::{
    ClusterId, DatagramSettings, Endpoint, EndpointId, Listener, OnEndpointDown, Snapshot,
};
use crate::stats::{CloseReason, DropReason, FlowRecord, ShedReason, Stats};
use crate::time::Instant;

use bindings::{Binding, Bindings};
use flow::{Details, NONE};
pub use flow::{Flow, FlowKey};
use ports::Ports;
use strangers::Strangers;
pub use table::FlowTable;
pub(crate) use table::Walk;

/// How often ports are looked after, and how often when there are many to close.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);
const TRIM_AGAIN: Duration = Duration::from_millis(100);
/// How far a throttled flow may be ahead of its pace.
const BURST: Duration = Duration::from_millis(50);

/// What the worker lends for one step.
pub(crate) struct Turn<'a> {
    pub(crate) now: Instant,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) allocator: &'a mut Allocator,
    pub(crate) stats: &'a mut Stats,
    pub(crate) records: Option<&'a mut Vec<FlowRecord>>,
    pub(crate) ops: &'a mut Ops,
}

impl<'a> Turn<'a> {
    fn listener(&self, id: ListenerId) -> &'a Listener {
        self.snapshot.listener(id)
    }

    fn drain_is_over(&self) -> bool {
        self.snapshot.drain_until.is_some_and(|end| end <= self.now)
    }

    fn leave(&mut self, place: (ClusterId, &Endpoint)) {
        self.allocator.leave(self.snapshot, place);
    }

    fn lose(&mut self, listener: ListenerId, train: Train, reason: DropReason) {
        self.stats.listener(listener).on_drops(reason, train.datagrams());
        self.ops.push(Op::Discard { train });
    }
}

/// A client's datagrams.
struct Arrival {
    key: FlowKey,
    train: Train,
}

/// The endpoint that a flow has left.
#[derive(Debug, Clone, Copy)]
struct Left {
    cluster: ClusterId,
    endpoint: EndpointId,
    address: SocketAddr,
}

/// All flows of datagrams of one worker.
#[derive(Debug)]
pub(crate) struct Datagrams {
    table: FlowTable,
    bindings: Bindings,
    ports: Ports,
    strangers: Strangers,
    /// The next entry to look at after the world has changed.
    sweep: Option<u32>,
    /// Whether it has changed again since the walk began.
    sweep_again: bool,
    /// Whether the end of the drain has been acted on.
    drain_ended: bool,
    /// Listeners that receive, by number.
    open: Vec<bool>,
    trim_at: Option<Instant>,
    drain_poll_at: Option<Instant>,
}

impl Datagrams {
    pub(crate) fn new(config: &BalancerConfig, snapshot: &Snapshot) -> Self {
        Self {
            table: FlowTable::new(
                config.datagram_flows_max,
                snapshot.listeners.len(),
                config.hash_key,
            ),
            bindings: Bindings::default(),
            ports: Ports::new(snapshot),
            strangers: Strangers::default(),
            sweep: None,
            sweep_again: false,
            drain_ended: false,
            open: snapshot.listeners.iter().map(Listener::is_datagrams).collect(),
            trim_at: None,
            drain_poll_at: None,
        }
    }

    /// Flows now.
    pub(crate) fn len(&self) -> u32 {
        self.table.len()
    }

    /// Upstream ports that are open or closing.
    pub(crate) fn ports(&self) -> u32 {
        self.ports.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        self.table.addresses()
    }

    pub(crate) fn on_datagrams(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &impl Memory,
        (socket, path): (DatagramSocket, Path),
        train: Train,
    ) {
        match socket {
            DatagramSocket::Listener(listener) => {
                let local = path.local.unwrap_or_else(|| turn.listener(listener).address.ip());
                let key = FlowKey { listener, client: path.peer, local };
                self.on_request(turn, memory, Arrival { key, train });
            }
            DatagramSocket::Port(port) => self.on_reply(turn, memory, (port, path.peer), train),
        }
    }

    /// Datagrams were lost by the performing side.
    pub(crate) fn on_lost(
        &mut self,
        turn: &mut Turn<'_>,
        socket: DatagramSocket,
        datagrams: u32,
        cause: LossCause,
    ) {
        let listener = match socket {
            DatagramSocket::Listener(listener) => listener,
            DatagramSocket::Port(port) => self.ports.listener(port),
        };
        let reason = match cause {
            LossCause::Truncated => DropReason::Truncated,
            LossCause::Full => DropReason::SendFull,
            LossCause::TooLarge => DropReason::TooLarge,
            LossCause::Unreachable => DropReason::Unreachable,
        };
        turn.stats.listener(listener).on_drops(reason, datagrams);
    }

    /// A port could not be opened: the flow that it was opened for ends, or all that share it, a few
    /// at a time.
    pub(crate) fn on_port_failed(&mut self, turn: &mut Turn<'_>, port: PortId) {
        let owner = self.ports.owner(port);
        match (self.ports.on_failed(port), owner) {
            (false, _) => {}
            (true, Some(number)) => self.end(turn, number, CloseReason::Descriptors),
            (true, None) => self.sweep_all(),
        }
    }

    pub(crate) fn on_port_closed(&mut self, port: PortId) {
        self.ports.on_closed(port);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due next, if at all.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let sweep = self.sweep.map(|_| Instant::ZERO);
        let due = [sweep, self.table.next_timeout(), self.trim_at, self.drain_poll_at];
        due.into_iter().flatten().min()
    }

    /// Time passed. At most `steps` flows are looked at for each of the things to be done, and
    /// `ops_room` stays free in the ops.
    pub(crate) fn handle_timeout(&mut self, turn: &mut Turn<'_>, steps: u32, ops_room: usize) {
        let mut left = steps;
        while turn.ops.room() >= ops_room {
            let Some(number) = self.table.pop_due(turn.now, &mut left) else { break };
            self.on_timer(turn, number);
        }
        if self.drain_poll_at.is_some_and(|at| at <= turn.now) {
            self.poll_drain(turn);
        }
        if self.trim_at.is_some_and(|at| at <= turn.now) {
            self.trim(turn);
        }
        for _ in 0..steps {
            let Some(number) = self.sweep.filter(|_| turn.ops.room() >= ops_room) else { return };
            self.sweep_one(turn, number);
            self.sweep = Some(number + 1).filter(|&next| next < self.table.entries_end());
            if self.sweep.is_none() && core::mem::take(&mut self.sweep_again) {
                self.sweep_all();
            }
        }
    }

    /// Looks at every flow, from the first; once more after the walk that is under way.
    fn sweep_all(&mut self) {
        match self.sweep {
            Some(_) => self.sweep_again = true,
            None => self.sweep = (self.table.len() > 0).then_some(0),
        }
    }

    fn on_request(&mut self, turn: &mut Turn<'_>, memory: &impl Memory, arrival: Arrival) {
        let Some(number) = self.table.find_by_client(&arrival.key) else {
            self.on_miss(turn, memory, arrival);
            return;
        };
        let Flow { binding, port, .. } = *self.table.flow(number);
        match self.bindings.get(binding) {
            Some(binding) if binding.serves && !self.ports.has_failed(port) => {
                self.forward(turn, number, arrival.train);
            }
            Some(_) => self.on_request_for_gone(turn, memory, (number, arrival)),
            None => turn.lose(arrival.key.listener, arrival.train, DropReason::Denied),
        }
    }

    /// A client's datagram whose flow's endpoint is gone: the walk over all flows has not come to
    /// this one yet.
    fn on_request_for_gone(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &impl Memory,
        (number, arrival): (u32, Arrival),
    ) {
        self.sweep_one(turn, number);
        match self.table.find_by_client(&arrival.key) {
            Some(number) => self.forward(turn, number, arrival.train),
            None => self.on_miss(turn, memory, arrival),
        }
    }

    /// Sends a client's datagrams on to the flow's endpoint.
    fn forward(&mut self, turn: &mut Turn<'_>, number: u32, train: Train) {
        let flow = *self.table.flow(number);
        if self.is_throttled(turn.now, number, Side::Upstream, &train) {
            turn.lose(flow.listener, train, DropReason::Throttled);
            return;
        }
        let entry = self.table.flow(number);
        if flow.datagrams != [0; 2] && !flow.is_confirmed() {
            entry.set_referenced(true);
        }
        entry.on_forwarded(turn.now, Side::Upstream, train.len(), train.datagrams());
        turn.stats.listener(flow.listener).on_forwarded(Side::Upstream, &train);
        if turn.announces(flow.listener) {
            turn.announce(&flow.key(self.table.details_of(&flow)));
        }
        turn.ops.push(Op::Forward {
            socket: DatagramSocket::Port(flow.port),
            peer: self.bindings.of_flow(flow.binding).endpoint.address,
            local: None,
            train,
        });
    }

    fn on_reply(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &impl Memory,
        (port, endpoint): (PortId, SocketAddr),
        train: Train,
    ) {
        let endpoint_of = |binding| self.bindings.of_flow(binding).endpoint.address;
        let Some(number) = self.table.find_by_reply(port, endpoint, endpoint_of) else {
            turn.lose(self.ports.listener(port), train, DropReason::UnknownSource);
            return;
        };
        let flow = *self.table.flow(number);
        if self.is_throttled(turn.now, number, Side::Downstream, &train) {
            turn.lose(flow.listener, train, DropReason::Throttled);
            return;
        }
        let listener = turn.listener(flow.listener);
        if !flow.is_confirmed() {
            self.table.on_confirmed(number);
            self.strangers.on_answered(flow.started.to_instant(turn.now));
            self.on_first_reply(turn, &flow);
            if flow.keeps_when_answered() {
                self.keep_answered(turn, number);
            }
        }
        if let Some(rule) = &listener.key
            && let Some(key) = rule.read_reply(memory.first_datagram(&train))
        {
            self.learn(turn, number, key);
        }
        let entry = self.table.flow(number);
        entry.on_forwarded(turn.now, Side::Downstream, train.len(), train.datagrams());
        let [replies, requests] = entry.datagrams.map(u64::from);
        let expected = u64::from(listener.datagrams.replies_expected) * requests;
        let key = flow.key(self.table.details_of(&flow));
        turn.stats.listener(flow.listener).on_forwarded(Side::Downstream, &train);
        let (socket, local) = (DatagramSocket::Listener(flow.listener), Some(key.local));
        turn.ops.push(Op::Forward { socket, peer: key.client, local, train });
        if expected > 0 && replies >= expected {
            self.end(turn, number, CloseReason::Finished);
        }
    }

    /// Counts a datagram against the flow's speed, if that is limited; tells whether it is too fast.
    fn is_throttled(&mut self, now: Instant, number: u32, to: Side, train: &Train) -> bool {
        let Some(details) = self.table.details(number) else { return false };
        let Some(pace) = &mut details.paces[to.index()] else { return false };
        let too_fast = pace.waits_until(now).is_some_and(|at| at > now + BURST);
        if !too_fast {
            pace.on_received(now, train.len());
        }
        too_fast
    }

    /// A client's datagram without a flow. What it carries is looked at only if that is of use.
    fn on_miss(&mut self, turn: &mut Turn<'_>, memory: &impl Memory, arrival: Arrival) {
        let Arrival { key, train } = arrival;
        let listener = turn.listener(key.listener);
        let read = |train: &Train| {
            let rule = listener.key.as_ref();
            rule.map(|rule| rule.read_datagram(memory.first_datagram(train)))
        };
        match self.admit(turn, &key) {
            Ok(()) => {
                let read = read(&train);
                let application_key = read.and_then(Result::ok);
                if self.start(turn, application_key, Arrival { key, train })
                    && let Some(Err(reason)) = read
                {
                    turn.stats.listener(key.listener).keyless_total[reason.index()] += 1;
                }
            }
            Err(reason) => {
                let is_read = turn.allocator.is_stateless(listener.cluster);
                let application_key = if is_read { read(&train) } else { None };
                let application_key = application_key.and_then(Result::ok);
                self.overflow(turn, application_key, Arrival { key, train }, reason);
            }
        }
    }

    /// Whether there is room for one more flow. Takes its place in every count if so.
    fn admit(&mut self, turn: &mut Turn<'_>, key: &FlowKey) -> Result<(), ShedReason> {
        let (listener, client) = (turn.listener(key.listener), key.client.ip());
        if !listener.allows(client) {
            return Err(ShedReason::NotAllowed);
        }
        if turn.snapshot.drain_until.is_some() || !listener.is_open() {
            return Err(ShedReason::Draining);
        }
        if !self.strangers.admits_another(turn.now) {
            return Err(ShedReason::NewFlowRate);
        }
        listener.admit_client(turn.now, client)?;
        let placed = self.take_place(turn, key.listener);
        placed.inspect_err(|_| turn.listener(key.listener).dismiss_client(client))
    }

    fn take_place(&mut self, turn: &mut Turn<'_>, id: ListenerId) -> Result<(), ShedReason> {
        let listener = turn.listener(id);
        let has_room = || listener.flows_active.try_increment(listener.flows_max);
        if !(has_room() || self.evict(turn, Some(id)) && has_room()) {
            return Err(ShedReason::FlowsMax);
        }
        let has_room = || listener.all_flows.try_add();
        if !(has_room() || self.evict(turn, None) && has_room()) {
            listener.flows_active.decrement();
            return Err(ShedReason::AllFlowsMax);
        }
        if self.table.is_full() && !self.evict(turn, None) {
            listener.flows_active.decrement();
            listener.all_flows.remove();
            return Err(ShedReason::FlowTableFull);
        }
        Ok(())
    }

    /// Allocates an admitted flow and forwards its first datagrams. Tells whether there is a flow.
    fn start(
        &mut self,
        turn: &mut Turn<'_>,
        application_key: Option<u64>,
        arrival: Arrival,
    ) -> bool {
        let Arrival { key, train } = arrival;
        match self.allocate(turn, &request(turn, &key, application_key)) {
            Ok(allocation) => {
                let binding = self.bindings.number_of(key.listener, allocation.place());
                let way = (binding, key.client);
                let port = self.take_port(turn, way);
                let Some(port) = port.or_else(|| self.take_over_port(turn, way)) else {
                    turn.leave((allocation.cluster, &allocation.endpoint));
                    turn.listener(key.listener).give_back(key.client.ip());
                    let arrival = Arrival { key, train };
                    self.overflow(turn, application_key, arrival, ShedReason::Ports);
                    return false;
                };
                let number = self.insert(turn, &key, &allocation, application_key);
                self.bind(number, binding, port);
                self.forward(turn, number, train);
                true
            }
            Err(denied) if denied.scope == Scope::None => {
                turn.listener(key.listener).give_back(key.client.ip());
                turn.lose(key.listener, train, DropReason::Denied);
                false
            }
            Err(denied) if denied.reason == CloseReason::EndpointsFull => {
                turn.listener(key.listener).give_back(key.client.ip());
                let arrival = Arrival { key, train };
                self.overflow(turn, application_key, arrival, ShedReason::EndpointsFull);
                false
            }
            Err(denied) if denied.reason == CloseReason::NoEndpoint => {
                turn.listener(key.listener).give_back(key.client.ip());
                turn.lose(key.listener, train, DropReason::NoEndpoint);
                false
            }
            Err(denied) => {
                self.insert_denied(turn, &key, &denied);
                turn.lose(key.listener, train, DropReason::Denied);
                true
            }
        }
    }

    /// Allocates a new flow, if need be in the place of one that its endpoint has never replied to.
    fn allocate(
        &mut self,
        turn: &mut Turn<'_>,
        request: &Request<'_>,
    ) -> Result<Allocation, Denied> {
        let allocated = turn.allocator.allocate(request, turn.snapshot, turn.stats);
        let is_full =
            allocated.as_ref().is_err_and(|denied| denied.reason == CloseReason::EndpointsFull);
        if is_full && self.evict_from_endpoint(turn, request.listener) {
            return turn.allocator.allocate(request, turn.snapshot, turn.stats);
        }
        allocated
    }

    fn insert(
        &mut self,
        turn: &mut Turn<'_>,
        key: &FlowKey,
        allocation: &Allocation,
        application_key: Option<u64>,
    ) -> u32 {
        let from = turn.source(allocation.cluster, (key.client, allocation.endpoint.address));
        // Replies could not tell two flows apart that both have the client's address.
        let is_hidden = allocation.scope == Scope::None && from.is_none();
        let mut flow = Flow::new(turn.now, key, is_hidden);
        flow.source = allocation.source;
        flow.policy_generation = allocation.policy_generation as u32;
        flow.set_keeps_when_answered(allocation.keeps_when_answered);
        let details = Details::of(turn.now, key, allocation.method, application_key);
        let idle = turn.listener(key.listener).timeouts.idle;
        let due = turn.now + allocation.method.idle_timeout.unwrap_or(idle);
        turn.stats.listener(key.listener).on_flow_started();
        self.strangers.on_started(turn.now);
        self.table.insert(flow, details, due)
    }

    /// Remembers that a client is denied, so that its next datagrams ask nobody.
    fn insert_denied(&mut self, turn: &mut Turn<'_>, key: &FlowKey, denied: &Denied) {
        let idle = turn.listener(key.listener).timeouts.idle;
        let ttl = if denied.ttl.is_zero() { idle } else { denied.ttl };
        let mut flow = Flow::new(turn.now, key, false);
        flow.set_denied(denied.reason == CloseReason::DeniedReset);
        flow.policy_generation = denied.policy_generation as u32;
        flow.source = denied.source.unwrap_or(flow.source);
        let method = Method { tag: denied.tag, ..Method::DEFAULT };
        let details = Details::of(turn.now, key, method, None);
        turn.stats.listener(key.listener).on_flow_started();
        self.strangers.on_started(turn.now);
        self.table.insert(flow, details, turn.now + ttl);
    }

    fn take_port(
        &mut self,
        turn: &mut Turn<'_>,
        (binding, client): (u32, SocketAddr),
    ) -> Option<PortId> {
        let mut lane = core::mem::take(self.bindings.lane(binding));
        let wish = turn.wish_of(client, self.bindings.of_flow(binding));
        let (table, bindings) = (&self.table, &self.bindings);
        let endpoint_of = |binding| bindings.of_flow(binding).endpoint.address;
        let is_taken = |port| table.find_by_reply(port, wish.endpoint, endpoint_of).is_some();
        let port = self.ports.take(&wish, &mut lane, is_taken, turn.ops);
        *self.bindings.lane(binding) = lane;
        if self.trim_at.is_none() {
            self.trim_at = Some(turn.now + TRIM_INTERVAL);
        }
        port
    }

    fn bind(&mut self, number: u32, binding: u32, port: PortId) {
        self.bindings.on_bound(binding);
        self.ports.on_bound(port, number);
        let endpoint = self.bindings.of_flow(binding).endpoint.address;
        self.table.bind(number, binding, port, endpoint);
    }

    fn unbind(&mut self, turn: &mut Turn<'_>, number: u32) {
        let Flow { binding, port, .. } = *self.table.flow(number);
        if binding == NONE {
            return;
        }
        self.table.unbind(number, self.bindings.of_flow(binding).endpoint.address);
        self.ports.on_unbound(port, self.bindings.lane(binding), turn.ops);
        self.bindings.on_unbound(binding);
        let Binding { cluster, endpoint, .. } = self.bindings.of_flow(binding);
        turn.leave((*cluster, endpoint));
    }

    /// A datagram for which there can be no flow: a stateless policy is followed all the same, for
    /// a client that needs no reply, or whose next try will find room.
    fn overflow(
        &mut self,
        turn: &mut Turn<'_>,
        application_key: Option<u64>,
        arrival: Arrival,
        reason: ShedReason,
    ) {
        let Arrival { key, train } = arrival;
        let target =
            if reason.yields() { None } else { self.stateless(turn, &key, application_key) };
        let stats = turn.stats.listener(key.listener);
        match target {
            Some((port, peer)) => {
                stats.stateless_total += u64::from(train.datagrams());
                stats.on_forwarded(Side::Upstream, &train);
                turn.announce(&key);
                let socket = DatagramSocket::Port(port);
                turn.ops.push(Op::Forward { socket, peer, local: None, train });
            }
            None => {
                stats.on_shed(reason);
                turn.ops.push(Op::Discard { train });
            }
        }
    }

    /// Where a stateless policy sends a datagram that has no flow, and through which port.
    fn stateless(
        &mut self,
        turn: &mut Turn<'_>,
        key: &FlowKey,
        application_key: Option<u64>,
    ) -> Option<(PortId, SocketAddr)> {
        let request = request(turn, key, application_key);
        let endpoint = turn.allocator.decide_statelessly(&request, turn.snapshot)?;
        let wish = turn.stateless_wish(key, endpoint)?;
        Some((self.ports.stateless(&wish, turn.ops)?, endpoint))
    }

    fn on_timer(&mut self, turn: &mut Turn<'_>, number: u32) {
        let flow = *self.table.flow(number);
        if let Some(reason) = flow.denial() {
            self.end(turn, number, reason);
            return;
        }
        let method = self.table.details_of(&flow).map_or(Method::DEFAULT, |own| own.method);
        let timeout = method.idle_timeout.unwrap_or(turn.listener(flow.listener).timeouts.idle);
        let due = flow.last_active.to_instant(turn.now) + timeout;
        if due > turn.now {
            self.table.set_timer(number, due);
            self.keep_keys(turn, &flow);
        } else {
            self.on_idle(turn, &flow);
            self.end(turn, number, CloseReason::IdleTimeout);
        }
    }

    /// Does with a flow what the changed world calls for.
    fn sweep_one(&mut self, turn: &mut Turn<'_>, number: u32) {
        let Some(flow) = self.table.get(number).copied() else { return };
        if turn.drain_is_over() || turn.listener(flow.listener).is_closed() {
            self.end(turn, number, CloseReason::DrainTimeout);
            return;
        }
        let Some(binding) = self.bindings.get(flow.binding) else { return };
        if self.ports.has_failed(flow.port) {
            self.end(turn, number, CloseReason::Descriptors);
            return;
        }
        match turn.listener(flow.listener).on_endpoint_down {
            _ if binding.serves => {}
            OnEndpointDown::Reallocate => self.reallocate(turn, number),
            OnEndpointDown::Drop | OnEndpointDown::Reset => {
                self.end(turn, number, CloseReason::EndpointDown);
            }
            OnEndpointDown::Keep => {}
        }
    }

    /// Gives a flow another endpoint, if there is one.
    fn reallocate(&mut self, turn: &mut Turn<'_>, number: u32) {
        let flow = *self.table.flow(number);
        let details = self.table.details_of(&flow);
        let application_key = details.and_then(|details| details.keys[0]);
        let key = flow.key(details);
        let request = request(turn, &key, application_key);
        let allocated = turn.allocator.allocate(&request, turn.snapshot, turn.stats);
        let left = self.endpoint_of(number);
        self.unbind(turn, number);
        let moved = allocated.ok().and_then(|allocation| {
            let binding = self.bindings.number_of(key.listener, allocation.place());
            let Some(port) = self.take_port(turn, (binding, key.client)) else {
                turn.leave((allocation.cluster, &allocation.endpoint));
                return None;
            };
            Some((allocation, binding, port))
        });
        let Some((allocation, binding, port)) = moved else {
            self.remove(turn, number, left, CloseReason::EndpointDown);
            return;
        };
        turn.stats.listener(key.listener).reallocations_total += 1;
        let flow = self.table.flow(number);
        flow.source = allocation.source;
        flow.policy_generation = allocation.policy_generation as u32;
        flow.set_keeps_when_answered(allocation.keeps_when_answered);
        let keeps = flow.is_confirmed() && flow.keeps_when_answered();
        self.bind(number, binding, port);
        if keeps {
            self.keep_answered(turn, number);
        }
        let flow = *self.table.flow(number);
        self.keep_keys(turn, &flow);
    }

    fn end(&mut self, turn: &mut Turn<'_>, number: u32, reason: CloseReason) {
        let endpoint = self.endpoint_of(number);
        self.unbind(turn, number);
        self.remove(turn, number, endpoint, reason);
    }

    fn endpoint_of(&mut self, number: u32) -> Option<Left> {
        let Binding { cluster, endpoint, .. } =
            self.bindings.get(self.table.flow(number).binding)?;
        Some(Left { cluster: *cluster, endpoint: endpoint.id, address: endpoint.address })
    }

    /// Ends a flow that has left its endpoint.
    fn remove(
        &mut self,
        turn: &mut Turn<'_>,
        number: u32,
        left: Option<Left>,
        reason: CloseReason,
    ) {
        let (flow, details) = self.table.remove(number);
        let key = flow.key(details.as_ref());
        turn.listener(key.listener).give_back(key.client.ip());
        turn.stats.listener(key.listener).on_flow_ended(reason);
        let now = turn.now;
        let cluster = left.map_or(turn.listener(key.listener).cluster, |it| it.cluster);
        let tag = details.map_or(0, |details| details.method.tag);
        let (started, bytes) = (flow.started.to_instant(now), flow.bytes());
        if let Some(Left { endpoint, .. }) = left {
            let duration = now.since(started);
            let ended = EndedFlow { endpoint, reason, duration, bytes, tag };
            turn.allocator.on_flow_ended(cluster, &ended);
        }
        if let Some(records) = &mut turn.records {
            records.push(FlowRecord {
                listener: key.listener,
                cluster,
                client: key.client,
                peer: None,
                unique_id: None,
                endpoint: left.map(|it| (it.endpoint, it.address)),
                policy_generation: flow.policy_generation.into(),
                source: Some(flow.source),
                attempts: u32::from(left.is_some()),
                tag,
                started,
                connected: None,
                queued: Duration::ZERO,
                ended: now,
                bytes,
                reason,
            });
        }
    }

    /// Closes ports that are no longer needed.
    fn trim(&mut self, turn: &mut Turn<'_>) {
        let mut again = false;
        for (place, listener) in turn.snapshot.listeners.iter().enumerate() {
            let id = ListenerId(place as u16);
            if listener.is_datagrams() {
                let ports_min = if listener.is_closed() { 0 } else { listener.datagrams.ports_min };
                let settings = DatagramSettings { ports_min, ..listener.datagrams };
                let peak = self.bindings.take_peak(id);
                again |= self.ports.trim(id, (peak, &settings), turn.ops);
            }
        }
        let wait = if again { TRIM_AGAIN } else { TRIM_INTERVAL };
        self.trim_at = (self.ports.len() > 0).then_some(turn.now + wait);
    }

    /// Asserts what must hold between any two calls.
    pub(crate) fn check_invariants(&self) {
        self.table.check_invariants(|binding| self.bindings.of_flow(binding).endpoint.address);
        let bound: u32 = self.bindings.iter().map(|(_, binding)| binding.flows).sum();
        let live = (0..self.table.entries_end()).filter_map(|number| self.table.get(number));
        assert_eq!(live.clone().filter(|flow| flow.port.0 != NONE).count() as u32, bound);
        self.ports.check_invariants(bound);
        for (number, binding) in self.bindings.iter() {
            let own = live.clone().filter(|flow| flow.binding == number);
            let flows = own.filter(|flow| self.ports.is_shared(flow.port)).count();
            let place = (binding.listener, binding.endpoint.address);
            self.ports.check_lane(&binding.lane, place, flows as u32);
        }
    }
}

fn request<'a>(turn: &Turn<'_>, key: &FlowKey, application_key: Option<u64>) -> Request<'a> {
    Request {
        now: turn.now,
        listener: key.listener,
        client: key.client,
        local: SocketAddr::new(key.local, turn.listener(key.listener).address.port()),
        key: application_key,
        tried: &Tried::NONE,
        in_turn: false,
    }
}

#[cfg(test)]
mod tests;
