//! Upstream ports: the local UDP ports from which flows reach their endpoints.
//!
//! A port serves one flow per endpoint, since a reply says only which port it came to and who sent
//! it. So a pool is as large as the busiest endpoint has flows, not as there are flows; it is kept
//! at twice that, and then a port taken at random is free at the first or second try. The kernel
//! chooses each port's number, at random.

use alloc::vec::Vec;
use core::net::SocketAddr;

use super::flow::NONE;
use crate::allocation::Random;
use crate::boundary::{ListenerId, Op, Ops, PortId, PortKind};
use crate::snapshot::{DatagramSettings, Listener, Snapshot};

/// Ports tried before a flow is refused, scattered over the pool, and then in turn.
const TRIES: usize = 512;
/// Ports that a pool has, however few flows there are: the fewer, the sooner a flow's late reply
/// meets another flow on its port.
const KEPT: u32 = 32;
/// Ports closed at a time, and ports looked at for that.
const CLOSED_AT_ONCE: usize = 32;
const TRIM_LOOKS: usize = 4 * CLOSED_AT_ONCE;

/// One port.
#[derive(Debug, Clone, Copy)]
struct Port {
    listener: ListenerId,
    /// Its place in its pool, if it is in one.
    place: u32,
    /// Flows that go through it.
    flows: u32,
    /// The flow that it was opened for, if it is connected.
    owner: u32,
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
    Closing,
}

/// The shared ports of one listener and address family.
#[derive(Debug)]
struct Pool {
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
    /// Ports that could not be opened and have flows yet.
    failed: u32,
}

