//! Ports, as they are opened, fail and close.

use std::net::SocketAddr;

use pointsman_core::CloseReason;
use pointsman_core::boundary::{PortId, PortKind};

use super::model::{Model, Port, Role, Scene, Seen};

impl Model {
    pub(super) fn on_open(
        &mut self,
        scene: &Scene<'_>,
        (listener, client, role): (usize, SocketAddr, Role),
        port: PortId,
        kind: &PortKind,
    ) {
        assert!(
            self.may_open(scene, listener) || self.is_unsure(scene, listener),
            "too many ports"
        );
        let PortKind { towards, connected, from, makes_way, .. } = *kind;
        let owns = scene.owns(listener, client, towards);
        assert!(role == Role::Stateless || (role == Role::Owned) == owns);
        assert_eq!(from, scene.source(listener, client, towards), "where it leaves from");
        let any = scene.snapshot.clusters.iter().any(|cluster| cluster.transparent);
        assert_eq!(makes_way, any && !connected, "numbers of others' ports");
        let is_v4 = towards.is_ipv4();
        let fresh = Port { listener, role, from, is_v4, failed: false, closing: false };
        self.worker(scene).rests.on_closed(port);
        self.obscure_unseen(scene, listener, towards);
        let old = self.worker(scene).ports.insert(port, fresh);
        assert!(old.is_none_or(|old| old.failed), "the number is not free");
    }

    /// Flows that have moved to other endpoints than the one that a port is opened for had theirs before,
    /// which only their next datagrams show.
    fn obscure_unseen(&mut self, scene: &Scene<'_>, listener: usize, towards: SocketAddr) {
        let worker = self.worker(scene);
        let unseen = worker.flows.iter().filter(|it| it.listener == listener && it.port.is_none());
        let moved = unseen.filter_map(|flow| flow.target.ok());
        let elsewhere = moved.filter(|(_, address)| *address != towards);
        elsewhere.for_each(|(endpoint, _)| worker.rests.obscure((listener, endpoint)));
    }

    /// Whether ports have failed that may or may not be given up yet.
    pub(super) fn is_unsure(&self, scene: &Scene<'_>, listener: usize) -> bool {
        self.workers[scene.worker].short_of_ports[listener]
    }

    pub(super) fn on_port_failed(&mut self, scene: &Scene<'_>, port: PortId, seen: &mut Seen) {
        let worker = self.worker(scene);
        let Port { listener, role, from, .. } = worker.ports[&port];
        worker.short_of_ports[listener] |= from.is_none();
        let owner = worker.flows.iter().position(|flow| flow.port == Some(port));
        if let Some(place) = owner.filter(|_| role == Role::Owned) {
            worker.ports.get_mut(&port).expect("the port is known").failed = true;
            assert_eq!(self.end_this(scene, place, seen).0, CloseReason::Descriptors);
            return;
        }
        let is_used = worker.flows.iter().any(|flow| {
            let unknown = flow.port.is_none() && flow.target.is_ok() && flow.listener == listener;
            flow.port == Some(port) || (unknown && role == Role::Shared)
        });
        if is_used {
            worker.ports.get_mut(&port).expect("the port is known").failed = true;
        } else {
            worker.ports.remove(&port);
        }
    }

    pub(super) fn on_port_closed(&mut self, scene: &Scene<'_>, port: PortId) {
        let closed = self.worker(scene).ports.remove(&port);
        assert!(closed.is_some_and(|port| port.closing && !port.failed));
    }
}
