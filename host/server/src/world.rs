//! What the control thread knows, and how it becomes a [`Snapshot`].
//!
//! The world changes in place, here, on one thread; workers only ever see whole copies of it. A
//! cluster's candidates stay the same `Arc` from copy to copy unless they really changed: policies
//! keep state per endpoint, and a health transition next door must not reset it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::ejection::{Ejection, EjectionRules, Ejector};
use pointsman_core::eligibility::{Eligibility, Footing};
use pointsman_core::growth::Growth;
use pointsman_core::health::{Health, Observation, Thresholds, Transition};
use pointsman_core::proxy::Outbound;
use pointsman_core::{
    AllFlows, Candidates, Cluster, ClusterId, Endpoint, EndpointId, EndpointState, Generation,
    Instant, Line, Listener, Load, Openness, Queue, SharedCount, SharedRate, Snapshot,
    SourceCounts, SourceRates,
};

use crate::plan::{ClusterPlan, EndpointPlan, ListenerPlan, Plan};

mod change;
mod discovered;
mod growth;
mod inheritance;
mod passive;
mod reload;
mod sight;

pub use change::{EndpointChange, Target};
pub use discovered::Unchanged;
pub use inheritance::ClusterLegacy;
pub use passive::News;
pub use reload::Place;
pub use sight::{Author, Made, Needs, Outlook};

use discovered::Discovered;
use sight::Sight;

/// Everything that can change while the balancer runs.
#[derive(Debug)]
pub struct World {
    generation: Generation,
    listeners: Vec<ListenerState>,
    clusters: Vec<ClusterState>,
    drain_until: Option<Instant>,
    /// How often endpoints have come or gone, or their checks have changed.
    census: u64,
    /// Flows of all listeners.
    all_flows: AllFlows,
    /// What clients are counted by.
    hash_key: [u64; 2],
    /// How many have a socket of each listener.
    workers: u32,
    /// Whether a reload counts on places being as they are.
    places_held: bool,
}

/// A listener, and what all workers count about it, from the first snapshot to the last.
#[derive(Debug)]
struct ListenerState {
    /// With the address that it really has.
    plan: ListenerPlan,
    openness: Openness,
    /// When it is closed, if it was removed.
    drain_until: Option<Instant>,
    sockets_open: Arc<SharedCount>,
    flows_active: Arc<SharedCount>,
    new_flow_rate: Option<Arc<SharedRate>>,
    new_flow_rate_per_client: Option<Arc<SourceRates>>,
    flows_per_client: Option<Arc<SourceCounts>>,
}

#[derive(Debug)]
struct ClusterState {
    name: Box<str>,
    /// Whether it is no longer in the file.
    removed: bool,
    eligibility: Eligibility,
    /// How long an endpoint that has come back takes to have its whole weight.
    slow_start: Duration,
    proxy: Option<Outbound>,
    transparent: bool,
    /// By what endpoints are ejected whose flows fail, if any are, and who does it.
    passive: Option<EjectionRules>,
    ejector: Option<Ejector>,
    /// How many checks change a verdict, if there are checks.
    thresholds: Option<Thresholds>,
    /// How endpoints are found, if they are not written.
    discovered: Option<Discovered>,
    /// In order of their ids.
    endpoints: Vec<Watched>,
    /// Those that were removed and may have flows yet.
    leaving: Vec<Watched>,
    /// The id of the next endpoint that is added.
    next_id: EndpointId,
    /// Those that may be given a new flow, as they are configured.
    base: Arc<Candidates>,
    /// As the policy sees them that decides.
    live: Sight,
    /// As the policy sees them that is tried beside it.
    trial: Option<Sight>,
    /// Who the candidates are.
    footing: Footing,
    /// Flows that wait because every candidate is full.
    queue: Queue,
}

/// An endpoint, and what has been seen of it.
#[derive(Debug)]
struct Watched {
    endpoint: Endpoint,
    /// `None` counts as up: nobody checks it.
    health: Option<Health>,
    draining: bool,
    /// Whether it was removed, and serves until another does.
    outgoing: bool,
    backup: bool,
    ejection: Ejection,
    growth: Growth,
    /// Failed connects when they were last looked at.
    failures_seen: u64,
    /// Failed connects in a row that were held against it before it last came up.
    failures_forgiven: u32,
}

/// Which of a cluster's two policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that decides.
    Live,
    /// The one that is tried beside it.
    Trial,
}

/// Something that has become of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its address.
    pub address: SocketAddr,
    /// What.
    pub news: News,
    /// What was wrong, in the words of the check that saw it.
    pub reason: Option<String>,
}

