//! How a new flow gets its endpoint and method: a kept decision, else the cluster's policy.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::affinity::{Affinity, AffinityKey, Found, KeptVerdict, NewEntry};
use crate::boundary::ListenerId;
use crate::handover::{HandedDecision, HandedVerdict};
use crate::policy::{
    Decided, Decision, EndedFlow, EndpointIndex, Flow, Method, OnSwap, Policy, Scope, Source, TICK,
    Verdict,
};
use crate::queue::Waiting;
use crate::recent::{FlowFacts, RecentFlows};
use crate::session::{Allocation, Tried};
use crate::snapshot::{Candidates, Cluster, ClusterId, Endpoint, EndpointId, Listener, Snapshot};
use crate::stats::{CloseReason, DropReason, Stats};
use crate::time::Instant;
use crate::trial::{Trial, Views};

/// A flow that wants an endpoint.
pub(crate) struct Request<'a> {
    pub(crate) now: Instant,
    pub(crate) listener: ListenerId,
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
    /// The hash of its application key.
    pub(crate) key: Option<u64>,
    pub(crate) tried: &'a Tried,
    /// Whether it has waited for a place, and its turn has come.
    pub(crate) in_turn: bool,
}

impl<'a> Request<'a> {
    fn attempt(&self) -> u32 {
        self.tried.as_slice().len() as u32
    }

    fn flow(&self, listener: &Listener, random: u64) -> Flow<'a> {
        Flow {
            protocol: listener.protocol,
            client: self.client,
            local: self.local,
            listener: self.listener,
            key: self.key,
            attempt: self.attempt(),
            tried: self.tried.as_slice(),
            now: self.now,
            random,
        }
    }

    /// Whether no endpoint has a place for it, or only such that others wait for. A flow that has had
    /// a place, at an endpoint that failed it, does not queue behind others if there is one.
    fn finds_no_place(&self, cluster: &Cluster) -> bool {
        let is_new = self.attempt() == 0 && !self.in_turn;
        let among = &cluster.candidates;
        let is_last = is_new && cluster.queue.is_awaited();
        !among.is_empty() && (is_last || among.endpoints.iter().all(Endpoint::is_full))
    }

    /// What a decision of this scope is kept under, if it is kept beyond this flow.
    fn affinity_key(&self, listener: &Listener, scope: Scope) -> Option<AffinityKey> {
        match scope {
            Scope::Flow | Scope::None => None,
            Scope::Key => self.key.map(|key| AffinityKey::of_key(key, listener.cluster)),
            Scope::Client => {
                let (client, prefix) = (self.client.ip(), listener.client_prefix);
                Some(AffinityKey::of_client(client, prefix, listener.cluster))
            }
        }
    }
}

/// Why a flow gets no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) reason: CloseReason,
    pub(crate) source: Option<Source>,
    pub(crate) policy_generation: u64,
    pub(crate) tag: u32,
    /// How long the answer holds; zero if the policy does not say.
    pub(crate) ttl: Duration,
    /// For whom.
    pub(crate) scope: Scope,
}

/// One worker's policies, the decisions it keeps, and its flows that wait for a place.
///
/// A flow that it allocates has its place at the endpoint; whoever binds it gives that back by
/// [`leave`](Self::leave), once.
pub(crate) struct Allocator {
    /// By [`ClusterId`].
    policies: Vec<Slot>,
    affinity: Affinity,
    pub(crate) waiting: Waiting,
    random: Random,
    /// When policies are told next that time has passed, if any wants to hear of it.
    tick_at: Option<Instant>,
}

/// A cluster's policy.
struct Slot {
    policy: Box<dyn Policy>,
    generation: u64,
    /// Another one that is tried beside it.
    trial: Option<Trial>,
    recent: RecentFlows,
}

impl Slot {
    fn new(policy: Box<dyn Policy>) -> Self {
        Self { policy, generation: 1, trial: None, recent: RecentFlows::new() }
    }

    /// Asks the policy that the flow is for, and lets one in the shadow say its part.
    fn decide(&mut self, flow: &Flow<'_>, cluster: &Cluster) -> Decided {
        let views = Views::of(cluster);
        let Some(trial) = &mut self.trial else { return self.policy.decide(flow, views.live) };
        if let Some(decided) = trial.decide_as_canary(flow, views.trial) {
            return decided;
        }
        let decided = self.policy.decide(flow, views.live);
        trial.compare(flow, &decided, views);
        decided
    }

