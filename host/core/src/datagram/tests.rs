//! One behaviour at a time, with a test as the kernel.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;

use crate::boundary::{
    Buffer, Completion, DatagramSocket, Link, ListenerId, LossCause, Memory, Op, Ops, Path,
    PoolSizes, PortId, Train,
};
use crate::eligibility::Footing;
use crate::listing::{Cursor, EntryKind, FlowState};
use crate::policy::{Decided, Decision, EndpointIndex, Flow, Policy, RoundRobin, TablePolicy};
use crate::policy::{Scope, Source, Verdict};
use crate::preread::KeyRule;
use crate::queue::Queue;
use crate::snapshot::{
    Candidates, Cluster, ClusterId, Endpoint, EndpointState, Generation, Listener, OnEndpointDown,
    Snapshot,
};
use crate::stats::{CloseReason, DropReason, ShedReason};
use crate::{Balancer, BalancerConfig, CANARY_SLOTS, Instant, SharedRate, Tally, Trial, testing};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53));
const LISTENER: ListenerId = ListenerId(0);

/// The bytes of every datagram.
struct Bytes(&'static [u8]);

impl Memory for Bytes {
    fn bytes(&self, _: &Buffer) -> &[u8] {
        self.0
    }

    fn write(&mut self, _: &[u8]) -> Option<Buffer> {
        None
    }

    fn local_address(&self, _: Link) -> Option<SocketAddr> {
        None
    }

    fn first_datagram(&self, _: &Train) -> &[u8] {
        self.0
    }
}

/// One worker whose kernel is the test.
struct Rig {
    balancer: Balancer,
    now: Instant,
    bytes: Bytes,
}

fn client(n: u8) -> SocketAddr {
    (Ipv4Addr::new(198, 51, 100, n), 4_000).into()
}

impl Rig {
    fn new(policy: Box<dyn Policy>, change: impl FnOnce(&mut Listener)) -> Self {
        let mut snapshot = testing::snapshot(16);
        change(&mut snapshot.listeners[0]);
        let config = BalancerConfig {
            worker: 0,
            sessions_max: 1,
            datagram_flows_max: snapshot.listeners[0].flows_max,
            flow_table_entries_max: 16,
            board: None,
            pools: PoolSizes { small: 1, bulk: 1 },
            hash_key: [1, 2],
            seed: 3,
            record_flows: true,
        };
        let balancer = Balancer::new(&config, Arc::new(snapshot), vec![policy]);
        Self { balancer, now: Instant::from_millis(1_000), bytes: Bytes(b"12345678") }
    }

    fn round_robin(change: impl FnOnce(&mut Listener)) -> Self {
        Self::new(Box::new(RoundRobin::new()), change)
    }

    /// One in which each endpoint may have so many flows.
    fn with_endpoints_of(flows_max: u32) -> Self {
        let mut rig = Self::round_robin(|_| {});
        let Snapshot { listeners, mut clusters, .. } = testing::snapshot(16);
        let limited = |endpoint: &Endpoint| Endpoint { flows_max, ..endpoint.clone() };
        let cluster = &mut clusters[0];
        cluster.endpoints.iter_mut().for_each(|state| state.endpoint = limited(&state.endpoint));
        let endpoints = cluster.candidates.endpoints.iter().map(limited).collect();
        let candidates = Candidates { generation: Generation(2), endpoints, table: None };
        cluster.candidates = Arc::new(candidates);
        let snapshot =
            Snapshot { generation: Generation(2), listeners, clusters, drain_until: None };
        let mut ops = Ops::with_capacity(4 * Balancer::OPS_PER_COMPLETION_MAX);
        rig.balancer.apply(rig.now, Arc::new(snapshot), &mut ops);
        rig
    }

    fn handle(&mut self, completion: Completion) -> vec::Vec<Op> {
        let mut ops = Ops::with_capacity(4 * Balancer::OPS_PER_COMPLETION_MAX);
        self.balancer.handle(self.now, completion, &mut self.bytes, &mut ops);
        self.balancer.check_invariants();
        ops.drain().collect()
    }

    fn pass(&mut self, time: Duration) -> vec::Vec<Op> {
        self.now = self.now + time;
        let mut ops = Ops::with_capacity(4 * Balancer::OPS_PER_COMPLETION_MAX);
        self.balancer.handle_timeout(self.now, &mut ops);
        self.balancer.check_invariants();
        ops.drain().collect()
    }

    /// Where a client's datagram goes, if it goes anywhere.
    fn request(&mut self, client: SocketAddr) -> Option<(PortId, SocketAddr)> {
        let socket = DatagramSocket::Listener(LISTENER);
        let path = Path { peer: client, local: Some(LOCAL) };
        let ops = self.handle(Completion::Datagrams { socket, path, train: Train::new(0, 8, 0) });
        ops.into_iter().find_map(|op| match op {
            Op::Forward { socket: DatagramSocket::Port(port), peer, .. } => Some((port, peer)),
            _ => None,
        })
    }

    /// Whom a reply reaches, and from where, if anybody.
    fn reply(&mut self, (port, endpoint): (PortId, SocketAddr)) -> Option<(SocketAddr, IpAddr)> {
        let socket = DatagramSocket::Port(port);
        let path = Path { peer: endpoint, local: None };
        let ops = self.handle(Completion::Datagrams { socket, path, train: Train::new(0, 8, 0) });
        ops.into_iter().find_map(|op| match op {
            Op::Forward { socket: DatagramSocket::Listener(_), peer, local, .. } => {
                Some((peer, local.expect("replies leave from the address the client used")))
            }
            _ => None,
        })
    }

    /// Takes endpoints down, all but those left up.
    fn leave_up(&mut self, up: &[u32]) -> vec::Vec<Op> {
        let old = testing::snapshot(16);
        let mut ops = Ops::with_capacity(4 * Balancer::OPS_PER_COMPLETION_MAX);
        let listener = self.balancer.snapshot.listeners[0].clone();
        let cluster = &old.clusters[0];
        let is_up = |id: u32| up.contains(&id);
        let endpoints = cluster
            .endpoints
            .iter()
            .map(|state| EndpointState { up: is_up(state.endpoint.id.0), ..state.clone() });
        let serving = endpoints.clone().filter(|state| state.up).map(|state| state.endpoint);
        let candidates = Arc::new(Candidates {
            generation: Generation(2),
            endpoints: serving.collect(),
            table: None,
        });
        let cluster = Cluster {
            name: "dns".into(),
            endpoints: endpoints.collect(),
            candidates,
            footing: Footing::Sound,
            proxy: None,
            transparent: false,
            trial: None,
            queue: Queue::none(1),
        };
        let snapshot = Snapshot {
            generation: Generation(2),
            listeners: [listener].into(),
            clusters: [cluster].into(),
            drain_until: None,
        };
        self.balancer.apply(self.now, Arc::new(snapshot), &mut ops);
        ops.drain().collect()
    }

    fn closes(&self, reason: CloseReason) -> u64 {
        self.balancer.stats().listeners[0].closes_total[reason.index()]
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.balancer.stats().listeners[0].drops_total[reason.index()]
    }

    fn sheds(&self, reason: ShedReason) -> u64 {
        self.balancer.stats().listeners[0].sheds_total[reason.index()]
    }

    fn decisions(&self, source: Source) -> u64 {
        self.balancer.stats().clusters[0].decisions_total[source.index()]
    }
}

#[test]
fn a_flow_stays_with_its_endpoint_and_its_replies_reach_its_client() {
    let mut rig = Rig::round_robin(|_| {});
    let first = rig.request(client(1)).unwrap();
    let other = rig.request(client(2)).unwrap();
    assert_ne!(first.1, other.1, "round robin");
    for _ in 0..5 {
        assert_eq!(rig.request(client(1)), Some(first));
        assert_eq!(rig.reply(first), Some((client(1), LOCAL)));
        assert_eq!(rig.reply(other), Some((client(2), LOCAL)));
    }
    assert_eq!(rig.decisions(Source::Native), 2, "one decision per flow, none per datagram");
}

#[test]
fn a_reply_from_somebody_else_is_dropped_and_counted() {
    let mut rig = Rig::round_robin(|_| {});
    let (port, endpoint) = rig.request(client(1)).unwrap();
    assert_eq!(rig.reply((port, SocketAddr::new(endpoint.ip(), 54))), None);
    assert_eq!(rig.reply((port, client(9))), None);
    assert_eq!(rig.drops(DropReason::UnknownSource), 2);
}

#[test]
fn a_flow_ends_when_every_request_has_its_replies() {
    let mut rig = Rig::round_robin(|listener| listener.datagrams.replies_expected = 1);
    let way = rig.request(client(1)).unwrap();
    assert_eq!(rig.request(client(1)), Some(way), "a second question before the first answer");
    assert!(rig.reply(way).is_some());
    assert_eq!(rig.closes(CloseReason::Finished), 0);
    assert!(rig.reply(way).is_some());
    assert_eq!(rig.closes(CloseReason::Finished), 1);
    assert_eq!(rig.reply(way), None, "a third answer has no flow");
}

#[test]
fn a_silent_flow_ends_in_time_and_a_busy_one_does_not() {
    let mut rig = Rig::round_robin(|_| {});
    let busy = rig.request(client(1)).unwrap();
    rig.request(client(2)).unwrap();
    for _ in 0..3 {
        rig.pass(Duration::from_secs(30));
        assert!(rig.reply(busy).is_some());
    }
    assert_eq!(rig.closes(CloseReason::IdleTimeout), 1);
    assert_eq!(rig.balancer.stats().listeners[0].flows_active, 1);
}

#[test]
fn flows_of_a_dead_endpoint_move_or_end_or_stay_as_the_listener_says() {
    for (what, moves, ends) in [
        (OnEndpointDown::Keep, false, 0),
        (OnEndpointDown::Reallocate, true, 0),
        (OnEndpointDown::Drop, true, 1),
    ] {
        let mut rig = Rig::round_robin(|listener| listener.on_endpoint_down = what);
        let before = rig.request(client(1)).unwrap();
        rig.reply(before).unwrap();
        rig.leave_up(&[1, 2]);
        rig.pass(Duration::ZERO);
        assert_eq!(rig.closes(CloseReason::EndpointDown), ends, "{what:?}");
        let after = rig.request(client(1)).unwrap();
        assert_eq!(before.1 != after.1, moves, "{what:?}");
        assert_eq!(rig.reply(after), Some((client(1), LOCAL)), "{what:?}");
    }
}

#[test]
fn nobody_sends_to_a_dead_endpoint_until_the_walk_over_all_flows_comes_by() {
    let mut rig =
        Rig::round_robin(|listener| listener.on_endpoint_down = OnEndpointDown::Reallocate);
    let (_, dead) = rig.request(client(1)).unwrap();
    rig.leave_up(&[1, 2]);
    assert_ne!(rig.request(client(1)).unwrap().1, dead);
}

#[test]
fn a_flood_pushes_out_strangers_and_nobody_who_was_answered() {
    let mut rig = Rig::round_robin(|listener| listener.flows_max = 80);
    let known = rig.request(client(1)).unwrap();
    rig.reply(known).unwrap();
    for n in 2..200 {
        assert!(rig.request(client(n)).is_some());
    }
    assert_eq!(rig.closes(CloseReason::Evicted), 198 - 39, "half of the table is theirs");
    assert_eq!(rig.request(client(1)), Some(known));
    assert_eq!(rig.sheds(ShedReason::FlowTableFull), 0);
}

#[test]
fn strangers_who_have_filled_every_endpoint_make_way_for_the_next_client() {
    let mut rig = Rig::with_endpoints_of(2);
    let known = rig.request(client(1)).unwrap();
    rig.reply(known).unwrap();
    for n in 2..20 {
        let way = rig.request(client(n)).unwrap();
        assert!(n < 19 || rig.reply(way).is_some(), "the last is answered");
    }
    assert_eq!(rig.closes(CloseReason::Evicted), 19 - 6, "three endpoints have six places");
    assert_eq!(rig.request(client(1)), Some(known), "the client that was answered stays");
    for n in 20..24 {
        let way = rig.request(client(n)).unwrap();
        rig.reply(way).unwrap();
    }
    assert_eq!(rig.request(client(24)), None, "nobody is left who was not answered");
    assert_eq!(rig.sheds(ShedReason::EndpointsFull), 1);
}

#[test]
fn no_stranger_makes_way_at_an_endpoint_for_whom_others_wait_before() {
    let mut rig = Rig::with_endpoints_of(2);
    for n in 1..8 {
        rig.request(client(n)).unwrap();
    }
    assert_eq!(rig.closes(CloseReason::Evicted), 1, "nobody waits");
    let queue = Queue { flows_max: 1, ..rig.balancer.snapshot.clusters[0].queue.clone() };
    assert!(queue.try_enter(), "a connection waits");
    assert_eq!(rig.request(client(8)), None, "the place would not be its own");
    assert_eq!((rig.closes(CloseReason::Evicted), rig.sheds(ShedReason::EndpointsFull)), (1, 1));
}

#[test]
fn a_client_that_asks_again_outlives_those_that_ask_once() {
    let mut rig = Rig::round_robin(|listener| listener.flows_max = 80);
    let patient = rig.request(client(1)).unwrap();
    for n in 2..60 {
        assert_eq!(rig.request(client(1)), Some(patient));
        rig.request(client(n)).unwrap();
    }
    assert!(rig.reply(patient).is_some());
}

#[test]
fn beyond_the_rate_a_stateless_policy_is_followed_without_a_flow() {
    let rate = |listener: &mut Listener| {
        listener.new_flow_rate = Some(Arc::new(SharedRate::new(1)));
    };
    let mut rig = Rig::new(Box::new(TablePolicy::new()), rate);
    assert!(rig.request(client(1)).is_some());
    let (_, endpoint) = rig.request(client(2)).unwrap();
    assert_eq!(rig.request(client(2)).unwrap().1, endpoint, "the table says the same again");
    assert_eq!(rig.balancer.stats().listeners[0].stateless_total, 2);
    assert_eq!(rig.balancer.stats().listeners[0].flows_total, 1);
    let mut rig = Rig::round_robin(rate);
    assert!(rig.request(client(1)).is_some());
    assert_eq!(rig.request(client(2)), None);
    assert_eq!(rig.sheds(ShedReason::NewFlowRate), 1);
}

#[test]
fn a_canary_has_its_say_beyond_the_rate_too() {
    struct Last;

    impl Policy for Last {
        fn decide(&mut self, _: &Flow<'_>, among: &Arc<Candidates>) -> Decided {
            let decision = Decision::forward(EndpointIndex(among.len() as u32 - 1));
            Decided { decision, source: Source::Table }
        }

        fn is_stateless(&self) -> bool {
            true
        }
    }

    let cases: [(Box<dyn Policy>, u32, bool, bool); 3] = [
        (Box::new(Last), CANARY_SLOTS, true, true),
        (Box::new(RoundRobin::new()), CANARY_SLOTS, false, false),
        (Box::new(RoundRobin::new()), 0, true, false),
    ];
    for (candidate, slots, is_followed, is_last) in cases {
        let mut rig = Rig::new(Box::new(TablePolicy::new()), |listener| {
            listener.new_flow_rate = Some(Arc::new(SharedRate::new(1)));
        });
        let tally = Arc::new(Tally::new(3, slots));
        let trial = Trial::new(candidate, Arc::clone(&tally));
        rig.balancer.set_trial(ClusterId(0), Some(trial));
        assert!(rig.request(client(1)).is_some());
        let asked = tally.counts().asked;
        let ways: vec::Vec<_> = (2..6).map(|n| rig.request(client(n))).collect();
        assert!(ways.iter().all(|way| way.is_some() == is_followed), "{slots}: {ways:?}");
        let last = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 3), 53));
        let all_last = ways.iter().flatten().all(|(_, endpoint)| *endpoint == last);
        assert_eq!(all_last && is_followed, is_last, "{slots}: {ways:?}");
        assert!(slots != 0 || tally.counts().asked == asked, "a shadow is not asked in a flood");
    }
}

