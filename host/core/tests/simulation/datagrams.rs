//! Flows of datagrams: one or two workers of one process, and all that is sent to and fro.

mod admission;
mod announcement;
mod decisions;
mod fared;
mod kept;
mod model;
mod net;
mod oracle;
mod ports;
mod setup;
mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::boundary::{Completion, DatagramSocket, ListenerId, Op, Ops, PoolSizes};
use pointsman_core::listing::{Cursor, Entry, EntryKind};
use pointsman_core::policy::OnSwap;
use pointsman_core::{
    Balancer, BalancerConfig, Board, ClusterId, DropReason, Generation, Instant, ListenerStats,
    Openness, Snapshot,
};

use crate::passive::Passive;
use crate::rng::Rng;
use crate::workload::{copy, reached};
use kept::{KeptKey, Shelf};
use model::{Model, Scene, Seen, Worker};
use net::{Cargo, Faults, Net};
use setup::{CallLog, Kind, Taste};

const TURNS: u32 = 200;
const START: Instant = Instant::from_millis(1_000);

/// Runs a seed to its end; tells which named reasons it led to.
pub(crate) fn run(seed: u64) -> BTreeSet<&'static str> {
    let mut run = Run::new(seed);
    for _ in 0..TURNS {
        run.rough_turn();
    }
    run.quiet();
    run.drain();
    run.workers.iter().flat_map(|(balancer, _)| reached(balancer.stats())).collect()
}

/// Every completion of a seed, in order.
pub(crate) fn trace(seed: u64) -> Vec<String> {
    let mut run = Run::new(seed);
    for _ in 0..TURNS {
        run.rough_turn();
    }
    run.trace
}

/// What every worker of a seed is made of.
struct Sizes {
    capacity: u32,
    entries_max: u32,
    has_board: bool,
    faults: Faults,
}