    /// The same for a flow of which nothing will be kept; a shadow is spared it.
    fn decide_statelessly(&mut self, flow: &Flow<'_>, cluster: &Cluster) -> Decided {
        let views = Views::of(cluster);
        let trial = self.trial.as_mut();
        let of_canary = trial.and_then(|trial| trial.decide_as_canary(flow, views.trial));
        of_canary.unwrap_or_else(|| self.policy.decide(flow, views.live))
    }

    /// Whether whoever decides can be followed without a flow: a canary has a say in that.
    fn is_stateless(&self) -> bool {
        self.policy.is_stateless() && self.trial.as_ref().is_none_or(Trial::lets_be_stateless)
    }

    fn wants_ticks(&mut self) -> bool {
        let of_trial = self.trial.as_mut().is_some_and(|trial| trial.policy().wants_ticks());
        of_trial || self.policy.wants_ticks()
    }
}

impl Allocator {
    pub(crate) fn new(
        policies: Vec<Box<dyn Policy>>,
        affinity: Affinity,
        waiting: Waiting,
        seed: u64,
    ) -> Self {
        let policies = policies.into_iter().map(Slot::new).collect();
        let random = Random::new(seed);
        let mut allocator = Self { policies, affinity, waiting, random, tick_at: None };
        allocator.plan_ticks();
        allocator
    }

    /// The decisions that are kept.
    pub(crate) fn kept(&self) -> &Affinity {
        &self.affinity
    }

    /// Gives up a kept decision; tells whether it was there.
    pub(crate) fn forget(&mut self, now: Instant, place: usize, stamp: u32) -> bool {
        self.affinity.forget(now, place, stamp)
    }

    /// Tells of the decisions in some places that another process can go on to keep; see
    /// [`Affinity::hand_over`].
    pub(crate) fn hand_over(
        &self,
        now: Instant,
        walk: (&mut usize, &mut u32),
        snapshot: &Snapshot,
    ) -> impl Iterator<Item = HandedDecision> {
        self.affinity.hand_over(now, walk, |cluster, id| {
            let state = snapshot.clusters.get(cluster.index())?.endpoint(id)?;
            Some(state.endpoint.address)
        })
    }

    /// Keeps a decision that another process has kept, if it means something here and nothing is kept for
    /// the same flows; `find` tells which endpoint of a cluster is at an address. Tells whether it does.
    pub(crate) fn take_over(
        &mut self,
        now: Instant,
        handed: &HandedDecision,
        find: impl Fn(ClusterId, SocketAddr) -> Option<EndpointId>,
    ) -> bool {
        if handed.cluster.index() >= self.policies.len() {
            return false;
        }
        let verdict = match handed.verdict {
            HandedVerdict::Reset => KeptVerdict::Reset,
            HandedVerdict::Drop => KeptVerdict::Drop,
            HandedVerdict::Forward(address) => match find(handed.cluster, address) {
                Some(endpoint) => KeptVerdict::Forward(endpoint),
                None => return false,
            },
        };
        let newest = self.generation(handed.cluster);
        let policy_generation = u64::from(handed.policy_generation).min(newest) as u32;
        let handed = HandedDecision { policy_generation, ..*handed };
        self.affinity.take_over(now, &handed, verdict)
    }

    /// Exchanges a cluster's policy.
    pub(crate) fn swap(
        &mut self,
        cluster: ClusterId,
        policy: Box<dyn Policy>,
        on_swap: OnSwap,
    ) -> Box<dyn Policy> {
        let slot = &mut self.policies[cluster.index()];
        slot.generation += 1;
        let old = core::mem::replace(&mut slot.policy, policy);
        self.affinity.on_swap(cluster, slot.generation, on_swap);
        self.plan_ticks();
        old
    }

    /// A cluster has come, into a place that is new or was another's: nothing that is kept for who was
    /// there holds. Tells which of the place's policies this one is, and the one before.
    pub(crate) fn add(
        &mut self,
        cluster: ClusterId,
        policy: Box<dyn Policy>,
    ) -> (u64, Option<Box<dyn Policy>>) {
        if cluster.index() < self.policies.len() {
            let old = self.swap(cluster, policy, OnSwap::Flush);
            self.policies[cluster.index()].recent = RecentFlows::new();
            return (self.policies[cluster.index()].generation, Some(old));
        }
        self.policies.push(Slot::new(policy));
        self.plan_ticks();
        (1, None)
    }

