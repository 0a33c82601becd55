//! A running balancer as the control thread holds it: shared by the control loop, which changes
//! it, and the admin interface, which shows it.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use pointsman_core::listing::Cursor;
use pointsman_core::{ClusterId, Generation, Snapshot};
use pointsman_plugin::PolicyCounts;
use pointsman_ring::Clock;
use tokio::sync::mpsc::UnboundedSender;

use crate::access_log::LogKeeper;
use crate::admin::Doors;
use crate::budget::Budget;
use crate::fleet::{Fleet, Silent};
use crate::flows::{self, Describer, Filter, FlowId, Page, PageToken, Query, Search, Shown};
use crate::logging;
use crate::mailbox::Renewal;
use crate::notify::Notifier;
use crate::plan::PluginId;
use crate::plugins::Plugins;
use crate::reload::{Reloads, Source};
use crate::seat::Seat;
use crate::setup::Setup;
use crate::steering::{Place, Steered, Steerer, Steering};
use crate::upgrade::{Program, Upgrades};
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
    setup: Mutex<Arc<Setup>>,
    steering: OnceLock<Steering>,
    world: Mutex<World>,
    reloads: Mutex<Reloads>,
    upgrades: Mutex<Upgrades>,
    /// Held while what workers have handed over is nobody's.
    passing_on: Mutex<()>,
    /// Whether somebody has told the process to end.
    is_to_end: AtomicBool,
    /// Whether files of plugins are watched.
    pub is_watching: AtomicBool,
    since: Instant,
}

/// What a running balancer is made of for as long as it lives, beside what a reload replaces.
pub struct Parts {
    /// Where its configuration is read from.
    pub source: Source,
    /// How much of everything each worker may have.
    pub budget: Budget,
    /// What plugins are compiled and run with.
    pub plugins: Plugins,
    /// Where guests send what they make of tables and weights.
    pub steered: UnboundedSender<Steered>,
    /// Its workers.
    pub fleet: Fleet,
    /// The access log.
    pub log: LogKeeper,
    /// The way to the service manager.
    pub notifier: Notifier,
    /// What it was started as.
    pub program: Program,
    /// The admin interface's sockets.
    pub doors: Doors,
    /// Where it is told that another process has taken over.
    pub left: UnboundedSender<()>,
}

impl Service {
    /// Puts the parts together; from here on it counts as running. `upgrades` is what has come of those so
    /// far.
    pub fn new(parts: Parts, setup: Setup, world: World, upgrades: Upgrades) -> Self {
        Self {
            parts,
            setup: Mutex::new(Arc::new(setup)),
            steering: OnceLock::new(),
            world: Mutex::new(world),
            reloads: Mutex::default(),
            upgrades: Mutex::new(upgrades),
            passing_on: Mutex::default(),
            is_to_end: AtomicBool::new(false),
            is_watching: AtomicBool::new(false),
            since: Instant::now(),
        }
    }

