//! Another process goes on with all flows, or this one does after all.
//!
//! Every worker stands still and hands over what it has, while clients go on sending. Then workers of
//! another process, which starts with a world of its own, take it over; or the same workers take it
//! back. Flows keep their endpoints, their ports and all that is told of them; what waits in the
//! sockets is neither lost nor received twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::boundary::{Completion, Op, Ops, PortId};
use pointsman_core::handover::{Handed, HandedFlow, HandedTarget, TakenPort};
use pointsman_core::listing::Entry;
use pointsman_core::{
    Balancer, CloseReason, Endpoint, EndpointId, Instant, OnEndpointDown, Openness, Snapshot,
    Untaken,
};

use super::kept::Passed;
use super::model::{Flow, Model, Port, Role, Scene, Seen, Worker, coarse};
use super::net::{Net, Sockets};
use super::{Run, setup};
use crate::passive::Passive;
use crate::workload::copy;

/// What one worker has handed over.
struct Estate {
    handed: Handed,
    sockets: Sockets,
}

impl Run {
    pub(super) fn change_process(&mut self) {
        self.publish(|snapshot| {
            let listeners = snapshot.listeners.iter_mut();
            listeners.for_each(|listener| listener.openness = Openness::Open);
        });
        (0..self.workers.len()).for_each(|worker| self.turn(worker));
        (0..self.workers.len()).for_each(|worker| self.stand_still(worker));
        let estates: Vec<_> =
            (0..self.workers.len()).map(|worker| self.hand_over(worker)).collect();
        self.assert_given_back(&self.snapshot);
        let gap = Duration::from_micros(self.rng.pick(&[0, 0, 700, 40_000]));
        self.now = self.now + gap;
        let before = self.snapshot.clone();
        let is_another = self.rng.chance(700);
        if is_another {
            self.replace_workers(gap);
        }
        let taken: Vec<_> = { estates.into_iter().enumerate() }
            .map(|(worker, estate)| self.take_over(worker, estate, (gap, &before, is_another)))
            .collect();
        for (worker, seen) in taken.iter().enumerate() {
            self.check(worker, seen);
            self.perform(worker);
        }
        self.check_load();
        self.noted.clear();
    }

    /// Nothing is received any more, and all that has been is handled.
    fn stand_still(&mut self, worker: usize) {
        let seen = self.call(worker, |balancer, _, ops| balancer.begin_handing_over(ops));
        assert_eq!(seen.ops, [Op::Hold]);
        self.perform(worker);
        let mut held = 0;
        for _ in 0..10_000 {
            if self.rng.chance(300) {
                self.send();
            }
            let count = self.rng.between(1, 8);
            for completion in self.workers[worker].1.collect(self.now, count) {
                match completion {
                    Completion::Held => {
                        self.on_held(worker);
                        held += 1;
                    }
                    other => self.handle(worker, other),
                }
            }
            self.pass_over(worker);
            if held == 2 {
                return;
            }
        }
        panic!("it never stands still");
    }

    /// Time has nothing to say to flows that are about to leave.
    fn pass_over(&mut self, worker: usize) {
        let now = self.now;
        let seen = self.call(worker, |balancer, _, ops| balancer.handle_timeout(now, ops));
        seen.assert_explained();
        self.perform(worker);
    }

    fn on_held(&mut self, worker: usize) {
        let now = self.now;
        let mut seen = self.call(worker, |balancer, net, ops| {
            balancer.handle(now, Completion::Held, net, ops);
        });
        seen.ops.retain(|op| *op != Op::Hold);
        seen.assert_explained();
    }

    fn hand_over(&mut self, worker: usize) -> Estate {
        let scene = Scene { now: self.now, worker, snapshot: &self.snapshot.clone() };
        let handed = self.give_all(&scene);
        self.model.on_handed_over(&scene, &handed);
        let sockets = self.workers[worker].1.give(&handed.ports);
        self.perform(worker);
        assert_eq!(self.flows_of(worker), 0, "it has no flow left");
        assert!(!self.workers[worker].0.is_drained(), "it may get them back");
        Estate { handed, sockets }
    }

    fn flows_of(&self, worker: usize) -> u64 {
        let listeners = &self.workers[worker].0.stats().listeners;
        listeners.iter().map(|stats| stats.flows_active).sum()
    }