/// A flow that wants a port.
pub(super) struct Wish {
    pub(super) listener: ListenerId,
    pub(super) endpoint: SocketAddr,
    /// Flows that the endpoint has already.
    pub(super) flows: u32,
    pub(super) random: u64,
    pub(super) settings: DatagramSettings,
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
        }
    }

    /// Ports that are open, or closing.
    pub(super) fn len(&self) -> u32 {
        self.total
    }

    /// A shared port on which `is_taken` finds no flow of this endpoint, or one of the flow's own
    /// where each has its own. `None` if all that may be opened are taken.
    pub(super) fn take(
        &mut self,
        wish: &Wish,
        is_taken: impl Fn(PortId) -> bool,
        ops: &mut Ops,
    ) -> Option<PortId> {
        if wish.settings.port_per_flow {
            return self.open(wish, State::Owned, ops);
        }
        let pool = &self.pools[wish.listener.index()][family(wish.endpoint)].ports;
        if (pool.len() as u64) < wanted(wish.flows.saturating_add(1))
            && let Some(port) = self.open(wish, State::Shared, ops)
        {
            return Some(port);
        }
        let pool = &self.pools[wish.listener.index()][family(wish.endpoint)].ports;
        let len = pool.len();
        // Without a look: nobody should be able to make the worker look in vain.
        if wish.flows as usize >= len {
            return None;
        }
        // Scattered, since the oldest ports lie together, and are the fullest.
        let mut random = Random::new(wish.random);
        let scattered = (0..TRIES).map(|_| random.next() as usize);
        let steps = (wish.random as usize % len..).take(TRIES.min(len));
        let places = scattered.chain(steps).map(|place| place % len);
        let mut found = places.filter_map(|place| pool.get(place).copied());
        // An endpoint that was removed and came back finds its address taken by flows of before.
        found.find(|port| !is_taken(*port)).or_else(|| self.open(wish, State::Shared, ops))
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

    /// A flow has left it. One that was opened for this flow alone is closed.
    pub(super) fn on_unbound(&mut self, port: PortId, ops: &mut Ops) {
        let Port { flows, state, .. } = &mut self.ports[port.index()];
        *flows -= 1;
        match (*flows, *state) {
            (0, State::Owned) => self.close(port, ops),
            (0, State::Failed) => self.release(port),
            _ => {}
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
        self.ports[port.index()].state == State::Shared
    }

    /// Whether it could not be opened.
    #[inline]
    pub(super) fn has_failed(&self, port: PortId) -> bool {
        self.failed > 0 && self.ports[port.index()].state == State::Failed
    }

    /// It could not be opened, and so no other will be until ports are looked after. Tells whether
    /// it has flows, which must leave it.
    pub(super) fn on_failed(&mut self, port: PortId) -> bool {
        self.take_out(port);
        self.failed += 1;
        let Port { listener, flows, .. } = self.ports[port.index()];
        self.ports[port.index()].state = State::Failed;
        self.possible[listener.index()] = (self.counts[listener.index()] - 1).max(1);
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
    pub(super) fn trim(&mut self, listener: ListenerId, peak: u32, ops: &mut Ops) -> bool {
        self.possible[listener.index()] = u32::MAX;
        let wanted = wanted(peak) as usize;
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
            for (place, port) in pool.ports.iter().enumerate() {
                assert_eq!(self.ports[port.index()].place as usize, place);
                assert_eq!(self.ports[port.index()].state, State::Shared);
            }
        }
    }

    fn open(&mut self, wish: &Wish, state: State, ops: &mut Ops) -> Option<PortId> {
        let count = &mut self.counts[wish.listener.index()];
        if *count >= wish.settings.ports_max.min(self.possible[wish.listener.index()]) {
            return None;
        }
        *count += 1;
        self.total += 1;
        let port = self.free.pop().unwrap_or(PortId(self.ports.len() as u32));
        let pool = &mut self.pools[wish.listener.index()][family(wish.endpoint)];
        let mut place = NONE;
        match state {
            State::Shared => {
                place = pool.ports.len() as u32;
                pool.ports.push(port);
            }
            State::Stateless => pool.stateless = Some(port),
            _ => {}
        }
        let entry = Port { listener: wish.listener, place, flows: 0, owner: NONE, state };
        match self.ports.get_mut(port.index()) {
            Some(slot) => *slot = entry,
            None => self.ports.push(entry),
        }
        let kind = PortKind {
            towards: wish.endpoint,
            connected: state == State::Owned,
            offload: wish.settings.offload,
        };
        ops.push(Op::OpenPort { port, kind });
        Some(port)
    }

    fn close(&mut self, port: PortId, ops: &mut Ops) {
        self.take_out(port);
        self.ports[port.index()].state = State::Closing;
        ops.push(Op::ClosePort { port });
    }

    /// Nobody is given it any more.
    fn take_out(&mut self, port: PortId) {
        let Port { listener, place, .. } = self.ports[port.index()];
        for pool in &mut self.pools[listener.index()] {
            if pool.stateless == Some(port) {
                pool.stateless = None;
            }
            if pool.ports.get(place as usize) == Some(&port) {
                pool.ports.swap_remove(place as usize);
                if let Some(moved) = pool.ports.get(place as usize) {
                    self.ports[moved.index()].place = place;
                }
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
fn wanted(flows: u32) -> u64 {
    (2 * u64::from(flows)).max(KEPT.into())
}

const fn family(address: SocketAddr) -> usize {
    if address.is_ipv4() { 0 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::snapshot;
    use std::collections::BTreeSet;

    fn wish(flows: u32, ports_max: u32) -> Wish {
        let settings = DatagramSettings { ports_max, ..DatagramSettings::DEFAULT };
        Wish {
            listener: ListenerId(0),
            endpoint: "10.0.0.1:53".parse().unwrap(),
            flows,
            random: 0x0123_4567_89ab_cdef,
            settings,
        }
    }

    /// Takes ports for `count` flows of one endpoint.
    fn fill(ports: &mut Ports, count: u32, ports_max: u32, ops: &mut Ops) -> BTreeSet<PortId> {
        let mut taken = BTreeSet::new();
        for flow in 0..count {
            let is_taken = |port| taken.contains(&port);
            let Some(port) = ports.take(&wish(flow, ports_max), is_taken, ops) else { break };
            ports.on_bound(port, flow);
            assert!(taken.insert(port), "one port serves an endpoint once");
        }
        taken
    }

    #[test]
    fn a_pool_grows_with_the_flows_of_one_endpoint_up_to_its_bound() {
        let (mut ports, mut ops) = (Ports::new(&snapshot(100)), Ops::with_capacity(1_000));
        assert_eq!(fill(&mut ports, 40, 100, &mut ops).len(), 40);
        assert_eq!(ports.len(), 40, "each flow so far has opened its own");
        let (mut ports, mut ops) = (Ports::new(&snapshot(100)), Ops::with_capacity(1_000));
        assert_eq!(fill(&mut ports, 200, 100, &mut ops).len(), 100, "every port is found");
    }

    #[test]
    fn a_flood_beyond_all_ports_is_refused_without_a_look_at_any() {
        let (mut ports, mut ops) = (Ports::new(&snapshot(100)), Ops::with_capacity(1_000));
        fill(&mut ports, 100, 100, &mut ops);
        let look = |_| panic!("each look is a look-up");
        assert_eq!(ports.take(&wish(100, 100), look, &mut ops), None);
    }

    #[test]
    fn free_ports_are_found_whatever_the_random_number() {
        let (mut ports, mut ops) = (Ports::new(&snapshot(1_024)), Ops::with_capacity(1_024));
        let taken: BTreeSet<_> =
            fill(&mut ports, 1_024, 1_024, &mut ops).into_iter().take(973).collect();
        for random in [0, 5, 1_023, 0x400_0000_0005, 0x8000_0000_0000_0000, u64::MAX] {
            let wish = Wish { random, ..wish(973, 1_024) };
            let port = ports.take(&wish, |port| taken.contains(&port), &mut ops);
            assert!(port.is_some_and(|port| !taken.contains(&port)), "{random:#x}");
        }
    }

    #[test]
    fn another_endpoint_uses_the_same_ports() {
        let (mut ports, mut ops) = (Ports::new(&snapshot(100)), Ops::with_capacity(1_000));
        let first = fill(&mut ports, 100, 100, &mut ops);
        let second = fill(&mut ports, 50, 100, &mut ops);
        assert!(second.is_subset(&first));
    }

    #[test]
    fn ports_that_few_flows_need_are_closed_and_used_again() {
        let (mut ports, mut ops) = (Ports::new(&snapshot(100)), Ops::with_capacity(1_000));
        for port in fill(&mut ports, 100, 100, &mut ops) {
            ports.on_unbound(port, &mut ops);
        }
        ops.drain().for_each(drop);
        while ports.trim(ListenerId(0), 1, &mut ops) {}
        let closed: Vec<_> = ops
            .drain()
            .map(|op| match op {
                Op::ClosePort { port } => port,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(closed.len(), 100 - KEPT as usize);
        closed.iter().for_each(|port| ports.on_closed(*port));
        assert_eq!(ports.len(), KEPT);
        assert_eq!(fill(&mut ports, 100, 100, &mut ops).len(), 100);
    }

    #[test]
    fn a_port_that_failed_is_free_when_its_flows_have_left() {
        let (mut ports, mut ops) = (Ports::new(&snapshot(1)), Ops::with_capacity(1_000));
        let port = ports.take(&wish(0, 1), |_| false, &mut ops).unwrap();
        ports.on_bound(port, 7);
        assert!(ports.on_failed(port) && ports.has_failed(port));
        assert!(ports.take(&wish(0, 1), |_| false, &mut ops).is_none());
        ports.on_unbound(port, &mut ops);
        assert_eq!(ports.take(&wish(0, 1), |_| false, &mut ops), Some(port));
    }

    #[test]
    fn a_flow_s_own_port_ends_with_it() {
        let (mut ports, mut ops) = (Ports::new(&snapshot(2)), Ops::with_capacity(1_000));
        let mut own = wish(0, 2);
        own.settings.port_per_flow = true;
        let port = ports.take(&own, |_| false, &mut ops).unwrap();
        ports.on_bound(port, 7);
        assert_eq!(ports.owner(port), Some(7));
        ports.on_unbound(port, &mut ops);
        let last = ops.drain().next_back();
        assert_eq!(last, Some(Op::ClosePort { port }));
        assert_eq!(ports.owner(port), None);
    }
}
