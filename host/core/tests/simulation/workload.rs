//! One seed's schedule: what the world looks like, who does what, and in which order.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::boundary::{Completion, ListenerId, Op, Ops, PoolSizes};
use pointsman_core::eligibility::Footing;
use pointsman_core::listing::{Cursor, Entry, EntryKind, FlowState};
use pointsman_core::policy::{
    Decided, Decision, EndpointIndex, Flow, LeastFlows, Method, OnSwap, Policy, RoundRobin, Scope,
    Source, TablePolicy, Verdict,
};
use pointsman_core::preread::KeyRule;
use pointsman_core::{
    AccessList, AllFlows, Balancer, BalancerConfig, Board, CANARY_SLOTS, Candidates, CloseReason,
    Cluster, ClusterId, DatagramSettings, DropReason, Endpoint, EndpointId, EndpointState,
    Generation, Instant, KeylessReason, Line, Listener, Network, OnEndpointDown, Openness,
    PrefixLengths, Protocol, Queue, SharedRate, ShedReason, Snapshot, SourceCounts, SourceRates,
    Stats, Tally, Timeouts, Trial,
};

use crate::introduction;
use crate::oracle::{Arrival, CallLog, Counts, Oracle, View};
use crate::passive::{self, Passive, all_of};
use crate::rng::Rng;
use crate::world::{Conn, Faults, World};

const TURNS: u64 = 250;
/// Turns without any progress after which chance alone does not explain it.
const QUIET_TURNS: u32 = 30;

/// Runs a seed to its end; tells which named reasons it led to.
pub(crate) fn run(seed: u64) -> Vec<&'static str> {
    let mut run = Run::new(seed);
    run.rough();
    run.calm();
    run.drain();
    run.outcomes()
}

/// Where flows end that were established when every policy was swapped, if they were.
pub(crate) fn endpoints_across_a_swap(
    seed: u64,
    swaps: bool,
) -> BTreeMap<SocketAddr, Option<EndpointId>> {
    let mut run = Run::new(seed);
    // An endpoint that resets a flow before it has had anything of it loses it to another.
    run.world.faults.reset = 0;
    run.turns(TURNS / 2);
    let established = run.established();
    if swaps {
        let mut rng = Rng::new(seed);
        for (cluster, &logged) in run.logged.iter().enumerate() {
            let on_swap = rng.pick(&[OnSwap::Keep, OnSwap::Revalidate, OnSwap::Flush]);
            let fresh = policy(&mut rng, logged.then_some(&run.calls));
            drop(run.balancer.swap_policy(ClusterId(cluster as u16), fresh, on_swap));
            run.oracle.on_swap(cluster, on_swap);
        }
    }
    run.turns(TURNS / 2);
    run.calm();
    run.drain();
    let ended = |client| Some((client, *run.ended.get(&client)?));
    established.into_iter().filter_map(ended).collect()
}

/// Every completion of a seed, in order.
pub(crate) fn trace(seed: u64) -> Vec<String> {
    let mut run = Run::new(seed);
    run.rough();
    run.trace
}

/// A policy whose every answer is logged, and which answers all that a plugin may.
struct Scripted {
    calls: CallLog,
    client_scope: u64,
    wide: Scope,
}

impl Policy for Scripted {
    fn decide(&mut self, flow: &Flow<'_>, among: &Arc<Candidates>) -> Decided {
        let mut rng = Rng::new(flow.random);
        let index = EndpointIndex(rng.below(among.endpoints.len() as u64) as u32);
        let verdict = match rng.below(40) {
            0 => Verdict::Reset,
            1 => Verdict::Drop,
            _ => Verdict::Forward(index),
        };
        let idle = rng.chance(200).then_some(Duration::from_millis(300));
        let decision = Decision {
            verdict,
            scope: if rng.chance(self.client_scope) { self.wide } else { Scope::Flow },
            ttl: Duration::from_millis(rng.pick(&[0, 20, 500, 10_000])),
            sliding: rng.chance(500),
            method: Method {
                idle_timeout: idle,
                throttle_kib_s: rng.chance(150).then(|| rng.pick(&[1, 100, 10_000])),
                announce: rng.chance(200),
                ..Method::DEFAULT
            },
        };
        let call = crate::oracle::Call {
            client: flow.client,
            key: flow.key,
            attempt: flow.attempt,
            decision,
        };
        self.calls.lock().expect("nobody panicked").push(call);
        Decided { decision, source: Source::Plugin }
    }
}