    /// A worker gives away what it has, a slice in each turn.
    fn give_all(&mut self, scene: &Scene<'_>) -> Handed {
        let steps = self.rng.pick(&[1, 5, 40, 10_000]);
        for _ in 0..10_000 {
            let (mut given, before) = (None, self.flows_of(scene.worker));
            let mut seen = self.call(scene.worker, |balancer, _, ops| {
                given = balancer.hand_over(scene.now, steps, ops);
            });
            while !seen.records.is_empty() {
                assert_eq!(self.model.end(scene, &mut seen).0, CloseReason::Descriptors);
            }
            let gone = before - self.flows_of(scene.worker);
            assert!(gone <= steps.into(), "a slice is bounded");
            let last = seen.ops.pop_back();
            seen.assert_explained();
            if let Some(handed) = given {
                assert_eq!(last, Some(Op::Resume));
                return handed;
            }
            assert_eq!(last, None, "it holds until all is given");
            let due = self.workers[scene.worker].0.next_timeout();
            assert!(due.is_some_and(|due| due <= scene.now), "the next slice waits for nothing");
            if self.rng.chance(300) {
                self.send();
            }
            self.pass_over(scene.worker);
        }
        panic!("it never gives away all");
    }

    /// Another process has started, with its own view of the world; the one before ends.
    fn replace_workers(&mut self, gap: Duration) {
        let mut next = setup::afresh(&mut self.rng, &self.snapshot, &self.model);
        self.passive = Passive::new(&mut self.rng, next.clusters.len());
        self.passive.choose(&mut next);
        let before = std::mem::replace(&mut self.snapshot, Arc::new(next));
        self.endpoints += setup::RENUMBERED_BY;
        let after = self.fresh_workers();
        let old = std::mem::replace(&mut self.workers, after);
        old.into_iter().for_each(|(balancer, net)| end(self.now, &before, balancer, net));
        self.model.start_afresh(self.now, &before, &self.snapshot, gap);
    }

    fn take_over(
        &mut self,
        worker: usize,
        Estate { handed, sockets }: Estate,
        (gap, before, is_another): (Duration, &Snapshot, bool),
    ) -> Seen {
        let scene = Scene { now: self.now, worker, snapshot: &self.snapshot.clone() };
        let mut outcome = Default::default();
        let seen = self.call(worker, |balancer, _, ops| {
            outcome = balancer.take_over(scene.now, &handed, ops);
        });
        let (taken, ports) = outcome;
        let numbers: BTreeMap<PortId, PortId> =
            ports.iter().map(|port| (handed.ports[port.place].port, port.port)).collect();
        if is_another {
            self.model.shelf.come(worker);
        } else {
            let renamed = |cluster, id| renamed((before, before), cluster, id);
            let passed = Passed { now: scene.now, gap, renamed: &renamed };
            assert_eq!(taken.kept, self.model.shelf.come_back(worker, &passed));
        }
        let untaken = self.model.on_taken_over(&scene, (&handed, &numbers), (gap, is_another));
        assert_eq!(taken.untaken, untaken, "each flow has its answer");
        assert_eq!(taken.flows as usize, self.model.workers[worker].flows.len());
        if !is_another {
            let shown = super::survey(&self.workers[worker].0, self.now, 10_000);
            self.model.recognise_gone(&scene, &shown);
            self.model.obscure(&scene);
        }
        self.workers[worker].1.take(sockets, &ports);
        seen
    }

    /// Whatever was counted off against limits and loads has been given back.
    pub(super) fn assert_given_back(&self, snapshot: &Snapshot) {
        for listener in &snapshot.listeners {
            assert_eq!(listener.flows_active.get(), 0, "flows are counted off");
            assert_eq!(listener.all_flows.active.get(), 0, "flows are counted off");
            let Some(counts) = &listener.flows_per_client else { continue };
            let max = setup::per_client_max(counts);
            for client in setup::CLIENTS {
                let free = (0..max).take_while(|_| counts.try_add(client.ip())).count();
                (0..free).for_each(|_| counts.remove(client.ip()));
                assert_eq!(free, max as usize, "a client's flows are counted off");
            }
        }
        for state in snapshot.clusters.iter().flat_map(|cluster| &cluster.endpoints) {
            assert_eq!(state.endpoint.load.flows_active(), 0, "an endpoint's load is given back");
        }
    }
}

/// A worker that has handed everything over ends when it is told to, and nothing of it is left.
fn end(now: Instant, snapshot: &Snapshot, mut balancer: Balancer, mut net: Net) {
    let mut ops = Ops::with_capacity(4 * Balancer::OPS_PER_COMPLETION_MAX);
    let mut world = copy(snapshot);
    world.drain_until = Some(now);
    drop(balancer.apply(now, Arc::new(world), &mut ops));
    for turn in 0..10_000_u64 {
        if balancer.is_drained() {
            net.assert_nothing_is_held();
            let stats = balancer.stats();
            assert!(stats.listeners.iter().all(super::all_are_accounted_for));
            return;
        }
        let now = now + Duration::from_millis(turn);
        for completion in net.collect(now, 8) {
            balancer.handle(now, completion, &mut net, &mut ops);
        }
        balancer.handle_timeout(now, &mut ops);
        ops.drain().for_each(|op| net.perform(now, op));
        balancer.check_invariants();
    }
    panic!("the process before never ends");
}

