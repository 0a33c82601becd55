//! A kernel, a network and the peers at its ends, small enough to be certain of.
//!
//! It performs ops and produces completions under the contract of
//! [`boundary`](pointsman_core::boundary), in any order the contract allows, and panics at any op
//! that breaks it. Bytes have no values: a buffer is known by the connection it came from and its
//! place in that stream, which is all it takes to see loss, repetition and disorder.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use pointsman_core::Instant;
use pointsman_core::boundary::{
    Accepted, Buffer, Completion, ConnectFailure, Goodbye, Link, ListenerId, Memory, Op, Pool,
    PoolSizes, ReceiveEnd, SendEnd, Side, Train,
};

use crate::rng::Rng;

/// How badly things go, in times per thousand.
#[derive(Debug, Clone)]
pub(crate) struct Faults {
    pub(crate) refused: u64,
    pub(crate) silent: u64,
    pub(crate) descriptors: u64,
    pub(crate) reset: u64,
    pub(crate) stall: u64,
    pub(crate) single_bytes: u64,
    pub(crate) tiny_reads: u64,
}

impl Faults {
    /// Nothing goes wrong.
    pub(crate) const NONE: Self = Self {
        refused: 0,
        silent: 0,
        descriptors: 0,
        reset: 0,
        stall: 0,
        single_bytes: 0,
        tiny_reads: 0,
    };
}

/// One TCP connection between the balancer and a peer.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) address: SocketAddr,
    /// The PROXY header that its stream begins with, or what stands in for one.
    pub(crate) head: Vec<u8>,
    /// What its first bytes are after that.
    pub(crate) first: u8,
    /// Bytes the peer will write in its life, and whether it then ends its stream.
    pub(crate) to_write: u64,
    pub(crate) ends: bool,
    /// Whether it does so only after we have ended ours, as a server may.
    answers_end: bool,
    pub(crate) written: u64,
    pub(crate) received: u64,
    pub(crate) fin_written: bool,
    pub(crate) reset_by_peer: bool,
    pub(crate) stalls: bool,
    /// Bytes our kernel has taken for the peer, and those the peer has read.
    pub(crate) taken: u64,
    pub(crate) read: u64,
    pub(crate) fin_from_us: bool,
    pub(crate) reset_from_us: bool,
    pub(crate) gone: bool,
    /// The header by which the peer was told of another.
    pub(crate) announced: Option<Vec<u8>>,
    /// Bytes our kernel holds for the peer at most.
    space: u64,
}

impl Conn {
    fn is_dead(&self) -> bool {
        self.reset_by_peer || self.gone
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    Pending { outcome: Result<(), ConnectFailure>, at: Instant },
    Silent,
    Done,
}

#[derive(Debug)]
struct Subscription {
    pool: Pool,
    credit: u32,
    /// Items that may still come once it was told to end.
    ending: Option<u32>,
}

#[derive(Debug)]
struct Socket {
    conn: usize,
    dial: Dial,
    subscription: Option<Subscription>,
    send: Option<VecDeque<(Buffer, u32)>>,
    sent: u32,
    /// Whether the buffers of a run come back, of which nothing was taken.
    returns: bool,
    shutdown: bool,
    close: Option<Goodbye>,
}

/// Where a buffer's bytes stand in their stream.
#[derive(Debug, Clone)]
struct Chunk {
    conn: usize,
    start: u64,
    /// Its bytes, if it is among the first of the stream.
    bytes: Vec<u8>,
}

/// Bytes of a stream that have values, after its head.
const FIRST: u64 = 5_000;
/// In place of a connection: the bytes are the balancer's own.
const WRITTEN: usize = usize::MAX;
/// Where every client has connected to.
pub(crate) const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 8, 0, 1)), 443);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    Open,
    Stopping,
    Ended,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) conns: Vec<Conn>,
    links: BTreeMap<usize, Socket>,
    handed_over: BTreeMap<i32, usize>,
    backlog: VecDeque<(ListenerId, usize)>,
    listeners: Vec<Listening>,
    pools: PoolSizes,
    free: [Vec<u32>; 2],
    /// Buffers that are not free.
    chunks: BTreeMap<(usize, u32), Chunk>,
    /// Links whose connect was lost to a close that crossed with its failure.
    crossed: Vec<Link>,
    run: Option<(Link, VecDeque<(Buffer, u32)>)>,
    is_calm: bool,
}

