//! What must come of it: a shadow of every flow and of every kept decision.
//!
//! The oracle sees completions go in, ops come out and policies called. It knows nothing else.

mod kept;
mod told;
mod undelivered;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman_core::boundary::{
    Buffer, Completion, ConnectFailure, Goodbye, Link, Op, Pool, ReceiveEnd, Side,
};
use pointsman_core::listing::Entry;
use pointsman_core::policy::{Decision, Method, OnSwap, Verdict};
use pointsman_core::preread::KeyRule;
use pointsman_core::{
    EndpointId, Instant, KeylessReason, Listener, OnEndpointDown, Openness, Snapshot,
};
use twox_hash::XxHash64;

use self::undelivered::Delivered;
use self::waiting::Waiting;
use crate::fared::Fared;
use crate::introduction::Head;
use crate::workload;
use crate::world::LOCAL;

/// One call of a policy under observation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) client: SocketAddr,
    pub(crate) key: Option<u64>,
    pub(crate) attempt: u32,
    pub(crate) decision: Decision,
}

/// Who a decision is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum KeptFor {
    Client(IpAddr),
    Key(u64),
}

/// The calls since it was last looked at.
pub(crate) type CallLog = Arc<Mutex<Vec<Call>>>;

/// Bytes one direction may hold at most: the credit of the bulk pool and the buffer that overshoots
/// it.
const HELD_BYTES_MAX: u64 = 9 * 64 * 1024;
/// Buffers one direction may hold at most: those that wait, those of the same turn, and those that
/// were on their way when it was paused.
const HELD_BUFFERS_MAX: u64 = 16 + 8 + 8;
/// The same where the first bytes are waited for.
const PREREAD_BUFFERS_MAX: u64 = 16;
/// How long what is sent may not be taken at least before the flow yields, where buffers are short.
const STALL_MAX: Duration = Duration::from_secs(1);

/// Buffers of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    bytes: u64,
    buffers: u64,
}

impl Held {
    fn add(&mut self, buffer: &Buffer) {
        self.bytes += u64::from(buffer.len());
        self.buffers += 1;
    }
}

#[derive(Debug, Clone)]
struct Flow {
    client: SocketAddr,
    cluster: usize,
    conns: [Option<usize>; 2],
    /// The endpoint it was given last.
    target: Option<SocketAddr>,
    attempts: u32,
    established: bool,
    /// Whether its endpoint has sent anything.
    answered: bool,
    half_closed: bool,
    closing: bool,
    /// The endpoint has failed it: whether its link is being closed for another attempt.
    abandoning: bool,
    /// What has been sent each way.
    delivered: Delivered,
    progressed: Instant,
    /// By the side the bytes come from: what the balancer holds, and what of it is being sent.
    held: [Held; 2],
    sending: [Held; 2],
    /// When the last run of sends began, by the side the bytes come from, and whether one had stalled
    /// when the flow was closed.
    sends_since: [Instant; 2],
    had_stalled: bool,
    method: Method,
    /// When the endpoint was connected, and what each side has sent since.
    connected: Instant,
    received: [u64; 2],
    /// The header that its peer sends first and what is left of it, until that is read.
    head: Option<Head>,
    peer: Option<SocketAddr>,
    local: SocketAddr,
    /// What its first bytes are, and the key they turned out to have.
    first: u8,
    key: Option<u64>,
    /// Whether the first bytes are waited for, and since when.
    prereading: bool,
    waits: bool,
    started: Instant,
    /// The endpoint at which it has a place.
    placed: Option<SocketAddr>,
    /// Since when it waits for one.
    queued: Option<Instant>,
}

impl Flow {
    fn new(arrival: &Arrival, cluster: usize, method: Method) -> Self {
        Self {
            client: arrival.client,
            cluster,
            conns: [Some(arrival.conn), None],
            target: None,
            attempts: 0,
            established: false,
            answered: false,
            half_closed: false,
            closing: false,
            abandoning: false,
            delivered: Delivered::default(),
            progressed: arrival.now,
            held: Default::default(),
            sending: Default::default(),
            sends_since: [arrival.now; 2],
            had_stalled: false,
            method,
            connected: arrival.now,
            received: [0; 2],
            head: None,
            peer: None,
            local: LOCAL,
            first: arrival.first,
            key: None,
            prereading: false,
            waits: false,
            started: arrival.now,
            placed: None,
            queued: None,
        }
    }

