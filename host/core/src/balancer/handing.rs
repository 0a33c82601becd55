//! Another process goes on with what this one has: it is handed over, and taken over there.
//!
//! ```text
//!   none ── asked for ──▶ holding ── held ──▶ settling ── held again ──▶ ready ── handed over ──▶ none
//! ```
//!
//! Nothing may be lost meanwhile. So reception is held first, and what had been received until then is
//! handled; it is held a second time so that whatever has come of that is known too. Then sockets and
//! flows have nothing under way, and what clients and endpoints send waits in the sockets for whoever
//! receives there next. Connections stay: their flows end here.

use alloc::vec::Vec;

use super::Balancer;
use crate::boundary::{ListenerId, Op, Ops};
use crate::handover::{Handed, TakenOver, TakenPort};
use crate::snapshot::{Listener, Protocol};
use crate::time::Instant;

/// How far a worker is with handing over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Handing {
    #[default]
    None,
    /// It waits for what has been received.
    Holding,
    /// It waits for what comes of that.
    Settling,
    /// Nothing is under way.
    Ready,
}

impl Balancer {
    /// Prepares to hand over: [`can_hand_over`](Self::can_hand_over) tells when that is done. Nothing
    /// but [`handle`](Self::handle) and [`handle_timeout`](Self::handle_timeout) may be called until
    /// then.
    pub fn begin_handing_over(&mut self, ops: &mut Ops) {
        if self.handing == Handing::None {
            self.handing = Handing::Holding;
            ops.push(Op::Hold);
        }
    }

    /// Whether [`hand_over`](Self::hand_over) may be called.
    #[must_use]
    pub fn can_hand_over(&self) -> bool {
        self.handing == Handing::Ready
    }

    /// Gives away everything that another process can go on with, and forgets it. The sockets of what
    /// is told of must be taken from the performing side before the next ops are performed. Listeners
    /// count as open still: they end with a drain, and may be taken over again.
    ///
    /// # Panics
    /// If it is not prepared.
    pub fn hand_over(&mut self, now: Instant, ops: &mut Ops) -> Handed {
        assert!(self.can_hand_over(), "what is under way would be lost");
        self.handing = Handing::None;
        let mut handed = Handed { listeners: self.listeners_that_go(), ..Handed::default() };
        if !handed.listeners.is_empty() {
            let (datagrams, mut turn) = self.datagrams(now, ops);
            datagrams.hand_over(&mut turn, &mut handed);
        }
        ops.push(Op::Resume);
        self.count_entries();
        handed
    }

    /// Goes on with what another process, or this one before, has handed over. It is not believed: what
    /// has no place here is counted and left out. The sockets of the ports that are told of must be
    /// given to the performing side before the next ops are performed; the others are not needed.
    pub fn take_over(
        &mut self,
        now: Instant,
        handed: &Handed,
        ops: &mut Ops,
    ) -> (TakenOver, Vec<TakenPort>) {
        let mut taken = TakenOver::default();
        let (datagrams, mut turn) = self.datagrams(now, ops);
        let lists = (&*handed.flows, &*handed.ports);
        let ports = datagrams.take_over(&mut turn, lists, &mut taken);
        self.count_entries();
        (taken, ports)
    }

    /// A listener, if a socket for it is of use here: it is open or, where it receives datagrams, has
    /// flows to end.
    #[must_use]
    pub fn listener_to_serve(&self, id: ListenerId) -> Option<&Listener> {
        let listener = self.snapshot.listeners.get(id.index())?;
        let serves = match listener.protocol {
            Protocol::Tcp => self.snapshot.drain_until.is_none() && listener.is_open(),
            Protocol::Udp => self.datagrams.receives(id),
        };
        serves.then_some(listener)
    }

    pub(super) fn is_handing_over(&self) -> bool {
        self.handing != Handing::None
    }

    pub(super) fn on_held(&mut self, ops: &mut Ops) {
        self.handing = match self.handing {
            Handing::None => Handing::None,
            Handing::Holding => {
                ops.push(Op::Hold);
                Handing::Settling
            }
            Handing::Settling | Handing::Ready => Handing::Ready,
        };
    }

    /// Listeners that are on their way out end here, with their flows.
    fn listeners_that_go(&self) -> Vec<ListenerId> {
        if self.snapshot.drain_until.is_some() {
            return Vec::new();
        }
        let listeners = (0..).map(ListenerId).zip(&self.snapshot.listeners);
        listeners.filter(|(_, listener)| listener.is_open()).map(|(id, _)| id).collect()
    }
}
