//! Who has a place at which endpoint, and who waits for one.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use pointsman_core::boundary::{Completion, ConnectFailure, Goodbye, Op, ReceiveEnd, Side};
use pointsman_core::{Endpoint, Instant};

use super::{Asked, Call, Done, Flow, Oracle, View};

/// The flows that wait, as they joined.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// By cluster: their slots, and when each joined. Those of one call of the balancer joined in an
    /// order that nobody sees.
    lines: BTreeMap<usize, Vec<(u32, u64)>>,
    call: u64,
    /// A flow whose endpoint has just failed it.
    retrying: Option<u32>,
    /// A flow that ends because its client is gone, or an operator says so.
    lost: Option<u32>,
}

/// Whether this ends a flow's wait: it connects, or its client's link is closed.
pub(super) fn is_end_of_waiting(op: &Op, slot: u32) -> bool {
    match op {
        Op::Connect { link, .. } => link.slot() == slot,
        Op::Close { link, .. } => link.slot() == slot && link.side() == Side::Downstream,
        _ => false,
    }
}

impl Oracle {
    /// Flows that have their place at this endpoint.
    pub(super) fn placed_at(&self, address: SocketAddr) -> usize {
        self.flows.values().filter(|flow| flow.placed == Some(address)).count()
    }

    /// Whether this endpoint has as many flows as it may.
    pub(super) fn is_full(&self, address: Option<SocketAddr>, view: &View<'_>) -> bool {
        let clusters = view.snapshot.clusters.iter();
        let mut endpoints = clusters.flat_map(|cluster| &cluster.candidates.endpoints);
        let endpoint = endpoints.find(|endpoint| Some(endpoint.address) == address);
        endpoint.is_some_and(|endpoint| self.has_no_place(endpoint))
    }

    fn has_no_place(&self, endpoint: &Endpoint) -> bool {
        self.placed_at(endpoint.address) >= endpoint.flows_max as usize
    }

    fn all_are_full(&self, cluster: usize, view: &View<'_>) -> bool {
        let among = &view.snapshot.clusters[cluster].candidates.endpoints;
        !among.is_empty() && among.iter().all(|endpoint| self.has_no_place(endpoint))
    }

    /// Whether a new flow has to wait, or is refused.
    pub(super) fn must_wait(&self, cluster: usize, view: &View<'_>) -> bool {
        let of = &view.snapshot.clusters[cluster];
        let others = of.queue.flows_max > 0 && self.line(cluster) > 0;
        self.all_are_full(cluster, view) || others && !of.candidates.is_empty()
    }

    fn line(&self, cluster: usize) -> usize {
        self.waiting.lines.get(&cluster).map_or(0, Vec::len)
    }

    fn has_room(&self, cluster: usize, view: &View<'_>) -> bool {
        self.line(cluster) < view.snapshot.clusters[cluster].queue.flows_max as usize
    }

    /// Flows that wait for a place.
    pub(crate) fn queued_flows(&self) -> usize {
        self.waiting.lines.values().map(Vec::len).sum()
    }

    /// Flows that may be waiting for nothing but their time.
    pub(crate) fn throttled_flows(&self) -> usize {
        let throttled = |flow: &&Flow| flow.established && flow.method.throttle_kib_s.is_some();
        self.flows.values().filter(throttled).count()
    }

    /// An operator is about to end this flow.
    pub(crate) fn on_forgotten(&mut self, client: SocketAddr) {
        let found = self.flows.iter().find(|(_, flow)| flow.client == client);
        self.waiting.lost = found.map(|(slot, _)| *slot);
    }

    /// Places that are given back, before anything else comes of it.
    pub(super) fn follow_places(&mut self, completion: &Completion) {
        (self.waiting.retrying, self.waiting.lost) = (None, None);
        let (link, failed) = match completion {
            Completion::ConnectFailed {
                link,
                cause: ConnectFailure::Unreachable | ConnectFailure::NoWay,
            } => (link, true),
            Completion::Closed { link } => (link, false),
            Completion::ReceiveEnded { link, end: ReceiveEnd::Reset } => {
                self.waiting.lost = Some(link.slot());
                return;
            }
            _ => return,
        };
        let flow = self.flows.get_mut(&link.slot()).expect("a completion belongs to a flow");
        if !flow.closing && failed != flow.abandoning {
            flow.placed = None;
            self.waiting.retrying = Some(link.slot());
        }
    }

    fn join(&mut self, now: Instant, slot: u32) {
        let flow = self.flows.get_mut(&slot).expect("a flow waits");
        (flow.queued, flow.waits) = (Some(now), true);
        let line = self.waiting.lines.entry(flow.cluster).or_default();
        line.push((slot, self.waiting.call));
    }

    fn leave(&mut self, slot: u32) {
        let flow = self.flows.get_mut(&slot).expect("a flow waits");
        flow.queued = None;
        let line = self.waiting.lines.entry(flow.cluster).or_default();
        line.retain(|(other, _)| *other != slot);
    }

