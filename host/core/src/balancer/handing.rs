//! Another process goes on with what this one has: it is handed over, and taken over there.
//!
//! ```text
//!   none ── asked for ──▶ holding ── held ──▶ settling ── held again ──▶ giving ── all given ──▶ none
//! ```
//!
//! Nothing may be lost meanwhile. So reception is held first, and what had been received until then is
//! handled; it is held a second time so that whatever has come of that is known too. Then sockets and
//! flows have nothing under way, and what clients and endpoints send waits in the sockets for whoever
//! receives there next.
//!
//! Connections stay: their flows end here. There may be a million flows to give away, so that is done a
//! slice at a time, and connections go on in between.

use alloc::vec::Vec;

use super::Balancer;
use crate::boundary::{ListenerId, Op, Ops};
use crate::datagram::Walk;
use crate::handover::{Handed, TakenOver, TakenPort};
use crate::snapshot::{Listener, Protocol};
use crate::time::Instant;

/// How far a worker is with handing over.
#[derive(Debug, Default)]
pub(super) enum Handing {
    #[default]
    None,
    /// It waits for what has been received.
    Holding,
    /// It waits for what comes of that.
    Settling,
    /// Nothing is under way.
    Giving(Giving),
}

/// What has been given away so far.
#[derive(Debug)]
pub(super) struct Giving {
    handed: Handed,
    flows: Walk,
    /// The next place that may have a kept decision.
    kept: usize,
}

impl Balancer {
    /// Begins to hand over: from then on [`hand_over`](Self::hand_over) is called once a turn, and
    /// besides nothing but [`handle`](Self::handle) and [`handle_timeout`](Self::handle_timeout) until
    /// that is over.
    pub fn begin_handing_over(&mut self, ops: &mut Ops) {
        if !self.is_handing_over() {
            self.handing = Handing::Holding;
            ops.push(Op::Hold);
        }
    }

    /// Gives away some of what another process can go on with, and forgets it. `steps` bounds the flows
    /// and places that are looked at. Once there is no more, it tells of all that has been given away:
    /// the sockets of that must be taken from the performing side before the next ops are performed.
    /// Listeners count as open still: they end with a drain, and may be taken over again.
    pub fn hand_over(&mut self, now: Instant, mut steps: u32, ops: &mut Ops) -> Option<Handed> {
        let mut giving = match core::mem::take(&mut self.handing) {
            Handing::Giving(giving) => giving,
            earlier => {
                self.handing = earlier;
                return None;
            }
        };
        let Giving { handed, flows, kept } = &mut giving;
        if !handed.listeners.is_empty() {
            let (datagrams, mut turn) = self.datagrams(now, ops);
            datagrams.hand_over(&mut turn, (flows, &mut steps), handed);
            let decisions = self.allocator.hand_over(now, (kept, &mut steps), &self.snapshot);
            handed.kept.extend(decisions);
        }
        self.count_entries();
        if steps == 0 {
            self.handing = Handing::Giving(giving);
            return None;
        }
        ops.push(Op::Resume);
        Some(giving.handed)
    }

    /// Goes on with what another process, or this one before, has handed over. It is not believed: what
    /// has no place here is counted and left out. The sockets of the ports that are told of must be
    /// given to the performing side before the next ops are performed; the others are not needed.
    pub fn take_over(
        &mut self,
        now: Instant,
        handed: &Handed,
        ops: &mut Ops,
    ) -> (TakenOver, Vec<TakenPort>) {
        let mut taken = TakenOver::default();
        let snapshot = self.snapshot.clone();
        let endpoints = snapshot.endpoints_by_address();
        let find = |cluster, address| Some(endpoints.get(&(cluster, address))?.id);
        for decision in &handed.kept {
            let is_kept = self.allocator.take_over(now, decision, find);
            taken.kept += u32::from(is_kept);
        }
        let (datagrams, mut turn) = self.datagrams(now, ops);
        let lists = (&*handed.flows, &*handed.ports);
        let ports = datagrams.take_over(&mut turn, lists, &endpoints, &mut taken);
        self.count_entries();
        (taken, ports)
    }

