//! Two workers whose flows wait for places at the same few endpoints.
//!
//! What a worker does when it is not woken does not count here: one takes a turn only if its kernel
//! has something for it, if the other has called it, or if something is due. Time stands still until
//! neither has anything to do, so that no tick can make up for a call that was not made.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::boundary::{Completion, Link, ListenerId, Op, Ops, PoolSizes, Side};
use pointsman_core::policy::{LeastFlows, Policy, RoundRobin};
use pointsman_core::{
    AllFlows, Balancer, BalancerConfig, Endpoint, Instant, Line, Listener, Queue, Snapshot,
    Timeouts,
};

use crate::passive::all_of;
use crate::rng::Rng;
use crate::workload;
use crate::world::{Faults, World};

const WORKERS: usize = 2;
const ROUNDS: u64 = 40;
/// Bytes that a peer sends at most: what flows carry is no matter here.
const BYTES_MAX: u64 = 2_000;

/// Runs a seed to its end; tells which named reasons it led to.
pub(crate) fn run(seed: u64) -> Vec<&'static str> {
    let mut crowd = Crowd::new(seed);
    for _ in 0..ROUNDS {
        crowd.round();
    }
    crowd.calm();
    crowd.workers.iter().flat_map(|worker| workload::reached(worker.balancer.stats())).collect()
}

struct Worker {
    world: World,
    balancer: Balancer,
    is_called: bool,
}

struct Crowd {
    rng: Rng,
    now: Instant,
    snapshot: Arc<Snapshot>,
    workers: Vec<Worker>,
    ops: Ops,
    clients: u16,
    /// By worker and slot: who waits, numbered as they joined.
    waiting: BTreeMap<(usize, u32), u64>,
    joined: u64,
}

