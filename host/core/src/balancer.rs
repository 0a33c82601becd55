//! The balancer: completions in, ops out.
//!
//! One per worker. It owns every session, timer and kept decision of its worker, and is the only
//! place that knows all of them; what a session or a relay does by itself stands in their files.
//! Read [`handle`](Balancer::handle) as the table of contents.

mod handing;
mod introduction;
mod relief;
mod renewal;
#[cfg(test)]
mod rig;
mod survey;
mod undelivered;
mod waiting;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::{Drain, Vec};
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use crate::affinity::Affinity;
use crate::allocation::{Allocator, Denied};
use crate::board::Board;
use crate::boundary::{
    Accepted, Buffer, Completion, ConnectFailure, Goodbye, Link, ListenerId, Memory, Op, Ops, Pool,
    PoolSizes, ReceiveEnd, SendEnd, Side,
};
use crate::chain::Chains;
use crate::datagram::{Datagrams, Turn};
use crate::policy::{OnSwap, Policy};
use crate::preread::Preread;
use crate::proxy::Reader;
use crate::queue::Waiting;
use crate::recent::FlowFacts;
use crate::relay::Step;
use crate::session::{Allocation, Due, RecordFacts, Session, State};
use crate::slab::Slab;
use crate::snapshot::{ClusterId, OnEndpointDown, Snapshot};
use crate::stats::{CloseReason, FlowRecord, KeylessReason, ShedReason, Stats};
use crate::time::Instant;
use crate::timers::Timers;
use crate::trial::Trial;

use handing::Handing;
use relief::Relief;
pub use renewal::NewPolicy;

/// Sizes and secrets, fixed for a worker's life.
#[derive(Debug, Clone)]
pub struct BalancerConfig {
    /// Which of the process's workers it is, from 0.
    pub worker: usize,
    /// Sessions at a time.
    pub sessions_max: u32,
    /// Flows of datagrams at a time.
    pub datagram_flows_max: u32,
    /// Kept decisions at a time.
    pub flow_table_entries_max: u32,
    /// Where workers tell each other what they keep; `None` for a worker that is alone.
    pub board: Option<Arc<Board>>,
    /// The ring's buffers.
    pub pools: PoolSizes,
    /// The secret key of the flow table's hash; random, different in every process.
    pub hash_key: [u64; 2],
    /// What the random numbers handed to policies grow from.
    pub seed: u64,
    /// Whether ended flows are recorded for the access log.
    pub record_flows: bool,
}

/// Decides what happens to every flow of one worker.
pub struct Balancer {
    pub(crate) snapshot: Arc<Snapshot>,
    allocator: Allocator,
    sessions: Slab<Session>,
    /// What has been read of the headers that sessions wait for.
    readers: Slab<Reader>,
    timers: Timers,
    chains: Chains,
    stats: Stats,
    datagrams: Datagrams,
    records: Option<Vec<FlowRecord>>,
    listeners_open: usize,
    sweep: Sweep,
    handing: Handing,
    relief: Relief,
}

/// A walk over all sessions after the world has changed, a few at a time.
#[derive(Debug, Default)]
struct Sweep {
    /// The next slot to look at.
    next: Option<u32>,
    /// Whether the end of the drain has been acted on.
    drain_ended: bool,
}

impl Balancer {
    /// Room that [`Ops`] must have before each call of [`handle`](Self::handle): the most ops one
    /// completion can lead to.
    pub const OPS_PER_COMPLETION_MAX: usize = 256;
    /// Timers looked at in one turn, and sessions swept.
    const STEPS_PER_TURN: u32 = 512;
    /// More flows than one turn can end.
    const RECORDS_PER_TURN: usize = 4_096;

