//! What a reloaded configuration makes of the world.
//!
//! Who is in the old file and in the new one is the same listener, cluster or endpoint, with other
//! settings. Whoever is only in the old one leaves, and keeps his place until nothing names him.
//!
//! ```text
//!   listener   open ──▶ draining ──▶ closed ──▶ its sockets are closed: its place is free
//!   cluster    there ──▶ serves listeners that drain ──▶ its endpoints leave ──▶ its place is free
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use pointsman_core::boundary::ListenerId;
use pointsman_core::ejection::Ejector;
use pointsman_core::health::{Health, Thresholds};
use pointsman_core::{ClusterId, EndpointId, Instant, Line, Openness, Protocol};

use super::discovered::{Discovered, Replaced};
use super::{ClusterState, ListenerState, Watched, World, most_flows};
use crate::plan::{ClusterPlan, ListenerPlan, Plan};

/// What may be done with a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Somebody has it.
    Taken,
    /// A listener of datagrams that leaves has it, with its sockets; it may be told to stay.
    Leaving,
    /// Nobody has it.
    Free,
}

impl World {
    /// Keeps what leaves from leaving further, while a reload is prepared that counts on it. False if
    /// one is under way.
    pub fn hold_places(&mut self) -> bool {
        !std::mem::replace(&mut self.places_held, true)
    }

    /// A reload is over.
    pub fn let_go_of_places(&mut self) {
        self.places_held = false;
    }

    /// Whether workers are about to close sockets.
    pub fn is_closing(&self) -> bool {
        self.listeners
            .iter()
            .any(|listener| listener.sockets_go() && listener.sockets_open.get() > 0)
    }

    /// What may be done with the places of listeners, and with those of clusters.
    pub fn places(&mut self) -> (Vec<Place>, Vec<Place>) {
        let listeners = self.listeners.iter().map(ListenerState::place);
        let clusters = self.clusters().map(|cluster| match self.is_free(cluster) {
            true => Place::Free,
            false => Place::Taken,
        });
        (listeners.collect(), clusters.collect())
    }

    /// Goes by another plan, whose listeners and clusters have the places that they had, or free ones.
    /// `opened` are the listeners for which all workers get sockets, at these addresses.
    pub fn reload(&mut self, now: Instant, plan: &Plan, opened: &[(ListenerId, SocketAddr)]) {
        self.all_flows.max = most_flows(plan);
        let drain_until = now + plan.drain_timeout;
        for (place, listener) in plan.listeners.iter().enumerate() {
            let is_it = |(id, _): &&(ListenerId, SocketAddr)| id.index() == place;
            match opened.iter().find(is_it) {
                Some((_, address)) => {
                    let state = self.open(listener, *address);
                    put(&mut self.listeners, place, state);
                }
                None => self.listeners[place].follow(listener, drain_until, self.hash_key),
            }
        }
        for (place, cluster) in plan.clusters.iter().enumerate() {
            let id = ClusterId(place as u16);
            if place < self.clusters.len() && (cluster.removed || !self.is_free(id)) {
                self.clusters[place].follow(cluster);
            } else {
                let old = self.clusters.get(place);
                let first = old.map_or(EndpointId(0), |old| old.next_id);
                // A worker may not have heard yet that nobody waits there any more.
                let line = old.map(|old| Arc::clone(&old.queue.line));
                let line = line.unwrap_or_else(|| Arc::new(Line::new(self.workers as usize)));
                let state = ClusterState::new(cluster, plan.uses_table(cluster), first, line);
                put(&mut self.clusters, place, state);
            }
        }
        self.let_clusters_go();
        self.census += 1;
    }

    /// Moves on what leaves. Tells whether there is something to publish.
    pub fn tidy(&mut self, now: Instant) -> bool {
        if self.places_held {
            return false;
        }
        let closed = self.listeners.iter_mut().filter_map(|listener| listener.close_if_due(now));
        let closed = closed.count() > 0;
        let released = self.release_outgoing();
        self.let_clusters_go() || closed || released
    }

    /// Has the endpoints leave of clusters that were removed and that no listener needs any more.
    fn let_clusters_go(&mut self) -> bool {
        let mut any = false;
        for id in self.clusters() {
            let is_needed = self.is_needed(id);
            let cluster = &mut self.clusters[id.index()];
            if cluster.removed && !is_needed && !cluster.endpoints.is_empty() {
                cluster.leaving.append(&mut cluster.endpoints);
                any = true;
            }
        }
        self.census += u64::from(any);
        any
    }

    /// Whether a listener may have flows for it.
    fn is_needed(&self, cluster: ClusterId) -> bool {
        let mut listeners = self.listeners.iter();
        listeners.any(|it| it.plan.cluster == cluster && it.place() != Place::Free)
    }

    fn is_free(&self, id: ClusterId) -> bool {
        let cluster = &self.clusters[id.index()];
        let has_flows = |watched: &Watched| watched.endpoint.load.flows_active() > 0;
        cluster.removed
            && cluster.endpoints.is_empty()
            && !cluster.leaving.iter().any(has_flows)
            && !self.is_needed(id)
    }
}

fn put<T>(places: &mut Vec<T>, place: usize, value: T) {
    match places.get_mut(place) {
        Some(taken) => *taken = value,
        None => places.push(value),
    }
}

impl ListenerState {
    fn place(&self) -> Place {
        let (sockets, flows) = (self.sockets_open.get(), self.flows_active.get());
        match self.openness {
            Openness::Closed if sockets == 0 && flows == 0 => Place::Free,
            Openness::Draining if self.plan.protocol == Protocol::Udp => Place::Leaving,
            Openness::Open | Openness::Draining | Openness::Closed => Place::Taken,
        }
    }