struct Run {
    rng: Rng,
    world: World,
    oracle: Oracle,
    passive: Passive,
    balancer: Balancer,
    snapshot: Arc<Snapshot>,
    ops: Ops,
    pending: Vec<Op>,
    calls: CallLog,
    logged: Vec<bool>,
    sessions_max: u32,
    clients: u16,
    records: u64,
    /// Where each flow that has ended was, by its client.
    ended: BTreeMap<SocketAddr, Option<EndpointId>>,
    trace: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let pools = PoolSizes { small: rng.pick(&[4, 30, 1_000]), bulk: rng.pick(&[1, 8, 100]) };
        let calls = CallLog::default();
        let clusters = rng.between(1, 2) as usize;
        let snapshot = Arc::new(first_snapshot(&mut rng, clusters));
        let logged: Vec<bool> = (0..clusters).map(|_| rng.chance(600)).collect();
        let policies =
            logged.iter().map(|&logged| policy(&mut rng, logged.then_some(&calls))).collect();
        let sessions_max = rng.between(3, 40) as u32;
        let waits = |listener: &Listener| listener.key.is_some() || listener.proxy.is_some();
        let keyed = snapshot.listeners.iter().any(waits);
        let entries_max = if keyed { 50 } else { rng.pick(&[1, 3, 50]) };
        let board = Arc::new(Board::new(1_000, [rng.next(), rng.next()]));
        let config = BalancerConfig {
            worker: 0,
            sessions_max,
            datagram_flows_max: 100,
            flow_table_entries_max: entries_max,
            board: rng.chance(500).then_some(board),
            pools,
            hash_key: [rng.next(), rng.next()],
            seed: rng.next(),
            record_flows: true,
        };
        let faults = faults(&mut rng);
        let passive = Passive::new(&mut rng, clusters);
        let mut oracle = Oracle::new(calls.clone());
        oracle.fared.on_world(Instant::ZERO, &snapshot);
        Self {
            world: World::new(Rng::new(rng.next()), faults, pools, clusters),
            oracle,
            passive,
            balancer: Balancer::new(&config, snapshot.clone(), policies),
            snapshot,
            ops: Ops::with_capacity(4 * Balancer::OPS_PER_COMPLETION_MAX),
            pending: Vec::new(),
            calls,
            logged,
            sessions_max,
            clients: 0,
            records: 0,
            ended: BTreeMap::new(),
            trace: Vec::new(),
            rng,
        }
    }

    /// Everything that can go wrong does.
    fn rough(&mut self) {
        self.turns(TURNS);
    }

    fn turns(&mut self, turns: u64) {
        for _ in 0..turns {
            if self.rng.chance(300) {
                self.arrive();
            }
            for _ in 0..self.rng.below(4) {
                let conns = self.world.conns.len() as u64;
                if conns > 0 {
                    self.world.act(self.rng.below(conns) as usize);
                }
            }
            if self.rng.chance(20) {
                self.change_world();
            }
            if self.rng.chance(100) && self.passive.judge(self.world.now, &self.snapshot) {
                self.publish(|_| {});
            }
            if self.rng.chance(10) {
                self.move_listener();
            }
            if self.rng.chance(10) {
                self.swap_policy();
            }
            if self.rng.chance(10) {
                self.change_trial();
            }
            if self.rng.chance(10) {
                self.forget();
            }
            if self.rng.chance(250) {
                self.pass_time();
            }
            self.turn();
        }
    }

    /// Every peer does its part, and so every flow must come to its end without a timeout, except
    /// those whose endpoint never answers.
    fn calm(&mut self) {
        self.world.calm();
        let mut quiet = 0;
        for _ in 0..100_000 {
            let acted = self.world.act_everywhere();
            let completed = self.turn();
            quiet = if acted || completed { 0 } else { quiet + 1 };
            if quiet < QUIET_TURNS {
                continue;
            }
            quiet = 0;
            if self.balancer.next_timeout().is_some_and(|at| at <= self.world.now) {
                continue;
            }
            if let Some(at) = self.world.next_dial() {
                self.world.now = self.world.now.max(at);
                continue;
            }
            let waiting = self.balancer.stats().sessions_active as usize;
            let (silent, throttled) = (self.world.silent_dials(), self.oracle.throttled_flows());
            let queued = if silent + throttled > 0 { self.oracle.queued_flows() } else { 0 };
            let explained = silent..=silent + throttled + queued;
            // First bytes that are held may be in all the buffers there are.
            let starved = self.world.is_starved();
            assert!(explained.contains(&waiting) || starved, "a flow is stuck");
            match self.balancer.next_timeout() {
                Some(at) if waiting > 0 => self.world.now = self.world.now.max(at),
                _ => return,
            }
        }
        let left = self.world.unfinished();
        panic!("the calm never comes: {left:#?}");
    }

    /// The process ends, with some flows that would not end by themselves.
    fn drain(&mut self) {
        for _ in 0..self.rng.below(4) {
            self.arrive();
        }
        self.world.faults.silent = 300;
        for _ in 0..5 {
            self.turn();
        }
        let end = self.world.now + Duration::from_millis(self.rng.pick(&[0, 50, 400_000]));
        self.publish(|snapshot| snapshot.drain_until = Some(end));
        self.turn();
        for _ in 0..100_000 {
            if self.balancer.is_drained() {
                self.assert_nothing_is_left();
                return;
            }
            if !self.turn() {
                self.pass_time();
            }
        }
        panic!("the drain never ends");
    }

    fn arrive(&mut self) {
        self.clients += 1;
        let address = Ipv4Addr::new(192, 0, 2, self.rng.below(6) as u8);
        let listener = self.rng.below(self.snapshot.listeners.len() as u64) as u16;
        let client = SocketAddr::from((address, self.clients));
        if self.snapshot.listeners[usize::from(listener)].proxy.is_none() {
            self.world.arrive(ListenerId(listener), client, (Vec::new(), false));
            return;
        }
        let peer = Ipv4Addr::new(10, 9, 0, self.rng.below(6) as u8);
        let peer = if self.rng.chance(50) { address } else { peer };
        let peer = SocketAddr::from((peer, self.clients));
        let head = introduction::head(&mut self.rng, client);
        let breaks_off = self.rng.chance(100);
        self.world.arrive(ListenerId(listener), peer, (head, breaks_off));
    }

    fn pass_time(&mut self) {
        let step = self.rng.pick(&[1_000_000, 5_000_000, 100_000_000, 1_000_000_000]);
        let later = Instant::from_nanos(self.world.now.as_nanos() + self.rng.below(step));
        let due = self.balancer.next_timeout().unwrap_or(Instant::FAR_FUTURE);
        self.world.now = later.min(due.max(self.world.now));
    }

    /// One turn of a worker. Tells if anything happened.
    fn turn(&mut self) -> bool {
        let count = self.rng.between(1, 8) as usize;
        let completions = self.world.collect(count);
        let happened = !completions.is_empty();
        for completion in completions {
            self.handle(completion);
        }
        let view = View {
            snapshot: &self.snapshot,
            logged: &self.logged,
            sessions_max: self.sessions_max,
        };
        self.oracle.before_timeout(self.world.now, &view);
        let before = self.counts();
        self.balancer.handle_timeout(self.world.now, &mut self.ops);
        // Whoever yields its buffers was admitted long ago.
        self.take_ops(None, Counts { sheds: self.counts().sheds, ..before });
        self.balancer.check_invariants();
        self.perform();
        let due = self.balancer.next_timeout().is_some_and(|at| at <= self.world.now);
        if !due {
            self.oracle.assert_nobody_is_overdue(self.world.now, &self.view());
        }
        self.check_records();
        happened
    }

    fn view(&self) -> View<'_> {
        View { snapshot: &self.snapshot, logged: &self.logged, sessions_max: self.sessions_max }
    }

    fn counts(&self) -> Counts {
        let stats = self.balancer.stats();
        let full = DropReason::FlowTableFull.index();
        Counts {
            sheds: stats.listeners.iter().flat_map(|listener| listener.sheds_total).sum(),
            table_full: stats.listeners.iter().map(|listener| listener.drops_total[full]).sum(),
            active: stats.listeners.iter().map(|listener| listener.flows_active).sum(),
        }
    }

    fn handle(&mut self, completion: Completion) {
        self.trace.push(format!("{completion:?}"));
        let now = self.world.now;
        let arrival = match &completion {
            Completion::Accepted { listener, client, .. } => {
                let conn = self.world.conns.iter().position(|conn| conn.address == *client);
                let conn = conn.expect("the client has a connection");
                let Conn { first, head, .. } = &self.world.conns[conn];
                let listener = listener.index();
                let head = introduction::Head::of(head);
                Some(Arrival { now, listener, client: *client, conn, first: *first, head })
            }
            _ => None,
        };
        let closed = match &completion {
            Completion::Closed { link } => Some(link.slot()),
            _ => None,
        };
        let view = View {
            snapshot: &self.snapshot,
            logged: &self.logged,
            sessions_max: self.sessions_max,
        };
        self.oracle.before(now, &completion, &view);
        let before = (self.counts(), self.balancer.stats().sessions_active);
        self.balancer.handle(now, completion, &mut self.world, &mut self.ops);
        self.balancer.check_invariants();
        let room = Balancer::OPS_PER_COMPLETION_MAX * 3;
        assert!(self.ops.room() >= room, "one completion led to too many ops");
        self.take_ops(arrival.as_ref(), before.0);
        let sessions = self.balancer.stats().sessions_active;
        if let Some(slot) = closed.filter(|_| sessions < before.1) {
            self.oracle.on_slot_freed(slot);
        }
    }

    /// Shows the oracle the ops of one call; `before` is what was counted before it.
    fn take_ops(&mut self, arrival: Option<&Arrival>, before: Counts) {
        let ops: Vec<Op> = self.ops.drain().collect();
        let counts = self.counts();
        let was_full = counts.table_full > before.table_full;
        self.oracle.in_full_table = was_full.then(|| self.survey(10_000));
        let view = View {
            snapshot: &self.snapshot,
            logged: &self.logged,
            sessions_max: self.sessions_max,
        };
        match arrival {
            Some(arrival) => {
                self.oracle.after_accepted(arrival, &view, &ops, [before, counts]);
            }
            None => self.oracle.after(self.world.now, &view, &ops, [before, counts]),
        }
        for op in &ops {
            if let Op::Connect { link, address, from } = op {
                self.oracle.on_connect(*link, (*address, *from), &view);
            }
        }
        self.pending.extend(ops);
    }

    fn perform(&mut self) {
        for op in std::mem::take(&mut self.pending) {
            let dialled = match &op {
                Op::Connect { link, .. } => Some(*link),
                _ => None,
            };
            self.world.perform(op);
            if let Some(link) = dialled {
                self.oracle.on_dialled(self.world.now, link, self.world.conn_of(link));
            }
        }
    }

    fn check_records(&mut self) {
        let records: Vec<_> = self.balancer.take_records().collect();
        for record in records {
            self.records += 1;
            self.ended.insert(record.client, record.endpoint.map(|(id, _)| id));
            let view = View {
                snapshot: &self.snapshot,
                logged: &self.logged,
                sessions_max: self.sessions_max,
            };
            self.oracle.on_record(&record, &self.world, &view);
        }
    }

    fn change_world(&mut self) {
        let mut rng = Rng::new(self.rng.next());
        self.passive.change_mind(&mut rng);
        self.publish(|snapshot| {
            for cluster in &mut snapshot.clusters {
                for state in &mut cluster.endpoints {
                    state.up = rng.chance(700);
                    state.draining = rng.chance(100);
                    state.backup = rng.chance(100);
                    passive::change_places(&mut rng, state);
                }
                if rng.chance(100) && cluster.endpoints.len() > 1 {
                    let mut endpoints = cluster.endpoints.to_vec();
                    endpoints.remove(rng.below(endpoints.len() as u64) as usize);
                    cluster.endpoints = endpoints.into();
                }
            }
        });
    }

    /// A reload takes a listener out, or puts one in the place of one that has ended.
    fn move_listener(&mut self) {
        let place = self.rng.below(self.snapshot.listeners.len() as u64) as usize;
        let (id, listener) = (ListenerId(place as u16), &self.snapshot.listeners[place]);
        let is_over = self.world.has_ended(id) && listener.flows_active.get() == 0;
        let is_out_of_time = self.rng.chance(300);
        let next = match listener.openness {
            Openness::Open => Openness::Draining,
            Openness::Draining if is_over || is_out_of_time => Openness::Closed,
            Openness::Closed if is_over => {
                self.world.listen(id);
                Openness::Open
            }
            Openness::Draining | Openness::Closed => return,
        };
        self.publish(|snapshot| snapshot.listeners[place].openness = next);
    }

    fn publish(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = copy(&self.snapshot);
        next.generation = Generation(next.generation.0 + 1);
        change(&mut next);
        self.passive.choose(&mut next);
        self.oracle.fared.on_world(self.world.now, &next);
        self.snapshot = Arc::new(next);
        let old = self.balancer.apply(self.world.now, self.snapshot.clone(), &mut self.ops);
        assert_eq!(old.generation.0 + 1, self.snapshot.generation.0);
        self.take_ops(None, self.counts());
    }

    /// The clients whose flows have their endpoint for good.
    fn established(&self) -> Vec<SocketAddr> {
        let established = |entry: Entry| match entry.kind {
            EntryKind::Flow(flow) if flow.state == FlowState::Established => Some(flow.client),
            _ => None,
        };
        self.survey(10_000).into_iter().filter_map(established).collect()
    }

    /// All that is there, looked at so many places at a time.
    fn survey(&self, steps: u32) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut next = Some(Cursor::default());
        while let Some(cursor) = next {
            let mut visit = |entry| entries.push(entry);
            next = self.balancer.survey(self.world.now, cursor, steps, &mut visit);
        }
        entries
    }

    /// An operator looks at all flows and ends one.
    fn forget(&mut self) {
        let steps = self.rng.pick(&[1, 5, 1_000]);
        let entries = self.survey(steps);
        self.oracle.assert_shown(&entries);
        let is_flow = |entry: &&Entry| matches!(entry.kind, EntryKind::Flow(_));
        let flows: Vec<&Entry> = entries.iter().filter(is_flow).collect();
        if flows.is_empty() {
            return;
        }
        let chosen = self.rng.pick(&flows);
        let EntryKind::Flow(flow) = &chosen.kind else { return };
        self.oracle.on_forgotten(flow.client);
        let forgotten = self.balancer.forget(self.world.now, chosen.id, &mut self.ops);
        assert_eq!(forgotten, flow.state != FlowState::Closing, "{flow:?}");
        self.take_ops(None, self.counts());
    }

    fn swap_policy(&mut self) {
        let cluster = self.rng.below(self.logged.len() as u64) as usize;
        let calls = self.logged[cluster].then_some(&self.calls);
        let fresh = policy(&mut self.rng, calls);
        let on_swap = self.rng.pick(&[OnSwap::Keep, OnSwap::Revalidate, OnSwap::Flush]);
        drop(self.balancer.swap_policy(ClusterId(cluster as u16), fresh, on_swap));
        self.oracle.on_swap(cluster, on_swap);
    }

    /// Another policy is tried beside a cluster's own, or no longer. In the shadow it must make no
    /// difference to anything; as a canary it must decide in place of the other, never beside it.
    fn change_trial(&mut self) {
        let cluster = self.rng.below(self.logged.len() as u64) as usize;
        let slots = self.rng.pick(&[0, 1, CANARY_SLOTS / 2, CANARY_SLOTS]);
        let calls = (self.logged[cluster] && slots > 0).then_some(&self.calls);
        let candidate = policy(&mut self.rng, calls);
        let trial = Trial::new(candidate, Arc::new(Tally::new(5, slots)));
        let trial = self.rng.chance(700).then_some(trial);
        drop(self.balancer.set_trial(ClusterId(cluster as u16), trial));
    }

    fn assert_nothing_is_left(&mut self) {
        self.world.assert_nothing_is_left();
        let mut flows = 0;
        for (listener, stats) in
            self.snapshot.listeners.iter().zip(&self.balancer.stats().listeners)
        {
            assert_eq!(listener.flows_active.get(), 0, "flows are counted off");
            assert_eq!(listener.all_flows.active.get(), 0, "here too");
            listener.flows_per_client.as_deref().map(assert_nobody_is_counted);
            assert_eq!(stats.flows_active, 0);
            assert_eq!(stats.flows_total, stats.closes_total.iter().sum::<u64>());
            flows += stats.flows_total;
        }
        assert_eq!(flows, self.records, "one record per flow");
        let mut bound = 0;
        for state in self.snapshot.clusters.iter().flat_map(|cluster| &cluster.endpoints) {
            assert_eq!(state.endpoint.load.flows_active(), 0, "load is taken off");
            assert_eq!(state.endpoint.load.connecting(), 0, "nobody connects for ever");
            self.oracle.fared.assert_counted(&state.endpoint);
            bound += state.endpoint.load.flows_total();
        }
        assert!(bound <= self.oracle.binds);
        for (id, cluster) in self.balancer.stats().clusters.iter().enumerate() {
            let decided: u64 = cluster.decisions_total.iter().sum();
            let listener = &self.balancer.stats().listeners[id];
            let preread = self.oracle.undecided.get(&id).copied().unwrap_or(0);
            let nowhere = [CloseReason::NoEndpoint, CloseReason::EndpointsFull];
            let nowhere = nowhere.map(|reason| listener.closes_total[reason.index()]);
            let undecided = nowhere.into_iter().sum::<u64>() + preread;
            let keyless = self.oracle.keyless.get(&id).copied().unwrap_or_default();
            assert_eq!(listener.keyless_total, keyless);
            let asked = listener.flows_total + listener.connect_retries_total;
            assert_eq!(decided + undecided, asked, "every flow and every retry has a decision");
        }
        assert_eq!(self.balancer.next_timeout(), None, "nothing is left to wait for");
    }

    fn outcomes(&self) -> Vec<&'static str> {
        reached(self.balancer.stats())
    }
}

