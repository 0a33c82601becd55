//! Ops in: what the balancer has decided becomes requests to the kernel.
//!
//! Most ops become one entry each, submitted by the next [`Ring::wait`]. What the kernel would
//! hand to a helper thread (shutdown) or what cannot wait for anything (close, socket options) is
//! an ordinary system call on the spot, whose completion is *synthetic*: it is queued here and
//! comes out of the next reap like any other.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use pointsman_core::Instant;
use pointsman_core::boundary::{
    Accepted, Buffer, Completion, ConnectFailure, DatagramSocket, Goodbye, Link, ListenerId,
    Memory, Op, Pool, PoolSizes, ReceiveEnd, Train,
};
use pointsman_core::proxy::{Header, Identity};

use crate::buffers::{Buffers, DATAGRAM_WINDOW};
use crate::datagram::Datagrams;
use crate::forward::{Preface, Routes};
use crate::hold::Hold;
use crate::listener::Listeners;
use crate::reap::Reap;
use crate::ring::{RUN_MAX, Run, Uring};
use crate::socket::{Receive, Socket};
use crate::stats::BufferPool;
use crate::token::Token;
use crate::{RingError, RingFeatures, Waker, sys};

/// How many events of links the completion queue makes room for.
const LINK_EVENTS_MAX: u32 = 16_384;

/// How large a ring is. Everything is reserved at start and touched only when used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// Links are numbered below this: twice the sessions.
    pub links_max: u32,
    /// Listeners are numbered below this.
    pub listeners_max: u16,
    /// Ports are numbered below this.
    pub ports_max: u32,
    /// Receive buffers in each pool.
    pub buffers: PoolSizes,
    /// Buffers for datagrams, at most 65,536. With 0 there is no memory for datagrams, and neither
    /// ports nor listeners of datagrams can be opened.
    pub datagram_buffers: u32,
}

impl RingConfig {
    /// How many events the kernel may have to tell at once: two for each link, though hardly ever
    /// of all of them if there are many; the end of each port's receive, for a burst that uses up
    /// the buffers ends them all; and a datagram in each buffer that the kernel sees.
    fn events(&self) -> u32 {
        let links = self.links_max.saturating_mul(2).min(LINK_EVENTS_MAX);
        let datagrams = self.datagram_buffers.min(DATAGRAM_WINDOW);
        links.saturating_add(self.ports_max).saturating_add(datagrams)
    }

    /// How many completions there may be that the kernel does not report. A link has at most a
    /// shutdown, the end of its subscription and its close to report; a port an error and its end;
    /// a datagram buffer an error and a loss, each time it arrives; and one run of sends comes back, with
    /// its end, before the kernel reports anything else.
    fn synthetic_completions(&self) -> usize {
        let datagrams = 2 * (self.ports_max as usize + self.datagram_buffers as usize);
        3 * self.links_max as usize
            + 2 * usize::from(self.listeners_max)
            + datagrams
            + RUN_MAX as usize
            + 1
    }
}

/// Performs ops and reports completions, for one worker, on that worker's thread.
///
/// A turn is [`submit`](Self::submit), [`wait`](Self::wait), [`reap`](Self::reap). Dropping a ring
/// closes its sockets without ceremony; a worker that wants goodbyes says them first.
pub struct Ring {
    pub(crate) uring: Uring,
    /// One per link, up to the highest link seen so far.
    pub(crate) sockets: Vec<Socket>,
    links_max: u32,
    /// A run of sends whose last buffer has not come yet.
    run: Option<(Link, Run)>,
    /// Completions that the kernel does not report, oldest first.
    pub(crate) pending: VecDeque<Completion>,
    /// Links that wait for buffers, longest first.
    pub(crate) starved: VecDeque<Link>,
    /// Times a link or a gate began to wait, by [`BufferPool::index`].
    pub(crate) starved_total: [u64; BufferPool::ALL.len()],
    pub(crate) listeners: Listeners,
    pub(crate) datagrams: Datagrams,
    pub(crate) hold: Hold,
    pub(crate) routes: Routes,
    pub(crate) preface: Preface,
    pub(crate) waker: Waker,
}

