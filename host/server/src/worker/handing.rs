//! What a worker has goes over to another process, or comes from one.
//!
//! The balancer knows what there is and the ring has the descriptors; here they come together. A
//! worker that has given its sockets away goes on with its connections, until it is told to drain.

use pointsman_core::Instant;
use pointsman_core::boundary::ListenerId;
use pointsman_core::handover::{Handed, TakenOver, TakenPort};
use pointsman_ring::GivenListener;
use tokio::sync::oneshot;

use super::{Worker, listen};
use crate::mailbox::Handover;
use crate::sockets::WorkerSocket;

impl Worker {
    /// No other command is taken until the heir has got what there is, which is a few turns later.
    pub(super) fn begin_handing_over(&mut self, heir: oneshot::Sender<Handover>) {
        self.balancer.begin_handing_over(&mut self.ops);
        self.heir = Some(heir);
    }

    /// Whether somebody waits for what this worker has, and it cannot be given away yet. If it can, it
    /// is; where nobody waits any more, it is taken back.
    pub(super) fn is_still_preparing(&mut self, now: Instant) -> bool {
        if self.balancer.can_hand_over()
            && let Some(heir) = self.heir.take()
        {
            let handover = self.give_away(now);
            if let Err(unheard) = heir.send(handover) {
                self.take_over(now, unheard);
            }
        }
        self.heir.is_some()
    }

    fn give_away(&mut self, now: Instant) -> Handover {
        let Handed { listeners, ports, flows, kept } = self.balancer.hand_over(now, &mut self.ops);
        let sockets = listeners.into_iter().filter_map(|id| {
            let GivenListener { socket, shared } = self.ring.give_listener(id)?;
            Some((id, WorkerSocket { socket, shared }))
        });
        let sockets = sockets.collect();
        let ports = ports.into_iter();
        let ports = ports.filter_map(|port| Some((port, self.ring.give_port(port.port)?)));
        Handover { sockets, ports: ports.collect(), flows, kept }
    }

    pub(super) fn take_over(&mut self, now: Instant, handover: Handover) -> TakenOver {
        let Handover { sockets, ports, flows, kept } = handover;
        for (id, socket) in sockets {
            self.take_listener(id, socket);
        }
        let with_socket = ports.into_iter().map(|(port, socket)| (port, Some(socket)));
        let (ports, mut sockets): (Vec<_>, Vec<_>) = with_socket.unzip();
        let handed = Handed { listeners: Vec::new(), ports, flows, kept };
        let (taken, ports) = self.balancer.take_over(now, &handed, &mut self.ops);
        for TakenPort { place, port, kind } in ports {
            if let Some(socket) = sockets[place].take() {
                self.ring.take_port(port, &kind, socket);
            }
        }
        taken
    }

    /// Serves a listener with this socket. Without it the worker is one of those that have none for
    /// the listener.
    fn take_listener(&mut self, id: ListenerId, socket: WorkerSocket) {
        let Some(listener) = self.balancer.listener_to_serve(id) else { return };
        if let Err(error) = listen(&mut self.ring, (id, listener), socket) {
            tracing::error!(listener = &*listener.name, %error, "cannot be taken over");
        }
    }
}
