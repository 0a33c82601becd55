//! Upstream ports: the local UDP ports from which flows reach their endpoints.
//!
//! A port serves one flow per endpoint, since a reply says only which port it came to and who sent
//! it. So a pool is as large as the busiest endpoint has flows, not as there are flows; it is kept
//! at twice that, so that a port rests before it serves the same endpoint again: which ports are free
//! for an endpoint, and for how long, its [`Lane`] knows. The kernel chooses each port's number, at
//! random.

use alloc::vec::Vec;
use core::net::SocketAddr;

use super::flow::NONE;
use super::lane::{Lane, Opened};
use crate::boundary::{ListenerId, Op, Ops, PortId, PortKind};
use crate::handover::HandedPort;
use crate::snapshot::{DatagramSettings, Listener, Snapshot};

/// Ports that are found taken before a flow is refused.
const TRIES: usize = 512;
/// Ports closed at a time, and ports looked at for that.
const CLOSED_AT_ONCE: usize = 32;
const TRIM_LOOKS: usize = 4 * CLOSED_AT_ONCE;

/// One port.
#[derive(Debug, Clone, Copy)]
struct Port {
    listener: ListenerId,
    /// Counts what has been opened: a number that is used again is another port.
    opening: u64,
    /// Flows that go through it.
    flows: u32,
    /// The flow that it was opened for, if it is connected.
    owner: u32,
    /// Whether it has its client's address.
    is_lent: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// Flows share it.
    Shared,
    /// It has one flow and is closed with it.
    Owned,
    /// Datagrams go through it that have no flow; nobody waits for replies.
    Stateless,
    /// It could not be opened, and has flows yet.
    Failed,
    /// It is about to go over to another process, with its flows.
    Leaving,
    Closing,
}

/// The shared ports of one listener and address family.
#[derive(Debug)]
struct Pool {
    /// As they were opened.
    ports: Vec<PortId>,
    stateless: Option<PortId>,
}

/// All upstream ports of one worker.
#[derive(Debug)]
pub(super) struct Ports {
    ports: Vec<Port>,
    free: Vec<PortId>,
    /// By listener, then by family: IPv4 first.
    pools: Vec<[Pool; 2]>,
    /// Ports that are not free, by listener.
    counts: Vec<u32>,
    /// As many as could be opened, by listener, if the last try failed.
    possible: Vec<u32>,
    total: u32,
    /// As many as there may be: the performing side has room for just these.
    total_max: u32,
    /// Ports that could not be opened and have flows yet.
    failed: u32,
    /// Ports that have ever been opened.
    openings: u64,
    /// Whether flows of any cluster have ports with their clients' addresses.
    makes_way: bool,
}

/// A flow that wants a port.
pub(super) struct Wish {
    pub(super) listener: ListenerId,
    pub(super) endpoint: SocketAddr,
    /// The client whose address the port has to have, if not one of ours.
    pub(super) from: Option<SocketAddr>,
    /// Flows that the endpoint has already.
    pub(super) flows: u32,
    pub(super) settings: DatagramSettings,
}

impl Wish {
    /// Whether the port has to be the flow's own.
    pub(super) fn wants_its_own(&self) -> bool {
        self.settings.port_per_flow || self.from.is_some()
    }
}