impl Model {
    /// What was handed over is what there was, in the right order.
    fn on_handed_over(&mut self, scene: &Scene<'_>, handed: &Handed) {
        let worker = self.worker(scene);
        worker.ports.retain(|_, port| !port.failed);
        assert_eq!(handed.flows.len(), worker.flows.len(), "all flows go over");
        let replied = |flow: &HandedFlow| flow.datagrams[0] > 0;
        assert!(handed.flows.is_sorted_by_key(|flow| !replied(flow)), "those with replies first");
        for told in &handed.flows {
            let flow = worker.flows.iter_mut().find(|flow| flow.is_told_by(told));
            let flow = flow.expect("a flow that is told of is there");
            flow.assert_told(scene, told);
            if let HandedTarget::Endpoint { port, .. } = told.target {
                assert_eq!(flow.port.unwrap_or(port), port, "it names its port");
                flow.port = Some(port);
            }
        }
        for (listener, stats) in worker.stats.iter_mut().enumerate() {
            let flows = worker.flows.iter().filter(|flow| flow.listener == listener).count();
            stats.flows_active -= flows as u64;
            stats.handed_over_total += flows as u64;
        }
    }

    /// What only the process before knew is gone.
    fn start_afresh(&mut self, now: Instant, before: &Snapshot, after: &Snapshot, gap: Duration) {
        for worker in &mut self.workers {
            let flows = std::mem::take(&mut worker.flows);
            *worker = Worker { flows, ..Worker::new(after.listeners.len()) };
        }
        self.fared.clear();
        self.rates.fill(Instant::ZERO);
        self.own_rates.clear();
        let renamed = |cluster, id| renamed((before, after), cluster, id);
        self.shelf.start_afresh(&Passed { now, gap, renamed: &renamed });
    }

    /// Flows go on under other numbers. Tells for which reasons how many do not.
    fn on_taken_over(
        &mut self,
        scene: &Scene<'_>,
        (handed, numbers): (&Handed, &BTreeMap<PortId, PortId>),
        (gap, is_another): (Duration, bool),
    ) -> [u32; Untaken::ALL.len()] {
        let mut untaken = [0; Untaken::ALL.len()];
        let worker = self.worker(scene);
        worker.rename_ports(handed, numbers);
        for mut flow in std::mem::take(&mut worker.flows) {
            let told = handed.flows.iter().find(|told| flow.is_told_by(told));
            flow.move_on(scene, told.expect("it was told of"), gap);
            let outcome = flow.settle(scene, is_another);
            let Err(reason) = outcome else {
                flow.port = flow.port.map(|port| numbers[&port]);
                worker.flows.push(flow);
                continue;
            };
            untaken[reason.index()] += 1;
        }
        for flow in &worker.flows {
            worker.stats[flow.listener].flows_active += 1;
            worker.stats[flow.listener].taken_over_total += 1;
        }
        let flows = worker.flows.clone();
        flows.iter().for_each(|flow| self.use_key(scene, flow));
        untaken
    }

    /// Several endpoints that are gone may have stood at one address, which is all that is told of a
    /// flow's: it comes back to any of them.
    fn recognise_gone(&mut self, scene: &Scene<'_>, shown: &[Entry]) {
        for flow in &mut self.worker(scene).flows {
            let Ok((_, address)) = flow.target else { continue };
            if configured(scene.snapshot, flow.listener, address).is_some() {
                continue;
            }
            let entry = shown.iter().find(|entry| flow.is_in(entry));
            let id =
                entry.and_then(|entry| entry.endpoint).expect("a flow that came back is shown");
            let is_gone = scene.snapshot.clusters[flow.listener].endpoint(id).is_none();
            assert!(is_gone, "it is no other endpoint's: {flow:?}");
            flow.target = Ok((id, address));
        }
    }

    /// Ports that come back have been left in an order that only the balancer knows.
    fn obscure(&mut self, scene: &Scene<'_>) {
        let rests = &mut self.worker(scene).rests;
        for (listener, cluster) in scene.snapshot.clusters.iter().enumerate() {
            let ids = cluster.endpoints.iter().map(|state| state.endpoint.id);
            ids.for_each(|id| rests.obscure((listener, id)));
        }
    }
}