/// The named reasons that were counted.
/// That flows have been taken over.
pub(crate) const TAKEN_OVER: &str = "taken-over";

pub(crate) fn reached(stats: &Stats) -> Vec<&'static str> {
    let mut reached = Vec::new();
    for listener in &stats.listeners {
        let closes = CloseReason::ALL.map(CloseReason::label);
        let sheds = ShedReason::ALL.map(ShedReason::label);
        let drops = DropReason::ALL.map(DropReason::label);
        let keyless = KeylessReason::ALL.map(KeylessReason::label);
        let counted = listener.closes_total.iter().zip(closes);
        let counted = counted.chain(listener.sheds_total.iter().zip(sheds));
        let counted = counted.chain(listener.drops_total.iter().zip(drops));
        let counted = counted.chain(listener.keyless_total.iter().zip(keyless));
        reached.extend(counted.filter(|&(&count, _)| count > 0).map(|(_, label)| label));
        reached.extend((listener.taken_over_total > 0).then_some(TAKEN_OVER));
    }
    reached
}

fn faults(rng: &mut Rng) -> Faults {
    Faults {
        refused: rng.pick(&[0, 50, 500]),
        silent: rng.pick(&[0, 50, 300]),
        descriptors: rng.pick(&[0, 0, 30]),
        reset: rng.pick(&[0, 10, 100]),
        stall: rng.pick(&[0, 30, 200]),
        single_bytes: rng.pick(&[0, 300, 950]),
        tiny_reads: rng.pick(&[0, 0, 200, 990]),
        no_way: rng.pick(&[0, 0, 100]),
    }
}

