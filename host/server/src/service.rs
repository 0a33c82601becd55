//! A running balancer as the control thread holds it: shared by the control loop, which changes
//! it, and the admin interface, which shows it.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pointsman_core::ClusterId;
use pointsman_core::listing::Cursor;
use pointsman_plugin::PolicyCounts;
use pointsman_ring::Clock;

use crate::fleet::{Fleet, Silent};
use crate::flows::{self, Describer, Filter, FlowId, Page, PageToken, Query, Search, Shown};
use crate::plan::{Plan, PluginId, PolicyPlan};
use crate::plugins::Plugins;
use crate::seat::Seat;
use crate::steering::{Place, Steerer, Steering};
use crate::view::{Gathered, PluginView, SeatView, View};
use crate::world::{Outlook, World};

/// How long a page of flows may take: it ends sooner than it is full rather than later. Below what
/// clients wait for an answer.
const PAGE_PATIENCE: Duration = Duration::from_secs(2);
/// How long one flow may be looked for.
const FLOW_PATIENCE: Duration = Duration::from_secs(3);

/// Why flows cannot be shown or forgotten.
#[derive(Debug)]
pub enum FlowsError {
    /// What was asked for cannot be.
    Query(String),
    /// There is no such flow.
    Gone(FlowId),
    /// There was no time to look everywhere.
    Late,
    /// A worker does not answer.
    Silent(Silent),
}

impl From<Silent> for FlowsError {
    fn from(silent: Silent) -> Self {
        Self::Silent(silent)
    }
}

impl fmt::Display for FlowsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(problem) => f.write_str(problem),
            Self::Gone(id) => write!(f, "there is no flow or kept decision {id}; it has ended"),
            Self::Late => f.write_str("it was not found in time; ask again"),
            Self::Silent(Silent { number }) => {
                write!(f, "worker {number} does not answer; ask again")
            }
        }
    }
}

/// Everything that belongs to one running balancer.
pub struct Service {
    parts: Parts,
    world: Mutex<World>,
    since: Instant,
}

/// What a running balancer is made of, beside its world.
pub struct Parts {
    /// What it was started with.
    pub plan: Plan,
    /// What can be compiled, and is.
    pub plugins: Plugins,
    /// Who decides, by [`ClusterId`].
    pub seats: Vec<Arc<Seat>>,
    /// The thread of guests that make tables and weights, if there are plugins.
    pub steering: Option<Steering>,
    /// Its workers.
    pub fleet: Fleet,
    /// Ended flows that the access log had no room for.
    pub access_log_dropped: Arc<AtomicU64>,
}

impl Service {
    /// Puts the parts together; from here on it counts as running.
    pub fn new(parts: Parts, world: World) -> Self {
        Self { parts, world: Mutex::new(world), since: Instant::now() }
    }

    /// What it was started with.
    pub fn plan(&self) -> &Plan {
        &self.parts.plan
    }

    /// What can be compiled, and is.
    pub fn plugins(&self) -> &Plugins {
        &self.parts.plugins
    }

    /// Who decides, by [`ClusterId`].
    pub fn seats(&self) -> &[Arc<Seat>] {
        &self.parts.seats
    }

    /// Who decides for a cluster.
    pub fn seat(&self, cluster: ClusterId) -> &Arc<Seat> {
        &self.parts.seats[cluster.index()]
    }

    /// The clusters that use a plugin.
    pub fn clusters_of(&self, plugin: PluginId) -> Vec<ClusterId> {
        let clusters = (0..).map(ClusterId).zip(&self.parts.plan.clusters);
        let used = clusters.filter(|(_, plan)| plan.policy == PolicyPlan::Plugin(plugin));
        used.map(|(cluster, _)| cluster).collect()
    }

    /// The thread of guests that make tables and weights, if there are plugins.
    pub fn steering(&self) -> Option<&Steering> {
        self.parts.steering.as_ref()
    }

    /// Its workers.
    pub fn fleet(&self) -> &Fleet {
        &self.parts.fleet
    }

    /// Puts another guest in its place, or none.
    pub fn steer(&self, place: Place, steerer: Option<Steerer>) {
        let Some(steering) = &self.parts.steering else { return };
        match steerer {
            // What it was made for may have changed meanwhile.
            Some(steerer) => {
                steering.seat(place, steerer);
                steering.look(place.0, self.world().base(place.0));
            }
            None => steering.vacate(place),
        }
    }

