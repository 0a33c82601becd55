//! What the old process has, as it tells the new one, and what of it the new one takes.
//!
//! Listeners and clusters go by names and addresses. The numbers that stand beside them are the old
//! process' own, by which its flows name them.

use std::net::SocketAddr;
use std::path::PathBuf;

use pointsman_core::{Openness, Snapshot};
use serde::{Deserialize, Serialize};

use super::Upgrades;
use crate::plan::{Plan, protocol_name};
use crate::service::Service;
use crate::world::ClusterLegacy;

/// Everything there is to be taken over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Estate {
    /// The program's version.
    pub version: String,
    /// How many workers have sockets and flows.
    pub workers: usize,
    /// Those that accept.
    pub listeners: Vec<Holding>,
    /// What is known of endpoints, by number of the cluster.
    pub clusters: Vec<ClusterLegacy>,
    /// Where the command line talks to.
    pub admin_socket: PathBuf,
    /// Whether this process has made that file, and is to remove it.
    pub owns_admin_socket: bool,
    /// Where HTTP is served.
    pub admin_http: Option<SocketAddr>,
    /// What has come of upgrades so far.
    pub upgrades: Upgrades,
}

/// A listener whose sockets there are.
#[derive(Debug, Serialize, Deserialize)]
pub struct Holding {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The address that is written.
    pub written: SocketAddr,
    /// The one that it really has.
    pub address: SocketAddr,
}

/// What the new process takes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Taken {
    /// Listeners, by their numbers in the old process.
    pub(super) listeners: Vec<u16>,
    /// Whether it takes the admin socket.
    pub(super) admin_socket: bool,
    /// Whether it takes the socket that HTTP is served at.
    pub(super) admin_http: bool,
}

impl Estate {
    /// What a running balancer has.
    pub(super) fn of(service: &Service) -> Self {
        let (snapshot, clusters, setup) =
            service.look(|world| (world.snapshot(), world.bequeath(), service.setup()));
        let plan = &setup.plan;
        Self {
            version: crate::VERSION.to_owned(),
            workers: service.fleet().len(),
            listeners: holdings(plan, &snapshot),
            clusters,
            admin_socket: plan.admin_socket.clone(),
            owns_admin_socket: service.doors().owns_file(),
            admin_http: plan.admin_http,
            upgrades: service.upgrades().clone(),
        }
    }
}

fn holdings(plan: &Plan, snapshot: &Snapshot) -> Vec<Holding> {
    let listeners = (0..).zip(&plan.listeners).zip(&snapshot.listeners);
    let open = listeners.filter(|(_, listener)| listener.openness == Openness::Open);
    let holding = |((id, plan), listener): ((u16, &crate::plan::ListenerPlan), _)| {
        let listener: &pointsman_core::Listener = listener;
        Holding {
            id,
            name: plan.name.clone(),
            protocol: protocol_name(plan.protocol).to_owned(),
            written: plan.address,
            address: listener.address,
        }
    };
    open.map(holding).collect()
}