    /// Starts with a world and one policy per cluster, by [`ClusterId`]. Allocates everything the
    /// worker will ever need.
    #[must_use]
    pub fn new(
        config: &BalancerConfig,
        snapshot: Arc<Snapshot>,
        policies: Vec<Box<dyn Policy>>,
    ) -> Self {
        assert_eq!(policies.len(), snapshot.clusters.len(), "one policy per cluster");
        let affinity =
            Affinity::new(config.flow_table_entries_max, config.hash_key, config.board.clone());
        let waiting = Waiting::new(config.worker, config.sessions_max, &snapshot);
        Self {
            stats: Stats::new(snapshot.listeners.len(), snapshot.clusters.len()),
            listeners_open: snapshot.listeners.iter().filter(|it| it.is_open()).count(),
            allocator: Allocator::new(policies, affinity, waiting, config.seed),
            sessions: Slab::with_capacity(config.sessions_max),
            readers: Slab::with_capacity(config.sessions_max),
            timers: Timers::with_capacity(config.sessions_max),
            chains: Chains::new(config.pools),
            datagrams: Datagrams::new(config, &snapshot),
            records: config.record_flows.then(|| Vec::with_capacity(Self::RECORDS_PER_TURN)),
            sweep: Sweep::default(),
            handing: Handing::default(),
            relief: Relief::default(),
            snapshot,
        }
    }

    /// Something happened. `memory` lends the bytes of what has arrived, and takes those of headers.
    pub fn handle(
        &mut self,
        now: Instant,
        completion: Completion,
        memory: &mut impl Memory,
        ops: &mut Ops,
    ) {
        match completion {
            Completion::Accepted { listener, socket, client } => {
                self.on_accepted(now, Arrival { listener, socket, client }, ops);
            }
            Completion::AcceptStalled { listener } => {
                self.stats.listener(listener).on_shed(ShedReason::Descriptors);
            }
            Completion::AcceptEnded { listener } => {
                self.listeners_open -= 1;
                self.snapshot.listener(listener).sockets_open.decrement();
            }
            Completion::Connected { link } => self.on_connected(now, link, memory, ops),
            Completion::ConnectFailed { link, cause } => {
                self.on_connect_failed(now, link, cause, ops);
            }
            Completion::Received { link, buffer } => {
                self.on_received(now, (link, buffer), memory, ops);
            }
            Completion::ReceiveEnded { link, end } => {
                self.on_receive_ended(now, (link, end), memory, ops);
            }
            Completion::Returned { link, buffer } => self.on_returned(link, buffer, ops),
            Completion::Sent { link, bytes, end } => {
                self.on_sent(now, link, Delivery { bytes, end }, ops);
            }
            Completion::ShutDown { link } => {
                self.sessions[link.slot()].relay_from(link.side().other()).on_shut_down();
            }
            Completion::Closed { link } => self.on_closed(now, link, ops),
            Completion::Datagrams { socket, path, train } => {
                let (datagrams, mut turn) = self.datagrams(now, ops);
                datagrams.on_datagrams(&mut turn, memory, (socket, path), train);
            }
            Completion::Lost { socket, datagrams: count, cause } => {
                let (datagrams, mut turn) = self.datagrams(now, ops);
                datagrams.on_lost(&mut turn, socket, count, cause);
            }
            Completion::PortFailed { port } => {
                let (datagrams, mut turn) = self.datagrams(now, ops);
                datagrams.on_port_failed(&mut turn, port);
            }
            Completion::PortUnreachable { port } => {
                let (datagrams, mut turn) = self.datagrams(now, ops);
                datagrams.on_port_unreachable(&mut turn, port);
            }
            Completion::PortClosed { port } => self.datagrams.on_port_closed(port),
            Completion::Held => self.on_held(ops),
        }
        self.count_entries();
    }

    /// Fetches the memory that handling these will need, for all of a turn together, and takes note
    /// of how many they are.
    pub fn look_ahead(&mut self, completions: &[Completion]) {
        self.datagrams.look_ahead(completions, &self.snapshot);
    }

    /// Time passed: deals with the deadlines that are over. Bounded work; what is left is due at
    /// once ([`next_timeout`](Self::next_timeout)).
    pub fn handle_timeout(&mut self, now: Instant, ops: &mut Ops) {
        let mut steps = Self::STEPS_PER_TURN;
        while ops.room() >= Self::OPS_PER_COMPLETION_MAX {
            let Some(slot) = self.timers.pop_due(now, &mut steps) else { break };
            self.on_timer(now, slot, ops);
        }
        if self.drain_is_over(now) && !self.sweep.drain_ended {
            self.sweep = Sweep { next: Some(0), drain_ended: true };
        }
        self.sweep_some(now, ops);
        self.relieve(now, ops);
        self.allocator.tick(now, &self.snapshot);
        if !self.is_handing_over() {
            let (datagrams, mut turn) = self.datagrams(now, ops);
            datagrams.handle_timeout(&mut turn, Self::STEPS_PER_TURN, Self::OPS_PER_COMPLETION_MAX);
        }
        self.serve_waiting(now, ops);
        self.count_entries();
    }

