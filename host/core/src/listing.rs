//! What a worker keeps, for an operator to see.

use core::net::{IpAddr, SocketAddr};

use crate::boundary::ListenerId;
use crate::policy::{Scope, Source};
use crate::snapshot::{ClusterId, EndpointId, Protocol};
use crate::time::Instant;

/// Names a flow or a kept decision of one worker, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryId(pub u64);

impl EntryId {
    pub(crate) const SESSION: u64 = 0;
    pub(crate) const DATAGRAMS: u64 = 1;
    pub(crate) const KEPT: u64 = 2;

    pub(crate) fn session(slot: u32, stamp: u32) -> Self {
        Self::new(Self::SESSION, slot, stamp)
    }

    pub(crate) fn datagrams(number: u32, stamp: u32) -> Self {
        Self::new(Self::DATAGRAMS, number, stamp)
    }

    pub(crate) fn kept(place: usize, stamp: u32) -> Self {
        Self::new(Self::KEPT, place as u32, stamp)
    }

    fn new(sort: u64, place: u32, stamp: u32) -> Self {
        Self(sort << 62 | u64::from(place) << 32 | u64::from(stamp))
    }

    /// The sort of entry, its place, and what tells it from others in that place.
    pub(crate) fn parts(self) -> (u64, u32, u32) {
        (self.0 >> 62, (self.0 >> 32) as u32 & (u32::MAX >> 2), self.0 as u32)
    }
}

/// Where a walk over everything that a worker keeps has got to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor(pub u64);

impl Cursor {
    pub(crate) fn new(sort: u64, place: u32) -> Self {
        Self(sort << 62 | u64::from(place))
    }

    /// The sort of entry, and the place.
    pub(crate) fn parts(self) -> (u64, u32) {
        (self.0 >> 62, self.0 as u32)
    }
}

/// A flow or a kept decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What names it.
    pub id: EntryId,
    /// Who serves it.
    pub cluster: ClusterId,
    /// The endpoint it is bound to, if any.
    pub endpoint: Option<EndpointId>,
    /// The generation of the policy that decided.
    pub policy_generation: u64,
    /// What sort of entry it is.
    pub kind: EntryKind,
}

impl Entry {
    /// Whether it is a flow that is not ending yet.
    pub(crate) fn is_live_flow(&self) -> bool {
        matches!(&self.kind, EntryKind::Flow(flow) if flow.state != FlowState::Closing)
    }
}

/// The two sorts of entry.
#[derive(Debug, Clone, PartialEq)]
pub enum EntryKind {
    /// A live flow.
    Flow(FlowEntry),
    /// A decision kept for flows to come.
    Kept(KeptEntry),
}

/// A live flow.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowEntry {
    /// Where it came in.
    pub listener: ListenerId,
    /// What it speaks.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// The address the client used.
    pub local: SocketAddr,
    /// The address of its endpoint, if any.
    pub endpoint_address: Option<SocketAddr>,
    /// Where it is in its life.
    pub state: FlowState,
    /// Who decided, if anybody was asked yet.
    pub source: Option<Source>,
    /// The policy's mark.
    pub tag: u32,
    /// When it began.
    pub started: Instant,
    /// When something of it last moved.
    pub last_active: Instant,
    /// Bytes towards each [`Side`](crate::boundary::Side), by its index.
    pub bytes: [u64; 2],
    /// Datagrams towards each side; 0 for connections.
    pub datagrams: [u64; 2],
}

/// Where a flow is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowState {
    /// Its first bytes are waited for.
    Prereading,
    /// Every endpoint is full, and it waits for a place.
    Queued,
    /// Its endpoint has not answered, or not yet replied.
    Unconfirmed,
    /// Its endpoint has answered.
    Established,
    /// It is denied, and its datagrams are dropped.
    Denied,
    /// It is ending.
    Closing,
}

impl FlowState {
    /// The word for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Prereading => "prereading",
            Self::Queued => "queued",
            Self::Unconfirmed => "unconfirmed",
            Self::Established => "established",
            Self::Denied => "denied",
            Self::Closing => "closing",
        }
    }
}

/// A decision kept for flows to come.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptEntry {
    /// [`Scope::Client`] or [`Scope::Key`].
    pub scope: Scope,
    /// The client's address, masked to the listener's prefix, where it is kept for a client.
    pub client: Option<IpAddr>,
    /// The key's hash, where it is kept for a key.
    pub key: Option<u64>,
    /// Whether it denies instead of naming an endpoint.
    pub denies: bool,
    /// When it ends unless it is used.
    pub expires: Instant,
    /// Whether each use starts its life anew.
    pub sliding: bool,
    /// The policy's mark.
    pub tag: u32,
}