#[test]
fn more_flows_than_ports_are_shed_where_each_has_its_own() {
    let own = |listener: &mut Listener| {
        listener.datagrams.port_per_flow = true;
        listener.datagrams.ports_max = 2;
    };
    let mut rig = Rig::round_robin(own);
    for n in 1..3 {
        let way = rig.request(client(n)).unwrap();
        rig.reply(way).unwrap();
    }
    assert_eq!(rig.request(client(3)), None);
    assert_eq!(rig.sheds(ShedReason::Ports), 1);
}

#[test]
fn strangers_who_have_taken_every_port_make_way_for_the_next_client() {
    for own in [false, true] {
        let mut rig = Rig::round_robin(|listener| {
            listener.datagrams.port_per_flow = own;
            listener.datagrams.ports_max = if own { 6 } else { 2 };
        });
        let known = rig.request(client(1)).unwrap();
        rig.reply(known).unwrap();
        for n in 2..7 {
            rig.request(client(n)).unwrap();
        }
        assert_eq!(rig.request(client(7)), None, "their replies may be on the way");
        rig.pass(Duration::from_millis(1_100));
        let closing = rig.request(client(7)).is_none();
        assert_eq!(closing, own, "a flow's own port has to be closed first");
        assert_eq!(rig.closes(CloseReason::Evicted), 1);
        assert_eq!(rig.request(client(1)), Some(known), "the client that was answered stays");
    }
}

