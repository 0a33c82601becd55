//! One direction of a session: bytes from a source link to a destination link.
//!
//! ```text
//!             Received            run of Sends
//!   source ───────────▶  queue  ───────────────▶ destination
//!      ▲                   │                          │
//!      └── Receive{credit}─┘ when little waits        └─ Shutdown, when the source has ended
//!                                                        and nothing waits
//! ```
//!
//! The credit is the back-pressure: no more of it is granted while much waits in the queue, so a
//! destination that stalls costs a bounded number of bytes and then stops the source. It also paces
//! the choice of buffers: each new subscription picks its pool by what the one before it saw.

use crate::boundary::{Buffer, Link, Memory, Op, Ops, Pool, ReceiveEnd, Side};
use crate::chain::{Chains, Queue, Tally};
use crate::pace::Pace;
use crate::time::Instant;

/// Buffers in one run of sends at most.
const RUN_MAX: u32 = 64;
/// Buffers waiting before a subscription is paused: a peer that sends single bytes fills buffers
/// faster than it uses up credit.
const WAITING_MAX: u32 = 16;
/// Buffers waiting before the destination is connected, at most: the first bytes may come one by
/// one.
const HELD_MAX: u32 = 16;

/// What the kernel is doing for the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inbound {
    /// Nothing: no credit is granted.
    Paused,
    /// A subscription is running.
    Subscribed,
    /// A subscription has been told to end.
    Pausing,
    /// The source will send no more.
    Ended,
}

/// What the kernel is doing for the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outbound {
    /// Nothing: the destination is not connected, and what comes waits for it.
    Held,
    /// Nothing.
    Idle,
    /// A run of sends.
    Sending,
    /// A shutdown.
    ShuttingDown,
    /// Nothing, for good: the destination knows that the stream has ended.
    Done,
}

/// What the relay's session lends it for one step.
pub(crate) struct Step<'a> {
    pub(crate) now: Instant,
    pub(crate) slot: u32,
    pub(crate) chains: &'a mut Chains,
    pub(crate) ops: &'a mut Ops,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Relay {
    from: Side,
    inbound: Inbound,
    outbound: Outbound,
    queue: Queue,
    /// What the run of sends in flight holds.
    sending: Tally,
    /// Bytes the destination's kernel has taken.
    delivered: u64,
    gauge: Gauge,
    /// Bytes that are not the stream's, but of the header before it, and not delivered.
    announced: u32,
    pace: Option<Pace>,
    /// When a throttled source is to be started again, if it waits for that.
    resumes: Option<Instant>,
    /// When the last run of sends began.
    sends_since: Instant,
}

impl Relay {
    pub(crate) fn new(from: Side) -> Self {
        Self {
            from,
            inbound: Inbound::Paused,
            outbound: Outbound::Idle,
            queue: Queue::EMPTY,
            sending: Tally::default(),
            delivered: 0,
            gauge: Gauge::new(Pool::Small),
            announced: 0,
            pace: None,
            resumes: None,
            sends_since: Instant::ZERO,
        }
    }

    /// Asks for the first bytes, up to `bytes_max` of them, before the destination is known.
    pub(crate) fn preread(&mut self, bytes_max: u32, step: &mut Step<'_>) {
        self.outbound = Outbound::Held;
        self.inbound = Inbound::Subscribed;
        let (link, pool) = (self.source(step), Pool::Small);
        step.ops.push(Op::Receive { link, pool, credit: bytes_max.max(1) });
    }

    /// Holds first bytes, however many have come, while there is no place at the destination.
    pub(crate) fn hold(&mut self, step: &mut Step<'_>) {
        if self.outbound != Outbound::Held {
            self.preread(Pool::Small.buffer_bytes(), step);
        }
    }