impl Ring {
    /// Sets up a ring for the calling thread, which must be the one that uses it.
    ///
    /// # Errors
    /// `io_uring` is denied, missing or too old, or memory or descriptors run out.
    pub fn new(config: &RingConfig) -> Result<Self, RingError> {
        let waker = Waker::new().map_err(RingError::os("make an eventfd"))?;
        let buffers = Buffers::new(&config.buffers, config.datagram_buffers)?;
        let mut uring = Uring::new(config.events(), buffers, waker.descriptor())?;
        uring.poll(Token::Wake, waker.descriptor());
        let links = config.links_max as usize;
        Ok(Self {
            uring,
            sockets: Vec::with_capacity(links),
            links_max: config.links_max,
            run: None,
            pending: VecDeque::with_capacity(config.synthetic_completions()),
            starved: VecDeque::with_capacity(links),
            starved_total: [0; BufferPool::ALL.len()],
            listeners: Listeners::new(config.listeners_max),
            datagrams: Datagrams::new(config.listeners_max, config.ports_max),
            hold: Hold::default(),
            routes: Routes::default(),
            preface: Preface::default(),
            waker,
        })
    }

    /// Takes over a listening socket and accepts from it until
    /// [`StopAccepting`](Op::StopAccepting).
    ///
    /// # Errors
    /// The listener's number is taken or too high.
    pub fn listen(&mut self, id: ListenerId, socket: OwnedFd) -> Result<(), RingError> {
        self.add_listener(id, socket, false)
    }

    /// The same for a socket from which other rings accept too: each gets its share of the clients. It
    /// becomes one that does not block, for all who have it.
    ///
    /// # Errors
    /// The listener's number is taken or too high.
    pub fn listen_shared(&mut self, id: ListenerId, socket: OwnedFd) -> Result<(), RingError> {
        self.add_listener(id, socket, true)
    }

    /// What wakes this ring from other threads.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// What the kernel can do beyond what the ring needs.
    #[must_use]
    pub fn features(&self) -> RingFeatures {
        self.uring.features().into()
    }

    /// Buffers of a pool that nobody holds.
    #[must_use]
    pub fn free_buffers(&self, pool: Pool) -> u32 {
        self.uring.buffers().free(pool)
    }

    /// Buffers for datagrams that nobody holds.
    #[must_use]
    pub fn free_datagram_buffers(&self) -> u32 {
        self.uring.buffers().free_messages()
    }

    /// Performs ops, in order. Datagrams are sent, and ports opened, on the spot; everything else
    /// reaches the kernel with the next [`wait`](Self::wait), or at once if it is more than one
    /// turn's worth.
    ///
    /// # Panics
    /// An op breaks the contract of the boundary: it names a link beyond `links_max` or a port
    /// beyond `ports_max`, a buffer or a train that is not this ring's, an unconnected link, or
    /// opens a port that is open.
    pub fn submit(&mut self, ops: impl Iterator<Item = Op>) {
        for op in ops {
            self.perform(op);
        }
    }

