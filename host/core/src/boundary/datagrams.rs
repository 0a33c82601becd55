//! The datagram half of the boundary.
//!
//! Datagram sockets need no subscription: a listener or a port that is open reports what comes to
//! it until it is closed, and the performing side re-arms, truncates and retries by itself. Sends
//! are told of only when they fail, for a datagram that left may be lost anyway.

use core::net::{IpAddr, SocketAddr};

use super::ListenerId;

/// Names an upstream port: a local UDP port from which flows reach their endpoints.
///
/// The core chooses numbers below the performing side's maximum. A number is free for another port
/// once [`PortClosed`](super::Completion::PortClosed) or
/// [`PortFailed`](super::Completion::PortFailed) has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

impl PortId {
    /// This port's place in a list of all ports.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A socket that datagrams come from and go out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DatagramSocket {
    /// Where clients send to.
    Listener(ListenerId),
    /// Where endpoints answer to.
    Port(PortId),
}

/// The two addresses of a datagram. IPv4 is always plain here, never mapped into IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The other side's address and port.
    pub peer: SocketAddr,
    /// Our address, where the socket has several: a listener says which one the client used, and
    /// answers leave from there. `None` at ports.
    pub local: Option<IpAddr>,
}

/// One datagram, or a train of them: equal segments, only the last of which may be shorter, that
/// came together on one path and leave together.
///
/// Not `Clone`: it arrives in [`Datagrams`](super::Completion::Datagrams) and leaves in a
/// [`Forward`](super::Op::Forward) or a [`Discard`](super::Op::Discard).
#[derive(Debug, PartialEq, Eq)]
pub struct Train {
    buffer: u32,
    len: u32,
    segment: u32,
}

impl Train {
    /// Names `len` bytes in datagram buffer `buffer`, in segments of `segment` bytes; 0 if it is a
    /// single datagram. Only the performing side, which owns the memory, makes trains.
    #[must_use]
    pub const fn new(buffer: u32, len: u32, segment: u32) -> Self {
        Self { buffer, len, segment }
    }

    /// The buffer's number.
    #[must_use]
    pub const fn buffer(&self) -> u32 {
        self.buffer
    }

    /// Bytes of payload in all datagrams together; 0 for one empty datagram.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty datagram is a datagram")]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Bytes in each segment but the last, or 0 for a single datagram.
    #[must_use]
    pub const fn segment(&self) -> u32 {
        self.segment
    }

    /// How many datagrams it stands for, at least 1.
    #[must_use]
    pub const fn datagrams(&self) -> u32 {
        if self.segment == 0 || self.len == 0 { 1 } else { self.len.div_ceil(self.segment) }
    }
}

/// How a port is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortKind {
    /// Where it sends to first: decides the address family, and is the only peer if `connected`.
    pub towards: SocketAddr,
    /// Whether the kernel is told the peer: then it reports ICMP errors, and drops other senders.
    pub connected: bool,
    /// The client whose address and port it has, instead of an address of ours and a random port. Only
    /// if `connected`.
    pub from: Option<SocketAddr>,
    /// Whether ports that have a client's address may have the same number. Only if not `connected`.
    pub makes_way: bool,
    /// Whether trains are received and sent whole.
    pub offload: bool,
}

/// Why datagrams were lost on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossCause {
    /// What came was longer than any datagram can be; its end is missing.
    Truncated,
    /// The socket, the device or this process has no room for what is to be sent.
    Full,
    /// The datagram is larger than the way to the peer allows.
    TooLarge,
    /// There is no way to the peer, or it has no such port.
    Unreachable,
}
