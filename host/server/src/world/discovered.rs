//! Endpoints that are found while the balancer runs.
//!
//! What was found replaces what there was as one change, by address: who stays keeps its flows, its
//! health and whether it drains, and only its weight and its rank are set. Nothing at all changes where
//! the answer names the same, in whatever order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{ClusterState, World};
use crate::discovery::{Found, Standing, Who};
use crate::plan::{DiscoveryPlan, EndpointPlan};

/// How a cluster's endpoints are found, and how that goes.
#[derive(Debug)]
pub(super) struct Discovered {
    pub(super) plan: Arc<DiscoveryPlan>,
    standing: Standing,
}

impl Discovered {
    pub(super) fn new(plan: &Arc<DiscoveryPlan>) -> Self {
        Self { plan: Arc::clone(plan), standing: Standing::default() }
    }
}

/// The world is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unchanged;

impl World {
    /// Takes in what came of searches.
    ///
    /// # Errors
    /// There is no need of another world.
    pub fn take_found(&mut self, found: &[Found]) -> Result<(), Unchanged> {
        let changed = found.iter().filter(|found| self.take_one(found).is_ok()).count();
        if changed > 0 { Ok(()) } else { Err(Unchanged) }
    }

    fn take_one(&mut self, found: &Found) -> Result<(), Unchanged> {
        let cluster = self.clusters.get_mut(found.cluster.index()).ok_or(Unchanged)?;
        let discovered = cluster.discovered.as_mut().ok_or(Unchanged)?;
        if discovered.plan != found.plan || cluster.removed {
            return Err(Unchanged);
        }
        let who = Who { cluster: &cluster.name, source: &found.plan.source };
        discovered.standing.note(who, &found.said, Instant::now());
        let endpoints = match &found.said {
            Ok(answer) => &*answer.endpoints,
            Err(failure) if failure.forgets => &[],
            Err(_) => return Err(Unchanged),
        };
        let Replaced { added, removed, set } = cluster.replace(endpoints);
        if added + removed + set == 0 {
            return Err(Unchanged);
        }
        let (name, source) = (&*cluster.name, &found.plan.source);
        tracing::info!(cluster = name, %source, added, removed, set, "endpoints are found");
        self.census += u64::from(added + removed > 0);
        Ok(())
    }

    /// By [`ClusterId`](pointsman_core::ClusterId): who knows the endpoints and how it goes, if they
    /// are found.
    pub fn standings(&self) -> Vec<Option<(Arc<DiscoveryPlan>, Standing)>> {
        let of = |it: &Discovered| (Arc::clone(&it.plan), it.standing.clone());
        self.clusters.iter().map(|cluster| cluster.discovered.as_ref().map(of)).collect()
    }
}

/// How many endpoints have become what.
pub(super) struct Replaced {
    pub(super) added: usize,
    pub(super) removed: usize,
    pub(super) set: usize,
}

impl ClusterState {
    /// Makes these the endpoints. Who stays keeps all that is not said here.
    pub(super) fn replace(&mut self, wanted: &[EndpointPlan]) -> Replaced {
        let mut missing: BTreeMap<_, _> = wanted.iter().map(|it| (it.address, it)).collect();
        let mut replaced = Replaced { added: 0, removed: 0, set: 0 };
        let mut staying = Vec::with_capacity(wanted.len());
        for mut watched in std::mem::take(&mut self.endpoints) {
            let Some(plan) = missing.remove(&watched.endpoint.address) else {
                replaced.removed += 1;
                tracing::debug!(endpoint = %watched.endpoint.address, "endpoint is removed");
                self.leaving.push(watched);
                continue;
            };
            if (watched.endpoint.weight, watched.backup) != (plan.weight, plan.backup) {
                (watched.endpoint.weight, watched.backup) = (plan.weight, plan.backup);
                replaced.set += 1;
            }
            staying.push(watched);
        }
        self.endpoints = staying;
        self.forget_idle();
        replaced.added = missing.len();
        for plan in wanted.iter().filter(|plan| missing.contains_key(&plan.address)) {
            tracing::debug!(endpoint = %plan.address, "endpoint is added");
            self.add(plan);
        }
        replaced
    }
}

#[cfg(test)]
mod tests;
