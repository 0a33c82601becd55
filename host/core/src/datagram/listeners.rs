//! Listeners of datagrams that come, leave and end, with the world that says so.

use core::time::Duration;

use super::{Datagrams, Turn};
use crate::boundary::{ListenerId, Op};
use crate::snapshot::{Listener, OnEndpointDown};

/// How often a listener that drains looks whether other workers still have flows of it.
const DRAIN_POLL: Duration = Duration::from_millis(50);

impl Datagrams {
    /// Whether a listener is one of datagrams that has not ended.
    pub(crate) fn receives(&self, id: ListenerId) -> bool {
        self.open.get(id.index()).is_some_and(|open| *open)
    }

    /// Takes in a new world.
    pub(crate) fn apply(&mut self, turn: &mut Turn<'_>) {
        let acts = |listener: &Listener| listener.on_endpoint_down != OnEndpointDown::Keep;
        if self.bindings.apply(turn.snapshot) && turn.snapshot.listeners.iter().any(acts) {
            self.sweep_all();
        }
        self.apply_listeners(turn);
        if turn.snapshot.drain_until.is_some() && self.drain_poll_at.is_none() {
            self.drain_poll_at = Some(turn.now);
        }
    }

    /// Listeners have come, or are closed, which ends what they have.
    fn apply_listeners(&mut self, turn: &mut Turn<'_>) {
        let count = turn.snapshot.listeners.len();
        self.table.apply_listeners(count);
        self.ports.apply(turn.snapshot);
        self.open.resize(count.max(self.open.len()), false);
        for (place, listener) in turn.snapshot.listeners.iter().enumerate() {
            if listener.is_open() && listener.is_datagrams() && turn.snapshot.drain_until.is_none()
            {
                self.open[place] = true;
            } else if listener.is_closed() && core::mem::take(&mut self.open[place]) {
                turn.ops.push(Op::StopAccepting { listener: ListenerId(place as u16) });
                self.sweep_all();
                self.trim_at = self.trim_at.map(|_| turn.now);
            }
        }
    }

    /// Ends the listeners that have no flow left in any worker: closing one worker's socket sends
    /// its clients, and some of the others', to the sockets that are left.
    pub(super) fn poll_drain(&mut self, turn: &mut Turn<'_>) {
        let is_over = turn.drain_is_over();
        if is_over && !self.drain_ended {
            self.drain_ended = true;
            self.sweep_all();
        }
        for (place, open) in self.open.iter_mut().enumerate() {
            let listener = ListenerId(place as u16);
            if *open && (is_over || turn.listener(listener).flows_active.get() == 0) {
                *open = false;
                turn.ops.push(Op::StopAccepting { listener });
            }
        }
        self.drain_poll_at = self.open.iter().any(|open| *open).then_some(turn.now + DRAIN_POLL);
    }
}