    /// A throttled flow is on schedule, but for a slice of 50 ms and a buffer.
    fn check_throttle(&self, now: Instant, from: Side) {
        let Some(kib_s) = self.method.throttle_kib_s else { return };
        let millis = now.since(self.connected).as_millis() as u64 + 50;
        let earned = u64::from(kib_s) * 1024 * millis / 1_000;
        let slack = 2 * u64::from(Pool::Bulk.buffer_bytes());
        let received = self.received[from.index()];
        assert!(received <= earned + slack, "{received} bytes in {millis} ms at {kib_s} KiB/s");
    }

    /// What the first bytes so far say, if that is enough.
    fn preread(&self, listener: &Listener, ended: bool) -> Option<Result<u64, KeylessReason>> {
        let Some(KeyRule::Bytes { offset, length }) = listener.key else {
            return Some(Err(KeylessReason::Malformed));
        };
        let Held { bytes, buffers } = self.held[Side::Downstream.index()];
        let full = bytes >= u64::from(listener.preread_bytes_max) || buffers >= PREREAD_BUFFERS_MAX;
        if bytes >= u64::from(offset) + u64::from(length) {
            let key = vec![self.first; length.into()];
            Some(Ok(XxHash64::oneshot(0, &key).max(1)))
        } else if ended {
            Some(Err(KeylessReason::Absent))
        } else {
            full.then_some(Err(KeylessReason::TooLong))
        }
    }

    /// Bytes come that are the header's or follow it. What of them is the stream's; none if nothing
    /// is, or if the header is no good.
    fn introduce(&mut self, now: Instant, bytes: u32) -> Option<u32> {
        let head = self.head.as_mut()?;
        let rest = bytes.saturating_sub(head.left);
        head.left = head.left.saturating_sub(bytes);
        let route = head.route.filter(|_| head.left == 0)?;
        if let Some(route) = route {
            self.peer = Some(std::mem::replace(&mut self.client, route.client));
            self.local = route.local;
        }
        self.head = None;
        (self.prereading, self.waits, self.started) = (true, true, now);
        Some(rest).filter(|rest| *rest > 0)
    }

    /// A buffer is being sent; one that is not of the stream has just come into being.
    fn send(&mut self, now: Instant, (from, buffer, is_streams): (usize, &Buffer, bool)) {
        if !is_streams {
            self.held[from].add(buffer);
            self.delivered.announce(buffer);
        }
        if self.sending[from].buffers == 0 {
            self.sends_since[from] = now;
        }
        self.sending[from].add(buffer);
    }

    fn close(&mut self, now: Instant) {
        let has_stalled = |side: usize| {
            self.sending[side].buffers > 0 && now.since(self.sends_since[side]) >= STALL_MAX
        };
        self.had_stalled |= !self.closing && (0..2).any(has_stalled);
        self.closing = true;
    }

    fn progress(&mut self, now: Instant) {
        if !self.closing {
            self.progressed = now;
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    verdict: Verdict,
    endpoint: Option<EndpointId>,
    method: Method,
    expires: Instant,
    slides: Option<Duration>,
    /// Whether the policy's successor is to be asked once more.
    stale: bool,
}

/// Numbers of the balancer that change while it handles a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) sheds: u64,
    pub(crate) table_full: u64,
    pub(crate) active: u64,
}

/// What the oracle may know of the balancer's world.
pub(crate) struct View<'a> {
    pub(crate) snapshot: &'a Snapshot,
    /// By cluster: whether every call of its policy is logged.
    pub(crate) logged: &'a [bool],
    pub(crate) sessions_max: u32,
}

impl View<'_> {
    fn listener(&self, flow: &Flow) -> &Listener {
        let of = |listener: &&Listener| listener.cluster.index() == flow.cluster;
        self.snapshot.listeners.iter().find(of).expect("the cluster has a listener")
    }

    /// Whether this flow's time is over, because the process or its listener is to end.
    fn is_over(&self, flow: &Flow, now: Instant) -> bool {
        let drained = self.snapshot.drain_until.is_some_and(|end| end <= now);
        drained || self.listener(flow).openness == Openness::Closed
    }
}