    /// Which of a cluster's policies decides now.
    pub(crate) fn generation(&self, cluster: ClusterId) -> u64 {
        self.policies[cluster.index()].generation
    }

    /// Puts a policy on trial, or ends a trial.
    pub(crate) fn set_trial(&mut self, cluster: ClusterId, trial: Option<Trial>) -> Option<Trial> {
        let old = core::mem::replace(&mut self.policies[cluster.index()].trial, trial);
        self.plan_ticks();
        old
    }

    /// What a cluster's policy would hand over to its successor.
    pub(crate) fn state(&mut self, cluster: ClusterId) -> Option<Vec<u8>> {
        self.policies[cluster.index()].policy.state()
    }

    /// The flows that a cluster's policy was asked about lately.
    pub(crate) fn recent(&self, cluster: ClusterId) -> &[FlowFacts] {
        self.policies[cluster.index()].recent.all()
    }

    /// When [`tick`](Self::tick) is due next, if at all.
    pub(crate) fn next_tick(&self) -> Option<Instant> {
        self.tick_at
    }

    /// Tells policies that time has passed, if it is time for that.
    pub(crate) fn tick(&mut self, now: Instant, snapshot: &Snapshot) {
        if self.tick_at.is_none_or(|at| at > now) {
            return;
        }
        for (slot, cluster) in self.policies.iter_mut().zip(&snapshot.clusters) {
            slot.policy.tick(now, &cluster.candidates);
            if let Some(trial) = &mut slot.trial {
                trial.policy().tick(now, cluster.trial.as_ref().unwrap_or(&cluster.candidates));
            }
        }
        self.tick_at = Some(now + TICK);
    }

    /// An id for a flow that no other flow has, for all that chance can do.
    pub(crate) fn unique_id(&mut self) -> u128 {
        u128::from(self.random.next()) << 64 | u128::from(self.random.next())
    }

    fn plan_ticks(&mut self) {
        let wanted = self.policies.iter_mut().any(Slot::wants_ticks);
        self.tick_at = wanted.then(|| self.tick_at.unwrap_or(Instant::ZERO));
    }

    /// A flow gives back its place at an endpoint.
    pub(crate) fn leave(
        &mut self,
        snapshot: &Snapshot,
        (cluster, endpoint): (ClusterId, &Endpoint),
    ) {
        endpoint.load.on_flow_ended();
        if endpoint.is_limited() {
            self.waiting.on_place_free(cluster, &snapshot.clusters[cluster.index()].queue);
        }
    }

    /// A flow has left its endpoint for good.
    pub(crate) fn on_flow_ended(&mut self, cluster: ClusterId, ended: &EndedFlow) {
        let slot = &mut self.policies[cluster.index()];
        slot.policy.on_flow_ended(ended);
        if let Some(trial) = &mut slot.trial {
            trial.policy().on_flow_ended(ended);
        }
    }

    /// Allocates a flow, which then has its place, and counts who decided. Nobody is asked about a
    /// flow that no endpoint has a place for, or that others wait before.
    pub(crate) fn allocate(
        &mut self,
        request: &Request<'_>,
        snapshot: &Snapshot,
        stats: &mut Stats,
    ) -> Result<Allocation, Denied> {
        let listener = snapshot.listener(request.listener);
        let cluster = &snapshot.clusters[listener.cluster.index()];
        if request.finds_no_place(cluster) {
            return Err(self.nowhere(listener.cluster, CloseReason::EndpointsFull));
        }
        let among = (listener, cluster);
        let allocated = match self.find_kept(request, listener, &cluster.candidates) {
            KeptFor::Flow(Ok(kept)) if !kept.endpoint.try_start() => {
                stats.cluster(listener.cluster).overflows_total += 1;
                self.decide(request, among, (None, false), stats)
            }
            KeptFor::Flow(kept) => kept,
            _ if cluster.candidates.is_empty() => {
                Err(self.nowhere(listener.cluster, CloseReason::NoEndpoint))
            }
            KeptFor::Asking(endpoint) => {
                self.decide(request, among, (Some(&endpoint), true), stats)
            }
            KeptFor::Nobody => self.decide(request, among, (None, true), stats),
        };
        let source = match &allocated {
            Ok(allocation) => Some(allocation.source),
            Err(denied) => denied.source,
        };
        if let Some(source) = source {
            stats.cluster(listener.cluster).decisions_total[source.index()] += 1;
        }
        allocated
    }