#[test]
fn an_endpoint_that_never_answers_keeps_no_client_of_another_out() {
    let mut rig = Rig::round_robin(|listener| {
        listener.datagrams.port_per_flow = true;
        listener.datagrams.ports_max = 2;
    });
    rig.leave_up(&[0]);
    let [silent, _] = [1, 2].map(|n| rig.request(client(n)).unwrap());
    rig.leave_up(&[1]);
    rig.pass(Duration::from_millis(1_100));
    assert_eq!(rig.request(client(3)), None, "the port has to be closed first");
    assert_eq!(rig.closes(CloseReason::Evicted), 1);
    rig.handle(Completion::PortClosed { port: silent.0 });
    assert!(rig.request(client(3)).is_some_and(|(_, endpoint)| endpoint != silent.1));
}

#[test]
fn a_flow_whose_endpoint_is_unreachable_before_it_ever_replied_is_decided_again() {
    let mut rig = Rig::round_robin(|listener| listener.datagrams.port_per_flow = true);
    let (port, endpoint) = rig.request(client(1)).unwrap();
    rig.handle(Completion::PortUnreachable { port });
    assert_eq!(rig.closes(CloseReason::ConnectFailed), 1);
    let (port, next) = rig.request(client(1)).unwrap();
    assert_ne!(next, endpoint);
    rig.reply((port, next)).unwrap();
    rig.handle(Completion::PortUnreachable { port });
    assert_eq!(rig.request(client(1)), Some((port, next)), "one that has replied keeps its flow");
}