pub(crate) struct Oracle {
    flows: BTreeMap<u32, Flow>,
    /// By client: connections and timing of flows that have ended or will.
    ended: BTreeMap<SocketAddr, Flow>,
    kept: BTreeMap<(usize, KeptFor), Kept>,
    /// What is there after a call in which the table had no room for a decision.
    pub(crate) in_full_table: Option<Vec<Entry>>,
    calls: CallLog,
    /// Flows whose first bytes have been waited for long enough.
    deciding: Vec<(u32, Option<Result<u64, KeylessReason>>)>,
    waiting: Waiting,
    /// A flow whose endpoint has just reset it, and that must have another.
    undelivered: Option<u32>,
    /// Buffers that came and have neither been sent nor given back.
    received: BTreeSet<(usize, u32)>,
    pub(crate) binds: u64,
    pub(crate) fared: Fared,
    /// By cluster: flows without a key, and flows that ended before anybody decided on them.
    pub(crate) keyless: BTreeMap<usize, [u64; KeylessReason::ALL.len()]>,
    pub(crate) undecided: BTreeMap<usize, u64>,
}

impl Oracle {
    pub(crate) fn new(calls: CallLog) -> Self {
        let (flows, ended, kept) = Default::default();
        let (deciding, waiting, received, fared) = Default::default();
        let (keyless, undecided, undelivered, in_full_table) = Default::default();
        Self {
            flows,
            ended,
            kept,
            in_full_table,
            calls,
            deciding,
            waiting,
            undelivered,
            received,
            binds: 0,
            fared,
            keyless,
            undecided,
        }
    }

    /// A completion is about to be handled.
    pub(crate) fn before(&mut self, now: Instant, completion: &Completion, view: &View<'_>) {
        self.undelivered = self.lost_undelivered(completion, view);
        self.follow(now, completion);
        let (link, ended) = match completion {
            Completion::Received { link, .. } => (link, false),
            Completion::ReceiveEnded { link, end: ReceiveEnd::EndOfStream } => (link, true),
            _ => return,
        };
        let flow = &self.flows[&link.slot()];
        let listener = view.listener(flow);
        if flow.prereading && !flow.closing && listener.key.is_some() {
            let outcome = flow.preread(listener, ended);
            self.deciding.extend(outcome.map(|outcome| (link.slot(), Some(outcome))));
        } else if flow.prereading && !flow.closing {
            self.deciding.push((link.slot(), None));
        }
    }

    /// Time is about to pass.
    pub(crate) fn before_timeout(&mut self, now: Instant, view: &View<'_>) {
        for (slot, flow) in self.flows.iter().filter(|(_, flow)| flow.prereading && !flow.closing) {
            let end = flow.started + view.listener(flow).timeouts.preread;
            if end.as_nanos().div_ceil(1_000_000) <= now.as_millis() {
                self.deciding.push((*slot, Some(Err(KeylessReason::Timeout))));
            }
        }
    }

