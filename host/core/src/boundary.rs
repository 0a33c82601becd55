//! What crosses the line between deciding and performing.
//!
//! The ring turns kernel events into [`Completion`]s, the balancer turns completions into [`Op`]s,
//! the ring performs them. Neither knows the other's insides; this file is all they share.
//!
//! The contract, which the simulator and the ring both keep:
//!
//! 1. Every one-shot op ([`Op::Connect`], a run of [`Op::Send`], [`Op::Shutdown`], [`Op::Close`])
//!    yields exactly one completion.
//! 2. A receive is a *subscription*: [`Completion::Received`] items, then exactly one
//!    [`Completion::ReceiveEnded`]. It ends when its credit is used up, when it is paused, at the
//!    end of the stream or by an error. Only then may the core subscribe to that link again.
//! 3. [`Completion::Closed`] is the last completion of a link; everything still in flight on the
//!    link has completed before it. A failed connect leaves nothing behind and needs no close; a
//!    close that crosses with its failure still yields `Closed`.
//! 4. A [`Buffer`] has exactly one holder. It arrives in a `Received`, or is asked for with
//!    [`Memory::write`], and leaves in a `Send` or a `Recycle`. A run of which the kernel took nothing
//!    comes back: [`Completion::Returned`] for each buffer, the last first, before its `Sent`. So has a
//!    [`Train`] one holder: it arrives in a `Datagrams`, and leaves in a `Forward` or a `Discard`.
//! 5. A port that was opened is closed once: [`Op::ClosePort`] yields exactly one
//!    [`Completion::PortClosed`], after everything else that is said of it. The last that is said of a
//!    port that could not be opened is [`Completion::PortFailed`], whether it was closed or not.
//! 6. An [`Op::Hold`] yields exactly one [`Completion::Held`], after everything that has been accepted
//!    and received, and after everything that is to be said of the ops before it that concern datagrams,
//!    but for ports that are closing. Until [`Op::Resume`] nothing is accepted, and no datagram received.

mod datagrams;

use alloc::vec::{Drain, Vec};
use core::net::{IpAddr, SocketAddr};

use crate::proxy::{Outbound, Route};

pub use datagrams::{DatagramSocket, LossCause, Path, PortId, PortKind, Train};

/// Names a listener; an index into the listeners of the [`Snapshot`](crate::Snapshot).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u16);

impl ListenerId {
    /// This listener's place in a list of all listeners.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The two ends of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client's side.
    Downstream,
    /// The endpoint's side.
    Upstream,
}

impl Side {
    /// Both sides, downstream first.
    pub const BOTH: [Self; 2] = [Self::Downstream, Self::Upstream];

    /// The opposite side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }

    /// 0 for downstream, 1 for upstream.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Downstream => 0,
            Self::Upstream => 1,
        }
    }
}

/// Names one side's connection of one session, on both sides of the boundary.
///
/// The core chooses links (session slot and side), the ring keeps one socket per link in a plain
/// array: neither needs a map. A link is free for a new socket once its `Closed` has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(u32);

impl Link {
    /// The link of `side` of the session in slot `slot`; slots are below 2^31.
    #[must_use]
    pub const fn new(slot: u32, side: Side) -> Self {
        debug_assert!(slot < 1 << 31);
        Self(slot << 1 | side.index() as u32)
    }

    /// The link with this [`index`](Self::index).
    #[must_use]
    pub const fn from_index(index: u32) -> Self {
        Self(index)
    }

    /// The session's slot.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.0 >> 1
    }

    /// Which end of the session.
    #[must_use]
    pub const fn side(self) -> Side {
        if self.0 & 1 == 0 { Side::Downstream } else { Side::Upstream }
    }

    /// Dense: twice the slot, plus one for upstream.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A connection the kernel has accepted and that has no link yet.
///
/// Not `Clone`: it leaves in exactly one [`Op::Adopt`] or [`Op::Refuse`].
#[derive(Debug, PartialEq, Eq)]
pub struct Accepted(i32);

