//! What the new process does that an ordinary start does not: it waits, with everything else ready, for
//! what the old one hands over.

use std::net::TcpListener as StdTcpListener;
use std::os::fd::OwnedFd;

use anyhow::Context;
use pointsman_core::boundary::ListenerId;
use pointsman_core::handover::TakenOver;
use pointsman_core::{ClusterId, Untaken};
use tokio::net::TcpListener;

use super::estate::Estate;
use super::luggage::Numbers;
use super::predecessor::{Inheritance, Predecessor};
use super::wire::{Kind, Unheard};
use super::{Upgrades, luggage};
use crate::failure::Failure;
use crate::fleet::Fleet;
use crate::mailbox::Handover;
use crate::plan::{ClusterPlan, Plan};
use crate::sockets::{AdminSocket, Entrance, WorkerSocket};
use crate::world::{ClusterLegacy, World};

/// What of this process the old one's things go to.
pub struct Heir<'a> {
    /// What it is configured as.
    pub plan: &'a Plan,
    /// What it takes over.
    pub inheritance: &'a Inheritance,
    /// What it knows.
    pub world: &'a mut World,
    /// Its workers, which have no sockets yet.
    pub fleet: &'a Fleet,
    /// The sockets that it has opened itself, by worker and listener; they begin with the others.
    pub own: Vec<Vec<Option<WorkerSocket>>>,
    /// What of the admin interface it has opened itself.
    pub entrance: &'a mut Entrance,
}

/// What comes from the old process at the moment of taking over.
struct Handed {
    endpoints: Vec<ClusterLegacy>,
    unix: OwnedFd,
    http: Option<OwnedFd>,
    workers: Vec<Handover>,
}

impl Heir<'_> {
    /// Has workers go on with what the old process hands over, if there is one. It waits to hear of that,
    /// and goes on itself if this process ends before.
    ///
    /// # Errors
    /// The old process goes on, or is gone.
    pub fn succeed(self, predecessor: Option<&mut Predecessor>) -> Result<Succession, Failure> {
        let Some(predecessor) = predecessor else { return Ok(Succession::default()) };
        let handed = self
            .receive(predecessor)
            .context("the process that is to be taken over from goes on without this one")?;
        let Handed { endpoints, unix, http, mut workers } = handed;
        let owns_file = predecessor.estate().owns_admin_socket;
        if self.inheritance.admin_socket {
            let taken = AdminSocket::take_over(self.plan, unix, owns_file);
            self.entrance.unix = Some(taken.map_err(Failure::input)?);
        }
        if let Some(http) = http.filter(|_| self.inheritance.admin_http) {
            let http = StdTcpListener::from(http);
            http.set_nonblocking(true)?;
            self.entrance.http = Some(TcpListener::from_std(http)?);
        }
        self.world.inherit(&endpoints);
        self.fleet.apply(&self.world.publish());
        for (handover, own) in workers.iter_mut().zip(self.own) {
            let own = (0..).map(ListenerId).zip(own);
            handover.sockets.extend(own.filter_map(|(id, socket)| Some((id, socket?))));
        }
        let taken = self.fleet.take_over(workers).context("cannot take over")?;
        let flows_lost = taken.untaken.iter().copied().map(u64::from).sum::<u64>();
        tell_untaken(&taken);
        let (flows, estate) = (taken.flows.into(), predecessor.estate());
        let mut upgrades = estate.upgrades.clone();
        upgrades.note_success(&estate.version, (flows, flows_lost));
        Ok(Succession { flows, flows_lost, upgrades })
    }

    /// Says that everything is ready, and waits for what the old process hands over.
    fn receive(&self, predecessor: &mut Predecessor) -> Result<Handed, Unheard> {
        predecessor.prepared(&self.inheritance.taken())?;
        let numbers = self.numbers(predecessor.estate());
        let wire = predecessor.wire();
        let endpoints = wire.await_kind(Kind::Endpoints)?.read()?;
        let (unix, http) = luggage::doors(wire.await_kind(Kind::Doors)?)?;
        let workers = luggage::receive(wire, self.fleet.len(), &numbers)?;
        Ok(Handed { endpoints, unix, http, workers })
    }

    fn numbers(&self, estate: &Estate) -> Numbers {
        let listeners = (0..).map(ListenerId).zip(&self.inheritance.listeners);
        let listeners = listeners.filter_map(|(id, before)| Some(((*before)?.id, id)));
        let names = (0..).zip(&estate.clusters);
        let clusters = names.filter_map(|(old, cluster)| {
            let is_it = |plan: &ClusterPlan| plan.name == cluster.name;
            let place = self.plan.clusters.iter().position(is_it)?;
            Some((old, ClusterId(place as u16)))
        });
        Numbers { listeners: listeners.collect(), clusters: clusters.collect() }
    }
}

/// That workers go on with what they were handed.
#[derive(Default)]
pub struct Succession {
    flows: u64,
    flows_lost: u64,
    /// What has come of upgrades, this one included.
    pub upgrades: Upgrades,
}

impl Succession {
    /// Has the old process let go of everything: nothing may fail any more.
    pub fn tell(&self, predecessor: &mut Predecessor) {
        let Self { flows, flows_lost, .. } = *self;
        let there = super::TakenOver { version: crate::VERSION.to_owned(), flows, flows_lost };
        // Who has given this process up has ended it, so whoever does not hear this is gone.
        if let Err(error) = predecessor.wire().tell(Kind::TakenOver, &there) {
            tracing::warn!(%error, "the process before is gone; its connections are lost");
        }
    }
}

fn tell_untaken(taken: &TakenOver) {
    for (reason, flows) in Untaken::ALL.iter().zip(taken.untaken).filter(|(_, flows)| *flows > 0) {
        tracing::warn!(reason = reason.label(), flows, "flows of datagrams cannot go on here");
    }
}