    fn nowhere(&self, cluster: ClusterId, reason: CloseReason) -> Denied {
        Denied {
            reason,
            source: None,
            policy_generation: self.policies[cluster.index()].generation,
            tag: 0,
            ttl: Duration::ZERO,
            scope: Scope::Flow,
        }
    }

    /// A kept decision binds only a flow that has not failed under it.
    fn find_kept(
        &mut self,
        request: &Request<'_>,
        listener: &Listener,
        among: &Candidates,
    ) -> KeptFor {
        if request.attempt() > 0 || self.affinity.is_empty() {
            return KeptFor::Nobody;
        }
        let keys = [Scope::Key, Scope::Client].map(|scope| request.affinity_key(listener, scope));
        let found = keys
            .into_iter()
            .flatten()
            .find_map(|key| self.affinity.find(request.now, key, among).map(|found| (key, found)));
        let Some((key, found)) = found else { return KeptFor::Nobody };
        let Found { target, verdict, method, policy_generation, expires, is_stale } = found;
        if is_stale {
            self.affinity.give_up(&key);
            return target.cloned().map_or(KeptFor::Nobody, KeptFor::Asking);
        }
        let reason = match (verdict, target) {
            (KeptVerdict::Forward(_), Some(endpoint)) => {
                let (endpoint, source, scope) = (endpoint.clone(), Source::Cache, Scope::Flow);
                let allocation = Allocation {
                    cluster: listener.cluster,
                    endpoint,
                    method,
                    scope,
                    source,
                    policy_generation,
                    keeps_when_answered: false,
                };
                return KeptFor::Flow(Ok(allocation));
            }
            (KeptVerdict::Forward(_), None) => return KeptFor::Nobody,
            (KeptVerdict::Reset, _) => CloseReason::DeniedReset,
            (KeptVerdict::Drop, _) => CloseReason::DeniedDrop,
        };
        let (source, tag, ttl) = (Some(Source::Cache), method.tag, expires.since(request.now));
        let scope = Scope::Flow;
        KeptFor::Flow(Err(Denied { reason, source, policy_generation, tag, ttl, scope }))
    }

    /// Asks the policy. A flow that is to stay `with` an endpoint does, if it is forwarded at all, and
    /// if there is a place for it. The answer is kept if it `may_be` and is what is done.
    fn decide(
        &mut self,
        request: &Request<'_>,
        (listener, cluster): (&Listener, &Cluster),
        (with, may_be_kept): (Option<&Endpoint>, bool),
        stats: &mut Stats,
    ) -> Result<Allocation, Denied> {
        let flow = request.flow(listener, self.random.next());
        let slot = &mut self.policies[listener.cluster.index()];
        slot.recent.note(&flow);
        let decided = slot.decide(&flow, cluster);
        let (decision, policy_generation) = (decided.decision, slot.generation);
        let wanted = match decision.verdict {
            Verdict::Forward(index) => with.or_else(|| cluster.candidates.get(index)),
            Verdict::Reset | Verdict::Drop => None,
        };
        let target = wanted.and_then(|wanted| place(&flow, wanted, &cluster.candidates));
        let is_obeyed = wanted.map(|wanted| wanted.id) == target.map(|target| target.id);
        if wanted.is_some() && target.is_none() {
            return Err(self.nowhere(listener.cluster, CloseReason::EndpointsFull));
        }
        stats.cluster(listener.cluster).overflows_total += u64::from(!is_obeyed);
        // Whoever sends a datagram names a key at no cost, and native policies keep one for any.
        let is_free = decided.source != Source::Plugin && decision.scope == Scope::Key;
        let keeps_when_answered =
            is_free && listener.is_datagrams() && self.affinity.is_half_full();
        if let Some(key) = request.affinity_key(listener, decision.scope)
            && !keeps_when_answered
            && may_be_kept
            && is_obeyed
        {
            let ttl = if decision.ttl.is_zero() { listener.timeouts.idle } else { decision.ttl };
            let endpoint = target.map(|endpoint| endpoint.id);
            let entry = NewEntry { decision: &decision, target: endpoint, ttl, policy_generation };
            if self.affinity.keep(request.now, key, &entry).is_err() {
                stats.listener(request.listener).on_drops(DropReason::FlowTableFull, 1);
            }
        }
        let source = decided.source;
        match target {
            Some(endpoint) => Ok(Allocation {
                cluster: listener.cluster,
                endpoint: endpoint.clone(),
                method: decision.method,
                scope: decision.scope,
                source,
                policy_generation,
                keeps_when_answered: keeps_when_answered && may_be_kept && is_obeyed,
            }),
            None => Err(Denied {
                reason: denial(&decision),
                source: Some(source),
                policy_generation,
                tag: decision.method.tag,
                ttl: decision.ttl,
                scope: decision.scope,
            }),
        }
    }