impl Ports {
    /// Makes room for all ports that the listeners may open.
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        let max = |listener: &Listener| match listener.is_datagrams() {
            true => listener.datagrams.ports_max as usize,
            false => 0,
        };
        let pool = |max| Pool { ports: Vec::with_capacity(max), stateless: None };
        let pools = |listener: &Listener| [pool(max(listener)), pool(max(listener))];
        let total = snapshot.listeners.iter().map(max).sum();
        Self {
            ports: Vec::with_capacity(total),
            free: Vec::with_capacity(total),
            pools: snapshot.listeners.iter().map(pools).collect(),
            counts: alloc::vec![0; snapshot.listeners.len()],
            possible: alloc::vec![u32::MAX; snapshot.listeners.len()],
            failed: 0,
            total: 0,
            total_max: total as u32,
            openings: 0,
            makes_way: has_transparent(snapshot),
        }
    }

    /// Takes in a new world: its listeners may open ports, all together as many as before.
    pub(super) fn apply(&mut self, snapshot: &Snapshot) {
        self.makes_way = has_transparent(snapshot);
        let count = snapshot.listeners.len().max(self.pools.len());
        let pool = || Pool { ports: Vec::new(), stateless: None };
        self.pools.resize_with(count, || [pool(), pool()]);
        self.counts.resize(count, 0);
        self.possible.resize(count, u32::MAX);
    }

    /// Ports that are open, or closing.
    pub(super) fn len(&self) -> u32 {
        self.total
    }

    /// The shared port that is free longest for an endpoint whose free ones are in `lane`, or one of
    /// the flow's own where each has its own, or its client's address. `None` if all that may be
    /// opened are taken.
    ///
    /// An endpoint that was removed and came back finds its address taken by flows of before, which
    /// `is_taken` tells.
    pub(super) fn take(
        &mut self,
        wish: &Wish,
        lane: &mut Lane,
        is_taken: impl Fn(PortId) -> bool,
        ops: &mut Ops,
    ) -> Option<PortId> {
        if wish.wants_its_own() {
            return self.open(wish, State::Owned, ops);
        }
        for _ in 0..TRIES {
            let Some(opened) = self.next_unknown(wish, lane) else { break };
            if !is_taken(opened.port) {
                return Some(opened.port);
            }
            lane.put(opened, |it| self.is_open(it));
        }
        let pool = &self.pools[wish.listener.index()][family(wish.endpoint)].ports;
        if (pool.len() as u64) < wanted(wish.flows.saturating_add(1), &wish.settings)
            && let Some(port) = self.open_shared(wish, lane, ops)
        {
            return Some(port);
        }
        for _ in 0..TRIES.min(lane.len()) {
            let Some(opened) = lane.take(|it| self.is_open(it)) else { break };
            if !is_taken(opened.port) {
                return Some(opened.port);
            }
            lane.put(opened, |it| self.is_open(it));
        }
        self.open_shared(wish, lane, ops)
    }

    /// The port for datagrams that have no flow.
    pub(super) fn stateless(&mut self, wish: &Wish, ops: &mut Ops) -> Option<PortId> {
        let pool = &self.pools[wish.listener.index()][family(wish.endpoint)];
        pool.stateless.or_else(|| self.open(wish, State::Stateless, ops))
    }

    /// A flow was bound to it.
    pub(super) fn on_bound(&mut self, port: PortId, flow: u32) {
        let port = &mut self.ports[port.index()];
        port.flows += 1;
        port.owner = flow;
    }

    /// A flow has left it. One that was opened for this flow alone is closed; another is free for
    /// the endpoint whose `lane` this is.
    pub(super) fn on_unbound(&mut self, port: PortId, lane: &mut Lane, ops: &mut Ops) {
        let Port { flows, state, opening, .. } = &mut self.ports[port.index()];
        *flows -= 1;
        match (*flows, *state) {
            (0, State::Owned) => self.close(port, ops),
            (0, State::Failed) => self.release(port),
            (_, State::Shared) => {
                let opened = Opened { port, opening: *opening };
                lane.put(opened, |it| self.is_open(it));
            }
            _ => {}
        }
    }

    /// The ports that flows of these listeners go through. They are about to go over to another process
    /// with all their flows, and nobody else is given them.
    pub(super) fn begin_handing_over(
        &mut self,
        is_wanted: impl Fn(ListenerId) -> bool,
    ) -> Vec<HandedPort> {
        let mut leaving = Vec::new();
        for (number, port) in (0..).map(PortId).zip(&mut self.ports) {
            let connected = port.state == State::Owned;
            let may_go = connected || port.state == State::Shared;
            if may_go && port.flows > 0 && is_wanted(port.listener) {
                port.state = State::Leaving;
                leaving.push(HandedPort { port: number, listener: port.listener, connected });
            }
        }
        let ports = &self.ports;
        for pool in self.pools.iter_mut().flatten() {
            pool.ports.retain(|port| ports[port.index()].state == State::Shared);
        }
        leaving
    }

    /// A flow has gone over to another process. So has its port, if it was the last: the number is free.
    pub(super) fn on_flow_handed_over(&mut self, port: PortId) {
        let flows = &mut self.ports[port.index()].flows;
        *flows -= 1;
        if *flows == 0 {
            self.release(port);
        }
    }

    /// Finds a number for a port that is open already. As many may come as there is room for, whatever
    /// a listener may open by itself: they have flows.
    pub(super) fn take_in(
        &mut self,
        listener: ListenerId,
        towards: SocketAddr,
        connected: bool,
    ) -> Option<PortId> {
        let state = if connected { State::Owned } else { State::Shared };
        (self.total < self.total_max).then(|| self.add(listener, towards, state))
    }

    /// A flow of the endpoint whose `lane` this is has come with a port.
    pub(super) fn on_flow_taken_over(&self, port: PortId, lane: &mut Lane) {
        if self.is_shared(port) {
            lane.meet(self.ports[port.index()].opening);
        }
    }

    /// Whose port it is.
    pub(super) fn listener(&self, port: PortId) -> ListenerId {
        self.ports[port.index()].listener
    }

    /// The flow of a port that has only one.
    pub(super) fn owner(&self, port: PortId) -> Option<u32> {
        let port = self.ports.get(port.index())?;
        (port.state == State::Owned && port.flows > 0).then_some(port.owner)
    }

    /// Whether flows may share it.
    pub(super) fn is_shared(&self, port: PortId) -> bool {
        self.ports.get(port.index()).is_some_and(|port| port.state == State::Shared)
    }

    /// Whether it could not be opened.
    #[inline]
    pub(super) fn has_failed(&self, port: PortId) -> bool {
        self.failed > 0 && self.ports[port.index()].state == State::Failed
    }

    /// It could not be opened, and so no other will be until ports are looked after; unless it was for
    /// its client's address, which says nothing of others. Tells whether it has flows, which must
    /// leave it.
    pub(super) fn on_failed(&mut self, port: PortId) -> bool {
        self.take_out(port);
        self.failed += 1;
        let Port { listener, flows, is_lent, .. } = self.ports[port.index()];
        self.ports[port.index()].state = State::Failed;
        if !is_lent {
            self.possible[listener.index()] = (self.counts[listener.index()] - 1).max(1);
        }
        if flows == 0 {
            self.release(port);
        }
        flows > 0
    }

    /// It is closed.
    pub(super) fn on_closed(&mut self, port: PortId) {
        self.release(port);
    }

    /// Closes some ports that have no flow, if there are far more than `peak` flows of one endpoint
    /// call for. Tells whether it closed as many as it may at a time.
    pub(super) fn trim(
        &mut self,
        listener: ListenerId,
        (peak, settings): (u32, &DatagramSettings),
        ops: &mut Ops,
    ) -> bool {
        self.possible[listener.index()] = u32::MAX;
        let wanted = wanted(peak, settings) as usize;
        let mut left = CLOSED_AT_ONCE;
        for family in 0..2 {
            let end = self.pools[listener.index()][family].ports.len();
            for place in (0..end).rev().take(TRIM_LOOKS) {
                let pool = &self.pools[listener.index()][family].ports;
                let port = pool[place];
                if pool.len() > wanted && left > 0 && self.ports[port.index()].flows == 0 {
                    self.close(port, ops);
                    left -= 1;
                }
            }
        }
        left == 0
    }

    /// Asserts what must hold between any two calls, `bound` flows having a port.
    pub(super) fn check_invariants(&self, bound: u32) {
        let used = || self.ports.iter().filter(|port| port.state != State::Free);
        assert_eq!(used().count() as u32, self.total);
        assert_eq!(used().map(|port| port.flows).sum::<u32>(), bound, "a flow has one port");
        for pool in self.pools.iter().flatten() {
            let entries = || pool.ports.iter().map(|port| &self.ports[port.index()]);
            assert!(entries().is_sorted_by(|one, next| one.opening < next.opening));
            assert!(entries().all(|port| port.state == State::Shared));
        }
    }

    /// Asserts that an endpoint with `flows` on shared ports finds every other port, and each once.
    pub(super) fn check_lane(
        &self,
        lane: &Lane,
        (listener, endpoint): (ListenerId, SocketAddr),
        flows: u32,
    ) {
        let pool = &self.pools[listener.index()][family(endpoint)].ports;
        let unknown = pool[self.known(pool, lane)..].iter();
        let unknown = unknown.filter(|port| !lane.has_met(self.ports[port.index()].opening));
        let free = lane.check_invariants(|it| self.is_open(it));
        let all = unknown.count() + free + flows as usize;
        assert_eq!(all, pool.len(), "a port is free or taken");
    }

    /// The next port that others of the pool's endpoints have opened.
    fn next_unknown(&self, wish: &Wish, lane: &mut Lane) -> Option<Opened> {
        if lane.knows_all(self.openings) {
            return None;
        }
        let pool = &self.pools[wish.listener.index()][family(wish.endpoint)].ports;
        for &port in &pool[self.known(pool, lane)..] {
            let opening = self.ports[port.index()].opening;
            if lane.learn(opening) {
                return Some(Opened { port, opening });
            }
        }
        lane.learn_all(self.openings);
        None
    }

    /// How many of a pool's ports are known to a lane: the first ones.
    fn known(&self, pool: &[PortId], lane: &Lane) -> usize {
        pool.partition_point(|port| lane.knows(self.ports[port.index()].opening))
    }

    fn is_open(&self, Opened { port, opening }: Opened) -> bool {
        let entry = &self.ports[port.index()];
        entry.state == State::Shared && entry.opening == opening
    }

    /// Opens a port for a flow of an endpoint that knows all others.
    fn open_shared(&mut self, wish: &Wish, lane: &mut Lane, ops: &mut Ops) -> Option<PortId> {
        if !lane.knows_all(self.openings) {
            return None;
        }
        let port = self.open(wish, State::Shared, ops)?;
        lane.learn_all(self.openings);
        Some(port)
    }

    fn open(&mut self, wish: &Wish, state: State, ops: &mut Ops) -> Option<PortId> {
        let count = self.counts[wish.listener.index()];
        let possible = wish.settings.ports_max.min(self.possible[wish.listener.index()]);
        if count >= possible || self.total >= self.total_max {
            return None;
        }
        let port = self.add(wish.listener, wish.endpoint, state);
        let connected = state == State::Owned;
        let from = wish.from.filter(|_| connected);
        self.ports[port.index()].is_lent = from.is_some();
        let kind = PortKind {
            towards: wish.endpoint,
            connected,
            from,
            makes_way: self.makes_way && !connected,
            offload: wish.settings.offload,
        };
        ops.push(Op::OpenPort { port, kind });
        Some(port)
    }

    /// Gives a port that is open, or will be, a number and its place.
    fn add(&mut self, listener: ListenerId, towards: SocketAddr, state: State) -> PortId {
        self.counts[listener.index()] += 1;
        self.total += 1;
        let port = self.free.pop().unwrap_or(PortId(self.ports.len() as u32));
        let pool = &mut self.pools[listener.index()][family(towards)];
        match state {
            State::Shared => pool.ports.push(port),
            State::Stateless => pool.stateless = Some(port),
            _ => {}
        }
        let opening = self.openings;
        self.openings += 1;
        let entry = Port { listener, opening, flows: 0, owner: NONE, is_lent: false, state };
        match self.ports.get_mut(port.index()) {
            Some(slot) => *slot = entry,
            None => self.ports.push(entry),
        }
        port
    }

    fn close(&mut self, port: PortId, ops: &mut Ops) {
        self.take_out(port);
        self.ports[port.index()].state = State::Closing;
        ops.push(Op::ClosePort { port });
    }

    /// Nobody is given it any more.
    fn take_out(&mut self, port: PortId) {
        let Port { listener, opening, .. } = self.ports[port.index()];
        let ports = &self.ports;
        for pool in &mut self.pools[listener.index()] {
            if pool.stateless == Some(port) {
                pool.stateless = None;
            }
            let earlier = |other: &PortId| ports[other.index()].opening < opening;
            let place = pool.ports.partition_point(earlier);
            if pool.ports.get(place) == Some(&port) {
                pool.ports.remove(place);
            }
        }
    }

    fn release(&mut self, port: PortId) {
        let entry = &mut self.ports[port.index()];
        self.failed -= u32::from(entry.state == State::Failed);
        entry.state = State::Free;
        self.counts[entry.listener.index()] -= 1;
        self.total -= 1;
        self.free.push(port);
    }
}