    /// A listener, if a socket for it is of use here: it is open or, where it receives datagrams, has
    /// flows to end.
    #[must_use]
    pub fn listener_to_serve(&self, id: ListenerId) -> Option<&Listener> {
        let listener = self.snapshot.listeners.get(id.index())?;
        let serves = match listener.protocol {
            Protocol::Tcp => self.snapshot.drain_until.is_none() && listener.is_open(),
            Protocol::Udp => self.datagrams.receives(id),
        };
        serves.then_some(listener)
    }

    pub(super) fn is_handing_over(&self) -> bool {
        !matches!(self.handing, Handing::None)
    }

    /// Whether the next slice waits for nothing.
    pub(super) fn is_giving(&self) -> bool {
        matches!(self.handing, Handing::Giving(_))
    }

    pub(super) fn on_held(&mut self, ops: &mut Ops) {
        match self.handing {
            Handing::None | Handing::Giving(_) => {}
            Handing::Holding => {
                ops.push(Op::Hold);
                self.handing = Handing::Settling;
            }
            Handing::Settling => {
                let mut handed =
                    Handed { listeners: self.listeners_that_go(), ..Handed::default() };
                if !handed.listeners.is_empty() {
                    self.datagrams.begin_handing_over(&self.snapshot, &mut handed);
                }
                self.handing = Handing::Giving(Giving { handed, flows: Walk::default(), kept: 0 });
            }
        }
    }

