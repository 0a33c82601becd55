//! A shadow of every flow, port and count: what there should be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use pointsman_core::boundary::{Op, PortId, Side};
use pointsman_core::listing::{Entry, EntryKind, FlowEntry, FlowState};
use pointsman_core::policy::Method;
use pointsman_core::{
    CloseReason, EndpointId, FlowRecord, Instant, Listener, ListenerStats, OnEndpointDown, Snapshot,
};

use super::fared::Fared;
use super::kept::Shelf;
use super::setup::{Call, Kind, PREFIX};

/// An answered flow that has been silent for so long may give its place.
const STALE: Duration = Duration::from_secs(10);
const BURST: Duration = Duration::from_millis(50);

/// One flow of datagrams.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    pub(super) listener: usize,
    pub(super) client: SocketAddr,
    pub(super) local: IpAddr,
    /// Whether the client's next datagram is none of its.
    pub(super) hidden: bool,
    /// Its endpoint, or how it is denied.
    pub(super) target: Result<(EndpointId, SocketAddr), CloseReason>,
    /// `None` if it is denied, or if nothing has been sent since it was given another endpoint.
    pub(super) port: Option<PortId>,
    pub(super) method: Method,
    pub(super) key: Option<u64>,
    pub(super) started: Instant,
    pub(super) active: Instant,
    pub(super) timer: Instant,
    pub(super) bytes: [u64; 2],
    pub(super) datagrams: [u64; 2],
    pub(super) paces: [Instant; 2],
    /// Whether the client sent again before the first reply.
    pub(super) resent: bool,
}

/// A time to within 16 ms, never early.
pub(super) fn coarse(now: Instant) -> Instant {
    Instant::from_millis(((now.as_millis() >> 4) + 1) << 4)
}

impl Flow {
    pub(super) fn is_confirmed(&self) -> bool {
        self.datagrams[Side::Downstream.index()] > 0
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.target.ok().map(|(_, address)| address)
    }

    /// Whether its timer has come by, which has whole milliseconds.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.timer.as_nanos().div_ceil(1_000_000) <= now.as_millis()
    }

    /// Whether these datagrams come too fast for it; counts them if not.
    pub(super) fn throttle(&mut self, now: Instant, to: Side, len: u32) -> bool {
        let Some(kib_s) = self.method.throttle_kib_s else { return false };
        let pace = &mut self.paces[to.index()];
        if *pace > now + BURST {
            return true;
        }
        let nanos = u64::from(len) * 1_000_000_000 / (u64::from(kib_s) * 1_024);
        *pace = (*pace).max(now) + Duration::from_nanos(nanos);
        false
    }

    pub(super) fn is_in(&self, entry: &Entry) -> bool {
        let EntryKind::Flow(shown) = &entry.kind else { return false };
        self.listener == shown.listener.index()
            && (self.client, self.local) == (shown.client, shown.local.ip())
            && self.method.tag == shown.tag
    }

    /// Whether the survey shows that the flow has had another reply, or its last.
    pub(super) fn is_counted_in(&self, entries: &[Entry]) -> bool {
        let shown = entries.iter().find(|entry| self.is_in(entry)).map(|entry| &entry.kind);
        match shown {
            Some(EntryKind::Flow(shown)) => shown.datagrams != self.datagrams,
            _ => true,
        }
    }

    /// The survey shows the flow as it is.
    pub(super) fn assert_shown_by(&self, entry: &Entry, shown: &FlowEntry) {
        let state = match self.target {
            Err(_) => FlowState::Denied,
            Ok(_) if self.is_confirmed() => FlowState::Established,
            Ok(_) => FlowState::Unconfirmed,
        };
        assert_eq!(shown.state, state, "{self:?}");
        assert_eq!((shown.bytes, shown.datagrams), (self.bytes, self.datagrams), "{self:?}");
        assert_eq!(entry.endpoint.zip(shown.endpoint_address), self.target.ok(), "{self:?}");
        assert_eq!((shown.started, shown.last_active), (coarse(self.started), coarse(self.active)));
    }

    pub(super) fn is_of(&self, record: &FlowRecord) -> bool {
        self.listener == record.listener.index()
            && self.client == record.client
            && self.target.ok() == record.endpoint
            && (self.bytes, self.method.tag) == (record.bytes, record.tag)
            && coarse(self.started) == record.started
    }
}

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Shared,
    Owned,
    Stateless,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Port {
    pub(super) listener: usize,
    pub(super) role: Role,
    /// Whose address it has, if not ours.
    pub(super) from: Option<SocketAddr>,
    pub(super) is_v4: bool,
    pub(super) failed: bool,
    pub(super) closing: bool,
}

