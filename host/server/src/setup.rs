//! What the configuration says, and what was made of it, as of the start or the last reload.
//!
//! It is one object, which a reload replaces as a whole: whoever walks through it sees one
//! configuration from beginning to end. Listeners, clusters and plugins keep their places from one
//! to the next for as long as anything names them ([`Plan`] says how).

use std::sync::Arc;

use pointsman_core::ClusterId;

use crate::config::Config;
use crate::plan::{Plan, PluginId, PolicyPlan};
use crate::plugins::Loaded;
use crate::seat::Seat;

/// Everything that comes of one reading of the configuration.
pub struct Setup {
    /// As it was read.
    pub config: Config,
    /// What it says.
    pub plan: Plan,
    /// The policies that are plugins, by [`PluginId`].
    pub loaded: Vec<Arc<Loaded>>,
    /// Who decides, by [`ClusterId`].
    pub seats: Vec<Arc<Seat>>,
}

impl Setup {
    /// Who decides for a cluster.
    pub fn seat(&self, cluster: ClusterId) -> &Arc<Seat> {
        &self.seats[cluster.index()]
    }

    /// Who decides, for each cluster that is configured.
    pub fn seated(&self) -> impl Iterator<Item = (ClusterId, &Arc<Seat>)> {
        let seats = (0..).map(ClusterId).zip(&self.seats);
        seats.zip(&self.plan.clusters).filter(|(_, plan)| !plan.removed).map(|(seat, _)| seat)
    }

    /// The clusters that use a plugin.
    pub fn clusters_of(&self, plugin: PluginId) -> Vec<ClusterId> {
        let clusters = (0..).map(ClusterId).zip(&self.plan.clusters);
        let uses = |plan: &crate::plan::ClusterPlan| {
            !plan.removed && plan.policy == PolicyPlan::Plugin(plugin)
        };
        clusters.filter(|(_, plan)| uses(plan)).map(|(cluster, _)| cluster).collect()
    }
}