#[test]
fn flows_of_a_port_that_could_not_be_opened_end_for_that_reason() {
    let mut rig = Rig::round_robin(|_| {});
    let (port, _) = rig.request(client(1)).unwrap();
    rig.handle(Completion::PortFailed { port });
    rig.pass(Duration::ZERO);
    assert_eq!(rig.closes(CloseReason::Descriptors), 1);
    assert!(rig.request(client(1)).is_some());
}

#[test]
fn losses_are_counted_by_their_cause() {
    let mut rig = Rig::round_robin(|_| {});
    let (port, _) = rig.request(client(1)).unwrap();
    for (cause, reason) in [
        (LossCause::Truncated, DropReason::Truncated),
        (LossCause::Full, DropReason::SendFull),
        (LossCause::TooLarge, DropReason::TooLarge),
        (LossCause::Unreachable, DropReason::Unreachable),
    ] {
        let socket = DatagramSocket::Port(port);
        rig.handle(Completion::Lost { socket, datagrams: 3, cause });
        assert_eq!(rig.drops(reason), 3);
    }
}

/// Answers every question alike.
struct Always(Decision);

impl Policy for Always {
    fn decide(&mut self, _: &Flow<'_>, _: &Arc<Candidates>) -> Decided {
        Decided { decision: self.0, source: Source::Plugin }
    }
}