impl Port {
    /// Whether flows of this listener to this endpoint may share it.
    pub(super) fn is_in(&self, listener: usize, endpoint: SocketAddr) -> bool {
        (self.listener, self.role, self.is_v4) == (listener, Role::Shared, endpoint.is_ipv4())
            && !self.failed
            && !self.closing
    }
}

/// What one call of a balancer led to. The model takes out of it what it has an explanation for.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) ops: VecDeque<Op>,
    pub(super) records: VecDeque<FlowRecord>,
    pub(super) calls: VecDeque<Call>,
    /// What is there after the call.
    pub(super) shown: Vec<Entry>,
    /// Whether there was no room for a decision that was to be kept.
    pub(super) table_was_full: bool,
    /// Whether datagrams were dropped because a flow was too fast.
    pub(super) was_throttled: bool,
}

impl Seen {
    pub(super) fn assert_explained(&self) {
        let explained = self.ops.is_empty() && self.records.is_empty() && self.calls.is_empty();
        assert!(explained, "unexplained: {self:#?}");
    }
}

/// One worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) flows: Vec<Flow>,
    pub(super) ports: BTreeMap<PortId, Port>,
    pub(super) stats: Vec<ListenerStats>,
    /// Decisions by cluster and source.
    pub(super) decisions: Vec<[u64; 5]>,
    pub(super) stopped: Vec<bool>,
    /// Listeners that could once not open a port, and may not try for a while.
    pub(super) short_of_ports: Vec<bool>,
    pub(super) rests: Rests,
}

impl Worker {
    pub(super) fn new(listeners: usize) -> Self {
        Self {
            flows: Vec::new(),
            ports: BTreeMap::new(),
            stats: vec![Default::default(); listeners],
            decisions: vec![[0; 5]; listeners],
            stopped: vec![false; listeners],
            short_of_ports: vec![false; listeners],
            rests: Rests::default(),
        }
    }
}

/// A listener's way to an endpoint.
pub(super) type Way = (usize, EndpointId);

/// Which of the flows of an endpoint was the last to leave a port.
#[derive(Debug, Default)]
pub(super) struct Rests {
    left: BTreeMap<(Way, PortId), u64>,
    count: u64,
    /// Ways of which the model has not seen all.
    obscure: BTreeSet<Way>,
}

impl Rests {
    pub(super) fn on_left(&mut self, way: Way, port: Option<PortId>) {
        self.count += 1;
        match port {
            Some(port) => drop(self.left.insert((way, port), self.count)),
            None => self.obscure(way),
        }
    }

    pub(super) fn obscure(&mut self, way: Way) {
        self.obscure.insert(way);
    }

    /// The number is free to mean another port.
    pub(super) fn on_closed(&mut self, port: PortId) {
        self.left.retain(|(_, other), _| *other != port);
    }

    /// Of all that a flow could have been given, this port has been left longest.
    pub(super) fn assert_rested(&self, way: Way, port: PortId, free: impl Iterator<Item = PortId>) {
        let left = |port| self.left.get(&(way, port)).copied().unwrap_or(0);
        let longest = free.map(left).min();
        let is_it = longest.is_none_or(|longest| left(port) <= longest);
        assert!(is_it || self.obscure.contains(&way), "{port:?} was left after another");
    }
}

/// All workers.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) workers: Vec<Worker>,
    pub(super) shelf: Shelf,
    pub(super) fared: Fared,
    pub(super) capacity: usize,
    pub(super) kinds: Vec<Kind>,
    /// By listener: when everything admitted so far is on schedule.
    pub(super) rates: Vec<Instant>,
    /// By listener and client: the same for each client's own rate.
    pub(super) own_rates: BTreeMap<(usize, Ipv6Addr), Instant>,
    /// By listener: new flows per second of each client, if limited.
    pub(super) per_second_of_client: Vec<Option<u64>>,
    /// By listener: flows that each client may have.
    pub(super) per_client: Vec<Option<u32>>,
    /// By listener: how many flows per second, if limited.
    pub(super) per_second: Vec<Option<u64>>,
}