    fn follow(&mut self, now: Instant, completion: &Completion) {
        self.follow_places(completion);
        match completion {
            Completion::Received { link, buffer } => {
                let flow = self.flows.get_mut(&link.slot()).expect("bytes belong to a flow");
                self.received.insert((buffer.pool().index(), buffer.index()));
                let held_bytes = match flow.head {
                    Some(_) if !flow.closing => flow.introduce(now, buffer.len()),
                    _ => Some(buffer.len()),
                };
                let held = &mut flow.held[link.side().index()];
                held.bytes += u64::from(held_bytes.unwrap_or(0));
                held.buffers += u64::from(held_bytes.is_some());
                let more = if flow.waits { PREREAD_BUFFERS_MAX } else { 0 };
                let buffers_max = HELD_BUFFERS_MAX + more;
                let within = held.bytes <= HELD_BYTES_MAX && held.buffers <= buffers_max;
                assert!(within || flow.closing, "{held:?}");
                let is_open = flow.established && !flow.closing;
                if is_open && !flow.answered && link.side() == Side::Upstream {
                    flow.answered = true;
                    self.fared.note(flow.target, true);
                }
                let counted = if flow.established { buffer.len() } else { 0 };
                flow.received[link.side().index()] += u64::from(counted);
                flow.check_throttle(now, link.side());
                flow.progress(now);
            }
            Completion::ReceiveEnded { link, end: ReceiveEnd::EndOfStream } => {
                self.with(*link, |flow| {
                    flow.progress(now);
                    flow.half_closed = true;
                });
            }
            Completion::Sent { link, bytes, .. } => self.with(*link, |flow| {
                let from = link.side().other().index();
                flow.delivered.add(from, *bytes);
                let sent = std::mem::take(&mut flow.sending[from]);
                flow.held[from].bytes -= sent.bytes;
                flow.held[from].buffers -= sent.buffers;
                flow.progress(now);
            }),
            Completion::Returned { link, buffer } => self.follow_returned(*link, buffer),
            Completion::Connected { link } => self.with(*link, |flow| {
                flow.established = !flow.closing && !flow.abandoning;
                (flow.connected, flow.received) = (now, [0; 2]);
                flow.progress(now);
            }),
            Completion::ConnectFailed { link, cause: ConnectFailure::Unreachable } => {
                let flow = &self.flows[&link.slot()];
                if !flow.closing && !flow.abandoning {
                    self.fared.note(flow.target, false);
                }
            }
            Completion::Closed { link } => {
                let flow = &self.flows[&link.slot()];
                if flow.abandoning && !flow.closing {
                    self.fared.note(flow.target, false);
                }
                self.with(*link, |flow| flow.abandoning = false);
            }
            _ => {}
        }
    }

    fn with(&mut self, link: Link, change: impl FnOnce(&mut Flow)) {
        change(self.flows.get_mut(&link.slot()).expect("a completion belongs to a flow"));
    }

    /// A cluster's policy has given its place to another.
    pub(crate) fn on_swap(&mut self, cluster: usize, on_swap: OnSwap) {
        match on_swap {
            OnSwap::Keep => {}
            OnSwap::Flush => self.kept.retain(|(of, _), _| *of != cluster),
            OnSwap::Revalidate => {
                let kept = self.kept.iter_mut().filter(|((of, _), _)| *of == cluster);
                kept.for_each(|(_, kept)| kept.stale = true);
            }
        }
    }

    /// The balancer has accepted, shed or denied a client.
    pub(crate) fn after_accepted(
        &mut self,
        arrival: &Arrival,
        view: &View<'_>,
        ops: &[Op],
        counts: [Counts; 2],
    ) {
        let listener = &view.snapshot.listeners[arrival.listener];
        let [before, after] = counts;
        let calls = self.take_calls();
        if after.sheds > before.sheds {
            assert!(matches!(ops, [Op::Refuse { goodbye: Goodbye::Reset, .. }]), "{ops:?}");
            assert!(calls.is_empty(), "what is shed costs nothing");
            return;
        }
        let denied = listener.access.is_some() && workload::is_denied(arrival.client);
        assert!(!denied, "a client came that may not");
        assert!(before.active < u64::from(listener.all_flows.max), "more flows than all may have");
        assert!(before.active < u64::from(view.sessions_max), "more flows than sessions");
        assert!(before.active < u64::from(listener.flows_max) || view.snapshot.listeners.len() > 1);
        let cluster = listener.cluster.index();
        let mut flow = Flow::new(arrival, cluster, Method::DEFAULT);
        let is_decided_on = listener.key.is_none() && listener.proxy.is_none();
        if is_decided_on && self.must_wait(cluster, view) {
            assert!(calls.is_empty(), "nobody is asked while there is no place");
            self.after_accepted_in_vain(&flow, view, ops);
            return;
        }
        if listener.proxy.is_some() {
            assert!(matches!(ops, [Op::Adopt { .. }, Op::Receive { .. }]), "{ops:?}");
            assert!(calls.is_empty(), "the header comes first");
            flow.head = Some(arrival.head);
        } else if listener.key.is_some() {
            assert!(matches!(ops, [Op::Adopt { .. }, Op::Receive { .. }]), "{ops:?}");
            assert!(calls.is_empty(), "the first bytes come first");
            (flow.prereading, flow.waits) = (true, true);
        } else {
            let (target, refused) = match ops {
                [Op::Adopt { .. }, Op::Connect { address, .. }] => (Some(*address), None),
                [Op::Refuse { goodbye, .. }] => (None, Some(*goodbye)),
                other => panic!("a client is adopted or refused: {other:?}"),
            };
            let mut calls = calls.into();
            let done = Done { target, refused };
            flow.method = self.decided((arrival.now, view), &flow, done, &mut calls);
            assert!(calls.is_empty(), "a flow is decided on once: {calls:?}");
        }
        for op in ops {
            if let Op::Adopt { link, .. } = op {
                let taken = self.flows.insert(link.slot(), flow.clone());
                assert!(taken.is_none(), "the slot was taken");
            }
        }
    }