impl World {
    pub(crate) fn new(rng: Rng, faults: Faults, pools: PoolSizes, listeners: usize) -> Self {
        Self {
            now: Instant::from_millis(1_000),
            rng,
            faults,
            conns: Vec::new(),
            links: BTreeMap::new(),
            handed_over: BTreeMap::new(),
            backlog: VecDeque::new(),
            listeners: vec![Listening::Open; listeners],
            pools,
            free: [(0..pools.small).collect(), (0..pools.bulk).collect()],
            chunks: BTreeMap::new(),
            crossed: Vec::new(),
            run: None,
            is_calm: false,
        }
    }

    /// A client connects, and writes this before all else. If it `breaks_off` it does not get to the
    /// end of that.
    pub(crate) fn arrive(
        &mut self,
        listener: ListenerId,
        client: SocketAddr,
        (head, breaks_off): (Vec<u8>, bool),
    ) {
        if self.listeners[listener.index()] == Listening::Open {
            let number = self.open(client, false);
            let conn = &mut self.conns[number];
            let length = head.len() as u64;
            conn.to_write = if breaks_off { length - 1 } else { length + conn.to_write };
            conn.head = head;
            let conn = number;
            self.backlog.push_back((listener, conn));
        }
    }

    /// Another listener has the place of one that has ended.
    pub(crate) fn listen(&mut self, listener: ListenerId) {
        assert!(self.has_ended(listener));
        self.listeners[listener.index()] = Listening::Open;
    }

    /// Whether a listener's socket is closed.
    pub(crate) fn has_ended(&self, listener: ListenerId) -> bool {
        self.listeners[listener.index()] == Listening::Ended
    }

    fn open(&mut self, address: SocketAddr, answers_end: bool) -> usize {
        let bulk = self.rng.chance(150);
        let most = if bulk { 2_000_000 } else { self.rng.pick(&[0, 1, 100, 5_000, 40_000]) };
        self.conns.push(Conn {
            address,
            head: Vec::new(),
            first: self.rng.below(4) as u8,
            to_write: self.rng.between(0, most),
            ends: self.is_calm || self.rng.chance(800),
            answers_end,
            written: 0,
            received: 0,
            fin_written: false,
            reset_by_peer: false,
            stalls: false,
            taken: 0,
            read: 0,
            fin_from_us: false,
            reset_from_us: false,
            gone: false,
            announced: None,
            space: self.rng.pick(&[if self.is_calm { 10_000 } else { 1 }, 2_000, 30_000, 300_000]),
        });
        self.conns.len() - 1
    }

    /// A peer does something: writes, reads, ends, stalls, resets.
    pub(crate) fn act(&mut self, number: usize) {
        let reset = self.rng.chance(self.faults.reset);
        let stall = self.rng.chance(self.faults.stall);
        let single = self.rng.chance(self.faults.single_bytes);
        let amount = if single { 1 } else { self.rng.between(1, 70_000) };
        let conn = &mut self.conns[number];
        if conn.is_dead() {
            return;
        }
        if reset {
            conn.reset_by_peer = true;
            return;
        }
        if stall {
            conn.stalls = !conn.stalls;
        }
        conn.write(amount);
        if !conn.stalls {
            conn.read = conn.taken.min(conn.read + amount);
        }
    }

    /// From here on every peer reads, writes all it has and ends its stream.
    pub(crate) fn calm(&mut self) {
        for conn in &mut self.conns {
            conn.ends = true;
            conn.stalls = false;
            conn.space = conn.space.max(10_000);
        }
        self.is_calm = true;
        self.faults = Faults::NONE;
        for number in 0..self.conns.len() {
            self.act(number);
        }
    }

    /// Lets up to `count` things happen that the contract allows to happen.
    pub(crate) fn collect(&mut self, count: usize) -> Vec<Completion> {
        let mut completions = Vec::new();
        for _ in 0..count {
            let completion = self.accept().or_else(|| self.progress_somewhere());
            let Some(completion) = completion else { break };
            completions.push(completion);
        }
        completions
    }