    /// Exchanges a cluster's policy. Flows stay where they are; `on_swap` says what becomes of kept
    /// decisions. Returns the old policy, to be dropped elsewhere.
    pub fn swap_policy(
        &mut self,
        cluster: ClusterId,
        policy: Box<dyn Policy>,
        on_swap: OnSwap,
    ) -> Box<dyn Policy> {
        self.stats.cluster(cluster).policy_generation += 1;
        self.allocator.swap(cluster, policy, on_swap)
    }

    /// Puts a policy on trial beside the cluster's own, or ends a trial. Returns the one before, to
    /// be dropped elsewhere.
    pub fn set_trial(&mut self, cluster: ClusterId, trial: Option<Trial>) -> Option<Trial> {
        self.allocator.set_trial(cluster, trial)
    }

    /// What a cluster's policy would hand over to its successor.
    pub fn policy_state(&mut self, cluster: ClusterId) -> Option<Vec<u8>> {
        self.allocator.state(cluster)
    }

    /// The flows that a cluster's policy was asked about lately.
    #[must_use]
    pub fn recent_flows(&self, cluster: ClusterId) -> &[FlowFacts] {
        self.allocator.recent(cluster)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due next, if at all.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.sweep.next.is_some() || self.is_giving() {
            return Some(Instant::ZERO);
        }
        let drain_awaited = !self.sweep.drain_ended && self.sessions.len() > 0;
        let drain_end = self.snapshot.drain_until.filter(|_| drain_awaited);
        let datagrams = self.datagrams.next_timeout().filter(|_| !self.is_handing_over());
        let ticks = self.allocator.next_tick();
        let waiting = self.allocator.waiting.next_timeout();
        let due =
            [self.timers.next(), drain_end, ticks, datagrams, waiting, self.relief.next_timeout()];
        due.into_iter().flatten().min()
    }