    /// How long it has been running.
    pub fn uptime(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether it is about to end.
    pub fn is_draining(&self) -> bool {
        self.world().is_draining()
    }

    /// Changes the world and tells all workers.
    pub fn change(&self, change: impl FnOnce(&mut World)) {
        let Ok(()) = self.try_change(|world| {
            change(world);
            Ok::<(), Infallible>(())
        });
    }

    /// Changes the world and tells all workers, or leaves all as it is.
    ///
    /// # Errors
    /// The change itself has failed.
    pub fn try_change<E>(&self, change: impl FnOnce(&mut World) -> Result<(), E>) -> Result<(), E> {
        // Posted under the lock, so that no worker hears of a world after the one that follows it.
        let mut world = self.world();
        change(&mut world)?;
        let snapshot = world.publish();
        self.parts.fleet.apply(&snapshot);
        let Some(steering) = &self.parts.steering else { return Ok(()) };
        for cluster in (0..).map(ClusterId).take(snapshot.clusters.len()) {
            if world.asks_a_guest(cluster) {
                steering.look(cluster, world.base(cluster));
            }
        }
        Ok(())
    }

    /// Shows a policy what it needs to see, and tells all workers if that is something else than
    /// before.
    pub fn show(&self, place: Place, outlook: Outlook) {
        if !self.look(|world| world.shows(place, &outlook)) {
            self.change(|world| world.show(place, outlook));
        }
    }

    /// Lets the world take something in. What comes of it is published by [`Self::change`] only.
    pub fn look<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.world())
    }

    /// What there is to see, with the workers' counts of this moment.
    pub async fn view(&self) -> View {
        let stats = self.fleet().stats().await;
        let (snapshot, leaving, standings) =
            self.look(|world| (world.snapshot(), world.leaving(), world.standings()));
        let plugins = self.plan().plugins.iter().enumerate().map(|(place, plugin)| PluginView {
            name: plugin.name.clone(),
            counts: self.counts_of(PluginId(place)),
        });
        let gathered = Gathered {
            plugins: plugins.collect(),
            leaving,
            standings,
            seats: self.seats().iter().map(|seat| SeatView::new(seat)).collect(),
            access_log_dropped: self.parts.access_log_dropped.load(Relaxed),
        };
        View::new(snapshot, &stats, gathered)
    }

    /// What has been counted of a policy, over all its clusters, workers and modules.
    fn counts_of(&self, plugin: PluginId) -> PolicyCounts {
        let mut sum = PolicyCounts::default();
        for seat in self.seats().iter().filter(|seat| seat.plugin == Some(plugin)) {
            sum.add(&seat.sitting().counts());
        }
        sum
    }

    /// A page of what the workers keep.
    ///
    /// # Errors
    /// The query is wrong, or a worker does not answer.
    pub async fn flows(&self, query: &Query) -> Result<Page, FlowsError> {
        let snapshot = self.world().snapshot();
        let search = Search::new(query, &snapshot).map_err(FlowsError::Query)?;
        let filter = Arc::new(search.filter);
        let part = (search.from, 0..self.fleet().len());
        let found = flows::walk(self.fleet(), &filter, part, search.limit, PAGE_PATIENCE).await?;
        let describer = Describer { plan: self.plan(), snapshot: &snapshot, now: Clock.now() };
        let shown = found.entries.iter().map(|(worker, entry)| describer.describe(*worker, entry));
        Ok(Page { flows: shown.collect(), next: found.next.map(|token| token.to_string()) })
    }

    /// One flow or kept decision.
    ///
    /// # Errors
    /// It is gone, or its worker does not answer.
    pub async fn flow(&self, id: FlowId) -> Result<Shown, FlowsError> {
        let from = PageToken { worker: id.worker, from: Cursor::default() };
        let workers = id.worker..self.fleet().len().min(id.worker.saturating_add(1));
        let filter = Arc::new(Filter::by_id(id.entry));
        let found = flows::walk(self.fleet(), &filter, (from, workers), 1, FLOW_PATIENCE).await?;
        let Some((worker, entry)) = found.entries.first() else {
            return Err(if found.next.is_some() { FlowsError::Late } else { FlowsError::Gone(id) });
        };
        let snapshot = self.world().snapshot();
        let describer = Describer { plan: self.plan(), snapshot: &snapshot, now: Clock.now() };
        Ok(describer.describe(*worker, entry))
    }

    /// Ends a flow, or gives up a kept decision.
    ///
    /// # Errors
    /// It is gone, or its worker does not answer.
    pub async fn forget(&self, id: FlowId) -> Result<(), FlowsError> {
        let is_worker = id.worker < self.fleet().len();
        if is_worker && self.fleet().forget(id.worker, id.entry).await? == Some(true) {
            tracing::info!(flow = %id, "forgotten");
            return Ok(());
        }
        Err(FlowsError::Gone(id))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