impl Crowd {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let snapshot = Arc::new(snapshot(&mut rng));
        let pools = PoolSizes { small: 2_000, bulk: 100 };
        let worker = |number: usize, rng: &mut Rng| {
            let config = BalancerConfig {
                worker: number,
                sessions_max: 100,
                datagram_flows_max: 0,
                flow_table_entries_max: 1,
                board: None,
                pools,
                hash_key: [rng.next(), rng.next()],
                seed: rng.next(),
                record_flows: false,
            };
            let policy: Box<dyn Policy> = match rng.below(2) {
                0 => Box::new(RoundRobin::new()),
                _ => Box::new(LeastFlows::new()),
            };
            let balancer = Balancer::new(&config, snapshot.clone(), vec![policy]);
            let faults = Faults { reset: 20, ..Faults::NONE };
            let world = World::new(Rng::new(rng.next()), faults, pools, 1);
            Worker { world, balancer, is_called: false }
        };
        Self {
            workers: (0..WORKERS).map(|number| worker(number, &mut rng)).collect(),
            rng,
            now: Instant::from_millis(1_000),
            snapshot,
            ops: Ops::with_capacity(8 * Balancer::OPS_PER_COMPLETION_MAX),
            clients: 0,
            waiting: BTreeMap::new(),
            joined: 0,
        }
    }

    /// Some things happen; then all that follows from them, before any time passes.
    fn round(&mut self) {
        for _ in 0..self.rng.below(4) {
            self.arrive();
        }
        for _ in 0..self.rng.below(6) {
            let world = &mut self.workers[self.rng.below(WORKERS as u64) as usize].world;
            if !world.conns.is_empty() {
                world.act(self.rng.below(world.conns.len() as u64) as usize);
            }
        }
        if self.rng.chance(200) {
            let most = self.rng.pick(&[1, usize::MAX]);
            self.lose_first(most);
        }
        self.settle();
        let due = self.workers.iter().filter_map(|worker| worker.balancer.next_timeout()).min();
        let later = self.now + Duration::from_millis(self.rng.below(50));
        self.now = later.min(due.unwrap_or(Instant::FAR_FUTURE)).max(self.now);
    }

    fn arrive(&mut self) {
        self.clients += 1;
        let client = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), self.clients));
        let worker = &mut self.workers[self.rng.below(WORKERS as u64) as usize];
        worker.world.arrive(ListenerId(0), client, (Vec::new(), false));
    }

    /// Of the clients that wait in the worker whose turn it is, at most so many go away, the first ones,
    /// perhaps just when it is called for them.
    fn lose_first(&mut self, most: usize) {
        let first = self.waiting.iter().min_by_key(|(_, joined)| **joined);
        let Some(((worker, _), _)) = first else { return };
        let here = self.waiting.iter().filter(|((at, _), _)| at == worker);
        let mut slots: Vec<_> = here.map(|((_, slot), joined)| (joined, slot)).collect();
        slots.sort_unstable();
        let world = &mut self.workers[*worker].world;
        for (_, slot) in slots.into_iter().take(most) {
            let link = Link::new(*slot, Side::Downstream);
            let conn = world.conn_of(link).expect("it has a connection");
            world.conns[conn].reset_by_peer = true;
        }
    }

    /// Turns, until there is nothing to do for anybody.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 20 {
            let worker = self.rng.below(WORKERS as u64) as usize;
            quiet = if self.turn(worker) { 0 } else { quiet + 1 };
        }
        let cluster = &self.snapshot.clusters[0];
        let has_place = cluster.candidates.endpoints.iter().any(|endpoint| !endpoint.is_full());
        assert!(!has_place || cluster.queue.line.is_empty(), "somebody waits in vain");
        assert_eq!(cluster.queue.line.len() as usize, self.waiting.len(), "who waits is counted");
    }

    /// One turn of a worker, if it is awake. Tells if it was.
    fn turn(&mut self, number: usize) -> bool {
        let worker = &mut self.workers[number];
        worker.world.now = self.now;
        let completions = worker.world.collect(4);
        let is_due = worker.balancer.next_timeout().is_some_and(|at| at <= self.now);
        if completions.is_empty() && !is_due && !std::mem::take(&mut worker.is_called) {
            return false;
        }
        worker.is_called = false;
        for completion in completions {
            let is_new = matches!(completion, Completion::Accepted { .. });
            let worker = &mut self.workers[number];
            worker.balancer.handle(self.now, completion, &mut worker.world, &mut self.ops);
            worker.balancer.check_invariants();
            self.perform(number, is_new);
        }
        let worker = &mut self.workers[number];
        worker.balancer.handle_timeout(self.now, &mut self.ops);
        worker.balancer.check_invariants();
        let calls: Vec<usize> = worker.balancer.take_calls().collect();
        for called in calls {
            assert_ne!(called, number, "nobody calls itself");
            self.workers[called].is_called = true;
        }
        self.perform(number, false);
        true
    }

    /// Looks at what was decided, of a client that is new or otherwise, and does it.
    fn perform(&mut self, number: usize, is_new: bool) {
        let ops: Vec<Op> = self.ops.drain().collect();
        if let ([Op::Adopt { link, .. }, Op::Receive { .. }], true) = (&ops[..], is_new) {
            self.joined += 1;
            self.waiting.insert((number, link.slot()), self.joined);
        }
        for op in &ops {
            match op {
                Op::Connect { link, .. } => self.on_connect(number, *link),
                Op::Close { link, .. } if link.side() == Side::Downstream => {
                    self.waiting.remove(&(number, link.slot()));
                }
                _ => {}
            }
        }
        for endpoint in &self.snapshot.clusters[0].candidates.endpoints {
            assert!(endpoint.load.flows_active() <= endpoint.flows_max, "more than it may have");
        }
        let world = &mut self.workers[number].world;
        ops.into_iter().for_each(|op| world.perform(op));
        let conns = world.conns.iter_mut().rev().take(8);
        conns.for_each(|conn| conn.to_write = conn.to_write.min(BYTES_MAX));
    }

    /// Those who wait are served as they came, in whatever worker, and before anybody new.
    fn on_connect(&mut self, number: usize, link: Link) {
        let served = self.waiting.remove(&(number, link.slot()));
        let first = self.waiting.values().min();
        assert!(
            first.is_none_or(|first| served.is_some_and(|it| it < *first)),
            "another was first"
        );
    }

    /// Everybody who is there is served in the end.
    fn calm(&mut self) {
        self.workers.iter_mut().for_each(|worker| worker.world.calm());
        for _ in 0..10_000 {
            let mut acted = false;
            self.workers.iter_mut().for_each(|worker| acted |= worker.world.act_everywhere());
            self.settle();
            let active = |worker: &Worker| worker.balancer.stats().sessions_active;
            let left: u32 = self.workers.iter().map(active).sum();
            if left == 0 && !acted {
                let all = &self.snapshot.clusters[0].candidates.endpoints;
                assert!(all.iter().all(|endpoint| endpoint.load.flows_active() == 0));
                return;
            }
            let worlds = self.workers.iter().filter_map(|worker| worker.world.next_dial());
            self.now = worlds.min().unwrap_or(self.now).max(self.now);
        }
        panic!("the calm never comes");
    }
}

/// Everybody comes to one listener, and there are few places.
fn snapshot(rng: &mut Rng) -> Snapshot {
    let plain = workload::first_snapshot(rng, 1);
    let mut next = workload::copy(&plain);
    let long = Duration::from_secs(1_000);
    next.listeners[0] = Listener {
        flows_max: 1_000,
        // A flow that tries again is before those who wait.
        connect_attempts: 1,
        all_flows: AllFlows::unlimited(),
        access: None,
        key: None,
        proxy: None,
        new_flow_rate: None,
        new_flow_rate_per_client: None,
        flows_per_client: None,
        timeouts: Timeouts { preread: long, connect: long, idle: long, half_closed: long },
        ..next.listeners[0].clone()
    };
    let cluster = &mut next.clusters[0];
    for state in &mut cluster.endpoints {
        let flows_max = rng.between(1, 2) as u32;
        state.endpoint = Endpoint { flows_max, ..state.endpoint.clone() };
    }
    cluster.candidates = Arc::new(all_of(next.generation, &cluster.endpoints));
    let flows_max = rng.pick(&[3, 200]);
    cluster.queue = Queue { flows_max, timeout: long, line: Arc::new(Line::new(WORKERS)) };
    next
}
