//! Another world takes the place of the one there was.
//!
//! Most often it says only that endpoints went up or down. After a reload it may have other listeners
//! and clusters, which keep their places for as long as anything here names them; so nothing that is
//! under way has to be looked at because of what has come beside it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::Balancer;
use crate::boundary::{ListenerId, Op, Ops};
use crate::policy::{OnSwap, Policy};
use crate::snapshot::{Cluster, ClusterId, Listener, OnEndpointDown, Openness, Snapshot};
use crate::time::Instant;

/// A policy that begins to decide with a new world.
pub struct NewPolicy {
    /// For which cluster.
    pub cluster: ClusterId,
    /// The policy.
    pub policy: Box<dyn Policy>,
    /// What becomes of decisions kept under the one before; `None` if there was none, because the
    /// cluster is new.
    pub on_swap: Option<OnSwap>,
}

impl Balancer {
    /// The control plane spoke. Returns the old world, to be dropped elsewhere.
    ///
    /// Every cluster that the new world has beyond the old one has got its policy by
    /// [`renew`](Self::renew).
    pub fn apply(&mut self, now: Instant, snapshot: Arc<Snapshot>, ops: &mut Ops) -> Arc<Snapshot> {
        let old = core::mem::replace(&mut self.snapshot, snapshot);
        self.apply_listeners(&old, ops);
        let mut listeners = self.snapshot.listeners.iter();
        let resets = listeners.any(|listener| listener.on_endpoint_down == OnEndpointDown::Reset);
        let is_served_alike = |(old, new): (&Cluster, &Cluster)| old.serves_alike(new);
        if resets && !old.clusters.iter().zip(&self.snapshot.clusters).all(is_served_alike) {
            self.sweep.next = Some(0);
        }
        self.allocator.waiting.apply(&self.snapshot);
        let (datagrams, mut turn) = self.datagrams(now, ops);
        datagrams.apply(&mut turn);
        old
    }

    /// The same with policies that begin with this world. Returns those before as well.
    pub fn renew(
        &mut self,
        now: Instant,
        snapshot: Arc<Snapshot>,
        policies: Vec<NewPolicy>,
        ops: &mut Ops,
    ) -> (Arc<Snapshot>, Vec<Box<dyn Policy>>) {
        let old = policies.into_iter().filter_map(|new| match new.on_swap {
            Some(on_swap) => Some(self.swap_policy(new.cluster, new.policy, on_swap)),
            None => {
                let (generation, old) = self.allocator.add(new.cluster, new.policy);
                self.stats.on_cluster_came(new.cluster, generation);
                old
            }
        });
        let old = old.collect();
        (self.apply(now, snapshot, ops), old)
    }

    fn apply_listeners(&mut self, old: &Snapshot, ops: &mut Ops) {
        let drain_begins = self.snapshot.drain_until.is_some() && old.drain_until.is_none();
        for (place, listener) in self.snapshot.listeners.iter().enumerate() {
            let id = ListenerId(place as u16);
            let before = old.listeners.get(place);
            if listener.is_open() && before.is_none_or(Listener::is_closed) {
                self.listeners_open += 1;
                if before.is_none_or(|before| before.name != listener.name) {
                    self.stats.on_listener_came(id);
                }
                continue;
            }
            let was_open = before.is_some_and(Listener::is_open);
            if was_open && (drain_begins || !listener.is_open()) && !listener.is_datagrams() {
                ops.push(Op::StopAccepting { listener: id });
            }
            // Flows that wait change lines.
            let is_moved = before.is_some_and(|before| before.cluster != listener.cluster);
            if is_moved || listener.is_closed() && !before.is_some_and(Listener::is_closed) {
                self.sweep.next = Some(0);
            }
        }
    }
}

impl Listener {
    /// Whether it takes new flows, as far as it goes.
    pub(crate) fn is_open(&self) -> bool {
        self.openness == Openness::Open
    }