impl Worker {
    fn rename_ports(&mut self, handed: &Handed, numbers: &BTreeMap<PortId, PortId>) {
        let went = handed.ports.iter().map(|port| {
            let flows = handed.flows.iter();
            let mut addresses = flows.filter_map(|flow| match flow.target {
                HandedTarget::Endpoint { address, port: own, .. } if own == port.port => {
                    Some(address)
                }
                _ => None,
            });
            let role = if port.connected { Role::Owned } else { Role::Shared };
            let is_v4 = addresses.next().expect("a port that goes over has a flow").is_ipv4();
            let listener = port.listener.index();
            let from = self.ports.get(&port.port).and_then(|port| port.from);
            (port.port, Port { listener, role, from, is_v4, failed: false, closing: false })
        });
        let went: Vec<_> = went.collect();
        for (number, port) in &went {
            if let Some(known) = self.ports.remove(number) {
                assert_eq!((known.role, known.is_v4), (port.role, port.is_v4));
                self.rests.on_closed(*number);
            }
        }
        for (number, port) in went {
            let Some(number) = numbers.get(&number) else { continue };
            assert!(self.ports.insert(*number, port).is_none(), "the number is free");
        }
    }
}

impl Flow {
    fn is_told_by(&self, told: &HandedFlow) -> bool {
        self.listener == told.listener.index()
            && (self.client, self.local) == (told.client, told.local)
            && self.method.tag == told.method.tag
            && self.hidden == told.hidden
    }

    fn assert_told(&self, scene: &Scene<'_>, told: &HandedFlow) {
        let key = self.key.filter(|_| self.target.is_ok());
        assert_eq!((told.method, told.keys), (self.method, [key, None]), "{self:?}");
        assert_eq!((told.bytes, told.datagrams.map(u64::from)), (self.bytes, self.datagrams));
        assert!(!told.resent || self.resent, "{self:?}");
        let times = [self.started, self.active].map(|time| scene.now.since(coarse(time)));
        assert_eq!([told.age, told.silent], times, "{self:?}");
        match (self.target, told.target) {
            (Ok((_, expected)), HandedTarget::Endpoint { cluster, address, .. }) => {
                assert_eq!((cluster.index(), address), (self.listener, expected));
            }
            (Err(reason), HandedTarget::Denied { reset, .. }) => {
                assert_eq!(reset, reason == CloseReason::DeniedReset);
            }
            _ => panic!("{self:?} is told of as {told:?}"),
        }
    }

    /// Its times are those it was told of by.
    fn move_on(&mut self, scene: &Scene<'_>, told: &HandedFlow, gap: Duration) {
        let again = |ago: Duration| {
            let millis = (scene.now - ago).as_nanos().div_ceil(16_000_000) * 16;
            Instant::from_millis(millis - 1)
        };
        (self.started, self.active) = (again(told.age), again(told.silent));
        self.paces = [scene.now; 2];
        self.timer = match self.target {
            Ok(_) => coarse(self.active) + scene.timeout(self),
            Err(_) => {
                let due = Instant::from_millis(self.timer.as_nanos().div_ceil(1_000_000));
                due.max(scene.now - gap) + gap
            }
        };
    }

    /// Whether it goes on, and with which of the endpoints that there are now.
    fn settle(&mut self, scene: &Scene<'_>, is_another: bool) -> Result<(), Untaken> {
        let Ok((id, address)) = self.target else { return Ok(()) };
        let known = configured(scene.snapshot, self.listener, address);
        let id = match known {
            Some(endpoint) => endpoint.id,
            None if is_another => return Err(Untaken::Endpoint),
            None => id,
        };
        let ends = scene.listener(self.listener).on_endpoint_down == OnEndpointDown::Drop;
        if ends && !scene.serves(self.listener, id) {
            return Err(Untaken::EndpointDown);
        }
        self.target = Ok((id, address));
        Ok(())
    }
}

/// The endpoint of another world that has the address of this one.
fn renamed(
    (before, after): (&Snapshot, &Snapshot),
    cluster: u16,
    id: EndpointId,
) -> Option<EndpointId> {
    let cluster = usize::from(cluster);
    let state = before.clusters[cluster].endpoint(id)?;
    Some(configured(after, cluster, state.endpoint.address)?.id)
}

fn configured(
    snapshot: &Snapshot,
    cluster: usize,
    address: std::net::SocketAddr,
) -> Option<&Endpoint> {
    let endpoints = snapshot.clusters[cluster].endpoints.iter().map(|state| &state.endpoint);
    endpoints.into_iter().find(|endpoint| endpoint.address == address)
}

/// A port that was handed over, as it is here.
pub(super) fn renumbered(ports: &[TakenPort], place: usize) -> Option<&TakenPort> {
    ports.iter().find(|port| port.place == place)
}