    /// What has come so far and is held.
    pub(crate) fn held<'a>(
        &self,
        chains: &'a Chains,
        memory: &'a impl Memory,
    ) -> impl Iterator<Item = &'a [u8]> + Clone {
        chains.iter(&self.queue).map(|buffer| memory.bytes(buffer))
    }

    /// Asks for more first bytes where their subscription ended before there were as many as may be.
    pub(crate) fn hold_more(&mut self, bytes_max: u32, step: &mut Step<'_>) {
        let has_room = self.queue.bytes() < bytes_max && self.queue.buffers() < HELD_MAX;
        if self.inbound == Inbound::Paused && has_room {
            self.preread(bytes_max - self.queue.bytes(), step);
        }
    }

    /// Whether nothing more is to be held: as many bytes or buffers wait as may, or no more come.
    pub(crate) fn has_held_enough(&self, bytes_max: u32) -> bool {
        self.queue.bytes() >= bytes_max || self.inbound != Inbound::Subscribed
    }

    /// Both ends are connected: sends what was held, and asks for more. At most `throttle_kib_s`
    /// KiB per second are taken from the source, if that is some.
    pub(crate) fn start(&mut self, throttle_kib_s: Option<u32>, step: &mut Step<'_>) {
        self.pace = throttle_kib_s.map(|kib_s| Pace::new(kib_s, step.now));
        if self.outbound == Outbound::Held {
            self.outbound = Outbound::Idle;
        }
        if self.outbound == Outbound::Idle && !self.queue.is_empty() {
            self.send(step);
        }
        self.proceed(step);
    }

    /// Puts the header that tells the destination who the source is ahead of the stream, before
    /// that is started.
    pub(crate) fn announce(&mut self, header: Buffer, chains: &mut Chains) {
        self.announced = header.len();
        chains.push_front(&mut self.queue, header);
    }

    /// The destination is gone before it had anything: what comes is held until there is another.
    pub(crate) fn stop(&mut self) {
        self.outbound = Outbound::Held;
        (self.pace, self.resumes) = (None, None);
    }

    /// When a throttled source is to be started again, if it waits for that.
    pub(crate) fn resumes(&self) -> Option<Instant> {
        self.resumes
    }

    /// Starts a throttled source again, if its time has come.
    pub(crate) fn resume(&mut self, step: &mut Step<'_>) {
        if self.resumes.is_some_and(|at| at <= step.now) {
            self.resumes = None;
            self.proceed(step);
        }
    }

    pub(crate) fn on_received(&mut self, buffer: Buffer, step: &mut Step<'_>) {
        self.gauge.on_received(&buffer);
        if let Some(pace) = &mut self.pace {
            pace.on_received(step.now, buffer.len());
        }
        let is_short = step.chains.is_short(buffer.pool());
        step.chains.push(&mut self.queue, buffer);
        let waiting_max = self.waiting_max(is_short);
        if self.outbound == Outbound::Idle {
            self.send(step);
        } else if self.inbound == Inbound::Subscribed && self.waiting_buffers() >= waiting_max {
            self.inbound = Inbound::Pausing;
            step.ops.push(Op::Pause { link: self.source(step) });
        }
    }

    /// The subscription is over and the stream is whole so far.
    pub(crate) fn on_receive_ended(&mut self, end: ReceiveEnd, step: &mut Step<'_>) {
        self.inbound = match end {
            ReceiveEnd::EndOfStream => Inbound::Ended,
            _ => Inbound::Paused,
        };
        self.proceed(step);
    }

    /// A run of sends is over, in whatever state the session is: counts what the destination's
    /// kernel took, and the buffers that are free again. Returns the bytes of the stream.
    pub(crate) fn on_delivered(&mut self, bytes: u32, chains: &mut Chains) -> u32 {
        chains.release(core::mem::take(&mut self.sending));
        let ahead = self.announced.min(bytes);
        self.announced -= ahead;
        let bytes = bytes - ahead;
        self.delivered += u64::from(bytes);
        bytes
    }

    /// A buffer of the run in flight is back, and is before all that wait.
    pub(crate) fn on_returned(&mut self, buffer: Buffer, chains: &mut Chains) {
        chains.push_front(&mut self.queue, buffer);
    }

    /// Nothing of the run was taken, and its buffers are back. Another destination gets a header of its
    /// own.
    pub(crate) fn on_undelivered(&mut self, step: &mut Step<'_>) {
        if core::mem::take(&mut self.announced) > 0
            && let Some(buffer) = step.chains.pop(&mut self.queue)
        {
            let mut given_back = Tally::default();
            given_back.add(&buffer);
            step.chains.release(given_back);
            step.ops.push(Op::Recycle { buffer });
        }
    }

    /// The run was whole, and the session goes on.
    pub(crate) fn on_sent(&mut self, step: &mut Step<'_>) {
        self.outbound = Outbound::Idle;
        if !self.queue.is_empty() {
            self.send(step);
        }
        self.proceed(step);
    }

    pub(crate) fn on_shut_down(&mut self) {
        self.outbound = Outbound::Done;
    }

    /// Gives back what waits; the destination will never get it.
    pub(crate) fn discard(&mut self, step: &mut Step<'_>) {
        let mut given_back = Tally::default();
        while let Some(buffer) = step.chains.pop(&mut self.queue) {
            given_back.add(&buffer);
            step.ops.push(Op::Recycle { buffer });
        }
        step.chains.release(given_back);
    }

    /// Whether the source has ended and everything it sent has been delivered.
    pub(crate) fn is_drained(&self) -> bool {
        self.inbound == Inbound::Ended
            && self.queue.is_empty()
            && self.outbound != Outbound::Sending
    }

    /// Whether nothing has come of the stream, neither bytes nor its end.
    pub(crate) fn is_silent(&self) -> bool {
        self.outbound == Outbound::Idle && self.delivered == 0
    }

    /// Whether the destination has had nothing of the stream, neither bytes nor its end, that anybody
    /// knows of. Something may be on its way.
    pub(crate) fn is_undelivered(&self) -> bool {
        matches!(self.outbound, Outbound::Idle | Outbound::Sending | Outbound::Held)
            && self.delivered == 0
    }

    /// Whether bytes are on their way that the destination has not got.
    pub(crate) fn is_loaded(&self) -> bool {
        !self.queue.is_empty() || self.outbound == Outbound::Sending
    }

    /// Since when the destination has not taken small buffers that it is sent, if it has not taken all.
    pub(crate) fn stalls_since(&self) -> Option<Instant> {
        let holds_some = self.outbound == Outbound::Sending && self.sending.has(Pool::Small);
        holds_some.then_some(self.sends_since)
    }

    /// Whether the source has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.inbound == Inbound::Ended
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Tells the destination that the stream has ended, once it has everything.
    pub(crate) fn finish(&mut self, step: &mut Step<'_>) {
        if self.is_drained() && self.outbound == Outbound::Idle {
            self.outbound = Outbound::ShuttingDown;
            step.ops.push(Op::Shutdown { link: self.destination(step) });
        }
    }

    fn waiting_max(&self, is_short: bool) -> u32 {
        if is_short && self.outbound != Outbound::Held {
            return 1;
        }
        if self.outbound == Outbound::Held { HELD_MAX } else { WAITING_MAX }
    }

    fn proceed(&mut self, step: &mut Step<'_>) {
        let little_waits = if step.chains.is_short(self.next_pool(step.chains)) {
            // What is left is for those who have none.
            self.waiting_buffers() == 0
        } else {
            self.waiting_bytes() <= self.gauge.pool.window_bytes() / 2
                && self.waiting_buffers() <= WAITING_MAX / 2
        };
        if self.inbound == Inbound::Paused && little_waits && self.outbound != Outbound::Held {
            self.resumes = self.pace.and_then(|pace| pace.waits_until(step.now));
            if self.resumes.is_none() {
                self.subscribe(step);
            }
        }
    }

    fn subscribe(&mut self, step: &mut Step<'_>) {
        let slice = self.slice_bytes();
        let pool = self.next_pool(step.chains);
        let credit = if step.chains.is_short(pool) {
            pool.buffer_bytes()
        } else {
            pool.window_bytes().saturating_sub(self.waiting_bytes()).max(pool.buffer_bytes())
        };
        let credit = credit.min(slice);
        self.gauge = Gauge::new(pool);
        self.inbound = Inbound::Subscribed;
        step.ops.push(Op::Receive { link: self.source(step), pool, credit });
    }

    fn slice_bytes(&self) -> u32 {
        self.pace.map_or(u32::MAX, |pace| pace.slice_bytes())
    }

    fn next_pool(&self, chains: &Chains) -> Pool {
        // The last buffer may overshoot the credit: a bulk one would be many slices at once.
        if self.slice_bytes() < Pool::Bulk.buffer_bytes() || chains.is_short(Pool::Bulk) {
            return Pool::Small;
        }
        self.gauge.next_pool()
    }

    fn send(&mut self, step: &mut Step<'_>) {
        let link = self.destination(step);
        self.outbound = Outbound::Sending;
        self.sends_since = step.now;
        for sent in 1..=RUN_MAX {
            let Some(buffer) = step.chains.pop(&mut self.queue) else { break };
            self.sending.add(&buffer);
            let more = sent < RUN_MAX && !self.queue.is_empty();
            step.ops.push(Op::Send { link, buffer, more });
        }
    }

    /// Bytes that came and that the destination has not got.
    fn waiting_bytes(&self) -> u32 {
        self.queue.bytes() + self.sending.bytes()
    }

    fn waiting_buffers(&self) -> u32 {
        self.queue.buffers() + self.sending.buffers()
    }

    fn source(&self, step: &Step<'_>) -> Link {
        Link::new(step.slot, self.from)
    }

    fn destination(&self, step: &Step<'_>) -> Link {
        Link::new(step.slot, self.from.other())
    }

    /// The state that the kernel's side must agree with.
    pub(crate) fn check_invariants(&self) {
        let idle = matches!(self.outbound, Outbound::Idle | Outbound::Sending);
        assert!(idle || self.is_drained(), "an end is announced after everything before it");
        assert!(self.outbound != Outbound::Idle || self.queue.is_empty(), "what waits is sent");
    }
}