#[test]
fn a_denied_client_asks_nobody_again_until_the_denial_ends() {
    let decision = Decision {
        verdict: Verdict::Drop,
        ttl: Duration::from_secs(2),
        ..Decision::forward(EndpointIndex(0))
    };
    let mut rig = Rig::new(Box::new(Always(decision)), |_| {});
    for _ in 0..5 {
        assert_eq!(rig.request(client(1)), None);
        rig.pass(Duration::from_millis(300));
    }
    assert_eq!((rig.decisions(Source::Plugin), rig.drops(DropReason::Denied)), (1, 5));
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.closes(CloseReason::DeniedDrop), 1);
    rig.request(client(1));
    assert_eq!(rig.decisions(Source::Plugin), 2);
}

#[test]
fn a_decision_for_nobody_is_asked_for_each_datagram_and_its_reply_comes_back() {
    let decision = Decision { scope: Scope::None, ..Decision::forward(EndpointIndex(1)) };
    let mut rig = Rig::new(Box::new(Always(decision)), |_| {});
    let ways = [rig.request(client(1)).unwrap(), rig.request(client(1)).unwrap()];
    assert_ne!(ways[0].0, ways[1].0, "two flows of one endpoint have two ports");
    for way in ways {
        assert_eq!(rig.reply(way), Some((client(1), LOCAL)));
    }
    assert_eq!(rig.decisions(Source::Plugin), 2);
}

