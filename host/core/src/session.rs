//! One TCP flow: the client's connection, the endpoint's, and a relay each way.
//!
//! ```text
//!  Introducing ──── no header, or none in time: Closing
//!       │ PROXY header, where the listener asks for one
//!   Prereading
//!       │ key, or none in time, where the listener has a rule
//!       ▼       Connected                 both directions drained, a reset,
//!   Connecting ───────────▶ Established ─────────── a timeout ───────────▶ Closing ──▶ (gone)
//!     │  ▲                                                                  ▲   when nothing
//!     │  └────── another endpoint ──────┐                                   │   is in flight
//!     ├─────────── failed ─────────▶ Unbound ─────── failed too often ──────┤
//!     └── overtime ──▶ Abandoning ──────┘ ▲                                 │
//!                                         │ no place, and then one          │
//!                                         ▼                                 │
//!                                      Waiting ───── too long ──────────────┘
//! ```
//!
//! One that is `Established` is `Abandoning` too, if its endpoint resets it before either has had a byte
//! of the other, as far as is known: what was on its way may yet turn out to have been taken, and then it
//! is `Closing`.
//!
//! A session is freed only in `Closing`, after the last `Closed` of its links: until then the
//! kernel may still speak of them.

use core::net::SocketAddr;
use core::time::Duration;

use crate::allocation::{Denied, Request};
use crate::boundary::{Buffer, Goodbye, Link, ListenerId, Op, Side};
use crate::listing::{Entry, EntryId, EntryKind, FlowEntry, FlowState};
use crate::policy::{EndedFlow, Method, Scope, Source};
use crate::proxy::Route;
use crate::relay::{Relay, Step};
use crate::snapshot::{ClusterId, Endpoint, EndpointId, Listener, Protocol, Snapshot};
use crate::stats::{CloseReason, FlowRecord};
use crate::time::Instant;

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its peer is to say for whom it has connected; what it has said so far is in this reader.
    Introducing { reader: u32 },
    /// The client's first bytes are waited for: there is no endpoint yet.
    Prereading,
    /// The endpoint has not answered.
    Connecting,
    /// The endpoint has failed it, for this reason; its link is being closed, then another attempt
    /// follows.
    Abandoning { reason: CloseReason },
    /// The endpoint's link is free. Lasts only until another attempt or the end is decided on.
    Unbound,
    /// Every endpoint is full, and a place is waited for until then.
    Waiting { until: Instant },
    /// Bytes flow.
    Established,
    /// This many links have not said `Closed`.
    Closing { links_open: u8, reason: CloseReason },
}

/// How far it is to the first byte of an answer: what the endpoint is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstByte {
    /// The client has not said anything to be answered.
    Unasked,
    /// It has, at this time.
    Asked(Instant),
    /// The endpoint has said something.
    Answered,
}

/// How a flow was allocated.
#[derive(Debug, Clone)]
pub(crate) struct Allocation {
    /// Whose endpoint it is. The listener may be given another cluster while the flow goes on.
    pub(crate) cluster: ClusterId,
    pub(crate) endpoint: Endpoint,
    pub(crate) method: Method,
    pub(crate) scope: Scope,
    pub(crate) source: Source,
    pub(crate) policy_generation: u64,
    /// Whether it is to be kept for the flow's key, once the flow has been answered.
    pub(crate) keeps_when_answered: bool,
}

impl Allocation {
    /// The endpoint, and whose it is.
    pub(crate) fn place(&self) -> (ClusterId, &Endpoint) {
        (self.cluster, &self.endpoint)
    }
}

/// The endpoints that failed a flow, oldest first.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tried {
    ids: [EndpointId; Listener::CONNECT_ATTEMPTS_MAX as usize],
    count: usize,
}

impl Tried {
    /// Nobody has failed it.
    pub(crate) const NONE: Self =
        Self { ids: [EndpointId(0); Listener::CONNECT_ATTEMPTS_MAX as usize], count: 0 };

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
    /// Who connected for the client, if it was announced by somebody.
    peer: Option<SocketAddr>,
    /// Where the client connected to, if that was announced.
    local: Option<SocketAddr>,
    /// Whether it is one of its client's flows in the listener's count.
    pub(crate) is_counted: bool,
    /// The id under which its endpoint is told of it.
    pub(crate) unique_id: Option<u128>,
    pub(crate) state: State,
    /// The hash of its application key.
    pub(crate) key: Option<u64>,
    /// How it was allocated; `None` until it is.
    pub(crate) allocation: Option<Allocation>,
    /// Why it got no endpoint, if it had to wait for its first bytes to learn that.
    pub(crate) denied: Option<Denied>,
    pub(crate) tried: Tried,
    /// Whether it has a place at the endpoint it was allocated last.
    is_placed: bool,
    /// How long it has waited for a place.
    queued: Duration,
    /// Endpoints it was bound to, the one it is bound to included.
    attempts: u32,
    /// By the side the bytes come from.
    relays: [Relay; 2],
    started: Instant,
    connected: Option<Instant>,
    first_byte: FirstByte,
    /// When a byte last moved, or the state last changed.
    progressed: Instant,
}