    /// Listeners that are on their way out end here, with their flows.
    fn listeners_that_go(&self) -> Vec<ListenerId> {
        if self.snapshot.drain_until.is_some() {
            return Vec::new();
        }
        let listeners = (0..).map(ListenerId).zip(&self.snapshot.listeners);
        listeners.filter(|(_, listener)| listener.is_open()).map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;
    use core::time::Duration;

    use super::*;
    use crate::balancer::rig::{Nothing, Rig, goes_on};
    use crate::boundary::{Completion, DatagramSocket, Path, PortId, Side, Train};
    use crate::handover::{HandedDecision, HandedFlow, HandedKey, HandedTarget, HandedVerdict};
    use crate::policy::Method;
    use crate::snapshot::{ClusterId, OnEndpointDown, Openness};
    use crate::stats::Untaken;
    use crate::testing;

    impl Rig {
        fn handle(&mut self, completion: Completion) {
            self.balancer.handle(self.now, completion, &mut Nothing, &mut self.ops);
        }

        /// Hands over under a performing side that has nothing under way.
        fn hand_over(&mut self) -> Handed {
            self.balancer.begin_handing_over(&mut self.ops);
            for _ in 0..2 {
                assert_eq!(self.balancer.hand_over(self.now, u32::MAX, &mut self.ops), None);
                assert_eq!(self.ops.drain().next_back(), Some(Op::Hold));
                self.handle(Completion::Held);
            }
            let handed = self.balancer.hand_over(self.now, u32::MAX, &mut self.ops);
            assert_eq!(self.turn(), [Op::Resume]);
            handed.expect("all of it")
        }

        fn take_over(&mut self, handed: &Handed) -> (TakenOver, Vec<TakenPort>) {
            let taken = self.balancer.take_over(self.now, handed, &mut self.ops);
            self.balancer.check_invariants();
            taken
        }

        /// An endpoint replies to a flow; tells who gets it.
        fn reply(&mut self, (port, endpoint): (PortId, SocketAddr)) -> Option<SocketAddr> {
            let path = Path { peer: endpoint, local: None };
            let socket = DatagramSocket::Port(port);
            self.handle(Completion::Datagrams { socket, path, train: Train::new(0, 8, 0) });
            self.turn().into_iter().find_map(|op| match op {
                Op::Forward { peer, .. } => Some(peer),
                _ => None,
            })
        }

        fn way(&mut self, client: u16) -> (PortId, SocketAddr) {
            way(&self.send(0, client)).expect("it goes on")
        }

        fn loads(&self) -> [u32; 3] {
            let endpoints = &self.balancer.snapshot.clusters[0].endpoints;
            core::array::from_fn(|place| endpoints[place].endpoint.load.flows_active())
        }

        fn counted(&self) -> [u32; 2] {
            let listener = &self.balancer.snapshot.listeners[0];
            [listener.flows_active.get(), listener.all_flows.active.get()]
        }
    }

    /// Through which port and to whom a datagram has been sent.
    fn way(ops: &[Op]) -> Option<(PortId, SocketAddr)> {
        ops.iter().find_map(|op| match op {
            Op::Forward { socket: DatagramSocket::Port(port), peer, .. } => Some((*port, *peer)),
            _ => None,
        })
    }

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    /// Five flows, of which the first two have had a reply, and what is told of them.
    fn five_flows() -> (Rig, [(PortId, SocketAddr); 5], Handed) {
        let mut rig = Rig::new();
        let ways = [1, 2, 3, 4, 5].map(|client| rig.way(client));
        for place in [0, 1] {
            assert_eq!(rig.reply(ways[place]), Some(client(1 + place as u16)));
        }
        rig.now = rig.now + Duration::from_secs(5);
        let handed = rig.hand_over();
        (rig, ways, handed)
    }

    /// A list of one flow, for a listener and a cluster that a `Rig` has.
    fn one_flow() -> Handed {
        let (_, _, mut handed) = five_flows();
        handed.flows.truncate(1);
        handed
    }

    #[test]
    fn flows_go_on_elsewhere_to_the_same_endpoint_through_the_same_port() {
        let (_, ways, handed) = five_flows();
        assert_eq!((handed.listeners.len(), handed.flows.len()), (1, 5));
        let mut heir = Rig::new();
        let (taken, ports) = heir.take_over(&handed);
        assert_eq!((taken.flows, taken.untaken), (5, [0; Untaken::ALL.len()]));
        assert_eq!(ports.len(), handed.ports.len(), "each has a flow");
        for (place, (port, endpoint)) in ways.into_iter().enumerate() {
            let (new_port, new_endpoint) = heir.way(1 + place as u16);
            let taken = ports.iter().find(|taken| taken.port == new_port).expect("it was taken");
            assert_eq!((handed.ports[taken.place].port, new_endpoint), (port, endpoint));
            assert_eq!(heir.reply((new_port, endpoint)), Some(client(1 + place as u16)));
        }
        assert_eq!((heir.loads(), heir.counted()), ([2, 2, 1], [5, 5]));
        let stats = &heir.balancer.stats().listeners[0];
        assert_eq!((stats.flows_total, stats.taken_over_total, stats.flows_active), (0, 5, 5));
    }

    #[test]
    fn what_was_handed_over_is_forgotten_and_has_not_ended() {
        let (mut rig, _, _) = five_flows();
        assert_eq!((rig.loads(), rig.counted()), ([0; 3], [0; 2]));
        let stats = &rig.balancer.stats().listeners[0];
        assert_eq!((stats.handed_over_total, stats.flows_active), (5, 0));
        assert_eq!(stats.closes_total.iter().sum::<u64>(), 0);
        assert!(!rig.balancer.is_drained(), "it may come back");
        let (listeners, clusters) = rig.world();
        let snapshot = crate::Snapshot {
            generation: crate::Generation(9),
            listeners: listeners.into(),
            clusters: clusters.into(),
            drain_until: Some(rig.now),
        };
        rig.balancer.apply(rig.now, alloc::sync::Arc::new(snapshot), &mut rig.ops);
        let stopped = Op::StopAccepting { listener: ListenerId(0) };
        assert!(rig.turn().contains(&stopped));
        rig.handle(Completion::AcceptEnded { listener: ListenerId(0) });
        assert!(rig.balancer.is_drained(), "nothing is left to wait for");
    }

    #[test]
    fn a_balancer_takes_its_own_list_back_and_all_is_as_before() {
        let (mut rig, _, handed) = five_flows();
        let (taken, ports) = rig.take_over(&handed);
        assert_eq!(taken.flows, 5);
        assert_eq!((rig.loads(), rig.counted()), ([2, 2, 1], [5, 5]));
        let again = rig.hand_over();
        let renumbered = |flow: &HandedFlow| {
            let HandedTarget::Endpoint { cluster, address, port } = flow.target else {
                panic!("{flow:?}")
            };
            let port = ports.iter().find(|taken| taken.port == port).expect("it was taken");
            let port = handed.ports[port.place].port;
            HandedFlow { target: HandedTarget::Endpoint { cluster, address, port }, ..*flow }
        };
        let mut again: Vec<_> = again.flows.iter().map(renumbered).collect();
        again.sort_unstable_by_key(|flow| flow.client);
        assert_eq!(again, handed.flows);
    }

    #[test]
    fn the_flows_that_have_been_answered_come_first_and_the_others_by_their_age() {
        let mut rig = Rig::new();
        let ways = [1, 2, 3, 4].map(|client| {
            rig.now = rig.now + Duration::from_millis(40);
            rig.way(client)
        });
        rig.reply(ways[3]);
        rig.reply(ways[1]);
        let handed = rig.hand_over();
        let order: Vec<u16> = handed.flows.iter().map(|flow| flow.client.port()).collect();
        assert_eq!(order, [2, 4, 1, 3]);
        let replies = Side::Downstream.index();
        assert_eq!(handed.flows.iter().filter(|flow| flow.datagrams[replies] == 1).count(), 2);
        assert!(handed.flows[2].age > handed.flows[3].age);
    }

    #[test]
    fn a_flow_ends_in_idleness_when_it_would_have_ended_before() {
        let (_, _, handed) = five_flows();
        let mut heir = Rig::new();
        heir.now = Instant::from_millis(500_000);
        heir.take_over(&handed);
        heir.now = heir.now + Duration::from_secs(54);
        heir.turn();
        assert_eq!(heir.counted(), [5, 5]);
        heir.now = heir.now + Duration::from_millis(1_100);
        heir.turn();
        assert_eq!(heir.counted(), [0, 0]);
    }

    #[test]
    fn a_limit_keeps_new_flows_out_and_none_that_is_taken_over() {
        let (_, _, handed) = five_flows();
        let mut world = testing::snapshot(16);
        world.listeners[0].flows_max = 3;
        let mut heir = Rig::in_world(world);
        assert_eq!(heir.take_over(&handed).0.flows, 5);
        assert_eq!(heir.counted(), [5, 5]);
        assert!(goes_on(&heir.send(0, 1)), "an established flow goes on");
        heir.send(0, 6);
        assert_eq!(heir.balancer.stats().listeners[0].flows_total, 0, "a new one does not");
    }

    #[test]
    fn a_table_that_is_full_takes_in_those_that_have_been_answered() {
        let mut rig = Rig::new();
        let mut one = one_flow().flows[0];
        let mut handed = one_flow();
        for client in 0..20 {
            one.client = SocketAddr::from(([198, 51, 100, 1], client));
            one.target = HandedTarget::Denied { reset: false, remaining: Duration::from_secs(9) };
            handed.flows.push(one);
        }
        let (taken, _) = rig.take_over(&handed);
        assert_eq!((taken.flows, taken.untaken[Untaken::FlowTableFull.index()]), (16, 5));
        assert!(goes_on(&rig.send(0, 1)));
        assert!(rig.balancer.stats().untaken_total[Untaken::FlowTableFull.index()] == 5);
    }

    /// What becomes of a flow of which something cannot be true, or has no place.
    fn fate(spoil: impl Fn(&mut Handed)) -> [u32; Untaken::ALL.len()] {
        let mut handed = one_flow();
        spoil(&mut handed);
        let mut rig = Rig::new();
        let (taken, _) = rig.take_over(&handed);
        assert_eq!(rig.counted()[0], taken.flows);
        taken.untaken
    }

    fn only(reason: Untaken) -> [u32; Untaken::ALL.len()] {
        let mut counts = [0; Untaken::ALL.len()];
        counts[reason.index()] = 1;
        counts
    }

    #[test]
    fn whatever_has_no_place_here_is_left_out_for_a_named_reason() {
        let target = |handed: &mut Handed, change: &dyn Fn(&mut ClusterId, &mut SocketAddr)| {
            let HandedTarget::Endpoint { cluster, address, .. } = &mut handed.flows[0].target
            else {
                panic!("{handed:?}")
            };
            change(cluster, address);
        };
        let nowhere = fate(|it| it.flows[0].listener = ListenerId(7));
        assert_eq!(nowhere, only(Untaken::Listener));
        let stranger = fate(|it| target(it, &|_, address| address.set_port(9)));
        assert_eq!(stranger, only(Untaken::Endpoint));
        let cluster = fate(|it| target(it, &|cluster, _| *cluster = ClusterId(9)));
        assert_eq!(cluster, only(Untaken::Endpoint));
        assert_eq!(fate(|it| it.ports.clear()), only(Untaken::Port));
        let of_others = fate(|it| it.ports.iter_mut().for_each(|it| it.listener = ListenerId(3)));
        assert_eq!(of_others, only(Untaken::Port));
        let twice = fate(|it| it.flows.push(it.flows[0]));
        assert_eq!(twice, only(Untaken::Duplicate));
        let mut hidden = fate(|it| {
            it.flows[0].hidden = true;
            it.flows.push(it.flows[0]);
        });
        assert_eq!(hidden, only(Untaken::Port), "two flows of one endpoint through one port");
        hidden = fate(|it| {
            it.ports.iter_mut().for_each(|port| port.connected = true);
            let mut other = it.flows[0];
            other.client.set_port(77);
            it.flows.push(other);
        });
        assert_eq!(hidden, only(Untaken::Port), "two flows through one's own");
    }

    #[test]
    fn a_kept_decision_holds_for_as_long_as_it_would_have_held() {
        let mut rig = Rig::new();
        let whom = HandedKey::Client([192, 0, 2, 1].into());
        let decision = HandedDecision {
            cluster: ClusterId(0),
            whom,
            verdict: HandedVerdict::Forward("10.0.0.3:53".parse().expect("an address")),
            method: Method { tag: 7, ..Method::DEFAULT },
            policy_generation: 9,
            remaining: Duration::from_secs(20),
            sliding: None,
        };
        let unknown = HandedVerdict::Forward("10.0.0.9:53".parse().expect("an address"));
        let nobody = HandedDecision { verdict: unknown, whom: HandedKey::Key(3), ..decision };
        let nowhere = HandedDecision { cluster: ClusterId(8), ..decision };
        let kept = [decision, nobody, nowhere, decision].into();
        let (taken, _) = rig.take_over(&Handed { kept, ..Handed::default() });
        assert_eq!(taken.kept, 1, "the others mean nothing, or are there already");
        rig.now = rig.now + Duration::from_secs(5);
        let endpoint = HandedDecision { remaining: Duration::from_secs(15), ..decision };
        let known = HandedDecision { policy_generation: 1, ..endpoint };
        assert_eq!(rig.hand_over().kept, [known]);
        assert_eq!([1, 2, 3].map(|client| rig.way(client).1.port()), [53; 3]);
        assert_eq!(rig.loads(), [0, 0, 3], "all flows of the client go there");
        rig.now = rig.now + Duration::from_secs(16);
        assert_eq!(rig.hand_over().kept, []);
    }

    #[test]
    fn nothing_that_is_told_is_too_large() {
        let mut handed = one_flow();
        let flow = &mut handed.flows[0];
        (flow.age, flow.silent) = (Duration::MAX, Duration::MAX);
        flow.method.idle_timeout = Some(Duration::MAX);
        flow.method.throttle_kib_s = Some(0);
        (flow.bytes, flow.datagrams) = ([u64::MAX; 2], [u32::MAX; 2]);
        (flow.policy_generation, flow.keys) = (u32::MAX, [Some(0), Some(u64::MAX)]);
        handed.kept.push(HandedDecision {
            cluster: ClusterId(0),
            whom: HandedKey::Key(u64::MAX),
            verdict: HandedVerdict::Drop,
            method: flow.method,
            policy_generation: u32::MAX,
            remaining: Duration::MAX,
            sliding: Some(Duration::MAX),
        });
        let mut rig = Rig::new();
        let mut denied = handed.flows[0];
        denied.client.set_port(9);
        denied.target = HandedTarget::Denied { reset: true, remaining: Duration::MAX };
        handed.flows.push(denied);
        assert_eq!(rig.take_over(&handed).0.flows, 2);
        rig.turn();
        assert!(goes_on(&rig.send(0, 1)));
        let again = rig.hand_over();
        assert_eq!(again.flows[0].policy_generation, 1, "there has been no other");
    }

    #[test]
    fn a_flow_of_addresses_that_its_listener_cannot_have_takes_a_place_and_does_no_harm() {
        let mut handed = one_flow();
        let flow = &mut handed.flows[0];
        flow.client = "[2001:db8::1]:1".parse().expect("a client");
        let mut torn = HandedFlow { hidden: true, ..*flow };
        torn.local = "2001:db8::2".parse().expect("an address");
        torn.target = HandedTarget::Denied { reset: false, remaining: Duration::ZERO };
        handed.flows.push(torn);
        let mut rig = Rig::new();
        assert_eq!(rig.take_over(&handed).0.flows, 2);
        assert!(goes_on(&rig.send(0, 1)));
        rig.now = rig.now + Duration::from_secs(61);
        rig.turn();
        assert_eq!(rig.counted(), [0, 0]);
    }

    #[test]
    fn a_flow_whose_endpoint_is_down_fares_as_its_listener_says() {
        for (acts, taken, left) in [
            (OnEndpointDown::Keep, 1, 1),
            (OnEndpointDown::Reallocate, 1, 1),
            (OnEndpointDown::Drop, 0, 0),
        ] {
            let handed = one_flow();
            let HandedTarget::Endpoint { address, .. } = handed.flows[0].target else {
                panic!("{handed:?}")
            };
            let mut world = testing::snapshot(16);
            world.listeners[0].on_endpoint_down = acts;
            let cluster = &mut world.clusters[0];
            for state in &mut cluster.endpoints {
                state.up = state.endpoint.address != address;
            }
            let up = cluster.endpoints.iter().filter(|state| state.up);
            cluster.candidates = alloc::sync::Arc::new(crate::Candidates {
                generation: crate::Generation(1),
                endpoints: up.map(|state| state.endpoint.clone()).collect(),
                table: None,
            });
            let mut rig = Rig::in_world(world);
            let (outcome, _) = rig.take_over(&handed);
            let down = outcome.untaken[Untaken::EndpointDown.index()];
            assert_eq!((outcome.flows, down), (taken, 1 - taken), "{acts:?}");
            rig.turn();
            assert_eq!(rig.counted()[0], left);
            if acts == OnEndpointDown::Reallocate {
                assert_ne!(rig.way(1).1, address);
            }
        }
    }

    #[test]
    fn a_listener_on_its_way_out_keeps_its_flows() {
        let mut rig = Rig::new();
        let way = rig.way(1);
        rig.set(0, Openness::Draining);
        assert_eq!(rig.hand_over(), Handed::default());
        assert_eq!(rig.way(1), way);
    }

    #[test]
    fn an_endpoint_has_its_new_flows_on_ports_that_none_of_its_own_has() {
        let (_, _, handed) = five_flows();
        let mut heir = Rig::new();
        heir.take_over(&handed);
        let mut ways: Vec<_> = (1..=9).map(|client| heir.way(client)).collect();
        ways.sort_unstable();
        ways.dedup();
        assert_eq!(ways.len(), 9);
    }
}
