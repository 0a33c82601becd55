//! How a new flow gets its endpoint and method: a kept decision, else the cluster's policy.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::affinity::{Affinity, Found, KeptVerdict, NewEntry};
use crate::boundary::ListenerId;
use crate::policy::{Decision, Flow, Policy, Scope, Source, Verdict};
use crate::session::{Allocation, Tried};
use crate::snapshot::{Candidates, ClusterId, Listener, Snapshot};
use crate::stats::{CloseReason, DropReason, Stats};
use crate::time::Instant;

/// A flow that wants an endpoint.
pub(crate) struct Request<'a> {
    pub(crate) now: Instant,
    pub(crate) listener: ListenerId,
    pub(crate) client: SocketAddr,
    pub(crate) tried: &'a Tried,
}

impl Request<'_> {
    fn attempt(&self) -> u32 {
        self.tried.as_slice().len() as u32
    }
}

/// Why a flow gets no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) reason: CloseReason,
    pub(crate) source: Option<Source>,
    pub(crate) policy_generation: u64,
    pub(crate) tag: u32,
}

/// One worker's policies and the decisions it keeps.
pub(crate) struct Allocator {
    /// By [`ClusterId`].
    policies: Vec<Slot>,
    affinity: Affinity,
    random: Random,
}

struct Slot {
    policy: Box<dyn Policy>,
    generation: u64,
}

impl Allocator {
    pub(crate) fn new(policies: Vec<Box<dyn Policy>>, affinity: Affinity, seed: u64) -> Self {
        let policies = policies.into_iter().map(|policy| Slot { policy, generation: 1 }).collect();
        Self { policies, affinity, random: Random(seed) }
    }

    pub(crate) fn swap(&mut self, cluster: ClusterId, policy: Box<dyn Policy>) -> Box<dyn Policy> {
        let slot = &mut self.policies[cluster.index()];
        slot.generation += 1;
        core::mem::replace(&mut slot.policy, policy)
    }

    /// Allocates a flow, and counts who decided.
    pub(crate) fn allocate(
        &mut self,
        request: &Request<'_>,
        snapshot: &Snapshot,
        stats: &mut Stats,
    ) -> Result<Allocation, Denied> {
        let listener = &snapshot.listeners[request.listener.index()];
        let among = &snapshot.clusters[listener.cluster.index()].candidates;
        let allocated = match self.find_kept(request, listener, among) {
            Some(kept) => kept,
            None if among.endpoints.is_empty() => Err(self.no_endpoint(listener.cluster)),
            None => self.decide(request, listener, among, stats),
        };
        let source = match &allocated {
            Ok(allocation) => Some(allocation.source),
            Err(denied) => denied.source,
        };
        if let Some(source) = source {
            stats.cluster(listener.cluster).decisions_total[source.index()] += 1;
        }
        stats.flow_table_entries = self.affinity.len();
        allocated
    }

    fn no_endpoint(&self, cluster: ClusterId) -> Denied {
        Denied {
            reason: CloseReason::NoEndpoint,
            source: None,
            policy_generation: self.policies[cluster.index()].generation,
            tag: 0,
        }
    }

    /// A kept decision binds only a flow that has not failed under it.
    fn find_kept(
        &mut self,
        request: &Request<'_>,
        listener: &Listener,
        among: &Candidates,
    ) -> Option<Result<Allocation, Denied>> {
        if request.attempt() > 0 {
            return None;
        }
        let Found { target, verdict, method, policy_generation } =
            self.affinity.find(request.now, listener, request.client.ip(), among)?;
        let reason = match (verdict, target) {
            (KeptVerdict::Forward(_), Some(endpoint)) => {
                let endpoint = endpoint.clone();
                let source = Source::Cache;
                return Some(Ok(Allocation { endpoint, method, source, policy_generation }));
            }
            (KeptVerdict::Forward(_), None) => return None,
            (KeptVerdict::Reset, _) => CloseReason::DeniedReset,
            (KeptVerdict::Drop, _) => CloseReason::DeniedDrop,
        };
        let source = Some(Source::Cache);
        Some(Err(Denied { reason, source, policy_generation, tag: method.tag }))
    }

    fn decide(
        &mut self,
        request: &Request<'_>,
        listener: &Listener,
        among: &Arc<Candidates>,
        stats: &mut Stats,
    ) -> Result<Allocation, Denied> {
        let flow = Flow {
            protocol: listener.protocol,
            key: None,
            client: request.client,
            local: listener.address,
            listener: request.listener,
            attempt: request.attempt(),
            tried: request.tried.as_slice(),
            now: request.now,
            random: self.random.next(),
        };
        let slot = &mut self.policies[listener.cluster.index()];
        let decided = slot.policy.decide(&flow, among);
        let (decision, policy_generation) = (decided.decision, slot.generation);
        let target = match decision.verdict {
            Verdict::Forward(index) => among.get(index),
            Verdict::Reset | Verdict::Drop => None,
        };
        if decision.scope == Scope::Client {
            let entry = NewEntry { decision: &decision, target, policy_generation };
            let kept = self.affinity.keep(request.now, listener, request.client.ip(), &entry);
            if kept.is_err() {
                stats.listener(request.listener).on_drop(DropReason::FlowTableFull);
            }
        }
        let source = decided.source;
        match target {
            Some(endpoint) => Ok(Allocation {
                endpoint: endpoint.clone(),
                method: decision.method,
                source,
                policy_generation,
            }),
            None => Err(Denied {
                reason: denial(&decision),
                source: Some(source),
                policy_generation,
                tag: decision.method.tag,
            }),
        }
    }
}

fn denial(decision: &Decision) -> CloseReason {
    match decision.verdict {
        Verdict::Reset => CloseReason::DeniedReset,
        Verdict::Drop => CloseReason::DeniedDrop,
        Verdict::Forward(_) => CloseReason::NoEndpoint,
    }
}

/// `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014): enough for choosing among endpoints, useless
/// for secrets.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}
