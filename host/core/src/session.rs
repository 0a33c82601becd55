//! One TCP flow: the client's connection, the endpoint's, and a relay each way.
//!
//! ```text
//!               Connected                 both directions drained, a reset,
//!   Connecting ───────────▶ Established ─────────── a timeout ───────────▶ Closing ──▶ (gone)
//!     │  ▲                                                                  ▲   when nothing
//!     │  └────── another endpoint ──────┐                                   │   is in flight
//!     ├─────────── failed ─────────▶ Unbound ─────── failed too often ──────┘
//!     └── overtime ──▶ Abandoning ──────┘
//! ```
//!
//! A session is freed only in `Closing`, after the last `Closed` of its links: until then the
//! kernel may still speak of them.

use core::net::SocketAddr;

use crate::boundary::{Goodbye, Link, ListenerId, Op, Side};
use crate::policy::{Method, Source};
use crate::relay::{Relay, Step};
use crate::snapshot::{Endpoint, EndpointId, Listener, Timeouts};
use crate::stats::{CloseReason, FlowRecord};
use crate::time::Instant;

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The endpoint has not answered.
    Connecting,
    /// The endpoint took too long; its link is being closed, then another attempt follows.
    Abandoning,
    /// The endpoint's link is free. Lasts only until another attempt or the end is decided on.
    Unbound,
    /// Bytes flow.
    Established,
    /// This many links have not said `Closed`.
    Closing { links_open: u8, reason: CloseReason },
}

/// How a flow was allocated.
#[derive(Debug, Clone)]
pub(crate) struct Allocation {
    pub(crate) endpoint: Endpoint,
    pub(crate) method: Method,
    pub(crate) source: Source,
    pub(crate) policy_generation: u64,
}

/// The endpoints that failed a flow, oldest first.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tried {
    ids: [EndpointId; Listener::CONNECT_ATTEMPTS_MAX as usize],
    count: usize,
}

impl Tried {
    pub(crate) fn push(&mut self, id: EndpointId) {
        if self.count < self.ids.len() {
            self.ids[self.count] = id;
            self.count += 1;
        }
    }

    pub(crate) fn as_slice(&self) -> &[EndpointId] {
        &self.ids[..self.count]
    }
}

/// One TCP flow.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) listener: ListenerId,
    pub(crate) client: SocketAddr,
    pub(crate) state: State,
    pub(crate) allocation: Allocation,
    pub(crate) tried: Tried,
    /// Endpoints it was bound to, the one it is bound to included.
    attempts: u32,
    /// By the side the bytes come from.
    relays: [Relay; 2],
    started: Instant,
    connected: Option<Instant>,
    /// When a byte last moved, or the state last changed.
    progressed: Instant,
}

impl Session {
    pub(crate) fn new(
        now: Instant,
        listener: ListenerId,
        client: SocketAddr,
        allocation: Allocation,
    ) -> Self {
        Self {
            listener,
            client,
            state: State::Connecting,
            allocation,
            tried: Tried::default(),
            attempts: 1,
            relays: Side::BOTH.map(Relay::new),
            started: now,
            connected: None,
            progressed: now,
        }
    }

    /// Starts over with another endpoint.
    pub(crate) fn rebind(&mut self, now: Instant, allocation: Allocation) {
        self.allocation = allocation;
        self.attempts += 1;
        self.state = State::Connecting;
        self.progressed = now;
    }

    pub(crate) fn establish(&mut self, now: Instant, step: &mut Step<'_>) {
        self.state = State::Established;
        self.connected = Some(now);
        self.progressed = now;
        if self.allocation.method.announce {
            self.relays[Side::Downstream.index()].announce(step);
        }
        for relay in &mut self.relays {
            relay.start(self.allocation.method.throttle_kib_s, step);
        }
    }

    /// The endpoint took too long: frees its link for another attempt.
    pub(crate) fn abandon(&mut self, step: &mut Step<'_>) {
        self.state = State::Abandoning;
        let link = Link::new(step.slot, Side::Upstream);
        step.ops.push(Op::Close { link, goodbye: Goodbye::Reset });
    }

    /// Begins the end. Every link still open is closed; what waits is given back.
    pub(crate) fn close(&mut self, reason: CloseReason, step: &mut Step<'_>) {
        let goodbye = self.goodbye(reason);
        for relay in &mut self.relays {
            relay.discard(step);
        }
        let mut links_open = 1;
        step.ops.push(Op::Close { link: Link::new(step.slot, Side::Downstream), goodbye });
        match self.state {
            State::Connecting | State::Established => {
                links_open += 1;
                step.ops.push(Op::Close { link: Link::new(step.slot, Side::Upstream), goodbye });
            }
            State::Abandoning => links_open += 1,
            State::Unbound | State::Closing { .. } => {}
        }
        self.state = State::Closing { links_open, reason };
    }

