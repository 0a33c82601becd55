//! What the balancer looks like at one moment, with all workers' counts summed.
//!
//! Metrics, the JSON status and the command line show the same thing in three ways; this is the
//! thing.

use std::sync::Arc;
use std::time::Duration;

use pointsman_core::boundary::ListenerId;
use pointsman_core::eligibility::Footing;
use pointsman_core::{
    ClusterId, ClusterStats, EndpointState, Listener, ListenerStats, Openness, Snapshot,
};
use pointsman_plugin::{Module, PolicyCounts, Shape};

use crate::discovery::Standing;
use crate::mailbox::Report;
use crate::plan::{DiscoveryPlan, Plan, PluginId};
use crate::reload::Reloads;
use crate::seat::{Outcome, Seat};
use crate::setup::Setup;

/// Everything there is to see.
pub struct View {
    /// What the configuration says.
    pub setup: Arc<Setup>,
    /// The world that was published last.
    pub snapshot: Arc<Snapshot>,
    /// Those that are configured, and those that have left the configuration and have flows yet.
    pub listeners: Vec<ListenerView>,
    /// Those that are configured, and those that have left the configuration and have flows yet.
    pub clusters: Vec<ClusterView>,
    /// The policies that are plugins.
    pub plugins: Vec<PluginView>,
    /// By worker: what it has counted.
    pub workers: Vec<Report>,
    /// Ended flows that the access log had no room for.
    pub access_log_dropped: u64,
    /// What came of reloads.
    pub reloads: Reloads,
}

/// A listener's counts.
#[derive(Debug)]
pub struct ListenerView {
    /// Its place.
    pub id: ListenerId,
    /// Its name.
    pub name: String,
    /// Over all workers, and over all that have had its name: one that has moved to another address is
    /// the same to whoever counts.
    pub stats: ListenerStats,
}

/// A cluster's counts and endpoints.
#[derive(Debug)]
pub struct ClusterView {
    /// Its place.
    pub id: ClusterId,
    /// Its name.
    pub name: String,
    /// Over all workers; the generation is the newest.
    pub stats: ClusterStats,
    /// As of the last published world.
    pub endpoints: Vec<EndpointState>,
    /// Those that were removed and still have flows.
    pub leaving: Vec<EndpointState>,
    /// Who of them gets flows.
    pub footing: Footing,
    /// Who waits for a place at one of them.
    pub queue: QueueView,
    /// Who decides.
    pub seat: SeatView,
    /// Who knows the endpoints and how asking goes, if they are found.
    pub discovery: Option<(Arc<DiscoveryPlan>, Standing)>,
}

/// Flows that wait for a place at an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct QueueView {
    /// How many do.
    pub flows: u32,
    /// How many may; 0 if none may.
    pub flows_max: u32,
}

/// Who decides for a cluster, and what came of attempts to change that.
#[derive(Debug, Default)]
pub struct SeatView {
    /// The shape of its module, if it has one.
    pub shape: Option<Shape>,
    /// The digest of its module.
    pub digest: Option<String>,
    /// Attempts, by [`Outcome`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// The longest that a swap has held up a worker.
    pub pause_max: Duration,
}

impl SeatView {
    /// Looks at a seat.
    pub fn new(seat: &Seat) -> Self {
        let sitting = seat.sitting();
        let module = sitting.live.module.as_ref();
        Self {
            shape: module.map(Module::shape),
            digest: module.map(|module| module.digest().to_owned()),
            outcomes: sitting.outcomes,
            pause_max: sitting.pause_max,
        }
    }
}

/// What is not counted by workers.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The policies that are plugins.
    pub plugins: Vec<PluginView>,
    /// By `ClusterId`.
    pub seats: Vec<SeatView>,
    /// By `ClusterId`: endpoints that were removed and still have flows.
    pub leaving: Vec<Vec<EndpointState>>,
    /// By `ClusterId`: who knows the endpoints and how asking goes, if they are found.
    pub standings: Vec<Option<(Arc<DiscoveryPlan>, Standing)>>,
    /// Ended flows that the access log had no room for.
    pub access_log_dropped: u64,
    /// What came of reloads.
    pub reloads: Reloads,
}