fn policy(rng: &mut Rng, calls: Option<&CallLog>) -> Box<dyn Policy> {
    if let Some(calls) = calls {
        let client_scope = rng.pick(&[0, 500, 1_000]);
        return Box::new(Scripted {
            calls: calls.clone(),
            client_scope,
            wide: rng.pick(&[Scope::Client, Scope::Key]),
        });
    }
    match rng.below(3) {
        0 => Box::new(RoundRobin::new()),
        1 => Box::new(LeastFlows::new()),
        _ => Box::new(TablePolicy::new()),
    }
}

fn key_rule(rng: &mut Rng) -> Option<KeyRule> {
    let bytes = |offset, length| Some(KeyRule::Bytes { offset, length });
    match rng.below(6) {
        0 => bytes(0, 1),
        1 => bytes(20, 8),
        2 => bytes(90, 8),
        3 if rng.chance(300) => Some(KeyRule::SipCallId),
        _ => None,
    }
}

/// Every client may have as many flows as ever.
fn assert_nobody_is_counted(counts: &SourceCounts) {
    let networks = [[192, 0, 2], [10, 9, 0]];
    for (host, [a, b, c]) in (0..6).flat_map(|host| networks.map(|network| (host, network))) {
        let client = Ipv4Addr::new(a, b, c, host).into();
        let free = (0..3).take_while(|_| counts.try_add(client)).count();
        (0..free).for_each(|_| counts.remove(client));
        assert_eq!(free, 3, "a client's flows are counted off");
    }
}