    /// What the configuration says, and what was made of it.
    pub fn setup(&self) -> Arc<Setup> {
        Arc::clone(&self.setup.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where its configuration is read from.
    pub fn source(&self) -> &Source {
        &self.parts.source
    }

    /// How much of everything each worker may have.
    pub fn budget(&self) -> &Budget {
        &self.parts.budget
    }

    /// What plugins are compiled and run with.
    pub fn plugins(&self) -> &Plugins {
        &self.parts.plugins
    }

    /// Who decides for a cluster.
    pub fn seat(&self, cluster: ClusterId) -> Arc<Seat> {
        Arc::clone(self.setup().seat(cluster))
    }

    /// The thread of guests that make tables and weights, if there are plugins.
    pub fn steering(&self) -> Option<&Steering> {
        self.steering.get()
    }

    /// Starts the thread of guests that make tables and weights, unless there is one.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub fn start_steering(&self) -> io::Result<()> {
        if self.steering.get().is_none() {
            let steering = Steering::start(self.parts.steered.clone())?;
            // Whoever was quicker has started one that does as well.
            let _ = self.steering.set(steering);
        }
        Ok(())
    }

    /// Its workers.
    pub fn fleet(&self) -> &Fleet {
        &self.parts.fleet
    }

    /// The access log.
    pub fn log(&self) -> &LogKeeper {
        &self.parts.log
    }

    /// The way to the service manager.
    pub fn notifier(&self) -> &Notifier {
        &self.parts.notifier
    }

    /// What came of reloads.
    pub fn reloads(&self) -> MutexGuard<'_, Reloads> {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another guest in its place, or none.
    pub fn steer(&self, place: Place, steerer: Option<Steerer>) {
        let Some(steering) = self.steering() else { return };
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
        self.is_to_end.load(Acquire) || self.world().is_draining()
    }

    /// It is about to end from here on. Tells whether it was not before.
    pub fn note_end(&self) -> bool {
        !self.is_to_end.swap(true, AcqRel)
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
        self.look_for_guests(&world);
        Ok(())
    }

    /// Goes by another setup from here on, and gives all workers the world that belongs to it, with
    /// what of it is theirs alone: one set for each. Whoever looks sees both or neither.
    pub fn adopt(
        &self,
        setup: Setup,
        change: impl FnOnce(&mut World, &Setup),
        renewals: impl FnOnce(&Arc<Snapshot>) -> Vec<Renewal>,
    ) -> Generation {
        let mut world = self.world();
        change(&mut world, &setup);
        let snapshot = world.publish();
        self.parts.fleet.renew(renewals(&snapshot));
        self.look_for_guests(&world);
        *self.setup.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(setup);
        snapshot.generation
    }

    fn look_for_guests(&self, world: &World) {
        let Some(steering) = self.steering() else { return };
        for cluster in world.clusters() {
            if world.asks_a_guest(cluster) {
                steering.look(cluster, world.base(cluster));
            }
        }
    }

    /// What it was started as.
    pub fn program(&self) -> &Program {
        &self.parts.program
    }

    /// The admin interface's sockets.
    pub fn doors(&self) -> &Doors {
        &self.parts.doors
    }

    /// What has come of upgrades so far.
    pub fn upgrades(&self) -> MutexGuard<'_, Upgrades> {
        self.upgrades.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets no drain begin before the guard is dropped: what workers have handed over is between this
    /// process and another, and may come back.
    pub fn hold_drain(&self) -> MutexGuard<'_, ()> {
        self.passing_on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no drain may begin.
    pub fn is_drain_held(&self) -> bool {
        matches!(self.passing_on.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Another process has taken over; what is left here is drained.
    pub fn leave(&self) {
        // Fails only when the control thread has ended.
        let _ = self.parts.left.send(());
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
        let workers = self.fleet().reports().await;
        let (snapshot, leaving, standings, setup) =
            self.look(|world| (world.snapshot(), world.leaving(), world.standings(), self.setup()));
        let gathered = Gathered {
            plugins: plugins(&setup),
            leaving,
            standings,
            seats: setup.seats.iter().map(|seat| SeatView::new(seat)).collect(),
            access_log_dropped: self.log().dropped(),
            log_lost: logging::lost(),
            reloads: self.reloads().clone(),
            upgrades: self.upgrades().clone(),
        };
        View::new(setup, snapshot, workers, gathered)
    }

    /// A page of what the workers keep.
    ///
    /// # Errors
    /// The query is wrong, or a worker does not answer.
    pub async fn flows(&self, query: &Query) -> Result<Page, FlowsError> {
        let (snapshot, setup) = self.look(|world| (world.snapshot(), self.setup()));
        let search = Search::new(query, &snapshot).map_err(FlowsError::Query)?;
        let filter = Arc::new(search.filter);
        let part = (search.from, 0..self.fleet().len());
        let found = flows::walk(self.fleet(), &filter, part, search.limit, PAGE_PATIENCE).await?;
        let describer = Describer { plan: &setup.plan, snapshot: &snapshot, now: Clock.now() };
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
        let (snapshot, setup) = self.look(|world| (world.snapshot(), self.setup()));
        let describer = Describer { plan: &setup.plan, snapshot: &snapshot, now: Clock.now() };
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

fn plugins(setup: &Setup) -> Vec<PluginView> {
    let plugins = (0..).map(PluginId).zip(&setup.plan.plugins);
    let plugins = plugins.filter(|(_, plan)| !plan.removed).map(|(id, plan)| PluginView {
        id,
        name: plan.name.clone(),
        counts: counts_of(setup, id),
    });
    plugins.collect()
}

/// What has been counted of a policy, over all its clusters, workers and modules.
fn counts_of(setup: &Setup, plugin: PluginId) -> PolicyCounts {
    let mut sum = PolicyCounts::default();
    for (_, seat) in setup.seated().filter(|(_, seat)| seat.plugin == Some(plugin)) {
        sum.add(&seat.sitting().counts());
    }
    sum
}
