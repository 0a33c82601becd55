//! The balancer.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::{Drain, Vec};

use crate::boundary::{Completion, Ops, PoolSizes};
use crate::policy::Policy;
use crate::snapshot::{ClusterId, Snapshot};
use crate::stats::{FlowRecord, Stats};
use crate::time::Instant;

/// Sizes and secrets, fixed for a worker's life.
#[derive(Debug, Clone)]
pub struct BalancerConfig {
    /// Sessions at a time.
    pub sessions_max: u32,
    /// Kept decisions at a time.
    pub flow_table_entries_max: u32,
    /// The ring's buffers.
    pub pools: PoolSizes,
    /// The secret key of the flow table's hash; random, different in every process.
    pub hash_key: [u64; 2],
    /// What the random numbers handed to policies grow from.
    pub seed: u64,
    /// Whether ended flows are recorded for the access log.
    pub record_flows: bool,
}

/// Decides what happens to every flow of one worker.
pub struct Balancer {
    snapshot: Arc<Snapshot>,
    policies: Vec<Box<dyn Policy>>,
    records: Vec<FlowRecord>,
    stats: Stats,
}

impl Balancer {
    /// Room that [`Ops`] must have before each call of [`handle`](Self::handle): the most ops one
    /// completion can lead to.
    pub const OPS_PER_COMPLETION_MAX: usize = 256;

    /// Starts with a world and one policy per cluster, by [`ClusterId`].
    #[must_use]
    pub fn new(
        config: &BalancerConfig,
        snapshot: Arc<Snapshot>,
        policies: Vec<Box<dyn Policy>>,
    ) -> Self {
        let _ = config;
        let stats = Stats::new(snapshot.listeners.len(), snapshot.clusters.len());
        Self { snapshot, policies, records: Vec::new(), stats }
    }

    /// Something happened.
    pub fn handle(&mut self, _now: Instant, _completion: Completion, _ops: &mut Ops) {}

    /// Time passed: deals with the deadlines that are over.
    pub fn handle_timeout(&mut self, _now: Instant, _ops: &mut Ops) {}

    /// The control plane spoke. Returns the old world, to be dropped elsewhere.
    pub fn apply(&mut self, _now: Instant, snapshot: Arc<Snapshot>, _ops: &mut Ops) -> Arc<Snapshot> {
        core::mem::replace(&mut self.snapshot, snapshot)
    }

    /// Exchanges a cluster's policy. Returns the old one, to be dropped elsewhere.
    pub fn swap_policy(&mut self, cluster: ClusterId, policy: Box<dyn Policy>) -> Box<dyn Policy> {
        core::mem::replace(&mut self.policies[cluster.index()], policy)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due next, if at all.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// What has been counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether a drain is over: every listener and every session has ended.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        false
    }

    /// Takes the flows that have ended since the last call; empty unless they are recorded.
    pub fn take_records(&mut self) -> Drain<'_, FlowRecord> {
        self.records.drain(..)
    }
}