    /// What was done with a new flow is what a kept decision says, or else a policy.
    fn decided(
        &mut self,
        (now, view): (Instant, &View<'_>),
        flow: &Flow,
        done: Done,
        calls: &mut VecDeque<Call>,
    ) -> Method {
        let cluster = flow.cluster;
        let candidates = &view.snapshot.clusters[cluster].candidates;
        let holds = |kept: &Kept| {
            let serves = |id| candidates.find(id).is_some();
            kept.expires > now && kept.endpoint.is_none_or(serves)
        };
        let keys = flow.key.map(KeptFor::Key).into_iter();
        let mut keys = keys.chain([KeptFor::Client(flow.client.ip())]);
        let found = keys.find(|key| self.kept.get(&(cluster, *key)).is_some_and(holds));
        let is_stale = |key| self.kept.get(&(cluster, key)).is_some_and(|kept| kept.stale);
        let stale = found.filter(|key| is_stale(*key));
        let stale = stale.and_then(|key| self.kept.remove(&(cluster, key)));
        let with = stale.and_then(|kept| kept.endpoint);
        let live = found.and_then(|key| self.kept.get_mut(&(cluster, key)));
        let mut overflows = false;
        if let Some(kept) = live {
            if let Some(ttl) = kept.slides {
                kept.expires = now + ttl;
            }
            let address = kept.endpoint.and_then(|id| Some(candidates.find(id)?.address));
            let (verdict, method) = (kept.verdict, kept.method);
            overflows = self.is_full(address, view);
            if !overflows {
                assert_eq!(done.target, address, "a live entry beats a fresh decision");
                assert_eq!(done.refused, denial(verdict));
                return method;
            }
        }
        let unasked = !view.logged[cluster] || candidates.endpoints.is_empty();
        if unasked {
            return Method::DEFAULT;
        }
        let call = calls.pop_front().expect("a flow that no entry covers is decided on");
        assert_eq!(call.key, flow.key, "{call:?}");
        let asked = Asked { client: flow.client, attempt: 0, cluster, with };
        let is_obeyed = self.check_call(&call, &asked, view, done);
        if is_obeyed && !overflows {
            self.keep((now, view), flow, &call, with);
        }
        call.decision.method
    }

    /// Flows whose first bytes say enough, or have been waited for long enough, are decided on.
    fn after_preread(
        &mut self,
        (now, view): (Instant, &View<'_>),
        (ops, is_shed): (&[Op], bool),
        calls: &mut VecDeque<Call>,
    ) {
        let mut deciding = std::mem::take(&mut self.deciding);
        let shown = |slot: u32| ops.iter().position(|op| waiting::is_end_of_waiting(op, slot));
        // Those of whom nothing is seen wait for a place, because the others were faster.
        deciding.sort_by_key(|(slot, _)| shown(*slot).unwrap_or(usize::MAX));
        for (slot, outcome) in deciding {
            let done = ops.iter().find_map(|op| match op {
                Op::Connect { link, address, .. } if link.slot() == slot => {
                    Some(Done { target: Some(*address), refused: None })
                }
                Op::Close { link, goodbye } if link.slot() == slot => {
                    Some(Done { target: None, refused: Some(*goodbye) })
                }
                _ => None,
            });
            let mut flow = self.flows[&slot].clone();
            if is_shed {
                let refused = done.expect("a flow that is shed is closed").refused;
                assert!(refused == Some(Goodbye::Reset) && calls.is_empty(), "nobody is asked");
                continue;
            }
            let may_not = view.listener(&flow).access.is_some() && workload::is_denied(flow.client);
            assert!(!may_not, "a client was announced that may not come");
            flow.prereading = false;
            flow.key = outcome.and_then(Result::ok);
            if let Some(Err(reason)) = outcome {
                self.keyless.entry(flow.cluster).or_default()[reason.index()] += 1;
            }
            if self.must_wait(flow.cluster, view) {
                self.flows.insert(slot, flow);
                self.decide_in_vain((now, view), slot, done, ops);
                continue;
            }
            let done = done.expect("what has said enough is decided on");
            flow.method = self.decided((now, view), &flow, done, calls);
            flow.placed = done.target;
            self.flows.insert(slot, flow);
        }
    }

    /// What was done is what the call answered, unless there was no place at the endpoint. Tells which.
    fn check_call(&self, call: &Call, asked: &Asked, view: &View<'_>, done: Done) -> bool {
        assert_eq!((call.client, call.attempt), (asked.client, asked.attempt));
        let candidates = &view.snapshot.clusters[asked.cluster].candidates;
        match call.decision.verdict {
            Verdict::Forward(index) => {
                let with = asked.with.and_then(|id| candidates.find(id));
                let wanted = with.or_else(|| candidates.get(index));
                let wanted = wanted.map(|endpoint| endpoint.address);
                let is_obeyed = done.target == wanted;
                assert_ne!(is_obeyed, self.is_full(wanted, view), "{done:?} instead of {wanted:?}");
                is_obeyed
            }
            verdict => {
                assert!(done.target.is_none() && done.refused == denial(verdict));
                true
            }
        }
    }

    /// The balancer has handled something other than a new client.
    pub(crate) fn after(
        &mut self,
        now: Instant,
        view: &View<'_>,
        ops: &[Op],
        [before, after]: [Counts; 2],
    ) {
        let mut calls = self.take_calls().into();
        self.after_preread((now, view), (ops, after.sheds > before.sheds), &mut calls);
        self.after_served((now, view), ops, &mut calls);
        self.after_retry((now, view), ops);
        let calls: Vec<Call> = calls.into();
        let mut is_obeyed = true;
        self.assert_undelivered_goes_on(ops);
        assert!(calls.len() <= 1, "one completion, one decision: {calls:?}");
        for op in ops {
            match op {
                Op::Connect { link, address, .. } => {
                    let flow = &self.flows[&link.slot()];
                    assert!(!flow.established, "an established flow never changes endpoint");
                    assert!(!flow.prereading, "the first bytes come first");
                    if let [call] = &calls[..]
                        && call.client == flow.client
                    {
                        let (client, cluster) = (flow.client, flow.cluster);
                        let asked = Asked { client, attempt: flow.attempts, cluster, with: None };
                        let done = Done { target: Some(*address), refused: None };
                        is_obeyed = self.check_call(call, &asked, view, done);
                    }
                }
                Op::Send { link, buffer, .. } => {
                    let from = link.side().other().index();
                    let is_streams = self.received.remove(&(buffer.pool().index(), buffer.index()));
                    self.with(*link, |flow| flow.send(now, (from, buffer, is_streams)));
                }
                Op::Recycle { buffer } => {
                    self.received.remove(&(buffer.pool().index(), buffer.index()));
                }
                Op::Shutdown { link } => self.with(*link, |flow| flow.delivered.end()),
                Op::Receive { credit, .. } => {
                    assert!(u64::from(*credit) <= 8 * u64::from(Pool::Bulk.buffer_bytes()));
                }
                Op::Close { link, .. } => {
                    let Flow { prereading, head, closing, cluster, .. } = self.flows[&link.slot()];
                    *self.undecided.entry(cluster).or_default() +=
                        u64::from((prereading || head.is_some()) && !closing);
                    if link.side() == Side::Downstream || closing {
                        self.with(*link, |flow| flow.close(now));
                    } else {
                        self.abandon(*link);
                    }
                }
                _ => {}
            }
        }
        if let [call] = &calls[..] {
            let flow = self.flows.values_mut().find(|flow| flow.client == call.client);
            let flow = flow.expect("a retry belongs to a flow");
            flow.method = call.decision.method;
            let flow = flow.clone();
            if is_obeyed {
                self.keep((now, view), &flow, call, None);
            }
        }
    }

    /// Every connect goes to an endpoint that may be given flows, from whom the cluster says.
    pub(crate) fn on_connect(
        &mut self,
        link: Link,
        (address, from): (SocketAddr, Option<SocketAddr>),
        view: &View<'_>,
    ) {
        self.binds += 1;
        let flow = self.flows.get_mut(&link.slot()).expect("a connect belongs to a flow");
        flow.attempts += 1;
        flow.target = Some(address);
        flow.placed = Some(address);
        let cluster = &view.snapshot.clusters[flow.cluster];
        let mut endpoints = cluster.candidates.endpoints.iter();
        let endpoint = endpoints.find(|endpoint| endpoint.address == address);
        let most = endpoint.expect("a connect goes to a candidate").flows_max as usize;
        assert_eq!(from, cluster.transparent.then_some(flow.client), "where it leaves from");
        assert!(self.placed_at(address) <= most, "an endpoint has no more flows than it may");
    }

    /// The op is performed: the link has its connection.
    pub(crate) fn on_dialled(&mut self, now: Instant, link: Link, conn: Option<usize>) {
        self.with(link, |flow| {
            flow.conns[link.side().index()] = conn;
            flow.progressed = now;
        });
    }

    /// Nobody may live beyond its deadline.
    pub(crate) fn assert_nobody_is_overdue(&self, now: Instant, view: &View<'_>) {
        let mut left = self.flows.values().filter(|flow| !flow.closing);
        assert!(
            !left.any(|flow| view.is_over(flow, now)),
            "what is left when the drain is over is closed"
        );
        self.assert_nobody_waits_in_vain(now, view);
        self.assert_nobody_stays_in_vain(view);
        for flow in self.flows.values().filter(|flow| flow.head.is_some() && !flow.closing) {
            let rule = view.listener(flow).proxy.as_ref().expect("somebody asks for the header");
            let overdue = flow.started + rule.timeout + Duration::from_millis(2);
            assert!(now <= overdue, "{} has not been named in time", flow.client);
        }
        for flow in self.flows.values().filter(|flow| flow.established && !flow.closing) {
            if flow.method.throttle_kib_s.is_some() {
                continue;
            }
            let timeout = self.timeout_of(flow, view);
            let overdue = flow.progressed + timeout + Duration::from_millis(2);
            assert!(now <= overdue, "{} is overdue", flow.client);
        }
    }

    /// No flow stays with an endpoint that serves no more, where such flows are reset.
    fn assert_nobody_stays_in_vain(&self, view: &View<'_>) {
        let is_open = |flow: &&Flow| flow.established && !flow.closing;
        for flow in self.flows.values().filter(is_open) {
            let resets = view.listener(flow).on_endpoint_down == OnEndpointDown::Reset;
            let stays = self.fared.has_left(flow.target, flow.connected);
            assert!(!resets || !stays, "{} stays with {:?}", flow.client, flow.target);
        }
    }

    /// A session's last link has closed.
    pub(crate) fn on_slot_freed(&mut self, slot: u32) {
        if let Some(flow) = self.flows.remove(&slot) {
            self.ended.insert(flow.client, flow);
        }
    }

    fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().expect("nobody panicked"))
    }
}

/// What a policy should have been asked.
struct Asked {
    client: SocketAddr,
    attempt: u32,
    cluster: usize,
    /// Where a kept decision of an earlier policy wants it to stay.
    with: Option<EndpointId>,
}

/// What became of the flow.
#[derive(Debug, Clone, Copy)]
struct Done {
    target: Option<SocketAddr>,
    refused: Option<Goodbye>,
}

/// A client about to be accepted.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) now: Instant,
    pub(crate) listener: usize,
    pub(crate) client: SocketAddr,
    pub(crate) conn: usize,
    pub(crate) first: u8,
    pub(crate) head: Head,
}

fn denial(verdict: Verdict) -> Option<Goodbye> {
    match verdict {
        Verdict::Forward(_) => None,
        Verdict::Reset => Some(Goodbye::Reset),
        Verdict::Drop => Some(Goodbye::Fin),
    }
}