    fn accept(&mut self) -> Option<Completion> {
        if self.rng.chance(500) {
            return None;
        }
        let number = self.rng.below(self.listeners.len() as u64) as usize;
        let listener = ListenerId(number as u16);
        if self.rng.chance(self.faults.descriptors) && self.listeners[number] == Listening::Open {
            return Some(Completion::AcceptStalled { listener });
        }
        let waiting = self.backlog.iter().position(|(at, _)| *at == listener);
        if let Some((_, conn)) = waiting.and_then(|place| self.backlog.remove(place)) {
            self.handed_over.insert(conn as i32, conn);
            let client = self.conns[conn].address;
            return Some(Completion::Accepted {
                listener,
                socket: Accepted::new(conn as i32),
                client,
            });
        }
        if self.listeners[number] == Listening::Stopping {
            self.listeners[number] = Listening::Ended;
            return Some(Completion::AcceptEnded { listener });
        }
        None
    }

    fn progress_somewhere(&mut self) -> Option<Completion> {
        if let Some(link) = self.crossed.pop() {
            return Some(Completion::Closed { link });
        }
        let indexes: Vec<usize> = self.links.keys().copied().collect();
        if indexes.is_empty() {
            return None;
        }
        let from = self.rng.below(indexes.len() as u64) as usize;
        indexes[from..].iter().chain(&indexes[..from]).find_map(|&index| self.progress(index))
    }

    fn progress(&mut self, index: usize) -> Option<Completion> {
        let link = Link::from_index(index as u32);
        if self.links[&index].dial != Dial::Done {
            return self.progress_dial(link);
        }
        let first = self.rng.below(3);
        (0..3).find_map(|step| match (first + step) % 3 {
            0 => self.progress_receive(link),
            1 => self.progress_send(link),
            _ => self.progress_end(link),
        })
    }

    fn progress_dial(&mut self, link: Link) -> Option<Completion> {
        let lucky = self.rng.chance(300);
        let now = self.now;
        let socket = self.links.get_mut(&link.index())?;
        let overtaken = socket.close.is_some() && !lucky;
        match socket.dial {
            _ if overtaken => {
                socket.dial = Dial::Done;
                Some(Completion::ConnectFailed { link, cause: ConnectFailure::Cancelled })
            }
            Dial::Pending { outcome, at } if at <= now => {
                socket.dial = Dial::Done;
                match outcome {
                    Ok(()) => Some(Completion::Connected { link }),
                    Err(cause) => {
                        if socket.close.is_none() {
                            let conn = socket.conn;
                            self.conns[conn].gone = true;
                            self.links.remove(&link.index());
                        }
                        Some(Completion::ConnectFailed { link, cause })
                    }
                }
            }
            _ => None,
        }
    }

    fn progress_receive(&mut self, link: Link) -> Option<Completion> {
        let socket = self.links.get_mut(&link.index())?;
        let closing = socket.close.is_some();
        let conn = &mut self.conns[socket.conn];
        let subscription = socket.subscription.as_mut()?;
        let unread = conn.written - conn.received;
        let stops = closing || subscription.ending.is_some();
        let may_still_come = match &mut subscription.ending {
            Some(items) if *items > 0 => {
                *items -= 1;
                true
            }
            Some(_) => false,
            None => !closing || self.rng.chance(300),
        };
        let reset_first = conn.reset_by_peer && self.rng.chance(500);
        if unread > 0 && may_still_come && !reset_first {
            return self.receive_some(link);
        }
        let end = if conn.reset_by_peer && !closing {
            ReceiveEnd::Reset
        } else if closing {
            ReceiveEnd::Cancelled
        } else if conn.fin_written && unread == 0 {
            ReceiveEnd::EndOfStream
        } else if stops {
            ReceiveEnd::Paused
        } else {
            return None;
        };
        socket.subscription = None;
        Some(Completion::ReceiveEnded { link, end })
    }