impl Accepted {
    /// Wraps the performing side's number for the connection (the ring uses its descriptor).
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// Gives the number back; the connection is the caller's to keep.
    #[must_use]
    pub const fn into_number(self) -> i32 {
        self.0
    }
}

/// The two sizes of receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pool {
    /// For requests, answers and everything a direction starts with.
    Small,
    /// For a direction that fills its small buffers.
    Bulk,
}

impl Pool {
    /// Both pools.
    pub const BOTH: [Self; 2] = [Self::Small, Self::Bulk];

    /// Bytes in one buffer of this pool.
    #[must_use]
    pub const fn buffer_bytes(self) -> u32 {
        match self {
            Self::Small => 4 * 1024,
            Self::Bulk => 64 * 1024,
        }
    }

    /// The other pool.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Small => Self::Bulk,
            Self::Bulk => Self::Small,
        }
    }

    /// 0 for small, 1 for bulk.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Small => 0,
            Self::Bulk => 1,
        }
    }
}

/// How many buffers each pool of one worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSizes {
    /// Buffers in [`Pool::Small`], at most 65,536.
    pub small: u32,
    /// Buffers in [`Pool::Bulk`], at most 65,536.
    pub bulk: u32,
}

impl PoolSizes {
    /// Buffers in `pool`.
    #[must_use]
    pub const fn of(&self, pool: Pool) -> u32 {
        match pool {
            Pool::Small => self.small,
            Pool::Bulk => self.bulk,
        }
    }
}

/// Received bytes, by name: the core sees how many, never which.
///
/// Not `Clone`: whoever has it is its only holder, and gives it away in a [`Op::Send`] or a
/// [`Op::Recycle`].
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer {
    pool: Pool,
    /// Bytes of it that are not to be sent, before those that are.
    start: u16,
    index: u32,
    len: u32,
}

impl Buffer {
    /// Names `len` bytes at the start of buffer `index` of `pool`. Only the performing side, which
    /// owns the memory, makes buffers.
    #[must_use]
    pub const fn new(pool: Pool, index: u32, len: u32) -> Self {
        Self { pool, start: 0, index, len }
    }

    /// What is left of it when its first bytes are taken off.
    ///
    /// # Errors
    /// Nothing is; it is given back as it was.
    pub fn skip(self, bytes: u32) -> Result<Self, Self> {
        match self.len.checked_sub(bytes) {
            None | Some(0) => Err(self),
            Some(len) => Ok(Self { start: self.start + bytes as u16, len, ..self }),
        }
    }

    /// The pool it belongs to.
    #[must_use]
    pub const fn pool(&self) -> Pool {
        self.pool
    }

    /// Its place in the pool.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Where in the pool's buffer its bytes begin.
    #[must_use]
    pub const fn start(&self) -> u32 {
        self.start as u32
    }

    /// How many bytes it holds, at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a buffer that arrived is never empty")]
    pub const fn len(&self) -> u32 {
        self.len
    }
}

/// How a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goodbye {
    /// In order: what was sent arrives, then the end of the stream.
    Fin,
    /// With a reset: the peer learns that the stream is not whole.
    Reset,
}

