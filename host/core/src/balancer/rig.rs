//! A balancer with a small world, for unit tests.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{Balancer, BalancerConfig, NewPolicy};
use crate::boundary::{
    Buffer, Completion, DatagramSocket, Link, ListenerId, Memory, Op, Ops, Path, PoolSizes, Train,
};
use crate::policy::{Policy, RoundRobin};
use crate::snapshot::{Cluster, Generation, Listener, Openness, Snapshot};
use crate::testing;
use crate::time::Instant;

/// Nobody looks at bytes here.
pub(super) struct Nothing;

impl Memory for Nothing {
    fn bytes(&self, _: &Buffer) -> &[u8] {
        &[]
    }

    fn first_datagram(&self, _: &Train) -> &[u8] {
        &[]
    }

    fn write(&mut self, _: &[u8]) -> Option<Buffer> {
        None
    }

    fn local_address(&self, _: Link) -> Option<SocketAddr> {
        None
    }
}

pub(super) struct Rig {
    pub(super) now: Instant,
    pub(super) balancer: Balancer,
    pub(super) ops: Ops,
}

impl Rig {
    /// A listener of datagrams named `dns`, and a cluster.
    pub(super) fn new() -> Self {
        Self::in_world(testing::snapshot(16))
    }

    pub(super) fn in_world(snapshot: Snapshot) -> Self {
        let config = BalancerConfig {
            worker: 0,
            sessions_max: 1,
            datagram_flows_max: 16,
            flow_table_entries_max: 16,
            board: None,
            pools: PoolSizes { small: 4, bulk: 4 },
            hash_key: [1, 2],
            seed: 3,
            record_flows: false,
        };
        let snapshot = Arc::new(snapshot);
        snapshot.listeners[0].sockets_open.add(1);
        let policies: Vec<Box<dyn Policy>> = vec![Box::new(RoundRobin::new())];
        let balancer = Balancer::new(&config, snapshot, policies);
        let ops = Ops::with_capacity(4 * Balancer::OPS_PER_COMPLETION_MAX);
        Self { now: Instant::from_millis(1), balancer, ops }
    }

    /// The world there is, to be changed.
    pub(super) fn world(&self) -> (Vec<Listener>, Vec<Cluster>) {
        let cluster = |old: &Cluster| Cluster {
            name: old.name.clone(),
            endpoints: old.endpoints.clone(),
            candidates: Arc::clone(&old.candidates),
            footing: old.footing,
            proxy: old.proxy,
            transparent: old.transparent,
            trial: None,
            queue: old.queue.clone(),
        };
        let Snapshot { listeners, clusters, .. } = &*self.balancer.snapshot;
        (listeners.to_vec(), clusters.iter().map(cluster).collect())
    }

    pub(super) fn publish(
        &mut self,
        (listeners, clusters): (Vec<Listener>, Vec<Cluster>),
        policies: Vec<NewPolicy>,
    ) -> Vec<Op> {
        let snapshot = Snapshot {
            generation: Generation(self.balancer.snapshot.generation.0 + 1),
            listeners: listeners.into(),
            clusters: clusters.into(),
            drain_until: None,
        };
        self.balancer.renew(self.now, Arc::new(snapshot), policies, &mut self.ops);
        self.turn()
    }

    pub(super) fn turn(&mut self) -> Vec<Op> {
        self.balancer.handle_timeout(self.now, &mut self.ops);
        self.balancer.check_invariants();
        self.ops.drain().collect()
    }

    pub(super) fn send(&mut self, listener: u16, client: u16) -> Vec<Op> {
        let socket = DatagramSocket::Listener(ListenerId(listener));
        let peer = SocketAddr::from(([192, 0, 2, 1], client));
        let path = Path { peer, local: Some([192, 0, 2, 9].into()) };
        let train = Train::new(0, 8, 0);
        let completion = Completion::Datagrams { socket, path, train };
        self.balancer.handle(self.now, completion, &mut Nothing, &mut self.ops);
        self.turn()
    }

    pub(super) fn set(&mut self, place: usize, openness: Openness) -> Vec<Op> {
        let mut world = self.world();
        world.0[place].openness = openness;
        self.publish(world, Vec::new())
    }
}

/// Whether a datagram is sent on.
pub(super) fn goes_on(ops: &[Op]) -> bool {
    ops.iter().any(|op| matches!(op, Op::Forward { .. }))
}
