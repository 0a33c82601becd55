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
            if listener.is_closed() && !before.is_some_and(Listener::is_closed) {
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