    /// What has been counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether a drain is over: every listener and every session has ended.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.listeners_open == 0 && self.sessions.len() == 0 && self.datagrams.len() == 0
    }

    /// Takes the flows that have ended since the last call; empty unless they are recorded.
    pub fn take_records(&mut self) -> impl Iterator<Item = FlowRecord> + '_ {
        self.records
            .as_mut()
            .map(|records| -> Drain<'_, _> { records.drain(..) })
            .into_iter()
            .flatten()
    }

    fn on_accepted(&mut self, now: Instant, arrival: Arrival, ops: &mut Ops) {
        let Arrival { listener: id, socket, client } = arrival;
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        if let Err(reason) = self.admit(now, id, client.ip()) {
            self.stats.listener(id).on_shed(reason);
            ops.push(Op::Refuse { socket, goodbye: Goodbye::Reset });
            return;
        }
        self.stats.listener(id).on_flow_started();
        let session = Session::new(now, id, client);
        let listener = self.snapshot.listener(id);
        if listener.proxy.is_some() {
            let slot = self.adopt(session, socket, ops);
            self.await_introduction(now, slot, ops);
            return;
        }
        if listener.key.is_some() {
            let slot = self.adopt(session, socket, ops);
            self.preread(now, slot, ops);
            return;
        }
        match self.allocate(now, &session) {
            Ok(allocation) => {
                let slot = self.adopt(session, socket, ops);
                self.bind(now, slot, allocation, ops);
            }
            Err(denied) if self.may_wait(id, &denied) => {
                let slot = self.adopt(session, socket, ops);
                self.wait(now, slot, ops);
            }
            Err(denied) => self.refuse(now, Arrival { listener: id, socket, client }, denied, ops),
        }
    }

    fn adopt(&mut self, session: Session, socket: Accepted, ops: &mut Ops) -> u32 {
        let slot = self.sessions.insert(session);
        self.stats.sessions_active = self.sessions.len();
        ops.push(Op::Adopt { link: Link::new(slot, Side::Downstream), socket });
        slot
    }

    fn allocate(&mut self, now: Instant, session: &Session) -> Result<Allocation, Denied> {
        let request = session.request(now, &self.snapshot);
        self.allocator.allocate(&request, &self.snapshot, &mut self.stats)
    }

    /// Waits for the first bytes, which decide on the endpoint.
    fn preread(&mut self, now: Instant, slot: u32, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        let bytes_max = self.snapshot.listener(session.listener).preread_bytes_max;
        session.preread(bytes_max, &mut Step { now, slot, chains: &mut self.chains, ops });
        self.set_timer(slot);
    }

    /// More of a client's first bytes have come, or no more will: decides once that is enough.
    fn on_preread(&mut self, now: Instant, slot: u32, memory: &impl Memory, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        let listener = self.snapshot.listener(session.listener);
        let Some(rule) = &listener.key else {
            return self.decide(now, slot, Err(KeylessReason::Absent), ops);
        };
        let relay = session.relay_from(Side::Downstream);
        let outcome = match rule.read_stream(relay.held(&self.chains, memory)) {
            Preread::Key(key) => Ok(key),
            Preread::Keyless(reason) => Err(reason),
            Preread::More if relay.has_ended() => Err(KeylessReason::Absent),
            Preread::More if relay.has_held_enough(listener.preread_bytes_max) => {
                Err(KeylessReason::TooLong)
            }
            Preread::More => return,
        };
        self.decide(now, slot, outcome, ops);
    }

    /// Allocates a session whose first bytes have been waited for.
    fn decide(&mut self, now: Instant, slot: u32, key: Result<u64, KeylessReason>, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        session.key = key.ok();
        if let Err(reason) = key {
            self.stats.listener(session.listener).keyless_total[reason.index()] += 1;
        }
        self.allocate_held(now, slot, ops);
    }

    /// Allocates a session that has its slot already.
    fn allocate_held(&mut self, now: Instant, slot: u32, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        session.set_state(State::Unbound);
        let request = session.request(now, &self.snapshot);
        match self.allocator.allocate(&request, &self.snapshot, &mut self.stats) {
            Ok(allocation) => self.bind(now, slot, allocation, ops),
            Err(denied) => self.turn_away(now, slot, denied, ops),
        }
    }

    /// Whether there is room for one more flow. Takes its place in the listener's count if so, and in
    /// its client's if that is who connects.
    fn admit(&self, now: Instant, id: ListenerId, peer: IpAddr) -> Result<(), ShedReason> {
        let listener = self.snapshot.listener(id);
        match &listener.proxy {
            Some(rule) if !rule.trusts(peer) => return Err(ShedReason::UntrustedPeer),
            None if !listener.allows(peer) => return Err(ShedReason::NotAllowed),
            _ => {}
        }
        if self.chains.is_short(Pool::Small) {
            return Err(ShedReason::Buffers);
        }
        if self.sessions.next_free().is_none() {
            return Err(ShedReason::Sessions);
        }
        if self.drain_is_over(now) || listener.is_closed() {
            return Err(ShedReason::Draining);
        }
        let is_client = listener.proxy.is_none();
        if is_client {
            listener.admit_client(now, peer)?;
        }
        let placed = if !listener.flows_active.try_increment(listener.flows_max) {
            Err(ShedReason::FlowsMax)
        } else if !listener.all_flows.try_add() {
            listener.flows_active.decrement();
            Err(ShedReason::AllFlowsMax)
        } else {
            Ok(())
        };
        if placed.is_err() && is_client {
            listener.dismiss_client(peer);
        }
        placed
    }

    /// Ends a flow that was admitted and then denied: it never gets a session.
    fn refuse(&mut self, now: Instant, arrival: Arrival, denied: Denied, ops: &mut Ops) {
        let Arrival { listener: id, socket, client } = arrival;
        let listener = self.snapshot.listener(id);
        let goodbye = match denied.reason {
            CloseReason::DeniedDrop => Goodbye::Fin,
            _ => Goodbye::Reset,
        };
        ops.push(Op::Refuse { socket, goodbye });
        listener.give_back(client.ip());
        self.stats.listener(id).on_flow_ended(denied.reason);
        if let Some(records) = &mut self.records {
            records.push(FlowRecord {
                listener: id,
                cluster: listener.cluster,
                client,
                peer: None,
                unique_id: None,
                endpoint: None,
                policy_generation: denied.policy_generation,
                source: denied.source,
                attempts: 0,
                tag: denied.tag,
                started: now,
                connected: None,
                queued: Duration::ZERO,
                ended: now,
                bytes: [0; 2],
                reason: denied.reason,
            });
        }
    }

    fn on_connected(&mut self, now: Instant, link: Link, memory: &mut impl Memory, ops: &mut Ops) {
        let slot = link.slot();
        if self.sessions[slot].state != State::Connecting {
            return;
        }
        let Ok(header) = self.announcement(slot, memory) else {
            self.shed(now, slot, ShedReason::Buffers, ops);
            return;
        };
        let mut step = Step { now, slot, chains: &mut self.chains, ops };
        self.sessions[slot].establish(header, &mut step);
        self.set_timer(slot);
    }

    fn on_connect_failed(
        &mut self,
        now: Instant,
        link: Link,
        cause: ConnectFailure,
        ops: &mut Ops,
    ) {
        let session = &mut self.sessions[link.slot()];
        if session.state != State::Connecting {
            return;
        }
        session.set_state(State::Unbound);
        match cause {
            ConnectFailure::Unreachable => {
                self.retry(now, link.slot(), CloseReason::ConnectFailed, ops);
            }
            ConnectFailure::NoWay => self.retry(now, link.slot(), CloseReason::Descriptors, ops),
            ConnectFailure::Descriptors | ConnectFailure::Cancelled => {
                self.close(now, link.slot(), CloseReason::Descriptors, ops);
            }
        }
    }

    /// The flow cannot have its endpoint: it gets another, as often as the listener allows.
    fn retry(&mut self, now: Instant, slot: u32, reason: CloseReason, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        if let Some(allocation) = &session.allocation {
            match reason {
                CloseReason::UpstreamReset => allocation.endpoint.load.on_broken(now),
                CloseReason::Descriptors => {}
                _ => allocation.endpoint.load.on_connect_failed(now),
            }
            session.tried.push(allocation.endpoint.id);
        }
        if let Some(place) = session.take_place() {
            self.allocator.leave(&self.snapshot, place);
        }
        let attempts = session.tried.as_slice().len() as u32;
        if attempts >= self.snapshot.listener(session.listener).connect_attempts {
            self.close(now, slot, reason, ops);
            return;
        }
        self.stats.listener(session.listener).connect_retries_total += 1;
        let request = session.request(now, &self.snapshot);
        match self.allocator.allocate(&request, &self.snapshot, &mut self.stats) {
            Ok(allocation) => self.bind(now, slot, allocation, ops),
            Err(denied) => self.turn_away(now, slot, denied, ops),
        }
    }

    /// Connects a session to the endpoint it was allocated, in place of an earlier one.
    fn bind(&mut self, now: Instant, slot: u32, allocation: Allocation, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        let address = allocation.endpoint.address;
        let cluster = &self.snapshot.clusters[allocation.cluster.index()];
        let from = cluster.source(session.client, address);
        session.bind(now, allocation);
        ops.push(Op::Connect { link: Link::new(slot, Side::Upstream), address, from });
        self.set_timer(slot);
    }

    fn on_received(
        &mut self,
        now: Instant,
        (link, buffer): (Link, Buffer),
        memory: &impl Memory,
        ops: &mut Ops,
    ) {
        let session = &mut self.sessions[link.slot()];
        if session.has_left(link.side()) {
            ops.push(Op::Recycle { buffer });
            return;
        }
        if matches!(session.state, State::Introducing { .. }) {
            self.on_introduction(now, (link.slot(), buffer), memory, ops);
            return;
        }
        if session.state == State::Established {
            session.on_bytes(now, link.side());
        }
        let is_awaited = session.state == State::Prereading;
        let mut step = Step { now, slot: link.slot(), chains: &mut self.chains, ops };
        session.relay_from(link.side()).on_received(buffer, &mut step);
        if is_awaited {
            self.on_preread(now, link.slot(), memory, ops);
        }
    }

    fn on_receive_ended(
        &mut self,
        now: Instant,
        (link, end): (Link, ReceiveEnd),
        memory: &impl Memory,
        ops: &mut Ops,
    ) {
        let session = &mut self.sessions[link.slot()];
        if session.has_left(link.side()) {
            return;
        }
        if end == ReceiveEnd::Reset {
            self.on_reset(now, link, ops);
            return;
        }
        let mut step = Step { now, slot: link.slot(), chains: &mut self.chains, ops };
        session.relay_from(link.side()).on_receive_ended(end, &mut step);
        match session.state {
            State::Established => {}
            State::Introducing { .. } => return self.on_introduction_ended(now, link.slot(), ops),
            State::Prereading => {
                let listener = self.snapshot.listener(session.listener);
                session.relay_from(link.side()).hold_more(listener.preread_bytes_max, &mut step);
                return self.on_preread(now, link.slot(), memory, ops);
            }
            _ => return,
        }
        if end == ReceiveEnd::EndOfStream {
            session.on_progress(now);
            session.settle(&mut step);
        }
        if end == ReceiveEnd::EndOfStream || session.is_throttled() {
            self.set_timer(link.slot());
        }
    }

    fn on_sent(&mut self, now: Instant, link: Link, delivery: Delivery, ops: &mut Ops) {
        let session = &mut self.sessions[link.slot()];
        let relay = session.relay_from(link.side().other());
        let bytes = relay.on_delivered(delivery.bytes, &mut self.chains);
        self.stats.listener(session.listener).on_delivered(link.side(), bytes);
        if session.state != State::Established || delivery.end == SendEnd::Broken {
            self.on_unfinished(now, link, delivery, ops);
            return;
        }
        session.on_progress(now);
        let mut step = Step { now, slot: link.slot(), chains: &mut self.chains, ops };
        let relay = session.relay_from(link.side().other());
        relay.on_sent(&mut step);
        let drained = relay.is_drained();
        if drained {
            session.settle(&mut step);
        }
        if drained || session.is_throttled() {
            self.set_timer(link.slot());
        }
    }

    fn on_closed(&mut self, now: Instant, link: Link, ops: &mut Ops) {
        let session = &mut self.sessions[link.slot()];
        if let State::Abandoning { reason } = session.state {
            session.on_abandoned();
            self.retry(now, link.slot(), reason, ops);
        } else if let Some(reason) = session.on_closed() {
            self.end(now, link.slot(), reason);
        }
    }

    fn on_timer(&mut self, now: Instant, slot: u32, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        match session.due(self.snapshot.listener(session.listener)) {
            None => {}
            Some((at, _)) if at > now => self.timers.set(slot, at),
            Some((_, Due::Decide)) => {
                self.decide(now, slot, Err(KeylessReason::Timeout), ops);
            }
            Some((_, Due::Resume)) => {
                session.resume(&mut Step { now, slot, chains: &mut self.chains, ops });
                self.set_timer(slot);
            }
            Some((_, Due::Close(reason @ CloseReason::ConnectTimeout))) => {
                session.abandon(reason, &mut Step { now, slot, chains: &mut self.chains, ops });
            }
            Some((_, Due::Close(reason))) => self.close(now, slot, reason, ops),
        }
    }

    fn set_timer(&mut self, slot: u32) {
        let session = &self.sessions[slot];
        match session.due(self.snapshot.listener(session.listener)) {
            Some((at, _)) => self.timers.set(slot, at),
            None => self.timers.cancel(slot),
        }
    }

    fn close(&mut self, now: Instant, slot: u32, reason: CloseReason, ops: &mut Ops) {
        self.timers.cancel(slot);
        self.stop_waiting(now, slot);
        if let State::Introducing { reader } = self.sessions[slot].state {
            self.readers.remove(reader);
        }
        self.sessions[slot].close(reason, &mut Step { now, slot, chains: &mut self.chains, ops });
    }

    /// Nothing of the session is in flight any more: its slot is free.
    fn end(&mut self, now: Instant, slot: u32, reason: CloseReason) {
        let Some(mut session) = self.sessions.remove(slot) else { return };
        if let Some(place) = session.take_place() {
            self.allocator.leave(&self.snapshot, place);
        }
        self.stats.sessions_active = self.sessions.len();
        self.timers.cancel(slot);
        let listener = self.snapshot.listener(session.listener);
        listener.give_back_place();
        if session.is_counted {
            listener.dismiss_client(session.client.ip());
        }
        if let Some(ended) = session.ended(now, reason) {
            self.allocator.on_flow_ended(session.cluster(listener), &ended);
        }
        self.stats.listener(session.listener).on_flow_ended(reason);
        if let Some(records) = &mut self.records {
            records.push(session.record(now, &RecordFacts { listener, reason }));
        }
    }

    fn sweep_some(&mut self, now: Instant, ops: &mut Ops) {
        for _ in 0..Self::STEPS_PER_TURN {
            let Some(slot) = self.sweep.next else { return };
            if ops.room() < Self::OPS_PER_COMPLETION_MAX {
                return;
            }
            if let Some(reason) = self.verdict_of_sweep(now, slot) {
                self.close(now, slot, reason, ops);
            } else if self.sessions.get(slot).is_some() && self.is_in_old_line(slot) {
                self.change_lines(now, slot, ops);
            }
            self.sweep.next = Some(slot + 1).filter(|&next| next < self.sessions.slots_end());
        }
    }

    /// Why the changed world does not let this session go on, if so.
    fn verdict_of_sweep(&self, now: Instant, slot: u32) -> Option<CloseReason> {
        let session = self.sessions.get(slot)?;
        if matches!(session.state, State::Closing { .. }) {
            return None;
        }
        let listener = self.snapshot.listener(session.listener);
        if self.drain_is_over(now) || listener.is_closed() {
            return Some(CloseReason::DrainTimeout);
        }
        let allocation = session.allocation.as_ref()?;
        let cluster = &self.snapshot.clusters[allocation.cluster.index()];
        let serves = cluster.serves(allocation.endpoint.id);
        let resets = listener.on_endpoint_down == OnEndpointDown::Reset
            && session.state == State::Established;
        (resets && !serves).then_some(CloseReason::EndpointDown)
    }

    /// The flows of datagrams, and what they need of the rest.
    fn datagrams<'a>(
        &'a mut self,
        now: Instant,
        ops: &'a mut Ops,
    ) -> (&'a mut Datagrams, Turn<'a>) {
        let turn = Turn {
            now,
            snapshot: &self.snapshot,
            allocator: &mut self.allocator,
            stats: &mut self.stats,
            records: self.records.as_mut(),
            ops,
        };
        (&mut self.datagrams, turn)
    }

    fn count_entries(&mut self) {
        self.stats.flow_table_entries = self.allocator.kept().len() + self.datagrams.len();
        self.stats.ports_open = self.datagrams.ports();
    }

    fn drain_is_over(&self, now: Instant) -> bool {
        self.snapshot.drain_until.is_some_and(|end| end <= now)
    }

    /// Asserts what must hold between any two calls. For tests and simulators: it walks everything.
    ///
    /// # Panics
    /// If the balancer has a bug.
    pub fn check_invariants(&self) {
        self.chains.check_invariants(self.sessions.len());
        self.datagrams.check_invariants();
        let active: u64 = self.stats.listeners.iter().map(|listener| listener.flows_active).sum();
        let flows = self.sessions.len() + self.datagrams.len();
        assert_eq!(active, u64::from(flows), "each active flow is kept");
        let introducing =
            |(_, session): &(u32, &Session)| matches!(session.state, State::Introducing { .. });
        let introducing = self.sessions.iter().filter(introducing).count();
        assert_eq!(self.readers.len() as usize, introducing, "each reader is somebody's");
        for (slot, session) in self.sessions.iter() {
            session.check_invariants();
            let is_over = matches!(
                session.state,
                State::Abandoning { .. } | State::Closing { .. } | State::Unbound
            );
            assert_eq!(self.timers.is_set(slot), !is_over, "what can last for ever has a deadline");
        }
        let is_waiting = |session: &Session| matches!(session.state, State::Waiting { .. });
        let waiting = self.sessions.iter().filter(|(_, session)| is_waiting(session)).count();
        assert_eq!(waiting as u32, self.allocator.waiting.len(), "all who wait stand in line");
    }
}

/// A client that has connected.
struct Arrival {
    listener: ListenerId,
    socket: Accepted,
    client: SocketAddr,
}

/// How a run of sends went.
#[derive(Clone, Copy)]
struct Delivery {
    bytes: u32,
    end: SendEnd,
}
