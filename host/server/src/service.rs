//! A running balancer as the control thread holds it: shared by the control loop, which changes
//! it, and the admin interface, which shows it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fleet::Fleet;
use crate::plan::{Plan, PluginId};
use crate::plugins::Plugins;
use crate::view::{PluginView, View};
use crate::world::World;

/// Everything that belongs to one running balancer.
pub struct Service {
    plan: Plan,
    plugins: Plugins,
    fleet: Fleet,
    world: Mutex<World>,
    access_log_dropped: Arc<AtomicU64>,
    since: Instant,
}

impl Service {
    /// Puts the parts together; from here on it counts as running.
    pub fn new(
        plan: Plan,
        plugins: Plugins,
        fleet: Fleet,
        world: World,
        access_log_dropped: Arc<AtomicU64>,
    ) -> Self {
        let since = Instant::now();
        Self { plan, plugins, fleet, world: Mutex::new(world), access_log_dropped, since }
    }

    /// What it was started with.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its workers.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
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
        let snapshot = {
            let mut world = self.world();
            change(&mut world);
            world.publish()
        };
        self.fleet.apply(&snapshot);
    }

    /// Lets the world take something in. What comes of it is published by [`Self::change`] only.
    pub fn look<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.world())
    }

    /// What there is to see, with the workers' counts of this moment.
    pub async fn view(&self) -> View {
        let stats = self.fleet.stats().await;
        let snapshot = self.world().snapshot();
        let plugins = self.plan.plugins.iter().enumerate().map(|(place, plugin)| PluginView {
            name: plugin.name.clone(),
            counts: self.plugins.counts(PluginId(place)),
        });
        View::new(snapshot, &stats, plugins.collect(), self.access_log_dropped.load(Relaxed))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