impl Session {
    /// A session without an endpoint.
    pub(crate) fn new(now: Instant, listener: ListenerId, client: SocketAddr) -> Self {
        Self {
            listener,
            client,
            peer: None,
            local: None,
            is_counted: true,
            unique_id: None,
            state: State::Unbound,
            key: None,
            allocation: None,
            denied: None,
            tried: Tried::default(),
            is_placed: false,
            queued: Duration::ZERO,
            attempts: 0,
            relays: Side::BOTH.map(Relay::new),
            started: now,
            connected: None,
            first_byte: FirstByte::Unasked,
            progressed: now,
        }
    }

    /// Goes from one state to another.
    pub(crate) fn set_state(&mut self, state: State) {
        let was_connecting = self.state == State::Connecting;
        self.state = state;
        if let Some(allocation) = &self.allocation
            && was_connecting
        {
            allocation.endpoint.load.on_connecting_ended();
        }
    }

    /// Waits for the first bytes.
    pub(crate) fn preread(&mut self, bytes_max: u32, step: &mut Step<'_>) {
        self.set_state(State::Prereading);
        self.relays[Side::Downstream.index()].preread(bytes_max, step);
    }

    /// Waits until its peer has said for whom it has connected; until then nobody is its client.
    pub(crate) fn introduce(&mut self, reader: u32, bytes_max: u32, step: &mut Step<'_>) {
        self.is_counted = false;
        self.set_state(State::Introducing { reader });
        self.relays[Side::Downstream.index()].preread(bytes_max, step);
    }

    /// Its peer has said so. Without a route it is its own client.
    pub(crate) fn on_introduced(&mut self, now: Instant, route: Option<Route>) {
        if let Some(Route { client, local }) = route {
            self.peer = Some(core::mem::replace(&mut self.client, client));
            self.local = Some(local);
        }
        self.progressed = now;
    }

    /// Waits for a place at an endpoint. Its first bytes are held meanwhile: a client that goes away
    /// is heard of only by a subscription.
    pub(crate) fn wait(&mut self, until: Instant, step: &mut Step<'_>) {
        self.set_state(State::Waiting { until });
        self.progressed = step.now;
        self.relays[Side::Downstream.index()].hold(step);
    }

    /// Waits no longer, whatever comes of it. Tells how long it has waited.
    pub(crate) fn on_waited(&mut self, now: Instant) -> Duration {
        let waited = now.since(self.progressed);
        self.queued += waited;
        self.set_state(State::Unbound);
        waited
    }

    /// Starts with an endpoint, or over with another one. Its place there is the session's.
    pub(crate) fn bind(&mut self, now: Instant, allocation: Allocation) {
        allocation.endpoint.load.on_connecting();
        self.allocation = Some(allocation);
        self.is_placed = true;
        self.attempts += 1;
        self.set_state(State::Connecting);
        self.progressed = now;
    }

    /// The endpoint is connected. It gets the header first, if there is one.
    pub(crate) fn establish(&mut self, header: Option<Buffer>, step: &mut Step<'_>) {
        let now = step.now;
        if let Some(allocation) = &self.allocation {
            allocation.endpoint.load.on_connected(now, now.since(self.progressed));
        }
        self.set_state(State::Established);
        self.connected = Some(now);
        self.progressed = now;
        if self.relays[Side::Downstream.index()].is_loaded() {
            self.first_byte = FirstByte::Asked(now);
        }
        if let Some(header) = header {
            self.relays[Side::Downstream.index()].announce(header, step.chains);
        }
        let throttle_kib_s = self.method().throttle_kib_s;
        for relay in &mut self.relays {
            relay.start(throttle_kib_s, step);
        }
        if self.relays.iter().any(Relay::has_ended) {
            self.settle(step);
        }
    }