/// Every address is a client.
const ADDRESSES: PrefixLengths = PrefixLengths { v4: 32, v6: 128 };
/// Where some clients of some listeners come from, who may not.
const DENIED: Network = Network { address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 4)), length: 31 };

/// What that means for the clients there are.
pub(crate) fn is_denied(client: SocketAddr) -> bool {
    [4, 5].map(|host| IpAddr::from([192, 0, 2, host])).contains(&client.ip())
}

pub(crate) fn first_snapshot(rng: &mut Rng, clusters: usize) -> Snapshot {
    let generation = Generation(1);
    let all_flows = AllFlows { max: rng.pick(&[u32::MAX, 6]), active: Arc::default() };
    let listener = |number: usize, rng: &mut Rng| Listener {
        name: format!("listener-{number}").into(),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 80)),
        protocol: Protocol::Tcp,
        openness: Openness::Open,
        cluster: ClusterId(number as u16),
        flows_max: rng.pick(&[4, 1_000]),
        flows_active: Arc::default(),
        sockets_open: Arc::default(),
        all_flows: all_flows.clone(),
        access: rng.chance(200).then(|| Arc::new(AccessList::new(&[], &[DENIED]))),
        client_prefix: ADDRESSES,
        connect_attempts: rng.between(1, 5) as u32,
        on_endpoint_down: rng.pick(&[OnEndpointDown::Keep, OnEndpointDown::Reset]),
        timeouts: Timeouts {
            preread: Duration::from_millis(rng.pick(&[100, 5_000])),
            connect: Duration::from_millis(rng.pick(&[100, 5_000])),
            idle: Duration::from_millis(rng.pick(&[200, 60_000])),
            half_closed: Duration::from_millis(rng.pick(&[150, 30_000])),
        },
        key: key_rule(rng),
        preread_bytes_max: rng.pick(&[10, 4_096]),
        new_flow_rate: rng.chance(100).then(|| Arc::new(SharedRate::new(20))),
        new_flow_rate_per_client: rng
            .chance(100)
            .then(|| Arc::new(SourceRates::new(5, 1, ADDRESSES, [1, 2]))),
        proxy: introduction::inbound(rng),
        flows_per_client: rng
            .chance(200)
            .then(|| Arc::new(SourceCounts::new(3, 1, ADDRESSES, [1, 2]))),
        datagrams: DatagramSettings::DEFAULT,
    };
    let cluster = |number: usize, rng: &mut Rng| {
        let limited = rng.chance(300);
        let endpoints: Box<[EndpointState]> = (0..rng.between(1, 5) as u32)
            .map(|id| {
                EndpointState::sound(Endpoint {
                    id: EndpointId(id),
                    address: (Ipv4Addr::new(10, 0, number as u8, id as u8), 80).into(),
                    weight: rng.between(1, 4) as u32,
                    flows_max: if limited { rng.pick(&[1, 2, 4]) } else { u32::MAX },
                    load: Arc::default(),
                })
            })
            .collect();
        Cluster {
            name: format!("cluster-{number}").into(),
            candidates: Arc::new(all_of(generation, &endpoints)),
            endpoints,
            footing: Footing::Sound,
            proxy: introduction::outbound(rng),
            transparent: rng.chance(250),
            trial: None,
            queue: Queue {
                flows_max: rng.pick(&[0, 1, 3, 50]),
                timeout: Duration::from_millis(rng.pick(&[50, 3_000])),
                line: Arc::new(Line::new(1)),
            },
        }
    };
    Snapshot {
        generation,
        listeners: (0..clusters).map(|number| listener(number, rng)).collect(),
        clusters: (0..clusters).map(|number| cluster(number, rng)).collect(),
        drain_until: None,
    }
}

pub(crate) fn copy(snapshot: &Snapshot) -> Snapshot {
    let listeners = snapshot.listeners.iter().map(|old| Listener {
        name: old.name.clone(),
        flows_active: old.flows_active.clone(),
        sockets_open: old.sockets_open.clone(),
        all_flows: old.all_flows.clone(),
        access: old.access.clone(),
        new_flow_rate: old.new_flow_rate.clone(),
        new_flow_rate_per_client: old.new_flow_rate_per_client.clone(),
        flows_per_client: old.flows_per_client.clone(),
        proxy: old.proxy.clone(),
        ..*old
    });
    let clusters = snapshot.clusters.iter().map(|old| Cluster {
        name: old.name.clone(),
        endpoints: old.endpoints.clone(),
        candidates: old.candidates.clone(),
        footing: old.footing,
        proxy: old.proxy,
        transparent: old.transparent,
        trial: None,
        queue: old.queue.clone(),
    });
    Snapshot {
        generation: snapshot.generation,
        listeners: listeners.collect(),
        clusters: clusters.collect(),
        drain_until: snapshot.drain_until,
    }
}