struct Run {
    rng: Rng,
    sizes: Sizes,
    now: Instant,
    workers: Vec<(Balancer, Net)>,
    model: Model,
    snapshot: Arc<Snapshot>,
    ops: Ops,
    /// What was decided in this turn.
    pending: Vec<Op>,
    calls: CallLog,
    taste: Taste,
    passive: Passive,
    clients: usize,
    endpoints: u32,
    keyed: bool,
    /// What an operator has seen and may ask to be forgotten.
    noted: Vec<(usize, Entry)>,
    trace: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(!seed);
        let listeners = rng.between(1, 2) as usize;
        let workers = rng.between(1, 2) as usize;
        let keyed = rng.chance(500);
        let shared = workers > 1 && rng.chance(700);
        let entries_max = if keyed || shared { 60 } else { rng.pick(&[1, 3, 60]) };
        let snapshot = Arc::new(setup::first_snapshot(&mut rng, listeners, keyed));
        let kinds: Vec<Kind> = (0..listeners).map(|_| Kind::pick(&mut rng)).collect();
        let (taste, calls) = (Taste::pick(&mut rng), CallLog::default());
        let capacity = rng.pick(&[4, 16, 16, 60]);
        let sizes = Sizes { capacity, entries_max, has_board: shared, faults: faults(&mut rng) };
        let passive = Passive::new(&mut rng, listeners);
        let mut run = Self {
            model: model(&snapshot, workers, (kinds, capacity, shared)),
            sizes,
            clients: rng.pick(&[3, 16, 16]),
            rng,
            now: START,
            workers: Vec::new(),
            snapshot,
            ops: Ops::with_capacity(4 * Balancer::OPS_PER_COMPLETION_MAX),
            pending: Vec::new(),
            calls,
            taste,
            passive,
            endpoints: 100,
            keyed,
            noted: Vec::new(),
            trace: Vec::new(),
        };
        run.workers = run.fresh_workers();
        run
    }

    /// The workers of a process that starts.
    fn fresh_workers(&mut self) -> Vec<(Balancer, Net)> {
        let Sizes { capacity, entries_max, has_board, ref faults } = self.sizes;
        let rng = &mut self.rng;
        let board = has_board.then(|| Arc::new(Board::new(1_000, [rng.next(), rng.next()])));
        let listeners = &self.snapshot.listeners;
        let ports_max = listeners.iter().map(|listener| listener.datagrams.ports_max).sum();
        let worker = |number: usize| {
            let config = BalancerConfig {
                worker: number,
                sessions_max: 1,
                datagram_flows_max: capacity,
                flow_table_entries_max: entries_max,
                board: board.clone(),
                pools: PoolSizes { small: 1, bulk: 1 },
                hash_key: [rng.next(), rng.next()],
                seed: rng.next(),
                record_flows: true,
            };
            let kinds = self.model.kinds.iter();
            let policies = kinds.map(|kind| kind.policy(&self.calls, &self.taste)).collect();
            let net = Net::new(Rng::new(rng.next()), faults.clone(), listeners.len(), ports_max);
            (Balancer::new(&config, self.snapshot.clone(), policies), net)
        };
        (0..self.model.workers.len()).map(worker).collect()
    }

    /// Everything that can go wrong does.
    fn rough_turn(&mut self) {
        for _ in 0..self.rng.below(4) {
            self.send();
        }
        if self.rng.chance(20) {
            self.change_world();
        }
        if self.rng.chance(200) && self.passive.judge(self.now, &self.snapshot) {
            self.publish(|_| {});
        }
        if self.rng.chance(20) {
            self.move_listener();
        }
        if self.rng.chance(10) {
            self.swap_policy();
        }
        if self.rng.chance(30) {
            self.forget();
        }
        if self.rng.chance(10) {
            self.change_process();
        }
        if self.rng.chance(300) {
            self.pass_time();
        }
        (0..self.workers.len()).for_each(|worker| self.turn(worker));
    }

    /// A client sends, usually to the worker that the kernel's hash has always sent it to.
    fn send(&mut self) {
        let listener = self.rng.below(self.snapshot.listeners.len() as u64) as u16;
        let path = setup::path(&mut self.rng, self.clients);
        let settings = self.snapshot.listeners[usize::from(listener)].datagrams;
        let sticky = usize::from(path.peer.port()) + usize::from(path.peer.is_ipv6());
        let strays = self.rng.chance(50);
        let worker = if strays { self.rng.below(2) as usize } else { sticky } % self.workers.len();
        let len = self.rng.pick(&[0, 3, 40, 40, 40, 500, 1_200]);
        let key = self.rng.below(4) as u8;
        let first: Vec<u8> = (0..len).map(|place| if place < 6 { key } else { 0xcc }).collect();
        let cargo = if settings.offload && self.rng.chance(200) {
            Cargo::train(first, self.rng.below(4) as u32, self.rng.below(1_200) as u32)
        } else {
            Cargo::single(first)
        };
        self.workers[worker].1.send(self.now, ListenerId(listener), path, cargo);
    }

    /// Sometimes the worker comes a little late to what is due.
    fn pass_time(&mut self) {
        let step = self.rng.pick(&[1, 5, 100, 1_000, 6_000]) * 1_000_000;
        let later = self.now + Duration::from_nanos(self.rng.below(step));
        let due = self.workers.iter().filter_map(|(balancer, _)| balancer.next_timeout()).min();
        let late = Duration::from_millis(self.rng.pick(&[0, 0, 3, 40]));
        self.now = later.min(due.unwrap_or(Instant::FAR_FUTURE).max(self.now) + late);
    }

    /// One turn of a worker.
    fn turn(&mut self, worker: usize) {
        let count = self.rng.between(1, 8);
        for completion in self.workers[worker].1.collect(self.now, count) {
            self.handle(worker, completion);
        }
        self.timeout(worker);
        self.perform(worker);
        let (balancer, _) = &self.workers[worker];
        let steps = self.rng.pick(&[1, 7, 10_000]);
        let entries = survey(balancer, self.now, steps);
        let scene = Scene { now: self.now, worker, snapshot: &self.snapshot };
        self.model.assert_survey(&scene, &entries);
        if let Some(entry) = entries.first() {
            let place = self.rng.below(entries.len() as u64) as usize;
            let noted = entries.get(place).unwrap_or(entry).clone();
            self.noted.push((worker, noted));
            self.noted.truncate(50);
        }
    }

    fn perform(&mut self, worker: usize) {
        for op in std::mem::take(&mut self.pending) {
            self.workers[worker].1.perform(self.now, op);
        }
    }

    fn handle(&mut self, worker: usize, completion: Completion) {
        self.trace.push(format!("{worker} {completion:?}"));
        let scene = Scene { now: self.now, worker, snapshot: &self.snapshot.clone() };
        let event = Event::of(&completion, &scene, &self.workers[worker].1);
        let mut seen = self.call(worker, |balancer, net, ops| {
            balancer.handle(scene.now, completion, net, ops);
        });
        let expected = match &event {
            Event::Request(request) => announcement::expected(&scene, request),
            Event::Other(_) => None,
        };
        announcement::check(&mut seen.ops, expected);
        self.model.on_event(&scene, event, &mut seen);
        self.check(worker, &seen);
    }

    fn timeout(&mut self, worker: usize) {
        let scene = Scene { now: self.now, worker, snapshot: &self.snapshot.clone() };
        let order = if self.model.is_swept(&scene) {
            survey(&self.workers[worker].0, self.now, 10_000)
        } else {
            Vec::new()
        };
        let mut seen = self.call(worker, |balancer, _, ops| {
            balancer.handle_timeout(scene.now, ops);
        });
        self.model.on_timeout(&scene, &order, &mut seen);
        self.check(worker, &seen);
        self.check_load();
    }

    /// Has the balancer do something, performs what it decides, and tells what could be seen.
    fn call(&mut self, worker: usize, act: impl FnOnce(&mut Balancer, &mut Net, &mut Ops)) -> Seen {
        let drops = |balancer: &Balancer, reason: DropReason| -> u64 {
            balancer.stats().listeners.iter().map(|it| it.drops_total[reason.index()]).sum()
        };
        let full = |balancer: &Balancer| drops(balancer, DropReason::FlowTableFull);
        let throttled = |balancer: &Balancer| drops(balancer, DropReason::Throttled);
        let decisions = |balancer: &Balancer| -> u64 {
            balancer.stats().clusters.iter().flat_map(|it| it.decisions_total).sum()
        };
        let (balancer, net) = &mut self.workers[worker];
        let before = (full(balancer), decisions(balancer), throttled(balancer));
        act(balancer, net, &mut self.ops);
        balancer.check_invariants();
        let room = Balancer::OPS_PER_COMPLETION_MAX * 3;
        assert!(self.ops.room() >= room, "one call led to too many ops");
        let mut seen = Seen {
            ops: self.ops.drain().collect(),
            records: balancer.take_records().collect(),
            calls: std::mem::take(&mut self.calls.lock().expect("nobody panicked").0).into(),
            shown: Vec::new(),
            table_was_full: full(balancer) > before.0,
            was_throttled: throttled(balancer) > before.2,
        };
        // Looking at everything is the most costly part: only where something is to be learned.
        let learns = decisions(balancer) > before.1 || !seen.records.is_empty();
        if self.keyed || learns || self.model.has_twins(worker) {
            seen.shown = survey(balancer, self.now, 10_000);
        }
        let ops = std::mem::take(&mut seen.ops);
        seen.ops = ops.iter().map(again_op).collect();
        self.pending.extend(ops);
        seen
    }

    /// All that was seen has an explanation, and is counted.
    fn check(&self, worker: usize, seen: &Seen) {
        seen.assert_explained();
        let stats = self.workers[worker].0.stats();
        self.model.assert_counts(worker, &stats.listeners);
        let model = &self.model.workers[worker];
        for (cluster, expected) in stats.clusters.iter().zip(&model.decisions) {
            assert_eq!(cluster.decisions_total, *expected, "who has decided");
        }
        let failed = model.ports.values().any(|port| port.failed);
        assert!(failed || stats.ports_open as usize == model.ports.len(), "ports are counted");
        for (place, listener) in self.snapshot.listeners.iter().enumerate() {
            let active = self.model.active(place);
            assert_eq!(listener.flows_active.get() as usize, active, "flows of all workers");
        }
    }

    fn check_load(&self) {
        let mut flows: BTreeMap<_, u32> = BTreeMap::new();
        for flow in self.model.workers.iter().flat_map(|worker| &worker.flows) {
            if let Ok((id, _)) = flow.target {
                *flows.entry((flow.listener, id)).or_default() += 1;
            }
        }
        for (place, cluster) in self.snapshot.clusters.iter().enumerate() {
            for state in &cluster.endpoints {
                let bound = flows.get(&(place, state.endpoint.id)).copied().unwrap_or(0);
                assert_eq!(state.endpoint.load.flows_active(), bound, "an endpoint's load");
                self.model.assert_fared(place, state);
            }
        }
    }

    /// An operator ends a flow or gives up a decision that may have ended by itself.
    fn forget(&mut self) {
        if self.noted.is_empty() {
            return;
        }
        let place = self.rng.below(self.noted.len() as u64) as usize;
        let (worker, entry) = self.noted.swap_remove(place);
        let scene = Scene { now: self.now, worker, snapshot: &self.snapshot.clone() };
        let before = survey(&self.workers[worker].0, self.now, 10_000);
        let is_there = before.iter().any(|it| it.id == entry.id);
        let mut forgotten = false;
        let mut seen = self.call(worker, |balancer, _, ops| {
            forgotten = balancer.forget(scene.now, entry.id, ops);
        });
        assert_eq!(forgotten, is_there, "{entry:?}");
        match &entry.kind {
            _ if !forgotten => {}
            EntryKind::Flow(_) => self.model.on_forgotten(&scene, &entry, &mut seen),
            EntryKind::Kept(kept) => {
                let key = KeptKey::of(entry.cluster.0, kept);
                assert!(self.model.shelf.forget(worker, key), "{entry:?}");
            }
        }
        self.check(worker, &seen);
        self.perform(worker);
    }

    fn change_world(&mut self) {
        let mut rng = Rng::new(self.rng.next());
        self.endpoints += 1;
        let fresh = self.endpoints;
        self.passive.change_mind(&mut rng);
        self.publish(|snapshot| {
            for (place, cluster) in snapshot.clusters.iter_mut().enumerate() {
                let mut endpoints = cluster.endpoints.to_vec();
                for state in &mut endpoints {
                    state.up = rng.chance(700);
                    state.draining = rng.chance(100);
                    state.backup = rng.chance(100);
                }
                if rng.chance(300) {
                    let gone = endpoints.remove(rng.below(endpoints.len() as u64) as usize);
                    let limited = gone.endpoint.flows_max != u32::MAX;
                    let mut back = setup::endpoint(&mut rng, place, (fresh, 0), limited);
                    back.endpoint.address = gone.endpoint.address;
                    let comes_back = rng.chance(700) || endpoints.is_empty();
                    endpoints.extend(comes_back.then_some(back));
                }
                cluster.endpoints = endpoints.into();
                cluster.transparent ^= rng.chance(50);
            }
        });
    }

    /// A reload takes a listener out, or wants it again before its flows have ended.
    fn move_listener(&mut self) {
        let place = self.rng.below(self.snapshot.listeners.len() as u64) as usize;
        self.publish(|snapshot| {
            let openness = &mut snapshot.listeners[place].openness;
            *openness = match *openness {
                Openness::Open => Openness::Draining,
                Openness::Draining | Openness::Closed => Openness::Open,
            };
        });
    }

    fn publish(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = copy(&self.snapshot);
        next.generation = Generation(next.generation.0 + 1);
        change(&mut next);
        self.passive.choose(&mut next);
        self.snapshot = Arc::new(next);
        for worker in 0..self.workers.len() {
            let (now, next) = (self.now, self.snapshot.clone());
            let seen = self.call(worker, |balancer, _, ops| {
                drop(balancer.apply(now, next, ops));
            });
            self.check(worker, &seen);
            self.perform(worker);
        }
    }

    fn swap_policy(&mut self) {
        let cluster = self.rng.below(self.model.kinds.len() as u64) as usize;
        let kind = Kind::pick(&mut self.rng);
        self.model.kinds[cluster] = kind;
        let on_swap = self.rng.pick(&[OnSwap::Keep, OnSwap::Revalidate, OnSwap::Flush]);
        self.model.shelf.on_swap(cluster as u16, on_swap);
        for (balancer, _) in &mut self.workers {
            let policy = kind.policy(&self.calls, &self.taste);
            drop(balancer.swap_policy(ClusterId(cluster as u16), policy, on_swap));
        }
    }

    /// Nobody sends any more: every flow ends by itself, and most ports are closed.
    fn quiet(&mut self) {
        for (_, net) in &mut self.workers {
            net.faults = Faults::NONE;
        }
        let end = self.now + Duration::from_secs(200);
        while self.now < end {
            let due = self.workers.iter().filter_map(|(balancer, _)| balancer.next_timeout());
            let next = due.chain(self.workers.iter().filter_map(|(_, net)| net.next())).min();
            self.now = next.unwrap_or(end).clamp(self.now, end);
            (0..self.workers.len()).for_each(|worker| self.turn(worker));
        }
        for (place, (balancer, _)) in self.workers.iter().enumerate() {
            let worker = &self.model.workers[place];
            assert!(worker.flows.is_empty(), "flows that nobody uses end: {:?}", worker.flows);
            let listeners = self.snapshot.listeners.iter();
            let most: u32 = listeners.map(|it| 2 * (it.datagrams.ports_min + 1)).sum();
            assert!(balancer.stats().ports_open <= most, "ports that nobody uses stay");
        }
    }

    /// The process ends while clients still send.
    fn drain(&mut self) {
        for _ in 0..30 {
            self.send();
            (0..self.workers.len()).for_each(|worker| self.turn(worker));
        }
        let end = self.now + Duration::from_millis(self.rng.pick(&[0, 70, 3_000, 100_000]));
        self.publish(|snapshot| snapshot.drain_until = Some(end));
        for _ in 0..10_000 {
            if self.rng.chance(200) && self.now < end + Duration::from_secs(2) {
                self.send();
            }
            if self.workers.iter().all(|(balancer, _)| balancer.is_drained()) {
                self.assert_nothing_is_left();
                return;
            }
            self.pass_time();
            (0..self.workers.len()).for_each(|worker| self.turn(worker));
        }
        panic!("the drain never ends");
    }

    fn assert_nothing_is_left(&self) {
        for ((balancer, net), model) in self.workers.iter().zip(&self.model.workers) {
            net.assert_nothing_is_held();
            assert!(net.all_listeners_have_ended() && model.stopped.iter().all(|stopped| *stopped));
            assert!(model.flows.is_empty());
            assert!(balancer.stats().listeners.iter().all(all_are_accounted_for));
        }
        self.assert_given_back(&self.snapshot);
    }
}

