//! What an operator changes about endpoints while the balancer runs.
//!
//! A command is about some endpoints of one cluster, and is carried out for all of them or for
//! none: first everything that speaks against it is gathered, then nothing can fail any more.
//!
//! ```text
//!            add, weight, drain, undrain               remove
//!   configured ◀──────────────────────── addresses ───────────▶ leaving ──▶ forgotten
//!       ▲                                                         │    no flows
//!       └───────────────── added again, with its counts ──────────┘
//! ```

use std::collections::BTreeSet;
use std::net::SocketAddr;

use pointsman_core::health::Health;
use pointsman_core::{ClusterId, EndpointId, EndpointState};

use super::{ClusterState, Watched, World};
use crate::plan::{ENDPOINT_FLOWS, ENDPOINTS_MAX, EndpointPlan, endpoint_problem, limit, weights};
use crate::problem::suggestion;

/// Among how many endpoints the one is looked for that may have been meant.
const SUGGESTIONS_MAX: usize = 100;

/// What is to become of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointChange {
    /// They come to serve.
    Add {
        /// Their share relative to the others.
        weight: u32,
        /// Whether they are to be used only where no other is available.
        backup: bool,
        /// Flows each may have at a time; 0 if that is not limited.
        flows_max: u32,
    },
    /// They get nothing new and are forgotten when their flows have ended.
    Remove,
    /// They serve otherwise than before.
    Set {
        /// Their share, if it changes.
        weight: Option<u32>,
        /// Flows each may have at a time, if that changes; 0 if it is not limited.
        flows_max: Option<u32>,
        /// Whether they get nothing new, if that changes.
        draining: Option<bool>,
    },
}

impl EndpointChange {
    fn weight(self) -> Option<u32> {
        match self {
            Self::Add { weight, .. } => Some(weight),
            Self::Set { weight, .. } => weight,
            Self::Remove => None,
        }
    }

    fn flows_max(self) -> Option<u32> {
        match self {
            Self::Add { flows_max, .. } => Some(flows_max),
            Self::Set { flows_max, .. } => flows_max,
            Self::Remove => None,
        }
    }
}

/// An endpoint that checks may be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Its lasting name.
    pub id: EndpointId,
    /// Where it serves.
    pub address: SocketAddr,
    /// Whether it is believed to serve.
    pub up: bool,
}

impl World {
    /// Changes endpoints of a cluster from the next world on: all of them, or none.
    ///
    /// # Errors
    /// Everything that speaks against it.
    pub fn change_endpoints(
        &mut self,
        cluster: ClusterId,
        addresses: &[SocketAddr],
        change: EndpointChange,
    ) -> Result<(), Vec<String>> {
        let cluster = &mut self.clusters[cluster.index()];
        cluster.forget_idle();
        let problems = cluster.problems(addresses, change);
        if !problems.is_empty() {
            return Err(problems);
        }
        for address in addresses {
            cluster.change(*address, change);
        }
        if !matches!(change, EndpointChange::Set { .. }) {
            self.census += 1;
        }
        Ok(())
    }

    /// A number that is another one when endpoints have come or gone.
    pub fn census(&self) -> u64 {
        self.census
    }

    /// A cluster's endpoints, as whoever checks them needs to know them.
    pub fn targets(&self, cluster: ClusterId) -> impl Iterator<Item = Target> {
        self.clusters[cluster.index()].endpoints.iter().map(|watched| {
            let (id, address) = (watched.endpoint.id, watched.endpoint.address);
            Target { id, address, up: watched.is_up() }
        })
    }

    /// By [`ClusterId`]: endpoints that were removed and still have flows.
    pub fn leaving(&mut self) -> Vec<Vec<EndpointState>> {
        let of = |cluster: &mut ClusterState| {
            cluster.forget_idle();
            cluster.leaving.iter().map(|one| EndpointState { up: false, ..one.state() }).collect()
        };
        self.clusters.iter_mut().map(of).collect()
    }

    /// The least number that no endpoint of this cluster has been named by.
    pub fn ids_end(&self, cluster: ClusterId) -> u32 {
        self.clusters[cluster.index()].next_id.0
    }
}

impl ClusterState {
    pub(super) fn forget_idle(&mut self) {
        self.leaving.retain(|watched| watched.endpoint.load.flows_active() > 0);
    }

    fn problems(&self, addresses: &[SocketAddr], change: EndpointChange) -> Vec<String> {
        if let Some(problem) = self.problem_of_discovery(change) {
            return vec![problem];
        }
        let mut problems = Vec::new();
        let weights = weights(self.slow_start);
        if let Some(weight) = change.weight().filter(|weight| !weights.contains(weight)) {
            let (least, most) = weights.into_inner();
            problems.push(format!(
                "weight {weight} is out of range; write {least} to {most}, or drain the endpoint"
            ));
        }
        if let Some(flows) = change.flows_max().filter(|flows| !ENDPOINT_FLOWS.contains(flows)) {
            let (least, most) = ENDPOINT_FLOWS.into_inner();
            problems.push(format!(
                "max_flows {flows} is out of range; write {least} to {most}, where 0 is no limit"
            ));
        }
        let known: BTreeSet<_> = self.addresses().collect();
        let mut named = BTreeSet::new();
        for address in addresses {
            if !named.insert(address) {
                problems.push(format!("{address} is named twice; name it once"));
            } else if let Some(problem) = self.problem_of(*address, change, &known) {
                problems.push(problem);
            }
        }
        problems.extend(self.problem_of_size(addresses, change));
        problems
    }