    /// A flow that goes on uses what is kept for its application key, and will for `lasting`.
    pub(crate) fn use_key(
        &mut self,
        (now, lasting): (Instant, Duration),
        cluster: ClusterId,
        key: u64,
    ) {
        let key = AffinityKey::of_key(key, cluster);
        self.affinity.on_used(now, &key, now + lasting);
    }

    /// Keeps an endpoint for the flows of an application key for `lasting`, and longer with each that
    /// comes if it is `sliding`, whatever the policy says of scopes. Tells whether there was room.
    pub(crate) fn keep_key(
        &mut self,
        (now, lasting, sliding): (Instant, Duration, bool),
        cluster: ClusterId,
        (key, method): (u64, Method),
        (endpoint, policy_generation): (EndpointId, u64),
    ) -> bool {
        let decision = Decision { sliding, method, ..Decision::forward(EndpointIndex(0)) };
        let key = AffinityKey::of_key(key, cluster);
        let target = Some(endpoint);
        let entry = NewEntry { decision: &decision, target, ttl: lasting, policy_generation };
        self.affinity.keep(now, key, &entry).is_ok()
    }

    /// Whether a cluster's policy can be followed without a flow.
    pub(crate) fn is_stateless(&self, cluster: ClusterId) -> bool {
        self.policies[cluster.index()].is_stateless()
    }

    /// The endpoint that a stateless policy names for a flow of which nothing will be kept.
    pub(crate) fn decide_statelessly(
        &mut self,
        request: &Request<'_>,
        snapshot: &Snapshot,
    ) -> Option<SocketAddr> {
        let listener = snapshot.listener(request.listener);
        let cluster = &snapshot.clusters[listener.cluster.index()];
        let among = &cluster.candidates;
        let slot = &mut self.policies[listener.cluster.index()];
        if among.is_empty() || !slot.is_stateless() {
            return None;
        }
        let flow = request.flow(listener, 0);
        match slot.decide_statelessly(&flow, cluster).decision.verdict {
            Verdict::Forward(index) => {
                let endpoint = among.get(index).filter(|endpoint| !endpoint.is_full());
                endpoint.map(|endpoint| endpoint.address)
            }
            Verdict::Reset | Verdict::Drop => None,
        }
    }
}

/// Takes a place at the wanted endpoint, or else at the next that has one: those first that have not
/// failed the flow.
fn place<'a>(flow: &Flow<'_>, wanted: &'a Endpoint, among: &'a Candidates) -> Option<&'a Endpoint> {
    if wanted.try_start() {
        return Some(wanted);
    }
    let from = among.endpoints.partition_point(|endpoint| endpoint.id <= wanted.id);
    let (before, after) = among.endpoints.split_at(from);
    let mut others = after.iter().chain(before);
    let suited = others.clone().find(|endpoint| flow.suits(endpoint) && endpoint.try_start());
    suited.or_else(|| others.find(|endpoint| endpoint.try_start()))
}

/// What is kept for a flow.
enum KeptFor {
    /// Nothing.
    Nobody,
    /// An endpoint, if the policy that is new still forwards the flow.
    Asking(Endpoint),
    /// All that it needs.
    Flow(Result<Allocation, Denied>),
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
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}