/// Where and when something happens.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) now: Instant,
    pub(super) worker: usize,
    pub(super) snapshot: &'a Snapshot,
}

impl<'a> Scene<'a> {
    pub(super) fn listener(&self, listener: usize) -> &'a Listener {
        &self.snapshot.listeners[listener]
    }

    pub(super) fn drain_is_over(&self) -> bool {
        self.snapshot.drain_until.is_some_and(|end| end <= self.now)
    }

    /// Whether flows of this endpoint may stay.
    pub(super) fn serves(&self, listener: usize, endpoint: EndpointId) -> bool {
        let cluster = &self.snapshot.clusters[listener];
        cluster.endpoint(endpoint).is_some_and(|state| state.up)
            || cluster.candidates.find(endpoint).is_some()
    }

    /// From where datagrams of this client must leave to this endpoint, if not from our address.
    pub(super) fn source(
        &self,
        listener: usize,
        client: SocketAddr,
        endpoint: SocketAddr,
    ) -> Option<SocketAddr> {
        let wanted = self.snapshot.clusters[listener].transparent;
        (wanted && client.is_ipv4() == endpoint.is_ipv4()).then_some(client)
    }

    /// Whether a flow of this client to this endpoint has a port of its own.
    pub(super) fn owns(&self, listener: usize, client: SocketAddr, endpoint: SocketAddr) -> bool {
        let per_flow = self.listener(listener).datagrams.port_per_flow;
        per_flow || self.source(listener, client, endpoint).is_some()
    }

    /// Whether the flow must leave its endpoint.
    pub(super) fn is_lost(&self, flow: &Flow) -> bool {
        let acts = self.listener(flow.listener).on_endpoint_down != OnEndpointDown::Keep;
        acts && flow.target.is_ok_and(|(id, _)| !self.serves(flow.listener, id))
    }

    pub(super) fn timeout(&self, flow: &Flow) -> Duration {
        flow.method.idle_timeout.unwrap_or(self.listener(flow.listener).timeouts.idle)
    }
}

impl Model {
    pub(super) fn worker(&mut self, scene: &Scene<'_>) -> &mut Worker {
        &mut self.workers[scene.worker]
    }

    /// Flows of a listener, over all workers.
    pub(super) fn active(&self, listener: usize) -> usize {
        let flows = self.workers.iter().flat_map(|worker| &worker.flows);
        flows.filter(|flow| flow.listener == listener).count()
    }

    /// Whether an endpoint has as many flows, in all workers, as it may.
    pub(super) fn is_endpoint_full(
        &self,
        scene: &Scene<'_>,
        listener: usize,
        id: EndpointId,
    ) -> bool {
        let flows = self.workers.iter().flat_map(|worker| &worker.flows);
        let bound = flows.filter(|flow| {
            flow.listener == listener && flow.target.is_ok_and(|(endpoint, _)| endpoint == id)
        });
        let endpoint = scene.snapshot.clusters[listener].candidates.find(id);
        let flows_max = endpoint.map_or(u32::MAX, |endpoint| endpoint.flows_max);
        bound.count() >= flows_max as usize
    }

    /// Whether every endpoint of a cluster that has any does.
    pub(super) fn all_are_full(&self, scene: &Scene<'_>, listener: usize) -> bool {
        let among = &scene.snapshot.clusters[listener].candidates.endpoints;
        !among.is_empty() && among.iter().all(|it| self.is_endpoint_full(scene, listener, it.id))
    }

    pub(super) fn active_of(&self, listener: usize, client: IpAddr) -> usize {
        let flows = self.workers.iter().flat_map(|worker| &worker.flows);
        let own = flows.filter(|flow| flow.listener == listener);
        own.filter(|flow| PREFIX.mask(flow.client.ip()) == PREFIX.mask(client)).count()
    }

    /// Whether there are flows of one client that only the survey tells apart, since nobody has seen
    /// their ports.
    pub(super) fn has_twins(&self, worker: usize) -> bool {
        let unknown = || {
            let flows = self.workers[worker].flows.iter();
            flows.filter(|flow| flow.port.is_none() && flow.target.is_ok())
        };
        unknown().nth(1).is_some()
    }