impl World {
    /// The world at the start: every endpoint up. `addresses` are those the listeners really have,
    /// which are the plan's but for the port where that is 0. `hash_key` keeps clients from choosing
    /// what they are counted as; it is secret where there is traffic.
    pub fn new(plan: &Plan, addresses: &[SocketAddr], hash_key: [u64; 2]) -> Self {
        let workers = plan.workers;
        let clusters = plan.clusters.iter().map(|cluster| {
            let line = Arc::new(Line::new(workers));
            ClusterState::new(cluster, plan.uses_table(cluster), EndpointId(0), line)
        });
        let mut world = Self {
            generation: Generation(1),
            listeners: Vec::with_capacity(plan.listeners.len()),
            clusters: clusters.collect(),
            drain_until: None,
            census: 0,
            all_flows: AllFlows { max: most_flows(plan), active: Arc::default() },
            hash_key,
            workers: u32::try_from(plan.workers).unwrap_or(u32::MAX),
            places_held: false,
        };
        for (listener, address) in plan.listeners.iter().zip(addresses) {
            let state = world.open(listener, *address);
            world.listeners.push(state);
        }
        world
    }

    /// A listener whose sockets all workers have.
    fn open(&self, plan: &ListenerPlan, address: SocketAddr) -> ListenerState {
        let state = ListenerState::new(plan, address, self.hash_key);
        state.sockets_open.add(self.workers);
        state
    }

    /// All places of clusters, whether they are taken or not.
    pub fn clusters(&self) -> impl Iterator<Item = ClusterId> + use<> {
        (0..self.clusters.len()).map(|place| ClusterId(place as u16))
    }

    /// Takes in what a check saw of an endpoint.
    pub fn observe(
        &mut self,
        cluster: ClusterId,
        endpoint: EndpointId,
        observation: Observation,
    ) -> Option<Change> {
        let ClusterState { endpoints, slow_start, .. } = &mut self.clusters[cluster.index()];
        // It may have been removed while it was checked.
        let place = endpoints.binary_search_by_key(&endpoint, |other| other.endpoint.id).ok()?;
        let watched = &mut endpoints[place];
        let transition = watched.observe(observation)?;
        if transition == Transition::WentUp {
            watched.growth.restart(*slow_start);
        }
        let news = News::Health(transition);
        Some(Change { cluster, address: watched.endpoint.address, news, reason: None })
    }

    /// Takes in what flows have seen of endpoints since the last look.
    pub fn look_at_flows(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, cluster) in (0..).map(ClusterId).zip(&mut self.clusters) {
            for (place, news) in cluster.look_at_flows(now) {
                let address = cluster.endpoints[place].endpoint.address;
                changes.push(Change { cluster: id, address, news, reason: None });
            }
        }
        changes
    }

    /// Says that the process is to end.
    pub fn drain(&mut self, until: Instant) {
        self.drain_until = Some(until);
    }

    /// Whether the process is to end.
    pub fn is_draining(&self) -> bool {
        self.drain_until.is_some()
    }

    /// The endpoints of a cluster that may be given a new flow, as they are configured.
    pub fn base(&self, cluster: ClusterId) -> Arc<Candidates> {
        Arc::clone(&self.clusters[cluster.index()].base)
    }

    /// Whether a cluster's policy has a guest that makes tables or weights.
    pub fn asks_a_guest(&self, cluster: ClusterId) -> bool {
        let cluster = &self.clusters[cluster.index()];
        let of_trial = cluster.trial.as_ref().is_some_and(|sight| sight.needs.a_guest());
        cluster.live.needs.a_guest() || of_trial
    }

    /// From the next world on a policy sees what it needs. What was made for another list of
    /// endpoints is of no use any more.
    pub fn show(&mut self, (cluster, role): (ClusterId, Role), outlook: Outlook) {
        let generation = self.next_generation();
        let cluster = &mut self.clusters[cluster.index()];
        let sight = Sight::new(outlook, &cluster.base, generation);
        match role {
            Role::Live => cluster.live = sight,
            Role::Trial => cluster.trial = Some(sight),
        }
    }

    /// Whether a policy would see what is there already, so that there is no need of another world.
    pub fn shows(&self, (cluster, role): (ClusterId, Role), outlook: &Outlook) -> bool {
        let cluster = &self.clusters[cluster.index()];
        let sight = match role {
            Role::Live => Some(&cluster.live),
            Role::Trial => cluster.trial.as_ref(),
        };
        let is_same = |sight: &Sight| sight.needs == outlook.needs && sight.author.is_none();
        outlook.author.is_none() && sight.is_some_and(is_same)
    }

    /// From the next world on nothing is shown to a policy on trial.
    pub fn hide(&mut self, cluster: ClusterId) {
        self.clusters[cluster.index()].trial = None;
    }

    /// Takes what a guest has made. Tells whether it is of any use: the guest may have been replaced
    /// meanwhile, or the endpoints.
    pub fn take(
        &mut self,
        to: (ClusterId, Role),
        by: Author,
        (of, made): (Generation, Made),
    ) -> bool {
        let (cluster, role) = (&self.clusters[to.0.index()], to.1);
        let sight = match role {
            Role::Live => Some(&cluster.live),
            Role::Trial => cluster.trial.as_ref(),
        };
        let sight = sight.filter(|sight| sight.author == Some(by));
        let Some(needs) = sight.map(|sight| sight.needs) else { return false };
        if of != cluster.base.generation {
            return false;
        }
        self.show(to, Outlook { needs, author: Some(by), made: Some((of, made)) });
        true
    }

    /// Copies the world as it is, for the workers.
    pub fn publish(&mut self) -> Arc<Snapshot> {
        self.generation = self.next_generation();
        let generation = self.generation;
        let clusters =
            self.clusters.iter_mut().map(|cluster| cluster.publish(generation)).collect();
        self.with_clusters(clusters)
    }

    fn next_generation(&self) -> Generation {
        Generation(self.generation.0 + 1)
    }

    /// The world as it was last published, or at the start.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.with_clusters(self.clusters.iter().map(ClusterState::snapshot).collect())
    }

    fn with_clusters(&self, clusters: Box<[Cluster]>) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            generation: self.generation,
            listeners: self.listeners.iter().map(|it| it.snapshot(&self.all_flows)).collect(),
            clusters,
            drain_until: self.drain_until,
        })
    }
}