/// A plugin's counts.
#[derive(Debug)]
pub struct PluginView {
    /// Its place.
    pub id: PluginId,
    /// The policy's name.
    pub name: String,
    /// Over all workers.
    pub counts: PolicyCounts,
}

impl View {
    /// Sums what the workers have counted.
    pub fn new(
        setup: Arc<Setup>,
        snapshot: Arc<Snapshot>,
        workers: Vec<Report>,
        gathered: Gathered,
    ) -> Self {
        let Gathered { plugins, seats, leaving, standings, access_log_dropped, reloads } = gathered;
        Self {
            listeners: listeners(&setup.plan, &snapshot, &workers),
            clusters: clusters(&setup.plan, &snapshot, &workers, (seats, leaving, standings)),
            plugins,
            workers,
            access_log_dropped,
            reloads,
            setup,
            snapshot,
        }
    }
}

fn listeners(plan: &Plan, snapshot: &Snapshot, workers: &[Report]) -> Vec<ListenerView> {
    let shown = |(_, listener): &(ListenerId, &Listener)| match listener.openness {
        Openness::Open => true,
        Openness::Draining | Openness::Closed => listener.flows_active.get() > 0,
    };
    // A name is told of once, by whoever has it in the configuration if anybody does.
    let all = || (0..).map(ListenerId).zip(&snapshot.listeners);
    let is_configured = |id: ListenerId| !plan.listeners[id.index()].removed;
    let is_first = |&(id, listener): &(ListenerId, &Listener)| {
        let mut others = all().filter(|(other, it)| *other != id && it.name == listener.name);
        is_configured(id)
            || others
                .all(|(other, it)| !is_configured(other) && (other > id || !shown(&(other, it))))
    };
    let view = |(id, listener): (ListenerId, &Listener)| {
        let mut stats = ListenerStats::default();
        let places = all().filter(|(_, other)| other.name == listener.name);
        for (place, _) in places {
            // A worker may have told before it heard of a listener that has just come.
            let counted =
                workers.iter().filter_map(|worker| worker.stats.listeners.get(place.index()));
            counted.for_each(|counted| add_listener(&mut stats, counted));
        }
        ListenerView { id, name: listener.name.to_string(), stats }
    };
    all().filter(shown).filter(is_first).map(view).collect()
}

/// What was gathered of each cluster.
type OfClusters =
    (Vec<SeatView>, Vec<Vec<EndpointState>>, Vec<Option<(Arc<DiscoveryPlan>, Standing)>>);

fn clusters(
    plan: &Plan,
    snapshot: &Snapshot,
    workers: &[Report],
    (seats, leaving, standings): OfClusters,
) -> Vec<ClusterView> {
    let all = (0..).map(ClusterId).zip(&snapshot.clusters);
    let (mut seats, mut leaving) = (seats.into_iter(), leaving.into_iter());
    let mut standings = standings.into_iter();
    let views = all.map(|(id, cluster)| {
        let mut stats = ClusterStats::default();
        let counted = workers.iter().filter_map(|worker| worker.stats.clusters.get(id.index()));
        counted.for_each(|counted| add_cluster(&mut stats, counted));
        ClusterView {
            id,
            name: cluster.name.to_string(),
            stats,
            endpoints: cluster.endpoints.to_vec(),
            footing: cluster.footing,
            queue: QueueView {
                flows: cluster.queue.line.len(),
                flows_max: cluster.queue.flows_max,
            },
            leaving: leaving.next().unwrap_or_default(),
            seat: seats.next().unwrap_or_default(),
            discovery: standings.next().flatten(),
        }
    });
    let is_there = |view: &ClusterView| {
        let has_left = plan.clusters[view.id.index()].removed;
        !(has_left && view.endpoints.is_empty() && view.leaving.is_empty())
    };
    views.filter(is_there).collect()
}

fn add_listener(sum: &mut ListenerStats, one: &ListenerStats) {
    sum.flows_total += one.flows_total;
    sum.flows_active += one.flows_active;
    sum.connect_retries_total += one.connect_retries_total;
    sum.reallocations_total += one.reallocations_total;
    sum.stateless_total += one.stateless_total;
    add_each(&mut sum.bytes_total, &one.bytes_total);
    add_each(&mut sum.datagrams_total, &one.datagrams_total);
    add_each(&mut sum.keyless_total, &one.keyless_total);
    add_each(&mut sum.closes_total, &one.closes_total);
    add_each(&mut sum.sheds_total, &one.sheds_total);
    add_each(&mut sum.drops_total, &one.drops_total);
}