    /// Whether nothing of it goes on.
    pub(crate) fn is_closed(&self) -> bool {
        self.openness == Openness::Closed
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::balancer::rig::{Nothing, Rig, goes_on};
    use crate::boundary::Completion;
    use crate::policy::RoundRobin;
    use crate::snapshot::Generation;
    use crate::stats::{CloseReason, ShedReason};
    use crate::testing;

    #[test]
    fn a_listener_that_is_closed_ends_its_flows_and_gives_up_its_socket_once() {
        let mut rig = Rig::new();
        assert!(goes_on(&rig.send(0, 1)));
        assert!(rig.set(0, Openness::Draining).is_empty(), "its flows' datagrams come through it");
        assert!(goes_on(&rig.send(0, 1)) && !goes_on(&rig.send(0, 2)));
        let stopped = Op::StopAccepting { listener: ListenerId(0) };
        let ops = rig.set(0, Openness::Closed);
        assert!(ops.contains(&stopped), "{ops:?}");
        assert!(!rig.set(0, Openness::Closed).contains(&stopped));
        let ended = Completion::AcceptEnded { listener: ListenerId(0) };
        rig.balancer.handle(rig.now, ended, &mut Nothing, &mut rig.ops);
        let listener = &rig.balancer.snapshot.listeners[0];
        assert_eq!((listener.sockets_open.get(), listener.flows_active.get()), (0, 0));
        let stats = &rig.balancer.stats().listeners[0];
        assert_eq!(stats.closes_total[CloseReason::DrainTimeout.index()], 1);
        assert_eq!(stats.sheds_total[ShedReason::Draining.index()], 1);
        assert!(rig.balancer.is_drained());
    }

    #[test]
    fn whoever_takes_a_listener_s_place_counts_on_if_the_name_is_the_same() {
        for (name, counted) in [("dns", 2), ("other", 1)] {
            let mut rig = Rig::new();
            rig.send(0, 1);
            rig.set(0, Openness::Closed);
            let ended = Completion::AcceptEnded { listener: ListenerId(0) };
            rig.balancer.handle(rig.now, ended, &mut Nothing, &mut rig.ops);
            let mut world = rig.world();
            world.0[0] = Listener { name: name.into(), ..testing::listener(16) };
            rig.publish(world, Vec::new());
            assert!(goes_on(&rig.send(0, 1)));
            assert_eq!(rig.balancer.stats().listeners[0].flows_total, counted, "{name}");
            assert!(!rig.balancer.is_drained());
        }
    }

    #[test]
    fn what_a_reload_brings_serves_beside_what_was_there() {
        let mut rig = Rig::new();
        let before = rig.send(0, 1);
        let mut world = rig.world();
        let more = rig.world().1.pop().expect("a cluster");
        world.1.push(Cluster { name: "more".into(), ..more });
        let listener = Listener { name: "more".into(), ..testing::listener(16) };
        world.0.push(Listener { cluster: ClusterId(1), ..listener });
        let policy = Box::new(RoundRobin::new());
        let new = NewPolicy { cluster: ClusterId(1), policy, on_swap: None };
        rig.publish(world, vec![new]);
        assert!(goes_on(&rig.send(1, 1)));
        let forwarded = |ops: Vec<Op>| {
            let forward = |op| match op {
                Op::Forward { socket, peer, .. } => Some((socket, peer)),
                _ => None,
            };
            ops.into_iter().find_map(forward)
        };
        let (before, after) = (forwarded(before), forwarded(rig.send(0, 1)));
        assert_eq!(before, after, "the flow that was there has not moved");
        let stats = rig.balancer.stats();
        assert_eq!((stats.listeners[1].flows_total, stats.clusters[1].policy_generation), (1, 1));
        assert_eq!(stats.clusters[0].policy_generation, 1);
    }

    #[test]
    fn flows_stay_with_their_cluster_when_the_listener_turns_to_another() {
        let mut rig = Rig::new();
        assert!(goes_on(&rig.send(0, 1)));
        let mut world = rig.world();
        // Its endpoints have the same numbers, and are others.
        let mut more = rig.world().1.pop().expect("a cluster");
        for state in &mut more.endpoints {
            state.endpoint.load = Arc::default();
        }
        let candidates = more.endpoints.iter().map(|state| state.endpoint.clone());
        more.candidates = Arc::new(crate::snapshot::Candidates {
            generation: Generation(2),
            endpoints: candidates.collect(),
            table: None,
        });
        world.1.push(more);
        world.0[0].cluster = ClusterId(1);
        let policy = Box::new(RoundRobin::new());
        let new = NewPolicy { cluster: ClusterId(1), policy, on_swap: None };
        rig.publish(world, vec![new]);
        assert!(goes_on(&rig.send(0, 1)) && goes_on(&rig.send(0, 2)));
        let active = |cluster: usize| {
            let endpoints = rig.balancer.snapshot.clusters[cluster].endpoints.iter();
            endpoints.map(|state| state.endpoint.load.flows_active()).sum::<u32>()
        };
        assert_eq!((active(0), active(1)), (1, 1));
    }
}