    /// Whether nothing more comes through its sockets.
    fn sockets_go(&self) -> bool {
        match self.openness {
            Openness::Open => false,
            Openness::Draining => self.plan.protocol == Protocol::Tcp,
            Openness::Closed => true,
        }
    }

    /// Goes by another plan, or leaves.
    fn follow(&mut self, plan: &ListenerPlan, drain_until: Instant, hash_key: [u64; 2]) {
        match (plan.removed, self.openness) {
            (true, Openness::Open) => {
                let (listener, flows) = (&*self.plan.name, self.flows_active.get());
                tracing::info!(listener, address = %self.plan.address, flows, "listener is removed");
                (self.openness, self.drain_until) = (Openness::Draining, Some(drain_until));
            }
            (true, _) => {}
            (false, _) => {
                (self.openness, self.drain_until) = (Openness::Open, None);
                self.set(plan, hash_key);
            }
        }
    }

    /// Takes on other settings. What is counted goes on being counted where the limit is of the same
    /// kind; a rate that changes begins anew.
    fn set(&mut self, plan: &ListenerPlan, hash_key: [u64; 2]) {
        let plan = ListenerPlan { address: self.plan.address, ..plan.clone() };
        let old = std::mem::replace(&mut self.plan, plan.clone());
        let before = (
            self.new_flow_rate.take(),
            self.new_flow_rate_per_client.take(),
            self.flows_per_client.take(),
        );
        let is_same_client = old.client_prefix == plan.client_prefix;
        if old.limits() == plan.limits() {
            (self.new_flow_rate, self.new_flow_rate_per_client, self.flows_per_client) = before;
            return;
        }
        self.set_limits(hash_key);
        if old.new_flows_per_second == plan.new_flows_per_second {
            self.new_flow_rate = before.0;
        }
        let own_rate = (old.new_flows_per_second_per_client, plan.new_flows_per_second_per_client);
        if is_same_client && own_rate.0 == own_rate.1 {
            self.new_flow_rate_per_client = before.1;
        }
        if let (true, Some(counts), true) =
            (is_same_client, before.2, plan.flows_per_client_max > 0)
        {
            counts.set_max(plan.flows_per_client_max);
            self.flows_per_client = Some(counts);
        }
    }

    /// Closes it if it drains and has nothing left, or no more time.
    fn close_if_due(&mut self, now: Instant) -> Option<()> {
        let until = self.drain_until.filter(|_| self.openness == Openness::Draining)?;
        // Whoever is in the backlog of a listener of connections is served yet.
        let is_idle = self.flows_active.get() == 0
            && (self.plan.protocol == Protocol::Udp || self.sockets_open.get() == 0);
        (is_idle || until <= now).then(|| {
            let (listener, flows) = (&*self.plan.name, self.flows_active.get());
            tracing::info!(listener, address = %self.plan.address, flows, "listener is closed");
            self.openness = Openness::Closed;
        })
    }
}

impl ClusterState {
    /// Goes by another plan. A removed one stays as it is until nobody needs it.
    fn follow(&mut self, plan: &ClusterPlan) {
        if plan.removed {
            self.removed = true;
            return;
        }
        self.removed = false;
        (self.eligibility, self.proxy) = (plan.eligibility, plan.proxy);
        (self.transparent, self.slow_start) = (plan.transparent, plan.slow_start);
        // Whoever waits does so no longer than he was told.
        (self.queue.flows_max, self.queue.timeout) = (plan.queue.flows_max, plan.queue.timeout);
        if self.passive != plan.passive {
            self.passive.clone_from(&plan.passive);
            self.ejector = plan.passive.clone().map(Ejector::new);
            if self.ejector.is_none() {
                self.endpoints.iter_mut().for_each(|watched| watched.ejection.end());
            }
        }
        let thresholds = plan.check.as_ref().map(|check| check.thresholds);
        if self.thresholds != thresholds {
            self.thresholds = thresholds;
            self.endpoints.iter_mut().for_each(|watched| watched.go_by(thresholds));
        }
        self.follow_sources(plan);
    }

    /// The file says who there is and what each weighs, or where that is found. What an operator said of
    /// a drain holds for who stays. Where endpoints are to be found elsewhere than before, those there
    /// are serve until somebody has answered.
    fn follow_sources(&mut self, plan: &ClusterPlan) {
        let Some(discovery) = &plan.discovery else {
            self.discovered = None;
            let Replaced { added, removed, set } = self.replace(&plan.endpoints);
            if added + removed + set > 0 {
                let cluster = &*self.name;
                tracing::info!(cluster, added, removed, set, "endpoints are those of the file");
            }
            return;
        };
        let is_same = |known: &Discovered| known.plan == *discovery;
        if !self.discovered.as_ref().is_some_and(is_same) {
            self.discovered = Some(Discovered::new(discovery));
        }
    }
}

impl Watched {
    /// Is checked by other rules, or by none any more. What is believed of it stays; one that begins
    /// to be checked is up.
    fn go_by(&mut self, thresholds: Option<Thresholds>) {
        match (&mut self.health, thresholds) {
            (Some(health), Some(thresholds)) => health.go_by(thresholds),
            (health, thresholds) => *health = thresholds.map(Health::new),
        }
    }
}

impl ListenerPlan {
    /// What is counted, and how.
    fn limits(&self) -> impl PartialEq + use<> {
        (
            self.new_flows_per_second,
            self.new_flows_per_second_per_client,
            self.flows_per_client_max,
            self.client_prefix,
        )
    }
}
