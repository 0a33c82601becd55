//! What a worker hands over to a worker of another process, which goes on with it.
//!
//! Plain data, without descriptors and without anything that means something only inside one process:
//! endpoints are named by their addresses, times are durations that count from now. Whoever takes it
//! over believes none of it: see [`Balancer::take_over`](crate::Balancer::take_over).

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use crate::boundary::{ListenerId, PortId, PortKind};
use crate::policy::{Method, Source};
use crate::snapshot::ClusterId;

/// Everything that a worker hands over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handed {
    /// Listeners whose sockets go over.
    pub listeners: Vec<ListenerId>,
    /// Upstream ports whose sockets go over: each has a flow at least.
    pub ports: Vec<HandedPort>,
    /// Flows of datagrams: first those whose endpoint has replied, then the others, oldest first.
    pub flows: Vec<HandedFlow>,
    /// Kept decisions.
    pub kept: Vec<HandedDecision>,
}

/// An upstream port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandedPort {
    /// By this number the flows name it. It is free for another port when it has been handed over.
    pub port: PortId,
    /// Whose flows go through it.
    pub listener: ListenerId,
    /// Whether the kernel knows its peer, because it is one flow's own.
    pub connected: bool,
}

/// A flow of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandedFlow {
    /// Where its client's datagrams come in.
    pub listener: ListenerId,
    /// Its client.
    pub client: SocketAddr,
    /// The address of ours that the client used.
    pub local: IpAddr,
    /// Where it goes.
    pub target: HandedTarget,
    /// How it is handled.
    pub method: Method,
    /// The hashes of its application keys: the one it came with, and the one its endpoint gave it.
    pub keys: [Option<u64>; 2],
    /// The generation of the policy that decided.
    pub policy_generation: u32,
    /// Who decided.
    pub source: Source,
    /// How long ago it began.
    pub age: Duration,
    /// For how long nothing of it has moved.
    pub silent: Duration,
    /// Bytes towards each [`Side`](crate::boundary::Side), by its index.
    pub bytes: [u64; 2],
    /// Datagrams towards each side. With one downstream its endpoint has replied.
    pub datagrams: [u32; 2],
    /// Whether the client's next datagram does not belong to it.
    pub hidden: bool,
    /// Whether the client has sent again before the first reply.
    pub resent: bool,
    /// Whether the first reply makes its endpoint that of its key.
    pub keeps_when_answered: bool,
}

/// Where a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedTarget {
    /// To an endpoint.
    Endpoint {
        /// Whose endpoint it is.
        cluster: ClusterId,
        /// Its address.
        address: SocketAddr,
        /// Through this one of the ports that are handed over with it.
        port: PortId,
    },
    /// Nowhere: it is denied.
    Denied {
        /// Whether it would be reset, if datagrams could be.
        reset: bool,
        /// For how long.
        remaining: Duration,
    },
}

/// A decision that is kept for flows to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandedDecision {
    /// Whose policy decided.
    pub cluster: ClusterId,
    /// For whom.
    pub whom: HandedKey,
    /// What was decided.
    pub verdict: HandedVerdict,
    /// How flows are handled.
    pub method: Method,
    /// The generation of the policy that decided.
    pub policy_generation: u32,
    /// How long it holds unless it is used.
    pub remaining: Duration,
    /// How long it holds from each use on, if uses count.
    pub sliding: Option<Duration>,
}

/// For whom a decision is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedKey {
    /// The clients of a prefix, by its first address.
    Client(IpAddr),
    /// The flows with an application key, by its hash.
    Key(u64),
}

/// A verdict that names its endpoint by its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedVerdict {
    /// Forward to this endpoint.
    Forward(SocketAddr),
    /// Reset.
    Reset,
    /// Drop without a word.
    Drop,
}

/// A port that goes on here, whose socket is to be opened under its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenPort {
    /// Its place in the list of those that were handed over.
    pub place: usize,
    /// Its number here.
    pub port: PortId,
    /// How it would have been opened.
    pub kind: PortKind,
}

/// What has become of what was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TakenOver {
    /// Flows that go on here.
    pub flows: u32,
    /// Flows that do not, by [`Untaken::index`](crate::Untaken::index).
    pub untaken: [u32; crate::Untaken::ALL.len()],
    /// Kept decisions that hold here.
    pub kept: u32,
}