    /// A `Closed` came while closing. Tells why the session ended if it was the last.
    pub(crate) fn on_closed(&mut self) -> Option<CloseReason> {
        let State::Closing { links_open, reason } = &mut self.state else { return None };
        *links_open -= 1;
        (*links_open == 0).then_some(*reason)
    }

    /// The relay of bytes that come from this side.
    pub(crate) fn relay_from(&mut self, side: Side) -> &mut Relay {
        &mut self.relays[side.index()]
    }

    pub(crate) fn on_progress(&mut self, now: Instant) {
        self.progressed = now;
    }

    /// Passes on what has ended: one direction by a shutdown, both by closing.
    pub(crate) fn settle(&mut self, step: &mut Step<'_>) {
        if self.relays.iter().all(Relay::is_drained) {
            self.close(CloseReason::Finished, step);
            return;
        }
        for relay in &mut self.relays {
            relay.finish(step);
        }
    }

    /// When something is due for this session, and what: throttled bytes, or its end for want of
    /// progress.
    pub(crate) fn due(&self, timeouts: &Timeouts) -> Option<(Instant, Due)> {
        let (end, reason) = self.deadline(timeouts)?;
        match self.relays.iter().filter_map(Relay::resumes).min() {
            Some(at) => Some((at, Due::Resume)),
            None => Some((end, Due::Close(reason))),
        }
    }

    /// Whether a relay waits for its time.
    pub(crate) fn is_throttled(&self) -> bool {
        self.relays.iter().any(|relay| relay.resumes().is_some())
    }

    /// Starts the throttled relays whose time has come. The wait was ours: it is no idleness.
    pub(crate) fn resume(&mut self, step: &mut Step<'_>) {
        self.progressed = step.now;
        for relay in &mut self.relays {
            relay.resume(step);
        }
    }

    fn deadline(&self, timeouts: &Timeouts) -> Option<(Instant, CloseReason)> {
        let idle = self.allocation.method.idle_timeout.unwrap_or(timeouts.idle);
        let half_closed = self.relays.iter().any(Relay::has_ended);
        let (timeout, reason) = match self.state {
            State::Connecting => (timeouts.connect, CloseReason::ConnectTimeout),
            State::Established if half_closed => {
                (timeouts.half_closed, CloseReason::HalfClosedTimeout)
            }
            State::Established => (idle, CloseReason::IdleTimeout),
            State::Abandoning | State::Unbound | State::Closing { .. } => return None,
        };
        Some((self.progressed + timeout, reason))
    }

    /// What the access log says of it.
    pub(crate) fn record(&self, now: Instant, facts: &RecordFacts) -> FlowRecord {
        let Endpoint { id, address, .. } = self.allocation.endpoint;
        FlowRecord {
            listener: self.listener,
            cluster: facts.cluster,
            client: self.client,
            endpoint: Some((id, address)),
            policy_generation: self.allocation.policy_generation,
            source: Some(self.allocation.source),
            attempts: self.attempts,
            tag: self.allocation.method.tag,
            started: self.started,
            connected: self.connected,
            ended: now,
            bytes: Side::BOTH.map(|towards| self.relays[towards.other().index()].delivered()),
            reason: facts.reason,
        }
    }

    /// A stream that is not whole must not look as if it were: only a session in which nothing was
    /// on its way says goodbye in order.
    fn goodbye(&self, reason: CloseReason) -> Goodbye {
        match reason {
            CloseReason::Finished | CloseReason::DeniedDrop => Goodbye::Fin,
            CloseReason::IdleTimeout | CloseReason::DrainTimeout
                if !self.relays.iter().any(Relay::is_loaded) =>
            {
                Goodbye::Fin
            }
            _ => Goodbye::Reset,
        }
    }

    /// What must be true between any two completions.
    pub(crate) fn check_invariants(&self) {
        if self.state == State::Established {
            self.relays.iter().for_each(Relay::check_invariants);
        }
        assert!(
            self.state != State::Unbound,
            "a session without an endpoint is decided on at once"
        );
    }
}

/// What a session's timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// A throttled direction may go on.
    Resume,
    /// The session has made no progress for too long.
    Close(CloseReason),
}

/// What a record needs that a session does not know.
pub(crate) struct RecordFacts {
    pub(crate) cluster: crate::snapshot::ClusterId,
    pub(crate) reason: CloseReason,
}