impl ListenerState {
    /// Clients that are counted apart: more of them fall on the same counts, which errs towards
    /// refusing.
    const CLIENTS_MAX: u32 = 1_000_000;

    fn new(plan: &ListenerPlan, address: SocketAddr, hash_key: [u64; 2]) -> Self {
        let mut state = Self {
            plan: ListenerPlan { address, ..plan.clone() },
            openness: Openness::Open,
            drain_until: None,
            sockets_open: Arc::default(),
            flows_active: Arc::default(),
            new_flow_rate: None,
            new_flow_rate_per_client: None,
            flows_per_client: None,
        };
        state.set_limits(hash_key);
        state
    }

    /// Makes what the plan's limits are counted with.
    fn set_limits(&mut self, hash_key: [u64; 2]) {
        let Self { plan, .. } = self;
        let (rate, per_client) = (plan.new_flows_per_second, plan.flows_per_client_max);
        let (own_rate, prefix) = (plan.new_flows_per_second_per_client, plan.client_prefix);
        let clients = plan.flows_max.min(Self::CLIENTS_MAX);
        let counts = || SourceCounts::new(per_client, clients, prefix, hash_key);
        let rates = || SourceRates::new(own_rate, Self::CLIENTS_MAX, prefix, hash_key);
        self.new_flow_rate = (rate > 0).then(|| Arc::new(SharedRate::new(rate)));
        self.new_flow_rate_per_client = (own_rate > 0).then(|| Arc::new(rates()));
        self.flows_per_client = (per_client > 0).then(|| Arc::new(counts()));
    }

    fn snapshot(&self, all_flows: &AllFlows) -> Listener {
        Listener {
            openness: self.openness,
            sockets_open: Arc::clone(&self.sockets_open),
            name: self.plan.name.as_str().into(),
            address: self.plan.address,
            protocol: self.plan.protocol,
            cluster: self.plan.cluster,
            flows_max: self.plan.flows_max,
            flows_active: Arc::clone(&self.flows_active),
            all_flows: all_flows.clone(),
            access: self.plan.access.clone(),
            client_prefix: self.plan.client_prefix,
            connect_attempts: self.plan.connect_attempts,
            on_endpoint_down: self.plan.on_endpoint_down,
            timeouts: self.plan.timeouts,
            key: self.plan.key,
            preread_bytes_max: self.plan.preread_bytes_max,
            new_flow_rate: self.new_flow_rate.clone(),
            new_flow_rate_per_client: self.new_flow_rate_per_client.clone(),
            flows_per_client: self.flows_per_client.clone(),
            proxy: self.plan.proxy.clone(),
            datagrams: self.plan.datagrams,
        }
    }
}