#[test]
fn flows_with_one_key_share_an_endpoint_under_any_native_policy() {
    let rule = Some(KeyRule::Bytes { offset: 0, length: 4 });
    let mut rig = Rig::round_robin(|listener| listener.key = rule);
    let (_, endpoint) = rig.request(client(1)).unwrap();
    for n in 2..6 {
        assert_eq!(rig.request(client(n)).unwrap().1, endpoint);
    }
    rig.bytes = Bytes(b"other");
    assert_ne!(rig.request(client(7)).unwrap().1, endpoint);
    rig.bytes = Bytes(b"");
    assert!(rig.request(client(8)).is_some(), "a flow without a key goes on without one");
    assert_eq!(rig.balancer.stats().listeners[0].keyless_total.iter().sum::<u64>(), 1);
}

#[test]
fn keys_that_nobody_answers_leave_half_the_room_to_those_that_are_answered() {
    const BYTES: [&[u8]; 12] = [
        b"key0", b"key1", b"key2", b"key3", b"key4", b"key5", b"key6", b"key7", b"key8", b"key9",
        b"keyA", b"keyB",
    ];
    let rule = Some(KeyRule::Bytes { offset: 0, length: 4 });
    let mut rig = Rig::round_robin(|listener| listener.key = rule);
    for (n, bytes) in (1..).zip(BYTES) {
        rig.bytes = Bytes(bytes);
        rig.request(client(n)).unwrap();
    }
    assert_eq!(rig.balancer.stats().flow_table_entries, 12 + 8, "all flows, and half of 16 keys");
    rig.bytes = Bytes(b"last");
    let first = rig.request(client(100)).unwrap();
    let other = rig.request(client(101)).unwrap();
    assert_ne!(first.1, other.1, "nobody has answered yet");
    rig.reply(other).unwrap();
    for n in 102..106 {
        assert_eq!(rig.request(client(n)).unwrap().1, other.1);
    }
}