    /// Enters the kernel once: hands over what was submitted, and waits until there is a
    /// completion, another thread wakes the ring, or the deadline has passed. Returns at once if
    /// there is something to reap already.
    ///
    /// # Errors
    /// The ring is broken, and the worker with it. Signals and time-outs are not errors.
    pub fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.uring.provide();
        self.feed_starved();
        self.feed_starved_gates();
        self.hold_some_gates();
        self.report_failed_ports();
        let deadline = self.retry_listeners(deadline);
        let ready = !self.pending.is_empty()
            || self.listeners.is_draining()
            || self.can_feed()
            || self.can_feed_gates()
            || self.can_hold_gates()
            || self.uring.has_events();
        if ready && !self.uring.has_entries() && !self.listeners.is_draining() {
            return Ok(());
        }
        self.uring.enter(!ready, deadline)
    }

    /// Takes up to `limit` completions; the others stay for the next turn.
    pub fn reap(&mut self, limit: usize) -> Reap<'_> {
        Reap::new(self, limit)
    }

    fn perform(&mut self, op: Op) {
        match op {
            Op::Adopt { link, socket } => self.adopt(link, socket),
            Op::Refuse { socket, goodbye } => {
                sys::close(sys::take_over(socket.into_number()), goodbye);
            }
            Op::Connect { link, address, from } => self.connect(link, &address, from),
            Op::Receive { link, pool, credit } => self.receive(link, pool, credit),
            Op::Pause { link } => self.pause(link),
            Op::Send { link, buffer, more } => self.send(link, &buffer, more),
            Op::Recycle { buffer } => self.uring.put(&buffer),
            Op::Shutdown { link } => self.shutdown(link),
            Op::Close { link, goodbye } => self.close(link, goodbye),
            Op::StopAccepting { listener } if self.datagrams.listens(listener) => {
                self.close_gate(DatagramSocket::Listener(listener));
            }
            Op::StopAccepting { listener } => self.stop_accepting(listener),
            Op::Hold => self.hold(),
            Op::Resume => self.resume(),
            Op::OpenPort { port, kind } => {
                self.open_port(port, &kind, || sys::port_socket(&kind));
            }
            Op::ClosePort { port } => self.close_gate(DatagramSocket::Port(port)),
            Op::Announce { route, outbound } => {
                self.preface.set(&Header::of_datagram(&outbound, route, Identity::default()));
            }
            Op::Forward { socket, peer, local, train } => self.forward(socket, peer, local, &train),
            Op::Discard { train } => self.discard(&train),
        }
    }

    fn adopt(&mut self, link: Link, socket: Accepted) {
        let stream = sys::take_over(socket.into_number());
        self.slot(link).open(stream);
    }

    fn connect(&mut self, link: Link, address: &SocketAddr, from: Option<SocketAddr>) {
        match sys::connecting_socket(address, from) {
            Ok(stream) => self.start_connect(link, stream, address),
            Err(error) => {
                let cause = connect_failure(error.raw_os_error().unwrap_or(0));
                self.pending.push_back(Completion::ConnectFailed { link, cause });
            }
        }
    }

    fn start_connect(&mut self, link: Link, stream: TcpStream, address: &SocketAddr) {
        let socket = self.slot(link);
        socket.open(stream);
        socket.connecting = true;
        let descriptor = socket.descriptor();
        self.uring.connect(Token::Connect(link), descriptor, address);
    }

    fn receive(&mut self, link: Link, pool: Pool, credit: u32) {
        let socket = &mut self.sockets[link.index()];
        debug_assert_eq!(socket.receive, Receive::Idle, "a link has one subscription");
        socket.pool = pool;
        socket.credit = credit;
        if self.uring.buffers().visible(pool) == 0 {
            self.starve(link);
        } else {
            self.arm(link);
        }
    }

    fn arm(&mut self, link: Link) {
        let socket = &mut self.sockets[link.index()];
        socket.receive = Receive::Armed;
        let (pool, credit) = (socket.pool, socket.credit.max(1));
        self.uring.receive(Token::Receive(link), socket.descriptor(), pool, credit);
    }

    /// Puts a subscription off until there are buffers.
    pub(crate) fn starve(&mut self, link: Link) {
        let socket = &mut self.sockets[link.index()];
        socket.receive = Receive::Starved;
        self.starved_total[BufferPool::from(socket.pool).index()] += 1;
        if !socket.queued {
            socket.queued = true;
            self.starved.push_back(link);
        }
    }

    /// Arms again as many starved subscriptions as there are buffers to see. One whose own pool has
    /// none takes the other's: a few slow readers may have all bulk buffers in their hands for long.
    fn feed_starved(&mut self) {
        let mut feasts = Pool::BOTH.map(|pool| self.uring.buffers().visible(pool));
        while feasts != [0; 2]
            && let Some(link) = self.starved.pop_front()
        {
            let socket = &mut self.sockets[link.index()];
            socket.queued = false;
            if socket.receive != Receive::Starved {
                continue;
            }
            if feasts[socket.pool.index()] == 0 {
                socket.pool = socket.pool.other();
            }
            feasts[socket.pool.index()] -= 1;
            self.arm(link);
        }
    }

    /// Whether links wait for buffers that are there: the ones fed so far may not want theirs.
    fn can_feed(&self) -> bool {
        let visible = |pool| self.uring.buffers().visible(pool) > 0;
        !self.starved.is_empty() && Pool::BOTH.into_iter().any(visible)
    }

    fn pause(&mut self, link: Link) {
        let socket = &mut self.sockets[link.index()];
        match socket.receive {
            Receive::Armed => {
                socket.receive = Receive::Pausing;
                self.uring.cancel(Token::Receive(link));
            }
            Receive::Starved => {
                socket.receive = Receive::Idle;
                let end = ReceiveEnd::Paused;
                self.pending.push_back(Completion::ReceiveEnded { link, end });
            }
            // Its end is on the way already.
            Receive::Idle | Receive::Pausing => {}
        }
    }

    fn send(&mut self, link: Link, buffer: &Buffer, more: bool) {
        let run = match self.run.take() {
            None => self.uring.run(buffer),
            Some((owner, mut run)) => {
                assert_eq!(owner, link, "the sends of a run are adjacent");
                self.uring.extend(&mut run, buffer);
                run
            }
        };
        if more {
            self.run = Some((link, run));
            return;
        }
        let socket = &mut self.sockets[link.index()];
        debug_assert!(!socket.is_sending(), "a link has one run in flight");
        socket.sending = run.head;
        socket.sending_bytes = run.bytes;
        self.uring.send(Token::Send(link), socket.descriptor(), &run);
    }

    fn shutdown(&mut self, link: Link) {
        let socket = &self.sockets[link.index()];
        let stream = socket.stream.as_ref().expect("a link in use has a socket");
        // It fails only on a connection that is gone, and that has no writing half any more.
        let _ = stream.shutdown(Shutdown::Write);
        self.pending.push_back(Completion::ShutDown { link });
    }

    fn close(&mut self, link: Link, goodbye: Goodbye) {
        let socket = self.slot(link);
        if socket.stream.is_none() {
            self.close_failed_connect(link);
            return;
        }
        socket.closing = Some(goodbye);
        let (connecting, sending) = (socket.connecting, socket.is_sending());
        if socket.receive == Receive::Starved {
            socket.receive = Receive::Idle;
            let end = ReceiveEnd::Cancelled;
            self.pending.push_back(Completion::ReceiveEnded { link, end });
        } else if socket.is_receiving() {
            self.uring.cancel(Token::Receive(link));
        }
        if connecting {
            self.uring.cancel(Token::Connect(link));
        }
        if sending {
            self.uring.cancel(Token::Send(link));
        }
        self.settle(link);
    }

    /// Answers a close of a link whose connect has failed, which the balancer had not reaped: to
    /// the balancer, its close came first.
    fn close_failed_connect(&mut self, closed: Link) {
        for completion in &mut self.pending {
            if let Completion::ConnectFailed { link, cause } = completion
                && *link == closed
            {
                *cause = ConnectFailure::Cancelled;
            }
        }
        self.pending.push_back(Completion::Closed { link: closed });
    }

    /// Closes a closing link's socket once the kernel holds nothing of it. The only place where
    /// sockets of links are closed, but for failed connects.
    pub(crate) fn settle(&mut self, link: Link) {
        let socket = &mut self.sockets[link.index()];
        let Some(goodbye) = socket.closing else { return };
        if socket.is_in_flight() {
            return;
        }
        if let Some(stream) = socket.stream.take() {
            sys::close(stream, goodbye);
        }
        socket.closing = None;
        self.pending.push_back(Completion::Closed { link });
    }

    /// A link's state, which comes into being when the link is first used.
    fn slot(&mut self, link: Link) -> &mut Socket {
        let index = link.index();
        if index >= self.sockets.len() {
            assert!(index < self.links_max as usize, "links are below links_max");
            self.sockets.resize_with(index + 1, || Socket::FREE);
        }
        &mut self.sockets[index]
    }
}