impl Pool {
    /// Bytes that may be on their way in one direction that uses this pool.
    const fn window_bytes(self) -> u32 {
        match self {
            Self::Small => 4 * self.buffer_bytes(),
            Self::Bulk => 8 * self.buffer_bytes(),
        }
    }
}

/// What a subscription saw, and so which pool the next one should use.
///
/// A direction that fills more than half of its small buffers moves to bulk ones, and stays while
/// it puts at least two small buffers' worth into each. The gap between the two rules keeps a
/// direction from going back and forth.
#[derive(Debug)]
struct Gauge {
    pool: Pool,
    buffers: u32,
    filled: u32,
    bytes: u32,
}

impl Gauge {
    const fn new(pool: Pool) -> Self {
        Self { pool, buffers: 0, filled: 0, bytes: 0 }
    }

    fn on_received(&mut self, buffer: &Buffer) {
        self.buffers += 1;
        self.bytes = self.bytes.saturating_add(buffer.len());
        self.filled += u32::from(buffer.len() == buffer.pool().buffer_bytes());
    }

    fn next_pool(&self) -> Pool {
        let stays_bulk =
            self.pool == Pool::Bulk && self.bytes / 2 >= self.buffers * Pool::Small.buffer_bytes();
        let turns_bulk = self.pool == Pool::Small && self.filled * 2 > self.buffers;
        if stays_bulk || turns_bulk { Pool::Bulk } else { Pool::Small }
    }
}

#[cfg(test)]
mod tests;