/// Whether every flow that has come has ended here, or goes on elsewhere.
fn all_are_accounted_for(stats: &ListenerStats) -> bool {
    let came = stats.flows_total + stats.taken_over_total;
    came == stats.closes_total.iter().sum::<u64>() + stats.handed_over_total
}

/// What a completion means to the model.
enum Event {
    Request(oracle::Request),
    Other(Completion),
}

impl Event {
    fn of(completion: &Completion, scene: &Scene<'_>, net: &Net) -> Self {
        use pointsman_core::boundary::Memory;
        match completion {
            Completion::Datagrams { socket: DatagramSocket::Listener(id), path, train } => {
                let first = net.first_datagram(train);
                Self::Request(oracle::request(scene, (id.index(), *path), train, first))
            }
            other => Self::Other(again(other)),
        }
    }
}

/// The same completion, to look at while the balancer has the first.
fn again(completion: &Completion) -> Completion {
    use pointsman_core::boundary::Train;
    match completion {
        Completion::Datagrams { socket, path, train } => {
            let train = Train::new(train.buffer(), train.len(), train.segment());
            Completion::Datagrams { socket: *socket, path: *path, train }
        }
        Completion::Lost { socket, datagrams, cause } => {
            Completion::Lost { socket: *socket, datagrams: *datagrams, cause: *cause }
        }
        Completion::PortFailed { port } => Completion::PortFailed { port: *port },
        Completion::PortUnreachable { port } => Completion::PortUnreachable { port: *port },
        Completion::PortClosed { port } => Completion::PortClosed { port: *port },
        Completion::AcceptEnded { listener } => Completion::AcceptEnded { listener: *listener },
        other => panic!("no listener speaks streams: {other:?}"),
    }
}