    /// Gives up its place, if it has one. Tells at which endpoint of which cluster.
    pub(crate) fn take_place(&mut self) -> Option<(ClusterId, &Endpoint)> {
        let allocation = self.allocation.as_ref()?;
        core::mem::take(&mut self.is_placed).then_some((allocation.cluster, &allocation.endpoint))
    }

    /// Asks for an endpoint.
    pub(crate) fn request(&self, now: Instant, snapshot: &Snapshot) -> Request<'_> {
        Request {
            now,
            listener: self.listener,
            client: self.client,
            local: self.local.unwrap_or(snapshot.listener(self.listener).address),
            key: self.key,
            tried: &self.tried,
            in_turn: false,
        }
    }

    /// Where the client connected to, if that was announced.
    pub(crate) fn announced_local(&self) -> Option<SocketAddr> {
        self.local
    }

    pub(crate) fn method(&self) -> Method {
        self.allocation.as_ref().map_or(Method::DEFAULT, |allocation| allocation.method)
    }

    /// Whether another endpoint can serve it as well as its own: neither it nor its client has had
    /// anything of the other, that anybody knows of.
    pub(crate) fn is_undelivered(&self) -> bool {
        let [from_client, from_endpoint] = &self.relays;
        self.state == State::Established
            && from_client.is_undelivered()
            && from_endpoint.is_silent()
    }

    /// The endpoint has failed it: frees its link for another attempt.
    pub(crate) fn abandon(&mut self, reason: CloseReason, step: &mut Step<'_>) {
        if self.state == State::Established {
            self.relays[Side::Downstream.index()].stop();
        }
        self.set_state(State::Abandoning { reason });
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
            State::Abandoning { .. } => links_open += 1,
            State::Introducing { .. }
            | State::Prereading
            | State::Waiting { .. }
            | State::Unbound
            | State::Closing { .. } => {}
        }
        self.tell_how_it_fared(step.now, reason);
        self.set_state(State::Closing { links_open, reason });
    }

    /// A flow that ends before its first byte was good or bad by how it ends, or neither. Without a place
    /// it has left its endpoint, which was told then.
    fn tell_how_it_fared(&self, now: Instant, reason: CloseReason) {
        let Some(allocation) = self.allocation.as_ref().filter(|_| self.is_placed) else { return };
        match (reason, self.first_byte) {
            (_, FirstByte::Answered) => {}
            (CloseReason::UpstreamReset, _) => allocation.endpoint.load.on_broken(now),
            (CloseReason::Finished, _) => allocation.endpoint.load.on_served(now),
            _ => {}
        }
    }

    /// The link of the endpoint that has failed it is free. It is as if it had never been connected.
    pub(crate) fn on_abandoned(&mut self) {
        self.set_state(State::Unbound);
        self.connected = None;
        self.relays[Side::Upstream.index()] = Relay::new(Side::Upstream);
    }

    /// Whether this side's link is being closed, so that what it still says means nothing.
    pub(crate) fn has_left(&self, side: Side) -> bool {
        match self.state {
            State::Closing { .. } => true,
            State::Abandoning { .. } => side == Side::Upstream,
            _ => false,
        }
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

    /// Bytes have come from a side of an established session.
    pub(crate) fn on_bytes(&mut self, now: Instant, from: Side) {
        self.on_progress(now);
        let asked = match (self.first_byte, from) {
            (FirstByte::Unasked, Side::Downstream) => {
                self.first_byte = FirstByte::Asked(now);
                return;
            }
            (FirstByte::Unasked, Side::Upstream) => self.connected.unwrap_or(now),
            (FirstByte::Asked(at), Side::Upstream) => at,
            (FirstByte::Asked(_), Side::Downstream) | (FirstByte::Answered, _) => return,
        };
        self.first_byte = FirstByte::Answered;
        if let Some(allocation) = &self.allocation {
            allocation.endpoint.load.on_first_byte(now, now.since(asked));
        }
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
    pub(crate) fn due(&self, listener: &Listener) -> Option<(Instant, Due)> {
        let (end, reason) = self.deadline(listener)?;
        if self.state == State::Prereading {
            return Some((end, Due::Decide));
        }
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

    fn deadline(&self, listener: &Listener) -> Option<(Instant, CloseReason)> {
        let timeouts = &listener.timeouts;
        let idle = self.method().idle_timeout.unwrap_or(timeouts.idle);
        let half_closed = self.relays.iter().any(Relay::has_ended);
        let (timeout, reason) = match self.state {
            State::Introducing { .. } => {
                let timeout = listener.proxy.as_ref().map_or(timeouts.preread, |rule| rule.timeout);
                (timeout, CloseReason::ProxyTimeout)
            }
            State::Prereading => (timeouts.preread, CloseReason::IdleTimeout),
            State::Connecting => (timeouts.connect, CloseReason::ConnectTimeout),
            State::Established if half_closed => {
                (timeouts.half_closed, CloseReason::HalfClosedTimeout)
            }
            State::Established => (idle, CloseReason::IdleTimeout),
            State::Waiting { until } => return Some((until, CloseReason::QueueTimeout)),
            State::Abandoning { .. } | State::Unbound | State::Closing { .. } => return None,
        };
        Some((self.progressed + timeout, reason))
    }

    /// What its policy hears of its end.
    pub(crate) fn ended(&self, now: Instant, reason: CloseReason) -> Option<EndedFlow> {
        let allocation = self.allocation.as_ref()?;
        Some(EndedFlow {
            endpoint: allocation.endpoint.id,
            reason,
            duration: now.since(self.started),
            bytes: self.bytes(),
            tag: allocation.method.tag,
        })
    }

    /// Who serves it, or would have.
    pub(crate) fn cluster(&self, listener: &Listener) -> ClusterId {
        self.allocation.as_ref().map_or(listener.cluster, |allocation| allocation.cluster)
    }

    /// What the access log says of it.
    pub(crate) fn record(&self, now: Instant, facts: &RecordFacts<'_>) -> FlowRecord {
        let allocation = self.allocation.as_ref();
        let denied = self.denied.as_ref();
        let (policy_generation, source, tag) = match (allocation, denied) {
            (Some(known), _) => (known.policy_generation, Some(known.source), known.method.tag),
            (None, Some(denied)) => (denied.policy_generation, denied.source, denied.tag),
            (None, None) => (0, None, 0),
        };
        FlowRecord {
            listener: self.listener,
            cluster: self.cluster(facts.listener),
            client: self.client,
            peer: self.peer,
            unique_id: self.unique_id,
            endpoint: allocation.map(|known| (known.endpoint.id, known.endpoint.address)),
            policy_generation,
            source,
            attempts: self.attempts,
            tag,
            started: self.started,
            connected: self.connected,
            queued: self.queued,
            ended: now,
            bytes: self.bytes(),
            reason: facts.reason,
        }
    }

    /// What an operator sees of it.
    pub(crate) fn entry(&self, slot: u32, listener: &Listener) -> Entry {
        let allocation = self.allocation.as_ref();
        let state = match self.state {
            State::Introducing { .. } | State::Prereading => FlowState::Prereading,
            State::Waiting { .. } => FlowState::Queued,
            State::Connecting | State::Abandoning { .. } | State::Unbound => FlowState::Unconfirmed,
            State::Established => FlowState::Established,
            State::Closing { .. } => FlowState::Closing,
        };
        Entry {
            id: EntryId::session(slot, self.started.as_nanos() as u32),
            cluster: self.cluster(listener),
            endpoint: allocation.map(|known| known.endpoint.id),
            policy_generation: allocation.map_or(0, |known| known.policy_generation),
            kind: EntryKind::Flow(FlowEntry {
                listener: self.listener,
                protocol: Protocol::Tcp,
                client: self.client,
                local: self.local.unwrap_or(listener.address),
                endpoint_address: allocation.map(|known| known.endpoint.address),
                state,
                source: allocation.map(|known| known.source),
                tag: self.method().tag,
                started: self.started,
                last_active: self.progressed,
                bytes: self.bytes(),
                datagrams: [0; 2],
            }),
        }
    }

    fn bytes(&self) -> [u64; 2] {
        Side::BOTH.map(|towards| self.relays[towards.other().index()].delivered())
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

    /// Since when a side has not taken what it is sent, if one has not taken all.
    pub(crate) fn stalls_since(&self) -> Option<Instant> {
        self.relays.iter().filter_map(Relay::stalls_since).min()
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
    /// The first bytes have not shown the key in time.
    Decide,
    /// A throttled direction may go on.
    Resume,
    /// The session has made no progress for too long.
    Close(CloseReason),
}

/// What a record needs that a session does not know.
pub(crate) struct RecordFacts<'a> {
    pub(crate) listener: &'a Listener,
    pub(crate) reason: CloseReason,
}