    fn receive_some(&mut self, link: Link) -> Option<Completion> {
        let socket = self.links.get_mut(&link.index())?;
        let subscription = socket.subscription.as_mut()?;
        let conn = &mut self.conns[socket.conn];
        let pool = subscription.pool;
        if subscription.credit == 0 {
            subscription.ending = Some(0);
            return None;
        }
        let index = self.free[pool.index()].pop()?;
        let most = u64::from(pool.buffer_bytes()).min(conn.written - conn.received);
        let (whole, single) = (self.rng.chance(700), self.rng.chance(self.faults.tiny_reads));
        let len = match (single, whole) {
            (true, _) => 1,
            (false, true) => most as u32,
            (false, false) => self.rng.between(1, most) as u32,
        };
        let (start, end) = (conn.received, conn.received + u64::from(len));
        let head = &conn.head;
        let value = |at: u64| head.get(at as usize).copied().unwrap_or(conn.first);
        let is_valued = start < head.len() as u64 + FIRST;
        let bytes = if is_valued { (start..end).map(value).collect() } else { Vec::new() };
        let chunk = Chunk { conn: socket.conn, start: conn.received, bytes };
        self.chunks.insert((pool.index(), index), chunk);
        conn.received += u64::from(len);
        subscription.credit = subscription.credit.saturating_sub(len);
        if subscription.credit == 0 {
            subscription.ending = Some(0);
        }
        Some(Completion::Received { link, buffer: Buffer::new(pool, index, len) })
    }

    fn progress_send(&mut self, link: Link) -> Option<Completion> {
        let socket = self.links.get_mut(&link.index())?;
        let run = socket.send.as_mut()?;
        let conn = &mut self.conns[socket.conn];
        let dead = conn.is_dead() || socket.close.is_some() || socket.returns;
        while let Some((buffer, left)) = run.front_mut().filter(|_| !dead) {
            let freed = (buffer.pool().index(), buffer.index());
            if self.chunks[&freed].conn == WRITTEN {
                socket.sent += *left;
                conn.announced = self.chunks.remove(&freed).map(|chunk| chunk.bytes);
                self.free[freed.0].push(freed.1);
                run.pop_front();
                if self.rng.chance(300) {
                    return None;
                }
                continue;
            }
            let room = conn.space.saturating_sub(conn.taken - conn.read);
            let taken = u64::from(*left).min(room) as u32;
            if taken == 0 {
                return None;
            }
            conn.taken += u64::from(taken);
            socket.sent += taken;
            *left -= taken;
            if *left == 0 {
                run.pop_front();
                self.chunks.remove(&freed);
                self.free[freed.0].push(freed.1);
            }
        }
        let end = if run.is_empty() { SendEnd::Whole } else { SendEnd::Broken };
        if socket.sent == 0
            && let Some((buffer, _)) = run.pop_back()
        {
            socket.returns = true;
            return Some(Completion::Returned { link, buffer });
        }
        let end = if std::mem::take(&mut socket.returns) { SendEnd::Broken } else { end };
        for (buffer, _) in socket.send.take()? {
            self.chunks.remove(&(buffer.pool().index(), buffer.index()));
            self.free[buffer.pool().index()].push(buffer.index());
        }
        let bytes = std::mem::take(&mut socket.sent);
        Some(Completion::Sent { link, bytes, end })
    }

    fn progress_end(&mut self, link: Link) -> Option<Completion> {
        let socket = self.links.get_mut(&link.index())?;
        let conn = &mut self.conns[socket.conn];
        if std::mem::take(&mut socket.shutdown) {
            conn.fin_from_us = true;
            return Some(Completion::ShutDown { link });
        }
        let goodbye = socket.close?;
        if socket.subscription.is_some() || socket.send.is_some() {
            return None;
        }
        conn.gone = true;
        match goodbye {
            Goodbye::Fin => conn.fin_from_us = true,
            Goodbye::Reset => conn.reset_from_us = true,
        }
        self.links.remove(&link.index());
        Some(Completion::Closed { link })
    }