    /// What is found counts: what somebody changed by hand would be undone by the next answer.
    fn problem_of_discovery(&self, change: EndpointChange) -> Option<String> {
        let discovered = self.discovered.as_ref()?;
        let is_found = !matches!(change, EndpointChange::Set { weight: None, flows_max: None, .. });
        let (name, source) = (&self.name, &discovered.plan.source);
        is_found.then(|| {
            format!(
                "cluster \"{name}\" takes its endpoints from {source}; change them there, or drain \
                 and undrain them here"
            )
        })
    }

    fn problem_of(
        &self,
        address: SocketAddr,
        change: EndpointChange,
        known: &BTreeSet<SocketAddr>,
    ) -> Option<String> {
        let (is_known, name) = (known.contains(&address), &self.name);
        match change {
            EndpointChange::Add { .. } if is_known => Some(format!(
                "cluster \"{name}\" has {address} already; to change it, set its weight, drain or \
                 undrain it"
            )),
            EndpointChange::Add { .. } => {
                endpoint_problem(address).map(|problem| format!("{address}: {problem}"))
            }
            EndpointChange::Remove | EndpointChange::Set { .. } if !is_known => {
                let known: Vec<_> =
                    known.iter().take(SUGGESTIONS_MAX).map(ToString::to_string).collect();
                let hint = suggestion(&address.to_string(), known.iter().map(String::as_str));
                Some(format!("cluster \"{name}\" has no endpoint {address}{hint}"))
            }
            _ => None,
        }
    }

    /// A cluster is never left empty by mistake, or with backups of nobody: whoever wants no flows at
    /// all drains it.
    fn problem_of_size(&self, addresses: &[SocketAddr], change: EndpointChange) -> Option<String> {
        let (there, count, name) = (self.endpoints.len(), addresses.len(), &self.name);
        let stays = |one: &&Watched| !addresses.contains(&one.endpoint.address);
        let mut staying = self.endpoints.iter().filter(stays);
        match change {
            EndpointChange::Add { .. } if there + count > ENDPOINTS_MAX => Some(format!(
                "cluster \"{name}\" has {there} endpoint(s), and {ENDPOINTS_MAX} is the most; \
                 remove others first"
            )),
            EndpointChange::Remove if count >= there => Some(format!(
                "cluster \"{name}\" would have no endpoint left; add another first, or drain it"
            )),
            EndpointChange::Remove if staying.all(|one| one.backup) => Some(format!(
                "cluster \"{name}\" would have backups alone, of nobody; add another endpoint first, \
                 or drain instead"
            )),
            _ => None,
        }
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.endpoints.iter().map(|watched| watched.endpoint.address)
    }

    fn place_of(&self, address: SocketAddr) -> Option<usize> {
        self.addresses().position(|other| other == address)
    }

    fn change(&mut self, address: SocketAddr, change: EndpointChange) {
        let cluster = &*self.name;
        match (change, self.place_of(address)) {
            (EndpointChange::Add { weight, backup, flows_max }, None) => {
                tracing::info!(cluster, endpoint = %address, weight, backup, "endpoint is added");
                self.add(&EndpointPlan { address, weight, backup, flows_max: limit(flows_max) });
            }
            (EndpointChange::Remove, Some(place)) => {
                let watched = self.endpoints.remove(place);
                let flows = watched.endpoint.load.flows_active();
                tracing::info!(cluster, endpoint = %address, flows, "endpoint is removed");
                self.leaving.push(watched);
            }
            (EndpointChange::Set { weight, flows_max, draining }, Some(place)) => {
                let watched = &mut self.endpoints[place];
                let endpoint = &mut watched.endpoint;
                endpoint.weight = weight.unwrap_or(endpoint.weight);
                endpoint.flows_max = flows_max.map_or(endpoint.flows_max, limit);
                watched.draining = draining.unwrap_or(watched.draining);
                let (weight, draining) = (watched.endpoint.weight, watched.draining);
                tracing::info!(cluster, endpoint = %address, weight, draining, "endpoint is set");
            }
            _ => debug_assert!(false, "the problems were looked at before"),
        }
    }

    /// One that has not left yet is who it was, with its flows and all that is known of it. Either way
    /// it begins with a part of its share.
    pub(super) fn add(&mut self, plan: &EndpointPlan) {
        let health = self.thresholds.map(Health::unproven);
        let left = self.leaving.iter().position(|left| left.endpoint.address == plan.address);
        let mut watched = match left.map(|place| self.leaving.remove(place)) {
            Some(mut watched) => {
                watched.endpoint.weight = plan.weight;
                watched.endpoint.flows_max = plan.flows_max;
                Watched { health, backup: plan.backup, draining: false, outgoing: false, ..watched }
            }
            None => {
                let id = self.next_id;
                self.next_id = EndpointId(id.0 + 1);
                Watched::new(id, plan, health)
            }
        };
        watched.growth.restart(self.slow_start);
        let id = watched.endpoint.id;
        let place = self.endpoints.partition_point(|other| other.endpoint.id < id);
        self.endpoints.insert(place, watched);
    }
}
