//! Endpoints that are found while the balancer runs.
//!
//! What was found replaces what there was as one change, by address: who stays keeps its flows, its
//! health and whether it drains, and only its weight, its limit and its rank are set. Nothing at all changes where
//! the answer names the same, in whatever order.
//!
//! An answer that names nobody of those who serve would leave nobody until the first check of somebody
//! new. So those who serve go on until one has passed, or all have been checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{ClusterState, Watched, World};
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

    /// Whether anybody has ever answered.
    pub(super) fn has_answer(&self) -> bool {
        self.standing.answered_at.is_some()
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

    /// Lets endpoints go that were removed and have served until others do. Tells whether any have.
    pub(super) fn release_outgoing(&mut self) -> bool {
        let waits = |cluster: &&mut ClusterState| cluster.endpoints.iter().any(|it| it.outgoing);
        let waiting = self.clusters.iter_mut().filter(waits);
        let any = waiting.map(ClusterState::release).sum::<usize>() > 0;
        self.census += u64::from(any);
        any
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
                watched.outgoing = true;
                staying.push(watched);
                continue;
            };
            let Watched { endpoint, backup, outgoing, .. } = &mut watched;
            replaced.added += usize::from(std::mem::take(outgoing));
            let wanted = (plan.weight, plan.flows_max, plan.backup);
            if (endpoint.weight, endpoint.flows_max, *backup) != wanted {
                (endpoint.weight, endpoint.flows_max, *backup) = wanted;
                replaced.set += 1;
            }
            staying.push(watched);
        }
        self.endpoints = staying;
        self.forget_idle();
        replaced.added += missing.len();
        for plan in wanted.iter().filter(|plan| missing.contains_key(&plan.address)) {
            tracing::debug!(endpoint = %plan.address, "endpoint is added");
            self.add(plan);
        }
        replaced.removed = self.release();
        replaced
    }

    /// Lets those go who were removed, unless they alone serve and somebody may soon do so in their
    /// place. Tells how many have gone.
    fn release(&mut self) -> usize {
        let (going, staying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.endpoints).into_iter().partition(|watched| watched.outgoing);
        let is_served = staying.iter().any(|watched| watched.state().is_available());
        let is_hopeful = staying.iter().any(|watched| watched.state().unproven);
        let (held, gone): (Vec<_>, Vec<_>) = going.into_iter().partition(|watched| {
            self.discovered.is_some() && is_hopeful && !is_served && watched.state().is_available()
        });
        let count = gone.len();
        for watched in &gone {
            tracing::debug!(endpoint = %watched.endpoint.address, "endpoint is removed");
        }
        self.leaving.extend(gone);
        self.endpoints = staying;
        self.endpoints.extend(held);
        self.endpoints.sort_unstable_by_key(|watched| watched.endpoint.id);
        count
    }
}

#[cfg(test)]
mod tests;