/// What to do. See the [module](self) for the contract.
#[derive(Debug, PartialEq, Eq)]
pub enum Op {
    /// Gives an accepted connection its link.
    Adopt {
        /// A free link.
        link: Link,
        /// The connection.
        socket: Accepted,
    },
    /// Closes an accepted connection that gets no link; has no completion.
    Refuse {
        /// The connection.
        socket: Accepted,
        /// How it learns.
        goodbye: Goodbye,
    },
    /// Opens a connection from a free link. Yields `Connected` or `ConnectFailed`.
    Connect {
        /// A free link.
        link: Link,
        /// Where to.
        address: SocketAddr,
        /// Whose address it leaves from, if not ours; the port does not matter.
        from: Option<SocketAddr>,
    },
    /// Subscribes to a link's bytes. Ends by itself after `credit` bytes (the last buffer may
    /// carry it over by less than one buffer).
    Receive {
        /// A connected link without a subscription.
        link: Link,
        /// Where the bytes go, as long as it has buffers.
        pool: Pool,
        /// Bytes until it pauses, at least 1.
        credit: u32,
    },
    /// Ends a subscription early. The `ReceiveEnded` that follows is the subscription's, not the
    /// op's: items that were on their way still arrive before it.
    Pause {
        /// A link with a subscription.
        link: Link,
    },
    /// Sends a buffer. A run of adjacent `Send`s on one link, of which all but the last say
    /// `more`, is one send with one `Sent`. At most one run per link is in flight.
    Send {
        /// A connected link whose last run is complete.
        link: Link,
        /// The bytes. The performing side recycles the buffer, unless nothing of the run is taken.
        buffer: Buffer,
        /// Whether the next op continues this run.
        more: bool,
    },
    /// Gives a buffer back unsent; has no completion.
    Recycle {
        /// The buffer.
        buffer: Buffer,
    },
    /// Ends the writing half. Yields `ShutDown`.
    Shutdown {
        /// A connected link with nothing being sent.
        link: Link,
    },
    /// Ends a connection and whatever is in flight on it. Yields `Closed` after all of that has
    /// completed.
    Close {
        /// A connected link, or one that is connecting.
        link: Link,
        /// How the peer learns.
        goodbye: Goodbye,
    },
    /// Ends a listener, of connections or of datagrams. Connections that the kernel has completed
    /// and not yet handed over still arrive as `Accepted`; then comes `AcceptEnded`.
    StopAccepting {
        /// The listener.
        listener: ListenerId,
    },
    /// Stops accepting and receiving datagrams, without a loss: sockets stay open, and what comes
    /// waits in them. Yields `Held`, each time it is asked for.
    Hold,
    /// Ends that, for the sockets that are still here.
    Resume,
    /// Opens an upstream port on a free number, at a random local port. It may be used at once: if
    /// it fails, `PortFailed` follows and what was forwarded through it is lost.
    OpenPort {
        /// The number.
        port: PortId,
        /// How.
        kind: PortKind,
    },
    /// Ends a port. Yields `PortClosed`, unless it crosses with the port's failure: then `PortFailed`
    /// is all that is said.
    ClosePort {
        /// A port that was opened.
        port: PortId,
    },
    /// Puts a PROXY protocol header of its own before each datagram of the `Forward` that must follow
    /// next; has no completion.
    Announce {
        /// Who has sent them, and whom to.
        route: Route,
        /// How that is told.
        outbound: Outbound,
    },
    /// Sends a train. Has a completion, `Lost`, only if that fails; the performing side takes the
    /// buffer back.
    Forward {
        /// Through which socket.
        socket: DatagramSocket,
        /// Whom to.
        peer: SocketAddr,
        /// From which of our addresses, where the socket has several.
        local: Option<IpAddr>,
        /// The datagrams.
        train: Train,
    },
    /// Gives a train back unsent; has no completion.
    Discard {
        /// The datagrams.
        train: Train,
    },
}

/// Why no connection came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    /// The endpoint refused or could not be reached.
    Unreachable,
    /// This process has no descriptor left, or the system no memory; the endpoint is not to blame.
    Descriptors,
    /// No port of ours is free towards this endpoint, or no address leads there; it is not to blame, and
    /// there may be a way to another.
    NoWay,
    /// A `Close` overtook the connect; `Closed` follows.
    Cancelled,
}

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// Its credit is used up, or it was paused; the stream goes on.
    Paused,
    /// The peer has finished writing.
    EndOfStream,
    /// The peer reset the connection, or it broke.
    Reset,
    /// A `Close` overtook it; `Closed` follows.
    Cancelled,
}

/// How a run of sends ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendEnd {
    /// The kernel has taken every byte.
    Whole,
    /// The connection is finished: the peer reset it, or a `Close` overtook the send. A kernel
    /// that was asked to take everything and took less says this.
    Broken,
}