impl Memory for Ring {
    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.uring.buffers().bytes(buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> Option<Buffer> {
        self.uring.write(bytes)
    }

    fn local_address(&self, link: Link) -> Option<SocketAddr> {
        self.sockets.get(link.index())?.stream.as_ref()?.local_addr().ok()
    }

    fn first_datagram(&self, train: &Train) -> &[u8] {
        let payload = self.uring.buffers().payload(train);
        match train.segment() as usize {
            0 => payload,
            segment => &payload[..segment.min(payload.len())],
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for completion in self.pending.drain(..) {
            if let Completion::Accepted { socket, .. } = completion {
                drop(sys::take_over(socket.into_number()));
            }
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("links_max", &self.links_max).finish_non_exhaustive()
    }
}

/// Whose fault a failed connect is.
pub(crate) fn connect_failure(errno: i32) -> ConnectFailure {
    match errno {
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN => {
            ConnectFailure::Descriptors
        }
        libc::EADDRNOTAVAIL => ConnectFailure::NoWay,
        _ => ConnectFailure::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_core::boundary::SendEnd;
    use std::io::{Read, Write};
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    fn ring_of_an_older_kernel() -> Ring {
        let buffers = PoolSizes { small: 64, bulk: 1 };
        let (links_max, listeners_max, ports_max, datagram_buffers) = (2, 0, 0, 0);
        let config = RingConfig { links_max, listeners_max, ports_max, buffers, datagram_buffers };
        let mut ring = Ring::new(&config).expect("io_uring, which these tests need");
        ring.uring.forget_features();
        ring
    }

    fn next(ring: &mut Ring) -> Completion {
        loop {
            if let Some(completion) = ring.reap(1).next() {
                return completion;
            }
            let deadline = sys::Clock.now() + std::time::Duration::from_secs(10);
            ring.wait(Some(deadline)).expect("wait");
        }
    }

    #[test]
    fn credit_is_counted_for_a_kernel_that_does_not() {
        let mut ring = ring_of_an_older_kernel();
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let (link, socket) = (Link::from_index(0), Accepted::new(ours.into_raw_fd()));
        let receive = Op::Receive { link, pool: Pool::Small, credit: 30 };
        ring.submit([Op::Adopt { link, socket }, receive].into_iter());
        for _ in 0..2 {
            theirs.write_all(b"twenty bytes, or so.").expect("write");
            let completion = next(&mut ring);
            assert!(matches!(completion, Completion::Received { .. }), "{completion:?}");
        }
        let ended = Completion::ReceiveEnded { link, end: ReceiveEnd::Paused };
        assert_eq!(next(&mut ring), ended);
    }

    #[test]
    fn a_link_that_wants_bulk_buffers_takes_small_ones_where_there_are_none() {
        let mut ring = ring_of_an_older_kernel();
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let (hog, mut hogs_peer) = UnixStream::pair().expect("pair");
        for (index, stream) in [hog, ours].into_iter().enumerate() {
            let link = Link::from_index(index as u32);
            let socket = Accepted::new(stream.into_raw_fd());
            let receive = Op::Receive { link, pool: Pool::Bulk, credit: 1 << 20 };
            ring.submit([Op::Adopt { link, socket }, receive].into_iter());
        }
        hogs_peer.write_all(b"takes the only bulk buffer").expect("write");
        let Completion::Received { buffer: held, .. } = next(&mut ring) else { panic!("no bytes") };
        assert_eq!(held.pool(), Pool::Bulk);
        theirs.write_all(b"is served all the same").expect("write");
        let Completion::Received { buffer, .. } = next(&mut ring) else { panic!("no bytes") };
        assert_eq!(buffer.pool(), Pool::Small);
    }

    #[test]
    fn an_older_kernel_sends_runs_with_a_message_header() {
        let mut ring = ring_of_an_older_kernel();
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let (link, socket) = (Link::from_index(0), Accepted::new(ours.into_raw_fd()));
        let receive = Op::Receive { link, pool: Pool::Small, credit: 1 << 20 };
        ring.submit([Op::Adopt { link, socket }, receive].into_iter());
        for at in 0..9u8 {
            theirs.write_all(&[at; 100]).expect("write");
            let Completion::Received { buffer, .. } = next(&mut ring) else { panic!("no bytes") };
            ring.submit(std::iter::once(Op::Send { link, buffer, more: at < 8 }));
        }
        let sent = Completion::Sent { link, bytes: 900, end: SendEnd::Whole };
        assert_eq!(next(&mut ring), sent);
        let mut echo = [0; 900];
        theirs.read_exact(&mut echo).expect("read");
        assert!(echo.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 100));
    }

    #[test]
    fn the_endpoint_is_not_blamed_for_our_want_of_descriptors() {
        assert_eq!(connect_failure(libc::EMFILE), ConnectFailure::Descriptors);
        assert_eq!(connect_failure(libc::EADDRNOTAVAIL), ConnectFailure::NoWay);
        assert_eq!(connect_failure(libc::ECONNREFUSED), ConnectFailure::Unreachable);
        assert_eq!(connect_failure(libc::EHOSTUNREACH), ConnectFailure::Unreachable);
    }
}