impl Model {
    fn on_event(&mut self, scene: &Scene<'_>, event: Event, seen: &mut Seen) {
        match event {
            Event::Request(request) => self.on_request(scene, &request, seen),
            Event::Other(completion) => match completion {
                Completion::Datagrams { socket: DatagramSocket::Port(port), path, train } => {
                    let counted = (train.len(), train.datagrams());
                    self.on_reply(scene, (port, path), counted, seen);
                }
                Completion::Lost { socket, datagrams, cause } => {
                    self.on_lost(scene, socket, datagrams, cause);
                }
                Completion::PortFailed { port } => self.on_port_failed(scene, port, seen),
                Completion::PortUnreachable { port } => self.on_unreachable(scene, port, seen),
                Completion::PortClosed { port } => self.on_port_closed(scene, port),
                _ => {}
            },
        }
    }
}

/// The same op, for the oracle to look at.
fn again_op(op: &Op) -> Op {
    use pointsman_core::boundary::Train;
    let again = |train: &Train| Train::new(train.buffer(), train.len(), train.segment());
    match op {
        Op::OpenPort { port, kind } => Op::OpenPort { port: *port, kind: *kind },
        Op::ClosePort { port } => Op::ClosePort { port: *port },
        Op::Forward { socket, peer, local, train } => {
            Op::Forward { socket: *socket, peer: *peer, local: *local, train: again(train) }
        }
        Op::Discard { train } => Op::Discard { train: again(train) },
        Op::Announce { route, outbound } => Op::Announce { route: *route, outbound: *outbound },
        Op::StopAccepting { listener } => Op::StopAccepting { listener: *listener },
        Op::Hold => Op::Hold,
        Op::Resume => Op::Resume,
        other => panic!("no listener speaks streams: {other:?}"),
    }
}