/// What happened. See the [module](self) for the contract.
#[derive(Debug, PartialEq, Eq)]
pub enum Completion {
    /// A client connected.
    Accepted {
        /// Where.
        listener: ListenerId,
        /// The connection.
        socket: Accepted,
        /// Who.
        client: SocketAddr,
    },
    /// The listener cannot accept for want of descriptors; clients wait in its backlog and it tries
    /// again by itself.
    AcceptStalled {
        /// The listener.
        listener: ListenerId,
    },
    /// Nothing more comes from this listener; answers `StopAccepting`.
    AcceptEnded {
        /// The listener.
        listener: ListenerId,
    },
    /// The connect succeeded.
    Connected {
        /// The link.
        link: Link,
    },
    /// The connect failed; the link is free again, unless the cause is `Cancelled`.
    ConnectFailed {
        /// The link.
        link: Link,
        /// Why.
        cause: ConnectFailure,
    },
    /// Bytes came.
    Received {
        /// The link.
        link: Link,
        /// The bytes.
        buffer: Buffer,
    },
    /// The subscription is over.
    ReceiveEnded {
        /// The link.
        link: Link,
        /// Why.
        end: ReceiveEnd,
    },
    /// A buffer of a run of which the kernel took nothing. The others of the run follow, the last of them
    /// first, and then a `Sent` of no bytes that is broken.
    Returned {
        /// The link it was sent to.
        link: Link,
        /// The bytes.
        buffer: Buffer,
    },
    /// The run of sends is over; its buffers are recycled, or have come back.
    Sent {
        /// The link.
        link: Link,
        /// Bytes the kernel took.
        bytes: u32,
        /// Whether that was all.
        end: SendEnd,
    },
    /// The writing half is ended (or was already).
    ShutDown {
        /// The link.
        link: Link,
    },
    /// The connection is gone and the link is free.
    Closed {
        /// The link.
        link: Link,
    },
    /// Nothing more is accepted, and no datagram received; answers `Hold`.
    Held,
    /// Datagrams came.
    Datagrams {
        /// Where.
        socket: DatagramSocket,
        /// From whom, and to which of our addresses.
        path: Path,
        /// The datagrams.
        train: Train,
    },
    /// Datagrams were lost here, coming or going.
    Lost {
        /// At which socket.
        socket: DatagramSocket,
        /// How many.
        datagrams: u32,
        /// Why.
        cause: LossCause,
    },
    /// The port could not be opened for want of a descriptor or a local port; its number is free.
    PortFailed {
        /// The port.
        port: PortId,
    },
    /// The peer of a connected port was found unreachable: an ICMP error came.
    PortUnreachable {
        /// The port.
        port: PortId,
    },
    /// The port is gone and its number is free.
    PortClosed {
        /// The port.
        port: PortId,
    },
}

/// Lends the bytes of what has arrived to the preread stage, and takes the few that the core has to
/// say itself: headers that announce clients.
pub trait Memory {
    /// The bytes of a buffer, from its first to its last.
    fn bytes(&self, buffer: &Buffer) -> &[u8];

    /// Fills a small buffer with bytes that the core wants to send, if one is free. There are at most
    /// as many bytes as such a buffer has, and at least one.
    fn write(&mut self, bytes: &[u8]) -> Option<Buffer>;

    /// The address at which the peer of a connected link has reached us.
    fn local_address(&self, link: Link) -> Option<SocketAddr>;

    /// The bytes of a train's first datagram.
    fn first_datagram(&self, train: &Train) -> &[u8];
}

/// The ops decided in one turn, in order. Sized at start; the balancer keeps within it.
#[derive(Debug)]
pub struct Ops {
    queue: Vec<Op>,
}

impl Ops {
    /// Makes an empty list that holds `capacity` ops without allocating again.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { queue: Vec::with_capacity(capacity) }
    }

    /// Appends an op.
    pub fn push(&mut self, op: Op) {
        debug_assert!(self.queue.len() < self.queue.capacity(), "ops are sized at start");
        self.queue.push(op);
    }

    /// How many more fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.queue.capacity() - self.queue.len()
    }

    /// Takes all ops, oldest first.
    pub fn drain(&mut self) -> Drain<'_, Op> {
        self.queue.drain(..)
    }
}