    /// Performs one op, or panics if the contract does not allow it.
    pub(crate) fn perform(&mut self, op: Op) {
        if let Some((link, _)) = &self.run {
            let same = matches!(&op, Op::Send { link: to, .. } if to == link);
            assert!(same, "a run is not interrupted: {op:?}");
        }
        match op {
            Op::OpenPort { .. }
            | Op::ClosePort { .. }
            | Op::Announce { .. }
            | Op::Forward { .. }
            | Op::Discard { .. } => {
                unreachable!("no listener speaks datagrams")
            }
            Op::Adopt { link, socket } => {
                let conn = self.handed_over.remove(&socket.into_number());
                self.occupy(
                    link,
                    conn.expect("an accepted connection is adopted once"),
                    Dial::Done,
                );
            }
            Op::Refuse { socket, goodbye } => {
                let conn = self.handed_over.remove(&socket.into_number());
                let conn = &mut self.conns[conn.expect("an accepted connection is refused once")];
                conn.gone = true;
                conn.reset_from_us = goodbye == Goodbye::Reset;
                conn.fin_from_us = goodbye == Goodbye::Fin;
            }
            Op::Connect { link, address, .. } => self.dial(link, address),
            Op::Receive { link, pool, credit } => {
                assert!(credit > 0, "credit is at least 1");
                let socket = self.open_socket(link);
                assert!(socket.subscription.is_none(), "one subscription at a time: {link:?}");
                socket.subscription = Some(Subscription { pool, credit, ending: None });
            }
            Op::Pause { link } => {
                let items = self.rng.below(8) as u32;
                if let Some(subscription) = &mut self.open_socket(link).subscription {
                    subscription.ending = Some(items);
                }
            }
            Op::Send { link, buffer, more } => self.send(link, buffer, more),
            Op::Recycle { buffer } => {
                let key = (buffer.pool().index(), buffer.index());
                assert!(self.chunks.remove(&key).is_some(), "a buffer is given back once");
                self.free[key.0].push(key.1);
            }
            Op::Shutdown { link } => {
                let socket = self.open_socket(link);
                assert!(socket.send.is_none(), "an end does not overtake bytes");
                socket.shutdown = true;
            }
            Op::Close { link, goodbye } => self.close(link, goodbye),
            Op::StopAccepting { listener } => {
                assert_eq!(self.listeners[listener.index()], Listening::Open);
                self.listeners[listener.index()] = Listening::Stopping;
            }
            op @ (Op::Hold | Op::Resume) => panic!("nobody hands over: {op:?}"),
        }
    }

    fn occupy(&mut self, link: Link, conn: usize, dial: Dial) {
        let socket = Socket {
            conn,
            dial,
            subscription: None,
            send: None,
            sent: 0,
            returns: false,
            shutdown: false,
            close: None,
        };
        assert!(self.links.insert(link.index(), socket).is_none(), "{link:?} is not free");
    }

    fn dial(&mut self, link: Link, address: SocketAddr) {
        let answers_end = self.rng.chance(500);
        let conn = self.open(address, answers_end);
        let delay = self.rng.pick(&[0, 0, 1_000, 300_000_000]);
        let at = Instant::from_nanos(self.now.as_nanos() + delay);
        let dial = if self.rng.chance(self.faults.silent) {
            Dial::Silent
        } else if self.rng.chance(self.faults.refused) {
            Dial::Pending { outcome: Err(ConnectFailure::Unreachable), at }
        } else if self.rng.chance(self.faults.descriptors) {
            Dial::Pending { outcome: Err(ConnectFailure::Descriptors), at }
        } else {
            Dial::Pending { outcome: Ok(()), at }
        };
        self.occupy(link, conn, dial);
    }

    fn send(&mut self, link: Link, buffer: Buffer, more: bool) {
        let source = self.links.get(&(link.index() ^ 1)).map(|socket| socket.conn);
        let chunk = self.chunks[&(buffer.pool().index(), buffer.index())].clone();
        let (_, mut run) = self.run.take().unwrap_or((link, VecDeque::new()));
        let is_streams =
            |buffer: &Buffer| self.chunks[&(buffer.pool().index(), buffer.index())].conn != WRITTEN;
        let streams = run.iter().filter(|(buffer, _)| is_streams(buffer));
        let ahead: u64 = streams.map(|(_, left)| u64::from(*left)).sum();
        let socket = self.open_socket(link);
        assert!(socket.send.is_none() && !socket.shutdown, "one run at a time: {link:?}");
        let receiver = &self.conns[self.links[&link.index()].conn];
        if chunk.conn == WRITTEN {
            assert!(receiver.taken == 0 && run.is_empty(), "an announcement comes first");
            assert!(receiver.announced.is_none(), "and once");
        } else {
            assert_eq!(Some(chunk.conn), source, "bytes go to the other side of their session");
            let head = self.conns[chunk.conn].head.len() as u64;
            let start = (chunk.start + u64::from(buffer.start())).checked_sub(head);
            assert_eq!(start, Some(receiver.taken + ahead), "bytes keep their order");
        }
        let len = buffer.len();
        run.push_back((buffer, len));
        if more {
            self.run = Some((link, run));
        } else {
            self.open_socket(link).send = Some(run);
        }
    }