/// All that a worker keeps, looked at so many places at a time.
fn survey(balancer: &Balancer, now: Instant, steps: u32) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut next = Some(Cursor::default());
    while let Some(cursor) = next {
        next = balancer.survey(now, cursor, steps, &mut |entry| entries.push(entry));
    }
    entries
}

fn faults(rng: &mut Rng) -> Faults {
    Faults {
        port_fails: rng.pick(&[0, 0, 30, 200]),
        lost: rng.pick(&[0, 50]),
        silent: rng.pick(&[0, 100, 700]),
        strangers: rng.pick(&[0, 100]),
        repeats: rng.pick(&[0, 100]),
        unreachable: rng.pick(&[0, 500]),
    }
}

fn model(
    snapshot: &Snapshot,
    workers: usize,
    (kinds, capacity, has_board): (Vec<Kind>, u32, bool),
) -> Model {
    let listeners = snapshot.listeners.len();
    let limits = snapshot.listeners.iter();
    Model {
        workers: (0..workers).map(|_| Worker::new(listeners)).collect(),
        shelf: Shelf::new(workers, has_board),
        fared: BTreeMap::new(),
        capacity: capacity as usize,
        kinds,
        rates: vec![Instant::ZERO; listeners],
        own_rates: BTreeMap::new(),
        per_second_of_client: limits
            .clone()
            .map(|it| it.new_flow_rate_per_client.as_deref().map(setup::per_second_of_client))
            .collect(),
        per_client: limits
            .clone()
            .map(|it| it.flows_per_client.as_deref().map(setup::per_client_max))
            .collect(),
        per_second: limits.map(|it| it.new_flow_rate.as_deref().map(setup::per_second)).collect(),
    }
}