/// How many ports a pool should have for so many flows of one endpoint.
fn wanted(flows: u32, settings: &DatagramSettings) -> u64 {
    (2 * u64::from(flows)).max(settings.ports_min.into())
}

const fn family(address: SocketAddr) -> usize {
    if address.is_ipv4() { 0 } else { 1 }
}

/// Whether flows of any cluster leave from their clients' addresses.
fn has_transparent(snapshot: &Snapshot) -> bool {
    snapshot.clusters.iter().any(|cluster| cluster.transparent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::snapshot;
    use std::collections::BTreeSet;

    const KEPT: u32 = DatagramSettings::DEFAULT.ports_min;

    /// The ports of one listener, and one of its endpoints.
    struct Rig {
        ports: Ports,
        ops: Ops,
        ports_max: u32,
        lane: Lane,
        taken: BTreeSet<PortId>,
    }

    impl Rig {
        fn new(ports_max: u32) -> Self {
            let (ports, ops) = (Ports::new(&snapshot(ports_max)), Ops::with_capacity(2_000));
            Self { ports, ops, ports_max, lane: Lane::default(), taken: BTreeSet::new() }
        }

        fn wish(&self) -> Wish {
            let settings =
                DatagramSettings { ports_max: self.ports_max, ..DatagramSettings::DEFAULT };
            let (endpoint, flows) = ("10.0.0.1:53".parse().unwrap(), self.taken.len() as u32);
            Wish { listener: ListenerId(0), endpoint, from: None, flows, settings }
        }

        /// Takes a port for a flow of the endpoint.
        fn take(&mut self) -> Option<PortId> {
            let wish = self.wish();
            let port = self.ports.take(&wish, &mut self.lane, |_| false, &mut self.ops)?;
            assert!(self.taken.insert(port), "one port serves an endpoint once");
            self.ports.on_bound(port, 0);
            self.check();
            Some(port)
        }

        /// Takes ports for as many flows, or all that there are.
        fn fill(&mut self, count: u32) -> Vec<PortId> {
            (0..count).map_while(|_| self.take()).collect()
        }

        fn leave(&mut self, port: PortId) {
            assert!(self.taken.remove(&port));
            self.ports.on_unbound(port, &mut self.lane, &mut self.ops);
            self.check();
        }

        /// Another endpoint of the same listener.
        fn turn_to_another_endpoint(&mut self) {
            self.lane = Lane::default();
            self.taken.clear();
        }

        /// Closes what may be closed.
        fn trim(&mut self, peak: u32) -> Vec<PortId> {
            self.ops.drain().for_each(drop);
            let settings = self.wish().settings;
            while self.ports.trim(ListenerId(0), (peak, &settings), &mut self.ops) {}
            let closed: Vec<_> = self
                .ops
                .drain()
                .map(|op| match op {
                    Op::ClosePort { port } => port,
                    other => panic!("{other:?}"),
                })
                .collect();
            closed.iter().for_each(|port| self.ports.on_closed(*port));
            self.check();
            closed
        }

        fn check(&self) {
            let wish = self.wish();
            self.ports.check_lane(&self.lane, (wish.listener, wish.endpoint), wish.flows);
        }
    }

    #[test]
    fn a_pool_grows_with_the_flows_of_one_endpoint_up_to_its_bound() {
        let mut rig = Rig::new(100);
        assert_eq!(rig.fill(40).len(), 40);
        assert_eq!(rig.ports.len(), 40, "each flow so far has opened its own");
        assert_eq!(rig.fill(200).len(), 60, "every port is found");
    }

    #[test]
    fn a_flood_beyond_all_ports_is_refused_without_a_look_at_any() {
        let mut rig = Rig::new(100);
        rig.fill(100);
        let wish = rig.wish();
        let look = |_| panic!("each look is a look-up");
        assert_eq!(rig.ports.take(&wish, &mut rig.lane, look, &mut rig.ops), None);
    }

    #[test]
    fn the_port_that_was_left_last_is_used_again_last() {
        let mut rig = Rig::new(64);
        let first = rig.fill(64);
        let order = [5, 40, 3, 63, 0];
        order.iter().for_each(|place| rig.leave(first[*place]));
        assert_eq!(rig.fill(64), order.map(|place| first[place]));
    }

    #[test]
    fn a_late_reply_meets_no_flow_before_a_pool_s_worth_of_flows_has_come() {
        let mut rig = Rig::new(100);
        let port = rig.take().unwrap();
        rig.leave(port);
        for _ in 1..KEPT {
            let other = rig.take().unwrap();
            assert_ne!(other, port);
            rig.leave(other);
        }
        assert_eq!(rig.take(), Some(port));
    }

    #[test]
    fn another_endpoint_uses_the_same_ports() {
        let mut rig = Rig::new(100);
        let first = rig.fill(100);
        rig.turn_to_another_endpoint();
        assert!(rig.fill(50).iter().all(|port| first.contains(port)));
        assert_eq!(rig.ports.len(), 100);
    }

    #[test]
    fn a_port_that_flows_of_before_have_is_passed_over() {
        let mut rig = Rig::new(100);
        let before = rig.fill(100);
        rig.turn_to_another_endpoint();
        let wish = rig.wish();
        let is_taken = |port| before[..99].contains(&port);
        let port = rig.ports.take(&wish, &mut rig.lane, is_taken, &mut rig.ops);
        assert_eq!(port, Some(before[99]));
        let port = rig.ports.take(&wish, &mut rig.lane, |_| true, &mut rig.ops);
        assert_eq!(port, None);
    }

    #[test]
    fn ports_that_few_flows_need_are_closed_and_used_again() {
        let mut rig = Rig::new(100);
        rig.fill(100).into_iter().for_each(|port| rig.leave(port));
        assert_eq!(rig.trim(1).len(), 100 - KEPT as usize);
        assert_eq!(rig.ports.len(), KEPT);
        assert_eq!(rig.fill(100).len(), 100);
    }

    #[test]
    fn a_lane_does_not_grow_with_the_ports_that_come_and_go() {
        let mut rig = Rig::new(100);
        for _ in 0..50 {
            rig.fill(100).into_iter().for_each(|port| rig.leave(port));
            rig.trim(1);
        }
        assert!(rig.lane.len() <= 128, "{}", rig.lane.len());
    }

    #[test]
    fn an_endpoint_passes_over_the_ports_that_its_flows_came_with_and_is_told_of_no_others() {
        let mut rig = Rig::new(100);
        let Wish { listener, endpoint, .. } = rig.wish();
        let came: Vec<_> =
            (0..60).filter_map(|_| rig.ports.take_in(listener, endpoint, false)).collect();
        for port in [came[0], came[31], came[30], came[59]] {
            rig.ports.on_bound(port, 0);
            rig.ports.on_flow_taken_over(port, &mut rig.lane);
            rig.taken.insert(port);
        }
        rig.lane.settle();
        rig.check();
        assert_eq!(rig.lane.len(), 0, "the others cost nothing before they are wanted");
        rig.leave(came[31]);
        assert_eq!(rig.fill(56), [&came[1..30], &came[32..59]].concat());
        rig.leave(came[0]);
        assert_eq!(rig.ports.len(), 60);
        assert_eq!(rig.fill(100).len(), 42, "every port is found");
    }

    #[test]
    fn a_port_in_use_is_not_closed() {
        let mut rig = Rig::new(100);
        let all = rig.fill(100);
        let (used, left) = all.split_at(10);
        left.iter().for_each(|port| rig.leave(*port));
        let closed = rig.trim(1);
        assert!(!closed.is_empty() && used.iter().all(|port| !closed.contains(port)));
    }

    #[test]
    fn a_port_that_failed_is_free_when_its_flows_have_left() {
        let mut rig = Rig::new(1);
        let port = rig.take().unwrap();
        assert!(rig.ports.on_failed(port) && rig.ports.has_failed(port));
        let wish = rig.wish();
        assert_eq!(rig.ports.take(&wish, &mut rig.lane, |_| false, &mut rig.ops), None);
        rig.taken.clear();
        rig.ports.on_unbound(port, &mut rig.lane, &mut rig.ops);
        assert_eq!(rig.take(), Some(port));
    }

    #[test]
    fn a_client_s_address_that_cannot_be_had_says_nothing_of_other_ports() {
        let mut rig = Rig::new(3);
        rig.take().unwrap();
        let mut lent = rig.wish();
        lent.from = Some(([192, 0, 2, 1], 5_000).into());
        let port = rig.ports.take(&lent, &mut rig.lane, |_| false, &mut rig.ops).unwrap();
        rig.ports.on_bound(port, 7);
        let opened = rig.ops.drain().next_back();
        let Some(Op::OpenPort { kind, .. }) = opened else { panic!("{opened:?}") };
        assert_eq!((kind.connected, kind.from), (true, lent.from));
        assert!(rig.ports.on_failed(port));
        rig.ports.on_unbound(port, &mut rig.lane, &mut rig.ops);
        assert_eq!(rig.fill(9).len(), 2, "every other port can be opened");
    }

    #[test]
    fn a_flow_s_own_port_ends_with_it() {
        let mut rig = Rig::new(2);
        let mut own = rig.wish();
        own.settings.port_per_flow = true;
        let port = rig.ports.take(&own, &mut rig.lane, |_| false, &mut rig.ops).unwrap();
        rig.ports.on_bound(port, 7);
        assert_eq!(rig.ports.owner(port), Some(7));
        rig.ports.on_unbound(port, &mut rig.lane, &mut rig.ops);
        let last = rig.ops.drain().next_back();
        assert_eq!(last, Some(Op::ClosePort { port }));
        assert_eq!(rig.ports.owner(port), None);
    }
}