#[test]
fn a_quic_client_that_comes_back_under_the_id_its_server_gave_it_finds_its_server() {
    const INITIAL: &[u8] = b"\xc3\x00\x00\x00\x01\x08clientid\x00\x00\x00";
    const ANSWER: &[u8] = b"\xc3\x00\x00\x00\x01\x00\x08serverid\x00\x00";
    const SHORT: &[u8] = b"\x40serverid and what follows";
    let rule = Some(KeyRule::QuicConnectionId { length: 8 });
    let mut rig = Rig::round_robin(|listener| listener.key = rule);
    rig.bytes = Bytes(INITIAL);
    let way = rig.request(client(1)).unwrap();
    rig.bytes = Bytes(ANSWER);
    rig.reply(way).unwrap();
    rig.bytes = Bytes(SHORT);
    // A connection that lives far longer than a flow may be idle.
    for _ in 0..10 {
        rig.pass(Duration::from_secs(50));
        assert_eq!(rig.request(client(1)), Some(way));
    }
    assert_eq!(rig.request(client(2)).unwrap().1, way.1);
}

#[test]
fn a_throttled_flow_loses_what_comes_too_fast() {
    let mut decision = Decision::forward(EndpointIndex(0));
    decision.method.throttle_kib_s = Some(1);
    let mut rig = Rig::new(Box::new(Always(decision)), |_| {});
    let passed = (0..100).filter(|_| rig.request(client(1)).is_some()).count();
    assert!((5..20).contains(&passed), "{passed} datagrams of 8 bytes");
    assert_eq!(rig.drops(DropReason::Throttled), 100 - passed as u64);
    rig.pass(Duration::from_secs(1));
    assert!(rig.request(client(1)).is_some());
}

#[test]
fn what_is_kept_can_be_seen_and_forgotten() {
    let mut rig = Rig::round_robin(|_| {});
    let way = rig.request(client(1)).unwrap();
    rig.reply(way).unwrap();
    rig.request(client(2)).unwrap();
    let mut entries = vec::Vec::new();
    let mut cursor = Some(Cursor::default());
    while let Some(from) = cursor {
        cursor = rig.balancer.survey(rig.now, from, 1, &mut |entry| entries.push(entry));
    }
    let states: vec::Vec<_> = entries
        .iter()
        .map(|entry| match &entry.kind {
            EntryKind::Flow(flow) => (flow.client, flow.state, flow.bytes, flow.datagrams),
            other @ EntryKind::Kept(_) => panic!("{other:?}"),
        })
        .collect();
    let established = (client(1), FlowState::Established, [8, 8], [1, 1]);
    assert_eq!(states, [established, (client(2), FlowState::Unconfirmed, [0, 8], [0, 1])]);
    let mut ops = Ops::with_capacity(16);
    assert!(rig.balancer.forget(rig.now, entries[0].id, &mut ops));
    assert!(!rig.balancer.forget(rig.now, entries[0].id, &mut ops));
    rig.balancer.check_invariants();
    assert_eq!(rig.closes(CloseReason::Forgotten), 1);
    assert_eq!(rig.reply(way), None);
}