    /// A client came for whom there is no place.
    pub(super) fn after_accepted_in_vain(&mut self, flow: &Flow, view: &View<'_>, ops: &[Op]) {
        self.waiting.call += 1;
        match ops {
            [Op::Adopt { link, .. }, Op::Receive { .. }] => {
                assert!(self.has_room(flow.cluster, view), "no more wait than may");
                let taken = self.flows.insert(link.slot(), flow.clone());
                assert!(taken.is_none(), "the slot was taken");
                self.join(flow.started, link.slot());
            }
            [Op::Refuse { goodbye: Goodbye::Reset, .. }] => {
                assert!(!self.has_room(flow.cluster, view), "it could have waited");
            }
            other => panic!("without a place a client waits or is refused: {other:?}"),
        }
    }

    /// A flow that has said enough finds no place.
    pub(super) fn decide_in_vain(
        &mut self,
        (now, view): (Instant, &View<'_>),
        slot: u32,
        done: Option<Done>,
        ops: &[Op],
    ) {
        let cluster = self.flows[&slot].cluster;
        match done {
            None => {
                // Nobody sees whether others left before it came or after.
                let leave = |slot: u32| ops.iter().any(|op| is_end_of_waiting(op, slot));
                let line = self.waiting.lines.get(&cluster).into_iter().flatten();
                let stay = line.filter(|(slot, _)| !leave(*slot)).count();
                let flows_max = view.snapshot.clusters[cluster].queue.flows_max;
                assert!(stay < flows_max as usize, "no more wait than may");
                self.join(now, slot);
            }
            // Those that filled the queue before it are looked at later.
            Some(done) => assert_eq!(done.refused, Some(Goodbye::Reset)),
        }
    }

    /// Flows that have waited connect in their order, or end.
    pub(super) fn after_served(
        &mut self,
        (now, view): (Instant, &View<'_>),
        ops: &[Op],
        calls: &mut VecDeque<Call>,
    ) {
        self.waiting.call += 1;
        for op in ops {
            let (link, done) = match op {
                Op::Connect { link, address, .. } => {
                    (link, Done { target: Some(*address), refused: None })
                }
                Op::Close { link, goodbye } if link.side() == Side::Downstream => {
                    (link, Done { target: None, refused: Some(*goodbye) })
                }
                _ => continue,
            };
            let slot = link.slot();
            let Some(since) = self.flows[&slot].queued else { continue };
            let flow = self.flows[&slot].clone();
            let queue = &view.snapshot.clusters[flow.cluster].queue;
            let is_late = (since + queue.timeout).as_nanos().div_ceil(1_000_000) <= now.as_millis();
            let is_over = is_late || view.is_over(&flow, now);
            if done.target.is_none() && (is_over || self.waiting.lost == Some(slot)) {
                *self.undecided.entry(flow.cluster).or_default() += 1;
                self.leave(slot);
                continue;
            }
            let line = &self.waiting.lines[&flow.cluster];
            let joined = |of: u32| line.iter().find(|(slot, _)| *slot == of).map(|(_, at)| *at);
            assert!(line.iter().all(|(_, at)| joined(slot) <= Some(*at)), "another was first");
            assert!(!self.all_are_full(flow.cluster, view), "there is no place for it");
            self.leave(slot);
            let method = self.served((now, view), &flow, done, calls);
            let flow = self.flows.get_mut(&slot).expect("it was there");
            (flow.method, flow.placed) = (method, done.target);
        }
        self.waiting.lost = None;
    }

    /// The turn of a flow has come, and this was done with it.
    fn served(
        &mut self,
        (now, view): (Instant, &View<'_>),
        flow: &Flow,
        done: Done,
        calls: &mut VecDeque<Call>,
    ) -> pointsman_core::policy::Method {
        let among = &view.snapshot.clusters[flow.cluster].candidates;
        if flow.attempts == 0 {
            return self.decided((now, view), flow, done, calls);
        }
        if !view.logged[flow.cluster] || among.endpoints.is_empty() {
            return flow.method;
        }
        let call = calls.pop_front().expect("a flow that tries again is decided on");
        let (client, cluster, attempt) = (flow.client, flow.cluster, flow.attempts);
        let asked = Asked { client, attempt, cluster, with: None };
        if self.check_call(&call, &asked, view, done) {
            self.keep((now, view), flow, &call, None);
        }
        call.decision.method
    }

    /// A flow that its endpoint has failed, and that connects to no other, waits or ends.
    pub(super) fn after_retry(&mut self, (now, view): (Instant, &View<'_>), ops: &[Op]) {
        let Some(slot) = self.waiting.retrying.take() else { return };
        if ops.iter().any(|op| is_end_of_waiting(op, slot)) {
            return;
        }
        let cluster = self.flows[&slot].cluster;
        assert!(self.all_are_full(cluster, view), "there was an endpoint for it");
        assert!(self.has_room(cluster, view), "no more wait than may");
        self.join(now, slot);
    }

    /// Nobody waits while there is a place, or longer than it may.
    pub(super) fn assert_nobody_waits_in_vain(&self, now: Instant, view: &View<'_>) {
        for flow in self.flows.values() {
            let Some(since) = flow.queued else { continue };
            assert!(self.all_are_full(flow.cluster, view), "{} could be served", flow.client);
            let timeout = view.snapshot.clusters[flow.cluster].queue.timeout;
            let overdue = since + timeout + Duration::from_millis(2);
            assert!(now <= overdue, "{} has waited too long", flow.client);
        }
    }
}