    fn close(&mut self, link: Link, goodbye: Goodbye) {
        match self.links.get_mut(&link.index()) {
            Some(socket) => {
                assert!(socket.close.is_none(), "closed once: {link:?}");
                socket.close = Some(goodbye);
            }
            None => self.crossed.push(link),
        }
    }

    fn open_socket(&mut self, link: Link) -> &mut Socket {
        let socket = self.links.get_mut(&link.index()).expect("the link has a socket");
        assert!(socket.dial == Dial::Done && socket.close.is_none(), "{link:?} is not open");
        socket
    }

    /// The connection behind a link.
    pub(crate) fn conn_of(&self, link: Link) -> Option<usize> {
        self.links.get(&link.index()).map(|socket| socket.conn)
    }

    /// Links whose connect nobody will ever answer.
    pub(crate) fn silent_dials(&self) -> usize {
        self.links.values().filter(|socket| socket.dial == Dial::Silent).count()
    }

    /// When the next connect that is under way is answered.
    pub(crate) fn next_dial(&self) -> Option<Instant> {
        let due = |socket: &Socket| match socket.dial {
            Dial::Pending { at, .. } => Some(at),
            Dial::Silent | Dial::Done => None,
        };
        self.links.values().filter_map(due).min()
    }

    /// Whether peers still have something to do that nobody hinders.
    pub(crate) fn act_everywhere(&mut self) -> bool {
        let before: u64 = self.conns.iter().map(|conn| conn.written + conn.read).sum();
        let ends = self.conns.iter().filter(|conn| conn.fin_written).count();
        (0..self.conns.len()).for_each(|number| self.act(number));
        let after: u64 = self.conns.iter().map(|conn| conn.written + conn.read).sum();
        after > before || self.conns.iter().filter(|conn| conn.fin_written).count() > ends
    }

    /// Whether nothing can be received for want of buffers.
    pub(crate) fn is_starved(&self) -> bool {
        self.free[Pool::Small.index()].is_empty()
    }

    /// The connections that have not come to their end.
    pub(crate) fn unfinished(&self) -> Vec<&Conn> {
        self.conns.iter().filter(|conn| !conn.is_dead()).collect()
    }

    /// Every buffer is back and no connection is left.
    pub(crate) fn assert_nothing_is_left(&self) {
        assert!(self.links.is_empty() && self.handed_over.is_empty() && self.backlog.is_empty());
        assert!(self.chunks.is_empty(), "buffers were lost: {:?}", self.chunks);
        assert_eq!(self.free[0].len() as u32, self.pools.small);
        assert_eq!(self.free[1].len() as u32, self.pools.bulk);
    }
}

impl Conn {
    fn write(&mut self, amount: u64) {
        if self.written < self.to_write {
            self.written = self.to_write.min(self.written + amount);
        } else if self.ends && (!self.answers_end || self.fin_from_us) {
            self.fin_written = true;
        }
    }
}

impl Memory for World {
    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        let chunk = &self.chunks[&(buffer.pool().index(), buffer.index())];
        assert!(!chunk.bytes.is_empty(), "bytes are lent to the preread stage alone");
        &chunk.bytes[buffer.start() as usize..]
    }

    fn write(&mut self, bytes: &[u8]) -> Option<Buffer> {
        let index = self.free[Pool::Small.index()].pop()?;
        let chunk = Chunk { conn: WRITTEN, start: 0, bytes: bytes.to_vec() };
        self.chunks.insert((Pool::Small.index(), index), chunk);
        Some(Buffer::new(Pool::Small, index, bytes.len() as u32))
    }

    fn local_address(&self, link: Link) -> Option<SocketAddr> {
        assert_eq!(link.side(), Side::Downstream, "clients are announced, and nobody else");
        self.links.contains_key(&link.index()).then_some(LOCAL)
    }

    fn first_datagram(&self, _: &Train) -> &[u8] {
        &[]
    }
}