    /// Whether one more may happen in this time; takes its part of it if so.
    pub(super) fn try_rate(&mut self, now: Instant, listener: usize) -> bool {
        let Some(per_second) = self.per_second[listener] else { return true };
        try_take(&mut self.rates[listener], per_second, now)
    }

    pub(super) fn try_own_rate(&mut self, now: Instant, listener: usize, client: IpAddr) -> bool {
        let Some(per_second) = self.per_second_of_client[listener] else { return true };
        let place = (listener, PREFIX.mask(client));
        try_take(self.own_rates.entry(place).or_insert(Instant::ZERO), per_second, now)
    }

    /// Whether a new flow needs another's place.
    pub(super) fn is_full(&self, scene: &Scene<'_>) -> bool {
        let flows = &self.workers[scene.worker].flows;
        let unconfirmed = flows.iter().filter(|flow| !flow.is_confirmed()).count();
        let beyond_share = unconfirmed >= (self.capacity / 8).max(1);
        flows.len() == self.capacity || (2 * flows.len() >= self.capacity && beyond_share)
    }

    /// Takes the place of a flow, of this listener if one is named, if one was given: it must have
    /// been free to go, and one that was surely free to go must have been found.
    pub(super) fn evict(&mut self, scene: &Scene<'_>, of: Option<usize>, seen: &mut Seen) -> bool {
        let flows = &self.workers[scene.worker].flows;
        let full = flows.len() == self.capacity;
        let may = |flow: &&Flow| of.is_none_or(|of| of == flow.listener);
        let weak = |flow: &Flow| !flow.is_confirmed() && !flow.resent;
        let stale = |flow: &Flow| {
            let silent = scene.now.since(coarse(flow.active)) >= STALE;
            flow.is_confirmed() && silent && (of.is_some() || full)
        };
        let any_weak = flows.iter().filter(may).any(weak);
        let any_stale = flows.iter().filter(may).any(stale);
        let evicted =
            seen.records.front().is_some_and(|first| first.reason == CloseReason::Evicted);
        if !evicted {
            assert!(!any_weak && !any_stale, "a flow could have given its place");
            return false;
        }
        let flow = self.end(scene, seen).1;
        assert!(may(&&flow), "another listener's flow gave its place");
        if flow.is_confirmed() {
            assert!(stale(&flow), "a flow in use gave its place: {flow:?}");
            assert!(!any_weak, "an answered flow gave its place before one that was not");
        }
        true
    }

    /// Ends the flow that the next record is of.
    pub(super) fn end(&mut self, scene: &Scene<'_>, seen: &mut Seen) -> (CloseReason, Flow) {
        let record = seen.records.pop_front().expect("a flow that ends has a record");
        let flows = &self.workers[scene.worker].flows;
        let places: Vec<usize> =
            (0..flows.len()).filter(|&place| flows[place].is_of(&record)).collect();
        // Which of several left first only the balancer knows, and with it the order of their ports.
        if places.len() > 1 {
            let flows = places.iter().map(|&place| &flows[place]);
            let ways = flows.filter_map(|flow| Some((flow.listener, flow.target.ok()?.0)));
            let ways: Vec<Way> = ways.collect();
            ways.into_iter().for_each(|way| self.worker(scene).rests.obscure(way));
        }
        let flows = &self.workers[scene.worker].flows;
        let place = match places[..] {
            [] => panic!("a record of no flow: {record:?} among {flows:#?}"),
            [place] => place,
            _ => {
                let is_shown = |place: usize| seen.shown.iter().any(|it| flows[place].is_in(it));
                let gone = places.iter().copied().find(|&place| !is_shown(place));
                gone.unwrap_or(places[0])
            }
        };
        seen.records.push_front(record);
        self.end_this(scene, place, seen)
    }