impl ClusterState {
    /// A cluster whose endpoints are named from `first` on, and whose flows wait in this line.
    fn new(plan: &ClusterPlan, uses_table: bool, first: EndpointId, line: Arc<Line>) -> Self {
        let thresholds = plan.check.as_ref().map(|check| check.thresholds);
        let ids = (first.0..).map(EndpointId).zip(&plan.endpoints);
        let endpoints: Vec<_> =
            ids.map(|(id, plan)| Watched::new(id, plan, thresholds.map(Health::new))).collect();
        let states: Box<[_]> = endpoints.iter().map(Watched::state).collect();
        let (footing, _) = plan.eligibility.choose(&states);
        let nobody = Candidates { generation: Generation(0), endpoints: [].into(), table: None };
        let base = Arc::new(nobody);
        let needs = if uses_table { Needs::Maglev } else { Needs::Nothing };
        let mut state = Self {
            name: plan.name.as_str().into(),
            removed: false,
            eligibility: plan.eligibility,
            slow_start: plan.slow_start,
            passive: plan.passive.clone(),
            proxy: plan.proxy,
            transparent: plan.transparent,
            ejector: plan.passive.clone().map(Ejector::new),
            live: Sight::new(Outlook::plain(needs), &base, base.generation),
            trial: None,
            base,
            thresholds,
            discovered: plan.discovery.as_ref().map(Discovered::new),
            next_id: EndpointId(first.0 + endpoints.len() as u32),
            endpoints,
            leaving: Vec::new(),
            footing,
            queue: Queue { flows_max: plan.queue.flows_max, timeout: plan.queue.timeout, line },
        };
        state.choose_candidates(&states, Generation(1));
        state
    }

    /// What is known of each endpoint.
    fn states(&self) -> Box<[EndpointState]> {
        self.endpoints.iter().map(Watched::state).collect()
    }

    /// The cluster with the candidates that it has from this world on.
    fn publish(&mut self, generation: Generation) -> Cluster {
        let states = self.states();
        self.choose_candidates(&states, generation);
        self.with_states(states)
    }

    fn snapshot(&self) -> Cluster {
        self.with_states(self.states())
    }

    fn with_states(&self, endpoints: Box<[EndpointState]>) -> Cluster {
        Cluster {
            name: self.name.clone(),
            endpoints,
            candidates: Arc::clone(&self.live.candidates),
            footing: self.footing,
            proxy: self.proxy,
            transparent: self.transparent,
            trial: self.trial.as_ref().map(|sight| Arc::clone(&sight.candidates)),
            queue: self.queue.clone(),
        }
    }

    /// Makes a new list only if it would hold other endpoints or weights than the one there is.
    fn choose_candidates(&mut self, states: &[EndpointState], generation: Generation) {
        let (footing, places) = self.eligibility.choose(states);
        let chosen = places.iter().map(|place| self.candidate(&self.endpoints[*place]));
        let endpoints: Box<[Endpoint]> = chosen.collect();
        let share = |endpoint: &Endpoint| (endpoint.id, endpoint.weight, endpoint.flows_max);
        if !endpoints.iter().map(share).eq(self.base.endpoints.iter().map(share)) {
            self.base = Arc::new(Candidates { generation, endpoints, table: None });
            for sight in [Some(&mut self.live), self.trial.as_mut()].into_iter().flatten() {
                sight.follow(&self.base, generation);
            }
        }
        self.stand_on(footing);
    }
}

/// Flows of all listeners at a time.
fn most_flows(plan: &Plan) -> u32 {
    if plan.flows_max == 0 { u32::MAX } else { plan.flows_max }
}

impl Watched {
    /// An endpoint of which nothing has been seen.
    fn new(id: EndpointId, plan: &EndpointPlan, health: Option<Health>) -> Self {
        let EndpointPlan { address, weight, flows_max, .. } = *plan;
        Self {
            endpoint: Endpoint { id, address, weight, flows_max, load: Arc::new(Load::default()) },
            health,
            draining: false,
            outgoing: false,
            backup: plan.backup,
            ejection: Ejection::default(),
            growth: Growth::default(),
            failures_seen: 0,
            failures_forgiven: 0,
        }
    }

    fn is_up(&self) -> bool {
        self.health.as_ref().is_none_or(Health::is_up)
    }

    fn state(&self) -> EndpointState {
        EndpointState {
            endpoint: self.endpoint.clone(),
            up: self.is_up(),
            unproven: self.health.as_ref().is_some_and(Health::is_unproven),
            draining: self.draining,
            ejected: self.ejection.reason(),
            ejections_total: self.ejection.total(),
            backup: self.backup,
            growth: self.growth,
        }
    }

    fn observe(&mut self, observation: Observation) -> Option<Transition> {
        let transition = self.health.as_mut()?.observe(observation);
        if transition == Some(Transition::WentUp) {
            self.failures_forgiven = self.endpoint.load.connect_failures_in_a_row();
        }
        transition
    }

    /// Judges only failures that are new: an endpoint that checks have brought up has still the
    /// row of failures that took it down, until a flow gets through.
    fn look_at_connects(&mut self) -> Option<Transition> {
        let failures = self.endpoint.load.connect_failures_total();
        if std::mem::replace(&mut self.failures_seen, failures) == failures {
            return None;
        }
        let in_a_row = self.endpoint.load.connect_failures_in_a_row();
        if in_a_row < self.failures_forgiven {
            self.failures_forgiven = 0;
        }
        self.observe(Observation::ConnectsFailed { in_a_row: in_a_row - self.failures_forgiven })
    }
}

#[cfg(test)]
mod tests;