fn add_cluster(sum: &mut ClusterStats, one: &ClusterStats) {
    add_each(&mut sum.decisions_total, &one.decisions_total);
    sum.overflows_total += one.overflows_total;
    sum.queued_total += one.queued_total;
    sum.queued_time += one.queued_time;
    sum.policy_generation = sum.policy_generation.max(one.policy_generation);
}

fn add_each(sum: &mut [u64], one: &[u64]) {
    for (sum, one) in sum.iter_mut().zip(one) {
        *sum += one;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use pointsman_core::boundary::Side;
    use pointsman_core::policy::Source;
    use pointsman_core::{CloseReason, KeylessReason, Stats};
    use pointsman_ring::{BufferPool, BufferStats, RingStats};

    use super::*;
    use crate::plan::{Plan, PluginFolders, resolve};
    use crate::turns::Turns;
    use crate::world::World;

    const TEXT: &str = r#"
[[listeners]]
name = "web"
address = "127.0.0.1:8080"
cluster = "web"
[[clusters]]
name = "web"
endpoints = [{ address = "127.0.0.1:1" }]
"#;

    pub(crate) fn plan() -> Plan {
        resolve(&crate::config::read(TEXT).config, &PluginFolders::default()).expect("a plan")
    }

    fn worker(factor: u64) -> Report {
        let mut listener = ListenerStats { flows_total: 2 * factor, ..ListenerStats::default() };
        listener.bytes_total[Side::Upstream.index()] = 10;
        listener.bytes_total[Side::Downstream.index()] = 20;
        listener.datagrams_total[Side::Upstream.index()] = 3;
        listener.reallocations_total = 1;
        listener.stateless_total = 2;
        listener.keyless_total[KeylessReason::Absent.index()] = 1;
        listener.closes_total[CloseReason::IdleTimeout.index()] = 1;
        let mut cluster = ClusterStats { policy_generation: 1, ..ClusterStats::default() };
        (cluster.overflows_total, cluster.queued_total) = (1, 2);
        cluster.queued_time = Duration::from_millis(750);
        cluster.decisions_total[Source::Native.index()] = 2 * factor;
        let stats = Stats {
            listeners: vec![listener],
            clusters: vec![cluster],
            sessions_active: 0,
            flow_table_entries: 4,
            ports_open: 5,
        };
        let mut ring = RingStats { enters_total: 3 * factor, ..RingStats::default() };
        let datagrams = &mut ring.buffers[BufferPool::Datagrams.index()];
        *datagrams = BufferStats { count: 512, free: 500, starved_total: 2 };
        let mut turns = Turns::default();
        turns.on_turn(Duration::from_micros(20), 3);
        Report { stats, ring, turns }
    }

    /// One listener, one cluster, one endpoint, one plugin, two workers.
    pub(crate) fn view() -> View {
        let plan = plan();
        let world = World::new(&plan, &[plan.listeners[0].address], [0; 2]);
        let mut counts = PolicyCounts::default();
        counts.own[3] = 7;
        let plugin = PluginView { id: PluginId(0), name: "p2c".to_owned(), counts };
        let gathered = Gathered { plugins: vec![plugin], ..Gathered::default() };
        let config = crate::config::read(TEXT).config;
        let setup = Setup { config, plan, loaded: Vec::new(), seats: Vec::new() };
        View::new(Arc::new(setup), world.snapshot(), vec![worker(1), worker(2)], gathered)
    }

    #[test]
    fn counts_of_all_workers_add_up() {
        let view = view();
        assert_eq!(view.listeners[0].stats.flows_total, 6);
        assert_eq!(view.clusters[0].stats.decisions_total[Source::Native.index()], 6);
        assert_eq!(view.clusters[0].stats.policy_generation, 1);
        assert_eq!(view.listeners[0].stats.stateless_total, 4);
        assert_eq!(view.listeners[0].stats.datagrams_total[Side::Upstream.index()], 6);
    }
}