    /// Ends this flow, which the next record must be of.
    pub(super) fn end_this(
        &mut self,
        scene: &Scene<'_>,
        place: usize,
        seen: &mut Seen,
    ) -> (CloseReason, Flow) {
        let record = seen.records.pop_front().expect("a flow that ends has a record");
        let worker = self.worker(scene);
        let flow = worker.flows.remove(place);
        assert!(flow.is_of(&record), "{record:?} is not of {flow:?}");
        assert_eq!(record.ended, scene.now);
        assert_eq!(record.attempts, u32::from(flow.target.is_ok()));
        let stats = &mut worker.stats[flow.listener];
        stats.flows_active -= 1;
        stats.closes_total[record.reason.index()] += 1;
        self.leave(scene, &flow, seen);
        (record.reason, flow)
    }

    /// A flow leaves its port, which is closed if it was its own.
    pub(super) fn leave(&mut self, scene: &Scene<'_>, flow: &Flow, seen: &mut Seen) {
        let worker = self.worker(scene);
        if let Ok((endpoint, _)) = flow.target {
            worker.rests.on_left((flow.listener, endpoint), flow.port);
        }
        let Some(port) = flow.port else { return };
        let is_used = worker.flows.iter().any(|other| other.port == Some(port));
        let known = worker.ports.get_mut(&port).expect("a flow has an open port");
        if known.failed && !is_used {
            worker.ports.remove(&port);
        } else if known.role == Role::Owned && !known.failed {
            known.closing = true;
            let closed = Op::ClosePort { port };
            let place = seen.ops.iter().position(|op| *op == closed);
            seen.ops.remove(place.expect("a flow's own port is closed with it"));
        }
    }

    /// Whether the listener may open another port.
    pub(super) fn may_open(&self, scene: &Scene<'_>, listener: usize) -> bool {
        let ports = self.workers[scene.worker].ports.values();
        let open = ports.filter(|port| port.listener == listener).count();
        open < scene.listener(listener).datagrams.ports_max as usize
    }

    /// Whether a flow to this endpoint must be given a port. `None` if the model cannot know.
    pub(super) fn has_port(
        &self,
        scene: &Scene<'_>,
        listener: usize,
        (client, endpoint): (SocketAddr, SocketAddr),
    ) -> Option<bool> {
        let worker = &self.workers[scene.worker];
        let is_failed = |port: &Port| port.listener == listener && port.failed;
        if worker.short_of_ports[listener] || worker.ports.values().any(is_failed) {
            return None;
        }
        if self.may_open(scene, listener) {
            return Some(true);
        }
        if scene.owns(listener, client, endpoint) {
            return Some(false);
        }
        let bound = || {
            let own = worker.flows.iter().filter(|flow| flow.listener == listener);
            own.filter(|flow| flow.address() == Some(endpoint))
        };
        if bound().any(|flow| flow.port.is_none()) {
            return None;
        }
        let taken = |id: &PortId| bound().any(|flow| flow.port == Some(*id));
        Some(worker.ports.iter().any(|(id, port)| port.is_in(listener, endpoint) && !taken(id)))
    }

    /// The counts are exactly those that what was seen adds up to.
    pub(super) fn assert_counts(&self, worker: usize, actual: &[ListenerStats]) {
        for (listener, (actual, expected)) in
            actual.iter().zip(&self.workers[worker].stats).enumerate()
        {
            let (flows, of) = (expected.flows_total, |stats: &ListenerStats| {
                [
                    stats.flows_total,
                    stats.flows_active,
                    stats.taken_over_total,
                    stats.handed_over_total,
                    stats.reallocations_total,
                    stats.stateless_total,
                    stats.bytes_total[0],
                    stats.bytes_total[1],
                    stats.datagrams_total[0],
                    stats.datagrams_total[1],
                ]
            });
            assert_eq!(of(actual), of(expected), "listener {listener}, {flows} flows");
            assert_eq!(actual.closes_total, expected.closes_total, "closes of {listener}");
            assert_eq!(actual.sheds_total, expected.sheds_total, "sheds of {listener}");
            assert_eq!(actual.drops_total, expected.drops_total, "drops of {listener}");
            assert_eq!(actual.keyless_total, expected.keyless_total, "keyless of {listener}");
        }
    }
}

fn try_take(on_schedule: &mut Instant, per_second: u64, now: Instant) -> bool {
    let interval = Duration::from_nanos(1_000_000_000 / per_second);
    let next = (*on_schedule).max(now) + interval;
    let admits = next <= now + Duration::from_secs(1);
    if admits {
        *on_schedule = next;
    }
    admits
}
